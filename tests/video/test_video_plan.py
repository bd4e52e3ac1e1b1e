"""Plans of videos: tokens, context, FLOPs and memory against formulas and the paper's numbers."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_llavas
import torch
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from foveate.core.errors import UserError
from foveate.training.costs import count_forward, count_parameters
from foveate.video.networks import open_network
from foveate.video.plan import format_plan, plan_video, read_shape
from foveate.video.strategies import SlowFast
from foveate.vision.lite0 import load_lite0
from naming import raises_naming


def test_the_paper_s_model_costs_what_the_paper_s_does(tmp_path: Path) -> None:
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064,
        max_position_embeddings=4096,
    )  # fmt: skip
    AutoConfig.for_model("llava_next", vision_config=tower, text_config=text).save_pretrained(tmp_path)
    # No weights are there, and none are needed.
    shape = read_shape(tmp_path)
    plan = plan_video(shape, total=18_000, seconds=600, text_tokens=416)
    assert plan.tokens == {"slow": 2880, "fast": 800}
    # LLaVA's 4,096 positions, which the paper doubles.
    assert (plan.limit, plan.left) == (8192, 4096)
    assert plan.flops["tower"] == pytest.approx(19e12, rel=0.1)
    products = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    length = 3680 + 416
    expected = length * products + 32 * 4 * length**2 * 4096 + 2 * 4096 * 32064
    assert plan.flops["language"] == pytest.approx(expected, rel=1e-3)
    assert plan.flops["later question"] < plan.flops["language"] / 5
    assert plan.memory["cache"] == length * 2 * 32 * 4096 * 2
    assert plan.memory["weights"] == pytest.approx(14.1e9, rel=0.02)
    assert plan.seconds_per_frame == 12
    assert "12 s" in format_plan(plan)[0]
    unpooled = plan_video(shape, how=SlowFast(slow=10, slow_pool="concat", fast=(8, 8)))
    assert sum(unpooled.tokens.values()) == 5760 + 3200
    assert unpooled.left is not None
    assert unpooled.left < 0
    assert "--fast 6x6" in unpooled.fitting
    assert "--fast 6x6" in format_plan(unpooled)[2]


@pytest.mark.parametrize("family", tiny_llavas.FAMILIES)
def test_every_family_is_planned_as_it_is_watched(family: str, tmp_path: Path) -> None:
    model = tiny_llavas.build(family)
    tiny_llavas.save(family, tmp_path, model=model)
    plan = plan_video(tmp_path, how=SlowFast(slow=3, fast=(2, 2)), total=12)
    assert plan.tokens == {"slow": 24, "fast": 48}
    assert sum(plan.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert (plan.limit, plan_video(tmp_path, how=SlowFast(slow=3), rope_factor=3).limit) == (512, 1536)


def test_the_shipped_model_is_planned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = plan_video("mini", how="slowfast-slow_4frms_grid_1x2-fast_2x2", total=9)
    assert plan.tokens == {"slow": 84, "fast": 36}
    assert plan.images == 9
    assert plan.limit == 1024
    assert all(value > 0 for value in plan.flops.values())
    with raises_naming(UserError, "rope_factor", "2.0"):
        plan_video("mini", rope_factor=2.0)


@pytest.mark.parametrize("name", ["mini", "mini-ferret"])
def test_a_model_of_ours_is_planned_as_it_is_opened(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape, network = read_shape(name), open_network(name, device="cpu")
        blank = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
        # The first frames also tell whether the model knows such pictures, which is no part of its answer.
        network.encode(blank)
        encoded = count_forward(lambda: network.encode(blank))
    parts = {"tower": network.tower, "projector": network.projector, "language": network.language}
    assert shape.parameters == {part: count_parameters(module) for part, module in parts.items()}
    assert (shape.limit, shape.width, shape.image_tokens) == (network.limit, network.width, network.tokens_per_frame)
    assert shape.tower_flops == encoded
    for length in (7, 600):
        embeddings = torch.zeros(1, length, network.width)
        language: Any = network.language
        read = count_forward(
            lambda: language(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1)  # noqa: B023
        )
        assert shape.count_language(length) == read


def test_fused_convolutions_count_as_all_others() -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    plain, fused = (count_forward(lambda: network(pixels)) for network in (load_lite0(), load_lite0().fuse()))  # noqa: B023
    assert plain == fused > 0


def test_planning_a_shipped_model_loads_no_transformers() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); from foveate.video.plan import plan_video; "
        "plan_video('mini'); print(sorted({'transformers', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_out_of_range() -> None:
    with raises_naming(UserError, "seconds", -1):
        plan_video("mini", seconds=-1)
    with raises_naming(UserError, "total", 0):
        plan_video("mini", total=0)
