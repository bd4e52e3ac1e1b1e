"""Collections of documents and screens: images, words, trees and conversations, the same when stopped and repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations
from foveate_labs.worlds.documents import build_documents, draw_document
from foveate_labs.worlds.scenes.image_sets import SETS, build_image_sets, draw_image_set
from foveate_labs.worlds.screens import build_screens, draw_screen
from naming import raises_naming


def test_documents_are_stored_with_words_and_conversations(tmp_path: Path) -> None:
    build_documents(tmp_path / "c", train=4, test=2, seed=3, size=320)
    with Collection.open(tmp_path / "c") as collection:
        assert len(collection) == 6
        conversations = list(Conversations(collection, split="train"))
        assert {conversation.group for conversation in conversations} == {"text-rich"}
        assert {conversation.images[0] for conversation in conversations} == set(collection.keys[:4])
        record = collection.record(collection.find_row("document-train-3-000001"))
        document = draw_document(seed=3, split="train", index=1, size=320)
        assert [caption.text for caption in record.captions] == [document.transcript]
        assert record.labels["letter_height"] == str(document.letter_height)
        words = [row for row in collection.table("words").to_pylist() if row["key"] == record.key]
        assert [(row["text"], row["x1"], row["letter_height"]) for row in words] == [
            (word.text, word.box.x1, word.letter_height) for word in document.word_boxes
        ]


def test_screens_are_stored_with_trees_and_regions(tmp_path: Path) -> None:
    build_screens(tmp_path / "c", train=3, seed=3)
    with Collection.open(tmp_path / "c") as collection:
        screen = draw_screen(seed=3, split="train", index=0)
        record = collection.record(collection.find_row("screen-train-3-000000"))
        assert [region.label for region in record.regions] == [widget.type for widget in screen.widgets]
        (row,) = (row for row in collection.table("screens").to_pylist() if row["key"] == record.key)
        assert json.loads(row["tree"]) == screen.root.to_dict()
        assert len(Conversations(collection)) > 10


def test_image_sets_are_groups_with_one_conversation(tmp_path: Path) -> None:
    build_image_sets(tmp_path / "c", train=len(SETS), test=1, seed=3, size=96)
    with Collection.open(tmp_path / "c") as collection:
        conversations = {c.id: c for c in Conversations(collection)}
        assert len(conversations) == len(SETS) + 1
        assert {c.group for c in conversations.values()} == {"multi-image"}
        images = [key for conversation in conversations.values() for key in conversation.images]
        assert sorted(images) == sorted(collection.keys)
        conversation = conversations["set-train-3-000005"]
        assert SETS[5] == "episode"
        question = draw_image_set("episode", seed=3, split="train", index=5, size=96).question
        answers = [*(answer for _, answer in question.examples), question.answer]
        assert [turn.text for turn in conversation.turns if turn.role == "assistant"] == answers
        assert len(Conversations(collection, split="train")) == len(SETS)


def test_a_repeated_command_adds_what_is_missing(tmp_path: Path) -> None:
    build_documents(tmp_path / "grown", train=2, seed=1, size=320)
    build_documents(tmp_path / "grown", train=5, seed=1, size=320)
    build_documents(tmp_path / "grown", train=5, seed=1, size=320)
    build_documents(tmp_path / "whole", train=5, seed=1, size=320)
    stored = []
    for name in ("grown", "whole"):
        with Collection.open(tmp_path / name) as collection:
            stored.append((list(collection.keys), sorted(map(repr, Conversations(collection)))))
    assert stored[0] == stored[1]


@pytest.mark.parametrize(("arguments", "name"), [({"train": -1}, "train"), ({"train": 1, "workers": 0}, "workers")])
def test_bad_numbers_are_refused(tmp_path: Path, arguments: dict[str, int], name: str) -> None:
    with raises_naming(UserError, name):
        build_documents(tmp_path / "c", **arguments)
