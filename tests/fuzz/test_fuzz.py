"""The fuzz run: a few hundred inputs in every test run, more than 20,000 with `make test-slow`."""

from __future__ import annotations

import importlib.util
import signal
import time
from pathlib import Path
from random import Random

import fuzz_cli
import pytest
from fuzz_boxes import BOXES
from fuzz_cli import CLI
from fuzz_clips import CLIPS
from fuzz_decoding import DECODING
from fuzz_gguf import GGUF
from fuzz_imports import IMPORTS
from fuzz_models import MODELS
from fuzz_points import POINTS
from fuzz_recipes import RECIPES
from fuzz_run import Target, Trial, run
from PIL import Image

from foveate.core.errors import UserError
from verbs import sub_verbs

TARGETS = IMPORTS | DECODING | BOXES | RECIPES | MODELS | POINTS | GGUF | CLI | CLIPS
# Inputs of the slow run: more where one is cheap.
COUNTS = {
    "folder": 1200,
    "webdataset": 1200,
    "coco": 1000,
    "lvis": 600,
    "visual-genome": 800,
    "table": 1200,
    "datasets": 800,
    "recognize": 600,
    "images": 4000,
    "loader": 600,
    "writing": 500,
    "boxes": 2500,
    "box-arrays": 1500,
    "geometry": 1500,
    "regions": 2500,
    "recipes": 1200,
    "overrides": 1000,
    "models": 400,
    "queries": 600,
    "indexes": 600,
    "arguments": 1000,
    "arrays": 1500,
    "archives": 1000,
    "point-tables": 2000,
    "point-texts": 2000,
    "cells": 1500,
    "gguf": 10_000,
    "clips": 1000,
}
_FAST = {
    "folder": 12,
    "webdataset": 12,
    "coco": 10,
    "lvis": 5,
    "visual-genome": 8,
    "table": 12,
    "recognize": 20,
    "images": 60,
}
_FAST |= {"boxes": 80, "box-arrays": 50, "geometry": 40, "regions": 80, "recipes": 12, "overrides": 12}

_FAST |= {"arrays": 40, "archives": 12, "point-tables": 30, "point-texts": 30, "cells": 25, "gguf": 40}


def test_the_slow_run_has_every_target_and_twenty_thousand_inputs() -> None:
    assert COUNTS.keys() == TARGETS.keys()
    assert sum(COUNTS.values()) >= 20_000


def test_every_verb_and_sub_verb_gets_arguments() -> None:
    every = {" ".join(path) for path, _ in sub_verbs()}
    assert {"captioner evaluate", "adapt merge"} <= every == set(fuzz_cli.command_lines())
    drawn = {" ".join(fuzz_cli.words_for(Random(number))[:3]) for number in range(1500)}
    assert all(any(f"{line} ".startswith(f"{name} ") for line in drawn) for name in every)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No input may start a download."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    # `foveate mllm fetch` runs pip, which has an environment of its own.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    # Both libraries look at the environment once, when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if importlib.util.find_spec("datasets"):
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", _FAST)
def test_hostile_inputs(name: str, tmp_path: Path) -> None:
    # `run` fails with every input that ended in anything but a result or a sentence for the user.
    assert run(TARGETS[name], count=_FAST[name], seed=20, work=tmp_path).total() == _FAST[name]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", COUNTS)
def test_many_hostile_inputs(name: str, tmp_path: Path) -> None:
    if name in (packages := {"datasets": "datasets", "clips": "av"}):
        pytest.importorskip(packages[name])
    assert run(TARGETS[name], count=COUNTS[name], seed=1, work=tmp_path).total() == COUNTS[name]


def _outcome(attempt: object, tmp_path: Path) -> str:
    """What the run says of a target that does one thing to every input."""
    try:
        run(Target("made", attempt), count=1, seed=1, work=tmp_path)  # type: ignore[arg-type]
    except AssertionError as failure:
        return str(failure)
    return "passed"


def test_the_run_tells_refusals_from_failures(tmp_path: Path) -> None:
    def refuse(trial: Trial) -> str:
        raise UserError("no")

    def crash(trial: Trial) -> str:
        trial.note("the input")
        raise KeyError("x")

    def change(trial: Trial) -> str:
        Image.MAX_IMAGE_PIXELS = 7
        return "done"

    before = Image.MAX_IMAGE_PIXELS
    try:
        assert _outcome(refuse, tmp_path) == "passed"
        assert "run(TARGETS['made'], count=1, seed=1, first=0): FAILED: KeyError" in _outcome(crash, tmp_path)
        assert "input: 'the input'" in _outcome(crash, tmp_path)
        assert "it changed Image.MAX_IMAGE_PIXELS" in _outcome(change, tmp_path)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def test_the_run_stops_a_hang_and_gives_the_clock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz_run.CLOCK_SECONDS", 0.2)

    def hang(trial: Trial) -> str:
        time.sleep(20)
        return "done"

    handler = signal.getsignal(signal.SIGALRM)
    assert "Hang: more than 0.2 s on the clock" in _outcome(hang, tmp_path)
    assert signal.getsignal(signal.SIGALRM) == handler


def test_the_same_seed_makes_the_same_inputs(tmp_path: Path) -> None:
    seen: list[float] = []

    def look(trial: Trial) -> str:
        seen.append(trial.random.random())
        return "done"

    run(Target("made", look), count=3, seed=5, work=tmp_path)
    run(Target("made", look), count=1, seed=5, first=2, work=tmp_path)
    assert seen[3] == seen[2]
    assert len(set(seen)) == 3
