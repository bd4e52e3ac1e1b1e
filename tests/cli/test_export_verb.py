"""`foveate export` as a user types it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from command_line import Run
from PIL import Image

from foveate.records.collection import Collection


def test_a_model_in_words_as_json_and_dry(foveate: Run, trained: Path, tmp_path: Path) -> None:
    planned = foveate("export", trained / "model", "--to", "open_clip", "--out", "out", "--dry-run")
    assert planned.code == 0, planned.err
    assert "would write out/open_clip_model.safetensors" in planned.out
    assert not list(tmp_path.iterdir())
    told = foveate("export", trained, "--to", "open_clip", "--out", "out", "--device", "cpu")
    assert told.code == 0, told.err
    assert "largest difference, image embeddings: 0\n" in told.out
    assert told.out.endswith("export: out\n")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| which phrase names this box: R@1 | seen | cloc |" in card
    assert "Collection `shapes`, split `train`, 16 images with text." in card
    found = foveate("export", trained / "model", "--to", "transformers", "--out", "hf", "--json").json
    assert found["paths"] == {"export": "hf"}
    assert found["differences"]["token ids up to the end token"] == 0
    assert found["differences"]["image embeddings"] < 5e-6
    assert set(found["files"]) == {path.name for path in (tmp_path / "hf").iterdir()}


def test_embeddings_of_a_collection(foveate: Run, trained: Path, tiny_collection: Path, tmp_path: Path) -> None:
    told = foveate("export", trained / "model", "--to", "embeddings", "--collection", tiny_collection, "--out", "e")
    assert told.code == 0, told.err
    assert "images: 32\n" in told.out
    assert (tmp_path / "e" / "images" / "00000.parquet").is_file()
    again = foveate("export", trained / "model", "--to", "embeddings", "--collection", tiny_collection, "--out", "e")
    assert "--out" in again.sentence
    assert "e: " in again.sentence


def test_a_collection(foveate: Run, tiny_collection: Path, tmp_path: Path) -> None:
    planned = foveate("export", tiny_collection, "--to", "webdataset", "--out", "tars", "--dry-run")
    assert "would write 32 images to tars" in planned.out
    assert foveate("export", tiny_collection, "--to", "webdataset", "--out", "tars").out.endswith("export: tars\n")
    back = foveate("collect", "tars/*.tar", "--out", "again", "--split", "none", "--json")
    assert back.code == 0, back.err
    assert (tmp_path / "again" / "collection.json").is_file()
    assert not list(tmp_path.glob(".*partial*"))


def test_one_split_of_a_collection(foveate: Run, tiny_collection: Path, tmp_path: Path) -> None:
    expected = len(Collection.open(tiny_collection).rows("test"))
    planned = foveate("export", tiny_collection, "--to", "coco", "--split", "test", "--dry-run")
    assert f"would write {expected} images to" in planned.out
    targets = {
        "coco": "images/*",
        "datasets": "data/test-00000.parquet",
        "fiftyone": "data/*",
        "label-studio": "tasks.json",
        "webdataset": "*.tar",
        "yolo": "labels/test/*.txt",
    }
    for target, files in targets.items():
        told = foveate("export", tiny_collection, "--to", target, "--split", "test", "--out", target, "--json")
        assert told.code == 0, told.err
        assert told.json["counts"]["images"] == expected
        assert told.json["to"] == target
        assert list((tmp_path / target).glob(files))
    assert "Ultralytics requires" in told.json["notes"][0]  # of the last target, YOLO


def test_coco_where_there_is_an_exporter(foveate: Run, tiny_collection: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("foveate.records.exporters.coco") is None:
        pytest.skip("no exporter to COCO in this release")
    told = foveate("export", tiny_collection, "--to", "coco", "--out", "coco")
    assert told.code == 0, told.err
    found = [json.loads(path.read_text()) for path in (tmp_path / "coco").rglob("*.json")]
    assert any("images" in one for one in found)


def test_mistakes(foveate: Run, trained: Path, tiny_collection: Path, tmp_path: Path) -> None:
    assert "config.json" in foveate("export", tmp_path, "--to", "onnx").sentence
    wrong = foveate("export", tiny_collection, "--to", "open_clip").sentence
    assert "unknown target of the collection" in wrong
    assert "webdataset" in wrong
    assert "Did you mean 'transformers'?" in foveate("export", trained / "model", "--to", "transformer").sentence
    assert "--collection" in foveate("export", trained / "model", "--to", "embeddings").sentence
    format = foveate("export", tiny_collection, "--to", "webdataset", "--format", "npz").sentence
    assert "belong to `--to embeddings`" in format
    hyphen = foveate("export", tiny_collection, "--to", "label_studio").sentence
    assert "Did you mean 'label-studio'?" in hyphen
    split = foveate("export", tiny_collection, "--to", "coco", "--split", "tests").sentence
    assert "split of the collection" in split
    assert "Did you mean 'test'?" in split
    assert foveate("export", tiny_collection).code == 2


@pytest.mark.parametrize("target", ["camtrap_dp", "megadetector", "observations_csv", "wildlife_insights"])
def test_exports_of_surveys_are_no_targets_of_a_collection(foveate: Run, tiny_collection: Path, target: str) -> None:
    assert "foveate species export" in foveate("export", tiny_collection, "--to", target, "--dry-run").sentence
    assert target not in foveate("export", tiny_collection, "--to", "tars").sentence


def test_coco_counts_images_whose_files_are_gone(foveate: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(folder / f"{number}.png")
    assert foveate("collect", "photos", "--out", "c", "--reference", "--split", "none").code == 0
    (folder / "1.png").unlink()
    exported = foveate("export", "c", "--to", "coco", "--out", "coco")
    assert exported.code == 0, exported.err
    assert "images: 2\n1 images cannot be read and were left out:\n  1: " in exported.out
    counted = foveate("export", "c", "--to", "coco", "--out", "again", "--json").json
    assert (counted["counts"]["images"], counted["counts"]["unreadable images"]) == (2, 1)
    assert counted["notes"][1].startswith("  1: ")


def test_a_model_that_ships_is_found_by_its_name(foveate: Run, tiny_collection: Path, tmp_path: Path) -> None:
    planned = foveate("export", "bridge", "--to", "embeddings", "--collection", tiny_collection, "--dry-run")
    assert planned.code == 0, planned.err
    assert "would write bridge-embeddings/" in planned.out
    assert not list(tmp_path.iterdir())
