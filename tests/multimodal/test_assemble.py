"""Views, indicators and tokens of samples: the stored layouts, placeholders, and wrong numbers of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.multimodal.assemble import (
    AssemblyOptions,
    SamplePlan,
    ViewIndex,
    insert_views,
    plan_sample,
)
from foveate.records.conversations import IMAGE
from foveate.vision.tiling import ImageSize, TilingOptions
from naming import raises_naming

CASES = json.loads((Path(__file__).parents[1] / "goldens" / "mm15" / "view_order.json").read_text())


def options_of(case: dict[str, Any]) -> AssemblyOptions:
    low, high = case["n_range"]
    tiling = TilingOptions(min_tiles=low, max_tiles=high, overview=case["order"])
    return AssemblyOptions(tiling=tiling, indicator=case["indicator"])


def small(*sizes: tuple[int, int], **fields: Any) -> SamplePlan:
    options = AssemblyOptions(tiling=TilingOptions(tile=16), **fields)
    return plan_sample([ImageSize(*size) for size in sizes], options)


@pytest.mark.parametrize("indicator", ["none", "index", "seps"])
def test_stored_layouts(indicator: str) -> None:
    cases = [case for case in CASES if case["indicator"] == indicator]
    assert len(cases) == 56
    for case in cases:
        plan = plan_sample([ImageSize(*size) for size in case["images_hw"]], options_of(case))
        assert [list(view) for view in plan.views] == case["views"], case
        parts = [part for image in range(len(plan.images)) for part in plan.list_parts(image)]
        assert [part if isinstance(part, str) else "<img>" for part in parts] == case["layout"], case
        assert [part for part in parts if not isinstance(part, str)] == list(plan.views)
        assert plan.num_image_tokens == case["image_tokens"], case


def test_placeholders_become_views_where_they_stand() -> None:
    plan = small((16, 16), (16, 16), max_split_images=0)
    turns = insert_views(["Compare <image> with<image>.", "Both are red.", "Sure?"], plan)
    assert turns == [
        ["Compare ", "(0,0,0)", ViewIndex(0, 0, 0), " with", "(1,0,0)", ViewIndex(1, 0, 0), "."],
        ["Both are red."],
        ["Sure?"],
    ]


def test_a_text_without_images_stays_whole() -> None:
    assert insert_views(["Hello", ""], small()) == [["Hello"], []]


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_every_view_comes_once_and_in_order(counts: list[int]) -> None:
    plan = small(*[(20 + n, 30) for n in range(sum(counts))])
    turns = insert_views(["x".join([""] + [IMAGE] * count) + "y" for count in counts], plan)
    views = [part for turn in turns for part in turn if isinstance(part, ViewIndex)]
    assert views == list(plan.views)
    assert ["".join(part for part in turn if part in ("x", "y")) for turn in turns] == ["x" * n + "y" for n in counts]


@pytest.mark.parametrize(("texts", "num_images"), [(["<image>"], 0), (["a"], 1), (["<image>", "<image>"], 1)])
def test_placeholders_and_images_must_agree(texts: list[str], num_images: int) -> None:
    with raises_naming(UserError, "<image>", f"{sum(text.count('<image>') for text in texts)}", f"{num_images} images"):
        insert_views(texts, small(*[(16, 16)] * num_images))


def test_200_images_are_one_view_each() -> None:
    plan = plan_sample([ImageSize(2000, 1500)] * 200, AssemblyOptions())
    assert (len(plan.views), plan.num_image_tokens) == (200, 200 * 144)
    assert plan.views[199] == (199, 0, 0)


def test_the_split_limit() -> None:
    for limit in (0, 1, 2, 3):
        plan = small(*[(16, 16)] * 2, max_split_images=limit)
        assert (len(plan.views) > 2) == (limit >= 2)
