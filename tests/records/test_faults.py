"""Disks that are full or read-only, two writers, readers beside a writer, shards that vanish: words, and no loss."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_images import encoded, jpeg, noise, write_folder
from PIL import Image

from foveate.cli.main import main
from foveate.core import progress
from foveate.core.errors import explain_os_error
from foveate.records.collection import Collection
from foveate.records.exporters.webdataset import export_webdataset
from foveate.records.images import BadImage
from foveate.records.importers.folder import import_folder
from foveate.records.record import Caption
from foveate.records.removal import remove_images
from foveate.records.writer import CollectionWriter
from naming import raises_naming
from small_disk import Disk, disk

STAMP = "2026-01-01T00:00:00+00:00"
__all__ = ["disk"]  # the fixture
OPTIONS = {"name": "c", "workers": 1, "images_per_shard": 7, "created": STAMP}


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "removed.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code of the command line and its one line of error."""
    capsys.readouterr()
    code: object = 0
    try:
        main([*map(str, arguments), "--quiet"])
    except SystemExit as ended:
        code = ended.code
    finally:
        progress.configure(quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 1, lines
    return int(str(code or 0)), "".join(lines)


def test_a_full_disk_loses_nothing_and_the_same_import_goes_on(disk: Disk, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", 60)
    import_folder(source, tmp_path / "whole" / "c", **OPTIONS)
    target = disk.folder / "c"
    counts = []
    for size in ("192k", "256k", "320k"):
        disk.resize(size)
        with pytest.raises(OSError, match="No space left") as caught:
            import_folder(source, target, **OPTIONS)
        said = explain_os_error(caught.value)
        assert said is not None
        assert said.startswith(f"{target}/")
        assert "the disk is full (" in said
        assert "MB free of" in said
        assert not list(target.rglob("*.tmp"))
        collection = Collection.open(target)
        counts.append(len(collection))
        for row in range(len(collection)):
            assert collection.image_bytes(row, verify=True) == (source / f"{collection.keys[row]}.jpg").read_bytes()
    assert 0 < counts[0] < counts[1] < counts[2] < 60
    disk.resize("2m")
    import_folder(source, target, **OPTIONS)
    assert _contents(target) == _contents(tmp_path / "whole" / "c")


def test_a_full_disk_is_said_by_the_command_line(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        path = tmp_path / "source" / f"p{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((100, 100), 50 + number).save(path)
    code, said = _run(capsys, "collect", tmp_path / "source", "--out", disk.folder / "c")
    assert code == 1
    assert said.startswith(f"foveate: {disk.folder}/c/images/")
    assert "the disk is full (" in said
    free = float(said.split("full (")[1].split(" MB")[0])
    assert free > 0.1  # what was half written has been cleared away
    disk.resize("2m")
    assert _run(capsys, "collect", tmp_path / "source", "--out", disk.folder / "c") == (0, "")
    assert len(Collection.open(disk.folder / "c")) == 30


def test_a_full_disk_names_the_tar_of_an_export(disk: Disk, tmp_path: Path) -> None:
    import_folder(write_folder(tmp_path / "source", 60), tmp_path / "c", **OPTIONS)
    with pytest.raises(OSError, match="No space left") as caught:
        export_webdataset(Collection.open(tmp_path / "c"), disk.folder / "tars")
    assert str(explain_os_error(caught.value)).startswith(f"{disk.folder}/tars/00000.tar: ")


def test_a_full_disk_stops_a_removal_that_goes_on_later(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.resize("4m")
    with CollectionWriter(disk.folder / "c", images_per_shard=20) as writer:
        for number in range(60):
            writer.add(f"p{number}", encoded(noise(number, width=100, height=100), "BMP"))
    keys = ["p1", "p21", "p41"]
    used = sum(file.stat().st_size for file in disk.folder.rglob("*") if file.is_file())
    disk.resize(f"{used // 1024 + 80}k")
    code, said = _run(capsys, "remove", disk.folder / "c", *keys)
    assert code == 1
    assert "the disk is full" in said
    collection = Collection.open(disk.folder / "c")
    assert len(collection) == 57  # hidden at once
    assert all(collection.image_bytes(row, verify=True) for row in range(57))
    disk.resize("4m")
    assert _run(capsys, "remove", disk.folder / "c", *keys) == (0, "")
    gone = [encoded(noise(int(key[1:]), width=100, height=100), "BMP") for key in keys]
    tars = [tar.read_bytes() for tar in (disk.folder / "c" / "images").iterdir()]
    assert len(tars) == 3
    assert not any(image in tar for image in gone for tar in tars)


def test_a_read_only_disk_is_read_and_said(disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "source", 5)
    import_folder(source, disk.folder / "c", **OPTIONS)
    disk.change("remount,ro")
    assert [len(Collection.open(disk.folder / "c")), len(Collection.open(disk.folder / "c").read_captions(0))] == [5, 1]
    assert len(remove_images(disk.folder / "c", ["part00/p0001"], dry_run=True).removed) == 1
    for arguments in (
        ("collect", source, "--out", disk.folder / "c"),
        ("collect", source, "--out", disk.folder / "new"),
        ("remove", disk.folder / "c", "part00/p0001"),
    ):
        code, said = _run(capsys, *arguments)
        assert code == 1
        assert said.startswith(f"foveate: {disk.folder}/")
        assert "the disk is read-only" in said


@pytest.mark.posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_without_permission_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "source", 3)
    (tmp_path / "closed").mkdir(mode=0o555)
    code, said = _run(capsys, "collect", source, "--out", tmp_path / "closed" / "c")
    assert code == 1
    assert "permission denied" in said


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, *(pytest.param(one, marks=pytest.mark.slow) for one in (errno.EDQUOT, errno.EIO))]
)
def test_a_refusal_at_any_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Each fsync is a moment at which the disk may have refused; none of them leaves a half-written collection."""
    source = write_folder(tmp_path / "source", 12)
    options = {**OPTIONS, "images_per_shard": 5}
    import_folder(source, tmp_path / "whole" / "c", **options)
    sync, calls, refuse_at = os.fsync, 0, 0

    def refusing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == refuse_at:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    import_folder(source, tmp_path / "counted", **options)
    total = calls
    assert total > 20
    for refuse_at in range(1, total + 1, 3):
        target = tmp_path / f"refused-{refuse_at}" / "c"
        calls = 0
        with pytest.raises(OSError, match=os.strerror(number)):
            import_folder(source, target, **options)
        if (target / "collection.json").is_file():
            collection = Collection.open(target)
            assert all(collection.image_bytes(row, verify=True) for row in range(len(collection)))
        refuse_at = 0
        import_folder(source, target, **options)
        assert _contents(target) == _contents(tmp_path / "whole" / "c")


@pytest.mark.posix
def test_a_limit_on_the_size_of_files_is_said(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):
        Image.effect_noise((100, 100), 50 + number).save(source / f"p{number}.png")

    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    command = [sys.executable, "-m", "foveate", "collect", str(source), "--out", str(tmp_path / "c"), "--quiet"]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "the file would be larger than this disk or process allows" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert len(Collection.open(tmp_path / "c")) == 30


def _process(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_second_process_is_refused_with_the_name_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "source", 3)
    import_folder(source, tmp_path / "c")
    program = (
        "import sys\n"
        "from foveate.records.writer import CollectionWriter\n"
        "with CollectionWriter(sys.argv[1], source='holidays'):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with _process(program, tmp_path / "c") as first:
        assert first.stdout is not None
        first.stdout.readline()
        for arguments in (
            ("collect", source, "--out", tmp_path / "c"),
            ("remove", tmp_path / "c", "part00/p0001"),
        ):
            code, said = _run(capsys, *arguments)
            assert code == 1
            assert f"is being written by process {first.pid} on " in said
            assert "(adding holidays)" in said
        assert len(Collection.open(tmp_path / "c")) == 3
        first.communicate()
    assert _run(capsys, "remove", tmp_path / "c", "part00/p0001") == (0, "")


def test_a_reader_beside_a_writer_sees_whole_moments(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from made_images import jpeg\n"
        "from foveate.records.record import Caption\n"
        "from foveate.records.writer import CollectionWriter\n"
        "from foveate.records.tables import Provenance\n"
        "with CollectionWriter(sys.argv[1], images_per_shard=3) as writer:\n"
        "    print('ready', flush=True)\n"
        "    for number in range(90):\n"
        "        writer.add(f'p{number}', jpeg(number), captions=[Caption(f'words {number}')])\n"
        "        if number % 30 == 29:\n"
        "            writer.annotate('captions', [{'key': 'p1', 'text': f'later {number}'}], Provenance())\n"
        "        if number % 9 == 8:\n"
        "            writer.remove([f'p{number - 8}'], reason='test', purge=number % 2 == 0)\n"
        "            writer.purge()\n"
    )
    with _process(program, tmp_path / "c", Path(__file__).parent) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        looks, reasons = 0, set()
        while writer.poll() is None:
            collection = Collection.open(tmp_path / "c")
            looks += 1
            assert not collection.removed & set(collection.keys)
            for row, key in enumerate(collection.keys):
                words = [caption.text for caption in collection.read_captions(row)]
                assert words[:1] in ([f"words {key[1:]}"], [])
                try:
                    assert collection.image_bytes(row) == jpeg(int(key[1:]))
                except BadImage as gone:
                    reasons.add(gone.reason)  # purged after this reader looked
        assert writer.returncode == 0
    assert looks > 3
    assert reasons <= {"missing shard"}
    assert len(Collection.open(tmp_path / "c")) == 80


def test_every_fault_of_a_shard_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", jpeg(1), captions=[Caption("words")])
    tar = tmp_path / "c" / "images" / "00000.tar"

    def reason(opened: Collection, *, verify: bool = False) -> str:
        with raises_naming(BadImage, "00000.tar") as caught:
            opened.image_bytes(0, verify=verify)
        return caught.value.reason

    def refuse(*arguments: object) -> Callable[..., bytes]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", refuse)
        assert reason(Collection.open(tmp_path / "c")) == "unreadable"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(bytes(data))
    assert reason(Collection.open(tmp_path / "c"), verify=True) == "damaged shard"
    open_already = Collection.open(tmp_path / "c")
    open_already.image_bytes(0)
    shutil.move(tar, tmp_path / "elsewhere.tar")
    assert open_already.image_bytes(0)  # the file is open, its name is gone
    assert reason(Collection.open(tmp_path / "c")) == "missing shard"
    tar.symlink_to(tar.name)
    assert reason(Collection.open(tmp_path / "c")) == "unreadable"
