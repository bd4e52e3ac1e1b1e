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

from foveate.adapt.fit import MAX_CACHE_BYTES, FrozenCache, find_prefix, fit_adapted
from foveate.adapt.folder import save_adapter
from foveate.adapt.heads import num_classes
from foveate.adapt.load_backbone import LoadedBackbone, set_drop_path
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.prefix import FrozenPrefix
from foveate.adapt.recipe import AdaptTraining
from foveate.adapt.train import describe_training
from foveate.core.errors import UserError
from foveate.core.progress import silent
from foveate.core.runs import RunFolder
from foveate.training.classification import BATCH_SIZE, LabeledImages, Rows
from foveate.training.distributed import start
from foveate.training.loader import Loader
from foveate.training.loop import TrainingOutcome, train
from foveate.training.settings import TrainingSettings
from foveate.training.task import Task


class Stopped(Exception):
    """A signal requested to stop; a checkpoint was written."""


@dataclass(frozen=True)
class BenchOutcome:
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

    def __init__(self, network: LoadedBackbone, *, device: str = "auto", max_bytes: int = MAX_CACHE_BYTES) -> None:
        self.network, self.device, self.max_bytes = network, device, max_bytes
        with start(device) as here:
            network.model.to(here.device)
        self._cache: FrozenCache | None = None

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
    ) -> BenchOutcome:
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
                return self._fit(adapted, images, rows, training, folder, test, memory, peek, save)
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
    ) -> BenchOutcome:
        # Another data set: nothing that is cached belongs to it.
        if self._cache is None or self._cache.images is not images:
            self._cache = FrozenCache(self.network, images, max_bytes=self.max_bytes)
        cache, prefix = self._cache, find_prefix(adapted, training)

        def evaluate() -> dict[str, float]:
            parts = list(_predict(adapted, cache, test, prefix))
            correct = [logits.argmax(axis=1) == images.labels_N[np.array(part)] for part, logits in parts]
            return {"accuracy": float(np.concatenate(correct).mean())}

        def loop(task: Task, loader: Loader, settings: TrainingSettings) -> TrainingOutcome:
            outcome = train(task, loader, settings, run)
            if outcome.status == "stopped":
                raise Stopped
            return outcome

        run = RunFolder.create(folder)
        fitted = fit_adapted(
            adapted,
            rows,
            training,
            cache=cache,
            loop=loop,
            evaluate=evaluate if peek else None,
            each_epoch=True,
            keep_pixels=True,
            measure_memory=memory,
        )
        counts = adapted.count_parameters()
        adapted.eval()
        parts = list(_predict(adapted, cache, test, prefix))
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
        return BenchOutcome(
            logits=logits,
            labels=images.labels_N[readable],
            rows=readable,
            trained=counts.trained,
            head=counts.head,
            seconds=fitted.outcome.seconds,
            steps=fitted.outcome.step,
            step_bytes=fitted.step_bytes,
            cached=fitted.cached,
            unreadable=len(set(cache.unreadable) & {*rows.tolist(), *test.tolist()}),
            epochs=epochs,
        )


@torch.no_grad()
def _predict(
    adapted: AdaptedModel, cache: FrozenCache, rows: Rows, prefix: FrozenPrefix | None
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Yield rows and their logits, from the frozen parts or pixels in memory where they fit."""
    device, network = adapted.backbone.device, cache.network
    if cache.fill(rows, prefix, device) and prefix is not None:
        tensors = cache.tensors(prefix)
        readable = [row for row in rows.tolist() if row in tensors]
        for begin in range(0, len(readable), BATCH_SIZE):
            part = readable[begin : begin + BATCH_SIZE]
            yield part, prefix.logits(torch.stack([tensors[row] for row in part]).to(device)).float().cpu().numpy()
        return
    for part, pixels in cache.batches(rows, description="predicting"):
        yield part, adapted(network.normalize(pixels.to(device))).float().cpu().numpy()
