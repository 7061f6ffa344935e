"""Table 3 drawn from records: errors by network and labels, paired tests, calibration, quotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from steinvae.experiments.cells import Record
from steinvae.experiments.document import NOT_YET
from steinvae.experiments.paired_test import MOST, sign_flip_p
from steinvae.experiments.table3_cells import GUESS_ABOVE, METHODS, NETWORKS, PER_CLASS, ROWS
from steinvae.report import markdown_table

PAPER: dict[tuple[str, str], tuple[str, ...]] = {
    ("FNN", "VAE"): ("3.33 ± 0.14", "2.59 ± 0.05", "2.40 ± 0.02", "2.18 ± 0.04"),
    ("FNN", "Stein VAE"): ("2.78 ± 0.24", "2.13 ± 0.08", "1.92 ± 0.05", "1.77 ± 0.03"),
    ("FNN", "Stein VIWAE"): ("2.67 ± 0.09", "2.09 ± 0.03", "1.88 ± 0.01", "1.75 ± 0.01"),
    ("CNN", "VAE"): ("2.44 ± 0.17", "1.88 ± 0.05", "1.47 ± 0.02", "0.98 ± 0.02"),
    ("CNN", "Stein VAE"): ("1.94 ± 0.24", "1.44 ± 0.04", "1.01 ± 0.03", "0.89 ± 0.03"),
    ("CNN", "Stein VIWAE"): ("1.90 ± 0.05", "1.41 ± 0.02", "0.99 ± 0.02", "0.86 ± 0.01"),
}
"""Table 3 of Pu et al. 2017, error in % ± sd over 20 splits, by PER_CLASS."""

PAPER_NOTE = (
    "The paper's numbers are quoted: 20 splits, no stated limit of training. Its VAE column of the "
    "FNN is M1+M2 of Kingma et al. (2014, Table 1), another model than its own with a Gaussian "
    "encoder; compare it with the row M1+M2."
)
QUOTES = (
    ("ladder network, FNN", "1.06 ± 0.37", "Rasmus et al. 2015 (arXiv 1507.02672)"),
    ("ladder network, CNN", "0.89", "Rasmus et al. 2015 (arXiv 1507.02672)"),
    ("VAT, FNN", "1.36", "Miyato et al. 2018 (arXiv 1704.03976)"),
)
"""Other methods at 10 labels a class, error in %."""

AGAINST = (
    ("Stein VAE", "VAE"),
    ("Stein VIWAE", "VAE"),
    ("Stein VIWAE", "Stein VAE"),
    ("Stein VAE", "M1+M2"),
    ("Stein VAE", "supervised"),
    ("Stein VAE + guesses", "VAE + guesses"),
    ("Stein VAE + guesses", "Stein VAE"),
)
SIGNIFICANT = 0.05

Group = Mapping[tuple[str, str, int], Mapping[int, Mapping[str, float]]]
"""(network, row, labels a class) -> split -> metric -> value."""


def _row(record: Record) -> str:
    guesses = "_guesses" if "guess_above" in record["setting"] else ""
    return METHODS[record["method"] + guesses]


def paper_error(cell_name: str) -> float | None:
    """The paper's mean error of a cell as a fraction, None where it has no such row."""
    row, network, count = cell_name.removesuffix(" a class").split(", ")
    quoted = PAPER.get((network, row))
    if quoted is None:
        return None
    percent = float(quoted[PER_CLASS.index(int(count))].split()[0])
    return round(percent / 100, 6)


def draw(records: Sequence[Record]) -> str:
    """Markdown: a section for every budget that has records."""
    sections = []
    for title, part in _budgets(records).items():
        found = group(part)
        tables = [_errors(found, network) for network in NETWORKS]
        parts = [f"### {title}", *tables, _caption(found), _tests(found), _quality(found)]
        sections += [part for part in parts if part]
    return "\n\n".join([*sections, PAPER_NOTE, _quotes()] if sections else [NOT_YET])


def group(records: Sequence[Record]) -> dict[tuple[str, str, int], dict[int, dict[str, float]]]:
    """The newest value of every metric."""
    found: dict[tuple[str, str, int], dict[int, dict[str, float]]] = {}
    for record in records:
        setting = record["setting"]
        network = "CNN" if setting.get("network") == "conv" else "FNN"
        key = (network, _row(record), setting["labels_per_class"])
        found.setdefault(key, {}).setdefault(record["seed"], {})[record["metric"]] = record["value"]
    return found


def compare(found: Group, network: str, count: int, row: str, other: str) -> dict[int, float]:
    """Differences of error in percentage points, split by split."""
    one, two = found.get((network, row, count), {}), found.get((network, other, count), {})
    return {
        split: 100 * (one[split]["label_error"] - two[split]["label_error"])
        for split in sorted(one.keys() & two.keys())
    }


def _budgets(records: Sequence[Record]) -> dict[str, list[Record]]:
    parts: dict[tuple[int, float], list[Record]] = {}
    for record in records:
        setting = record["setting"]
        key = (tuple(_TITLES).index(setting["budget"]), setting.get("minutes", 0.0))
        parts.setdefault(key, []).append(record)
    named = tuple(_TITLES.values())
    return {
        named[budget].format(f"{minutes:g}"): parts[budget, minutes]
        for budget, minutes in sorted(parts)
    }


_TITLES = {
    "small": "Budget small: 1,500 steps",
    "cpu": "Budget cpu: {} minutes of one core for the updates of a cell",
    "gpu": "Budget gpu: {} minutes of a device for the updates of a cell",
}


def _errors(found: Group, network: str) -> str:
    counts = [n for n in PER_CLASS if any(key[0] == network and key[2] == n for key in found)]
    if not counts:
        return ""
    rows = []
    for row in ROWS:
        own = {n: found.get((network, row, n), {}) for n in counts}
        if any(own.values()):
            rows.append([row, *(spread(own[n], "label_error") for n in counts)])
        if (network, row) in PAPER:
            quoted = PAPER[network, row]
            rows.append([f"{row}, paper", *(quoted[PER_CLASS.index(n)] for n in counts)])
    floor = {n: found.get((network, "M1+M2", n), {}) for n in counts}
    if any(floor.values()):
        nearest = (spread(floor[n], "nearest_neighbour_error") for n in counts)
        rows.append(["nearest neighbour, codes of M1", *nearest])
    header = (f"{network}: error %", *(f"{n} a class" for n in counts))
    return markdown_table(header, rows)


def spread(splits: Mapping[int, Mapping[str, float]], metric: str) -> str:
    """Mean ± standard deviation (how many) over splits of a fraction, in percent."""
    values = [100 * numbers[metric] for numbers in splits.values() if metric in numbers]
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation} ({len(values)})"


def _caption(found: Group) -> str:
    seconds = [
        numbers["cpu_seconds"] for by_split in found.values() for numbers in by_split.values()
    ]
    nearest = any(row == "M1+M2" for _, row, _ in found)
    floor = (
        " Nearest neighbour: class of the nearest labelled image in the code space of M1, which "
        "has seen no label."
    )
    caption = (
        "Error on the 10,000 test images, mean ± standard deviation over choices of labelled "
        f"images (how many); {min(seconds):.0f} to {max(seconds):.0f} processor seconds a cell."
    )
    guesses = any("guesses" in row for _, row, _ in found)
    return caption + (floor if nearest else "") + (_GUESSES if guesses else "")


_GUESSES = (
    " Guesses, beyond the paper: unlabelled images count as labelled where the averaged "
    f"probability of a class, aligned with the labels' frequencies, is above {GUESS_ABOVE}, and "
    "the encoder sees them perturbed against that prediction."
)


def _tests(found: Group) -> str:
    rows = []
    for network in NETWORKS:
        for count in PER_CLASS:
            for row, other in AGAINST:
                gaps = compare(found, network, count, row, other)
                if gaps:
                    rows.append(paired_row(f"{network}, {count} a class", row, other, gaps))
    header = ("cell", "difference", "splits", "points", "p", "verdict")
    what = (
        "Differences of error in percentage points, paired over splits; p of an exact sign-flip "
        "permutation test, two-sided: at least 2 / 2^splits, so that fewer than six splits cannot "
        "show anything."
    )
    return f"{markdown_table(header, rows)}\n\n{what}" if rows else ""


def paired_row(cell: str, row: str, other: str, gaps: Mapping[int, float]) -> list[str]:
    """A line of a table of paired tests: `gaps` are row minus other in points, by split."""
    values = list(gaps.values())[:MOST]
    p = sign_flip_p(values)
    verdict = "nothing shown"
    if p < SIGNIFICANT:
        verdict = "lower" if mean(values) < 0 else "higher"
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    points = f"{mean(values):+.2f}{spread}"
    return [cell, f"{row} - {other}", str(len(values)), points, f"{p:.3f}", verdict]


def _quality(found: Group) -> str:
    rows = []
    order = [(network, row, count) for network in NETWORKS for count in PER_CLASS for row in ROWS]
    for network, row, count in (key for key in order if key in found):
        splits = found[network, row, count]
        numbers = [f"{network}, {count} a class", row]
        for _, metric, percent in QUALITY:
            values = [each[metric] * (100 if percent else 1) for each in splits.values()]
            numbers.append(f"{mean(values):.{2 if percent else 3}f}")
        rows.append(numbers)
    header = ("cell", "method", *(name for name, _, _ in QUALITY))
    what = (
        "Means over splits: NLL of the labels in nats an image and expected calibration error (15 "
        "bins) of the averaged probabilities p; of p^(1/T), T fitted to the labels of the 10,000 "
        "validation images; and of one label decoder alone (the baselines have one)."
    )
    return f"{markdown_table(header, rows)}\n\n{what}"


QUALITY = (
    ("NLL", "label_nll", False),
    ("ECE %", "label_ece", True),
    ("T", "temperature", False),
    ("NLL at T", "calibrated_nll", False),
    ("ECE % at T", "calibrated_ece", True),
    ("error % of one", "single_error", True),
    ("NLL of one", "single_nll", False),
)


def _quotes() -> str:
    table = markdown_table(("other methods, 10 a class", "error %", "source"), QUOTES)
    return f"{table}\n\nQuoted from their papers, on splits of their own."
