"""One test for each thing that the fuzz run has found."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_decoding import collection
from fuzz_images import good
from fuzz_models import home

from foveate.core.errors import UserError, explain_os_error
from foveate.core.files import read_json
from foveate.core.yaml_text import read_yaml
from foveate.records import boxes
from foveate.records.collection import Collection
from foveate.records.exporters.coco import export_coco
from foveate.records.importers.datasets import import_datasets
from foveate.records.importers.folder import import_folder
from foveate.records.importers.table import import_table
from foveate.vision.open_clip.build import named
from naming import raises_naming


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of a good collection, to be damaged."""
    shutil.copytree(collection(), tmp_path / "c")
    return tmp_path / "c"


def _change(path: Path, name: str, values: list[object]) -> None:
    table = pq.read_table(path, partitioning=None)
    kind = table.schema.field(name).type
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values, kind)), path)


@pytest.mark.parametrize("key", ["../../escaped", "/escaped", "a\x00b", "", "a\\b", "a/./b"])
def test_a_key_that_leads_out_of_the_folder_is_refused_before_anything_is_exported(place: Path, key: str) -> None:
    _change(place / "index" / "00000.parquet", "key", [key, "k1", "k2"])
    with pytest.raises(UserError, match="not a valid image key"):
        export_coco(Collection.open(place), place.parent / "deep" / "out")
    assert not list(place.parent.rglob("escaped*"))


@pytest.mark.parametrize(
    ("name", "value"), [("width", 0), ("length", -1), ("length", 2**40), ("offset", -7), ("shard", -1)]
)
def test_numbers_that_no_image_has_are_refused(place: Path, name: str, value: int) -> None:
    values = pq.read_table(place / "index" / "00000.parquet", partitioning=None)[name].to_pylist()
    _change(place / "index" / "00000.parquet", name, [value, *values[1:]])
    with raises_naming(UserError, name):
        Collection.open(place)


def test_a_column_of_another_type_is_refused(place: Path) -> None:
    path = place / "index" / "00000.parquet"
    table = pq.read_table(path, partitioning=None)
    at = table.column_names.index("width")
    pq.write_table(table.set_column(at, "width", pa.array([np.inf, 1.0, 2.0])), path)
    with raises_naming(UserError, "00000.parquet"):
        Collection.open(place)


def test_a_table_without_keys_and_regions_that_are_no_boxes_are_refused(place: Path) -> None:
    labels = place / "annotations" / "labels" / "00000.parquet"
    pq.write_table(pq.read_table(labels, partitioning=None).drop(["key"]), labels)
    with raises_naming(UserError, "key"):
        Collection.open(place).table("labels")
    regions = place / "annotations" / "regions" / "00000.parquet"
    count = pq.read_metadata(regions).num_rows
    _change(regions, "x1", [float("nan")] * count)
    with raises_naming(UserError, "0"):
        Collection.open(place).table("regions")


@pytest.mark.parametrize("change", [{"bytes_per_shard": None}, {"images_per_shard": "1"}, {"sources": 3}])
def test_a_description_that_no_writer_can_use_is_refused(place: Path, change: dict[str, object]) -> None:
    description = json.loads((place / "collection.json").read_text())
    (place / "collection.json").write_text(json.dumps({**description, **change}))
    (place.parent / "s").mkdir()
    (place.parent / "s" / "p.jpg").write_bytes(good(1))
    with raises_naming(UserError, next(iter(change))):
        import_folder(place.parent / "s", place, workers=1)


def _images(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for number in range(2):
        (tmp_path / "s" / f"{number}.jpg").write_bytes(good(number))


def test_a_table_whose_columns_are_stored_as_numbers_of_values_is_read(tmp_path: Path) -> None:
    _images(tmp_path)
    words = pa.array(["0.jpg", "1.jpg", "0.jpg"]).dictionary_encode()
    pq.write_table(
        pa.table({"path": words, "caption": pa.array(["a", "b", "c"]).dictionary_encode()}),
        tmp_path / "s" / "t.parquet",
    )
    assert import_table(tmp_path / "s" / "t.parquet", tmp_path / "c").imported == 2
    assert [caption.text for caption in Collection.open(tmp_path / "c").read_captions(0)] == ["a", "c"]


@pytest.mark.parametrize("paths", [pa.array([["0.jpg"], ["1.jpg"]]), pa.nulls(2)])
def test_a_column_of_paths_that_holds_no_text_is_refused(tmp_path: Path, paths: pa.Array) -> None:
    _images(tmp_path)
    pq.write_table(pa.table({"path": paths, "caption": ["a", "b"]}), tmp_path / "s" / "t.parquet")
    with raises_naming(UserError, "path"):
        import_table(tmp_path / "s" / "t.parquet", tmp_path / "c")


def test_a_data_set_that_is_damaged_in_its_middle_keeps_what_stands_before(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "s").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, numbers in (("train-0", range(2)), ("test-0", range(2, 4))):
        cells = pa.array([{"bytes": good(number), "path": None} for number in numbers], kind)
        pq.write_table(
            pa.table({"image": cells, "caption": ["a", "b"]}), tmp_path / "s" / f"{name}.parquet", compression="none"
        )
    data = bytearray((tmp_path / "s" / "train-0.parquet").read_bytes())
    data[4:40] = b"\xff" * 36
    (tmp_path / "s" / "train-0.parquet").write_bytes(bytes(data))
    summary = import_datasets(tmp_path / "s", tmp_path / "c")
    assert summary.imported == 2
    assert summary.quarantined == {"part: damaged part": 1}


def test_arrays_that_are_no_boxes_and_numbers_beyond_floats_are_refused() -> None:
    for rows in ([[1, 2, 3, 4], [1, 2]], "abc", [["a", 0, 0, 1]], {"a": 1}):
        with raises_naming(UserError, "4]"):
            boxes.as_boxes(rows)
    huge = 10**400
    for make in (
        lambda: boxes.Box(0, 0, huge, 1),
        lambda: boxes.Box.from_pixels(boxes.PixelBox(-huge, 0, 1, 1), 2, 2),
        lambda: boxes.Box.from_xywh(boxes.PixelXYWH(0, 0, huge, 1), 2, 2),
        lambda: boxes.Box.from_center(boxes.CenterBox(0.5, 0.5, huge, 1)),
    ):
        with pytest.raises(UserError, match="finite"):
            make()
    with pytest.raises(UserError, match="image size"):
        boxes.Box.from_pixels(boxes.PixelBox(0, 0, 1, 1), huge, -huge)


_LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_LAUGHS, "more than 100,000 values"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 3000, "nested too deeply"),
        ("a: 2024-99-99", "not a YAML file"),
        ("a: !!timestamp x", "not a YAML file"),
        ("a: !!bool q", "not a YAML file"),
        ("a: 2024-01-01", "a date"),
        ("a: 0x" + "f" * 5000, "beyond 64 bits"),
        ("a: " + "9" * 5000, "not a YAML file"),
    ],
)
def test_yaml_that_is_small_and_stands_for_something_huge_or_odd_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_yaml(text, where="r.yaml")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\xff"])
def test_json_that_python_itself_refuses(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not a JSON file"):
        read_json(tmp_path / "x.json")


def test_what_the_system_refuses_is_a_sentence_also_for_names_that_are_too_long() -> None:
    for number in (errno.ENAMETOOLONG, errno.EISDIR):
        told = explain_os_error(OSError(number, "x", "a" * 5000))
        assert told is not None
        assert "cannot be used" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", {"a": 1}),
        ("embed_dim", "x"),
        ("segments", [{"kind": "region", "name": 3, "rows": []}]),
        ("model", 7),
    ],
)
def test_fields_of_an_index_that_hold_other_things(tmp_path: Path, name: str, value: object) -> None:
    from foveate.search.index_folder import Description

    shutil.copytree(home() / "i", tmp_path / "i")
    content = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps({**content, name: value}))
    with raises_naming(UserError, name):
        Description.read(tmp_path / "i")


def test_damaged_embeddings_of_an_index(tmp_path: Path) -> None:
    from foveate.search.index_folder import ROWS, read_rows, read_vectors
    from foveate.search.nearest import nearest

    vectors = np.full((4, 3), np.nan, np.float32)
    with pytest.raises(UserError, match="embeddings are damaged"):
        nearest([vectors], np.ones((1, 3)), count=2)
    np.save(tmp_path / "v.npy", vectors)
    data = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(data.replace(b"}", b" ", 1))
    with pytest.raises(UserError, match="cannot be read as an array"):
        read_vectors(tmp_path / "v.npy")
    pq.write_table(ROWS.empty_table().drop(["key"]), tmp_path / "r.parquet")
    with raises_naming(UserError, tmp_path / "r.parquet"):
        read_rows([tmp_path / "r.parquet"])


@pytest.mark.parametrize("vision", [7, {"layers": "x"}, {"layers": 1, "width": 0}, {"image_size": [1]}])
def test_options_that_no_network_can_be_built_with(vision: object) -> None:
    from foveate.vision.registry import build_image_encoder

    with raises_naming(UserError, "open_clip"):
        build_image_encoder({"kind": "open_clip", "model": "ViT-B-32", "vision": vision})


def test_a_folder_in_place_of_a_models_weights(tmp_path: Path) -> None:
    from foveate.vision.localizer.folder import load_model

    shutil.copytree(home() / "m", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors").mkdir()
    with raises_naming(UserError, tmp_path / "m" / "model.safetensors"):
        load_model(tmp_path / "m", device="cpu")


@pytest.mark.parametrize("model", [None, 7, ["ViT-B-16"]])
def test_the_name_of_a_model_is_text(model: Any) -> None:
    with raises_naming(UserError, "open_clip"):
        named(model, None, None, revision=None, offline=True, built=False, cache_dir=None)


def test_a_recipe_to_print_is_text(tmp_path: Path) -> None:
    from foveate.cli.verbs.recipes import command

    path = tmp_path / "p.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="not a YAML file"):
        command.main([str(path)], standalone_mode=False)
