"""CLIP of transformers: equal to the library's own forward, cached or trained through, self-contained."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import EMBED, TEXTS, WIDTH, pixels, save_clip, word_tokenizer
from PIL import Image

from foveate.core.errors import UserError
from foveate.vision.hf.clip import TransformersClipImageEncoder, TransformersClipTextEncoder
from foveate.vision.registry import build_image_encoder, build_text_encoder
from naming import raises_naming


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("sides", [(32, 32), (48, 48), (32, 48), (24, 40)])
@torch.no_grad()
def test_image_equals_transformers_bit_for_bit(folder: Path, sides: tuple[int, int]) -> None:
    from transformers import CLIPModel

    encoder = TransformersClipImageEncoder(source=str(folder)).eval()
    theirs = CLIPModel.from_pretrained(folder).eval()
    x = pixels(*sides)
    found = encoder(x)
    vision = theirs.vision_model(pixel_values=x, interpolate_pos_encoding=True)
    assert torch.equal(found.pooled, theirs.visual_projection(vision.pooler_output))
    assert torch.equal(found.tokens, theirs.vision_model.post_layernorm(vision.last_hidden_state)[:, 1:])
    assert found.grid == (sides[0] // 8, sides[1] // 8)
    assert (encoder.width, encoder.embed_dim, encoder.grid, encoder.preprocess.size) == (WIDTH, EMBED, (4, 4), 32)
    torch.testing.assert_close(encoder.project(vision.pooler_output), found.pooled, atol=1e-6, rtol=0)
    assert encoder.trained_scale == pytest.approx(math.exp(4.0))


@pytest.mark.parametrize("eos", [None, 2])
@torch.no_grad()
def test_text_equals_transformers_padded_and_cut(tmp_path: Path, eos: int | None) -> None:
    from transformers import AutoTokenizer, CLIPModel

    folder = save_clip(tmp_path / "clip", eos_token_id=eos)
    encoder = TransformersClipTextEncoder(source=str(folder)).eval()
    theirs, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    ids = encoder.frozen_features(TEXTS)
    assert torch.equal(ids, batch["input_ids"].int())
    assert ids.dtype == encoder.feature_dtype
    unmasked = theirs.text_projection(theirs.text_model(input_ids=batch["input_ids"]).pooler_output)
    masked = theirs.text_projection(theirs.text_model(**batch).pooler_output)
    assert torch.equal(encoder(ids), unmasked)
    torch.testing.assert_close(encoder(ids), masked, atol=1e-6, rtol=0)
    encoder.train()  # cut behind the longest text
    torch.testing.assert_close(encoder(ids[:2]), unmasked[:2], atol=1e-6, rtol=0)
    assert encoder(ids[:0]).shape == (0, EMBED)


def test_preprocessing_equals_the_processor_where_both_do_the_same(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder)
    preprocess = TransformersClipImageEncoder(source=str(folder)).preprocess
    assert preprocess.interpolation == "bicubic"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    same = Image.fromarray(noise)  # of the model's own size: nothing is resized
    ours = preprocess.normalize(preprocess.pixels(same))
    torch.testing.assert_close(ours, processor(same, return_tensors="pt")["pixel_values"][0], atol=1e-6, rtol=0)
    large = Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)
    ours = preprocess.normalize(preprocess.pixels(large.resize((32, 32), Image.Resampling.BICUBIC)))
    theirs = processor(large, return_tensors="pt")["pixel_values"][0]
    assert (ours - theirs).abs().max() <= 2 / 255 / min(preprocess.std)  # two gray levels: Pillow against torchvision


def test_frozen_features_are_the_same_in_16_bits(folder: Path) -> None:
    through = TransformersClipImageEncoder(source=str(folder)).eval()
    frozen = TransformersClipImageEncoder(source=str(folder), frozen=True).train()
    rows = frozen.frozen_features(pixels())
    assert rows.shape == (3, *frozen.feature_shape)
    assert rows.dtype == torch.float16
    for given in (rows, pixels()):
        found = frozen(given)
        torch.testing.assert_close(found.tokens, through(pixels()).tokens, atol=4e-3, rtol=0)
        torch.testing.assert_close(found.pooled, through(pixels()).pooled, atol=4e-3, rtol=0)
    assert frozen(pixels(32, 48)).grid == (4, 6)
    assert not frozen.trunk.training
    assert {name for name, one in frozen.named_parameters() if one.requires_grad} == {"proj.weight"}
    assert through.fingerprint() == ""
    rough = TransformersClipImageEncoder(source=str(folder), frozen=True, precision="bfloat16")
    larger = TransformersClipImageEncoder(source=str(folder), frozen=True, image_size=48)
    assert len({frozen.fingerprint(), rough.fingerprint(), larger.fingerprint()}) == 3
    before = frozen.fingerprint()
    frozen.load_state_dict({name: value + 1 for name, value in frozen.state_dict().items()})
    assert frozen.fingerprint() != before
    torch.testing.assert_close(rough(pixels()).tokens, through(pixels()).tokens, atol=0.2, rtol=0)
    with raises_naming(UserError, "features", "grid"):
        larger(rows)
    with pytest.warns(UserWarning, match="precision.*frozen"):
        TransformersClipImageEncoder(source=str(folder), precision="bfloat16")


def test_frozen_text(folder: Path) -> None:
    frozen = TransformersClipTextEncoder(source=str(folder), frozen=True).train()
    through = TransformersClipTextEncoder(source=str(folder)).eval()
    rows = frozen.frozen_features(TEXTS)
    torch.testing.assert_close(frozen(rows), through(through.frozen_features(TEXTS)), atol=1e-6, rtol=0)
    assert frozen.frozen_features([]).shape == (0, WIDTH)
    assert frozen.fingerprint()


def test_the_cache_knows_the_configuration_and_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    def names(source: Path, **options: Any) -> tuple[str, str]:
        image = TransformersClipImageEncoder(source=str(source), frozen=True)
        return image.fingerprint(), TransformersClipTextEncoder(
            source=str(source), frozen=True, **options
        ).fingerprint()

    first = names(folder)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert names(moved) == first
    said = json.loads((moved / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        said[tower]["hidden_act"] = "gelu"
    (moved / "config.json").write_text(json.dumps(said))
    assert not set(names(moved)) & set(first)
    word_tokenizer(16).save_pretrained(tmp_path / "words")
    with_words = names(folder, tokenizer=str(tmp_path / "words"))
    assert with_words[0] == first[0]
    assert with_words[1] != first[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_is_trained(folder: Path, checkpointing: bool) -> None:
    options = {"kind": "clip", "source": str(folder), "checkpointing": checkpointing}
    image, text = build_image_encoder(options).train(), build_text_encoder(options).train()
    found = image(pixels())
    (found.pooled.sum() + found.tokens.square().sum()).backward()
    text(text.frozen_features(TEXTS)).sum().backward()
    for encoder in (image, text):
        assert not [name for name, one in encoder.named_parameters() if one.grad is None]


@torch.no_grad()
def test_a_saved_tower_opens_without_its_source(tmp_path: Path) -> None:
    source = save_clip(tmp_path / "clip")
    image = TransformersClipImageEncoder(source=str(source), image_size=48, geometry="center_crop").eval()
    text = TransformersClipTextEncoder(source=str(source)).eval()
    options = json.loads(json.dumps([image.architecture(), text.architecture()]))
    kept = tmp_path / "tokenizer"
    kept.mkdir()
    for name, content in text.tokenizer_files().items():
        (kept / name).write_bytes(content)
    expected = text(text.frozen_features(TEXTS))
    for path in source.iterdir():
        path.unlink()
    again = TransformersClipImageEncoder(**options[0]).eval()
    again.load_state_dict(image.state_dict())
    assert again.preprocess == image.preprocess
    assert torch.equal(again(pixels(48, 48)).pooled, image(pixels(48, 48)).pooled)
    again_text = TransformersClipTextEncoder(**{**options[1], "tokenizer": str(kept)}).eval()
    again_text.load_state_dict(text.state_dict())
    assert torch.equal(again_text(again_text.frozen_features(TEXTS)), expected)
    with raises_naming(UserError, "tokenizer: FOLDER"):
        TransformersClipTextEncoder(**options[1]).frozen_features(TEXTS)


def test_projections(folder: Path) -> None:
    with raises_naming(UserError, "embed_dim", "7", "24", "embed_dim=24"):
        TransformersClipImageEncoder(source=str(folder), embed_dim=7)
    image = TransformersClipImageEncoder(source=str(folder), embed_dim=7, projection="new")
    text = TransformersClipTextEncoder(source=str(folder), embed_dim=7, projection="new")
    assert image(pixels()).pooled.shape == (3, 7)
    assert text(text.frozen_features(TEXTS)).shape == (4, 7)
    assert image.fresh_parts == ("proj",)
    assert image.trained_scale is text.trained_scale is None


def test_models_are_counted_without_weights(folder: Path) -> None:
    with torch.device("meta"):
        image = TransformersClipImageEncoder(source=str(folder))
        text = TransformersClipTextEncoder(source=str(folder))
    assert all(one.is_meta for one in [*image.parameters(), *text.parameters()])


def test_mistakes_are_explained(folder: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "clip"):
        TransformersClipImageEncoder()
    with raises_naming(UserError, "image_size", "30", "8"):
        TransformersClipImageEncoder(source=str(folder), image_size=30)
    with raises_naming(UserError, "8", "32", "30"):
        TransformersClipImageEncoder(source=str(folder))(pixels(30, 32))
    shown = TransformersClipImageEncoder(source=str(folder), geometry="center_crop").preprocess.to_dict()
    with raises_naming(UserError, "image_size", "48", "preprocess.size", "32"):
        TransformersClipImageEncoder(source=str(folder), preprocess=shown, image_size=48)
    del shown["geometry"]
    fitted = TransformersClipImageEncoder(source=str(folder), preprocess=shown, geometry="center_crop").preprocess
    assert fitted.geometry == "center_crop"
    broken = tmp_path / "broken"
    save_clip(broken)
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with raises_naming(UserError, "1", "visual_projection.weight"):
        TransformersClipImageEncoder(source=str(broken))
    unscaled = shutil.copytree(folder, tmp_path / "unscaled")
    path = unscaled / "processor_config.json"
    said = json.loads(path.read_text())
    said["image_processor"]["do_rescale"] = False
    path.write_text(json.dumps(said))
    with raises_naming(UserError, "1.0", "1/255"):
        TransformersClipImageEncoder(source=str(unscaled))
    for name in ("processor_config.json", "preprocessor_config.json"):
        (broken / name).unlink(missing_ok=True)
    with raises_naming(UserError, "preprocessor_config.json"):
        TransformersClipImageEncoder(source=str(broken), projection="new", embed_dim=4)
