"""Group the examples of a run for its page: regions with their names, phrases with their boxes."""

from __future__ import annotations

from typing import Any

from foveate.core.results import Example
from foveate.report import parts, words
from foveate.report.images import Overlay


def region_overlays(example: Example) -> list[Overlay]:
    """Return the boxes of a record, without one that is the whole image."""
    # A box around the whole image locates nothing, and its outline would look like a frame.
    return [Overlay(r.box, "region") for r in example.regions if min(r.box[2:]) < 0.99 or max(r.box[:2]) > 0.01]


def example_groups(examples: list[Example]) -> list[dict[str, Any]]:
    """Group records by source, with their overlays."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        entry = {"example": example, "overlays": region_overlays(example)}
        groups.setdefault(words.data(example.source) if example.source else "", []).append(entry)
    return [{"title": title, "members": members} for title, members in groups.items()]


def group_title(data: str, slice_: str) -> str:
    """Format data and slice as a heading, such as "Generated scenes: concepts it has seen"."""
    pieces = [words.data(data)] if data else []
    if slice_:
        pieces.append(words.slice_name(slice_))
    title = ": ".join(pieces) or "All"
    return title[:1].upper() + title[1:]


def where_groups(answers: list[Any], default: str) -> list[dict[str, Any]]:
    """Group 'where is' answers by data and slice, with the number of right boxes."""
    groups = []
    for (data, slice_), members in parts.group_answers(answers).items():
        items = [parts.locate_card(answer, default) for answer in members]
        # Without a true box an answer is neither right nor wrong.
        judged = [item for item in items if item["right"] is not None]
        right = sum(item["right"] for item in judged)
        groups.append({"title": group_title(data, slice_), "members": items, "right": right, "n": len(judged)})
    return groups


def which_groups(answers: list[Any]) -> list[dict[str, Any]]:
    """Group 'which of these boxes' answers by data and slice, with the number of right ones."""
    groups = []
    for (data, slice_), members in parts.group_answers(answers).items():
        items = [parts.choice_card(answer) for answer in members]
        right = sum(item["right"] for item in items)
        groups.append({"title": group_title(data, slice_), "members": items, "right": right, "n": len(items)})
    return groups


def rules_of(answers: list[Any], default: str) -> list[str]:
    """List all rules that answered, the default first."""
    names = {name for answer in answers for name in answer.boxes}
    order = {name: number for number, name in enumerate(parts.RULE_ORDER)}
    # 99 puts rules that the page does not know last.
    return sorted(names, key=lambda name: (name != default, order.get(name, 99), name))
