"""Sample files: the same bytes from the same seed, whole or not at all, and never over files of others."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.records import samples
from foveate.records.samples import make_files, photographs, write_samples
from foveate.survey.importers.cards import read_time


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return make_files(0)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_decides_the_bytes(files: dict[str, bytes]) -> None:
    assert make_files(0) == files
    other = make_files(1)
    assert other.keys() == files.keys()
    changed = {name.split("/")[0] for name in files if other[name] != files[name]}
    assert changed == {"labeled", "card", "hospital-a.csv", "hospital-b.csv"}


def test_all_files_are_what_their_names_say(files: dict[str, bytes]) -> None:
    images = [name for name in files if name.lower().endswith((".jpg", ".webp"))]
    assert len(images) == 6 + 1 + 128 + 12
    for name in images:
        with Image.open(io.BytesIO(files[name])) as image:
            image.load()
            assert image.mode in ("RGB", "RGBA")
    with Image.open(io.BytesIO(files["clip.webp"])) as clip:
        assert getattr(clip, "n_frames", 1) == 24
    assert set(photographs()) == {name.split("/")[1][:-4] for name in files if name.startswith("photographs/")}
    rows = list(csv.DictReader(io.StringIO(files["alt-texts.csv"].decode())))
    assert [row["file"] for row in rows] == [name for name in files if name.startswith("photographs/")]
    assert all(row["text"] for row in rows)


def test_cards_have_times_and_deployments(files: dict[str, bytes]) -> None:
    frames = sorted(name for name in files if name.endswith(".JPG"))
    times = [read_time(files[name]) for name in frames]
    assert all(times)
    # A burst is three frames, one second apart.
    assert all(int(b[-2:]) - int(a[-2:]) == 1 for a, b in zip(times, times[1:], strict=False) if a[:-2] == b[:-2])
    rows = list(csv.DictReader(io.StringIO(files["card/deployments.csv"].decode())))
    assert {row["folder"] for row in rows} == {name.split("/")[1] for name in frames}


def test_hospitals_share_all_rows_and_differ(files: dict[str, bytes]) -> None:
    tables = [list(csv.DictReader(io.StringIO(files[f"hospital-{letter}.csv"].decode()))) for letter in "ab"]
    assert sum(map(len, tables)) == 569
    first, second = (sum(row["diagnosis"] == "malignant" for row in table) / len(table) for table in tables)
    assert first < second - 0.2
    assert all(float(row["mean_radius"]) > 0 for table in tables for row in table)


def test_everybody_is_named(files: dict[str, bytes]) -> None:
    text = files["README.md"].decode()
    assert not [name for name in {name.split("/")[0] for name in files} - {"README.md"} if name not in text]


def test_a_folder_is_written_once_and_never_over_others(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "make_files", lambda seed: files | {"card/deployments.csv": str(seed).encode()})
    folder = tmp_path / "my samples"
    folder.mkdir()
    listed = write_samples(folder)
    assert all(sample.path.exists() for sample in listed)
    assert all(f"'{folder}/" in sample.command for sample in listed)
    before = read(folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_samples(folder) == listed
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    with pytest.raises(UserError, match=r"has other files \(got 'card/deployments.csv'\)"):
        write_samples(folder, seed=1)
    (folder / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"has other files \(got 'mine.txt'\); expected a new or empty folder"):
        write_samples(folder)
    assert read(folder) == before | {"mine.txt": b"x"}
    with pytest.raises(UserError, match=r"is a file; expected a new or empty folder"):
        write_samples(folder / "mine.txt")


def test_a_stopped_command_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "make_files", lambda seed: files)
    monkeypatch.setattr(samples, "fsync_path", stop)
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "samples")
    assert not list(tmp_path.iterdir())
