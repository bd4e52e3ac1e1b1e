"""What every method promises, on every family of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.towers import CLASSES, FAMILIES, pixels, tower
from foveate.adapt.adapter import Adapter
from foveate.adapt.folder import add_adapter, load_adapter, save_adapter
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.registry import get_method, method_names
from foveate.core.errors import UserError
from naming import raises_naming

SMALL: dict[str, dict[str, Any]] = {
    "adaptformer": {"rank": 4, "scale": 1.0},
    "pfeiffer": {"rank": 4, "scale": 1.0},
    "houlsby": {"rank": 4, "scale": 1.0},
    "convpass": {"rank": 4, "scale": 1.0},
    "repadapter": {"rank": 4},
    "fact-tt": {"rank": 4},
    "fact-tk": {"rank": 4},
    "lora": {"rank": 4},
    "vpt-shallow": {"prompts": 3},
    "vpt-deep": {"prompts": 3},
    "subset": {"blocks": [-1]},
}
STARTS_AS_IDENTITY = {
    "linear", "full", "bitfit", "layernorm", "subset", "difffit", "lora", "adaptformer", "pfeiffer", "convpass",
    "fact-tt", "fact-tk", "repadapter",
}  # fmt: skip
OUTPUTS = {"clip": "pooler_output", "clip_projected": "image_embeds"}
# Every third pair: each family with a third of the methods, each method on two or three families; all are slow.
PAIRS = [
    pytest.param(family, name, marks=() if (row + column) % 3 == 0 else pytest.mark.slow)
    for row, family in enumerate(FAMILIES)
    for column, name in enumerate(method_names())
]


def config(name: str) -> dict[str, Any]:
    return {"method": name, **SMALL.get(name, {})}


def small(family: str, name: str, dtype: torch.dtype = torch.float32) -> AdaptedModel:
    model = tower(family).to(dtype)
    adapted = adapt(model, config(name), classes=CLASSES)
    return adapted.eval()


def moved(adapted: AdaptedModel) -> AdaptedModel:
    """All that is trained, off its start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in adapted.adapter().tensors(adapted.backbone).values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator).to(value.dtype))
    return adapted


def plain_output(family: str, model: Any, images: Tensor) -> Tensor:
    """What the network gives without Foveate's adaptation, computed without its map."""
    with torch.no_grad():
        if family == "timm":
            return model(images)
        if family == "open_clip":
            return model.encode_image(images)
        if family in ("lite0", "localizer"):
            encoder = getattr(model, "image_encoder", model)
            return encoder(encoder.frozen_features(images)).pooled
        said = model(pixel_values=images)
        return said.last_hidden_state[:, 0] if family == "dinov2" else said[OUTPUTS[family]]


def same(family: str, a: Tensor, b: Tensor) -> bool:
    """The very bits; up to rounding where fused attention or a convolution sums in another order."""
    return torch.allclose(a, b, atol=1e-5) if family in ("open_clip", "localizer") else torch.equal(a, b)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_method_on_a_family(family: str, name: str, tmp_path: Path) -> None:
    images = pixels()
    expected = plain_output(family, tower(family), images)
    adapted = small(family, name)
    head = adapted.head
    with torch.no_grad():
        started = adapted.features(images)
        if name in STARTS_AS_IDENTITY:
            assert same(family, started, expected)
        else:
            assert not torch.allclose(started, expected, atol=1e-4)
    moved(adapted)
    with torch.no_grad():
        changed = adapted(images)
        assert name == "linear" or not torch.allclose(changed, head(expected), atol=1e-4)
        with adapted.disable():
            assert same(family, adapted(images), expected)
        assert same(family, adapted(images), changed)

    # What is trained is what is listed, and only that has gradients.
    adapted.train()
    F.cross_entropy(adapted(images), torch.arange(3) % CLASSES).backward()
    listed = {*map(id, adapted.adapter().tensors(adapted.backbone).values()), *map(id, head.parameters())}
    for key, value in adapted.named_parameters():
        assert value.requires_grad == (id(value) in listed), key
        assert (value.grad is not None) == value.requires_grad, key
    adapted.eval()

    # Saved and opened again on a fresh copy: the very same bits.
    again = load_adapter(tower(family), save_adapter(adapted, tmp_path / "adapter"))
    with torch.no_grad():
        assert same(family, again(images), changed)

    # Detached: the very model that came.
    before = tower(family).state_dict()
    model = adapted.detach()
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert same(family, plain_output(family, model, images), expected)
    assert all(value.requires_grad for value in model.parameters()) or family in ("dinov2", "lite0")


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_merging(family: str, name: str) -> None:
    adapted = moved(small(family, name, torch.float64))
    images = pixels(dtype=torch.float64)
    if not get_method(name).mergeable:
        with pytest.raises(UserError, match="cannot be merged: "):
            adapted.merge()
        return
    with torch.no_grad():
        expected = adapted(images)
        kept = {key: value.clone() for key, value in adapted.model.state_dict().items()}
        adapted.merge()
        assert float((adapted(images) - expected).abs().max()) < 1e-12 * max(1.0, float(expected.abs().max()))
        with pytest.raises(UserError, match="merged already"):
            adapted.merge()
        adapted.unmerge()
        assert all(torch.equal(value, kept[key]) for key, value in adapted.model.state_dict().items())
        assert torch.equal(adapted(images), expected)
    with pytest.raises(UserError, match="not merged"):
        adapted.unmerge()


@pytest.mark.parametrize("name", [name for name in method_names() if get_method(name).mergeable])
def test_merging_in_low_precision_sums_in_float32(name: str) -> None:
    adapted = moved(small("timm", name, torch.float32))
    exact = adapted.merged_weights()
    low = adapted.to(torch.bfloat16).merged_weights()
    for key, value in low.items():
        assert value.dtype == torch.bfloat16
        assert torch.allclose(value.float(), exact[key], atol=0.02, rtol=0.02), key


@pytest.mark.parametrize("name", method_names())
def test_two_adapters_and_switching(name: str) -> None:
    images = pixels()
    adapted = moved(small("timm", name))
    with torch.no_grad():
        first = adapted(images)
        adapted.add(config("lora"), classes=3, name="second", seed=1)
        adapted.eval()
        moved(adapted)
        second = adapted(images)
        assert second.shape == (3, 3)
        adapted.use("default")
        assert torch.equal(adapted(images), first)
        adapted.use("second")
        assert torch.equal(adapted(images), second)
    trained = {key for key, value in adapted.named_parameters() if value.requires_grad}
    assert all(key.startswith(("adapters.second.", "heads.second.")) for key in trained)
    with raises_naming(UserError, "second"):
        adapted.use("secnd")
    with raises_naming(UserError, "second"):
        adapted.add("linear", classes=2, name="second")


@pytest.mark.parametrize("name", method_names())
def test_autocast_trains_the_same_tensors(name: str) -> None:
    adapted = small("lite0", name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(adapted(pixels()).float(), torch.arange(3))
    loss.backward()
    for key, value in adapted.named_parameters():
        assert (value.grad is not None) == value.requires_grad, key


@pytest.mark.parametrize("name", method_names())
def test_seeds_decide_first_values(name: str) -> None:
    def tensors(seed: int) -> dict[str, Tensor]:
        adapted = adapt(tower("timm"), config(name), classes=CLASSES, seed=seed)
        return {**adapted.adapter().tensors(adapted.backbone), **dict(adapted.head.named_parameters())}

    state = torch.random.get_rng_state()
    one, same, other = tensors(1), tensors(1), tensors(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["lora", "adaptformer", "houlsby", "convpass", "fact-tt", "repadapter"])
def test_released_initialization_is_an_option(name: str) -> None:
    model = tower("timm")
    images = pixels()
    expected = plain_output("timm", model, images)
    adapted = adapt(model, {**config(name), "init": "osu_release"}, classes=CLASSES).eval()
    with torch.no_grad():
        same = torch.equal(adapted.features(images), expected)
    assert same == (name == "repadapter")  # whose layers are no linear ones there, so they keep their start


@pytest.mark.parametrize("kept", [True, False])
def test_token_counts_of_prompts(kept: bool) -> None:
    adapted = adapt(
        tower("timm"), {"method": "vpt-shallow", "prompts": 4, "keep_prompts": kept}, classes=CLASSES
    ).eval()
    lengths: list[int] = []
    for block in adapted.backbone.blocks:
        block.norm1.register_forward_hook(lambda _, __, output: lengths.append(output.shape[1]))
    adapted(pixels())
    assert lengths == ([21, 21, 21] if kept else [21, 17, 17])
    adapted.detach()
    lengths.clear()
    deep = adapt(adapted.model, {"method": "vpt-deep", "prompts": 4}, classes=CLASSES).eval()
    deep(pixels())
    assert lengths == [21, 21, 21]


@pytest.mark.parametrize("name", method_names())
def test_first_block_is_where_the_network_first_changes(name: str) -> None:
    adapted = small("timm", name)
    for options in ({}, {"last_blocks": 1}):
        if options and "last_blocks" not in get_method(name).settings.model_fields:
            continue
        model = adapted.detach()
        adapted = adapt(model, {**config(name), **options}, classes=CLASSES).eval()
        first = adapted.adapter().first_block(adapted.backbone)
        plain = _inputs_of_blocks(model, adapted, disabled=True)
        changed = _inputs_of_blocks(model, moved(adapted), disabled=False)
        kept = [torch.equal(a, b[:, :17]) for a, b in zip(plain, changed, strict=True)]
        assert all(kept[: first + 1]) or first == 0, (first, kept)
        assert first >= 2 or not all(kept)


def _inputs_of_blocks(model: Any, adapted: AdaptedModel, *, disabled: bool) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()), prepend=True)
        for block in model.blocks
    ]
    with torch.no_grad():
        if disabled:
            with adapted.disable():
                adapted(pixels())
        else:
            adapted(pixels())
    for hook in hooks:
        hook.remove()
    return seen


def test_strength_scales_the_branch() -> None:
    adapted = moved(small("timm", "lora", torch.float64))
    images = pixels(dtype=torch.float64)
    with torch.no_grad(), adapted.disable():
        start = {key: value.clone() for key, value in adapted.model.state_dict().items()}
    whole = adapted.merged_weights()
    adapted.set_strength(0.25)
    quarter = adapted.merged_weights()
    for key, value in quarter.items():
        assert torch.allclose(value, 0.75 * start[key] + 0.25 * whole[key], atol=1e-12)
    adapted.set_strength(0.0)
    with torch.no_grad():
        assert torch.equal(adapted.features(images), plain_output("timm", adapted.detach(), images))


def test_adding_a_saved_adapter_beside_another(tmp_path: Path) -> None:
    adapted = moved(small("timm", "lora"))
    images = pixels()
    with torch.no_grad():
        expected = adapted(images)
    save_adapter(adapted, tmp_path)
    other = small("timm", "bitfit")
    moved(other)
    before = torch.random.get_rng_state()
    add_adapter(other, tmp_path, name="lora")
    assert torch.equal(torch.random.get_rng_state(), before)
    other.eval()
    with torch.no_grad():
        assert torch.equal(other(images), expected)
    assert isinstance(other.adapter("default"), Adapter)
