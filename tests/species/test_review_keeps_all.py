"""Whatever a person answers: no image, event or species is missing from an export, and each has the answers."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_survey import ColorModel, draw_frame, name_file, write_boxes, write_card
from training_survey import KINDS

from foveate.core.recipes import validate
from foveate.species import corrections as module
from foveate.species.corrections import apply_corrections, open_target
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Stages
from foveate.species.export import export_predictions
from foveate.species.predict import predict
from foveate.species.predictions import Predictions
from foveate.species.review import rank_events, write_review
from foveate.species.settings import ExportSettings, PredictSettings
from foveate.survey.exporters.camtrap_dp import CamtrapSettings, export_camtrap_dp
from foveate.survey.exporters.image_tables import export_observations_csv
from foveate.survey.importers.corrections import read_corrections
from foveate.survey.importers.results import add_results
from foveate.survey.survey import Survey
from timelapse import list_timelapse_faults

EVENTS = 20
FILES = [name_file(number) for number in range(3 * EVENTS)]
KEYS = [file.removesuffix(".JPG") for file in FILES]
PLACES = ((0.05, 0.5, 0.4, 0.45), (0.55, 0.5, 0.4, 0.45), (0.3, 0.02, 0.4, 0.4))
HARE, BADGER = "Lepus europaeus", "Meles meles"
Line = tuple[str, str]  # event and the name that was decided


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Twenty events of three frames: animals of one or two kinds, people, empty frames."""
    rng = np.random.default_rng(7)
    frames: list[list[tuple[Any, ...]]] = []
    for _ in FILES:
        pairs = [("person" if rng.random() < 0.15 else "animal", int(rng.integers(3))) for _ in range(rng.integers(4))]
        frames.append([(name, 0.9 - 0.1 * n, PLACES[n], kind) for n, (name, kind) in enumerate(pairs)])
    write_card(tmp_path / "card", [draw_frame(number, frame) for number, frame in enumerate(frames)])
    boxes = {number: [box[:3] for box in frame] for number, frame in enumerate(frames)}
    add_results(tmp_path / "card", write_boxes(tmp_path / "md.json", boxes))
    model: Any = ColorModel(tmp_path)
    predict(model, tmp_path / "card", tmp_path / "results", PredictSettings(), device="cpu", workers=1)
    decide_results(Predictions.open(tmp_path / "results"), Stages())
    return tmp_path / "results"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def export(results: Path, folder: Path, format: str) -> Path:
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {"camtrap-dp": {"coordinate_digits": "2", "contributor": ("A. Person",)}}
    options["wildlife-insights"] = {"project": "p"}
    settings = validate(ExportSettings, {"format": format, **options.get(format, {})}, where="test")
    export_predictions(Predictions.open(results), folder / format, settings)
    return folder / format


def apply(results: Path, table: Path, rows: list[dict[str, str]]) -> None:
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    apply_corrections(open_target(results), read_corrections(table), table)


def join_lines(decisions: list[dict[str, Any]], answers: Mapping[Line, dict[str, str]]) -> dict[Line, str]:
    """Return the count of each name that an event has, of people where they answered a line of it."""
    counts: dict[Line, list[str]] = {}
    for row in decisions:
        names = answers.get((row["event"], row["name"]))
        for name, count in (names if names is not None else {row["name"]: str(row["count"] or "")}).items():
            # A machine's row stays a row of its own beside one of a person.
            counts.setdefault((row["event"], name), []).append(count)
    shown = {event for event, name in counts if name != "blank"}
    kept = {line: texts for line, texts in counts.items() if line[1] != "blank" or line[0] not in shown}
    # Two decisions that a person calls one species are animals side by side.
    return {line: str(sum(map(int, filter(None, texts))) or "") for line, texts in kept.items()}


def check_exports(results: Path, folder: Path, answers: Mapping[Line, dict[str, str]]) -> None:
    """Check all exports against the answers to lines: name -> count, as texts."""
    decisions = Predictions.open(results).decisions.to_pylist()
    lines = join_lines(decisions, answers)

    flat = read_csv(export(results, folder, "csv"))
    assert {row["file"] for row in flat} == set(FILES)
    assert set(lines) <= {(row["sequence"], row["taxon"]) for row in flat}

    package = export(results, folder, "camtrap-dp")
    times = {row["mediaID"]: row["timestamp"] for row in read_csv(package / "media.csv")}
    assert set(times) == set(KEYS)
    rows = read_csv(package / "observations.csv")
    events = [row for row in rows if row["observationLevel"] == "event"]
    assert not any(row["mediaID"] for row in events)
    written: dict[Line, int] = {}
    for row in events:
        line = (row["eventID"], row["scientificName"] or row["observationType"])
        written[line] = written.get(line, 0) + int(row["count"] or 0)
    assert {line: str(count or "") for line, count in written.items()} == lines
    human = {(event, name) for (event, _), names in answers.items() for name in names} & set(lines)
    methods = [
        (row["eventID"], row["scientificName"] or row["observationType"], row["classificationMethod"]) for row in events
    ]
    assert {line[:2] for line in methods if line[2] == "human"} == human
    media = {row["mediaID"] for row in rows}
    for key in set(KEYS) - media:
        assert any(row["eventStart"] <= times[key] <= row["eventEnd"] for row in events), key

    content = json.loads(export(results, folder, "megadetector").read_text("utf-8"))
    assert not list_timelapse_faults(content)
    assert [image["file"] for image in content["images"]] == FILES
    names = {
        number: " ".join(filter(None, text.split(";")[4:6])).capitalize() or text.split(";")[6]
        for number, text in content["classification_category_descriptions"].items()
    }
    of_file = {
        image["file"]: {names[number] for box in image["detections"] for number, _ in box.get("classifications", ())}
        for image in content["images"]
    }
    for row in decisions:
        for name in answers.get((row["event"], row["name"]), {}):
            if name in (*KINDS[:3], HARE, BADGER):
                assert any(name in of_file[f"{key}.JPG"] for key in row["keys"]), (row["event"], row["name"], name)

    upload = {row["location"] for row in read_csv(export(results, folder, "wildlife-insights"))}
    assert upload | {row["file"] for row in flat if row["taxon"] in ("unknown", "unclassified")} == set(FILES)


def draw_answers(
    lines: list[dict[str, str]], rng: np.random.Generator, answers: dict[Line, dict[str, str]]
) -> list[dict[str, str]]:
    """Fill in some lines of a review table, and note the answers."""
    rows = []
    choices = [HARE, BADGER, KINDS[0], "human", "blank", "unknown", "ok", "", "both"]
    for line in lines:
        if rng.random() > 0.4:
            continue
        choice, count = choices[rng.integers(len(choices))], str(rng.integers(1, 5)) if rng.random() < 0.5 else ""
        name = line["answer"]
        if choice == "both":
            rows += [{**line, "correction": species, "count": "2"} for species in (HARE, BADGER)]
            answers[line["event"], name] = {HARE: "2", BADGER: "2"}
        elif choice not in ("ok", ""):
            rows.append({**line, "correction": choice, "count": count})
            answers[line["event"], name] = {choice: "" if choice == "blank" else count}
        elif name != "unknown" and (choice or count):
            # A count alone agrees with the answer, too.
            rows.append({**line, "correction": choice, "count": count})
            answers[line["event"], name] = {name: "" if name == "blank" else count or line["counted"]}
    return rows


def test_random_answers_lose_nothing(results: Path, tmp_path: Path) -> None:
    review = write_review(Predictions.open(results), tmp_path / "review", max_events=300)
    lines = read_csv(tmp_path / "review" / review.table)
    assert len({line["event"] for line in lines}) == EVENTS
    assert len(lines) > EVENTS + 5
    check_exports(results, tmp_path / "before", {})
    rng = np.random.default_rng(1)
    answers: dict[Line, dict[str, str]] = {}
    for turn in range(4):
        apply(results, tmp_path / f"answers-{turn}.csv", draw_answers(lines, rng, answers))
        check_exports(results, tmp_path / f"after-{turn}", answers)
        answered = [event for event in rank_events(Predictions.open(results)) if event.is_answered]
        assert len(answered) == len(answers)
        again = write_review(Predictions.open(results), tmp_path / f"again-{turn}", max_events=300)
        asked = {(row["event"], row["answer"]) for row in read_csv(tmp_path / f"again-{turn}" / again.table)}
        assert asked == {(line["event"], line["answer"]) for line in lines} - set(answers)
    # The survey alone, without decisions, has the answers, too.
    count = export_observations_csv(survey := Predictions.open(results).collection, tmp_path / "survey.csv")
    alone = read_csv(tmp_path / "survey.csv")
    assert len(alone) == count
    settings = validate(CamtrapSettings, {"coordinate_digits": 2, "contributor": ("A. Person",)}, where="test")
    export_camtrap_dp(survey, tmp_path / "survey", settings=settings)
    rows = read_csv(tmp_path / "survey/observations.csv")
    names = {(event, name) for (event, _), of_line in answers.items() for name in of_line}
    shown = {event for event, name in names if name != "blank"}
    assert Counter(
        (row["eventID"], row["scientificName"] or row["observationType"])
        for row in rows
        if row["observationLevel"] == "event"
    ) == Counter({(event, name) for event, name in names if name != "blank" or event not in shown})
    # Other settings move events and decisions; answers stay with their images.
    before = {(row["file"], row["taxon"]) for row in read_csv(tmp_path / "after-3/csv") if row["source"] == "human"}
    decide_results(Predictions.open(results), validate(Stages, {"mixed": {"enabled": False}}, where="test"))
    flat = read_csv(export(results, tmp_path / "other", "csv"))
    assert {row["file"] for row in flat} == set(FILES)
    assert before <= {(row["file"], row["taxon"]) for row in flat if row["source"] == "human"}


def test_a_review_that_is_killed_between_its_writes_loses_nothing(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = write_review(Predictions.open(results), tmp_path / "review", max_events=300)
    lines = read_csv(tmp_path / "review" / review.table)
    first, second = ([{**line, "correction": name} for line in lines] for name in (HARE, BADGER))
    apply(results, tmp_path / "first.csv", first)

    def die(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "remove_rows", die)
        with pytest.raises(KeyboardInterrupt):
            apply(results, tmp_path / "second.csv", second)
    flat = read_csv(export(results, tmp_path / "killed", "csv"))
    assert {row["file"] for row in flat} == set(FILES)
    apply(results, tmp_path / "second.csv", second)
    check_exports(results, tmp_path / "after", {(row["event"], row["answer"]): {BADGER: ""} for row in lines})
    labels = Survey.open(Predictions.open(results).collection).labels()
    assert {label for label in labels.tolist() if label} == {BADGER}
