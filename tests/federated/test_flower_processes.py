"""Flower's own processes on loopback: clustering, map and encoder equal those in process; a killed server goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from flower_network import Network
from s_sets import split_s_set
from small_clients import fit_remote

from foveate import FederatedNeighborEmbedding
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep.encoder import flatten_weights
from foveate.federated.deep.job import fit_clients as fit_features
from foveate.federated.deep.job import load_model
from foveate.federated.deep.options import REMOTE_KINDS
from foveate.federated.deep.options import read_options as features_options
from foveate.federated.embedding.options import read_options
from foveate.federated.rounds import Client, InProcess
from foveate.report import render

pytestmark = pytest.mark.slow


def in_process(parts: list[np.ndarray], **options: int) -> np.ndarray:
    clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]
    return cluster(InProcess(clients), resolve(15, **options)).centers


def test_a_clustering_by_three_processes(tmp_path: Path) -> None:
    """SuperLink, two SuperNodes, `flwr run`: centers equal those in process within 1e-10."""
    parts = split_s_set("s1", alpha=0.3, clients=2, seed=1)
    network, out = Network.begin(tmp_path), tmp_path / "out"
    with network.link(), network.nodes(parts, ("ward 0", "ward 1")):
        said = network.run(
            f'clusters=15 seed=3 clients=2 wait=120.0 timeout=300.0 out="{out}" evaluate=true '
            'options="min_count=1 refine_rounds=1 winsorize=null"'
        )
    assert (out / "result.json").is_file(), said
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert [client["name"] for client in result["clients"]] == ["ward 0", "ward 1"]
    assert sum(client["points"] for client in result["clients"]) == 5000
    np.testing.assert_allclose(np.load(out / "centers.npz")["centers"], in_process(parts, seed=3), atol=1e-10)
    assert render(out).is_file()


def test_a_map_by_three_processes(tmp_path: Path) -> None:
    """FedNE with a field of repulsion: the encoder equals that of the same answers in process within 1e-6."""
    random = np.random.default_rng(0)
    parts = [random.normal(size=(40, 5)) + 3 * number for number in range(2)]
    network, out = Network.begin(tmp_path), tmp_path / "out"
    settings = "rounds=2 hidden=[8] surrogate=grid surrogate_start=0.5 min_r2=-10.0"
    with network.link(), network.nodes(parts):
        said = network.run(f'job="embed" seed=3 clients=2 wait=120.0 timeout=300.0 out="{out}" options="{settings}"')
    assert (out / "result.json").is_file(), said
    options = read_options(
        {"rounds": 2, "hidden": (8,), "surrogate": "grid", "surrogate_start": 0.5, "min_r2": -10.0, "seed": 3}
    )
    inside = fit_remote(parts, options)
    loaded = FederatedNeighborEmbedding.load(out / "model")
    for part in parts:
        np.testing.assert_allclose(loaded.transform(part), inside.transform(part), atol=1e-6)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["clients"] == {"client 0": 40, "client 1": 40}
    kinds = {row["kind"] for row in result["maps"][0]["exchanged"]}
    assert {"train", "query.field", "query.box"} <= kinds
    # With the question how many points there are, which comes before the first round.
    assert result["maps"][0]["bytes_up"] == sum(row["bytes"] for row in inside.state.exchanged if row["up"])
    assert render(out).is_file()


def test_an_encoder_by_three_processes(tmp_path: Path) -> None:
    """DeepFeCA: weights and centers equal those in process within 1e-6; clients embed their own points."""
    random = np.random.default_rng(0)
    parts = [random.normal(size=(40, 16)) + 3 * number for number in range(2)]
    network, out = Network.begin(tmp_path), tmp_path / "out"
    settings = "rounds=2 encoder=small_resnet augment=shift width=8 hidden=16 min_count=1"
    with network.link(), network.nodes(parts, ("ward 0", "ward 1")):
        said = network.run(
            f'job="features" clusters=3 seed=3 clients=2 wait=120.0 timeout=300.0 out="{out}" options="{settings}"'
        )
    assert (out / "result.json").is_file(), said
    given = {"rounds": 2, "encoder": "small_resnet", "augment": "shift", "width": 8, "hidden": 16}
    inside = fit_features(parts, features_options({**given, "clusters": 3, "seed": 3}))
    loaded = load_model(out / "model")
    np.testing.assert_allclose(flatten_weights(loaded.network), flatten_weights(inside.network), atol=1e-6)
    np.testing.assert_allclose(loaded.centers, inside.centers, atol=1e-6)
    for part in parts:
        np.testing.assert_allclose(loaded.transform(part), inside.transform(part), atol=1e-6)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert [(client["name"], client["rounds"]) for client in result["clients"]] == [("ward 0", 2), ("ward 1", 2)]
    assert {row["kind"] for row in result["exchanged"]} == set(REMOTE_KINDS)
    assert not list((out / "states").iterdir())
    assert not (out / "answers").exists()
    assert render(out).is_file()


def test_a_killed_server_goes_on_with_its_round(tmp_path: Path) -> None:
    """The SuperLink and all that it started are killed after the first exchange; the same command ends the same.

    Clients whose answers are kept are not asked again.
    """
    parts = split_s_set("s1", alpha=0.3, clients=2, seed=1)
    network, out = Network.begin(tmp_path), tmp_path / "out"
    config = f'clusters=15 seed=3 clients=2 wait=120.0 timeout=300.0 out="{out}" '
    config += 'options="min_count=1 refine_rounds=3 winsorize=null"'
    first = out / "answers" / "000000-query.centroids"
    with network.link("link-killed") as link, network.nodes(parts, log="killed"):
        with (tmp_path / "run-killed.log").open("w") as log:
            running = subprocess.Popen(network.command(config), env=network.env, stdout=log, stderr=log)
        until = time.monotonic() + 300
        while len(list(first.glob("*.safetensors"))) < 2:
            assert time.monotonic() < until, network.logs()
            time.sleep(0.05)
        os.killpg(link.pid, signal.SIGKILL)
        assert running.wait(120) != 0
    assert not (out / "result.json").exists(), "killed before its end"
    assert len(list(first.iterdir())) == 2
    with network.link(), network.nodes(parts):
        said = network.run(config)
    assert (out / "result.json").is_file(), said
    np.testing.assert_allclose(
        np.load(out / "centers.npz")["centers"], in_process(parts, seed=3, refine_rounds=3), atol=1e-10
    )
    assert not first.exists(), "answers go when the result is there"
    for number in range(2):
        asked = re.findall(r"Receiving: (query\.\w+) message", (tmp_path / f"node{number}.log").read_text())
        assert asked.count("query.centroids") == 0, asked
        assert 1 <= asked.count("query.lloyd") <= 3, asked
        killed = re.findall(r"Receiving: (query\.\w+) message", (tmp_path / f"killed{number}.log").read_text())
        assert killed.count("query.centroids") == 1, killed
