"""kill -9 at any moment of a mixed import (packed and referenced) and of a removal: nothing lost, nothing half."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Set
from pathlib import Path

import pytest
from made_pictures import write_folder

from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.pictures import decode
from foveate.records.removal import remove_pictures
from foveate.records.splits import assign_splits
from foveate.records.tables import read_removed

STAMP = "2026-01-01T00:00:00+00:00"
# Dies at the n-th rename or deletion, before or after it, or never with n = 0.
DIE = """
import os, sys
from pathlib import Path
die_at, moment = int(sys.argv[1]), sys.argv[2]
count = 0
def deadly(function):
    def call(*arguments, **options):
        global count
        count += 1
        if count == die_at and moment == "before":
            os._exit(9)
        number = count
        try:
            return function(*arguments, **options)
        finally:
            if number == die_at:
                os._exit(9)
    return call
os.replace, os.unlink, Path.unlink = deadly(os.replace), deadly(os.unlink), deadly(Path.unlink)
"""
IMPORT = f"""
from foveate.records.importers.folder import import_folder
packed, referenced, target, shard = sys.argv[3:]
options = dict(name="c", workers=2, pictures_per_shard=int(shard), created={STAMP!r})
print("ready", flush=True)
import_folder(packed, target, **options)
import_folder(referenced, target, reference=True, **options)
print(count, flush=True)
"""
REMOVE = """
from foveate.records.removal import remove_pictures
print("ready", flush=True)
remove_pictures(sys.argv[3], sys.argv[4:], reason="asked for")
print(count, flush=True)
"""


def _start(program: str, *arguments: object, die_at: int = 0, moment: str = "") -> subprocess.Popen[str]:
    words = [str(die_at), moment, *map(str, arguments)]
    return subprocess.Popen(
        [sys.executable, "-c", DIE + program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _finish(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate(timeout=300)[0].split()


def _kill(process: subprocess.Popen[str], after: float) -> bool:
    """Kill the process so many seconds after it began to work; False where it had ended."""
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    _finish(process)
    return process.returncode == -signal.SIGKILL


def _seconds(program: str, *arguments: object) -> float:
    process = _start(program, *arguments)
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    assert _finish(process)
    assert process.returncode == 0
    return time.monotonic() - began


def _contents(folder: Path) -> dict[str, bytes]:
    """All files but the tombstones, whose rows have the time of the removal."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "removed.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _old(folder: Path) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return folder


def _sources(folder: Path, pictures: int) -> tuple[Path, Path]:
    """A folder to pack and one to reference, with different names."""
    whole = write_folder(folder / "source", pictures)
    for number, path in enumerate(sorted(whole.rglob("*.jpg"))):
        if number % 3 == 0:
            for file in path.parent.glob(f"{path.stem}.*"):
                place = folder / "referenced" / file.relative_to(whole)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.rename(place)
    return _old(whole), _old(folder / "referenced")


def _check(target: Path, *, gone: Set[str] = frozenset()) -> None:
    """A reader finds whole pictures with all their rows, and of `gone` all or none."""
    if not (target / "collection.json").is_file():
        return
    with Collection.open(target) as collection:
        assert len(set(collection.keys)) == len(collection)
        for row in range(len(collection)):
            decode(collection.picture_bytes(row, verify=True))
            number = int(collection.keys[row][-4:])
            assert len(collection.captions_of(row)) == (number % 4 != 3)
            assert len(collection.regions_of(row)) == (number % 5 == 0)
        assert len(gone & set(collection.keys)) in (0, len(gone))


def _kill_imports(folder: Path, *, pictures: int, kills: int, shard: int, seed: int) -> None:
    packed, referenced = _sources(folder, pictures)
    took = _seconds(IMPORT, packed, referenced, folder / "whole", shard)
    expected = _contents(folder / "whole")
    assert len(Collection.open(folder / "whole")) == pictures
    rng = random.Random(seed)
    target, killed = folder / "killed-0", 0
    while killed < kills:
        dead = _kill(_start(IMPORT, packed, referenced, target, shard), rng.uniform(0, took * 0.6))
        killed += dead
        _check(target)
        if not dead:
            assert _contents(target) == expected
            shutil.rmtree(target)
            target = folder / f"killed-{killed}"
    _finish(_start(IMPORT, packed, referenced, target, shard))
    assert _contents(target) == expected


def test_two_kills_of_a_mixed_import_change_nothing(tmp_path: Path) -> None:
    _kill_imports(tmp_path, pictures=40, kills=2, shard=7, seed=1)


@pytest.mark.slow
def test_fifty_kills_of_a_mixed_import_change_nothing(tmp_path: Path) -> None:
    _kill_imports(tmp_path, pictures=240, kills=50, shard=9, seed=2)


def _filled(folder: Path, pictures: int, shard: int) -> tuple[Path, list[str]]:
    """A mixed collection with splits and a cache, and keys of every fourth picture."""
    packed, referenced = _sources(folder, pictures)
    options = {"name": "c", "workers": 1, "pictures_per_shard": shard, "created": STAMP}
    import_folder(packed, folder / "c", **options)
    import_folder(referenced, folder / "c", reference=True, **options)
    assign_splits(folder / "c", fractions={"train": 1.0})
    (folder / "c" / "cache" / "features-abc").mkdir(parents=True)
    (folder / "c" / "cache" / "features-abc" / "0.npy").write_bytes(b"features")
    return folder / "c", Collection.open(folder / "c").keys[::4]


def _check_purged(target: Path, keys: list[str], expected: dict[str, bytes]) -> None:
    assert _contents(target) == expected
    assert set(read_removed(target / "removed.parquet")["key"].to_pylist()) == set(keys)
    _check(target, gone=set(keys))
    assert not set(keys) & set(Collection.open(target).keys)


def _kill_removals(folder: Path, *, pictures: int, kills: int, shard: int, seed: int) -> None:
    path, keys = _filled(folder, pictures, shard)
    shutil.copytree(path, folder / "whole")
    took = _seconds(REMOVE, folder / "whole", *keys)
    expected = _contents(folder / "whole")
    rng = random.Random(seed)
    killed, target = 0, folder / "killed-0"
    shutil.copytree(path, target)
    while killed < kills:
        dead = _kill(_start(REMOVE, target, *keys), rng.uniform(0, took))
        killed += dead
        _check(target, gone=set(keys))
        if not dead or killed % 3 == 0:
            # Either it is done, or any later removal finishes it: here the same command.
            _finish(_start(REMOVE, target, *keys))
            _check_purged(target, keys, expected)
            shutil.rmtree(target)
            target = folder / f"killed-{killed}-{rng.random()}"
            shutil.copytree(path, target)
    remove_pictures(target, keys)
    _check_purged(target, keys, expected)


def test_two_kills_of_a_removal_change_nothing(tmp_path: Path) -> None:
    _kill_removals(tmp_path, pictures=30, kills=2, shard=6, seed=3)


@pytest.mark.slow
def test_twenty_kills_of_a_removal_change_nothing(tmp_path: Path) -> None:
    _kill_removals(tmp_path, pictures=160, kills=20, shard=8, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_at_each_step_of_a_removal_changes_nothing(tmp_path: Path, moment: str) -> None:
    path, keys = _filled(tmp_path, 12, 5)
    shutil.copytree(path, tmp_path / "whole")
    steps = int(_finish(_start(REMOVE, tmp_path / "whole", *keys))[1])
    expected = _contents(tmp_path / "whole")
    assert steps > 10
    for die_at in range(1, steps + 1):
        target = tmp_path / f"died-{die_at}"
        shutil.copytree(path, target)
        assert _finish(_start(REMOVE, target, *keys, die_at=die_at, moment=moment)) == ["ready"]
        _check(target, gone=set(keys))
        # A removal of another picture would finish it as well; so does an unchanged command.
        remove_pictures(target, keys)
        _check_purged(target, keys, expected)
