"""kill -9 at any moment of making an index, then the same command: the same index, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from foveate.pretrain.train import build_model
from foveate.vision.localizer.folder import save_model
from killing import Server, kill_at_random


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model(tiny.recipe()).eval(), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server("index_to_kill", model) as found:
        yield found


@pytest.fixture
def damaged(tiny_collection: Path, tmp_path: Path) -> Path:
    """A copy of the tiny collection with an image that cannot be read."""
    path = Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))
    tiny.damage(path, "train-03")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
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
