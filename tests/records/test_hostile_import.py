"""Importers meet what the web holds: each bad thing is refused or quarantined with a sentence and a count."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_pictures import encoded, jpeg, noise, png_header, write_folder
from PIL import Image

from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.importers.webdataset import import_webdataset
from foveate.records.writer import CollectionWriter
from foveate.settings.errors import UserError

Importer = Callable[..., object]


def _folder(tmp_path: Path, files: dict[str, bytes | str | dict]) -> Path:
    source = tmp_path / "source"
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bytes(content))
    return source


def _bytes(content: bytes | str | dict) -> bytes:
    if isinstance(content, dict):
        return json.dumps(content).encode()
    return content.encode() if isinstance(content, str) else content


def _tar(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes | str | dict]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            data = _bytes(content)
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return path


def _reasons(target: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in Collection.open(target).quarantine().to_pylist():
        assert row["detail"]
        assert "\n" not in row["detail"]
        assert row["source"]
        found.setdefault(row["key"], []).append(f"{row['subject']}: {row['reason']}")
    return found


def _frames(format: str) -> bytes:
    return encoded(noise(1), format, save_all=True, append_images=[noise(2), noise(3)])


BAD_PICTURES = {
    "cut": ("jpg", jpeg(1, width=200, height=100)[:1500], "truncated"),
    "empty": ("jpg", b"", "empty file"),
    "bomb": ("png", png_header(30_000, 30_000), "too many pixels"),
    "html": ("jpg", b"<!DOCTYPE html><html>moved</html>", "not a picture"),
    "heic": ("heic", b"\0\0\0\x18ftypheic" + bytes(50), "format not allowed"),
    "ppm": ("jpg", encoded(noise(2), "PPM"), "format not allowed"),
    "garbage": ("jpg", bytes(range(256)), "format not allowed"),
}
UNUSUAL_PICTURES = {
    "cmyk": ("jpg", encoded(noise(3).convert("CMYK"))),
    "grey16": ("png", encoded(Image.fromarray(np.arange(2048, dtype=np.uint16).reshape(32, 64) * 32), "PNG")),
    "palette": ("png", encoded(noise(4).convert("P"), "PNG", transparency=3)),
    "alpha": ("png", encoded(noise(5).convert("RGBA"), "PNG")),
    "gif": ("gif", _frames("GIF")),
    "webp": ("webp", _frames("WEBP")),
    "apng": ("png", _frames("PNG")),
    "misnamed": ("jpg", encoded(noise(6), "PNG")),
}


def _import_pictures(tmp_path: Path, how: str, pictures: dict[str, tuple[str, bytes]]) -> tuple[object, Path]:
    target = tmp_path / "collection"
    if how == "folder":
        source = _folder(tmp_path, {f"{key}.{suffix}": data for key, (suffix, data) in pictures.items()})
        return import_folder(source, target), target
    members = [(f"{key}.{suffix}", data) for key, (suffix, data) in sorted(pictures.items())]
    return import_webdataset(_tar(tmp_path / "source.tar", members), target), target


@pytest.mark.parametrize("how", ["folder", "webdataset"])
def test_bad_pictures_are_quarantined_and_unusual_ones_taken(tmp_path: Path, how: str) -> None:
    bad = {key: (suffix, data) for key, (suffix, data, _) in BAD_PICTURES.items()}
    summary, target = _import_pictures(tmp_path, how, {**bad, **UNUSUAL_PICTURES})
    assert Collection.open(target).keys == sorted(UNUSUAL_PICTURES)
    assert _reasons(target) == {key: [f"picture: {reason}"] for key, (_, _, reason) in BAD_PICTURES.items()}
    assert summary.taken == len(UNUSUAL_PICTURES)
    assert summary.pictures_quarantined == len(BAD_PICTURES)
    assert summary.animated == 3
    reasons = Counter(f"picture: {reason}" for _, _, reason in BAD_PICTURES.values())
    assert summary.quarantined == reasons
    told = "\n".join(summary.lines())
    assert "2 quarantined: picture: format not allowed" not in told
    assert "3 quarantined: picture: format not allowed" in told


@pytest.mark.parametrize("how", ["folder", "webdataset"])
def test_boxes_refer_to_the_picture_after_exif_rotation(tmp_path: Path, how: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = encoded(noise(1, width=100, height=40), "JPEG", exif=exif)
    sidecar = {"regions": [{"box": [10, 20, 30, 90], "phrase": "low"}, {"box": [50, 0, 90, 40], "phrase": "wide"}]}
    if how == "folder":
        import_folder(_folder(tmp_path, {"p.jpg": picture, "p.json": sidecar}), tmp_path / "c")
    else:
        import_webdataset(_tar(tmp_path / "s.tar", [("p.jpg", picture), ("p.json", sidecar)]), tmp_path / "c")
    record = Collection.open(tmp_path / "c").record(0)
    assert (record.width, record.height) == (40, 100)
    assert [region.phrase for region in record.regions] == ["low"]
    assert np.allclose(record.regions[0].box.to_array(), [0.25, 0.2, 0.75, 0.9])
    assert _reasons(tmp_path / "c") == {"p": ["region: box outside the picture"]}


def test_regions_in_every_form_and_every_kind_of_bad_box(tmp_path: Path) -> None:
    good = [
        {"box": [10, 10, 50, 40], "phrase": "pixels"},
        {"box": [10, 10, 40, 30], "phrase": "size", "format": "xywh"},
        {"box": [0.1, 0.2, 0.5, 0.8], "phrase": "parts", "unit": "normalised", "score": 0.5},
        {"box": [0.1, 0.2, 0.4, 0.6], "label": "only a label", "unit": "normalised", "format": "xywh"},
        {"box": [-3, 0, 103, 50], "phrase": "a little too large"},
    ]
    bad = [
        ({"box": [float("nan"), 0, 10, 10], "phrase": "x"}, "box not finite"),
        ({"box": [0, 0, float("inf"), 10], "phrase": "x"}, "box not finite"),
        ({"box": [10**400, 0, 10, 10], "phrase": "x"}, "box not finite"),
        ({"box": [50, 10, 10, 40], "phrase": "x"}, "box inverted"),
        ({"box": [10, 10, 10, 40], "phrase": "x"}, "box empty"),
        ({"box": [10, 10, 10.0000001, 40], "phrase": "x"}, "box empty"),
        ({"box": [200, 60, 300, 90], "phrase": "x"}, "box outside the picture"),
        ({"box": [-50, 0, -10, 40], "phrase": "x"}, "box outside the picture"),
        ({"box": [50, 0, 120, 40], "phrase": "x"}, "box outside the picture"),
        ({"box": [10, 10, 50], "phrase": "x"}, "malformed region"),
        ({"box": "10 10 50 40", "phrase": "x"}, "malformed region"),
        ({"box": [10, 10, "50", 40], "phrase": "x"}, "malformed region"),
        ({"box": [10, 10, True, 40], "phrase": "x"}, "malformed region"),
        ({"boxx": [10, 10, 50, 40], "phrase": "x"}, "malformed region"),
        ({"box": [10, 10, 50, 40]}, "malformed region"),
        ({"box": [10, 10, 50, 40], "phrase": 7}, "malformed region"),
        ({"box": [10, 10, 50, 40], "phrase": "x", "unit": "pixels"}, "malformed region"),
        ({"box": [10, 10, 50, 40], "phrase": "x", "score": 1.5}, "malformed region"),
        ({"box": [10, 10, 50, 40], "phrase": "\ud83d"}, "not Unicode"),
        ("box", "malformed region"),
    ]
    sidecar = {"caption": "kept", "regions": [*good, *(region for region, _ in bad)]}
    picture = jpeg(1, width=100, height=50)
    summary = import_folder(_folder(tmp_path, {"p.jpg": picture, "p.json": sidecar}), tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert collection.captions_of(0)[0].text == "kept"
    boxes = [region.box.to_array() for region in collection.regions_of(0)]
    expected = [[0.1, 0.2, 0.5, 0.8]] * 4 + [[0, 0, 1, 1]]
    assert np.allclose(boxes, expected, atol=1e-6)
    assert [region.phrase for region in collection.regions_of(0)][3] == "only a label"
    assert summary.regions_taken == 5
    assert summary.regions_clipped == 1
    assert summary.regions_quarantined == len(bad)
    table = collection.quarantine()
    assert table["reason"].to_pylist() == [reason for _, reason in bad]
    assert table["position"].to_pylist() == list(range(len(good), len(good) + len(bad)))
    details = " ".join(table["detail"].to_pylist())
    assert "did you mean 'boxx'" in details
    assert "did you mean 'pixel'" in details


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        ({"p.txt": b"caf\xe9"}, "sidecar: not UTF-8"),
        ({"p.json": b'{"caption": "caf\xe9"}'}, "sidecar: not UTF-8"),
        ({"p.json": b'{"caption": "cut'}, "sidecar: malformed JSON"),
        ({"p.json": b""}, "sidecar: malformed JSON"),
        ({"p.json": b"[1, 2]"}, "sidecar: malformed JSON"),
        ({"p.json": b"[" * 100_000}, "sidecar: malformed JSON"),
        ({"p.json": b'{"caption": ' + b"9" * 5000 + b"}"}, "sidecar: malformed JSON"),
        ({"p.json": b'{"caption": 7}'}, "caption: not text"),
        ({"p.json": b'{"caption": "\\ud83d"}'}, "caption: not Unicode"),
        ({"p.json": b'{"regions": {"box": [1, 2, 3, 4]}}'}, "region: malformed region"),
        ({"p.json": b'{"labels": ["cat"]}'}, "labels: malformed labels"),
        ({"p.json": b'{"labels": {"species": ["cat", "dog"]}}'}, "labels: malformed labels"),
    ],
)
def test_a_bad_sidecar_is_quarantined_and_its_picture_kept(
    tmp_path: Path, sidecar: dict[str, bytes], reason: str
) -> None:
    summary = import_folder(_folder(tmp_path, {"p.jpg": jpeg(1), **sidecar}), tmp_path / "c")
    assert len(Collection.open(tmp_path / "c")) == 1
    assert _reasons(tmp_path / "c") == {"p": [reason]}
    assert summary.quarantined == {reason: 1}
    members = [("p.jpg", jpeg(1)), *sidecar.items()]
    import_webdataset(_tar(tmp_path / "s.tar", members), tmp_path / "d")
    assert _reasons(tmp_path / "d") == {"p": [reason]}


def test_captions_of_any_length_and_script_are_kept_unchanged(tmp_path: Path) -> None:
    texts = {
        "long": " ".join(["word"] * 10_000),
        "han": "一只猫坐在窗台上",
        "arabic": "قطة تجلس على النافذة",
        "devanagari": "खिड़की पर बिल्ली",
        "emoji": "👩‍👩‍👧 🏳️‍🌈",
        "combining": "e\u0301 is not \u00e9",
        "lines": "first line\nsecond line",
    }
    files = {f"{key}.jpg": jpeg(number) for number, key in enumerate(texts)}
    files |= {f"{key}.txt": text for key, text in texts.items()}
    files |= {"zz.jpg": jpeg(50), "zz.txt": "\ufeffnul\0 bell\x07 end\n"}
    summary = import_folder(_folder(tmp_path, files), tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    for key, text in texts.items():
        assert [caption.text for caption in collection.captions_of(collection.row_of(key))] == [text]
    assert collection.captions_of(collection.row_of("zz"))[0].text == "nul bell end"
    assert summary.texts_cleaned == 1
    assert summary.captions_taken == len(texts) + 1


def test_json_captions_labels_and_groups(tmp_path: Path) -> None:
    sidecar = {
        "caption": "one",
        "captions": ["two", {"text": "three", "kind": "title", "source": "me"}, None],
        "alt": "one",
        "labels": {"species": "cat", "count": 2},
        "group": "site-7",
        "split": "test",
        "url": "http://example.org/p.jpg",
        "status": "success",
        "width": 1,
        "exif": "{}",
    }
    files = {"a/p.jpg": jpeg(1), "a/p.json": sidecar, "a/p.txt": "one\n", "b/q.jpg": jpeg(2)}
    summary = import_folder(_folder(tmp_path, files), tmp_path / "c", group_by="folder")
    collection = Collection.open(tmp_path / "c")
    record = collection.record(0)
    assert [(caption.text, caption.kind) for caption in record.captions] == [
        ("one", "alt"),
        ("two", "alt"),
        ("three", "title"),
    ]
    assert record.labels == {"species": "cat", "count": "2"}
    assert (record.group, record.split) == ("site-7", "test")
    assert collection.record(1).group == "b"
    assert collection.table("origin")["url"].to_pylist() == ["http://example.org/p.jpg"]
    assert summary.without_text == 1


@pytest.mark.parametrize("how", ["folder", "webdataset"])
def test_duplicate_keys_are_quarantined_and_the_first_stays(tmp_path: Path, how: str) -> None:
    if how == "folder":
        import_folder(_folder(tmp_path, {"p.jpeg": jpeg(1), "p.jpg": jpeg(2)}), tmp_path / "c")
        expected = ["picture: duplicate key"]
    else:
        members = [("p.jpg", jpeg(1)), ("p.png", encoded(noise(2), "PNG")), ("q.jpg", jpeg(3)), ("p.jpg", jpeg(4))]
        import_webdataset(_tar(tmp_path / "s.tar", members), tmp_path / "c")
        expected = ["member: duplicate member", "picture: duplicate key"]
    collection = Collection.open(tmp_path / "c")
    assert collection.picture_bytes(collection.row_of("p")) == jpeg(1)
    assert _reasons(tmp_path / "c") == {"p": expected}


def test_members_that_lead_out_are_quarantined_and_nothing_is_written(tmp_path: Path) -> None:
    def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        return member

    members = [
        ("../escape.jpg", jpeg(1)),
        ("/absolute.jpg", jpeg(2)),
        ("inner/../../up.jpg", jpeg(3)),
        ("back\\slash.jpg", jpeg(4)),
        (special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (special("hard.jpg", tarfile.LNKTYPE, "good.jpg"), b""),
        (special("device.jpg", tarfile.CHRTYPE), b""),
        (special("pipe.jpg", tarfile.FIFOTYPE), b""),
        (special("folder", tarfile.DIRTYPE), b""),
        ("./good.jpg", jpeg(5)),
    ]
    source = _tar(tmp_path / "deep" / "source" / "s.tar", members)
    summary = import_webdataset(source, tmp_path / "deep" / "c")
    assert Collection.open(tmp_path / "deep" / "c").keys == ["good"]
    assert summary.quarantined == {"member: unsafe path": 4, "member: no regular file": 4}
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == []
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["c", "source"]


def test_samples_without_a_picture_and_unused_members(tmp_path: Path) -> None:
    members = [
        ("a.jpg", jpeg(1)),
        ("a.seg.png", encoded(noise(2), "PNG")),
        ("a.npy", b"123"),
        ("b.txt", "only text"),
        ("c.json", {"status": "failed_to_download", "url": "http://example.org"}),
        ("README", "hello"),
    ]
    summary = import_webdataset(_tar(tmp_path / "s.tar", members), tmp_path / "c")
    assert _reasons(tmp_path / "c") == {"b": ["picture: no picture"], "c": ["picture: download failed"]}
    assert (summary.taken, summary.ignored_files) == (1, 3)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.8, 0.97])
def test_a_cut_tar_gives_what_stands_before_and_says_so(tmp_path: Path, kept: float) -> None:
    source = _tar(tmp_path / "s.tar", [(f"p{number}.jpg", jpeg(number)) for number in range(10)])
    with tarfile.open(source) as tar:
        end = tar.getmembers()[-1].offset_data
    source.write_bytes(source.read_bytes()[: int(end * kept)])
    summary = import_webdataset(source, tmp_path / "c")
    assert 0 < summary.taken < 10
    assert sum(count for name, count in summary.quarantined.items() if name.startswith("shard: ")) == 1


def test_a_tar_with_a_broken_header_is_said(tmp_path: Path) -> None:
    source = _tar(tmp_path / "s.tar", [(f"p{number}.jpg", jpeg(number)) for number in range(4)])
    with tarfile.open(source) as tar:
        place = tar.getmembers()[2].offset
    data = bytearray(source.read_bytes())
    data[place : place + 512] = b"x" * 512
    source.write_bytes(bytes(data))
    summary = import_webdataset(source, tmp_path / "c")
    assert summary.taken == 2
    assert summary.quarantined == {"shard: truncated shard": 1}


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(5000), b"\x1f\x8b" + bytes(50)])
def test_what_is_no_tar_is_quarantined(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.tar").write_bytes(content)
    _tar(tmp_path / "s" / "b.tar", [("p.jpg", jpeg(1))])
    summary = import_webdataset(tmp_path / "s", tmp_path / "c")
    assert summary.taken == 1
    assert sum(summary.quarantined.values()) == 1
    assert next(iter(summary.quarantined)).startswith("shard: ")


def test_several_shards_by_folder_pattern_and_braces(tmp_path: Path) -> None:
    for number in range(4):
        members = [
            (f"{number:05d}0000.jpg", jpeg(number)),
            (f"{number:05d}0000.txt", f"caption {number}"),
            (
                f"{number:05d}0000.json",
                {"caption": f"caption {number}", "key": f"{number:05d}0000", "status": "success"},
            ),
        ]
        _tar(tmp_path / "s" / f"{number:05d}.tar", members)
        (tmp_path / "s" / f"{number:05d}.parquet").write_bytes(b"left alone")
        (tmp_path / "s" / f"{number:05d}_stats.json").write_bytes(b"{}")
    folder = tmp_path / "s"
    for name, source, count in (
        ("a", folder, 4),
        ("b", f"{folder}/0000[12].tar", 2),
        ("c", f"{folder}/{{00001..00003}}.tar", 3),
        ("d", folder / "00002.tar", 1),
    ):
        summary = import_webdataset(source, tmp_path / name)
        assert (summary.taken, summary.captions_taken, sum(summary.quarantined.values())) == (count, count, 0)
    assert Collection.open(tmp_path / "a").record(2).captions[0].text == "caption 2"
    assert Collection.open(tmp_path / "a").index["source"][0] == "s"
    with pytest.raises(UserError, match=r"00004\.tar does not exist"):
        import_webdataset(f"{folder}/{{00001..00004}}.tar", tmp_path / "e")


def test_links_pipes_and_hidden_files_in_a_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    (tmp_path / "outside.jpg").write_bytes(jpeg(9))
    source = _folder(tmp_path, {"a.jpg": jpeg(1), "b.jpg": jpeg(2), ".hidden.jpg": jpeg(3), "notes.md": "x"})
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
    assert _reasons(tmp_path / "c") == {
        "a": ["sidecar: link leaves the folder"],
        "c": ["picture: link leaves the folder"],
        "e": ["picture: unreadable"],
        "f": ["picture: no regular file"],
    }
    assert summary.ignored_files == 2


def test_a_file_name_that_is_no_unicode_is_quarantined(tmp_path: Path) -> None:
    source = _folder(tmp_path, {"good.jpg": jpeg(1)})
    with open(os.fsencode(source) + b"/caf\xe9.jpg", "wb") as file:
        file.write(jpeg(2))
    import_folder(source, tmp_path / "c")
    assert Collection.open(tmp_path / "c").keys == ["good"]
    assert _reasons(tmp_path / "c") == {"caf\\udce9": ["picture: unusable key"]}


def test_sources_that_are_not_there_or_empty(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "file.txt").write_text("x")
    target = tmp_path / "c"
    for importer in (import_folder, import_webdataset):
        with pytest.raises(UserError, match="did you mean 'pictures'"):
            importer(tmp_path / "picture", target)
    with pytest.raises(UserError, match="has no pictures"):
        import_folder(tmp_path / "pictures", target)
    with pytest.raises(UserError, match="has no tar files"):
        import_webdataset(tmp_path / "pictures", target)
    with pytest.raises(UserError, match="is a file"):
        import_folder(tmp_path / "file.txt", target)
    assert not target.exists()


def test_a_collection_as_source_or_another_folder_as_target_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 2)
    import_folder(source, tmp_path / "c")
    with pytest.raises(UserError, match="is a collection already"):
        import_folder(tmp_path / "c", tmp_path / "d")
    with pytest.raises(UserError, match="choose a new folder"):
        import_folder(source, source)


def test_a_collection_that_another_process_is_writing_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 2)
    tar = _tar(tmp_path / "t.tar", [("p.jpg", jpeg(1))])
    with CollectionWriter(tmp_path / "c", source="other import"):
        for attempt in (lambda: import_folder(source, tmp_path / "c"), lambda: import_webdataset(tar, tmp_path / "c")):
            with pytest.raises(UserError, match="is being written by.*other import"):
                attempt()
    assert import_folder(source, tmp_path / "c").taken == 2


def test_importing_again_takes_only_what_is_new_and_records_no_finding_twice(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 12)
    (source / "bad.jpg").write_bytes(b"")
    first = import_folder(source, tmp_path / "c")
    (source / "zz.jpg").write_bytes(jpeg(99))
    second = import_folder(source, tmp_path / "c")
    assert (first.taken, second.taken, second.already_there) == (12, 1, 12)
    collection = Collection.open(tmp_path / "c")
    assert len(collection) == 13
    assert collection.quarantine().num_rows == 1 + 3
    assert first.regions_quarantined == 3
    (source / "bad.jpg").write_bytes(jpeg(100))
    assert import_folder(source, tmp_path / "c").taken == 1


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", 45)
    for number in range(0, 45, 7):
        (source / f"part00/bad{number}.jpg").write_bytes(b"<html>")
    for workers in (1, 5):
        stamp = "2026-01-01T00:00:00+00:00"
        import_folder(source, tmp_path / str(workers), name="c", workers=workers, pictures_per_shard=8, created=stamp)
    one, five = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "1", tmp_path / "5")
    )
    assert one == five
