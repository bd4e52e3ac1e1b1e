"""Folders as sources and targets: links, pipes, other writers, the same import again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hostile import folder_of_files, reasons, tar_of
from made_images import encoded, jpeg, noise, write_folder

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.importers.webdataset import import_webdataset
from foveate.records.writer import CollectionWriter
from naming import raises_naming


def test_a_duplicate_key_of_a_tar_is_quarantined_and_the_first_stays(tmp_path: Path) -> None:
    members = [("p.jpg", jpeg(1)), ("p.png", encoded(noise(2), "PNG")), ("q.jpg", jpeg(3)), ("p.jpg", jpeg(4))]
    import_webdataset(tar_of(tmp_path / "s.tar", members), tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert collection.image_bytes(collection.find_row("p")) == jpeg(1)
    assert reasons(tmp_path / "c") == {"p": ["member: duplicate member", "image: duplicate key"]}


def test_files_of_one_stem_are_images_of_their_own_whose_keys_stay(tmp_path: Path) -> None:
    source = folder_of_files(tmp_path, {"p.png": encoded(noise(2), "PNG"), "p.txt": "both"})
    import_folder(source, tmp_path / "c")
    (source / "p.jpg").write_bytes(jpeg(1))
    (source / "p.jpg.png").write_bytes(encoded(noise(3), "PNG"))
    for _ in range(2):
        import_folder(source, tmp_path / "c")
        collection = Collection.open(tmp_path / "c")
        names = {key: collection.image_bytes(row) for row, key in enumerate(collection.keys)}
        assert names == {"p": encoded(noise(2), "PNG"), "p.jpg": jpeg(1), "p.jpg.png": encoded(noise(3), "PNG")}
        assert [caption.text for row in range(2) for caption in collection.read_captions(row)] == ["both"] * 2
    assert reasons(tmp_path / "c") == {}


@pytest.mark.posix
def test_links_pipes_and_hidden_files_in_a_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    (tmp_path / "outside.jpg").write_bytes(jpeg(9))
    source = folder_of_files(tmp_path, {"a.jpg": jpeg(1), "b.jpg": jpeg(2), ".hidden.jpg": jpeg(3), "notes.md": "x"})
    (source / "a.txt").symlink_to(secret)
    (source / "c.jpg").symlink_to(tmp_path / "outside.jpg")
    (source / "d.jpg").symlink_to("b.jpg")
    (source / "e.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(source / "f.jpg")
    (source / "g.jpg").mkdir()
    summary = import_folder(source, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert collection.keys == ["a", "b", "d"]
    assert collection.table("captions").num_rows == 0
    assert reasons(tmp_path / "c") == {
        "a": ["sidecar: link leaves the folder"],
        "c": ["image: link leaves the folder"],
        "e": ["image: unreadable"],
        "f": ["image: no regular file"],
    }
    assert summary.ignored_files == 2


def test_links_to_folders_are_quarantined_and_not_followed(tmp_path: Path) -> None:
    folder_of_files(tmp_path / "away", {"x.jpg": jpeg(9)})
    source = folder_of_files(tmp_path, {"a.jpg": jpeg(1), "real/b.jpg": jpeg(2)})
    (source / "out").symlink_to(tmp_path / "away")
    (source / "within").symlink_to("real")
    (source / "real" / "loop").symlink_to("..")
    import_folder(source, tmp_path / "c")
    assert Collection.open(tmp_path / "c").keys == ["a", "real/b"]
    assert reasons(tmp_path / "c") == {
        "out": ["image: link leaves the folder"],
        "real/loop": ["image: no regular file"],
        "within": ["image: no regular file"],
    }


def test_a_folder_that_cannot_be_read_ends_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of_files(tmp_path, {"a.jpg": jpeg(1), "closed/b.jpg": jpeg(2), "lost+found/x": "x"})
    scan = os.scandir

    def refuse(path: str) -> object:
        if os.path.basename(path) in closed:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    closed = ["closed", "lost+found"]
    import_folder(source, tmp_path / "c")
    monkeypatch.setattr(os, "scandir", refuse)
    # Else its images would count as gone, and a mirror would delete them.
    with raises_naming(UserError, "closed", "cannot be read"):
        import_folder(source, tmp_path / "c", update=True, mirror=True)
    closed.remove("closed")
    assert import_folder(source, tmp_path / "c").gone == []
    assert Collection.open(tmp_path / "c").keys == ["a", "closed/b"]


def test_a_file_name_that_is_no_unicode_is_quarantined(tmp_path: Path) -> None:
    source = folder_of_files(tmp_path, {"good.jpg": jpeg(1)})
    with open(os.fsencode(source) + b"/caf\xe9.jpg", "wb") as file:
        file.write(jpeg(2))
    import_folder(source, tmp_path / "c")
    assert Collection.open(tmp_path / "c").keys == ["good"]
    assert reasons(tmp_path / "c") == {"caf\\udce9": ["image: unusable key"]}


def test_sources_that_are_not_there_or_empty(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "file.txt").write_text("x")
    target = tmp_path / "c"
    for importer in (import_folder, import_webdataset):
        with raises_naming(UserError, "images"):
            importer(tmp_path / "image", target)
    with raises_naming(UserError, "has no images"):
        import_folder(tmp_path / "images", target)
    with raises_naming(UserError, "has no tar files"):
        import_webdataset(tmp_path / "images", target)
    with raises_naming(UserError, "is a file"):
        import_folder(tmp_path / "file.txt", target)
    assert not target.exists()


def test_a_collection_as_source_or_another_folder_as_target_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 2)
    import_folder(source, tmp_path / "c")
    with raises_naming(UserError, "is a collection already"):
        import_folder(tmp_path / "c", tmp_path / "d")
    with raises_naming(UserError, "choose a new folder"):
        import_folder(source, source)


def test_a_collection_that_another_process_is_writing_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 2)
    tar = tar_of(tmp_path / "t.tar", [("p.jpg", jpeg(1))])
    with CollectionWriter(tmp_path / "c", source="other import"):
        for attempt in (lambda: import_folder(source, tmp_path / "c"), lambda: import_webdataset(tar, tmp_path / "c")):
            with pytest.raises(UserError, match="is being written by.*other import"):
                attempt()
    assert import_folder(source, tmp_path / "c").imported == 2


def test_importing_again_takes_only_what_is_new_and_records_no_finding_twice(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 12)
    (source / "bad.jpg").write_bytes(b"")
    first = import_folder(source, tmp_path / "c")
    (source / "zz.jpg").write_bytes(jpeg(99))
    second = import_folder(source, tmp_path / "c")
    assert (first.imported, second.imported, second.existing) == (12, 1, 12)
    collection = Collection.open(tmp_path / "c")
    assert len(collection) == 13
    assert collection.quarantine().num_rows == 1 + 3
    assert first.regions_quarantined == 3
    (source / "bad.jpg").write_bytes(jpeg(100))
    assert import_folder(source, tmp_path / "c").imported == 1


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 45)
    for number in range(0, 45, 7):
        (source / f"part00/bad{number}.jpg").write_bytes(b"<html>")
    for workers in (1, 5):
        stamp = "2026-01-01T00:00:00+00:00"
        import_folder(source, tmp_path / str(workers), name="c", workers=workers, images_per_shard=8, created=stamp)
    one, five = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "1", tmp_path / "5")
    )
    assert one == five


def test_the_first_line_alone_is_the_text_where_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "frog.jpg").write_bytes(jpeg(1))
    (tmp_path / "in" / "frog.txt").write_text("A frog.\nde.utf8=Ein Frosch.\n", encoding="utf-8")
    import_folder(tmp_path / "in", tmp_path / "first", first_line=True)
    import_folder(tmp_path / "in", tmp_path / "whole")
    texts = [Collection.open(tmp_path / name).read_captions(0)[0].text for name in ("first", "whole")]
    assert texts == ["A frog.", "A frog.\nde.utf8=Ein Frosch."]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("line", ["（a） frog", "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE} 上 frog"])
def test_the_first_line_loses_no_bytes(line: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "frog.jpg").write_bytes(jpeg(1))
    (tmp_path / "in" / "frog.txt").write_bytes(f"\r\n{line}\r\nand a second line in English\r\n".encode(encoding))
    import_folder(tmp_path / "in", tmp_path / "out", first_line=True)
    assert [caption.text for caption in Collection.open(tmp_path / "out").read_captions(0)] == [line]
