"""Models between the given and the tuned network against stored logits; the zero-shot head against stored weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapt.official import FOLDER, adapted_case, backbone, batch, case_of, cases, settings, stored
from adapt.towers import pixels, tower
from foveate.adapt.heads import ZeroShotHead, zero_shot_weights
from foveate.adapt.model import adapt
from foveate.adapt.wise import head_at, interpolated
from foveate.core.errors import UserError
from naming import raises_naming

CHANGED_AT_ONCE = ("ssf", "houlsby", "vpt_shallow", "vpt_deep")  # random first values, prompts
DEFINED = [case["case"] for case in cases() if case["wise"]]


@pytest.mark.parametrize("name", DEFINED)
def test_the_whole_curve(name: str) -> None:
    case = case_of(name)
    adapted, expected, (images, _) = adapted_case(case), stored(case), batch(case)
    with torch.no_grad():
        tuned = adapted(images)
        for alpha, logits in zip(expected["wise/alphas"].tolist(), expected["wise/logits"], strict=True):
            with interpolated(adapted, round(alpha, 10)) as model:
                assert float((model(images) - logits).abs().max()) < 1e-9, alpha
        with interpolated(adapted, 0.0) as model:
            given = torch.equal(model(images), backbone(case)(images))
        assert given != name.endswith("_layerscale")  # whose second LayerScale stays in the study's code
        with interpolated(adapted, 1.0) as model:
            assert torch.equal(model(images), tuned)
        assert torch.equal(adapted(images), tuned)


@pytest.mark.parametrize("name", [name for name in DEFINED if "wise/logits_head_only" in stored(case_of(name))])
def test_the_head_alone_between_its_start_and_its_end(name: str) -> None:
    case = case_of(name)
    adapted, expected, (images, _) = adapted_case(case), stored(case), batch(case)
    with torch.no_grad():
        features = adapted.features(images)
        for alpha, logits in zip(expected["wise/alphas"].tolist(), expected["wise/logits_head_only"], strict=True):
            head = head_at(adapted, round(alpha, 10), keep=False)
            assert float((head(features) - logits).abs().max()) < 1e-9, alpha


@pytest.mark.parametrize("name", ["lora", "fact_tk", "fact_tt", "repadapter"])
def test_a_scaled_branch_is_between_merged_weights(name: str) -> None:
    case = case_of(name)
    adapted, start = adapted_case(case), backbone(case).state_dict()
    whole = adapted.merged_weights()
    adapted.set_strength(0.3)
    part = adapted.merged_weights()
    linear = name != "repadapter"  # whose bias is one affine map behind another
    for key, value in part.items():
        if linear or key.endswith("weight"):
            assert torch.allclose(value, 0.7 * start[key] + 0.3 * whole[key], atol=1e-11), key


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep"])
def test_prompts_have_none(name: str) -> None:
    with (
        pytest.raises(UserError, match="no models in between: its prompts"),
        interpolated(adapted_case(case_of(name)), 0.5),
    ):
        pass


def test_mistakes() -> None:
    adapted = adapt(tower("timm"), "bitfit", classes=3)
    with raises_naming(UserError, "0", "1"), interpolated(adapted, 1.5):
        pass
    with raises_naming(UserError, "head", "alpha 0"), interpolated(adapted, 0.5):
        pass
    with interpolated(adapted, 0.5, head="keep") as model:
        assert model(pixels()).shape == (3, 3)
    adapted.merge()
    with pytest.raises(UserError, match="unmerge it"), interpolated(adapted, 0.5):
        pass


@pytest.mark.parametrize("name", [case["case"] for case in cases()])
def test_every_method_stands_on_the_stored_zero_shot_network(name: str) -> None:
    """The network alone, an adapter switched off, and a method's first values give the stored zero-shot logits."""
    case = case_of(name)
    zero_shot = load_file(FOLDER / case["batch"])["expect/zero_shot_logits"]
    adapted, (images, _) = adapted_case(case), batch(case)
    head = backbone(case).head
    with torch.no_grad():
        assert float((backbone(case)(images) - zero_shot).abs().max()) < case["tolerance"]["float64_abs"]
        change = float((adapted(images) - zero_shot).abs().max())
        assert change == pytest.approx(case["max_abs_change_vs_zero_shot"], abs=5e-4)
        with adapted.disable():
            assert float((head(adapted.features(images)) - zero_shot).abs().max()) < case["tolerance"]["float64_abs"]
        if case["method"] not in CHANGED_AT_ONCE:
            fresh = adapt(backbone(case), settings(case["method"], case["options"])).eval()
            assert float((fresh(images) - zero_shot).abs().max()) < case["tolerance"]["float64_abs"]


def test_zero_shot_head() -> None:
    with np.load(FOLDER / "clip_head.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = zero_shot_weights(arrays["text_embeddings"], logit_scale=float(arrays["log_logit_scale"]))
    assert torch.allclose(weights, arrays["expect_head_weight"], atol=2e-5)
    projection = arrays["visual_proj"]
    head = ZeroShotHead(weights, projection.T if projection.shape[0] == arrays["features"].shape[1] else projection)
    assert torch.equal(head.linear.bias, arrays["expect_head_bias"])
    assert torch.allclose(head(arrays["features"]), arrays["expect_logits"], atol=2e-5)
