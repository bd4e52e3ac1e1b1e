"""Prompts of video questions and their tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny_llavas
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.language.chat import ChatFrame
from foveate.language.tokenizer import Piece, encode_pieces, list_start_ids, wrap_transformers
from foveate.video import prompts
from foveate.video.prompts import (
    FINGERPRINTS,
    PLAIN,
    VIDEO,
    PromptTemplate,
    VideoPrompt,
    find_prompts,
    recognize,
    write_options,
)
from naming import raises_naming

GOLDENS = tiny_llavas.GOLDENS
FRAME = ChatFrame("USER: ", "\n", " ASSISTANT:")


def join(prompt: VideoPrompt) -> str:
    return "<V>".join("".join(piece.text for piece in side) for side in prompt)


def test_slowfast_golden_prompts() -> None:
    golden = json.loads((GOLDENS / "prompts.json").read_text())
    # The texts themselves are not ours to copy; their fingerprints are what a file is known by.
    by_mode = {case["mode"]: case["sha256"] for case in golden["cases"] if case["question"].startswith("What is")}
    assert {name: sha for sha, name in FINGERPRINTS.items()} == by_mode
    for block in golden["option_blocks"]:
        assert write_options(block["candidates"]) == block["text"]


def test_official_texts_are_known_by_their_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "prompt.py"
    texts = {name: f"<{name}> USER: <image>\nIt is a clip. %s" + ("\n%sPick:(" if "choice" in name else " Say: ")
             for name in FINGERPRINTS.values()}  # fmt: skip
    source.write_text("def f(question):\n" + "".join(f"    print({text!r} % question)\n" for text in texts.values()))
    with raises_naming(UserError, "prompt.py", "image_seq_v3", "fingerprint"):
        find_prompts(source, chatml=False)
    shas = {}
    for name, text in texts.items():
        fills = (
            "What is the person doing?",
            "(A) cooking\n(B) reading a book\n(C) running\n(D) sleeping\n(E) singing\n",
        )
        whole = text % (fills if "choice" in name else fills[0])
        shas[hashlib.sha256(whole.encode()).hexdigest()] = name
    monkeypatch.setattr(prompts, "FINGERPRINTS", shas)
    small, large = (find_prompts(source, chatml=chatml) for chatml in (False, True))
    assert (small.ask.name, small.choose.name) == ("image_seq_v3", "multiple_choice_allvideo_v4")
    assert (large.ask.name, large.choose.name) == ("image_seq_34b_v3", "multiple_choice_allvideo_34b_v4")
    # The whole prompt is in the file: no chat template stands around it.
    assert join(small.choose.fill(FRAME, "Why 50 %s?", ["a"])) == (
        "<multiple_choice_allvideo_v4> USER: <V>\nIt is a clip. Why 50 %s?\n(A) a\nPick:("
    )


def test_what_a_user_writes_is_filled_in_as_it_is() -> None:
    prompt = VIDEO.choose.fill(FRAME, "{options} %s {video}?", ["{question}", "<image>"])
    text = join(prompt)
    assert "Question: {options} %s {video}?\nOptions:\n(A) {question}\n(B) <image>\n" in text
    assert text.startswith("USER: <V>\nThe images")
    assert text.endswith(" ASSISTANT: Best option: (")
    assert text.count("<V>") == 1


def test_frames_of_chat_templates() -> None:
    assert join(PLAIN.ask.fill(FRAME, "What is it?")) == "USER: <V>\nWhat is it? ASSISTANT:"
    assert join(VIDEO.ask.fill(FRAME, "Why?")).endswith("\nQuestion: Why? ASSISTANT: Answer: In the video,")
    # In our training images stand in front of everything, and a question is one line.
    ours = ChatFrame("<user> ", "", "<assistant>", leads=True)
    assert join(PLAIN.ask.fill(ours, "What\nis it?")) == "<V><user> What is it?<assistant>"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("Look. {video}\n\n{question} {answer}So:")
    assert join(find_prompts(path, chatml=False).ask.fill(FRAME, "Why?")) == "USER: Look. <V>\nWhy?  ASSISTANT: So:"
    path.write_text("{video} and {video}: {question}")
    with raises_naming(UserError, "own.txt", "{video}", 2):
        find_prompts(path, chatml=False)
    with raises_naming(UserError, "nowhere", "plain"):
        find_prompts("nowhere", chatml=False)
    (tmp_path / "broken.py").write_text("def f(:")
    with raises_naming(UserError, "broken.py", 1):
        find_prompts(tmp_path / "broken.py", chatml=False)
    assert recognize(PromptTemplate("", "{video}{question}", framed=False)) == ""


def read(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(GOLDENS / name))


def test_slowfast_golden_tokenise() -> None:
    for entry in json.loads((GOLDENS / "tokenise.json").read_text())["tokenizers"]:
        backend = read(entry["tokenizer_file"])
        start = list_start_ids(backend)
        assert start == ((entry["bos_id"],) if entry["adds_bos"] else ())
        for case in entry["cases"]:
            if not case["equals_plain_tokenisation_with_placeholder_replaced"]:
                continue  # a defect of the official splitter: it drops the first token of every later piece
            sides = [encode_pieces(backend, [Piece(text)]) for text in case["text"].split("<image>")]
            ids = list(start)
            for number, side in enumerate(sides):
                ids += ([-200] if number else []) + side
            assert ids == case["ids"], case["text"]


@pytest.mark.parametrize("text", ["what <image> is </s>?", "<<s>s>", "<s>", "a<pad>b<unk>"])
def test_marks_of_a_user_are_text(text: str) -> None:
    backend = wrap_transformers(tiny_llavas.tokenizer(), source="tiny").backend
    ids = encode_pieces(backend, [Piece("<s>A: "), Piece(text, is_user=True), Piece(" B")])
    special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    assert ids[0] == 1
    assert not special.intersection(ids[1:])
    assert backend.decode(ids, skip_special_tokens=False) == f"<s>A: {text} B"


@given(st.text(alphabet="<>image/spadunk ab", max_size=24))
def test_no_text_of_a_user_becomes_a_mark(text: str) -> None:
    backend = read("tok_nobos.json")
    special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    assert not special.intersection(encode_pieces(backend, [Piece("A: "), Piece(text, is_user=True)]))


def test_a_question_without_marks_is_encoded_in_one_piece() -> None:
    backend = read("tok_bos.json")
    whole = backend.encode("Question: what is it?", add_special_tokens=False).ids
    assert encode_pieces(backend, [Piece("Question: "), Piece("what is it", is_user=True), Piece("?")]) == whole
