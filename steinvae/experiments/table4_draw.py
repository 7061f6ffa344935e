"""Table 4 drawn from records: accuracy by share of labels beside the paper's, and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from steinvae.experiments.cells import Record
from steinvae.experiments.document import NOT_YET
from steinvae.experiments.table3_draw import QUALITY, paired_row
from steinvae.experiments.table4_cells import PERCENT, ROWS
from steinvae.report import markdown_table

PAPER: dict[str, tuple[str, ...]] = {
    "VAE": (
        *("35.92 ± 1.91", "40.15 ± 1.52", "44.27 ± 1.47", "46.92 ± 1.02"),
        *("50.43 ± 0.41", "53.24 ± 0.33", "56.89 ± 0.11"),
    ),
    "Stein VAE": (
        *("36.44 ± 1.66", "41.71 ± 1.14", "46.14 ± 1.02", "47.83 ± 0.88"),
        *("51.62 ± 0.24", "55.02 ± 0.22", "58.17 ± 0.16"),
    ),
    "Stein VIWAE": (
        *("36.91 ± 0.98", "42.57 ± 0.84", "46.20 ± 0.52", "48.67 ± 0.31"),
        *("51.77 ± 0.12", "55.45 ± 0.11", "58.21 ± 0.12"),
    ),
}
"""Table 4 of Pu et al. 2017, accuracy in % on ImageNet's 1,000 classes, by PERCENT."""

PAPER_NOTE = (
    "The paper's numbers are quoted, for ImageNet itself: 1,000 classes, 224 x 224, 10 choices of "
    "labelled images up to 10 % and 5 beyond, no stated limit of training. They compare with a "
    "table of `--nets imagenet` alone."
)
AGAINST = (("Stein VAE", "VAE"), ("Stein VIWAE", "VAE"), ("Stein VIWAE", "Stein VAE"))
_ROW_OF = {changes["name"]: row for row, changes in ROWS.items()}
_TITLES = {
    64: "Tiny ImageNet, 64 x 64, scaled nets",
    224: "ImageNet, 224 x 224, the nets of appendix D",
}
_TIMES = {"cpu": "one core", "gpu": "a device"}

Found = Mapping[tuple[str, int], Mapping[int, Mapping[str, float]]]
"""(row, percent) -> split -> metric -> value."""


def paper_error(cell_name: str) -> float | None:
    """The paper's mean error of a cell of ImageNet as a fraction, None for other nets."""
    row, nets, share = cell_name.removesuffix(" %").split(", ")
    if nets != "imagenet":
        return None
    percent = float(PAPER[row][PERCENT.index(int(share))].split()[0])
    return round(1 - percent / 100, 6)


def draw(records: Sequence[Record]) -> str:
    """Markdown: a section for every data set, budget, minutes, S and zeta with records."""
    parts: dict[tuple[int, int, str, float, int, float], list[Record]] = {}
    for record in records:
        setting = record["setting"]
        codes = setting["code_particles"] * setting.get("importance_samples", 1)
        weight = setting.get("zeta", 0.0)  # 0: the paper's X/(C rho)
        images = (setting["crop"], setting["classes"])
        key = (*images, setting["budget"], setting["minutes"], codes, weight)
        parts.setdefault(key, []).append(record)
    sections = []
    for (crop, classes, budget, minutes, codes, weight), part in sorted(parts.items()):
        found = group(part)
        size = _TITLES.get(crop, f"{crop} x {crop}")
        title = (
            f"### {size}, {classes} classes, S = {codes}{f', ζ = {weight:,g}' if weight else ''}: "
            f"{minutes:g} minutes of {_TIMES[budget]} for the updates of a cell"
        )
        sections += [title, _accuracy(found), _caption(found), _quality(found), _tests(found)]
    return "\n\n".join([*sections, PAPER_NOTE] if sections else [NOT_YET])


def group(records: Sequence[Record]) -> dict[tuple[str, int], dict[int, dict[str, float]]]:
    """The newest value of every metric."""
    found: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    for record in records:
        share = round(100 * record["setting"]["label_fraction"])
        by_split = found.setdefault((_ROW_OF[record["method"]], share), {})
        numbers = by_split.setdefault(record["seed"], {})
        numbers[record["metric"]] = record["value"]
        numbers["steps"] = record["setting"]["steps"]
        numbers["images"] = record["n"]
    return found


def _accuracy(found: Found) -> str:
    shares = [share for share in PERCENT if any(key[1] == share for key in found)]
    rows = []
    for row in ROWS:
        own = [found.get((row, share), {}) for share in shares]
        if any(own):
            rows.append([row, *(_spread(splits) for splits in own)])
        quoted = (PAPER[row][PERCENT.index(share)] for share in shares)
        rows.append([f"{row}, paper, 1,000 classes", *quoted])
    return markdown_table(("accuracy %", *(f"{share} % of labels" for share in shares)), rows)


def _spread(splits: Mapping[int, Mapping[str, float]]) -> str:
    values = [100 - 100 * numbers["label_error"] for numbers in splits.values()]
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _caption(found: Found) -> str:
    cells = [numbers for by_split in found.values() for numbers in by_split.values()]
    counts = sorted({len(by_split) for by_split in found.values()})
    seconds, steps = ([each[name] for each in cells] for name in ("cpu_seconds", "steps"))
    classes, images = (int(cells[0][name]) for name in ("classes", "images"))
    *few, most = ("one" if count == 1 else str(count) for count in counts)
    over = f"{', '.join(few)} or {most}" if few else most
    over += " choice" if counts == [1] else " choices"
    return (
        f"Top-1 accuracy on {images:,} test images of {classes:,} classes (chance: "
        f"{100 / classes:.1f} %), mean ± standard deviation over {over} of labelled images; the "
        f"binomial standard error of a cell is at most {50 / images**0.5:.1f} points. "
        f"{min(seconds):,.0f} to {max(seconds):,.0f} processor seconds a cell, "
        f"{min(steps):,} to {max(steps):,} steps."
    )


def _quality(found: Found) -> str:
    header = ("cell", "method", "steps", "parameters", *(name for name, _, _ in QUALITY))
    rows = []
    for row, share in sorted(found, key=lambda key: (key[1], list(ROWS).index(key[0]))):
        splits = list(found[row, share].values())
        least, most = (pick(int(each["steps"]) for each in splits) for pick in (min, max))
        steps = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        line = [f"{share} %", row, steps, f"{splits[0]['parameters']:,}"]
        for _, metric, percent in QUALITY:
            value = mean(each[metric] for each in splits) * (100 if percent else 1)
            line.append(f"{value:.{2 if percent else 3}f}")
        rows.append(line)
    what = (
        "NLL of the labels in nats an image and expected calibration error (15 bins) of the "
        "averaged probabilities p; of p^(1/T), T fitted to the labels of the validation images; "
        "and of one label decoder alone (the VAE has one)."
    )
    return f"{markdown_table(header, rows)}\n\n{what}"


def _tests(found: Found) -> str:
    rows = []
    for share in PERCENT:
        for row, other in AGAINST:
            one, two = found.get((row, share), {}), found.get((other, share), {})
            gaps = {
                split: 100 * (one[split]["label_error"] - two[split]["label_error"])
                for split in sorted(one.keys() & two.keys())
            }
            if gaps:
                rows.append(paired_row(f"{share} %", row, other, gaps))
    what = (
        "Differences of error in percentage points, paired over splits; p of an exact sign-flip "
        "permutation test, two-sided: fewer than six splits cannot show anything."
    )
    header = ("cell", "difference", "splits", "points", "p", "verdict")
    return f"{markdown_table(header, rows)}\n\n{what}" if rows else ""
