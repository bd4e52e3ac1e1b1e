"""10,000 hostile conversations: each is imported or quarantined with a reason, none is lost, and nothing crashes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_conversations import WRITERS

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations, check_conversation
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.formats import load_formats

pytestmark = pytest.mark.slow

HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\x00",
    "\ud800",
    "<image>",
    "<region>",
    "<image>" * 300,
    "[1, 2, 3, 4]" * 50,
    "[nan, 1, 2, 3]",
    "[-5, 1e9, 3, 4]",
    "<bbox_location0>",
    "<bbox_location999999>",
    "<box>(1,2),(3,4)</box>",
    "<img>../../etc/passwd</img>",
    "<img></img>",
    "../x.jpg",
    "/dev/zero",
    "http://x/y.jpg",
    "data:image/png;base64,AAAA",
    "data:,",
    "a" * 5000,
    "\u202e\u0000\U0001f9a5",
    [],
    [[]],
    {},
    [None],
    [1, 2],
    [1, 2, 3, 4],
    [[1, 2, 3, 4]],
    {"size": [60, 80], "counts": "~~~~"},
    {"size": [-1, 5], "counts": [1]},
    {"size": [10**9, 10**9], "counts": [10**18]},
    {"type": "image"},
    [{"type": "image"}],
    {"url": {"url": {}}},
]


def mutate(value: Any, generator: np.random.Generator) -> Any:
    """Replace, drop, repeat or cut one part somewhere in a JSON value."""
    if isinstance(value, dict) and value and generator.random() < 0.85:
        name = list(value)[generator.integers(len(value))]
        kind = generator.random()
        if kind < 0.1:
            return {key: inner for key, inner in value.items() if key != name}
        return {**value, name: mutate(value[name], generator)}
    if isinstance(value, list) and value and generator.random() < 0.85:
        index = int(generator.integers(len(value)))
        kind = generator.random()
        if kind < 0.1:
            return value[:index] + value[index + 1 :]
        if kind < 0.2:
            return [*value, value[index]]
        return [*value[:index], mutate(value[index], generator), *value[index + 1 :]]
    if isinstance(value, str) and value and generator.random() < 0.5:
        cut = int(generator.integers(len(value)))
        return (
            value[:cut] + generator.choice(["", "<image>", "<region>", "[1, 2, 3", "\x07", "]", "\ud800"]) + value[cut:]
        )
    return copy.deepcopy(HOSTILE[generator.integers(len(HOSTILE))])


def hostile_entries(valid: list[Any], count: int, generator: np.random.Generator) -> Iterator[Any]:
    for _ in range(count):
        entry = copy.deepcopy(valid[generator.integers(len(valid))])
        for _ in range(generator.integers(1, 4)):
            entry = mutate(entry, generator)
        yield entry


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_hostile_conversations(tmp_path: Path, name: str) -> None:
    writer, unit = WRITERS[name]
    source = writer(tmp_path / "set")
    generator = np.random.default_rng(16)
    lines = source.suffix == ".jsonl"
    content = (
        [json.loads(line) for line in source.read_text().splitlines()] if lines else json.loads(source.read_text())
    )
    valid = content["questions"] if isinstance(content, dict) else content
    # Good ones first: the check of the first boxes must not refuse the file.
    entries = valid * 340 + list(hostile_entries(valid, 2000, generator))
    if isinstance(content, dict):
        source.write_text(json.dumps({**content, "questions": entries}))
    elif lines:
        source.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        source.write_text(json.dumps(entries))
    options: dict[str, Any] = {} if unit is None else {"coordinates": unit}
    run = load_formats()[name].run
    summary = run(source, tmp_path / "c", workers=1, show_progress=False, created="now", **options)
    with Collection.open(tmp_path / "c") as collection:
        stored = list(Conversations(collection))
        index = collection.index
        sides = zip(index["width"].tolist(), index["height"].tolist(), strict=True)
        sizes = dict(zip(collection.keys, sides, strict=True))
        assert all(key.split("/")[0] != ".." for key in collection.keys)
    for conversation in stored:
        check_conversation(conversation, sizes)
    refused = sum(count for reason, count in summary.quarantined.items() if reason.startswith("conversation: "))
    assert len(stored) + refused == len(entries)
    assert refused > 300
    again = run(source, tmp_path / "c", workers=1, show_progress=False, created="now", **options)
    assert again.further["conversations already in the collection"] == len(stored)


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff\xfe" + data,
        lambda data: b"[" * 100_000,
        lambda data: b"{}",
        lambda data: b"[]",
        lambda data: b"3",
        lambda data: b"null\n",
    ],
)
def test_hostile_files(tmp_path: Path, name: str, spoil: Callable[[bytes], bytes]) -> None:
    writer, unit = WRITERS[name]
    source = writer(tmp_path / "set")
    source.write_bytes(spoil(source.read_bytes()))
    options: dict[str, Any] = {} if unit is None else {"coordinates": unit}
    outcome: object
    try:
        outcome = load_formats()[name].run(source, tmp_path / "c", workers=1, show_progress=False, **options)
    except UserError as error:
        outcome = error
    assert isinstance(outcome, ImportSummary) or source.name in str(outcome)
