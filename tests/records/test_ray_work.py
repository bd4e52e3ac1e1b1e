"""Work shared among processes of Ray: nothing is lost or doubled where a worker is killed; four commands use it."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors import safe_open

import tiny
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records import ray_work
from foveate.records.ray_work import ExecutorSettings, share_work
from naming import raises_naming

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: foveate[ray]")
RAY = ExecutorSettings(executor="ray", processes=3)


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def never() -> bool:
    return False


def open_squares(folder: Path, deadly: int | None = None, fails: bool = False) -> Callable[[int], Iterator[tuple]]:
    """A worker that squares numbers; it kills its own process at one of them, the first time."""
    if fails:
        raise UserError("model 'x': no such folder")

    def square(number: int) -> Iterator[tuple]:
        mark = folder / f"died-at-{number}"
        if number == deadly and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number, number**2, os.getpid()

    return square


def test_one_process_needs_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_work, "import_ray", lambda: pytest.fail("loaded"))
    executor = share_work(open_squares(tmp_path), None, [3, 1], ExecutorSettings(), description="squares")
    assert [(number, square) for number, square, _ in executor(never)] == [(3, 9), (1, 1)]


def test_without_ray_the_error_comes_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with raises_naming(UserError, "--executor ray", "foveate[ray]"):
        share_work(open_squares(Path()), functools.partial(open_squares, Path()), [1], RAY, description="squares")


@pytest.mark.slow
@needs_ray
def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    opener = functools.partial(open_squares, tmp_path, deadly=7)
    executor = share_work(open_squares(tmp_path), opener, list(range(20)), RAY, description="squares")
    results = list(executor(never))
    assert sorted(number for number, _, _ in results) == list(range(20))
    assert all(square == number**2 for number, square, _ in results)
    assert (tmp_path / "died-at-7").exists()
    assert len({process for _, _, process in results}) >= 3
    assert os.getpid() not in {process for _, _, process in results}


@pytest.mark.slow
@needs_ray
def test_a_sentence_of_a_worker_ends_the_run_with_it(tmp_path: Path) -> None:
    opener = functools.partial(open_squares, tmp_path, fails=True)
    with pytest.raises(UserError) as raised:
        list(share_work(open_squares(tmp_path), opener, [1, 2], RAY, description="squares")(never))
    assert str(raised.value) == "model 'x': no such folder"


@pytest.mark.slow
@needs_ray
def test_a_stop_finishes_what_runs(tmp_path: Path) -> None:
    opener = functools.partial(open_squares, tmp_path)
    found: list[int] = []
    executor = share_work(open_squares(tmp_path), opener, list(range(200)), RAY, description="squares")
    for number, _, _ in executor(lambda: len(found) >= 10):
        found.append(number)
    assert 10 <= len(found) <= 10 + RAY.processes
    assert len(set(found)) == len(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a collection with captions and regions; parts of two images, so that there are several."""
    from foveate.pretrain import build_model
    from foveate.vision.localizer.folder import save_model

    root = tmp_path_factory.mktemp("world")
    save_model(build_model(tiny.recipe()).eval(), root / "model")
    tiny.make_collection(root / "collection")
    return root


def run(*words: object) -> None:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"


def kill_one(monkeypatch: pytest.MonkeyPatch, mark: Path) -> None:
    """Kill the first worker that is given work."""

    class Deadly(ray_work._Worker):
        def call(self, item: Any) -> list[Any]:
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                return super().call(item)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    monkeypatch.setattr(ray_work, "_Worker", Deadly)


def rows_of(folder: Path, pattern: str) -> list[Any]:
    """Rows of the tables of a folder, but for times."""
    found = [row for path in sorted(folder.glob(pattern)) for row in pq.read_table(path).to_pylist()]
    return sorted(
        json.dumps({k: v for k, v in row.items() if k not in ("created", "id")}, default=str) for row in found
    )


@pytest.mark.slow
@needs_ray
def test_regions_of_three_workers_are_those_of_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_one(monkeypatch, tmp_path / "killed")
    common = ("--detector", "annotations", "--captions", "alt", "--batch", 2)
    for name, more in (("one", ()), ("three", ("--executor", "ray", "--processes", 3))):
        shutil.copytree(world / "collection", tmp_path / name)
        run("regions", tmp_path / name, *common, "--out", tmp_path / f"run-{name}", *more)
    assert (tmp_path / "killed").exists()
    for table in ("regions", "region_status"):
        one, three = (rows_of(tmp_path / name, f"annotations/{table}/*.parquet") for name in ("one", "three"))
        assert one == three
        assert one


@pytest.mark.slow
@needs_ray
def test_an_index_of_three_workers_is_that_of_one(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_one(monkeypatch, tmp_path / "killed")
    monkeypatch.setattr("foveate.search.index.PART", 2)
    for name, more in (("one", ()), ("three", ("--executor", "ray", "--processes", 3))):
        run("index", world / "collection", "--model", world / "model", "--out", tmp_path / name, *more)
    assert (tmp_path / "killed").exists()
    one, three = (sorted((tmp_path / name / "embeddings").iterdir()) for name in ("one", "three"))
    assert [path.name for path in one] == [path.name for path in three]
    for ours, theirs in zip(one, three, strict=True):
        # Other numbers of threads round differently.
        np.testing.assert_allclose(np.load(ours), np.load(theirs), atol=1e-6)
    # In the same order, too: parts are numbered by their images.
    for ours, theirs in zip(*(sorted((tmp_path / name / "rows").iterdir()) for name in ("one", "three")), strict=True):
        assert pq.read_table(ours).equals(pq.read_table(theirs))


@pytest.mark.slow
@needs_ray
def test_embeddings_of_three_workers_are_those_of_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_one(monkeypatch, tmp_path / "killed")
    monkeypatch.setattr("foveate.pretrain.exporters.embeddings.IMAGES_PER_PART", 2)
    for name, more in (("one", ()), ("three", ("--executor", "ray", "--processes", 3))):
        words = ("--to", "embeddings", "--collection", world / "collection", "--out", tmp_path / name)
        run("export", world / "model", *words, *more)
    assert (tmp_path / "killed").exists()
    for table in ("images", "regions", "texts"):
        one, three = (sorted((tmp_path / name / table).iterdir()) for name in ("one", "three"))
        assert [path.name for path in one] == [path.name for path in three]
        for ours, theirs in zip(one, three, strict=True):
            left, right = pq.read_table(ours), pq.read_table(theirs)
            assert left.drop(["embedding", "norm"]).equals(right.drop(["embedding", "norm"]))
            for column in left["embedding"], right["embedding"]:
                assert column.null_count == 0
            np.testing.assert_allclose(
                np.array(left["embedding"].to_pylist()), np.array(right["embedding"].to_pylist()), atol=1e-6
            )


@pytest.mark.slow
@needs_ray
def test_species_of_three_workers_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_api_reference import save_species_model

    kill_one(monkeypatch, tmp_path / "killed")
    monkeypatch.setattr("foveate.species.predict._IMAGES_PER_PART", 2)
    save_species_model(tmp_path / "model")
    tiny.make_collection(tmp_path / "collection")
    from foveate.records.collection import Collection

    with Collection.open(tmp_path / "collection") as collection:
        keys = list(collection.keys)
    vectors = np.random.default_rng(0).normal(size=(len(keys), 4)).astype(np.float32)
    np.savez(tmp_path / "features.npz", key=np.array(keys), vector=vectors)
    for name, more in (("one", ()), ("three", ("--executor", "ray", "--processes", 3))):
        words = ("species", "predict", tmp_path / "model", tmp_path / "collection", "--out", tmp_path / name)
        run(*words, "--features", tmp_path / "features.npz", *more)
    assert (tmp_path / "killed").exists()
    parts = [sorted((tmp_path / name).rglob("*.safetensors")) for name in ("one", "three")]
    assert len(parts[0]) == len(parts[1]) > 3
    for ours, theirs in zip(*parts, strict=True):
        with safe_open(ours, "np") as left, safe_open(theirs, "np") as right:
            # Hashes of the rows, and failures.
            assert left.metadata() == right.metadata()
            assert all(np.array_equal(left.get_tensor(key), right.get_tensor(key)) for key in left.keys())
    assert rows_of(tmp_path / "one", "*.parquet") == rows_of(tmp_path / "three", "*.parquet")
