"""End to end against the official pipeline: pixels, features, spliced embeddings, logits, greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llavas
import torch
from PIL import Image

from foveate.language.generate import GenerationSettings, generate, predict
from foveate.video.networks import Network, open_network
from foveate.video.splice import PromptIds, splice
from foveate.video.strategies import parse_how
from foveate.video.watching import encode_layout
from foveate.vision.video.sampling import sample

FOLDER = tiny_llavas.GOLDENS / "e2e"
GOLDEN = json.loads((FOLDER / "e2e.json").read_text())
ARRAYS = np.load(FOLDER / "e2e.npz")
CASES = {case["name"]: case for case in GOLDEN["cases"]}


@pytest.fixture(scope="module")
def network() -> Network:
    return open_network(FOLDER, device="cpu")


def frames(case: dict[str, Any]) -> list[Image.Image]:
    total = len(ARRAYS["frames"])
    indices = sample(total, case["options"].get("sample", total)) if case["options"].get("sample") else range(total)
    assert list(indices) == case["frame_indices"]
    return [Image.fromarray(ARRAYS["frames"][index]) for index in indices]


def stretched(tmp_path: Path, options: dict[str, Any]) -> Network:
    config = json.loads((FOLDER / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = options["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "generation_config.json"):
        (tmp_path / name).symlink_to(FOLDER / name)
    return open_network(tmp_path, device="cpu", rope_factor=options["rope_factor"])


def test_pixels_and_features(network: Network) -> None:
    images = [network.render(frame) for frame in frames(CASES["default"])]
    pixels = network.preprocess.normalize(network.pixels(images))
    np.testing.assert_allclose(pixels[0, :, ::4, ::4].numpy(), ARRAYS["default_pixels_frame0"], rtol=0, atol=1e-6)
    features = network.encode(network.pixels([images[0], images[5]]))
    theirs = ARRAYS["default_projector_features_frames_0_5"]
    np.testing.assert_allclose(features.numpy(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_slowfast_golden_e2e(network: Network, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    options = case["options"]
    if "rope_factor" in options:
        network = stretched(tmp_path, options)
    images = frames(case)
    layout = parse_how(case["aggregation"]).layout(len(images), network.tokens_per_frame)
    video_LD = encode_layout(network, layout, images)
    assert len(video_LD) == case["video_rows"]
    if name == "default":
        np.testing.assert_allclose(video_LD.numpy(), ARRAYS["default_video_rows"], rtol=0, atol=1e-4)
    ids = ARRAYS["input_ids"].tolist()
    start = ids.index(-200)
    assert start == case["video_start"]
    whole_LD = splice(network, PromptIds(ids[:start], ids[start + 1 :]), video_LD)
    # The official code cuts the end of what is too long, and that is the question; `watch` refuses it.
    whole_LD = whole_LD[: options.get("max_length")]
    assert len(whole_LD) == case["prefill_length"]
    sums = whole_LD.double().sum(dim=1).numpy()
    np.testing.assert_allclose(sums, ARRAYS[f"{name}_emb_rowsum"], rtol=0, atol=1e-3)
    language = network.language
    with torch.inference_mode():
        logits_LV = language(inputs_embeds=whole_LD[None]).logits[0]
    some = logits_LV[case["logit_positions"]].numpy()
    np.testing.assert_allclose(some, ARRAYS[f"{name}_some_logits"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(logits_LV[-1].numpy(), ARRAYS[f"{name}_last_logits"], rtol=0, atol=1e-3)
    torch.testing.assert_close(predict(language, whole_LD), logits_LV[-1].log_softmax(-1), rtol=0, atol=1e-4)
    count = case["greedy_safe_prefix"]
    (ours,) = generate(language, [whole_LD], stop=(), settings=GenerationSettings(max_new_tokens=count))
    mask_1L = torch.ones(1, len(whole_LD), dtype=torch.long)
    stock = language.generate(
        inputs_embeds=whole_LD[None], attention_mask=mask_1L, max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    assert list(ours.ids) == stock[0].tolist() == case["greedy_tokens"][:count]
