"""Options of the verbs of `foveate species` that several of them have: the decision stages, the page, the prior."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import fields
from foveate.cli.options import F

if TYPE_CHECKING:
    from foveate.core.recipes import Settings
    from foveate.species.evaluate import Truth
    from foveate.species.model import SpeciesModel
    from foveate.species.predictions import Predictions
    from foveate.species.results import SpeciesResult

SETTINGS = "foveate.species.settings"
# Labels in one line of the terminal; all of them are in the written files.
MAX_LISTED = 20
RESULTS_ARGUMENT = click.argument("results", type=click.Path(path_type=Path))
MODEL_ARGUMENT = click.argument("model", type=click.Path(path_type=Path))


def stage_options(function: F) -> F:
    """Add the options of the decision stages; the command gets them as `stages`, and `decide` what goes beside them."""
    stages: Callable[[F], F] = fields(
        "foveate.species.decisions:Stages",
        "foveate.species.decisions:OPTIONS",
        into="stages",
        metavars={"prior.source": "FOLDER|FILE", "species_list.file": "FILE"},
    )
    return stages(fields(f"{SETTINGS}:DecideSettings", "gap_seconds", into="decision")(function))


page_options = fields(f"{SETTINGS}:PageSettings", "coordinate_digits", "samples", into="page")


def build_stages(values: Mapping[str, Any], model: Path | None) -> Settings:
    """Check the options of the stages; a temperature that is not given is the model's own.

    A prior that is asked for without a folder is the one beside the model.

    Args:
        model: folder of the model, None where it is not known.
    """
    from foveate.core.files import read_json
    from foveate.core.model_folder import METRICS
    from foveate.core.recipes import validate
    from foveate.species.decisions import Stages
    from foveate.species.priors import PRIOR

    prior = dict(values.get("prior", {}))
    uses_prior = any(prior.get(f"by_{part}") for part in ("place", "hour", "season"))
    if uses_prior and prior.get("source") is None and model is not None:
        folder = model.parent / PRIOR
        if folder.is_dir():
            prior["source"] = folder
    temperature = dict(values.get("temperature", {}))
    if model is not None and (model / METRICS).is_file():
        # Models that were trained before have none.
        fitted = read_json(model / METRICS).get("temperature")
        temperature = {"temperature": fitted, **temperature} if fitted is not None else temperature
    given = {"prior": prior, "temperature": temperature}
    return validate(Stages, {**values, **{name: own for name, own in given.items() if own}}, where="foveate species")


def check_stages(values: Mapping[str, Any], model: SpeciesModel) -> None:
    """Raise UserError for a wrong option or file of the stages; call it before any image is predicted."""
    from foveate.core.progress import silent
    from foveate.species.decisions import prepare_stages

    with silent():  # options without effect are named when the stages decide
        prepare_stages(build_stages(values, model.folder), model.classes, model.taxa)


def decide_and_render(
    predictions: Predictions,
    stages: Mapping[str, Any],
    decision: Mapping[str, Any],
    page: Mapping[str, Any],
    *,
    truth: Truth | None = None,
    train_counts: Mapping[str, int] | None = None,
) -> tuple[SpeciesResult, Path, list[str]]:
    """Decide about a results folder, write its result.json, render its page, and return what the page says."""
    from foveate.core.errors import UserError
    from foveate.core.files import write_json_atomically
    from foveate.core.recipes import validate
    from foveate.report.render import render_and_tell
    from foveate.species.decide_results import decide_results
    from foveate.species.predictions import TRIAGE
    from foveate.species.settings import DecideSettings, PageSettings
    from foveate.species.summary import summarize

    where = "foveate species"
    model = Path(predictions.config["model"]["path"])
    if model.name == TRIAGE:
        raise UserError(
            f"{predictions.folder}: results of foveate species triage have no species to decide about; run the same "
            "triage with another --threshold"
        )
    settings = build_stages(stages, model)
    gap = validate(DecideSettings, dict(decision), where=where).gap_seconds
    decide_results(predictions, settings, gap_seconds=gap)
    look = validate(PageSettings, dict(page), where=where)
    result = summarize(
        predictions,
        predictions.folder,
        truth=truth,
        train_counts=train_counts,
        digits=look.coordinate_digits,
        samples=look.samples,
        command=["foveate", *sys.argv[1:]],
    )
    write_json_atomically(predictions.folder / "result.json", result.to_json())
    return result, *render_and_tell(predictions.folder)


def describe_detector(images: int, stages: Mapping[str, Any]) -> str:
    """Say what the detector's results decide about the images that it looked at."""
    from foveate.species.stages.detector import DetectorSettings

    settings = DetectorSettings(**dict(stages.get("detector", {})))
    looked_at = f"{images:,} have results of a detector with categories"
    if not settings.enabled or dict(stages.get("rules", {})).get("rules", "none") != "none":
        return looked_at
    return f"{looked_at}: people, vehicles and no box at {settings.threshold:g} (--detector-threshold) decide"


def list_labels(labels: Sequence[str]) -> str:
    """Join the first labels, and say how many more there are."""
    rest = len(labels) - MAX_LISTED
    return ", ".join(labels[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
