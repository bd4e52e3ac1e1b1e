"""SigLIP of transformers: equal to the library's own forward, with either kind of tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from foreign import TEXTS, WIDTH, pixels, save_clip, save_siglip, sentencepiece_file

from foveate.core.errors import UserError
from foveate.vision.hf.siglip import SiglipImageEncoder, SiglipTextEncoder
from naming import raises_naming


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.mark.parametrize("sides", [(32, 32), (48, 48), (24, 40)])
@torch.no_grad()
def test_image_equals_transformers_bit_for_bit(folder: Path, sides: tuple[int, int]) -> None:
    from transformers import SiglipModel

    encoder, theirs = SiglipImageEncoder(source=str(folder)).eval(), SiglipModel.from_pretrained(folder).eval()
    expected = theirs.get_image_features(pixel_values=pixels(*sides), interpolate_pos_encoding=True)
    found = encoder(pixels(*sides))
    assert torch.equal(found.pooled, expected.pooler_output)
    assert torch.equal(found.tokens, expected.last_hidden_state)
    assert encoder.project(found.tokens[:, 0]).shape == (3, WIDTH)
    one = encoder.trunk.head(found.tokens[:, :1])
    torch.testing.assert_close(encoder.project(found.tokens[:, 0]), one, atol=1e-6, rtol=0)
    assert encoder.trained_scale == pytest.approx(math.exp(4.7), rel=1e-5)
    assert encoder.trained_bias == -12.0


@torch.no_grad()
def test_text_equals_transformers_padded_and_cut(folder: Path) -> None:
    from transformers import AutoTokenizer, SiglipModel

    encoder, theirs = SiglipTextEncoder(source=str(folder)).eval(), SiglipModel.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    ids = encoder.frozen_features(TEXTS)
    assert torch.equal(ids, batch["input_ids"].int())
    expected = theirs.get_text_features(input_ids=batch["input_ids"]).pooler_output
    assert torch.equal(encoder(ids), expected)
    encoder.train()
    torch.testing.assert_close(encoder(ids[:1]), expected[:1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_sentencepiece_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    from transformers import SiglipTokenizer

    tokenizer = SiglipTokenizer(str(sentencepiece_file(tmp_path / "words")), model_max_length=12)
    source = save_siglip(tmp_path / "siglip", tokenizer=tokenizer)
    text = SiglipTextEncoder(source=str(source)).eval()
    expected = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    assert torch.equal(text.frozen_features(TEXTS).long(), expected)
    files = text.tokenizer_files()
    assert "spiece.model" in files
    kept = tmp_path / "kept"
    kept.mkdir()
    for name, content in files.items():
        (kept / name).write_bytes(content)
    again = SiglipTextEncoder(**{**json.loads(json.dumps(text.architecture())), "tokenizer": str(kept)}).eval()
    again.load_state_dict(text.state_dict())
    assert torch.equal(again(again.frozen_features(TEXTS)), text(text.frozen_features(TEXTS)))


def test_a_size_that_is_no_multiple_of_the_patch_becomes_one(tmp_path: Path) -> None:
    from transformers import SiglipModel

    source = save_siglip(tmp_path / "siglip", patch=7, size=32)
    encoder = SiglipImageEncoder(source=str(source)).eval()
    assert (encoder.preprocess.size, encoder.grid) == (28, (4, 4))
    theirs = SiglipModel.from_pretrained(source).eval()
    with torch.no_grad():
        # Their 32 px drop the last 4 pixels of each side: the same patches.
        expected = theirs.get_image_features(pixel_values=torch.nn.functional.pad(pixels(28, 28), (0, 4, 0, 4)))
        torch.testing.assert_close(encoder(pixels(28, 28)).pooled, expected.pooler_output, atol=1e-6, rtol=0)


def test_trained_frozen_and_rebuilt(folder: Path) -> None:
    image, text = SiglipImageEncoder(source=str(folder)).train(), SiglipTextEncoder(source=str(folder)).train()
    found = image(pixels())
    (found.pooled.sum() + found.tokens.square().sum()).backward()
    text(text.frozen_features(TEXTS)).square().sum().backward()
    for encoder in (image, text):
        assert not [name for name, one in encoder.named_parameters() if one.grad is None]
    frozen = SiglipImageEncoder(source=str(folder), frozen=True, embed_dim=8, projection="new")
    assert {name for name, one in frozen.named_parameters() if one.requires_grad} == {"proj.weight"}
    rows = frozen.frozen_features(pixels())
    torch.testing.assert_close(frozen(rows).tokens, image.eval()(pixels()).tokens, atol=4e-3, rtol=0)
    again = SiglipImageEncoder(**json.loads(json.dumps(image.architecture()))).eval()
    again.load_state_dict(image.state_dict())
    assert torch.equal(again(pixels()).pooled, image(pixels()).pooled)


def test_mistakes_are_explained(folder: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    with raises_naming(UserError, "clip", "model_type"):
        SiglipImageEncoder(source=str(clip))
    with raises_naming(UserError, "32", "embed_dim=32"):
        SiglipTextEncoder(source=str(folder), embed_dim=5)
    naflex = tmp_path / "naflex"
    naflex.mkdir()
    (naflex / "config.json").write_text('{"model_type": "siglip2"}')
    with raises_naming(UserError, "siglip2", "model_type"):
        SiglipImageEncoder(source=str(naflex))
