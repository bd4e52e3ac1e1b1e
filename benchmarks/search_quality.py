"""How good are the first five hits: rules that rank images, regions and texts, on built-in images and two real folders.

    foveate study tour && python -m benchmarks.search_quality --out bench
    foveate study tour && python -m benchmarks.search_quality --sources stamps photographs --packages FOLDER --out bench

20 plain and 15 harder queries (search_queries.csv) to emoji, clip art and scenes, and as many of their own to two
folders of Debian packages (see benchmarks/search_folders.py; skipped by name where they are not). A hit is right if its
names or its category are those that the query means; both are stored with the images and never given to the rules,
except that names are also captions. So three sets of captions are searched: as they are, missing for half of the
images, and of other images; and "as installed" is `foveate search` itself with all texts and file names. The score of a
query is the share of right hits among the first five, or among as many as there are right images. A contact sheet shows
them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from benchmarks.common import machine
from benchmarks.search_folders import find_folder, read_texts
from benchmarks.search_queries import (
    ABSENT,
    FOLDER_ABSENT,
    FOLDER_QUERIES,
    HARDER,
    HELD_OUT,
    NONSENSE,
    OTHER_NONSENSE,
    PLAIN,
    RARE,
    SCRIPTS,
    Queries,
)
from foveate.core.files import write_json_atomically
from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.records.bm25 import TextIndex
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.search.calibration import (
    TextCache,
    draw_texts,
    find_unknown_words,
    list_compared,
    mean_direction,
    score_texts,
    split_query,
)
from foveate.search.index import build_index, unit
from foveate.search.index_folder import IMAGE, RANDOM_LETTERS, REGION, read_vectors
from foveate.search.query import Query
from foveate.search.search import UNKNOWN, Index, search
from foveate.search.settings import TEXT_WEIGHT
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.sources import open_localizer
from foveate_labs.worlds.builtin import load_cutouts

FIRST = 5
Scores = NDArray[np.float64]
TUNED, UNTUNED = "tuned on", "not tuned on"
# Shares of random letters that score above a floor.
FALSE_ALARMS = (0.9, 0.75, 0.5, 0.25, 0.1)
CAMERA = "IMG_{:04d}"


@dataclass(frozen=True)
class Data:
    """A collection with what its images are called; `names_N` and `groups_N` belong to the judge alone."""

    name: str
    keys: list[str]
    names_N: list[str]
    groups_N: list[list[str]]
    captions_N: list[list[str]]

    @property
    def queries(self) -> tuple[Queries, Queries]:
        """Plain and harder queries, each with what the judge takes for right."""
        return FOLDER_QUERIES.get(self.name, (PLAIN, HARDER))

    def judge(self, names: str, pattern: str) -> NDArray[np.bool_]:
        """Mark the images [N] that a query means."""
        named = re.compile(rf"\b({'|'.join(names.split())})\b", re.IGNORECASE) if names else None
        grouped = re.compile(pattern) if pattern else None
        return np.array(
            [
                bool(named and named.search(text)) or bool(grouped and any(map(grouped.search, groups)))
                for text, groups in zip(self.names_N, self.groups_N, strict=True)
            ]
        )


def read_data(name: str, collection: Collection, keys: Sequence[str]) -> Data:
    """Read names, categories and captions of the images that an index has."""
    cutouts = {cutout.id: cutout for cutout in load_cutouts()}
    if name in FOLDER_QUERIES:
        texts_N = [read_texts(name, collection, key) for key in keys]
        names_N, captions_N = [text for text, _ in texts_N], [captions for _, captions in texts_N]
        return Data(name, list(keys), names_N, [[key] for key in keys], captions_N)
    names, groups, captions = [], [], []
    scenes = collection.grouped("scenes") if name == "scenes" else None
    for key in keys:
        row = collection.find_row(key)
        texts = [caption.text for caption in collection.read_captions(row) if caption.kind in CAPTIONS]
        captions.append(texts)
        if scenes is None:
            labels = collection.read_labels(row)
            names.append(" ".join([*texts, labels.get("concept", "")]))
            groups.append([f"{labels['category']}/{labels['subcategory']}"])
        else:
            start, _ = scenes.bounds(row)
            visible = [thing for thing in json.loads(scenes.texts("objects", start, start + 1)[0]) if thing["box"]]
            names.append(" ".join(thing["phrase"] for thing in visible))
            things = [cutouts[thing["cutout"]] for thing in visible if thing["cutout"] in cutouts]
            groups.append([f"{thing.category}/{thing.subcategory}" for thing in things])
    return Data(name, list(keys), names, groups, captions)


# "alt" of scenes names some of the things; the other captions of scenes name everything exactly, which nobody has.
CAPTIONS = ("title", "keywords", "description", "alt")


def copy_part(tour: Collection, name: str, target: Path, *, count: int) -> None:
    """Copy images of the tour's collection with the captions that a user could have; nothing of the judge's."""
    of_source = tour.rows(where={"source": name})
    # Scenes of training have been seen with exact captions; singles have no such half.
    of_source = of_source[tour.splits[of_source] == "test"] if name == "scenes" else of_source
    rows = np.sort(generator("search quality", name).permutation(of_source)[:count])
    with CollectionWriter(target, name=name, license=tour.license, source=name) as writer:
        for row in track(rows.tolist(), description=f"copying {name}"):
            captions = [caption for caption in tour.read_captions(row) if caption.kind in CAPTIONS]
            writer.add(tour.keys[row], tour.image_bytes(row), captions=captions)


@dataclass(frozen=True)
class Cosines:
    """Cosines of queries [Q, N] with images and with the best box of each image."""

    images_QN: Scores
    regions_QN: Scores


def measure(index: Index, vectors_QE: Scores) -> tuple[list[str], Cosines]:
    """Score every image of an index, and its best region."""
    rows = {kind: index.rows_of(kind) for kind in (IMAGE, REGION)}
    keys = rows[IMAGE].rows["key"].to_pylist()
    cosines = {kind: vectors_QE @ np.concatenate(rows[kind].vectors).T for kind in rows}
    position = {key: number for number, key in enumerate(keys)}
    owner_R = np.array([position[key] for key in rows[REGION].rows["key"].to_pylist()])
    best_QN = np.full(cosines[IMAGE].shape, -1.0)
    for query, scores_R in enumerate(cosines[REGION]):
        np.maximum.at(best_QN[query], owner_R, scores_R)
    return keys, Cosines(cosines[IMAGE], best_QN)


def standardize(scores_QN: Scores, random_QN: Scores) -> Scores:
    """Return standard deviations above the scores of random queries."""
    return (scores_QN - random_QN.mean()) / random_QN.std()


def center(scores_QN: Scores, random_QN: Scores) -> Scores:
    """Subtract what each image scores with random queries on average."""
    return scores_QN - random_QN.mean(axis=0)


def reciprocal_ranks(scores_QN: Scores) -> Scores:
    """Return 1 / (60 + rank); 0 for images without a score.

    Source: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion (2009).
    """
    order_QN = np.argsort(np.argsort(-scores_QN, axis=1, kind="stable"), axis=1, kind="stable")
    return np.where(scores_QN > 0, 1 / (61 + order_QN), 0)


def rank_rules(query: Cosines, random: Cosines, text_QN: Scores) -> dict[str, Scores]:
    """Return the scores of every rule; higher is better."""
    images, regions = query.images_QN, query.regions_QN
    z_images, z_regions = standardize(images, random.images_QN), standardize(regions, random.regions_QN)
    c_images, c_regions = (
        standardize(center(scores, base), center(base, base))
        for scores, base in ((images, random.images_QN), (regions, random.regions_QN))
    )
    rules = {
        "images": images,
        "regions": regions,
        "both, cosines": np.maximum(images, regions),
        "both, z": np.maximum(z_images, z_regions),
        "both, mean z": (z_images + z_regions) / 2,
        "images, centered": c_images,
        "both, centered z": np.maximum(c_images, c_regions),
        "both, mean centered z": (c_images + c_regions) / 2,
        "text": text_QN,
    }
    z = rules["both, z"]
    rules["both, z + text, ranks"] = reciprocal_ranks(z - z.min() + 1) + reciprocal_ranks(text_QN)
    rules["images, z + 4 text"] = z_images + 4 * text_QN
    for weight in (1, 2, 3, 4, 8):
        rules[f"both, z + {weight} text"] = z + weight * text_QN
    return rules


def score_first(scores_N: Scores, right_N: NDArray[np.bool_]) -> float:
    """Return the share of right images among the first five, or among as many as there are."""
    first = np.argsort(-scores_N, kind="stable")[: min(FIRST, int(right_N.sum()))]
    return float(right_N[first].mean())


def hide_captions(data: Data, how: str) -> list[list[str]]:
    """Return what a text index has of each image: captions "as they are", "half" of them, or "wrong" ones."""
    rng = generator("search quality captions", data.name)
    camera = [CAMERA.format(number) for number in range(len(data.keys))]
    if how == "half":
        hidden = rng.random(len(camera)) < 0.5
        return [
            [name] if hide else [name, *texts]
            for name, texts, hide in zip(camera, data.captions_N, hidden, strict=True)
        ]
    order = rng.permutation(len(camera)) if how == "wrong" else np.arange(len(camera))
    return [[name, *data.captions_N[row]] for name, row in zip(camera, order.tolist(), strict=True)]


HIDDEN = ("as they are", "half", "wrong")
# collection, query set, captions, images or shuffled images, rule -> score of each query
Table = dict[tuple[str, str, str, str, str], list[float]]


def name_collection(data: Data) -> str:
    """Name the row of a table: the built-in sources share one."""
    return data.name if data.name in FOLDER_QUERIES else "built-in"


def evaluate(data: Data, queries: Cosines, random: Cosines) -> Table:
    """Score every rule with every query that an image answers."""
    table: Table = {}
    plain, harder = data.queries
    texts = [*plain, *harder]
    right_QN = np.stack([data.judge(*patterns) for patterns in (plain | harder).values()])
    order = generator("search quality shuffled", data.name).permutation(len(data.keys))
    shuffled = [Cosines(scores.images_QN[:, order], scores.regions_QN[:, order]) for scores in (queries, random)]
    for captions in HIDDEN:
        index = TextIndex.build(hide_captions(data, captions))
        text_QN = np.stack([index.score(text) for text in texts])
        for images, (cosines, base) in (("images", (queries, random)), ("shuffled images", shuffled)):
            for rule, scores_QN in rank_rules(cosines, base, text_QN).items():
                for query, text in enumerate(texts):
                    if right_QN[query].any():
                        score = score_first(scores_QN[query], right_QN[query])
                        name = "plain" if text in plain else "harder"
                        row = (name_collection(data), name, captions, images, rule)
                        table.setdefault(row, []).append(score)
    return table


def search_as_installed(index: Index, model: LocalizingModel, data: Data, cache: TextCache) -> tuple[Table, Sheet]:
    """Ask `search` itself, with the texts and file names that the index has, and as it was before its calibration.

    Returns:
        Scores, and the first five keys of each query with whether they are right.
    """
    table: Table = {}
    sheet: Sheet = {}
    index.text_cache = cache
    for name, queries in zip(("plain", "harder"), data.queries, strict=True):
        for text, patterns in queries.items():
            right = {key for key, is_right in zip(data.keys, data.judge(*patterns), strict=True) if is_right}
            if not right:
                continue
            hits, _ = search(index, Query(text=text), model, count=FIRST)
            vector_E = unit(embed_phrases(model, [text]))[0]
            answers = {"foveate search": hits, "both, cosines": index.nearest(vector_E, count=FIRST)}
            for rule, nearest_hits in answers.items():
                marks = [hit.key in right for hit in nearest_hits[: min(FIRST, len(right))]]
                row = (name_collection(data), name, "as installed", "images", rule)
                table.setdefault(row, []).append(float(np.mean(marks)))
            verdict = index.judge(Query(text=text), hits, model)
            title = f"{text} ({len(right)})" + ("" if verdict.has_match else NOT_FOUND)
            sheet[title] = [(hit.key, hit.key in right) for hit in hits]
    return table, sheet


def search_contents(index: Index, model: LocalizingModel, data: Data) -> tuple[Sheet, dict[str, list[int]]]:
    """Ask for images alone, without a word of their texts and names.

    Returns:
        The first five keys of each query with whether they are right, and how many queries were refused, of how many,
        by what the first hit is; absent queries have no right image.
    """
    sheet: Sheet = {}
    refused: dict[str, list[int]] = {}
    queries = {text: patterns for group in data.queries for text, patterns in group.items()}
    for text in (*queries, *FOLDER_ABSENT.get(data.name, ())):
        right_N = data.judge(*queries[text]) if text in queries else np.zeros(len(data.keys), bool)
        if text in queries and not right_N.any():
            continue
        right = {key for key, is_right in zip(data.keys, right_N, strict=True) if is_right}
        query = Query(text=text)
        hits, _ = search(index, query, model, count=FIRST, kind="images", text_weight=0)
        verdict = index.judge(query, hits, model, kind="images", text_weight=0)
        group = "absent" if text not in queries else "right" if hits[0].key in right else "wrong"
        counts = refused.setdefault(group, [0, 0])
        counts[0] += not verdict.has_match
        counts[1] += 1
        title = f"{text} ({len(right)})" + ("" if verdict.has_match else NOT_FOUND)
        sheet[title] = [(hit.key, hit.key in right) for hit in hits]
    return sheet, refused


NOT_FOUND = ", not found"
# query and number of right images -> keys of the first hits, and whether they are right
Sheet = dict[str, list[tuple[str, bool]]]


def draw_sheet(sheet: Sheet, collection: Collection, path: Path) -> None:
    """Draw a contact sheet: a row for each query, green frames around right hits, red ones around wrong ones."""
    side, label, pad = 96, 190, 5
    width, height = label + FIRST * side, side
    page = Image.new("RGB", (2 * width, height * ((len(sheet) + 1) // 2)), "white")
    pen = ImageDraw.Draw(page)
    for number, (title, hits) in enumerate(sheet.items()):
        left, top = width * (number % 2), height * (number // 2)
        pen.multiline_text((left + pad, top + 30), title.replace(" (", "\n("), fill="black")
        for column, (key, is_right) in enumerate(hits):
            image = Image.open(io.BytesIO(collection.image_bytes(collection.find_row(key)))).convert("RGBA")
            tile = ImageOps.contain(image, (side - 2 * pad, side - 2 * pad))
            at = (left + label + column * side, top)
            pen.rectangle((*at, at[0] + side - 1, at[1] + side - 1), fill="#2a9d3f" if is_right else "#d03030")
            corner = (at[0] + (side - tile.width) // 2, at[1] + (side - tile.height) // 2)
            page.paste("white", (*corner, corner[0] + tile.width, corner[1] + tile.height))
            page.paste(tile, corner, tile)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def draw_strings(count: int) -> list[str]:
    """Draw random letters that no floor was measured with."""
    rng = generator("search quality letters")
    return ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(4, 11))) for _ in range(count)]


@dataclass(frozen=True)
class Asked:
    """A query to an index: what it is, its best score, and whether its words are unknown.

    Attributes:
        set: "tuned on" or "not tuned on". group: what the first hit is, or what the query is.
    """

    text: str
    set: str
    group: str
    text_weight: float
    score: float
    is_unknown: bool
    floors: dict[float, float]


def ask(index: Index, model: LocalizingModel, data: Data, cache: TextCache) -> list[Asked]:
    """Ask for things, nonsense and other scripts, with and without the words of captions."""
    vectors = read_vectors(index.folder / RANDOM_LETTERS)
    best_Q = score_texts(index.folder, index.description, vectors)["both"]
    floors = {share: float(np.quantile(best_Q, 1 - share)) for share in FALSE_ALARMS}
    groups = {"nonsense": NONSENSE, "random letters": draw_strings(24), "other scripts": SCRIPTS}
    queries = [(text, TUNED, "", patterns) for text, patterns in (PLAIN | HARDER).items()]
    queries += [(text, TUNED, group, None) for group, texts in groups.items() for text in texts]
    queries += [(text, UNTUNED, "", patterns) for text, patterns in (HELD_OUT | ABSENT).items()]
    queries += [(text, UNTUNED, "nonsense", None) for text in OTHER_NONSENSE]
    index.text_cache = cache
    # In one batch, since a text takes longer than a search.
    cache.embed(model, list_compared([part for text, *_ in queries for part in (text, *split_query(text))]))
    asked = []
    for text, query_set, group, patterns in queries:
        right_N = None if patterns is None else data.judge(*patterns)
        for weight in (0.0, TEXT_WEIGHT):
            query = Query(text=text)
            hits, _ = search(index, query, model, count=FIRST, text_weight=weight)
            verdict = index.judge(query, hits, model, text_weight=weight)
            if right_N is not None:
                is_right = right_N[data.keys.index(hits[0].key)]
                group = "right" if is_right else "wrong" if right_N.any() else "absent"
            score = max((hit.z or 0) + weight * hit.text for hit in hits)
            is_unknown = verdict.reason == UNKNOWN
            asked.append(Asked(text, query_set, group, weight, score, is_unknown, floors))
    return asked


def print_floors(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Print how many first hits each floor refuses, by what they are; return the rows."""
    rows = []
    for query_set, weight, share in itertools.product((TUNED, UNTUNED), (0.0, TEXT_WEIGHT), (*FALSE_ALARMS, None)):
        counts: dict[str, tuple[int, int]] = {}
        right = []
        for query in (query for query in asked if (query.set, query.text_weight) == (query_set, weight)):
            is_refused = query.is_unknown or (share is not None and query.score <= query.floors[share])
            refused, total = counts.get(query.group, (0, 0))
            counts[query.group] = (refused + is_refused, total + 1)
            right += [query.text] if is_refused and query.group == "right" else []
        rows.append(
            {
                "queries": query_set,
                "text_weight": weight,
                "letters_above": share,
                "refused": counts,
                "right_refused": right,
            }
        )
        name = "unknown words alone" if share is None else f"floor that {share:.0%} of random letters pass"
        listed = ", ".join(f"{refused} of {total} {group}" for group, (refused, total) in counts.items())
        print(f"{query_set}, text weight {weight:g}, {name}: refused {listed}; right: {right}")
    return rows


def list_unknown(index: Index, model: LocalizingModel) -> dict[str, list[str]]:
    """List the words of each group that the text tower does not know."""
    assert index.description.floor is not None
    letters_E = mean_direction(read_vectors(index.folder / RANDOM_LETTERS))
    cosine = index.description.floor.letters_cosine
    groups = {
        "rare": RARE,
        "nonsense": [word for text in NONSENSE for word in split_query(text)],
        "letters": draw_strings(48),
        "scripts": SCRIPTS,
    }
    return {group: find_unknown_words(texts, model, letters_E, cosine) for group, texts in groups.items()}


def interval(scores: Sequence[float] | NDArray[Any]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval over resampled queries."""
    values = np.asarray(scores)
    draws = generator("search quality interval").integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def print_table(table: Table, *, base: str) -> list[dict[str, Any]]:
    """Print mean scores by rule, and their differences from the rule `base` on the same queries; return the rows."""
    rows = []
    for (collection, name, captions, images, rule), scores in table.items():
        mean, low, high = interval(scores)
        pairs = np.subtract(scores, table[collection, name, captions, images, base])
        gain, gain_low, gain_high = interval(pairs)
        row = {"collection": collection, "queries": name, "captions": captions, "images": images, "rule": rule}
        row |= {"n": len(scores)}
        rows.append(row | {"score": [mean, low, high], "gain": [gain, gain_low, gain_high]})
        print(
            f"{collection:11} {name:7} {captions:12} {images:15} {rule:28} n {len(scores):3}  "
            f"{mean:.2f} ({low:.2f} to {high:.2f})  {gain:+.2f} ({gain_low:+.2f} to {gain_high:+.2f})"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tour", type=Path, default=Path("runs/study-tour"), help="run folder of `foveate study tour`")
    parser.add_argument("--model", default="cloc-seed0", help="model of the tour, or a name such as bridge")
    sources = ["emoji", "clipart", "scenes", *FOLDER_QUERIES]
    parser.add_argument("--sources", nargs="+", choices=sources, default=sources)
    parser.add_argument("--packages", type=Path, default=Path("/"), help="folder of installed or unpacked packages")
    parser.add_argument("--floor", action="store_true", help="measure when nothing is found, alone")
    parser.add_argument("--images", type=int, default=800, help="images of each source")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/search-quality"), help="folder for collections and indexes"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    tour = Collection.open(options.tour / "collection")
    # A model of the tour by its name, or any other as `foveate index` finds it.
    own = options.tour / options.model / "model"
    folder: str | Path = own if own.is_dir() else options.model
    model = open_localizer(folder)
    random_QE = unit(embed_phrases(model, draw_texts()))
    total: Table = {}
    asked: list[Asked] = []
    cache = TextCache()
    unknown: dict[str, list[str]] = {}
    refused_by_folder: dict[str, dict[str, list[int]]] = {}
    for name in options.sources:
        images = find_folder(name, options.packages, options.work) if name in FOLDER_QUERIES else None
        if name in FOLDER_QUERIES and images is None:
            print(f"{name}: skipped, their package is not below {options.packages}")
            continue
        target = images or options.work / f"{name}-{options.images}"
        if not target.exists():
            copy_part(tour, name, target, count=options.images)
        out = options.work / f"{name if images else target.name}-{options.model}"
        # The grid, since nearly nobody has boxes.
        build_index(folder, target, out, regions="grid")
        index = Index.open(out)
        keys = index.rows_of(IMAGE).rows["key"].to_pylist()
        data = read_data(name, index.collection if images else tour, keys)
        if images is None:
            asked += ask(index, model, data, cache)
            unknown = list_unknown(index, model)
        if options.floor:
            continue
        queries_QE = unit(embed_phrases(model, [text for queries in data.queries for text in queries]))
        keys, queries = measure(index, queries_QE)
        _, random = measure(index, random_QE)
        installed, sheet = search_as_installed(index, model, data, cache)
        draw_sheet(sheet, index.collection, options.out / f"search-quality-{name}.webp")
        if images is not None:
            contents, counts = search_contents(index, model, data)
            draw_sheet(contents, index.collection, options.out / f"search-contents-{name}.webp")
            print(f"{name}, images alone, refused: {counts}")
            refused_by_folder[name] = counts
        for group, is_right in (("right", True), ("wrong", False)):
            first = [title for title, hits in sheet.items() if hits[0][1] == is_right]
            refused = [title for title in first if title.endswith(NOT_FOUND)]
            print(f"{name}: not found, {len(refused)} of {len(first)} whose first hit is {group}: {refused}")
        for key, scores in [*evaluate(data, queries, random).items(), *installed.items()]:
            total.setdefault(key, []).extend(scores)
    rows = print_table(total, base="both, cosines")
    refusals = print_floors(asked)
    print(f"unknown to the text tower: {unknown}")
    content = {
        "machine": machine(),
        "images": options.images,
        "sources": options.sources,
        "rows": rows,
        "refusals": refusals,
        "refused_by_images_alone": refused_by_folder,
        "unknown_words": unknown,
    }
    write_json_atomically(options.out / "search-quality.json", content)


if __name__ == "__main__":
    main()
