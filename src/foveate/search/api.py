"""The public Python API: open a model, encode images and boxes, locate a phrase, search an index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.hub import DEFAULT_ENCODER
from foveate.core.hub_upload import HubMixin
from foveate.records.boxes import Box, PixelBox
from foveate.records.images import BadImage, DecodedImage, ImageInput, encode_input, is_single_image
from foveate.search.index import unit
from foveate.search.locate import encode_image, render_request
from foveate.search.locate import locate as locate_in
from foveate.search.query import Query, check_box, embed_boxes, to_fractions
from foveate.search.search import Hit, Index, Verdict
from foveate.search.search import search as search_in
from foveate.search.settings import TEXT_WEIGHT
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.sources import find_model

_BATCH = 32  # images in one pass of the encoder, as many as an evaluation takes


@dataclass(frozen=True, slots=True)
class Location:
    """The box of a phrase in an image.

    Attributes:
        rule: the one that `box` comes from ("head" or "candidates").
        box: in [0, 1] of the image; None if the head's box has no area.
        score: cosine of the box's embedding with the phrase's, in [-1, 1].
        boxes, scores: of every rule, and of the center box and a random box as baselines.
        width, height: of the image in pixels, after its EXIF rotation; `box.to_pixels(width, height)` uses them.
        has_match: False where the phrase matches no candidate box better than random names do. floor: their cosine.
        unknown_words: of the phrase, that the text tower cannot tell from random letters.

    Example:
        >>> location = open_model(model_folder).locate(image_file, "a red disc")
        >>> location.box == location.boxes[location.rule]
        True
    """

    phrase: str
    rule: str
    box: Box | None
    score: float | None
    boxes: Mapping[str, Box | None]
    scores: Mapping[str, float | None]
    width: int
    height: int
    has_match: bool = True
    floor: float | None = None
    unknown_words: tuple[str, ...] = ()


class Model(HubMixin):
    """A trained encoder: arrays and typed boxes in and out. Use `foveate.open_model`.

    Attributes:
        network: the PyTorch module behind it. folder: that it was opened from, if any.

    Example:
        >>> model = open_model(model_folder)
        >>> model.encode_images([image_file]).shape == (1, model.embed_dim)
        True
    """

    _opener = "foveate.search.api:open_model"

    def __init__(self, network: LocalizingModel, *, folder: Path | None = None) -> None:
        self.network, self.folder = network, folder

    def __repr__(self) -> str:
        return f"Model({self.network.recipe.regions.method!r}, embed_dim={self.embed_dim})"

    @property
    def embed_dim(self) -> int:
        """Length E of every embedding."""
        return self.network.recipe.embed_dim

    def encode_images(self, images: Iterable[ImageInput | DecodedImage]) -> NDArray[np.float32]:
        """Return unit-length embeddings [N, E] of images (paths, bytes or Pillow images).

        Raises:
            UserError: naming the first image that cannot be read.
        """
        if is_single_image(images):
            raise UserError("images: expected a list (got a single image); write [image]")
        # An empty part first: without images the result still has the width E.
        parts = [np.zeros((0, self.embed_dim), np.float32)]
        # Batch by batch, so that an iterator over many images is never held as a whole.
        batch: list[torch.Tensor] = []
        for number, image in enumerate(images):
            batch.append(self._pixels(image, number))
            if len(batch) == _BATCH:
                parts.append(self._encode(batch))
                batch = []
        return np.concatenate([*parts, self._encode(batch)] if batch else parts)

    def _pixels(self, image: ImageInput | DecodedImage, number: int) -> torch.Tensor:
        try:
            return render_request(self.network, image if isinstance(image, DecodedImage) else encode_input(image))[0]
        except BadImage as problem:
            name = image if isinstance(image, str | os.PathLike) else f"image {number}"
            raise UserError(f"{name}: cannot be read: {problem}") from problem

    @torch.inference_mode()
    def _encode(self, batch: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        return unit(self.network.encode_image(torch.stack(list(batch)))).astype(np.float32)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit-length embeddings [T, E] of texts: captions, names, phrases."""
        # A string is itself a sequence of strings: each letter would be embedded.
        if isinstance(texts, str):
            raise UserError("texts: expected a list (got a single text); write [text]")
        return unit(embed_phrases(self.network, list(texts))).astype(np.float32)

    def encode_regions(self, image: ImageInput | DecodedImage, boxes: Sequence[Box | PixelBox]) -> NDArray[np.float32]:
        """Return unit-length embeddings [R, E] of boxes of one image; the image is encoded once.

        Raises:
            UserError: bare numbers instead of boxes, a box outside the image, an unreadable image.
        """
        if isinstance(boxes, Box | PixelBox):
            raise UserError("boxes: expected a list (got a single box); write [box]")
        checked = [check_box(box) for box in boxes]
        if not checked:
            return np.zeros((0, self.embed_dim), np.float32)
        encoded = encode_image(self.network, image if isinstance(image, DecodedImage) else encode_input(image))
        inside = [to_fractions(box, encoded.width, encoded.height) for box in checked]
        return embed_boxes(self.network, encoded, inside).astype(np.float32)

    def locate(self, image: ImageInput, phrase: str, *, rule: str | None = None, seed: int = 0) -> Location:
        """Locate a phrase in an image. There is a box for every phrase, also where it does not match (`has_match`).

        Args:
            rule: "head" or "candidates"; the model's better one by default. seed: of the random baseline box.
        """
        located = locate_in(self.network, encode_input(image), phrase, rule=rule, seed=seed)
        boxes = {name: _box_or_none(corners) for name, corners in located.boxes.items()}
        return Location(
            phrase=located.phrase,
            rule=located.rule,
            box=boxes[located.rule],
            score=located.scores[located.rule],
            boxes=boxes,
            scores=located.scores,
            width=located.width,
            height=located.height,
            has_match=located.has_match,
            floor=located.floor,
            unknown_words=located.unknown_words,
        )


def _box_or_none(corners: Sequence[float]) -> Box | None:
    x1, y1, x2, y2 = corners
    # A predicted box may have no area, which a `Box` must have.
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


class SearchIndex(HubMixin):
    """An index with its model. Use `foveate.open_index`.

    Attributes:
        index: the index itself, to search by your own vectors (`index.nearest`). model: that it was made with.

    Example:
        >>> hits = open_index(index_folder).search("a red disc", count=5)
        >>> len(hits)
        5
    """

    _opener = "foveate.search.api:open_index"

    def __init__(self, index: Index, model: Model) -> None:
        self.index, self.model, self.folder = index, model, index.folder

    def __repr__(self) -> str:
        return repr(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        box: Box | PixelBox | None = None,
        negative: str | None = None,
        weights: Mapping[str, float] | None = None,
        count: int = 20,
        kind: str = "both",
        per_image: int = 1,
        backend: str = "exact",
        text_weight: float = TEXT_WEIGHT,
    ) -> list[Hit]:
        """Search by a text, an image, a box in an image, or a weighted sum of them; return the best hits first.

        Args:
            box: in `image`, which it then stands for.
            negative: a text that the hits should be unlike.
            weights: of the parts "text", "image", "box" and "negative"; 1 by default.
            kind: "images", "regions" or "both". per_image: maximum of hits from one image.
            backend: "exact", or with the extra of that name "faiss" or "faiss:FACTORY", as in "faiss:IVF4096,PQ64".
            text_weight: of the text's words in captions and file names; 0 ignores them.

        Raises:
            UserError: an empty query, an unreadable image, a box outside it, bare numbers instead of a box.
        """
        data = None if image is None else encode_input(image)
        query = Query(text=text, image=data, box=box, negative=negative, weights=weights or {})
        hits, _ = search_in(
            self.index,
            query,
            self.model.network,
            count=count,
            kind=kind,
            per_image=per_image,
            backend=backend,
            text_weight=text_weight,
        )
        return hits

    def judge(self, text: str, hits: Sequence[Hit], *, kind: str = "both", text_weight: float = TEXT_WEIGHT) -> Verdict:
        """Judge whether the hits of a text are better than those of texts without a meaning.

        Args:
            kind, text_weight: those of the search.

        Example:
            >>> index = open_index(index_folder)
            >>> index.judge("a red disc", index.search("a red disc")).unknown_words
            ()
        """
        return self.index.judge(Query(text=text), hits, self.model.network, kind=kind, text_weight=text_weight)


def open_model(name: str | os.PathLike[str] = DEFAULT_ENCODER, *, device: str | None = None) -> Model:
    """Open a trained model.

    Args:
        name: "small", which ships with Foveate and needs no network, a folder of Foveate, open_clip or transformers
            (CLIP, SigLIP), `OWNER/NAME` of the hub, or `open_clip:ARCH/PRETRAINED`.

    Raises:
        UserError: when there is no such model, or a weight is missing, unexpected or of another shape.

    Example:
        >>> open_model(model_folder).encode_text(["a red disc", "a blue square"]).shape
        (2, 32)
    """
    source = find_model(os.fspath(name))
    return Model(source.load(device=device), folder=source.folder)


def open_index(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    collection: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> SearchIndex:
    """Open an index with its model and collection.

    Args:
        folder: of `foveate index`, or OWNER/NAME of the hub, which needs `collection`.
        model, collection: their folders, if they are no longer where they were when the index was made.

    Raises:
        UserError: not an index, an empty one, a model or collection that is missing or another one.

    Example:
        >>> [hit.kind for hit in open_index(index_folder).search("a red disc", count=2, kind="images")]
        ['images', 'images']
    """
    index = Index.open(folder, collection=None if collection is None else Path(collection))
    return SearchIndex(index, Model(index.open_model(None if model is None else Path(model), device=device)))


def search(
    folder: str | os.PathLike[str],
    text: str | None = None,
    *,
    image: ImageInput | None = None,
    box: Box | PixelBox | None = None,
    negative: str | None = None,
    weights: Mapping[str, float] | None = None,
    count: int = 20,
    kind: str = "both",
    per_image: int = 1,
    backend: str = "exact",
    text_weight: float = TEXT_WEIGHT,
) -> list[Hit]:
    """Search an index folder once, see `SearchIndex.search`; for many queries open it once with `open_index`.

    Example:
        >>> len(search(index_folder, "a red disc", count=3))
        3
    """
    return open_index(folder).search(
        text,
        image=image,
        box=box,
        negative=negative,
        weights=weights,
        count=count,
        kind=kind,
        per_image=per_image,
        backend=backend,
        text_weight=text_weight,
    )
