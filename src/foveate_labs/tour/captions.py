"""The tour's captions: the shipped model captions test scenes, and the shipped encoder finds what they mention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.caption.backends.foveate import FoveateSettings, MllmCaptioner, open_captioner
from foveate.caption.captioner import Captioner
from foveate.caption.evaluate import caption_rows, is_looping
from foveate.caption.lengths import apply_length_filter, count_clip_tokens
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.splitter import split
from foveate.caption.vesl.detection import DetectorInput, find_detector
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import open_extractor
from foveate.core.hub import DEFAULT_ENCODER
from foveate.core.runs import RunFolder
from foveate.metrics.captions import assertion_metrics
from foveate.records.caption_formats import TITLES
from foveate.records.collection import Collection
from foveate.records.images import decode, save_thumbnail
from foveate_labs.captions.ground_truths.scenes import DEFINITION, judge_assertions
from foveate_labs.captions.scene_truth import SceneTruths
from foveate_labs.worlds.scenes.scene_collection import build_scenes

FOLDER = "captions"
NUM_EXAMPLES = 8
# Where writing stops: well above what each format allows, so that only captions that never end are cut.
MAX_TOKENS = {"ssc": 60, "dsc": 140, "dsc_plus": 400, "afc": 140}


def tour_captions(run: RunFolder, *, seed: int, device: str | None = None, count: int = NUM_EXAMPLES) -> dict[str, Any]:
    """Caption the first test scenes with the shipped model, and locate what it mentions; return the result."""
    build_scenes(run.path / FOLDER, train=0, test=count, seed=seed)
    collection = Collection.open(run.path / FOLDER)
    captioner = open_captioner(FoveateSettings(device=device))
    assert isinstance(captioner, MllmCaptioner), "the shipped model is a folder of ours"
    examples, counts, assertions = _examples(captioner, collection, collection.rows("test"), run.path, device)
    return {
        "model": captioner.model,
        "reads_requests": captioner.reads_requests,
        "definition": DEFINITION,
        "examples": examples,
        "formats": counts,
        "assertions": assertions,
    }


def _write_captions(
    captioner: Captioner, collection: Collection, rows: NDArray[np.int64], kinds: Sequence[str]
) -> tuple[dict[int, dict[str, str]], dict[int, dict[str, str]]]:
    """Map row to format to caption: the usable ones, and those that never ended, break a rule or repeat themselves."""
    captions: dict[int, dict[str, str]] = {}
    unusable: dict[int, dict[str, str]] = {}
    for written in caption_rows(captioner, collection, rows, kinds=kinds, max_tokens=MAX_TOKENS):
        gated = apply_length_filter(written.kind, written.text)
        # Unusable texts are kept for the page: without them it would hide how often the model fails.
        if written.parses and not gated.error and gated.caption and not is_looping(gated.caption):
            captions.setdefault(written.row, {})[written.kind] = gated.caption
        else:
            unusable.setdefault(written.row, {})[written.kind] = written.text
    return captions, unusable


def _examples(
    captioner: Captioner,
    collection: Collection,
    rows: NDArray[np.int64],
    run: Path,
    device: str | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """Return images with all texts judged by the truth and pseudo-labeled regions, means per format, and totals.

    The totals are over the model's own captions, with their control: the same assertions judged by another scene.
    """
    captions, unusable = _write_captions(captioner, collection, rows, CAPTION_KINDS)
    labeled = _regions(
        collection, {row: captions_of_row.get("dsc", "") for row, captions_of_row in captions.items()}, device
    )
    truths = SceneTruths(collection)
    examples, verdicts = [], {kind: list[list[str]]() for kind in ("alt", *CAPTION_KINDS)}
    lengths: dict[str, list[int]] = {kind: [] for kind in verdicts}
    totals = {"n": 0, "held": 0, "held_by_another_scene": 0}
    for number, row in enumerate(rows.tolist()):
        truth = truths.get(row)
        # The control: what also holds of the next scene was not read off this image.
        other_truth = truths.get(int(rows[(number + 1) % len(rows)])) if len(rows) > 1 else None
        alt = next((caption.text for caption in collection.read_captions(row) if caption.kind == "alt"), "")
        texts = {"alt": alt, **captions.get(row, {})}
        texts_of_image = []
        for kind in (kind for kind in verdicts if texts.get(kind)):
            assertions = split(texts[kind])
            judged = judge_assertions(assertions, truth) if truth else []
            verdicts[kind].append(judged)
            if kind != "alt" and truth and other_truth:
                totals["n"] += len(judged)
                totals["held"] += judged.count("supported")
                totals["held_by_another_scene"] += judge_assertions(assertions, other_truth).count("supported")
            lengths[kind].append(count_clip_tokens(texts[kind]))
            marked = [{"text": a, "verdict": v} for a, v in zip(assertions, judged, strict=True)]
            texts_of_image.append({"format": kind, "title": TITLES[kind], "text": texts[kind], "assertions": marked})
        image = collection.image_bytes(row)
        path = save_thumbnail(image, run / "images" / f"captions-{number:02d}.webp", longest_side=360)
        about = {"key": collection.keys[row], "captions": texts_of_image, "regions": labeled.get(row, [])}
        rejected = {TITLES[kind]: text for kind, text in unusable.get(row, {}).items()}
        examples.append({"image": path.relative_to(run).as_posix(), **about, "unusable": rejected})
    counts = []
    for kind, judged in verdicts.items():
        # A format without a usable caption is a row as well: left out, it would look as if it had not been asked for.
        count: dict[str, Any] = {"format": kind, "title": TITLES[kind], "n": len(judged)}
        if judged:
            metrics = assertion_metrics(judged)
            count |= {"tokens": float(np.mean(lengths[kind])), "ana": metrics["ana"], "held": metrics["accuracy_micro"]}
        counts.append(count)
    return examples, counts, totals


def _regions(collection: Collection, captions: dict[int, str], device: str | None) -> dict[int, list[dict[str, Any]]]:
    """Map row to the regions that VESL makes of its caption, with boxes of the shipped encoder."""
    extractor, kind = open_extractor(PhraseSettings()), find_detector("cloc")
    phrases = {row: some for row, caption in captions.items() if (some := extractor(caption).phrases)}
    if not phrases:
        return {}
    detector = kind.open(kind.settings.model_validate({"model": DEFAULT_ENCODER}), collection, device)
    inputs = []
    for row in phrases:
        # Decoded as in `foveate regions`: at most twice the side that the detector reads.
        image = decode(collection.image_bytes(row), longest_side=2 * detector.input_px)
        width, height = (int(collection.index[name][row]) for name in ("width", "height"))
        inputs.append(DetectorInput(row, collection.keys[row], image, width, height))
    return {
        row: [
            {"box": [float(edge) for edge in box], "phrase": phrases[row][int(number)]}
            for box, number in zip(detections.boxes_K4, detections.phrase_K, strict=True)
        ]
        for row, detections in zip(phrases, detector.detect(inputs, list(phrases.values())), strict=True)
    }
