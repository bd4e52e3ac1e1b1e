"""How well a model answers: which phrase names this box, which box a phrase means, where it is, which image.

Definitions are those of `foveate.metrics`. Regions of different report groups (`Region.slice`, for example seen and
unseen concepts) and images of different sources are never mixed. Every number has a bootstrap interval over images
and every per-sample result goes to Parquet, so that a measure can be computed again without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.metrics.classification import class_accuracies, nearest_class
from foveate.metrics.grounding import SIZE_NAMES, grounding_scores, occurs_once, size_slices
from foveate.metrics.intervals import bootstrap_statistic
from foveate.metrics.retrieval import normalize, rank_positives_from_embeddings, within_group_accuracy
from foveate.pretrain.embed import Embedded, embed_collection
from foveate.pretrain.metrics_table import Table, columns_of
from foveate.records.collection import Collection
from foveate.records.tables import write_table
from foveate.vision.localizer.asking import embed_phrases
from foveate.vision.localizer.model import LocalizingModel

EDGES = ("x1", "y1", "x2", "y2")


def evaluate(
    model: LocalizingModel,
    collection: Collection,
    *,
    split: str = "test",
    name: str = "model",
    crops: bool = False,
    rules: Sequence[str] = ("head", "candidates"),
    classes: str | None = None,
    templates: Sequence[str] = ("a picture of {}",),
    text_kind: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    samples_to: Path | None = None,
    cache: Path | None = None,
) -> tuple[dict[str, Any], Embedded]:
    """Evaluates a model on one split.

    Args:
        name: prefix of the columns, for example "cloc".
        crops: answer the region questions also by encoding each box as an image of its own.
        rules: ways of finding a phrase that are tried, as far as the model has them.
        classes: label field for zero-shot classification; none by default.
        text_kind: caption kind for image-text retrieval; the first that an image has by default.
        limit: at most this many images, drawn by the seed.
        samples_to: folder for the per-sample Parquet tables.
        cache: folder where frozen features of the images are kept; by default they are not.

    Returns:
        The result with "columns", "table" and counts; and what the pass found, for examples.

    Raises:
        UserError: when the split is empty, or the collection has no such label field or caption kind.
    """
    rows = collection.rows(split)
    if not len(rows):
        raise UserError(f"collection {collection.path}: split '{split}' has no images")
    if limit is not None and limit < len(rows):
        rows = np.sort(seeds.generator("evaluate", seed).choice(rows, size=limit, replace=False))
    if text_kind is not None:
        kinds = collection.table("captions")["kind"].unique().to_pylist()
        choose(text_kind, sorted(kinds), f"caption kind of the collection {collection.name!r}")
    if classes is not None:
        collection.label_values(classes)  # refuses an unknown field before the costly pass
    seen = embed_collection(model, collection, rows, crops=crops, rules=rules, cache=cache)
    table = Table(seed=seed)
    samples: dict[str, pa.Table] = {}
    if len(seen.regions):
        samples["regions"] = _regions(table, collection, seen, name, seed)
    retrieved = _retrieval(table, model, collection, seen, name, text_kind)
    if retrieved:
        samples["retrieval"] = pa.Table.from_pylist(retrieved)
    if classes is not None:
        classified = _zero_shot(table, model, collection, seen, name, classes, templates)
        if classified:
            samples["classification"] = pa.Table.from_pylist(classified)
    if samples_to is not None:
        samples_to.mkdir(parents=True, exist_ok=True)
        for kind, rows_of_kind in samples.items():
            write_table(samples_to / f"{kind}.parquet", rows_of_kind)
    result = {
        "collection": collection.name,
        "split": split,
        "images": len(seen.rows),
        "regions": len(seen.regions),
        "unreadable": len(seen.bad),
        "regions_out_of_view": seen.out_of_view,
        "columns": columns_of(name, table.as_list()),
        "table": table.as_list(),
    }
    return result, seen


def _slices(seen: Embedded) -> dict[str, NDArray[np.bool_]]:
    names = np.array([region.slice for region in seen.regions], dtype=object)
    found = sorted(set(names))
    unnamed = "all regions" if len(found) == 1 else "regions without a group"
    return {str(one) or unnamed: names == one for one in found}


def _regions(table: Table, collection: Collection, seen: Embedded, name: str, seed: int) -> pa.Table:
    ways = {name: seen.z_RE}
    if seen.crop_RE is not None:
        ways[f"{name}_crop"] = seen.crop_RE
    ways[f"{name}_shuffled"] = seen.shuffled_RE
    samples: dict[str, Any] = {
        "key": [collection.keys[seen.rows[image]] for image in seen.image_R],
        "phrase": [region.phrase for region in seen.regions],
        "label": [region.label for region in seen.regions],
        "slice": [region.slice for region in seen.regions],
        "size": size_slices(seen.boxes_R4).tolist(),
        **{f"{edge}_true": seen.boxes_R4[:, place] for place, edge in enumerate(EDGES)},
        **{
            f"{edge}_{name}_{rule}": boxes_R4[:, place]
            for rule, boxes_R4 in seen.found.items()
            for place, edge in enumerate(EDGES)
        },
    }
    for part, mask_R in _slices(seen).items():
        for column, z_RE in ways.items():
            _region_retrieval(table, seen, mask_R, column, z_RE, part, samples)
            _region_classes(table, seen, mask_R, column, z_RE, part)
            _choose(table, seen, mask_R, column, z_RE, part, samples)
        _where(table, seen, mask_R, name, part, seed, samples)
    return pa.table(samples)


def _region_retrieval(
    table: Table,
    seen: Embedded,
    mask_R: NDArray[np.bool_],
    column: str,
    z_RE: NDArray[np.float32],
    part: str,
    samples: dict[str, Any],
) -> None:
    """Region-text retrieval both ways among the regions of one group; R@1 of the first also by region size."""
    asked = np.flatnonzero(mask_R)
    groups = seen.image_R[asked]
    sizes = size_slices(seen.boxes_R4)[asked]
    for question, short, queries, gallery in (
        ("which phrase names this box", "r2t", z_RE, seen.phrase_RE),
        ("which box does this phrase name", "t2r", seen.phrase_RE, z_RE),
    ):
        ranks = rank_positives_from_embeddings(queries[asked], gallery[asked])
        for kind, values in (("better", ranks.better_N), ("tied", ranks.tied_N)):
            kept = samples.setdefault(f"{kind}_{short}_{column}", np.full(len(seen.regions), -1, np.int64))
            kept[asked] = values
        for k in (1, 10):
            chance = min(1.0, k / len(asked))
            table.add(f"{question}: R@{k}", part, column, ranks.recall(k)[1], groups=groups, chance=chance)
        for size in SIZE_NAMES if short == "r2t" else ():
            chosen = sizes == size
            if chosen.any():
                values = ranks.recall(1)[1][chosen]
                table.add(f"{question}: R@1", f"{part}, {size}", column, values, groups=groups[chosen])


def _region_classes(
    table: Table, seen: Embedded, mask_R: NDArray[np.bool_], column: str, z_RE: NDArray[np.float32], part: str
) -> None:
    """Top-1 and mAcc: the label's own phrase stands for the class; only where regions carry labels."""
    labels = np.array([region.label for region in seen.regions], dtype=object)[mask_R]
    if not all(labels):
        return
    names, first = np.unique(labels.astype(str), return_index=True)
    if len(names) < 2:
        return
    predicted = nearest_class(z_RE[mask_R], seen.phrase_RE[mask_R][first])
    truth = np.searchsorted(names, labels.astype(str))
    interval = bootstrap_statistic(
        lambda rows: float(class_accuracies(predicted[rows], truth[rows]).accuracy_C.mean()),
        rows=len(truth),
        seed=table.seed,
        groups_N=list(seen.image_R[mask_R]),
        resamples=200,
    )
    question = "what is in this box, of all names"
    right = (predicted == truth).astype(np.float64)
    chance = 1 / len(names)
    table.add(f"{question}: top-1", part, column, right, groups=list(seen.image_R[mask_R]), chance=chance)
    table.add(f"{question}: mAcc", part, column, interval, chance=chance)


def _choose(
    table: Table,
    seen: Embedded,
    mask_R: NDArray[np.bool_],
    column: str,
    z_RE: NDArray[np.float32],
    part: str,
    samples: dict[str, Any],
) -> None:
    """Which of the image's boxes a phrase means, where it is the phrase of one of at least two boxes."""
    once = occurs_once([region.phrase for region in seen.regions], seen.image_R.tolist())
    counts = np.bincount(seen.image_R)[seen.image_R]
    asked = np.flatnonzero(mask_R & once & (counts > 1))
    if not len(asked):
        return
    _, right_R, _ = within_group_accuracy(seen.phrase_RE, z_RE, seen.image_R.tolist())
    right = right_R[asked]
    samples.setdefault(f"chosen_{column}", np.full(len(seen.regions), np.nan))[asked] = right
    chance = float((1 / counts[asked]).mean())
    question = "which of the image's boxes: accuracy"
    table.add(question, part, column, right, groups=seen.image_R[asked], chance=chance)


def baseline_boxes(count: int, *, seed: int) -> dict[str, NDArray[np.float64]]:
    """Answers that see nothing: the center box (half of each side) and a random box, [count, 4] each."""
    random = seeds.generator("random boxes", seed)
    corners = np.sort(random.uniform(size=(count, 2, 2)), axis=1)
    return {"center": np.tile([0.25, 0.25, 0.75, 0.75], (count, 1)), "random": corners.reshape(count, 4)}


def _where(
    table: Table,
    seen: Embedded,
    mask_R: NDArray[np.bool_],
    name: str,
    part: str,
    seed: int,
    samples: dict[str, Any],
) -> None:
    once = occurs_once([region.phrase for region in seen.regions], seen.image_R.tolist())
    asked = np.flatnonzero(mask_R & once)
    if not len(asked):
        return
    sizes = size_slices(seen.boxes_R4)
    for rule, boxes_R4 in {**seen.found, **baseline_boxes(len(seen.regions), seed=seed)}.items():
        column = rule if rule in ("center", "random") else f"{name}_{rule}"
        per_sample, _ = grounding_scores(boxes_R4[asked], seen.boxes_R4[asked])
        samples.setdefault(f"iou_{column}", np.full(len(seen.regions), np.nan))[asked] = per_sample["iou"]
        groups = seen.image_R[asked]
        for title, key in (("IoU at least .5", "acc50"), ("mean IoU", "iou"), ("pointing", "pointing")):
            table.add(f"where is it: {title}", part, column, per_sample[key], groups=groups)
        for size in SIZE_NAMES:
            chosen = sizes[asked] == size
            if chosen.any():
                table.add(
                    "where is it: IoU at least .5", f"{part}, {size}", column, per_sample["acc50"][chosen],
                    groups=groups[chosen],
                )  # fmt: skip


def better_rule(seen: Embedded) -> str:
    """The rule, "head" or "candidates", with more boxes at IoU .5 or above, on phrases that occur once."""
    once = occurs_once([region.phrase for region in seen.regions], seen.image_R.tolist())
    if not once.any() or "head" not in seen.found:
        return "head" if "head" in seen.found else "candidates"
    hits = {
        rule: float(grounding_scores(boxes[once], seen.boxes_R4[once])[0]["acc50"].mean())
        for rule, boxes in seen.found.items()
    }
    return max(sorted(hits, reverse=True), key=lambda rule: hits[rule])


def _texts(collection: Collection, rows: NDArray[np.int64], kind: str | None) -> tuple[list[int], list[str]]:
    places, texts = [], []
    for place, row in enumerate(rows):
        captions = [one for one in collection.read_captions(int(row)) if kind is None or one.kind == kind]
        if captions:
            places.append(place)
            texts.append(captions[0].text)
    return places, texts


def _sources(collection: Collection, rows: NDArray[np.int64]) -> NDArray[Any]:
    fields = set(collection.table("labels")["field"].to_pylist())
    if "source" not in fields:
        return np.full(len(rows), collection.name, dtype=object)
    return collection.label_values("source")[rows]


def _retrieval(
    table: Table, model: LocalizingModel, collection: Collection, seen: Embedded, name: str, kind: str | None
) -> list[dict[str, Any]]:
    """Adds retrieval both ways; returns a row for each image: how many wrong candidates score higher."""
    places, texts = _texts(collection, seen.rows, kind)
    if not places:
        return []
    samples: list[dict[str, Any]] = []
    text_TE = normalize(embed_phrases(model, texts).numpy())
    sources = _sources(collection, seen.rows[places])
    for source in sorted(set(sources)):
        chosen = np.flatnonzero(sources == source)
        if len(chosen) < 2:
            continue
        image = seen.image_NE[np.array(places)[chosen]]
        ranks = {
            "which text belongs to this image": rank_positives_from_embeddings(image, text_TE[chosen]),
            "which image belongs to this text": rank_positives_from_embeddings(text_TE[chosen], image),
        }
        for k in (1, 10):
            for question, found in ranks.items():
                chance = min(1.0, k / len(chosen))
                table.add(f"{question}: R@{k}", f"{source} images", name, found.recall(k)[1], chance=chance)
        samples += [
            {
                "key": collection.keys[seen.rows[places[index]]],
                "source": str(source),
                "text": texts[index],
                **{f"{question}: better": int(found.better_N[place]) for question, found in ranks.items()},
                **{f"{question}: tied": int(found.tied_N[place]) for question, found in ranks.items()},
            }
            for place, index in enumerate(chosen)
        ]
    return samples


def class_embeddings(model: LocalizingModel, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
    """Zero-shot classifier [C, E]: the mean over templates of unit-length text embeddings, made unit again."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    embedded = normalize(embed_phrases(model, texts).numpy()).reshape(len(names), len(templates), -1)
    return normalize(embedded.mean(1)).astype(np.float32)


def _zero_shot(
    table: Table,
    model: LocalizingModel,
    collection: Collection,
    seen: Embedded,
    name: str,
    field: str,
    templates: Sequence[str],
) -> list[dict[str, Any]]:
    """Adds zero-shot accuracy; returns a row for each image: true and predicted class."""
    samples: list[dict[str, Any]] = []
    values = collection.label_values(field)[seen.rows]
    sources = _sources(collection, seen.rows)
    for source in sorted(set(sources[values != ""])):
        chosen = np.flatnonzero((values != "") & (sources == source))
        names = sorted(set(values[chosen]))
        if len(names) < 2:
            continue
        predicted = nearest_class(seen.image_NE[chosen], class_embeddings(model, names, templates))
        right = (predicted == np.searchsorted(np.array(names), values[chosen].astype(str))).astype(np.float64)
        question = f"zero-shot {field}, {len(names)} names: accuracy"
        table.add(question, f"{source} images", name, right, chance=1 / len(names))
        samples += [
            {
                "key": collection.keys[seen.rows[index]],
                "source": str(source),
                "true": str(values[index]),
                "predicted": names[guess],
            }
            for index, guess in zip(chosen, predicted, strict=True)
        ]
    return samples
