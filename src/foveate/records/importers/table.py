"""Import a table of paths and texts: CSV, TSV or Parquet, as open_clip and most data sets have it.

Rows with the same path are one image with several captions. The key is the path below the folder of the
images, without its ending. Further columns, such as addresses, are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError, nearest
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import file_sample
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.json_files import finding
from foveate.records.importers.sample import Problem, Sample, SharedOptions
from foveate.records.importers.table_files import SUFFIXES, column_names, is_of_images, read_columns

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


def import_table(
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    path_column: str | None = None,
    text_column: str | None = None,
    boxes_column: str | None = None,
    label_column: Sequence[str] = (),
    group_by: str = "none",
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Take the images that a table names, with their texts, into the collection `target`.

    The columns that are used are read into memory, images are not.

    Args:
        source: a `.csv`, `.tsv` or `.parquet` file. A text file is UTF-8 with a line of column names; tab,
            comma or semicolon is told from that line.
        target: collection folder, made where it does not exist.
        images: the folder that paths start from and lead into; by default that of the table.
        path_column, text_column: names of the columns; by default one of the usual names.
        boxes_column: column with regions, as JSON or as Parquet lists of objects in the form of a sidecar's
            `regions`; by default `boxes` or `regions` where there is one.
        label_column: columns whose cells are the image's labels, each a label field of the column's name. Where
            rows of one image differ the first is taken and the others are noted.
        group_by, reference: see `foveate.records.importers.folder.import_folder`.
        shared: see `SharedOptions`.

    Raises:
        UserError: the table is missing, damaged, of another form, or lacks a column.
    """
    path = check_source(Path(source))
    root = path.parent if images is None else Path(images)
    if not root.is_dir():
        raise UserError(f"--images: {root} is no folder")
    names = column_names(path)
    columns = {
        "path": need_column(names, PATHS, given=path_column, option="--path-column", where=path),
        "text": find_column(names, TEXTS, given=text_column, option="--text-column", where=path),
        "boxes": find_column(names, BOXES, given=boxes_column, option="--boxes-column", where=path),
    }
    labels = [need_column(names, (), given=one, option="--label-column", where=path) for one in label_column]
    if columns["text"] is None and columns["boxes"] is None and not labels:
        need_column(names, TEXTS, given=None, option="--text-column", where=path)
    wanted = {use: name for use, name in columns.items() if name is not None}
    table, findings = read_columns(path, list(dict.fromkeys([*wanted.values(), *labels])))
    kind = table[wanted["path"]].type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind):
        raise UserError(f"{path}: column {wanted['path']!r} of the paths holds {kind}: text is wanted")
    if table.num_rows == 0:
        what = f" that can be read: in {findings[0].key} {findings[0].problems[0].detail}" if findings else ""
        raise UserError(f"{path} has no rows{what}")
    summary = import_samples(
        target,
        _samples(table, wanted, labels, findings, root, path),
        default_source=path.stem,
        group_by=group_by,
        reference=reference,
        **shared,
    )
    told = ", ".join(f"{use} from {name!r}" for use, name in [*wanted.items(), *(("label", one) for one in labels)])
    summary.notes.append(f"columns used: {told}; images below {root}")
    if summary.taken + summary.already_there == 0 and summary.images_quarantined:
        summary.notes.append("no image was found: --images names the folder that the paths start from")
    return summary


def _samples(
    table: pa.Table, wanted: dict[str, str], labels: list[str], findings: list[Sample], root: Path, path: Path
) -> Iterator[Sample]:
    yield from findings
    paths, texts, boxes = (table[wanted[use]] if use in wanted else None for use in ("path", "text", "boxes"))
    assert paths is not None
    encoded = paths.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        sample = _sample([int(row) for row in rows], paths, texts, boxes, root, path)
        sample.labels = _labels(rows, {name: table[name] for name in labels}, sample)
        yield sample


def _sample(
    rows: list[int],
    paths: pa.ChunkedArray,
    texts: pa.ChunkedArray | None,
    boxes: pa.ChunkedArray | None,
    root: Path,
    path: Path,
) -> Sample:
    where = f"{path.name}, row {rows[0] + 1}"
    try:
        name = _cell(paths, rows[0])
    except UnicodeDecodeError as error:
        return finding(f"row {rows[0] + 1}", where, "image", "no file name", f"the path is not UTF-8: {error.reason}")
    if not isinstance(name, str) or not name.strip():
        return finding(f"row {rows[0] + 1}", where, "image", "no file name", "the cell of the path is empty")
    sample = file_sample(name, root, source=where)
    captions: list[object] = []
    regions: list[object] = []
    for position, row in enumerate(rows):
        if texts is not None:
            captions.extend(_texts(texts, row, position, sample))
        if boxes is not None:
            regions.extend(_regions(boxes, row, position, sample))
    sample.fields = {"captions": captions, "regions": regions}
    return sample


def _cell(column: pa.ChunkedArray, row: int) -> object:
    value = column[row].as_py()
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _texts(column: pa.ChunkedArray, row: int, position: int, sample: Sample) -> list[object]:
    try:
        value = _cell(column, row)
    except UnicodeDecodeError as error:
        detail = f"the text is not UTF-8: {error.reason} at byte {error.start}"
        sample.problems.append(Problem("caption", "not UTF-8", detail, position))
        return []
    return value if isinstance(value, list) else [] if value is None else [value]


def _labels(rows: np.ndarray, columns: dict[str, pa.ChunkedArray], sample: Sample) -> dict[str, str]:
    """The labels of an image's rows: by column the first cell that is not empty."""
    found: dict[str, str] = {}
    for name, column in columns.items():
        for position, row in enumerate(rows.tolist()):
            try:
                value = _cell(column, row)
            except UnicodeDecodeError as error:
                detail = f"the label {name!r} is not UTF-8: {error.reason} at byte {error.start}"
                sample.problems.append(Problem("labels", "not UTF-8", detail, position))
                continue
            if value is None or value == "":
                continue
            if found.setdefault(name, str(value)) != str(value):
                detail = f"another row says {name} {str(value)[:60]!r}; {found[name][:60]!r} is kept"
                sample.problems.append(Problem("labels", "several labels", detail, position))
    return found


def _regions(column: pa.ChunkedArray, row: int, position: int, sample: Sample) -> list[object]:
    try:
        value = _cell(column, row)
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        detail = f"the cell of the boxes cannot be read as JSON: {str(error)[:120]}"
        sample.problems.append(Problem("region", "malformed JSON", detail, position))
        return []
    if value is not None and not isinstance(value, list):
        detail = "the cell of the boxes must hold a list of objects"
        sample.problems.append(Problem("region", "malformed region", detail, position))
        return []
    return [_without_nulls(one) for one in value or []]


def _without_nulls(region: object) -> object:
    """Parquet gives every object all fields of the column; those that were absent are null."""
    if not isinstance(region, dict):
        return region
    return {name: value for name, value in region.items() if value is not None}


def _recognize(source: str) -> str | None:
    path = Path(source)
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return None
    return None if is_of_images(path) else f"a {path.suffix.lower()[1:]} table"


FORMAT = Format(
    name="table",
    run=import_table,
    recognize=_recognize,
    options=("images", "path_column", "text_column", "boxes_column", "label_column", "group_by", "reference"),
)
