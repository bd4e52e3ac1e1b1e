"""`foveate federated server`, `register`, `client`, `run` with Flower's processes, TLS and node keys, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from flower_network import ROOT, free_port

from foveate.federated.deep.encoder import flatten_weights
from foveate.federated.deep.job import fit_clients, load_model
from foveate.federated.deep.options import read_options
from foveate.federated.flower.processes import family

pytestmark = pytest.mark.slow
SETTINGS = {"rounds": 2, "encoder": "small_resnet", "augment": "shift", "width": 8, "hidden": 16, "min_count": 1}


@dataclass
class Federation:
    """A server and clients in one folder, by the commands of a user."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def words(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "foveate", "federated", *arguments]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            self.words(*arguments), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=900
        )

    def done(self, *arguments: str) -> str:
        """What a command prints, which must succeed."""
        found = self.call(*arguments)
        assert found.returncode == 0, found.stdout + found.stderr + self.logs()
        return found.stdout

    @contextlib.contextmanager
    def start(self, log: str, *arguments: str) -> Iterator[subprocess.Popen]:
        """Starts a command that stays; its standard output goes into a .json file, when it has something to say."""
        with (self.folder / f"{log}.json").open("w") as out, (self.folder / f"{log}.log").open("w") as err:
            process = subprocess.Popen(
                self.words(*arguments, "--json"), cwd=self.folder, env=self.env, stdout=out, stderr=err
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)

    def client(self, number: int) -> list[str]:
        """The arguments of a client's node."""
        data = ["--data", f"points{number}.npz", "--name", f"ward {number}", "--port", str(free_port())]
        # As many partitions as DeepFeCA has rounds, and one more for the last clustering.
        limits = ["--min-count", "1", "--max-partitions", "3", "--jobs", "features"]
        # What is sent is compared with what is computed in process.
        limits += ["--noise-multiplier", "0", "--update-clip", "100"]
        # One client has its limits in a policy, the others on the command line.
        if number == 0:
            (self.folder / "own.yaml").write_text(
                "{min_count: 1, max_partitions: 3, jobs: [features], noise_multiplier: 0, update_clip: 100}"
            )
            limits = ["--policy", "own.yaml"]
        data += limits
        return ["client", "--folder", f"ward{number}", "--client", str(number), "--server", self.address, *data]

    def until(self, met: Callable[[], bool], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, self.logs()
            time.sleep(0.1)

    def is_ready(self, log: str) -> bool:
        """Whether a command that stays has said that it is up: one JSON object."""
        text = (self.folder / f"{log}.json").read_text()
        return text.endswith("\n") and isinstance(json.loads(text), dict)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))

    def left(self) -> list[str]:
        """Processes whose state is in this folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"FLWR_HOME={self.folder}".encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        return found


def make_keys(federation: Federation) -> None:
    """Keys of the server and two clients, which get its authority."""
    federation.done("server", "--folder", "server", "--address", federation.address, "--make-keys")
    for number in range(2):
        federation.done("client", "--folder", f"ward{number}", "--client", str(number), "--make-keys")
        shutil.copy(federation.folder / "server" / "ca.crt", federation.folder / f"ward{number}")


def same_as_in_process(out: Path, parts: list[np.ndarray]) -> None:
    """Weights, centers and embeddings (float32) within 1e-6."""
    inside = fit_clients(parts, read_options({**SETTINGS, "clusters": 3, "seed": 3}))
    loaded = load_model(out / "model")
    np.testing.assert_allclose(flatten_weights(loaded.network), flatten_weights(inside.network), atol=1e-6)
    np.testing.assert_allclose(loaded.centers, inside.centers, atol=1e-6)
    for part in parts:
        np.testing.assert_allclose(loaded.transform(part), inside.transform(part), atol=1e-6)


@pytest.mark.timeout(1800)
def test_an_encoder_by_the_commands_of_a_user(tmp_path: Path) -> None:
    """DeepFeCA with TLS and node keys equals that in process; whatever ends a command, nothing of it is left."""
    random = np.random.default_rng(0)
    parts = [random.normal(size=(40, 16)) + 3 * number for number in range(2)]
    for number, part in enumerate(parts):
        np.savez(tmp_path / f"points{number}.npz", points=part)
    federation = Federation(tmp_path, free_port())
    make_keys(federation)
    with federation.start("server", "server", "--folder", "server", "--address", federation.address) as server:
        federation.until(lambda: federation.is_ready("server"))
        unknown = federation.call(*federation.client(1))
        assert unknown.returncode == 1
        assert "ended by itself (exit 1): its key is not registered at the server" in unknown.stderr
        federation.done("register", "--folder", "server", "ward0/client0.pub")
        both = federation.done("register", "--folder", "server", "ward0/client0.pub", "ward1/client1.pub", "--json")
        assert len(json.loads(both)["registered"]) == 1, "the first was in already"
        with contextlib.ExitStack() as nodes:
            first, second = (
                nodes.enter_context(federation.start(f"client{one}", *federation.client(one))) for one in (0, 1)
            )
            federation.until(lambda: federation.is_ready("client0") and federation.is_ready("client1"))
            given = [f"{name}={value}" for name, value in SETTINGS.items()]
            options = ["--job", "features", "--clusters", "3", "--seed", "3", "--out", "out"]
            for one in given:
                options += ["--set", one]
            told = json.loads(federation.done("run", "--folder", "server", "--clients", "2", *options, "--json"))
            assert (tmp_path / told["paths"]["report"]).is_file()
            # A run that waits for a third client, and is stopped.
            waiting = ["--clients", "3", "--out", "none", "--wait", "600"]
            with federation.start("stopped", "run", "--folder", "server", *waiting) as run:
                federation.until(lambda: "waiting for 3 clients" in federation.log("stopped"))
                run.terminate()
                assert run.wait(120) == 143
            assert "stopping the run" in federation.log("stopped")
            first.send_signal(signal.SIGINT)
            assert first.wait(60) == 130, federation.log("client0")
            (node,) = [one for one in family(second.pid) if "flower-supernode" in command_of(one.pid)]
            node.kill()
            assert second.wait(60) == 1
            assert "flower-supernode ended by itself (exit -9)" in federation.log("client1")
        assert not [one for one in federation.left() if "/ward" in one]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 143
    assert federation.left() == []
    assert not (tmp_path / "none" / "result.json").exists()
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert [(client["name"], client["rounds"]) for client in result["clients"]] == [("ward 0", 2), ("ward 1", 2)]
    same_as_in_process(tmp_path / "out", parts)


def command_of(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except OSError:
        return ""
