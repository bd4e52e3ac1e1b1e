"""The tour: its table, its means over seeds, its questions; and a very small one from nothing to a page."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import environment

import tiny
from foveate.core.errors import UserError
from foveate.metrics.intervals import seed_interval
from foveate.pretrain.embed import embed_collection
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.report.words import in_short
from foveate_labs.studies.questions import (
    PLAIN_QUERIES,
    Album,
    PlainQuery,
    box_searches,
    choice_questions,
    image_searches,
    plain_searches,
    where_questions,
    word_searches,
)
from foveate_labs.tour import run as module
from foveate_labs.tour.run import COLUMNS, Clock, over_seeds, tour, tour_table
from naming import raises_naming


def value(number: float) -> dict[str, float]:
    return {"value": number, "low": number - 0.1, "high": number + 0.1}


def row(question: str, **values: float) -> dict[str, Any]:
    return {
        "question": question,
        "data": "seen",
        "chance": 0.1,
        "n": 9,
        "values": {name: value(number) for name, number in values.items()},
    }


def test_the_commit_is_that_of_foveate_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    found = module._commit()
    assert found
    assert commit.startswith(found)
    # Installed in a virtual environment within someone's repository.
    installed = tmp_path / ".venv" / "lib"
    installed.mkdir(parents=True)
    monkeypatch.setattr(module, "CHECKOUT", installed)
    assert module._commit() is None


def test_tour_table_keeps_its_columns() -> None:
    table = [row("which phrase names this box: R@1", clip=0.1, clip_shuffled=0.2, clip_crop=0.3, cloc=0.4)]
    (found,) = tour_table(table)
    assert list(found["values"]) == ["clip", "clip_crop", "cloc"]
    assert found["values"]["cloc"] == value(0.4)
    assert {column["key"] for column in COLUMNS} >= set(found["values"])


def test_tour_table_splits_where_by_rule() -> None:
    table = [
        row("where is it: mean IoU", clip_candidates=0.1, cloc_head=0.5, cloc_candidates=0.4, center=0.2, random=0.0)
    ]
    head, candidates = tour_table(table)
    assert head["question"] == "where is it (grounding head): mean IoU"
    assert {name: one["value"] for name, one in head["values"].items()} == {"cloc": 0.5, "guess": 0.2}
    assert candidates["question"] == "where is it (best of many boxes): mean IoU"
    assert candidates["values"]["cloc"] == value(0.4)
    assert candidates["values"]["clip"] == value(0.1)
    assert table[0]["question"] == "where is it: mean IoU", "the full table is left as it was"


def test_the_first_three_questions_are_three_different_ones() -> None:
    where = row("where is it: IoU at least .5", clip_candidates=0.1, cloc_head=0.5, cloc_candidates=0.4)
    table = [
        row("which phrase names this box: R@1", cloc=0.4),
        where,
        row("which of the image's boxes: accuracy", cloc=0.9),
        row("what is in this box, of all names: top-1", cloc=0.5),
    ]
    first = [found["question"] for found in tour_table(table)][:3]
    assert first == [
        "what is in this box, of all names: top-1",
        "where is it (grounding head): IoU at least .5",
        "which of the image's boxes: accuracy",
    ]
    assert all(in_short(question) != question for question in first)


def test_tour_table_names_the_three_slices() -> None:
    names = ("seen", "unseen", "unseen kind", "unseen kind, small", "emoji images")
    table = [{**row("which phrase names this box: R@1", cloc=0.4), "data": name} for name in names]
    assert [found["data"] for found in tour_table(table)] == [
        "scenes, seen concepts",
        "scenes, unseen concepts",
        "scenes, unseen kinds",
        "scenes, unseen kinds, small",
        "emoji images",
    ]


def test_a_tree_without_recipes_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.core.recipes._recipe_folder", lambda: tmp_path / "recipes")
    with raises_naming(UserError, "tour-clip", tmp_path / "recipes"):
        tour(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_over_seeds() -> None:
    one, two, three = ([row("q", clip=base, cloc=base + 0.5)] for base in (0.1, 0.2, 0.4))
    assert over_seeds([one]) == one
    (found,) = over_seeds([one, two, three])
    expected = seed_interval([0.1, 0.2, 0.4])
    assert found["values"]["clip"] == expected.to_value().to_json()
    assert found["values"]["clip"]["value"] == pytest.approx(0.7 / 3)
    assert (found["question"], found["n"]) == ("q", 9)


def test_clock() -> None:
    clock = Clock()
    clock.lap("a")
    clock.lap("b")
    clock.lap("a")
    total = clock.total()
    assert list(total) == ["a", "b", "total"]
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in total.values())


@pytest.fixture
def album(tiny_collection: Path, tmp_path: Path) -> tuple[Album, dict[str, Any]]:
    collection = Collection.open(tiny_collection)
    models = {
        name: build_model(tiny.recipe(regions={"method": method})).eval()
        for name, method in (("clip", "none"), ("cloc", "prompter"))
    }
    rows = collection.rows("test")
    embedded = {name: embed_collection(model, collection, rows) for name, model in models.items()}
    return Album(collection, tmp_path, embedded, 0), models


def test_questions_are_drawn_by_the_seed_and_show_existing_images(
    album: tuple[Album, dict[str, Any]], tmp_path: Path
) -> None:
    shown, models = album
    asked = [
        *word_searches(shown, models, source="shapes", count=2),
        *image_searches(shown, list(models), source="shapes", field="category", count=2),
        *box_searches(shown, list(models), part="seen", count=2),
    ]
    assert len(asked) == 6
    for search in asked:
        assert set(search["results"]) == {"clip", "cloc"}
        for results in search["results"].values():
            scores = [one["score"] for one in results]
            assert scores == sorted(scores, reverse=True)
            assert all((tmp_path / one["image"]).is_file() for one in results)
        if search["query"]["kind"] == "image":
            answers = [one["image"] for results in search["results"].values() for one in results]
            assert search["query"]["image"] not in answers, "an image does not find itself"
    again = word_searches(shown, models, source="shapes", count=2)
    assert again == asked[:2]
    json.dumps(asked)


def test_plain_queries_are_judged_by_names_and_categories() -> None:
    boat, food = PLAIN_QUERIES[:2]
    assert (boat.text, food.text) == ("a boat", "something to eat")
    assert boat.judge(frozenset({"red", "boat"}), ["person-sport"]) == (True, False)
    assert boat.judge(frozenset({"steamboat"}), ["transport-ground"]) == (False, True)
    assert boat.judge(frozenset({"kiwi"}), ["food-fruit"]) == (False, False)
    assert food.judge(frozenset(), ["food/fruit"]) == food.judge(frozenset(), ["food-sweet"]) == (True, False)
    assert food.judge(frozenset(), ["food/beverages/alcohol"]) == (False, True)
    # A scene is the very thing if one of its things is.
    assert food.judge(frozenset(), ["tool", "food"]) == (True, False)
    assert food.judge(frozenset(), ["foodless"]) == (False, False)


def test_plain_searches_count_their_results_beside_chance(album: tuple[Album, dict[str, Any]], tmp_path: Path) -> None:
    shown, models = album
    words, _ = shown.contents[0]
    common = PlainQuery("a thing", words, (), ())
    (search,), tallies = plain_searches(shown, models, [common])
    assert set(search["results"]) == {"clip", "cloc"}
    right = [common.judge(*content)[0] for content in shown.contents]
    for tally in tallies:
        hits = search["results"][tally["model"]]
        assert (tally["n"], tally["right"]) == (len(hits), sum(hit["right"] for hit in hits))
        assert tally["chance_right"] == pytest.approx(np.mean(right))
        assert all((tmp_path / hit["image"]).is_file() for hit in hits)


def test_where_and_which(album: tuple[Album, dict[str, Any]]) -> None:
    shown, _ = album
    places = where_questions(shown, "cloc", part="seen", count=4)
    assert len(places) == 4
    for question in places:
        assert set(question["boxes"]) == {"head", "candidates", "center", "random"} == set(question["iou"])
        assert 0 <= min(question["iou"].values()) <= max(question["iou"].values()) <= 1
    assert choice_questions(shown, "cloc", part="seen", count=4) == [], "no image has three boxes"
    assert box_searches(shown, ["clip"], part="nothing", count=1) == []
    once = np.unique([question["phrase"] for question in places], return_counts=True)
    assert once[1].max() <= 4
    json.dumps(places)


@pytest.mark.slow
def test_a_small_tour_from_nothing_to_a_page(tmp_path: Path) -> None:
    run = tmp_path / "tour"
    sizes = ["--image-size", "96", "--scenes", "200", "--test-scenes", "50", "--steps", "20"]
    command = [sys.executable, "-m", "foveate", "tour", "--out", str(run), *sizes, "--device", "cpu", "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kind"] == "tour"
    assert not result["resumed"]
    assert result["size"] == {"image_size": 96, "scenes": 200, "steps": 20, "by_speed": False, "short": True}
    assert set(result["models"]) == {"clip", "cloc"}
    assert len(result["searches"]) == 12
    assert len(result["plain_searches"]) == 8
    assert [tally["n"] for tally in result["search_tallies"]] == [40, 40]
    assert len(result["locate"]) == 12
    data = {found["data"] for found in result["table"]}
    parts = {"scenes, seen concepts", "scenes, unseen concepts", "scenes, unseen kinds"}
    assert parts | {"clipart images", "emoji images", "scenes images"} <= data
    keys = {column["key"] for column in result["columns"]}
    assert all(set(found["values"]) <= keys for found in result["table"])
    asked = result["ask"]
    assert len(asked["scenes"]) == 8
    assert all((run / scene["image"]).is_file() and scene["questions"] for scene in asked["scenes"])
    assert all(scene["regions"] for scene in asked["scenes"])
    assert sum(tally["n"] for tally in asked["tallies"]) > 40
    assert asked["training"]["points"][-1][0] == asked["training"]["steps"] == 20
    video = result["video"]
    assert 0 <= video["best_in_sight"] <= video["in_sight"] == sum(bool(frame["true_box"]) for frame in video["frames"])
    assert (run / video["file"]).is_file()
    assert sum((run / frame["image"]).is_file() for frame in video["frames"] if frame["image"]) == 8
    assert result["seconds"]["video"] < 60
    adaptation = result["adaptation"]
    assert [row["key"] for row in adaptation["rows"]] == ["linear", "lora", "full"]
    assert result["seconds"]["adaptation"] < 40
    calibration = result["calibration"]
    assert calibration["trained"]["classes"] == len(calibration["classes"]["seen"] + calibration["classes"]["absent"])
    assert calibration["samples"] > 300
    assert all((run / one["image"]).is_file() for one in calibration["examples"])
    assert result["seconds"]["calibration"] < 40
    federated = result["federated"]
    assert len(federated["clients"]) == 8
    assert sum(client["images"] for client in federated["clients"]) == federated["images"] > 1000
    assert all((run / one["image"]).is_file() for group in federated["examples"] for one in group["images"])
    assert result["seconds"]["federated"] < 20
    species = result["species"]
    assert [step["stage"] for step in species["steps"]][-1] == "threshold"
    assert (run / species["image"]).is_file()
    assert result["seconds"]["species"] < 60
    assert json.loads((run / "result.json").read_text())["table"] == result["table"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "Fine-tuned on half of the classes" in page
    assert 'id="ask"' in page
    assert "is being trained now" not in page
    assert "the shipped model's answers are on" in done.stderr
    assert "Eight clients, one map" in page
    for image in {question["image"] for question in result["locate"]}:
        assert (run / image).is_file()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["table"] == result["table"], "repeated, it only answers again"
