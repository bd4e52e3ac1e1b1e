"""kill -9, a full and a read-only disk at any moment of making an index, then the same command: the same index."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveate
import tiny
from foveate.cli.main import main
from foveate.core.errors import UserError, explain_os_error
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.search import index as indexing
from foveate.search.index import COLLECTION, build_index
from foveate.search.index_folder import DESCRIPTION, Description, read_rows
from foveate.vision.localizer.folder import save_model
from killing import Server, kill_at_random
from naming import raises_naming
from small_disk import Disk, disk

__all__ = ["disk"]  # the fixture


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model(tiny.recipe()).eval(), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server("index_to_kill", model) as server:
        yield server


@pytest.fixture
def opened_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the model once for all runs of a test."""
    source = indexing.find_model(model)
    network = source.load()
    monkeypatch.setattr(type(source), "load", lambda self, *, device=None: network)


@pytest.fixture
def damaged(tiny_collection: Path, tmp_path: Path) -> Path:
    """A copy of the tiny collection with an image that cannot be read."""
    path = Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))
    tiny.damage(path, "train-03")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_images(folder: Path, count: int = 8) -> Path:
    """A plain folder of small images, half of them with a text, and one that is cut off."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
        if number % 2:
            (folder / f"p{number}.txt").write_text(f"drawing {number}")
    (folder / "cut.png").write_bytes((folder / "p0.png").read_bytes()[:200])
    for path in folder.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


def change_images(folder: Path) -> None:
    """A new image, a new text, another content, a deleted file."""
    Image.new("RGB", (40, 40), (200, 30, 40)).save(folder / "new.png")
    (folder / "p0.txt").write_text("a red field")
    Image.new("RGB", (40, 40), (30, 30, 140)).save(folder / "p1.png")
    (folder / "p2.png").unlink()


def state(out: Path) -> dict[str, Any]:
    """What an index says of each image, in whatever order and part it is: vectors, texts, counts."""
    description = Description.read(out)
    assert description.finished
    assert not list(out.rglob("*.tmp"))
    assert not (out / indexing.BUILDING).exists()
    rows: dict[Any, Any] = {}
    for segment in description.segments:
        table = read_rows([segment.rows_path(out)]).to_pylist()
        for row, vector in zip(table, segment.embeddings(out), strict=True):
            assert tuple(row.values()) not in rows
            rows[tuple(row.values())] = vector.tobytes()
    with Collection.open(out / COLLECTION) as collection:
        texts = {record.key: sorted(caption.text for caption in record.captions) for record in collection}
    hits = foveate.open_index(out).search("a red field", count=100)
    scores = {hit.key: (hit.score, hit.text, hit.kind) for hit in hits}
    return {"rows": rows, "texts": texts, "counts": description.counts, "scores": scores}


def check_between(out: Path) -> None:
    """Whatever moment: the index has nothing to search and says so, or can be searched."""
    if not (out / DESCRIPTION).is_file() or not Description.read(out).segments:
        # A first run that was not the last: nothing says that it finished.
        with raises_naming(UserError, out):
            foveate.open_index(out)
        assert not (out / DESCRIPTION).is_file() or not Description.read(out).finished
        return
    hits = foveate.open_index(out).search("a red field", count=100)
    assert len({hit.key for hit in hits}) == len(hits)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [50])
def test_kills_change_no_byte(kills: int, server: Server, model: Path, damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    took = server.seconds("make", model, damaged, out)
    expected = contents(out)
    shutil.rmtree(out)

    def check(dead: bool) -> None:
        if not dead:
            assert contents(out) == expected
            shutil.rmtree(out)

    kill_at_random(
        lambda: server.start("make", model, damaged, out), kills=kills, longest=took * 0.6, seed=3, after=check
    )
    server.start("make", model, damaged, out).finish()
    assert contents(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_at_each_step_changes_no_byte(
    moment: str, server: Server, model: Path, damaged: Path, tmp_path: Path
) -> None:
    out, part = tmp_path / "out", 12  # three parts: few repeated steps
    steps = server.start("make", model, damaged, out, part).finish()
    expected = contents(out)
    assert steps > 20
    for die_at in range(1, steps + 1):
        shutil.rmtree(out)
        assert server.start("make", model, damaged, out, part, die_at=die_at, moment=moment).end() == 9
        server.start("make", model, damaged, out, part).finish()
        assert contents(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.usefixtures("opened_once")
def test_deaths_at_every_third_step_of_a_plain_folder(
    is_update: bool, server: Server, model: Path, disk: Disk, tmp_path: Path
) -> None:
    disk.resize("64m")  # in memory, since a disk that is busy takes its time for each fsync
    images, before, part = write_images(tmp_path / "images"), disk.folder / "before", 5
    if is_update:
        server.start("make", model, images, before, part).finish()
        change_images(images)
    else:
        before.mkdir()
    whole = Path(shutil.copytree(before, disk.folder / "whole"))
    steps = server.start("make", model, images, whole, part).finish()
    expected = state(whole)
    assert steps > 20
    for die_at in range(1, steps + 1, 3):
        out = Path(shutil.copytree(before, disk.folder / f"died-{die_at}"))
        assert server.start("make", model, images, out, part, die_at=die_at, moment="before").end() == 9
        check_between(out)
        server.start("make", model, images, out, part).finish()
        assert state(out) == expected
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.usefixtures("opened_once")
def test_kills_of_a_plain_folder(server: Server, model: Path, disk: Disk, tmp_path: Path) -> None:
    disk.resize("64m")
    images, out = write_images(tmp_path / "images", 40), disk.folder / "out"
    took = server.seconds("make", model, images, out)
    expected = state(out)
    shutil.rmtree(out)

    def check(dead: bool) -> None:
        check_between(out)
        if not dead:
            assert state(out) == expected
            shutil.rmtree(out)

    kill_at_random(lambda: server.start("make", model, images, out), kills=15, longest=took, seed=4, after=check)
    server.start("make", model, images, out).finish()
    assert state(out) == expected


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("opened_once")
def test_a_refusal_at_any_write(every: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fsync is a moment at which the disk may have refused; of an update, which has the most of them."""
    images, before = write_images(tmp_path / "images", 4), tmp_path / "before"
    build_index(model, images, before, regions="none", workers=1)
    change_images(images)
    calls, refuse_at = 0, 0

    def refuse(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == refuse_at:
            number = (errno.ENOSPC, errno.EIO)[calls % 2]
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    whole = Path(shutil.copytree(before, tmp_path / "whole"))
    build_index(model, images, whole, workers=1)
    expected, total = state(whole), calls
    assert total > 20
    for refuse_at in range(1, total + 1, every):
        out = Path(shutil.copytree(before, tmp_path / f"refused-{refuse_at}"))
        calls = 0
        with pytest.raises(OSError, match="No space left|Input/output") as caught:
            build_index(model, images, out, workers=1)
        assert str(explain_os_error(caught.value)).startswith(f"{out}/")
        check_between(out)
        refuse_at = 0
        build_index(model, images, out, workers=1)
        assert state(out) == expected


@pytest.mark.usefixtures("opened_once")
def test_a_full_disk_stops_an_index_that_goes_on_later(
    disk: Disk, model: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "PART", 3)
    monkeypatch.setattr(indexing, "_check_room", lambda out, plan: None)  # as if another process took the room
    build_index(model, damaged, tmp_path / "whole")
    out = disk.folder / "index"
    for size in ("1k", "16k", "64k", "192k"):
        disk.resize(size)
        with pytest.raises(OSError, match="No space left") as caught:
            build_index(model, damaged, out)
        message = str(explain_os_error(caught.value))
        assert message.startswith(f"{out}")
        assert "the disk is full (" in message
        assert not list(out.rglob("*.tmp"))
        if out.exists():
            check_between(out)
    disk.resize("8m")
    build_index(model, damaged, out)
    assert {**contents(out), DESCRIPTION: b""} == {**contents(tmp_path / "whole"), DESCRIPTION: b""}


@pytest.mark.usefixtures("opened_once")
def test_a_read_only_disk(disk: Disk, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its images can be indexed elsewhere, its index searched, and a run says what it cannot write."""
    disk.resize("8m")
    images = write_images(disk.folder / "images", 4)
    build_index(model, images, disk.folder / "index", regions="none")
    before = contents(disk.folder)
    disk.change("remount,ro")
    assert foveate.open_index(disk.folder / "index").search("red", count=1)
    capsys.readouterr()
    for out in ((), ("--out", disk.folder / "index")):
        with pytest.raises(SystemExit) as ended:
            main([str(part) for part in ("index", model, images, *out, "--quiet")])
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"foveate: {disk.folder}/")
        assert "the disk is read-only" in line
    description, _ = build_index(model, images, tmp_path / "elsewhere", regions="none")
    assert description.counts["images"] == 4
    assert contents(disk.folder) == before
