"""Encoders by name, seeds that leave the process's random state alone, and the record of preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import UserError
from foveate.vision.layers import TransformerLayer, encode_points
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.preprocess import Preprocess
from foveate.vision.registry import build_image_encoder, build_text_encoder, encoder_kinds, tower_options
from naming import raises_naming


def test_kinds_are_found_by_module_name() -> None:
    images = ["bridge", "clip", "dinov2", "lite0", "open_clip", "siglip", "small", "timm"]
    assert encoder_kinds("IMAGE_ENCODER") == images
    assert encoder_kinds("TEXT_ENCODER") == ["clip", "minilm", "open_clip", "siglip", "small"]
    assert "source" in tower_options("siglip", "text_encoder")
    assert tower_options("dinov2", "text_encoder") == []
    encoder = build_image_encoder({"kind": "lite0", "width": 16, "embed_dim": 8, "image_size": 64})
    assert isinstance(encoder, Lite0Encoder)
    assert build_text_encoder({"kind": "minilm", "embed_dim": 8}).embed_dim == 8


def test_same_seed_same_weights_and_no_global_state() -> None:
    settings = {"kind": "lite0", "width": 16, "embed_dim": 8, "image_size": 64, "layers": 1}
    before = torch.get_rng_state()
    one, two, other = (build_image_encoder(settings, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["proj.weight"], other["proj.weight"])


def test_wrong_settings_are_named() -> None:
    with raises_naming(UserError, "lite1", "image.kind", "lite0"):
        build_image_encoder({"kind": "lite1"})
    with raises_naming(UserError, "minilm", "image.kind"):
        build_image_encoder({"kind": "minilm"})
    with raises_naming(UserError, "..settings", "text.kind"):
        build_text_encoder({"kind": "..settings"})
    with raises_naming(UserError, "image.kind"):
        build_image_encoder({})
    with raises_naming(UserError, "lite0", "widht", "width"):
        build_image_encoder({"kind": "lite0", "widht": 3})


def test_an_error_of_our_own_is_not_only_laid_on_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"kind": "lite0", "width": 16, "embed_dim": 8, "image_size": 64}
    with raises_naming(UserError, "lite0") as refused:
        build_image_encoder({**settings, "width": -16})
    assert "please report it" not in str(refused.value), "PyTorch said so"
    monkeypatch.setattr("foveate.vision.lite0.bilinear_matrix", None)
    with pytest.raises(UserError, match=r"in foveate\.vision\.lite0, line \d+; .*please report it"):
        build_image_encoder(settings)


def test_preprocess_round_trip_and_errors() -> None:
    preprocess = Preprocess(size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), fill=(7, 7, 7))
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    pixels = preprocess.pixels(Image.fromarray(array))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(array).permute(2, 0, 1))
    normalized = preprocess.normalize(pixels)
    assert normalized[1, 2, 3].item() == pytest.approx((array[2, 3, 1] / 255 - 0.2) / 0.25)
    with raises_naming(UserError, "4", "5"):
        preprocess.pixels(Image.new("RGB", (4, 5)))
    with raises_naming(UserError, "interpolation"):
        Preprocess.from_dict({**preprocess.to_dict(), "interpolaton": "bicubic"})
    with raises_naming(UserError, "std"):
        Preprocess.from_dict({"size": 4, "mean": [0, 0, 0]})
    with raises_naming(UserError, "preprocess.geometry"):
        Preprocess(size=4, mean=(0, 0, 0), std=(1, 1, 1), geometry="squash")


def test_transformer_layer_equals_torch() -> None:
    ours = TransformerLayer(16, heads=2)
    theirs = torch.nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {
        "ln1": "norm1", "ln2": "norm2", "fc1": "linear1", "fc2": "linear2", "out": "self_attn.out_proj"
    }  # fmt: skip
    state = {
        f"{theirs_name}.{kind}": ours.state_dict()[f"{ours_name}.{kind}"]
        for ours_name, theirs_name in names.items()
        for kind in ("weight", "bias")
    }
    state["self_attn.in_proj_weight"], state["self_attn.in_proj_bias"] = ours.qkv.weight, ours.qkv.bias
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    with raises_naming(UserError, "3"):
        TransformerLayer(16, heads=3)


def test_sinusoid_refuses_what_it_cannot_lay_out() -> None:
    with raises_naming(UserError, "6"):
        encode_points(torch.zeros(1, 2), width=6)
    with raises_naming(UserError, "blocked"):
        encode_points(torch.zeros(1, 2), width=8, layout="block")
    assert encode_points(torch.zeros(2, 3, 2, dtype=torch.float16), width=8).dtype == torch.float32
