"""Write sets of scenes with one question each into a collection."""

from __future__ import annotations

import functools
from pathlib import Path

from foveate_labs.worlds.asked_images import AskedImage, Position, write_asked_images
from foveate_labs.worlds.questions import to_conversation
from foveate_labs.worlds.scenes.image_sets import SETS, draw_image_set
from foveate_labs.worlds.scenes.scene_collection import LICENSE, make_scene_row


def build_image_sets(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 224,
    workers: int = 1,
) -> None:
    """Write sets of two to five scenes into the collection at `target`; existing ones are not drawn again.

    The forms of SETS take turns. The images of a set are one group, and their question is a conversation of the group
    "multi-image".

    Args:
        train, validation, test: number of sets of each split.
        seed: seed of the series.
        size: side in pixels.
        workers: processes that draw; the result does not depend on it.

    Raises:
        UserError: a number is negative, or workers is below 1.
    """
    write_asked_images(
        target,
        functools.partial(draw_asked_set, seed=seed, size=size),
        functools.partial(_make_key, seed=seed),
        counts={"train": train, "validation": validation, "test": test},
        source="image-sets",
        license=LICENSE,
        workers=workers,
    )


def _make_key(position: Position, *, seed: int) -> str:
    # That of the first image, which is written last: it holds the conversation, so it tells that the set is complete.
    return f"set-{position[0]}-{seed}-{position[1]:06d}"


def draw_asked_set(position: Position, *, seed: int, size: int) -> list[AskedImage]:
    """Draw set number `position[1]` of split `position[0]`; its first image comes last, with the conversation."""
    split, index = position
    form = SETS[index % len(SETS)]
    image_set = draw_image_set(form, seed=seed, split=split, index=index, size=size)
    name = _make_key(position, seed=seed)
    keys = tuple(name if number == 0 else f"{name}-{number}" for number in range(len(image_set.scenes)))
    conversation = to_conversation(image_set.question, id=name, images=keys, source=f"image-sets: {form}")
    images = []
    for key, scene in zip(keys, image_set.scenes, strict=True):
        row = make_scene_row(scene, key=key, split=split)
        labels = {**row.labels, "source": "image-sets"}
        conversations = (conversation,) if key == name else ()
        images.append(
            AskedImage(key, row.data, row.captions, row.regions, labels, row.extra, conversations, group=name)
        )
    return images[::-1]
