"""Finding the files of a data set below data.root."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def find_files(
    root: Path | None, data_set: str, folders: Sequence[str], *forms: Sequence[Sequence[str]]
) -> list[Path]:
    """The paths of the first form of a data set that one folder holds completely.

    A form is a list of files, each a list of alternative names, the preferred one first. `folders`
    are relative to `root`.

    Errors: FileNotFoundError naming the setting data.root, the files looked for and where.
    """
    wanted = "; or ".join(", ".join(" or ".join(names) for names in form) for form in forms)
    if root is None:
        raise FileNotFoundError(f"data.root is not set; {data_set} needs a directory with {wanted}")
    places = [root / folder for folder in folders]
    for form in forms:
        for place in places:
            found = [path for names in form if (path := _first_file(place, names)) is not None]
            if len(found) == len(form):
                return found
    looked = ", ".join(str(place) for place in places)
    lacking = "".join(_missing(places, form) for form in forms)
    raise FileNotFoundError(
        f"data.root={root}: {data_set} needs {wanted}. Looked in {looked}.{lacking}"
    )


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _missing(places: Sequence[Path], form: Sequence[Sequence[str]]) -> str:
    """A sentence on what an incomplete folder lacks, "" where no file of the form was found."""
    for place in places:
        lacking = [names[0] for names in form if _first_file(place, names) is None]
        if len(lacking) < len(form):
            return f" {place} lacks {', '.join(lacking)}."
    return ""
