"""Generated clips come back from every kind of file as they were written, frame by frame and at their times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.vision.video.reading import read_clip
from foveate.vision.video.sampling import choose_frames
from foveate_labs.worlds.scenes import draw_clip, write_frames

pytest.importorskip("av")


@pytest.mark.parametrize(
    ("name", "tolerance"), [("clip.webp", 0), ("clip.mkv", 0), ("folder", 0), ("clip.mp4", 12), ("clip.gif", 12)]
)
@pytest.mark.parametrize("world", ["still", "direction"])
def test_a_generated_clip_is_read_as_it_was_written(tmp_path: Path, world: str, name: str, tolerance: float) -> None:
    generated = draw_clip(world, seed=1, split="train", index=2, num_frames=20, frame_rate=10, things="shapes")
    frames = list(generated)
    write_frames((frame.pixels_HW3 for frame in frames), tmp_path / name, frame_rate=10)
    # Files have times of their own.
    frame_rate = 10 if name == "folder" else None
    clip = read_clip(tmp_path / name, 20, rule="uniform_mid", frame_rate=frame_rate)
    assert (clip.num_decoded, clip.indices, clip.warnings) == (20, list(range(20)), ())
    np.testing.assert_allclose(clip.times, [frame.seconds for frame in frames], atol=0.006)
    for image, frame in zip(clip.frames, frames, strict=True):
        difference = np.abs(np.asarray(image).astype(int) - frame.pixels_HW3).mean()
        assert difference <= tolerance


def test_cover_finds_the_flash_of_a_still_clip() -> None:
    generated = draw_clip("still", seed=1, split="train", index=2)
    (flash,) = generated.events
    vectors_TD = np.stack([frame.pixels_HW3.mean((0, 1)) for frame in generated])
    assert flash.start in choose_frames(vectors_TD, 4, rule="cover")
