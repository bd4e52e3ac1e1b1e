"""Boxes, captions and labels as people write them: a bad one is quarantined alone, the rest is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hostile import folder_of_files, reasons, tar_of
from made_images import jpeg

from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate.records.importers.webdataset import import_webdataset


def test_regions_in_every_form_and_every_kind_of_bad_box(tmp_path: Path) -> None:
    good = [
        {"box": [10, 10, 50, 40], "phrase": "pixels"},
        {"box": [10, 10, 40, 30], "phrase": "size", "format": "xywh"},
        {"box": [0.1, 0.2, 0.5, 0.8], "phrase": "parts", "unit": "normalized", "score": 0.5},
        {"box": [0.1, 0.2, 0.4, 0.6], "label": "only a label", "unit": "normalized", "format": "xywh"},
        {"box": [-3, 0, 103, 50], "phrase": "a little too large"},
    ]
    bad = [
        ({"box": [float("nan"), 0, 10, 10], "phrase": "x"}, "box not finite"),
        ({"box": [0, 0, float("inf"), 10], "phrase": "x"}, "box not finite"),
        ({"box": [10**400, 0, 10, 10], "phrase": "x"}, "box not finite"),
        ({"box": [50, 10, 10, 40], "phrase": "x"}, "box inverted"),
        ({"box": [10, 10, 10, 40], "phrase": "x"}, "box empty"),
        ({"box": [10, 10, 10.0000001, 40], "phrase": "x"}, "box empty"),
        ({"box": [200, 60, 300, 90], "phrase": "x"}, "box outside the image"),
        ({"box": [-50, 0, -10, 40], "phrase": "x"}, "box outside the image"),
        ({"box": [50, 0, 120, 40], "phrase": "x"}, "box outside the image"),
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
    image = jpeg(1, width=100, height=50)
    summary = import_folder(folder_of_files(tmp_path, {"p.jpg": image, "p.json": sidecar}), tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert collection.read_captions(0)[0].text == "kept"
    boxes = [region.box.to_array() for region in collection.read_regions(0)]
    expected = [[0.1, 0.2, 0.5, 0.8]] * 4 + [[0, 0, 1, 1]]
    assert np.allclose(boxes, expected, atol=1e-6)
    assert [region.phrase for region in collection.read_regions(0)][3] == "only a label"
    assert summary.regions_imported == 5
    assert summary.regions_clipped == 1
    assert summary.regions_quarantined == len(bad)
    table = collection.quarantine()
    assert table["reason"].to_pylist() == [reason for _, reason in bad]
    assert table["position"].to_pylist() == list(range(len(good), len(good) + len(bad)))
    details = " ".join(table["detail"].to_pylist())
    assert "Did you mean 'boxx'" in details
    assert "Did you mean 'pixel'" in details


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        ({"p.txt": "кошка".encode("cp1251")}, "sidecar: unknown encoding"),
        ({"p.json": '{"caption": "猫の写真"}'.encode("shift-jis")}, "sidecar: unknown encoding"),
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
def test_a_bad_sidecar_is_quarantined_and_its_image_kept(
    tmp_path: Path, sidecar: dict[str, bytes], reason: str
) -> None:
    summary = import_folder(folder_of_files(tmp_path, {"p.jpg": jpeg(1), **sidecar}), tmp_path / "c")
    assert len(Collection.open(tmp_path / "c")) == 1
    assert reasons(tmp_path / "c") == {"p": [reason]}
    assert summary.quarantined == {reason: 1}
    members = [("p.jpg", jpeg(1)), *sidecar.items()]
    import_webdataset(tar_of(tmp_path / "s.tar", members), tmp_path / "d")
    assert reasons(tmp_path / "d") == {"p": [reason]}


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
    summary = import_folder(folder_of_files(tmp_path, files), tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    for key, text in texts.items():
        assert [caption.text for caption in collection.read_captions(collection.find_row(key))] == [text]
    assert collection.read_captions(collection.find_row("zz"))[0].text == "nul bell end"
    assert summary.texts_cleaned == 1
    assert summary.captions_imported == len(texts) + 1


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
    summary = import_folder(folder_of_files(tmp_path, files), tmp_path / "c", group_by="folder")
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
