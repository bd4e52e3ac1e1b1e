"""kill -9 at any moment of `collect --update`, a full and a read-only disk: nothing lost, nothing twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_images import jpeg, write_folder

from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.records.importers.folder import import_folder
from killing import Server, kill_at_random
from small_disk import Disk, disk

__all__ = ["disk"]  # the fixture


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("imports_to_kill") as found:
        yield found


def _state(target: Path) -> dict[str, Any]:
    """What a collection says of each image, whatever part or shard it is in."""
    with Collection.open(target) as collection:
        assert len(set(collection.keys)) == len(collection)
        return {
            record.key: (
                collection.index["sha256"][row],
                sorted(caption.text for caption in record.captions),
                [region.box for region in record.regions],
                len(decode(collection.image_bytes(row, verify=True)).getbands()),
            )
            for row, record in enumerate(collection)
        }


def _changed_folder(folder: Path, count: int) -> tuple[Path, Path]:
    """A collection of a folder, in shards of five, whose files changed since."""
    source = write_folder(folder / "source", count)
    for path in source.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    import_folder(source, folder / "before", name="c", images_per_shard=5)
    for number, path in enumerate(sorted(source.rglob("*.jpg"))):
        if number % 4 == 0:
            path.with_suffix(".txt").write_text(f"new text {number}")
        if number % 6 == 1:
            path.write_bytes(jpeg(1000 + number))
        if number % 9 == 5:
            path.unlink()
    (source / "added.jpg").write_bytes(jpeg(2000))
    return source, folder / "before"


def _check_between(target: Path) -> None:
    """Whatever moment: images can be read, and no file is lost that is not about to be imported again."""
    for _, captions, _, bands in _state(target).values():
        assert bands == 3
        assert len(captions) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("work", ["update", "mirror"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_at_each_step_of_an_update_loses_nothing(
    server: Server, tmp_path: Path, work: str, moment: str
) -> None:
    source, before = _changed_folder(tmp_path, 14)
    shutil.copytree(before, tmp_path / "whole")
    steps = server.start(work, source, tmp_path / "whole").finish()
    expected = _state(tmp_path / "whole")
    assert steps > 10
    for die_at in range(1, steps + 1):
        target = tmp_path / f"died-{die_at}"
        shutil.copytree(before, target)
        assert server.start(work, source, target, die_at=die_at, moment=moment).end() == 9
        _check_between(target)
        server.start(work, source, target).finish()
        assert _state(target) == expected
        shutil.rmtree(target)


@pytest.mark.slow
def test_thirty_kills_of_updates_lose_nothing(server: Server, tmp_path: Path) -> None:
    source, before = _changed_folder(tmp_path, 60)
    shutil.copytree(before, tmp_path / "whole")
    took = server.seconds("update", source, tmp_path / "whole")
    expected = _state(tmp_path / "whole")
    target = tmp_path / "killed"
    shutil.copytree(before, target)

    def check(dead: bool) -> None:
        _check_between(target)
        if not dead:
            assert _state(target) == expected
            shutil.rmtree(target)
            shutil.copytree(before, target)

    kill_at_random(lambda: server.start("update", source, target), kills=30, longest=took, seed=5, after=check)
    server.start("update", source, target).finish()
    assert _state(target) == expected


def test_a_full_disk_stops_an_update_that_goes_on_later(disk: Disk, tmp_path: Path) -> None:
    source, before = _changed_folder(tmp_path, 14)
    shutil.copytree(before, tmp_path / "whole")
    import_folder(source, tmp_path / "whole", update=True)
    disk.resize("2m")
    target = disk.folder / "c"
    shutil.copytree(before, target)
    used = sum(path.stat().st_blocks * 512 for path in target.rglob("*"))
    disk.resize(f"{used // 1024 + 12}k")
    with pytest.raises(OSError, match="No space left"):
        import_folder(source, target, update=True)
    _check_between(target)
    disk.resize("4m")
    import_folder(source, target, update=True)
    assert _state(target) == _state(tmp_path / "whole")


def test_a_read_only_disk_leaves_the_collection_as_it_is(disk: Disk, tmp_path: Path) -> None:
    source, before = _changed_folder(tmp_path, 6)
    disk.resize("2m")
    target = disk.folder / "c"
    shutil.copytree(before, target)
    disk.change("remount,ro")
    with pytest.raises(OSError, match="Read-only"):
        import_folder(source, target, update=True)
    assert _state(target) == _state(before)
    disk.resize("2m")
    assert import_folder(source, target, update=True).files_replaced == 1
