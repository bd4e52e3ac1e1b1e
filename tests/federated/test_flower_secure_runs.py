"""Whole runs under SecAgg+ in one process: answers with noise, many clients, and the plan of what leaves a client."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from flwr.app import Message as FlowerMessage
from flwr.app import RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file
from test_flower_secagg import COLLECT, PARTS, AppGrid, lose

from foveate.federated import privacy
from foveate.federated.clustering.fit import cluster
from foveate.federated.deep.job import DeepJob
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.state import OWN_NOISE
from foveate.federated.flower.app import read_job
from foveate.federated.flower.records import ABOUT, from_records
from foveate.federated.flower.transport import GridTransport
from foveate.federated.job import serve
from foveate.federated.plan import DataSize, describe_plan, plan_run
from foveate.federated.policy import Policy
from foveate.federated.rounds import Log, tabulate
from foveate.federated.secure_sums import STAGES

CLIENTS, POINTS = 4, 60
SMALL = [part[:POINTS] for part in PARTS[:CLIENTS]]
JOBS = {
    "cluster": "refine_rounds=2 scale=standard winsorize=null min_count=1",
    "embed": "rounds=3 hidden=[8] surrogate_start=0.4 min_r2=-1e9 min_axis_points=6 max_axis_points=6",
    "features": "rounds=2 width=8 hidden=12 min_count=1 clustering=weighted_kmeans",
}
OPEN = Policy(
    min_count=1,
    jobs=("cluster", "embed", "features"),
    scale="standard",
    winsorize=0.0,
    max_partitions=99,
    max_epsilon=1e6,
    noise_multiplier=0.0,
)


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages exist inside a run only."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class SeededSecrets:
    """Stands in for the operating system's generator in `privacy`, so that two runs draw the same noise."""

    def __init__(self) -> None:
        self.random = random.Random(0)
        self.drawn = 0

    def token_bytes(self, count: int) -> bytes:
        self.drawn += 1
        return self.random.randbytes(count)

    def randbits(self, count: int) -> int:
        self.drawn += 1
        return self.random.getrandbits(count)

    def randbelow(self, bound: int) -> int:
        self.drawn += 1
        return self.random.randrange(bound)


class SeededGrid(AppGrid):
    """Clients whose noise follows from their number and the request, in whatever order they are asked."""

    source: SeededSecrets

    def _answer(self, message: FlowerMessage, node: int) -> RecordDict:
        if ABOUT in message.content.config_records:
            request = from_records(message.content)
            self.source.random.seed(f"{self.numbers[node]} {request.kind} {request.round}")
        return super()._answer(message, node)


def read(job: str, options: str = "", *, clients: int = CLIENTS, is_secure: bool = True, **config: Any) -> Any:
    named = {"out": "x", "job": job, "clients": clients, "clusters": 3, "options": f"{JOBS[job]} {options}"}
    return read_job(named | {"secure-aggregation": is_secure, **config})


def carry_out(grid: AppGrid, job: str, options: Any, folder: Path, *, is_secure: bool) -> tuple[dict[str, Any], Log]:
    """Arrays of the result, its history and notes, and the log."""
    log = Log()
    link = GridTransport(grid, clients=len(grid.numbers), is_secure=is_secure, log=log)
    if job == "cluster":
        return {"centers": cluster(link, options).centers}, log
    make = MapJob if job == "embed" else DeepJob
    result = serve(make(options), link, folder / "out", min_clients=3)
    return {**load_file(folder / "out" / "model" / "model.safetensors"), "result": result}, log


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("noise", [2.0, 15.0])
def test_noisy_answers_add_up_as_they_are(
    job: str, noise: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same noise in both ways of adding up gives the same result, and a run that draws other noise another one."""
    # A clustering's noise is the request's, the other jobs' that of the client.
    by_options = f"noise={noise} clip=2e6 noise_steps=2 scale=none eliminate=none" if job == "cluster" else ""
    results = []
    for is_secure, seed in ((True, True), (False, True), (True, False)):
        folder = tmp_path / f"{is_secure}-{seed}"
        folder.mkdir()
        grid = SeededGrid(folder, PARTS[:CLIENTS], noise_multiplier=noise, max_epsilon=1e9)
        grid.source = SeededSecrets()
        with monkeypatch.context() as patch:
            if seed:
                patch.setattr(privacy, "secrets", grid.source)
            _, options = read(job, by_options, is_secure=is_secure)
            found, log = carry_out(grid, job, options, folder, is_secure=is_secure)
        assert (grid.source.drawn > 0) == seed
        assert not log.failures()
        results.append(found)
    masked, plain, other = results
    if job != "cluster":
        history = (masked["result"] if job == "features" else masked["result"]["maps"][0])["history"]
        assert all(row.get("loss") is None and row.get("attraction") is None for row in history)
    for name in masked.keys() - {"result"}:
        scale = np.abs(plain[name]).max()
        np.testing.assert_allclose(masked[name], plain[name], rtol=0, atol=1e-6 * max(1.0, scale), err_msg=name)
    assert any(not np.allclose(masked[name], other[name]) for name in masked.keys() - {"result"})


def test_a_map_of_masked_noise_says_that_its_clients_hide_losses(tmp_path: Path) -> None:
    _, options = read("embed")
    grid = AppGrid(tmp_path, SMALL, noise_multiplier=2.0, max_epsilon=1e6)
    link = GridTransport(grid, clients=CLIENTS, is_secure=True)
    job = MapJob(options)
    state = job.begin(link)
    job.run_round(link, state)
    assert OWN_NOISE in state.notes


@pytest.mark.parametrize("job", JOBS)
def test_twelve_clients_of_whom_two_are_lost(job: str, tmp_path: Path) -> None:
    parts = [part[start::2][:40] for part in PARTS for start in (0, 1)]
    assert len(parts) == 12
    _, options = read(job, clients=12)
    grid = AppGrid(tmp_path, parts, {(3, COLLECT): lose, (11, COLLECT): lose})
    _, log = carry_out(grid, job, options, tmp_path, is_secure=True)
    assert {entry.client for entry in log.entries if entry.reason} == {3, 11}
    masked = [entry for entry in log.entries if any(note.name == "masked" for note in entry.arrays)]
    assert masked
    assert {entry.client for entry in masked} == set(range(12)) - {3, 11}


@pytest.mark.parametrize("job", JOBS)
def test_the_plan_is_what_a_run_sends(job: str, tmp_path: Path) -> None:
    run, options = read(job)
    _, log = carry_out(AppGrid(tmp_path, SMALL), job, options, tmp_path, is_secure=True)
    plan = plan_run(run, options, DataSize(2, POINTS), OPEN)
    assert plan["fits"], plan["refusals"]
    planned = {(row["kind"], row["up"], row["name"]): row for row in plan["messages"]}
    actual = {
        (row["kind"], row["up"], row["name"]): row
        for row in tabulate([entry for entry in log.entries if entry.client == 0])
    }
    assert planned.keys() == actual.keys()
    for key, row in actual.items():
        assert planned[key]["messages"] == row["messages"], key
        if row["dtype"] != "values":
            assert planned[key]["largest"] == row["largest"], key
    for up in (True, False):
        found, expected = plan["bytes_up" if up else "bytes_down"], log.bytes(up=up)
        assert abs(found - expected) < 0.03 * expected
    kinds = {entry.kind for entry in log.entries if entry.up and entry.kind not in STAGES}
    assert plan["masked"].keys() == kinds
    lines = "\n".join(describe_plan(plan))
    assert "secure aggregation: the server sees totals over at least 3 clients only" in lines
    single = [kind for kind, is_masked in plan["masked"].items() if not is_masked]
    assert f"cannot be added up, and are seen as they are, of every client: {', '.join(single)}" in lines


def test_the_plan_counts_the_keys_of_all_clients(tmp_path: Path) -> None:
    parts = [part[start::2][:40] for part in PARTS for start in (0, 1)]
    run, options = read("cluster", clients=12)
    _, log = carry_out(AppGrid(tmp_path, parts), "cluster", options, tmp_path, is_secure=True)
    plan = plan_run(run, options, DataSize(2, 40), OPEN)
    assert abs(plan["bytes_up"] - log.bytes(up=True)) < 0.03 * plan["bytes_up"]
    assert abs(plan["bytes_down"] - log.bytes(up=False)) < 0.03 * plan["bytes_down"]


def test_a_client_may_bring_any_noise_to_a_sum(tmp_path: Path) -> None:
    """A question with noise never fails because of a value: a change is clipped again, and then to the sum's grid."""
    _, options = read("embed")
    grid = AppGrid(tmp_path, SMALL, noise_multiplier=1e6)
    found, log = carry_out(grid, "embed", options, tmp_path, is_secure=True)
    assert not log.failures()
    assert all(np.isfinite(array).all() for name, array in found.items() if name != "result")
