"""Run folders: the same command opens the same folder again, another recipe does not."""

from __future__ import annotations

import json
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder, check_run_path
from naming import raises_naming


def test_create_and_open_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "run", command=["foveate", "x"], recipe="steps: 3\n")
    assert json.loads((run.path / "run.json").read_text()) == {"command": ["foveate", "x"]}
    assert (run.path / "recipe.yaml").read_text() == "steps: 3\n"
    run.append_metrics({"step": 1})
    again = RunFolder.create(run.path, command=["foveate", "x"], recipe="steps: 3\n")
    assert again.read_metrics() == [{"step": 1}]


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", recipe="steps: 3\n")
    run.append_metrics({"step": 1})
    with raises_naming(UserError, "run", "recipe.yaml", "--out"):
        RunFolder.create(tmp_path / "run", recipe="steps: 4\n")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "steps: 3\n"


def test_a_command_that_failed_before_its_work_binds_no_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", command=["foveate", "x"], recipe="kind: stroy\n")
    (run.path / "data").mkdir()
    RunFolder.create(tmp_path / "run", recipe="kind: story\n")
    assert (run.path / "recipe.yaml").read_text() == "kind: story\n"
    (run.path / "data" / "rows.parquet").write_text("work")
    with raises_naming(UserError, "run", "recipe.yaml", "--out"):
        RunFolder.create(tmp_path / "run", recipe="kind: stroy\n")


def test_a_recipe_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    saved = tmp_path / "recipe.yaml"
    saved.write_text("steps: 3  # few\n")
    with raises_naming(UserError, saved, "--out"):
        RunFolder.create(tmp_path, command=["foveate", "x"], recipe="steps: 3\nseed: 0\n")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    assert saved.read_text() == "steps: 3  # few\n"


def test_a_run_without_a_saved_command_is_resumed(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, recipe="steps: 3\n").append_metrics({"step": 1})
    again = RunFolder.create(tmp_path, command=["foveate", "x"], recipe="steps: 3\n")
    assert again.read_metrics() == [{"step": 1}]
    # From Python and stopped before any work: the recipe is the very same.
    RunFolder.create(tmp_path / "new", recipe="steps: 3\n")
    RunFolder.create(tmp_path / "new", command=["foveate", "x"], recipe="steps: 3\n")


def test_a_command_without_a_recipe_replaces_no_result_of_a_training(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", command=["foveate", "train"], recipe="steps: 3\n")
    RunFolder.create(run.path)
    assert not (run.path / "recipe.yaml").exists(), "there was no work yet"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("steps: 3  # few\n")
    with raises_naming(UserError, tmp_path / "mine", "recipe.yaml", "--out"):
        RunFolder.create(tmp_path / "mine", command=["foveate", "locate"])
    RunFolder.create(run.path, recipe="steps: 3\n").write_result({"kind": "train"})
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with raises_naming(UserError, run.path, "recipe.yaml", "--out"):
        RunFolder.create(run.path, command=["foveate", "locate"])
    with raises_naming(UserError, run.path, "recipe.yaml", "--out"):
        check_run_path(run.path)  # before the questions of a chat
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    RunFolder.create(tmp_path / "other").write_result({"kind": "locate"})
    RunFolder.create(tmp_path / "other")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises_naming(UserError, "file is a file", "--out"):
        RunFolder.create(tmp_path / "file")
    with raises_naming(UserError, tmp_path / "file" / "run"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_row_cut_off_by_a_kill(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    assert run.read_metrics() == []
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 1 / step})
    run.metrics_path.write_text(run.metrics_path.read_text()[:-5])
    assert [row["step"] for row in run.read_metrics()] == [1, 2]
    run.truncate_metrics(after_step=1)
    assert run.metrics_path.read_text() == '{"step": 1, "loss": 1.0}\n'
    run.append_metrics({"step": 2})
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


def test_results(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    with raises_naming(UserError, "result.json"):
        run.read_result()
    assert run.write_result({"kind": "x"}) == tmp_path / "result.json"
    assert run.read_result() == {"kind": "x"}
    run.write_result({"n": 1}, "other.json")
    assert run.read_result("other.json") == {"n": 1}


def test_other_data_are_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", recipe="steps: 3\n", data={"hash": "mistyped"})
    run = RunFolder.create(tmp_path / "run", recipe="steps: 3\n", data={"hash": "a"})
    run.append_metrics({"step": 1})
    RunFolder.create(tmp_path / "run", recipe="steps: 3\n", data={"hash": "a"})
    with raises_naming(UserError, "run on other data", "data.json", "--out"):
        RunFolder.create(tmp_path / "run", command=["foveate", "x"], recipe="steps: 3\n", data={"hash": "b"})
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == {"hash": "a"}
    assert not (tmp_path / "run" / "run.json").exists()
