"""One network on which candidates are trained one after the other; frozen parts are computed once for all of them.

```python
bench = Bench(network, device="cpu")               # of foveate.adapt.load_backbone, or of a network in memory
fit = bench.fit(images, rows, {"method": "lora", "rank": 8}, AdaptTraining(epochs=60), folder=folder, test=test_rows)
fit.logits, fit.labels                             # of `test`, after the last epoch
```

The network itself is the same, bit for bit, after every fit. A fit that is stopped or killed resumes from its
checkpoint in `folder` when it is called again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.adapt.folder import save_adapter
from foveate.adapt.heads import num_classes
from foveate.adapt.load_backbone import LoadedBackbone, set_drop_path
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.prefix import FrozenPrefix
from foveate.adapt.probe import is_solved, probe_features, solve_cached_head, start_head, starts_solved
from foveate.adapt.recipe import AdaptTraining
from foveate.adapt.train import build_task, describe_training
from foveate.core.errors import UserError
from foveate.core.progress import silent
from foveate.core.runs import RunFolder
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.training.augment import augment_images
from foveate.training.classification import (
    BATCH_SIZE,
    LabeledImages,
    LoadSample,
    Rows,
    load_cached,
    training_loader,
)
from foveate.training.distributed import start
from foveate.training.linear_probe import SolvedHead
from foveate.training.loop import train
from foveate.training.task import Batch, Task

PIXELS = ("pixels", 0)
CacheKey = tuple[str, int]
"""What is cached: `PIXELS`, or kind and block of a `FrozenPrefix`."""


class Stopped(Exception):
    """A signal requested to stop; a checkpoint was written."""


@dataclass(frozen=True)
class Fit:
    """Outcome of one training.

    Attributes:
        logits: [N, K] of the test rows that can be read, after the last epoch.
        labels, rows: [N], of the same images.
        trained, head: parameters trained in the network and in the head.
        seconds: in the training loop.
        steps: done.
        step_bytes: memory of one step: weights, gradients, moments, and what the forward pass saves; 0 unless
            measured.
        cached: what of the network was computed once.
        unreadable: rows to learn from or to test on that cannot be read.
        epochs: accuracy on the test rows after each epoch, where requested; choosing by it would peek.
    """

    logits: NDArray[np.float32]
    labels: Rows
    rows: Rows
    trained: int
    head: int
    seconds: float
    steps: int
    step_bytes: int
    cached: str
    unreadable: int = 0
    epochs: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of test images that are classified correctly."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())


class Bench:
    """A network that candidates are trained on in turn.

    Args:
        network: the network and how images become its pixels; floating-point images are used as they are.
        device: such as "cuda".
        max_bytes: of pixels and frozen tokens in memory; what does not fit is computed in every epoch.
    """

    def __init__(self, network: LoadedBackbone, *, device: str = "auto", max_bytes: int = 4 * 2**30) -> None:
        self.network, self.device, self.max_bytes = network, device, max_bytes
        with start(device) as here:
            network.model.to(here.device)
        self._images: LabeledImages | None = None
        self._cache: dict[CacheKey, dict[int, Tensor]] = {}
        self._unreadable: dict[int, str] = {}
        self._probes: dict[tuple[bytes, float | None, int], SolvedHead] = {}
        self._num_bytes = 0

    def fit(
        self,
        images: LabeledImages,
        rows: Rows,
        method: dict[str, Any],
        training: AdaptTraining,
        *,
        folder: Path,
        test: Rows,
        memory: bool = False,
        peek: bool = False,
        save: Path | None = None,
        keep_head: bool = False,
    ) -> Fit:
        """Train one candidate on `rows` and return the logits of `test`.

        Args:
            images: with `rows` and `test`.
            method: `method` and its options.
            training: its seed decides initial values, order and dropout.
            folder: of checkpoints; it is removed at the end.
            memory: also measure what a step holds (one forward pass more).
            peek: also measure `test` after every epoch.
            save: folder that the adapter is written to.
            keep_head: start from the network's own classifier, which must have these classes, not from a new head;
                `training.head_init` has no effect then.

        Raises:
            UserError: an option that does not fit the network, or (TrainingError) a loss that is not finite.
            Stopped: after a signal.
        """
        with silent(), start(self.device) as here:
            # Before the adapter is attached: its hooks stand on the DropPath modules, which this call replaces.
            if training.drop_path:
                set_drop_path(self.network.model, training.drop_path)
            classes = None if keep_head else len(images.classes)
            adapted = adapt(
                self.network.model, method, classes=classes, seed=training.seed, modules=self.network.modules
            )
            try:
                if num_classes(adapted.head) != len(images.classes):
                    raise UserError(
                        f"{images.name} has {len(images.classes)} classes; the network's own classifier has "
                        f"{num_classes(adapted.head)}"
                    )
                provenance = [images.provenance(rows)]
                adapted.info["default"] = describe_training(self.network, images, provenance)
                adapted.to(here.device)
                return self._fit(adapted, images, rows, training, folder, test, memory, peek, save, here.device)
            finally:
                # The next candidate finds the network as it was, whatever happened to this one.
                adapted.detach()
                if training.drop_path:
                    set_drop_path(self.network.model, 0.0)

    def _fit(
        self,
        adapted: AdaptedModel,
        images: LabeledImages,
        rows: Rows,
        training: AdaptTraining,
        folder: Path,
        test: Rows,
        memory: bool,
        peek: bool,
        save: Path | None,
        device: torch.device,
    ) -> Fit:
        settings = training.resolve(len(rows))
        whole_prefix = FrozenPrefix(adapted)
        caching = training.cache and not training.varies_images and whole_prefix.kind != "nothing"
        prefix = whole_prefix if caching else None
        # `prefix` serves the test rows in any case; the training rows only where they fit into memory, too.
        train_prefix = prefix if prefix is not None and self._fill_cache(adapted, images, rows, prefix) else None
        load_sample: LoadSample | None = augment_images(images, training.augmentation)
        # Mixed images are mixed anew from the same pixels.
        if train_prefix is not None or (load_sample is None and self._fill_cache(adapted, images, rows, None)):
            load_sample = load_cached(self._cache[_cache_key(train_prefix)], self._unreadable)
            in_memory = True
        else:
            in_memory = False
        # Threads only help where images are decoded.
        workers = 0 if in_memory else settings.workers
        loader = training_loader(
            images, rows, settings, load=load_sample, mixup=training.mixup, balanced=training.balanced, workers=workers
        )
        task = build_task(adapted, self.network, training, prefix=train_prefix, num_images=len(rows))
        if peek:

            def evaluate() -> dict[str, float]:
                parts = list(self._predict(adapted, images, test, prefix))
                correct = [logits.argmax(axis=1) == images.labels_N[np.array(part)] for part, logits in parts]
                return {"accuracy": float(np.concatenate(correct).mean())}

            task.evaluate_with(evaluate, images_per_epoch=len(rows))
        run = RunFolder.create(folder)
        solved = is_solved(adapted, adapted.adapter().settings.model_dump(), training, cached=train_prefix is not None)
        if not solved and starts_solved(adapted, training):
            start_head(adapted, self._solve_probe(adapted, images, rows, training))
        if solved:
            assert train_prefix is not None
            cache = self._cache[_cache_key(train_prefix)]
            cached = {row: cache[row] for row in rows.tolist() if row in cache}
            _, seconds = solve_cached_head(adapted, cached, images, training)
            steps = 0
        else:
            outcome = train(task, loader, settings, run)
            if outcome.status == "stopped":
                raise Stopped
            seconds, steps = outcome.seconds, outcome.step
        counts = adapted.count_parameters()
        num_bytes = 0
        if memory:
            batch = task.prepare_batch(next(loader.batches(0, 1)), device)
            num_bytes = measure_step_bytes(task, batch)
        adapted.eval()
        parts = list(self._predict(adapted, images, test, prefix))
        if not parts:
            raise UserError(f"{images.name}: no image can be read")
        readable = np.array([row for part, _ in parts for row in part], dtype=np.int64)
        logits = np.concatenate([part_logits for _, part_logits in parts])
        epochs: tuple[float, ...] = ()
        if peek:
            # From the log, so that a resumed training has the epochs of earlier sessions; the last epoch is the result.
            measured = [row["eval_accuracy"] for row in run.read_metrics() if "eval_accuracy" in row]
            epochs = (*measured, float((logits.argmax(axis=1) == images.labels_N[readable]).mean()))
        if save is not None:
            save_adapter(adapted, save)
        # Checkpoints of hundreds of candidates would fill a disk; the result is in memory now.
        shutil.rmtree(folder, ignore_errors=True)
        return Fit(
            logits=logits,
            labels=images.labels_N[readable],
            rows=readable,
            trained=counts.trained,
            head=counts.head,
            seconds=seconds,
            steps=steps,
            step_bytes=num_bytes,
            cached="nothing" if train_prefix is None else train_prefix.describe(),
            unreadable=len(set(self._unreadable) & {*rows.tolist(), *test.tolist()}),
            epochs=epochs,
        )

    def _solve_probe(
        self, adapted: AdaptedModel, images: LabeledImages, rows: Rows, training: AdaptTraining
    ) -> SolvedHead:
        """Return the linear probe on the untuned features of `rows`; candidates that share images and seed share it."""
        self._select_images(images)
        key = rows.tobytes(), training.head_c, training.seed
        if key not in self._probes:
            self._probes[key] = probe_features(adapted, self.network, images, rows, training)
        return self._probes[key]

    def _select_images(self, images: LabeledImages) -> None:
        # Another data set: nothing that is cached belongs to it.
        if self._images is not images:
            self._images, self._cache, self._unreadable, self._num_bytes = images, {}, {}, 0
            self._probes = {}

    def _fill_cache(
        self, adapted: AdaptedModel, images: LabeledImages, rows: Rows, prefix: FrozenPrefix | None
    ) -> bool:
        """Cache pixels (or what `prefix` computes) of all readable rows; False where they do not fit into memory."""
        self._select_images(images)
        cache = self._cache.setdefault(_cache_key(prefix), {})
        missing = np.array(
            [row for row in rows.tolist() if row not in cache and row not in self._unreadable], dtype=np.int64
        )
        for readable, pixels in self._batches(images, missing):
            outputs = pixels if prefix is None else prefix.compute(self._inputs(adapted, pixels)).cpu()
            size = outputs.numel() * outputs.element_size()
            # The first batch decides for all: an epoch that is cached in part still has to decode and compute.
            if self._num_bytes + size * (1 if cache else len(missing) / len(readable)) > self.max_bytes:
                return False
            self._num_bytes += size
            # Cloned: a slice would keep the whole batch alive.
            cache.update(zip(readable, (output.clone() for output in outputs), strict=True))
        return True

    def _inputs(self, adapted: AdaptedModel, pixels: Tensor) -> Tensor:
        return self.network.normalize(pixels.to(adapted.backbone.device))

    def _batches(self, images: LabeledImages, rows: Rows) -> Iterator[tuple[list[int], Tensor]]:
        """Yield pixels of readable rows, from the cache where they are there; remember why others are not."""
        cached_pixels = self._cache.get(PIXELS, {})
        for begin in range(0, len(rows), BATCH_SIZE):
            readable, pixels = [], []
            for row in rows[begin : begin + BATCH_SIZE].tolist():
                # Remembered from an earlier pass, so that a damaged file is not decoded again for every candidate.
                if row in self._unreadable:
                    continue
                try:
                    pixels.append(cached_pixels[row] if row in cached_pixels else images.load(row, View()))
                    readable.append(row)
                except BadImage as problem:
                    self._unreadable[row] = str(problem)
            if readable:
                yield readable, torch.stack(pixels)

    @torch.no_grad()
    def _predict(
        self, adapted: AdaptedModel, images: LabeledImages, rows: Rows, prefix: FrozenPrefix | None
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield rows and their logits."""
        if prefix is not None and self._fill_cache(adapted, images, rows, prefix):
            cache = self._cache[_cache_key(prefix)]
            device = adapted.backbone.device
            readable = [row for row in rows.tolist() if row in cache]
            for begin in range(0, len(readable), BATCH_SIZE):
                part = readable[begin : begin + BATCH_SIZE]
                cached = torch.stack([cache[row] for row in part]).to(device)
                yield part, prefix.logits(cached).float().cpu().numpy()
            return
        if prefix is None:
            self._fill_cache(adapted, images, rows, None)
        for part, pixels in self._batches(images, rows):
            yield part, adapted(self._inputs(adapted, pixels)).float().cpu().numpy()


def _cache_key(prefix: FrozenPrefix | None) -> CacheKey:
    return PIXELS if prefix is None else (prefix.kind, prefix.block)


def measure_step_bytes(task: Task, batch: Batch) -> int:
    """Count the bytes that one training step holds at its peak; the same on every device.

    Weights, their gradients, AdamW's two moments, and what one forward pass saves for the backward one, each storage
    once. Working memory of single operations and of the allocator is not in it.
    """
    # By address, so that tied weights and views of one storage count once.
    weights = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in task.parameters()}
    trained = sum(value.numel() * value.element_size() for value in task.parameters() if value.requires_grad)
    saved: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        # Weights are saved for the backward pass too, and counted once above.
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    devices = [value.device for value in task.parameters() if value.is_cuda][:1]
    training = task.training
    task.train()
    # The forked generator leaves dropout of later steps as it would have been without this measurement.
    with torch.random.fork_rng(devices=devices), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        losses, _ = task.losses(batch)
    del losses
    task.train(training)
    # Three times what is trained: its gradients and AdamW's two moments.
    return sum(weights.values()) + 3 * trained + sum(saved.values())
