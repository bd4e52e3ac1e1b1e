"""Clips made hostile: every container that is read, animated images, and options at their edges."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from fuzz_decoding import check_words
from fuzz_run import Target, Trial
from fuzz_values import damaged
from PIL import Image

from foveate.vision.video.reading import read_clip
from foveate.vision.video.sources import BadClip
from video_files import moving_square, write_clip


@functools.cache
def whole() -> tuple[tuple[str, bytes], ...]:
    """One small clip of each container and codec, with its suffix."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-clips-"))
    frames = moving_square(12, width=48, height=32)
    for name, codec, pixel_format in (
        ("a.mp4", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("b.webm", "libvpx", "yuv420p"),
        ("a.mkv", "ffv1", "bgra"),
        ("b.mkv", "libx264", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("b.avi", "mjpeg", "yuvj420p"),
        ("a.mov", "qtrle", "argb"),
        ("a.ts", "mpeg2video", "yuv420p"),
        ("a.flv", "flv", "yuv420p"),
    ):
        write_clip(folder / name, frames, codec=codec, pixel_format=pixel_format)
    write_clip(folder / "front.mp4", frames, container={"movflags": "faststart"})
    write_clip(folder / "parts.mp4", frames, container={"movflags": "frag_keyframe+empty_moov"})
    images = [Image.fromarray(frame) for frame in frames]
    for suffix in ("gif", "webp", "png"):
        images[0].save(folder / f"a.{suffix}", save_all=True, append_images=images[1:], duration=40)
    clips = tuple((path.suffix, path.read_bytes()) for path in sorted(folder.iterdir()))
    shutil.rmtree(folder)
    return clips


def clips(trial: Trial) -> str:
    """A damaged clip, read strictly and with what can be decoded."""
    random = trial.random
    suffix, data = random.choice(whole())
    path = trial.folder / f"clip{random.choice((suffix, suffix, '.txt', ''))}"
    path.write_bytes(damaged(random, data))
    span = random.choice(((None, None), (0.3, None), (None, 0.7), (0.2, 0.9)))
    rule, fps = random.choice((("official", None), ("uniform_mid", None), ("fps", 3.0)))
    options = {"start": span[0], "end": span[1], "rule": rule, "fps": fps}
    trial.note((suffix, options))
    outcome, num_decoded = "read", 0
    try:
        num_decoded = read_clip(path, 5, **options).num_decoded
    except BadClip as problem:
        check_words(problem)
        outcome = problem.reason
    clip = read_clip(path, 5, allow_damaged=True, **options)
    assert len(clip.frames) == len(clip.indices) == len(clip.times) <= 5
    assert all(frame.mode == "RGB" for frame in clip.frames)
    assert outcome != "read" or clip.num_decoded == num_decoded, "another number of frames in the second reading"
    return outcome


CLIPS = {"clips": Target("clips", clips)}
