"""The truth of a few hundred generated scenes without drawing more of an image than the truth needs."""

from __future__ import annotations

import functools

import numpy as np

from foveate_labs.captions.scene_truth import SceneTruth, parse_scene_truth
from foveate_labs.worlds.scenes.scene_collection import draw_scene_row


@functools.cache
def scenes(count: int) -> tuple[tuple[SceneTruth, str], ...]:
    """Truth and alt-text of scenes, three quarters of training and one of tests."""
    found = []
    for index in range(count):
        row = draw_scene_row(seed=11, split="test" if index % 4 == 3 else "train", index=index, size=128)
        alt = next(caption.text for caption in row.captions if caption.kind == "alt")
        found.append((parse_scene_truth({**row.extra["scenes"][0], "key": row.key}), alt))
    return tuple(found)


def rng(index: int) -> np.random.Generator:
    return np.random.default_rng(index)
