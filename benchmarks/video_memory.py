"""Peak memory from a clip to its tokens, at 50 frames and at 1,000, beside that of a list of the frames.

    python -m benchmarks.video_memory --out bench

A generated clip of 1,200 frames, 640 x 360. The strategy is `mean`, whose tokens are as many for any number of frames.
One process reads 50 frames twice, then 1,000, then the list: what each adds to the peak before it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from foveate.core.devices import peak_gigabytes
from foveate.core.files import write_json_atomically

MAX_GROWTH = 20.0
"""Megabytes that 1,000 frames may take above 50."""
_CLIP_FRAMES = 1200


def write_clip(path: Path) -> Path:
    """Write a clip of moving stripes."""
    import av
    import numpy as np

    columns_W = np.arange(640)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for index in range(_CLIP_FRAMES):
            row_W = ((columns_W + 3 * index) % 256).astype(np.uint8)
            pixels = np.ascontiguousarray(np.broadcast_to(row_W[None, :, None], (360, 640, 3)))
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return path


def measure(model: str, clip: Path, frames: tuple[int, int]) -> dict[str, float]:
    """Return the megabytes that many frames, and a list of them, add to the peak memory of this process."""
    import torch

    from foveate.video.networks import open_network
    from foveate.video.strategies import parse_how
    from foveate.video.watching import watch
    from foveate.vision.video.reading import read_clip

    torch.set_num_threads(1)
    network = open_network(model, device="cpu")
    peaks, num_tokens = [], set()
    for count in (frames[0], *frames):
        viewing = watch(network, clip, how=parse_how("mean", frames=count))
        assert len(viewing.clip.indices) == count
        num_tokens.add(len(viewing.video_LD))
        peaks.append(peak_gigabytes() * 2**30 / 1e6)
    assert len(num_tokens) == 1
    images = read_clip(clip, frames[1]).frames
    peaks.append(peak_gigabytes() * 2**30 / 1e6)
    assert len(images) == frames[1]
    return {"few": peaks[1], "many": peaks[2], "growth": peaks[2] - peaks[1], "list": peaks[3] - peaks[2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--frames", type=int, nargs=2, default=(50, 1000))
    parser.add_argument("--clip", type=Path, help="measure this clip in this process, and print the result")
    options = parser.parse_args()
    frames = tuple(options.frames)
    if options.clip:
        print(json.dumps(measure(options.model, options.clip, frames)))
        return
    if options.out is None:
        parser.error("--out: missing")
    with tempfile.TemporaryDirectory() as folder:
        # A process of its own: the peak of this one has that of writing the clip.
        clip = write_clip(Path(folder) / "clip.mp4")
        command = [sys.executable, "-m", "benchmarks.video_memory", "--clip", str(clip), "--model", options.model]
        ended = subprocess.run([*command, "--frames", *map(str, frames)], capture_output=True, text=True, check=True)
    megabytes = json.loads(ended.stdout.splitlines()[-1])
    print(
        f"{frames[0]} frames: peak {megabytes['few']:.0f} MB; {frames[1]}: {megabytes['growth']:.1f} MB more; "
        f"a list of them: {megabytes['list']:.0f} MB more"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"kind": "benchmark", "name": "video-memory", "machine": machine(), "frames": frames}
    write_json_atomically(options.out / "video-memory.json", {**result, "limit": MAX_GROWTH, "megabytes": megabytes})
    if megabytes["growth"] > MAX_GROWTH:
        raise SystemExit(f"memory grows by {megabytes['growth']:.0f} MB; expected at most {MAX_GROWTH:.0f}")


if __name__ == "__main__":
    main()
