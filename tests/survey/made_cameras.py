"""Small camera-trap surveys for tests: two cameras of generated frames."""

from __future__ import annotations

from pathlib import Path

from made_images import jpeg

from foveate.records.writer import CollectionWriter
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.types import Deployment, Medium, Observation

FILES = ("dep-A/IMG_0000.JPG", "dep-A/IMG_0001.JPG", "dep-A/IMG_0002.JPG", "dep-A/IMG_0003.JPG", "dep-B/IMG_0099.JPG")


def make_survey(path: Path, *, files: tuple[str, ...] = FILES, observations: tuple[Observation, ...] = ()) -> Path:
    """Make a survey whose images are `files`; the folder of a file is its deployment."""
    deployments = {file.split("/")[-2]: Deployment(file.split("/")[-2], latitude=50.7, longitude=4.0) for file in files}
    with CollectionWriter(path, source="cards", created="2024-01-01T00:00:00+00:00") as writer:
        for number, file in enumerate(files):
            key, deployment = file.rsplit(".", 1)[0], deployments[file.split("/")[-2]]
            medium = Medium(key, deployment.id, time=f"2023-05-03 05:44:{number:02d}", file=file)
            observed = [observation for observation in observations if observation.key == key]
            extra, context = survey_rows(medium, observed), make_context(medium, deployment)
            writer.add(key, jpeg(number), group=deployment.camera, context=context, extra=extra)
        write_survey(writer, deployments=deployments.values(), format="cards")
    return path
