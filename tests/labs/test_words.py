"""Images with written words: held-out words and grounds, exact boxes, kinds of tests, the same for the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.multimodal.written_words import NOTHING_TO_READ, asks_to_read
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations
from foveate.vision.text_reader import WRITTEN
from foveate_labs.worlds.words import KINDS, LENGTHS, QUESTION, build_words, draw_word, list_words, paste_word


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "words"
    build_words(folder, train=6, validation=4, test=8)
    return folder


def test_no_word_of_a_test_is_in_training() -> None:
    training, held_out = (set(list_words(held_out=held_out)) for held_out in (False, True))
    assert not training & held_out
    assert 0.08 < len(held_out) / len(training | held_out) < 0.12
    lowest, highest = LENGTHS
    assert all(lowest <= len(word) <= highest for word in training | held_out)
    rng = np.random.default_rng(0)
    assert all(draw_word(rng, held_out=True) in held_out for _ in range(50))
    drawn = [draw_word(rng, held_out=False) for _ in range(200)]
    assert 0.1 < np.mean([word not in training for word in drawn]) < 0.3


def test_pasted_words_change_their_box_alone_and_leave_others_room() -> None:
    rng, canvas = np.random.default_rng(0), np.full((224, 224, 3), 128, np.uint8)
    before, taken = canvas.copy(), []
    for word in ("lake", "mill", "tower"):
        pasted = paste_word(rng, canvas, word, (18, 22), font="sans", taken=taken)
        assert pasted is not None
        taken.append(pasted.box)
    changed = (canvas != before).any(-1)
    for number, (x1, y1, x2, y2) in enumerate(taken):
        assert changed[y1:y2, x1:x2].any()
        assert all(x2 <= a or c <= x1 or y2 <= b or d <= y1 for a, b, c, d in taken[:number])
    assert paste_word(rng, canvas, "lake", (200, 200), font="sans") is None


def test_images_have_the_words_of_their_kind(words: Path) -> None:
    with Collection.open(words) as collection:
        talks = {talk.images[0]: talk for talk in Conversations(collection)}
        for row in collection.rows("test").tolist():
            record = collection.record(row)
            talk = talks[record.key]
            kind = record.labels["kind"]
            assert talk.id.split("/")[:2] == ["read", kind]
            assert kind in KINDS
            assert talk.turns[0].text.endswith(QUESTION)
            assert len(record.regions) == (kind != "no word")
            answer = talk.turns[1].text
            assert answer == (record.regions[0].phrase if record.regions else NOTHING_TO_READ)
            assert {region.label for region in record.regions} <= {WRITTEN}
        assert sorted(collection.record(row).labels["kind"] for row in collection.rows("validation")) == sorted(KINDS)
    assert asks_to_read(QUESTION)


def test_words_are_drawn_alike_and_resume(words: Path, tmp_path: Path) -> None:
    build_words(tmp_path / "words", train=2, validation=4)
    build_words(tmp_path / "words", train=6, validation=4, test=8)
    with Collection.open(words) as first, Collection.open(tmp_path / "words") as second:
        assert {key: first[key].read() for key in first.keys} == {key: second[key].read() for key in second.keys}
