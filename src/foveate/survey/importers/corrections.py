"""Read a person's answers about images: a table of ours, Timelapse's CSV, or the human rows of a Camtrap DP package.

A row without an answer was not reviewed and is skipped. An image may have several rows, one for each kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.core.errors import UserError, nearest
from foveate.core.progress import say
from foveate.core.tables import read_rows
from foveate.records.importers.ingest import check_source
from foveate.survey.detections import get_kind
from foveate.survey.file_index import normalize_path
from foveate.survey.importers.camtrap_package import DESCRIPTOR, open_package

# Usual names of columns, the first that a table has counts; Timelapse's are those of the user's template.
ANSWERS = ("correction", "species", "scientificname", "taxon", "label", "analysis", "animal")
_FILES, _FOLDERS = ("file", "filename", "filepath"), ("relativepath", "folder")
_COUNTS = ("count", "number", "individuals", "howmany")
_PEOPLE = ("reviewer", "classifiedby", "analyst", "annotator")
_TIMES = ("reviewedat", "classificationtimestamp")
_EMPTY_FLAGS = ("empty", "blank")
_TRUE = ("true", "yes", "1")
CONFIRMATION = "ok"
"""Answer that agrees with what was decided."""
_MISSING = ("NA", "N/A", "NaN", "nan", "NULL", "null")


@dataclass(frozen=True, slots=True)
class Correction:
    """An answer of a person.

    Args:
        where: file and line, for errors.
        label: as written: a taxon or common name, "blank", "human", ...
        key: of the image, where the table has it. file: its path with forward slashes, else.
        event: of our own table of events.
        answered: name that was decided, in our own table: the answer is about this decision of the event.
        id: of the row in a Camtrap DP package, so that a row that comes back unchanged is no new answer.
        count: of individuals, at least 1.
        person, time: who answered and when, as written.
    """

    where: str
    label: str
    key: str = ""
    file: str = ""
    event: str = ""
    answered: str = ""
    id: str = ""
    count: int | None = None
    person: str = ""
    time: str = ""


def read_corrections(path: str | Path, *, column: str | None = None) -> list[Correction]:
    """Read the answers of a table (CSV, TSV) or a Camtrap DP package (folder, datapackage.json, zip).

    Args:
        column: of the answers; by default the first of correction, species, scientificName, taxon, label, analysis,
            animal.

    Raises:
        UserError: the file is neither, has no column with answers or images, or a row cannot be read (line and column
            are named).

    Example:
        >>> _ = image_file.with_name("answers.csv").write_text("file,label\\n0001.jpg,Vulpes vulpes\\n")
        >>> [(answer.file, answer.label) for answer in read_corrections(image_file.with_name("answers.csv"))]
        [('0001.jpg', 'Vulpes vulpes')]
    """
    path = check_source(Path(path))
    if path.is_dir() or path.name == DESCRIPTOR or path.suffix.lower() == ".zip":
        if column is not None:
            raise UserError(f"{path}: a column of answers (got {column!r}) has no effect on a Camtrap DP package")
        return list(_read_package(path))
    return list(_read_table(path, column))


def _read_package(path: Path) -> Iterator[Correction]:
    """Yield the rows of people about single images: those about events are no answer for any frame."""
    with open_package(path) as package:
        media = package.tables["media"]
        files = dict(zip(media["mediaID"].to_pylist(), media["filePath"].to_pylist(), strict=True))
        names = ("observationID", "mediaID", "observationType", "scientificName", "count", "classificationMethod")
        table = package.tables["observations"].select([*names, "classifiedBy", "classificationTimestamp"])
    for number, row in enumerate(table.to_pylist(), start=1):
        kind, key = row["observationType"], row["mediaID"]
        # A returned package also has its machine rows, unchanged, and "unclassified" means not reviewed.
        if row["classificationMethod"] != "human" or not key or kind == "unclassified":
            continue
        yield Correction(
            where=f"{path}: observations, row {number}",
            label=(row["scientificName"] or kind) if kind == "animal" else kind,
            key=key,
            file=normalize_path(files[key]) if "://" not in files[key] else "",
            id=row["observationID"],
            count=None if row["count"] is None else int(float(row["count"])),
            person=row["classifiedBy"] or "",
            time=row["classificationTimestamp"] or "",
        )


def _read_table(path: Path, column: str | None) -> Iterator[Correction]:
    table = read_rows(path)
    columns = _find_columns([name.strip() for name in table.names], column, path)
    num_contradictions = 0
    for line, cells in table.rows:
        values = {use: cells[index].strip() for use, index in columns.items()}
        correction = _read_row(values, path, line)
        if correction is not None:
            num_contradictions += _is_empty(values) and get_kind(correction.label) != "blank"
            yield correction
    if num_contradictions:
        say(f"{path}: rows that are marked as empty and have an answer: {num_contradictions:,}; the answer counts")


def _find_columns(header: Sequence[str], column: str | None, path: Path) -> dict[str, int]:
    """Return the position of each column by its use."""
    folded = ["".join(letter for letter in name.lower() if letter.isalnum()) for name in header]
    if not any(folded):
        raise UserError(f"{path} is empty; expected a first line with column names")
    answers = ANSWERS
    if column is not None:
        if column not in header:
            raise UserError(f"{path}: no column {column!r} (got {', '.join(header)}){nearest(column, header)}")
        answers = (folded[header.index(column)],)
    uses = {"answer": answers, "key": ("key",), "file": _FILES, "folder": _FOLDERS, "event": ("event",)}
    uses |= {"count": _COUNTS, "person": _PEOPLE, "time": _TIMES, "empty": _EMPTY_FLAGS}
    columns = {}
    for use, names in uses.items():
        name = next((name for name in names if name in folded), None)
        if name is not None:
            columns[use] = folded.index(name)
    if {"key", "event"} <= columns.keys() and "answer" in folded:
        columns["answered"] = folded.index("answer")
    if "answer" not in columns:
        raise UserError(f"{path}: no column of answers (got {', '.join(header)}); expected one of {', '.join(ANSWERS)}")
    if "key" not in columns and "file" not in columns:
        raise UserError(f"{path}: no column of images (got {', '.join(header)}); expected key or File")
    return columns


def _read_row(cells: Mapping[str, str], path: Path, line: int) -> Correction | None:
    """Return the answer of a row; None if there is none."""
    label = "" if cells["answer"] in _MISSING else cells["answer"]
    # Templates of Timelapse often have a flag for empty images besides the choice of a species.
    label = label or ("blank" if _is_empty(cells) else "")
    folder, file, count = cells.get("folder", ""), cells.get("file", ""), cells.get("count", "")
    if not label and "answered" in cells and count not in ("", *_MISSING):
        # Whoever writes only a count into our table agrees with the answer beside it.
        label = CONFIRMATION
    if not label:
        return None
    if count in ("", "0", *_MISSING):
        number = None
    elif count.isdecimal():
        number = int(count)
    else:
        raise UserError(f"{path}, line {line}, column of the count: expected a whole number (got {count!r})")
    return Correction(
        where=f"{path}, line {line}",
        label=label,
        key=cells.get("key", ""),
        file=normalize_path(f"{folder}/{file}" if folder else file) if file else "",
        event=cells.get("event", ""),
        answered=cells.get("answered", ""),
        count=number,
        person=cells.get("person", ""),
        time=cells.get("time", ""),
    )


def _is_empty(cells: Mapping[str, str]) -> bool:
    """Whether the flag for empty images is set, which some templates have beside the answer."""
    return cells.get("empty", "").lower() in _TRUE
