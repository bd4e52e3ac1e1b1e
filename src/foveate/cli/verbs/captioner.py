"""`foveate captioner train|evaluate|serve`: Foveate's own controllable captioner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish, json_option, quiet_option, workers_option

# What test and docs build from a recipe that this verb runs.
RECIPE = "foveate.caption.small.recipe:CaptionerRecipe"
MODEL = "foveate.caption.small.train:build_model"


@click.group("captioner", short_help="Train, evaluate or serve the controllable captioner.")
def command() -> None:
    """Foveate's own captioner: one small model that writes short, descriptive, dense and AltText-fused captions.

    \b
    Example:
      foveate captioner train captioner-tour --collection my-images
      foveate captioner evaluate runs/captioner-captioner-tour/model --collection my-images
      foveate captioner serve runs/captioner-captioner-tour/model
    """


@command.command("train", short_help="Train a captioner on a collection, in two stages.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--collection", type=click.Path(path_type=Path), required=True, help="Collection folder.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; runs/captioner-RECIPE by default.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default=None, help="The recipe's by default.")
@click.option("--split", default=None, help="Held-out split to evaluate on; test, else validation, by default.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Images of that evaluation.")
@click.option("--no-evaluation", is_flag=True, help="Leave out the evaluation.")
@click.option("--dry-run", is_flag=True, help="Count images, targets and parameters; train and write nothing.")
@workers_option
@common()
def train(
    recipe: str,
    overrides: tuple[str, ...],
    collection: Path,
    run: Path | None,
    precision: str | None,
    split: str | None,
    limit: int,
    no_evaluation: bool,
    dry_run: bool,
    workers: int | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Trains RECIPE (a shipped name or a YAML file): targets of both stages, then format following, then alignment.

    OVERRIDES change single fields, for example 'data.short_kinds=[title, keywords]'. Ctrl-C or SIGTERM stops after a
    checkpoint; the same command goes on.

    \b
    Example:
      foveate captioner train captioner-tour --collection my-images
      foveate captioner train captioner --collection mine 'data.short_kinds=[caption]' 'data.description_kinds=[story]'
    """
    from foveate.caption.small.recipe import CaptionerRecipe
    from foveate.core.recipes import load
    from foveate.records.collection import Collection

    overrides_given = {"training.seed": seed, "training.precision": precision, "training.workers": workers}
    extra = [f"{field}={value}" for field, value in overrides_given.items() if value is not None]
    resolved = load(CaptionerRecipe, recipe, [*overrides, *extra])
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
        split=split,
        limit=limit,
        with_evaluation=not no_evaluation,
    )
    if not done.is_main:
        return
    if done.model_folder is None:
        finish(done.result.to_json(), ["stopped; run the same command to resume"], {"run": target}, as_json=as_json)
        sys.exit(130)
    paths = {"run": target, "model": done.model_folder, "report": render(target)}
    finish(done.result.to_json(), _trained_lines(done.result.to_json()), paths, as_json=as_json)


@command.command("evaluate", short_help="Measure a captioner on held-out images.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--collection", type=click.Path(path_type=Path), required=True, help="Collection folder.")
@click.option("--split", default="test", show_default=True, help="Split whose images are captioned.")
@click.option("--limit", type=click.IntRange(1), default=None, help="At most so many images, drawn by the seed.")
@click.option("--shuffled", is_flag=True, help="Control: caption each image from another one's features.")
@click.option(
    "--run", "run", type=click.Path(path_type=Path), default=Path("runs/captioner-evaluate"), show_default=True,
    help="Folder for the result and its page.",
)  # fmt: skip
@common()
def evaluate(
    model: Path,
    collection: Path,
    split: str,
    limit: int | None,
    shuffled: bool,
    run: Path,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Captions held-out images in all formats: do answers obey, do lengths rise, and on scenes, how much holds?

    \b
    Example:
      foveate captioner evaluate runs/captioner-captioner-tour/model --collection my-images --limit 300
    """
    from foveate.caption.small.runs import evaluate_folder
    from foveate.records.collection import Collection
    from foveate.report import render

    result = evaluate_folder(
        model,
        Collection.open(collection),
        run,
        split=split,
        limit=limit,
        seed=seed or 0,
        device=device,
        command=["foveate", *sys.argv[1:]],
        shuffled=shuffled,
    ).to_json()
    finish(result, _table_lines(result["evaluation"]), {"run": run, "report": render(run)}, as_json=as_json)


@command.command("serve", short_help="Serve a captioner to OpenAI clients.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=8009, show_default=True, help="0 = any free one.")
@click.option("--name", default=None, help="Name of the model in requests; foveate-captioner by default.")
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Captions at a time.")
@click.option("--key", envvar="FOVEATE_API_KEY", default="", help="Key that clients must send; FOVEATE_API_KEY.")
@click.option("--port-file", type=click.Path(path_type=Path), help="File that will hold the port once it listens.")
@click.option(
    "--device", default=None, metavar="NAME", help="cpu, cuda, cuda:1 or mps; CUDA where there is one by default."
)
@json_option
@quiet_option
def serve(
    model: Path,
    host: str,
    port: int,
    name: str | None,
    batch: int,
    key: str,
    port_file: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Answers POST /v1/chat/completions like OpenAI's API, until Ctrl-C. Images come as data URLs.

    \b
    Example:
      foveate captioner serve runs/captioner-captioner-tour/model --port 8009
    """
    from foveate.caption.small.folder import load_captioner
    from foveate.caption.small.serving import serve as run_server

    captioner = load_captioner(model, device=device)
    served = name or "foveate-captioner"

    def ready(listening_port: int) -> None:
        address = f"http://{host}:{listening_port}/v1"
        lines = [f"model {served}, revision {captioner.revision}", f"listening on {address}; Ctrl-C stops"]
        finish({"address": address, "model": served, "revision": captioner.revision}, lines, {}, as_json=as_json)
        sys.stdout.flush()

    run_server(captioner, host=host, port=port, model=served, batch=batch, key=key, ready=ready, port_file=port_file)


def _trained_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{name}: {stage['steps']} updates in {stage['seconds']:.0f} s, {stage['images']} images"
        for name, stage in result["stages"].items()
    ]
    return lines + _table_lines(result.get("evaluation"))


def _table_lines(evaluation: dict[str, Any] | None) -> list[str]:
    lines = []
    for row in (evaluation or {}).get("table", []):
        values = ", ".join(f"{kind} {value['value']:.3f}" for kind, value in row["values"].items())
        lines.append(f"{row['question']}, {row['data']}: {values}, n {row['n']}")
    return lines
