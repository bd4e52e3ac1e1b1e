"""Every command reads the tables that people have: a German Excel export, UTF-16, TSV, and plain CSV."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveate.core.errors import UserError
from foveate.federated.sources import read_points
from foveate.records.importers.table import read_column_names, read_columns
from foveate.species.stages.species_list import read_list
from foveate.species.taxonomy import read_taxa
from foveate.species.triples import read_triples
from foveate.survey.deployments import read_deployments
from foveate.survey.importers.coco_camera_traps import read_wilds
from foveate.survey.importers.corrections import read_corrections
from foveate.training.logit_files import read_logits
from foveate.video.questions import read_rows
from naming import raises_naming

EXPORTS = {
    "German Excel, CSV": (".csv", ";", "cp1252", "\r\n"),
    "German Excel, CSV UTF-8": (".csv", ";", "utf-8-sig", "\r\n"),
    "Excel, Unicode text": (".csv", "\t", "utf-16", "\r\n"),
    "UTF-16 of another program": (".csv", ";", "utf-16-be", "\n"),
    "TSV": (".tsv", "\t", "utf-8", "\n"),
    "CSV": (".csv", ",", "utf-8", "\n"),
}


def _collect(path: Path) -> Any:
    table, bad_rows = read_columns(path, read_column_names(path))
    if bad_rows:
        raise UserError(f"{path}: {bad_rows[0].problems[0].detail}")
    texts = table.to_pydict()
    return {name: [cell.decode() if isinstance(cell, bytes) else cell for cell in texts[name]] for name in texts}


def _deployments(path: Path) -> Any:
    return [(each.id, each.latitude, each.longitude, each.habitat) for each in read_deployments(path).deployments]


def _corrections(path: Path) -> Any:
    return [(each.label, each.file, each.count) for each in read_corrections(path)]


def _taxa(path: Path) -> Any:
    return [(row["id"], row["parent"], row["common"]) for row in read_taxa(path).to_rows()]


def _logits(path: Path) -> Any:
    file = read_logits(path)
    return file.class_names, file.logits.tolist(), file.labels.tolist()


def _points(path: Path) -> Any:
    points = read_points(path)
    return points.names(), points.points_ND.tolist(), points.column("Stadt", "column").tolist()


TABLES: dict[str, tuple[Callable[[Path], Any], list[list[str]], Any]] = {
    "collect": (
        _collect,
        [["path", "text"], ["grün.jpg", "ein Käuzchen"], ["b.jpg", "two; or, three"]],
        {"path": ["grün.jpg", "b.jpg"], "text": ["ein Käuzchen", "two; or, three"]},
    ),
    "collect cards": (
        _deployments,
        [["deploymentID", "latitude", "longitude", "habitat"], ["Bäche", "51.496", "4.774", "Wald"]],
        [("Bäche", 51.496, 4.774, "Wald")],
    ),
    "species review": (
        _corrections,
        [["File", "Species", "Count"], ["Köln/a.jpg", "Füchsin", "2"], ["b.jpg", "", ""]],
        [("Füchsin", "Köln/a.jpg", 2)],
    ),
    "species build": (
        _taxa,
        [["taxon", "parent", "common"], ["Vulpes", "", "Füchse"], ["Vulpes vulpes", "Vulpes", "Rotfuchs"]],
        [("Vulpes", "", "Füchse"), ("Vulpes vulpes", "Vulpes", "Rotfuchs")],
    ),
    "species --list": (
        read_list,
        [["common", "latin"], ["Füchse", "Vulpes"], ["Käuze", "Strix"]],
        ["Vulpes", "Strix"],
    ),
    "species train": (
        lambda path: read_triples(path).to_pylist(),
        [["h", "datatype_h", "r", "t", "datatype_t", "split"], ["a.jpg", "image", "2", "[1.5 2]", "id", "trän"]],
        [{"h": "a.jpg", "datatype_h": "image", "r": "2", "t": "[1.5 2]", "datatype_t": "id", "split": "trän"}],
    ),
    "video evaluate": (
        read_rows,
        [["video", "question"], ["1", "Wer läuft?"], ["2", "a, b; or c"]],
        [{"video": "1", "question": "Wer läuft?"}, {"video": "2", "question": "a, b; or c"}],
    ),
    "calibrate": (
        _logits,
        [["Füchse", "Käuze", "label"], ["1.5", "-2.0", "Käuze"], ["0.125", "12500", "Füchse"]],
        (["Füchse", "Käuze"], [[1.5, -2.0], [0.125, 12500.0]], [1, 0]),
    ),
    "federated": (
        _points,
        [["Größe", "BMI", "Stadt"], ["1.85", "21.5", "Köln"], ["1.625", "22", "Lärz"]],
        (["Größe", "BMI"], [[1.85, 21.5], [1.625, 22.0]], ["Köln", "Lärz"]),
    ),
}


def export(path: Path, rows: list[list[str]], delimiter: str, encoding: str, ending: str) -> Path:
    """Write a table as a program does: numbers with a decimal comma where cells are separated by something else."""

    def cell(text: str) -> str:
        is_number = text.replace(".", "", 1).removeprefix("-").isdecimal()
        text = text.replace(".", ",") if is_number and delimiter == ";" else text
        return f'"{text}"' if delimiter in text else text

    path.write_bytes("".join(delimiter.join(map(cell, row)) + ending for row in rows).encode(encoding))
    return path


@pytest.mark.parametrize("program", EXPORTS)
@pytest.mark.parametrize("command", TABLES)
def test_a_command_reads_the_exports_of_all_programs(command: str, program: str, tmp_path: Path) -> None:
    read, rows, expected = TABLES[command]
    suffix, *form = EXPORTS[program]
    assert read(export(tmp_path / f"x{suffix}", rows, *form)) == expected


@pytest.mark.parametrize("program", EXPORTS)
def test_wilds_reads_the_exports_of_all_programs(program: str, tmp_path: Path) -> None:
    _, *form = EXPORTS[program]
    export(tmp_path / "categories.csv", [["y", "name"], ["0", "empty"], ["5", "Füchse"]], *form)
    header = ["split", "filename", "y", "location", "seq_id", "datetime", "frame_num"]
    row = ["train", "grün.jpg", "5", "7", "s", "2020-01-01 10:00:00", "0"]
    metadata = export(tmp_path / "metadata.csv", [header, row], *form)
    assert [image.medium.file for image in read_wilds(metadata).images] == ["grün.jpg"]


HOSTILE = {
    "an unclosed quote": 'ü,"x'.encode(),
    "an endless unclosed quote": 'ü,"'.encode() + b"x\n" * 100_000,
    "NUL bytes": "ü,\0\0\0".encode(),
    "other bytes": "ü,".encode() + b"\xff\xfe\xff",
}


@pytest.mark.parametrize("damage", HOSTILE)
# A species list is no table: a line of it is a name.
@pytest.mark.parametrize("command", sorted(TABLES.keys() - {"species --list"}))
def test_hostile_files_are_refused(command: str, damage: str, tmp_path: Path) -> None:
    read, rows, _ = TABLES[command]
    path = export(tmp_path / "x.csv", rows, ",", "utf-8", "\n")
    path.write_bytes(path.read_bytes() + HOSTILE[damage])
    if command == "collect" and "bytes" in damage:
        # Read as they are: the importer drops control characters of captions, and quarantines what is not UTF-8.
        table, _ = read_columns(path, ["text"])
        assert table["text"][-1].as_py() == HOSTILE[damage].split(b",")[1]
        return
    with raises_naming(UserError, path) as caught:
        read(path)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("command", sorted({"collect cards", "species review", "video evaluate"}))
def test_a_cell_of_three_million_letters_is_refused(command: str, tmp_path: Path) -> None:
    read, rows, _ = TABLES[command]
    rows = [*rows, ["x" * 3_000_000] + rows[1][1:]]
    with raises_naming(UserError, tmp_path, f"line {len(rows)}"):
        read(export(tmp_path / "x.csv", rows, ",", "utf-8", "\n"))


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".arrow", ".jsonl"])
@pytest.mark.parametrize("command", ["collect", "collect cards", "species review", "species build", "video evaluate"])
def test_other_kinds_of_files_are_read_alike(command: str, suffix: str, tmp_path: Path) -> None:
    read, (header, *rows), expected = TABLES[command]
    table = pa.table({name: [row[index] for row in rows] for index, name in enumerate(header)})
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()), "utf-8")
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    assert read(path) == expected
