"""Labels without a JSON file beside each image: of the folders that images lie in, and of a table's columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hostile import folder_of_files, reasons
from made_images import jpeg

from foveate.cli.main import main
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.importers.table import import_table
from naming import raises_naming


def labels(path: Path, field: str) -> dict[str, str]:
    collection = Collection.open(path)
    return dict(zip(collection.keys, collection.label_values(field).tolist(), strict=True))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    files = {"oak/1.jpg": jpeg(1), "trees/ash/2.jpg": jpeg(2), "3.jpg": jpeg(3), "oak/4.jpg": jpeg(4)}
    files |= {"oak/4.json": json.dumps({"labels": {"kind": "beech", "age": 7}})}
    source = folder_of_files(tmp_path, files)
    import_folder(source, tmp_path / "c", label_from_folder="kind")
    assert labels(tmp_path / "c", "kind") == {"oak/1": "oak", "trees/ash/2": "ash", "3": "", "oak/4": "beech"}
    assert labels(tmp_path / "c", "age")["oak/4"] == "7"


def test_images_without_folders_have_no_class(tmp_path: Path) -> None:
    source = folder_of_files(tmp_path, {"1.jpg": jpeg(1)})
    with raises_naming(UserError, "--label-from-folder"):
        import_folder(source, tmp_path / "c", label_from_folder="kind")
    with raises_naming(UserError, "--label-from-folder"):
        import_folder(source, tmp_path / "c", label_from_folder=" ")
    assert not (tmp_path / "c").exists()
    import_folder(source, tmp_path / "c")
    with raises_naming(UserError, "kind", "--label-from-folder"):
        labels(tmp_path / "c", "kind")


def table(folder: Path, rows: list[list[str]]) -> Path:
    for number in range(1, 4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "species", "age"], *rows])
    return folder / "t.csv"


def test_columns_of_a_table(tmp_path: Path) -> None:
    rows = [["1.jpg", "oak", "7"], ["2.jpg", "", "9"], ["3.jpg", "ash", ""], ["3.jpg", "elm", "8"]]
    summary = import_table(table(tmp_path, rows), tmp_path / "c", label_column=("species", "age"))
    assert labels(tmp_path / "c", "species") == {"1": "oak", "2": "", "3": "ash"}
    assert labels(tmp_path / "c", "age") == {"1": "7", "2": "9", "3": "8"}
    assert reasons(tmp_path / "c") == {"3": ["labels: several labels"]}
    assert "label from 'species'" in summary.notes[0]


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    source = table(tmp_path, [["1.jpg", "oak", "7"]])
    with raises_naming(UserError, "specie", "--label-column", "species"):
        import_table(source, tmp_path / "c", label_column=("specie",))


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_of_files(tmp_path, {"oak/1.jpg": jpeg(1), "ash/2.jpg": jpeg(2)})
    arguments = ["collect", str(source), "--out", str(tmp_path / "c"), "--split", "none"]
    with raises_naming(SystemExit, "1"):
        main([*arguments, "--label-column", "kind"])
    assert "--label-column has no effect on the format 'folder': it is for table" in capsys.readouterr().err
    main([*arguments, "--label-from-folder", "kind"])
    assert labels(tmp_path / "c", "kind") == {"ash/2": "ash", "oak/1": "oak"}
