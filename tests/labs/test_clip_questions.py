"""Questions on clips: their evidence is enough for a reader of frames, and nothing else is; nothing can be guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from foveate.core.seeds import generator
from foveate.metrics.answers import evidence_recall
from foveate_labs.worlds.scenes.clip_questions import CLIP_KINDS, FORMS, ClipQuestion, ask_clip
from foveate_labs.worlds.scenes.clips import DIRECTIONS, FLASH_COLORS, WORLDS, SceneClip, draw_clip, draw_plate
from foveate_labs.worlds.scenes.language import NUMERALS
from foveate_labs.worlds.scenes.shapes import COLORS

CLIPS = 24


def ask(world: str, index: int, split: str = "train") -> tuple[SceneClip, list[ClipQuestion]]:
    clip = draw_clip(world, seed=8, split=split, index=index, things="shapes")
    return clip, ask_clip(clip, generator("questions", clip.key))


@pytest.fixture(scope="module")
def asked() -> list[tuple[SceneClip, ClipQuestion]]:
    return [(clip, q) for world in WORLDS for index in range(CLIPS) for clip, qs in [ask(world, index)] for q in qs]


def find_track(clip: SceneClip, name: str) -> int:
    return [track.name for track in clip.tracks].index(name)


def find_named(clip: SceneClip, question: ClipQuestion) -> list[int]:
    """Tracks that the prompt names, in its order."""
    names = re.findall("|".join(track.name for track in clip.tracks), question.question.prompt)
    return [find_track(clip, name) for name in names]


def read_text(clip: SceneClip, question: ClipQuestion, frames: list[int]) -> str:
    (position,) = find_named(clip, question)
    frame = clip.frame(frames[0])
    box = frame.box(position)
    assert box is not None
    patch = frame.pixels_HW3[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)].astype(float)
    plates = [draw_plate(clip.tracks[position].name.split()[0], digit, 8).rgba_hw4[..., :3] for digit in range(10)]
    return str(int(np.argmin([np.square(patch - plate).sum() for plate in plates])))


def read_flash(clip: SceneClip, question: ClipQuestion, frames: list[int]) -> str:
    frame = clip.frame(frames[0])
    color = np.median(frame.pixels_HW3[frame.mask(12)], axis=0)
    return min(FLASH_COLORS, key=lambda name: float(np.square(color - COLORS[name]).sum()))


def happens_in(clip: SceneClip, question: ClipQuestion, position: int, frame: int) -> bool:
    return clip.frame(frame).mask(position).any() != ("disappear" in question.question.prompt)


def read_order(clip: SceneClip, question: ClipQuestion, frames: list[int]) -> str:
    prompt, named = question.question.prompt, find_named(clip, question)
    times = {position: t for t in sorted(frames) for position in range(4) if happens_in(clip, question, position, t)}
    # What is in sight all the time neither appears nor disappears.
    times.pop(3, None)
    if question.question.form == "order: which":
        ordered = sorted(named, key=lambda position: times[position])
        return clip.tracks[ordered[-1] if "last" in prompt else ordered[0]].name
    ordered = sorted(times, key=lambda position: times[position])
    step = 1 if re.search("after", prompt, re.IGNORECASE) else -1
    return clip.tracks[ordered[ordered.index(named[0]) + step]].name


def read_count(clip: SceneClip, question: ClipQuestion, frames: list[int]) -> str:
    (position,) = find_named(clip, question)
    return NUMERALS[len({clip.frame(index).box(position) for index in frames} - {None})]


def read_direction(clip: SceneClip, question: ClipQuestion, frames: list[int]) -> str:
    (position,) = find_named(clip, question)
    first, last = (clip.frame(index).box(position) for index in sorted(frames))
    assert first is not None
    assert last is not None
    shift = np.array([last.x1 + last.x2 - first.x1 - first.x2, last.y1 + last.y2 - first.y1 - first.y2])
    return max(DIRECTIONS, key=lambda name: float(shift @ DIRECTIONS[name]))


READERS: dict[str, Callable[[SceneClip, ClipQuestion, list[int]], str]] = {
    "text": read_text,
    "flash": read_flash,
    "order": read_order,
    "count": read_count,
    "direction": read_direction,
}


def test_one_frame_of_every_group_is_enough(asked: list[tuple[SceneClip, ClipQuestion]]) -> None:
    rng = generator("frames")
    for clip, question in asked:
        frames = [int(group[rng.integers(len(group))]) for group in question.evidence]
        read = READERS[question.question.kind](clip, question, frames)
        assert read == question.question.short == question.options[question.answer], (clip.key, question)
        assert evidence_recall([question.evidence], [frames]) == 1


def test_other_frames_show_nothing_of_it(asked: list[tuple[SceneClip, ClipQuestion]]) -> None:
    for clip, question in asked[::6]:
        kind = question.question.kind
        inside = set().union(*question.evidence)
        assert inside <= set(range(len(clip)))
        assert all(list(group) == sorted(set(group)) for group in question.evidence)
        for index in set(range(len(clip))) - inside:
            frame = clip.frame(index)
            if kind == "flash":
                assert not frame.mask(12).any()
            elif kind == "text":
                (position,) = find_named(clip, question)
                assert frame.mask(position).sum() < 64
            elif kind == "count":
                assert not frame.mask(find_named(clip, question)[0]).any()
            elif kind == "order":
                thing = range(3) if question.question.form == "order: next" else find_named(clip, question)
                assert not any(happens_in(clip, question, position, index) for position in thing)
            else:
                # Between both ends of its way a thing is in sight, but a frame alone has no direction.
                between = min(inside) < index < max(inside)
                assert frame.mask(find_named(clip, question)[0]).any() == between


def test_groups_do_not_overlap_and_one_missing_group_hides_the_answer(
    asked: list[tuple[SceneClip, ClipQuestion]],
) -> None:
    for clip, question in asked:
        frames = [index for group in question.evidence for index in group]
        assert len(frames) == len(set(frames))
        for group in question.evidence:
            assert evidence_recall([question.evidence], [set(range(len(clip))) - set(group)]) == 0


def test_every_kind_is_asked_with_distinct_options(asked: list[tuple[SceneClip, ClipQuestion]]) -> None:
    assert {question.question.kind for _, question in asked} == set(CLIP_KINDS)
    for clip, question in asked:
        assert len(set(question.options)) == len(question.options) >= 2
        assert question.question.answer == question.question.short
        assert "{" not in question.question.prompt
        assert len(ask_clip(clip, generator("any"))) == 2


def test_neither_position_nor_frequency_gives_answers_away() -> None:
    positions: dict[str, Counter[int]] = {}
    answers: dict[str, Counter[str]] = {}
    mentioned: list[bool] = []
    for world in WORLDS:
        for index in range(120):
            for question in ask(world, index)[1]:
                form = question.question.form
                positions.setdefault(form, Counter())[question.answer] += 1
                answers.setdefault(form, Counter())[question.question.short] += 1
                if form == "order: which":
                    first = min(question.options, key=question.question.prompt.index)
                    mentioned.append(first == question.question.short)
    frequencies = [answers[form] for form in ("text", "flash", "count", "direction")]
    for counts in [*positions.values(), *frequencies]:
        expected, free = counts.total() / len(counts), len(counts) - 1
        chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi_square < free + 5 * np.sqrt(2 * free), counts
    assert [len(counts) for counts in frequencies] == [10, 6, 4, 4]
    assert 0.38 < np.mean(mentioned) < 0.62


def test_questions_are_a_function_of_clip_and_generator() -> None:
    for world in WORLDS:
        clip, questions = ask(world, 3)
        assert questions == ask(world, 3)[1]
        assert any(questions != ask_clip(clip, generator("other", index)) for index in range(3))


def test_wordings_of_tests_are_new_and_their_words_are_not() -> None:
    training = {word for form in FORMS.values() for text in form.training for word in re.findall(r"\w+", text.lower())}
    for form in FORMS.values():
        assert not set(form.training) & set(form.held_out)
        assert {word for text in form.held_out for word in re.findall(r"\w+", text.lower())} <= training
    # The shapes and colors of a clip stand where the forms have braces.
    for world in WORLDS:
        forms = {question.question.form for index in range(8) for question in ask(world, index, "test")[1]}
        assert forms <= set(FORMS)
    clip = draw_clip("counting", seed=1, split="test", index=0, things="shapes")
    sentences = [q.question.answer for i in range(20) for q in ask_clip(clip, generator(i), way="sentence")]
    assert all(sentence.endswith(("time.", "times.")) for sentence in sentences)
