"""Rows of a survey keep every field through the tables of a collection."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.types import Deployment, Medium, Observation, media_row, observation_row
from naming import raises_naming

DEPLOYMENTS = [
    Deployment("d1", "creek", 51.5, -0.25, "2024-01-01", "2024-02-01", "+01:00", -3600, True, 30.0, "fen", {"a": "ä"}),
    Deployment("d2"),
]
FULL = Observation(
    *("o1", "d1", "a/1", "e1", "media", "animal", "Vulpes vulpes", "10", 2, Box(0.1, 0.2, 0.30000000001, 0.4), "human"),
    *("Ann", "2024-01-02T00:00:00Z", 0.9, "2024-01-01T00:00:00", "2024-01-01T00:00:09", {"sex": "female"}),
)
EVENT = Observation("o2", "d1", event="e1", level="event", kind="blank", method="human")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("survey") / "c"
    with CollectionWriter(folder, source="s", created="2024-05-01T00:00:00+00:00") as writer:
        for number, frame in enumerate((0, None)):
            medium = Medium(f"a/{number + 1}", "d1", "b7", frame, "2024:01:01 00:00:00", "A\\1.JPG", {"x": "1"})
            rows = survey_rows(medium, [FULL] if number == 0 else [])
            writer.add(medium.key, jpeg(number), extra=rows, context=make_context(medium, DEPLOYMENTS[0]))
        write_survey(writer, deployments=DEPLOYMENTS, event_observations=[EVENT], format="f", descriptor={"n": "ö"})
    return Collection.open(folder)


def test_every_field_is_read_back(collection: Collection) -> None:
    assert list(map(Deployment.from_row, collection.dataset_table("deployments").to_pylist())) == DEPLOYMENTS
    assert list(map(Observation.from_row, collection.table("observations").to_pylist())) == [FULL]
    assert list(map(Observation.from_row, collection.dataset_table("event_observations").to_pylist())) == [EVENT]
    media = list(map(Medium.from_row, collection.table("media").to_pylist()))
    assert [medium.frame_number for medium in media] == [0, None]
    assert media[0] == Medium("a/1", "d1", "b7", 0, "2024:01:01 00:00:00", "A\\1.JPG", {"x": "1"})
    assert collection.read_context(0) == make_context(media[0], DEPLOYMENTS[0])
    assert collection.dataset_table("survey").to_pylist()[0]["descriptor"] == '{"n": "ö"}'


def test_integers_that_no_column_holds_are_named() -> None:
    with raises_naming(UserError, "'o1'", "'a/1'", "count", 2**31):
        observation_row(Observation("o1", deployment="d", key="a/1", count=2**31))
    with raises_naming(UserError, "'a/1'", "frame number", 10**12):
        media_row(Medium("a/1", "d", frame_number=10**12))
    assert observation_row(Observation("o1", deployment="d", key="a/1", count=2**31 - 1))["count"] == 2**31 - 1


def test_a_corrected_deployment_takes_the_place_of_the_old_row(tmp_path: Path) -> None:
    # Back to the first row at the end: equal content must not count as known.
    for shift, changes in ((0, 2), (3600, 1), (0, 1), (0, 0)):
        with CollectionWriter(tmp_path / "c") as writer:
            rows = [Deployment("d", clock_shift=shift), Deployment("e")]
            assert write_survey(writer, deployments=rows) == changes
        rows = Collection.open(tmp_path / "c").dataset_table("deployments").to_pylist()
        assert [(row["id"], row["clock_shift"]) for row in rows] == [("d", shift), ("e", 0)]
