"""The commands of `foveate adapt`: train, compare, interpolate, use and hand on what was tuned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, F, common, path_option, run_option, split_names
from foveate.cli.recipe_call import RecipeCall, recipe_command

if TYPE_CHECKING:
    from foveate.adapt.results import PredictResult


# Options that several commands of `foveate adapt` share.


SETTINGS = "foveate.adapt.recipe"

moved_option = click.option(
    "--backbone", default=None, metavar="FOLDER|KIND:NAME", help="New path of the backbone, if it was moved."
)


def backbone_option(*, required: bool) -> Callable[[F], F]:
    """Add --backbone; a recipe may name the network instead where it is not required."""
    return click.option(
        "--backbone",
        required=required,
        metavar="FOLDER|KIND:NAME",
        help="Model folder of Foveate, timm, transformers or open_clip; or timm:NAME.TAG, torchvision:NAME, lite0.",
    )


modules_option = click.option(
    "--modules",
    multiple=True,
    metavar="ROLE=PATTERN",
    help="Names of modules that methods change, such as qkv='blocks.*.attn.qkv'; repeatable, for other networks.",
)


# `foveate adapt train`: train an adapter on labeled images.


@click.command("train", cls=FieldsCommand, short_help="Train an adapter on labeled images.")
@recipe_command(
    "runs/adapt-METHOD",
    dry_run="Print what would be trained and the estimated time; train and write nothing.",
    collection="Collection; or a folder per class, a CSV table (image, label), an npz file (images, labels, split).",
    optional=True,
)
@backbone_option(required=False)
@modules_option
@click.option("--method", metavar="NAME", help="Method name, such as lora; an unknown name prints the list.")
@fields(
    "foveate.adapt.recipe:AdaptRecipe",
    "data.field",
    "data.task",
    "data.shots",
    "training.epochs",
    ("head", "--head-from"),
    "training.head_init",
    "keep",
    metavars={"head": "FOLDER"},
)
def train_command(
    call: RecipeCall, settings: dict[str, Any], backbone: str | None, modules: tuple[str, ...], method: str | None
) -> None:
    """Train a method on the images of --collection; write an adapter folder and its accuracy on held-out splits.

    RECIPE is a YAML file, such as the recipe.yaml of an earlier run; without one, --backbone and --method say what is
    trained. FIELD=VALUE changes single fields: of the method (rank=16), or of data, training and backbone
    (training.learning_rate=0.01). Ctrl-C or SIGTERM stops after a checkpoint; the same command resumes.

    \b
    Example:
      foveate adapt train --backbone my-vit --collection my-images --field category --method lora rank=16
      foveate adapt train --backbone lite0 --collection folder-per-class --method linear
      foveate adapt train --backbone my-vit --collection tags.csv --task multi-label --method lora
      foveate adapt train --backbone timm:resnet50.a1_in1k --collection mine.npz --method bitfit --shots 10
      foveate adapt train runs/adapt-lora/recipe.yaml rank=4 --collection my-images --out runs/adapt-lora-4
    """
    from foveate.adapt.load_backbone import parse_backbone
    from foveate.adapt.recipe import build_recipe

    content = call.read()
    call.require(content, backbone=backbone, method=method)
    network = None if backbone is None else parse_backbone(backbone, modules)
    recipe = build_recipe(network, method, call.overrides, content=content, **call.options(settings))
    data = str(call.data)
    if call.dry_run:
        from foveate.adapt.estimate import estimate_training
        from foveate.training.price import format_price

        priced = estimate_training(recipe, data, device=call.device)
        call.finish(priced.to_json(), format_price(priced))
        return
    from foveate.adapt.train import train_adapter
    from foveate.report.render import render_and_tell

    target = call.run or Path("runs") / f"adapt-{recipe.method['method']}"
    outcome = train_adapter(recipe, data, target, device=call.device, command=call.command)
    # Under torchrun every process gets here; only one prints and writes the page.
    if not outcome.is_main:
        return
    result = outcome.result
    if outcome.folder is None:
        call.stop(result.to_json(), target, step=result.steps)
    report, lines = render_and_tell(target)
    paths = {"run": target, "adapter": outcome.folder, "report": report}
    if result.absent:
        lines.append("features alone: not measured, since a linear probe needs training images of every class")
    # Tuning lowers the logits of classes that it never saw, which a calibration with these files undoes.
    if result.absent and (target / "logits-test.npz").is_file():
        lines.append(
            f"{len(result.absent)} classes had no training image; bring them back: foveate calibrate "
            f"{target}/logits-test.npz --training {target}/logits-training.npz --classes-seen @{target}/seen.txt "
            f"--out {target}/calibration"
        )
    call.finish(result.to_json(), lines, paths)


# `foveate adapt compare`: compare methods on your own tasks.


@click.command("compare", cls=FieldsCommand, short_help="Compare methods on your own tasks.")
@recipe_command(
    "runs/adapt-compare",
    dry_run="Print the number of training runs and epochs, and the estimated time; train and write nothing.",
    collection=None,
    optional=True,
    workers=False,
)
@backbone_option(required=False)
@modules_option
@click.option(
    "--tasks",
    "tasks",
    multiple=True,
    metavar="[[GROUP/]NAME=]PATH[:FIELD]",
    help="Collection, npz file, VTAB-1K task, or a folder of such tasks. Repeatable.",
)
@fields(
    "foveate.adapt.compare.recipe:CompareRecipe",
    "methods",
    "grid",
    "folds",
    "seeds",
    "budget",
    "peek",
    repeat=("methods",),
    metavars={"methods": "NAMES"},
)
@fields(f"{SETTINGS}:CompareTasks", "shots", "epochs", into="task_settings", repeat=("shots",))
@fields(f"{SETTINGS}:CompareRun", "max_hours", "save_adapters", into="run_settings")
def compare_command(
    call: RecipeCall,
    backbone: str | None,
    modules: tuple[str, ...],
    tasks: tuple[str, ...],
    settings: dict[str, Any],
    task_settings: dict[str, Any],
    run_settings: dict[str, Any],
) -> None:
    """Try each method's candidates on validation images, train the best again on all, and test it once.

    RECIPE is a YAML file, such as the recipe.yaml of an earlier comparison; without one, --backbone and --tasks are
    needed. FIELD=VALUE changes fields of the recipe (validation=val, share=0.3) or of all trainings
    (training.batch_size=32). Ctrl-C or a kill loses nothing that is finished; the same command resumes. It may run
    several times at once.

    \b
    Example:
      foveate adapt compare --backbone my-vit --tasks mine=my-images:category --methods all
      foveate adapt compare --backbone timm:vit_base_patch16_224.augreg_in21k --tasks vtab-1k --grid vtab1k --dry-run
    """
    from foveate.adapt.compare.bench import Stopped
    from foveate.adapt.compare.comparison import Comparison
    from foveate.adapt.compare.recipe import build_recipe, parse_tasks
    from foveate.adapt.compare.run import compare
    from foveate.adapt.load_backbone import parse_backbone
    from foveate.adapt.recipe import CompareRun
    from foveate.training.price import format_price

    content = call.read()
    call.require(content, backbone=backbone, tasks=tasks)
    # The grid has its own number of epochs, so only what was given goes into the recipe.
    training = {name: value for name, value in task_settings.items() if name == "epochs"}
    recipe = build_recipe(
        None if backbone is None else parse_backbone(backbone, modules),
        parse_tasks(tasks, task_settings.get("shots", ())) if tasks else (),
        call.overrides,
        content=content,
        training=training,
        seed=call.seed,
        **settings,
    )
    if call.dry_run:
        priced = Comparison(recipe).estimate(device=call.device or "auto")
        call.finish(priced.to_json(), format_price(priced))
        return
    from foveate.report.render import render_and_tell

    target = call.run or Path("runs") / "adapt-compare"
    checked = call.check(CompareRun, run_settings)
    try:
        result = compare(recipe, target, checked, device=call.device, command=call.command)
    except Stopped:
        call.stop({"status": "stopped"}, target)
    report, lines = render_and_tell(target)
    paths = {"run": target, "report": report}
    call.finish(result.to_json(), lines, paths)


# `foveate adapt wise`: interpolate between a network and its tuned version.


@click.command("wise", cls=FieldsCommand, short_help="Interpolate between a network and its tuned version.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, metavar="PATH[:FIELD]", help="In-distribution data with a validation and a test split."
)
@click.option(
    "--shifted", multiple=True, metavar="NAME=PATH[:FIELD]", help="Data under distribution shift. Repeatable."
)
@fields(f"{SETTINGS}:WiseSettings", "validation", "test", "points", "head", "at")
@path_option("--adapter-out", "Write the model at this alpha as an adapter to this folder.")
@moved_option
@run_option("runs/adapt-wise")
@common(seed=False)
def wise_command(
    call: Call,
    adapter: Path,
    data: str,
    shifted: tuple[str, ...],
    settings: dict[str, Any],
    adapter_out: Path | None,
    backbone: str | None,
) -> None:
    """Measure ADAPTER (a folder of `adapt train`, or its run folder) at alphas from 0, the original network, to 1.

    Prints the accuracy on own and shifted data at each alpha and recommends one, chosen on validation images alone.

    \b
    Example:
      foveate adapt wise runs/adapt-full --data my-images:category --shifted sketches=sketches:category
      foveate adapt wise runs/adapt-lora --data mine.npz --shifted night=night.npz --adapter-out robust
    """
    from foveate.adapt.compare.recipe import parse_task
    from foveate.adapt.recipe import WiseSettings
    from foveate.adapt.wise import measure_robustness
    from foveate.report.render import render_and_tell

    # Settings hold what the user gave: --at with its own default would otherwise count as given.
    if "at" in settings and adapter_out is None:
        raise click.UsageError("--at has no effect without --adapter-out")
    target = call.run or Path("runs") / "adapt-wise"
    result = measure_robustness(
        adapter,
        parse_task(data, what="--data"),
        target,
        call.check(WiseSettings, settings),
        shifted=[parse_task(text, what="--shifted") for text in shifted],
        to=adapter_out,
        backbone=backbone,
        device=call.device,
        command=call.command,
    )
    report, lines = render_and_tell(target)
    paths = {"run": target, "report": report, **({} if adapter_out is None else {"adapter": adapter_out})}
    call.finish(result.to_json(), lines, paths)


# `foveate adapt predict`: classify images with a tuned model.


_MAX_LISTED = 10  # classes and unreadable images that are printed


@click.command("predict", cls=FieldsCommand, short_help="Classify images with a tuned model.")
@click.argument("tuned", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@path_option("--out", "CSV file of the predictions, one row per image; replaced if it exists.", required=True)
@path_option("--page", "Folder of a page with a contact sheet by class; none by default.")
@fields(f"{SETTINGS}:PredictSettings", "top", "each_class", "gamma", "calibration", metavars={"calibration": "FOLDER"})
@moved_option
@common(seed=False)
def predict_command(
    call: Call,
    tuned: Path,
    images: tuple[Path, ...],
    out: Path,
    page: Path | None,
    settings: dict[str, Any],
    backbone: str | None,
) -> None:
    """Classify IMAGES (files, folders, collections) with RUN and write their classes, labels or values.

    RUN is a run folder of `adapt train`, an adapter folder, or a classifier folder that `adapt merge` or `calibrate`
    wrote. With a calibration the answers are written without and with it. Images that cannot be read have a reason
    instead of a class.

    \b
    Example:
      foveate adapt predict runs/adapt-lora photos --out answers.csv
      foveate adapt predict runs/adapt-lora photos --out answers.csv --page sheet
      foveate adapt predict runs/adapt-lora photos --out answers.csv --top 3 --each-class
      foveate adapt predict runs/adapt-full a.jpg b.jpg --calibration runs/calibrate --out answers.csv --json
    """
    from foveate.adapt.predictor import open_adapter, predict_files
    from foveate.adapt.recipe import PredictSettings

    checked = call.check(PredictSettings, settings)
    predictor = open_adapter(
        tuned, device=call.device, backbone=backbone, gamma=checked.gamma, calibration=checked.calibration
    )
    columns = {"top": checked.top, "each_class": checked.each_class}
    result = predict_files(predictor, images, out, **columns, page=page, command=call.command)
    paths = {"answers": out}
    if page is not None:
        from foveate.report.render import render

        paths["page"] = render(page)
    call.finish(result.to_json(), _format_predictions(result), paths)


def _format_predictions(result: PredictResult) -> list[str]:
    counts = sorted(result.counts.items(), key=lambda pair: -pair[1])
    common_classes = [f"{name} {count}" for name, count in counts if count][:_MAX_LISTED]
    more = sum(count > 0 for _, count in counts) - len(common_classes)
    lines = [f"{result.images} images: {', '.join(common_classes)}" + (f" and {more} more classes" if more else "")]
    if result.values is not None:
        least, mean, largest = result.values
        values = f"values from {least:.4g} to {largest:.4g}, mean {mean:.4g}"
        lines = [f"{result.images} images: {values} {result.unit}".rstrip()]
    if result.gamma is not None:
        lines.append(f"gamma {result.gamma:+.4f} changes the class of {result.changed} images")
    if result.ignored_files:
        lines.append(f"{result.ignored_files} files in the folders are no images and were ignored")
    if result.unreadable:
        lines.append(f"{len(result.unreadable)} images cannot be read; they have a reason and no class:")
        lines += [f"  {name}: {reason}" for name, reason in list(result.unreadable.items())[:_MAX_LISTED]]
    if len(result.unreadable) > _MAX_LISTED:
        lines.append(f"  and {len(result.unreadable) - _MAX_LISTED} more, in column error of the file")
    return lines


# `foveate adapt merge`: merge an adapter into its backbone.


@click.command("merge", cls=FieldsCommand, short_help="Merge an adapter into its backbone's weights.")
@click.argument("adapter", type=click.Path(path_type=Path))
@path_option("--out", "Folder of the result; must be empty.", required=True)
@fields(f"{SETTINGS}:MergeSettings", "format")
@moved_option
@common(seed=False, device=False)
def merge_command(call: Call, adapter: Path, out: Path, settings: dict[str, Any], backbone: str | None) -> None:
    """Merge ADAPTER (a folder of `adapt train`, or its run folder) and write the model in its backbone's own format.

    Refused with the reason where no weights of the backbone can do what the method does. Prints the largest
    difference of outputs: for timm, transformers and model folders of the model loaded again with its library.

    \b
    Example:
      foveate adapt merge runs/adapt-lora --out merged
      foveate adapt merge runs/adapt-lora --out for-peft --format peft
    """
    from foveate.adapt.export import merge_adapter
    from foveate.adapt.recipe import MergeSettings

    form = MergeSettings(**settings).format
    result = merge_adapter(adapter, out, format=form, backbone=backbone)
    network = result.backbone.get("source") or result.backbone.get("model")
    lines = [f"{result.method} on {':'.join(filter(None, (result.backbone['kind'], network)))}, as {form}"]
    if result.difference is not None:
        lines.append(f"largest difference of outputs: {result.difference:.3g}")
    call.finish(result.to_json(), lines, {"model": out})


# `foveate adapt import-peft`: make an adapter folder of a LoRA adapter of PEFT.


@click.command("import-peft", short_help="Make an adapter folder of a LoRA adapter of PEFT.")
@click.argument("folder", type=click.Path(path_type=Path))
@backbone_option(required=True)
@modules_option
@path_option("--out", "Folder of the adapter; must be empty.", required=True)
@click.option(
    "--classes",
    multiple=True,
    metavar="NAMES",
    help="Class names of the head, with commas, or @FILE with one a line; where FOLDER has none. Repeatable.",
)
@common(seed=False, device=False)
def import_peft_command(
    call: Call, folder: Path, backbone: str, modules: tuple[str, ...], out: Path, classes: tuple[str, ...]
) -> None:
    """Read FOLDER, a LoRA adapter that PEFT wrote for the network --backbone, and write it as an adapter folder.

    From there on it is one like those of `adapt train`: predict, merge, wise, or train on from its head. PEFT keeps no
    digest of the network, so that --backbone has the weights it was trained on is not checked.

    \b
    Example:
      foveate adapt import-peft my-lora --backbone my-vit --out imported
      foveate adapt import-peft my-lora --backbone my-vit --classes oak,beech --out imported
    """
    from foveate.adapt import export

    result = export.import_peft(folder, out, backbone=backbone, classes=split_names(classes), modules=modules)
    lines = [
        f"{result.method}: {result.parameters.trained:,} of {result.parameters.backbone:,} parameters, matched "
        f"{result.matched}; a head of {len(result.classes)} classes"
    ]
    call.finish(result.to_json(), lines, {"adapter": out})
