"""Words that were invented for training are in no answer about a user's image; what has no name is not found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image
from test_multimodal_model import loaded
from test_not_found import IMAGE, LEFT, write

from foveate.core.errors import UserError
from foveate.core.paths import DATA
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.language.generate import GenerationSettings
from foveate.multimodal.answer_writer import AnswerWriter, PointedBox
from foveate.multimodal.answers import Answer, is_settled
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import LoadedModel, load_model, read_training_words
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prepare import Question, prepare_questions
from foveate.records.boxes import PixelBox
from foveate_labs.worlds.scenes.image_sets import draw_image_set
from naming import raises_naming

PATTERN = re.compile(rf"(?<![a-z])({'|'.join(INVENTED_WORDS)})(?![a-z])", re.IGNORECASE)
QUESTIONS = (
    "What is in the image?",
    "What is this?",
    "What do you see?",
    "Name the thing.",
    "What is <1>?",
    "Is there a deer in the image? If so, where is it?",
    "Describe the image in a sentence.",
)
REGION = PixelBox(50, 50, 150, 150)


def list_photos() -> list[Image.Image]:
    """Photographs that come with the dependencies, of things that no model of ours knows."""
    pixels: list[Any] = [skimage.data.astronaut(), skimage.data.cat(), skimage.data.coffee(), skimage.data.coins()]
    pixels += [skimage.data.gravel(), load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    return [Image.fromarray(np.asarray(each)).convert("RGB") for each in pixels]


def ask_photos(model: Mllm, **options: Any) -> list[Answer]:
    questions = [
        Question(photo, text, [REGION] if "<1>" in text else []) for photo in list_photos() for text in QUESTIONS
    ]
    return model.ask_all(questions, **options)


@pytest.fixture(scope="module", params=["mini", "mini-ferret"])
def shipped(request: pytest.FixtureRequest) -> Mllm:
    model = open_mllm(request.param)
    assert isinstance(model, Mllm)
    return model


@pytest.fixture(scope="module")
def mini() -> Mllm:
    """Return the model alone, without the stage that answers about photographs in its place."""
    model = open_mllm("mini")
    assert isinstance(model, Mllm)
    return Mllm(model.loaded)


def test_no_answer_about_a_photograph_has_one(shipped: Mllm) -> None:
    answers = ask_photos(shipped)
    assert not [answer.text for answer in answers if PATTERN.search(answer.text)]
    # Nor one that is drawn at random.
    drawn = [GenerationSettings(max_new_tokens=24, temperature=2.0, seed=seed) for seed in range(7 * len(QUESTIONS))]
    assert not [answer.text for answer in ask_photos(shipped, generation=drawn) if PATTERN.search(answer.text)]
    # A yes whose box is not found is none; what else an answer says of a thing that is not there goes as well.
    for answer in answers:
        if answer.rejected and not answer.boxes:
            assert answer.text == "not found" or answer.text.casefold().startswith("no,")


def test_mini_without_a_name_says_not_found(mini: Mllm) -> None:
    """In place of the words that it writes where they are allowed."""
    answers, free = ask_photos(mini), ask_photos(mini.allow_training_words())
    named = [number for number, answer in enumerate(free) if PATTERN.search(answer.text)]
    assert len(named) > 10
    assert {answers[number].text for number in named} == {"not found"}
    # Other answers are those that they were.
    for number, (answer, other) in enumerate(zip(answers, free, strict=True)):
        assert number in named or answer == other


def test_every_way_of_asking_keeps_them_out(mini: Mllm) -> None:
    photo, question = list_photos()[1], "What is in the image?"
    assert PATTERN.search(mini.allow_training_words().ask(photo, question).text)
    assert mini.ask(photo, question).text == "not found"
    assert mini.ask(photo, question, ground=True).text == "not found"
    assert "".join(mini.stream(photo, question)) == "not found"
    chat = mini.chat(photo)
    assert chat.ask(question).text == chat.ask(question).text == "not found"
    assert [turn.text for turn in chat.turns if turn.role == "assistant"] == ["not found"] * 2
    assert mini.locate(photo, "zup").text == "not found"


def test_episodes_are_answered_with_their_words_where_these_are_allowed(mini: Mllm) -> None:
    free = mini.allow_training_words()
    answers = []
    for index in range(6):
        image_set = draw_image_set("episode", seed=3, split="test", index=index, size=96)
        examples = "\n".join(f"{prompt}\n{label}" for prompt, label in image_set.question.examples)
        images = [scene.image for scene in image_set.scenes]
        question = f"{examples}\n{image_set.question.prompt}"
        answers.append(free.ask(images, question).text)
        assert not PATTERN.search(mini.ask(images, question).text)
    assert any(PATTERN.search(text) for text in answers)
    assert free.training_words == ()
    assert mini.training_words == tuple(sorted(INVENTED_WORDS))


def test_a_yes_whose_box_is_not_found_is_none() -> None:
    one = loaded()
    region, encode = one.prompts.region_id, one.tokenizer.encode
    claim = [*encode("Yes, a deer is at"), region, *encode(".")]
    assert write(claim, [1.0]).text == "not found"
    assert write(claim, [1.0]).rejected == (1.0,)
    assert write(claim, [3.0]).text.startswith("Yes, a deer is at [")
    assert write([*encode("Yes. A deer is at"), region, *encode(".")], [1.0]).text == "not found"
    # One of two that is there does not make it a yes.
    both = write([*claim, *encode(" A tree is at"), region], [1.0, 3.0])
    assert both.text == "not found"
    # A no stays one, and so does what was said before.
    no = write([*encode("No, but a tree is at"), region, *encode(".")], [1.0])
    assert no.text == "No."
    later = write([*encode("A red disc. A tree is at"), region, *encode(".")], [1.0])
    assert later.text == "A red disc. A tree is at (not found)."
    assert write(encode("yes"), []).text == "yes"


def test_a_text_is_settled_behind_its_first_sentence() -> None:
    for text in ("", "Yes", "Yes.", "Yes. ", "Yes. A deer", "A deer.", "It is 3.5"):
        assert not is_settled(text), text
    for text in ("A deer. ", "No. It", "Yes. A deer. It"):
        assert is_settled(text), text


@cache
def load_avoiding(min_box_score: float | None) -> LoadedModel:
    return replace(loaded(), min_box_score=min_box_score, training_words=("zup",))


def make_writer(ids: Sequence[int], *, avoided: int | None, min_box_score: float | None = 2.0) -> AnswerWriter:
    one = load_avoiding(min_box_score)
    visual, (pending,) = prepare_questions(one, [(IMAGE, "What is there?")])
    pending.answer = list(ids)
    writer = AnswerWriter(one, visual, [pending])
    assert writer.words is not None
    writer.words.avoided |= {} if avoided is None else {0: avoided}
    return writer


def test_an_avoided_word_leaves_what_the_image_shows_by_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded()
    ids = [*one.tokenizer.encode(" A red disc"), *one.tokenizer.encode(". More"), *one.tokenizer.encode(" of it")]

    def match(score: float) -> None:
        monkeypatch.setattr(AnswerWriter, "_match", lambda *_: PointedBox(0, LEFT, score))

    match(1.0)
    whole = one.tokenizer.decode(ids).strip()
    rejected = make_writer(ids, avoided=0).answer(0)
    assert (rejected.text, rejected.rejected) == ("not found", (1.0,))
    assert make_writer(ids, avoided=None).answer(0).text == whole
    # In a later sentence the word alone is avoided, and without a threshold every name counts.
    assert make_writer(ids, avoided=len(ids) - 1).answer(0).text == whole
    assert make_writer(ids, avoided=0, min_box_score=None).answer(0).text == whole
    match(3.0)
    assert make_writer(ids, avoided=0).answer(0).text == whole


def test_a_stream_yields_nothing_that_it_would_take_back() -> None:
    one = loaded()
    region, encode = one.prompts.region_id, one.tokenizer.encode
    for scores in ([1.0, 3.0], [1.0, 1.0], [3.0, 1.0]):
        ids = [*encode("Yes, a disc is at"), region, *encode(". A box is at"), region, *encode(". That is all")]
        texts = []
        for length in range(len(ids) + 1):
            writer = make_writer(ids[:length], avoided=None)
            boxes = [PointedBox(0, LEFT, score) for score in scores]
            writer.pending[0].boxes = boxes[: writer.pending[0].answer.count(region)]
            texts.append(writer.answer(0, is_whole=False).text)
        final = writer.answer(0).text
        assert all(final.startswith(text.removesuffix(".")) for text in texts), (scores, texts)


@pytest.mark.parametrize("name", ["mini", "mini-ferret", "smollm2-mini"])
def test_shipped_folders_list_their_words(name: str) -> None:
    assert read_training_words(DATA / name) == tuple(sorted(INVENTED_WORDS))


def test_words_of_a_folder(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "mini", tmp_path / "mini")

    def change(**fields: Any) -> LoadedModel:
        config = json.loads((DATA / "mini" / "config.json").read_text())
        config |= fields
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return load_model(folder)

    # A folder of an earlier version does not list them.
    assert change(training_words=None).training_words == tuple(sorted(INVENTED_WORDS))
    assert change(training_words=[]).forbidden_words is None
    # A class of a user that has one of these names is real.
    names = json.loads((folder / "names.json").read_text())
    (folder / "names.json").write_text(json.dumps([*names, "toma root"]))
    assert "toma" not in change().training_words
    for value in ("gorp", ["gorp", 3], ["two words"], ["Gorp"], {"gorp": 1}):
        with raises_naming(UserError, "config.json", "training_words"):
            change(training_words=value)
