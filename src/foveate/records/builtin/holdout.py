"""Which single images are for training and which are for tests.

Emoji: by concept, both styles together; a concept is in the test part unless it is a seen one whose short names name
nothing unseen. Clip art: by group of near-duplicates (equal titles apart from case and digits, or nearly equal
images); a group is for tests if one of its texts names something unseen, and a share of the other groups besides.
"""

from __future__ import annotations

import functools

from foveate.core.seeds import uniform
from foveate.records.builtin import concepts, families, tables

TRAIN, TEST = "train", "test"
CLIPART_TEST_SHARE = 0.03


@functools.cache
def clipart_groups() -> dict[str, str]:
    """Key of a clip art image -> name of its group, the first key of it in the table."""
    return {row["key"]: row["group"] for row in tables.rows("clipart")}


@functools.cache
def _splits() -> dict[str, str]:
    found = {}
    for row in tables.rows("emoji"):
        seen = concepts.concept_slice(families.concept_of_emoji(row)) == concepts.SEEN
        seen = seen and not any(concepts.mentions_unseen(name) for name in row["short_names"])
        found[row["key"]] = TRAIN if seen else TEST
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
        found[key] = TEST if drawn or group in tested else TRAIN
    return found


def assign_split(key: str) -> str:
    """ "train" or "test" for a key of the shipped tables."""
    return _splits()[key]
