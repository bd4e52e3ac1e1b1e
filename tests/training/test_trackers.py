"""Experiment trackers: what they get of a run, what a failing one costs, and files that their own readers open."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.training import trackers
from foveate.training.trackers import TrackedRun, Trackers, report_to, send_run
from naming import raises_naming

RECIPE = "name: toy\ntraining:\n  steps: 4\n  betas: [0.9, 0.98]\n"
ROWS = [
    {"step": 2, "loss": 0.5, "precision": None, "eval_accuracy": 0.25},
    {"step": 4, "loss": 0.25, "eval_accuracy": 0.5},
]
RESULT = {
    "kind": "toy",
    "steps": 4,
    "seconds": 1.5,
    "evaluation": {
        "table": [{"question": "Which?", "data": "test", "values": {"ours": {"value": 0.5}, "other": None}}]
    },
    "methods": [{"method": "first", "quality": {"nmi": 0.75}, "done": True}],
    "options": {"seed": 3},
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "runs" / "toy", recipe=RECIPE)
    for row in ROWS:
        folder.append_metrics(row)
    folder.write_result(RESULT)
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(folder.path / "mistake.png")
    return folder


class Notebook:
    """A tracker that keeps what it gets, and fails where it is told to."""

    runs: list[TrackedRun]

    def __init__(self) -> None:
        self.runs, self.calls, self.fails = [], [], ""

    def open_tracker(self, run: TrackedRun) -> Notebook:
        self.runs.append(run)
        return self

    def _note(self, *call: Any) -> None:
        if self.fails == call[0]:
            raise ConnectionError("no route to the server")
        print("a greeting")
        self.calls.append(call)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._note("log", step, dict(values))

    def log_image(self, name: str, path: Path) -> None:
        self._note("image", name)

    def finish(self) -> None:
        self._note("finish")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    kept = Notebook()
    module = SimpleNamespace(NEEDS="numpy", open_tracker=kept.open_tracker)
    monkeypatch.setattr(trackers, "load_module", lambda *arguments, **options: module)
    monkeypatch.setattr(trackers, "tracker_names", lambda: ["notebook"])
    return kept


def test_a_tracker_gets_rows_result_and_images(
    run: RunFolder, notebook: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send_run(run.path, "notebook") == 2
    assert notebook.calls == [
        ("log", 2, {"train/loss": 0.5, "eval/accuracy": 0.25}),
        ("log", 4, {"train/loss": 0.25, "eval/accuracy": 0.5}),
        (
            "log",
            4,
            {
                "result/Which?/test/ours": 0.5,
                "result/steps": 4.0,
                "result/seconds": 1.5,
                "result/methods/first/quality/nmi": 0.75,
            },
        ),
        ("image", "mistake"),
        ("finish",),
    ]
    (told,) = notebook.runs
    assert (told.name, told.first_step) == ("toy", 2)
    assert told.flat_config() == {"name": "toy", "training.steps": 4, "training.betas": "[0.9, 0.98]"}
    # What a command prints as JSON stays alone on the standard output.
    assert capsys.readouterr().out == ""


def test_a_run_that_goes_on_keeps_its_id(run: RunFolder, notebook: Notebook) -> None:
    send_run(run.path, "notebook")
    send_run(run.path, "notebook")
    first, second = notebook.runs
    assert first.id == second.id
    assert len(first.id) == 32


def test_rows_arrive_as_they_are_logged_and_only_inside(tmp_path: Path, notebook: Notebook) -> None:
    folder = RunFolder.create(tmp_path / "run", recipe=RECIPE)
    with report_to("notebook"):
        live = Trackers(folder)
    folder.listeners.append(live.log_row)
    folder.append_metrics(ROWS[0])
    assert [call[0] for call in notebook.calls] == ["log"]
    live.close()
    assert [call[0] for call in notebook.calls] == ["log", "finish"]
    outside = Trackers(folder)
    outside.log_row(ROWS[1])
    outside.close()
    assert len(notebook.calls) == 2


@pytest.mark.parametrize("moment", ["log", "image", "finish"])
def test_a_tracker_that_fails_is_left_out_of_a_training_and_an_error_of_an_export(
    moment: str, run: RunFolder, notebook: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook.fails = moment
    live = Trackers(run, ["notebook"])
    live.log_row(ROWS[0])
    live.log_row(ROWS[1])
    live.log_result(RESULT)
    live.close()
    said = capsys.readouterr().err
    assert said.count("notebook is left out: no route to the server") == 1
    assert f"foveate export {run.path} --to notebook" in said
    with raises_naming(UserError, run.path, "notebook", "no route to the server"):
        send_run(run.path, "notebook")


def test_files_of_trackers_do_not_bind_a_run_folder(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path / "run", recipe=RECIPE, prepared=(trackers.FOLDER,))
    trackers._describe_run(first, 1)
    other = RunFolder.create(tmp_path / "run", recipe="name: other\n", prepared=(trackers.FOLDER,))
    assert not other.resumed


def test_wrong_names_and_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_naming(UserError, "tracker", "wandbb", "'wandb'"), report_to("wandbb"):
        pass
    with raises_naming(UserError, tmp_path, "metrics.jsonl", "result.json"):
        send_run(tmp_path, "tensorboard")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with raises_naming(UserError, "tensorboard", "pip install 'foveate[tensorboard]'"), report_to("tensorboard"):
        pass


# Each tracker's own reader opens what it wrote; where the package is missing, the test is skipped by name.


def test_tensorboard_reads_a_run_that_was_killed_and_went_on(run: RunFolder) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed = Trackers(run, ["tensorboard"], strict=True)
    killed.log_row({"step": 3, "loss": 9.0})
    killed.close()
    send_run(run.path, "tensorboard")
    read = accumulators.EventAccumulator(str(run.path / "trackers" / "tensorboard"))
    read.Reload()
    assert [(row.step, row.value) for row in read.Scalars("train/loss")] == [(2, 0.5), (4, 0.25)]
    assert [row.value for row in read.Scalars("result/Which?/test/ours")] == [0.5]
    assert "recipe/text_summary" in read.Tags()["tensors"]
    (image,) = read.Images("mistake")
    assert (image.width, image.height) == (6, 4)


def records_of_wandb(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log of blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:  # a block's end that is too short for a record
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_writes_a_run_offline(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2  # pyrefly: ignore[missing-import]

    monkeypatch.setenv("WANDB_MODE", "offline")
    send_run(run.path, "wandb")
    (written,) = (run.path / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    losses = []
    for content in records_of_wandb(written.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        items = {"".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        losses += [json.loads(items["train/loss"])] if "train/loss" in items else []
    assert losses == [0.5, 0.25]


def test_trackio_keeps_a_run_in_its_database(run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage  # pyrefly: ignore[missing-import]

    monkeypatch.setenv("TRACKIO_PROJECT", f"toy-{tmp_path.parent.name}-{tmp_path.name}")
    send_run(run.path, "trackio")
    path = Path(SQLiteStorage.get_project_db_path(f"toy-{tmp_path.parent.name}-{tmp_path.name}"))
    with sqlite3.connect(path) as database:
        rows = [(step, json.loads(text)) for step, text in database.execute("SELECT step, metrics FROM metrics")]
    path.unlink()
    assert [(step, row["train/loss"]) for step, row in rows if "train/loss" in row] == [(2, 0.5), (4, 0.25)]


def test_mlflow_keeps_one_run_of_a_folder_that_is_sent_twice(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    send_run(run.path, "mlflow")
    send_run(run.path, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("foveate")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.params["training.steps"] == "4"
    assert kept.data.metrics["eval/accuracy"] == 0.5
    assert [(row.step, row.value) for row in client.get_metric_history(kept.info.run_id, "train/loss")][:2] == [
        (2, 0.5),
        (4, 0.25),
    ]
    assert [entry.path for entry in client.list_artifacts(kept.info.run_id, "images")] == ["images/mistake.png"]
