"""Trained models of other libraries as they are: from the hub, a folder or open_clip's names, on plain folders."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.core.errors import UserError
from foveate.core.recipes import load
from foveate.pretrain.initialization import resolve_initial
from foveate.pretrain.recipe import PretrainRecipe
from foveate.records.collection import Collection
from foveate.search.index import build_index
from foveate.search.index_folder import Description
from foveate.vision.localizer.sources import find_model
from local_hub import COMMIT, Hub, serving_this_process
from naming import raises_naming
from vision.foreign import SIZE, save_clip, save_dinov2, save_open_clip, save_siglip

TEXTS = ["a red disc", "a dog in the garden"]
# As the checkpoint's own library reads them: no resizing, so nothing but the network can differ.
SQUARES = ("red", "green", "deep/blue")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    root = tmp_path_factory.mktemp("repositories")
    savers = {"a/clip": save_clip, "a/siglip": save_siglip, "a/open": save_open_clip, "a/dino": save_dinov2}
    for name, save in savers.items():
        save(root / name.replace("/", "--"))
    return Hub({name: root / name.replace("/", "--") for name in savers})


@pytest.fixture(scope="module")
def served(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub of this process, with an empty cache; open_clip names an architecture whose weights lie on it."""
    import open_clip

    home = tmp_path_factory.mktemp("hub")
    config = json.loads((hub.repositories["a/open"] / "open_clip_config.json").read_text())["model_cfg"]
    (home / "Tiny-4.json").write_text(json.dumps(config))
    with serving_this_process(hub, home / "cache") as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-4", config)
        patch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-4", {"noise": {"url": "", "hf_hub": "a/open/"}})
        yield hub


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A plain folder: three images of the input's size, a wide one with a text, one cut off, and other files."""
    folder = tmp_path / "my photos"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(SQUARES):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.new("RGB", (90, 40), (200, 30, 40)).save(folder / "wide.jpg")
    (folder / "wide.txt").write_text("a wide red field")
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:200])
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return folder


def embed_with_library(name: str, folder: Path, files: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of images and of TEXTS by the checkpoint's own library."""
    import open_clip

    opened = [Image.open(file).convert("RGB") for file in files]
    with torch.no_grad():
        if name == "open":
            created: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")
            model, _, preprocess = created
            model.eval()
            pixels = torch.stack([preprocess(image) for image in opened])
            tokens = open_clip.get_tokenizer("ViT-B-16", context_length=16)(TEXTS)
            return model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
        from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor, SiglipImageProcessor

        model = AutoModel.from_pretrained(folder).eval()
        processor = (CLIPImageProcessor if name == "clip" else SiglipImageProcessor).from_pretrained(folder)
        length = model.config.text_config.max_position_embeddings
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        output = model(input_ids=tokens["input_ids"], **processor(opened, return_tensors="pt"))
    return output.image_embeds, output.text_embeds


@pytest.mark.parametrize("name", ["clip", "siglip", "open", "named"])
def test_a_plain_folder_is_searched_by_a_model_as_it_is(
    name: str, served: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    source = "open_clip:Tiny-4/noise" if name == "named" else f"a/{name}"
    out = tmp_path / "index"
    described, plan = build_index(source, images, out)
    assert described.counts == {"images": 4, "regions": 0, "unreadable": 0}
    assert plan.folder is not None
    assert (plan.folder.images, plan.folder.new, plan.folder.unreadable) == (4, 4, {"truncated": 1})
    assert described.source == (source if name == "named" else f"{source}@{COMMIT}")
    assert {path: path.read_bytes() for path in images.rglob("*") if path.is_file()} == before
    assert not list(out.rglob("*.tar"))
    # The hub is not asked again: what was downloaded opens the index.
    requests = len(served.asked)
    opened = foveate.open_index(out)
    assert name == "named" or len(served.asked) == requests
    library = "open" if name == "named" else name
    files = [images / f"{key}.png" for key in SQUARES]
    image_NE, text_TE = embed_with_library(library, served.repositories[f"a/{library}"], files)
    for text, expected in zip(TEXTS, (text_TE @ image_NE.T).tolist(), strict=True):
        scores = {hit.key: hit.score for hit in opened.search(text)}
        assert [scores[key] for key in SQUARES] == pytest.approx(expected, abs=2e-5)
    hits = opened.search(image=files[2])
    assert (hits[0].key, hits[0].kind) == ("deep/blue", "images")
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert next(hit for hit in hits if hit.key == "wide").caption == "a wide red field"


def test_new_changed_and_deleted_files(served: Hub, images: Path, tmp_path: Path) -> None:
    folder, out = served.repositories["a/clip"], tmp_path / "index"
    build_index(folder, images, out)
    described, plan = build_index(folder, images, out)
    assert plan.folder is not None
    assert (len(plan.todo), plan.folder.new, plan.folder.changed, plan.folder.gone) == (0, 0, 0, 0)
    os.utime(images / "wide.jpg", (1, 1))
    shutil.copy(images / "red.png", images / "again.png")
    _, plan = build_index(folder, images, out)
    assert plan.folder is not None
    assert (len(plan.todo), plan.folder.new, plan.folder.changed, plan.folder.gone) == (1, 1, 0, 0)
    Image.new("RGB", (SIZE, SIZE), (9, 200, 9)).save(images / "green.png")
    (images / "deep" / "blue.png").unlink()
    Image.new("RGB", (SIZE, SIZE), (9, 9, 200)).save(images / "new.png")
    described, plan = build_index(folder, images, out)
    assert plan.folder is not None
    assert (len(plan.todo), plan.folder.new, plan.folder.changed, plan.folder.gone) == (2, 1, 1, 1)
    assert described.counts["images"] == 5
    assert foveate.open_index(out).search(image=images / "green.png", count=1)[0].key == "green"


def test_boxes_of_a_ready_model_are_crops(served: Hub, tiny_collection: Path, tmp_path: Path) -> None:
    folder, out = served.repositories["a/clip"], tmp_path / "index"
    _, priced = build_index(folder, tiny_collection, out, dry_run=True)
    assert not out.exists()
    described, plan = build_index(folder, tiny_collection, out)
    collection = Collection.open(tiny_collection)
    model = foveate.open_model(folder)
    regions = [(row, region) for row in range(len(collection)) for region in collection.read_regions(row)]
    assert described.crops
    # Images without boxes get no grid: it would cost 38 passes.
    assert described.counts["regions"] == plan.crops == priced.crops == len(regions)
    assert f"{plan.crops} boxes" in plan.price_crops()
    assert f"{1 + plan.crops / 32:.1f} passes" in plan.price_crops()
    segment = next(segment for segment in described.segments if segment.kind == "region")
    cut = []
    for row, region in regions:
        image = Image.open(io.BytesIO(collection.image_bytes(row)))
        box = region.box.to_pixels(*image.size)
        cut.append(image.crop((round(box.x1), round(box.y1), round(box.x2), round(box.y2))))
    cosines = (segment.embeddings(out) * model.encode_images(cut)).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
    row, region = regions[0]
    hits = foveate.open_index(out).search(image=collection.image_bytes(row), box=region.box, kind="regions", count=1)
    assert (hits[0].key, hits[0].phrase) == (collection.keys[row], region.phrase)
    assert hits[0].score == pytest.approx(1, abs=1e-4)


def test_a_cloc_starts_from_a_name_of_open_clip(served: Hub) -> None:
    recipe = load(PretrainRecipe, "cloc-from-clip", ["initial=open_clip:Tiny-4/noise"])
    resolved = resolve_initial(recipe)
    assert resolved.embed_dim == find_model("open_clip:Tiny-4/noise").embed_dim
    assert resolved.image_encoder == {"kind": "open_clip", "model": "Tiny-4", "pretrained": "noise"}


def test_a_moved_index_finds_its_moved_model(served: Hub, images: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    shutil.copytree(served.repositories["a/open"], tmp_path / "a" / "model")
    build_index(tmp_path / "a" / "model", images, tmp_path / "a" / "index")
    (tmp_path / "a").rename(tmp_path / "b")
    assert foveate.open_index(tmp_path / "b" / "index").search("red", count=1)
    assert Description.read(tmp_path / "b" / "index").source == ""
    shutil.copytree(served.repositories["a/clip"], tmp_path / "b" / "model", dirs_exist_ok=True)
    (tmp_path / "b" / "model" / "open_clip_config.json").unlink()
    (tmp_path / "b" / "model" / "open_clip_model.safetensors").unlink()
    with raises_naming(UserError, tmp_path / "b" / "index", tmp_path / "b" / "model"):
        foveate.open_index(tmp_path / "b" / "index")


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("open_clip:ViT-B-23/openai", ("ViT-B-23", "ViT-B-32")),
        ("open_clip:ViT-B-32/opena", ("opena", "openai")),
        ("open_clip:ViT-B-32", ("ViT-B-32", "laion2b_s34b_b79k")),
        ("a/dino", ("a/dino", "text encoder")),
        ("a/nothing", ("a/nothing",)),
        ("no-such-folder", ("no-such-folder", "OWNER/NAME")),
    ],
)
def test_models_that_are_none(name: str, naming: tuple[str, ...], served: Hub, images: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, *naming):
        build_index(name, images, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_hub_out_of_reach(served: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with raises_naming(UserError, "a/elsewhere", "http://127.0.0.1:9", "hf download a/elsewhere --local-dir"):
        build_index("a/elsewhere", images, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_weights_that_cannot_be_opened_stop_a_run_before_it_writes(
    served: Hub, images: Path, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    cut = Path(shutil.copytree(served.repositories["a/clip"], tmp_path / "cut"))
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for model, naming in (("open_clip:Tiny-4/noise", ("Tiny-4", "noise")), (cut, (cut,))):
        for target in (images, tiny_collection):
            with raises_naming(UserError, *naming):
                build_index(model, target, tmp_path / "index")
            assert not (tmp_path / "index").exists()


def test_files_that_change_while_they_are_indexed(
    served: Hub, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deleted file is quarantined; a replaced one has the vector of its new content after a second run."""
    from foveate.search import index as index_module

    read_image, out = index_module.read_image, tmp_path / "index"

    def read_and_change(*arguments: Any) -> Any:
        monkeypatch.setattr(index_module, "read_image", read_image)
        (images / "red.png").unlink()
        Image.new("RGB", (SIZE, SIZE), (9, 90, 200)).save(images / "green.png")
        return read_image(*arguments)

    monkeypatch.setattr(index_module, "read_image", read_and_change)
    described, _ = build_index(served.repositories["a/clip"], images, out, workers=1)
    assert described.counts["images"] + described.counts["unreadable"] == 4
    assert described.counts["unreadable"] >= 1
    described, plan = build_index(served.repositories["a/clip"], images, out)
    assert plan.folder is not None
    assert (plan.folder.gone, plan.folder.changed) == (1, 1)
    assert described.counts == {"images": 3, "regions": 0, "unreadable": 0}
    build_index(served.repositories["a/clip"], images, tmp_path / "fresh")
    scores = [
        {hit.key: hit.score for hit in foveate.open_index(folder).search("a dog")}
        for folder in (out, tmp_path / "fresh")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_folder_without_images(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with raises_naming(UserError, tmp_path / "empty"):
        build_index(served.repositories["a/clip"], tmp_path / "empty", tmp_path / "index")
    assert not (tmp_path / "index").exists()
