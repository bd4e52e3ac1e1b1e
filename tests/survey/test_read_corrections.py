"""Answers of people: our table, Timelapse's CSV, human rows of Camtrap DP."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.survey.importers.corrections import Correction, read_corrections
from naming import raises_naming

PACKAGE = Path(__file__).parent.parent / "goldens" / "cosmo" / "formats" / "camtrap_dp"

TIMELAPSE = (
    "\ufeffRootFolder,File,RelativePath,DateTime,DeleteFlag,Species,Count,Empty,Note0\r\n"
    'cards,IMG_1.JPG,dep-A\\100RECNX,2023-05-03 05:44:19,false,Vulpes vulpes,2,false,"two, one\nlimping"\r\n'
    "cards,IMG_1.JPG,dep-A\\100RECNX,2023-05-03 05:44:19,false,Meles meles,1,false,\r\n"
    "cards,IMG_2.JPG,dep-A\\100RECNX,2023-05-03 05:44:20,false,,0,true,\r\n"
    "cards,IMG_3.JPG,dep-A\\100RECNX,2023-05-03 05:44:21,false,,,false,\r\n"
    "cards,IMG_4.JPG,,2023-05-03 05:44:22,false,Homo sapiens,,false,\r\n"
)


def write(path: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_timelapse_rows_are_answers_but_for_those_that_nobody_looked_at(tmp_path: Path) -> None:
    corrections = read_corrections(write(tmp_path / "TimelapseData.csv", TIMELAPSE))
    assert [(each.file, each.label, each.count) for each in corrections] == [
        ("dep-A/100RECNX/IMG_1.JPG", "Vulpes vulpes", 2),
        ("dep-A/100RECNX/IMG_1.JPG", "Meles meles", 1),
        ("dep-A/100RECNX/IMG_2.JPG", "blank", None),
        ("IMG_4.JPG", "Homo sapiens", None),
    ]
    # The cell with a line end takes two lines.
    assert corrections[1].where.endswith("line 4")


def test_a_column_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", TIMELAPSE)
    assert [each.label for each in read_corrections(path, column="Note0")] == ["two, one\nlimping", "blank"]
    with raises_naming(UserError, path, "'Note1'", "'Note0'"):
        read_corrections(path, column="Note1")


def test_our_own_table_has_keys_events_and_people(tmp_path: Path) -> None:
    text = "event;key;file;answer;correction;reviewer\ne1;a/1;a/1.JPG;fox;Meles meles;Ana\ne2;a/2;a/2.JPG;fox;;\n"
    path = write(tmp_path / "review.csv", text)
    assert read_corrections(path) == [
        Correction(
            f"{path}, line 2", "Meles meles", key="a/1", file="a/1.JPG", event="e1", answered="fox", person="Ana"
        )
    ]


def test_a_count_alone_agrees_with_the_answer_of_our_own_table_only(tmp_path: Path) -> None:
    path = write(tmp_path / "review.csv", "event,key,answer,correction,count\ne1,a/1,fox,,3\ne2,a/2,fox,,\n")
    assert [(entry.label, entry.count) for entry in read_corrections(path)] == [("ok", 3)]
    # Timelapse counts images that nobody has named.
    assert read_corrections(write(tmp_path / "own.csv", "key,species,count\na/1,,3\n")) == []


def test_human_rows_of_a_package_are_answers(tmp_path: Path) -> None:
    assert read_corrections(PACKAGE) == []  # its one human row is about an event
    folder = tmp_path / "package"
    folder.mkdir()
    for file in PACKAGE.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    text = (folder / "observations.csv").read_text()
    rows = text.replace("machine,foveate-cosmo v0,2024-01-10T12:00:00Z,0.93", "human,Ana,2024-02-01T08:00:00Z,")
    rows = rows.replace("machine,foveate-cosmo v0,2024-01-10T12:00:00Z,0.88", "human,Ana,2024-02-01T08:00:00Z,")
    (folder / "observations.csv").write_text(rows)
    fox, blank = read_corrections(folder)
    assert (fox.label, fox.key, fox.file, fox.id, fox.count) == (
        "Vulpes vulpes",
        "m00",
        "media/dep-A/IMG_0000.JPG",
        "o00",
        1,
    )
    assert (blank.label, blank.key, blank.person, blank.time) == ("blank", "m02", "Ana", "2024-02-01T08:00:00Z")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["empty"]),
        ("File,Note\na.jpg,x\n", ["File, Note", "correction", "species"]),
        ("Species,Note\nfox,x\n", ["Species, Note", "key", "File"]),
        ("File,Species\na.jpg,fox\nb.jpg\n", ["line 3", "1", "2"]),
        ("File,Species,Count\na.jpg,fox,two\n", ["line 2", "count", "'two'"]),
        ('File,Species\na.jpg,"fox\n', ["line 2"]),
    ],
)
def test_broken_tables_name_line_and_column(text: str, names: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", text)
    with raises_naming(UserError, path, *names):
        read_corrections(path)


def test_a_row_that_is_empty_and_a_species_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "File,Species,Empty\na.jpg,fox,true\nb.jpg,fox,false\nc.jpg,,true\nd.jpg,blank,true\n"
    labels = [entry.label for entry in read_corrections(write(tmp_path / "t.csv", text))]
    assert labels == ["fox", "fox", "blank", "blank"]
    assert "marked as empty and have an answer: 1; the answer counts" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path: Path) -> None:
    (correction,) = read_corrections(write(tmp_path / "t.csv", "File,Species\nä.jpg,fox\n", encoding="latin-1"))
    assert correction.file == "ä.jpg"
    with raises_naming(UserError, "t.csv", "UTF-8"):
        read_corrections(write(tmp_path / "t.csv", "File,Species\nлиса.jpg,fox\n", encoding="cp1251"))
    with raises_naming(UserError, "missing.csv"):
        read_corrections(tmp_path / "missing.csv")
    with raises_naming(UserError, PACKAGE, "'species'"):
        read_corrections(PACKAGE, column="species")
