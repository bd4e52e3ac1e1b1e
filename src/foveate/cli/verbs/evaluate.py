"""`foveate evaluate`: measure a model folder on a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, path_option, run_option


@click.command("evaluate", cls=FieldsCommand, short_help="Evaluate a model on a collection.")
@click.argument("model", type=click.Path(path_type=Path))
@path_option("--collection", "Collection folder.", required=True)
@fields(
    "foveate.pretrain.settings:EvaluateSettings",
    "split",
    "classes",
    ("templates", "--template"),
    ("text_kind", "--texts"),
    "crops",
    "limit",
    repeat=("templates",),
    metavars={"classes": "FIELD", "text_kind": "KIND"},
)
@run_option("MODEL/../evaluation, or MODEL-evaluation where the model folder is not called model,")
@common()
def command(call: Call, model: Path, collection: Path, settings: dict[str, Any]) -> None:
    """Answer every question of the collection's SPLIT with MODEL and write a page, a table and per-sample results.

    MODEL is a folder of `foveate pretrain`, or the name of an encoder that ships.
    Retrieval both ways, region-text retrieval both ways, region classification, phrase grounding, which of the
    image's boxes, and on request zero-shot classification; each with a bootstrap interval over images and
    a shuffled-box control.

    \b
    Example:
      foveate evaluate runs/study-tour/cloc-seed0/model --collection my-images --split test
    """
    from foveate.core.export_folder import default_folder
    from foveate.core.hub import locate
    from foveate.core.runs import RunFolder
    from foveate.pretrain.evaluate import evaluate
    from foveate.pretrain.results import EvaluateResult
    from foveate.pretrain.settings import EvaluateSettings
    from foveate.records.collection import Collection
    from foveate.report.render import render_and_tell
    from foveate.vision.localizer.folder import load_model

    resolved = call.check(EvaluateSettings, settings)
    # Model and collection are opened before the run folder is made: a wrong path leaves no folder behind.
    opened = load_model(locate("localizer", model) or model, device=call.device)
    images = Collection.open(collection)
    # By name: models beside one another must not share a folder.
    beside = default_folder(model, "evaluation")
    folder = RunFolder.create(
        call.run or (beside.with_name("evaluation") if beside.name == "model-evaluation" else beside)
    )
    evaluation, _ = evaluate(opened, images, resolved, seed=call.seed or 0, samples_to=folder.path / "samples")
    result = EvaluateResult.model_validate({"model": str(model), **evaluation.to_json()}).to_json()
    folder.write_result(result)
    report, lines = render_and_tell(folder.path)
    paths = {"samples": folder.path / "samples", "report": report}
    call.finish(result, lines, paths)
