"""WebDataset tars that lead out, are cut, damaged or no tars; samples that lack an image."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hostile import reasons, tar_of
from made_images import encoded, jpeg, noise

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.webdataset import import_webdataset
from naming import raises_naming


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
    source = tar_of(tmp_path / "deep" / "source" / "s.tar", members)
    summary = import_webdataset(source, tmp_path / "deep" / "c")
    assert Collection.open(tmp_path / "deep" / "c").keys == ["good"]
    assert summary.quarantined == {"member: unsafe path": 4, "member: no regular file": 4}
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == []
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["c", "source"]


def test_samples_without_an_image_and_unused_members(tmp_path: Path) -> None:
    members = [
        ("a.jpg", jpeg(1)),
        ("a.seg.png", encoded(noise(2), "PNG")),
        ("a.npy", b"123"),
        ("b.txt", "only text"),
        ("c.json", {"status": "failed_to_download", "url": "http://example.org"}),
        ("README", "hello"),
    ]
    summary = import_webdataset(tar_of(tmp_path / "s.tar", members), tmp_path / "c")
    assert reasons(tmp_path / "c") == {"b": ["image: no image"], "c": ["image: download failed"]}
    assert (summary.imported, summary.ignored_files) == (1, 3)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.8, 0.97])
def test_a_cut_tar_gives_what_stands_before_and_says_so(tmp_path: Path, kept: float) -> None:
    source = tar_of(tmp_path / "s.tar", [(f"p{number}.jpg", jpeg(number)) for number in range(10)])
    with tarfile.open(source) as tar:
        end = tar.getmembers()[-1].offset_data
    source.write_bytes(source.read_bytes()[: int(end * kept)])
    summary = import_webdataset(source, tmp_path / "c")
    assert 0 < summary.imported < 10
    assert sum(count for name, count in summary.quarantined.items() if name.startswith("shard: ")) == 1


def test_a_tar_with_a_broken_header_is_said(tmp_path: Path) -> None:
    source = tar_of(tmp_path / "s.tar", [(f"p{number}.jpg", jpeg(number)) for number in range(4)])
    with tarfile.open(source) as tar:
        place = tar.getmembers()[2].offset
    data = bytearray(source.read_bytes())
    data[place : place + 512] = b"x" * 512
    source.write_bytes(bytes(data))
    summary = import_webdataset(source, tmp_path / "c")
    assert summary.imported == 1  # the second may lack members
    assert summary.quarantined == {"shard: truncated shard": 1}


@pytest.mark.parametrize("inside", [False, True])
def test_a_sample_that_lost_its_text_to_a_cut_comes_with_the_whole_tar(tmp_path: Path, inside: bool) -> None:
    members = [("a.jpg", jpeg(1)), ("a.txt", "one"), ("b.jpg", jpeg(2)), ("b.txt", "two")]
    source = tar_of(tmp_path / "s.tar", members)
    whole = source.read_bytes()
    with tarfile.open(source) as tar:
        last = tar.getmembers()[-1]
    source.write_bytes(whole[: last.offset_data if inside else last.offset])
    summary = import_webdataset(source, tmp_path / "c")
    assert Collection.open(tmp_path / "c").keys == ["a"]
    assert sum(summary.quarantined.values()) == 1
    assert "'b'" in Collection.open(tmp_path / "c").quarantine().to_pylist()[0]["detail"]
    source.write_bytes(whole)
    import_webdataset(source, tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert [collection.record(row).captions[0].text for row in range(2)] == ["one", "two"]


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(5000), b"\x1f\x8b" + bytes(50)])
def test_what_is_no_tar_is_quarantined(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.tar").write_bytes(content)
    tar_of(tmp_path / "s" / "b.tar", [("p.jpg", jpeg(1))])
    summary = import_webdataset(tmp_path / "s", tmp_path / "c")
    assert summary.imported == 1
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
        tar_of(tmp_path / "s" / f"{number:05d}.tar", members)
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
        assert (summary.imported, summary.captions_imported, sum(summary.quarantined.values())) == (count, count, 0)
    assert Collection.open(tmp_path / "a").record(2).captions[0].text == "caption 2"
    assert Collection.open(tmp_path / "a").index["source"][0] == "s"
    with raises_naming(UserError, "00004.tar"):
        import_webdataset(f"{folder}/{{00001..00004}}.tar", tmp_path / "e")
