"""A small survey on disk for tests of training: three kinds and blanks at four cameras, with features beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.records.writer import CollectionWriter
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment, Medium, Observation

KINDS = ("Cervus elaphus", "Lynx lynx", "Vulpes vulpes", "blank")
COLORS = ((140, 90, 50), (200, 190, 90), (220, 110, 40), (60, 120, 60))
SPLITS = {"oak": "train", "creek": "train", "hill": "validation", "pass": "test"}
PLACES = {"oak": (51.12345, 4.5), "creek": (51.2, 4.6), "hill": (51.3, 4.7), "pass": (51.4, 4.8)}


def build_survey(folder: Path, *, images: int = 64) -> Survey:
    """Write the survey; kinds alternate, the first of every eight images has no label, cameras follow each other."""
    rng = np.random.default_rng(0)
    deployments = [Deployment(f"{name}-1", name, *degrees) for name, degrees in PLACES.items()]
    with CollectionWriter(folder, source="test") as writer:
        for number in range(images):
            deployment = deployments[number * len(deployments) // images]
            kind = number % len(KINDS)
            medium = Medium(f"{number:03}", deployment.id, time=f"2024-05-{1 + number % 16:02}T{number % 24:02}:10:00")
            seen = Observation(
                f"o{number}",
                deployment.id,
                key=medium.key,
                kind="blank" if KINDS[kind] == "blank" else "animal",
                taxon="" if KINDS[kind] == "blank" else KINDS[kind],
                method="human",
            )
            color = np.array(COLORS[kind]) + rng.integers(-10, 10, size=(40, 60, 3))
            buffer = io.BytesIO()
            Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
            writer.add(
                medium.key,
                buffer.getvalue(),
                split=SPLITS[deployment.location],
                group=deployment.location,
                context=make_context(medium, deployment),
                extra=survey_rows(medium, [] if number % 8 == 7 else [seen]),
            )
        write_survey(writer, deployments=deployments)
    return Survey.open(folder)


def write_features(path: Path, survey: Survey, *, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Write features around one center a kind, for all images."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(len(survey)) % len(KINDS)
    arrays = {"key": np.array(survey.keys), "vector": np.eye(6)[kinds] * 3 + rng.normal(0, 0.3, (len(survey), 6))}
    np.savez(path, **arrays)
    return arrays
