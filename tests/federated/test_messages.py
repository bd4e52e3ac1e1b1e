"""Messages: what they hold, that nothing hides in them, bytes and back, and rules that refuse what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.federated.messages import DTYPES, ArrayNote, ArrayRule, Message, MessageError, MessageRule
from naming import raises_naming

RULE = MessageRule(
    "query.centroids",
    {
        "centers": ArrayRule("float64", ("k", 2)),
        "counts": ArrayRule("float64", ("k",), low=1),
        "radius": ArrayRule("float64", (1,), nan=True, high=1e6),
    },
    {"points": int, "inertia": float},
    max_bytes=2000,
    optional=frozenset({"radius"}),
)


def good(**changes) -> Message:
    arrays = {"centers": np.zeros((3, 2)), "counts": np.ones(3), "radius": np.array([np.nan])}
    values = {"points": 3, "inertia": 0.5}
    arrays.update({name: value for name, value in changes.items() if isinstance(value, np.ndarray)})
    values.update({name: value for name, value in changes.items() if not isinstance(value, np.ndarray)})
    return Message("query.centroids", 2, arrays, values)


def test_content_is_listed_and_counted() -> None:
    message = Message("train", 1, {"a": np.zeros((2, 3), np.float32)}, {"lr": 0.1, "word": "ab"})
    assert message.notes() == [ArrayNote("a", "float32", (2, 3), 24)]
    assert message.size == 24 + 8 + 2
    assert message.array("a").shape == (2, 3)
    assert message.number("lr") == 0.1
    with raises_naming(MessageError, "b"):
        message.array("b")
    with raises_naming(MessageError, "word"):
        message.number("word")


def test_arrays_are_copies_that_nobody_writes_to() -> None:
    array = np.ones(3)
    message = Message("train", arrays={"a": array})
    array[0] = 7
    assert message.array("a").tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        message.array("a")[0] = 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_and_back(dtype: str) -> None:
    message = Message("x", 4, {"a": np.arange(6).reshape(2, 3).astype(dtype), "none": np.zeros((0, 3), dtype)})
    message = Message("x", 4, message.arrays, {"n": 3, "f": 0.1, "yes": True, "word": "é", "odd": float("nan")})
    again = Message.from_bytes(message.to_bytes())
    assert again.digest() == message.digest()
    assert {k: v for k, v in again.values.items() if k != "odd"} == {"n": 3, "f": 0.1, "yes": True, "word": "é"}
    assert again.kind == "x"
    assert again.round == 4
    for name, array in message.arrays.items():
        np.testing.assert_array_equal(again.array(name), array)
        assert again.array(name).dtype == array.dtype


def test_digest_sees_everything() -> None:
    base = Message("x", 1, {"a": np.arange(4.0)}, {"n": 1})
    others = [
        Message("y", 1, base.arrays, base.values),
        Message("x", 2, base.arrays, base.values),
        Message("x", 1, {"b": np.arange(4.0)}, base.values),
        Message("x", 1, {"a": np.arange(4.0).reshape(2, 2)}, base.values),
        Message("x", 1, {"a": np.arange(4.0).astype(np.float32)}, base.values),
        Message("x", 1, base.arrays, {"n": 2}),
    ]
    assert len({message.digest() for message in [base, *others]}) == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: Message("x", arrays={"a": np.array(["word"])}),
        lambda: Message("x", arrays={"a": np.array([None])}),
        lambda: Message("x", arrays={"a": np.zeros(2, np.complex128)}),
        lambda: Message("x", arrays={"A b": np.zeros(2)}),
        lambda: Message("x", values={"n": [1]}),  # type: ignore[dict-item]
        lambda: Message("../x"),
    ],
)
def test_what_no_message_may_hold(make) -> None:
    with pytest.raises(MessageError):
        make()


@pytest.mark.parametrize("data", [b"", b"12345678", b"\xff" * 64, (40).to_bytes(8, "little") + b"{}" * 20])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with raises_naming(MessageError, f"{len(data)} bytes"):
        Message.from_bytes(data)


def test_another_schema_is_refused() -> None:
    data = Message("x", values={"n": 1}).to_bytes().replace(b'\\"schema\\": 3', b'\\"schema\\": 9')
    with raises_naming(MessageError, "9"):
        Message.from_bytes(data)


def test_a_rule_accepts_what_obeys() -> None:
    # `check` raises MessageError for anything that the rule does not allow; the next test has what it refuses.
    RULE.check(good())
    RULE.check(good(inertia=1))
    RULE.check(Message("query.centroids", 0, {n: a for n, a in good().arrays.items() if n != "radius"}, good().values))


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (Message("query.other"), ("query.other", "query.centroids")),
        (good(centers=np.zeros((3, 3))), ("centers", "[k, 2]", "[3, 3]")),
        (good(centers=np.zeros((4, 2))), ("counts", "[k]", "[3]")),
        (good(centers=np.zeros((3, 2), np.float32)), ("float64", "float32")),
        (good(centers=np.full((3, 2), np.nan)), ("centers", "6 values", "NaN")),
        (good(centers=np.full((3, 2), np.inf)), ("infinite",)),
        (good(radius=np.array([np.inf])), ("infinite",)),
        (good(counts=np.array([1.0, 0.0, 1.0])), ("counts", "at least 1", "0.0")),
        (good(counts=np.ones((3, 1))), ("counts", "[3, 1]")),
        (good(rows=np.zeros((100, 2))), ("rows", "centers")),
        (good(points=2.5), ("points", "int", "2.5")),
        (good(inertia=float("nan")), ("inertia", "nan")),
        (good(points=True), ("points", "True")),
        (good(points=(1 << 53) + 1), ("points", "9.01e+15")),
        (good(points=-(10**400)), ("points", "-9.01e+15")),
        (good(inertia=1e251), ("inertia", "1e+250")),
        (good(inertia=10**400), ("inertia", "1e+250")),
        (good(radius=np.array([1e9])), ("radius", "1e", "1000000000.0")),
        (good(centers=np.zeros((300, 2)), counts=np.ones(300)), ("2,000",)),
        (Message("query.centroids", arrays={"centers": np.zeros((3, 2))}), ("counts", "inertia", "points")),
    ],
)
def test_a_rule_refuses(message: Message, names: tuple[str, ...]) -> None:
    with raises_naming(MessageError, *names):
        RULE.check(message)
