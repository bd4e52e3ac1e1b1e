"""Decision stages after a species classifier: seconds and memory; pooling against MegaDetector's smoothing.

    python -m benchmarks.species_stages --out DIR        # in the environment of `make test-species-oracles`

All stages (temperature, prior of place and hour, list, pooling, roll-up, threshold) on probabilities of many images in
bursts. The peer is megadetector-utils, `smooth_classification_results_sequence_level`: it gets its results as a
dictionary in memory, and the copy that it works on for free. `labels` does the same from the same best classes and
scores in arrays, and must give the same labels; `megadetector` and `mean_logprob` are whole calls of `decide` that
read the probabilities of all classes, of which the peer sees one. Seconds of ratios are the processor's. Where the
package is missing, only our part is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Ratio, compare, publish, ratio
from foveate.species.decisions import Decisions, Stages, decide, prepare_stages
from foveate.species.priors.histogram import fit_prior
from foveate.species.stages.pooling import SmoothingSettings, smooth_labels
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

AIM = 5.0
_RANKS = ("kingdom", "class", "order", "family", "genus", "species")
_BRANCHES = (1, 2, 5, 5, 4)
_MAX_FRAMES = 12
_CAMERAS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--peer-images", type=int, default=20_000, help="images of the comparison with the peer")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    taxa, classes = build_classes(options.classes)
    p, events = draw_bursts(options.images, classes, taxa)
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        run_all = prepare_all(Path(folder), p, events, classes, taxa)
        began = time.process_time()
        decisions = run_all()
        seconds = time.process_time() - began
        peak = peak_memory()
        began = time.process_time()
        decisions.to_columns()
        writing = time.process_time() - began
    extra: dict[str, Any] = {
        "aim": AIM,
        "images": options.images,
        "classes": len(classes),
        "events": len(decisions),
        "all_stages_processor_s": seconds,
        "columns_processor_s": writing,
        "probabilities_mb": p.nbytes / 1e6,
        "more_memory_mb": peak - before,
        "peak_mb": peak,
    }
    part, part_events = p[: options.peer_images], events[: options.peer_images]
    candidates: dict[str, Callable[[], object]] = {
        name: prepare_pooling(name, part, part_events, classes, taxa) for name in ("megadetector", "mean_logprob")
    }
    candidates["labels"] = prepare_labels(part, part_events, classes, taxa)
    peer = prepare_peer(part, part_events, classes, taxa, copies=options.repeats + 2)
    ratios: dict[str, Ratio] = {}
    if peer is not None:
        check_equal(peer(), part, part_events, classes, taxa)
        candidates["megadetector-utils"] = peer
    timings = compare(candidates, repeats=options.repeats)
    if peer is not None:
        for name in ("labels", "megadetector", "mean_logprob"):
            ratios[f"{name} against megadetector-utils"] = ratio(timings, name, "megadetector-utils", processor=True)
    print(f"all stages: {seconds:.1f} s, {peak - before:.0f} MB above {p.nbytes / 1e6:.0f} MB of probabilities")
    publish("species_stages", timings, out=options.out, ratios=ratios, extra=extra)


def peak_memory() -> float:
    """Return the highest resident memory so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def build_classes(count: int) -> tuple[Taxa, Classes]:
    """Build a tree of `count` species, blank and human among the classes."""
    rows, parents = [], [""]
    for rank, branches in zip(_RANKS, (1, *_BRANCHES), strict=True):
        if rank == "species":
            branches = -(-count // len(parents))
        # An x at the end keeps a name from being the beginning of another, which the peer would take for a parent.
        children = [(f"{parent[:-1]}{rank[0]}{n}x", parent) for parent in parents for n in range(branches)]
        children = children[:count] if rank == "species" else children
        if rank == "species":
            children = [(f"{parent} {name}", parent) for name, parent in children]
        rows += [{"id": name, "name": name, "rank": rank, "parent": parent} for name, parent in children]
        parents = [name for name, _ in children]
    taxa = Taxa.from_rows(rows)
    higher = [i for i, rank in enumerate(taxa.ranks) if rank in ("family", "genus")][: count // 10]
    species = [i for i, rank in enumerate(taxa.ranks) if rank == "species"][: count - len(higher) - 2]
    labels = (*(taxa.names[i] for i in (*species, *higher)), "blank", "human")
    return taxa, Classes(labels, np.array([*species, *higher, -1, -1]))


def draw_bursts(count: int, classes: Classes, taxa: Taxa) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities [N, K] as a results folder stores them, and the event of each image.

    An image is of its burst's species, of a taxon above it, blank, or anything.
    """
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, _MAX_FRAMES + 1, count)
    events = np.repeat(np.arange(count), lengths)[:count]
    column = {taxon: k for k, taxon in enumerate(classes.taxa_K.tolist()) if taxon >= 0}
    above_K = np.arange(len(classes))
    for k, taxon in enumerate(classes.taxa_K.tolist()):
        above_K[k] = next((column[i] for i in taxa.lineage(taxon)[1:] if i in column), k)
    label_E = rng.zipf(1.3, events[-1] + 1) % (len(classes) - 2)
    label_N = label_E[events]
    kinds = rng.choice(4, size=count, p=[0.7, 0.12, 0.1, 0.08])
    drawn_N = rng.integers(len(classes), size=count)
    label_N = np.select(
        [kinds == 0, kinds == 1, kinds == 2], [label_N, above_K[label_N], classes.index("blank")], drawn_N
    )
    p = np.empty((count, len(classes)), dtype=np.float32)
    for low in range(0, count, 4096):
        rows = slice(low, low + 4096)
        weights = rng.exponential(size=p[rows].shape)
        weights[np.arange(len(weights)), label_N[rows]] += rng.uniform(100, 3000, len(weights))
        p[rows] = weights / weights.sum(axis=1, keepdims=True)
    return p, events


def prepare_all(
    folder: Path, p: np.ndarray, events: np.ndarray, classes: Classes, taxa: Taxa
) -> Callable[[], Decisions]:
    """Prepare all stages with a prior and a list."""
    rng = np.random.default_rng(1)
    camera_N = events % _CAMERAS
    places = rng.uniform((-30, -120), (60, 120), (_CAMERAS, 2))[camera_N]
    hours = rng.uniform(0, 24, events[-1] + 1)[events]
    labels = rng.integers(len(classes) - 2, size=20_000)
    fit_prior(labels, classes, places=places[:20_000], hours=hours[:20_000]).save(folder / "prior")
    (folder / "list.txt").write_text("\n".join(classes.labels[: len(classes) // 2]))
    settings = {
        "temperature": {"temperature": 1.5},
        "prior": {"source": folder / "prior", "by_place": True, "by_hour": True, "within_list": True},
        "species_list": {"file": folder / "list.txt"},
    }
    stages = prepare_stages(Stages.model_validate(settings), classes, taxa)
    return lambda: decide(p, classes, taxa, stages, events=events, places=places, hours=hours)


def prepare_pooling(
    method: str, p: np.ndarray, events: np.ndarray, classes: Classes, taxa: Taxa
) -> Callable[[], Decisions]:
    """Prepare pooling alone."""
    settings = {"pooling": {"method": method}, "rollup": {"enabled": False}, "threshold": {"threshold": 0}}
    stages = prepare_stages(Stages.model_validate(settings), classes, taxa)
    return lambda: decide(p, classes, taxa, stages, events=events, num_alternatives=1)


def best_classes(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best class of each image and its probability, of rows that sum to 1 in double precision."""
    rows, best = p.astype(np.float64), p.argmax(axis=1)
    return best, (rows / rows.sum(axis=1, keepdims=True))[np.arange(len(p)), best]


def prepare_labels(p: np.ndarray, events: np.ndarray, classes: Classes, taxa: Taxa) -> Callable[[], np.ndarray]:
    """Prepare smoothing from best classes and scores."""
    (labels, scores), settings = best_classes(p), SmoothingSettings()

    def smooth() -> np.ndarray:
        smoothed, counted = labels.copy(), scores >= settings.min_score
        smoothed[counted] = smooth_labels(labels[counted], events[counted], classes, taxa, settings)
        return smoothed

    return smooth


def prepare_peer(
    p: np.ndarray, events: np.ndarray, classes: Classes, taxa: Taxa, *, copies: int
) -> Callable[[], dict[str, Any]] | None:
    """Prepare the peer's smoothing, with a copy of its input for each call; None where it is not installed."""
    try:
        peer: Any = importlib.import_module("megadetector.postprocessing.classification_postprocessing")
    except ImportError:
        return None
    from foveate.species.speciesnet_rules import BLANK, HUMAN
    from foveate.species.stages.rules import make_labels

    labels = make_labels(taxa)
    special = {"blank": BLANK, "human": HUMAN}
    described = {str(k): special.get(label) or labels[classes.taxa_K[k]] for k, label in enumerate(classes.labels)}
    best, scores = best_classes(p)

    def build() -> dict[str, Any]:
        images = []
        for n, (label, score) in enumerate(zip(best.tolist(), scores.tolist(), strict=True)):
            detection = {"category": "1", "conf": 1.0, "bbox": [0, 0, 1, 1], "classifications": [[str(label), score]]}
            images.append({"file": f"{n}.jpg", "detections": [detection]})
        return {
            "info": {"format_version": "1.6"},
            "detection_categories": {"1": "animal"},
            "classification_categories": {str(k): label for k, label in enumerate(classes.labels)},
            "classification_category_descriptions": described,
            "images": images,
        }

    inputs = [build() for _ in range(copies)]
    sequences = [{"file_name": f"{n}.jpg", "seq_id": event} for n, event in enumerate(events.tolist())]
    options = peer.ClassificationSmoothingOptions()
    options.modify_in_place, options.add_pre_smoothing_description = True, False

    def smooth() -> dict[str, Any]:
        with (
            open(os.devnull, "w", encoding="utf-8") as null,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(null),
        ):
            return peer.smooth_classification_results_sequence_level(inputs.pop(), sequences, options=options)

    return smooth


def check_equal(smoothed: dict[str, Any], p: np.ndarray, events: np.ndarray, classes: Classes, taxa: Taxa) -> None:
    """Stop unless ours gives the peer's labels."""
    theirs = [classes.labels[int(i["detections"][0]["classifications"][0][0])] for i in smoothed["images"]]
    ours = prepare_pooling("megadetector", p, events, classes, taxa)().names().to_pylist()
    labels = [classes.labels[k] for k in prepare_labels(p, events, classes, taxa)().tolist()]
    changed = sum(classes.labels[k] != label for k, label in zip(p.argmax(axis=1).tolist(), theirs, strict=True))
    if theirs != ours or theirs != labels or not changed:
        raise SystemExit(f"labels differ from the peer's, or it changed none of them ({changed} changed)")


if __name__ == "__main__":
    main()
