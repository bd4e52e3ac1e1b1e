"""`foveate captioner train|evaluate|serve`: Foveate's own controllable captioner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import (
    common,
    device_option,
    dry_run_option,
    finish,
    json_option,
    path_option,
    quiet_option,
    run_option,
    workers_option,
)

# What test and docs build from a recipe that this verb runs.
RECIPE = "foveate.caption.small.recipe:CaptionerRecipe"
MODEL = "foveate.caption.small.train:build_model"


@click.group("captioner", short_help="Train, evaluate or serve the controllable captioner.")
def command() -> None:
    """Train, evaluate and serve one small model that writes short, descriptive, dense and AltText-fused captions.

    \b
    Example:
      foveate captioner train captioner-tour --collection my-images
      foveate captioner evaluate runs/captioner-captioner-tour/model --collection my-images
      foveate captioner serve runs/captioner-captioner-tour/model
    """


@command.command("prepare", short_help="Add captions in all formats to a collection, to train on.")
@click.argument("overrides", metavar="[FIELD=VALUE]...", nargs=-1)
@path_option("--collection", "Collection folder; the captions become conversations in it.", required=True)
@dry_run_option("Examine 500 images and count their captions; write nothing.")
@common(device=False)
def prepare(overrides: tuple[str, ...], collection: Path, dry_run: bool, as_json: bool, seed: int | None) -> None:
    """Rewrite what is known of images into captions of all formats, and add them as conversations.

    Group `short-captions` has those from several short captions and recognized text, `descriptions` those from
    descriptions and exact truths. Stopped and repeated, it goes on; repeated after that, it adds nothing. FIELD=VALUE
    sets fields of docs/recipes.md, "Captions to train on".

    \b
    Example:
      foveate captioner prepare --collection questions
      foveate captioner prepare --collection mine 'short_kinds=[caption]' 'description_kinds=[story]'
    """
    from foveate.caption.targets.conversations import prepare_captions
    from foveate.caption.targets.settings import TargetSettings
    from foveate.core.recipes import parse_overrides, validate

    settings = validate(TargetSettings, parse_overrides(overrides), where="foveate captioner prepare")
    counts = prepare_captions(collection, settings, seed=seed or 0, dry_run=dry_run)
    lines = [", ".join(f"{name} {count}" for name, count in counts.images.items()) + " images"]
    lines += [f"{name}: {count} captions" for name, count in counts.written.items()]
    lines += [f"dropped, {name}: {count}" for name, count in counts.dropped.items()]
    if not dry_run:
        lines.append(f"{counts.added} conversations added, {counts.existing} were there already")
    finish(counts.model_dump(mode="json"), lines, {}, as_json=as_json)


@command.command("train", cls=FieldsCommand, short_help="Train a captioner on a collection, in two stages.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@path_option("--collection", "Collection folder.", required=True)
@run_option("runs/captioner-RECIPE")
@fields(RECIPE, "training.precision", into="changes", of_recipe=True)
@fields("foveate.caption.small.settings:HeldOutSettings", "split", "limit", "evaluation")
@dry_run_option("Count images, targets and parameters; train and write nothing.")
@workers_option
@common()
def train(
    recipe: str,
    overrides: tuple[str, ...],
    collection: Path,
    run: Path | None,
    changes: dict[str, Any],
    settings: dict[str, Any],
    dry_run: bool,
    workers: int | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Train RECIPE (a shipped name or a YAML file): targets of both stages, then format following, then alignment.

    OVERRIDES change single fields, for example 'data.short_kinds=[title, keywords]'. Ctrl-C or SIGTERM stops after a
    checkpoint; the same command goes on.

    \b
    Example:
      foveate captioner train captioner-tour --collection my-images
      foveate captioner train captioner --collection mine 'data.short_kinds=[caption]' 'data.description_kinds=[story]'
    """
    from foveate.caption.small.recipe import CaptionerRecipe
    from foveate.caption.small.settings import HeldOutSettings
    from foveate.core.recipes import format_overrides, load, validate
    from foveate.records.collection import Collection

    held_out = validate(HeldOutSettings, settings, where="foveate captioner train")
    changes = {"training": {**changes.get("training", {}), "seed": seed, "workers": workers}}
    # Options come last: where an option and an override set the same field, the option wins.
    resolved = load(CaptionerRecipe, recipe, [*overrides, *format_overrides(changes)])
    opened = Collection.open(collection)
    if dry_run:
        from foveate.caption.small.estimate import estimate, lines

        planned = estimate(resolved, opened)
        finish(planned, lines(planned), {}, as_json=as_json)
        return
    from foveate.caption.small.runs import train_and_evaluate
    from foveate.report import render

    target = run or Path("runs") / f"captioner-{Path(recipe).stem}"
    done = train_and_evaluate(
        resolved,
        opened,
        target,
        device=device,
        command=["foveate", *sys.argv[1:]],
        held_out=held_out,
    )
    # Under torchrun every process gets here; only one prints and writes the page.
    if not done.is_main:
        return
    if done.model_folder is None:
        finish(done.result.to_json(), ["stopped; run the same command to resume"], {"run": target}, as_json=as_json)
        sys.exit(130)
    paths = {"run": target, "model": done.model_folder, "report": render(target)}
    finish(done.result.to_json(), _trained_lines(done.result.to_json()), paths, as_json=as_json)


@command.command("evaluate", cls=FieldsCommand, short_help="Evaluate a captioner on held-out images.")
@click.argument("model", type=click.Path(path_type=Path))
@path_option("--collection", "Collection folder.", required=True)
@fields("foveate.caption.small.settings:EvaluationSettings", "split", "limit", "shuffled")
@run_option("runs/captioner-evaluate", "Folder for the result and its page")
@common()
def evaluate(
    model: Path,
    collection: Path,
    settings: dict[str, Any],
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Caption held-out images in all formats: do answers obey, do lengths rise, and on scenes, how much holds?

    \b
    Example:
      foveate captioner evaluate runs/captioner-captioner-tour/model --collection my-images --limit 300
    """
    from foveate.caption.small.runs import evaluate_folder
    from foveate.caption.small.settings import EvaluationSettings
    from foveate.core.recipes import validate
    from foveate.records.collection import Collection
    from foveate.report import render

    run = run or Path("runs/captioner-evaluate")
    result = evaluate_folder(
        model,
        Collection.open(collection),
        run,
        validate(EvaluationSettings, settings, where="foveate captioner evaluate"),
        seed=seed or 0,
        device=device,
        command=["foveate", *sys.argv[1:]],
    ).to_json()
    finish(result, _table_lines(result["evaluation"]), {"run": run, "report": render(run)}, as_json=as_json)


@command.command("serve", cls=FieldsCommand, short_help="Serve a captioner to OpenAI clients.")
@click.argument("model", type=click.Path(path_type=Path))
@fields("foveate.caption.small.settings:ServerSettings", "host", "port", "name", "batch", "port_file")
# Not a field: settings are stored and printed, a key must never be.
@click.option("--key", envvar="FOVEATE_API_KEY", default="", help="Key that clients must send; FOVEATE_API_KEY.")
@device_option
@json_option
@quiet_option
def serve(model: Path, settings: dict[str, Any], key: str, device: str | None, as_json: bool) -> None:
    """Answer POST /v1/chat/completions like OpenAI's API, until Ctrl-C. Images come as data URLs.

    \b
    Example:
      foveate captioner serve runs/captioner-captioner-tour/model --port 8009
    """
    from foveate.caption.small.folder import load_captioner
    from foveate.caption.small.serving import serve as run_server
    from foveate.caption.small.settings import ServerSettings
    from foveate.core.recipes import validate

    server = validate(ServerSettings, settings, where="foveate captioner serve")
    captioner = load_captioner(model, device=device)

    def ready(listening_port: int) -> None:
        address = f"http://{server.host}:{listening_port}/v1"
        lines = [f"model {server.name}, revision {captioner.revision}", f"listening on {address}; Ctrl-C stops"]
        finish({"address": address, "model": server.name, "revision": captioner.revision}, lines, {}, as_json=as_json)
        # A pipe is block-buffered: whoever waits for this line would wait until the server ends.
        sys.stdout.flush()

    run_server(captioner, server, key=key, ready=ready)


def _trained_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{name}: {stage['steps']} steps in {stage['seconds']:.0f} s, {stage['images']} images"
        for name, stage in result["stages"].items()
    ]
    return lines + _table_lines(result.get("evaluation"))


def _table_lines(evaluation: dict[str, Any] | None) -> list[str]:
    lines = []
    for row in (evaluation or {}).get("table", []):
        values = ", ".join(f"{kind} {value['value']:.3f}" for kind, value in row["values"].items())
        lines.append(f"{row['question']}, {row['data']}: {values}, n {row['n']}")
    return lines
