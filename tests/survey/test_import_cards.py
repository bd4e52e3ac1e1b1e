"""Cards of camera traps: folders and rows matched, EXIF times as written, nothing guessed, repeated and corrected."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_images import encoded, noise
from made_surveys import CAMERA_TRAPS
from PIL import Image

from foveate.cli.verbs.collect import command
from foveate.core.errors import UserError
from foveate.records import layout, tables
from foveate.records.collection import Collection
from foveate.records.importers.formats import detect_format
from foveate.records.record import Context
from foveate.survey.deployments import parse_shift, read_deployments
from foveate.survey.importers.cards import find_deployment, import_cards, read_time
from foveate.survey.survey import Survey
from naming import raises_naming

TIME = "2021:05:31 08:25:38"


def photo(seed: int, *, tags: Mapping[int, object] | None = None, **main: object) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update(tags or {})
    for tag, value in main.items():
        exif[int(tag.removeprefix("t"))] = value
    return encoded(noise(seed), exif=exif)


def write_table(path: Path, rows: Sequence[Mapping[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


ROWS = [
    {"deploymentID": "d1", "folder": "A", "locationID": "creek", "latitude": "51.5", "longitude": "4", "cameraID": "7"},
    {"deploymentID": "B", "folder": "", "locationID": "", "latitude": "", "longitude": "NA", "cameraID": ""},
    {"deploymentID": "gone", "folder": "", "locationID": "creek", "latitude": "51.5", "longitude": "4", "cameraID": ""},
]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards") / "cards"
    files = {
        "A/DCIM/100RECNX/IMG_1.JPG": photo(1, tags={0x9003: TIME, 0x9291: "25", 0x9011: "+02:00"}),
        "A/DCIM/100RECNX/IMG_2.JPG": photo(2, t306=TIME, t274=6),
        "2021/B/IMG_1.JPG": photo(3, tags={0x9003: TIME}),
        "A1/IMG_1.JPG": photo(4, tags={0x9003: TIME}),
        "A/cut.jpg": photo(5)[:400],
        "A/clip.MP4": b"video",
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_table(folder.parent / "deployments.csv", ROWS)
    return folder


def test_folders_rows_and_times(cards: Path, tmp_path: Path) -> None:
    summary = import_cards(cards, tmp_path / "c", deployments=cards.parent / "deployments.csv", show_progress=False)  # type: ignore[call-arg]
    assert (summary.imported, summary.quarantined) == (4, {"image: truncated": 1})
    assert summary.further == {
        "videos, which are not read": 1,
        "images without a time in EXIF: they have no hour": 1,
        "images of folders that are in no row of the deployments": 1,
    }
    notes = "\n".join(summary.notes)
    assert "'A1' (1 images)" in notes
    assert "gone" in notes
    survey = Survey.open(tmp_path / "c")
    rows = dict(zip(survey.keys, survey.times.to_pylist(), strict=True))
    assert rows == {
        "2021/B/IMG_1": TIME,
        "A/DCIM/100RECNX/IMG_1": f"{TIME}.25+02:00",
        "A/DCIM/100RECNX/IMG_2": "",
        "A1/IMG_1": TIME,
    }
    assert survey.camera_N.tolist() == ["B", "creek", "creek", "A1"]
    assert survey.deployments[0].extra == {"locationID": "creek", "cameraID": "7"}
    collection = survey.collection
    assert collection.groups.tolist() == survey.camera_N.tolist()
    rotated = collection.record(2)
    assert (rotated.width, rotated.height) == (32, 48)
    assert collection.read_context(1).latitude == 51.5  # type: ignore[union-attr]


def test_repeating_adds_nothing_and_corrections_hold(cards: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "deployments.csv", ROWS)
    target = tmp_path / "c"
    import_cards(cards, target, deployments=table)
    before = {path: path.read_bytes() for path in target.rglob("*.*")}
    assert import_cards(cards, target, deployments=table).imported == 0
    assert {path: path.read_bytes() for path in target.rglob("*.*")} == before
    # Back to the first table at the end: what is taken back must hold as well.
    for row, shift in (({"deploymentID": "d2"}, "-1:00"), ({}, ""), ({"deploymentID": "d2"}, "90")):
        latitude = "51.5" if not row else "50.5"
        corrected = [{**ROWS[0], **row, "clock_shift": shift, "latitude": latitude}]
        corrected += [{**other, "clock_shift": ""} for other in ROWS[1:]]
        summary = import_cards(cards, target, deployments=write_table(table, corrected))
        assert summary.further["images moved to another deployment"] == 2
        survey = Survey.open(target)
        deployment = survey.deployments[survey.deployment_N[1]]
        assert (deployment.id, deployment.clock_shift) == (row.get("deploymentID", "d1"), parse_shift(shift or "0"))
        context = survey.collection.read_context(1)
        assert context == Context(float(latitude), 4.0, survey.times[1].as_py(), "creek")
        assert survey.hour_N[1] == (7 if shift == "-1:00" else 8)
        assert len(survey) == 4


def write_season(folder: Path, seed: int, row: Mapping[str, str]) -> tuple[Path, Path]:
    """Write the card of camera A in one season; return its folder and the table of deployments."""
    (folder / "A").mkdir(parents=True)
    (folder / "A/IMG_0001.JPG").write_bytes(photo(seed, tags={0x9003: TIME}))
    return folder, write_table(folder.with_suffix(".csv"), [{"folder": "A", "clock_shift": "", **row}])


def test_a_second_season_leaves_the_images_of_the_first_alone(tmp_path: Path) -> None:
    first = {"deploymentID": "A-2023", "latitude": "51.5", "longitude": "4"}
    cards, table = write_season(tmp_path / "cards2023", 1, first)
    later, later_table = write_season(
        tmp_path / "cards2024", 2, {**first, "deploymentID": "A-2024", "latitude": "50", "clock_shift": "3600"}
    )
    target = tmp_path / "c"
    import_cards(cards, target, deployments=table)
    before = Survey.open(target).collection.read_context(0)
    for _ in range(2):
        summary = import_cards(later, target, deployments=later_table)
        assert summary.quarantined == {"image: duplicate key": 1}
        assert "images moved to another deployment" not in summary.further
        survey = Survey.open(target)
        assert survey.media["deployment"].to_pylist() == ["A-2023"]
        assert survey.collection.read_context(0) == before
    # Of a file that cannot be read nothing is known: the other source's image stays where it is.
    (later / "A/IMG_0001.JPG").write_bytes(photo(2)[:300])
    import_cards(later, target, deployments=later_table)
    assert Survey.open(target).media["deployment"].to_pylist() == ["A-2023"]
    # A correction of the first season still holds.
    write_table(table, [{"folder": "A", **first, "deploymentID": "A-old"}])
    assert import_cards(cards, target, deployments=table).further["images moved to another deployment"] == 1
    assert Survey.open(target).media["deployment"].to_pylist() == ["A-old"]


def test_a_second_season_in_a_folder_of_the_same_name_moves_no_image(tmp_path: Path) -> None:
    first = {"deploymentID": "A-2023", "latitude": "51.5", "longitude": "4"}
    target = tmp_path / "c"
    cards, table = write_season(tmp_path / "y2023" / "DCIM", 1, first)
    import_cards(cards, target, deployments=table)
    later, table = write_season(tmp_path / "y2024" / "DCIM", 2, {**first, "deploymentID": "A-2024", "latitude": "50"})
    for tags in ({0x9003: "2024:05:31 08:25:38"}, {}):
        (later / "A/IMG_0001.JPG").write_bytes(photo(2, tags=tags))
        summary = import_cards(later, target, deployments=table)
        assert summary.quarantined == {"image: duplicate key": 1}
        assert "images moved to another deployment" not in summary.further
        survey = Survey.open(target)
        assert survey.media["deployment"].to_pylist() == ["A-2023"]
        assert survey.collection.read_context(0).latitude == 51.5  # type: ignore[union-attr]


def test_a_deployment_of_another_source_is_not_overwritten(tmp_path: Path) -> None:
    row = {"deploymentID": "A", "latitude": "51.5", "longitude": "4"}
    cards, table = write_season(tmp_path / "cards2023", 1, row)
    target = tmp_path / "c"
    import_cards(cards, target, deployments=table)
    before = {path: path.read_bytes() for path in target.rglob("*.*")}
    later, later_table = write_season(tmp_path / "cards2024", 2, {**row, "latitude": "50"})
    (later / "A/IMG_0001.JPG").rename(later / "A/IMG_0002.JPG")
    with raises_naming(UserError, "deployment 'A'", "cards2024", "another id", "--source-name cards2023"):
        import_cards(later, target, deployments=later_table)
    assert {path: path.read_bytes() for path in target.rglob("*.*")} == before
    # An equal row, or one that says nothing, is no contradiction.
    for cells in (row, {"deploymentID": "A"}):
        import_cards(later, target, deployments=write_table(later_table, [{"folder": "A", "clock_shift": "", **cells}]))
    assert len(Collection.open(target)) == 2
    assert Survey.open(target).collection.read_context(1).latitude == 51.5  # type: ignore[union-attr]
    # The first source may correct its row.
    write_table(table, [{"folder": "A", **row, "latitude": "52"}])
    import_cards(cards, target, deployments=table)
    (deployment,) = Survey.open(target).deployments
    assert deployment.latitude == 52
    # So may a new release of the same survey, if it says so.
    write_table(later_table, [{"folder": "A", "clock_shift": "", **row, "latitude": "53"}])
    import_cards(later, target, deployments=later_table, source_name="cards2023")
    (deployment,) = Survey.open(target).deployments
    assert deployment.latitude == 53


def test_a_deployment_of_which_nothing_was_said_takes_a_place_from_anywhere(tmp_path: Path) -> None:
    cards, table = write_season(tmp_path / "cards2023", 1, {"deploymentID": "A"})
    import_cards(cards, tmp_path / "c", deployments=table)
    later, later_table = write_season(
        tmp_path / "cards2024", 2, {"deploymentID": "A", "latitude": "50", "longitude": "4"}
    )
    (later / "A/IMG_0001.JPG").rename(later / "A/IMG_0002.JPG")
    import_cards(later, tmp_path / "c", deployments=later_table)
    (deployment,) = Survey.open(tmp_path / "c").deployments
    assert deployment.latitude == 50


def test_a_deployment_of_which_nobody_says_anything_stays_with_the_first_source(tmp_path: Path) -> None:
    for number, name in enumerate(("cards2023", "cards2024")):
        cards, table = write_season(tmp_path / name, number, {"deploymentID": "A"})
        (cards / "A/IMG_0001.JPG").rename(cards / f"A/IMG_{number}.JPG")
        import_cards(cards, tmp_path / "c", deployments=table)
        rows = tables.read_table(layout.dataset_table_path(tmp_path / "c", "deployments")).to_pylist()
        assert [(row["id"], row["source"]) for row in rows] == [("A", "cards2023")]


def test_a_correction_reaches_images_whose_bytes_changed(tmp_path: Path) -> None:
    row = {"deploymentID": "A", "latitude": "51.5", "longitude": "4"}
    cards, table = write_season(tmp_path / "cards", 1, row)
    import_cards(cards, tmp_path / "c", deployments=table)
    (cards / "A/IMG_0001.JPG").write_bytes(photo(1, tags={0x9003: TIME, 0x010E: "keywords"}))
    write_table(table, [{"folder": "A", "clock_shift": "", **row, "deploymentID": "B"}])
    summary = import_cards(cards, tmp_path / "c", deployments=table)
    assert summary.quarantined == {"image: duplicate key": 1}
    assert Survey.open(tmp_path / "c").media["deployment"].to_pylist() == ["B"]


def test_an_import_that_dies_goes_on(cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.survey.importers import cards as module

    table = write_table(tmp_path / "deployments.csv", ROWS)
    options = {"deployments": table, "images_per_shard": 1, "created": "2024-05-01T00:00:00+00:00", "workers": 1}
    import_cards(cards, tmp_path / "whole" / "c", **options)  # type: ignore[arg-type]
    calls, lock, read = [], threading.Lock(), module.read_time

    def die(data: bytes) -> str:
        with lock:
            calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(data)

    monkeypatch.setattr(module, "read_time", die)
    with pytest.raises(KeyboardInterrupt):
        import_cards(cards, tmp_path / "died" / "c", **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    import_cards(cards, tmp_path / "died" / "c", **options)  # type: ignore[arg-type]

    def content(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}

    assert content(tmp_path / "died") == content(tmp_path / "whole")


def test_the_command_recognizes_cards_and_refuses_dedupe(cards: Path, tmp_path: Path) -> None:
    table = cards.parent / "deployments.csv"
    assert detect_format(str(cards), options={"deployments"})[0].name == "cards"
    assert detect_format(str(cards))[0].name == "folder"
    arguments = [str(cards), "--deployments", str(table), "--out", str(tmp_path / "c")]
    with raises_naming(UserError, "--dedupe", "survey"):
        CliRunner().invoke(command, [*arguments, "--dedupe"], catch_exceptions=False)
    assert not (tmp_path / "c").exists()
    result = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert (result["format"], result["imported"], sum(result["cameras"].values())) == ("cards", 4, 3)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("A", "a"),
        ("A/DCIM/1", "a"),
        ("A/west", "w"),
        ("A/west/DCIM", "w"),
        ("2021/A/DCIM", "a"),
        ("2021/west", None),
        ("a", None),
        (".", None),
    ],
)
def test_the_longest_folder_wins(folder: str, expected: str | None) -> None:
    assert find_deployment(folder, {"A": "a", "A/west": "w"}) == expected
    assert find_deployment(folder, {"A": "a", "A/west": "w", "": "rest"}) == (expected or "rest")


@pytest.mark.parametrize(
    ("tags", "time"),
    [
        ({0x9003: "0000:00:00 00:00:00"}, "0000:00:00 00:00:00"),
        ({0x9003: "    :  :     :  :  "}, ""),
        ({0x9003: f"{TIME}\0\0", 0x9291: "x", 0x9011: "   :  "}, TIME),
        ({0x9003: TIME, 0x9010: "+02:00"}, TIME),
        ({0x9003: TIME, 0x9011: "+0200", 0x9291: "007"}, f"{TIME}.007+0200"),
        ({0x9003: 12}, ""),
        ({0x9003: "x" * 5000}, "x" * 64),
    ],
)
def test_times_of_exif(tags: dict[int, object], time: str) -> None:
    assert read_time(photo(1, tags=tags)) == time
    assert read_time(photo(1, tags=tags)[:200]) in (time, "")


def test_damaged_exif_is_no_time_and_no_crash() -> None:
    data = photo(1, tags={0x9003: TIME, 0x9011: "+02:00"}, t306=TIME)
    start = data.index(b"Exif")
    for position in range(start, start + 200):
        for value in (0, 0xFF):
            time = read_time(data[:position] + bytes([value]) + data[position + 1 :])
            # A damaged letter of the time itself is stored as it is; a survey refuses it when it reads the time.
            assert len(time) <= 64
            assert time.isprintable()


def test_an_offset_of_a_changed_file_is_not_the_cameras() -> None:
    tags = {0x9003: TIME, 0x9010: "+05:00"}
    assert read_time(photo(1, tags=tags, t306="2024:01:01 00:00:00")) == TIME
    assert read_time(photo(1, tags=tags, t306=TIME)) == f"{TIME}+05:00"
    assert read_time(b"no image") == ""


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([{"deploymentID": "a", "lattitude": "1"}], ["'lattitude'", "'latitude'"]),
        ([{"deployment": "a"}], ["deployment", "'deploymentID'"]),
        ([{"name": "a"}], ["deploymentID", "name"]),
        ([{"deploymentID": "NA", "habitat": "fen"}], ["row 2", "deploymentID"]),
        ([{"deploymentID": "a"}, {"deploymentID": "a"}], ["row 3", "row 2", "'a'"]),
        ([{"deploymentID": "a", "folder": "x/"}, {"deploymentID": "b", "folder": ".\\x"}], ["row 3", "folder", "'x'"]),
        ([{"deploymentID": "a", "latitude": "104.5", "longitude": "4"}], ["row 2", "latitude", "swapped"]),
        ([{"deploymentID": "a", "latitude": "51,5"}], ["row 2", "latitude", "not a number", "51.496"]),
        ([{"deploymentID": "a", "longitude": "inf"}], ["row 2", "longitude", "not a number"]),
        ([{"deploymentID": "a", "deploymentStart": "31/05/2021"}], ["row 2", "deploymentStart", "'31/05/2021'"]),
        ([{"deploymentID": "a", "clock_shift": "an hour"}], ["row 2", "clock_shift", "'an hour'", "-1:00"]),
        ([{"deploymentID": "a", "utc_offset": "CET"}], ["row 2", "utc_offset", "'CET'", "+02:00"]),
        ([{"deploymentID": "a", "timestampIssues": "maybe"}], ["row 2", "timestampIssues", "'maybe'"]),
        ([{"deploymentID": "a", "coordinateUncertainty": "0"}], ["row 2", "coordinateUncertainty"]),
    ],
    ids=lambda value: None,
)
def test_wrong_tables_of_deployments(rows: list[dict[str, str]], names: list[str], tmp_path: Path) -> None:
    with raises_naming(UserError, str(tmp_path / "deployments.csv"), *names):
        read_deployments(write_table(tmp_path / "deployments.csv", rows))


@pytest.mark.parametrize("column", ["latitude", "longitude"])
@pytest.mark.parametrize("cell", ["504.4437", "504.4437 N", "504,4437"])
def test_wrong_coordinates_are_not_repeated(column: str, cell: str, tmp_path: Path) -> None:
    rows = [{"deploymentID": "a", "latitude": "1.2345", "longitude": "1.2345", column: cell}]
    with pytest.raises(UserError) as caught:
        read_deployments(write_table(tmp_path / "deployments.csv", rows))
    assert f"row 2, {column}: " in str(caught.value)
    assert not any(digits in str(caught.value) for digits in ("504", "4437", "2345"))


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    rows = [
        {"Deployment ID": "å", "LATITUDE": "51,5", "longitude": "-0,25", "note": 'a "b"; c', "clock_shift": "-1:30"}
    ]
    path = write_table(tmp_path / "d.csv", rows, delimiter=";")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b";;;;\r\n")
    (deployment,) = read_deployments(path).deployments
    assert (deployment.id, deployment.latitude, deployment.longitude) == ("å", 51.5, -0.25)
    assert (deployment.clock_shift, deployment.extra) == (-5400, {"note": 'a "b"; c'})


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", ["empty"]),
        (b"deploymentID\n", ["no rows"]),
        (b"deploymentID,folder\na\n", ["line 2", "1 cells", "2"]),
        (b'deploymentID\n"a\n', ["line"]),
        (b"deploymentID\n\xc3\xa4\xff\n", ["UTF-8", "byte 15"]),
        (b"latitude,Latitude,deploymentID\n1,2,a\n", ["'latitude'", "twice"]),
    ],
)
def test_damaged_tables_of_deployments(content: bytes, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    with raises_naming(UserError, str(tmp_path / "d.csv"), *names):
        read_deployments(tmp_path / "d.csv")
    with raises_naming(UserError, "--deployments", str(tmp_path / "e.csv"), "'d.csv'"):
        read_deployments(tmp_path / "e.csv")


def test_no_folder_of_the_table(cards: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "d.csv", [{"deploymentID": "A-1"}])
    with raises_naming(UserError, str(cards), "A-1", "'2021'"):
        import_cards(cards, tmp_path / "c", deployments=table)


@pytest.mark.skipif(not CAMERA_TRAPS.is_dir(), reason="camera-traps: the real frames are not on this machine")
def test_real_cards(tmp_path: Path) -> None:
    frames = sorted((CAMERA_TRAPS / "frames").glob("mica-*.JPG"))
    cards = tmp_path / "cards"
    (cards / "heron" / "100RECNX").mkdir(parents=True)
    (cards / "hostile").mkdir()
    for path in frames:
        shutil.copy(path, cards / "heron" / "100RECNX")
    for path in (CAMERA_TRAPS / "hostile").iterdir():
        shutil.copy(path, cards / "hostile")
    table = write_table(tmp_path / "d.csv", [{"deploymentID": "heron"}, {"deploymentID": "hostile"}])
    summary = import_cards(cards, tmp_path / "c", deployments=table)
    assert summary.quarantined == {"image: truncated": 1}
    survey = Survey.open(tmp_path / "c")
    # The file names say May 31, 08:25; the camera said April 11, 20:43.
    of_heron = survey.deployment_N == 0
    assert of_heron.sum() == 10
    assert set(survey.hour_N[of_heron]) == {20.0}
    assert set(survey.month_N[of_heron]) == {4.0}
    events = survey.events()
    assert [len(events.rows(event)) for event in range(len(events))][0] == 10
    assert survey.count_missing()["no time"] == 2
    files = [survey.keys[row] for row in events.rows(0)]
    assert files == sorted(files)
    with Collection.open(tmp_path / "c") as collection:
        rotated = collection.record(collection.find_row("hostile/african_elephants_with_exif_orientation"))
        assert (rotated.width, rotated.height) == (2048, 1536)  # stored as 1536 x 2048
