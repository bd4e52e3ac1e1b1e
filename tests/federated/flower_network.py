"""Flower's own processes on loopback, for tests: one SuperLink, a SuperNode for each client, and `flwr run`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.federated.flower.app import write_app

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(home: Path) -> dict[str, str]:
    """What Flower's processes need to stay offline, apart from others, and small."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
    }


@contextlib.contextmanager
def running(
    command: list[str], env: dict[str, str], log: Path, *, folder: Path | None = None
) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, which is ended with all that it started."""
    program = shutil.which(command[0], path=env["PATH"])
    assert program is not None, command[0]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [program, *command[1:]], env=env, stdout=out, stderr=out, start_new_session=True, cwd=folder
        )
        try:
            yield process
        finally:
            for one in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, one)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def wait_for_port(port: int, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            assert time.monotonic() < until, f"nothing answers on port {port}"
            time.sleep(0.3)


@dataclass
class Network:
    """A SuperLink and nodes on loopback, all in one folder.

    Attributes:
        folder: of logs, data and connections. port: of the SuperLink. app: the folder that `flwr run` wants.
    """

    folder: Path
    app: Path
    env: dict[str, str]
    port: int

    @classmethod
    def begin(cls, folder: Path) -> Network:
        """The folder's connections and app; starts nothing."""
        home, port = folder / "home", free_port()
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "client"\n\n[superlink.client]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        return cls(folder, write_app(folder / "app"), environment(home), port)

    @contextlib.contextmanager
    def link(self, name: str = "link") -> Iterator[subprocess.Popen]:
        """The server's SuperLink, which is ready."""
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-runtime-dependency-installation"]
        with running(command, self.env, self.folder / f"{name}.log") as process:
            wait_for_port(self.port)
            yield process

    @contextlib.contextmanager
    def nodes(self, parts: Sequence[np.ndarray], names: Sequence[str] = (), *, log: str = "node") -> Iterator[None]:
        """A SuperNode for each client, whose log is called `log` and the client's number."""
        with contextlib.ExitStack() as stack:
            for number, part in enumerate(parts):
                data = self.folder / f"client{number}.npz"
                np.savez(data, points=part)
                node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"]
                title = names[number] if names else f"client {number}"
                node += ["--port", str(free_port()), "--node-config"]
                settings = f'partition-id={number} data="{data}" name="{title}" state="{self.folder / "state"}"'
                # Runs are compared with those in one process, which protect nobody.
                settings += ' min-count=1 max-partitions=100 winsorize=0 jobs="cluster,embed,features"'
                node += [settings + " noise-multiplier=0.0 update-clip=100.0"]
                stack.enter_context(running(node, self.env, self.folder / f"{log}{number}.log"))
            yield

    def command(self, config: str) -> list[str]:
        """`flwr run` with that run configuration."""
        return [str(BIN / "flwr"), "run", str(self.app), "client", "--stream", "--run-config", config]

    def run(self, config: str, *, timeout: float = 560) -> str:
        """Runs it to its end; returns all that was printed, and the ends of all logs."""
        done = subprocess.run(self.command(config), env=self.env, capture_output=True, text=True, timeout=timeout)
        return done.stdout + done.stderr + self.logs()

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))
