"""Split the shipped single images into training and test.

Emoji: by concept, both styles together; a concept is in the test part unless it is seen and its short names name
nothing unseen. Clip art: by group of near-duplicates (equal titles apart from case and digits, or nearly equal
images); a group is in the test part if one of its texts names something unseen, and so is a share of the other groups.
"""

from __future__ import annotations

import functools

from foveate.core.seeds import uniform
from foveate.records.builtin import families, tables
from foveate_labs.worlds.builtin import concepts

TRAIN, TEST = "train", "test"
CLIPART_TEST_SHARE = 0.03


@functools.cache
def clipart_groups() -> dict[str, str]:
    """Return {key of a clip art image: name of its group}, which is the first key of the group in the table."""
    return {row["key"]: row["group"] for row in tables.rows("clipart")}


@functools.cache
def _splits() -> dict[str, str]:
    splits = {}
    for row in tables.rows("emoji"):
        seen = concepts.concept_slice(families.concept_of_emoji(row)) == concepts.SEEN
        seen = seen and not any(concepts.mentions_unseen(name) for name in row["short_names"])
        splits[row["key"]] = TRAIN if seen else TEST
    groups, named = clipart_groups(), families.clipart_phrases()
    tested = set()
    for row in tables.rows("clipart"):
        texts = " ".join([row["title"], *row["keywords"], row["description"]])
        phrase = named.get(row["key"])
        held = phrase is not None and concepts.concept_slice(phrase) != concepts.SEEN
        if held or concepts.mentions_unseen(texts):
            tested.add(groups[row["key"]])
    for key, group in groups.items():
        drawn = uniform("clipart test", concepts.SEED, group) < CLIPART_TEST_SHARE
        splits[key] = TEST if drawn or group in tested else TRAIN
    return splits


def assign_split(key: str) -> str:
    """Return "train" or "test" for a key of the shipped tables."""
    return _splits()[key]
