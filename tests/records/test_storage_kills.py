"""kill -9 at any moment of a mixed import (packed and referenced) and of a removal: nothing lost, nothing half."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from imports_to_kill import STAMP
from made_images import write_folder

from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.records.importers.folder import import_folder
from foveate.records.removal import remove_images
from foveate.records.splits import assign_splits
from foveate.records.tables import read_removed
from killing import Server, kill_at_random


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("imports_to_kill") as found:
        yield found


def _contents(folder: Path) -> dict[str, bytes]:
    """All files but the tombstones, whose rows have the time of the removal."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "removed.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _old(folder: Path) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return folder


def _sources(folder: Path, images: int) -> tuple[Path, Path]:
    """A folder to pack and one to reference, with different names."""
    whole = write_folder(folder / "source", images)
    for number, path in enumerate(sorted(whole.rglob("*.jpg"))):
        if number % 3 == 0:
            for file in path.parent.glob(f"{path.stem}.*"):
                place = folder / "referenced" / file.relative_to(whole)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.rename(place)
    return _old(whole), _old(folder / "referenced")


def _check(target: Path, *, gone: Set[str] = frozenset()) -> None:
    """A reader finds whole images with all their rows, and of `gone` all or none."""
    if not (target / "collection.json").is_file():
        return
    with Collection.open(target) as collection:
        assert len(set(collection.keys)) == len(collection)
        for row in range(len(collection)):
            decode(collection.image_bytes(row, verify=True))
            number = int(collection.keys[row][-4:])
            assert len(collection.read_captions(row)) == (number % 4 != 3)
            assert len(collection.read_regions(row)) == (number % 5 == 0)
        assert len(gone & set(collection.keys)) in (0, len(gone))


def _kill_imports(server: Server, folder: Path, *, images: int, kills: int, shard: int, seed: int) -> None:
    packed, referenced = _sources(folder, images)
    took = server.seconds("take_both", packed, referenced, folder / "whole", shard)
    expected = _contents(folder / "whole")
    assert len(Collection.open(folder / "whole")) == images
    target, attempt = folder / "killed-0", 0

    def check(dead: bool) -> None:
        nonlocal target, attempt
        attempt += 1
        _check(target)
        if not dead:
            assert _contents(target) == expected
            shutil.rmtree(target)
            target = folder / f"killed-{attempt}"

    kill_at_random(
        lambda: server.start("take_both", packed, referenced, target, shard),
        kills=kills,
        longest=took * 0.6,
        seed=seed,
        after=check,
    )
    server.start("take_both", packed, referenced, target, shard).finish()
    assert _contents(target) == expected


def test_two_kills_of_a_mixed_import_change_nothing(server: Server, tmp_path: Path) -> None:
    _kill_imports(server, tmp_path, images=40, kills=2, shard=7, seed=1)


@pytest.mark.slow
def test_fifty_kills_of_a_mixed_import_change_nothing(server: Server, tmp_path: Path) -> None:
    _kill_imports(server, tmp_path, images=240, kills=50, shard=9, seed=2)


def _filled(folder: Path, images: int, shard: int) -> tuple[Path, list[str]]:
    """A mixed collection with splits and a cache, and keys of every fourth image."""
    packed, referenced = _sources(folder, images)
    options = {"name": "c", "workers": 1, "images_per_shard": shard, "created": STAMP}
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


def _kill_removals(server: Server, folder: Path, *, images: int, kills: int, shard: int, seed: int) -> None:
    path, keys = _filled(folder, images, shard)
    shutil.copytree(path, folder / "whole")
    took = server.seconds("remove", folder / "whole", keys)
    expected = _contents(folder / "whole")
    target, attempt = Path(shutil.copytree(path, folder / "killed-0")), 0

    def check(dead: bool) -> None:
        nonlocal target, attempt
        attempt += 1
        _check(target, gone=set(keys))
        if not dead or attempt % 3 == 0:
            # Either it is done, or any later removal finishes it: here the same command.
            server.start("remove", target, keys).finish()
            _check_purged(target, keys, expected)
            shutil.rmtree(target)
            target = Path(shutil.copytree(path, folder / f"killed-{attempt}"))

    kill_at_random(lambda: server.start("remove", target, keys), kills=kills, longest=took, seed=seed, after=check)
    remove_images(target, keys)
    _check_purged(target, keys, expected)


def test_two_kills_of_a_removal_change_nothing(server: Server, tmp_path: Path) -> None:
    _kill_removals(server, tmp_path, images=30, kills=2, shard=6, seed=3)


@pytest.mark.slow
def test_fifty_kills_of_a_removal_change_nothing(server: Server, tmp_path: Path) -> None:
    _kill_removals(server, tmp_path, images=160, kills=50, shard=8, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_at_each_step_of_a_removal_changes_nothing(server: Server, tmp_path: Path, moment: str) -> None:
    path, keys = _filled(tmp_path, 12, 5)
    shutil.copytree(path, tmp_path / "whole")
    steps = server.start("remove", tmp_path / "whole", keys).finish()
    expected = _contents(tmp_path / "whole")
    assert steps > 10
    for die_at in range(1, steps + 1):
        target = tmp_path / f"died-{die_at}"
        shutil.copytree(path, target)
        assert server.start("remove", target, keys, die_at=die_at, moment=moment).end() == 9
        _check(target, gone=set(keys))
        # A removal of another image would finish it as well; so does an unchanged command.
        remove_images(target, keys)
        _check_purged(target, keys, expected)
