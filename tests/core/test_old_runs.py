"""Stopped runs of release 0.2 (tests/old_runs): the same command resumes, and does nothing again that was done.

What a resumed training ends with is compared with a whole run of the same data. The first half was computed on another
machine, whose processor may round otherwise: weights are compared within a tolerance that a lost moment, another order
of the data or another learning rate exceed.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from caption import captioned, regions_to_kill
from chat_server import ChatServer
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.species import boxes as species_boxes
from foveate.species import predict as species_predict
from foveate.species.predictions import Predictions
from mllm import labels_to_kill, test_suites
from video import video_to_kill

OLD_RUNS = Path(__file__).resolve().parents[1] / "old_runs"


@pytest.fixture
def unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Unpack a kind twice, as `stopped`, which becomes the current folder, and as `whole`; return its command."""

    def run(kind: str) -> list[str]:
        for name in ("stopped", "whole"):
            with zipfile.ZipFile(OLD_RUNS / f"{kind}.zip") as archive:
                archive.extractall(tmp_path / name)
            monkeypatch.chdir(tmp_path / name)
        for run_folder in ("run", "results", "my-index"):
            shutil.rmtree(run_folder, ignore_errors=True)
        monkeypatch.chdir(tmp_path / "stopped")
        command = Path("command.json")
        return json.loads(command.read_text(encoding="utf-8")) if command.exists() else []

    return run


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, Path]]:
    """Run a command in both folders, in that of the whole run with further words; return them."""

    def run(command: list[str], *more: str) -> tuple[Path, Path]:
        for name, words in (("whole", more), ("stopped", ())):
            monkeypatch.chdir(tmp_path / name)
            call(*command, *words)
        return tmp_path / "stopped", tmp_path / "whole"

    return run


def call(*command: str) -> str:
    done = CliRunner().invoke(cli, [*command, "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines() if '"loss"' in line]


def assert_same_training(stopped: Path, whole: Path, weights: str, log: str, before: str, count: int) -> None:
    """The rows of before are kept as they were, none is repeated, and the weights are those of a whole training."""
    text = (stopped / log).read_text()
    # Rows after the last checkpoint are of steps that are taken again.
    assert text.startswith(before)
    assert steps(stopped / log) == steps(whole / log) == list(range(1, count + 1))
    resumed, expected = load_file(stopped / weights), load_file(whole / weights)
    assert resumed.keys() == expected.keys()
    difference = sum(float(((resumed[name] - value).astype(float) ** 2).sum()) for name, value in expected.items())
    size = sum(float((value.astype(float) ** 2).sum()) for value in expected.values())
    # The stored half was computed on one processor; others round otherwise (SSE4: 1.04e-6).
    assert difference <= 1e-5 * size


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


def metrics(path: str, *, last: int) -> str:
    """Rows of the log up to the step of the checkpoint."""
    return "".join(
        line + "\n" for line in Path(path).read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= last
    )


@pytest.mark.parametrize(
    ("kind", "log", "weights", "done", "count"),
    [
        pytest.param("pretrain", "run/metrics.jsonl", "run/model/model.safetensors", 4, 6, marks=pytest.mark.slow),
        ("mllm-train", "run/stage-1-instruction/metrics.jsonl", "run/model/model.safetensors", 2, 4),
        ("adapt-train", "run/metrics.jsonl", "run/adapter/adapter.safetensors", 4, 12),
        ("species-train", "run/metrics.jsonl", "run/model/model.safetensors", 4, 0),
    ],
)
def test_a_training_resumes_at_its_checkpoint(
    kind: str, log: str, weights: str, done: int, count: int, unpack: Any, folders: Any
) -> None:
    command = unpack(kind)
    before = metrics(log, last=done)
    first = {path: path.read_bytes() for path in Path().resolve().glob("run/stage-0*/*") if path.is_file()}
    # A run begun before the field existed keeps its random head, and goes on without points.
    points = [f"stages.{stage}.point_share=0" for stage in ("alignment", "instruction")]
    since = {"adapt-train": ["training.head_init=random"], "mllm-train": points}
    stopped, whole = folders(command, *since.get(kind, []))
    assert_same_training(stopped, whole, weights, log, before, count or steps(whole / log)[-1])
    # The stage before is not trained again.
    assert all(path.read_bytes() == content for path, content in first.items())
    assert bool(first) == (kind == "mllm-train")


def test_a_comparison_keeps_its_finished_trainings(unpack: Any, folders: Any) -> None:
    command = unpack("adapt-compare")
    before = {path: path.read_bytes() for path in Path().resolve().glob("run/cells/stripes-*.json")}
    assert before
    stopped, whole = folders(command)
    assert all(path.read_bytes() == content for path, content in before.items())

    def read(folder: Path) -> dict[str, Any]:
        return {path.name: np.load(path)["logits"] for path in folder.glob("run/logits/*/*.npz")}

    resumed, expected = read(stopped), read(whole)
    assert resumed.keys() == expected.keys()
    assert all(np.allclose(resumed[name], value, atol=1e-3) for name, value in expected.items())


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("federated-cluster", "methods"),
        ("federated-embed", "maps"),
        ("federated-features", "methods"),
    ],
)
def test_a_federated_run_asks_only_what_is_missing(kind: str, result: str, unpack: Any, folders: Any) -> None:
    command = unpack(kind)
    stopped, whole = folders(command)
    resumed, expected = (json.loads((folder / "run/result.json").read_text())[result] for folder in (stopped, whole))
    assert len(resumed) == len(expected)
    for one, other in zip(resumed, expected, strict=True):
        assert one["quality"] == pytest.approx(other["quality"], abs=0.02)
        # What the old release sent had no gradients and one option less, a few bytes a message; a round is a tenth.
        room = 0.02 if kind == "federated-embed" else 0.0
        for side in ("bytes_up", "bytes_down"):
            assert one[side] == pytest.approx(other[side], rel=room, abs=0)


def test_predictions_resume(unpack: Any, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the stopped run, whose few images are one part otherwise.
    monkeypatch.setattr(species_predict, "_IMAGES_PER_PART", 2)
    command = unpack("species-predict")
    assert list(Path().resolve().glob("results/scores/*"))
    stopped, whole = folders(command)
    # Release 0.2 chose other boxes to crop, so what it computed of this part is computed anew: once.
    times = {path: path.stat().st_mtime_ns for path in Path().resolve().glob("results/scores/*")}
    folders(command)
    assert {path: path.stat().st_mtime_ns for path in Path().resolve().glob("results/scores/*")} == times
    resumed, expected = (Predictions.open(folder / "results") for folder in (stopped, whole))
    assert resumed.collection_keys == expected.collection_keys
    assert resumed.probabilities_NK == pytest.approx(expected.probabilities_NK, abs=1e-3)


def test_an_index_resumes(unpack: Any, folders: Any) -> None:
    command = unpack("index")
    before = {path: path.read_bytes() for path in Path().resolve().rglob("my-index/embeddings/*")}
    assert before
    stopped, whole = folders(command)
    assert all(path.read_bytes() == content for path, content in before.items())
    names = [sorted(path.name for path in folder.rglob("my-index/embeddings/*")) for folder in (stopped, whole)]
    assert names[0] == names[1]


def table(kind: str, collection: str) -> list[dict[str, Any]]:
    """Rows that were made, without what tells one session from another."""
    with Collection.open(collection) as opened:
        rows = opened.table(kind).to_pylist()
    return [{name: value for name, value in row.items() if name in ("key", "phrase", "x1", "y1", "x2", "y2", "source",
             "status", "text", "request", "kind")} for row in rows]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "tables", "collection"),
    [
        ("regions", ("regions", "region_status"), "shapes"),
        ("mllm-label", ("regions", "region_status"), "shapes"),
        ("caption", ("captions", "caption_errors"), "c"),
        ("species-boxes", ("regions", "region_status"), "cards"),
    ],
)
def test_labeling_adds_no_row_twice(
    kind: str, tables: tuple[str, str], collection: str, unpack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(kind)
    stored = {path: path.read_bytes() for path in Path(collection).resolve().rglob("added-*.parquet")}
    assert stored
    requests = []
    monkeypatch.setattr(species_boxes, "_IMAGES_PER_PART", 2, raising=False)

    def work() -> None:
        if kind == "regions":
            regions_to_kill.label(collection)
        elif kind == "mllm-label":
            labels_to_kill.label(collection, "regions")
        elif kind == "species-boxes":
            call("species", "boxes", "cards", "--device", "cpu", "--workers", "1")
        else:
            with ChatServer() as server:
                captioned.ask(Path(collection), server.url, rows_per_part=9, seconds_per_part=60.0)
                requests.append(len(server.requests))

    work()
    resumed = [table(name, collection) for name in tables]
    if kind == "species-boxes":
        # Boxes of release 0.2 had another score, so they are replaced: once.
        work()
        assert [table(name, collection) for name in tables] == resumed
    else:
        assert all(path.read_bytes() == content for path, content in stored.items())
    # From the start, by the present code.
    for path in Path(collection).rglob("added-*.parquet"):
        path.unlink()
    shutil.rmtree("run", ignore_errors=True)
    work()
    for rows, name in zip(resumed, tables, strict=True):
        expected = table(name, collection)
        order = [sorted(map(repr, each)) for each in (rows, expected)]
        if kind == "species-boxes":
            # Stored boxes are those of one processor. On another the last bits differ, so that the rows of a part
            # without a status are not recognized and are written again.
            order = [sorted({repr(_rounded(row)) for row in each}) for each in (rows, expected)]
        assert order[0] == order[1]
    if requests:
        assert requests[0] < requests[1]


def test_an_evaluation_goes_on_after_its_last_answer(unpack: Any) -> None:
    unpack("mllm-evaluate")
    before = Path("run/rows.jsonl").read_text(encoding="utf-8")

    def evaluate(run: str) -> tuple[Any, int]:
        model = test_suites.Table(lambda sizes, text, regions: "x" if sizes and int(text[5]) % 2 else "y")
        settings = test_suites.SuiteSettings(batch_size=3)
        result = test_suites.evaluate(model, "vqa", Path("shapes"), run=run, settings=settings)
        return result, len(model.requests)

    (resumed, asked), (expected, all_asked) = evaluate("run"), evaluate("other")
    assert (resumed, asked + before.count("\n")) == (expected, all_asked)
    assert Path("run/rows.jsonl").read_text(encoding="utf-8").startswith(before)
    with pytest.raises(UserError, match=r"run holds a run of another recipe .*choose another folder with --out"):
        test_suites.evaluate(test_suites.Table(str), "vqa", Path("shapes"), run="run", name="other")


def test_an_evaluation_of_clips_goes_on_after_its_last_answer(unpack: Any) -> None:
    unpack("video-evaluate")
    before = Path("run/answers.jsonl").read_bytes()
    models = [video_to_kill.HashModel(), video_to_kill.HashModel()]
    for run, model in zip(("run", "other"), models, strict=True):
        video_to_kill.run_evaluation(".", run, model=model)
    assert Path("run/answers.jsonl").read_bytes().startswith(before)
    assert Path("run/answers.jsonl").read_bytes() == Path("other/answers.jsonl").read_bytes()
    assert [len(model.batches) for model in models] == [len(models[1].batches) - 5, len(models[1].batches)]
