"""The same folder again after its files changed: newer rows, new images, and what is gone; also after kills."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hostile import folder_of_files, reasons
from made_images import jpeg

from foveate.cli.main import main
from foveate.records.collection import Collection
from foveate.records.folder_collection import refer_to_folder
from foveate.records.importers import ingest
from foveate.records.importers.folder import import_folder
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter


def _texts(target: Path) -> dict[str, list[str]]:
    with Collection.open(target) as collection:
        return {
            key: [caption.text for caption in collection.read_captions(row)] for row, key in enumerate(collection.keys)
        }


def _age(folder: Path, hours: int) -> None:
    """Give all files an older time: a file of this moment is read again, whatever its time."""
    for path in folder.rglob("*"):
        seconds = path.stat().st_mtime - 3600 * hours
        os.utime(path, (seconds, seconds))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    files: dict[str, Any] = {f"{name}.jpg": jpeg(number) for number, name in enumerate("abcde")}
    files |= {f"{name}.txt": f"text of {name}" for name in "abc"}
    folder = folder_of_files(tmp_path, files | {"d.json": {"caption": "D", "labels": {"site": "old", "kind": "x"}}})
    _age(folder, 5)
    return folder


@pytest.mark.parametrize("reference", [False, True])
def test_changes_are_counted_without_the_option_and_taken_with_it(
    source: Path, tmp_path: Path, reference: bool
) -> None:
    target = tmp_path / "c"
    import_folder(source, target, reference=reference)
    with CollectionWriter(target) as writer:
        writer.annotate(
            "captions",
            [{"key": key, "kind": "ssc", "text": f"generated of {key}", "request": key} for key in "ab"],
            Provenance(model="m"),
        )
    (source / "a.txt").write_text("new text of a")
    (source / "d.json").write_text('{"caption": "D", "labels": {"site": "new"}}')
    (source / "b.jpg").write_bytes(jpeg(77))
    (source / "e.jpg").unlink()
    (source / "f.jpg").write_bytes(jpeg(88))
    counted = import_folder(source, target, reference=reference)
    assert (counted.imported, counted.texts_changed, counted.files_replaced, counted.gone) == (1, 2, 1, ["e"])
    assert "2 texts changed, 1 file replaced, 1 gone: --update" in counted.lines()[-1]
    assert _texts(target)["a"] == ["text of a", "generated of a"]
    assert reasons(target) == {}
    taken = import_folder(source, target, reference=reference, update=True)
    assert (taken.imported, taken.texts_changed, taken.files_replaced, taken.gone) == (1, 2, 1, ["e"])
    # Newer rows of a; rows of a captioner stay with the image that they describe, and go with the bytes that they did.
    assert sorted(_texts(target)["a"]) == ["generated of a", "new text of a"]
    assert _texts(target)["b"] == ["text of b"]
    with Collection.open(target) as collection:
        assert collection.image_bytes(collection.find_row("b"), verify=True) == jpeg(77)
        assert collection["d"].labels == {"site": "new"}
        assert collection["d"].captions == (Caption("D", source="source"),)
        assert sorted(collection.keys) == list("abcdef")
    again = import_folder(source, target, reference=reference, update=True)
    assert (again.imported, again.texts_changed, again.files_replaced, again.existing) == (0, 0, 0, 5)


def test_a_text_that_comes_back_holds_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "c"
    import_folder(source, target)
    for text in ("second", "text of a", "second", ""):
        (source / "a.txt").write_text(text)
        assert import_folder(source, target, update=True).texts_changed == 1
        assert _texts(target)["a"] == ([text] if text else [])
    with Collection.open(target) as collection:
        assert collection.table("captions").num_rows == 3
    (source / "a.txt").unlink()
    assert import_folder(source, target, update=True).texts_changed == 0


def test_unchanged_files_are_not_read(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_folder(source, tmp_path / "c")
    refer_to_folder(source, tmp_path / "r", workers=1)
    read: list[str] = []
    load = ingest._prepare

    def watch(writer: Any, sample: Any, max_pixels: int) -> Any:
        read.extend([] if sample.unchanged else [sample.key])
        return load(writer, sample, max_pixels)

    monkeypatch.setattr(ingest, "_prepare", watch)
    (source / "z.jpg").write_bytes(jpeg(5))
    (source / "a.txt").write_text("newer")
    assert import_folder(source, tmp_path / "c").existing == 5
    assert read == ["a", "z"]
    read.clear()
    assert refer_to_folder(source, tmp_path / "r", workers=1).new == 1
    assert read == ["a", "z"]
    assert _texts(tmp_path / "r")["a"] == ["newer"]


def test_another_folder_replaces_nothing(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "c")
    other = folder_of_files(tmp_path / "other", {"a.jpg": jpeg(50), "b.jpg": jpeg(1), "b.txt": "other text"})
    summary = import_folder(other, tmp_path / "c", update=True)
    assert (summary.files_replaced, summary.texts_changed, summary.gone) == (0, 0, [])
    assert reasons(tmp_path / "c") == {"a": ["image: duplicate key"]}
    assert _texts(tmp_path / "c")["b"] == ["text of b"]


def test_a_folder_that_moved_is_still_the_same(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "c", source_name="s")
    moved = source.rename(tmp_path / "moved")
    (moved / "a.txt").write_text("changed")
    # The texts of a copy elsewhere may be others; once taken over, the folder is followed again.
    assert import_folder(moved, tmp_path / "c", source_name="s", update=True).texts_changed == 0
    (moved / "b.txt").write_text("changed")
    assert import_folder(moved, tmp_path / "c", source_name="s", update=True).texts_changed == 1


def test_gone_images_are_listed_for_a_removal(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "c")
    main(["collect", str(source), "--out", target, "--quiet"])
    for name in "ab":
        (source / f"{name}.jpg").unlink()
    main(["collect", str(source), "--out", target, "--update", "--quiet"])
    assert f"foveate remove {target} --from {target}/gone.txt" in capsys.readouterr().out
    main(["remove", target, "--from", f"{target}/gone.txt", "--quiet"])
    assert sorted(_texts(Path(target))) == list("cde")


def test_renamed_images_are_not_listed_for_a_removal(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "c")
    main(["collect", str(source), "--out", target, "--quiet"])
    (source / "a.jpg").rename(source / "new.jpg")
    (source / "b.jpg").unlink()
    main(["collect", str(source), "--out", target, "--update", "--quiet"])
    assert "2 gone, 1 of these renamed" in capsys.readouterr().out
    assert (tmp_path / "c" / "gone.txt").read_text() == "b\n"
    main(["remove", target, "--from", f"{target}/gone.txt", "--quiet"])
    # A removal of "a" would keep its bytes out under each later name.
    (source / "new.jpg").rename(source / "newer.jpg")
    main(["collect", str(source), "--out", target, "--update", "--quiet"])
    assert "newer" in _texts(Path(target))
