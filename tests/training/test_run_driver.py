"""The run of a training: what binds a folder, which fields are free, and what a resumed run must find unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from contrastive_toy import ContrastiveToy, toy_loader, toy_settings

from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.core.results import RunResult
from foveate.training.run import Run
from foveate.training.settings import TrainingSettings
from naming import raises_naming


class Recipe(Settings):
    training: TrainingSettings
    width: int = 4


def recipe(width: int = 4, **changes: Any) -> Recipe:
    return Recipe(training=toy_settings(steps=3, **changes), width=width)


def open_run(path: Path, data: dict[str, Any] | None = None, *, content: Recipe | None = None, **options: Any) -> Run:
    run = Run(content or recipe(), path, device="cpu", prepared=("names.json", "imported"), **options)
    with run:
        run.open(data)
    return run


def work(run: Run) -> None:
    run.folder.append_metrics({"step": 1})


def read_identity(path: Path) -> Any:
    return json.loads((path / "data.json").read_text(encoding="utf-8"))


def test_a_training_from_recipe_to_result(tmp_path: Path) -> None:
    with Run(recipe(), tmp_path / "run", device="cpu", command=["foveate", "x"]) as run:
        run.open({"images": "abc"})
        assert not run.resumed
        task = ContrastiveToy()
        outcome = run.train(task, toy_loader(), recipe().training)
        weights = run.gather(task, outcome)
        assert run.saves(outcome)
        run.write_result(RunResult(kind="toy", command=run.describe(outcome)["command"]))
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name.removeprefix("model."): tuple(value.shape) for name, value in task.state_dict().items()
    }
    assert run.describe(outcome)["steps"] == 3
    assert run.provenance(images=2) == {
        "images": 2,
        "command": ["foveate", "x"],
        "revision": run.provenance()["revision"],
    }
    assert run.folder.read_result() == {"kind": "toy", "title": "", "command": ["foveate", "x"]}
    assert open_run(tmp_path / "run", {"images": "abc"}).resumed


@pytest.mark.parametrize(
    "changes",
    [{"log_every": 7}, {"checkpoint_every": 9}, {"keep_checkpoints": 5}, {"parallel": "fsdp"}, {"workers": 0}],
)
def test_fields_without_influence_are_free(changes: dict[str, Any], tmp_path: Path) -> None:
    work(open_run(tmp_path))
    assert open_run(tmp_path, content=recipe(**changes)).resumed


@pytest.mark.parametrize("content", [recipe(width=5), recipe(learning_rate=0.5), recipe(seed=4)])
def test_other_fields_are_not(content: Recipe, tmp_path: Path) -> None:
    work(open_run(tmp_path))
    with raises_naming(UserError, "another recipe", "recipe.yaml", "--out"):
        open_run(tmp_path, content=content)
    assert open_run(tmp_path, content=content, free=("width", "training.learning_rate", "training.seed")).resumed


def test_other_data_are_refused_and_named(tmp_path: Path) -> None:
    work(open_run(tmp_path, {"collection": {"name": "birds", "sha256": "a" * 64}, "images": 3}))
    open_run(tmp_path, {"collection": {"name": "birds", "sha256": "a" * 64}, "images": 3})
    with raises_naming(UserError, "other data", "data.json", "collection.sha256", "bbb", "instead of", "aaa", "--out"):
        open_run(tmp_path, {"collection": {"name": "birds", "sha256": "b" * 64}, "images": 3})
    with raises_naming(UserError, "images 4 instead of 3"):
        open_run(tmp_path, {"images": 4})


def test_what_a_run_turns_out_to_begin_with_is_kept(tmp_path: Path) -> None:
    run = open_run(tmp_path, {"collection": "a"})
    run.identify(language={"sha256": "1"})
    run.identify(language={"sha256": "1"})
    with raises_naming(UserError, "language.sha256"):
        run.identify(language={"sha256": "2"})
    work(run)
    assert read_identity(tmp_path) == {"collection": "a", "language": {"sha256": "1"}}
    again = open_run(tmp_path, {"collection": "a"})
    assert read_identity(tmp_path) == {"collection": "a", "language": {"sha256": "1"}}
    with raises_naming(UserError, "language.sha256", "data.json"):
        again.identify(language={"sha256": "2"})


def test_an_attempt_without_work_binds_nothing(tmp_path: Path) -> None:
    """Not even where it wrote names, imported a model or cached features."""
    run = open_run(tmp_path, {"collection": "a"})
    run.identify(language="one")
    for name in ("names.json", "imported/model/config.json", "cache/part.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    corrected = open_run(tmp_path, {"collection": "b"}, content=recipe(width=5))
    assert not corrected.resumed
    assert not (tmp_path / "names.json").exists()
    assert (tmp_path / "imported" / "model" / "config.json").is_file()
    corrected.identify(language="other")
    assert read_identity(tmp_path) == {"collection": "b", "language": "other"}
    (tmp_path / "notes.txt").write_text("of the user")
    with raises_naming(UserError, "another recipe"):
        open_run(tmp_path, {"collection": "b"})


def test_identity_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    older = {"collection.json": "collection", "graph.json": ""}
    run = open_run(tmp_path, older=older)
    (tmp_path / "collection.json").write_text('{"name": "birds"}')
    (tmp_path / "graph.json").write_text('{"classes": "1", "links": "2"}')
    # Alone they are no work, so that an attempt of an earlier version binds nothing either.
    open_run(tmp_path, {"collection": {"name": "other"}}, older=older)
    (tmp_path / "data.json").unlink()
    work(run)
    for data, difference in (
        ({"collection": {"name": "owls"}}, "collection.name"),
        ({"classes": "3", "links": "2"}, "classes"),
    ):
        with raises_naming(UserError, difference, "--out"):
            open_run(tmp_path, data, older=older)
    open_run(tmp_path, {"collection": {"name": "birds"}, "classes": "1", "links": "2", "new": 1}, older=older)
    assert read_identity(tmp_path) == {"collection": {"name": "birds"}, "classes": "1", "links": "2", "new": 1}
