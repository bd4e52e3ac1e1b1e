"""Fit an adapted model to labeled images, by a solved head or by steps; what is frozen is computed once.

`foveate adapt train` and every candidate of `foveate adapt compare` take this road:

```python
cache = FrozenCache(network, images)                    # shared by all fits to the same images
fitted = fit_adapted(adapted, rows, training, cache=cache, loop=run.train)
fitted.outcome.status, fitted.probe
```
"""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.adapt.adapter import find_first_block
from foveate.adapt.folder import save_adapter
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.model import AdaptedModel
from foveate.adapt.prefix import FrozenPrefix
from foveate.adapt.recipe import AdaptTraining
from foveate.adapt.tasks import LabelTask, open_task
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.training.augment import augment_images
from foveate.training.classification import (
    ClassificationTask,
    LabeledImages,
    LoadSample,
    Rows,
    load_cached,
    readable_batches,
    training_loader,
)
from foveate.training.distributed import world
from foveate.training.linear_probe import SolvedHead
from foveate.training.loader import Loader
from foveate.training.loop import TrainingOutcome
from foveate.training.optimizer import ParameterRule
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Task

# Bound all cached images together; more would crowd out the page cache that images are read through.
MAX_CACHE_BYTES = 4 * 2**30

Loop = Callable[[Task, Loader, TrainingSettings], TrainingOutcome]
"""`foveate.training.run.Run.train`, or a training without a run folder."""


@dataclass(frozen=True)
class FitOutcome:
    """Outcome of `fit_adapted`.

    Attributes:
        outcome: of the training loop; of no step where the head was solved.
        solved: whether `probe` is the adapter's head.
        prefix: what was computed once of each training image; None where nothing was.
        probe: head on the untuned features, where the fit solved one; of values, of standardized ones.
        step_bytes: memory of one step, where it was measured; see `measure_step_bytes`.
    """

    outcome: TrainingOutcome
    solved: bool
    prefix: FrozenPrefix | None
    probe: SolvedHead | None
    step_bytes: int = 0

    @property
    def cached(self) -> str:
        """What of the network was computed once, in a few words."""
        return "nothing" if self.prefix is None else self.prefix.describe()


class FrozenCache:
    """What is computed once of images that a network is adapted to: pixels, outputs of frozen parts, linear probes.

    Args:
        network: with the weights that it came with.
        images: to train and to test on.
        max_bytes: of pixels and frozen parts in memory; what does not fit is computed in every epoch.

    Attributes:
        unreadable: row -> reason, of the images that could not be read so far.
    """

    def __init__(self, network: LoadedBackbone, images: LabeledImages, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self.network, self.images, self.max_bytes = network, images, max_bytes
        self.unreadable: dict[int, str] = {}
        self._num_bytes = 0
        self._tensors: dict[tuple[str, int], dict[int, Tensor]] = {}
        self._probes: dict[tuple[bytes, float | None, int], SolvedHead] = {}

    def tensors(self, prefix: FrozenPrefix | None) -> dict[int, Tensor]:
        """Return what is cached by row: outputs of a frozen part, or pixels where `prefix` is None."""
        return self._tensors.setdefault(("pixels", 0) if prefix is None else (prefix.kind, prefix.block), {})

    def fill(self, rows: Rows, prefix: FrozenPrefix | None, device: torch.device) -> bool:
        """Cache pixels (or what `prefix` computes of them) of all readable rows; False where they do not fit."""
        cache = self.tensors(prefix)
        missing = np.array(
            [row for row in rows.tolist() if row not in cache and row not in self.unreadable], dtype=np.int64
        )
        for readable, pixels in self.batches(missing, description="computing frozen parts"):
            # On the CPU: on the device the cache of all images would take the memory that the training needs.
            outputs = pixels if prefix is None else prefix.compute(self.network.normalize(pixels.to(device))).cpu()
            size = outputs.numel() * outputs.element_size()
            # The first batch decides for all: an epoch that is cached in part still has to decode and compute.
            expected = size * (1 if cache else len(missing) / len(readable))
            if self._num_bytes + expected > self.max_bytes:
                if prefix is not None:
                    say(f"frozen parts would take {expected / 2**30:.0f} GiB: they are computed in every epoch instead")
                return False
            self._num_bytes += size
            # Cloned: a slice would keep the whole batch alive.
            cache.update(zip(readable, (output.clone() for output in outputs), strict=True))
        return True

    def batches(self, rows: Rows, *, description: str) -> Iterator[tuple[list[int], Tensor]]:
        """Yield pixels of readable rows, from the cache where they are there; remember why others are not."""
        pixels = self.tensors(None)

        def load(row: int, view: View) -> Tensor:
            # Remembered from an earlier pass, so that a damaged file is not decoded again for every candidate.
            if row in self.unreadable:
                raise BadImage("unreadable", self.unreadable[row])
            return pixels[row] if row in pixels else self.images.load(row, view)

        images = dataclasses.replace(self.images, load=load)
        return readable_batches(images, rows, self.unreadable, description=description)

    def probe(self, adapted: AdaptedModel, rows: Rows, training: AdaptTraining) -> SolvedHead:
        """Return the linear probe on the untuned features of `rows`: what any tuning has to beat.

        Raises:
            UserError: no image of a class can be read, or a feature is not finite.
        """
        # Candidates that share images and seed share it.
        key = rows.tobytes(), training.head_c, training.seed
        if key not in self._probes:
            images = self.images
            features_ND, readable = original_features(adapted, self.network, images, rows, "features alone")
            missing = images.missing_classes(readable)
            if missing:
                raise UserError(f"{images.name}: no training image of class '{missing[0]}' can be read")
            self._probes[key] = open_task(images, rows).solve(features_ND, readable, training)
        return self._probes[key]


def fit_adapted(
    adapted: AdaptedModel,
    rows: Rows,
    training: AdaptTraining,
    *,
    cache: FrozenCache,
    loop: Loop,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    each_epoch: bool = False,
    keep_pixels: bool = False,
    measure_memory: bool = False,
) -> FitOutcome:
    """Train the adapter and its head on `rows`, on the device of the model.

    Args:
        cache: of the images; what fits of their frozen parts is added to it.
        loop: trains the task; it raises to leave a training that was stopped, or returns its outcome.
        evaluate: metrics during training, every `training.evaluate_every` steps.
        each_epoch: evaluate at the end of every epoch instead, the last one excepted.
        keep_pixels: where no part is frozen, keep pixels in memory, for the fits that follow.
        measure_memory: also measure what a step holds (one forward pass more).
    """
    network, images, device = cache.network, cache.images, adapted.backbone.device
    labels = open_task(images, rows)
    labels.check(training)
    settings, missing = training.resolve(len(rows)), images.missing_classes(rows)
    prefix = find_prefix(adapted, training)
    if prefix is not None and not cache.fill(rows, prefix, device):
        prefix = None
    load: LoadSample | None = augment_images(images, training.augmentation)
    in_memory = prefix is not None or (keep_pixels and load is None and cache.fill(rows, None, device))
    if in_memory:
        # Mixed images are mixed anew from the same pixels.
        load = load_cached(cache.tensors(prefix), cache.unreadable)
    if prefix is not None:
        say(f"cached: {prefix.describe()}")
    probe, step_bytes = None, 0
    method = adapted.adapter().settings.model_dump()
    solved = is_solved(adapted, method, training, missing=missing, cached=prefix is not None)
    if "head_init" in training.model_fields_set and (solved or adapted.active in adapted.first_heads):
        reason = "solves its head" if solved else "starts from the head of --head-from"
        say(f"training.head_init has no effect: this run {reason}")
    if adapted.active in adapted.first_heads:
        labels.from_units(adapted.head)
    task = _build_task(adapted, network, training, labels, rows, prefix=prefix)
    if evaluate is not None:
        task.evaluate_with(evaluate, images_per_epoch=len(rows) if each_epoch else None)

    def open_loader() -> Loader:
        return training_loader(
            images,
            rows,
            settings,
            load=load,
            mixup=training.mixup,
            balanced=training.balanced,
            # Threads only help where images are decoded.
            workers=0 if in_memory else settings.workers,
            rank=world().rank,
            world_size=world().size,
        )

    if solved:
        began = time.monotonic()
        # Sorted, because the cross-validation folds depend on row order, and the cache has the order it was filled in.
        cached = {row: cache.tensors(prefix)[row] for row in sorted(rows.tolist()) if row in cache.tensors(prefix)}
        features_ND = torch.stack(list(cached.values())).float().numpy()
        probe = labels.solve(features_ND, np.array(list(cached), dtype=np.int64), training)
        assert isinstance(adapted.head, nn.Linear), "a new head is linear"
        probe.copy_to(adapted.head)
        seconds = time.monotonic() - began
        bad = {images.keys[row]: cache.unreadable[row] for row in rows.tolist() if row in cache.unreadable}
        outcome = TrainingOutcome("finished", 0, seconds, model=adapted, ema=None, bad_samples=bad)
    else:
        # A head that was trained before is trained on from its values.
        if training.head_init == "solved" and adapted.active not in adapted.first_heads:
            # On every rank: each needs the same head, and the features of the others are not sent.
            probe = cache.probe(adapted, rows, training)
            # Before any step, an unchanged network answers as the probe does.
            assert isinstance(adapted.head, nn.Linear), "a new head is linear"
            probe.copy_to(adapted.head)
            # As of any head that was trained before: `adapt wise` needs it for the model at alpha 0.
            first_head = copy.deepcopy(adapted.head).requires_grad_(False)
            labels.to_units(first_head)
            adapted.first_heads[adapted.active] = first_head
        outcome = loop(task, open_loader(), settings)
    if measure_memory:
        step_bytes = measure_step_bytes(task, task.prepare_batch(next(open_loader().batches(0, 1)), device))
    # After the last checkpoint: a resumed training finds the head in the scale that its optimizer knows.
    labels.to_units(adapted.head)
    return FitOutcome(outcome, solved, prefix, probe, step_bytes)


def find_prefix(adapted: AdaptedModel, training: AdaptTraining) -> FrozenPrefix | None:
    """Return the frozen part in front of what is trained; None where nothing can be computed once."""
    if not training.cache or training.varies_images:  # a mirrored image has other tokens
        return None
    prefix = FrozenPrefix(adapted)
    return None if prefix.kind == "nothing" else prefix


def _build_task(
    adapted: AdaptedModel,
    network: LoadedBackbone,
    training: AdaptTraining,
    labels: LabelTask,
    rows: Rows,
    *,
    prefix: FrozenPrefix | None,
) -> ClassificationTask:
    """Build the task of the training loop.

    Args:
        rows: of the images of an epoch.
        prefix: batches hold what it cached; None: they hold pixels.
    """
    logits = prefix.logits if prefix is not None else (lambda pixels: adapted(network.normalize(pixels)))
    decay = training.weight_decay if training.decay == "all" else None
    if training.layer_decay < 1:
        rules = _layer_rules(adapted, training.layer_decay, decay)
    else:
        # One rule for everything: biases and norms too, which the loop's own rule leaves without decay.
        rules = () if decay is None else (ParameterRule(".*", weight_decay=decay),)
    return ClassificationTask(
        adapted,
        logits=logits,
        criterion=labels.criterion(training, rows),
        rules=rules,
        shard_units=[block.module for block in adapted.backbone.blocks],
        schedule=training.step_schedule(len(rows)),
        save=lambda folder: save_adapter(adapted, folder),
    )


def _layer_rules(adapted: AdaptedModel, factor: float, weight_decay: float | None) -> tuple[ParameterRule, ...]:
    """Return a rule for each trained tensor of the backbone, then one for the rest: the rate falls towards the input.

    The last block has `factor` of the head's rate, each block before it `factor` of the next one's.

    Raises:
        UserError: the method trains no tensors of the backbone, or it has no blocks.

    Source: Bao et al. 2022, BEiT, arXiv 2106.08254, as in timm's `param_groups_layer_decay`.
    """
    backbone, swap = adapted.backbone, adapted.adapter().parameter_swap
    if swap is None or not backbone.blocks:
        why = "adds parameters of its own" if swap is None else "is on a network without blocks"
        raise UserError(
            f"training.layer_decay: needs a method that trains the tensors of a network with blocks, such as full; "
            f"'{adapted.adapter().settings.method}' {why} (got {factor:g})"
        )
    depth = len(backbone.blocks)
    rules = []
    for name in swap.names:
        scale = factor ** max(0, depth - find_first_block([name], backbone))
        # Named from the task on: task.model is the adapted model, whose model is the network.
        rules.append(ParameterRule(re.escape(f"model.model.{name}"), scale, weight_decay))
    return (*rules, ParameterRule(".*", weight_decay=weight_decay))


def is_solved(
    adapted: AdaptedModel,
    method: Mapping[str, Any],
    training: AdaptTraining,
    *,
    missing: Sequence[str] = (),
    cached: bool = True,
) -> bool:
    """Whether the head is solved: of method linear, on cached features, if it is new and every class has an image."""
    if method["method"] != "linear" or training.head_solver != "lbfgs":
        return False
    if adapted.active in adapted.first_heads or missing:
        # A solved head would forget what the given one knows, of classes without an image above all.
        say("linear: the head was trained before, so it is trained on by steps instead of solved")
        return False
    of_steps = {"balanced": False, "label_smoothing": 0.0, "class_weights": "none", "focal_gamma": 0.0, "loss": "mse"}
    changed = [name for name, idle in of_steps.items() if getattr(training, name) != idle]
    if changed:
        belong = "belongs" if len(changed) == 1 else "belong"
        say(f"linear: {' and '.join(changed)} {belong} to steps, so the head is trained by steps instead of solved")
        return False
    if not cached:
        say("linear: features are not cached, so the head is trained by steps instead of solved")
    return cached


@torch.no_grad()
def original_features(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, description: str
) -> tuple[NDArray[np.float32], Rows]:
    """Return features [N, D] of the network without the adapter, and the rows [N] that can be read."""
    device, readable, features = adapted.backbone.device, list[int](), list[NDArray[np.float32]]()
    adapted.eval()
    with adapted.disable():
        for part, pixels in readable_batches(images, rows, {}, description=description):
            readable += part
            features.append(adapted.backbone.features(network.normalize(pixels.to(device))).float().cpu().numpy())
    if not features:
        raise UserError(f"{images.name}: none of {len(rows)} images can be read")
    return np.concatenate(features), np.array(readable, dtype=np.int64)


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
