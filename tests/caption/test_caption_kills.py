"""kill -9 at any moment of captioning, then the same command: no row lost, none doubled, nothing asked twice that was
written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from captioned import make, rows, texts

from chat_server import ChatServer, Say, good, says
from killing import Server, kill_at_random


def behave(number: int, body: dict[str, Any]) -> Say:
    """Answers by the image alone; some images are refused, and some answers come in a fence."""
    text = good(body)
    if "golden" in text:
        text = "I cannot do that."
    elif "spotted" in text:
        text = f"```json\n{text}\n```"
    return says(text, seconds=0.004)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("captions_to_kill") as stored:
        yield stored


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatServer]:
    with ChatServer(behave) as stored:
        yield stored


def errors(collection: Path) -> dict[str, str]:
    stored = rows(collection, "caption_errors")
    assert len({row["request"] for row in stored}) == len(stored), "an error is doubled"
    return {row["request"]: row["error"] for row in stored}


def copy(whole: Path, folder: Path) -> Path:
    """A collection before any captions."""
    shutil.copytree(whole, folder / "c")
    return folder / "c"


@pytest.mark.slow
def test_a_kill_before_and_after_every_file_is_mended(server: Server, chat: ChatServer, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole" / "c", 9)
    plain = copy(whole, tmp_path / "plain")
    steps = server.start("run", plain, chat.url, 9).finish()
    expected, failed = texts(plain), errors(plain)
    assert len(expected) + len(failed) == 36
    assert failed
    assert steps >= 5
    for die_at, moment in ((1, "before"), (1, "after"), (3, "before"), (5, "after")):
        target = copy(whole, tmp_path / f"{moment}-{die_at}")
        server.start("run", target, chat.url, 9, die_at=die_at, moment=moment).end()
        stored = texts(target)
        assert stored.items() <= expected.items()
        num_requests = len(chat.requests)
        server.start("run", target, chat.url, 9).finish()
        assert texts(target) == expected
        assert errors(target) == failed
        assert len(chat.requests) - num_requests <= 36 - len(stored)
        assert not list(target.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_at_random_moments(server: Server, chat: ChatServer, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole" / "c", 40)
    plain = copy(whole, tmp_path / "plain")
    took = server.seconds("run", plain, chat.url, 16)
    expected, failed = texts(plain), errors(plain)
    assert len(expected) + len(failed) == 160
    target, attempt, num_stored, max_runs = copy(whole, tmp_path / "killed-0"), 0, 0, 0

    def check(dead: bool) -> None:
        nonlocal target, attempt, num_stored, max_runs
        attempt += 1
        stored = texts(target)
        assert stored.items() <= expected.items()
        assert errors(target).items() <= failed.items()
        assert len(stored) >= num_stored
        num_stored = len(stored)
        max_runs = max(max_runs, len({row["details"]["run_id"] for row in rows(target)}))
        if not dead:
            assert (stored, errors(target)) == (expected, failed)
            shutil.rmtree(target.parent)
            target, num_stored = copy(whole, tmp_path / f"killed-{attempt}"), 0

    # A machine that other work slows down may not store anything in the time that the first run took.
    for kills, longest in ((50, took), (10, 3 * took), (10, 9 * took)):
        kill_at_random(
            lambda: server.start("run", target, chat.url, 16), kills=kills, longest=longest, seed=11, after=check
        )
        if max_runs > 1:
            break
    server.start("run", target, chat.url, 16).finish()
    assert texts(target) == expected
    assert errors(target) == failed
    assert max_runs > 1, "what a killed run wrote was kept, and another one went on"
    num_requests = len(chat.requests)
    server.start("run", target, chat.url, 16).finish()
    assert len(chat.requests) == num_requests
