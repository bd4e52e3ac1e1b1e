"""The tour's first part: plain queries to a folder of pictures by their content alone, and where things are in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.hub import DEFAULT_ENCODER
from foveate.core.results import Hit, LocatedPhrase, Query, Search
from foveate.core.runs import RunFolder
from foveate.records.boxes import intersection_over_union
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.records.text import singular, split_words
from foveate.search.api import Model, SearchIndex
from foveate.search.index import build_index
from foveate.search.locate import locate_phrases
from foveate.search.search import Index
from foveate_labs.studies.results import PictureFinds, SearchTally
from foveate_labs.tour.pictures import NUM_DRAWINGS, NUM_SCENES, PHOTOGRAPHS, RULE, build_pictures, other_query

FOLDER, INDEX = "pictures", "pictures-index"
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


# Each photograph is searched by what it shows; other pictures of such a thing count, too.
PHOTOGRAPH_QUERIES = tuple(
    PlainQuery(f"{photograph.query}", frozenset({photograph.query, singular(photograph.query)}), (), ())
    for photograph in PHOTOGRAPHS
)


def find_in_pictures(
    run: RunFolder, *, seed: int, device: str | None = None, drawings: int = NUM_DRAWINGS, scenes: int = NUM_SCENES
) -> dict[str, Any]:
    """Choose the pictures, index them with the shipped encoder, search and locate; return the result for the page."""
    collection = build_pictures(run.path / FOLDER, seed=seed, drawings=drawings, scenes=scenes)
    # Whole images: what is searched for here needs no boxes. One worker, as each part of the tour has one core.
    build_index(DEFAULT_ENCODER, collection.path, run.path / INDEX, regions="none", device=device, workers=1)
    index = Index.open(run.path / INDEX)
    model = Model(index.open_model(None, device=device))
    thumbnails = Thumbnails(collection, run.path)
    searches, tallies = [], []
    opened = SearchIndex(index, model)
    for data, queries in (("photographs", PHOTOGRAPH_QUERIES), ("drawings and scenes", PLAIN_QUERIES)):
        answered, tally = search_pictures(opened, thumbnails, queries, data=data)
        searches += answered
        tallies.append(tally)
    located, present, absent = locate_in_pictures(model, thumbnails, seed=seed)
    return PictureFinds(
        model=DEFAULT_ENCODER,
        rule=RULE.format(drawings=drawings, scenes=scenes),
        pictures=len(collection),
        searches=searches,
        tallies=tallies,
        located=located,
        accepted=present,
        refused=absent,
    ).to_json()


@dataclass(frozen=True)
class Thumbnails:
    """The pictures with their small copies in the run folder."""

    collection: Collection
    run: Path

    def image(self, row: int) -> str:
        """Save the small copy of a picture; return its path relative to the run folder."""
        path = self.run / "images" / f"picture-{self.collection.keys[row]}.webp"
        if not path.is_file():
            save_thumbnail(self.collection.image_bytes(row), path, longest_side=448)
        return path.relative_to(self.run).as_posix()

    def read_contents(self) -> list[tuple[frozenset[str], list[str]]]:
        """Return words and subcategories of each picture: its title and keywords, or those of what a scene shows."""
        subcategories = self.collection.label_values("subcategory")
        contents = []
        for row in range(len(self.collection)):
            captions = self.collection.read_captions(row)
            texts = [caption.text for caption in captions if caption.kind in ("title", "keywords")]
            texts += [region.phrase for region in self.collection.read_regions(row)]
            words = frozenset(word for text in texts for word in split_words(text))
            contents.append((words, [str(subcategories[row])] if subcategories[row] else []))
        return contents


def search_pictures(
    index: SearchIndex, thumbnails: Thumbnails, queries: Sequence[PlainQuery], *, data: str
) -> tuple[list[Search], SearchTally]:
    """Search by content alone; return the searches, and how many first results are right beside chance."""
    collection, contents = thumbnails.collection, thumbnails.read_contents()
    rows = {key: row for row, key in enumerate(collection.keys)}
    searches = []
    # All pictures are judged, not the hits alone: the mean is the chance of a search that reads nothing.
    verdicts = [[query.judge(*content) for content in contents] for query in queries]
    for query, verdict in zip(queries, verdicts, strict=True):
        hits = []
        for hit in index.search(query.text, count=NUM_HITS, kind="images", text_weight=0):
            row = rows[hit.key]
            captions = collection.read_captions(row)
            hits.append(
                Hit(
                    image=thumbnails.image(row),
                    caption=captions[0].text if captions else "",
                    score=round(hit.score, 4),
                    right=verdict[row][0],
                    related=verdict[row][1],
                )
            )
        searches.append(Search(query=Query(kind="text", text=query.text), data=data, results={"found": hits}))
    first = [search.results["found"][0] for search in searches]
    return searches, SearchTally(
        data=data,
        n=len(first),
        right=sum(bool(hit.right) for hit in first),
        related=sum(hit.related for hit in first),
        within=sum(any(hit.right for hit in search.results["found"]) for search in searches),
        chance_right=float(np.mean([[right for right, _ in row] for row in verdicts])),
        chance_related=float(np.mean([[related for _, related in row] for row in verdicts])),
    )


def locate_in_pictures(
    model: Model, thumbnails: Thumbnails, *, seed: int
) -> tuple[list[LocatedPhrase], tuple[int, int], tuple[int, int]]:
    """Locate the thing of each photograph that has a box, and one thing of each scene.

    Returns:
        the answers; how many of all things that are there were said to be there; how many names of what the next
        photograph shows were said to be absent.
    """
    collection, located = thumbnails.collection, []
    accepted, refused = [], []
    sources = collection.label_values("source")
    photographs = {photograph.name: number for number, photograph in enumerate(PHOTOGRAPHS)}
    for row, key in enumerate(collection.keys):
        number = photographs.get(key)
        regions = collection.read_regions(row)
        if number is not None:
            phrases = [PHOTOGRAPHS[number].query, other_query(number)]
        elif sources[row] == "scenes":
            names = [region.phrase for region in regions]
            # "Where is the cat?" has no answer if there are two.
            regions = [region for region in regions if names.count(region.phrase) == 1][:1]
            phrases = [region.phrase for region in regions]
        else:
            continue
        if not phrases:
            continue
        answers = locate_phrases(model.network, collection.image_bytes(row), phrases, seed=seed)
        if number is not None:
            accepted.append(answers[0].has_match)
            refused.append(not answers[1].has_match)
        for region in regions:
            truth_4, boxes = region.box.to_array(), answers[0].boxes
            located.append(
                LocatedPhrase.model_validate(
                    {
                        "image": thumbnails.image(row),
                        "phrase": answers[0].phrase,
                        "data": str(sources[row]),
                        "truth": truth_4.round(5).tolist(),
                        "boxes": {rule: [round(edge, 5) for edge in box] for rule, box in boxes.items()},
                        "iou": {
                            rule: round(float(intersection_over_union(np.array([box]), truth_4[None])[0]), 3)
                            for rule, box in boxes.items()
                        },
                        "scores": answers[0].scores,
                        "default": answers[0].rule,
                    }
                )
            )
    return located, (sum(accepted), len(accepted)), (sum(refused), len(refused))
