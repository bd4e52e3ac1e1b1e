"""SlowFast aggregation beside a family's own video input, at about equal numbers of tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.video_families --out bench

Random weights of few layers: it measures cost alone (tokens, time, memory). What the answers are worth needs the
families' own weights. For each family the frames of its own input are as many as fit into the tokens of SlowFast.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from foveate.core.devices import peak_gigabytes
from foveate.core.files import write_json_atomically
from foveate.video.networks import open_network
from foveate.video.strategies import Strategy, parse_how
from foveate.video.viewing import Viewing
from foveate.video.watching import watch
from foveate_labs.worlds.scenes import draw_clip

TESTS = Path(__file__).resolve().parents[1] / "tests"
QUESTION = "what is in the image"
FRAMES = 32


def find_native(network: Any, clip: Any, tokens: int) -> Strategy | None:
    """Return the own video input with the most frames whose tokens are no more than these; None without one."""
    best = None
    if network.watch is None:
        return best
    for frames in (2, 4, 8, 12, 16, 20, 24, 28, 32):  # some processors merge pairs of frames
        how = parse_how("native", frames=frames)
        viewing = watch(network, clip, how=how)
        if len(viewing.video_LD) > tokens:
            return best
        best = how
    return best


def measure(folder: Path, way: str, repeats: int) -> dict[str, Any]:
    """Watch a generated clip and answer one question; return tokens, seconds and memory of this process."""
    network = open_network(folder, device="cpu")
    clip = [frame.pixels_HW3 for frame in draw_clip("order", seed=0, split="test", index=0, num_frames=FRAMES)]
    slowfast = parse_how("slowfast", frames=FRAMES, slow=8, slow_pool="1x1", fast="2x2")
    tokens = len(watch(network, clip, how=slowfast).video_LD)
    how = slowfast if way == "slowfast" else find_native(network, clip, tokens)
    if how is None:
        return {}
    before, seconds, viewing = peak_gigabytes(), list[tuple[float, float]](), None
    for _ in range(repeats):
        start = time.perf_counter()
        viewing = watch(network, clip, how=how)
        watched = time.perf_counter()
        viewing.ask(QUESTION, max_tokens=4)
        seconds.append((watched - start, time.perf_counter() - watched))
    assert isinstance(viewing, Viewing)
    return {
        "frames": len(viewing.clip.indices),
        "tokens": len(viewing.video_LD),
        "watch_seconds": round(min(first for first, _ in seconds), 3),
        "ask_seconds": round(min(second for _, second in seconds), 3),
        "added_megabytes": round(1024 * (peak_gigabytes() - before), 1),
        "peak_megabytes": round(1024 * peak_gigabytes(), 1),
    }


def main() -> None:
    # The tiny models of the tests, which are no package.
    sys.path[:0] = [str(TESTS / folder) for folder in ("", "multimodal", "video")]
    foreign_models: Any = importlib.import_module("foreign_models")
    test_video_families: Any = importlib.import_module("test_video_families")
    # As the released models have, where the tests' tiny ones end at 400.
    foreign_models.TEXT["max_position_embeddings"] = 4096
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WAY"), help="measure one in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), options.one[1], options.repeats)))
        return
    table: dict[str, Any] = {}
    families = sorted({*test_video_families.GRIDS, *test_video_families.WATCHING})
    print("family            way       frames  tokens  watch s  ask s  peak MB")
    with tempfile.TemporaryDirectory() as root:
        for family in families:
            folder = test_video_families.save(family, Path(root) / family)
            for way in ("slowfast", "native"):
                command = [sys.executable, "-m", "benchmarks.video_families", "--one", str(folder), way]
                command += ["--repeats", str(options.repeats)]
                ended = subprocess.run(command, capture_output=True, text=True, check=True)
                row = json.loads(ended.stdout.splitlines()[-1])
                table.setdefault(family, {})[way] = row
                cells = (
                    f"{row['frames']:>6}  {row['tokens']:>6}  {row['watch_seconds']:>7.3f}  {row['ask_seconds']:>5.3f}"
                    f"  {row['peak_megabytes']:>7.0f}"
                    if row
                    else "no video input of its own"
                )
                print(f"{family:<16}  {way:<8}  {cells}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(options.out / "video-families.json", table)


if __name__ == "__main__":
    main()
