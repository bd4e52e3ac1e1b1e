"""The tour's clip: its truth is the thing's boxes, its control is a thing that it does not show."""

from __future__ import annotations

import pytest

from foveate.search.locate import PhraseBoxes
from foveate_labs.tour.video import NUM_FRAMES, TRACK, compare_with_truth, draw_tour_clip
from foveate_labs.worlds.scenes.clips import SceneClip

CENTER = [0.25, 0.25, 0.75, 0.75]


def place(clip: SceneClip, index: int, *, score: float | None) -> PhraseBoxes:
    """Locate the thing exactly where it is, and in the whole frame where it is not."""
    box = clip.frame(index).box(TRACK)
    corners = [0.0, 0.0, 1.0, 1.0] if box is None else [edge / clip.size for edge in (box.x1, box.y1, box.x2, box.y2)]
    return PhraseBoxes("x", "head", {"head": corners, "center": CENTER}, {"head": score}, clip.size, clip.size)


@pytest.fixture(scope="module")
def clip() -> SceneClip:
    return draw_tour_clip(0)[0]


def test_the_absent_thing_is_in_no_frame() -> None:
    for seed in range(2):
        clip, absent = draw_tour_clip(seed)
        names = {word for track in clip.tracks for word in track.name.split()}
        assert absent
        assert not names & set(absent.split())
        assert len(clip) == NUM_FRAMES


def test_boxes_and_scores_are_compared_with_the_truth(clip: SceneClip) -> None:
    visible = clip.tracks[TRACK].visible_T
    times = [index / clip.frame_rate for index in range(len(clip))]
    located = [place(clip, index, score=0.5 if visible[index] else 0.1) for index in range(len(clip))]
    # The control always answers with the whole frame, without area once.
    whole = {"head": [0.0, 0.0, 1.0, 1.0], "center": CENTER}
    control = [PhraseBoxes("y", "head", whole, {"head": None if i else 0.2}, 256, 256) for i in range(len(clip))]
    result = compare_with_truth(clip, located, control, times)
    assert result.in_sight == visible.sum() == result.best_in_sight
    assert result.iou == 1
    assert 0 < result.absent_iou < 0.5
    assert [frame.true_box is not None for frame in result.frames] == visible.tolist()
    (event,) = [event for event in clip.events if event.track == TRACK]
    assert (result.start, result.end) == (event.start / clip.frame_rate, event.stop / clip.frame_rate)
    assert (result.frames[0].control_score, result.frames[1].control_score) == (0.2, -1)

    # Scores that are highest where the thing is out of sight.
    wrong = [place(clip, index, score=0.1 if visible[index] else 0.5) for index in range(len(clip))]
    assert compare_with_truth(clip, wrong, control, times).best_in_sight == 0
