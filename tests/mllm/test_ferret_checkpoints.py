"""Folders in the layout of apple/ml-ferret, against a plain reimplementation of its forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.core.errors import UserError
from foveate.mllm.checkpoints.readers import IMAGE_ID, read_ferret
from foveate.records.boxes import PixelBox
from foveate.records.shapes import Point, Shape
from foveate.vision.regions import prepare_regions
from foveate.vision.regions.sampler import RegionSampler, central_point, farthest_points, nearest_points
from foveate.vision.registry import seeded
from naming import raises_naming

transformers: Any = pytest.importorskip("transformers")

SIDE, PATCH, WIDTH, OUT, ROWS, REGION = 32, 8, 16, 24, 60, 59
SIZE = (50, 90)
SHAPES: tuple[Shape, ...] = (PixelBox(5, 8, 60, 40), Point(70, 20))
IDS = [3, 4, IMAGE_ID, 9, REGION, 10, REGION, 12]
PINPOINTS = [[64, 32], [32, 64], [64, 64]]


def write(folder: Path, *, anyres: bool, merge: str = "spatial", **changes: Any) -> Path:
    """A tiny random checkpoint, named as the official code names its parts."""
    clip = folder / "clip"
    with seeded(0):
        vision = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
                patch_size=PATCH,
            )
        )  # fmt: skip
        vision.save_pretrained(clip)
        transformers.CLIPImageProcessor(
            size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ).save_pretrained(clip)
        fields = {
            "vocab_size": ROWS, "hidden_size": OUT, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
        }  # fmt: skip
        tensors = dict(transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).state_dict())
        first = torch.nn.Linear(WIDTH, OUT)
        if anyres:
            second = torch.nn.Linear(OUT, OUT)
            layers = {"0.": first, "2.": second}
            tensors["model.image_newline"] = torch.randn(OUT)
        else:
            layers = {"": first}
        for prefix, layer in layers.items():
            for name, value in layer.state_dict().items():
                tensors[f"model.mm_projector.{prefix}{name}"] = value
        sampler = RegionSampler(width=WIDTH, out=OUT)
        tensors |= {f"model.region_geo_sampler.{name}": value for name, value in sampler.state_dict().items()}
    config = {
        "architectures": ["FERRETLlamaForCausalLM"], "model_type": "FERRET", **fields, "tie_word_embeddings": False,
        "mm_vision_tower": str(clip), "mm_hidden_size": WIDTH, "mm_vision_select_layer": -2,
        "mm_projector_type": "mlp2x_gelu" if anyres else "linear", "region_geo_sampler": True,
        "sampler_pooler_mode": "max",
    }  # fmt: skip
    if anyres:
        config |= {"mm_patch_merge_type": merge, "image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS}
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def plain_regions(sampler: RegionSampler, map_HWC: Tensor) -> Tensor:
    """The official sampler, region by region: features at (y, x), coordinates (x, y)."""
    points_RN2 = prepare_regions([SHAPES], [SIZE], num_points=512).points_RN2
    vectors = []
    for points in points_RN2:
        at = (2 * points.flip(-1) - 1)[None, :, None]
        features = F.grid_sample(map_HWC.permute(2, 0, 1)[None], at, align_corners=True)[0, :, :, 0].T
        for block in range(2):
            chosen = farthest_points(points[None], (128, 32)[block], central_point(points[None]))[0]
            nearest = nearest_points(points[None], points[chosen][None], 24)[0]
            rows = torch.cat([features, points], dim=1)
            u = sampler.diff_projector_list[block](rows[nearest] - rows[chosen][:, None])
            pairs = torch.cat([u, rows[chosen][:, None].expand_as(u)], dim=-1).transpose(1, 2)
            layer: Any = sampler.agg_projector_list[block]
            features = layer.norm(layer.net(pairs).transpose(1, 2)).amax(dim=1)
            points = points[chosen]
        vectors.append(sampler.dim_projector(sampler.flatten_projector(features.flatten())))
    return torch.stack(vectors)


def plain_embeddings(folder: Path, pixels: Tensor, *, anyres: bool, unpad: bool) -> Tensor:
    """The official forward pass up to the decoder, from the files alone."""
    tensors = load_file(folder / "model.safetensors")
    clip = transformers.CLIPVisionModel.from_pretrained(folder / "clip")
    raw = clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    project = {name.removeprefix("model.mm_projector."): value for name, value in tensors.items() if "mm_proj" in name}
    if not anyres:
        tokens = F.linear(raw, project["weight"], project["bias"])[0]
        fused = raw[0].view(4, 4, WIDTH)
    else:
        hidden = F.gelu(F.linear(raw, project["0.weight"], project["0.bias"]))
        projected = F.linear(hidden, project["2.weight"], project["2.bias"])
        columns, rows = 2, len(pixels) // 2

        def merge(tiles: Tensor) -> Tensor:
            return tiles.view(rows, columns, 4, 4, -1).permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)

        merged = merge(projected[1:])
        if unpad:
            # 90 x 50 pixels fill int(50 * 8 / 90) = 4 of 8 rows, in the middle.
            merged = merged[2:6]
            merged = torch.cat([merged, tensors["model.image_newline"].expand(len(merged), 1, -1)], dim=1)
        tokens = torch.cat([projected[0], merged.flatten(0, 1)])
        small = raw[0].view(4, 4, WIDTH).permute(2, 0, 1)[None]
        fused = F.interpolate(small, (rows * 4, 8))[0].permute(1, 2, 0) + merge(raw[1:])
    sampler = RegionSampler(width=WIDTH, out=OUT)
    prefix = "model.region_geo_sampler."
    sampler.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    text = tensors["model.embed_tokens.weight"][[id for id in IDS if id != IMAGE_ID]]
    text[[3, 5]] = plain_regions(sampler, fused)
    return torch.cat([text[:2], tokens, text[2:]])


@pytest.mark.parametrize(("anyres", "merge"), [(False, "flat"), (True, "spatial"), (True, "spatial_unpad")])
@torch.no_grad()
def test_forward_of_a_folder(anyres: bool, merge: str, tmp_path: Path) -> None:
    folder = write(tmp_path, anyres=anyres, merge=merge)
    ferret = read_ferret(folder, region_id=REGION)
    plan = ferret.model.plan(SIZE).images[0]
    views = len(plan.views) if anyres else 1
    assert views == (5 if anyres else 1)
    pixels = torch.randn(views, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    unpad = "unpad" in merge
    ours = ferret.embed(pixels, IDS, size=SIZE, regions=SHAPES)
    expected = plain_embeddings(folder, pixels, anyres=anyres, unpad=unpad)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    decoder = transformers.LlamaForCausalLM(ferret.model.language_model.config).eval()
    stored = load_file(folder / "model.safetensors")
    decoder.load_state_dict({name: stored[name] for name in decoder.state_dict()})
    torch.testing.assert_close(
        ferret.model.language_model(inputs_embeds=ours[None]).logits, decoder(inputs_embeds=expected[None]).logits,
        atol=1e-4, rtol=0,
    )  # fmt: skip


def test_decoder_has_the_rotary_base_of_its_config(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 2.0}
    folder = write(tmp_path, anyres=False, rope_theta=500_000.0, rope_scaling=scaling)
    decoder: Any = read_ferret(folder, region_id=REGION).model.language_model
    frequencies = decoder.model.rotary_emb.inv_freq
    width = OUT // 2
    expected = 500_000.0 ** (-torch.arange(0, width, 2) / width) / 2
    torch.testing.assert_close(frequencies, expected)


def test_configs_as_released(tmp_path: Path) -> None:
    """Canvases as text, and a decoder whose head is its table."""
    folder = write(tmp_path, anyres=True, image_grid_pinpoints=str(PINPOINTS))
    assert read_ferret(folder, region_id=REGION).model.plan(SIZE).images[0].grid == (2, 2)
    for value in ("[[64, 32], [32", "64", [[64, 33]], [], None):
        with raises_naming(UserError, "image_grid_pinpoints", 32):
            read_ferret(write(tmp_path, anyres=True, image_grid_pinpoints=value), region_id=REGION)
    folder = write(tmp_path, anyres=False, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    decoder: Any = read_ferret(folder, region_id=REGION).model.language_model
    assert torch.equal(decoder.lm_head.weight, table)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    with raises_naming(UserError, "embed_tokens.weight"):
        read_ferret(folder, region_id=REGION)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    folder = write(tmp_path, anyres=False, mm_projector_type="mlp3x")
    with raises_naming(UserError, "mm_projector_type", "linear"):
        read_ferret(folder, region_id=REGION)
    folder = write(tmp_path, anyres=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.region_geo_sampler.dim_projector.weight"] = torch.zeros(OUT, WIDTH + 1)
    save_file(tensors, folder / "model.safetensors")
    with raises_naming(UserError, "region_geo_sampler.dim_projector.weight", (OUT, WIDTH)):
        read_ferret(folder, region_id=REGION)
    ferret = read_ferret(write(tmp_path, anyres=False), region_id=REGION)
    with raises_naming(UserError, "regions", REGION):
        ferret.embed(torch.zeros(1, 3, SIDE, SIDE), IDS, size=SIZE)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with raises_naming(UserError, "pytorch_model.bin"):
        read_ferret(folder, region_id=REGION)
