"""Strategies: numbers of the papers, order of rows, and what each encodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.core.errors import UserError
from foveate.video.aggregate import FrameAggregator, aggregate_frames
from foveate.video.strategies import parse_how, strategy_kinds
from foveate.vision.preprocess import Preprocess, squash
from foveate.vision.video.collages import TowerImage, assemble_images
from foveate.vision.video.sampling import float_linspace
from naming import raises_naming


def test_strategies_are_found_by_their_names() -> None:
    kinds = ["chosen", "concat", "fast", "freeva", "grid", "interleaved", "mean", "native", "slow", "slowfast", "ts"]
    assert strategy_kinds() == kinds
    assert [parse_how(kind).kind for kind in kinds] == kinds
    with raises_naming(UserError, "native", "processor"):
        parse_how("native").layout(4, 16)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"slow_pool": "concat"}, 6560),
        ({}, 3680),
        ({"slow_pool": "2x2"}, 2240),
        ({"slow": 5, "slow_pool": "1x1"}, 3680),
        ({"slow": 5}, 2240),
        ({"slow": 5, "slow_pool": "2x2"}, 1520),
        ({"slow": 8}, 3104),
        ({"fast": "8x8"}, 6080),
        ({"fast": "3x6"}, 3780),
        ({"fast": "2x4"}, 3280),
        ({"fast": "1x1"}, 2930),
    ],
)
def test_tokens_of_the_papers_ablations(options: dict, tokens: int) -> None:
    assert sum(parse_how("slowfast", **options).count_tokens(50, 576).values()) == tokens


@pytest.mark.parametrize(
    ("kind", "num_frames", "counts"),
    [
        ("slow", 50, {"slow": 3456}),
        ("fast", 200, {"fast": 3200}),
        ("concat", 6, {"frames": 3456}),
        ("mean", 50, {"frames": 576}),
        ("freeva", 4, {"frames": 2304}),
        ("grid", 6, {"grid": 576}),
        ("ts", 50, {"sampled": 2880, "thumbnail": 576}),
        ("interleaved", 50, {"slow": 2880, "fast": 640}),
        ("chosen", 50, {"slow": 3456}),
    ],
)
def test_tokens_of_the_defaults(kind: str, num_frames: int, counts: dict[str, int]) -> None:
    how = parse_how(kind)
    assert how.frames == num_frames
    assert how.count_tokens(num_frames, 576) == counts


def test_slow_frames_alone_are_encoded_where_no_other_is_read() -> None:
    assert [image.frames for image in parse_how("slow", slow=4).layout(50, 16).images] == [(0,), (12,), (25,), (37,)]
    assert len(parse_how("ts", sampled=2).layout(50, 16).images) == 3


def test_interleaved_frames_stand_in_the_order_of_time() -> None:
    frames_TND = torch.arange(6.0)[:, None, None].expand(6, 16, 2).contiguous()
    how = parse_how("interleaved", slow=2, slow_pool="concat", fast="1x1")
    expected = [0] * 16 + [1, 2] + [3] * 16 + [4, 5]
    assert aggregate_frames(frames_TND, how)[:, 0].tolist() == expected
    # A frame is either slow or fast, and comes once.
    assert how.layout(1, 16).count_tokens() == {"slow": 16}
    with raises_naming(UserError, "slow_pool", "temporal_global_pool", "interleaved"):
        parse_how("interleaved", slow_pool="temporal_global_pool").count_tokens(6, 16)


def test_grid_of_frames_as_in_ig_vlm() -> None:
    (image,) = parse_how("grid").layout(6, 16).images
    assert (image.frames, image.cells, image.is_frame) == ((0, 1, 2, 3, 4, 5), (3, 2), False)
    assert [parse_how("grid").layout(n, 16).images[0].cells for n in (1, 2, 3, 4, 5, 7, 12)] == [
        (1, 1), (2, 1), (2, 2), (2, 2), (3, 2), (3, 3), (4, 3)
    ]  # fmt: skip
    images = parse_how("grid", tiles="2x2").layout(6, 16).images
    assert [image.tile for image in images] == [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert [image.tiles for image in images] == [(1, 1), *[(2, 2)] * 4]
    assert parse_how("grid", tiles="2x2", overview=False).count_tokens(6, 16) == {"grid": 64}
    assert parse_how("grid", overview=False).count_tokens(6, 16) == {"grid": 16}


def test_collages_hold_their_frames_row_by_row() -> None:
    preprocess = Preprocess(size=(36, 24), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", geometry="stretch")
    frames = [Image.new("RGB", (50, 20), (40 * number, 0, 0)) for number in range(5)]

    def reds(pixels_HW3: np.ndarray) -> list[list[int]]:
        assert pixels_HW3.shape == (36, 24, 3)
        return pixels_HW3[6::12, 6::12, 0].tolist()

    layout = parse_how("grid", tiles="1x2").layout(5, 16)
    whole, *tiles = map(np.asarray, assemble_images(layout.images, frames, preprocess))
    assert reds(whole) == [[0, 40], [80, 120], [160, 255]]
    assert [reds(tile) for tile in tiles] == [[[0, 0], [80, 80], [160, 160]], [[40, 40], [120, 120], [255, 255]]]


def _paste_all(image: TowerImage, frames: list[Image.Image], preprocess: Preprocess) -> Image.Image:
    """Return an image of a layout from all frames at once."""
    if image.is_frame:
        return frames[image.frames[0]]
    width, height = preprocess.width, preprocess.height
    canvas = Image.new("RGB", (width * image.tiles[1], height * image.tiles[0]), "white")
    rows, columns = image.cells
    for number, frame in enumerate(image.frames):
        row, column = divmod(number, columns)
        left, right = (canvas.width * each // columns for each in (column, column + 1))
        top, bottom = (canvas.height * each // rows for each in (row, row + 1))
        canvas.paste(squash(frames[frame], (bottom - top, right - left)), (left, top))
    top, left = image.tile[0] * height, image.tile[1] * width
    return canvas.crop((left, top, left + width, top + height))


@pytest.mark.parametrize("num_frames", [1, 3, 7])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("grid", {"tiles": "2x1"}), ("ts", {"sampled": 9, "thumbnail": 4}), ("ts", {"sampled": 40, "thumbnail": 6}),
        ("slowfast", {"slow": 3}), ("interleaved", {"slow": 2}), ("slow", {"slow": 2}),
    ],
)  # fmt: skip
def test_images_from_frames_one_by_one_are_those_from_all_at_once(
    kind: str, options: dict[str, Any], num_frames: int
) -> None:
    preprocess = Preprocess(size=(36, 24), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", geometry="stretch")
    rng = np.random.default_rng(num_frames)
    frames = [Image.fromarray(rng.integers(0, 256, (20, 50, 3), dtype=np.uint8)) for _ in range(num_frames)]
    layout = parse_how(kind, **options).layout(num_frames, 16)
    images = list(assemble_images(layout.images, iter(frames), preprocess))
    assert len(images) == len(layout.images)
    for image, plan in zip(images, layout.images, strict=True):
        assert np.array_equal(image, _paste_all(plan, frames, preprocess))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 300), st.integers(1, 9))
def test_sampled_tokens_as_in_ts_llava(num_frames: int, image_tokens: int, sampled: int, thumbnail: int) -> None:
    layout = parse_how("ts", sampled=sampled, thumbnail=thumbnail).layout(num_frames, image_tokens)
    total = num_frames * image_tokens
    tokens_TND = torch.arange(float(total)).view(num_frames, image_tokens, 1)
    aggregator = FrameAggregator(layout) if sampled <= total else None
    if aggregator is None:
        with pytest.warns(UserWarning, match="sampled"):
            aggregator = FrameAggregator(layout)
    for image in layout.images[:-1]:
        aggregator.add(tokens_TND[image.frames[0]])
    aggregator.add(torch.full((image_tokens, 1), -1.0))
    expected = torch.linspace(0, total - 1, min(sampled, total)).round().long()
    result = aggregator.finish()[:, 0]
    assert torch.equal(result[: len(expected)].long(), expected)
    assert (result[len(expected) :] == -1).all()
    assert len(result) == len(expected) + image_tokens
    frames = torch.linspace(0, num_frames - 1, thumbnail).round().long().tolist()
    assert list(layout.images[-1].frames) == frames


def test_thumbnails_are_the_most_square_and_rather_tall() -> None:
    shapes = {number: parse_how("ts", thumbnail=number).layout(50, 4).images[-1].cells for number in (1, 4, 6, 7, 8)}
    assert shapes == {1: (1, 1), 4: (2, 2), 6: (3, 2), 7: (7, 1), 8: (4, 2)}


# Without fused multiply-adds torch itself rounds otherwise; the indices of the official code are those of processors
# that have them, and ours are the same on all.
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch runs without AVX2 and FMA")
@settings(deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 5000))
def test_linspace_equals_torch(end: int, steps: int) -> None:
    assert np.array_equal(float_linspace(end, steps), torch.linspace(0, end, steps).numpy())


def test_chosen_slow_frames_of_a_short_clip_do_not_repeat() -> None:
    for how in (parse_how("chosen", slow=6), parse_how("slowfast", slow=6, slow_pool="concat", choose="change")):
        assert how.count_tokens(4, 16)["slow"] == 4 * 16
        assert how.layout(4, 16, slow_indices=range(4)).warnings == how.layout(4, 16).warnings == ()
    assert parse_how("slowfast", slow=6, slow_pool="concat").count_tokens(4, 16)["slow"] == 6 * 16


def test_impossible_clips_are_refused() -> None:
    with raises_naming(UserError, "frames", 0):
        parse_how("slowfast").count_tokens(0, 576)
    with raises_naming(UserError, "image tokens", 575):
        parse_how("fast").count_tokens(5, 575)
    with raises_naming(UserError, "image tokens", 1):
        parse_how("concat", pool="2x2").count_tokens(5, 1)
