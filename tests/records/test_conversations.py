"""Conversations: what is refused and why, how they are stored, split and removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import (
    Conversation,
    Conversations,
    Turn,
    add_conversations,
    check_conversation,
    decode_shape,
    encode_shape,
    find_problem,
    locate_regions,
)
from foveate.records.inspection import summarize
from foveate.records.shapes import Mask, Point, Stroke
from foveate.records.splits import assign_splits
from foveate.records.writer import CollectionWriter
from naming import raises_naming

SHAPES = (
    Point(1.5, 2),
    PixelBox(0, 0, 48, 32),
    Stroke((Point(1, 2), Point(3, 4))),
    Mask((32, 48), (10, 5, 32 * 48 - 15)),
)
SIZES = {"a": (48, 32), "b": (48, 32)}


def ask(question: str = "<image>\nWhat is it?", answer: str = "A boat.", **fields: object) -> Conversation:
    turns = (Turn("user", question), Turn("assistant", answer))
    return replace(Conversation("1", ("a",), turns, source="test"), **fields)


def with_region(shape: object) -> Conversation:
    turns = (Turn("user", "<image> What is <region>?", (shape,)), Turn("assistant", "A boat."))  # type: ignore[arg-type]
    return ask(turns=turns)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    with CollectionWriter(tmp_path / "c") as writer:
        for number in range(40):
            writer.add(f"p{number}", jpeg(number))
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (ask(turns=()), "no turns"),
        (ask(turns=(Turn("assistant", "hi"), Turn("user", "<image>"))), "no question first"),
        (ask(turns=(Turn("user", "<image>"), Turn("user", "more"))), "roles do not alternate"),
        (ask(turns=(Turn("user", "<image>"), Turn("bot", "more"))), "unknown role"),
        (ask(turns=(Turn("system", "Be brief."),)), "no answer"),
        (ask(turns=(*ask().turns, Turn("user", "And?"))), "no answer"),
        (ask(answer=" \n\x00"), "empty answer"),
        (ask(question="  "), "empty question"),
        (ask(answer="\ud800"), "text not storable"),
        (ask(question="What?"), "image without placeholder"),
        (ask(question="<image><image> What?"), "placeholder without image"),
        (ask(images=()), "placeholder without image"),
        (ask(answer="see <image>"), "placeholder outside a question"),
        (ask(answer="at <region>"), "placeholder without region"),
        (
            replace(with_region(SHAPES[0]), turns=(Turn("user", "<image>", SHAPES[:1]), Turn("assistant", "x"))),
            "region without placeholder",
        ),
        (
            ask("Where is <region>?", images=(), turns=(Turn("user", "<region>", SHAPES[:1]), Turn("assistant", "x"))),
            "region without image",
        ),
        (ask(group="refer"), "unknown group"),
        (ask(images=("c",)), "unknown image"),
        (with_region(PixelBox(0, 0, 49, 32)), "region outside the image"),
        (with_region(PixelBox(0, 0, float("nan"), 32)), "region not finite"),
        (with_region(PixelBox(9, 0, 3, 32)), "region inverted"),
        (with_region(PixelBox(9, 0, 9, 32)), "region empty"),
        (with_region(Point(-1, 0)), "region outside the image"),
        (with_region(Stroke(())), "region empty"),
        (with_region(Mask((32, 48), (32 * 48,))), "region empty"),
        (with_region(Mask((32, 48), (1, 1))), "damaged mask"),
        (with_region(Mask((48, 32), (0, 32 * 48))), "mask of another size"),
    ],
)
def test_problems(conversation: Conversation, reason: str) -> None:
    finding = find_problem(conversation, SIZES)
    assert finding is not None
    assert finding.reason == reason
    with raises_naming(UserError, "'1'", reason):
        check_conversation(conversation, SIZES)


def test_usable_conversations() -> None:
    system = ask(turns=(Turn("system", "Be brief."), *ask().turns))
    text_only = ask("2 + 2?", "4", images=(), group="text")
    for conversation in (ask(), system, text_only, *map(with_region, SHAPES)):
        assert check_conversation(conversation, SIZES) is conversation


def test_a_region_lies_in_the_last_image_before_it() -> None:
    turns = (
        Turn("user", "<region> in <image> like <region> or <image>", SHAPES[:2]),
        Turn("assistant", "<region>", SHAPES[:1]),
    )
    assert locate_regions(ask(images=("a", "b"), turns=turns)) == [[0, 0], [1]]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_shapes_are_stored_whole(shape: object) -> None:
    assert decode_shape(encode_shape(shape)) == shape  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [{}, {"circle": [1, 2]}, {"box": [1, 2]}, {"mask": {}}, {"box": 3, "point": 4}])
def test_damaged_shapes_are_refused(stored: dict[str, object]) -> None:
    with raises_naming(UserError, "region", "stroke"):
        decode_shape(stored)


def test_add_read_and_add_again(collection: Path) -> None:
    turns = (
        Turn("user", "<image> <image> what is <region> ", SHAPES[1:2]),
        Turn("assistant", "é <region>", SHAPES[3:]),
    )
    several = Conversation("2", ("p1", "p0"), turns, "multi-image", "test", ("a", "b"))
    text = Conversation("3", (), (Turn("user", "2 + 2?"), Turn("assistant", "4")), "text", "test")
    added = [ask(images=("p5",)), several, text]
    bad = [ask(answer="", id="4"), ask(images=("nowhere",), id="5")]
    with Collection.open(collection) as opened:
        assert "conversations" not in summarize(opened)
    summary = add_conversations(collection, [*added, *bad])
    assert (summary.added, summary.existing) == (3, 0)
    assert summary.quarantined == {"empty answer": 1, "unknown image": 1}
    assert add_conversations(collection, [*added, *bad]).existing == 3
    with Collection.open(collection) as opened:
        stored = Conversations(opened)
        stripped = replace(several, turns=(replace(turns[0], text=turns[0].text.strip()), turns[1]))
        assert list(stored) == [added[0], stripped, text]
        by_group = {"general": 1, "multi-image": 1, "text": 1}
        assert summarize(opened)["conversations"] == {"count": 3, "by_group": by_group}
        assert [entry.id for entry in Conversations(opened, groups=["text", "multi-image"])] == ["2", "3"]
        assert sorted(opened.quarantine()["key"].to_pylist()) == ["4", "5"]
        assert set(opened.quarantine()["subject"].to_pylist()) == {"conversation"}
        with raises_naming(UserError, "multi-images", "multi-image"):
            Conversations(opened, groups=["multi-images"])


def test_splits_never_part_images_of_one_conversation(collection: Path) -> None:
    pairs = [ask("<image><image> Same?", "No.", images=(f"p{n}", f"p{n + 20}"), id=str(n)) for n in range(20)]
    text = ask("2 + 2?", "4", images=(), id="text")
    add_conversations(collection, [*pairs, text])
    fractions = {"train": 0.5, "test": 0.5}
    assert assign_splits(collection, fractions=fractions, seed=1).components == 20
    with Collection.open(collection) as opened:
        by_split = {split: [entry.id for entry in Conversations(opened, split=split)] for split in fractions}
        assert sorted(by_split["train"] + by_split["test"]) == sorted([entry.id for entry in pairs] + ["text"])
        assert min(map(len, by_split.values())) > 1
        assert "text" in by_split["train"]
        with raises_naming(UserError, "tset", "test"):
            Conversations(opened, split="tset")


@pytest.mark.parametrize("purge", [False, True])
def test_a_conversation_goes_with_any_of_its_images(collection: Path, *, purge: bool) -> None:
    pair = ask("<image><image> Same?", "No.", images=("p1", "p2"), id="pair")
    add_conversations(collection, [pair, ask(images=("p1",)), ask("2?", "4", images=(), id="text")])
    with CollectionWriter(collection) as writer:
        writer.remove(["p2"], reason="asked", purge=purge)
        if purge:
            assert writer.purge().rows["conversations"] == 1
    with Collection.open(collection) as opened:
        assert [entry.id for entry in Conversations(opened)] == ["1", "text"]


def test_collections_without_conversations(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c"):
        pass
    assert assign_splits(tmp_path / "c", fractions={"train": 1.0}).images == {}
    with Collection.open(tmp_path / "c") as opened:
        assert len(Conversations(opened)) == 0
