"""Questions on generated images: prompts for training, others for tests, answers in a word or in a sentence."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foveate.core.seeds import pick, uniform
from foveate.multimodal.wordings import load_wordings
from foveate.records.builtin.families import load_concepts
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn
from foveate.records.shapes import Shape
from foveate_labs.worlds.builtin import SEEN, concept_slice

# Words for generated documents and screens, from the names of the built-in cut-outs; some are only for tests.


HELD_OUT_SHARE = 0.2
FIRST_NAMES = (
    "Anna Ben Clara David Elena Felix Greta Hugo Ida Jonas Karla Leo Mira Nils Olga Paul Rosa Simon Tara Uwe".split()
)
LAST_NAMES = (
    "Adler Baker Costa Dahl Ek Fischer Gomez Hale Ivanov Jansen Keller Lind Moreau Novak Okoye Perez Quinn".split()
)
PLACES = (
    "Harbor Garden Mill Bridge Corner Station Market Castle Forest River Hill Meadow Tower Valley Island Lake".split()
)
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
VERBS = "finds carries paints sells follows repairs borrows hides counts brings watches orders".split()
ADJECTIVES = "old new quiet heavy small bright broken clean early narrow open plain round sharp warm late".split()


@functools.cache
def list_nouns(*, held_out: bool) -> tuple[str, ...]:
    """List single words for things, of training or of tests."""
    nouns = [name for name in load_concepts() if name.isalpha() and len(name) <= 11 and concept_slice(name) == SEEN]
    return tuple(name for name in sorted(nouns) if is_held_out(name) == held_out)


def is_held_out(word: str) -> bool:
    """Whether documents of training never have this word."""
    return uniform("document words", 1, word.lower()) < HELD_OUT_SHARE


def pick_some(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    """Draw different texts in random order."""
    return [items[int(index)] for index in rng.permutation(len(items))[:count]]


def split_names(names: Sequence[str], *, held_out: bool) -> list[str]:
    """Return the names of training or of tests."""
    return [name for name in names if is_held_out(name) == held_out]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its exact answer.

    Args:
        kind: such as "name", "where", "count", "read".
        form: the kind and the way of asking.
        prompt: holds `<region>` where a region is meant; `<image>` only if there are several images.
        answer: in the form that the prompt asks for: alone, or in a sentence.
        short: the answer alone.
        regions: those of the prompt, then those of the answer, in pixels of the image.
        choices: the possible short answers of a two-way question or of one among several images, else None.
        examples: (prompt, answer) of earlier turns, for few-shot episodes.
    """

    kind: str
    form: str
    prompt: str
    answer: str
    short: str
    regions: tuple[Shape, ...] = ()
    choices: tuple[str, ...] | None = None
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Form:
    """Prompts of one form of question, and the answer as a sentence (by short answer, if it is "yes" or "no")."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    sentence: str | Mapping[str, str]


# Each verb asks for both: a model trained with "Answer in" before sentences alone takes that for the request.
_ALONE = (
    ("", "", "", " Answer briefly.", " Use one phrase.", " Answer in few words.", " Answer with one phrase."),
    ("", " Answer in one phrase."),
)
_SENTENCE = (
    (" Answer in a sentence.", " Use a full sentence.", " Answer with a full sentence.", " Write one full sentence."),
    (" Answer in a full sentence.", " Use a sentence."),
)
SENTENCE_SHARE = 0.25
Way = Literal["drawn", "short", "sentence"]


def list_endings() -> list[str]:
    """List what may stand behind a question to say in which form its answer shall be."""
    return sorted({ending.strip() for group in (*_ALONE, *_SENTENCE) for ending in group if ending})


# In the ids of questions that are all worded like people's, so that evaluations report them by themselves.
PEOPLE = "people"
# What people put around a question; only training has them, so that words around one that it has not seen say nothing.
_BEFORE = (
    "Please: ",
    "Hello! ",
    "OK, ",
    "Now, ",
    "Question: ",
    "Excuse me, ",
    "In this picture: ",
    "One more: ",
    "So, ",
)
_BEHIND = (" Thanks.", " Thank you!", " Please.", " please", " Thx", " I can't see it.", " Just tell me.", "??", " :)")


def word_like_people(rng: np.random.Generator, form: str, *, held_out: bool, fields: Mapping[str, str]) -> str:
    """Word a question of `form` like people do, from the half of their wordings that training has, or from the other.

    Wordings of training are varied further: words around them, small letters, no stop at the end.
    """
    wordings = load_wordings()[form]["unseen" if held_out else "seen"]
    if form == "position" and fields["side"] not in ("left", "right"):
        # Whoever names no side means left and right.
        wordings = tuple(wording for wording in wordings if "{first}" in wording)
    prompt = pick(rng, wordings).format(**fields)
    if held_out:
        return prompt
    share = rng.random(3)
    if share[0] < 0.15:
        prompt = pick(rng, _BEFORE) + prompt
    if share[1] < 0.1:
        prompt = prompt.lower()
    if share[2] < 0.15:
        prompt = prompt.rstrip(".?") + (pick(rng, _BEHIND) if share[2] < 0.1 else "")
    return prompt


def write_question(
    rng: np.random.Generator,
    forms: Mapping[str, Form],
    form: str,
    short: str,
    *,
    held_out: bool,
    regions: tuple[Shape, ...] = (),
    choices: tuple[str, ...] | None = None,
    fields: Mapping[str, str],
    way: Way = "drawn",
    people: float = 0.0,
) -> Question:
    """Word a question of `form`, a key of `forms`, whose answer is `short`.

    Args:
        held_out: take the prompts that no training text has.
        regions: the regions of the prompt, then of the answer.
        fields: what the prompts and sentences of the form name.
        way: "drawn" asks for a short answer or a sentence; the others always answer so, and ask for nothing.
        people: share of questions that are worded like people's, see `word_like_people`.
    """
    wording = forms[form]
    # Without a draw where there is no share: questions of existing collections stay as they are.
    is_like_people = people > 0 and rng.random() < people
    if is_like_people:
        prompt = word_like_people(rng, form, held_out=held_out, fields=fields)
        # People do not say how long an answer they want; a test of their wordings leaves it to the model.
        way = "short" if way == "drawn" and (held_out or rng.random() < 0.5) else way
    else:
        prompt = pick(rng, wording.held_out if held_out else wording.training).format(**fields)
    wish, in_sentence = "", way == "sentence"
    if way == "drawn":
        in_sentence = rng.random() < SENTENCE_SHARE
        # The wish also has a held-out wording, for tests.
        wish = pick(rng, (_SENTENCE if in_sentence else _ALONE)[held_out])
    sentence = wording.sentence if isinstance(wording.sentence, str) else wording.sentence[short]
    answer = sentence.format(**fields) if in_sentence else short
    return Question(form.split(":")[0], form, prompt + wish, answer, short, regions, choices)


def to_conversation(
    question: Question, *, id: str, images: tuple[str, ...], group: str = "", source: str = "scenes"
) -> Conversation:
    """Make a conversation of a question; a prompt without `<image>` gets it in front.

    Args:
        images: record keys of the images in the order of the prompt.
        group: of the training mixture; by default by what is asked.
    """
    prompts = [prompt for prompt, _ in question.examples] + [question.prompt]
    replies = [answer for _, answer in question.examples] + [question.answer]
    if IMAGE not in "".join(prompts):
        prompts[0] = f"{IMAGE}\n{prompts[0]}"
    turns: list[Turn] = []
    regions = list(question.regions)
    for prompt, answer in zip(prompts, replies, strict=True):
        for role, text in (("user", prompt), ("assistant", answer)):
            # Counted in the text, because `regions` lists those of prompts and answers one after another.
            count = text.count(REGION)
            turns.append(Turn(role, text, tuple(regions[:count])))
            regions = regions[count:]
    group = group or _choose_group(question, len(images))
    # A judge of answers compares with the short one, however the answer is worded.
    answers = (question.short,) if question.short != question.answer and REGION not in question.short else ()
    return Conversation(id, images, tuple(turns), group, source, answers, question.choices or ())


def _choose_group(question: Question, num_images: int) -> str:
    return "multi-image" if num_images > 1 else "refer-ground" if question.regions else "general"


class QuestionWriter:
    """Collect questions on one image; the base of what asks about documents and screens.

    Args:
        forms: by name.
        rng: decides wording, choice and which of two answers is true.
        held_out: take the prompts that no training text has.
    """

    def __init__(self, forms: Mapping[str, Form], rng: np.random.Generator, *, held_out: bool) -> None:
        self.forms, self.rng, self.held_out = forms, rng, held_out
        self.questions: list[Question] = []

    def coin(self) -> bool:
        """Draw which of two answers is true."""
        return bool(self.rng.random() < 0.5)

    def ask(
        self,
        form: str,
        short: str,
        *,
        regions: tuple[Shape, ...] = (),
        choices: tuple[str, ...] | None = None,
        **fields: str,
    ) -> None:
        """Add a question of `form` whose answer is `short`; `fields` are what the form's texts name."""
        fields = {"answer": short, **fields}
        question = write_question(
            self.rng, self.forms, form, short, held_out=self.held_out, regions=regions, choices=choices, fields=fields
        )
        self.questions.append(question)
