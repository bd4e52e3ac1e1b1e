"""The tour's clip: when and where the shipped encoder sees a phrase, beside the truth and an absent phrase."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from foveate.core.runs import RunFolder
from foveate.records.boxes import intersection_over_union, normalize_box
from foveate.records.text import split_words
from foveate.search.calibration import TextCache
from foveate.search.locate import PhraseBoxes, locate_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.video.reading import read_clip
from foveate_labs.studies.results import TourFrame, TourVideo
from foveate_labs.worlds.scenes.clips import SceneClip, draw_clip, write_frames

WORLD, FILE = "direction", "clip.webp"  # two things cross the frame, one after another; WebP needs no extra
SIDE, NUM_FRAMES = 256, 32
NUM_IMAGES = 8  # half of them show the thing
NUM_OTHERS = 8  # clips among whose things an absent one is looked for
TRACK = 0  # the thing that is searched for; the other one is in the clip as well


def tour_video(
    run: RunFolder, localizer: LocalizingModel, *, seed: int, num_frames: int = NUM_FRAMES
) -> dict[str, Any]:
    """Write a clip, find a thing of it and one that it does not show; return the result for the page."""
    clip, absent = draw_tour_clip(seed, num_frames=num_frames)
    path = run.path / FILE
    write_frames((frame.pixels_HW3 for frame in clip), path, frame_rate=clip.frame_rate)
    read = read_clip(path, len(clip), rule="uniform_mid")  # each frame once
    # Both phrases at once: each frame is encoded for both.
    phrases, cache = [clip.tracks[TRACK].name, absent], TextCache()
    located, control = zip(
        *(locate_phrases(localizer, _encode(frame), phrases, seed=seed, cache=cache) for frame in read.frames),
        strict=True,
    )
    visible_T = clip.tracks[TRACK].visible_T
    images = {}
    (run.path / "images").mkdir(exist_ok=True)
    for frames in (np.flatnonzero(visible_T), np.flatnonzero(~visible_T)):
        for index in frames[np.linspace(0, len(frames) - 1, NUM_IMAGES // 2).round().astype(int)].tolist():
            images[index] = f"images/video-{index:03d}.webp"
            read.frames[index].save(run.path / images[index], "WEBP", quality=80)
    return compare_with_truth(clip, located, control, read.times, images=images).to_json()


def _encode(frame: Image.Image) -> bytes:
    buffer = io.BytesIO()
    frame.save(buffer, "PNG")
    return buffer.getvalue()


def draw_tour_clip(seed: int, *, num_frames: int = NUM_FRAMES) -> tuple[SceneClip, str]:
    """Draw the clip of a seed; return it with the name of a thing of training scenes that it does not show."""
    clip, *others = (
        draw_clip(WORLD, seed=seed, split="test", index=index, size=SIDE, num_frames=num_frames, things="seen")
        for index in range(NUM_OTHERS)
    )
    # The names share no word: a thing of the same color or kind would blur what "absent" means.
    present = {word for track in clip.tracks for word in split_words(track.name, style="letters")}
    names = (track.name for other in others for track in other.tracks)
    return clip, next(name for name in names if not present & set(split_words(name, style="letters")))


def compare_with_truth(
    clip: SceneClip,
    located: Sequence[PhraseBoxes],
    control: Sequence[PhraseBoxes],
    times: Sequence[float],
    *,
    images: Mapping[int, str] = MappingProxyType({}),
) -> TourVideo:
    """Measure boxes of the clip's phrase, and of an absent one, against the thing's boxes in the frames that show it.

    Args:
        located, control: of every frame. images: files of some of them.
    """
    rows = []
    for index, (phrase_boxes, control_boxes) in enumerate(zip(located, control, strict=True)):
        true_box = clip.frame(index).box(TRACK)
        rows.append(
            TourFrame(
                image=images.get(index, ""),
                time=times[index],
                box=phrase_boxes.box,
                true_box=normalize_box(true_box, clip.size, clip.size) if true_box else None,
                score=phrase_boxes.cosine,
                control_score=control_boxes.cosine,
            )
        )
    in_sight = [index for index, row in enumerate(rows) if row.true_box]
    # As many frames as show the thing: a perfect ranking has exactly those.
    best = sorted(range(len(rows)), key=lambda index: -rows[index].score)[: len(in_sight)]
    truth_R4 = np.array([rows[index].true_box for index in in_sight])

    def mean_iou(boxes: list[list[float]]) -> float:
        return round(float(intersection_over_union(np.array(boxes), truth_R4).mean()), 3)

    return TourVideo(
        file=FILE,
        phrase=located[0].phrase,
        absent=control[0].phrase,
        frames=rows,
        in_sight=len(in_sight),
        start=times[in_sight[0]],
        # The last frame lasts until the next one.
        end=times[in_sight[-1]] + 1 / clip.frame_rate,
        best_in_sight=len(set(best) & set(in_sight)),
        iou=mean_iou([located[index].box for index in in_sight]),
        absent_iou=mean_iou([control[index].box for index in in_sight]),
        center_iou=mean_iou([located[index].boxes["center"] for index in in_sight]),
    )
