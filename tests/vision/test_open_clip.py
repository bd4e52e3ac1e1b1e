"""open_clip's towers on tiny random models: the same embeddings, tokens before pooling, folders there and back."""

from __future__ import annotations

import json
import logging
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core import hub
from foveate.core.errors import UserError
from foveate.vision.localizer.sources import find_model
from foveate.vision.open_clip.build import create_open_clip, quiet
from foveate.vision.open_clip.export import export_open_clip
from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder
from foveate.vision.registry import seeded
from naming import raises_naming

TINY_VIT = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
TINY_TEXT = {"layers": 2, "width": 48, "heads": 2, "context_length": 16}
TEXTS = ["a cat", "a red ball in front of a much longer description of a garden that is cut at the end", ""]


def towers(**vision: object) -> tuple[OpenClipImageEncoder, OpenClipTextEncoder]:
    with seeded(0):
        image = OpenClipImageEncoder(model="ViT-B-16", embed_dim=24, vision={**TINY_VIT, **vision})
        text = OpenClipTextEncoder(model="ViT-B-16", embed_dim=24, text=TINY_TEXT)
    return image.eval(), text.eval()


def pixels(size: int = 32, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("final_ln_after_pool", [False, True])
@pytest.mark.parametrize("pool", ["tok", "avg"])
@torch.no_grad()
def test_vit_tokens_and_embedding(pool: str, final_ln_after_pool: bool) -> None:
    image, _ = towers(pool_type=pool, final_ln_after_pool=final_ln_after_pool)
    found = image(pixels())
    assert torch.equal(found.pooled, image.visual(pixels()))
    assert found.grid == (4, 4)
    assert found.tokens.shape == (3, 16, 64)
    assert (image.width, image.embed_dim, image.preprocess.size) == (64, 24, 32)
    mean = found.tokens.mean(dim=(0, 1, 2))
    assert abs(mean.item()) < 1e-5  # normed
    projected = image.project(found.tokens.mean(dim=1))
    assert projected.shape == (3, 24)
    if pool == "avg" and not final_ln_after_pool:
        torch.testing.assert_close(projected, found.pooled, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(("tag", "is_quick"), [("openai", True), ("metaclip_400m", True), ("laion2b_s34b_b79k", False)])
def test_weights_of_a_tag_get_the_activation_they_were_trained_with(
    tag: str, is_quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    options: dict[str, Any] = {}
    monkeypatch.setattr(open_clip, "create_model", lambda name, **given: options.update(given))
    monkeypatch.setattr(hub, "is_reachable", lambda endpoint: True)
    _, config = create_open_clip("ViT-B-32", pretrained=tag)
    # In the configuration, too: a model folder is opened again by that alone.
    assert (options["force_quick_gelu"], config.get("quick_gelu", False)) == (is_quick, is_quick)


@pytest.mark.parametrize(
    ("name", "pin"),
    [
        ("ViT-B-32/openai", "openai with quick_gelu"),
        ("ViT-B-32-quickgelu/openai", "openai"),
        ("ViT-B-32/laion2b_s34b_b79k", "laion2b_s34b_b79k"),
    ],
)
def test_an_index_tells_the_activation_of_its_model(name: str, pin: str) -> None:
    assert find_model(f"open_clip:{name}").pin == pin


@pytest.mark.parametrize("pool", ["map", "avg", "token"])
@torch.no_grad()
def test_timm_vit(pool: str) -> None:
    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": "" if pool == "map" else "linear",
        "image_size": 224,
    }
    with seeded(0):
        image = OpenClipImageEncoder(model="ViT-B-16", embed_dim=24, vision=vision).eval()
    found = image(pixels(224, 1))
    assert torch.equal(found.pooled, image.visual(pixels(224, 1)))
    assert found.tokens.shape == (1, 196, 192)
    assert image.project(found.tokens[0]).shape == (196, 24)


@torch.no_grad()
def test_uint8_pixels_are_normalized() -> None:
    image, _ = towers()
    raw = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value)[:, None, None] for value in (image.preprocess.mean, image.preprocess.std))
    expected = image.visual((raw.float() / 255 - mean) / std)
    torch.testing.assert_close(image(raw).pooled, expected, atol=1e-6, rtol=0.0)


@torch.no_grad()
def test_text_equals_open_clip_and_the_cut_form_stays_equal() -> None:
    import open_clip

    _, text = towers()
    ids = text.frozen_features(TEXTS)
    assert ids.shape == (3, 16)
    assert ids.dtype == text.feature_dtype
    tokenizer = open_clip.get_tokenizer("ViT-B-16", context_length=16)
    assert torch.equal(ids.long(), tokenizer(TEXTS))
    expected = text.text_model.encode_text(tokenizer(TEXTS))
    assert torch.equal(text(ids), expected)
    text.train()
    for rows in (slice(0, 1), slice(0, 3), slice(0, 0)):
        torch.testing.assert_close(text(ids[rows]), expected[rows], atol=5e-6, rtol=0.0)
    assert text.frozen_features([]).shape == (0, 16)


def test_no_number_of_words_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setattr("foveate.vision.open_clip.build._MAX_CACHED_WORDS", 10)
    _, text = towers()
    texts = [f"wug{letter}" for letter in "abcdefghijklmnop"] * 2
    tokenizer = open_clip.get_tokenizer("ViT-B-16", context_length=16)
    assert torch.equal(text.frozen_features(texts).long(), tokenizer(texts))
    assert (len(text.tokenizer.cache), len(tokenizer.cache) > 10) == (10, True)


@torch.no_grad()
def test_exported_folder_gives_the_same_embeddings_in_open_clip(tmp_path: Path) -> None:
    import open_clip

    image, text = towers(pool_type="avg")
    export_open_clip(image, text, log_scale=torch.tensor([2.5]), folder=tmp_path / "towers")
    name = f"local-dir:{tmp_path / 'towers'}"
    theirs, _, transform = open_clip.create_model_and_transforms(name)
    theirs.eval()
    tokenizer = open_clip.get_tokenizer(name)
    assert torch.equal(theirs.encode_image(pixels()), image(pixels()).pooled)
    assert torch.equal(theirs.encode_text(tokenizer(TEXTS)), text(text.frozen_features(TEXTS)))
    assert theirs.logit_scale.item() == pytest.approx(2.5)
    assert "CenterCropOrPad" in str(transform)  # the letterbox of this package

    again_image = OpenClipImageEncoder(model=name).eval()
    again_text = OpenClipTextEncoder(model=name).eval()
    assert torch.equal(again_image(pixels()).pooled, image(pixels()).pooled)
    assert torch.equal(again_text(again_text.frozen_features(TEXTS)), text(text.frozen_features(TEXTS)))
    config = json.loads((tmp_path / "towers" / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["fill_color"] = 127
    (tmp_path / "towers" / "open_clip_config.json").write_text(json.dumps(config))
    assert OpenClipImageEncoder(model=name).preprocess.fill == (127, 127, 127)
    larger = OpenClipImageEncoder(model=name, image_size=48)
    assert larger.grid == (6, 6)
    assert larger(pixels(48)).tokens.shape == (3, 36, 64)

    with raises_naming(UserError, "embed_dim", "7"):
        OpenClipImageEncoder(model=name, embed_dim=7)
    with raises_naming(UserError, "vision"):
        OpenClipImageEncoder(model=name, vision={"layers": 3})


@torch.no_grad()
def test_architecture_builds_a_saved_tower_without_its_source(tmp_path: Path) -> None:
    image, text = towers(pool_type="avg")
    folder = tmp_path / "towers"
    export_open_clip(image, text, log_scale=2.5, folder=folder)
    first = OpenClipImageEncoder(model=f"local-dir:{folder}", image_size=48).eval()
    first_text = OpenClipTextEncoder(model=f"local-dir:{folder}").eval()
    (folder / "open_clip_model.safetensors").unlink()
    options = json.loads(json.dumps(first.architecture()))
    again = OpenClipImageEncoder(model=f"local-dir:{folder}", **options).eval()
    again.load_state_dict(first.state_dict())
    assert again.preprocess == first.preprocess
    assert torch.equal(again(pixels(48)).pooled, first(pixels(48)).pooled)
    again_text = OpenClipTextEncoder(model="ViT-B-16", **json.loads(json.dumps(first_text.architecture()))).eval()
    again_text.load_state_dict(first_text.state_dict())
    ids = first_text.frozen_features(TEXTS)
    assert torch.equal(again_text(ids), first_text(ids))


def test_towers_of_different_kinds_are_not_exported(tmp_path: Path) -> None:
    image, _ = towers()
    text = OpenClipTextEncoder(model="ViT-B-16", embed_dim=16, text=TINY_TEXT)
    with raises_naming(UserError, "embed_dim", "24", "16"):
        export_open_clip(image, text, log_scale=2.0, folder=tmp_path)


def test_unsupported_towers_and_wrong_names_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    convnext = {"timm_model_name": "convnext_atto", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    with raises_naming(UserError, "ConvNeXt", "ViTs"):
        OpenClipImageEncoder(model="ViT-B-16", vision=convnext)
    with raises_naming(UserError, "ViT-B-16"):
        OpenClipImageEncoder(model="ViT-B-61")
    with raises_naming(UserError, "local-dir:FOLDER"):
        OpenClipImageEncoder(model="hub:owner/name")
    with raises_naming(UserError, "open_clip_config.json"):
        OpenClipImageEncoder(model=f"local-dir:{tmp_path}")
    with raises_naming(UserError, "ViT-B-16", "layrs"):
        OpenClipImageEncoder(model="ViT-B-16", vision={"layrs": 3})


def test_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with raises_naming(UserError, "local-dir:FOLDER"):
        OpenClipImageEncoder(model="hf-hub:nobody/nothing", cache_dir=str(tmp_path))
    with raises_naming(UserError, "openai"):
        OpenClipImageEncoder(model="ViT-B-16", pretrained="openai", cache_dir=str(tmp_path))


def test_a_lookup_on_the_hub_is_said_before_it_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import open_clip
    from huggingface_hub import constants

    said: list[str] = []

    def fail(*_: object, **__: object) -> None:
        said.append(capsys.readouterr().err)
        raise RuntimeError(f"Failed to find {'the file ' * 29}there. Please check your connection and try again.")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip, "create_model", fail)
    monkeypatch.setattr(hub, "is_reachable", lambda endpoint: True)
    for fields, repository in (
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ({"model": "hf-hub:nobody/nothing"}, "nobody/nothing"),
    ):
        with pytest.raises(UserError) as error:
            OpenClipImageEncoder(**fields, cache_dir=str(tmp_path))
        assert said.pop() == f"looking for {repository} on {constants.ENDPOINT.removeprefix('https://')}\n"
        assert "the file there); download them" in str(error.value)
        assert str(error.value).endswith("'small' embeds images")
    monkeypatch.setattr(hub, "is_reachable", lambda endpoint: False)
    with raises_naming(UserError, "nobody/nothing", "small"):
        OpenClipImageEncoder(model="hf-hub:nobody/nothing", cache_dir=str(tmp_path))
    assert not said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with raises_naming(UserError, "local-dir:FOLDER"):
        OpenClipImageEncoder(model="hf-hub:nobody/nothing", cache_dir=str(tmp_path))
    assert said == [""]


def test_building_leaves_logging_alone(caplog: pytest.LogCaptureFixture) -> None:
    handlers = list(logging.getLogger().handlers)
    towers()
    assert logging.getLogger().handlers == handlers
    assert not caplog.records
    assert logging.root.manager.disable == logging.NOTSET


def test_a_price_of_trained_weights_does_not_warn_of_each_tensor(tmp_path: Path) -> None:
    image, text = towers(pool_type="avg")
    export_open_clip(image, text, log_scale=2.5, folder=tmp_path)
    with torch.device("meta"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tower = OpenClipImageEncoder(model=f"local-dir:{tmp_path}")
    assert next(tower.parameters()).is_meta
    assert not [warning for warning in caught if "meta parameter" in str(warning.message)]


def test_threads_load_one_tokenizer_and_leave_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = towers()
    loaded: list[object] = []
    real = text._load_tokenizer

    def slowly() -> object:
        time.sleep(0.05)
        loaded.append(real())
        return loaded[-1]

    monkeypatch.setattr(text, "_load_tokenizer", slowly)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text_: text.frozen_features([text_]), ["a cat"] * 4))
    assert len(loaded) == 1
    assert all(torch.equal(row, rows[0]) for row in rows)

    def in_quiet(seconds: float) -> None:
        with quiet():
            time.sleep(seconds)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(in_quiet, 0.1)
        time.sleep(0.03)
        second = pool.submit(in_quiet, 0.2)
    assert first.exception() is second.exception() is None
    assert logging.root.manager.disable == logging.NOTSET
