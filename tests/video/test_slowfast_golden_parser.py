"""Aggregation strings against stored outcomes of the official pattern and of the strict grammar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.video.aggregate import aggregate_frames
from foveate.video.layout import OPERATORS
from foveate.video.strategies import (
    EXAMPLE,
    SlowFast,
    build_strategy,
    format_aggregation,
    parse_aggregation,
    parse_how,
    strategy_kinds,
)
from naming import raises_naming

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "slowfast" / "parser.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:slow", "ignore:fast")


def run(case: dict[str, Any], *, compat: bool) -> int:
    """Parse and apply a string; return the number of rows."""
    how = parse_aggregation(case["string"], compat=compat)
    return len(aggregate_frames(torch.zeros(case["T"], case["N"], 2), how))


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: repr(case["string"]))
def test_golden_strings(case: dict[str, Any]) -> None:
    if case["outcome"] == "accept":
        assert run(case, compat=True) == case["rows"]
    else:
        with raises_naming(UserError, "how" if case["kind"] != "shape" else "image tokens"):
            run(case, compat=True)
    if case["strict"] == "accept":
        assert run(case, compat=False) == case["rows"]
    elif case["strict"] == "reject":
        with raises_naming(UserError, "how"):
            parse_aggregation(case["string"])
    else:
        how = parse_aggregation(case["string"])
        with raises_naming(UserError, "image tokens", case["N"]):
            how.count_tokens(case["T"], case["N"])


@pytest.mark.parametrize("case", GOLDENS["dispatch"]["cases"], ids=lambda case: repr(case["value"]))
def test_golden_dispatch(case: dict[str, Any]) -> None:
    value = case["value"] or ""
    # Without aggregation the official code reads the first frame alone: refused here.
    if case["outcome"] == "error" or value.lower() in ("", "none", "false"):
        with raises_naming(UserError, "how", value):
            parse_aggregation(value, compat=True)
    else:
        how = parse_aggregation(value, compat=True)
        assert len(aggregate_frames(torch.zeros(4, 16, 2), how)) == case["video_rows"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("slowfast-slow_10frms_spatial_1d_max_pool_fast_4x4", [f"Did you mean '{EXAMPLE}'"]),
        ("SlowFast-slow_10frms_spatial_1d_max_pool-fast_4x4", [f"Did you mean '{EXAMPLE}'"]),
        ("slowfast-slow_10frms_spatial_1d_max-fast_4x4", ["spatial_1d_max", "Did you mean 'spatial_1d_max_pool'"]),
        ("slowfst", ["slowfst", EXAMPLE, "Did you mean 'slowfast'"]),
        ("none", ["none", "concat", "frames=1"]),
        ("slowfast-slow_99999999frms_concat-fast_4x4", ["slow", 99999999]),
        ("x" * 10_000, ["how"]),
        (f"slowfast-slow_{'9' * 5000}frms_concat-fast_4x4", ["how"]),
        (f"slowfast-slow_1frms_{'x' * 5000}-fast_4x4", ["how", "operator"]),
    ],
)
def test_wrong_strings_name_the_valid_form(text: str, names: list[str]) -> None:
    with raises_naming(UserError, *names) as caught:
        parse_how(text)
    assert len(str(caught.value)) < 600
    with pytest.raises(UserError):
        parse_how(text.replace("_fast_", "+"), compat=True)


def test_names_of_strategies_and_options() -> None:
    for kind in strategy_kinds():
        assert parse_how(kind) == build_strategy(kind, {})
    assert parse_how("slowfast", slow_pool="2x2", fast="none") == SlowFast(slow_pool="spatial_2d_max_pool", fast=None)
    assert parse_how(EXAMPLE, slow=4, frames=20) == SlowFast(slow=4, frames=20)
    with raises_naming(UserError, "slwo", "slow"):
        parse_how("slowfast", slwo=3)
    with raises_naming(UserError, "fast", "4y4") as caught:
        parse_how("slowfast", fast="4y4")
    assert str(caught.value).count("4y4") == 1
    with raises_naming(UserError, "slow_pool", "3x3", "1x1, 1x2, 2x2"):
        parse_how("slowfast", slow_pool="3x3")
    for text in ("slowfast-slow_0frms_concat-fast_4x4", "slowfast-slow_4frms_concat-fast_0x0"):
        with raises_naming(UserError, text, "--slow 0", "--fast none"):
            parse_how(text)
    with raises_naming(UserError, "slow"):
        parse_how("slowfast", slow=0, fast="none")


@given(
    st.integers(0, 200),
    st.sampled_from(OPERATORS),
    st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.integers(1, 300),
)
def test_settings_and_strings_round_trip(slow: int, operator: Any, fast: tuple[int, int] | None, frames: int) -> None:
    if not slow and fast is None:
        return
    how = SlowFast(slow=slow, slow_pool=operator, fast=fast, frames=frames)
    text = format_aggregation(how)
    assert parse_how(text, compat=True, frames=frames) == how
    strict = slow > 0 and fast is not None
    if strict:
        assert parse_how(text, frames=frames) == how
    else:
        with pytest.raises(UserError):
            parse_how(text)


@pytest.mark.parametrize("text", OPERATORS)
def test_operators_round_trip(text: str) -> None:
    assert format_aggregation(parse_aggregation(text)) == text


def test_settings_without_a_string_are_refused() -> None:
    with raises_naming(UserError, "fast_pool", "max"):
        format_aggregation(SlowFast(fast_pool="max"))
    with raises_naming(UserError, "interleaved"):
        format_aggregation(build_strategy("interleaved", {}))
