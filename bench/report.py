"""``python -m bench.report``: the tables and the plot of README and docs, from the records."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import plot, records, tables
from bench.environment import ROOT, machine_slug

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def choose(folder: Path, slug: str) -> Path:
    """This machine's file of records, or the only one; FileNotFoundError where neither exists."""
    found = sorted(folder.glob("*.jsonl"))
    mine = folder / f"{slug}.jsonl"
    if mine in found:
        return mine
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(
            f"no {mine.name} in {folder.name}/ (found: {names}): measure with make bench, "
            "or name a file by --results"
        )
    return found[0]


def fill(document: Path, text: str, begin: str = BEGIN, end: str = END) -> bool:
    """Put ``text`` between the markers of a document; False where it has none."""
    if not document.exists():
        return False
    content = document.read_text()
    head, begun, rest = content.partition(begin)
    _, ended, tail = rest.partition(end)
    if not begun or not ended:
        return False
    document.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")
    return True


def report(results: Path, root: Path) -> list[str]:
    """Draw everything from one file of records; returns what was done, a line each."""
    measured = records.read(results)
    done = []
    for name, draw in (("README.md", tables.readme), ("docs/performance.md", tables.performance)):
        filled = fill(root / name, draw(measured))
        done.append(f"{name}: tables drawn" if filled else f"{name}: skipped, no {BEGIN} and {END}")
    images = plot.draw(measured, root / "docs" / "images")
    return done + [f"{path.relative_to(root)}: drawn" for path in images]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--results", type=Path, help="file of records; this machine's by default")
    arguments = parser.parse_args()
    results = arguments.results or choose(records.RESULTS, machine_slug())
    print(f"from {results.name}")
    print("\n".join(report(results, ROOT)))


if __name__ == "__main__":
    main()
