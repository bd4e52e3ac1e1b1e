"""Tokens of a video frame by frame, against the official order of operations on the tensor of all frames.

    python -m benchmarks.video_aggregation --out bench

50 frames of 576 tokens of width 4096, the paper's default: 10 slow frames in pairs and all frames on a 4 x 4 grid. The
other side is written plainly here: views of the whole tensor with the width in front, pooled, permuted back and
concatenated. Both give the same rows.
Time is of processor seconds on frames that exist already; memory is the peak of a process that makes each frame when it
is read (the official order needs all of them), above a process without input.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import compare, publish, ratio
from foveate.core.devices import peak_gigabytes
from foveate.video.aggregate import aggregate_frames
from foveate.video.strategies import SlowFast

MAX_TIME_SHARE = MAX_MEMORY_SHARE = 0.3
"""What the frame-by-frame form may take of the official order."""
SIDES = ("no input", "frame by frame", "official order")


def aggregate_officially(frames_TND: Tensor, how: SlowFast) -> Tensor:
    """Aggregate in the order of the official code, with the pools of the paper's default."""
    frames, tokens, width = frames_TND.shape
    side, (rows, columns) = int(tokens**0.5), how.fast or (0, 0)
    slow = frames_TND[torch.linspace(0, frames, how.slow + 1).to(torch.int64)[:-1]]
    slow = F.max_pool1d(slow.permute(0, 2, 1), 2).permute(0, 2, 1).reshape(-1, width)
    maps_DTHW = frames_TND.unflatten(1, (side, side)).permute(3, 0, 1, 2)
    fast = F.adaptive_avg_pool2d(maps_DTHW, (rows, columns)).permute(1, 2, 3, 0).reshape(-1, width)
    return torch.cat([slow, fast])


def make_frames(frames: int, tokens: int, width: int) -> Iterator[Tensor]:
    """Make the tokens of one frame after the other."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(frames):
        yield torch.randn(tokens, width, generator=generator)


@torch.inference_mode()
def run_side(side: str, frames: int, tokens: int, width: int) -> None:
    """Aggregate once on one side."""
    if side == "frame by frame":
        aggregate_frames(make_frames(frames, tokens, width), SlowFast(), num_frames=frames)
    elif side == "official order":
        frames_TND = torch.empty(frames, tokens, width)
        for position, frame_ND in enumerate(make_frames(frames, tokens, width)):
            frames_TND[position] = frame_ND
        aggregate_officially(frames_TND, SlowFast())


def measure_peak(side: str, sizes: tuple[int, int, int]) -> int:
    """Return the peak memory in bytes of a process that aggregates once."""
    command = [sys.executable, "-m", "benchmarks.video_aggregation", "--side", side, "--sizes", *map(str, sizes)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(ended.stdout)["peak_bytes"])


def print_peak(side: str, sizes: tuple[int, int, int]) -> None:
    """Aggregate once and print the peak memory of this process."""
    for each in SIDES:  # both sides load their kernels before, so that these count for neither
        run_side(each, 12, 64, 8)
    run_side(side, *sizes)
    print(json.dumps({"peak_bytes": peak_gigabytes() * 2**30}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", type=int, nargs=3, default=(50, 576, 4096), help="frames, tokens, width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help="print the peak memory of one side, once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = tuple(options.sizes)
    if options.side:
        print_peak(options.side, sizes)
        return
    if options.out is None:
        parser.error("--out: missing")
    peaks = {side: measure_peak(side, sizes) for side in SIDES}
    memory = {side: peaks[side] - peaks["no input"] for side in SIDES[1:]}
    memory_share = memory["frame by frame"] / memory["official order"]

    frames_TND = torch.stack(list(make_frames(*sizes)))
    how = SlowFast()
    with torch.inference_mode():
        difference = float((aggregate_frames(frames_TND, how) - aggregate_officially(frames_TND, how)).abs().max())
        assert difference <= 1e-6, difference
        timings = compare(
            {
                "frame by frame": lambda: aggregate_frames(iter(frames_TND), how, num_frames=len(frames_TND)),
                "official order": lambda: aggregate_officially(frames_TND, how),
            },
            repeats=options.repeats,
        )
    pair = ratio(timings, "frame by frame", "official order", processor=True)
    limits = {"time_share": MAX_TIME_SHARE, "memory_share": MAX_MEMORY_SHARE}
    shares = {"time_share": 1 / pair.value, "memory_share": memory_share}
    publish(
        "video-aggregation",
        timings,
        out=options.out,
        ratios={"frame by frame against the official order": pair},
        items=sizes[0],
        unit="frames",
        extra={"limits": limits, **shares, "peak_bytes": memory, "sizes": sizes, "largest_difference": difference},
    )
    print(f"memory: {memory['frame by frame'] / 1e6:.0f} MB against {memory['official order'] / 1e6:.0f} MB")
    for name, share in shares.items():
        print(f"{name}: {share:.2f} of the official order; limit {limits[name]}")
    if any(shares[name] > limit for name, limit in limits.items()):
        raise SystemExit("a limit is exceeded")


if __name__ == "__main__":
    main()
