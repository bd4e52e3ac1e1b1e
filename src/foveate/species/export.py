"""Export decisions: Camtrap DP, MegaDetector's results, Wildlife Insights or one flat table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.progress import say
from foveate.core.recipes import validate
from foveate.core.version import __version__
from foveate.records.boxes import Box
from foveate.records.exporters.megadetector import MegaDetectorExport, ResultsInfo, export_megadetector
from foveate.records.survey.detections import ClassLabel, DetectedImage, Detection, Prediction, get_kind
from foveate.records.survey.taxa import Taxa
from foveate.species.decide_results import image_decisions, read_decisions
from foveate.species.predictions import DECIDE, FAILED, Predictions
from foveate.species.settings import ExportSettings

_RANKS = ("class", "order", "family", "genus", "species")
_OPTIONS_OF = {
    "camtrap-dp": ("coordinate_digits", "title", "contributor", "sampling_design", "utc_offset"),
    "wildlife-insights": ("project",),
}
_MIN_BLANK = 0.5  # without boxes: from this probability on an image of an animal's event is one of its empty frames


def name_classifier(predictions: Predictions) -> str:
    """Return the name and version of the model, as exports state it."""
    model = predictions.config["model"]
    return f"Foveate {__version__}, {Path(model['path']).parent.name or 'model'} {model['sha256'][:12]}"


def export_predictions(
    predictions: Predictions, path: Path, settings: ExportSettings
) -> tuple[dict[str, Any], list[str]]:
    """Write the decisions of a results folder; return counts and sentences about what was written.

    Raises:
        UserError: nothing is decided yet, or the format needs what the survey does not state.
    """
    for format, names in _OPTIONS_OF.items():
        for name in names if format != settings.format else ():
            if getattr(settings, name) not in (None, ()):
                say(f"--{name.replace('_', '-')} has no effect with --to {settings.format}, only with {format}")
    decisions, events = read_decisions(predictions)
    classifier = name_classifier(predictions)
    if settings.format == "megadetector":
        export = write_megadetector(predictions, path)
        counts = {name: getattr(export, name) for name in ("images", "detections", "failures", "made_up")}
        lines = [f"{export.images:,} images with {export.detections:,} boxes, {export.failures:,} failures"]
        if export.made_up:
            lines.append(f"{export.made_up:,} images have a class and no box: the whole frame stands for one")
        return counts, lines
    if settings.format == "camtrap-dp":
        from foveate.records.exporters.camtrap_dp import CamtrapSettings, export_camtrap_dp

        # Passes only what was given, because the exporter has its own defaults.
        values = {
            name: value for name in _OPTIONS_OF["camtrap-dp"] if (value := getattr(settings, name)) not in (None, ())
        }
        options = validate(CamtrapSettings, {**values, "classifier": classifier}, where="foveate species export")
        package = export_camtrap_dp(
            predictions.collection, path, settings=options, decisions=decisions, events=events, taxa=predictions.taxa
        )
        rows = ", ".join(f"{count:,} {table}" for table, count in package.rows.items())
        return {"rows": package.rows, **package.counts}, [rows, *package.notes]
    if settings.format == "wildlife-insights":
        from foveate.records.exporters.wildlife_insights import export_wildlife_insights

        if settings.project is None:
            raise UserError("--project is missing: Wildlife Insights needs the id of a project")
        written = export_wildlife_insights(
            predictions.collection,
            path,
            project=settings.project,
            classifier=classifier,
            decisions=decisions,
            events=events,
            taxa=predictions.taxa,
        )
        lines = [f"{count:,} labels left out: {reason}" for reason, count in written.left_out.items()]
        return {"lines": written.lines, "left_out": dict(written.left_out)}, [f"{written.lines:,} lines", *lines]
    from foveate.records.exporters.observations_csv import export_observations_csv

    count = export_observations_csv(
        predictions.collection, path, decisions=decisions, events=events, taxa=predictions.taxa
    )
    return {"lines": count}, [f"{count:,} lines"]


def write_megadetector(predictions: Predictions, path: Path) -> MegaDetectorExport:
    """Write boxes with the decided taxa in MegaDetector's format 1.6, which Timelapse opens."""
    sources = sorted({row.removeprefix("detector:") for row in predictions.boxes["source"].unique().to_pylist()})
    # MegaDetector writes times without an offset and with a space between date and time.
    decided = read_json(predictions.folder / DECIDE)["created"][:19].replace("T", " ")
    info = ResultsInfo(
        detector=", ".join(sources) or "no detector",
        classifier=name_classifier(predictions),
        detected_at=predictions.config["created"][:19].replace("T", " "),
        classified_at=decided,
    )
    return export_megadetector(path, _list_images(predictions), info)


def _list_images(predictions: Predictions) -> Iterator[DetectedImage]:
    decisions = predictions.decisions.to_pylist()
    keys = predictions.collection_keys
    owners_N = image_decisions(predictions, keys)
    boxes: dict[str, list[dict[str, Any]]] = {}
    for box in predictions.boxes.to_pylist():
        boxes.setdefault(box["key"], []).append(box)
    labels = predictions.classes.labels
    # Read only if there are no boxes, which otherwise tell the empty frames.
    blank_N = predictions.class_probabilities(labels.index("blank")) if "blank" in labels and not boxes else None
    for number, row in enumerate(predictions.images.to_pylist()):
        if row["status"] == FAILED:
            yield DetectedImage(row["file"], failure=row["failure"])
            continue
        decision = decisions[int(owners_N[number])]
        scored = _label(decision, predictions.taxa)
        detections = [_detect(box, scored) for box in boxes.get(row["key"], ())]
        prediction = None
        # A frame without a box, of a survey with boxes, is one that the animal had left.
        if not boxes and scored is not None:
            is_blank = blank_N is not None and blank_N[number] > _MIN_BLANK
            prediction = None if is_blank else Prediction(*scored)
        yield DetectedImage(row["file"], tuple(detections), prediction=prediction, time=row["time"])


def _detect(box: Mapping[str, Any], scored: tuple[ClassLabel, float] | None) -> Detection:
    kind = get_kind(box["label"])
    category = {"human": "person", "vehicle": "vehicle"}.get(kind, "animal")
    # The class of the event goes to the box that the model saw, never to a person or vehicle next to the animal.
    classes = (scored,) if scored is not None and box["used"] and scored[0].kind == kind else ()
    corners = Box(box["x1"], box["y1"], box["x2"], box["y2"])
    return Detection(category, box["score"], corners, classifications=classes)


def _label(decision: Mapping[str, Any], taxa: Taxa) -> tuple[ClassLabel, float] | None:
    """Return the class of a decision; None for one that names nothing, or nothing beyond the box."""
    if decision["kind"] in ("unknown", "unclassified", "blank"):
        return None
    # For "human" or a label that matched no taxon, the name is all that is known.
    if not decision["taxon"]:
        return ClassLabel(decision["name"]), decision["score"]
    taxon = taxa.index(decision["taxon"])
    lineage = {rank: taxa.names[index] for rank in _RANKS if (index := taxa.at_rank(taxon, rank)) >= 0}
    name = taxa.common[taxon] or taxa.names[taxon]
    return ClassLabel.from_lineage(name.lower(), taxa.ids[taxon], lineage), decision["score"]
