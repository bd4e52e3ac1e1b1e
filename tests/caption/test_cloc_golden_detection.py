"""Detector output to regions, against stored numbers of another library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.caption.vesl.phrases import extract_paper_phrases
from foveate.caption.vesl.query_detectors import best_queries, detections, to_corners
from foveate.vision.detectors import boxes_in_image

FOLDER = Path(__file__).parents[1] / "goldens" / "cloc"
GOLDEN = np.load(FOLDER / "owlv2_post.npz")
CASES: list[dict[str, Any]] = json.loads((FOLDER / "vesl_end_to_end.json").read_text("utf-8"))


@pytest.mark.parametrize("image", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_post_processing(image: int, threshold: float) -> None:
    logits, boxes = GOLDEN["logits"][image], GOLDEN["pred_boxes_cxcywh"][image]
    height, width = map(int, GOLDEN["sizes_hw"][image])
    queries = int(GOLDEN["n_queries"][image])
    expected = {
        name: GOLDEN[f"t{threshold}_i{image}_{name}"]
        for name in ("scores", "labels", "boxes_padded_px", "keep", "boxes_image01")
    }
    kept, scores, labels = best_queries(logits, queries=queries, threshold=threshold)
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(labels, expected["labels"])
    square = to_corners(boxes[kept])
    np.testing.assert_allclose(square * max(width, height), expected["boxes_padded_px"], atol=2e-3, rtol=0)
    inside, left = boxes_in_image(square, width=width, height=height)
    np.testing.assert_array_equal(left, expected["keep"])
    np.testing.assert_allclose(inside, expected["boxes_image01"], atol=5e-6, rtol=0)
    found = detections(logits, boxes, queries=queries, threshold=threshold, width=width, height=height)
    np.testing.assert_array_equal(found.phrase_K, expected["labels"][expected["keep"]])
    assert found.thin == int((~expected["keep"]).sum())
    np.testing.assert_array_equal(found.boxes_K4, inside)


def test_the_threshold_is_strict_and_padding_never_wins() -> None:
    logits = np.array([[0.0, 9.0], [0.01, 9.0]], dtype=np.float32)
    kept, scores, labels = best_queries(logits, queries=1, threshold=0.5)
    assert kept.tolist() == [1]
    assert scores.tolist() == pytest.approx([0.5024999976158142], abs=1e-6)
    assert labels.tolist() == [0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["caption"][:30])
def test_end_to_end(case: dict[str, Any]) -> None:
    phrases = extract_paper_phrases(case["tokens"], case["tags"]).phrases
    assert phrases == case["phrases"]
    if not phrases:
        assert not case["regions"]
        return
    height, width = case["size_hw"]
    found = detections(
        np.array(case["logits"], dtype=np.float32),
        np.array(case["pred_boxes_cxcywh"], dtype=np.float32),
        queries=len(phrases),
        threshold=0.1,
        width=width,
        height=height,
    )
    assert [phrases[number] for number in found.phrase_K] == [one["phrase"] for one in case["regions"]]
    np.testing.assert_allclose(found.scores_K, [one["score"] for one in case["regions"]], atol=2e-6, rtol=0)
    np.testing.assert_allclose(found.boxes_K4, [one["box01"] for one in case["regions"]], atol=2e-5, rtol=0)
