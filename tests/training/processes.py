"""Starts the processes of a distributed test as torchrun does: environment variables and one port."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

# What the scripts import, 4 s a process: imported once, in a server that each process is a fork of.
_PRELOADED = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "foveate.pretrain.train"]
_FORKS = multiprocessing.get_context("forkserver")


def environment(rank: int = 0, world_size: int = 1, port: int = 0) -> dict[str, str]:
    """The environment of one process of several; one thread each, so that two of them share two cores."""
    source = Path(__file__).resolve().parents[2] / "src"
    names = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(source), str(Path(__file__).resolve().parent)]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    if world_size > 1:
        names |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    inherited = {name: value for name, value in os.environ.items() if name not in {"RANK", "LOCAL_RANK", "WORLD_SIZE"}}
    return inherited | names


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(script: Path, *arguments: object, world_size: int = 1) -> list[subprocess.Popen[str]]:
    """Starts new processes, which a test may kill."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=environment(rank, world_size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def run_processes(script: Path, *arguments: object, world_size: int = 1, timeout: float = 120) -> list[str]:
    """Runs `world_size` processes to their end; returns their standard errors. Asserts that all succeed."""
    # The number of threads is read when the server imports torch.
    with mock.patch.dict(os.environ, environment()):
        _FORKS.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
    port, deadline = free_port(), time.monotonic() + timeout
    with ExitStack() as stack:
        files = [
            stack.enter_context(tempfile.NamedTemporaryFile("r", encoding="utf-8", suffix=".txt"))
            for _ in range(world_size)
        ]
        processes = [
            _FORKS.Process(
                target=_run_script,
                args=(str(script), list(map(str, arguments)), environment(rank, world_size, port), file.name),
                daemon=True,
            )
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
            stack.callback(process.kill)
        for process in processes:
            process.join(deadline - time.monotonic())
        said = [file.read() for file in files]
    for process, text in zip(processes, said, strict=True):
        assert process.exitcode == 0, text
    return said


def _run_script(script: str, arguments: list[str], variables: dict[str, str], errors: str) -> None:
    """Runs in a fork: what `python script` does in a new process."""
    os.environ.clear()
    os.environ.update(variables)
    for name, target in ((os.devnull, 1), (errors, 2)):
        descriptor = os.open(name, os.O_WRONLY)
        os.dup2(descriptor, target)
        os.close(descriptor)
    sys.argv = [script, *arguments]
    sys.path[:0] = [str(Path(script).parent), *variables["PYTHONPATH"].split(os.pathsep)]
    runpy.run_path(script, run_name="__main__")
