"""Files are whole or absent, and a folder has one writer at a time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from foveate.core import files
from foveate.core.errors import UserError
from foveate.core.files import (
    FolderLock,
    atomic_file,
    commit_atomically,
    fsync_path,
    open_descriptor,
    read_at,
    read_json,
    sha256_file,
    sweep,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)
from naming import raises_naming


def test_an_exception_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "value.bin"
    write_bytes_atomically(path, b"old")

    def write_half() -> None:
        with atomic_file(path) as handle:
            handle.write(b"new, but not all of")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["value.bin"], "no temporary file is left"


def test_readers_see_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    write_text_atomically(path, "old")
    with atomic_file(path) as handle:
        handle.write(b"new")
        handle.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "value.json"
    write_json_atomically(path, {"höhe": [1, 2.5, None]})
    assert read_json(path) == {"höhe": [1, 2.5, None]}
    assert "höhe" in path.read_text(encoding="utf-8")
    write_json_atomically(path, [])
    assert read_json(path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_json_has_no_nan(tmp_path: Path, value: object) -> None:
    path = tmp_path / "value.json"
    with pytest.raises(ValueError, match="Out of range"):
        write_json_atomically(path, value)
    assert not list(tmp_path.iterdir())


def test_read_json_errors_name_the_file(tmp_path: Path) -> None:
    with raises_naming(UserError, "absent.json"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"a": 1')
    with raises_naming(UserError, "cut.json"):
        read_json(tmp_path / "cut.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with raises_naming(UserError, "bytes.json"):
        read_json(tmp_path / "bytes.json")


def test_commit_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_bytes(b"x")
    commit_atomically(tmp_path / "file.tmp", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"x"
    (tmp_path / "folder.tmp").mkdir()
    (tmp_path / "folder.tmp" / "part").write_bytes(b"y")
    commit_atomically(tmp_path / "folder.tmp", tmp_path / "folder")
    assert (tmp_path / "folder" / "part").read_bytes() == b"y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"foveate" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"foveate" * 100_000).hexdigest()


HOLDER = """
import sys
from pathlib import Path
from foveate.core.files import FolderLock
with FolderLock(Path(sys.argv[1]), purpose="counting sheep"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input is closed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(UserError) as problem, FolderLock(tmp_path, purpose="training"):
            pass
        assert f"process {process.pid} on " in str(problem.value)
        assert "(counting sheep)" in str(problem.value)
        process.communicate()
    with FolderLock(tmp_path, purpose="training"):
        pass


def test_kill_9_frees_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.communicate()
    with FolderLock(tmp_path, purpose="training"):
        assert f"process {os.getpid()} on" in (tmp_path / "writer.owner").read_text()


def test_the_lock_is_freed_by_an_exception(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), FolderLock(tmp_path / "new", purpose="one"):
        raise RuntimeError
    with FolderLock(tmp_path / "new", purpose="two"):
        pass
    assert not (tmp_path / "new" / "writer.owner").exists(), "no owner is named who has left"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")
def test_a_group_that_shares_a_folder_shares_its_lock(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with FolderLock(tmp_path, purpose="one"):
            modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in files.LOCK_FILES}
        with files.file_lock(tmp_path / "own.lock", mode=0o600):
            assert (tmp_path / "own.lock").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(files.LOCK_FILES, 0o664)


def test_a_lock_is_freed_by_another_thread(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, purpose="one").__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lock.__exit__, None, None, None).result()
    with FolderLock(tmp_path, purpose="two"):
        pass


def test_threads_read_a_file_without_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bytes end lines, and a file, where one is read as text on Windows.
    content = b"\r\n\x1a\n" * 5000
    (tmp_path / "file").write_bytes(content)
    monkeypatch.delattr(os, "pread")
    descriptor = open_descriptor(tmp_path / "file")
    places = [(offset % 20_000, 1 + offset % 97) for offset in range(0, 200_000, 37)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda place: read_at(descriptor, place[1], place[0]), places))
    os.close(descriptor)
    assert parts == [content[offset : offset + length] for offset, length in places]


def test_windows_flushes_files_that_may_be_written_and_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    opened = list[tuple[str, int]]()
    open_path = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags: opened.append((Path(path).name, flags)) or open_path(path, flags)
    )
    monkeypatch.setattr(files, "_IS_WINDOWS", True)
    fsync_path(tmp_path)
    fsync_path(tmp_path / "file")
    assert opened == [("file", os.O_RDWR)]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    write_text_atomically(path, "whole")
    (tmp_path / ".a[1].json.1234.tmp").write_text("half")
    (tmp_path / ".a1.json.1234.tmp").write_text("of another")
    sweep(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a1.json.1234.tmp", "a[1].json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]
