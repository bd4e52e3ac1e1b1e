"""`foveate captioner prepare|evaluate`: captions to train on, and captions by a multimodal model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option, path_option, run_option


@click.group("captioner", short_help="Prepare captions to train on; evaluate a model.")
def command() -> None:
    """Train and evaluate multimodal models that write short, descriptive, dense and alt-text-fused captions.

    \b
    Example:
      foveate captioner prepare --collection my-images
      foveate mllm train captioner --collection my-images
      foveate captioner evaluate runs/mllm-captioner/model --collection my-images
    """


@command.command("prepare", short_help="Add captions in all formats to a collection, to train on.")
@click.argument("overrides", metavar="[FIELD=VALUE]...", nargs=-1)
@path_option("--collection", "Collection folder; the captions become conversations in it.", required=True)
@click.option(
    "--replace", is_flag=True, help="Remove the captions that earlier calls wrote with other settings; else both stay."
)
@dry_run_option("Examine 500 images and count their captions; write nothing.")
@common(device=False)
def prepare(call: Call, overrides: tuple[str, ...], collection: Path, replace: bool) -> None:
    """Rewrite what is known of images into captions of all formats, and add them as conversations.

    Group `short-captions` has those from several short captions and recognized text, `descriptions` those from
    descriptions and exact truths. The same command resumes, and adds nothing after the end. FIELD=VALUE
    sets fields of docs/recipes.md, "Captions to train on".

    \b
    Example:
      foveate captioner prepare --collection questions
      foveate captioner prepare --collection mine 'short_kinds=[caption]' 'description_kinds=[story]'
    """
    from foveate.caption.settings import TargetSettings
    from foveate.caption.targets.conversations import prepare_captions
    from foveate.core.recipes import parse_overrides

    settings = call.check(TargetSettings, parse_overrides(overrides))
    counts = prepare_captions(collection, settings, seed=call.seed or 0, replace=replace, dry_run=call.dry_run)
    lines = [", ".join(f"{name} {count}" for name, count in counts.images.items()) + " images"]
    lines += [f"{name}: {count} captions" for name, count in counts.written.items()]
    lines += [f"dropped, {name}: {count}" for name, count in counts.dropped.items()]
    if not call.dry_run:
        lines.append(f"{counts.added} conversations added, {counts.existing} were there already")
    if counts.removed:
        lines.append(f"{counts.removed} captions of other settings removed")
    if counts.others:
        advice = "--replace removes them" if not replace else "they would be removed" if call.dry_run else "they stay"
        lines.append(f"{counts.others} captions of other settings are there, and a training takes both sets; {advice}")
    call.finish(counts.model_dump(mode="json"), lines)


@command.command("evaluate", cls=FieldsCommand, short_help="Evaluate a captioner on held-out images.")
@click.argument("model")
@path_option("--collection", "Collection folder.", required=True)
@fields("foveate.caption.settings:EvaluationSettings", "split", "limit", "shuffled")
@run_option("runs/captioner-evaluate", "Folder for the result and its page")
@common()
def evaluate(call: Call, model: str, collection: Path, settings: dict[str, Any]) -> None:
    """Caption held-out images in all formats; measure formats, lengths and, on scenes, true assertions.

    MODEL is mini (shipped), a folder of `foveate mllm train`, or a folder or hub id of transformers.

    \b
    Example:
      foveate captioner evaluate runs/mllm-captioner/model --collection my-images --limit 300
    """
    from foveate.caption.evaluate import evaluate_model
    from foveate.caption.settings import EvaluationSettings
    from foveate.records.collection import Collection
    from foveate.report.render import render_and_tell

    run = call.run or Path("runs/captioner-evaluate")
    result = evaluate_model(
        model,
        Collection.open(collection),
        run,
        call.check(EvaluationSettings, settings),
        seed=call.seed or 0,
        device=call.device,
        command=call.command,
    ).to_json()
    report, lines = render_and_tell(run)
    call.finish(result, lines, {"run": run, "report": report})
