"""The few verbs that `import foveate` gives: open a model, encode images and boxes, find a phrase, search."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from foveate.core.errors import UserError
from foveate.pretrain.embed import BATCH
from foveate.pretrain.locate import encode_image_bytes
from foveate.pretrain.locate import locate as locate_in
from foveate.pretrain.searching.index import unit
from foveate.pretrain.searching.query import Query, as_box, embed_boxes, typed_box
from foveate.pretrain.searching.search import Hit, Index
from foveate.pretrain.searching.search import search as search_in
from foveate.records.boxes import Box, PixelBox
from foveate.records.geometry import View
from foveate.records.images import BadImage, decode
from foveate.vision.localizer.asking import embed_phrases
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.views import DECODE_FACTOR, placed, render

ImageInput = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, slots=True)
class Location:
    """Where a phrase is.

    Attributes:
        rule: the one that `box` comes from ("head" or "candidates").
        box: the answer in [0, 1] of the image; None where the head gave a box without area.
        score: cosine of the box's embedding with the phrase's, in [-1, 1].
        boxes, scores: every rule's, with the center box and a random one beside them.
        width, height: of the image in pixels, after its EXIF rotation; `box.to_pixels(width, height)` uses them.
    """

    phrase: str
    rule: str
    box: Box | None
    score: float | None
    boxes: Mapping[str, Box | None]
    scores: Mapping[str, float | None]
    width: int
    height: int


def image_bytes(image: ImageInput) -> bytes:
    """The bytes of an image given as a path, as bytes, or as a Pillow image (turned as its EXIF says).

    Raises:
        UserError: when the file cannot be read, or it is something else.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        turned = ImageOps.exif_transpose(image)
        if turned.mode not in ("L", "LA", "P", "RGB", "RGBA", "I;16"):
            turned = turned.convert("RGBA" if turned.mode in ("RGBa", "La", "PA") else "RGB")
        buffer = io.BytesIO()
        turned.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{image}: cannot be read ({error.strerror})") from error
    raise UserError(f"an image is a path, bytes or a Pillow image, not {type(image).__name__}")


class Model:
    """A trained encoder: arrays and typed boxes in and out. Use `foveate.open_model`.

    Attributes:
        network: the PyTorch module, for whatever is not here.
    """

    def __init__(self, network: LocalizingModel) -> None:
        self.network = network

    def __repr__(self) -> str:
        return f"Model({self.network.recipe.regions.method!r}, embed_dim={self.embed_dim})"

    @property
    def embed_dim(self) -> int:
        """Length E of every embedding."""
        return self.network.recipe.embed_dim

    def encode_images(self, images: Iterable[ImageInput]) -> NDArray[np.float32]:
        """Unit-length embeddings [N, E] of images (paths, bytes or Pillow images).

        Raises:
            UserError: naming the first image that cannot be read.
        """
        if isinstance(images, str | os.PathLike | bytes | Image.Image):
            raise UserError("encode_images takes a list of images: write [image] for one")
        found = [np.zeros((0, self.embed_dim), np.float32)]
        batch: list[torch.Tensor] = []
        for number, image in enumerate(images):
            batch.append(self._pixels(image, number))
            if len(batch) == BATCH:
                found.append(self._encode(batch))
                batch = []
        return np.concatenate([*found, self._encode(batch)] if batch else found)

    def _pixels(self, image: ImageInput, number: int) -> torch.Tensor:
        preprocess = self.network.image_encoder.preprocess
        try:
            image = decode(image_bytes(image), longest_side=DECODE_FACTOR * preprocess.long_side)
        except BadImage as problem:
            name = image if isinstance(image, str | os.PathLike) else f"image {number}"
            raise UserError(f"{name}: cannot be read: {problem}") from problem
        return render(preprocess, image, placed(preprocess, image.size, View()))

    @torch.inference_mode()
    def _encode(self, batch: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        return unit(self.network.encode_image(torch.stack(list(batch)))).astype(np.float32)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length embeddings [T, E] of texts: captions, names, phrases."""
        if isinstance(texts, str):
            raise UserError("encode_text takes a list of texts: write [text] for one")
        return unit(embed_phrases(self.network, list(texts))).astype(np.float32)

    def encode_regions(self, image: ImageInput, boxes: Sequence[Box | PixelBox]) -> NDArray[np.float32]:
        """Unit-length embeddings [R, E] of boxes of one image; the image is encoded once.

        Raises:
            UserError: bare numbers instead of boxes, a box outside the image, an unreadable image.
        """
        if isinstance(boxes, Box | PixelBox):
            raise UserError("encode_regions takes a list of boxes: write [box] for one")
        typed = [typed_box(box) for box in boxes]
        if not typed:
            return np.zeros((0, self.embed_dim), np.float32)
        encoded = encode_image_bytes(self.network, image_bytes(image))
        inside = [as_box(box, encoded.width, encoded.height) for box in typed]
        return embed_boxes(self.network, encoded, inside).astype(np.float32)

    def locate(self, image: ImageInput, phrase: str, *, rule: str | None = None, seed: int = 0) -> Location:
        """Where a phrase is in an image; it always answers, so compare the scores.

        Args:
            rule: "head" or "candidates"; the model's better one by default. seed: of the random box.
        """
        found = locate_in(self.network, image_bytes(image), phrase, rule=rule, seed=seed)
        boxes = {name: _box_or_none(corners) for name, corners in found.boxes.items()}
        return Location(
            phrase=found.phrase,
            rule=found.rule,
            box=boxes[found.rule],
            score=found.scores[found.rule],
            boxes=boxes,
            scores=found.scores,
            width=found.width,
            height=found.height,
        )


def _box_or_none(corners: Sequence[float]) -> Box | None:
    x1, y1, x2, y2 = corners
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


class SearchIndex:
    """An index with its model, ready to be asked. Use `foveate.open_index`.

    Attributes:
        index: the index itself, for vectors of one's own (`index.nearest`). model: the one it was made with.
    """

    def __init__(self, index: Index, model: Model) -> None:
        self.index, self.model = index, model

    def __repr__(self) -> str:
        return repr(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def search(
        self,
        words: str | None = None,
        *,
        image: ImageInput | None = None,
        box: Box | PixelBox | None = None,
        negative: str | None = None,
        weights: Mapping[str, float] | None = None,
        count: int = 20,
        kind: str = "both",
        per_image: int = 1,
        backend: str = "exact",
    ) -> list[Hit]:
        """The answers to words, an image, a box in an image, or a weighted sum of them, best first.

        Args:
            box: stands for its `image`. minus: words that the answers should be unlike.
            weights: of the parts "words", "image", "box" and "minus"; 1 where none is given.
            kind: "images", "regions" or "both". per_image: at most so many answers from one image.
            backend: "exact", or "faiss" with the extra of that name.

        Raises:
            UserError: nothing asked, an unreadable image, a box outside it, bare numbers instead of a box.
        """
        data = None if image is None else image_bytes(image)
        query = Query(words=words, image=data, box=box, negative=negative, weights=weights or {})
        hits, _ = search_in(
            self.index, query, self.model.network, count=count, kind=kind, per_image=per_image, backend=backend
        )
        return hits


def open_model(folder: str | os.PathLike[str], *, device: str | None = None) -> Model:
    """Opens a model folder for use.

    Raises:
        UserError: when the folder is no model folder, or a weight is missing, unexpected or of another shape.
    """
    return Model(load_model(Path(folder), device=device))


def open_index(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    collection: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> SearchIndex:
    """Opens an index folder with its model and collection: from where they were, or from where you say.

    Raises:
        UserError: no index, an empty one, a model or collection that is missing or another one.
    """
    index = Index.open(Path(folder), collection=None if collection is None else Path(collection))
    return SearchIndex(index, Model(index.open_model(None if model is None else Path(model), device=device)))


def search(
    folder: str | os.PathLike[str],
    words: str | None = None,
    *,
    image: ImageInput | None = None,
    box: Box | PixelBox | None = None,
    negative: str | None = None,
    weights: Mapping[str, float] | None = None,
    count: int = 20,
    kind: str = "both",
    per_image: int = 1,
    backend: str = "exact",
) -> list[Hit]:
    """One question to an index folder, see `SearchIndex.search`; for many, open it once with `open_index`."""
    return open_index(folder).search(
        words,
        image=image,
        box=box,
        negative=negative,
        weights=weights,
        count=count,
        kind=kind,
        per_image=per_image,
        backend=backend,
    )
