"""Aggregation of frames: the official order of operations as an oracle, invariants, types, gradients, hostile input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.video.aggregate import FrameAggregator, aggregate_frames
from foveate.video.layout import OPERATORS
from foveate.video.strategies import SlowFast, Strategy, build_strategy, parse_how, strategy_kinds
from naming import raises_naming

SMALL: dict[str, dict[str, Any]] = {
    "slowfast": {"slow": 3, "fast": "2x3"},
    "slow": {"slow": 3},
    "chosen": {"slow": 3},
    "interleaved": {"slow": 3, "fast": "2x2"},
    "ts": {"sampled": 50, "thumbnail": 4},
    "grid": {"tiles": "1x2"},
}
"""Options for clips of a few frames."""

pytestmark = pytest.mark.filterwarnings("ignore:slow", "ignore:fast", "ignore:sampled")


def make_frames(num_frames: int, image_tokens: int, width: int = 4, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Make random tokens [T, N, D]."""
    generator = torch.Generator().manual_seed(num_frames * 1000 + image_tokens)
    return torch.randn(num_frames, image_tokens, width, generator=generator).to(dtype)


def pool_officially(frames_TND: Tensor, operator: str) -> Tensor:
    """Pool all frames at once in the official order: permute, pool the whole tensor, permute back, flatten."""
    _, tokens, width = frames_TND.shape
    side = int(tokens**0.5)
    map_TDHW = frames_TND.permute(0, 2, 1).reshape(-1, width, side, side)
    if operator == "concat":
        pooled = frames_TND
    elif operator == "temporal_global_pool":
        pooled = frames_TND.mean(0)
    elif operator == "spatial_temporal_pool":
        pooled = F.adaptive_avg_pool3d(map_TDHW.permute(1, 0, 2, 3), (16, 12, 12)).flatten(1).T
    elif operator.startswith("spatial_1d"):
        function = F.max_pool1d if "max" in operator else F.avg_pool1d
        pooled = function(frames_TND.permute(0, 2, 1), 2).permute(0, 2, 1)
    elif operator == "grid_1x2":
        pooled = F.max_pool2d(map_TDHW, (1, 2)).flatten(2).permute(0, 2, 1)
    else:
        function = F.max_pool2d if "max" in operator else F.avg_pool2d
        pooled = function(map_TDHW, 2).flatten(2).permute(0, 2, 1)
    return pooled.reshape(-1, width)


def aggregate_officially(frames_TND: Tensor, how: SlowFast) -> Tensor:
    """Aggregate as the official code does: choose, pool, concatenate whole tensors."""
    frames, tokens, width = frames_TND.shape
    side = int(tokens**0.5)
    parts = [frames_TND.new_empty(0, width)]
    if how.slow:
        indices = torch.linspace(0, frames, how.slow + 1).to(torch.int64)[:-1]
        parts.append(pool_officially(frames_TND[indices], how.slow_pool))
    if how.fast:
        map_TDHW = frames_TND.permute(0, 2, 1).reshape(frames, width, side, side).contiguous()
        function = F.adaptive_avg_pool2d if how.fast_pool == "avg" else F.adaptive_max_pool2d
        parts.append(function(map_TDHW, how.fast).flatten(2).permute(0, 2, 1).reshape(-1, width))
    return torch.cat(parts)


@settings(deadline=None, max_examples=30)
@given(
    num_frames=st.integers(1, 9),
    side=st.integers(2, 7),
    slow=st.integers(0, 11),
    operator=st.sampled_from(OPERATORS),
    fast=st.none() | st.tuples(st.integers(1, 8), st.integers(1, 8)),
    fast_pool=st.sampled_from(["avg", "max"]),
)
def test_equals_the_official_order_of_operations(
    num_frames: int, side: int, slow: int, operator: Any, fast: tuple[int, int] | None, fast_pool: Any
) -> None:
    if not slow and fast is None:
        return
    how = SlowFast(slow=slow, slow_pool=operator, fast=fast, fast_pool=fast_pool)
    frames_TND = make_frames(num_frames, side * side)
    expected_LD = aggregate_officially(frames_TND, how)
    result_LD = aggregate_frames(frames_TND, how)
    torch.testing.assert_close(result_LD, expected_LD, rtol=0, atol=1e-6)
    counts = how.count_tokens(num_frames, side * side)
    assert sum(counts.values()) == len(expected_LD)
    if operator in ("concat", "spatial_1d_max_pool", "spatial_2d_max_pool", "grid_1x2"):
        assert torch.equal(result_LD[: counts["slow"]], expected_LD[: counts["slow"]])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype, operator: Any) -> None:
    how = SlowFast(slow=3, slow_pool=operator, fast=(3, 5))
    frames_TND = make_frames(7, 36, dtype=dtype)
    result_LD = aggregate_frames(frames_TND, how)
    expected_LD = aggregate_officially(frames_TND.double(), how)
    assert result_LD.dtype == dtype
    # Half a unit in the last place of values below 4, once rounded.
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(result_LD.double(), expected_LD, rtol=0, atol=tolerance)


def test_large_halves_do_not_overflow() -> None:
    frames_TND = torch.full((4, 16, 2), 60_000, dtype=torch.float16)
    for operator in OPERATORS:
        assert (aggregate_frames(frames_TND, SlowFast(slow=2, slow_pool=operator, fast=(2, 2))) == 60_000).all(), (
            operator
        )


def list_tokens(layout_images: Any, frames_TND: Tensor) -> Iterator[Tensor]:
    """Yield tokens of a layout's images; those of a collage are the mean of its frames and the number of its tile."""
    for image in layout_images:
        yield frames_TND[list(image.frames)].mean(0) + image.tile[1]


@pytest.mark.parametrize("kind", [kind for kind in strategy_kinds() if kind != "native"])
@pytest.mark.parametrize(("num_frames", "image_tokens"), [(1, 16), (5, 25), (12, 36)])
def test_images_one_by_one_are_the_result(kind: str, num_frames: int, image_tokens: int) -> None:
    how = build_strategy(kind, SMALL.get(kind, {}))
    layout = how.layout(num_frames, image_tokens)
    frames_TND = make_frames(num_frames, image_tokens)
    aggregator = FrameAggregator(layout)
    for tokens_ND in list_tokens(layout.images, frames_TND):
        aggregator.add(tokens_ND)
    result_LD = aggregator.finish()
    assert result_LD.shape == (layout.num_tokens, 4)
    assert layout.count_tokens() == how.count_tokens(num_frames, image_tokens)
    assert torch.isfinite(result_LD).all()
    # A frame is encoded once, in the order of time; collages come last.
    singles = [image.frames[0] for image in layout.images if image.is_frame]
    assert singles == sorted(set(singles))
    assert [image.is_frame for image in layout.images] == sorted((i.is_frame for i in layout.images), reverse=True)


@pytest.mark.parametrize("kind", [kind for kind in strategy_kinds() if kind not in ("grid", "native", "ts")])
def test_one_by_one_equals_the_whole_and_reads_frames_once(kind: str) -> None:
    how = build_strategy(kind, {**SMALL.get(kind, {}), **({"choose": "even"} if kind == "chosen" else {})})
    frames_TND = make_frames(12, 36)
    read: list[int] = []

    def produce() -> Iterator[Tensor]:
        for index, tokens_ND in enumerate(frames_TND):
            read.append(index)
            yield tokens_ND

    assert torch.equal(aggregate_frames(produce(), how, num_frames=12), aggregate_frames(frames_TND, how))
    assert read == list(range(12))


def test_strided_input_gradients_and_modes() -> None:
    how = SlowFast(slow=3, fast=(2, 2))
    frames_TND = make_frames(6, 36)
    expected_LD = aggregate_frames(frames_TND, how)
    strided_TND = frames_TND.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided_TND.is_contiguous()
    assert torch.equal(aggregate_frames(strided_TND, how), expected_LD)
    with torch.inference_mode():
        assert torch.equal(aggregate_frames(frames_TND, how), expected_LD)
    for operator in OPERATORS:
        how = SlowFast(slow=3, slow_pool=operator, fast=(2, 2))
        ours_TND, official_TND = (frames_TND.clone().requires_grad_() for _ in range(2))
        aggregate_frames(ours_TND, how).square().sum().backward()
        aggregate_officially(official_TND, how).square().sum().backward()
        assert ours_TND.grad is not None
        assert official_TND.grad is not None
        torch.testing.assert_close(ours_TND.grad, official_TND.grad, rtol=1e-4, atol=1e-5)


def test_a_frame_changes_its_rows_alone() -> None:
    how = SlowFast(slow=3, fast=(2, 3))
    frames_TND = make_frames(9, 36)
    before_LD = aggregate_frames(frames_TND, how)
    slow = how.count_tokens(9, 36)["slow"]
    for frame in range(9):
        changed_TND = frames_TND.clone()
        changed_TND[frame] += 1
        rows = (aggregate_frames(changed_TND, how) != before_LD).any(1).nonzero()[:, 0].tolist()
        fast = list(range(slow + 6 * frame, slow + 6 * frame + 6))
        position = frame // 3
        assert rows == ([*range(18 * position, 18 * position + 18), *fast] if frame % 3 == 0 else fast)


def test_reversed_time_reverses_the_fast_path_alone() -> None:
    frames_TND = make_frames(8, 36)
    how = SlowFast(slow=3, fast=(2, 2))
    slow = how.count_tokens(8, 36)["slow"]
    forward_LD, backward_LD = (aggregate_frames(frames, how) for frames in (frames_TND, frames_TND.flip(0)))
    assert torch.equal(forward_LD[slow:].unflatten(0, (8, 4)).flip(0).flatten(0, 1), backward_LD[slow:])
    assert not torch.equal(forward_LD[:slow].unflatten(0, (3, -1)).flip(0).flatten(0, 1), backward_LD[:slow])


@pytest.mark.parametrize("operator", OPERATORS)
def test_constant_frames_mean_and_max(operator: Any) -> None:
    values = torch.arange(4.0)
    constant_TND = values[:, None, None].expand(4, 16, 3).contiguous()
    rows_LD = aggregate_frames(constant_TND, SlowFast(slow=4, slow_pool=operator, fast=(2, 2)))
    torch.testing.assert_close(rows_LD, rows_LD[:, :1].expand_as(rows_LD))
    fast_LD = rows_LD[-16:]
    torch.testing.assert_close(fast_LD[:, 0], values.repeat_interleave(4))

    frames_TND = make_frames(4, 36)
    means_LD, maxima_LD = (
        aggregate_frames(frames_TND, parse_how("fast", fast="3x2", fast_pool=p)) for p in ("avg", "max")
    )
    torch.testing.assert_close(means_LD.unflatten(0, (4, 6)).mean(1), frames_TND.mean(1), rtol=0, atol=1e-5)
    assert (maxima_LD >= means_LD).all()
    assert torch.equal(aggregate_frames(frames_TND, parse_how("fast", fast="6x6")), frames_TND.flatten(0, 1))
    for pair in ("spatial_1d", "spatial_2d"):
        most, mean = (aggregate_frames(frames_TND, parse_how(f"{pair}_{name}_pool")) for name in ("max", "avg"))
        assert (most >= mean).all()


def test_grid_1x2_is_the_official_operator_on_even_grids_alone() -> None:
    for image_tokens, same in ((36, True), (49, False)):
        frames_TND = make_frames(2, image_tokens)
        rows, pairs = (aggregate_frames(frames_TND, parse_how("concat", pool=name)) for name in ("grid_1x2", "1x2"))
        assert (rows.shape == pairs.shape and torch.equal(rows, pairs)) == same
    # On the odd grid the rule of rows never mixes two rows.
    frames_TND = torch.arange(7.0).repeat_interleave(7)[None, :, None]
    assert aggregate_frames(frames_TND, parse_how("grid_1x2"))[:, 0].tolist() == np.repeat(np.arange(7), 3).tolist()


def test_each_path_sees_what_the_other_misses() -> None:
    slow, fast, both = parse_how("slow", slow=10), parse_how("fast"), parse_how("slowfast")
    seen = []
    for event in range(50):
        frames_TND = torch.zeros(50, 576, 1)
        frames_TND[event] = 1
        seen.append([bool(aggregate_frames(frames_TND, how).any()) for how in (slow, fast, both)])
    # An event of one frame: of ten slow frames one in five lies on it.
    assert np.mean(seen, axis=0).tolist() == [0.2, 1, 1]
    # A detail of one patch: whole in the slow path, a 36th of it in the fast one.
    frames_TND = torch.zeros(50, 576, 1)
    frames_TND[:, 100] = 1
    assert aggregate_frames(frames_TND, slow).max() == 1
    assert aggregate_frames(frames_TND, fast).max() == pytest.approx(1 / 36)


def test_projecting_before_pooling_matters() -> None:
    features_TND = make_frames(4, 16, 8)
    how = SlowFast(slow=2, slow_pool="spatial_1d_avg_pool", fast=(2, 2))
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    for activation, same in ((nn.Identity(), True), (nn.GELU(), False)):
        projector = nn.Sequential(first, activation, second)
        with torch.no_grad():
            before_LD = aggregate_frames(projector(features_TND), how)
            after_LD = projector(aggregate_frames(features_TND, how))
        assert torch.allclose(before_LD, after_LD, atol=1e-5) == same


def test_slow_frames_of_any_choice_and_order() -> None:
    frames_TND = make_frames(6, 36)
    how = SlowFast(slow=3, slow_pool="concat", fast=(1, 1))
    result_LD = aggregate_frames(frames_TND, how, slow_indices=[5, 0, 5])
    assert torch.equal(result_LD[:108], frames_TND[[5, 0, 5]].flatten(0, 1))
    torch.testing.assert_close(result_LD[108:], frames_TND.mean(1))
    covering = parse_how("chosen", slow=2)
    assert torch.equal(aggregate_frames(frames_TND, covering, slow_indices=[1, 4]), frames_TND[[1, 4]].flatten(0, 1))
    with raises_naming(UserError, "slow_indices", "cover"):
        aggregate_frames(frames_TND, covering)
    for outside in (6, -1):
        with raises_naming(UserError, "slow_indices", outside, 5):
            aggregate_frames(frames_TND, how, slow_indices=[0, outside])
    with raises_naming(UserError, "slow_indices"):
        aggregate_frames(frames_TND, covering, slow_indices=[])
    with raises_naming(UserError, "slow_indices", "fast"):
        aggregate_frames(frames_TND, parse_how("fast"), slow_indices=[0])


def test_wrong_frames_are_refused() -> None:
    how = SlowFast(slow=2, fast=(2, 2))
    frames_TND = make_frames(3, 16)
    with raises_naming(UserError, "num_frames"):
        aggregate_frames(iter(frames_TND), how)
    for count in (2, 4):
        with raises_naming(UserError, "frames", 3):
            aggregate_frames(iter(frames_TND), how, num_frames=count)
    with raises_naming(UserError, "frames"):
        aggregate_frames(frames_TND[:0], how)
    with raises_naming(UserError, "frames", (3, 16)):
        aggregate_frames(frames_TND[..., 0], how)
    with raises_naming(UserError, "int64"):
        aggregate_frames(frames_TND.long(), how)
    with raises_naming(UserError, "image 1", (15, 4), (16, 4)):
        aggregate_frames([frames_TND[0], frames_TND[1, :15], frames_TND[2]], how, num_frames=3)
    with raises_naming(UserError, "image 2", "float16", "float32"):
        aggregate_frames([*frames_TND[:2], frames_TND[2].half()], how, num_frames=3)
    for kind in ("grid", "ts"):
        with raises_naming(UserError, kind):
            aggregate_frames(frames_TND, parse_how(kind))
    aggregator = FrameAggregator(how.layout(3, 16))
    aggregator.add(frames_TND[0])
    with raises_naming(UserError, 1, 3):
        aggregator.finish()


@pytest.mark.parametrize(
    ("how", "num_frames", "image_tokens", "names"),
    [
        (SlowFast(slow=4), 3, 16, ["slow", 4, 3]),
        (SlowFast(slow=1, fast=(5, 2)), 3, 16, ["fast", "5x2", "4 x 4"]),
        (SlowFast(slow=1), 3, 25, ["slow_pool", 25, "grid_1x2"]),
        (SlowFast(slow=1), 3, 16, []),
        (parse_how("interleaved"), 3, 16, []),
    ],
)
def test_unusual_settings_warn(how: Strategy, num_frames: int, image_tokens: int, names: list[object]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aggregate_frames(make_frames(num_frames, image_tokens), how)
    assert len(caught) == bool(names)
    assert all(str(name) in str(caught[0].message) for name in names)
