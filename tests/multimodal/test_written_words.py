"""Questions about written words: which they are, who answers them, and what the answers hold."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from test_multimodal_model import loaded

from foveate.cli.verbs import ask as ask_verb
from foveate.core.errors import UserError
from foveate.multimodal import opening
from foveate.multimodal.answer_writer import limit_tokens
from foveate.multimodal.answers import CHARACTER_HEAD, LANGUAGE_MODEL, Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import hash_model, load_model
from foveate.multimodal.opening import find_folder
from foveate.multimodal.prepare import Dialog
from foveate.multimodal.questions import ask_turns
from foveate.multimodal.written_words import NOTHING_TO_READ, answer_words, asks_to_read
from foveate.records.boxes import PixelBox
from foveate.records.images import decode
from foveate.vision.text_reader import ReaderSettings, ReadWord, TextReader
from naming import raises_naming

QUESTION, OTHER = "What does the sign say?", "what is in the image"
OLD, MILL = ReadWord("old", PixelBox(4, 2, 20, 10), 0.9), ReadWord("mill", PixelBox(24, 2, 50, 10), 0.8)
SIGN, BLANK = Image.new("RGB", (64, 48), "white"), Image.new("RGB", (64, 64), "gray")


class Reader(TextReader):
    """Reads two words in images of 48 rows, and nothing in others."""

    def __init__(self) -> None:
        self.images: list[bytes] = []

    def read(self, image: bytes) -> list[ReadWord]:
        self.images.append(image)
        return [OLD, MILL] if decode(image).height == 48 else []


@pytest.fixture
def model() -> Mllm:
    return Mllm(replace(loaded(), reader=Reader()))


@pytest.mark.parametrize(
    "question",
    [
        "What does the sign say?", "what does it say", "What does <1> say?", "What is written on the sign?",
        "What's written here?", "What word is this?", "Which word is shown in the image?", "Read the text.",
        "Can you read the sign for me?", "Please read the words in the picture.", "What text can you see?",
        "What do the letters spell?", "Transcribe all the text in this image.", "What is the word on the plate?",
        "What does the label on the red bottle say?", "Could you tell me what the sign says?",
        "Spell the word, please.", "<image>\nWhat does the sign say?",
    ],
)  # fmt: skip
def test_questions_about_words(question: str) -> None:
    assert asks_to_read(question)


@pytest.mark.parametrize(
    "question",
    [
        "What is on the sign?", "Where is the sign?", "Is there a sign?", "What is this?", "What sign is this?",
        "What color are the letters?", "How many words are there?", "Describe the image.", "What does the image show?",
        "What does the man say?", "What does this mean?", "Where is the letter?", "What is the man reading?",
        "Which word is longer?", "Is there any text?", "Write a caption.", "Read the question and answer.", "",
    ],
)  # fmt: skip
def test_questions_about_anything_else(question: str) -> None:
    assert not asks_to_read(question)


@pytest.mark.parametrize(
    "question", ["What is written" + " in a" * 60 + " !x", "Which word" + " this image" * 60 + " !x"]
)
def test_long_questions_are_decided_without_trying_every_split(question: str) -> None:
    # Does not return where the number of splits grows exponentially with the length.
    assert not asks_to_read(question)


def test_the_words_of_a_sign_are_the_answer(model: Mllm) -> None:
    answer = model.ask(SIGN, QUESTION)
    assert answer == Answer("old mill", (OLD.box, MILL.box), (0, 0), ("old", "mill"), source=CHARACTER_HEAD)
    assert answer.box_scores == (0.9, 0.8)
    nothing = model.ask(BLANK, QUESTION)
    assert (nothing.text, nothing.boxes, nothing.source) == (NOTHING_TO_READ, (), CHARACTER_HEAD)
    both = model.ask([SIGN, BLANK], "What do the signs say?")
    assert both.text == f"image 1: old mill\nimage 2: {NOTHING_TO_READ}"
    assert both.images == (0, 0)


def test_every_other_question_is_for_the_language_model(model: Mllm) -> None:
    plain = Mllm(replace(model.loaded, reader=None))
    assert model.ask(SIGN, OTHER) == plain.ask(SIGN, OTHER)
    assert plain.ask(SIGN, QUESTION).source == LANGUAGE_MODEL
    # Without an image there is nothing to read in.
    assert model.ask([], QUESTION).source == LANGUAGE_MODEL
    answers = model.ask_all([(SIGN, OTHER), (SIGN, QUESTION), (BLANK, OTHER)])
    assert [answer.source for answer in answers] == [LANGUAGE_MODEL, CHARACTER_HEAD, LANGUAGE_MODEL]
    assert answers[2] == plain.ask(BLANK, OTHER)


def test_a_region_keeps_the_words_within(model: Mllm) -> None:
    assert model.ask(SIGN, "What does <1> say?", regions=[PixelBox(22, 0, 60, 12)]).text == "mill"
    assert model.ask(SIGN, "What does <1> say?", regions=[PixelBox(0, 20, 60, 48)]).text == NOTHING_TO_READ
    # Words of other images stay: the region lies in the last one.
    both = answer_words(Reader(), [SIGN, SIGN], [PixelBox(0, 0, 22, 12)])
    assert both.text == "image 1: old mill\nimage 2: old"


def test_streams_and_dialogs_read_as_well(model: Mllm) -> None:
    pieces = model.stream(SIGN, QUESTION)
    assert list(pieces) == ["old mill"]
    turns = ask_turns(QUESTION, (), images=1)
    (answer,) = model.answer_dialogs([Dialog([SIGN], turns, ())], generation=[limit_tokens(4)])
    assert answer.text == "old mill"


def test_a_conversation_reads_and_goes_on(model: Mllm) -> None:
    chat, plain = model.chat(SIGN), model.chat(SIGN)
    assert chat.ask(QUESTION).text == "old mill"
    first = chat.ask(OTHER, max_tokens=4)
    # The language model sees images and its own turns, as if nothing had been read before.
    assert first.text == plain.ask(OTHER, max_tokens=4).text
    assert chat.ask(QUESTION).source == CHARACTER_HEAD
    assert chat.ask(OTHER, max_tokens=4).text == plain.ask(OTHER, max_tokens=4).text
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 4
    assert [turn.text.count("<image>") for turn in chat.turns] == [1] + [0] * 7
    assert chat.turns[1].text == "old mill"


def test_the_command_prints_words_and_boxes(model: Mllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_mllm", lambda *_, **__: model)
    SIGN.save(tmp_path / "sign.png")
    BLANK.save(tmp_path / "blank.png")

    def ask(*arguments: str) -> Any:
        result = CliRunner().invoke(ask_verb.command, list(arguments))
        assert result.exit_code == 0, result.output
        return result

    result = ask(str(tmp_path / "sign.png"), QUESTION)
    assert result.stdout.splitlines() == ["old mill", "box 4 2 20 10  old", "box 24 2 50 10  mill"]
    assert not result.stderr
    printed = json.loads(ask(str(tmp_path / "sign.png"), QUESTION, "--json").stdout)
    assert (printed["source"], printed["text"], printed["phrases"]) == (CHARACTER_HEAD, "old mill", ["old", "mill"])
    assert ask(str(tmp_path / "blank.png"), QUESTION).stdout.splitlines() == [NOTHING_TO_READ]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("yes", ("reading", "yes")),
        ({"width": 9}, ("width", "9")),
        ({"hiden": 16}, ("hiden",)),
        ({"min_score": 2}, ("min_score", "2")),
        ({"network_sha256": "0123"}, ("0123",)),
        ({"width": 8}, ("reader.safetensors", "shape")),
    ],
)
def test_settings_of_a_head_that_do_not_fit_are_refused(tmp_path: Path, value: Any, names: tuple[str, ...]) -> None:
    folder = Path(shutil.copytree(find_folder("mini"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reading": value}))
    with raises_naming(UserError, *names):
        load_model(folder)


def test_a_head_whose_file_is_missing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_folder("mini"), tmp_path / "model"))
    (folder / "reader.safetensors").unlink()
    with raises_naming(UserError, "reader.safetensors", "no such file"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["reading"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).reader is None
    assert hash_model(folder) != hash_model(find_folder("mini"))
    assert ReaderSettings().network_sha256
