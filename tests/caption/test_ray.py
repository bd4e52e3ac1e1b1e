"""Ray Data with two workers writes the rows that one process writes."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from captioned import ALL, make, rows, texts

from chat_server import ChatServer, Say, fails, good, says
from foveate.caption import execution
from foveate.caption.execution import EXECUTORS, find_executor
from foveate.caption.pending_requests import CaptionSettings
from foveate.caption.run import CaptionRun, caption
from foveate.chat.client import ChatSettings
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.records import ray_work
from foveate.records.ray_work import import_ray
from naming import raises_naming

installed = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: foveate[ray]")


def ask(collection: Path, endpoint: str, executor: str) -> CaptionRun:
    return caption(
        collection,
        CaptionSettings(formats=ALL),
        backend="http",
        backend_settings=ChatSettings(endpoint=(endpoint,), model="m", concurrency=4, backoff_seconds=0.02),
        run=RunFolder.create(collection.parent / f"run-{collection.name}"),
        executor=executor,
        processes=2,
    )


def behave(number: int, body: dict[str, Any]) -> Say:
    text = good(body)
    return says("I cannot do that." if "golden" in text else text, seconds=0.01)


@installed
@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        local_run = ask(make(tmp_path / "one", 150), server.url, "local")
        ray_run = ask(make(tmp_path / "two", 150), server.url, "ray")
        num_requests = len(server.requests)
        again = ask(tmp_path / "two", server.url, "ray")
        assert len(server.requests) == num_requests
    assert texts(tmp_path / "one") == texts(tmp_path / "two")
    by_request = [
        {row["request"]: (row["error"], row["final"], row["raw"]) for row in rows(tmp_path / name, "caption_errors")}
        for name in ("one", "two")
    ]
    assert by_request[0] == by_request[1]
    assert by_request[0]
    for kind in ALL:
        ours, theirs = local_run.result.to_json()["formats"][kind], ray_run.result.to_json()["formats"][kind]
        assert ours == theirs
        assert again.result.to_json()["formats"][kind]["skipped"]["done"] == ours["ok"]


@installed
@pytest.mark.slow
def test_what_ends_a_run_in_a_worker_ends_it_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = import_ray()
    shutdown, threads = ray.shutdown, []

    def watched_shutdown() -> None:
        threads.extend(thread.name for thread in threading.enumerate())
        shutdown()

    monkeypatch.setattr(ray, "shutdown", watched_shutdown)
    with ChatServer(lambda number, body: fails(401, "bad key")) as server:
        # More blocks than one, so that Ray Data is still at work when the first fails.
        done = ask(make(tmp_path / "c", 150), server.url, "ray")
    assert "HTTP 401" in str(done.failure)
    assert not rows(tmp_path / "c")
    assert threads, "the cluster was ours"
    assert not [name for name in threads if name.startswith("StreamingExecutor")], (
        "it would call a cluster that is gone"
    )
    with pytest.raises(ray.exceptions.RaySystemError, match="not been started"):
        ray.put("a late call starts no cluster")


@pytest.mark.parametrize("address", ["", "ray://10.0.0.1:10001"])
def test_a_cluster_that_is_there_is_joined(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses a number of processors together with an address."""
    cluster: dict[str, Any] = {}

    class Ray:
        data = None

        def is_initialized(self) -> bool:
            return False

        def init(self, **options: Any) -> None:
            cluster.update(options)
            raise UserError("far enough")

    monkeypatch.setenv("RAY_ADDRESS", address)
    for module in (execution, ray_work):
        monkeypatch.setattr(module, "import_ray", Ray)
    with ChatServer() as server:
        done = ask(make(tmp_path / "c", 2), server.url, "ray")
    assert str(done.failure) == "far enough"
    assert cluster.get("num_cpus") == (None if address else 2)


def test_nothing_is_started_where_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "import_ray", object)  # whatever of Ray is used fails
    with ChatServer() as server:
        ask(make(tmp_path / "c", 2), server.url, "local")
        done = ask(tmp_path / "c", server.url, "ray")
    assert done.failure is None
    assert done.result.to_json()["formats"]["ssc"]["skipped"] == {"done": 2}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises_naming(UserError, "foveate[ray]"):
        import_ray()


def test_executors_are_rows() -> None:
    assert {"local", "ray"} <= set(EXECUTORS)
    assert find_executor("local").note
    with raises_naming(UserError, "rey", "ray"):
        find_executor("rey")
