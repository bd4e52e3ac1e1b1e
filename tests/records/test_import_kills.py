"""kill -9 at any moment of an import, then the same command again: nothing lost, nothing twice, same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_pictures import write_folder

from foveate.records.collection import Collection
from foveate.records.pictures import decode

_STAMP = "2026-01-01T00:00:00+00:00"
_PROGRAM = """
import os, sys
from foveate.records.importers.folder import import_folder
source, target, shard, die_at, moment = sys.argv[1:]
renames, replace = 0, os.replace
def counted(*places):
    global renames
    renames += 1
    if renames == int(die_at) and moment == "before":
        os._exit(9)
    replace(*places)
    if renames == int(die_at):
        os._exit(9)
os.replace = counted
print("ready", flush=True)
import_folder(source, target, name="c", workers=2, pictures_per_shard=int(shard), created="%s")
print(renames, flush=True)
"""


def _start(source: Path, target: Path, *, shard: int, die_at: int = 0, moment: str = "") -> subprocess.Popen[str]:
    arguments = [str(source), str(target), str(shard), str(die_at), moment]
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM % _STAMP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _finish(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=300)
    return output.split()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _check_what_is_there(target: Path) -> None:
    """At any moment a reader finds whole pictures with all their rows, or no collection yet."""
    if not (target / "collection.json").is_file():
        return
    with Collection.open(target) as collection:
        assert len(set(collection.keys)) == len(collection)
        for row in range(len(collection)):
            decode(collection.picture_bytes(row))
            number = int(collection.keys[row][-4:])
            assert len(collection.captions_of(row)) == (number % 4 != 3)
            assert len(collection.regions_of(row)) == (number % 5 == 0)


def _kill_and_compare(tmp_path: Path, *, pictures: int, kills: int, shard: int, seed: int) -> None:
    source = write_folder(tmp_path / "source", pictures)
    (source / "part00" / "bad.jpg").write_bytes(b"<html>")
    whole = _start(source, tmp_path / "whole", shard=shard)
    assert whole.stdout is not None
    whole.stdout.readline()
    began = time.monotonic()
    _finish(whole)
    took = time.monotonic() - began
    expected = _contents(tmp_path / "whole")
    rng = random.Random(seed)
    target = tmp_path / "killed"
    killed = 0
    while killed < kills:
        # A finished import is begun anew, so that every kill falls into one that is at work.
        process = _start(source, target, shard=shard)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, took * 0.5))
        process.send_signal(signal.SIGKILL)
        _finish(process)
        killed += process.returncode == -signal.SIGKILL
        _check_what_is_there(target)
        if process.returncode == 0:
            assert _contents(target) == expected
            target = tmp_path / f"killed{killed}-{rng.random()}"
    assert _finish(_start(source, target, shard=shard))[0] == "ready"
    assert _contents(target) == expected
    assert len(Collection.open(target)) == pictures


def test_three_kills_of_an_import_change_nothing(tmp_path: Path) -> None:
    _kill_and_compare(tmp_path, pictures=60, kills=3, shard=7, seed=1)


@pytest.mark.slow
def test_twenty_kills_of_an_import_change_nothing(tmp_path: Path) -> None:
    _kill_and_compare(tmp_path, pictures=300, kills=20, shard=11, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_at_each_rename_changes_nothing(tmp_path: Path, moment: str) -> None:
    source = write_folder(tmp_path / "source", 12)
    (source / "part00" / "bad.jpg").write_bytes(b"<html>")
    renames = int(_finish(_start(source, tmp_path / "whole", shard=5))[1])
    expected = _contents(tmp_path / "whole")
    assert renames > 10
    for die_at in range(1, renames + 1):
        target = tmp_path / f"died-{die_at}"
        assert _finish(_start(source, target, shard=5, die_at=die_at, moment=moment)) == ["ready"]
        _check_what_is_there(target)
        _finish(_start(source, target, shard=5))
        assert _contents(target) == expected
