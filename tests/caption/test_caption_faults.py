"""Captioning on a full disk, beside another process, with a server that is gone for a minute: words, and no loss."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from captioned import ask, make, rows, texts

from chat_server import ChatServer, good, says
from foveate.core.errors import explain_os_error
from small_disk import Disk, disk

__all__ = ["disk"]  # the fixture


def test_a_full_disk_is_reported_and_the_same_command_resumes(disk: Disk, tmp_path: Path) -> None:
    disk.resize("8m")
    collection = make(disk.folder / "c", 60)
    used = sum(file.stat().st_size for file in disk.folder.rglob("*") if file.is_file())
    with ChatServer() as server:
        num_rows = 0
        for more in (48, 96):
            disk.resize(f"{used // 1024 + more}k")
            with pytest.raises(OSError, match="No space left") as caught:
                ask(collection, server.url, rows_per_part=20)
            message = explain_os_error(caught.value)
            assert message is not None
            assert message.startswith(f"{collection}/annotations/captions/")
            assert "the disk is full" in message
            assert not list(collection.rglob("*.tmp"))
            assert len(texts(collection)) >= num_rows
            num_rows = len(texts(collection))
        disk.resize("8m")
        done = ask(collection, server.url)
    assert 0 < num_rows < 240
    assert sum(tally["skipped"].get("done", 0) for tally in done.result.to_json()["formats"].values()) == num_rows
    assert len(texts(collection)) == 240


@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_a_refusal_at_any_write_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Each fsync is a moment at which the disk may have refused."""
    whole = make(tmp_path / "whole" / "c", 6)
    sync, calls, refuse_at = os.fsync, 0, 0

    def refusing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == refuse_at:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    def behave(count: int, body: dict[str, Any]) -> Any:
        text = good(body)
        return says("I cannot do that." if "golden" in text or "red" in text.split()[2] else text)

    monkeypatch.setattr(os, "fsync", refusing)
    with ChatServer(behave) as server:
        plain = shutil.copytree(whole, tmp_path / "plain" / "c")
        ask(plain, server.url, rows_per_part=10, http_concurrency=1)
        expected, total = texts(plain), calls
        assert total >= 6
        for refuse_at in range(1, total + 1, 3):
            target = shutil.copytree(whole, tmp_path / f"refused-{refuse_at}" / "c")
            calls = 0
            with contextlib.suppress(OSError):  # where nothing is written at that moment of this run
                ask(target, server.url, rows_per_part=10, http_concurrency=1)
            assert texts(target).items() <= expected.items()
            calls = -(10**6)
            ask(target, server.url)
            assert texts(target) == expected


def test_two_processes_at_one_collection(tmp_path: Path) -> None:
    """The second is refused in a sentence, and a reader beside them sees whole parts."""
    collection = make(tmp_path / "c", 40)
    with ChatServer(lambda number, body: says(good(body), seconds=0.1)) as server:
        command = [sys.executable, "-m", "foveate", "caption", str(collection), "--format", "ssc,dsc", "--model", "m"]
        command += ["--endpoint", server.url, "--concurrency", "2", "--quiet", "--rows-per-part", "5", "--out"]
        first = subprocess.Popen([*command, str(tmp_path / "one")], stdout=subprocess.DEVNULL)
        while not server.requests:
            time.sleep(0.02)
        second = subprocess.run([*command, str(tmp_path / "two")], capture_output=True, text=True, timeout=120)
        assert second.returncode == 1
        assert f"is being written by process {first.pid} on " in second.stderr
        assert "(captioning)" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        while first.poll() is None:
            texts(collection)
            time.sleep(0.1)
        assert first.returncode == 0
        assert len(server.requests) == 80
    assert len(texts(collection)) == 80


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_minute_costs_no_row(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 60)
    with ChatServer(lambda n, body: says(good(body), seconds=0.05)) as server:
        port = server.port
        done: list[Any] = []
        thread = threading.Thread(
            target=lambda: done.append(ask(collection, server.url, http_backoff_seconds=1.0, http_concurrency=16))
        )
        thread.start()
        while len(server.requests) < 60:
            time.sleep(0.01)
    time.sleep(60)
    with ChatServer(port=port) as back:
        thread.join(120)
        assert len(back.requests) < 240
    assert {kind: tally["ok"] for kind, tally in done[0].result.to_json()["formats"].items()} == dict.fromkeys(
        ("ssc", "dsc", "dsc_plus", "afc"), 60
    )
    assert len(texts(collection)) == 240
    assert not rows(collection, "caption_errors")
