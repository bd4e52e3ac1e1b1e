"""Measures of the study `captions`: searches with short and long texts, zero-shot names, a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from foveate.caption.judges import encode_images
from foveate.pretrain.dataset import StoredTexts
from foveate.records.collection import Collection
from foveate_labs.studies.captions_data import QUERY_LONG, QUERY_SHORT, classes_of

BEST = 10
NAMES_BEST = 5


class Questions:
    """Queries, names and categories of a collection, the same for every model."""

    def __init__(self, collection: Collection) -> None:
        self.test, self.train = collection.rows("test"), collection.rows("train")
        self.queries = {
            kind: [_text(collection, row, kind) for row in self.test.tolist()] for kind in (QUERY_SHORT, QUERY_LONG)
        }
        self.names, self.categories = classes_of(collection, self.test.tolist())
        _, self.train_categories = classes_of(collection, self.train.tolist())

    def texts(self) -> list[str]:
        """Return all texts that have to be embedded."""
        return [*self.queries[QUERY_SHORT], *self.queries[QUERY_LONG], *filter(None, self.names)]


def _text(collection: Collection, row: int, kind: str) -> str:
    return next((caption.text for caption in collection.read_captions(row) if caption.kind == kind), "")


@torch.no_grad()
def measure(model: Any, collection: Collection, *, cache: Path) -> dict[str, float]:
    """Return all measures of a model on a collection."""
    questions = Questions(collection)
    rows = np.sort(np.concatenate([questions.test, questions.train]))
    encoded, bad, image_NE = encode_images(model, collection, rows, cache=cache)
    assert not bad, "built-in images can be read"
    position = {row: number for number, row in enumerate(encoded.tolist())}
    test_NE = image_NE[[position[row] for row in questions.test.tolist()]]
    train_NE = image_NE[[position[row] for row in questions.train.tolist()]]
    stored = StoredTexts(model.text_encoder, pa.chunked_array([pa.array(questions.texts(), pa.string())]), cache=cache)

    def embedded(texts: Sequence[str]) -> NDArray[np.float32]:
        features = stored[list(texts)].to(model.device)
        return F.normalize(model.text_encoder(features).float(), dim=-1).cpu().numpy()

    values = {}
    for name, kind in (("short", QUERY_SHORT), ("long", QUERY_LONG)):
        # Each text once in the gallery: copies would take places among the best.
        distinct = list(dict.fromkeys(filter(None, questions.queries[kind])))
        values[name] = retrieval(test_NE, embedded(distinct), questions.queries[kind], distinct, best=BEST)
    names = list(dict.fromkeys(filter(None, questions.names)))
    values["names"] = right_name(test_NE, embedded(names), questions.names, names, best=NAMES_BEST)
    values["probe"] = probe(train_NE, questions.train_categories, test_NE, questions.categories)
    return values


def retrieval(
    image_NE: NDArray[np.float32],
    text_TE: NDArray[np.float32],
    image_texts: Sequence[str],
    texts: Sequence[str],
    *,
    best: int,
) -> float:
    """Return the mean recall@`best` of both directions.

    Args:
        image_texts: the text of each image, "" for none. texts: the different texts, as in `text_TE`. Images with
            equal texts are equally right answers.
    """
    position = {text: number for number, text in enumerate(texts)}
    owner_N = np.array([position.get(text, -1) for text in image_texts])
    cosine_NT = image_NE @ text_TE.T
    has_text = owner_N >= 0
    # Stable, so that equal cosines keep the order of the texts.
    to_text = np.argsort(-cosine_NT[has_text], axis=1, kind="stable")[:, :best]
    of_images = (to_text == owner_N[has_text][:, None]).any(1).mean()
    to_image = np.argsort(-cosine_NT.T, axis=1, kind="stable")[:, :best]
    of_texts = (owner_N[to_image] == np.arange(len(texts))[:, None]).any(1).mean()
    return float((of_images + of_texts) / 2)


def right_name(
    image_NE: NDArray[np.float32],
    name_TE: NDArray[np.float32],
    image_names: Sequence[str],
    names: Sequence[str],
    *,
    best: int,
) -> float:
    """Return how often an image's name is among the `best` of all names, zero-shot."""
    position = {name: number for number, name in enumerate(names)}
    owner_N = np.array([position.get(name, -1) for name in image_names])
    has_name = owner_N >= 0
    first = np.argsort(-(image_NE[has_name] @ name_TE.T), axis=1, kind="stable")[:, :best]
    return float((first == owner_N[has_name][:, None]).any(1).mean())


def probe(
    train_NE: NDArray[np.float32], train: Sequence[str], test_NE: NDArray[np.float32], test: Sequence[str]
) -> float:
    """Return the accuracy of a logistic regression from embeddings to categories."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    fit = np.array([bool(label) for label in train])
    has_label = np.array([bool(label) for label in test])
    scaler = StandardScaler().fit(train_NE[fit])
    model = LogisticRegression(C=0.1, max_iter=200)
    model.fit(scaler.transform(train_NE[fit]), [label for label in train if label])
    right = model.predict(scaler.transform(test_NE[has_label])) == np.array([label for label in test if label])
    return float(right.mean())
