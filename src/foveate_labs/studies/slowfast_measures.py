"""Measures of the study `slowfast` without a model: raw patches as tokens, and fixed readers of what is in them.

A token is a patch of 8 x 8 pixels. Strategies choose and pool tokens as they do those of a vision tower. A row's time
and place come from one more clip, whose colors say them and which goes through the strategy, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.core import seeds
from foveate.metrics.answers import evidence_recall
from foveate.video.aggregate import FrameAggregator, aggregate_frames
from foveate.video.layout import Layout
from foveate.video.strategies import SlowStrategy, Strategy, build_strategy
from foveate.vision.preprocess import Preprocess, squash
from foveate.vision.video.collages import assemble_images
from foveate.vision.video.reading import read_clip
from foveate.vision.video.sampling import SampleRule, choose_frames, sample
from foveate_labs.worlds.scenes.clip_questions import ClipQuestion, ask_clip
from foveate_labs.worlds.scenes.clips import SceneClip, Track, draw_clip, draw_plate

# Arms of the study `slowfast`: strategies, most of them at 256 tokens of 32 frames of 64, and controls.


BUSY, STILL, ORDER, DIRECTION, COUNTING = "busy", "still", "order", "direction", "counting"
NUM_FRAMES, BUDGET = 32, 256
BUDGETS = (64, 128, 256, 512, 1024)
FrameKind = Literal["plain", "shuffled", "blank", "odd"]


@dataclass(frozen=True)
class Arm:
    """A strategy, and the frames that it gets.

    Args:
        rule: how `how.frames` frames are sampled; by default without repeats, so that all 32 are.
        frames: "plain", or as a control: "shuffled", "blank", or cut to a grid with an "odd" side of 7 tokens.
    """

    title: str
    what: str
    how: Strategy
    rule: SampleRule = "uniform_mid"
    frames: FrameKind = "plain"


def _how(kind: str, **options: Any) -> Strategy:
    return build_strategy(kind, {"frames": NUM_FRAMES, **options})


# 128 tokens in each path: 4 frames of 64 pooled 1x2, and 32 frames of 2x2.
_SLOWFAST: dict[str, Any] = {"slow": 4, "slow_pool": "1x2", "fast": "2x2"}


def _main_arms() -> dict[str, Arm]:
    slowfast = _how("slowfast", **_SLOWFAST)
    return {
        "slowfast": Arm("slow + fast", "4 slow frames, 1x2 max; all 32 frames, 2x2", slowfast),
        "slow": Arm("slow", "8 frames, 1x2 max", _how("slow", slow=8, slow_pool="1x2")),
        "fast": Arm("fast", "all frames, 2x4", _how("fast", fast="2x4")),
        "concat": Arm("concat", "4 whole frames", _how("concat", frames=4)),
        "mean": Arm("mean", "all frames, averaged over time: 64 tokens", _how("mean")),
        "grid": Arm("grid (IG-VLM)", "6 frames, 3 x 2: all, and a tile a row", _how("grid", frames=6, tiles="3x1")),
        "ts": Arm("TS-LLaVA", "192 tokens of all frames, 6 frames in 64", _how("ts", sampled=192)),
        "interleaved": Arm("interleaved", "by time, not by path: 240 tokens", _how("interleaved", **_SLOWFAST)),
        "chosen": Arm("chosen", "4 whole frames by cover", _how("chosen", slow=4)),
        "chosen-change": Arm("chosen, change", "4 whole frames at changes", _how("chosen", slow=4, choose="change")),
        "chosen-query": Arm(
            "chosen, query", "4 whole frames by the color in the question", _how("chosen", slow=4, choose="query")
        ),
        "cover": Arm("slow + fast, cover", "slow frames by cover", _how("slowfast", **_SLOWFAST, choose="cover")),
        "change": Arm("slow + fast, change", "slow frames at changes", _how("slowfast", **_SLOWFAST, choose="change")),
        "query": Arm(
            "slow + fast, query", "slow frames by the color in the question",
            _how("slowfast", **_SLOWFAST, choose="query"),
        ),
        "max": Arm("slow + fast, max", "max in the fast path", _how("slowfast", **_SLOWFAST, fast_pool="max")),
        "mm15": Arm(
            "MM1.5's frames", "24 frames from the first to the last, 2x5: 240 tokens",
            _how("fast", frames=24, fast="2x5"), rule="linspace",
        ),
        "odd": Arm("odd grid, official", "7 x 7 tokens a frame, pairs across rows: 224 tokens", slowfast, frames="odd"),
        "odd-rows": Arm(
            "odd grid, rows", "7 x 7 tokens a frame, pairs within rows: 212 tokens",
            _how("slowfast", slow=4, slow_pool="grid_1x2", fast="2x2"), frames="odd",
        ),
        "shuffled": Arm("shuffled", "slow + fast, frames in random order", slowfast, frames="shuffled"),
        "blank": Arm("no frames", "slow + fast, gray frames", slowfast, frames="blank"),
    }  # fmt: skip


def _budget_arms() -> dict[str, Arm]:
    """Return the arms at other budgets: each doubles frames or the grid."""
    arms = {}
    grids = {64: "1x1", 128: "1x2", 512: "2x4", 1024: "4x4"}
    # Without slow frames the fast path has their half of the budget, too: twice the tokens a frame.
    finer = {64: "1x2", 128: "2x2", 512: "4x4", 1024: "4x8"}
    for tokens, fast in grids.items():
        count = tokens // 64
        for key, title, what, how in (
            ("slowfast", "slow + fast", f"{count} slow, 1x2 max; {fast}", _how("slowfast", slow=count, fast=fast)),
            ("slow", "slow", f"{2 * count} frames, 1x2 max", _how("slow", slow=2 * count)),
            ("fast", "fast", f"all frames, {finer[tokens]}", _how("fast", fast=finer[tokens])),
            ("concat", "concat", f"{count} whole frames", _how("concat", frames=count)),
            ("chosen", "chosen", f"{count} whole frames by cover", _how("chosen", slow=count)),
        ):
            arms[f"{key}-{tokens}"] = Arm(f"{title}, {tokens} tokens", what, how)
    return arms


MAIN, OTHER_BUDGETS = _main_arms(), _budget_arms()
ARMS = MAIN | OTHER_BUDGETS
# Strategies for a real clip: the paper's 50 frames of 24 x 24 tokens.
COVERAGE: dict[str, Strategy] = {
    "slowfast": build_strategy("slowfast", {}),
    "slow": build_strategy("slow", {"slow": 10}),
    "fast": build_strategy("fast", {"frames": 50}),
}


def select_arms(world: str) -> dict[str, Arm]:
    """Return the arms that read a world: other budgets and odd grids are for plates, a query names no place."""
    if world in (BUSY, STILL):
        return ARMS
    return {key: arm for key, arm in MAIN.items() if arm.frames != "odd" and not key.endswith("query")}


# `watch` samples by the official rule alone, and no model is trained on grids with an odd side.
WATCHED = {key: MAIN[key] for key in ("slowfast", "slow", "fast", "concat", "ts", "chosen", "shuffled", "blank")}


Floats = NDArray[np.floating]
Pixels = NDArray[np.uint8]
PATCH = 8
_DEPTH = 3 * PATCH * PATCH
_SIDE, _ODD_SIDE, _NUM_FRAMES = 64, 56, 32
_PIXELS = Preprocess(size=_SIDE, mean=(0.0,) * 3, std=(1.0,) * 3)
_GRAY = 128
# Gray levels of a frame and of a pixel, in the clip that encodes times and places.
# 32 frames of 8 levels, and 64 pixels of 4, fill the 256 levels of a channel.
_PER_FRAME, _PER_PIXEL = 8, 4


@dataclass(frozen=True, eq=False)
class ClipCase:
    """A clip, its questions, its frames, and the order in which the control "shuffled" shows them."""

    clip: SceneClip
    questions: Sequence[ClipQuestion]
    frames_THW3: Pixels
    order_T: NDArray[np.int64]

    @functools.cached_property
    def track(self) -> Track:
        """Thing that the first question names."""
        return find_track(self.clip, self.questions[0])


@dataclass(frozen=True, eq=False)
class Reading:
    """What a strategy makes of a clip.

    Attributes:
        rows_LD: patches, pooled. positions_L3: mean frame, row and column of each, in frames and pixels.
        frames: of each path, numbers of the clip's frames whose tokens are read and not averaged over time.
    """

    rows_LD: Floats
    positions_L3: Floats
    frames: Mapping[str, frozenset[int]]

    @property
    def seen(self) -> frozenset[int]:
        return frozenset().union(*self.frames.values())

    @property
    def colors_L3(self) -> Floats:
        """Mean color of each row."""
        return self.rows_LD.reshape(-1, PATCH * PATCH, 3).mean(1)


def find_track(clip: SceneClip, question: ClipQuestion) -> Track:
    """Return the thing that a question names."""
    return next(track for track in clip.tracks if track.name in question.question.prompt)


def cut_patches(frames_THW3: Pixels) -> Tensor:
    """Cut frames into patches, row by row: [T, N, 192].

    >>> cut_patches(np.zeros((2, 16, 24, 3), np.uint8)).shape
    torch.Size([2, 6, 192])
    """
    count, height, width, _ = frames_THW3.shape
    grid = frames_THW3.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return torch.from_numpy(grid.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, _DEPTH).astype(np.float32))


def draw_cases(world: str, *, clips: int, seed: int) -> list[ClipCase]:
    """Draw the test clips of a seed, with their questions."""
    cases = []
    for index in range(clips):
        clip = draw_clip(world, seed=seed, split="test", index=index, num_frames=_NUM_FRAMES, things="shapes")
        # One stream per clip, so that a run with fewer clips has the first ones of a larger run.
        rng = seeds.generator("study slowfast", world, seed, index)
        frames = np.stack([frame.pixels_HW3 for frame in clip])
        cases.append(ClipCase(clip, ask_clip(clip, rng), frames, rng.permutation(len(clip))))
    return cases


def score_world(world: str, arms: Mapping[str, Arm], *, clips: int, seed: int) -> dict[str, float]:
    """Read the clips of a world with every arm; return its measures as "arm/measure"."""
    cases = draw_cases(world, clips=clips, seed=seed)
    sources: dict[str, PatchSource] = {}
    values = {}
    for key, arm in arms.items():
        # Cut into patches once for all arms that see the same frames.
        if arm.frames not in sources:
            sources[arm.frames] = PatchSource(cases, arm.frames)
        readings = sources[arm.frames].read(arm)
        scores = _SCORES.get(world, score_plates)(cases, readings)
        scores |= score_evidence(cases, readings) | {"tokens": float(len(readings[0].rows_LD))}
        values |= {f"{key}/{name}": value for name, value in scores.items()}
    return values


class PatchSource:
    """Patches of the frames of all cases, as they are or as a control shows them; the last case says positions."""

    def __init__(self, cases: Sequence[ClipCase], kind: str) -> None:
        self.cases, self.kind = cases, kind
        clips = [arrange_frames(case, kind) for case in cases]
        self.frames_CTHW3 = np.stack([*clips, draw_positions(clips[0].shape[1])])
        # Clips stand in one row of channels: a strategy that treats all alike pools them in one pass.
        self.patches_TNCD = torch.stack([cut_patches(frames) for frames in self.frames_CTHW3], dim=2)

    def read(self, arm: Arm) -> list[Reading]:
        """Return what an arm makes of each case."""
        how = arm.how
        sampled = sample(_NUM_FRAMES, how.frames, rule=arm.rule)
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for number in range(len(self.cases)):
            groups.setdefault(self._choose(how, number, sampled), []).append(number)
        readings: dict[int, Reading] = {}
        for indices, members in groups.items():
            layout = how.layout(len(sampled), self.patches_TNCD.shape[1], slow_indices=indices)
            # The last clip says positions, and is pooled as its neighbors are.
            rows_LCD = self._aggregate(layout, [*members, -1], sampled)
            positions_L3 = rows_LCD[:, -1].reshape(-1, PATCH * PATCH, 3).mean(1) / (_PER_FRAME, *[_PER_PIXEL] * 2)
            for column, number in enumerate(members):
                seen = self._list_seen(layout, sampled, self.cases[number])
                readings[number] = Reading(rows_LCD[:, column], positions_L3, seen)
        return [readings[number] for number in range(len(self.cases))]

    def _choose(self, how: Strategy, number: int, sampled: list[int]) -> tuple[int, ...] | None:
        if not isinstance(how, SlowStrategy) or how.choose == "even":
            return None
        vectors_TD = self.patches_TNCD[sampled, :, number].mean(1).numpy()
        # The color that the question names: all that it says of pixels.
        query_D = np.tile(find_color(self.cases[number].track), PATCH * PATCH) if how.choose == "query" else None
        return tuple(choose_frames(vectors_TD, how.slow, how.choose, query_D=query_D))

    def _aggregate(self, layout: Layout, members: list[int], sampled: list[int]) -> Floats:
        aggregator = FrameAggregator(layout)
        whole = len(members) == self.patches_TNCD.shape[2]
        for image in layout.images:
            if image.is_frame:
                tokens_NCD = self.patches_TNCD[sampled[image.frames[0]]]
                tokens_NCD = tokens_NCD if whole else tokens_NCD[:, members]
            else:
                collages = []
                for member in members:
                    frames = [Image.fromarray(self.frames_CTHW3[member, index]) for index in sampled]
                    collages.append(np.array(next(assemble_images([image], frames, _PIXELS))))
                tokens_NCD = cut_patches(np.stack(collages)).transpose(0, 1)
            aggregator.add(tokens_NCD.flatten(1))
        return aggregator.finish().unflatten(1, (len(members), _DEPTH)).numpy()

    def _list_seen(self, layout: Layout, sampled: list[int], case: ClipCase) -> dict[str, frozenset[int]]:
        """List the frames of the clip that each path reads; none where frames are blank or averaged over time."""
        seen: dict[str, set[int]] = {}
        for block in layout.blocks:
            frames = {sampled[frame] for image in block.images for frame in layout.images[image].frames}
            # Evidence is given in frames of the clip, not in those of the shuffled order.
            if self.kind == "shuffled":
                frames = {int(case.order_T[frame]) for frame in frames}
            seen.setdefault(block.path, set()).update(() if block.bins or self.kind == "blank" else frames)
        return {path: frozenset(frames) for path, frames in seen.items()}


def arrange_frames(case: ClipCase, kind: str) -> Pixels:
    """Return the frames of a clip as they are, "shuffled", "blank", or cut to a grid with an "odd" side."""
    if kind == "blank":
        return np.full_like(case.frames_THW3, _GRAY)
    if kind == "shuffled":
        return case.frames_THW3[case.order_T]
    return case.frames_THW3[:, :_ODD_SIDE, :_ODD_SIDE] if kind == "odd" else case.frames_THW3


def draw_positions(side: int) -> Pixels:
    """Draw a clip whose colors say frame, row and column."""
    frames_THW3 = np.zeros((_NUM_FRAMES, side, side, 3), np.uint8)
    frames_THW3[..., 0] = _PER_FRAME * np.arange(_NUM_FRAMES)[:, None, None]
    frames_THW3[..., 1] = _PER_PIXEL * np.arange(side)[:, None]
    frames_THW3[..., 2] = _PER_PIXEL * np.arange(side)
    return frames_THW3


def score_evidence(cases: Sequence[ClipCase], readings: Sequence[Reading]) -> dict[str, float]:
    """Return the share of questions whose evidence is among the frames that are read, in all and by path."""
    evidence = [question.evidence for case in cases for question in case.questions]
    paths: dict[str, Callable[[Reading], frozenset[int]]] = {"evidence": lambda reading: reading.seen}
    if set(readings[0].frames) == {"slow", "fast"}:
        paths["evidence_slow"] = lambda reading: reading.frames["slow"]
        paths["evidence_fast"] = lambda reading: reading.frames["fast"]
    return {
        name: evidence_recall(
            evidence, [of(reading) for case, reading in zip(cases, readings, strict=True) for _ in case.questions]
        )
        for name, of in paths.items()
    }


def score_plates(cases: Sequence[ClipCase], readings: Sequence[Reading]) -> dict[str, float]:
    """Return how often the digit is read, the frame of the flash is among the tokens, and both."""
    values: dict[str, list[bool]] = {key: [] for key in ("digit", "flash", "both", "digit_distance", "both_distance")}
    for case, reading in zip(cases, readings, strict=True):
        color = case.track.name.split()[0]
        [start] = [event.start for event in case.clip.events if event.kind == "flash"]
        # Any token of the frame counts: generous to TS-LLaVA, which reads six of them.
        values["flash"].append(start in reading.seen)
        for name, read in (("", read_digit), ("_distance", read_digit_by_distance)):
            right = read(reading.rows_LD, color) == int(case.track.text)
            values[f"digit{name}"].append(right)
            values[f"both{name}"].append(right and start in reading.seen)
    return {key: fmean(each) for key, each in values.items()}


def score_order(cases: Sequence[ClipCase], readings: Sequence[Reading]) -> dict[str, float]:
    """Return how often the reader knows which of two things comes first; a tie counts half."""
    right = []
    for case, reading in zip(cases, readings, strict=True):
        tracks = {track.name: position for position, track in enumerate(case.clip.tracks)}
        starts = {event.track: event for event in case.clip.events}
        pair = [tracks[name] for name in case.questions[0].options]
        pair.sort(key=lambda position: starts[position].start)
        # For things that disappear, the reader looks for where their color is gone.
        sign = 1 if starts[pair[0]].kind == "appear" else -1
        first, second = (find_time(reading, find_color(case.clip.tracks[position]), sign) for position in pair)
        right.append((1 + np.sign(second - first)) / 2)
    return {"order": float(fmean(right))}


def score_direction(cases: Sequence[ClipCase], readings: Sequence[Reading]) -> dict[str, float]:
    """Return how often the reader knows which way a thing moves; without a trace of it a guess counts a fourth."""
    right = []
    for case, reading in zip(cases, readings, strict=True):
        for question in case.questions:
            direction = find_direction(reading, find_color(find_track(case.clip, question)))
            right.append(0.25 if direction is None else float(direction == question.question.short))
    return {"direction": fmean(right)}


_SCORES = {ORDER: score_order, DIRECTION: score_direction}


@functools.cache
def _plate_templates(color: str) -> Floats:
    """Return the patches of the ten digits on plates of a color: [10, 192]."""
    return np.stack([draw_plate(color, digit, PATCH).rgba_hw4[..., :3].reshape(-1) for digit in range(10)])


def _normalize(rows: Floats) -> Floats:
    """Give rows a mean of 0 and a length of 1: what is pooled with a plain ground keeps its pattern."""
    centered = rows - rows.mean(-1, keepdims=True)
    # A plain patch has no pattern, and a length of 0.
    return centered / (np.linalg.norm(centered, axis=-1, keepdims=True) + 1e-6)


def read_digit(rows_LD: Floats, color: str) -> int:
    """Return the digit of the plate whose pattern is most like that of any of the rows, by correlation.

    >>> plate = draw_plate("red", 7, PATCH).rgba_hw4[..., :3].reshape(1, -1)
    >>> read_digit(np.concatenate([np.full_like(plate, 90.0), 0.5 * plate + 40]), "red")
    7
    """
    return int((_normalize(rows_LD) @ _normalize(_plate_templates(color)).T).max(0).argmax())


def read_digit_by_distance(rows_LD: Floats, color: str) -> int:
    """Return the digit of the plate that is nearest to any of the rows, level and contrast included."""
    templates = _plate_templates(color)
    squares_LK = (rows_LD**2).sum(1)[:, None] - 2 * rows_LD @ templates.T + (templates**2).sum(1)
    return int(squares_LK.min(0).argmin())


def find_color(track: Track) -> Floats:
    """Return the mean color of a thing; of a plate, of its ground alone."""
    if track.kind == "plate":
        # The digit stands in the middle, so that a corner is ground.
        return track.layer.rgba_hw4[0, 0, :3]
    return track.layer.rgba_hw4[..., :3].sum((0, 1)) / track.layer.rgba_hw4[..., 3].sum()


def _presence(reading: Reading, color_3: Floats) -> Floats:
    """Return for each row how much nearer it lies to a color than the rows at its place do in the median."""
    colors_L3 = reading.colors_L3
    _, cell_L = np.unique(reading.positions_L3[:, 1:].round(), axis=0, return_inverse=True)
    distances_L = ((colors_L3 - color_3) ** 2).sum(1)
    usual_L = np.zeros(len(colors_L3))
    for cell in range(cell_L.max() + 1):
        rows = cell_L == cell
        usual_L[rows] = ((np.median(colors_L3[rows], axis=0) - color_3) ** 2).sum()
    return usual_L - distances_L


def find_time(reading: Reading, color_3: Floats, sign: int) -> float:
    """Return the frame in which a color appears (sign 1) or is gone (-1) most clearly."""
    return float(reading.positions_L3[(sign * _presence(reading, color_3)).argmax(), 0])


def find_direction(reading: Reading, color_3: Floats) -> str | None:
    """Return the way in which the place of a color changes most with time; None where it does not."""
    weights_L = np.maximum(_presence(reading, color_3), 0) ** 2
    if not weights_L.any():
        return None
    centered_L3 = reading.positions_L3 - np.average(reading.positions_L3, axis=0, weights=weights_L)
    # The covariance of time with row and column: its sign is the direction.
    down, right = (centered_L3[:, :1] * centered_L3[:, 1:] * weights_L[:, None]).sum(0) / weights_L.sum()
    # Rounding leaves traces where nothing moves.
    if max(abs(down), abs(right)) < 1e-6:
        return None
    if abs(down) > abs(right):
        return "down" if down > 0 else "up"
    return "right" if right > 0 else "left"


def score_coverage(path: Path, arms: Mapping[str, Strategy], *, trials: int, seed: int) -> dict[str, float]:
    """Return how often an event of one frame, and a detail of one patch, are left in a real clip's tokens.

    A trial adds full brightness to one frame, or to one patch of all frames; it is left if half of it is in any token.

    Args:
        path: clip, squashed to 24 x 24 patches. arms: strategies that read 50 frames.
    """
    side = 24
    images = read_clip(path, 50, transform=lambda image: squash(image, (side * PATCH, side * PATCH))).frames
    colors_TN3 = torch.stack([cut_patches(np.array(image)[None])[0] for image in images])
    colors_TN3 = colors_TN3.unflatten(2, (PATCH * PATCH, 3)).mean(2)
    count, num_tokens, _ = colors_TN3.shape
    rng = seeds.generator("study slowfast", "coverage", seed)
    marks = {"event": torch.zeros(count, num_tokens, trials), "detail": torch.zeros(count, num_tokens, trials)}
    marks["event"][rng.integers(count, size=trials), :, range(trials)] = 255.0
    marks["detail"][:, rng.integers(num_tokens, size=trials), range(trials)] = 255.0
    values = {}
    for key, how in arms.items():
        before_L13 = aggregate_frames(colors_TN3, how)[:, None]
        # Trials stand in the channels, so that a strategy pools all of them in one pass.
        for name, mark_TNR in marks.items():
            marked = (colors_TN3[:, :, None] + mark_TNR[..., None]).flatten(2)
            change_LR3 = aggregate_frames(marked, how).unflatten(1, (trials, 3)) - before_L13
            values[f"{key}/{name}"] = float((change_LR3.amax((0, 2)) > 127.5).float().mean())
    return values
