"""`foveate calibrate`: bring back the classes that fine-tuning did not see."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option, path_option, read_lines, run_option, split_names

if TYPE_CHECKING:
    from foveate.calibrate.run import Evidence
    from foveate.calibrate.settings import ModelData
    from foveate.core.runs import RunFolder

_FILE = click.Path(path_type=Path)
_AUGMENTATION = ("crop", "flip", "color", "gray", "randaugment", "erasing")
_VARIATION = ("label_smoothing", "mixup", "balanced")
_OF_PSEUDO_RUNS = ("learning_rate", "backbone_rate", "epochs", "batch_size", *_AUGMENTATION, *_VARIATION)
_SPLITS = ("train_split", "test_split")
_OF_MODELS = ("collection", "labels", *_SPLITS, "pseudo_splits", *_OF_PSEUDO_RUNS)
_OF_LOGITS = ("training", "checkpoint", "class_names")
_SETTINGS = "foveate.calibrate.settings"
# The public code's variants ("variant", "tie") are for comparisons with it: Python takes them.
_OF_GAMMA = ("method", "threshold", "pseudo_splits")
_OF_PCV = ("threshold", "pseudo", "pseudo_splits", *_OF_PSEUDO_RUNS)


@click.command("calibrate", cls=FieldsCommand, short_help="Restore the classes that fine-tuning did not see.")
@click.argument("source", type=_FILE)
@click.option(
    "--classes-seen",
    "seen",
    multiple=True,
    metavar="CLASSES",
    help="Classes of the fine-tuning data: names, numbers or ranges, with commas; @FILE has one per line. Repeatable. "
    "Those with a label in --training by default.",
)
@click.option("--classes-absent", "absent", multiple=True, metavar="CLASSES", help="All others by default.")
@path_option("--class-names", "File with one class name per line, if SOURCE has no column names.")
@path_option("--collection", "Collection that the model SOURCE was fine-tuned on.")
@click.option("--labels", metavar="FIELD", help="Label field of --collection with the classes.")
@fields(f"{_SETTINGS}:ModelData", *_SPLITS, into="splits")
@path_option("--before", "The pre-trained model, or its logits of the samples in SOURCE.")
@path_option("--training", "Logits of the fine-tuning data, for the average logit gap.")
@click.option("--pseudo", type=_FILE, multiple=True, help="Logits of a pseudo run; typically three. Repeatable.")
@fields(f"{_SETTINGS}:CalibrateSettings", *_OF_GAMMA, into="calibration")
@fields(
    f"{_SETTINGS}:FineTuneSettings",
    *(f"{'augmentation.' if name in _AUGMENTATION else ''}{name}" for name in _OF_PSEUDO_RUNS),
    into="fine_tuning",
)
@path_option("--checkpoint", "Checkpoint to calibrate, if SOURCE is a file of logits.")
@click.option("--head", metavar="MODULE", help="Name of the checkpoint's classifier, if it is not detected.")
@path_option("--checkpoint-out", "Path of the calibrated checkpoint; OUT/calibrated by default.")
@run_option("runs/calibrate")
@click.option("--force", is_flag=True, help="Write the calibrated checkpoint even if gamma lowers accuracy.")
@dry_run_option("Print the number of fine-tuning runs and steps; train and write nothing.")
@common()
def command(call: Call, source: Path, seen: tuple[str, ...], absent: tuple[str, ...], **options: Any) -> None:
    """Find gamma, the amount by which the logits of absent classes are too low, and measure its effect.

    SOURCE is a file of saved logits (.npz, .csv, .parquet, .npy, .safetensors or .pt, see the docs) or the folder of a
    fine-tuned classifier: ours, timm's or transformers'. A model is opened with the collection that it was fine-tuned
    on. Writes a page, a table and, where there is a checkpoint, a copy of it with gamma in the bias of its head.

    \b
    Example:
      foveate calibrate test-logits.csv --training train-logits.csv
      foveate calibrate tuned --before pretrained --collection my-images --labels species --classes-seen @seen.txt
    """
    from foveate.calibrate.run import calibrate
    from foveate.core.runs import RunFolder
    from foveate.report.render import render_and_tell

    on_model = source.is_dir()
    options |= {"seed": call.seed, "device": call.device}
    # None stands for "not given": some options are refused for some sources, whatever their value.
    options |= dict.fromkeys((*_OF_GAMMA, *_SPLITS)) | options.pop("calibration") | options.pop("splits")
    method = options["method"] or _implied_method(options)
    _check_options(options, seen=seen, method=method, on_model=on_model)
    target = call.run or Path("runs/calibrate")
    classes = {"seen": split_names(seen), "absent": split_names(absent)}
    if call.dry_run:
        plan = _plan(source, classes, options, method=method, on_model=on_model)
        call.finish(plan, [plan["sentence"]])
        return
    recipe = _recipe(source, classes, options)
    _refuse_other_run(target, recipe)
    if not any(target.glob("pseudo-*")):  # only the pseudo runs of a model depend on it
        (target / "recipe.yaml").unlink(missing_ok=True)
    folder = RunFolder.create(target, command=call.command, recipe=recipe if on_model else None)
    evidence = _evidence(source, classes, options, folder, method=method, on_model=on_model)
    named = {} if options["threshold"] is None else {"threshold": options["threshold"]}
    about = {"model": str(source), "data": str(options["collection"] or source)}
    calibrated = calibrate(evidence, folder, method=method, command=call.command, **named, **about)
    paths: dict[str, Path] = {"run": folder.path}
    result, of_checkpoint = calibrated.result, ""
    checkpoint = source if on_model else options["checkpoint"]
    # A checkpoint that answers worse than before would be used by whoever finds it.
    refused = bool(checkpoint is not None and result.harm and not options["force"])
    if refused:
        of_checkpoint = "no calibrated checkpoint was written; --force writes it"
    elif checkpoint is not None:
        folded = _fold(checkpoint, options, calibrated.gamma, evidence.groups, folder)
        result = result.model_copy(update={"checkpoint": str(folded.path)})
        folder.write_result(result.to_json())
        of_checkpoint = (
            f"gamma {calibrated.gamma:+.4f} is in {folded.tensor}; largest rounding {folded.largest_error:.1g}"
        )
        paths["calibrated"] = folded.path
    # Last: the page shows where the checkpoint went.
    paths["report"], lines = render_and_tell(folder.path)
    call.finish(result.to_json(), [*lines, *filter(None, [of_checkpoint])], paths)
    if refused:
        sys.exit(1)


def _implied_method(options: dict[str, Any]) -> str | None:
    """Return the method whose options were given, None where there are none: the numbers of classes then decide."""
    fine_tuning = options["fine_tuning"]
    for_runs = [name for name in ("threshold", "pseudo_splits") if options[name] is not None]
    return "pcv" if for_runs or fine_tuning else None


def _check_options(options: dict[str, Any], *, seen: tuple[str, ...], method: str | None, on_model: bool) -> None:
    """Refuse options of the other kind of source or the other method, and --collection and --labels apart."""
    fine_tuning = options["fine_tuning"]
    values = dict.fromkeys(_OF_PSEUDO_RUNS) | options | fine_tuning | fine_tuning.get("augmentation", {})
    for names, condition, reason in (
        (_OF_LOGITS, on_model, "where SOURCE is a folder"),
        (_OF_MODELS, not on_model, "where SOURCE is a file of logits"),
        (_OF_PCV, method in ("alg", "best_gap"), f"with --method {method}"),
        (("pseudo_splits", *_OF_PSEUDO_RUNS), bool(options["pseudo"]), "where pseudo runs are given with --pseudo"),
    ):
        # () is what click passes for a repeatable option that was not given.
        wrong = next((name for name in names if values[name] not in (None, ())), None) if condition else None
        if wrong is not None:
            raise click.UsageError(f"--{wrong.replace('_', '-')} has no effect {reason}")
    if on_model and not seen:
        raise click.UsageError("a model needs its seen classes: give --classes-seen")
    if on_model and (options["collection"] is None or options["labels"] is None):
        raise click.UsageError("a model needs its data: give --collection DIR and --labels FIELD")
    if not on_model and options["checkpoint_out"] is not None and options["checkpoint"] is None:
        raise click.UsageError("--checkpoint-out says where the calibrated checkpoint goes: give --checkpoint too")


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fine-tuning fields that the user set."""
    return options["fine_tuning"] | ({} if options["seed"] is None else {"seed": options["seed"]})


def _recipe(source: Path, classes: dict[str, list[str]], options: dict[str, Any]) -> str:
    """Write what pseudo runs in the run folder depend on, so that a folder of others is refused."""
    import yaml

    # `data` is the name that recipes of earlier runs have.
    names = {"data": "collection", **{name: name for name in ("labels", "train_split", "before", "pseudo_splits")}}
    data_options = {name: str(options[option]) for name, option in names.items()}
    recipe = {"model": str(source), **classes, **data_options, "fine_tuning": _settings(options)}
    return yaml.safe_dump(recipe, sort_keys=False)


def _refuse_other_run(target: Path, recipe: str) -> None:
    """Raise UserError if the folder holds a run of another kind, whose recipe and result this one would replace.

    Args:
        recipe: of this run; one of another kind has other fields.
    """
    import yaml

    from foveate.core.errors import UserError
    from foveate.core.files import read_json

    result_path, recipe_path = target / "result.json", target / "recipe.yaml"
    if result_path.is_file():
        path, result = result_path, read_json(result_path)
        same = isinstance(result, dict) and result.get("kind") == "calibrate"
    elif recipe_path.is_file():  # a run that was stopped has no result yet
        path = recipe_path
        try:
            saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            saved = None
        same = isinstance(saved, dict) and saved.keys() == yaml.safe_load(recipe).keys()
    else:
        return
    if not same:
        raise UserError(f"{target} holds a run of another kind (compare {path}); choose another folder with --out")


def _model_data(options: dict[str, Any]) -> ModelData:
    from foveate.calibrate.settings import ModelData

    splits = {name: options[name] for name in _SPLITS if options[name] is not None}
    return ModelData(collection=options["collection"], field=options["labels"], **splits)


def _evidence(
    source: Path,
    classes: dict[str, list[str]],
    options: dict[str, Any],
    folder: RunFolder,
    *,
    method: str | None,
    on_model: bool,
) -> Evidence:
    from foveate.calibrate.evidence import from_logits, from_model

    if not on_model:
        return from_logits(
            source,
            seen=classes["seen"],
            absent=classes["absent"],
            training=options["training"],
            before=options["before"],
            pseudo=options["pseudo"],
            class_names=[] if options["class_names"] is None else read_lines(options["class_names"]),
        )
    from foveate.calibrate.settings import FineTuneSettings

    return from_model(
        source,
        _model_data(options),
        folder,
        **classes,
        before=options["before"],
        method=method,
        pseudo=options["pseudo"],
        settings=FineTuneSettings(**_settings(options)),
        splits=options["pseudo_splits"] or 3,
        seed=options["seed"] or 0,
        device=options["device"],
    )


def _plan(
    source: Path, classes: dict[str, list[str]], options: dict[str, Any], *, method: str | None, on_model: bool
) -> dict[str, Any]:
    # Only pseudo runs train, and only the methods "pcv" and "all" make them.
    if not on_model or method not in ("pcv", "all") or options["pseudo"]:
        return {"kind": "plan", "fine_tunings": 0, "steps": 0, "sentence": "no fine-tuning: gamma comes from logits"}
    from foveate.calibrate.evidence import plan
    from foveate.calibrate.settings import FineTuneSettings

    settings = FineTuneSettings(**_settings(options))
    return plan(source, _model_data(options), settings, **classes, splits=options["pseudo_splits"] or 3)


def _fold(checkpoint: Path, options: dict[str, Any], gamma: float, groups: Any, folder: RunFolder) -> Any:
    """Write the calibrated checkpoint; one that the same run folder made before is replaced."""
    import shutil

    from foveate.calibrate.fold import fold

    target = options["checkpoint_out"]
    if target is None:
        target = folder.path / ("calibrated" if checkpoint.is_dir() else f"calibrated{checkpoint.suffix}")
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
    return fold(checkpoint, gamma=gamma, groups=groups, to=target, head=options["head"])
