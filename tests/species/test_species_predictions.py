"""From a survey to a reviewed table through the command line: each verb on one small generated survey."""

from __future__ import annotations

import csv
import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.core.errors import NothingSucceededError, UserError
from foveate.records.collection import Collection
from foveate.species.corrections import apply_corrections, open_target
from foveate.species.evaluate import Truth, evaluate_classes, judge, match_truth
from foveate.species.export import export_predictions
from foveate.species.folder import open_species
from foveate.species.predict import _needs_boxes, predict
from foveate.species.predictions import Predictions, read_part
from foveate.species.review import _free_path, rank_events, write_review
from foveate.species.settings import ExportSettings, PredictSettings
from foveate.species.summary import summarize
from foveate.species.taxonomy import Classes
from foveate.survey.importers.corrections import Correction
from foveate.survey.survey import Survey
from foveate.survey.taxa import Taxa
from foveate_labs.worlds.traps import TrapSettings, build_traps, write_cards
from naming import raises_naming
from timelapse import list_timelapse_faults

SETTINGS = TrapSettings(
    width=160, height=120, train_cameras=3, validation_cameras=1, test_cameras=2, regions=2, tail=0.3
)


def run(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json", "--quiet"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout.splitlines()[-1])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def first_image(folder: Path) -> Path:
    return min((folder / "cards").rglob("*.JPG"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey, cards of other cameras with a damaged file, a model, and its predictions of the cards."""
    folder = tmp_path_factory.mktemp("species")
    build_traps(folder / "survey", train=36, validation=3, test=9, seed=3, settings=SETTINGS)
    write_cards(folder / "cards", count=9, seed=3, settings=SETTINGS)
    first_image(folder).with_name("IMG_0999.JPG").write_bytes(b"\xff\xd8\xff no image")
    model = ("graph.dim=16", "training.epochs=2", "encoder.kind=lite0", "encoder.image_size=64")
    run("species", "train", "--collection", folder / "survey", "--out", folder / "run", "--device", "cpu", *model)
    arguments = ("--deployments", folder / "cards" / "deployments.csv", "--device", "cpu", "--workers", 1)
    run("species", "predict", folder / "run/model", folder / "cards", "--out", folder / "results", *arguments)
    return folder


def test_every_image_has_a_row_and_a_damaged_one_its_failure(folder: Path) -> None:
    predictions = Predictions.open(folder / "results")
    assert len(predictions.collection_keys) == 9
    failed = predictions.images.filter(predictions.images["scored"].to_numpy() == 0).to_pylist()
    assert [row["status"] for row in failed] == ["failed"]
    assert "IMG_0999" in failed[0]["key"]
    np.testing.assert_allclose(predictions.probabilities_NK.sum(axis=1), 1, atol=1e-5)
    backwards = np.arange(9)[::-1]
    np.testing.assert_array_equal(predictions.stored_probabilities[backwards], predictions.probabilities_NK[::-1])
    np.testing.assert_array_equal(predictions.class_probabilities(1), predictions.probabilities_NK[:, 1])
    hours_NH = predictions.links("hours")
    assert hours_NH is not None
    assert hours_NH.shape == (9, len(predictions.config["hours"]))
    assert np.isfinite(hours_NH).all()
    assert predictions.links("places") is None, "the model was written without places"
    members = [key for keys in predictions.decisions["keys"].to_pylist() for key in keys]
    assert sorted(members) == sorted(predictions.collection_keys)
    # Places stay in the survey.
    degrees = [str(value)[:7] for value in predictions.survey.places_N2[0]]
    for path in (folder / "results").glob("*.*"):
        assert not any(text.encode() in path.read_bytes() for text in degrees), path


def test_a_model_of_crops_gets_boxes_where_no_image_has_one(folder: Path, tmp_path: Path) -> None:
    boxes = Predictions.open(folder / "results").boxes
    assert set(boxes["source"].to_pylist()) == {"detector:nanodet"}
    result = run("species", "predict", folder / "run/model", folder / "cards", "--out", folder / "results")
    assert result["boxed"] == len(set(boxes["key"].to_pylist())) > 0
    assert 0 < result["cropped"] <= result["boxed"]
    model, prepared = open_species(folder / "run/model"), folder / "results/survey"
    assert _needs_boxes(model, prepared, PredictSettings())
    assert not _needs_boxes(model, prepared, PredictSettings(detect=False))
    # The survey has boxes of another source: its images without one stay whole.
    assert not _needs_boxes(model, folder / "survey", PredictSettings())
    with raises_naming(UserError, "--features", "run/model"):
        predict(model, folder / "cards", tmp_path, PredictSettings(features=folder / "cards/deployments.csv"))


def test_cards_are_collected_and_built_by_commands(folder: Path, tmp_path: Path) -> None:
    table = folder / "cards" / "deployments.csv"
    run("collect", folder / "cards", "--deployments", table, "--out", tmp_path / "survey")
    with Collection.open(tmp_path / "survey") as collection:
        assert sorted(collection.keys) == sorted(Predictions.open(folder / "results").collection_keys)
    result = run("species", "build", folder / "survey", "--out", tmp_path / "graph")
    rows = read_csv(tmp_path / "graph/triples.csv")
    assert {row["datatype_h"] for row in rows} >= {"image", "id"}
    assert result["counts"]


def test_images_whose_card_is_away_are_tried_again(folder: Path, tmp_path: Path) -> None:
    cards, survey = tmp_path / "cards", tmp_path / "survey"
    shutil.copytree(folder / "cards", cards)
    run("collect", cards, "--deployments", cards / "deployments.csv", "--reference", "--out", survey)
    model, settings = open_species(folder / "run/model"), PredictSettings(detect=False)

    def count() -> tuple[int, int, int]:
        result = predict(model, survey, tmp_path / "results", settings, device="cpu", workers=1)
        assert (result.find_failure() is None) == (result.unreachable == 0)
        assert isinstance(result.find_failure(), NothingSucceededError) == (result.failed == result.images)
        return result.computed, result.failed, result.unreachable

    # A damaged file among them is refused when it is collected: it never counts as unreachable.
    cards.rename(tmp_path / "away")
    assert count() == (9, 10, 9)
    assert Predictions.open(tmp_path / "results").images["status"].to_pylist() == ["failed"] * 10
    (tmp_path / "away").rename(cards)
    image = first_image(tmp_path)
    image.rename(tmp_path / "one.jpg")
    assert count() == (9, 2, 1)
    before = read_part(tmp_path / "results", 0)
    arguments = ("species", "predict", folder / "run/model", survey, "--out", tmp_path / "results", "--no-detect")
    with raises_naming(UserError, "1 of 10 images", "missing file", "is the card still there? Run the same command"):
        run(*arguments)
    (tmp_path / "one.jpg").rename(image)
    assert count() == (1, 1, 0)
    after, whole = read_part(tmp_path / "results", 0), read_part(folder / "results", 0)
    (lost,) = before.failures
    kept = np.arange(9) != lost
    np.testing.assert_array_equal(after.probabilities_NK[kept], before.probabilities_NK[kept])
    assert np.isfinite(after.probabilities_NK).all()
    assert np.isfinite(after.links["hours"]).all()
    assert (after.failures, after.links.keys()) == ({}, whole.links.keys())
    assert count() == (0, 1, 0)


def test_files_that_could_not_be_read_while_cards_were_collected_are_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "cards", tmp_path / "cards")
    image, read = first_image(tmp_path), Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == image:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path, *arguments, **options)

    model, settings = open_species(folder / "run/model"), PredictSettings(detect=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        result = predict(model, tmp_path / "cards", tmp_path / "results", settings, device="cpu", workers=1)
    assert (result.images, result.unreachable, result.first_error) == (10, 1, "unreadable")
    assert "1 of 10 images" in str(result.find_failure())
    again = predict(model, tmp_path / "cards", tmp_path / "results", settings, device="cpu", workers=1)
    assert (again.images, again.failed, again.find_failure()) == (10, 1, None)


def test_predicting_again_computes_nothing_and_a_lost_part_alone(folder: Path) -> None:
    arguments = ("species", "predict", folder / "run/model", folder / "cards", "--out", folder / "results")
    before = read_part(folder / "results", 0)
    assert run(*arguments)["computed"] == 0
    part = folder / "results/scores/00000.safetensors"
    part.write_bytes(part.read_bytes()[:-5])
    with raises_naming(UserError, part, "again"):
        read_part(folder / "results", 0)
    assert run(*arguments)["computed"] == 9
    part.unlink()
    assert run(*arguments)["computed"] == 9
    np.testing.assert_allclose(read_part(folder / "results", 0).probabilities_NK, before.probabilities_NK, atol=1e-5)
    with raises_naming(UserError, "predict.json", "--out"):
        run("species", "predict", folder / "run/model", folder / "survey", "--out", folder / "results")
    with raises_naming(UserError, "run", "--out"):
        run("species", "predict", folder / "run/model", folder / "cards", "--out", folder / "run")


def test_stages_decide_again_without_images(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "list.csv"
    names.write_text("latin\nCarnivora\n", encoding="utf-8")
    run("species", "decide", folder / "results", "--list", names, "--threshold", 0, "--no-roll-up", "--pooling", "none")
    predictions = Predictions.open(folder / "results")
    assert predictions.decisions.num_rows == 9
    taxa = predictions.taxa
    for row in predictions.decisions.to_pylist():
        if row["taxon"]:
            assert "Carnivora" in [taxa.names[i] for i in taxa.lineage(taxa.index(row["taxon"]))]
    run("species", "decide", folder / "results", "--place-prior", "--hour-prior")
    steps = json.loads(Predictions.open(folder / "results").decisions["source"][0].as_py())
    assert "prior" in [step["stage"] for step in steps]
    run("species", "decide", folder / "results")
    decisions = Predictions.open(folder / "results").decisions
    assert decisions.num_rows < 9
    run("species", "decide", folder / "results")
    assert Predictions.open(folder / "results").decisions.equals(decisions)


def draw_decisions(predictions: Predictions, count: int) -> list[dict[str, Any]]:
    """Draw rows of decisions about the images: equal scores, names of several ranks, cameras of their images."""
    rng = np.random.default_rng(0)
    images = predictions.images.filter(predictions.images["scored"]).to_pylist()
    answers = [("Felis", "genus", "animal"), ("Felis catus", "species", "animal"), ("thing", "", "animal")]
    answers += [("blank", "", "blank"), ("unknown", "", "unknown"), ("", "", "unclassified")]
    rows = []
    for number in range(count):
        image, (name, rank, kind) = images[rng.integers(len(images))], answers[rng.integers(len(answers))]
        row = {"key": image["key"], "keys": [image["key"]], "file": image["file"], "camera": image["camera"]}
        row |= {"name": name, "rank": rank, "kind": kind, "score": float(rng.integers(21)) / 20}
        rows.append(row | {"event": str(number), "alternatives": '[["Felis", 0.5]]', "source": "[]"})
    return rows


def test_the_page_counts_what_the_rows_say(folder: Path, tmp_path: Path) -> None:
    predictions = Predictions.open(folder / "results")
    rows = draw_decisions(predictions, 60)
    predictions.__dict__["decisions"] = pa.Table.from_pylist(rows)
    result = summarize(predictions, tmp_path, digits=1, samples=17)

    assert result.counts == Counter(row["kind"] for row in rows)
    animals = [row for row in rows if row["kind"] == "animal"]
    assert result.ranks == Counter(row["rank"] or "class of the model" for row in animals)
    scores = [row["score"] for row in rows if row["kind"] not in ("unknown", "unclassified")]
    assert result.score_histogram is not None
    assert result.score_histogram.counts == np.histogram(scores, bins=20, range=(0, 1))[0].tolist()

    keys, survey = predictions.collection_keys, predictions.survey
    hour = {key: survey.hour_N[row] for key, row in zip(keys, predictions.rows.tolist(), strict=True)}
    taxa: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        taxa.setdefault(row["name"] or "unclassified", []).append(row)
    assert [row.name for row in result.taxa] == sorted(taxa, key=lambda name: (-len(taxa[name]), name))
    for taxon in result.taxa:
        members = taxa[taxon.name]
        assert (taxon.decisions, taxon.rank, taxon.kind) == (len(members), members[0]["rank"], members[0]["kind"])
        assert taxon.score == round(float(np.mean([row["score"] for row in members])), 4)
        hours = Counter(int(hour[row["key"]]) for row in members)
        assert taxon.hours == [hours[number] for number in range(24)]

    place = dict(zip(keys, survey.places_N2[predictions.rows], strict=True))
    cameras = {row["key"]: row["camera"] for row in predictions.images.to_pylist()}
    assert [row.camera for row in result.per_camera] == sorted(set(cameras.values()) - {""})
    for camera in result.per_camera:
        members = [row for row in rows if row["camera"] == camera.camera]
        names = Counter(row["name"] for row in members if row["kind"] == "animal")
        assert (camera.images, camera.events) == (list(cameras.values()).count(camera.camera), len(members))
        assert camera.top == (names.most_common(1)[0][0] if names else "")
        degrees = next(place[key] for key in keys if cameras[key] == camera.camera)
        assert (camera.latitude, camera.longitude) == tuple(round(float(value), 1) for value in degrees)

    # In turn over the names, the surest of each first; of equal scores the first row.
    queues: dict[str, list[int]] = {}
    for index in sorted(range(len(rows)), key=lambda index: -rows[index]["score"]):
        if rows[index]["kind"] != "unclassified":
            queues.setdefault(rows[index]["name"], []).append(index)
    turns = [index for turn in zip_longest(*queues.values()) for index in turn if index is not None][:17]
    assert [sample.image for sample in result.samples] == [f"images/{index:06d}.webp" for index in turns]
    assert [sample.answer for sample in result.samples] == [rows[index]["name"] for index in turns]
    boxes = {row["key"]: row for row in predictions.boxes.to_pylist() if row["used"]}
    for sample, index in zip(result.samples, turns, strict=True):
        box = boxes.get(rows[index]["key"])
        assert sample.box == (box and tuple(box[name] for name in ("x1", "y1", "x2", "y2")))


def test_evaluation_counts_what_the_labels_say(folder: Path) -> None:
    result = run("species", "evaluate", folder / "run/model", folder / "survey", "--out", folder / "evaluation")
    predictions = Predictions.open(folder / "evaluation")
    with Collection.open(folder / "survey") as collection:
        labels = Survey.open(collection).labels()[predictions.rows]
    matches = match_truth(sorted(set(labels) - {""}), predictions.classes, predictions.taxa)
    columns = np.array([matches[label][0] if label else -1 for label in labels])
    known = columns >= 0
    accuracy = (predictions.probabilities_NK[known].argmax(axis=1) == columns[known]).mean()
    assert result["evaluation"]["table"][0]["values"]["model"]["value"] == pytest.approx(accuracy)
    assert result["labels"] == known.sum()
    assert [row["stage"] for row in result["stages"]] == ["classifier", "pooling", "rollup", "threshold"]
    assert all(row["exact"] <= row["right"] <= row["named"] <= row["total"] for row in result["stages"])
    assert (folder / "evaluation/report.html").is_file()


def test_evaluation_says_of_what_its_shares_are(folder: Path) -> None:
    arguments = ["species", "evaluate", folder / "run/model", folder / "survey", "--out", folder / "evaluation"]
    stage = run(*arguments)["stages"][0]
    printed = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False).stdout
    lines = printed.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("After "))
    assert lines[header].split()[:3] == ["After", "Events", "Named"]
    assert re.fullmatch(rf"Model alone +{stage['total']:,}( +[\d.]+%){{3}}", lines[header + 1])


def test_rare_classes_are_all_of_at_most_100_training_images() -> None:
    classes = Classes(("common", "rare", "new", "absent", "blank"), np.full(5, -1))
    images = pa.table({"camera": ["a"] * 5})
    answers, truths = [0, 1, 1, 0, 4], np.array([0, 1, 1, 2, 4])
    predictions: Any = SimpleNamespace(
        probabilities_NK=np.eye(5)[answers], classes=classes, images=images, taxa=Taxa((), (), (), np.zeros(0))
    )
    truth = Truth(truths, np.array([""] * 5, dtype=object), {}, {})
    table, *_ = evaluate_classes(predictions, truth, train_counts={"common": 101, "rare": 100, "absent": 3, "blank": 9})
    (row,) = [row for row in table.table if "rare" in row.question]
    assert row.values["model"] is not None
    # Recall of "rare", of "new", of which there is no training image, and of "blank"; "absent" does not occur.
    assert row.values["model"].value == pytest.approx((1 + 0 + 1) / 3)


def test_an_ancestor_is_right_and_a_sibling_is_not(folder: Path) -> None:
    taxa = Predictions.open(folder / "results").taxa
    label = next(i for i, rank in enumerate(taxa.ranks) if rank == "species")
    family = taxa.at_rank(label, "order")
    assert judge(taxa.names[label], taxa.ids[label], taxa) == (True, True)
    assert judge(taxa.names[family], taxa.ids[label], taxa) == (True, False)
    assert judge("animal", taxa.ids[label], taxa) == (True, False)
    assert judge("blank", taxa.ids[label], taxa) == (False, False)
    assert judge("animal", "blank", taxa) == (False, False)


def test_labels_that_are_ids_of_another_taxonomy_match_by_their_names(folder: Path) -> None:
    predictions = Predictions.open(folder / "results")
    column = int(np.flatnonzero(predictions.classes.taxa_K >= 0)[0])
    taxon = int(predictions.classes.taxa_K[column])
    ids = {"other:7": predictions.taxa.names[taxon]}
    matches = match_truth(["other:7", "other:8", "blank"], predictions.classes, predictions.taxa, names=ids)
    assert matches["other:7"] == (column, predictions.taxa.ids[taxon])
    assert matches["other:8"] == (-1, "other:8")
    assert matches["blank"] == (predictions.classes.index("blank"), "blank")


def test_an_image_is_explained(folder: Path) -> None:
    name = first_image(folder)
    result = run("species", "explain", folder / "results", name, "--training", folder / "survey", "--device", "cpu")
    assert [step.split(":")[0] for step in result["steps"]] == ["model", "pooling", "roll-up", "threshold"]
    cosines = [image["cosine"] for image in result["images"]]
    assert cosines == sorted(cosines, reverse=True)
    assert all(image["camera"].startswith("train-") for image in result["images"])
    with raises_naming(UserError, "IMG_000X"):
        run("species", "explain", folder / "results", name.with_name("IMG_000X.JPG"))


def test_a_review_comes_back_as_labels_of_a_person(folder: Path) -> None:
    paths = run("species", "review", folder / "results")["paths"]
    rows = read_csv(Path(paths["table"]))
    predictions = Predictions.open(folder / "results")
    assert [float(row["priority"]) for row in rows] == [event.priority for event in rank_events(predictions)]
    run("species", "export", folder / "results", "--to", "csv", "--out", folder / "flat.csv")
    times = {row["file"]: row["datetime"] for row in read_csv(folder / "flat.csv")}
    assert [row["time"] for row in rows] == [times[row["file"]] for row in rows]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", rows[0]["time"])
    with raises_naming(UserError, "column", "--corrections"):
        run("species", "review", folder / "results", "--column", "species")
    with raises_naming(UserError, "answers.csv"):
        answers = [Correction("answers.csv:2", "blank", file="none.jpg")]
        apply_corrections(open_target(folder / "results"), answers, Path("answers.csv"))
    priorities = [float(row["priority"]) for row in rows]
    assert priorities == sorted(priorities, reverse=True)
    rows[0]["correction"], rows[1]["correction"] = "Vulpes vulpes", "blank"
    with Path(paths["table"]).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    # A table that somebody filled in stays.
    assert run("species", "review", folder / "results")["paths"]["table"] != paths["table"]
    arguments = ("species", "review", folder / "results", "--corrections", paths["table"])
    result = run(*arguments)
    assert result["images"] == 1 + int(rows[1]["images"])
    assert run(*arguments)["replaced"] == result["images"]
    survey = Predictions.open(folder / "results").survey
    labels = dict(zip(survey.keys, survey.labels().tolist(), strict=True))
    assert labels[rows[0]["key"]] in ("9627", "Vulpes vulpes")
    assert labels[rows[1]["key"]] == "blank"


def test_a_table_that_somebody_changed_stays(folder: Path, tmp_path: Path) -> None:
    predictions, table = Predictions.open(folder / "results"), tmp_path / "review.csv"
    for _ in range(2):  # an untouched one is replaced
        assert write_review(predictions, tmp_path, max_events=1).table == "review.csv"
    text = table.read_text("utf-8")
    changed = {
        "delimiter": text.replace(",", ";").encode(),
        "header": text.replace("correction", "Correction").encode(),
        "remark": f"{text[:-1]}looks like a fox\n".encode(),
        "encoding": text.encode("utf-16"),
        "code page": f"{text[:-1]}Füchsin\n".encode("cp1252"),
    }
    for name, content in changed.items():
        table.write_bytes(content)
        assert _free_path(tmp_path) == tmp_path / "review-2.csv", name
    assert write_review(predictions, tmp_path, max_events=1).table == "review-2.csv"
    assert table.read_bytes() == content
    # The second one is the last that was written, and untouched.
    assert _free_path(tmp_path) == tmp_path / "review-2.csv"


def test_the_graph_ranks_the_hours_of_deployments(folder: Path) -> None:
    result = run("species", "check", folder / "survey", "--model", folder / "run/model", "--device", "cpu")
    assert result["clocks"]
    assert {hint["deployment"][:5] for hint in result["clocks"]} <= {"train", "valid", "test-"}
    assert all(0 <= hint["shifted_rank"] <= hint["rank"] <= 1 for hint in result["clocks"])
    # The model was written without the places of its cameras.
    assert result["places"] == []


KILL = """
import sys
from pathlib import Path
import os, signal
from foveate.species import predict as module
from foveate.species.folder import open_species
from foveate.species.settings import PredictSettings

module._IMAGES_PER_PART = 2
write, parts = module.write_part, []

def write_and_die(*arguments):
    write(*arguments)
    parts.append(arguments)
    if len(parts) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

module.write_part = write_and_die
model, source, folder = map(Path, sys.argv[1:4])
module.predict(open_species(model), source, folder, PredictSettings(), device="cpu", workers=1)
"""


@pytest.mark.slow
def test_a_killed_prediction_goes_on(folder: Path, tmp_path: Path) -> None:
    def predict_until(target: Path, die_at: int) -> int:
        arguments = [folder / "run/model", folder / "survey", target, die_at]
        return subprocess.run([sys.executable, "-c", KILL, *map(str, arguments)], check=False).returncode

    assert predict_until(tmp_path / "whole", 0) == 0
    assert [predict_until(tmp_path / "killed", die_at) for die_at in (3, 1, 5)] == [-signal.SIGKILL] * 3
    assert not (tmp_path / "killed/images.parquet").exists()
    assert predict_until(tmp_path / "killed", 0) == 0
    whole, killed = Predictions.open(tmp_path / "whole"), Predictions.open(tmp_path / "killed")
    assert killed.images.equals(whole.images)
    np.testing.assert_array_equal(killed.probabilities_NK, whole.probabilities_NK)


@pytest.mark.parametrize("kind", ["csv", "wildlife-insights"])
def test_tables_have_a_line_for_each_image_and_no_place(
    folder: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.csv"
    settings = ExportSettings(format=kind, project="p1", title="t")  # type: ignore[arg-type]
    export_predictions(Predictions.open(folder / "results"), path, settings)
    idle = {line.partition(" ")[0] for line in capsys.readouterr().err.splitlines()}
    assert idle == ({"--title"} if kind == "wildlife-insights" else {"--title", "--project"})
    run("species", "export", folder / "results", "--to", kind, "--out", path, "--project", "p1")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert not any("latitude" in name or "longitude" in name for name in rows[0])


def test_the_flat_table_is_named_for_what_it_holds(folder: Path) -> None:
    paths = run("species", "export", folder / "results", "--to", "csv")["paths"]
    assert paths == {"csv": str(folder / "results" / "decisions.csv")}


def test_decisions_are_exported(folder: Path, tmp_path: Path) -> None:
    run("species", "export", folder / "results", "--to", "megadetector", "--out", tmp_path / "md.json")
    content = json.loads((tmp_path / "md.json").read_text("utf-8"))
    assert not list_timelapse_faults(content)
    failed = first_image(folder).with_name("IMG_0999.JPG").relative_to(folder / "cards").as_posix()
    assert len(content["images"]) == 10
    assert [image["file"] for image in content["images"] if image.get("failure")] == [failed]
    assert "latitude" not in (tmp_path / "md.json").read_text("utf-8")
    package = ("species", "export", folder / "results", "--to", "camtrap-dp", "--out", tmp_path / "package")
    with raises_naming(UserError, "coordinate_digits"):
        run(*package)
    stated = (*package, "--coordinate-digits", 2, "--contributor", "A. Person")
    with raises_naming(UserError, "timestamp", "--utc-offset") as refused:
        run(*stated)
    # What to do first, then the fields that are wrong.
    assert str(refused.value).startswith(f"{tmp_path / 'package'}: state the offset from UTC: --utc-offset +02:00, or ")
    with raises_naming(UserError, "utc_offset", "nowhere"):
        run(*stated, "--utc-offset", "nowhere=+02:00")
    result = run(*stated, "--utc-offset", "+02:00")
    assert result["rows"]["media"] == 9
    times = [row["timestamp"] for row in read_csv(tmp_path / "package/media.csv")]
    assert all(time.endswith("+02:00") for time in times)
    descriptor = json.loads((tmp_path / "package/datapackage.json").read_text("utf-8"))
    named = {row["scientificName"] for row in read_csv(tmp_path / "package/observations.csv")} - {""}
    assert {taxon["scientificName"] for taxon in descriptor["taxonomic"]} >= named
