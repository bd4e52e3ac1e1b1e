"""Import a table of paths and texts: CSV, TSV or Parquet, as used by open_clip and many data sets.

Rows with the same path are one image with several captions. The key is the path below the folder of images, without
extension. Other columns, such as URLs, are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa

from foveate.core.arrow_tables import open_parquet, read_batches, read_csv_columns, read_table
from foveate.core.errors import UserError
from foveate.core.tables import find_column, need_column
from foveate.core.text_tables import ARROW_SUFFIXES, LINES_SUFFIXES, open_text
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import file_sample, make_finding
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import Problem, Sample, SharedOptions

PATHS = tuple("path filepath file_path file_name filename file image_path img_path image img picture".split())
TEXTS = tuple("text caption captions title alt alt_text description sentence sentences txt".split())
IMAGES = ("image", "img", "picture", "jpg", "png", "photo")
BOXES = ("boxes", "regions")


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
    """Import the images that a table names, with their texts, into the collection `target`.

    Used columns are read into memory; images are not.

    Args:
        source: a `.csv`, `.tsv` or `.parquet` file. See `foveate.core.tables` on text files.
        target: collection folder; created if it does not exist.
        images: the folder that paths are relative to; by default that of the table.
        path_column, text_column: names of the columns; by default one of the usual names.
        boxes_column: column with regions, as JSON or as Parquet lists of objects in the form of a sidecar's
            `regions`; by default `boxes` or `regions` if there is one.
        label_column: columns with labels, each a label field of the same name. If rows of one image differ, the first
            is used and the others are quarantined.
        group_by, reference: see `foveate.records.importers.folder.import_folder`.
        shared: see `SharedOptions`.

    Raises:
        UserError: the table is missing, damaged, of another form, or lacks a column; a column of labels holds lists.
    """
    path = check_source(Path(source))
    root = path.parent if images is None else Path(images)
    if not root.is_dir():
        raise UserError(f"--images: {root} is not a folder")
    names = read_column_names(path)
    columns = {
        "path": need_column(names, PATHS, requested=path_column, option="--path-column", where=path),
        "text": find_column(names, TEXTS, requested=text_column, option="--text-column", where=path),
        "boxes": find_column(names, BOXES, requested=boxes_column, option="--boxes-column", where=path),
    }
    labels = [need_column(names, (), requested=name, option="--label-column", where=path) for name in label_column]
    if columns["text"] is None and columns["boxes"] is None and not labels:
        # Called for its error, which names the nearest column: a table of paths alone has nothing to add.
        need_column(names, TEXTS, requested=None, option="--text-column", where=path)
    # The same column may serve two purposes, such as text and label; it is read only once.
    used = {use: name for use, name in columns.items() if name is not None}
    table, findings = read_columns(path, list(dict.fromkeys([*used.values(), *labels])))
    kind = table[used["path"]].type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind):
        raise UserError(f"{path}: column {used['path']!r} of paths has type {kind}; expected text")
    for name in labels:
        # A list would become the label "['0', '1']".
        if pa.types.is_nested(table[name].type):
            raise UserError(
                f"{path}: column {name!r} of labels has type {table[name].type}; expected one label per image, text"
            )
    if table.num_rows == 0:
        what = f" that can be read: in {findings[0].key} {findings[0].problems[0].detail}" if findings else ""
        raise UserError(f"{path} has no rows{what}")
    summary = import_samples(
        target,
        _samples(table, used, labels, findings, root, path),
        default_source=path.stem,
        group_by=group_by,
        reference=reference,
        **shared,
    )
    listed = ", ".join(f"{use} from {name!r}" for use, name in [*used.items(), *(("label", name) for name in labels)])
    summary.notes.append(f"columns used: {listed}; images below {root}")
    if summary.imported + summary.existing == 0 and summary.images_quarantined:
        summary.notes.append("no image was found; set --images to the folder that the paths are relative to")
    return summary


def _samples(
    table: pa.Table, used: dict[str, str], labels: list[str], findings: list[Sample], root: Path, path: Path
) -> Iterator[Sample]:
    yield from findings
    paths, texts, boxes = (table[used[use]] if use in used else None for use in ("path", "text", "boxes"))
    assert paths is not None
    # Sorting integer codes groups equal paths much faster than comparing strings row by row.
    # Nulls get a code as well, so that rows without a path form a group and are reported.
    encoded = paths.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    # Codes begin at 0, so the -1 in front marks the first row as the start of a group.
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
    # Cells of text files are unchecked bytes, decoded one by one so that a bad row does not spoil the table.
    except UnicodeDecodeError as error:
        return make_finding(
            f"row {rows[0] + 1}", where, "image", "no file name", f"the path is not UTF-8: {error.reason}"
        )
    if not isinstance(name, str) or not name.strip():
        return make_finding(f"row {rows[0] + 1}", where, "image", "no file name", "the cell of the path is empty")
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
    """Return the labels of the rows of an image: per column the first cell that is not empty."""
    labels: dict[str, str] = {}
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
            if labels.setdefault(name, str(value)) != str(value):
                detail = f"another row says {name} {str(value)[:60]!r}; {labels[name][:60]!r} is kept"
                sample.problems.append(Problem("labels", "several labels", detail, position))
    return labels


def _regions(column: pa.ChunkedArray, row: int, position: int, sample: Sample) -> list[object]:
    try:
        value = _cell(column, row)
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
    # UnicodeDecodeError is a ValueError, so that a cell which is not UTF-8 ends here, too.
    except (ValueError, RecursionError) as error:
        detail = f"the cell of the boxes cannot be read as JSON: {str(error)[:120]}"
        sample.problems.append(Problem("region", "malformed JSON", detail, position))
        return []
    if value is not None and not isinstance(value, list):
        detail = "the cell of the boxes must hold a list of objects"
        sample.problems.append(Problem("region", "malformed region", detail, position))
        return []
    # Parquet gives every object all fields of the column, those without a value as null.
    return [
        {name: cell for name, cell in region.items() if cell is not None} if isinstance(region, dict) else region
        for region in value or []
    ]


SUFFIXES = (".csv", ".tsv", ".parquet")
"""Endings by which a source is recognized as a table."""
_SUFFIXES = (*SUFFIXES, *ARROW_SUFFIXES, *LINES_SUFFIXES)


def read_column_names(path: Path) -> list[str]:
    """Return the column names of a table; raise UserError if it cannot be read."""
    suffix = _get_suffix(path)
    if suffix == ".parquet":
        with open_parquet(path) as file:
            return file.schema_arrow.names
    return read_table(path).column_names if _is_stored(suffix) else open_text(path).names


def read_columns(path: Path, names: list[str]) -> tuple[pa.Table, list[Sample]]:
    """Read the columns `names`; also return findings about lines with another number of cells than the header.

    Cells of a text file are unchecked bytes.

    Raises:
        UserError: the table is damaged, or a column has neither text nor lists.
    """
    suffix = _get_suffix(path)
    if _is_stored(suffix):
        return _read_stored(path, names), []
    table, bad_rows = read_csv_columns(open_text(path), names)
    findings = [make_finding(f"row {row.number}", path.name, "row", row.reason, row.detail) for row in bad_rows]
    return table, findings


def has_images(path: Path) -> bool:
    """Whether a Parquet file contains images, as structs of bytes and path."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
    except UserError:
        return False
    return any(pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 for field in schema)


def _get_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: expected a table that ends in {', '.join(_SUFFIXES)}")
    return suffix


def _is_stored(suffix: str) -> bool:
    """Whether cells have types, unlike those of text."""
    return suffix == ".parquet" or suffix in ARROW_SUFFIXES or suffix in LINES_SUFFIXES


def _read_stored(path: Path, names: list[str]) -> pa.Table:
    if path.suffix.lower() == ".parquet":
        with open_parquet(path) as file:
            _check_types(path, file.schema_arrow, names)
            table = read_batches(file, names)
    else:
        table = read_table(path)
        _check_types(path, table.schema, names)
    # pandas writes categorical columns as dictionaries.
    decoded = (
        table[name].cast(table[name].type.value_type) if pa.types.is_dictionary(table[name].type) else table[name]
        for name in names
    )
    return pa.table(list(decoded), names=names)


def _check_types(path: Path, schema: pa.Schema, names: list[str]) -> None:
    for name in names:
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)
        if not text and not lists:
            raise UserError(f"{path}: column {name!r} has type {kind}; expected text")


def _recognize(source: str) -> str | None:
    path = Path(source)
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return None
    return None if has_images(path) else f"a {path.suffix.lower()[1:]} table"


FORMATS = (
    Format(
        name="table",
        run=import_table,
        recognize=_recognize,
        options=("images", "path_column", "text_column", "boxes_column", "label_column", "group_by", "reference"),
    ),
)
