"""Images, teacher, captions and labels of the study `vesl`, made once and shared by all its trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.files import read_json, write_json_atomically
from foveate.core.progress import say

# Not among the seeds of cells (0 to 4 by default): the teacher is none of the models that its labels train.
TRUTH, TEACHER_SEED = "scenes", 1000
LABELS_FILE = "labels.json"
# Cosine of box and phrase above which the teacher's answer is a label. Chosen before the first run by the share of
# right labels alone, on 100 scenes with captions rendered from the truth.
MIN_COSINE = 0.3
SCENES, TEACHER_SCENES = 31, 32  # seeds of the two series of scenes: images that are labeled, and the teacher's


@dataclass(frozen=True)
class Labeling:
    """A way to label: whose captions of which kind, which phrases, which boxes.

    captioner: "own" (a captioner trained on the teacher's scenes), "oracle" (rendered from the truth), or "" for the
    alt-texts that are there.
    """

    key: str
    captioner: str
    kind: str
    phrases: str = "rules"
    detector: str = "cloc"
    shuffled: bool = False


# Pairs differ in one thing: captions (own, oracle), boxes (oracle, oracle-boxes), phrases (alt-phrases, ngrams).
LABELINGS = (
    Labeling("own", "own", "dsc"),
    Labeling("oracle", "oracle", "dsc"),
    Labeling("oracle-boxes", "oracle", "dsc", detector="annotations"),
    Labeling("alt-phrases", "", "alt"),
    Labeling("ngrams", "", "alt", phrases="ngrams"),
    Labeling("shuffled", "oracle", "dsc", shuffled=True),
)


def draw_scenes(folder: Path, *, train: int, test: int, teacher: int) -> tuple[Path, Path]:
    """Build the scenes that are labeled and tested on, and others of the same world for teacher and captioner."""
    from foveate_labs.worlds.scenes import build_scenes

    scenes, others = folder / "scenes", folder / "teacher-scenes"
    build_scenes(scenes, train=train, test=test, seed=SCENES)
    build_scenes(others, train=teacher, seed=TEACHER_SCENES)
    return scenes, others


def train_teacher(others: Path, run: Path, overrides: Sequence[str], *, device: str | None) -> Path:
    """Train the detector, a CLOC on true boxes of the teacher's scenes; return its model folder."""
    from foveate.records.collection import Collection
    from foveate_labs.studies.trainings import train

    if not (run / "model" / "config.json").is_file():
        with Collection.open(others) as collection:
            train("tour", [*overrides, f"training.seed={TEACHER_SEED}"], collection, run, device=device)
    return run / "model"


def write_both_captions(scenes: Path, run: Path, captioner: Path, *, device: str | None) -> dict[str, str]:
    """Write DSC captions of the training images by both captioners; map each to the name of its model."""
    from foveate_labs.studies.captions_data import write_captions

    jobs = (
        ("own", "foveate", {"model": str(captioner), "device": device or "cpu"}),
        ("oracle", "scene_oracle", {}),
    )
    return {
        who: write_captions(scenes, backend, options, run / who, split="train", formats=("dsc",))
        for who, backend, options in jobs
    }


def write_labels(
    scenes: Path, folder: Path, teacher: Path, models: dict[str, str], *, device: str | None
) -> dict[str, dict[str, Any]]:
    """Label the training images in every way; map each labeling to the source and quality of its rows."""
    from foveate.caption.vesl.detection import find_detector
    from foveate.caption.vesl.phrases import PhraseSettings
    from foveate.caption.vesl.run import label_regions
    from foveate.caption.vesl.work import RegionLabelSettings

    labels: dict[str, dict[str, Any]] = {}
    for labeling in LABELINGS:
        settings = RegionLabelSettings(
            phrases=PhraseSettings(tagger=labeling.phrases),
            captions=(labeling.kind,),
            prefer=(models[labeling.captioner],) if labeling.captioner else (),
            shuffle_phrases=labeling.shuffled,
        )
        # The detector is found by name; the oracle of boxes reads the true regions and has no threshold.
        grounding = {"model": str(teacher), "rule": "head", "threshold": MIN_COSINE}
        options = grounding if labeling.detector == "cloc" else {"sources": (TRUTH,)}
        done = label_regions(
            scenes,
            settings,
            detector=labeling.detector,
            detector_settings=find_detector(labeling.detector).settings(**options),
            split="train",
            device=device,
            workers=1,
        )
        result = done.result
        if done.failure is not None:
            raise done.failure
        if result.stopped:
            raise KeyboardInterrupt
        source = f"{result.source}@{result.recipe_hash}"
        labels[labeling.key] = {"source": source, "status": result.status, "regions": result.regions}
        say(f"labeled by {labeling.key}: {result.regions} regions")
    # A labeling that found no region has no row: its source is in no table.
    sources = {key: entry["source"] if entry["regions"] else None for key, entry in labels.items()}
    for key, values in quality(scenes, sources).items():
        labels[key] |= values
    write_json_atomically(folder / LABELS_FILE, labels)
    return labels


def read_labels(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what `write_labels` wrote."""
    return read_json(folder / LABELS_FILE)


def quality(scenes: Path, sources: Mapping[str, str | None]) -> dict[str, dict[str, float]]:
    """Compare the labels of training images with the truth.

    label_right: share of labels that lie on a thing (IoU at least .5) and share more than .3 of their words with its
    true phrase. label_found: share of true regions that such a label names. label_count: labels an image.

    Args:
        sources: of each labeling, None where it labeled nothing.
    """
    import numpy as np

    from foveate.caption.vesl.detectors.annotations import word_overlap
    from foveate.records.boxes import pairwise_iou
    from foveate.records.collection import Collection
    from foveate.records.region_sources import select_region_rows

    with Collection.open(scenes) as collection:
        grouped = collection.grouped("regions")
        boxes_R4 = collection.region_boxes.astype(np.float64)
        true_R = select_region_rows(grouped.table, [TRUTH])
        phrases = grouped.table["phrase"].to_pylist()
        rows = collection.rows("train").tolist()
        answers = {}
        for key, source in sources.items():
            mine_R = np.zeros_like(true_R) if source is None else select_region_rows(grouped.table, [source])
            right = labels = matched = truths = 0
            for row in rows:
                start, end = grouped.bounds(row)
                ours = start + np.flatnonzero(mine_R[start:end])
                true = start + np.flatnonzero(true_R[start:end])
                # Counted before the next test: an image without a label still has true regions to be found.
                labels, truths = labels + len(ours), truths + len(true)
                if not len(ours) or not len(true):
                    continue
                fits = pairwise_iou(boxes_R4[ours], boxes_R4[true]) >= 0.5
                alike = np.array([[word_overlap(phrases[a], phrases[b]) > 0.3 for b in true] for a in ours])
                right += int((fits & alike).any(axis=1).sum())
                matched += int((fits & alike).any(axis=0).sum())
            answers[key] = {
                "label_right": right / max(1, labels),
                "label_found": matched / max(1, truths),
                "label_count": labels / max(1, len(rows)),
            }
    return answers
