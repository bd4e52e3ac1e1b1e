"""kill -9 at any moment of an import, then the same command again: nothing lost, nothing twice, same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from made_conversations import write_llava
from made_images import write_folder

from foveate.records.collection import Collection
from foveate.records.conversations import Conversations
from foveate.records.images import decode
from foveate.survey.survey import Survey
from killing import Server, kill_at_random


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("imports_to_kill") as found:
        yield found


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _check_what_is_there(target: Path) -> None:
    """At any moment a reader finds whole images with all their rows, or no collection yet."""
    if not (target / "collection.json").is_file():
        return
    with Collection.open(target) as collection:
        assert len(set(collection.keys)) == len(collection)
        for row in range(len(collection)):
            decode(collection.image_bytes(row))
            number = int(collection.keys[row][-4:])
            assert len(collection.read_captions(row)) == (number % 4 != 3)
            assert len(collection.read_regions(row)) == (number % 5 == 0)


def _kill_and_compare(server: Server, folder: Path, *, images: int, kills: int, shard: int, seed: int) -> None:
    source = write_folder(folder / "source", images)
    (source / "part00" / "bad.jpg").write_bytes(b"<html>")
    took = server.seconds("take", source, folder / "whole", shard)
    expected = _contents(folder / "whole")
    target, attempt = folder / "killed-0", 0

    def check(dead: bool) -> None:
        nonlocal target, attempt
        attempt += 1
        _check_what_is_there(target)
        if not dead:  # a finished import is begun anew, so that every kill falls into one that is at work
            assert _contents(target) == expected
            target = folder / f"killed-{attempt}"

    kill_at_random(
        lambda: server.start("take", source, target, shard), kills=kills, longest=took / 2, seed=seed, after=check
    )
    server.start("take", source, target, shard).finish()
    assert _contents(target) == expected
    assert len(Collection.open(target)) == images


@pytest.mark.slow
def test_three_kills_of_an_import_change_nothing(server: Server, tmp_path: Path) -> None:
    _kill_and_compare(server, tmp_path, images=60, kills=3, shard=7, seed=1)


@pytest.mark.slow
def test_fifty_kills_of_an_import_change_nothing(server: Server, tmp_path: Path) -> None:
    _kill_and_compare(server, tmp_path, images=300, kills=50, shard=11, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_at_each_step_of_an_import_changes_nothing(server: Server, tmp_path: Path, moment: str) -> None:
    source = write_folder(tmp_path / "source", 12)
    (source / "part00" / "bad.jpg").write_bytes(b"<html>")
    steps = server.start("take", source, tmp_path / "whole", 5).finish()
    expected = _contents(tmp_path / "whole")
    assert steps > 10
    for die_at in range(1, steps + 1):
        target = tmp_path / f"died-{die_at}"
        assert server.start("take", source, target, 5, die_at=die_at, moment=moment).end() == 9
        _check_what_is_there(target)
        server.start("take", source, target, 5).finish()
        assert _contents(target) == expected


@pytest.mark.slow
def test_killed_imports_of_conversations(server: Server, tmp_path: Path) -> None:
    source = write_llava(tmp_path / "source", 60)
    took = server.seconds("take_conversations", source, tmp_path / "whole", 7)
    expected = _contents(tmp_path / "whole")
    target, attempt = tmp_path / "killed-0", 0

    def check(dead: bool) -> None:
        nonlocal target, attempt
        attempt += 1
        if (target / "collection.json").is_file():
            with Collection.open(target) as collection:
                keys = set(collection.keys)
                assert all(keys >= set(conversation.images) for conversation in Conversations(collection))
        if not dead:
            assert _contents(target) == expected
            target = tmp_path / f"killed-{attempt}"

    kill_at_random(
        lambda: server.start("take_conversations", source, target, 7), kills=30, longest=took, seed=3, after=check
    )
    server.start("take_conversations", source, target, 7).finish()
    assert _contents(target) == expected
    with Collection.open(target) as collection:
        assert len(Conversations(collection)) == 62


@pytest.mark.slow
def test_kills_of_an_import_of_cards_at_random_change_nothing(server: Server, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", 60)
    (source / "deployments.csv").write_text("deploymentID,latitude,longitude\npart00,1,2\npart01,,\n")
    took = server.seconds("take_cards", source, tmp_path / "whole", 7)
    expected = _contents(tmp_path / "whole")
    target, attempt = tmp_path / "killed-0", 0

    def check(dead: bool) -> None:
        nonlocal target, attempt
        attempt += 1
        if not dead:
            assert _contents(target) == expected
            target = tmp_path / f"killed-{attempt}"

    kill_at_random(lambda: server.start("take_cards", source, target, 7), kills=20, longest=took, seed=4, after=check)
    server.start("take_cards", source, target, 7).finish()
    assert _contents(target) == expected
    assert len(Survey.open(target)) == 60


@pytest.mark.slow
def test_a_death_at_each_step_of_an_import_of_cards_changes_nothing(server: Server, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", 4)
    (source / "deployments.csv").write_text("deploymentID,latitude,longitude\npart00,1,2\npart01,,\n")
    steps = server.start("take_cards", source, tmp_path / "whole", 3).finish()
    expected = _contents(tmp_path / "whole")
    for die_at in range(1, steps + 1):
        target = tmp_path / f"died-{die_at}"
        assert server.start("take_cards", source, target, 3, die_at=die_at, moment="after").end() == 9
        server.start("take_cards", source, target, 3).finish()
        assert _contents(target) == expected
    survey = Survey.open(tmp_path / "whole")
    assert len(survey) == 4
    assert survey.num_listed == 2
