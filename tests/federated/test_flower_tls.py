"""The page on a real network, its long way, carried out on loopback: commands make keys, start nodes over TLS, and run.

Names, ports and paths are replaced, and the map is shorter; so what the page says is what was run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from flower_network import BIN, ROOT, free_port, running, wait_for_port
from s_sets import split_s_set
from small_clients import fit_remote

from foveate import FederatedNeighborEmbedding
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.embedding.options import read_options
from foveate.federated.rounds import Client, InProcess

PAGE = ROOT / "docs" / "how-to" / "federated-network.md"
NAMES = ("north ward", "south ward", "nobody")
SHORT = "rounds=2 hidden=[8] surrogate=grid surrogate_start=0.5 min_r2=-10.0"
"""In place of the page's settings of a map, whose 60 rounds would take an hour here."""
LIST = "flwr supernode list ours --format json"
BOTH = 'jobs="cluster,embed" noise-multiplier=0.0'
KEY = "--auth-supernode-private-key client2"
REFUSED = {
    "unknown": ({}, "[code: 2004] Failed to activate SuperNode"),
    "keyless": ({KEY: ""}, "[code: 2001] SuperNode authentication is enabled"),
    "plain": ({KEY: "--max-retries 1", "--root-certificates ca.crt": "--insecure"}, "disconnected without sending"),
    "deceived": ({"--root-certificates ca.crt": "--root-certificates runtime.pem"}, "certificate verify failed"),
}
"""Nodes that must be turned away: what differs from the page's command, and what they say."""


def commands(heading: str) -> list[str]:
    """The shell blocks under a heading of the page."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = [one for one in sections if one.startswith(heading + "\n")]
    return re.findall(r"^```bash\n(.*?)^```", found, re.MULTILINE | re.DOTALL)


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with each of its parts changed; a part that is not there means that the page has changed."""
    for old, new in changes.items():
        assert old in text, f"{PAGE.name} no longer has {old!r} in: {text}"
        text = text.replace(old, new)
    return text


@dataclass
class Walk:
    """The page's commands in one folder, each in a shell with the variables that the page sets.

    Attributes:
        folder: where they run. port: of the SuperLink.
    """

    folder: Path
    port: int

    @property
    def env(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(ROOT / "src"), "XDG_STATE_HOME": str(self.folder / "state")}
        return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **own}

    def shell(self, command: str) -> str:
        """Runs commands to their end, which must be good; returns what they printed."""
        script = commands("The long way")[-1] + command
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout + done.stderr

    def start(self, command: str, log: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """Starts one command that stays."""
        script = commands("The long way")[-1] + "exec " + command
        return running(["bash", "-c", script], self.env, self.folder / f"{log}.log", folder=self.folder)

    @contextlib.contextmanager
    def link(self, log: str):
        """The page's SuperLink, which is ready."""
        changes = {"--host 0.0.0.0": "--host 127.0.0.1", "--port 8000": f"--port {self.port}"}
        with self.start(replaced(commands("Server")[0], changes), log) as process:
            wait_for_port(self.port)
            yield process

    def node(self, number: int) -> str:
        """The page's command of a client, for a client of another number."""
        return replaced(
            commands("Clients")[0],
            {
                "server.example.org:8000": f"localhost:{self.port}",
                "/data/points.npz": str(self.folder / f"points{number % 2}.npz"),
                "--port 9150": f"--port {free_port()}",
                "private-key client0": f"private-key client{number}",
                # A map is compared with one in process, whose boxes are those of single points.
                "partition-id=0 min-count=10": f"partition-id={number} min-count=1 max-partitions=3 {BOTH}",
                "north ward": NAMES[number],
            },
        )

    def status(self) -> list[str]:
        """What the server says of each node that was ever registered."""
        return [one["status"] for one in json.loads(self.shell(LIST))["nodes"]]

    def answers(self) -> int:
        """How many answers of the clustering's first exchange are kept."""
        return len(list(self.folder.glob("groups/answers/*-query.centroids/*.safetensors")))

    def until(self, met: Callable[[], bool], seconds: float = 300) -> None:
        """Waits for something."""
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))


def make_keys(walk: Walk) -> None:
    """The server's authority and certificate, keys of three clients; Python 3.13 is stricter on certificates."""
    at_server, at_client = commands("Keys")
    walk.shell(replaced(at_server, {"server.example.org": "localhost"}))
    for number in range(3):
        walk.shell(replaced(at_client, {"client0": f"client{number}"}))
    for authority, certificate in (("ca.crt", "server.pem"), ("runtime.pem", "runtime.pem")):
        assert "OK" in walk.shell(f"openssl verify -x509_strict -CAfile {authority} {certificate}")


def same_as_in_process(folder: Path, parts: list[np.ndarray]) -> None:
    """Centers within 1e-10, map positions (float32) within 1e-6."""
    clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]
    inside = cluster(InProcess(clients), resolve(12, min_count=10, refine_rounds=0, winsorize=3.0))
    np.testing.assert_allclose(np.load(folder / "groups" / "centers.npz")["centers"], inside.centers, atol=1e-10)
    options = {"rounds": 2, "hidden": (8,), "surrogate": "grid", "surrogate_start": 0.5, "min_r2": -10.0}
    drawn = fit_remote(parts, read_options(options))
    loaded = FederatedNeighborEmbedding.load(folder / "map" / "model")
    for part in parts:
        np.testing.assert_allclose(loaded.transform(part), drawn.transform(part), atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_whole_run_with_tls_and_node_keys(tmp_path: Path) -> None:
    """Two clients with registered keys, four nodes that are turned away, a clustering whose server is killed, a map.

    The killed server's registrations and nodes outlive it, no client is asked twice, and results equal those in
    process.
    """
    walk = Walk(tmp_path, free_port())
    parts = split_s_set("s1", alpha=0.3, clients=2, seed=1)
    for number, part in enumerate(parts):
        np.savez(tmp_path / f"points{number}.npz", points=part)
    make_keys(walk)
    _, connection, register, unregister = commands("Server")
    cluster_run, map_run = commands("Run")[:2]
    # With a second question: a clustering in one shot would be over before its server can be killed.
    cluster_run = replaced(
        cluster_run, {"/results/groups": str(tmp_path / "groups"), "clusters=12": "evaluate=true clusters=12"}
    )
    with contextlib.ExitStack() as nodes:
        with walk.link("link-killed") as link:
            walk.shell(replaced(connection, {"server.example.org:8000": f"localhost:{walk.port}"}))
            walk.shell(register)
            walk.shell(replaced(register, {"client0.pub": "client1.pub"}))
            for name, (changes, reason) in REFUSED.items():
                with walk.start(replaced(walk.node(2), changes), name) as turned_away:
                    assert turned_away.wait(300) != 0, name
                assert reason in walk.log(name), walk.log(name)
            assert walk.status() == ["registered", "registered"]
            for number in range(2):
                nodes.enter_context(walk.start(walk.node(number), f"node{number}"))
            with walk.start(cluster_run, "run-killed") as run:
                walk.until(lambda: walk.answers() == 2)
                os.killpg(link.pid, signal.SIGKILL)
                assert run.wait(120) != 0
        assert not (tmp_path / "groups" / "result.json").exists(), "killed before its end"
        with walk.link("link"):
            assert "12 centers of 2 clients" in walk.shell(cluster_run)
            for number in range(2):
                assert walk.log(f"node{number}").count("Receiving: query.centroids") == 1, "nobody is asked again"
            short = replaced(map_run, {"/results/map": str(tmp_path / "map"), "rounds=60 surrogate=grid": SHORT})
            assert "a map of 2 clients" in walk.shell(short)
            assert walk.status() == ["online", "online"]
            # With its key registered, the node that was unknown is let in; taken out, it ends.
            walk.shell(replaced(register.splitlines()[0], {"client0.pub": "client2.pub"}))
            with walk.start(walk.node(2), "known") as known:
                walk.until(lambda: walk.status() == ["online"] * 3)
                number = json.loads(walk.shell(LIST))["nodes"][-1]["node-id"]
                walk.shell(replaced(unregister, {"NODE-ID": number}))
                known.wait(120)
            assert walk.status() == ["online", "online", "unregistered"]
    result = json.loads((tmp_path / "groups" / "result.json").read_text(encoding="utf-8"))
    assert [client["name"] for client in result["clients"]] == list(NAMES[:2])
    # Groups of fewer than ten points are withheld from the question how well centers fit, whose counts these are.
    for client, part in zip(result["clients"], parts, strict=True):
        assert len(part) - 12 * 10 < client["points"] <= len(part)
    same_as_in_process(tmp_path, parts)
