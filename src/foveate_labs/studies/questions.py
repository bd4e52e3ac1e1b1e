"""Example questions to a trained encoder, answered on held-out images, with thumbnails for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.metrics.grounding import baseline_boxes, is_unique_phrase
from foveate.metrics.retrieval import normalize
from foveate.pretrain.embed import CollectionEmbeddings
from foveate.records.boxes import intersection_over_union
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.records.text import split_words
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel

NUM_HITS = 5


@dataclass(frozen=True)
class PlainQuery:
    """A query as a person types it, with what makes a result the very thing or of the right kind.

    Attributes:
        names: words of titles and keywords. exact, kinds: subcategories with all below them ("food/fruit" is below
            "food", "food-fruit" below "food-"). besides: subcategories that are only of the right kind.
    """

    text: str
    names: frozenset[str]
    exact: tuple[str, ...]
    kinds: tuple[str, ...]
    besides: tuple[str, ...] = ()

    def judge(self, terms: frozenset[str], subcategories: Sequence[str]) -> tuple[bool, bool]:
        """Return whether an image with these terms and subcategories is the very thing, else of the right kind."""
        exact = [name for name in subcategories if _is_below(name, self.exact) and not _is_below(name, self.besides)]
        right = bool(self.names & terms or exact)
        return right, not right and any(_is_below(name, self.kinds) for name in subcategories)


def _is_below(subcategory: str, prefixes: Sequence[str]) -> bool:
    return any(
        subcategory == prefix or subcategory.startswith(prefix if prefix.endswith("-") else f"{prefix}/")
        for prefix in prefixes
    )


def _query(text: str, names: str, exact: str, kinds: str, besides: str = "") -> PlainQuery:
    return PlainQuery(
        text, frozenset(names.split()), tuple(exact.split()), tuple(kinds.split()), tuple(besides.split())
    )


# The texts were written before any of them was run; the page opens with the first.
PLAIN_QUERIES = (
    _query(
        "a boat",
        "boat boats rowboat sailboat motorboat speedboat ship ferry yacht canoe kayak",
        "",
        "transportation transport-",
    ),
    _query(
        "something to eat", "food meal", "food food-", "drink dishware food/beverages animal-marine", "food/beverages"
    ),
    _query("a bird", "bird birds", "animals/birds animal-bird", "animals animal- cat-face monkey-face"),
    _query("a flower", "flower flowers blossom", "plants/flowers plant-flower", "plants plant-"),
    _query("a happy face", "happy smile smiling grinning laughing", "face-smiling", "face- people/smilies emotion"),
    _query("something to wear", "clothes clothing", "clothing people/clothing", "people person-"),
    _query("a musical instrument", "instrument", "musical-instrument", "recreation/music music sound"),
    _query("a car", "car cars automobile taxi cab", "", "transportation transport-"),
)


class Album:
    """Held-out images with the embeddings of each model; saves thumbnails of those on the page."""

    def __init__(self, collection: Collection, run: Path, embedded: dict[str, CollectionEmbeddings], seed: int) -> None:
        self.collection, self.run, self.embedded, self.seed = collection, run, embedded, seed
        self.any = next(iter(embedded.values()))
        self.sources: NDArray[Any] = collection.label_values("source")[self.any.rows]

    @cached_property
    def subcategory_of(self) -> dict[str, str]:
        """Map concept to subcategory, as the single drawings of the collection have it."""
        concepts, subcategories = (self._labels(name) for name in ("concept", "subcategory"))
        return {str(concept): str(name) for concept, name in zip(concepts, subcategories, strict=True) if concept}

    @cached_property
    def subcategories(self) -> NDArray[Any]:
        """Subcategory of each evaluated image; "" of a scene."""
        return self._labels("subcategory")[self.any.rows]

    def _labels(self, field: str) -> NDArray[Any]:
        """Return the values of a label field for all rows, "" where the collection has no such field."""
        if field not in self.collection.table("labels")["field"].to_pylist():
            return np.full(len(self.collection), "", dtype=object)
        return self.collection.label_values(field)

    @cached_property
    def contents(self) -> list[tuple[frozenset[str], list[str]]]:
        """Words and subcategories of each evaluated image: its title and keywords, and those of what a scene shows."""
        regions: dict[int, list[int]] = {}
        for index, position in enumerate(self.any.image_R.tolist()):
            regions.setdefault(position, []).append(index)
        contents = []
        for position, row in enumerate(self.any.rows.tolist()):
            texts, names = [], []
            if subcategory := str(self.subcategories[position] or ""):
                captions = self.collection.read_captions(row)
                texts = [caption.text for caption in captions if caption.kind in ("title", "keywords")]
                names = [subcategory]
            else:
                # By the regions: the AltText of a scene is noise on purpose.
                regions_of_image = [self.any.regions[index] for index in regions.get(position, [])]
                texts = [region.phrase for region in regions_of_image]
                names = [self.subcategory_of.get(region.label or "", "") for region in regions_of_image]
            contents.append((frozenset(word for text in texts for word in split_words(text)), names))
        return contents

    def image(self, position: int) -> str:
        """Save the thumbnail of an evaluated image; return its path relative to the run folder."""
        row = int(self.any.rows[position])
        path = self.run / "images" / f"held-out-{row:06d}.webp"
        if not path.is_file():
            save_thumbnail(self.collection.image_bytes(row), path)
        return str(path.relative_to(self.run))

    def caption(self, position: int) -> str:
        """Return the first text of an image."""
        captions = self.collection.read_captions(int(self.any.rows[position]))
        return captions[0].text if captions else ""

    def draw(self, places: NDArray[np.int64], count: int, what: str) -> list[int]:
        """Draw `count` positions by the seed; examples are never picked by hand."""
        # The label of the stream stays as it is: another one would draw other examples.
        order = seeds.generator("shown", self.seed, what).permutation(len(places))
        return [int(places[index]) for index in order[:count]]


def _best(scores_N: NDArray[np.floating[Any]], places: NDArray[np.int64]) -> list[tuple[int, float]]:
    # Stable: equal scores keep the order of the collection.
    order = np.argsort(-scores_N, kind="stable")[:NUM_HITS]
    return [(int(places[index]), float(scores_N[index])) for index in order]


def plain_searches(
    album: Album, models: dict[str, LocalizingModel], queries: Sequence[PlainQuery] = PLAIN_QUERIES
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Search all held-out images by plain queries; return the searches, and how many results of each model are right.

    The control is an image drawn at random: as many would be right in a search that reads nothing.
    """
    searches: list[dict[str, Any]] = []
    everything = np.arange(len(album.any.rows))
    # All images are judged, not the hits alone: the mean is the chance of a search that reads nothing.
    verdicts = [[query.judge(*content) for content in album.contents] for query in queries]
    vectors = {name: normalize(embed_phrases(model, [query.text for query in queries]).numpy())
               for name, model in models.items()}  # fmt: skip
    for number, query in enumerate(queries):
        results = {}
        for name in models:
            results[name] = [
                {
                    "image": album.image(position),
                    "caption": album.caption(position),
                    "score": score,
                    "right": verdicts[number][position][0],
                    "related": verdicts[number][position][1],
                }
                for position, score in _best(album.embedded[name].image_NE @ vectors[name][number], everything)
            ]
        searches.append({"query": {"kind": "text", "text": query.text}, "data": "held out", "results": results})
    tallies = [
        {
            "model": name,
            "n": len(hits),
            "right": sum(hit["right"] for hit in hits),
            "related": sum(hit["related"] for hit in hits),
            "chance_right": float(np.mean([[right for right, _ in row] for row in verdicts])),
            "chance_related": float(np.mean([[related for _, related in row] for row in verdicts])),
        }
        for name in models
        for hits in [[hit for search in searches for hit in search["results"][name]]]
    ]
    return searches, tallies


def word_searches(album: Album, models: dict[str, LocalizingModel], *, source: str, count: int) -> list[dict[str, Any]]:
    """Search held-out images of a source by their own texts; right are images with that text.

    Of the right kind are images of the same subcategory.
    """
    places = np.flatnonzero(album.sources == source)
    searches = []
    for position in album.draw(places, count, f"words {source}"):
        text = album.caption(position)
        results = {}
        for name, model in models.items():
            query = normalize(embed_phrases(model, [text]).numpy())[0]
            hits = _best(album.embedded[name].image_NE[places] @ query, places)
            results[name] = [
                {
                    "image": album.image(other),
                    "caption": album.caption(other),
                    "score": score,
                    "right": album.caption(other) == text,
                    "related": album.caption(other) != text
                    and bool(album.subcategories[other] == album.subcategories[position]),
                }
                for other, score in hits
            ]
        searches.append({"query": {"kind": "text", "text": text}, "data": source, "results": results})
    return searches


def image_searches(album: Album, names: Sequence[str], *, source: str, field: str, count: int) -> list[dict[str, Any]]:
    """Search the other held-out images of a source by an image; right are those with the same label."""
    places = np.flatnonzero(album.sources == source)
    labels = album.collection.label_values(field)[album.any.rows]
    searches = []
    for position in album.draw(places, count, f"image {source}"):
        # The query itself would be its own best hit.
        others = places[places != position]
        results = {}
        for name in names:
            image_NE = album.embedded[name].image_NE
            results[name] = [
                {
                    "image": album.image(other),
                    "caption": album.caption(other),
                    "score": score,
                    "right": bool(labels[other] == labels[position]),
                    "related": bool(
                        labels[other] != labels[position]
                        and album.subcategories[other] == album.subcategories[position]
                    ),
                }
                for other, score in _best(image_NE[others] @ image_NE[position], others)
            ]
        query = {"kind": "image", "image": album.image(position), "text": album.caption(position)}
        note = f"right: the same {field}"
        searches.append({"query": query, "data": source, "results": results, "note": note})
    return searches


def box_searches(album: Album, names: Sequence[str], *, part: str, count: int) -> list[dict[str, Any]]:
    """Search all boxes of other held-out images by a box; right are boxes of the same concept."""
    seen = album.any
    label_R = np.array([region.label for region in seen.regions], dtype=object)
    values, counts = np.unique(label_R.astype(str), return_counts=True)
    # A concept that occurs once has no right answer among the other boxes.
    often = set(values[counts > 1])
    slice_R = np.array([region.slice for region in seen.regions], dtype=object)
    kind_R = [album.subcategory_of.get(region.label or "", "") for region in seen.regions]
    candidates = np.array([i for i, region in enumerate(seen.regions) if region.label in often and slice_R[i] == part])
    if not len(candidates):
        return []
    searches = []
    for index in album.draw(candidates, count, f"box {part}"):
        # Boxes of the same image share its ground, and would be found by that.
        others = np.flatnonzero(seen.image_R != seen.image_R[index])
        results = {}
        for name in names:
            unit_RE = normalize(album.embedded[name].z_RE)
            results[name] = [
                {
                    "image": album.image(int(seen.image_R[other])),
                    "box": _round_box(seen.boxes_R4[other]),
                    "caption": seen.regions[other].phrase,
                    "score": score,
                    "right": bool(label_R[other] == label_R[index]),
                    "related": bool(label_R[other] != label_R[index] and kind_R[other] == kind_R[index] != ""),
                }
                for other, score in _best(unit_RE[others] @ unit_RE[index], others)
            ]
        query = {
            "kind": "box",
            "image": album.image(int(seen.image_R[index])),
            "box": _round_box(seen.boxes_R4[index]),
            "text": seen.regions[index].phrase,
        }
        searches.append(
            {
                "query": query,
                "data": f"scenes, {part}{'' if part.endswith('kind') else ' concepts'}",
                "results": results,
            }
        )
    return searches


def _round_box(box: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in box]


def _askable(seen: CollectionEmbeddings, part: str, *, min_boxes: int) -> NDArray[np.int64]:
    # "Where is the cat?" has no answer if there are two.
    once = is_unique_phrase([region.phrase for region in seen.regions], seen.image_R.tolist())
    counts = np.bincount(seen.image_R)[seen.image_R]
    slice_R = np.array([region.slice for region in seen.regions], dtype=object)
    return np.flatnonzero(once & (counts >= min_boxes) & (slice_R == part))


def where_questions(album: Album, name: str, *, part: str, count: int) -> list[dict[str, Any]]:
    """Ask where a phrase is: the box of every rule, the center box and a random one, with the true box."""
    seen = album.embedded[name]
    boxes = {**seen.located, **baseline_boxes(len(seen.regions), seed=album.seed)}
    questions = []
    for index in album.draw(_askable(seen, part, min_boxes=1), count, f"where {part}"):
        truth = seen.boxes_R4[index]
        questions.append(
            {
                "image": album.image(int(seen.image_R[index])),
                "phrase": seen.regions[index].phrase,
                "slice": part,
                "data": "scenes",
                "truth": _round_box(truth),
                "boxes": {rule: _round_box(box_R4[index]) for rule, box_R4 in boxes.items()},
                "iou": {
                    rule: round(float(intersection_over_union(box_R4[index][None], truth[None])[0]), 3)
                    for rule, box_R4 in boxes.items()
                },
            }
        )
    return questions


def choice_questions(album: Album, name: str, *, part: str, count: int) -> list[dict[str, Any]]:
    """Ask which of an image's boxes a phrase means."""
    seen = album.embedded[name]
    unit_RE = normalize(seen.z_RE)
    questions = []
    # Only images with at least three boxes: of two, a guess is right half of the time.
    for index in album.draw(_askable(seen, part, min_boxes=3), count, f"which {part}"):
        same = np.flatnonzero(seen.image_R == seen.image_R[index])
        scores = unit_RE[same] @ seen.phrase_RE[index]
        questions.append(
            {
                "image": album.image(int(seen.image_R[index])),
                "phrase": seen.regions[index].phrase,
                "slice": part,
                "data": "scenes",
                "boxes": [_round_box(seen.boxes_R4[other]) for other in same],
                "scores": [round(float(score), 4) for score in scores],
                "right": int(np.flatnonzero(same == index)[0]),
                "predicted": int(scores.argmax()),
            }
        )
    return questions
