"""Clips: the same frames for the same numbers, exact masks and boxes, events where they are said to be, files."""

from __future__ import annotations

import dataclasses
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.shapes import mask_bounds
from foveate_labs.worlds.scenes.clips import (
    DIRECTIONS,
    GRID,
    MIN_FRAMES,
    WORLDS,
    SceneClip,
    SceneFrame,
    draw_clip,
    draw_plate,
    write_frames,
)
from foveate_labs.worlds.scenes.counting import load_countable
from foveate_labs.worlds.scenes.pools import SPLITS
from naming import raises_naming


def draw(world: str, index: int = 0, *, split: str = "train", seed: int = 3, num_frames: int = 32) -> SceneClip:
    # Shapes alone: loading all cut-outs takes seconds.
    return draw_clip(world, seed=seed, split=split, index=index, num_frames=num_frames, things="shapes")


def pixels(clip: SceneClip) -> NDArray[np.uint8]:
    return np.stack([frame.pixels_HW3 for frame in clip])


any_clip = st.builds(
    draw,
    st.sampled_from(WORLDS),
    st.integers(0, 10**6),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 10**6),
    num_frames=st.integers(MIN_FRAMES, 60),
)


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_numbers_give_the_same_frames_in_any_order(world: str) -> None:
    first, again = draw(world), draw(world)
    backwards = [again.frame(index) for index in reversed(range(len(again)))][::-1]
    np.testing.assert_array_equal(pixels(first), [frame.pixels_HW3 for frame in backwards])
    assert first.events == again.events
    assert first.frame(7).pixels_HW3.shape == (64, 64, 3)
    assert first.frame(7).pixels_HW3.dtype == np.uint8
    np.testing.assert_array_equal(first.draw_owners(7), first.frame(7).owners_HW)
    for other in (draw(world, 1), draw(world, seed=4), draw(world, split="test")):
        assert not np.array_equal(first.frame(0).pixels_HW3, other.frame(0).pixels_HW3)
    assert len({first.key, draw(world, 1).key, draw(world, seed=4).key, draw(world, split="test").key}) == 4


@settings(max_examples=12, deadline=None)
@given(any_clip)
def test_boxes_are_the_bounds_of_masks_inside_the_frame(clip: SceneClip) -> None:
    for frame in clip:
        assert frame.seconds == pytest.approx(frame.index / 8)
        for position, track in enumerate(clip.tracks):
            box, bounds = frame.box(position), mask_bounds(frame.mask(position))
            if bounds is None:
                assert box is None
                # Only a flash can hide a thing.
                assert not track.visible_T[frame.index] or any(e.kind == "flash" for e in clip.events)
                continue
            assert track.visible_T[frame.index]
            assert box is not None
            assert (box.x1, box.y1, box.x2, box.y2) == bounds
            assert 0 <= box.x1 < box.x2 <= clip.size
            assert 0 <= box.y1 < box.y2 <= clip.size


@settings(max_examples=12, deadline=None)
@given(any_clip)
def test_things_are_in_sight_where_their_events_are(clip: SceneClip) -> None:
    for position, track in enumerate(clip.tracks):
        events = [event for event in clip.events if event.track == position and event.kind != "cut"]
        inside_T = np.zeros(len(clip), bool)
        for event in events:
            assert 0 <= event.start < event.stop <= len(clip)
            inside_T[event.start : event.stop] = True
        if track.kind == "plate" or not events:
            assert track.visible_T.all()
        else:
            hidden = events[0].kind == "disappear"
            np.testing.assert_array_equal(track.visible_T, inside_T != hidden)
            # Every event can be seen to begin and to end, but for a flash in the first or last frame.
            assert track.kind == "flash" or not inside_T[0]
    cuts = [event.start for event in clip.events if event.kind == "cut"]
    np.testing.assert_array_equal(np.flatnonzero(np.diff(clip.grounds_T)) + 1, cuts)


def test_a_plate_changes_the_pixels_of_its_mask_and_no_others() -> None:
    clip = draw("busy", 5)
    (flash,) = [event for event in clip.events if event.kind == "flash"]
    for position in range(13):
        tracks = list(clip.tracks)
        tracks[position] = dataclasses.replace(tracks[position], visible_T=np.zeros(len(clip), bool))
        without = dataclasses.replace(clip, tracks=tuple(tracks))
        for index in (flash.start, (flash.start + 1) % 32, (flash.start + 14) % 32):
            changed_HW = (clip.frame(index).pixels_HW3 != without.frame(index).pixels_HW3).any(-1)
            if position == flash.track or index != flash.start:
                mask_HW = clip.frame(index).mask(position)
                assert changed_HW.sum() >= 0.9 * mask_HW.sum()
                # The outermost pixels of a flash are transparent enough to count as ground.
                outside_HW = changed_HW & ~mask_HW
                assert outside_HW.sum() <= (0.1 * mask_HW.sum() if position == flash.track else 0)


def read_digit(frame: SceneFrame, position: int, color: str) -> int:
    box = frame.box(position)
    assert box is not None
    patch = frame.pixels_HW3[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)].astype(float)
    return int(
        np.argmin([np.square(patch - draw_plate(color, digit, 8).rgba_hw4[..., :3]).sum() for digit in range(10)])
    )


def test_the_two_worlds_of_plates_differ_in_moves_and_cuts_alone() -> None:
    for index in range(4):
        busy, still = draw("busy", index), draw("still", index)
        assert [(t.name, t.text) for t in busy.tracks] == [(t.name, t.text) for t in still.tracks]
        assert [t.kind for t in still.tracks] == ["plate"] * 12 + ["flash"]
        assert sum(t.name == "gray plate" for t in still.tracks) == 6
        assert len({t.name for t in still.tracks[:6]}) == 6
        flashes = [[event for event in clip.events if event.kind == "flash"] for clip in (busy, still)]
        assert flashes[0] == flashes[1] == list(still.events)
        np.testing.assert_array_equal(still.frame(0).owners_HW >= 0, busy.frame(0).owners_HW >= 0)
        assert busy.grounds_T[-1] == 10
        cells_TP = np.stack([t.corners_T2 // 8 @ [1, GRID] for t in busy.tracks[:12]], 1)
        assert all(len(set(cells)) == 12 for cells in cells_TP.tolist())
        moves = [event for event in busy.events if event.kind == "move"]
        assert {event.start for event in moves} <= set(range(3, 32, 3))
        assert len(moves) > 100, "nearly every plate moves ten times"
        steps = {(event.track, event.start): DIRECTIONS[event.direction] for event in moves}
        for position, track in enumerate(busy.tracks[:12]):
            for time, step in enumerate(np.diff(track.corners_T2, axis=0).tolist(), 1):
                assert tuple(step) == tuple(8 * side for side in steps.get((position, time), (0, 0)))
        flash = flashes[0][0].start
        for clip in (busy, still):
            for frame in (clip.frame((flash + 5) % 32), clip.frame((flash + 17) % 32)):
                digits = [read_digit(frame, i, t.name.split()[0]) for i, t in enumerate(clip.tracks[:12])]
                assert digits == [int(track.text) for track in clip.tracks[:12]]


def test_a_still_clip_changes_by_its_flash_and_grain_alone() -> None:
    clip = draw("still", 2)
    (flash,) = clip.events
    frames_THW3 = pixels(clip).astype(int)
    other = (flash.start + 1) % len(clip)
    changes_T = np.abs(frames_THW3 - frames_THW3[other]).max((1, 2, 3))
    assert changes_T[flash.start] > 60
    assert np.delete(changes_T, flash.start).max() <= 4
    assert len({frame.tobytes() for frame in frames_THW3}) == len(clip)


@pytest.mark.parametrize("index", range(8))
def test_a_thing_that_moves_goes_straight_and_one_way(index: int) -> None:
    clip = draw("direction", index)
    assert [event.kind for event in clip.events] == ["move", "move"]
    for event in clip.events:
        boxes = [clip.frame(time).box(event.track) for time in range(event.start, event.stop)]
        centers_T2 = np.array([((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2) for box in boxes if box])
        assert len(centers_T2) == event.stop - event.start
        path_T = (centers_T2 - centers_T2[0]) @ DIRECTIONS[event.direction]
        assert (np.diff(path_T) > 0).all()
        assert path_T[-1] > 0.4 * clip.size
        across = (centers_T2 - centers_T2[0]) @ DIRECTIONS[event.direction][::-1]
        assert not across.any()


def test_things_of_an_order_have_windows_of_their_own() -> None:
    kinds = set()
    for index in range(8):
        clip = draw("order", index)
        assert len({track.name for track in clip.tracks}) == len(clip.tracks) == 4
        assert [event.track for event in clip.events] == [0, 1, 2]
        kinds |= {event.kind for event in clip.events}
        for event, following in zip(clip.events, clip.events[1:], strict=False):
            assert event.kind == following.kind
            assert event.stop < following.start
    assert kinds == {"appear", "disappear"}


def test_things_that_are_counted_appear_elsewhere_each_time() -> None:
    for index in range(8):
        clip = draw("counting", index)
        assert {event.kind for event in clip.events} == {"appear"}
        assert all(a.stop < b.start for a, b in zip(clip.events, clip.events[1:], strict=False))
        for position in range(2):
            events = [event for event in clip.events if event.track == position]
            assert 1 <= len(events) <= 4
            corners = {tuple(clip.tracks[position].corners_T2[event.start].tolist()) for event in events}
            assert len(corners) == len(events)


def test_test_clips_have_grounds_and_things_of_their_own() -> None:
    train = {track.slice for index in range(6) for track in draw("order", index).tracks}
    test = {track.slice for index in range(12) for track in draw("order", index, split="test").tracks}
    assert train == {"seen"}
    assert test == {"seen", "unseen"}
    mixed = [draw_clip(world, seed=1, split="test", index=0) for world in WORLDS]
    assert all(track.slice for clip in mixed[2:] for track in clip.tracks)
    assert all(clip.frame(20).pixels_HW3.any() for clip in mixed)


def test_things_of_training_cross_the_grounds_of_test_clips() -> None:
    train = {cutout.name for family in load_countable("seen").families for concept in family for cutout in concept}
    for index in range(3):
        clip = draw_clip("direction", seed=0, split="test", index=index, things="seen")
        assert {track.slice for track in clip.tracks} == {"seen"}
        assert {track.name for track in clip.tracks} <= train


def test_a_long_clip_needs_no_more_memory() -> None:
    peaks = []
    for length in (20, 160):
        clip = draw("still", num_frames=length)
        clip.frame(0)
        tracemalloc.start()
        assert sum(1 for _ in clip) == length
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 64 * 64 * 3 * 4  # four frames


def test_larger_clips_show_the_same() -> None:
    small, large = draw("still", 1), draw_clip("still", seed=3, split="train", index=1, size=192, things="shapes")
    for position in range(12):
        np.testing.assert_array_equal(3 * small.tracks[position].corners_T2, large.tracks[position].corners_T2)
        assert small.tracks[position].text == large.tracks[position].text


def test_hostile_numbers_are_named() -> None:
    good = {"seed": 0, "split": "train", "index": 0}
    with raises_naming(UserError, "bussy", "'busy'"):
        draw_clip("bussy", **good)
    with raises_naming(UserError, "trian", "'train'"):
        draw_clip("busy", **{**good, "split": "trian"})
    with raises_naming(UserError, "size", 96):
        draw_clip("busy", **good, size=96)
    with raises_naming(UserError, "size", 0):
        draw_clip("busy", **good, size=0)
    with raises_naming(UserError, "num_frames", 16, MIN_FRAMES):
        draw_clip("busy", **good, num_frames=16)
    with raises_naming(UserError, "frame_rate", "nan"):
        draw_clip("busy", **good, frame_rate=float("nan"))
    with raises_naming(UserError, "shape", "'shapes'"):
        draw_clip("busy", **good, things="shape")
    for index in (-1, 32):
        with raises_naming(UserError, "frame", index, 31):
            draw("busy").frame(index)


def read_images(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


def test_frames_come_back_from_files(tmp_path: Path) -> None:
    clip = draw("still", num_frames=20)
    frames_THW3 = pixels(clip)
    for path in (tmp_path / "clip.webp", str(tmp_path / "clip.gif"), tmp_path / "folder"):
        write_frames((frame.pixels_HW3 for frame in clip), path)
    np.testing.assert_array_equal(read_images(tmp_path / "clip.webp"), frames_THW3)
    gif = read_images(tmp_path / "clip.gif")
    assert gif.shape == frames_THW3.shape
    assert np.abs(gif.astype(int) - frames_THW3).mean() < 8
    images = sorted((tmp_path / "folder").iterdir())
    assert [path.name for path in images] == [f"{index:06d}.png" for index in range(20)]
    np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in images], frames_THW3)


@pytest.mark.parametrize(("name", "tolerance"), [("clip.mkv", 0), ("clip.mp4", 12)])
def test_video_files_open_in_pyav(tmp_path: Path, name: str, tolerance: float) -> None:
    av = pytest.importorskip("av")
    clip = draw("direction", num_frames=20)
    write_frames((frame.pixels_HW3 for frame in clip), tmp_path / name, frame_rate=12.5)
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].average_rate == 12.5
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == len(clip)
    assert np.abs(np.stack(frames).astype(int) - pixels(clip)).mean() <= tolerance


def test_hostile_targets_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)

    def broken():  # noqa: ANN202
        yield frame
        raise UserError("no more frames")

    for name in ("clip.gif", "clip.mkv", "folder"):
        with raises_naming(UserError, "no more frames"):
            write_frames(broken(), tmp_path / name)
    with raises_naming(UserError, "clip.mp4", "63 x 64"):
        write_frames([frame[:, :63]], tmp_path / "clip.mp4")
    with raises_naming(UserError, ".mp5", "'.mp4'"):
        write_frames([frame], tmp_path / "clip.mp5")
    with raises_naming(UserError, "clip.gif"):
        write_frames([], tmp_path / "clip.gif")
    for name in ("clip.gif", "clip.mkv", "folder"):
        with raises_naming(UserError, name, "frame 1", "(64, 63, 3)"):
            write_frames([frame, frame[:, :63]], tmp_path / name)
    for rate in (0, -1, float("inf")):
        with raises_naming(UserError, "frame_rate", rate):
            write_frames([frame], tmp_path / "clip.gif", frame_rate=rate)
    monkeypatch.setitem(sys.modules, "av", None)
    with raises_naming(UserError, ".mp4", "foveate[video]"):
        write_frames([frame], tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder").mkdir()
    with raises_naming(UserError, tmp_path / "folder"):
        write_frames([frame], tmp_path / "folder")
