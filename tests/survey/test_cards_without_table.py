"""Cards without a table of deployments: cameras by folder, EXIF times, and a first table to complete."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_images import encoded, noise
from PIL import Image

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.survey.deployments import derive_table, read_deployments, write_first_table
from foveate.survey.importers.cards import import_cards
from foveate.survey.survey import Survey
from naming import raises_naming


def photo(seed: int, time: str, serial: str = "") -> bytes:
    exif = Image.Exif()
    tags = {0x9003: time} | ({0xA431: serial} if serial else {})
    exif.get_ifd(0x8769).update(tags)
    return encoded(noise(seed), exif=exif)


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """Two cameras: three images in two events, and two folders of one card."""
    files = {
        "A/DCIM/100RECNX/IMG_1.JPG": photo(1, "2026:05:01 08:00:00", "SN-7"),
        "A/DCIM/100RECNX/IMG_2.JPG": photo(2, "2026:05:01 08:00:30", "SN-7"),
        "A/DCIM/101RECNX/IMG_3.JPG": photo(3, "2026:05:01 09:00:00", "SN-7"),
        "B/100_BTCF/IMG_1.JPG": photo(4, "2026:05:02 08:00:00"),
    }
    for name, data in files.items():
        (tmp_path / "cards" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cards" / name).write_bytes(data)
    return tmp_path / "cards"


@pytest.mark.parametrize(
    ("folders", "ids"),
    [
        (["A/DCIM/100RECNX", "A/DCIM/101RECNX", "B/100_BTCF"], {"A": "A", "B": "B"}),
        (["DCIM/100MEDIA", "DCIM/101MEDIA"], {"": "card"}),
        (["100MEDIA", "101MEDIA"], {"": "card"}),
        ([".", "B"], {"": "card", "B": "B"}),
        # Places that are numbered like folders of a camera.
        (["101CREEK", "102RIVER"], {"101CREEK": "101CREEK", "102RIVER": "102RIVER"}),
        (["2026/A", "2026/B/DCIM"], {"2026/A": "2026-A", "2026/B": "2026-B"}),
        (["a/b", "a-b"], {"a/b": "a/b", "a-b": "a-b"}),
    ],
)
def test_cameras_are_named_by_their_folders(folders: list[str], ids: dict[str, str]) -> None:
    assert derive_table(folders, name="card").ids == ids


def test_cards_have_times_cameras_and_events_and_a_table_to_complete(cards: Path, tmp_path: Path) -> None:
    summary = import_cards(cards, tmp_path / "survey")
    assert any("2 by folder (A, B)" in note and "--table" in note for note in summary.notes)
    survey = Survey.open(tmp_path / "survey")
    assert [deployment.id for deployment in survey.deployments] == ["A", "B"]
    assert survey.hour_N.tolist() == [8, 8, 9, 8]
    assert survey.events().event_N.tolist() == [0, 0, 1, 2]
    command = ["species", "check", str(tmp_path / "survey"), "--table", str(tmp_path / "first.csv")]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert str(tmp_path / "first.csv") in result.output
    with (tmp_path / "first.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["deploymentID"], first["folder"], first["cameraID"], first["images"]) == ("A", "A", "SN-7", "3")
    assert (first["first_image"], first["last_image"]) == ("2026-05-01 08:00:00", "2026-05-01 09:00:00")
    # Times of images are no dates of a deployment.
    assert (first["deploymentStart"], first["latitude"], second["cameraID"]) == ("", "", "")
    with raises_naming(UserError, "first.csv", "exists"):
        write_first_table(survey, tmp_path / "first.csv")


def test_a_completed_table_replaces_the_folders_and_is_needed_from_then_on(cards: Path, tmp_path: Path) -> None:
    import_cards(cards, tmp_path / "survey")
    table = write_first_table(Survey.open(tmp_path / "survey"), tmp_path / "first.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= {"deploymentID": "A-spring", "latitude": "48.1", "longitude": "11.5", "deploymentStart": "2026-04-01"}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "images" not in read_deployments(table).deployments[0].extra
    import_cards(cards, tmp_path / "survey", deployments=table)
    survey = Survey.open(tmp_path / "survey")
    assert [survey.deployments[index].id for index in survey.deployment_N] == ["A-spring"] * 3 + ["B"]
    assert survey.places_N2[0].tolist() == [48.1, 11.5]
    with raises_naming(UserError, "--deployments", "A-spring"):
        import_cards(cards, tmp_path / "survey")
