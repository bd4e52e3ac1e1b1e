"""`foveate evaluate`: measure a model folder on a collection."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import common, finish
from foveate.cli.tables import measured


@click.command("evaluate", short_help="Measure a model on a collection.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--collection", required=True, type=click.Path(path_type=Path), help="Collection folder.")
@click.option("--split", default="test", show_default=True, help="Split to measure on.")
@click.option("--classes", metavar="FIELD", default=None, help="Label field for zero-shot classification.")
@click.option("--template", "templates", multiple=True, help='Prompt such as "a photo of a {}"; may be repeated.')
@click.option("--texts", "text_kind", default=None, help="Caption kind for retrieval; each image's first by default.")
@click.option("--crops", is_flag=True, help="Also answer by encoding each box as an image of its own (slow).")
@click.option("--limit", type=click.IntRange(1), default=None, help="At most this many images.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; MODEL/../evaluation by default.")
@common()
def command(
    model: Path,
    collection: Path,
    split: str,
    classes: str | None,
    templates: tuple[str, ...],
    text_kind: str | None,
    crops: bool,
    limit: int | None,
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Answers every question of the collection's SPLIT with MODEL and writes a page, a table and per-sample results.

    Retrieval both ways, region-text retrieval both ways, region classification, phrase grounding, which of the
    image's boxes, and on request zero-shot classification; each with a bootstrap interval over images and
    a shuffled-box control.

    \b
    Example:
      foveate evaluate runs/tour/cloc-seed0/model --collection my-images --split test
    """
    from foveate.core.errors import UserError
    from foveate.core.runs import RunFolder
    from foveate.pretrain.evaluate import evaluate
    from foveate.pretrain.results import EvaluateResult
    from foveate.records.collection import Collection
    from foveate.report import render
    from foveate.vision.localizer.folder import load_model

    for template in templates:
        if "{}" not in template:
            raise UserError(f"--template '{template}': write {{}} where the class name goes")
    opened = load_model(model, device=device)
    images = Collection.open(collection)
    folder = RunFolder.create(run or model.parent / "evaluation")
    evaluation, _ = evaluate(
        opened,
        images,
        split=split,
        name="model",
        crops=crops,
        classes=classes,
        templates=templates or ("an image of {}",),
        text_kind=text_kind,
        seed=seed or 0,
        limit=limit,
        samples_to=folder.path / "samples",
    )
    result = EvaluateResult.model_validate({"model": str(model), **evaluation.to_json()}).to_json()
    folder.write_result(result)
    lines = measured(result["table"])
    paths = {"samples": folder.path / "samples", "report": render(folder.path)}
    finish(result, lines, paths, as_json=as_json)
