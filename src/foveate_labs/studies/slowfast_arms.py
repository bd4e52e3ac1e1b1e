"""Arms of the study `slowfast`: strategies, most of them at 256 tokens of 32 frames of 64, and controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from foveate.video.strategies import Strategy, build_strategy
from foveate.vision.video.sampling import SampleRule

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
# Of a real clip: the paper's 50 frames of 24 x 24 tokens.
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
