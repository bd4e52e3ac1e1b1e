"""How well scores that cost nothing tell images like those of a captioner's training from others.

    foveate study tour && python -m benchmarks.captioner_domain --photographs FOLDER --out bench

In domain are generated scenes of the tour's test split; out of domain the shipped clip art and emoji of the test split,
and photographs of a folder. Scores of a caption: the mean log-probability of its tokens in two formats, and how near
the image's mean visual token is to those of training scenes: Mahalanobis distance with a shrunk covariance (Lee et al.
2018, arXiv 1807.03888, with one class) or a diagonal one, and the cosine with the nearest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from benchmarks.common import machine
from foveate.caption.chat_requests import caption_request
from foveate.core.files import write_json_atomically
from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.language.generate import GenerationSettings
from foveate.metrics.confidence import separate
from foveate.metrics.intervals import wilson_interval
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prepare import prepare_questions
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.collection import Collection
from foveate_labs.worlds.builtin import load_single_objects

_BATCH = 16
_MAX_TOKENS = {"ssc": 40, "dsc": 80}
FALSE_ALARMS = 0.05


@torch.inference_mode()
def encode_means(model: Mllm, images: Sequence[bytes]) -> NDArray[np.float64]:
    """Return the mean visual token of each image, [N, E]."""
    means = []
    for start in track(range(0, len(images), _BATCH), description="features"):
        visual, _ = prepare_questions(model.loaded, [(image, "?") for image in images[start : start + _BATCH]])
        means.append(visual.tokens_VTE.mean(dim=1).double().numpy())
    return np.concatenate(means)


def score_captions(model: Mllm, images: Sequence[bytes], kind: str) -> list[float]:
    """Return the mean log-probability of the tokens of each image's caption."""
    question = caption_request(kind, length=CAPTION_FORMATS[kind].length_class)
    limit = GenerationSettings(max_new_tokens=_MAX_TOKENS[kind])
    scores: list[float] = []
    for start in track(range(0, len(images), _BATCH), description=kind):
        part = [(image, question) for image in images[start : start + _BATCH]]
        answers = model.ask_all(part, generation=[limit] * len(part), ends_repeats=True, batch=_BATCH)
        scores += [answer.score for answer in answers]
    return scores


def compare_features(training_NE: NDArray[np.float64], images_NE: NDArray[np.float64]) -> dict[str, list[float]]:
    """Return how near images are to those of training, by three measures; near is high."""
    scaled = (images_NE - training_NE.mean(axis=0)) / (training_NE.std(axis=0) + 1e-9)
    unit, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images_NE, training_NE))
    # Fewer training scenes than dimensions squared: without shrinkage the smallest variances would be chance.
    covariance = LedoitWolf().fit(training_NE)
    return {
        "features, Mahalanobis": (-np.sqrt(covariance.mahalanobis(images_NE) / images_NE.shape[1])).tolist(),
        "features, Mahalanobis, diagonal": (-np.sqrt((scaled**2).mean(axis=1))).tolist(),
        "features, nearest": (unit @ other.T).max(axis=1).tolist(),
    }


def load_test_objects(source: str, count: int) -> list[bytes]:
    """Load shipped single images of the test split, drawn by a fixed seed."""
    singles: Iterator[bytes] = (single.data for single in load_single_objects(source) if single.split == "test")
    images = list(singles)
    return [images[index] for index in generator("captioner domain", source).permutation(len(images))[:count]]


def estimate_interval(auroc: float, present: int, absent: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC by its normal approximation, clipped to [0, 1].

    Source: Hanley & McNeil 1982, equation 2.
    """
    pairs, triples = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (present - 1) * (pairs - auroc**2) + (absent - 1) * (triples - auroc**2)
    half = 1.96 * float(np.sqrt(variance / (present * absent)))
    return max(auroc - half, 0.0), min(auroc + half, 1.0)


def measure(scores: dict[str, list[float]]) -> dict[str, object]:
    """Return the threshold that 5 % of scenes fall below, and per group the AUROC and the share below it."""
    scenes = scores["scenes"]
    threshold = float(np.quantile(scenes, FALSE_ALARMS))
    groups = {}
    for name, values in scores.items():
        auroc, below = separate(scenes, values).auc, int(np.sum(np.asarray(values) < threshold))
        share = wilson_interval(below, len(values))
        assert share is not None, "a group without images"
        groups[name] = {
            "n": len(values),
            "auroc": [auroc, *estimate_interval(auroc, len(scenes), len(values))],
            "below": [share.value, share.low, share.high],
            "median": float(np.median(values)),
        }
    return {"threshold": threshold, "groups": groups}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tour", type=Path, default=Path("runs/study-tour"), help="run folder of `foveate study tour`")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="folders of JPEG and PNG files")
    parser.add_argument("--images", type=int, default=100, help="of each group, at most")
    parser.add_argument("--training", type=int, default=300, help="training scenes that features are compared with")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    model = open_mllm(options.model, device="cpu")
    assert isinstance(model, Mllm)
    collection = Collection.open(options.tour / "collection")
    scenes = collection.rows(where={"source": "scenes"})
    scenes = generator("captioner domain").permutation(scenes)
    training, test = (
        [collection.image_bytes(int(row)) for row in scenes[collection.splits[scenes] == split][:count]]
        for split, count in (("train", options.training), ("test", options.images))
    )
    files = sorted(
        path
        for folder in options.photographs
        for path in folder.rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    groups = {
        "scenes": test,
        "clipart": load_test_objects("clipart", options.images),
        "emoji": load_test_objects("emoji", options.images),
        "photographs": [path.read_bytes() for path in islice(files, options.images)],
    }
    scores: dict[str, dict[str, list[float]]] = {}
    training_NE = encode_means(model, training)
    for group, images in groups.items():
        by_score = {f"log-probability, {kind}": score_captions(model, images, kind) for kind in _MAX_TOKENS}
        by_score |= compare_features(training_NE, encode_means(model, images))
        for name, values in by_score.items():
            scores.setdefault(name, {})[group] = values
    result = {name: measure(by_group) for name, by_group in scores.items()}
    for name, measured in result.items():
        print(name, measured)
    write_json_atomically(options.out / "captioner-domain.json", {"machine": machine(), "scores": result})


if __name__ == "__main__":
    main()
