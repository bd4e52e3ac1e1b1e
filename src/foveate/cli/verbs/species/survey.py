"""The commands of `foveate species` about a survey: demo frames, checks, triage, boxes, graph."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, path_option, workers_option
from foveate.cli.verbs.species.options import MAX_LISTED, SETTINGS, list_labels, page_options

# `foveate species demo-frames`: say where real images are published, or import them from a folder.


@click.command("demo-frames", short_help="Say where real images are published, or import them from a folder.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@path_option("--out", "Collection folder, with FOLDER.")
@common(device=False, seed=False)
def demo_frames_command(call: Call, folder: Path | None, out: Path | None) -> None:
    """Say where forty real camera-trap images under permissive licenses are published, or import them from FOLDER.

    FOLDER has copies of one or more of the published folders. Images are known by their bytes, and get the label,
    credit and license that they are published with. Nothing is downloaded.

    \b
    Example:
      foveate species demo-frames
      foveate species demo-frames downloads --out demo
    """
    from foveate.core.errors import UserError
    from foveate.survey.demo_frames import describe_sets, import_demo_frames

    if folder is None or out is None:
        if folder is not None or out is not None:
            missing = (
                "--out: missing; expected a collection folder" if out is None else "FOLDER: missing; --out needs one"
            )
            raise UserError(missing)
        sets = describe_sets()
        lines = [f"{each['name']}: {each['images']} images, {each['license']}, {each['url']}" for each in sets]
        return call.finish({"sets": sets}, lines)
    outcome = import_demo_frames(folder, out)
    call.finish(outcome.as_dict(), outcome.lines(), {"collection": out})


# `foveate species check`: list what is doubtful in a survey, before any training.


@click.command("check", cls=FieldsCommand, short_help="List what is doubtful in a survey, before any training.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(f"{SETTINGS}:CheckSettings", "only", "max_listed", "images", repeat=("only",), metavars={"only": "CHECK"})
@path_option("--table", "New file: the deployments as a table to complete.")
@path_option("--model", "Model folder: also ranks hours, and places that it knows, by what the images show.")
@path_option("--out", "Folder of a page with the images that show each finding.")
@workers_option
@common(seed=False)
def check_command(
    call: Call, collection: Path, settings: dict[str, Any], table: Path | None, model: Path | None, out: Path | None
) -> None:
    """List what is doubtful in the survey COLLECTION: clocks, deployments, places, names, files, health of cameras.

    Each finding says what it means and how to repair it. Nothing is changed: images with a doubtful clock have no hour,
    and the table of deployments is yours to correct. --table writes a first one, with folders, cameras and times of the
    first and last image; add places and dates, and collect the cards again with --deployments.

    Thumbnails show black nights, weak batteries, turned cameras and fogged lenses, by deployment and day. At most two
    images of an hour are looked at; images that are not here, such as those at addresses, are left out.

    \b
    Example:
      foveate species check survey
      foveate species check survey --only "set back" --json
      foveate species check survey --table deployments.csv
      foveate species check survey --out check
      foveate species check survey --no-images
      foveate species check survey --model runs/species/model
    """
    from foveate.species.settings import CheckSettings
    from foveate.survey.checks import check_survey
    from foveate.survey.deployments import write_first_table
    from foveate.survey.health import check_images
    from foveate.survey.survey import Survey

    checked = call.check(CheckSettings, settings)
    survey = Survey.open(collection, without_images=True)
    if checked.images:
        result = check_images(survey, only=checked.only, workers=call.workers)
    else:
        result = check_survey(survey, only=checked.only)
    content, lines = result.as_dict(), result.lines(max_per_code=checked.max_listed)
    if model is not None:
        from foveate.species.explain import hint_survey
        from foveate.species.folder import open_species

        clocks, locations = hint_survey(open_species(model), collection, device=call.device)
        content |= {"clocks": [hint.to_json() for hint in clocks], "places": [hint.to_json() for hint in locations]}
        lines += ["", "hints of the model, the most doubtful first; 0.5 is chance, nothing was changed"]
        for clock in clocks[: checked.max_listed]:
            shift = f", best with the clock at {clock.shift_hours:+d} h ({clock.shifted_rank:.2f})"
            lines.append(f"  hours of {clock.deployment}: rank {clock.rank:.2f}{shift if clock.shift_hours else ''}")
        for hint in locations[: checked.max_listed]:
            other = f", likelier {hint.likelier} on {hint.share:.0%} of the images" if hint.likelier else ""
            lines.append(f"  place of {hint.deployment}: rank {hint.rank:.2f}{other}")
    paths = {"collection": collection}
    if out is not None:
        from foveate.core.files import write_json_atomically
        from foveate.report.render import render
        from foveate.species.summary import summarize_check

        page = summarize_check(survey, result, out, command=call.command)
        write_json_atomically(out / "result.json", page.to_json())
        paths |= {"report": render(out)}
    if table is not None:
        paths |= {"table": write_first_table(survey, table)}
    call.finish(content, lines, paths)


# `foveate species boxes`: propose boxes of animals offline, where none were imported.


@click.command("boxes", cls=FieldsCommand, short_help="Propose boxes offline, where none were imported.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(f"{SETTINGS}:BoxSettings", "threshold", "max_boxes", "every_image")
@workers_option
@common(seed=False)
def boxes_command(call: Call, collection: Path, settings: dict[str, Any]) -> None:
    """Propose boxes of animals on the images of COLLECTION that have none, with a small detector that comes along.

    It was trained on everyday objects and is no MegaDetector; its class names are not used. The same command
    resumes, and tries images again that could not be reached.

    \b
    Example:
      foveate species boxes survey
      foveate species boxes survey --threshold 0.3 --every-image
    """
    from foveate.core.progress import say
    from foveate.records.labeling import end_command
    from foveate.species.boxes import NOTICE, add_boxes
    from foveate.species.settings import BoxSettings

    checked = call.check(BoxSettings, settings)
    say(NOTICE)
    result = add_boxes(collection, checked, device=call.device, workers=call.workers)
    counts = ", ".join(f"{name} {number:,}" for name, number in sorted(result.status.items())) or "none"
    lines = [f"{result.boxes:,} boxes by NanoDet-g; images: {counts}"]
    if result.skipped:
        lines.append(f"{result.skipped:,} images have boxes of another source and were left as they are")
    if result.unreachable:
        lines.append(f"{result.unreachable:,} images could not be reached; the same command tries them again")
    if result.stopped:
        lines.append("stopped; run the same command to resume")
    call.finish(asdict(result), lines, {"collection": collection})
    end_command(result.find_failure(), stopped=result.stopped)


# `foveate species build`: build the graph of a survey as readable triples.


@click.command("build", cls=FieldsCommand, short_help="Build the graph of a survey as readable triples.")
@click.argument("collection", type=click.Path(path_type=Path))
@path_option("--out", "Folder of the graph.", required=True)
@fields(f"{SETTINGS}:BuildSettings", "taxonomy", "labels", "min_probability", metavars={"taxonomy": "FILE"})
@common(device=False, seed=False)
def build_command(call: Call, collection: Path, out: Path, settings: dict[str, Any]) -> None:
    """Build the graph of the survey COLLECTION: which species, parents, places and hours its images are linked to.

    The folder has triples.csv, which you may read and edit, and matches.csv: how each label was matched to the
    taxonomy. It holds coordinates of cameras; publish it only after you rounded them. A second call replaces it.

    \b
    Example:
      foveate species build survey --out graph
      foveate species build survey --taxonomy taxa.csv --out graph
    """
    from foveate.species.graph import MATCHES, TRIPLES, build_graph
    from foveate.species.settings import BuildSettings

    checked = call.check(BuildSettings, settings)
    graph = build_graph(
        collection, out, taxonomy=checked.taxonomy, source=checked.labels, min_probability=checked.min_probability
    )
    counts, doubtful = graph.describe(), [str(match) for match in graph.matching.doubtful]
    lines = [", ".join(f"{name} {number:,}" for name, number in counts.items())]
    lines += [f"left out: {reason}: {number:,} images" for reason, number in graph.left_out.items()]
    untrained = graph.untrained_classes()
    if untrained:
        lines.append(f"{len(untrained)} classes have no image in the split train: {list_labels(untrained)}")
    lines += [f"label {text}" for text in doubtful[:MAX_LISTED]]
    if len(doubtful) > MAX_LISTED:
        lines.append(f"{len(doubtful) - MAX_LISTED} more labels to look at are in {out / MATCHES}")
    result = {"counts": counts, "left_out": dict(graph.left_out), "matches": graph.matching.counts}
    call.finish(
        {**result, "untrained": untrained, "doubtful": doubtful},
        lines,
        {"triples": out / TRIPLES, "matches": out / MATCHES},
    )


# `foveate species summary`: effort and what follows from it, as tables for R.


@click.command("summary", cls=FieldsCommand, short_help="Write trap nights, abundance, activity and histories.")
@click.argument("source", type=click.Path(path_type=Path))
@path_option("--out", "Folder of the tables; SOURCE/summary by default.")
@fields(f"{SETTINGS}:SummarySettings", "min_delta_minutes", "compared_to", "occasion_days")
@common(device=False, seed=False)
def summary_command(call: Call, source: Path, out: Path | None, settings: dict[str, Any]) -> None:
    """Write the tables that an analysis begins with, of a survey or of results of `foveate species predict`.

    records.csv: independent records, as camtrapR's recordTable. effort.csv: trap nights of each deployment.
    abundance.csv: records per 100 trap nights. activity.csv: records by hour. detections/: a detection history for each
    taxon and the days of effort, for unmarked. Answers of people count before those of models; people and vehicles are
    in no table, nor are coordinates.

    \b
    Example:
      foveate species summary results --out tables
      foveate species summary survey --min-delta-minutes 60 --occasion-days 5
    """
    from foveate.records import layout
    from foveate.species.settings import SummarySettings
    from foveate.survey.effort import read_records, write_effort
    from foveate.survey.survey import Survey

    checked = call.check(SummarySettings, settings)
    answers: dict[str, Any] = {}
    if (source / layout.DESCRIPTION).is_file():
        survey = Survey.open(source, without_images=True)
    else:
        from foveate.species.decide_results import read_decisions
        from foveate.species.predictions import Predictions

        predictions = Predictions.open(source)
        survey = Survey.open(predictions.collection, without_images=True)
        decisions, events = read_decisions(predictions)
        answers = {"decisions": decisions, "events": events, "taxa": predictions.taxa}
    target = out or source / "summary"
    result = write_effort(
        survey,
        read_records(survey, **answers),
        target,
        minutes=checked.min_delta_minutes,
        compared_to=checked.compared_to,
        occasion_days=checked.occasion_days,
    )
    content = {**asdict(result), "tables": {name: str(path) for name, path in result.tables.items()}}
    call.finish(content, result.lines(), {"tables": target})


# `foveate species triage`: sort cards into blank, animal, human and vehicle, without a model of one's own.


@click.command("triage", cls=FieldsCommand, short_help="Sort cards into blank, animal, human and vehicle.")
@click.argument("cards", type=click.Path(path_type=Path))
@path_option("--out", "Results folder; new, or one of the same cards.", required=True)
@fields(
    f"{SETTINGS}:TriageSettings",
    "results",
    "deployments",
    "threshold",
    "blur_people",
    metavars={"results": "FILE", "deployments": "FILE"},
)
@page_options
@workers_option
@common(seed=False)
def triage_command(call: Call, cards: Path, out: Path, settings: dict[str, Any], page: dict[str, Any]) -> None:
    """Say of each image of CARDS whether it is blank or shows an animal, a person or a vehicle; no model is needed.

    CARDS is a folder of cards, a collection, or a survey that `foveate collect` reads. MegaDetector's results decide
    where they are there; else the shipped detector, whose measured error is printed. Writes a table (triage.csv) and a
    page with images; `foveate species review` and `export` read the folder. The same command resumes, and with another
    --threshold it decides anew in seconds.

    \b
    Example:
      foveate species triage cards --out triage
      foveate species triage cards --results md.json --blur-people --out triage
      foveate species export triage --to megadetector
    """
    from foveate.core.files import write_json_atomically
    from foveate.records.labeling import end_command
    from foveate.report.render import render_and_tell
    from foveate.species.predictions import Predictions
    from foveate.species.settings import PageSettings, TriageSettings
    from foveate.species.summary import summarize
    from foveate.species.triage import BLURRED, TABLE, describe, triage

    checked, look = call.check(TriageSettings, settings), call.check(PageSettings, page)
    result = triage(cards, out, checked, device=call.device, workers=call.workers)
    if result.stopped:
        call.finish(asdict(result), ["stopped; run the same command to resume"], {"results": out})
        end_command(result.find_failure(), stopped=True)
    lines = describe(result)
    predictions = Predictions.open(out)
    page_result = summarize(predictions, out, digits=look.coordinate_digits, samples=look.samples, command=call.command)
    title = f"Triage of {result.images:,} images"
    page_result = page_result.model_copy(update={"title": title, "lead": " ".join(f"{line}." for line in lines)})
    write_json_atomically(out / "result.json", page_result.to_json())
    report, _ = render_and_tell(out)
    paths = {"table": out / TABLE, "report": report, "results": out}
    paths |= {"blurred": out / BLURRED} if result.blurred else {}
    call.finish(asdict(result), lines, paths)
    end_command(result.find_failure(), stopped=False)
