"""Triage of cards: kinds of MegaDetector's file or of the shipped detector, tables, blurred people, exports."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_survey import FILES, KEYS, write_boxes, write_card
from click.testing import CliRunner, Result
from PIL import Image

from foveate.cli.main import cli
from foveate.core.files import write_bytes_atomically
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.record import Region
from foveate.records.rows import region_row
from foveate.records.tables import Provenance
from foveate.species.boxes import AnimalProposer, score_boxes
from foveate.species.crops import NANODET
from foveate.species.settings import BoxSettings
from foveate.species.triage import blur_boxes, safe_path
from foveate_labs.worlds.traps.survey_collection import draw_trap_row
from foveate_labs.worlds.traps.world import TrapSettings

_BESIDE = Path(__file__).parents[3] / "shared" / "assets" / "camera-traps"
FRAMES = Path(os.environ.get("FOVEATE_CAMERA_TRAPS", _BESIDE)) / "frames"
needs_frames = pytest.mark.skipif(
    not FRAMES.is_dir(), reason="no camera-traps/frames: name its parent with FOVEATE_CAMERA_TRAPS"
)
# The five kinds of MegaDetector's verdicts; frame 11 is not in the file.
BOXES: dict[int, list[tuple[str, float]]] = {
    **{number: [] for number in range(11)},
    0: [("person", 0.84)],
    1: [("vehicle", 0.91), ("animal", 0.3)],
    3: [("animal", 0.77), ("animal", 0.5), ("animal", 0.1)],
    4: [("animal", 0.19)],
}


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["species", *map(str, arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def refusal(*arguments: object, status: int = 1) -> str:
    """Return the sentence that a command ends with."""
    result = run(*arguments, status=status)
    return result.output + str(result.exception)


def read_kinds(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "triage.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.fixture
def card(tmp_path: Path) -> Path:
    write_card(tmp_path / "card")
    write_boxes(tmp_path / "md.json", BOXES)
    return tmp_path / "card"


def test_kinds_of_megadetector(card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where its results are, the shipped detector is not asked.
    monkeypatch.setattr(AnimalProposer, "propose", None)
    out = tmp_path / "out"
    arguments = ("triage", card, "--results", tmp_path / "md.json", "--out", out)
    result = run(*arguments, "--json")
    content = json.loads(result.stdout)
    assert (content["images"], content["detector"], content["threshold"]) == (12, "MegaDetector", 0.2)
    assert content["kinds"] == {"animal": 1, "human": 1, "vehicle": 1, "unclassified": 1, "blank": 8}
    kinds = read_kinds(out)
    assert [kinds[file]["kind"] for file in FILES[:5]] == ["human", "vehicle", "blank", "animal", "blank"]
    # Sorted: animals first, blank images last.
    assert [row["kind"] for row in kinds.values()] == ["animal", "human", "vehicle", "unclassified", *["blank"] * 8]
    assert (kinds[FILES[3]]["score"], kinds[FILES[3]]["boxes"], kinds[FILES[3]]["camera"]) == ("0.770", "2", "A")
    assert kinds[FILES[11]]["failure"].startswith("not_in_results")
    page = (out / "report.html").read_text("utf-8")
    assert "Triage of 12 images" in page
    assert "<img" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    # Again with another threshold: decided anew.
    run(*arguments, "--threshold", "0.15")
    assert read_kinds(out)[FILES[4]]["kind"] == "animal"
    run(*arguments)
    assert read_kinds(out) == kinds
    refused = refusal("decide", out)
    assert "triage" in refused
    assert "--threshold" in refused


def test_a_triage_is_exported_and_reviewed(card: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("triage", card, "--results", tmp_path / "md.json", "--out", out)
    run("export", out, "--to", "csv", "--out", tmp_path / "flat.csv")
    with (tmp_path / "flat.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == set(FILES)
    run("export", out, "--to", "megadetector", "--out", tmp_path / "out.json")
    images = {row["file"]: row for row in json.loads((tmp_path / "out.json").read_text())["images"]}
    assert set(images) == set(FILES)
    # "animal" as a class would make Timelapse refuse the file.
    assert [box["conf"] for box in images[FILES[3]]["detections"]] == [0.77, 0.5, 0.1]
    assert "failure" in images[FILES[11]]
    options = ("--coordinate-digits", "2", "--contributor", "A. Person")
    run("export", out, "--to", "camtrap-dp", *options, "--out", tmp_path / "package")
    with (tmp_path / "package" / "observations.csv").open(encoding="utf-8", newline="") as file:
        observed = {row["mediaID"]: row for row in csv.DictReader(file)}
    kinds = [observed[key]["observationType"] for key in KEYS[:5]]
    assert kinds == ["human", "vehicle", "blank", "animal", "blank"]
    assert float(observed[KEYS[3]]["classificationProbability"]) == pytest.approx(0.77)
    run("review", out)
    with (out / "review" / "review.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) > 0


def test_people_are_blurred_in_copies(card: Path, tmp_path: Path) -> None:
    with Collection.open(card) as collection:
        before = {key: collection.image_bytes(collection.find_row(key)) for key in KEYS}
    result = run("triage", card, "--results", tmp_path / "md.json", "--blur-people", "--out", tmp_path / "out")
    assert "blurred" in result.output
    copies = [
        path.relative_to(tmp_path / "out/blurred").as_posix() for path in (tmp_path / "out/blurred").rglob("*.jpg")
    ]
    assert copies == [FILES[0].replace(".JPG", ".jpg")]
    with Collection.open(card) as collection:
        assert {key: collection.image_bytes(collection.find_row(key)) for key in KEYS} == before


def test_a_blurred_box_shows_nothing_and_the_rest_is_as_before() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    blurred = np.asarray(blur_boxes(Image.fromarray(pixels), [[0.25, 0.25, 0.75, 0.75]])).astype(float)
    inside = blurred[40:80, 50:110]
    assert inside.std() < 0.2 * pixels[40:80, 50:110].std()
    np.testing.assert_array_equal(blurred[:, :30], pixels[:, :30])
    # A box at the edge, and one without an area.
    assert blur_boxes(Image.fromarray(pixels), [[0.9, 0.9, 1, 1], [0.5, 0.5, 0.5, 0.5]]).size == (160, 120)


def test_paths_of_copies_stay_in_their_folder() -> None:
    for name in ("../../A/x.jpg", "/etc/x.jpg", "C:\\A\\..\\x.jpg"):
        path = safe_path(name)
        assert not path.is_absolute()
        assert ".." not in path.parts


@pytest.fixture(scope="module")
def drawn_cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for index in range(6):
        row = draw_trap_row(TrapSettings(), seed=1, split="train", index=index)
        path = folder / "cards" / f"A/IMG_{index}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, row.data)
    (folder / "cards" / "A" / "broken.JPG").write_bytes(b"no image")
    return folder / "cards"


def test_the_shipped_detector_decides_and_its_boxes_are_kept(
    drawn_cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("triage", drawn_cards, "--device", "cpu", "--workers", "1", "--out", tmp_path / "out", "--json")
    first = json.loads(run(*arguments).stdout)
    assert first["detector"] == "NanoDet-g"
    assert sum(first["kinds"].values()) == first["images"] == 7
    assert first["kinds"]["unclassified"] == 1
    table = read_kinds(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "35 of 40" in text

    # The same command computes no box again, and comes to the same table.
    monkeypatch.setattr(AnimalProposer, "propose", None)
    assert json.loads(run(*arguments).stdout)["kinds"] == first["kinds"]
    assert read_kinds(tmp_path / "out") == table


def test_only_boxes_of_the_detector_that_decides_count(card: Path, tmp_path: Path) -> None:
    """A box of NanoDet, or of a person, makes no animal of what MegaDetector calls empty."""
    with AnnotationAppender(card, purpose="a test") as appender:
        for source in (NANODET, "cards"):
            rows = [region_row(KEYS[2], Region(Box(0, 0, 1, 1), "animal", 0.9, label="animal", source=source))]
            appender.append("regions", rows, Provenance(source, source, "0" * 16))
    run("triage", card, "--results", tmp_path / "md.json", "--out", tmp_path / "out")
    assert read_kinds(tmp_path / "out")[FILES[2]]["kind"] == "blank"


def test_another_detector_needs_another_folder(card: Path, tmp_path: Path) -> None:
    run("triage", card, "--device", "cpu", "--workers", "1", "--out", tmp_path / "out")
    refused = refusal("triage", card, "--results", tmp_path / "md.json", "--out", tmp_path / "out")
    assert "another model" in refused
    assert "--out" in refused


def test_wrong_input_is_named(card: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no-cards"
    assert str(missing) in refusal("triage", missing, "--out", tmp_path / "out")
    assert "no.json" in refusal("triage", card, "--results", tmp_path / "no.json", "--out", tmp_path / "out")
    assert "threshold" in refusal("triage", card, "--threshold", "1.5", "--out", tmp_path / "out", status=2)
    (tmp_path / "file").write_text("")
    assert "--out must be a directory" in refusal("triage", card, "--out", tmp_path / "file")


def test_a_box_scores_by_the_animals_in_its_crop() -> None:
    scores = score_boxes([0.25, 0.25, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(scores, [0.05, 0.5, 1.0, 0.0])


def propose(path: Path, proposer: AnimalProposer) -> Any:
    image = Image.open(path)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return proposer.propose([proposer.load(buffer.getvalue())], [image.size])[0]


@needs_frames
def test_boxes_of_real_frames_are_of_animals_and_not_of_logos() -> None:
    """Before, the logo of the info strip was the best box of the first three."""
    proposer = AnimalProposer(BoxSettings(), device="cpu")
    centers = {"ena24-2573": (0.8, 0.6), "ena24-2595": (0.04, 0.7), "ena24-8200": (0.05, 0.4), "ena24-49": (0.46, 0.83)}
    for name, (x, y) in centers.items():
        x1, y1, x2, y2 = propose(FRAMES / f"{name}.jpg", proposer).boxes_K4[0]
        assert x1 < x < x2, name
        assert y1 < y < y2, name


@needs_frames
def test_real_frames_are_triaged(tmp_path: Path) -> None:
    run("triage", FRAMES, "--device", "cpu", "--workers", "1", "--out", tmp_path / "out")
    kinds = {Path(file).stem: row["kind"] for file, row in read_kinds(tmp_path / "out").items()}
    assert len(kinds) == 40
    assert kinds.pop("speciesnet-vehicle") == "vehicle"
    blanks = [kinds.pop(f"speciesnet-{name}") for name in ("blank", "blank2", "blank3")]
    assert blanks.count("blank") >= 2
    # 32 of 36 when this was written; ten are one burst of a heron.
    assert sum(kind == "animal" for kind in kinds.values()) >= 29
