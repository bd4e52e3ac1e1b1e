"""The commands of `foveate species` about a model: train, predict, decide, evaluate, explain, review, export."""

from __future__ import annotations

import logging
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, path_option, workers_option
from foveate.cli.recipe_call import RecipeCall, recipe_command
from foveate.cli.verbs.species import RECIPE
from foveate.cli.verbs.species.options import (
    MODEL_ARGUMENT,
    RESULTS_ARGUMENT,
    SETTINGS,
    check_stages,
    decide_and_render,
    describe_detector,
    list_labels,
    page_options,
    stage_options,
)

if TYPE_CHECKING:
    from foveate.species.settings import ReviewSettings

# `foveate species train`: train a model on a graph or a survey.


@click.command("train", cls=FieldsCommand, short_help="Train a model on a graph or a survey.")
@recipe_command(
    "runs/species",
    dry_run="Print images, classes, links and steps of the training, and what is doubtful; train and write nothing.",
    collection="Folder of a survey, or of a graph that `species build` wrote.",
    optional=True,
    source=True,
)
@path_option("--taxonomy", "Of a collection: table with columns taxon and parent, or a checklist.")
@click.option("--include-locations", is_flag=True, help="Write coordinates of cameras into the model folder.")
@click.option(
    "--encoder",
    default=None,
    metavar="FOLDER|KIND:NAME",
    help="Image encoder: a folder, open_clip:OWNER/NAME, dinov2:OWNER/NAME, timm:NAME.TAG, ...; lite0 if unset.",
)
@fields(
    RECIPE,
    "method",
    "train_encoder",
    "graph.score",
    "graph.dim",
    "graph.contexts",
    "view.view",
    "view.strips",
    "data.features",
    "training.epochs",
    "training.taxonomy_passes",
    "training.balance",
    "prior",
    metavars={"data.features": "FILE"},
)
def train_command(
    call: RecipeCall, taxonomy: Path | None, include_locations: bool, encoder: str | None, settings: dict[str, Any]
) -> None:
    """Train on a survey or a graph, and write a model folder.

    RECIPE is a shipped name or a YAML file; without one, the defaults, which are those of `species`. FIELD=VALUE
    changes any other field: encoder.kind=timm, graph.hour_input=circular, training.epochs=20. Ctrl-C or SIGTERM stops
    after a checkpoint; the same command resumes.

    \b
    Example:
      foveate species train --collection graph --contexts taxonomy,place,time --out runs/species
      foveate species train --collection survey --method erm --view whole --out runs/erm
      foveate species train --collection graph --encoder open_clip:imageomics/bioclip-2 --out runs/bioclip
      foveate species train cosmo-iwildcam --collection graph --out runs/paper
    """
    from foveate.species.recipe import SpeciesRecipe

    options = call.options(settings)
    if encoder is not None:
        from foveate.core.errors import UserError

        if clash := [text for text in call.overrides if text.startswith("encoder")]:
            raise UserError(f"--encoder: {clash[0]} has no effect beside it; write encoder.kind= and encoder.source=")
        options["encoder"] = encoder
    recipe = call.load(SpeciesRecipe, options)
    if call.dry_run:
        from foveate.species.estimate import estimate_training, format_estimate

        estimate = estimate_training(recipe, call.data, taxonomy=taxonomy)
        call.finish(estimate, format_estimate(estimate))
        return
    source = call.data
    from foveate.report import render
    from foveate.species.train import train_species

    outcome = train_species(
        source,
        call.run or Path("runs/species"),
        recipe,
        taxonomy=taxonomy,
        include_locations=include_locations,
        device=call.device,
        command=call.command,
    )
    result, paths = outcome.result, {"run": outcome.run.path}
    if outcome.model is None:
        call.stop(result.to_json(), outcome.run.path, step=result.steps)
    contexts = ", ".join(result.contexts) or "the species alone"
    lines = [f"{result.images:,} images of {result.cameras} cameras, {len(result.classes)} classes; links: {contexts}"]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in result.selection.items() if value is not None)
    lines += [f"validation ({result.validation_images:,} images): {scores}"] if scores else []
    lines += [f"  {count:,} images left out: {reason}" for reason, count in result.left_out.items()]
    untrained = [entry.label for entry in result.classes if not entry.images]
    if untrained:
        lines.append(f"  {len(untrained)} classes have no training image: {list_labels(untrained)}")
    paths |= {"model": outcome.model.folder, "report": render(outcome.run.path)}
    call.finish(result.to_json(), lines, paths)


# `foveate species predict`: predict species on cards, a survey or a collection.


@click.command("predict", cls=FieldsCommand, short_help="Predict species on cards, a survey or a collection.")
@MODEL_ARGUMENT
@click.argument("source", type=click.Path(path_type=Path))
@path_option("--out", "Results folder; new, or one of the same model and source.", required=True)
@fields(
    f"{SETTINGS}:PredictSettings",
    *("deployments", "results", "detect", "features", "split", "batch", "executor", "processes"),
)
@stage_options
@page_options
@workers_option
@common(seed=False)
def predict_command(
    call: Call,
    model: Path,
    source: Path,
    out: Path,
    settings: dict[str, Any],
    stages: dict[str, Any],
    decision: dict[str, Any],
    page: dict[str, Any],
) -> None:
    """Predict the species on the images of SOURCE with MODEL, decide about its events, and write a results folder.

    SOURCE is a folder of cards (a folder per camera, and deployments.csv), a collection, or a survey that `foveate
    collect` reads. Images are looked at once: `foveate species decide` decides anew in seconds. The same command
    resumes, and tries images again that could not be reached. The model sees the images alone; a prior of place, hour
    or season is a stage of its own.

    \b
    Example:
      foveate species predict runs/species/model cards-2 --out results
      foveate species predict runs/species/model cards-2 --list my-species.csv --place-prior --out results
    """
    from foveate.core.progress import say
    from foveate.records.labeling import end_command
    from foveate.species.folder import open_species
    from foveate.species.predict import predict as run_predict
    from foveate.species.predictions import Predictions
    from foveate.species.settings import PredictSettings

    checked = call.check(PredictSettings, settings)
    opened = open_species(model)
    check_stages(stages, opened)
    counts = run_predict(opened, source, out, checked, device=call.device, workers=call.workers)
    if counts.stopped or counts.away:
        reason = "stopped" if counts.stopped else "ended early, because no image that is left can be reached,"
        lines = [f"{reason} after {counts.computed:,} images; run the same command to resume"]
        call.finish(asdict(counts), lines, {"results": out})
        end_command(counts.find_failure(), stopped=counts.stopped)
    if counts.view == "crop" and not counts.cropped and not counts.judged:
        say(
            "the model was trained on crops of animals, and no image has a box that is sure enough: whole frames were "
            "recognized; give --results with MegaDetector's file"
        )
    result, report, lines = decide_and_render(Predictions.open(out), stages, decision, page)
    lines.append(f"{counts.computed:,} of {counts.images:,} images were computed now")
    lines += [f"{counts.boxed:,} got boxes from NanoDet-g"] if counts.boxed else []
    lines += [describe_detector(counts.judged, stages)] if counts.judged else []
    call.finish({**asdict(counts), "counts": result.counts}, lines, {"results": out, "report": report})
    end_command(counts.find_failure(), stopped=counts.stopped)


# `foveate species decide`: decide anew about predicted images, without a look at one.


@click.command("decide", cls=FieldsCommand, short_help="Decide anew, without a look at an image.")
@RESULTS_ARGUMENT
@stage_options
@page_options
@common(seed=False, device=False)
def decide_command(
    call: Call, results: Path, stages: dict[str, Any], decision: dict[str, Any], page: dict[str, Any]
) -> None:
    """Decide about the images of RESULTS with other stages: another list, threshold, pooling or prior.

    \b
    Example:
      foveate species decide results --list other.csv --threshold 0.8
      foveate species decide results --rules speciesnet
    """
    from foveate.species.predictions import Predictions

    result, report, lines = decide_and_render(Predictions.open(results), stages, decision, page)
    call.finish(
        {"decisions": result.decisions, "counts": result.counts, "ranks": result.ranks},
        lines,
        {"results": results, "report": report},
    )


# `foveate species evaluate`: measure a model on labeled images.


@click.command("evaluate", cls=FieldsCommand, short_help="Measure a model on labeled images.")
@MODEL_ARGUMENT
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help="Images of this split; all = every labeled image.")
@click.option("--label-field", default=None, metavar="NAME", help="Label field of a collection that is no survey.")
@path_option("--out", "Results folder; runs/species-evaluate by default.")
@fields(f"{SETTINGS}:PredictSettings", "detect", "features", "batch")
@stage_options
@page_options
@workers_option
@common(seed=False)
def evaluate_command(
    call: Call,
    model: Path,
    collection: Path,
    split: str,
    label_field: str | None,
    out: Path | None,
    settings: dict[str, Any],
    stages: dict[str, Any],
    decision: dict[str, Any],
    page: dict[str, Any],
) -> None:
    """Predict the images of COLLECTION and compare with its labels of people: classes, ranks, coverage, cameras, hours.

    \b
    Example:
      foveate species evaluate runs/species/model survey --split test
    """
    from foveate.records.labeling import end_command
    from foveate.species.evaluate import read_truth
    from foveate.species.folder import open_species
    from foveate.species.predict import predict as run_predict
    from foveate.species.predictions import Predictions
    from foveate.species.settings import PredictSettings

    checked = call.check(PredictSettings, {**settings, "split": None if split == "all" else split})
    opened, target = open_species(model), out or Path("runs/species-evaluate")
    check_stages(stages, opened)
    counts = run_predict(opened, collection, target, checked, device=call.device, workers=call.workers)
    if counts.stopped or counts.away:
        call.finish(asdict(counts), ["stopped; run the same command to resume"], {"results": target})
        end_command(counts.find_failure(), stopped=counts.stopped)
    predictions = Predictions.open(target)
    truth = read_truth(predictions, label_field=label_field)
    train_counts = dict(zip(opened.classes.labels, opened.info.images_K.tolist(), strict=True))
    result, report, lines = decide_and_render(
        predictions, stages, decision, page, truth=truth, train_counts=train_counts
    )
    call.finish(result.to_json(), lines, {"results": target, "report": report})


# `foveate species explain`: show what is behind the answer for one image.


@click.command("explain", short_help="Show what is behind the answer for one image.")
@RESULTS_ARGUMENT
@click.argument("image")
@path_option("--training", "Collection that the model was trained on, for the nearest training images.")
@path_option("--out", "Folder of the page; RESULTS/explain by default.")
@common(seed=False)
def explain_command(call: Call, results: Path, image: str, training: Path | None, out: Path | None) -> None:
    """Show the steps of the decision about IMAGE, the nearest taxa of the graph, and the nearest training images.

    IMAGE is a key, or a path as the shell knows it.

    \b
    Example:
      foveate species explain results cards-2/A/IMG_0042.JPG --training survey
    """
    from foveate.report.render import render_and_tell
    from foveate.species.explain import explain as explain_image
    from foveate.species.folder import open_species
    from foveate.species.predictions import Predictions

    predictions = Predictions.open(results)
    model = open_species(Path(predictions.config["model"]["path"]))
    target = out or results / "explain"
    made_by = call.command
    result = explain_image(predictions, model, image, target, training=training, device=call.device, command=made_by)
    report, lines = render_and_tell(target)
    call.finish(result.to_json(), lines, {"report": report})


# `foveate species review`: list what a person should look at first; read answers back.


@click.command("review", cls=FieldsCommand, short_help="List what a person should look at first; read answers back.")
@RESULTS_ARGUMENT
@path_option("--out", "Folder of sheet and table; RESULTS/review by default.")
@fields(
    f"{SETTINGS}:ReviewSettings",
    "max_events",
    "corrections",
    "column",
    "page",
    "reviewer",
    "blur_people",
    "port",
    metavars={"corrections": "FILE|FOLDER", "reviewer": "NAME"},
)
@common(seed=False, device=False)
def review_command(call: Call, results: Path, out: Path | None, settings: dict[str, Any]) -> None:
    """Write a contact sheet and a table of the events of RESULTS that a look would change most, or read answers back.

    Answers come from the column "correction" of that table, from any CSV with a column of files and one of species,
    from Timelapse's CSV, or from the human rows of a Camtrap DP package. They are labels of the next `foveate species
    train`; later answers about the same image replace them. With --corrections RESULTS may be a survey that nothing was
    predicted for. With --page the events are reviewed in a browser; each answer is on disk at once.

    \b
    Example:
      foveate species review results --max-events 300
      foveate species review results --page --reviewer Ada
      foveate species review results --corrections results/review/review.csv
      foveate species review survey --corrections TimelapseData.csv
    """
    from foveate.core.errors import UserError
    from foveate.records import layout
    from foveate.report.render import render_and_tell
    from foveate.species.answers import store_pending
    from foveate.species.corrections import apply_corrections, open_target
    from foveate.species.predictions import Predictions
    from foveate.species.review import write_review
    from foveate.species.settings import ReviewSettings
    from foveate.survey.importers.corrections import read_corrections

    checked = call.check(ReviewSettings, settings)
    if (results / layout.DESCRIPTION).is_file() and checked.corrections is None:
        raise UserError(
            f"{results} is a collection, no results of foveate species predict; expected --corrections FILE"
        )
    if checked.page:
        if out is not None:
            raise click.UsageError("--out has no effect with --page")
        _serve_page(call, results, checked)
        return
    store_pending(results)
    if checked.corrections is not None:
        corrections = read_corrections(checked.corrections, column=checked.column)
        reviewed = open_target(results)
        summary = apply_corrections(reviewed, corrections, checked.corrections)
        paths = {"collection": reviewed.survey.collection.path}
        call.finish(asdict(summary), summary.lines(), paths)
        return
    predictions = Predictions.open(results)
    target = out or results / "review"
    result = write_review(predictions, target, max_events=checked.max_events, command=call.command)
    report, lines = render_and_tell(target)
    paths = {"table": target / result.table, "report": report}
    paths |= {"sheet": target / result.sheet} if result.sheet else {}
    call.finish({"decisions": result.decisions, "events": len(result.events)}, lines, paths)


def _serve_page(call: Call, results: Path, settings: ReviewSettings) -> None:
    """Serve the review page until Ctrl-C, then store what was answered."""
    from foveate.core.files import FolderLock
    from foveate.serve.adapters import check_extra
    from foveate.species.answers import ReviewSession
    from foveate.species.predictions import Predictions

    check_extra()
    Predictions.open(results)  # an error about the folder, before a lock is made in it
    from foveate.core.recipes import validate
    from foveate.serve.review import ReviewApplication
    from foveate.serve.run import serve
    from foveate.serve.settings import ServeSettings

    with FolderLock(results, purpose="reviewing on a page"):
        session, key = ReviewSession(results, blur_people=settings.blur_people), secrets.token_urlsafe(32)
        limits = validate(ServeSettings, {"port": settings.port, "max_body_mb": 1.0}, where="foveate species review")

        def ready(port: int) -> None:
            # Behind "#", which browsers send to no server and write into no log.
            address = f"http://{limits.host}:{port}/#{key}"
            call.finish({"address": address, "port": port, "events": len(session.events)}, [f"review page: {address}"])
            click.echo("Ctrl-C stops; each answer is saved at once", err=True)
            # A pipe is block-buffered: whoever waits for this line would wait until the server ends.
            sys.stdout.flush()

        application = ReviewApplication(session, limits, key=key, reviewer=settings.reviewer)
        serve(application, ready=ready, log_level=logging.WARNING)
        session.store()
        for line in session.summarize():
            click.echo(line, err=True)


# `foveate species export`: write decisions in a format of others.


@click.command("export", cls=FieldsCommand, short_help="Write decisions in the format of another program.")
@RESULTS_ARGUMENT
@path_option("--out", "File or folder to write; in RESULTS by default.")
@fields(
    f"{SETTINGS}:ExportSettings",
    ("format", "--to"),
    "exclude_humans",
    "coordinate_digits",
    "title",
    "contributor",
    "sampling_design",
    "utc_offset",
    "project",
    repeat=("contributor", "utc_offset"),
    metavars={"coordinate_digits": "1|2|3|recorded|drop"},
)
@common(seed=False, device=False)
def export_command(call: Call, results: Path, out: Path | None, settings: dict[str, Any]) -> None:
    """Write the decisions of RESULTS as a Camtrap DP package, MegaDetector's JSON, for Wildlife Insights, or as CSV.

    Rows of people are written as they are. Only Camtrap DP has coordinates, rounded as --coordinate-digits says.

    \b
    Example:
      foveate species export results --to megadetector --exclude-humans
      foveate species export results --to camtrap-dp --coordinate-digits 2 --contributor "A. Person"
    """
    from foveate.species.answers import store_pending
    from foveate.species.export import export_predictions
    from foveate.species.predictions import Predictions
    from foveate.species.settings import ExportSettings

    checked = call.check(ExportSettings, settings)
    store_pending(results)
    name = {"camtrap-dp": "camtrap-dp", "megadetector": "megadetector.json", "csv": "decisions.csv"}.get(checked.format)
    target = out or results / (name or f"{checked.format}.csv")
    counts, lines = export_predictions(Predictions.open(results), target, checked)
    call.finish(counts, lines, {checked.format: target})
