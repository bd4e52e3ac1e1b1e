"""Sets of images with the conversations about them: what a stage draws its samples from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveate.mllm.recipe import StageSettings
from foveate.multimodal.assemble import AssemblyOptions, plan_sample
from foveate.multimodal.prompts import images_lead
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation
from foveate.vision.tiling import ImageSize, TilePlan


class ImageSet(NamedTuple):
    """A set of images and the conversations about it.

    Attributes:
        rows: of the images, in order.
        conversations: of the groups of a stage. others: of other groups, for its share of replay.
        in_text: the images stand within the text of the only conversation, see `prompts.images_lead`.
    """

    rows: tuple[int, ...]
    conversations: tuple[Conversation, ...]
    others: tuple[Conversation, ...] = ()
    in_text: bool = False


def group_by_images(
    conversations: Sequence[Conversation], collection: Collection, rows: set[int], *, in_text: bool = False
) -> list[ImageSet]:
    """Group conversations by their images; sets with an image outside `rows` are left out.

    Rows without a conversation are sets of their own, so that alignment sees their regions. So are conversations
    without images, or with images within their text.

    Args:
        in_text: images are always placed in the turns that name them.
    """
    row_of = {key: row for row, key in enumerate(collection.keys)}
    grouped: dict[tuple[int, ...], list[Conversation]] = defaultdict(list)
    alone: list[ImageSet] = []
    for conversation in conversations:
        # -1 is in no split: a conversation with such an image is left out.
        of_images = tuple(row_of.get(key, -1) for key in conversation.images)
        if not rows.issuperset(of_images):
            continue
        if of_images and images_lead(conversation.turns) and not in_text:
            grouped[of_images].append(conversation)
        else:
            alone.append(ImageSet(of_images, (conversation,), in_text=bool(of_images)))
    keys = sorted({*grouped, *((row,) for row in rows)})
    return [*(ImageSet(key, tuple(grouped.get(key, ()))) for key in keys), *alone]


def select_sets(sets: Sequence[ImageSet], stage: StageSettings) -> list[ImageSet]:
    """Return all sets with the conversations of a stage's groups.

    With a mixture or multipliers a set has conversations of one group only: shares of samples are those of groups.
    Conversations without images stand together as many as a sample may have.
    """
    selected: list[ImageSet] = []
    texts: dict[str, list[Conversation]] = defaultdict(list)
    for images in sets:
        by_group: dict[str, list[Conversation]] = defaultdict(list)
        others: tuple[Conversation, ...] = ()
        if stage.replay and not images.in_text:
            others = tuple(talk for talk in images.conversations if talk.group not in stage.groups)
        for conversation in images.conversations:
            if not stage.groups or conversation.group in stage.groups:
                by_group[conversation.group if stage.is_by_group else ""].append(conversation)
        if images.rows:
            # An image without conversations stays, for the alignment of its regions.
            parts = list(by_group.values()) or [[]]
            selected += [images._replace(conversations=tuple(part), others=others) for part in parts]
        else:
            for group, part in by_group.items():
                texts[group] += part
    size = stage.max_conversations
    for part in texts.values():
        selected += [ImageSet((), tuple(part[start : start + size])) for start in range(0, len(part), size)]
    return selected


def find_usable_sets(sets: Sequence[ImageSet], collection: Collection, *, texts: bool) -> NDArray[np.int64]:
    """Return the numbers of the sets that a stage can draw: with a conversation, or without texts with a region."""
    # Images without regions contribute nothing to alignment: a stage without texts would waste its steps on them.
    named = set() if texts else set(collection.table("regions")["key"].to_pylist())
    usable = [
        number
        for number, images in enumerate(sets)
        if (
            images.conversations
            if texts
            else not images.in_text and any(collection.keys[row] in named for row in images.rows)
        )
    ]
    return np.asarray(usable, dtype=np.int64)


def plan_rows(
    sets: Sequence[ImageSet], collection: Collection, rows: NDArray[np.int64], assembly: AssemblyOptions
) -> list[list[TilePlan]]:
    """List by which plans the image of each row is cut: as in a sample of few images, of many, or both."""
    plans: dict[int, list[TilePlan]] = {row: [] for row in rows.tolist()}
    for group in sets:
        for row, plan in zip(group.rows, plan_sample(read_sizes(collection, group.rows), assembly).images, strict=True):
            if plan not in plans[row]:
                plans[row].append(plan)
    return list(plans.values())


def read_sizes(collection: Collection, rows: Sequence[int]) -> list[ImageSize]:
    index = collection.index
    return [ImageSize(int(index["height"][row]), int(index["width"][row])) for row in rows]
