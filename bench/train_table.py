"""The training step in a table, and the bounds that it must meet; from records alone."""

from __future__ import annotations

from bench.targets import Check, Values

TITLES = {
    "train_step_stein_vae": "Stein VAE, one decoder",
    "train_step_stein_vae_decoders": "Stein VAE, 20 decoders, dealt",
    "train_step_stein_vae_all_pairs": "Stein VAE, 20 decoders, all pairs",
    "train_step_stein_viwae": "Stein VIWAE, k = 5, one decoder",
    "train_step_stein_viwae_gaussian": "Stein VIWAE, k = 5, Gaussian encoder",
}
SHARE, NAIVE, IWAE = 0.08, 3.0, 1.3
Row = tuple[str, str, int]  # experiment, shape, threads


def rows_of(values: Values) -> list[Row]:
    """What was measured, in order of codes and threads."""
    found = {(key[0], key[2], key[3]) for key in values if key[0] in TITLES}
    order = list(TITLES)
    return sorted(found, key=lambda row: (order.index(row[0]), codes_of(row[1]), row[2]))


def codes_of(shape: str) -> int:
    """S of BxSxd."""
    return int(shape.split("x")[1])


def numbers(values: Values, row: Row) -> dict[str, float]:
    """Milliseconds, share, and ratios, as far as they were measured."""
    experiment, shape, threads = row
    keys = ("ours", "products", "naive", "iwae")
    got = {
        method: values[experiment, method, shape, threads, "cpu_seconds"]
        for method in keys
        if (experiment, method, shape, threads, "cpu_seconds") in values
    }
    found = {method: 1e3 * seconds for method, seconds in got.items()}
    found["share"] = values[experiment, "ours", shape, threads, "stein_share"]
    found["naive / ours"] = got["naive"] / got["ours"]
    if "products" in got:
        found["naive / products"] = got["naive"] / got["products"]
    if "iwae" in got:
        found["ours / iwae"] = got["ours"] / got["iwae"]
    return found


def table(values: Values) -> list[list[str]]:
    """Rows of text, header first."""
    header = [
        "step",
        "codes an image",
        "threads",
        "ms",
        "its products, ms",
        "naive, ms",
        "IWAE, ms",
    ]
    header += ["naive / ours", "naive / products", "ours / IWAE", "Stein moves, %"]
    lines = [header]
    for row in rows_of(values):
        found = numbers(values, row)
        line = [TITLES[row[0]], str(codes_of(row[1])), str(row[2])]
        times = ("ours", "products", "naive", "iwae")
        line += [f"{found[name]:.0f}" if name in found else "-" for name in times]
        ratios = ("naive / ours", "naive / products", "ours / iwae")
        line += [f"{found[name]:.2f}" if name in found else "-" for name in ratios]
        lines.append([*line, f"{100 * found['share']:.1f}"])
    return lines


def checks(values: Values) -> list[Check]:
    """The worst setting of each bound; nothing where no step was measured."""
    measured = {row: numbers(values, row) for row in rows_of(values)}
    if not measured:
        return []
    viwae = {row: n for row, n in measured.items() if row[0] == "train_step_stein_viwae"}
    found = [
        _check("training step: share of Stein moves", "share", measured, SHARE, most=True),
        _check("training step: naive / ours", "naive / ours", measured, NAIVE, most=False),
    ]
    if viwae:
        name = "training step: Stein VIWAE / IWAE, as many decoder passes"
        found.append(_check(name, "ours / iwae", viwae, IWAE, most=True))
    return found


def _check(
    name: str, what: str, measured: dict[Row, dict[str, float]], bound: float, *, most: bool
) -> Check:
    worst = (max if most else min)(found[what] for found in measured.values())
    detail = ", ".join(
        f"{row[0].removeprefix('train_step_')} {row[1]} {row[2]}t {found[what]:.2f}"
        for row, found in measured.items()
    )
    met = worst <= bound if most else worst >= bound
    return Check(name, worst, f"{'<=' if most else '>='} {bound}", met, detail)
