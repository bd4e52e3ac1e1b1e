"""Starts the processes of a distributed test as torchrun does: environment variables and one port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


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
    processes = start_processes(script, *arguments, world_size=world_size)
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
    return said
