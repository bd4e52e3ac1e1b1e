"""A card of four bursts of three frames with MegaDetector's results, and a model of features that predicts it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from training_survey import COLORS, KINDS, build_survey, write_features

from foveate.core.recipes import validate
from foveate.records.writer import CollectionWriter
from foveate.species.crops import CropSettings
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Stages
from foveate.species.model import SpeciesModel
from foveate.species.predict import predict
from foveate.species.predictions import Predictions
from foveate.species.recipe import SpeciesRecipe
from foveate.species.settings import PredictSettings
from foveate.species.taxonomy import Classes
from foveate.species.train import train_species
from foveate.survey.importers.results import add_results
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.taxa import Taxa
from foveate.survey.types import Deployment, Medium
from foveate.vision.preprocess import Preprocess

EVENTS, FRAMES = 4, 3
CORNERS = [0.1, 0.1, 0.5, 0.5]


def name_file(number: int) -> str:
    """Name the file of a frame."""
    return f"A/IMG_{number:04}.JPG"


FILES = [name_file(number) for number in range(EVENTS * FRAMES)]
KEYS = [file.removesuffix(".JPG") for file in FILES]
Boxes = Mapping[int, Sequence[tuple[Any, ...]]]


def train_model(folder: Path) -> SpeciesModel:
    """Train a linear head on features of three kinds and blank."""
    survey = build_survey(folder / "train", images=32)
    write_features(folder / "train.npz", survey)
    values = {"method": "linear_probe", "data": {"features": str(folder / "train.npz")}, "prior": "none"}
    recipe = validate(SpeciesRecipe, values, where="test")
    outcome = train_species(survey.collection.path, folder / "run", recipe, device="cpu")
    assert outcome.model is not None
    return outcome.model


class ColorModel:
    """A model of pixels: it names the kind whose color the middle of a view has (`training_survey.COLORS`)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sha256 = folder / "model", "0" * 64
        self.view, self.info = CropSettings(), SimpleNamespace(method="linear_probe", provenance={})
        self.hours, self.places_P2, self.encoder_settings = np.zeros(0), np.zeros((0, 2)), {}
        genera = [{"id": name.split()[0], "name": name.split()[0], "rank": "genus"} for name in KINDS[:-1]]
        species = [{"id": name, "name": name, "rank": "species", "parent": name.split()[0]} for name in KINDS[:-1]]
        self.taxa = Taxa.from_rows([*genera, *species])
        self.classes = Classes(KINDS, np.array([*map(self.taxa.index, KINDS[:-1]), -1]))

    def load_encoder(self, device: object = None) -> SimpleNamespace:
        def average(pixels_B3HW: Tensor) -> Tensor:
            return pixels_B3HW[:, :, 12:20, 12:20].float().mean(dim=(2, 3))

        preprocess = Preprocess(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), geometry="stretch")
        return SimpleNamespace(preprocess=preprocess, frozen_features=average, image_vectors=lambda vectors: vectors)

    def probabilities(self, vectors_B3: NDArray[np.float32]) -> NDArray[np.float32]:
        weights_BK = np.exp(-np.linalg.norm(vectors_B3[:, None] - np.array(COLORS), axis=2) / 8)
        return (weights_BK / weights_BK.sum(axis=1, keepdims=True)).astype(np.float32)


def draw_frame(number: int, boxes: Sequence[tuple[Any, ...]]) -> bytes:
    """Draw a frame with boxes: category, confidence, (x, y, width, height), and the kind whose color the box has."""
    rng = np.random.default_rng(number)
    pixels = np.array(COLORS[3]) + rng.integers(-10, 10, size=(240, 360, 3))
    for _, _, (x, y, width, height), kind in boxes:
        rows, columns = slice(int(y * 240), int((y + height) * 240)), slice(int(x * 360), int((x + width) * 360))
        shape = pixels[rows, columns].shape
        pixels[rows, columns] = np.array(COLORS[kind]) + rng.integers(-10, 10, size=shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_card(folder: Path, images: Sequence[bytes] = ()) -> None:
    """Write the survey of the card: a burst an hour, a frame a second, without sequences of the camera.

    Args:
        images: bytes of its frames; 12 plain ones by default.
    """
    with CollectionWriter(folder, source="card") as writer:
        deployment = Deployment("A", "A", 48.137, 11.575, utc_offset="+02:00")
        for number in range(len(images) or len(FILES)):
            file = name_file(number)
            key, hour = file.removesuffix(".JPG"), number // FRAMES
            day = date(2026, 5, 1) + timedelta(days=hour // 12)
            time = f"{day} {8 + hour % 12:02}:00:{number % FRAMES:02}"
            medium = Medium(key, "A", time=time, file=file)
            buffer = io.BytesIO()
            Image.new("RGB", (60, 40), (20 * number % 256, 90, 60)).save(buffer, "JPEG")
            context = make_context(medium, deployment)
            writer.add(key, images[number] if images else buffer.getvalue(), context=context, extra=survey_rows(medium))
        write_survey(writer, deployments=[deployment])


def write_boxes(path: Path, boxes: Boxes) -> Path:
    """Write MegaDetector's results: boxes (category, confidence and, elsewhere than CORNERS, bbox) of listed frames."""
    numbers = {"animal": "1", "person": "2", "vehicle": "3"}
    images: list[dict[str, Any]] = []
    for number, pairs in boxes.items():
        detections = [
            {"category": numbers[name], "conf": conf, "bbox": list(corners[0]) if corners else CORNERS}
            for name, conf, *corners in pairs
        ]
        images.append({"file": name_file(number), "detections": detections})
    content = {"info": {"format_version": "1.6", "detector": "MegaDetector v5a"}, "images": images}
    path.write_text(
        json.dumps({**content, "detection_categories": {n: name for name, n in numbers.items()}}), encoding="utf-8"
    )
    return path


def predict_card(
    model: SpeciesModel, folder: Path, kinds: list[int], boxes: Boxes | None, **stages: Any
) -> Predictions:
    """Write the card, its results of MegaDetector and its predictions into `folder`, and decide.

    Args:
        kinds: what the classifier sees on each frame, as an index of `training_survey.KINDS`.
        boxes: see `write_boxes`; None is a card that no detector looked at.
    """
    write_card(folder / "card")
    if boxes is not None:
        add_results(folder / "card", write_boxes(folder / "md.json", boxes))
    np.savez(folder / "features.npz", key=np.array(KEYS), vector=np.eye(6)[kinds] * 3)
    predict(model, folder / "card", folder / "results", PredictSettings(features=folder / "features.npz"))
    decide_results(Predictions.open(folder / "results"), validate(Stages, stages, where="test"))
    return Predictions.open(folder / "results")
