"""Table 2 drawn from records: perplexities by convention and bound, and which claims hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from steinvae.experiments.cells import Cell, Record
from steinvae.experiments.measured import of
from steinvae.experiments.table2_cells import CORPORA, ROWS, cells
from steinvae.report import markdown_table

PAPER: dict[str, dict[str, str]] = {
    "20news": {
        "NVDM: VAE": "852",
        "deep Poisson, Stein VAE": "849, 845",
        "deep Poisson, Stein VIWAE": "837, 829",
    },
    "nyt": {
        "deep Poisson, Stein VAE": "(2402, 2401)",
        "deep Poisson, Stein VIWAE": "(2315, 2277)",
    },
}
"""Table 2 of Pu et al. 2017; two numbers are ELBO and S-ELBO. Its NYT is another corpus."""

TITLES = {
    "20news": "20 Newsgroups, 2,000 words",
    "nyt": "New York Times, the small set: 10,000 words",
}
PER_DOCUMENT, CORPUS = "perplexity_per_document", "perplexity_corpus"

VIWAE, STEIN, NVDM = "deep Poisson, Stein VIWAE", "deep Poisson, Stein VAE", "NVDM: VAE"
CONTROL, DEEP_VAE = "control: its encoder by the ELBO", "deep Poisson, VAE"

ANY_TIME = ("steps", "minutes")
"""What may differ between a cell and its records here: the column `cpu s` shows it."""

Estimates = Mapping[str, float]
"""Perplexities of a row by what they are, for example "IW"."""


def draw(records: Sequence[Record], seeds: Sequence[int], subset: int) -> str:
    """Markdown: a table and its claims for each corpus; a line where nothing was measured yet."""
    return "\n\n".join(_corpus(name, records, seeds, subset) for name in CORPORA)


def _corpus(corpus: str, records: Sequence[Record], seeds: Sequence[int], subset: int) -> str:
    title = f"### {TITLES[corpus]}"
    unigram = {
        r["metric"]: r
        for r in records
        if (r["method"], r["setting"]["data"]) == ("unigram", corpus)
    }
    by_row = {
        row: [
            found
            for cell in cells(corpus, None, seeds)
            if cell.row == row and (found := _estimates(cell, records, subset))
        ]
        for row in ROWS
    }
    measured = {row: found for row, found in by_row.items() if found}
    if not measured or not unigram:
        return f"{title}\n\nNot measured yet."
    return "\n\n".join(
        [title, _table(corpus, measured, unigram, subset), _claims(measured, unigram)]
    )


def _estimates(cell: Cell, records: Sequence[Record], subset: int) -> dict[str, float]:
    """What the newest records of a cell say."""
    parts = (
        ([r for r in records if r["n"] == subset], " of the subset"),
        ([r for r in records if r["n"] > subset], ""),
    )
    found: dict[str, float] = {}
    for own, suffix in parts:
        for estimator in dict.fromkeys(r["estimator"] for r in own):
            name = {"elbo": "ELBO", "s_elbo": "IW", "iw_g": "IW", "ais": "AIS"}.get(
                estimator.split("(")[0]
            )
            for metric, record in of(cell, own, estimator, ANY_TIME).items():
                if name and metric in (PER_DOCUMENT, CORPUS):
                    found[f"{name}{suffix}, {metric}"] = record["value"]
    for estimator in ("training", "units(64)"):
        for metric, record in of(cell, records, estimator, ANY_TIME).items():
            found |= {metric: record["value"], "steps": record["setting"]["steps"]}
    return found


COLUMNS = {
    "IW": f"IW, {PER_DOCUMENT}",
    "ELBO": f"ELBO, {PER_DOCUMENT}",
    "IW, corpus": f"IW, {CORPUS}",
    "ELBO, corpus": f"ELBO, {CORPUS}",
    "subset ELBO": f"ELBO of the subset, {PER_DOCUMENT}",
    "subset IW": f"IW of the subset, {PER_DOCUMENT}",
    "subset AIS": f"AIS of the subset, {PER_DOCUMENT}",
    "active units": "active_units",
    "parameters": "parameters",
    "cpu s": "cpu_seconds",
    "steps": "steps",
}


def _table(
    corpus: str,
    measured: Mapping[str, Sequence[Estimates]],
    unigram: Mapping[str, Record],
    subset: int,
) -> str:
    one = f"{unigram[PER_DOCUMENT]['value']:,.0f}", f"{unigram[CORPUS]['value']:,.0f}"
    rows = [["unigram, add one", "-", one[0], one[0], one[1], one[1], *["-"] * 7]]
    for row, found in measured.items():
        values = [_mean([each[key] for each in found if key in each]) for key in COLUMNS.values()]
        rows.append([row, PAPER[corpus].get(row, "-"), *values])
    documents = unigram[PER_DOCUMENT]["n"]
    note = (
        f"Perplexity, lower is better; per document unless it says corpus. All {documents:,} test "
        f"documents, or a subset of {subset} evenly spaced ones, whose three columns compare with "
        "each other. IW: importance-weighted bound of 100 samples, from the encoder's own density "
        "or from a Gaussian fitted to its codes; every number is an upper bound in expectation. "
        "Active units: codes whose mean varies over the subset. "
        f"± over documents of the per-document numbers: {unigram[PER_DOCUMENT]['stderr']:.1f} "
        "(unigram), shared by the rows. One seed."
    )
    return f"{markdown_table(('method', 'paper', *COLUMNS), rows)}\n\n{note}"


def _claims(measured: Mapping[str, Sequence[Estimates]], unigram: Mapping[str, Record]) -> str:
    """Bars and comparisons, by the IW bound per document on all test documents."""
    key, base = COLUMNS["IW"], unigram[PER_DOCUMENT]["value"]
    found = {
        row: mean([each[key] for each in many]) for row, many in measured.items() if key in many[0]
    }
    pairs = {
        "deep Poisson, Stein VIWAE at most 0.9 of the unigram": (VIWAE, 0.9 * base),
        "deep Poisson: Stein VIWAE at most Stein VAE": (VIWAE, found.get(STEIN)),
        "deep Poisson: Stein VAE at most VAE": (STEIN, found.get(DEEP_VAE)),
        "deep Poisson: Stein VIWAE at most the control": (VIWAE, found.get(CONTROL)),
        "deep Poisson, Stein VIWAE at most NVDM": (VIWAE, found.get(NVDM)),
    }
    rows = [
        (claim, f"{found[row]:,.1f}", f"{limit:,.1f}", "yes" if found[row] <= limit else "**no**")
        for claim, (row, limit) in pairs.items()
        if row in found and limit is not None
    ]
    if not rows:
        return "No two rows of a claim were measured yet."
    return markdown_table(("claim, IW per document", "it", "limit", "holds"), rows)


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):,.0f}" if values else "-"
