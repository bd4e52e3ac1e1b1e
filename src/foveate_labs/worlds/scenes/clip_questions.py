"""Exact questions on clips, with the frames that hold the answer.

A question's evidence is a list of groups of frames: whoever sees one frame of every group, and its time, can know the
answer; frames outside show nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from foveate_labs.worlds.questions import Form, Question, Way, write_question
from foveate_labs.worlds.scenes.clips import (
    DIRECTIONS,
    FLASH_COLORS,
    MAX_APPEARANCES,
    PLATE_COLORS,
    ClipEvent,
    SceneClip,
)
from foveate_labs.worlds.scenes.language import NUMERALS

CLIP_KINDS = ("text", "flash", "order", "count", "direction")
_NUM_OPTIONS = 5
FORMS = {
    "text": Form(
        (
            "Which digit is on the {x}?",
            "What digit does the {x} show?",
            "Name the digit on the {x}.",
            "The {x}: which digit is on it?",
        ),
        ("What digit is on the {x}?", "Which digit does the {x} show?"),
        "The digit on the {x} is {answer}.",
    ),
    "flash": Form(
        ("What color is the flash?", "Which color does the flash have?", "Name the color of the flash."),
        ("Which color is the flash?", "What color does the flash have?"),
        "The flash is {answer}.",
    ),
    "order: which": Form(
        (
            "Which {happens} {when}, the {first} or the {second}?",
            "What {happens} {when}, the {first} or the {second}?",
            "Of the {first} and the {second}, which {happens} {when}?",
        ),
        ("Of the {first} and the {second}, what {happens} {when}?",),
        "The {answer} {happens} {when}.",
    ),
    "order: next": Form(
        (
            "What {happens} right {when} the {x}?",
            "Which thing {happens} right {when} the {x}?",
            "Right {when} the {x}, what {happens}?",
        ),
        ("Right {when} the {x}, which thing {happens}?",),
        "Right {when} the {x}, the {answer} {happens}.",
    ),
    "count": Form(
        (
            "How many times does the {x} appear?",
            "The {x} appears how many times?",
            "Say how many times the {x} appears.",
        ),
        ("The {x}: how many times does it appear?",),
        "The {x} appears {times}.",
    ),
    "direction": Form(
        (
            "Which way does the {x} move?",
            "In which direction does the {x} move?",
            "The {x} moves in which direction?",
        ),
        ("The {x}: which way does it move?",),
        "The {x} moves {answer}.",
    ),
}


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    """A question on a clip.

    Args:
        question: its `choices` are the options, in random order.
        evidence: groups of frames, ascending; one frame of every group is needed.
    """

    question: Question
    evidence: tuple[tuple[int, ...], ...]

    @property
    def options(self) -> tuple[str, ...]:
        return self.question.choices or ()

    @property
    def answer(self) -> int:
        """Position of the right option."""
        return self.options.index(self.question.short)


def ask_clip(clip: SceneClip, rng: np.random.Generator, *, way: Way = "short") -> list[ClipQuestion]:
    """Ask a clip what its world is for: a digit and the flash, the order, the numbers or the directions.

    Args:
        rng: decides wording, what is asked about and the order of options; questions are a function of clip and rng.
        way: "short" asks for the answer alone; "drawn" at times for a sentence.

    Returns:
        Two questions; prompts of test clips have wordings that no training prompt has.
    """
    asker = _Asker(clip, rng, way)
    ask = {"order": asker.ask_order, "counting": asker.ask_count, "direction": asker.ask_direction}
    # The other two worlds, still and busy, have plates.
    ask.get(clip.world, asker.ask_plates)()
    return asker.questions


class _Asker:
    def __init__(self, clip: SceneClip, rng: np.random.Generator, way: Way) -> None:
        self.clip, self.rng, self.way = clip, rng, way
        self.questions: list[ClipQuestion] = []

    def ask(
        self, form: str, answer: str, wrong: Iterable[str], evidence: Iterable[Iterable[int]], **fields: str
    ) -> None:
        options = [answer, *wrong]
        shuffled = tuple(options[index] for index in self.rng.permutation(len(options)))
        question = write_question(
            *(self.rng, FORMS, form, answer),
            held_out=self.clip.split == "test",
            choices=shuffled,
            fields={"answer": answer, **fields},
            way=self.way,
        )
        self.questions.append(ClipQuestion(question, tuple(tuple(group) for group in evidence)))

    def draw_wrong(self, answer: str, texts: Iterable[str]) -> list[str]:
        others = [text for text in texts if text != answer]
        return [others[index] for index in self.rng.permutation(len(others))[: _NUM_OPTIONS - 1]]

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def list_events(self, *kinds: str) -> list[ClipEvent]:
        return [event for event in self.clip.events if event.kind in kinds]

    def ask_plates(self) -> None:
        (flash,) = self.list_events("flash")
        # Colored plates are the first tracks. The gray ones are only clutter: nothing tells one from another.
        position = int(self.rng.integers(len(PLATE_COLORS)))
        plate = self.clip.tracks[position]
        # Plates never cover one another, so only the flash can hide one.
        visible = (self.clip.draw_owners(flash.start) == position).sum() == plate.layer.solid_hw.sum()
        frames = [index for index in range(len(self.clip)) if visible or index != flash.start]
        self.ask("text", plate.text, self.draw_wrong(plate.text, map(str, range(10))), [frames], x=plate.name)
        color = self.clip.tracks[flash.track].name.split()[0]
        self.ask("flash", color, self.draw_wrong(color, FLASH_COLORS), [[flash.start]])

    def ask_order(self) -> None:
        events = self.list_events("appear", "disappear")
        names = [self.clip.tracks[event.track].name for event in events]
        windows = [range(event.start, event.stop) for event in events]
        happens = f"{events[0].kind}s"
        # Events are sorted by time, and so are the sorted positions of a pair.
        pair = sorted(self.rng.permutation(len(events))[:2].tolist())
        is_last = self.coin()
        answer, other = names[pair[is_last]], names[pair[not is_last]]
        first, second = (answer, other) if self.coin() else (other, answer)
        self.ask(
            *("order: which", answer, [other], [windows[index] for index in pair]),
            happens=happens,
            when="last" if is_last else "first",
            first=first,
            second=second,
        )
        # The middle thing is the answer as often as either end: of four questions, two have it.
        step = 1 if self.coin() else -1
        ends = [index for index in range(len(names)) if 0 <= index + step < len(names)]
        known = ends[int(self.rng.integers(len(ends)))]
        answer = names[known + step]
        wrong = [track.name for track in self.clip.tracks if track.name not in (answer, names[known])]
        when = "after" if step == 1 else "before"
        # All windows are evidence: two alone do not show that nothing happened between them.
        self.ask("order: next", answer, wrong, windows, happens=happens, when=when, x=names[known])

    def ask_count(self) -> None:
        for position, track in enumerate(self.clip.tracks):
            windows = [range(e.start, e.stop) for e in self.list_events("appear") if e.track == position]
            answer = NUMERALS[len(windows)]
            wrong = [NUMERALS[count] for count in range(1, MAX_APPEARANCES + 1) if count != len(windows)]
            times = f"{answer} time{'s' * (len(windows) > 1)}"
            self.ask("count", answer, wrong, windows, x=track.name, times=times)

    def ask_direction(self) -> None:
        for event in self.list_events("move"):
            # Frames of both ends: in long clips, neighboring ones may show the thing at the same pixel.
            third = (event.stop - event.start) // 3
            ends = [range(event.start, event.start + third), range(event.stop - third, event.stop)]
            wrong = [name for name in DIRECTIONS if name != event.direction]
            self.ask("direction", event.direction, wrong, ends, x=self.clip.tracks[event.track].name)
