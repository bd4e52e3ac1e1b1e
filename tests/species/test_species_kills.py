"""SIGKILL at random moments of `species train`, then the same call again: the same model, prior and log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_survey import build_survey, write_features

from foveate.species.priors import PRIOR
from killing import Server, kill_at_random

FILES = ("model/model.safetensors", f"{PRIOR}/model.safetensors", "data.json")


def log(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name == "step" or "loss" in name} for row in rows]


def same(run: Path, whole: Path) -> bool:
    return log(run) == log(whole) and all((run / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_model(tmp_path: Path) -> None:
    survey, features = build_survey(tmp_path / "survey"), tmp_path / "features.npz"
    write_features(features, survey)
    with Server("killed_species") as server:
        arguments = (survey.collection.path, features)
        took = server.seconds("species_train", *arguments, tmp_path / "whole")
        assert len(log(tmp_path / "whole")) > 30
        run, attempt = tmp_path / "killed-0", 0

        def check(dead: bool) -> None:
            nonlocal run, attempt
            attempt += 1
            if not dead:  # the next kills fall into a new run
                assert same(run, tmp_path / "whole")
                run = tmp_path / f"killed-{attempt}"

        kill_at_random(
            lambda: server.start("species_train", *arguments, run), kills=12, longest=took, seed=7, after=check
        )
        server.start("species_train", *arguments, run).finish()
        assert same(run, tmp_path / "whole")
