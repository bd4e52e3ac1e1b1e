"""Evaluate a model: region-text and image-text retrieval, region classification, phrase grounding.

Definitions are those of `foveate.metrics`. Regions of different report groups (`Region.slice`, for example seen and
unseen concepts) and images of different sources are never mixed. Every metric has a bootstrap interval over images,
and every per-sample result goes to Parquet, so that a metric can be computed again without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.metrics.classification import class_accuracies, nearest_class
from foveate.metrics.grounding import SIZE_NAMES, baseline_boxes, grounding_scores, is_unique_phrase, size_slices
from foveate.metrics.intervals import bootstrap_statistic
from foveate.metrics.retrieval import normalize, rank_positives_from_embeddings, within_group_accuracy
from foveate.pretrain.embed import CollectionEmbeddings, embed_collection
from foveate.pretrain.results import MetricsTable, SplitEvaluation, describe_columns
from foveate.pretrain.settings import EvaluateSettings
from foveate.records.collection import Collection
from foveate.records.tables import write_table
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel

EDGES = ("x1", "y1", "x2", "y2")
_SAMPLE_TABLES = ("regions", "retrieval", "classification")


def evaluate(
    model: LocalizingModel,
    collection: Collection,
    settings: EvaluateSettings | None = None,
    *,
    name: str = "model",
    rules: Sequence[str] = ("head", "candidates"),
    seed: int = 0,
    samples_to: Path | None = None,
    cache: Path | None = None,
) -> tuple[SplitEvaluation, CollectionEmbeddings]:
    """Evaluate a model on one split.

    Args:
        settings: which images, and what is asked; the test split by default.
        name: prefix of the columns, for example "cloc".
        rules: how phrases are located, as far as the model has them.
        seed: of the intervals, and of the images where there is a limit.
        samples_to: folder for the per-sample Parquet tables.
        cache: folder where frozen features of the images are kept; by default they are not.

    Returns:
        The metrics, and the embeddings that they were computed from.

    Raises:
        UserError: when the split is empty, or the collection has no such label field or caption kind.

    Example:
        >>> model = open_model(model_folder).network
        >>> result, embeddings = evaluate_model(model, Collection.open(collection_folder))
        >>> result.images, embeddings.image_NE.shape
        (10, (10, 32))
    """
    settings = settings or EvaluateSettings()
    split, limit, classes, text_kind = settings.split, settings.limit, settings.classes, settings.text_kind
    rows = collection.rows(split)
    if not len(rows):
        raise UserError(f"collection {collection.path}: split '{split}' has no images")
    if limit is not None and limit < len(rows):
        # Sort the rows: images of a shard are read in order.
        rows = np.sort(seeds.generator("evaluate", seed).choice(rows, size=limit, replace=False))
    if text_kind is not None:
        kinds = collection.table("captions")["kind"].unique().to_pylist()
        choose(text_kind, sorted(kinds), f"caption kind of the collection {collection.name!r}")
    if classes is not None:
        collection.label_values(classes)  # fail early: an unknown field is refused before the costly pass
    # One pass for all questions: an image is decoded and encoded once.
    embeddings = embed_collection(model, collection, rows, crops=settings.crops, rules=rules, cache=cache)
    table = MetricsTable(seed=seed)
    samples: dict[str, pa.Table] = {}
    if len(embeddings.regions):
        samples["regions"] = _RegionMetrics(table, collection, embeddings, name).compute(seed)
    retrieved = _add_image_retrieval(table, model, collection, embeddings, name, text_kind)
    if retrieved:
        samples["retrieval"] = pa.Table.from_pylist(retrieved)
    if classes is not None:
        classified = _add_zero_shot(table, model, collection, embeddings, name, classes, settings.templates)
        if classified:
            samples["classification"] = pa.Table.from_pylist(classified)
    if samples_to is not None:
        samples_to.mkdir(parents=True, exist_ok=True)
        # Tables of an earlier evaluation must not lie beside the result of this one.
        for kind in _SAMPLE_TABLES:
            if kind not in samples:
                (samples_to / f"{kind}.parquet").unlink(missing_ok=True)
        for kind, rows_of_kind in samples.items():
            write_table(samples_to / f"{kind}.parquet", rows_of_kind)
    result = SplitEvaluation.model_validate(
        {
            "collection": collection.name,
            "split": split,
            "images": len(embeddings.rows),
            "regions": len(embeddings.regions),
            "unreadable": len(embeddings.bad),
            "regions_out_of_view": embeddings.out_of_view,
            "columns": describe_columns(name, table.as_list()),
            "table": table.as_list(),
        }
    )
    return result, embeddings


@dataclass(frozen=True)
class Validation:
    """The images that a model is validated on during training.

    Attributes:
        rows: of the collection. cache: folder of their frozen features.
    """

    collection: Collection
    rows: NDArray[np.int64]
    cache: Path

    @classmethod
    def of(cls, collection: Collection, *, split: str, max_images: int, seed: int, cache: Path) -> Validation:
        """Draw at most `max_images` images of a split by the seed, the same ones for every evaluation.

        Raises:
            UserError: when the split has fewer than two images.
        """
        rows = collection.rows(split)
        # With a single image, every retrieval is correct.
        if len(rows) < 2:
            raise UserError(
                f"training.evaluate_every: split '{split}' of the collection {collection.name!r} has {len(rows)} "
                "images; expected at least 2 (field data.validation_split)"
            )
        if len(rows) > max_images:
            rows = np.sort(seeds.generator("validation", seed).choice(rows, size=max_images, replace=False))
        return cls(collection, rows, cache)

    def metrics(self, model: LocalizingModel) -> dict[str, float]:
        """Return `image_to_text_r1`, `text_to_image_r1`, `region_to_text_r1` and `grounding_iou`.

        Recall@1 among all validation images (regions), and the mean IoU of the head's boxes with the true ones, on
        phrases that occur once in their image; those that the images have no captions, regions or such phrases for, or
        the model no head, are left out.
        """
        # Locate only with the head: the best of several hundred candidates would take most of the time of a step.
        embeddings = embed_collection(model, self.collection, self.rows, rules=("head",), cache=self.cache)
        metrics: dict[str, float] = {}
        with_text_T, texts = _first_captions(self.collection, embeddings.rows, None)
        if texts:
            text_TE = normalize(embed_phrases(model, texts).numpy())
            image_TE = embeddings.image_NE[with_text_T]
            metrics["image_to_text_r1"] = rank_positives_from_embeddings(image_TE, text_TE).recall(1)[0]
            metrics["text_to_image_r1"] = rank_positives_from_embeddings(text_TE, image_TE).recall(1)[0]
        if embeddings.regions:
            ranks = rank_positives_from_embeddings(embeddings.z_RE, embeddings.phrase_RE)
            metrics["region_to_text_r1"] = ranks.recall(1)[0]
            once = _phrases_once(embeddings)
            if "head" in embeddings.located and once.any():
                scores, _ = grounding_scores(embeddings.located["head"][once], embeddings.boxes_R4[once])
                metrics["grounding_iou"] = float(scores["iou"].mean())
        return metrics


class _RegionMetrics:
    """Metrics of the regions of one report group after the other.

    Attributes:
        samples: column -> value of each region, for a table of per-sample results.
        columns: column of the table -> region embeddings [R, E] that fill it.
    """

    def __init__(
        self, table: MetricsTable, collection: Collection, embeddings: CollectionEmbeddings, name: str
    ) -> None:
        self.table, self.embeddings, self.name = table, embeddings, name
        self.columns = {name: embeddings.z_RE}
        if embeddings.crop_RE is not None:
            self.columns[f"{name}_crop"] = embeddings.crop_RE
        # The control exposes a region module that ignores its box and scores well from the rest of the image.
        self.columns[f"{name}_shuffled"] = embeddings.shuffled_RE
        self.sizes_R = size_slices(embeddings.boxes_R4)
        self.samples: dict[str, Any] = {
            "key": [collection.keys[embeddings.rows[image]] for image in embeddings.image_R],
            "phrase": [region.phrase for region in embeddings.regions],
            "label": [region.label for region in embeddings.regions],
            "slice": [region.slice for region in embeddings.regions],
            "size": self.sizes_R.tolist(),
            **{f"{edge}_true": embeddings.boxes_R4[:, index] for index, edge in enumerate(EDGES)},
            **{
                f"{edge}_{name}_{rule}": boxes_R4[:, index]
                for rule, boxes_R4 in embeddings.located.items()
                for index, edge in enumerate(EDGES)
            },
        }

    def compute(self, seed: int) -> pa.Table:
        """Add all metrics; return a row of per-sample results for each region."""
        slices_R = np.array(self.samples["slice"], dtype=object)
        names = sorted(set(slices_R))
        unnamed = "all regions" if len(names) == 1 else "regions without a group"
        # Never average over groups: seen and unseen concepts differ, and their shares are those of the data set.
        for name in names:
            mask_R, part = slices_R == name, str(name) or unnamed
            for column, z_RE in self.columns.items():
                self._add_retrieval(mask_R, column, z_RE, part)
                self._add_classes(mask_R, column, z_RE, part)
                self._add_box_choice(mask_R, column, z_RE, part)
            self._add_grounding(mask_R, part, seed)
        return pa.table(self.samples)

    def _store(self, name: str, selected: NDArray[np.int64], values: NDArray[Any], *, none: float) -> None:
        """Store per-sample results; `none` marks regions that the question was not asked for."""
        # Counts stay integers in the table, and integers have no NaN, so -1 marks a missing one.
        dtype = np.int64 if isinstance(none, int) else np.float64
        self.samples.setdefault(name, np.full(len(self.embeddings.regions), none, dtype))[selected] = values

    def _add_retrieval(self, mask_R: NDArray[np.bool_], column: str, z_RE: NDArray[np.float32], part: str) -> None:
        """Add region-text retrieval both ways among the regions of one group; R@1 of the first also by region size."""
        selected, phrase_RE = np.flatnonzero(mask_R), self.embeddings.phrase_RE
        groups = self.embeddings.image_R[selected]
        for question, short, queries, gallery in (
            ("which phrase names this box", "r2t", z_RE, phrase_RE),
            ("which box does this phrase name", "t2r", phrase_RE, z_RE),
        ):
            ranks = rank_positives_from_embeddings(queries[selected], gallery[selected])
            for kind, values in (("better", ranks.better_N), ("tied", ranks.tied_N)):
                self._store(f"{kind}_{short}_{column}", selected, values, none=-1)
            for k in (1, 10):
                # Among fewer than k candidates every one is a hit.
                chance = min(1.0, k / len(selected))
                self.table.add(f"{question}: R@{k}", part, column, ranks.recall(k)[1], groups=groups, chance=chance)
            if short == "r2t":
                self._add_by_size(f"{question}: R@1", part, column, ranks.recall(1)[1], selected)

    def _add_by_size(
        self, question: str, part: str, column: str, values: NDArray[np.float64], selected: NDArray[np.int64]
    ) -> None:
        for size in SIZE_NAMES:
            of_size = self.sizes_R[selected] == size
            if of_size.any():
                groups = self.embeddings.image_R[selected][of_size]
                self.table.add(question, f"{part}, {size}", column, values[of_size], groups=groups)

    def _add_classes(self, mask_R: NDArray[np.bool_], column: str, z_RE: NDArray[np.float32], part: str) -> None:
        """Add top-1 and mean class accuracy if all regions have labels; one phrase represents each class."""
        labels = np.array(self.samples["label"], dtype=object)[mask_R]
        # A class accuracy over some of the regions would depend on which ones happen to have labels.
        if not all(labels):
            return
        names, first = np.unique(labels.astype(str), return_index=True)
        if len(names) < 2:
            return
        predicted = nearest_class(z_RE[mask_R], self.embeddings.phrase_RE[mask_R][first])
        # `np.unique` has sorted the names, as a binary search needs them.
        truth = np.searchsorted(names, labels.astype(str))
        groups = list(self.embeddings.image_R[mask_R])
        interval = bootstrap_statistic(
            lambda rows: float(class_accuracies(predicted[rows], truth[rows]).accuracy_C.mean()),
            rows=len(truth),
            seed=self.table.seed,
            groups_N=groups,
            # Use fewer resamples than the usual 1,000: mAcc is no mean of samples, so each resample counts all classes
            # again.
            resamples=200,
        )
        question, chance = "what is in this box, of all names", 1 / len(names)
        right = (predicted == truth).astype(np.float64)
        self.table.add(f"{question}: top-1", part, column, right, groups=groups, chance=chance)
        self.table.add(f"{question}: mAcc", part, column, interval, chance=chance)

    def _add_box_choice(self, mask_R: NDArray[np.bool_], column: str, z_RE: NDArray[np.float32], part: str) -> None:
        """Add the accuracy of choosing a phrase's box among those of its image.

        Phrases count that name one of at least two boxes: a single box would be right by default.
        """
        image_R = self.embeddings.image_R
        counts = np.bincount(image_R)[image_R]
        selected = np.flatnonzero(mask_R & _phrases_once(self.embeddings) & (counts > 1))
        if not len(selected):
            return
        _, right_R, _ = within_group_accuracy(self.embeddings.phrase_RE, z_RE, image_R.tolist())
        right = right_R[selected]
        self._store(f"chosen_{column}", selected, right, none=np.nan)
        question, chance = "which of the image's boxes: accuracy", float((1 / counts[selected]).mean())
        self.table.add(question, part, column, right, groups=image_R[selected], chance=chance)

    def _add_grounding(self, mask_R: NDArray[np.bool_], part: str, seed: int) -> None:
        """Add phrase grounding by every rule and the baselines, on phrases that occur once in their image."""
        embeddings = self.embeddings
        selected = np.flatnonzero(mask_R & _phrases_once(embeddings))
        if not len(selected):
            return
        for rule, boxes_R4 in {**embeddings.located, **baseline_boxes(len(embeddings.regions), seed=seed)}.items():
            column = rule if rule in ("center", "random") else f"{self.name}_{rule}"
            per_sample, _ = grounding_scores(boxes_R4[selected], embeddings.boxes_R4[selected])
            self._store(f"iou_{column}", selected, per_sample["iou"], none=np.nan)
            groups = embeddings.image_R[selected]
            for title, key in (("IoU at least .5", "acc50"), ("mean IoU", "iou"), ("pointing", "pointing")):
                self.table.add(f"where is it: {title}", part, column, per_sample[key], groups=groups)
            self._add_by_size("where is it: IoU at least .5", part, column, per_sample["acc50"], selected)


def _phrases_once(embeddings: CollectionEmbeddings) -> NDArray[np.bool_]:
    """Mark the regions [R] whose phrase occurs once in their image."""
    return is_unique_phrase([region.phrase for region in embeddings.regions], embeddings.image_R.tolist())


def choose_locate_rule(embeddings: CollectionEmbeddings) -> str:
    """Return the rule, "head" or "candidates", with more boxes at IoU .5 or above, on phrases that occur once."""
    once = _phrases_once(embeddings)
    if not once.any() or "head" not in embeddings.located:
        return "head" if "head" in embeddings.located else "candidates"
    hits = {
        rule: float(grounding_scores(boxes[once], embeddings.boxes_R4[once])[0]["acc50"].mean())
        for rule, boxes in embeddings.located.items()
    }
    # Prefer the head on a tie: it needs one pass of the Prompter instead of several hundred.
    return max(sorted(hits, reverse=True), key=lambda rule: hits[rule])


def _first_captions(
    collection: Collection, rows: NDArray[np.int64], kind: str | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return which of `rows` have a caption (of this kind), and the first one of each."""
    indices, texts = [], []
    for index, row in enumerate(rows):
        captions = [caption for caption in collection.read_captions(int(row)) if kind is None or caption.kind == kind]
        if captions:
            indices.append(index)
            # One text per image: any further caption would rank as a wrong candidate for its own image.
            texts.append(captions[0].text)
    return np.array(indices, dtype=np.int64), texts


def _sources(collection: Collection, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return the label "source" of each row, or the collection's name where there is no such label."""
    fields = set(collection.table("labels")["field"].to_pylist())
    if "source" not in fields:
        return np.full(len(rows), collection.name, dtype=object)
    return collection.label_values("source")[rows]


def _add_image_retrieval(
    table: MetricsTable,
    model: LocalizingModel,
    collection: Collection,
    embeddings: CollectionEmbeddings,
    name: str,
    kind: str | None,
) -> list[dict[str, Any]]:
    """Add image-text retrieval both ways; return how many wrong candidates score higher for each image."""
    with_text_T, texts = _first_captions(collection, embeddings.rows, kind)
    if not len(with_text_T):
        return []
    samples: list[dict[str, Any]] = []
    text_TE = normalize(embed_phrases(model, texts).numpy())
    sources_T = _sources(collection, embeddings.rows[with_text_T])
    for source in sorted(set(sources_T)):
        of_source = np.flatnonzero(sources_T == source)
        # Sources are never mixed: telling a photograph's caption from a clip art's would be too easy.
        if len(of_source) < 2:
            continue
        image = embeddings.image_NE[with_text_T[of_source]]
        ranks_by_question = {
            "which text belongs to this image": rank_positives_from_embeddings(image, text_TE[of_source]),
            "which image belongs to this text": rank_positives_from_embeddings(text_TE[of_source], image),
        }
        for k in (1, 10):
            for question, ranks in ranks_by_question.items():
                chance = min(1.0, k / len(of_source))
                # No groups for the interval: each image is one sample here.
                table.add(f"{question}: R@{k}", f"{source} images", name, ranks.recall(k)[1], chance=chance)
        samples += [
            {
                "key": collection.keys[embeddings.rows[with_text_T[text]]],
                "source": str(source),
                "text": texts[text],
                **{f"{question}: better": int(ranks.better_N[i]) for question, ranks in ranks_by_question.items()},
                **{f"{question}: tied": int(ranks.tied_N[i]) for question, ranks in ranks_by_question.items()},
            }
            for i, text in enumerate(of_source)
        ]
    return samples


def class_embeddings(model: LocalizingModel, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
    """Return the zero-shot classifier [C, E]: unit-length means of the templates' unit-length text embeddings."""
    # Prompt ensembling as in CLIP: templates are averaged after normalization, each with the same weight.
    texts = [template.replace("{}", name) for name in names for template in templates]
    embedded = normalize(embed_phrases(model, texts).numpy()).reshape(len(names), len(templates), -1)
    return normalize(embedded.mean(1)).astype(np.float32)


def _add_zero_shot(
    table: MetricsTable,
    model: LocalizingModel,
    collection: Collection,
    embeddings: CollectionEmbeddings,
    name: str,
    field: str,
    templates: Sequence[str],
) -> list[dict[str, Any]]:
    """Add zero-shot accuracy; return the true and predicted class of each image."""
    samples: list[dict[str, Any]] = []
    values = collection.label_values(field)[embeddings.rows]
    sources = _sources(collection, embeddings.rows)
    for source in sorted(set(sources[values != ""])):
        labeled = np.flatnonzero((values != "") & (sources == source))
        # Name only classes that occur: a class without images has no accuracy, and would only add distractors.
        names = sorted(set(values[labeled]))
        if len(names) < 2:
            continue
        predicted = nearest_class(embeddings.image_NE[labeled], class_embeddings(model, names, templates))
        right = (predicted == np.searchsorted(np.array(names), values[labeled].astype(str))).astype(np.float64)
        question = f"zero-shot {field}, {len(names)} names: accuracy"
        table.add(question, f"{source} images", name, right, chance=1 / len(names))
        samples += [
            {
                "key": collection.keys[embeddings.rows[index]],
                "source": str(source),
                "true": str(values[index]),
                "predicted": names[guess],
            }
            for index, guess in zip(labeled, predicted, strict=True)
        ]
    return samples
