"""One network on which candidates are trained one after the other; what is frozen is computed once for all of them.

```python
bench = Bench(opened, device="cpu")               # `opened`: foveate.adapt.load_backbone.Opened, or of a network in memory
fit = bench.fit(data, rows, {"method": "lora", "rank": 8}, AdaptTraining(epochs=60), folder=folder, measured=test_rows)
fit.logits, fit.labels                            # of `measured`, after the last epoch
```

The network itself is the same, bit for bit, after every fit. A fit that is stopped or killed goes on from its
checkpoint in `folder` when it is called again.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.adapt.compare.watching import WatchedTask
from foveate.adapt.data import ImageDataset, KeptDataset, Labeled
from foveate.adapt.heads import classes_of
from foveate.adapt.load_backbone import Opened, set_drop_path
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.parameter_summary import trained_numbers
from foveate.adapt.prefix import Prefix
from foveate.adapt.recipe import AdaptTraining
from foveate.adapt.training import AdaptTask, normalized, train_adapted
from foveate.core.errors import UserError
from foveate.core.progress import silent
from foveate.core.runs import RunFolder
from foveate.records.images import BadImage
from foveate.training.distributed import start
from foveate.training.loader import Loader
from foveate.training.task import Batch, Task


def update_bytes(task: Task, batch: Batch) -> int:
    """Bytes of the weights, their gradients, AdamW's two moments, and what one forward pass saves for the backward one.

    Each storage is counted once. Working memory of single operations and of the allocator is not in it.
    """
    weights = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in task.parameters()}
    trained = sum(value.numel() * value.element_size() for value in task.parameters() if value.requires_grad)
    saved: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    devices = [value.device for value in task.parameters() if value.is_cuda][:1]
    training = task.training
    task.train()
    with torch.random.fork_rng(devices=devices), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        losses, _ = task.losses(batch)
    del losses
    task.train(training)
    return sum(weights.values()) + 3 * trained + sum(saved.values())


BATCH = 64
PIXELS = ("pixels", 0)
Rows = NDArray[np.int64]
Place = tuple[str, int]


class Stopped(Exception):
    """A signal asked to stop; a checkpoint was written."""


@dataclass(frozen=True)
class Fit:
    """What training left.

    Attributes:
        logits: [N, K] of the measured rows that could be read, after the last epoch. labels: [N]. rows: [N].
        trained, head: numbers trained in the network and in the head.
        seconds: in the training loop. updates: of the weights.
        update_bytes: what one update holds: weights, gradients, moments, and what the forward pass saves.
        kept: in words, what of the network was computed once.
        unreadable: rows to learn from or to measure that could not be read.
        epochs: accuracy on the measured rows after each epoch; only where it was asked for, and it peeks.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    rows: Rows
    trained: int
    head: int
    seconds: float
    updates: int
    update_bytes: int
    kept: str
    unreadable: int = 0
    epochs: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """The share of measured images that is right."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())


class Bench:
    """A network that candidates take turns on.

    Args:
        opened: the network and how images become its pixels; images of floating-point values are taken as they are.
        most_bytes: of pixels and frozen tokens kept in memory; what does not fit is computed at every epoch.
    """

    def __init__(self, opened: Opened, *, device: str = "auto", most_bytes: int = 4 * 2**30) -> None:
        self.opened, self.device, self.most_bytes = opened, device, most_bytes
        with start(device) as here:
            opened.model.to(here.device)
        self._data: Labeled | None = None
        self._kept: dict[Place, dict[int, Tensor]] = {}
        self._bad: dict[int, str] = {}
        self._bytes = 0

    def fit(
        self,
        data: Labeled,
        rows: Rows,
        method: dict[str, Any],
        training: AdaptTraining,
        *,
        folder: Path,
        measured: Rows,
        memory: bool = False,
        peek: bool = False,
        save: Path | None = None,
        own_head: bool = False,
    ) -> Fit:
        """Trains one candidate on `rows` and gives the logits of `measured`.

        Args:
            method: `method` and its options. training: its seed decides first values, order and dropout.
            folder: of checkpoints; it is emptied at the end.
            memory: also measure what an update holds (one forward pass more).
            peek: also measure after every epoch.
            save: folder that the adapter is written into.
            own_head: start from the network's own classifier, which must be of these classes, not from a fresh head.

        Raises:
            UserError: an option that does not fit the network; TrainingError (one, too) when the loss is not finite.
            Stopped: after a signal.
        """
        with silent(), start(self.device) as here:
            if training.drop_path:
                set_drop_path(self.opened.model, training.drop_path)
            classes = None if own_head else len(data.classes)
            adapted = adapt(self.opened.model, method, classes=classes, seed=training.seed)
            try:
                if classes_of(adapted.head) != len(data.classes):
                    raise UserError(
                        f"{data.name}: {len(data.classes)} classes, the network's own classifier has "
                        f"{classes_of(adapted.head)}"
                    )
                adapted.info["default"] = {
                    "classes": list(data.classes),
                    "backbone": self.opened.settings,
                    "model_args": self.opened.model_args,
                    "preprocess": self.opened.preprocess.to_dict(),
                    "trained_on": [data.trained_on(rows)],
                }
                adapted.to(here.device)
                return self._fit(adapted, data, rows, training, folder, measured, memory, peek, save, here.device)
            finally:
                adapted.detach()
                if training.drop_path:
                    set_drop_path(self.opened.model, 0.0)

    def _fit(
        self,
        adapted: AdaptedModel,
        data: Labeled,
        rows: Rows,
        training: AdaptTraining,
        folder: Path,
        measured: Rows,
        memory: bool,
        peek: bool,
        save: Path | None,
        device: torch.device,
    ) -> Fit:
        settings = training.resolved(len(rows))
        prefix = Prefix(adapted)
        keep = training.keep and not training.flip
        used = prefix if keep and prefix.where != "nothing" and self._keep(adapted, data, rows, prefix) else None
        place = PIXELS if used is None else (prefix.where, prefix.block)
        whole = used is not None or (not training.flip and self._keep(adapted, data, rows, None))
        dataset: Any = ImageDataset(data, flip=training.flip)
        if whole:
            dataset = KeptDataset(self._kept[place], data, self._bad)
        workers = 0 if whole else settings.workers
        loader = Loader(dataset, rows=rows, batch_size=settings.batch_size, seed=settings.seed, workers=workers)
        decay = training.weight_decay if training.decay == "all" else None
        factor = training.factor(len(rows))
        about: dict[str, Any] = {"preprocess": self.opened.preprocess, "prefix": used, "decay": decay, "factor": factor}
        task = AdaptTask(adapted, **about)
        frozen = prefix if keep and prefix.where != "nothing" else None
        run = RunFolder.create(folder)
        if peek:

            def accuracy() -> float:
                adapted.eval()
                found = list(self._logits(adapted, data, measured, frozen))
                adapted.train()
                right = [logits.argmax(axis=1) == data.labels_N[np.array(part)] for part, logits in found]
                return float(np.concatenate(right).mean())

            task = WatchedTask(adapted, measure=accuracy, images=len(rows), notes=folder / "epochs.json", **about)
        outcome = train_adapted(task, loader, settings, run)
        if outcome.status == "stopped":
            raise Stopped
        body, head = trained_numbers(adapted)
        held = 0
        if memory:
            batch = task.prepare_batch(next(loader.batches(0, 1)), device)
            held = update_bytes(task, batch)
        adapted.eval()
        found = list(self._logits(adapted, data, measured, frozen))
        if not found:
            raise UserError(f"{data.name}: no image could be read")
        good = np.array([row for part, _ in found for row in part], dtype=np.int64)
        if save is not None:
            adapted.save(save)
        shutil.rmtree(folder, ignore_errors=True)
        logits = np.concatenate([logits for _, logits in found])
        epochs: tuple[float, ...] = ()
        if isinstance(task, WatchedTask):
            last = float((logits.argmax(axis=1) == data.labels_N[good]).mean())
            epochs = (*(task.measured[key] for key in sorted(task.measured, key=int)), last)
        return Fit(
            logits=logits,
            labels=data.labels_N[good],
            rows=good,
            trained=body,
            head=head,
            seconds=outcome.seconds,
            updates=outcome.step,
            update_bytes=held,
            kept="nothing" if used is None else prefix.describe(),
            unreadable=len(set(self._bad) & {*rows.tolist(), *measured.tolist()}),
            epochs=epochs,
        )

    def _keep(self, adapted: AdaptedModel, data: Labeled, rows: Rows, prefix: Prefix | None) -> bool:
        """Whether what `prefix` (or, without one, decoding) gives of all readable rows is in memory now."""
        if self._data is not data:
            self._data, self._kept, self._bad, self._bytes = data, {}, {}, 0
        place = PIXELS if prefix is None else (prefix.where, prefix.block)
        kept = self._kept.setdefault(place, {})
        missing = np.array([row for row in rows.tolist() if row not in kept and row not in self._bad], dtype=np.int64)
        for part in self._batches(data, missing):
            good, pixels = part
            made = pixels if prefix is None else prefix.compute(self._given(adapted, pixels)).cpu()
            size = made.numel() * made.element_size()
            if self._bytes + size * (1 if kept else len(missing) / len(good)) > self.most_bytes:
                return False
            self._bytes += size
            kept.update(zip(good, (one.clone() for one in made), strict=True))
        return True

    def _given(self, adapted: AdaptedModel, pixels: Tensor) -> Tensor:
        device = next(iter(adapted.view.parameters_of_tower().values())).device
        return normalized(self.opened.preprocess, pixels.to(device))

    def _batches(self, data: Labeled, rows: Rows) -> Iterator[tuple[list[int], Tensor]]:
        """Pixels of readable rows; the reasons of the others are kept."""
        pixels_kept = self._kept.get(PIXELS, {})
        for begin in range(0, len(rows), BATCH):
            good, pixels = [], []
            for row in rows[begin : begin + BATCH].tolist():
                if row in self._bad:
                    continue
                try:
                    pixels.append(pixels_kept[row] if row in pixels_kept else data.image(row, False))
                    good.append(row)
                except BadImage as problem:
                    self._bad[row] = str(problem)
            if good:
                yield good, torch.stack(pixels)

    @torch.no_grad()
    def _logits(
        self, adapted: AdaptedModel, data: Labeled, rows: Rows, prefix: Prefix | None
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        if prefix is not None and self._keep(adapted, data, rows, prefix):
            kept = self._kept[prefix.where, prefix.block]
            device = next(iter(adapted.view.parameters_of_tower().values())).device
            good = [row for row in rows.tolist() if row in kept]
            for begin in range(0, len(good), BATCH):
                part = good[begin : begin + BATCH]
                given = torch.stack([kept[row] for row in part]).to(device)
                yield part, prefix.logits(given).float().cpu().numpy()
            return
        if prefix is None:
            self._keep(adapted, data, rows, None)
        for part, pixels in self._batches(data, rows):
            yield part, adapted(self._given(adapted, pixels)).float().cpu().numpy()


def on_meta(opened: Opened) -> Any:
    """The network without values, to count and to try what fits."""
    return copy.deepcopy(opened.model).to("meta")
