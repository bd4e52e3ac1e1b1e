"""`foveate adapt train|merge|compare|wise`: tune a vision model with few parameters, and see which way is best."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish

if TYPE_CHECKING:
    from foveate.adapt.results import AdaptResult, ComparedResult, WiseResult


@click.group("adapt", short_help="Tune a vision model with few parameters.")
def command() -> None:
    """Adapts a trained vision network to classes of images: sixteen methods, or named parts of the network.

    \b
    Example:
      foveate adapt train --backbone my-vit --data my-images --field category --method lora
      foveate adapt merge runs/adapt-lora --to merged
      foveate adapt compare --backbone my-vit --tasks mine=my-images:category --methods all
    """


@command.command("train", cls=FieldsCommand, short_help="Train an adapter on labeled images.")
@click.argument("overrides", nargs=-1)
@click.option(
    "--backbone",
    required=True,
    metavar="FOLDER|KIND:NAME",
    help="Model folder of Foveate, timm, transformers or open_clip; or timm:NAME.TAG, lite0 and the like.",
)
@click.option("--data", required=True, metavar="PATH", help="Collection folder, or an npz of images, labels, split.")
@click.option("--method", required=True, metavar="NAME", help="Such as lora; an unknown one lists all.")
@fields("foveate.adapt.recipe:AdaptRecipe", "data.field", "data.shots", "training.epochs")
@click.option("--head-from", default=None, metavar="FOLDER", help="Adapter whose head this one starts from.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; runs/adapt-METHOD by default.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained and for how long; train and write nothing.")
@common()
def train(
    overrides: tuple[str, ...],
    settings: dict[str, Any],
    backbone: str,
    data: str,
    method: str,
    head_from: str | None,
    run: Path | None,
    dry_run: bool,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Trains METHOD on the images of --data and writes an adapter folder and its accuracy on held-out splits.

    OVERRIDES change single fields: of the method (rank=16), or of data, training and backbone
    (training.learning_rate=0.01). Ctrl-C or SIGTERM stops after a checkpoint; the same command resumes.

    \b
    Example:
      foveate adapt train --backbone my-vit --data my-images --field category --method lora rank=16
      foveate adapt train --backbone timm:resnet50.a1_in1k --data mine.npz --method bitfit --shots 10
    """
    from foveate.adapt.load_backbone import parse_backbone
    from foveate.adapt.recipe import build_recipe

    data_settings, training = settings.get("data", {}), settings.get("training", {})
    if seed is not None:
        training["seed"] = seed
    recipe = build_recipe(
        parse_backbone(backbone), method, overrides, head=head_from, data=data_settings, training=training
    )
    if dry_run:
        from foveate.adapt.train import estimate_training, format_estimate

        estimate = estimate_training(recipe, data)
        finish(estimate, format_estimate(estimate), {}, as_json=as_json)
        return
    from foveate.adapt.train import train_adapter
    from foveate.report import render

    target = run or Path("runs") / f"adapt-{method}"
    outcome = train_adapter(recipe, data, target, device=device, command=["foveate", *sys.argv[1:]])
    if not outcome.is_main:
        return
    result = outcome.result
    if outcome.folder is None:
        stopped = f"stopped at step {result.steps}; run the same command to resume"
        finish(result.to_json(), [stopped], {"run": target}, as_json=as_json)
        sys.exit(130)
    paths = {"run": target, "adapter": outcome.folder, "report": render(target)}
    lines = _format_training(result)
    if result.absent and (target / "logits-test.npz").is_file():
        lines.append(
            f"{len(result.absent)} classes had no training image; bring them back: foveate calibrate "
            f"{target}/logits-test.npz --training {target}/logits-training.npz --classes-seen @{target}/seen.txt"
        )
    finish(result.to_json(), lines, paths, as_json=as_json)


def _format_training(result: AdaptResult) -> list[str]:
    counts = result.parameters
    share = counts.trained / max(1, counts.backbone)
    lines = [
        f"{result.steps} steps in {result.seconds:.0f} s on {result.images} images; trained {counts.trained:,} of "
        f"{counts.backbone:,} parameters ({share:.2%}) and a head of {counts.head:,}; cached: {result.cached}"
    ]
    for row in [] if result.evaluation is None else result.evaluation.table:
        value = row.values["adapted"]
        if value is not None:
            interval = "" if value.low is None else f" ({value.low:.3f} to {value.high:.3f})"
            lines.append(f"{row.question}, {row.data}: {value.value:.3f}{interval}, n {row.n}")
    return lines


@command.command("merge", short_help="Put an adapter into its backbone's weights.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--to", "to", required=True, type=click.Path(path_type=Path), help="Folder of the merged model.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["merged", "peft"]),
    default="merged",
    show_default=True,
    help="merged: weights in the backbone's own format; peft: an adapter folder of PEFT, not merged.",
)
@click.option("--backbone", default=None, metavar="FOLDER|KIND:NAME", help="Where the backbone is now, if it moved.")
@common(seed=False, device=False)
def merge(adapter: Path, to: Path, form: str, backbone: str | None, as_json: bool) -> None:
    """Merges ADAPTER (a folder of `adapt train`, or its run folder) and writes the model in its backbone's own format.

    Refuses with the reason where no weights of the backbone can do what the method does. Prints the largest
    difference of outputs: for timm, transformers and model folders of the model loaded again with its library.

    \b
    Example:
      foveate adapt merge runs/adapt-lora --to merged
      foveate adapt merge runs/adapt-lora --to for-peft --format peft
    """
    from foveate.adapt.export import merge_adapter

    result = merge_adapter(adapter, to, format=form, backbone=backbone)
    network = result.backbone.get("source") or result.backbone.get("model")
    lines = [f"{result.method} on {':'.join(filter(None, (result.backbone['kind'], network)))}, as {form}"]
    if result.difference is not None:
        lines.append(f"largest difference of outputs: {result.difference:.3g}")
    finish(result.to_json(), lines, {"model": to}, as_json=as_json)


@command.command("compare", cls=FieldsCommand, short_help="Compare methods on one's own tasks.")
@click.argument("overrides", nargs=-1)
@click.option(
    "--backbone", required=True, metavar="FOLDER|KIND:NAME", help="As for `adapt train`; it is opened once for all."
)
@click.option(
    "--tasks",
    "tasks",
    required=True,
    multiple=True,
    metavar="[[GROUP/]NAME=]PATH[:FIELD]",
    help="Collection, npz file, VTAB-1K task, or a folder of such tasks; repeated for further ones.",
)
@click.option(
    "--methods", "methods", multiple=True, default=("all",), show_default=True, metavar="NAMES", help="Of the grid."
)
@fields("foveate.adapt.compare.recipe:CompareRecipe", "grid", "folds", "seeds", "budget", "peek")
@click.option(
    "--shots",
    multiple=True,
    type=click.IntRange(2),
    help="Images of each class to learn and choose from; repeatable.",
)
@click.option("--epochs", type=click.IntRange(1), default=None, help="Visits of each image; the grid's own by default.")
@click.option("--max-hours", type=float, default=24.0, show_default=True, help="Refuse what would take longer here.")
@click.option(
    "--save-adapters",
    is_flag=True,
    help="Keep the adapter of every final training; each has learnt from the validation images too.",
)
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; runs/adapt-compare by default.")
@click.option("--dry-run", is_flag=True, help="Print trainings, visits and time; train and write nothing.")
@common()
def compare(
    overrides: tuple[str, ...],
    backbone: str,
    tasks: tuple[str, ...],
    methods: tuple[str, ...],
    settings: dict[str, Any],
    shots: tuple[int, ...],
    epochs: int | None,
    max_hours: float,
    save_adapters: bool,
    run: Path | None,
    dry_run: bool,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Tries each method's candidates on validation images, trains the best again on all, and tests it once.

    OVERRIDES change fields of the recipe (validation=val, share=0.3) or of all trainings (training.batch_size=32).
    Ctrl-C or a kill loses nothing that is finished; the same command resumes. It may run several times at once.

    \b
    Example:
      foveate adapt compare --backbone my-vit --tasks mine=my-images:category --methods all
      foveate adapt compare --backbone timm:vit_base_patch16_224.augreg_in21k --tasks vtab-1k --grid vtab1k --dry-run
    """
    from foveate.adapt.compare.bench import Stopped
    from foveate.adapt.compare.comparison import Comparison
    from foveate.adapt.compare.pricing import format_cost
    from foveate.adapt.compare.recipe import build_recipe, parse_tasks
    from foveate.adapt.compare.run import compare
    from foveate.adapt.load_backbone import parse_backbone

    if seed is not None:
        settings["seed"] = seed
    recipe = build_recipe(
        parse_backbone(backbone),
        parse_tasks(tasks, shots),
        overrides,
        training={} if epochs is None else {"epochs": epochs},
        methods=list(methods),
        **settings,
    )
    if dry_run:
        cost = Comparison(recipe).estimate(device=device or "auto")
        finish(cost, format_cost(cost), {}, as_json=as_json)
        return
    from foveate.report import render

    target = run or Path("runs") / "adapt-compare"
    try:
        result = compare(
            recipe,
            target,
            device=device,
            command=["foveate", *sys.argv[1:]],
            max_hours=max_hours,
            save=save_adapters,
        )
    except Stopped:
        finish({"status": "stopped"}, ["stopped; run the same command to resume"], {"run": target}, as_json=as_json)
        sys.exit(130)
    paths = {"run": target, "report": render(target)}
    finish(result.to_json(), _format_comparison(result), paths, as_json=as_json)


def _format_comparison(result: ComparedResult) -> list[str]:
    lines = []
    for task in result.tasks:
        lines.append(f"{task.title}: {task.tested} test images, chance {task.chance:.3f}; {task.selection}")
        entries = [(line.variant, line.tasks[task.key]) for line in result.lines]
        for variant, entry in sorted(entries, key=lambda pair: 1.0 if pair[1].value is None else -pair[1].value):
            if entry.value is None:
                lines.append(f"  {variant:<14} did not converge")
                continue
            if len(entry.seeds) > 1 and entry.low is None:
                span = f" ({len(entry.seeds)} seeds, all equal)"
            else:
                span = "" if entry.low is None else f" ({entry.low:.3f} to {entry.high:.3f})"
            validation = "" if entry.validation is None else f"; validation {entry.validation:.3f}"
            candidate = f"; {entry.candidate}" if entry.candidate else ""
            best = "" if entry.best_epoch is None else f"; best epoch {entry.best_epoch:.3f} (peeks)"
            lines.append(f"  {variant:<14} {entry.value:.3f}{span}{validation}{best}{candidate}")
        if task.ensembles is not None:
            ensemble = task.ensembles
            short = len(ensemble.members) <= 4
            members = ", ".join(ensemble.members) if short else f"{ensemble.count} methods, without linear and full"
            members += ", the first seed of each" if task.seeds else ""
            lines.append(
                f"  ensemble of {members}: {ensemble.ensemble['logits']:.3f}, mean member "
                f"{ensemble.member['mean']:.3f}, best {ensemble.member['best']:.3f}; two of them disagree on "
                f"{ensemble.disagreement:.1%} of the images"
            )
    return lines


@command.command("wise", short_help="Models between a network and its tuned one.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="PATH[:FIELD]", help="Own data, with splits to choose by and test on.")
@click.option("--shifted", multiple=True, metavar="NAME=PATH[:FIELD]", help="Data of another kind; repeatable.")
@click.option("--validation", default="validation", show_default=True, help="Split by which alpha is chosen.")
@click.option("--test", default="test", show_default=True, help="Split that is only measured.")
@click.option("--points", type=click.IntRange(2, 101), default=11, show_default=True, help="Alphas from 0 to 1.")
@click.option(
    "--head",
    type=click.Choice(["auto", "interpolate", "keep"]),
    default="auto",
    show_default=True,
    help="keep: the tuned head at every alpha; auto: interpolated where it started from a trained one.",
)
@click.option("--at", type=click.FloatRange(0, 1), default=None, help="Alpha of what is written; the recommended one.")
@click.option("--to", type=click.Path(path_type=Path), default=None, help="Write the model at alpha as an adapter.")
@click.option("--backbone", default=None, metavar="FOLDER|KIND:NAME", help="Where the backbone is now, if it moved.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; runs/adapt-wise by default.")
@common(seed=False)
def wise(
    adapter: Path,
    data: str,
    shifted: tuple[str, ...],
    validation: str,
    test: str,
    points: int,
    head: str,
    at: float | None,
    to: Path | None,
    backbone: str | None,
    run: Path | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Measures ADAPTER (a folder of `adapt train`, or its run folder) at alphas from 0, the original network, to 1.

    Prints the accuracy on own and shifted data at each alpha and recommends one, chosen on validation images alone.

    \b
    Example:
      foveate adapt wise runs/adapt-full --data my-images:category --shifted sketches=sketches:category
      foveate adapt wise runs/adapt-lora --data mine.npz --shifted night=night.npz --to robust
    """
    from foveate.adapt.compare.recipe import parse_task
    from foveate.adapt.robustness import measure_robustness
    from foveate.report import render

    if at is not None and to is None:
        raise click.UsageError("--at has no effect without --to")
    target = run or Path("runs") / "adapt-wise"
    result = measure_robustness(
        adapter,
        parse_task(data, what="--data"),
        target,
        shifted=[parse_task(text, what="--shifted") for text in shifted],
        validation=validation,
        test=test,
        points=points,
        head=head,
        at=at,
        to=to,
        backbone=backbone,
        device=device,
        command=["foveate", *sys.argv[1:]],
    )
    paths = {"run": target, "report": render(target), **({} if to is None else {"adapter": to})}
    finish(result.to_json(), _format_curve(result), paths, as_json=as_json)


def _format_curve(result: WiseResult) -> list[str]:
    recommended = result.recommended
    titles = [image_set.title for image_set in result.sets]
    lines = [f"{result.method}: {result.rule}; the head is {result.head}", "  ".join(["alpha", *titles])]
    for number, alpha in enumerate(result.alphas):
        values = "  ".join(
            f"{image_set.accuracy[number].value:>{len(image_set.title)}.3f}" for image_set in result.sets
        )
        lines.append(f"{alpha:<5.3g}  {values}{'  <- recommended' if alpha == recommended.alpha else ''}")
    lines.append(f"recommended: alpha {recommended.alpha:g}, {recommended.rule}")
    if result.saved is not None:
        lines.append(f"written: the model at alpha {result.saved.alpha:g}")
    return lines
