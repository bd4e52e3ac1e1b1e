"""Videos on two cards through every command: collect, check, triage, predict, review, summary and all exports."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_survey import train_model
from click.testing import CliRunner, Result
from PIL import Image
from training_survey import KINDS

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.species.predictions import check_folder
from foveate.survey.camtrap_schema import columns
from foveate.survey.importers.results import read_results
from foveate.survey.survey import Survey
from foveate.survey.videos import find_video
from killing import Server
from naming import raises_naming
from video_files import moving_square, write_clip

pytest.importorskip("av")

# Ten frames a second: three, two and three sampled frames.
FOX, EMPTY, PERSON = (
    "A/DCIM/100MEDIA/20260501_080000.MP4",
    "A/DCIM/100MEDIA/20260501_090000.MP4",
    "B/20260502_080000.AVI",
)
PHOTO = "B/IMG_0001.JPG"
DETECTIONS: dict[str, list[tuple[int, str, float]]] = {
    FOX: [(10, "1", 0.9), (10, "1", 0.6), (20, "1", 0.8)],
    EMPTY: [(0, "1", 0.05)],
    PERSON: [(4, "2", 0.7), (20, "1", 0.5)],
    PHOTO: [],
}
PACKAGE = ("--coordinate-digits", "drop", "--contributor", "A. Person", "--utc-offset", "+01:00")


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_videos(folder: Path) -> Path:
    """Write two cards: MP4 and MJPEG in AVI, a photo, and a file that is no video."""
    for name, seconds in ((FOX, 3), (EMPTY, 2), (PERSON, 3)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        codec = {"codec": "mjpeg", "pixel_format": "yuvj420p"} if name.endswith("AVI") else {}
        write_clip(folder / name, moving_square(10 * seconds), **codec)  # type: ignore[arg-type]
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2026:05:02 09:00:00"
    Image.new("RGB", (64, 48), (90, 120, 60)).save(folder / PHOTO, exif=exif)
    (folder / "B/BROKEN.MOV").write_bytes(b"no video")
    return folder


def write_results(path: Path) -> Path:
    """Write MegaDetector's results as its `process_video` does, four frames a second."""
    images: list[dict[str, Any]] = []
    for file, boxes in DETECTIONS.items():
        detections = [{"category": kind, "conf": conf, "bbox": [0.1, 0.1, 0.4, 0.4]} for _, kind, conf in boxes]
        entry: dict[str, Any] = {"file": file, "detections": detections}
        if file != PHOTO:
            entry |= {"frame_rate": 10.0, "frames_processed": [*range(0, 30, 2)]}
            for detection, (frame, _, _) in zip(detections, boxes, strict=True):
                detection["frame_number"] = frame
        images.append(entry)
    categories = {"1": "animal", "2": "person", "3": "vehicle"}
    content = {"info": {"format_version": "1.6", "detector": "MegaDetector v1000"}, "images": images}
    path.write_text(json.dumps({**content, "detection_categories": categories}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    cards, results = write_videos(folder / "cards"), write_results(folder / "md.json")
    printed = run("collect", cards, "--format", "cards", "--results", results, "--out", folder / "survey").output
    assert "4 videos" in printed
    assert "8 frames of videos" in printed
    assert "quarantined: image: not a video" in printed
    return folder / "survey"


@pytest.fixture(scope="module")
def results(survey: Path) -> Path:
    """Predictions of a model that takes all frames for a kind but those of the empty video."""
    folder = survey.parent
    model = train_model(folder)
    with Collection.open(survey) as collection:
        keys = [*collection.keys]
    kinds = [3 if find_video(key) == EMPTY or not find_video(key) else 0 for key in keys]
    np.savez(folder / "features.npz", key=np.array(keys), vector=np.eye(6)[kinds] * 3)
    features = ("--features", folder / "features.npz")
    run("species", "predict", model.folder, survey, *features, "--threshold", "0.3", "--out", folder / "results")
    return folder / "results"


def test_times_and_events_come_from_the_videos(survey: Path) -> None:
    opened = Survey.open(survey)
    assert [opened.keys.count(f"{FOX}#t={second}.0") for second in range(4)] == [1, 1, 1, 0]
    assert len(opened.events()) == 4
    assert sorted(opened.hour_N.tolist()) == [8] * 6 + [9] * 3
    printed = run("species", "check", survey, "--json").stdout
    assert json.loads(printed)["counts"]["images"] == 9


def test_a_video_is_triaged_as_one(survey: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    content = json.loads(run("species", "triage", survey, "--blur-people", "--out", out, "--json").stdout)
    # The photo, the file that is no video, and three videos: one of them shows a person, and later an animal.
    assert (content["images"], content["videos"]) == (2, 3)
    assert content["kinds"] == {"animal": 2, "human": 1, "blank": 2, "unclassified": 1}
    table = read_table(out / "triage.csv")
    lines = [(row["file"], row["kind"], row["score"], row["boxes"]) for row in table if row["kind"] != "unclassified"]
    assert lines == [
        (FOX, "animal", "0.900", "2"),
        (PERSON, "animal", "0.500", "1"),
        (PERSON, "human", "0.700", "1"),
        (PHOTO, "blank", "1.000", "0"),
        (EMPTY, "blank", "0.950", "0"),
    ]
    assert [row["time"][-8:] for row in table if row["file"] == FOX] == ["08:00:00"]
    # A frame is blurred under its own name.
    assert [path.name for path in (out / "blurred").rglob("*.jpg")] == ["20260502_080000.AVI#t=0.0.jpg"]
    run("species", "export", out, "--to", "camtrap-dp", *PACKAGE)
    observed = read_table(out / "camtrap-dp/observations.csv")
    kinds = [(row["eventID"], row["observationType"], row["observationLevel"]) for row in observed if row["eventID"]]
    assert sorted(kinds) == sorted(
        [(FOX, "animal", "event"), (EMPTY, "blank", "event"), (PERSON, "animal", "event"), (PERSON, "human", "event")]
    )
    run("species", "export", out, "--to", "csv", "--exclude-humans", "--out", tmp_path / "public.csv")
    # No frame of the video with the person is left.
    assert {row["file"] for row in read_table(tmp_path / "public.csv")} == {FOX, EMPTY, PHOTO}


def test_exports_have_a_row_a_video(results: Path, tmp_path: Path) -> None:
    run("species", "export", results, "--to", "csv", "--out", tmp_path / "flat.csv")
    lines = {(row["file"], row["taxon"], row["sequence"]) for row in read_table(tmp_path / "flat.csv")}
    assert len(lines) == 5
    assert (FOX, KINDS[0], FOX) in lines
    assert (PERSON, "human", PERSON) in lines
    assert (EMPTY, "blank", EMPTY) in lines

    run("species", "export", results, "--to", "megadetector", "--out", tmp_path / "out.json")
    images = {image["file"]: image for image in json.loads((tmp_path / "out.json").read_text())["images"]}
    assert images[FOX]["frame_rate"] == 10.0
    assert images[FOX]["frames_processed"] == [0, 10, 20]
    assert [(box["frame_number"], box["conf"]) for box in images[FOX]["detections"]] == [
        (10, 0.9),
        (10, 0.6),
        (20, 0.8),
    ]
    assert [box["frame_number"] for box in images[PERSON]["detections"]] == [0, 20]
    assert "frame_rate" not in images[PHOTO]
    assert "not a video" in images["B/BROKEN.MOV"]["failure"]
    # It is read back as written, and added to a copy of the survey.
    read = read_results(tmp_path / "out.json")
    assert {image.file: image.frames for image in read.images}[FOX] == (0, 10, 20)

    run("species", "export", results, "--to", "camtrap-dp", *PACKAGE, "--out", tmp_path / "package")
    media = {row["mediaID"]: row for row in read_table(tmp_path / "package/media.csv")}
    assert {name: row["fileMediatype"] for name, row in media.items()} == {
        FOX: "video/mp4",
        EMPTY: "video/mp4",
        PERSON: "video/x-msvideo",
        "B/IMG_0001": "image/jpeg",
    }
    assert (media[FOX]["timestamp"], media[FOX]["filePath"]) == ("2026-05-01T08:00:00+01:00", FOX)
    assert set(next(iter(media.values()))) == set(columns("media"))
    observed = {
        (row["eventID"], row["observationType"]): row for row in read_table(tmp_path / "package/observations.csv")
    }
    fox = observed[FOX, "animal"]
    assert (fox["scientificName"], fox["count"], fox["mediaID"]) == (KINDS[0], "2", "")
    assert (fox["eventStart"][11:19], fox["eventEnd"][11:19]) == ("08:00:00", "08:00:02")
    assert (PERSON, "human") in observed

    run("species", "export", results, "--to", "wildlife-insights", "--project", "1", "--out", tmp_path / "wi.csv")
    assert {row["image_id"] for row in read_table(tmp_path / "wi.csv")} == {FOX, EMPTY, PERSON, "B/IMG_0001"}

    run("species", "summary", results, "--out", tmp_path / "tables")
    effort = {row["deployment"]: row["images"] for row in read_table(tmp_path / "tables/effort.csv")}
    assert effort == {"A": "2", "B": "2"}
    records = read_table(tmp_path / "tables/records.csv")
    assert [row["FileName"] for row in records if row["Species"] == KINDS[0]][0] == Path(FOX).name


def test_answers_about_videos_hold_in_every_export(results: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(results.parent, tmp_path / "copy") / "results"
    config = json.loads((copy / "predict.json").read_text())
    (copy / "predict.json").write_text(json.dumps(config | {"collection": str(tmp_path / "copy/survey")}))
    run("species", "review", copy)
    table = read_table(copy / "review/review.csv")
    assert {row["event"] for row in table} >= {FOX, PERSON}
    # Timelapse knows the file of a video, and none of its frames.
    (tmp_path / "timelapse.csv").write_text(
        f"File,RelativePath,Species\n{Path(FOX).name},{Path(FOX).parent},blank\n"
        f"{Path(EMPTY).name},{Path(EMPTY).parent},Lynx lynx\n"
    )
    printed = run("species", "review", copy, "--corrections", tmp_path / "timelapse.csv").output
    assert "2 events have an answer now" in printed
    run("species", "export", copy, "--to", "csv", "--out", tmp_path / "flat.csv")
    lines = {(row["file"], row["taxon"]) for row in read_table(tmp_path / "flat.csv") if row["file"] in (FOX, EMPTY)}
    assert lines == {(FOX, "blank"), (EMPTY, "Lynx lynx")}
    run("species", "export", copy, "--to", "megadetector", "--out", tmp_path / "out.json")
    images = {image["file"]: image for image in json.loads((tmp_path / "out.json").read_text())["images"]}
    assert images[FOX]["detections"] == []
    run("species", "export", copy, "--to", "camtrap-dp", *PACKAGE, "--out", tmp_path / "package")
    observed = read_table(tmp_path / "package/observations.csv")
    rows = [
        (row["eventID"], row["observationType"], row["scientificName"], row["classificationMethod"]) for row in observed
    ]
    assert [row for row in rows if row[0] == FOX] == [(FOX, "blank", "", "human")]
    assert [row for row in rows if row[0] == EMPTY] == [(EMPTY, "animal", "Lynx lynx", "human")]
    # Answered videos are not asked again, and nobody said which frame of the empty one shows the lynx.
    run("species", "review", copy, "--out", tmp_path / "again")
    assert not {FOX, EMPTY} & {row["event"] for row in read_table(tmp_path / "again/review.csv")}
    labels = Survey.open(tmp_path / "copy/survey").labels()
    assert "Lynx lynx" not in labels.tolist()


def test_a_video_is_explained_by_its_path(results: Path) -> None:
    from foveate.species.predictions import Predictions

    predictions = Predictions.open(results)
    for name in (FOX, Path(FOX).name, f"{FOX}#t=1.0"):
        assert find_video(predictions.collection_keys[predictions.find_image(name)]) == FOX


def test_killed_runs_resume(survey: Path, tmp_path: Path) -> None:
    cards, results = survey.parent / "cards", survey.parent / "md.json"
    with Server("killed_species") as server:
        steps = server.start("triage_videos", cards, results, tmp_path / "whole").finish()
        for moment in (steps // 4, steps // 2, steps - 3):
            out = tmp_path / f"killed-{moment}"
            server.start("triage_videos", cards, results, out, die_at=moment, moment="before").end()
            server.start("triage_videos", cards, results, out).finish()
            assert (out / "triage.csv").read_bytes() == (tmp_path / "whole/triage.csv").read_bytes()
            with Collection.open(out / "survey") as collection:
                assert len(collection) == 9


def test_what_a_killed_run_leaves_is_no_foreign_folder(tmp_path: Path) -> None:
    for name in ("deployments.csv", ".predict.json.0f.tmp", "writer.lock"):
        (tmp_path / name).write_text("")
    check_folder(tmp_path)
    (tmp_path / "thesis.docx").write_text("")
    with raises_naming(UserError, "thesis.docx"):
        check_folder(tmp_path)
