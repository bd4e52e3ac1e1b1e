"""`foveate adapt train`: backbone, method and labeled images in; adapter, page and numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.adapt.calibration.logit_files import write_logits
from foveate.adapt.data import ImageDataset, KeptDataset, Labeled, labeled
from foveate.adapt.folder import adapter_folder, read_config, read_head
from foveate.adapt.load_backbone import Opened, open_backbone
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.parameter_summary import backbone_numbers, grouped, trained_numbers
from foveate.adapt.prefix import Prefix
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.training import AdaptTask, normalized, train_adapted
from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.progress import say, track
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.metrics.classification import class_accuracies
from foveate.metrics.intervals import bootstrap_interval
from foveate.records.images import BadImage
from foveate.training.distributed import barrier, start
from foveate.training.loader import Loader


def price(recipe: AdaptRecipe, data: str | Path) -> dict[str, Any]:
    """Numbers trained, updates, visits, and what is computed once; nothing is trained or written."""
    opened = open_backbone(recipe.backbone, seed=recipe.training.seed)
    images = labeled(data, recipe.data, opened.preprocess)
    rows = training_rows(recipe, images)
    settings = recipe.training.resolved(len(rows))
    adapted = build(recipe, opened, images, rows)
    body, head = trained_numbers(adapted)
    prefix = Prefix(adapted)
    kept = recipe.training.keep and not recipe.training.flip
    return {
        "method": recipe.method["method"],
        "classes": len(images.classes),
        "images": len(rows),
        "updates": settings.steps,
        "visits": settings.steps * settings.batch_size,
        "trained": body,
        "head": head,
        "backbone": backbone_numbers(adapted),
        "kept": prefix.describe() if kept else "nothing: training.keep is off or images are mirrored",
        "optimizer_bytes": 8 * (body + head),
    }


def lines(priced: dict[str, Any]) -> Sequence[str]:
    """The same in words."""
    return [
        f"{priced['method']}: {priced['trained']:,} of {priced['backbone']:,} numbers and a head of {priced['head']:,}",
        f"{priced['images']} training images of {priced['classes']} classes, {priced['updates']} updates, "
        f"{priced['visits']:,} visits",
        f"computed once: {priced['kept']}",
        f"AdamW's moments: {priced['optimizer_bytes'] / 2**20:.1f} MiB",
    ]


BATCH = 64
# What may be kept of all training images together.
MOST_BYTES = 4 * 2**30
_FREE = ("training.log_every", "training.checkpoint_every", "training.workers")


@dataclass
class Adapted:
    """What `train_adapter` leaves; `folder` is None where the run was stopped, and on other ranks."""

    run: RunFolder
    result: dict[str, Any]
    folder: Path | None
    is_main: bool = True


def build(recipe: AdaptRecipe, opened: Opened, data: Labeled, rows: NDArray[np.int64]) -> AdaptedModel:
    """The adapted model before training on `rows`; the same seed gives the same first values."""
    for sentence in recipe.training.without_effect(recipe.training.model_fields_set):
        say(sentence)
    head, seen = None, [data.trained_on(rows)]
    if recipe.head is not None:
        start = adapter_folder(Path(recipe.head))
        head = read_head(start, data.classes)
        before = read_config(start)["info"].get("trained_on")  # None in adapters of earlier versions
        seen = None if before is None else seen + [one for one in before if one not in seen]
    adapted = adapt(opened.model, recipe.method, classes=len(data.classes), head=head, seed=recipe.training.seed)
    adapted.info["default"] = {
        "classes": list(data.classes),
        "backbone": opened.settings,
        "model_args": opened.model_args,
        "preprocess": opened.preprocess.to_dict(),
        **({} if seen is None else {"trained_on": seen}),
    }
    return adapted


def training_rows(recipe: AdaptRecipe, data: Labeled) -> NDArray[np.int64]:
    """The images that are trained on; a head that was trained before may know classes that none of them has.

    Raises:
        UserError: when a class has no image, and nothing knows it either.
    """
    pool = data.rows(*recipe.data.train)
    absent = data.absent(pool)
    if absent and recipe.head is None:
        raise UserError(
            f"{data.name}: class '{absent[0]}' has no training image ({len(absent)} such classes); leave them out "
            "with data.classes, or start from a head that knows them with --head-from"
        )
    if absent:
        say(
            f"{len(absent)} of {len(data.classes)} classes have no training image (first '{absent[0]}'): tuning "
            "lowers their logits, and `foveate calibrate` finds by how much"
        )
    return data.few(pool, recipe.data.shots, seed=recipe.training.seed, some_absent=True)


def train_adapter(
    recipe: AdaptRecipe,
    data: str | Path,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    evaluate: bool = True,
) -> Adapted:
    """Trains an adapter; the same call again goes on where it was stopped.

    Raises:
        UserError: when recipe, backbone and data do not fit, or the run folder holds another run.
    """
    with start(device or "auto") as here:
        opened = open_backbone(recipe.backbone, seed=recipe.training.seed, drop_path=recipe.training.drop_path)
        images = labeled(data, recipe.data, opened.preprocess)
        rows = training_rows(recipe, images)
        absent = images.absent(rows)
        settings = recipe.training.resolved(len(rows))
        adapted = build(recipe, opened, images, rows)
        run = RunFolder(run_path)
        if here.is_main:
            run = RunFolder.create(run_path, command=command, recipe=dump(recipe), free=_FREE)
        barrier()
        adapted.to(here.device)
        prefix, bad = None, dict[int, str]()
        dataset: Any = ImageDataset(images, flip=recipe.training.flip)
        if recipe.training.keep and not recipe.training.flip:
            prefix = Prefix(adapted)
            kept = None if prefix.where == "nothing" else keep(prefix, opened, images, rows, here.device, bad)
            if kept is None:
                prefix = None
            else:
                dataset = KeptDataset(kept, images, bad)
        if prefix is not None:
            say(f"computed once: {prefix.describe()}")
        loader = Loader(
            dataset,
            rows=rows,
            batch_size=settings.batch_size,
            seed=settings.seed,
            workers=settings.workers,
            rank=here.rank,
            world_size=here.size,
        )
        decay = recipe.training.weight_decay if recipe.training.decay == "all" else None
        factor = recipe.training.factor(len(rows))
        task = AdaptTask(adapted, preprocess=opened.preprocess, prefix=prefix, decay=decay, factor=factor)
        outcome = train_adapted(task, loader, settings, run)
        body, head = trained_numbers(adapted)
        result: dict[str, Any] = {
            "kind": "adapt",
            "title": f"{recipe.method['method']} on {_name(opened.settings)}",
            "status": outcome.status,
            "recipe": recipe.model_dump(mode="json"),
            "command": command,
            "data": images.name,
            "classes": list(images.classes),
            "absent": absent,
            "images": len(rows),
            "kept": "nothing" if prefix is None else prefix.describe(),
            "steps": outcome.step,
            "seconds": round(outcome.seconds, 1),
            "curves": "metrics.jsonl",
            "parameters": {"trained": body, "head": head, "backbone": backbone_numbers(adapted)},
            "places": grouped(adapted.adapter().places(adapted.view)),
            "bad_samples": outcome.bad_samples,
            "revision": code_revision(),
            "evaluation": None,
        }
        folder = None
        if outcome.status == "finished" and here.is_main:
            folder = adapted.save(run.path / "adapter")
            result["adapter"] = "adapter/"
            if evaluate:
                result["evaluation"] = _measure(adapted.eval(), recipe, opened, images, run.path)
                if absent:
                    _write(adapted, opened, images, rows, run.path / "logits-training.npz", what="training images")
                    seen = [name for name in images.classes if name not in absent]
                    write_text_atomically(run.path / "seen.txt", "".join(f"{name}\n" for name in seen))
        if here.is_main:
            run.write_result(result)
    return Adapted(run, result, folder, here.is_main)


def _name(settings: dict[str, Any]) -> str:
    """A backbone in a word or two: the name of its folder or architecture, else its kind."""
    source = settings.get("source")
    return Path(source).name if source else str(settings.get("model") or settings["kind"])


def batches(
    opened: Opened, data: Labeled, rows: NDArray[np.int64], device: torch.device, bad: dict[int, str], *, what: str
) -> Iterator[tuple[list[int], Tensor]]:
    """Readable images, normalized, with their numbers; the reasons of the others go into `bad`."""
    starts = range(0, len(rows), BATCH)
    for begin in track(starts, description=what):
        good, pixels = [], []
        for row in rows[begin : begin + BATCH].tolist():
            try:
                pixels.append(data.image(row, False))
                good.append(row)
            except BadImage as problem:
                bad[row] = str(problem)
        if good:
            yield good, normalized(opened.preprocess, torch.stack(pixels).to(device))


def keep(
    prefix: Prefix,
    opened: Opened,
    data: Labeled,
    rows: NDArray[np.int64],
    device: torch.device,
    bad: dict[int, str],
) -> dict[int, Tensor] | None:
    """What `prefix` keeps of each image, on the CPU; None where all of it would not fit into `MOST_BYTES`."""
    kept: dict[int, Tensor] = {}
    for good, pixels in batches(opened, data, rows, device, bad, what="computing what is frozen"):
        found = prefix.compute(pixels).cpu()
        needed = found[0].numel() * found.element_size() * len(rows)
        if needed > MOST_BYTES:
            say(f"what is frozen would take {needed / 2**30:.0f} GiB: it is computed at every epoch instead")
            return None
        kept.update(zip(good, found, strict=True))
    return kept


@torch.no_grad()
def logits_of(
    adapted: AdaptedModel, opened: Opened, data: Labeled, rows: NDArray[np.int64], *, what: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of readable images and their logits [N, K]."""
    device = next(iter(adapted.view.parameters_of_tower().values())).device
    good, found, bad = [], [], dict[int, str]()
    for part, pixels in batches(opened, data, rows, device, bad, what=what):
        good += part
        found.append(adapted(pixels).float().cpu().numpy())
    if bad:
        say(f"{len(bad)} images could not be read and were left out, for example: {next(iter(bad.values()))}")
    if not good:
        raise UserError(f"{data.name}: no image could be read")
    return np.array(good, dtype=np.int64), np.concatenate(found)


def _write(
    adapted: AdaptedModel, opened: Opened, data: Labeled, rows: NDArray[np.int64], path: Path, *, what: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `logits_of`, and writes a file that `foveate calibrate` reads."""
    rows, logits = logits_of(adapted, opened, data, rows, what=f"measuring {what}")
    write_logits(path, logits=logits, labels=data.labels_N[rows], class_names=list(data.classes))
    return rows, logits


def _measure(adapted: AdaptedModel, recipe: AdaptRecipe, opened: Opened, data: Labeled, folder: Path) -> dict[str, Any]:
    """Accuracy on the held-out splits that are there; logits go into the run folder."""
    table: list[dict[str, Any]] = []
    for split in dict.fromkeys((recipe.data.validation, recipe.data.test)):
        if not data.has(split) or split in recipe.data.train:
            continue
        path = folder / f"logits-{split}.npz"
        rows, logits = _write(adapted, opened, data, data.rows(split), path, what=f"on {split}")
        labels = data.labels_N[rows]
        right = logits.argmax(axis=1) == labels
        interval = bootstrap_interval(right.astype(float), seed=("adapt", split))
        classes = class_accuracies(logits.argmax(axis=1), labels)
        chance = float(np.bincount(labels).max() / len(labels))
        for question, value in (
            ("Which class? (accuracy)", {"value": interval.value, "low": interval.low, "high": interval.high}),
            ("Which class, each class alike? (mean of classes)", {"value": float(classes.accuracy_C.mean())}),
        ):
            alone = chance if "alike" not in question else 1 / len(data.classes)
            row = {"question": question, "data": split, "n": len(rows), "chance": alone}
            table.append({**row, "values": {"adapted": {"low": None, "high": None, **value}}})
    assert all(math.isfinite(row["values"]["adapted"]["value"]) for row in table)
    columns = [{"key": "adapted", "title": "adapted", "what": "the last epoch's model", "role": "ours"}]
    return {"columns": columns, "table": table}
