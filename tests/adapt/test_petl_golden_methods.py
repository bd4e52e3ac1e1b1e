"""Every method against the study's released code: logits, gradients, training steps, merged weights, counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from adapt.official import (
    FOLDER,
    adapted_case,
    backbone,
    batch,
    case_of,
    cases,
    gradients,
    settings,
    stored,
    translated,
)
from foveate.adapt.model import AdaptedModel, adapt

CASES = [case["case"] for case in cases()]
TRAINED = [case["case"] for case in cases() if case["train"]]
MERGED = [case["case"] for case in cases() if case["merged"]]
COUNTS = json.loads((FOLDER / "param_counts_vitb16.json").read_text(encoding="utf-8"))["counts"]


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def hidden_states(adapted: AdaptedModel, images: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        block.module.register_forward_hook(lambda _, __, output: seen.append(output))
        for block in adapted.backbone.blocks
    ]
    adapted(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", CASES)
def test_logits_and_hidden_states(name: str) -> None:
    case = case_of(name)
    expected, (images, labels) = stored(case), batch(case)
    adapted = adapted_case(case)
    with torch.no_grad():
        logits, features = adapted(images), adapted.features(images)
        for number, state in enumerate(hidden_states(adapted, images)):
            assert largest(state[:, 0], expected[f"expect/block{number}_cls"]) < case["tolerance"]["float64_abs"]
            patches = state[:, 1:17].mean(dim=1)
            assert largest(patches, expected[f"expect/block{number}_mean_patch"]) < case["tolerance"]["float64_abs"]
    assert largest(logits, expected["expect/logits"]) < case["tolerance"]["float64_abs"]
    assert largest(features, expected["expect/features"]) < case["tolerance"]["float64_abs"]
    assert abs(F.cross_entropy(logits, labels) - expected["expect/loss"]) < case["tolerance"]["float64_abs"]


@pytest.mark.parametrize("name", CASES)
def test_logits_in_float32(name: str) -> None:
    case = case_of(name)
    images, _ = batch(case, torch.float32)
    with torch.no_grad():
        logits = adapted_case(case, torch.float32)(images)
    assert largest(logits, stored(case)["expect/logits_f32"]) < case["tolerance"]["float32_abs"]


def test_prompts_that_stay_are_the_published_method() -> None:
    case = case_of("vpt_shallow")
    options = {**settings("vpt_shallow", case["options"]), "dropout": 0.0}
    adapted = adapt(backbone(case), options).eval()
    from adapt.official import fill

    tensors = stored(case)
    fill(adapted, "vpt_shallow", {k.removeprefix("param/"): v for k, v in tensors.items() if k.startswith("param/")})
    with torch.no_grad():
        assert largest(adapted(batch(case)[0]), tensors["expect/logits_keep_prompts"]) < 1e-9


@pytest.mark.parametrize("name", [name for name in CASES if name != "full"])  # none are stored for it
def test_gradients(name: str) -> None:
    case = case_of(name)
    images, labels = batch(case)
    adapted = adapted_case(case)
    F.cross_entropy(adapted(images), labels).backward()
    expected = translated(case["method"], gradients(case), adapted.backbone)
    tensors = {**adapted.adapter().tensors(adapted.backbone)}
    tensors |= {f"head.{key}": value for key, value in adapted.head.named_parameters()}
    assert tensors.keys() == expected.keys()
    for key, value in tensors.items():
        assert value.grad is not None, key
        scale = float(expected[key].abs().max())
        assert largest(value.grad, expected[key]) <= case["tolerance"]["grad_rel"] * max(scale, 1e-3), key
    trained = {id(value) for value in tensors.values()}
    assert not [
        name for name, value in adapted.named_parameters() if id(value) not in trained and value.grad is not None
    ]


@pytest.mark.parametrize("name", TRAINED)
def test_training_steps(name: str) -> None:
    case = case_of(name)
    images, labels = batch(case)
    adapted, expected = adapted_case(case), stored(case)
    trained = [value for value in adapted.parameters() if value.requires_grad]
    before = {key: value.clone() for key, value in adapted.named_parameters()}
    optimizer = torch.optim.AdamW(trained, lr=case["train"]["lr"], weight_decay=case["train"]["weight_decay"])
    losses = []
    for _ in range(case["train"]["steps"]):
        loss = F.cross_entropy(adapted(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert largest(torch.stack(losses), expected["train/losses"]) < case["tolerance"]["train_abs"]
    with torch.no_grad():
        assert largest(adapted(images), expected["train/logits_after"]) < case["tolerance"]["train_abs"]
    for key, value in adapted.named_parameters():
        assert value.requires_grad != torch.equal(before[key], value), key


@pytest.mark.parametrize("name", MERGED)
def test_merged_weights(name: str) -> None:
    case = case_of(name)
    images, _ = batch(case)
    adapted = adapted_case(case)
    merged = adapted.merged_weights()
    expected = load_file(FOLDER / case["merged"])
    plain = backbone(case)
    start = plain.state_dict()
    for key, value in merged.items():
        if key.startswith("head."):
            continue
        wanted = expected.get(key, start[key])
        assert largest(value, wanted) < case["tolerance"]["merged_weight_abs"], key
    for key in expected:
        assert key.startswith("head.") or key in merged
    plain.load_state_dict({**merged, "head.weight": adapted.head.weight, "head.bias": adapted.head.bias})
    with torch.no_grad():
        assert largest(plain(images), stored(case)["expect/logits"]) < 1e-12


def vit_b16() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        return VisionTransformer(embed_dim=768, depth=12, num_heads=12, num_classes=0)


@pytest.fixture(scope="module")
def large() -> Any:
    return vit_b16()


@pytest.mark.parametrize(
    "row", COUNTS, ids=lambda row: "-".join([row["method"], *(str(value) for value in row["options"].values())])
)
def test_parameter_counts_on_the_meta_device(large: Any, row: dict[str, Any]) -> None:
    adapted = adapt(large, settings(row["method"], row["options"]), classes=10)
    assert adapted.count_parameters()[:2] == (row["parameters_without_head"], 7690)
    assert adapted.detach() is large
