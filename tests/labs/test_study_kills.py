"""kill -9 at any moment of a study, then the same command: no finished training is lost, none is done again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from killing import Server, kill_at_random

TRAININGS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("studies_to_kill") as found:
        yield found


class Watched:
    """The cells of a study's folder, looked at between attempts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished: dict[str, tuple[bytes, int, int]] = {}

    def begun(self) -> Counter[str]:
        """How often each training was begun, by the log of the made study."""
        log = self.folder / "log.txt"
        lines = log.read_text().splitlines() if log.is_file() else []
        return Counter(line.split()[1] for line in lines if line.startswith("begin "))

    def look(self) -> None:
        """Asserts that what was finished is there as it was and was not begun again; remembers what is new."""
        begun = self.begun()
        now: dict[str, tuple[bytes, int, int]] = {}
        for path in (self.folder / "cells").glob("*.json"):
            now[path.stem] = (path.read_bytes(), path.stat().st_mtime_ns, begun[path.stem])
        for name, before in self.finished.items():
            assert now.get(name) == before, f"{name} was finished before"
        self.finished = now


def outcome(folder: Path) -> dict[str, Any]:
    """The result without what depends on the clock."""
    result = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in result.items() if name not in ("seconds", "command", "machine")}


def values(folder: Path) -> dict[str, Any]:
    """The measures of every finished training."""
    return {path.stem: json.loads(path.read_text())["values"] for path in (folder / "cells").glob("*-seed*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [50])
def test_no_finished_training_is_lost_or_done_again(kills: int, server: Server, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "study"
    took = server.seconds("counted", straight)
    expected, watched = outcome(straight), Watched(out)
    assert Watched(straight).begun() == dict.fromkeys(values(straight), 1)
    assert len(values(straight)) == TRAININGS

    def check(dead: bool) -> None:
        nonlocal watched
        watched.look()
        if not dead:
            assert outcome(out) == expected
            assert values(out) == values(straight)
            shutil.rmtree(out)
            watched = Watched(out)

    kill_at_random(lambda: server.start("counted", out), kills=kills, longest=took * 0.6, seed=5, after=check)
    server.start("counted", out).finish()
    watched.look()
    assert outcome(out) == expected
    assert values(out) == values(straight)


@pytest.mark.slow
def test_what_a_killed_process_leaves_the_other_takes_over(server: Server, tmp_path: Path) -> None:
    """Two processes on one study, of which one dies: the other ends it, each training finished once."""
    straight = tmp_path / "straight"
    took = server.seconds("counted", straight)
    with Server("studies_to_kill") as another:
        for number, share in enumerate((0.1, 0.3, 0.5)):
            out = tmp_path / f"study-{number}"
            dies, lives = server.start("counted", out), another.start("counted", out)
            dies.kill(took * share)
            lives.finish()
            assert values(out) == values(straight)
            assert outcome(out) == outcome(straight)
            ended = [line for line in (out / "log.txt").read_text().splitlines() if line.startswith("end ")]
            # One more where the kill fell between the end of a training and the writing of its cell.
            assert TRAININGS <= len(ended) <= TRAININGS + 1


@pytest.mark.slow
def test_a_killed_study_of_real_trainings_ends_with_the_same_numbers(server: Server, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "study"
    took = server.seconds("trained", straight)
    watched = Watched(out)

    def check(dead: bool) -> None:
        nonlocal watched
        watched.look()
        if not dead:
            assert values(out) == values(straight), "bit for bit"
            shutil.rmtree(out)
            watched = Watched(out)

    kill_at_random(lambda: server.start("trained", out), kills=10, longest=took * 0.6, seed=7, after=check)
    server.start("trained", out).finish()
    watched.look()
    assert values(out) == values(straight), "bit for bit"
    assert outcome(out)["table"] == outcome(straight)["table"]
