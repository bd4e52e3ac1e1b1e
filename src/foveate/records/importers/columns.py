"""Which column of a table holds what: as the user says, or by the names that people give such columns."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.core.errors import UserError, nearest

PATHS = tuple("path filepath file_path file_name filename file image_path img_path image img picture".split())
TEXTS = tuple("text caption captions title alt alt_text description sentence sentences txt".split())
IMAGES = ("image", "img", "picture", "jpg", "png", "photo")
BOXES = ("boxes", "regions")


def find_column(
    columns: Sequence[str], usual: Sequence[str], *, given: str | None, option: str, where: object
) -> str | None:
    """The column that the user has `given`, else the first of the `usual` names that is there, or None.

    Raises:
        UserError: the given column is not there; the nearest one is named.
    """
    if given is not None:
        if given in columns:
            return given
        listed = ", ".join(columns[:30])
        raise UserError(
            f"{where} has no column {given!r} ({option}): its columns are {listed}{nearest(given, columns)}"
        )
    folded = {name.casefold().strip(): name for name in reversed(columns)}
    return next((folded[name] for name in usual if name in folded), None)


def need_column(columns: Sequence[str], usual: Sequence[str], *, given: str | None, option: str, where: object) -> str:
    """As `find_column`, but the column must be there. Raises UserError with the nearest one otherwise."""
    found = find_column(columns, usual, given=given, option=option, where=where)
    if found is not None:
        return found
    near = next((hint for name in usual if (hint := nearest(name, columns))), "")
    listed = ", ".join(columns[:30])
    raise UserError(f"{where} has no column {' or '.join(usual[:4])}: name it with {option}, of {listed}{near}")
