"""The tour: its parts and their order, resuming, pictures and lesson; and a short one from nothing to a page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import environment

from foveate.core.errors import UserError
from foveate.core.files import write_json_atomically
from foveate.core.results import parse_result
from foveate_labs.studies.results import TourResult
from foveate_labs.studies.settings import TourSettings
from foveate_labs.tour import lesson
from foveate_labs.tour import run as module
from foveate_labs.tour.find import PHOTOGRAPH_QUERIES, PLAIN_QUERIES
from foveate_labs.tour.pictures import PHOTOGRAPHS, build_pictures, other_query
from foveate_labs.tour.run import ALL_PARTS, tour
from foveate_labs.worlds.builtin import SEEN, assign_split
from naming import raises_naming


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


def test_a_tree_without_recipes_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.core.recipes._recipe_folder", lambda: tmp_path / "recipes")
    with raises_naming(UserError, "tour", tmp_path / "recipes"):
        tour(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_come_behind_what_they_need() -> None:
    names = list(ALL_PARTS)
    for name, part in ALL_PARTS.items():
        assert all(names.index(before) < names.index(name) for before in part.after), name
    assert module._select(("adaptation",)) == ["scenes", "head", "features", "adaptation"]
    assert module._select(()) == names
    # What ships comes before anything is trained.
    assert [part.opening for part in ALL_PARTS.values()] == sorted(
        (part.opening for part in ALL_PARTS.values()), reverse=True
    )
    assert {name for name, part in ALL_PARTS.items() if part.opening} <= set(TourResult.model_fields)


@pytest.fixture
def fake_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the processes: each part writes an empty result; return the names of those that ran."""
    ran: list[str] = []

    def run_parts(run: Path, missing: list[str], *arguments: object) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in missing:
            ran.append(name)
            empty = {} if name in ("captions", "calibration", "federated") else None
            content = {"result": empty, "seconds": 1.0, "processor_seconds": 1.0, "memory_gb": 0.4}
            write_json_atomically(module._part_path(run, name), content)
            yield name, content

    monkeypatch.setattr(module, "_run_parts", run_parts)
    return ran


def test_a_finished_part_is_not_run_again(fake_parts: list[str], tmp_path: Path) -> None:
    pages = []

    def on_page(path: Path, opened: bool) -> None:
        pages.append((json.loads((path / "result.json").read_text())["running"], opened))

    tour(tmp_path / "run", seed=2, on_page=on_page)
    assert fake_parts == list(ALL_PARTS)
    shown = [name for name in ALL_PARTS if name in TourResult.model_fields]
    # Once with a part more each, and once at the end; in one of them the opening is complete.
    assert [running for running, _ in pages] == [True] * (len(shown) - 1) + [False]
    assert [opened for _, opened in pages].count(True) == 1
    assert pages.index((True, True)) == sum(part.opening for part in ALL_PARTS.values()) - 1
    (tmp_path / "run" / "parts" / "lesson.json").unlink()
    fake_parts.clear()
    tour(tmp_path / "run", seed=2)
    assert fake_parts == ["lesson"]
    result = parse_result(TourResult, json.loads((tmp_path / "run" / "result.json").read_text()))
    assert result.resumed
    assert not result.running
    assert result.memory_gb is not None
    assert result.memory_gb == 0.4


def test_another_seed_or_length_is_refused(fake_parts: list[str], tmp_path: Path) -> None:
    tour(tmp_path / "run", seed=2)
    for settings, seed in ((TourSettings(), 3), (TourSettings(short=True), 2)):
        with raises_naming(UserError, tmp_path / "run", "--out"):
            tour(tmp_path / "run", settings, seed=seed)
    (tmp_path / "old" / "collection").mkdir(parents=True)
    with raises_naming(UserError, tmp_path / "old", "earlier version", "--out"):
        tour(tmp_path / "old")


def test_pictures_are_chosen_by_the_rule(tmp_path: Path) -> None:
    collection = build_pictures(tmp_path / "pictures", seed=0, drawings=2, scenes=1)
    assert list(collection.keys[: len(PHOTOGRAPHS)]) == [photograph.name for photograph in PHOTOGRAPHS]
    assert collection.label_values("source").tolist() == ["photographs"] * len(PHOTOGRAPHS) + ["emoji"] * 2 + [
        "clipart"
    ] * 2 + ["scenes"]
    assert all(assign_split(key) == "test" for key in collection.keys[len(PHOTOGRAPHS) : -1])
    boxed = [row for row in range(len(PHOTOGRAPHS)) if collection.read_regions(row)]
    assert boxed == [number for number, photograph in enumerate(PHOTOGRAPHS) if photograph.box]
    # A control that the photograph shows after all would be none.
    for number, photograph in enumerate(PHOTOGRAPHS):
        assert other_query(number) not in photograph.names


def test_queries_are_judged_by_names_and_categories() -> None:
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
    coins = next(query for query in PHOTOGRAPH_QUERIES if query.text == "coins")
    assert coins.judge(frozenset({"coin"}), []) == (True, False)


def test_the_lesson_has_names_that_no_training_has() -> None:
    names = lesson.draw_names(0)
    assert len(names) == lesson.NUM_NAMES
    assert names.keys() == lesson.draw_names(0).keys() != lesson.draw_names(1).keys()
    drawings = [cutout for cutouts in names.values() for cutout in cutouts]
    assert all(cutout.slice != SEEN for cutout in drawings)
    assert len({cutouts[0].family for cutouts in names.values()}) == len(names)
    for cutouts in names.values():
        assert {"noto", "twemoji"} <= {cutout.style for cutout in cutouts}


def test_scores_are_added_by_standard_scores_and_measured_over_scenes() -> None:
    scores = lesson.standardize(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], np.float32))
    assert scores.mean(axis=1) == pytest.approx([0, 0], abs=1e-6)
    assert scores[0].std() == pytest.approx(1)
    assert (scores[1] == 0).all()
    right = np.eye(3, dtype=np.float32)
    value = lesson.measure(right, np.array([0, 1, 0]), [0, 0, 1], seed=0)
    assert value["value"] == pytest.approx(2 / 3)
    assert value["low"] < value["value"] < value["high"]


@pytest.mark.slow
def test_a_short_tour_from_nothing_to_a_page(tmp_path: Path) -> None:
    run = tmp_path / "tour"
    command = [sys.executable, "-m", "foveate", "tour", "--out", str(run), "--short", "--device", "cpu", "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("what ships has answered") == 1
    result = parse_result(TourResult, json.loads(done.stdout))
    assert not result.resumed
    assert set(result.seconds) == set(ALL_PARTS)
    pictures = result.pictures
    assert pictures is not None
    assert pictures.pictures == len(PHOTOGRAPHS) + 10
    assert [tally.n for tally in pictures.tallies] == [len(PHOTOGRAPHS), len(PLAIN_QUERIES)]
    for ask in (result.ask, result.ferret):
        assert ask is not None
        assert [tally.kind for tally in ask.photograph_tallies] == ["what", "where", "is there", "is there, absent"]
        assert all((run / scene.image).is_file() for scene in [*ask.photographs, *ask.scenes])
    video, traps, taught = result.video, result.traps, result.lesson
    assert video is not None
    assert (run / video.file).is_file()
    assert traps is not None
    assert traps.animals + traps.empty == 8
    assert taught is not None
    assert len(taught.names) == lesson.NUM_NAMES
    assert [set(row.values) for row in taught.table] == [{"before", "after", "both", "permuted"}] * 2
    assert result.adaptation is not None
    assert [row.key for row in result.adaptation.rows] == ["linear", "lora", "full"]
    assert result.calibration["samples"] > 300
    assert len(result.federated["clients"]) == 8
    assert result.species is not None
    assert [step.stage for step in result.species.steps][-1] == "threshold"
    page = (run / "report.html").read_text(encoding="utf-8")
    for anchor in ("search", "locate", "ask", "captions", "video", "traps", "lesson", "adaptation", "federated"):
        assert f'id="{anchor}"' in page
    assert "is being made now" not in page
    # A killed tour keeps what is finished: the parts that are missing are run, and no other.
    before = {path.name: path.stat().st_mtime_ns for path in (run / "parts").iterdir()}
    (run / "parts" / "traps.json").unlink()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (run / "parts").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"traps.json"}
    assert json.loads(again.stdout)["resumed"]
