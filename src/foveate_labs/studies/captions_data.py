"""Images of the study `captions`, their captions, and the queries of its tests.

Scenes: captions of the scene-oracle, of which one statement in ten is false. Real images: clip art and emoji with
their own titles as AltText, and captions by our own captioner, which was trained on other images of the same kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foveate.caption.audit import AuditMethod, audit
from foveate.caption.captioner import find_backend
from foveate.caption.pending_requests import CaptionSettings
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.run import caption
from foveate.caption.settings import AuditSettings, TargetSettings
from foveate.core import seeds
from foveate.core.runs import RunFolder
from foveate.metrics.captions import UNVERIFIABLE
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from foveate_labs.captions.ground_truths.scenes import judge_assertions
from foveate_labs.captions.scene_captions import render
from foveate_labs.captions.scene_truth import SceneTruth, SceneTruths, Thing
from foveate_labs.studies.trainings import train_captioner
from foveate_labs.worlds.builtin import LICENSES, load_cutouts, load_single_objects
from foveate_labs.worlds.scenes import build_scenes

QUERY_SHORT, QUERY_LONG = "query_short", "query_long"
HALLUCINATIONS = 0.1
FORMATS = ("ssc", "dsc", "afc")
CAPTIONER_SPLIT = "captioner"
SIZE = 128
_SHARES = {CAPTIONER_SPLIT: 0.34, "test": 0.16}  # the rest is for training
NAMES_DEFINITION = (
    "Judged by the names of the built-in images: one drawing of the named thing in the middle of a plain ground, and "
    "nothing else. What these do not say (style, groups, colors) is not decidable."
)


def write_captions(
    collection: Path, backend: str, options: Mapping[str, Any], run: Path, *, split: str, formats: Sequence[str]
) -> str:
    """Write missing captions of a split as `foveate caption` does; return the model's name.

    A signal to stop ends the study, too.
    """
    folder = RunFolder.create(run)
    done = caption(
        collection,
        CaptionSettings(formats=tuple(formats), split=split),
        backend=backend,
        backend_settings=find_backend(backend).settings(**options),
        run=folder,
        workers=1,
    )
    if done.stopped:
        raise KeyboardInterrupt
    if done.failure is not None:
        raise done.failure
    folder.write_result(done.result.to_json())
    return done.result.model


def prepare_scenes(path: Path, *, train: int, test: int, seed: int, run: Path) -> None:
    """Build scenes with captions of the oracle for training and true queries for tests; resumes."""
    build_scenes(path, train=train, test=test, seed=seed, size=SIZE, workers=1)
    collection = Collection.open(path)
    truths = SceneTruths(collection)
    rows: list[dict[str, Any]] = []
    for row in collection.rows("test").tolist():
        truth = truths.get(row)
        for kind, query in (("ssc", QUERY_SHORT), ("dsc", QUERY_LONG)):
            # Without invented statements: a query must be true of its image.
            text = render(kind, truth, alt="", rng=np.random.default_rng(0)).text if truth else ""
            rows += [{"key": collection.keys[row], "kind": query, "text": text}] * bool(text)
    with CollectionWriter(path) as writer:
        writer.annotate("captions", rows, Provenance("study captions"))
    write_captions(
        path,
        "scene_oracle",
        {"hallucinations": HALLUCINATIONS},
        run / "captions-scene_oracle-train",
        split="train",
        formats=FORMATS,
    )


def prepare_images(path: Path, *, seed: int, run: Path, max_images: int | None, captioner_part: float) -> None:
    """Build clip art and emoji in three splits, train a captioner on one, caption the others.

    Args:
        max_images: of all images together, for small runs.
        captioner_part: of the steps of the recipe `captioner`.
    """
    drawn = [
        single
        for source in ("clipart", "emoji")
        for single in load_single_objects(source, size=SIZE)
        if single.split == "train"
    ]
    # By a hash of the key: a small study has a part of the images of a large one.
    drawn.sort(key=lambda single: seeds.uniform("study pictures", seed, single.key))
    with CollectionWriter(path, license="; ".join(LICENSES.values()), source="built-in images") as writer:
        for single in drawn[:max_images]:
            split = split_of(single.key if single.labels["source"] == "emoji" else single.group, seed)
            concept = single.labels.get("concept", "")
            if split == "test" and not concept:
                # Without a name there is nothing to search for or to judge; the image is not trained on, either.
                split = "unnamed"
            texts = {caption.kind: caption.text for caption in single.captions}
            long = ". ".join(dict.fromkeys(filter(None, map(texts.get, ("title", "keywords", "description")))))
            queries = (Caption(concept, QUERY_SHORT), Caption(long, QUERY_LONG)) if split == "test" else ()
            # An interrupted build goes on without adding images twice.
            if writer.known_sha256(single.key) is None:
                writer.add(
                    single.key,
                    single.data,
                    captions=(*single.captions, *queries),
                    labels=single.labels,
                    group=single.group,
                    split=split,
                )
    targets = TargetSettings(split=CAPTIONER_SPLIT, sources=("singles",))
    folder = train_captioner(path, run / "captioner", targets, part=captioner_part, seed=seed)
    # Captions of test images are for the audit alone, which judges every kind.
    for split, formats in (("train", FORMATS), ("test", CAPTION_KINDS)):
        options = {"model": str(folder), "device": "cpu"}
        write_captions(path, "foveate", options, run / f"captions-foveate-{split}", split=split, formats=formats)


def split_of(name: str, seed: int) -> str:
    """Return "captioner", "test" or "train" for the name of an image or of a group of near-duplicates."""
    share = seeds.uniform("study split", seed, name)
    for split, part in _SHARES.items():
        if share < part:
            return split
        share -= part
    return "train"


def audit_captioner(path: Path, run: Path, *, sample: int, seed: int) -> dict[str, Any]:
    """Audit the captioner's captions on held-out images, whose names are known."""
    collection = Collection.open(path)

    def by_names(rows: Sequence[int], assertions: Sequence[Sequence[str]]) -> list[list[str]]:
        return [judge_named(texts, collection.read_labels(row)) for row, texts in zip(rows, assertions, strict=True)]

    method = AuditMethod(judge=by_names, judge_definition=NAMES_DEFINITION)
    settings = AuditSettings(
        formats=("alt", "ssc", "dsc", "dsc_plus", "afc"), split="test", sample=sample, seed=seed, gallery=12
    )
    folder = RunFolder.create(run / "audit")
    result = audit(collection, folder.path, settings, method).to_json()
    folder.write_result(result)
    return result


def judge_named(assertions: Sequence[str], labels: dict[str, str]) -> list[str]:
    """Judge assertions about a built-in image by its name."""
    concept = labels.get("concept", "")
    if not concept:
        return [UNVERIFIABLE] * len(assertions)
    # As NAMES_DEFINITION says: one drawing in the middle of a plain ground, and nothing else.
    truth = SceneTruth(
        (Thing(concept, Box(0.1, 0.1, 0.9, 0.9), 1.0),), frozenset(), (), "a plain ground", "drawn", frozenset()
    )
    return judge_assertions(assertions, truth)


def classes_of(collection: Collection, rows: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return names and categories of rows: of the drawn thing, in scenes of the largest; "" for none."""
    categories = {cutout.concept: cutout.category for cutout in load_cutouts() if cutout.concept}
    truths = SceneTruths(collection)
    classes = []
    for row in rows:
        truth = truths.get(row)
        if truth is None:
            labels = collection.read_labels(row)
            classes.append((labels.get("concept", ""), labels.get("category", "")))
        else:
            largest = max(truth.things, key=lambda thing: thing.box.area, default=None)
            name = largest.phrase if largest else ""
            classes.append((name, categories.get(name, "")))
    return [name for name, _ in classes], [category for _, category in classes]


class ShuffledCaptions(Collection):
    """A collection whose generated captions are shuffled within the training images, in memory only."""

    shuffled: pa.Table | None = None

    def table(self, kind: str) -> pa.Table:
        if kind == "captions" and self.shuffled is not None:
            return self.shuffled
        return super().table(kind)


def open_shuffled(path: Path, *, seed: int) -> Collection:
    """Open a collection with the generated texts of each kind shuffled among the training images."""
    opened = ShuffledCaptions.open(path)
    assert isinstance(opened, ShuffledCaptions)
    table = opened.table("captions")
    training = set(np.array(opened.keys, dtype=object)[opened.rows("train")])
    kinds, keys = np.array(table["kind"].to_pylist(), dtype=object), table["key"].to_pylist()
    # Texts that came with the images have no request.
    was_generated = np.array(table["request"].to_pylist(), dtype=object) != ""
    mask = was_generated & np.array([key in training for key in keys], dtype=bool)
    texts = np.array(table["text"].to_pylist(), dtype=object)
    rng = seeds.generator("study shuffled captions", seed)
    for kind in sorted(set(kinds[mask])):
        places = np.flatnonzero(mask & (kinds == kind))
        texts[places] = texts[rng.permutation(places)]
    column = table.schema.get_field_index("text")
    opened.shuffled = table.set_column(column, table.schema.field(column), pa.array(texts, pa.string()))
    return opened
