"""Open the images of a collection as a classification: labels by class number, content by stored hash.

How an image becomes pixels is not known here: the caller reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import UserError, nearest
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.training.classification import LabeledImages

LoadView = Callable[[int, View], Tensor]
"""Returns uint8 pixels [3, H, W] of a view of a row's image."""


def open_labeled_images(
    collection: Collection, field: str, classes: Sequence[str], *, splits: Sequence[str], load: LoadView
) -> LabeledImages:
    """Open the images of a collection for a classifier that exists already.

    Args:
        classes: of the classifier, in the order of its logits; some may have no image.
        splits: in which every label has to be one of the classes.
        load: reads a view of the image of a row.

    Raises:
        UserError: unknown field or split, a label that is not a class, a split without a labeled image.

    Example:
        >>> from foveate.vision import open_classifier, read_image
        >>> classifier, collection = open_classifier(classifier_folder), Collection.open(collection_folder)
        >>> def load(row, view):
        ...     return read_image(collection, row, classifier.preprocess, view)[0]
        >>> images = open_labeled_images(collection, "category", classifier.names, splits=["train"], load=load)
        >>> len(images.rows("train"))
        18
    """
    values = collection.label_values(field)
    for split in splits:
        rows = collection.rows(split)
        # The empty string is "no label", which is no class of any model.
        unknown = sorted(set(values[rows].tolist()) - {"", *classes})
        if unknown:
            raise UserError(
                f"label field '{field}' of the collection {collection.name!r}: {len(unknown)} values are not classes "
                f"of the model, first '{unknown[0]}'{nearest(unknown[0], classes)}"
            )
        if not (values[rows] != "").any():
            raise UserError(f"no image of the split '{split}' has a label '{field}'")
    return label_collection(collection, values, classes, load)


def label_collection(
    collection: Collection, values: NDArray[Any], classes: Sequence[str], load: LoadView
) -> LabeledImages:
    """Give the images of a collection the numbers of their classes; -1 to those without any.

    Args:
        values: label of each image, "" for none.
        load: reads a view of the image of a row.
    """

    def size(row: int) -> tuple[int, int]:
        return int(collection.index["width"][row]), int(collection.index["height"][row])

    labels, hashes = number_labels(values, classes), collection.index["sha256"]
    return LabeledImages(
        collection.name,
        tuple(classes),
        collection.keys,
        labels,
        np.asarray(collection.splits),
        load,
        size,
        # The stored hash, so that no image is read just to identify it.
        content=lambda row: str(hashes[row]).encode(),
    )


def number_labels(values: NDArray[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each label among the classes."""
    indices = {label: index for index, label in enumerate(classes)}
    # -1 for images of other classes and without a label: they take part in nothing.
    return np.array([indices.get(str(value), -1) for value in values.tolist()], dtype=np.int64)
