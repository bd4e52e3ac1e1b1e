"""The frozen EfficientNet-Lite0 against its package's own network, and the trainable head on packed features."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from foveate.core.devices import fast_precision
from foveate.core.errors import UserError
from foveate.records.builtin.photographs import open_photograph
from foveate.vision import lite0
from foveate.vision.lite0 import Lite0Encoder, bilinear_matrix, load_lite0, pack_maps, packed_length, unpack_maps
from foveate.vision.registry import seeded
from naming import raises_naming


@pytest.fixture(scope="module")
def coffee() -> torch.Tensor:
    """uint8 [1, 3, 224, 224]."""
    image = open_photograph("coffee").resize((224, 224), Image.Resampling.BICUBIC)
    return Lite0Encoder().preprocess.pixels(image)[None]


@torch.no_grad()
def test_folded_network_equals_the_package(coffee: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    network = load_lite0()
    assert capsys.readouterr().out == ""
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):
        original = EfficientNet.from_name("efficientnet-lite0")
    original.load_state_dict(lite0.read_state())
    original.eval()
    maps: list[torch.Tensor] = []
    for block in (original._blocks[10], original._blocks[15]):
        block.register_forward_hook(lambda module, args, out: maps.append(out))
    x = Lite0Encoder().normalized(coffee)
    torch.testing.assert_close(x, coffee / 127.5 - 1, atol=1e-6, rtol=0.0)
    logits = original(x)
    assert logits.argmax().item() == 967  # espresso
    for found, expected in zip(network(x), maps, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_network_equals_the_plain_one(coffee: torch.Tensor, dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, fast_precision(torch.device("cpu"))):
        pytest.skip("this processor has no instructions for bfloat16, so nothing is fused in it")
    x = Lite0Encoder().normalized(coffee).to(dtype=dtype, memory_format=torch.channels_last)
    plain, fused = load_lite0().to(dtype), load_lite0().to(dtype).fuse()
    assert plain.stem.fused is None
    can_fuse = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert (fused.stem.fused is not None) == (torch.backends.mkldnn.is_available() and can_fuse)
    # A copy, as trainings make of a model, and sides that are not those which the layout was chosen for.
    shared = copy.deepcopy(fused)
    for pixels in (x, x.repeat(9, 1, 1, 1), x[..., :96, 32:192]):
        exact = load_lite0()(pixels.float())
        for one, other, copied, right in zip(plain(pixels), fused(pixels), shared(pixels), exact, strict=True):
            assert torch.equal(other, copied)
            if dtype == torch.float32:
                torch.testing.assert_close(one, other, atol=1e-4, rtol=0.0)
            else:
                # Sums in another order: another rounding, no larger one.
                assert (other - right).abs().mean() < 1.2 * (one - right).abs().mean()


@torch.no_grad()
def test_features_are_packed_and_precisions_agree(coffee: torch.Tensor) -> None:
    exact, half = (Lite0Encoder(precision=precision) for precision in ("float32", "bfloat16"))
    features = exact.frozen_features(coffee)
    assert features.shape == (1, *exact.feature_shape)
    assert features.shape[1] == packed_length((14, 14)) == 14 * 14 * 112 + 7 * 7 * 320
    assert features.dtype == exact.feature_dtype == torch.float16
    fine, coarse = unpack_maps(features.float(), (14, 14))
    assert fine.shape == (1, 14, 14, 112)
    assert coarse.shape == (1, 7, 7, 320)
    raw_fine, raw_coarse = load_lite0()(exact.normalized(coffee))
    for part, raw in ((fine, raw_fine), (coarse, raw_coarse)):
        expected = F.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2])
        torch.testing.assert_close(part, expected, atol=5e-3, rtol=1e-3)
    assert F.cosine_similarity(features.float(), half.frozen_features(coffee).float()).item() > 0.99
    assert exact.fingerprint() != half.fingerprint()
    assert Lite0Encoder(image_size=256).fingerprint() != Lite0Encoder(image_size=224).fingerprint()
    assert exact.frozen_features(coffee[:0]).shape == (0, *exact.feature_shape)
    with raises_naming(UserError, "features", "grid 16 x 16"):
        unpack_maps(features, (16, 16))


def test_packing_keeps_the_order_of_positions() -> None:
    fine = torch.zeros(1, 112, 4, 6)
    coarse = torch.zeros(1, 320, 2, 3)
    fine[0, 5, 1, 2], coarse[0, 7, 1, 0] = 1.0, 1.0
    unpacked = unpack_maps(pack_maps(fine, coarse), (4, 6))
    assert unpacked[0][0].argmax() == (1 * 6 + 2) * 112 + 5
    assert unpacked[1][0].argmax() == (1 * 3 + 0) * 320 + 7


def test_upsampling_matrix_is_bilinear_interpolation() -> None:
    small = torch.randn(1, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(small, size=(4, 6), mode="bilinear", align_corners=False).flatten(2)
    torch.testing.assert_close(small.flatten(2) @ bilinear_matrix((4, 6)).T, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 1, "position": "sincos", "pool": "attention"}, {"layers": 2, "position": "none", "heads": 2}],
    ids=str,
)
def test_head_gives_tokens_and_gradients(options: dict[str, object]) -> None:
    with seeded(0):
        encoder = Lite0Encoder(width=16, embed_dim=8, image_size=64, **options)  # type: ignore[arg-type]
    features = torch.randn(3, *encoder.feature_shape, generator=torch.Generator().manual_seed(1)).half()
    found = encoder(features)
    assert found.tokens.shape == (3, 16, 16)
    assert found.grid == encoder.grid == (4, 4)
    assert found.pooled.shape == (3, 8)
    assert encoder.project(found.tokens[:, 0]).shape == (3, 8)
    found.pooled.square().sum().backward()
    missing = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not missing
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(features)
    relative = (half.pooled.float() - found.pooled).norm() / found.pooled.norm()
    assert relative < 0.05


@pytest.mark.parametrize("position", ["learned", "sincos", "none"])
def test_training_has_the_gradients_of_the_plain_sum(position: str) -> None:
    with seeded(0):
        encoder = Lite0Encoder(width=16, embed_dim=8, image_size=64, position=position).double()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, *encoder.feature_shape, generator=generator).half()
    weights = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    outcomes = []
    for training in (True, False):
        encoder.train(training).zero_grad()
        pooled = encoder(features).pooled
        (pooled * weights).sum().backward()
        outcomes.append([pooled.detach(), *(parameter.grad for parameter in encoder.parameters())])
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-12, rtol=1e-12)


def test_frozen_part_is_neither_saved_nor_trained(coffee: torch.Tensor) -> None:
    encoder = Lite0Encoder(width=16, embed_dim=8)
    encoder.frozen_features(coffee)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {
        "fine_in", "coarse_in", "position_LD", "final_ln", "proj"
    }  # fmt: skip
    torch.testing.assert_close(
        encoder(coffee).pooled, encoder(encoder.frozen_features(coffee)).pooled, atol=0.0, rtol=0.0
    )


def test_missing_or_foreign_weights_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with raises_naming(UserError, "32"):
        Lite0Encoder(image_size=100)
    with raises_naming(UserError, "sincos"):
        Lite0Encoder(position="sincoss")
    monkeypatch.setattr(lite0, "FILE_SHA256", "0" * 64)
    with raises_naming(UserError, "sha256", "a184"):
        load_lite0()
    monkeypatch.setattr(lite0, "WEIGHTS", tmp_path / "none.safetensors")
    with raises_naming(UserError, "none.safetensors", "reinstall foveate"):
        load_lite0()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_features_are_the_same_under_autocast(precision: str) -> None:
    encoder = Lite0Encoder(width=32, embed_dim=24, image_size=32, precision=precision).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = encoder.frozen_features(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.frozen_features(pixels), expected)
        assert encoder.frozen_features(pixels[:0]).shape == (0, *encoder.feature_shape)


def test_frozen_weights_give_the_very_bits_of_trained_ones() -> None:
    encoder = Lite0Encoder(width=32, embed_dim=24, image_size=32, layers=1, heads=2, precision="float32").eval()
    features = encoder.frozen_features(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        expected = encoder(features).pooled
        encoder.requires_grad_(False)
        assert torch.equal(encoder(features).pooled, expected)


def test_fused_convolutions_run_in_bfloat16_on_older_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a processor without AVX-512 the fused operator raises for bfloat16.
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    x = torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16)
    # The second undoes the fusion: its weights would be those of before.
    for network in (load_lite0().bfloat16().fuse(), load_lite0().fuse().bfloat16()):
        assert network.stem.fused is None
        assert network(x)[1].dtype == torch.bfloat16
    monkeypatch.undo()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert load_lite0().bfloat16().fuse().stem.fused is not None


def test_last_stages_are_trained_behind_the_cached_part(coffee: torch.Tensor) -> None:
    options: dict[str, Any] = {"image_size": 64, "width": 8, "embed_dim": 8, "precision": "float32"}
    frozen, trained = Lite0Encoder(**options), Lite0Encoder(**options, train_last_stages=True)
    trained.load_state_dict(frozen.state_dict(), strict=False)
    pixels = F.interpolate(coffee.float(), 64).to(torch.uint8)
    features = trained.frozen_features(pixels)
    assert features.shape == (1, *trained.feature_shape) == (1, 4 * 4 * 112)
    assert frozen.fingerprint() != trained.fingerprint()
    # Untrained, the stages give what the frozen network does; both round their cached features to float16.
    close = {"atol": 2e-2, "rtol": 0.0}
    torch.testing.assert_close(trained.image_vectors(pixels), frozen.image_vectors(pixels), **close)
    torch.testing.assert_close(trained(features).tokens, frozen(pixels).tokens, **close)
    for layer in (-1, -2):
        one, other = (each.hidden_features(pixels, layer=layer).tokens for each in (frozen, trained))
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    before = {name: value.clone() for name, value in trained.unnamed_weights().items()}
    assert len(before) == 2 * 3 * 5  # weight and bias of three convolutions in each of five blocks
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained.image_vectors(features).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in trained.unnamed_weights().items())
    assert torch.equal(trained.frozen_features(pixels), features)
    assert not torch.equal(trained.hidden_features(pixels, layer=-1).tokens, one)
