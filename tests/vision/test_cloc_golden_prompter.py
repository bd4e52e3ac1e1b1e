"""The stored Prompter, box head and RoI baseline: weights, tokens, boxes and phrases in, embeddings and boxes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foveate.vision.prompter import BoxHead, Prompter
from foveate.vision.regions.roi import roi_pool

GOLDENS = Path(__file__).parents[1] / "goldens" / "cloc"
ENTRY = next(
    entry for entry in json.loads((GOLDENS / "index.json").read_text())["files"] if entry["file"] == "prompter.npz"
)
STORED = np.load(GOLDENS / "prompter.npz", allow_pickle=False)
CASES = [
    pytest.param(case, variant, id=f"{case['id']}-{variant['id']}")
    for case in ENTRY["cases"]
    for variant in case["variants"]
]


def stored(case: dict[str, Any], name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    value = torch.tensor(STORED[f"{case['id']}_{name}"])
    return value if dtype is None else value.to(dtype)


def load(module: nn.Module, case: dict[str, Any], dtype: torch.dtype) -> None:
    module.load_state_dict({key: stored(case, "w_" + key.replace(".", "_")) for key in module.state_dict()})
    module.to(dtype)


def atol(dtype: torch.dtype) -> float:
    return ENTRY["tolerance"][str(dtype).removeprefix("torch.")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("case", "variant"), CASES)
def test_prompter_and_head(case: dict[str, Any], variant: dict[str, Any], dtype: torch.dtype) -> None:
    prompter = Prompter(
        width=case["D"],
        embed_dim=case["E"],
        pool=variant["pool"],
        norm=variant["norm"],
        image_pos="sincos" if variant["image_pos"] else "none",
        coordinate_scale=case["coordinate_scale"],
        temperature=case["temperature"],
        layout=case["layout"],
    )
    head = BoxHead(width=case["D"], embed_dim=case["E"])
    for module in (prompter, head):
        load(module, case, dtype)
    prepared = prompter.prepare(stored(case, "tokens", dtype), tuple(case["grid"]))
    image_index = stored(case, "image_index")
    boxes = prompter.boxes(prepared, stored(case, "boxes", dtype), image_index)
    phrases = prompter.phrases(prepared, stored(case, "text", dtype), image_index)
    for name, found in {
        "box_pooled": boxes.pooled_RD,
        "z": boxes.embedding_RE,
        "z_text": phrases.embedding_RE,
        "head_boxes": head(phrases),
    }.items():
        expected = stored(case, f"{variant['id']}_{name}", dtype)
        torch.testing.assert_close(found, expected, atol=atol(dtype), rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in ENTRY["cases"]])
def test_roi_align(case: dict[str, Any], dtype: torch.dtype) -> None:
    found = roi_pool(
        stored(case, "tokens", dtype), tuple(case["grid"]), stored(case, "boxes", dtype), stored(case, "image_index")
    )
    expected = stored(case, "roi_align_1x1", dtype)
    torch.testing.assert_close(found, expected, atol=atol(dtype), rtol=0.0)
