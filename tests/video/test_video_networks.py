"""Adapters of image models: features against transformers' own, refusals, positions, prompts and their tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_llavas
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.language.chat import frame_of_template
from foveate.video.networks import Network, open_network, stretch_positions
from foveate.vision.preprocess import Preprocess
from naming import raises_naming


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llavas")
    return {family: tiny_llavas.save(family, root / family) for family in tiny_llavas.FAMILIES}


def pixels(network: Network) -> torch.Tensor:
    return network.pixels([network.render(frame) for frame in tiny_llavas.frames(3)])


@pytest.mark.parametrize("family", tiny_llavas.FAMILIES)
def test_features_are_those_of_transformers(folders: dict[str, Path], family: str) -> None:
    network = open_network(folders[family], device="cpu")
    model = AutoModelForImageTextToText.from_pretrained(folders[family], dtype=torch.float32).eval()
    assert network.grid == (4, 4)
    assert network.limit == 512
    assert network.width == 48
    frames = pixels(network)
    ours = network.encode(frames)
    values = network.preprocess.normalize(frames)
    with torch.no_grad():
        if family in ("llava", "vipllava"):
            theirs = torch.stack(list(model.model.get_image_features(values).pooler_output))
        else:
            # The first rows of a tiled image are its overview: each frame takes that place once.
            tiled = values[:, None].expand(-1, 5, -1, -1, -1)
            sizes = torch.tensor([[64, 64]] * 3)
            packed = model.model.get_image_features(tiled, sizes).pooler_output
            theirs = torch.stack([rows[:16] for rows in packed])
    assert ours.shape == (3, 16, 48)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_pixels_are_squashed_and_normalized_as_the_processor_says(folders: dict[str, Path]) -> None:
    network = open_network(folders["llava_onevision"], device="cpu")
    assert network.preprocess.mean == (0.5, 0.5, 0.5)
    assert network.preprocess.geometry == "stretch"
    assert pixels(network).shape == (3, 3, 32, 32)
    clip = open_network(folders["llava"], device="cpu").preprocess
    assert clip == Preprocess(32, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711),
                              "bicubic", geometry="stretch")  # fmt: skip


def test_chat_template_and_its_marks(folders: dict[str, Path]) -> None:
    frame = open_network(folders["llava"], device="cpu").frame
    assert (frame.head, frame.middle, frame.tail, frame.leads) == ("USER: ", "\n", " ASSISTANT:", False)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no images') }}", "{{ messages[0].nothing.more }}", "{% if %}", "a fixed text"]
)
def test_chat_templates_that_fail_are_named(template: str) -> None:
    with raises_naming(UserError, "tiny", "chat template"):
        frame_of_template(tiny_llavas.tokenizer(), template, image=4, name="tiny")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"model_type": "blip-2"}, ("blip-2", "llava_next")),
        ({"model_type": "llama"}, ("llama", "llava_next")),
        ({"vision_config": {"model_type": "pixtral"}}, ("pixtral", "CLIP")),
    ],
)
def test_models_without_a_grid_are_refused(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, object], names: tuple[str, ...]
) -> None:
    config = read_json(folders["llava"] / "config.json")
    write_json_atomically(tmp_path / "config.json", config | change)
    with raises_naming(UserError, str(tmp_path), *names):
        open_network(tmp_path)


def test_a_folder_without_weights_or_of_another_kind_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folders["llava"] / "config.json").read_bytes())
    with raises_naming(UserError, "model.safetensors"):
        open_network(tmp_path)
    with raises_naming(UserError, "nowhere"):
        open_network("nowhere")


def test_the_shipped_model_is_read_without_its_maps() -> None:
    with pytest.warns(UserWarning, match="mini: phrase maps"):
        network = open_network("mini", device="cpu")
    assert network.max_repeats == 8
    assert network.grid == (7, 7)
    assert network.frame.leads
    tokens = network.encode(pixels(network))
    assert tokens.shape == (3, 49, network.width)
    # A frame's tokens do not depend on the others: each is a first image.
    alone = network.encode(pixels(network)[2:])
    torch.testing.assert_close(tokens[2:], alone, rtol=0, atol=1e-6)
    with raises_naming(UserError, "rope_factor"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_network("mini", rope_factor=2)


def test_slowfast_golden_rope() -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for case in json.loads((tiny_llavas.GOLDENS / "rope.json").read_text())["cases"]:
        config = AutoConfig.for_model(
            "llama", hidden_size=4 * case["head_dim"], num_attention_heads=4, head_dim=case["head_dim"],
            max_position_embeddings=case["max_position_embeddings"],
            rope_parameters={"rope_type": "default", "rope_theta": case["rope_theta"]},
        )  # fmt: skip
        stretch_positions(config, case["factor"])
        rotary = LlamaRotaryEmbedding(config)
        rotary(torch.zeros(1, 1, 1), torch.arange(case["length"])[None])
        np.testing.assert_allclose(rotary.inv_freq.numpy(), case["inv_freq"], rtol=1e-5)


def test_positions_are_stretched_where_the_paper_does() -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=4096)
    stretch_positions(config, None)
    assert config.rope_parameters["rope_type"] == "dynamic"
    assert config.rope_parameters["factor"] == 2
    short = AutoConfig.for_model("llama", max_position_embeddings=2048)
    stretch_positions(short, None)
    assert short.rope_parameters["rope_type"] == "default"
    with raises_naming(UserError, "rope_factor", "0.5"):
        stretch_positions(short, 0.5)
    with raises_naming(UserError, "rope_factor", "dynamic"):
        stretch_positions(config, 2.0)
