"""A survey in columns: hours that are masked and counted, places, labels, events, splits by camera."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.duplicates import remove_duplicates
from foveate.records.splits import assign_splits
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from foveate.survey.exporters.survey_rows import SurveyRows
from foveate.survey.store import survey_rows, write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment, Medium, Observation, observation_row
from naming import raises_naming


def build(
    folder: Path,
    media: Iterable[Medium],
    deployments: Iterable[Deployment] = (),
    observations: Mapping[str, Iterable[Observation]] | None = None,
) -> Survey:
    with CollectionWriter(folder, source="test") as writer:
        for number, medium in enumerate(media):
            rows = survey_rows(medium, (observations or {}).get(medium.key, ()))
            writer.add(medium.key, jpeg(number), extra=rows)
        write_survey(writer, deployments=deployments)
    return Survey.open(folder)


DEPLOYMENTS = [
    Deployment("local", "creek", 51.5, 4.0, start="2024-05-01T08:00:00+02:00", clock_shift=3600),
    Deployment("utc", "creek", 51.5, 4.0, start="2024-05-01T08:00:00+02:00"),
    Deployment("stated", "hill", 51.6, None, start="2024-05-01T08:00:00+02:00", utc_offset="+02:00"),
    Deployment("broken", start="2024-05-01", timestamp_issues=True),
]
TIMES = {
    "a": ("local", "2024-05-02T23:30:00+02:00", 0.0),
    "b": ("utc", "2024-05-02T21:30:00Z", np.nan),
    "c": ("stated", "2024-05-02T21:30:00Z", 23.0),
    "d": ("broken", "2024-05-02 21:30:00", np.nan),
    "e": ("unlisted", "2024-12-31 21:30:00", 21.0),
    "f": ("", "2024-02-29 03:00:00", 3.0),
    "g": ("local", "", np.nan),
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    media = [Medium(key, deployment, time=time) for key, (deployment, time, _) in TIMES.items()]
    return build(tmp_path_factory.mktemp("survey") / "c", media, DEPLOYMENTS)


def test_hours_are_shifted_converted_masked_and_counted(survey: Survey) -> None:
    np.testing.assert_array_equal(survey.hour_N, [hour for *_, hour in TIMES.values()])
    assert survey.month_N[4] == 12
    assert survey.day_N[4] == 366
    assert survey.day_N[0] == 124
    assert survey.count_missing() == {
        "no time": 1,
        "timestamp issues": 1,
        "UTC at a place with another offset": 1,
        "no coordinates": 4,
    }


def test_deployments_places_and_cameras(survey: Survey) -> None:
    assert [entry.id for entry in survey.deployments[survey.num_listed :]] == ["unlisted"]
    assert survey.camera_N.tolist() == ["creek", "creek", "hill", "broken", "unlisted", "", "creek"]
    np.testing.assert_array_equal(survey.places_N2[:3], [[51.5, 4.0], [51.5, 4.0], [np.nan, np.nan]])
    assert survey.deployment_N[5] == -1
    assert np.isnan(survey.places_N2[5]).all()


def test_the_last_row_of_an_image_holds(tmp_path: Path) -> None:
    build(tmp_path / "c", [Medium("a", "d1"), Medium("b", "d1")])
    with CollectionWriter(tmp_path / "c") as writer:
        writer.annotate("media", survey_rows(Medium("a", "d2"))["media"], Provenance())
        writer.add("outside", jpeg(9), group="no survey")
    survey = Survey.open(tmp_path / "c")
    assert survey.camera_N.tolist() == ["d2", "d1", "no survey"]
    assert survey.times.to_pylist() == ["", "", ""]


def test_a_collection_without_survey_and_an_impossible_offset_are_refused(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("a", jpeg(1))
    assert not Collection.open(tmp_path / "c").has_survey
    with raises_naming(UserError, "annotations/media", "'c'", "--deployments"):
        Survey.open(tmp_path / "c")
    survey = build(tmp_path / "d", [Medium("a", "d")], [Deployment("d", utc_offset="Europe/Paris")])
    with raises_naming(UserError, "utc_offset", "'d'", "Europe/Paris"):
        _ = survey.hour_N


def observe(key: str, *kinds: str, method: str = "human", **fields: object) -> list[Observation]:
    return [
        Observation(f"{key}{number}", "d", key, kind=kind, taxon=taxon, method=method, **fields)  # type: ignore[arg-type]
        for number, (kind, _, taxon) in enumerate(text.partition(":") for text in kinds)
    ]


OBSERVED = {
    "one": observe("one", "animal:Vulpes vulpes", "animal:Vulpes vulpes"),
    "id": observe("id", "animal:Vulpes vulpes", taxon_id="42"),
    "two": observe("two", "animal:Vulpes vulpes", "animal:Lepus"),
    "mixed": observe("mixed", "blank", "animal:Lepus"),
    "unnamed": observe("unnamed", "animal:", "animal:Lepus"),
    "blank": observe("blank", "blank"),
    "person": observe("person", "human:Homo sapiens"),
    "setup": observe("setup", "human", extra={"cameraSetupType": "setup"}),
    "machine": observe("machine", "animal:Lepus", method="machine"),
    "event": observe("event", "animal:Lepus", level="event"),
    "unknown": observe("unknown", "unknown", "vehicle"),
    "none": [],
}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return build(tmp_path_factory.mktemp("labels") / "c", [Medium(key, "d") for key in OBSERVED], (), OBSERVED)


def test_labels_come_from_reviewed_rows_about_images(labeled: Survey) -> None:
    labels = dict(zip(labeled.keys, labeled.labels().tolist(), strict=True))
    expected = {"one": "42", "id": "42", "blank": "blank", "person": "human", "unknown": "vehicle"}
    assert labels == {key: expected.get(key, "") for key in OBSERVED}
    assert labeled.label_counts() == {
        "several kinds in one image": 2,
        "animal without a name": 1,
        "setting up the camera": 1,
        "unlabeled": 3,
    }
    machine = dict(zip(labeled.keys, labeled.labels("machine").tolist(), strict=True))
    assert {key for key, label in machine.items() if label} == {"machine"}
    with raises_naming(UserError, "robot", "machine"):
        labeled.labels("robot")  # type: ignore[arg-type]


def test_machines_label_what_is_certain_and_no_person_saw(tmp_path: Path) -> None:
    machine = {"method": "machine"}
    rows = {
        "sure": observe("sure", "animal:Lepus", **machine, probability=0.9),
        "unsure": observe("unsure", "animal:Lepus", **machine, probability=0.2),
        "empty": observe("empty", "blank", **machine),
        "seen": [*observe("seen", "animal:Lepus", **machine, probability=0.9), *observe("seen-", "blank")],
        "no idea": [*observe("no idea", "animal:Lepus", **machine, probability=0.9), *observe("x", "unknown")],
    }
    rows = {key: [replace(entry, key=key) for entry in entries] for key, entries in rows.items()}
    survey = build(tmp_path / "c", [Medium(key, "d") for key in rows], (), rows)
    assert survey.labels("machine").tolist() == ["Lepus", "Lepus", "blank", "Lepus", "Lepus"]
    assert survey.labels("machine", min_probability=0.5).tolist() == ["Lepus", "", "blank", "Lepus", "Lepus"]
    assert survey.labels("all", min_probability=0.5).tolist() == ["Lepus", "", "blank", "blank", ""]
    assert survey.label_counts("all", min_probability=0.5) == {"nothing that could be named": 1, "unlabeled": 1}
    with raises_naming(UserError, "min_probability", "1.5"):
        survey.labels("machine", min_probability=1.5)


def test_the_last_row_of_an_id_and_the_answer_of_a_review_hold(tmp_path: Path) -> None:
    rows = {key: observe(key, "animal:Lepus", "animal:Vulpes vulpes") for key in "ab"}
    rows["c"] = observe("", "animal:Lepus", "animal:Lepus")
    rows = {key: [replace(entry, key=key) for entry in entries] for key, entries in rows.items()}
    build(tmp_path / "c", [Medium(key, "d") for key in rows], (), rows)
    with CollectionWriter(tmp_path / "c", created="2099-01-01T00:00:00+00:00") as writer:
        corrected = observation_row(replace(rows["a"][0], taxon="Vulpes vulpes"))
        writer.annotate("observations", [corrected], Provenance(source="import"))
        answer = observation_row(Observation("new", "d", "b", kind="blank", method="human"))
        writer.annotate("observations", [answer], Provenance(source="review:answers.csv"))
    survey = Survey.open(tmp_path / "c")
    assert survey.labels().tolist() == ["Vulpes vulpes", "blank", "Lepus"]
    exported = SurveyRows(survey.collection).read_observations()
    assert sorted((entry.key, entry.taxon) for entry in exported) == [
        *[("a", "Vulpes vulpes")] * 2,
        ("b", ""),
        *[("c", "Lepus")] * 2,
    ]


def test_rows_about_events_label_their_sequence_and_no_image(tmp_path: Path) -> None:
    media = [Medium(f"{deployment}/{n}", deployment, f"e{n // 2}") for deployment in "ab" for n in range(6)]
    rows = [
        Observation("1", "a", event="e0", level="event", kind="animal", taxon="Lepus", method="human"),
        Observation("2", "a", event="e1", level="event", kind="animal", taxon="Lepus", method="machine"),
        Observation("3", "a", event="e2", level="event", kind="animal", taxon="Lepus"),
        Observation("4", "a", event="e2", level="event", kind="vehicle"),
        Observation("5", "b", event="", level="event", kind="blank"),
        Observation("6", "b", event="e9", level="event", kind="blank"),
    ]
    own = {"a/1": observe("a/1", "blank"), "b/5": [replace(rows[0], id="7", deployment="b", key="b/5", event="e2")]}
    build(tmp_path / "c", media, (), own)
    with CollectionWriter(tmp_path / "c") as writer:
        write_survey(writer, event_observations=rows)
    survey = Survey.open(tmp_path / "c")
    assert survey.labels().tolist() == ["", "blank", *[""] * 10]
    assert survey.event_labels().tolist() == ["Lepus", "Lepus", *[""] * 8, "Lepus", "Lepus"]
    assert survey.label_counts() == {"labeled only by their event": 3, "unlabeled": 8}
    assert survey.event_labels("machine").tolist() == ["", "", "Lepus", "Lepus", *[""] * 8]


def test_a_mixed_clock_orders_by_what_is_written(tmp_path: Path) -> None:
    times = ("2024-05-02T10:00:30+02:00", "2024-05-02T10:00:00", "2024-05-02T08:01:00Z")
    media = [Medium(f"{number}", "d", time=time) for number, time in enumerate(times)]
    survey = build(tmp_path / "c", media)
    assert [survey.events().rows(event).tolist() for event in range(2)] == [[2], [1, 0]]
    stated = build(tmp_path / "e", media, [Deployment("d", utc_offset="+02:00")])
    assert stated.events().order_N.tolist() == [1, 0, 2]
    assert len(stated.events()) == 1


def test_splits_keep_cameras_and_events_whole_and_follow_corrections(tmp_path: Path) -> None:
    media = [Medium(f"{camera}/{number}", f"d{camera}") for camera in range(12) for number in range(3)]
    deployments = [Deployment(f"d{camera}", f"place {camera // 2}") for camera in range(12)]
    build(tmp_path / "c", media, deployments)
    fractions = {"train": 0.5, "test": 0.5}
    summary = assign_splits(tmp_path / "c", fractions=fractions, seed=1)
    assert summary.components == 6
    assert sum(summary.cameras.values()) == 6
    assert len(summary.cameras) == 2
    before = Collection.open(tmp_path / "c").splits.reshape(6, 6)
    assert (before == before[:, :1]).all()
    with CollectionWriter(tmp_path / "c") as writer:
        write_survey(writer, deployments=[Deployment("d0", "place 1"), Deployment("d1", "place 1")])
        # The same file under another camera is a copied card; both stay in one split.
        writer.add("copy", jpeg(35), extra=survey_rows(Medium("copy", "d2")))
    assert assign_splits(tmp_path / "c", fractions=fractions, seed=1).components == 4


def test_near_duplicates_of_a_survey_stay(tmp_path: Path) -> None:
    build(tmp_path / "c", [Medium("a", "d")])
    with raises_naming(UserError, str(tmp_path / "c"), "survey", "evidence"):
        remove_duplicates(tmp_path / "c")
    assert len(Collection.open(tmp_path / "c")) == 1


_LARGE = """
import json, sys, time
from pathlib import Path
import numpy as np, pyarrow as pa
from foveate.core.devices import peak_gigabytes
from foveate.records import layout, tables
from foveate.survey.checks import check_survey
from foveate.survey.survey import Survey
from foveate.survey.store import write_survey
from foveate.survey.types import Deployment
from foveate.records.writer import CollectionWriter
folder, N = Path(sys.argv[1]), 200_000
with CollectionWriter(folder) as writer:
    write_survey(writer, deployments=[Deployment(f"d{n}", f"p{n // 2}", 1.0 + n / 1000, 2.0) for n in range(400)])
keys = [f"card {n // 500:03d}/DCIM/100RECNX/IMG_{n:06d}" for n in range(N)]
empty = tables.INDEX.empty_table()
index = {name: pa.nulls(N, tables.INDEX.field(name).type) for name in tables.INDEX.names}
index |= {"key": pa.array(keys), "sha256": pa.array([f"{n:064x}" for n in range(N)])}
index |= {name: pa.array(np.ones(N, np.int64)) for name in ("length", "width", "height", "offset")}
tables.write_table(layout.index_path(folder, 0), pa.table(index).cast(tables.INDEX))
seconds = np.datetime64("2024-01-01") + (np.arange(N) * 37).astype("timedelta64[s]")
media = {"key": keys, "row_id": [f"{n:016x}" for n in range(N)], "deployment": [f"d{n // 500}" for n in range(N)],
         "time": [text.replace("T", " ") for text in np.datetime_as_string(seconds, unit="s")], "file": keys}
tables.write_table(layout.annotation_path(folder, "media", 0), pa.table(media))
seen = {"key": keys, "row_id": media["row_id"], "kind": ["animal"] * N, "taxon": [f"t{n % 500}" for n in range(N)]}
tables.write_table(layout.annotation_path(folder, "observations", 0), pa.table(seen))
start = time.perf_counter()
survey = Survey.open(folder)
events, labels, hours = survey.events(), survey.labels(), survey.hour_N
checked = time.perf_counter()
findings = check_survey(survey).findings
times = {"check": time.perf_counter() - checked, "findings": len(findings)}
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "gigabytes": peak_gigabytes(), "events": len(events), **times,
      "labels": len(set(labels.tolist())), "hours": int(np.isfinite(hours).sum())}))
"""


@pytest.mark.slow
def test_two_hundred_thousand_rows_stay_below_one_gigabyte(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _LARGE, str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    result = json.loads(done.stdout)
    assert result["gigabytes"] < 1
    assert (result["labels"], result["hours"]) == (500, 200_000)
