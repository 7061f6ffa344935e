"""Table 2 drawn from records: perplexities by convention and bound, and which claims hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from steinvae.experiments.cells import Cell, Record
from steinvae.experiments.document import NOT_YET, join
from steinvae.experiments.measured import of, runs, same
from steinvae.experiments.over_seeds import minus, shown, verdict
from steinvae.experiments.table2_cells import CORPORA, LESS, ROWS, cells
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
CONTROL, DEEP_VAE = "control: layered encoder by ELBO", "deep Poisson, VAE"

ANY_TIME = ("steps", "minutes")
"""What may differ between a cell and its records where all budgets are looked for."""

Estimates = Mapping[str, float]
"""Numbers of a run by what they are, for example "IW, perplexity_per_document"."""

BySeed = Mapping[int, Estimates]


def draw(records: Sequence[Record], seeds: Sequence[int], subset: int) -> str:
    """Markdown: a table and its claims for each corpus and for each other time that was given to
    runs; a line where nothing of a corpus was measured yet, and nothing without any of them."""
    return join(_corpus(name, records, seeds, subset) for name in CORPORA)


def _corpus(corpus: str, records: Sequence[Record], seeds: Sequence[int], subset: int) -> str:
    unigram = {
        r["metric"]: r
        for r in records
        if (r["method"], r["setting"]["data"]) == ("unigram", corpus)
    }
    parts = []
    for minutes in (None, *_other_minutes(corpus, records, seeds)):
        measured: dict[str, dict[int, Estimates]] = {}
        for cell in cells(corpus, None, seeds, minutes):
            if found := _estimates(cell, records, subset):
                measured.setdefault(cell.row, {})[cell.config.seed] = found
        if measured and unigram:
            in_order = {row: measured[row] for row in ROWS if row in measured}
            table = _table(corpus, in_order, unigram, subset)
            title = "" if minutes is None else f", {minutes:g} minutes a run"
            parts += [f"### {TITLES[corpus]}{title}", table, _claims(measured, unigram)]
    return "\n\n".join(parts) or f"### {TITLES[corpus]}\n\n{NOT_YET}"


def _other_minutes(corpus: str, records: Sequence[Record], seeds: Sequence[int]) -> list[float]:
    """What `--minutes` was in runs that were not given those of `CORPORA`."""
    found = set()
    for cell in cells(corpus, None, seeds):
        for record in same(cell, records, "training", ANY_TIME):
            minutes = record["setting"].get("minutes")
            if minutes is not None and minutes != cell.minutes:
                found.add(round(minutes / LESS.get(cell.row, 1.0), 6))
    return sorted(found)


def _estimates(cell: Cell, records: Sequence[Record], subset: int) -> dict[str, float]:
    """What the cell's newest run says of which there are perplexities; nothing without one."""
    for run in runs(cell, records):
        if found := _perplexities(run, records, subset):
            for estimator in ("training", "units(64)"):
                own = of(run, records, estimator)
                found |= {metric: record["value"] for metric, record in own.items()}
            return found | {"steps": run.config.trainer.max_steps}
    return {}


def _perplexities(run: Cell, records: Sequence[Record], subset: int) -> dict[str, float]:
    """With standard errors over documents, by what it is and " ±"."""
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
            for metric, record in of(run, own, estimator).items():
                if name and metric in (PER_DOCUMENT, CORPUS):
                    found[f"{name}{suffix}, {metric}"] = record["value"]
                    if record["stderr"] is not None:
                        found[f"{name}{suffix}, {metric} ±"] = record["stderr"]
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
PERPLEXITIES, COSTS = tuple(COLUMNS.values())[:7], tuple(COLUMNS.values())[7:]


def _table(
    corpus: str, measured: Mapping[str, BySeed], unigram: Mapping[str, Record], subset: int
) -> str:
    one = f"{unigram[PER_DOCUMENT]['value']:,.0f}", f"{unigram[CORPUS]['value']:,.0f}"
    rows = [["unigram, add one", "-", "-", one[0], one[0], one[1], one[1], *["-"] * 7]]
    for row, found in measured.items():
        paper = PAPER[corpus].get(row, "-")
        values = [shown(_of(key, found).values(), 0) for key in PERPLEXITIES]
        costs = [shown(_of(key, found).values(), 0, error=False) for key in COSTS]
        rows.append([row, paper, str(len(found)), *values, *costs])
    documents = unigram[PER_DOCUMENT]["n"]
    note = (
        f"Perplexity, lower is better; per document unless it says corpus. All {documents:,} test "
        f"documents, or a subset of {subset} evenly spaced ones, whose three columns compare with "
        "each other. IW: importance-weighted bound of 100 samples, from the encoder's own density "
        "or from a Gaussian fitted to its codes; every number is an upper bound in expectation. "
        "Active units: codes whose mean varies over the subset. Standard errors over documents, "
        f"which rows share, of the numbers per document: {_errors(measured, PERPLEXITIES[:2])} of "
        f"all documents, {_errors(measured, PERPLEXITIES[4:])} of the subset. "
        "± in the table is the standard error over seeds, where there are several."
    )
    return f"{markdown_table(('method', 'paper', 'seeds', *COLUMNS), rows)}\n\n{note}"


def _errors(measured: Mapping[str, BySeed], names: Sequence[str]) -> str:
    """The smallest and the largest standard error over documents."""
    errors = [
        one[f"{name} ±"]
        for by_seed in measured.values()
        for one in by_seed.values()
        for name in names
        if f"{name} ±" in one
    ]
    return f"{min(errors):.1f} to {max(errors):.1f}" if errors else "-"


def _claims(measured: Mapping[str, BySeed], unigram: Mapping[str, Record]) -> str:
    """Bars and comparisons, by the IW bound per document on all test documents, paired by seed."""
    found = {row: _of(COLUMNS["IW"], by_seed) for row, by_seed in measured.items()}
    bar = 0.9 * unigram[PER_DOCUMENT]["value"]
    limits = {
        "deep Poisson, Stein VIWAE at most 0.9 of the unigram": (
            VIWAE,
            dict.fromkeys(found.get(VIWAE, ()), bar),
        ),
        "deep Poisson: Stein VIWAE at most Stein VAE": (VIWAE, found.get(STEIN, {})),
        "deep Poisson: Stein VAE at most VAE": (STEIN, found.get(DEEP_VAE, {})),
        "deep Poisson: Stein VIWAE at most the control": (VIWAE, found.get(CONTROL, {})),
        "deep Poisson, Stein VIWAE at most NVDM": (VIWAE, found.get(NVDM, {})),
    }
    rows = []
    for claim, (row, limit) in limits.items():
        gaps = minus(found.get(row, {}), limit)
        if gaps:
            it, other = (mean(values[seed] for seed in gaps) for values in (found[row], limit))
            rows.append((claim, f"{it:,.1f}", f"{other:,.1f}", verdict(gaps.values(), 0.0)))
    if not rows:
        return "No two rows of a claim were measured yet."
    return markdown_table(("claim, IW per document", "it", "limit", "holds"), rows)


def _of(name: str, by_seed: BySeed) -> dict[int, float]:
    return {seed: one[name] for seed, one in by_seed.items() if name in one}
