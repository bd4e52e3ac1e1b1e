"""Order of training: an epoch is a sequence of passes, each over the links of one relation.

The released code of COSMO runs them one after another, parents first and species last. Which batch a step sees is a
pure function of the seed and the step, so that resuming needs no more than a number.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.records.images import BadImage
from foveate.species.links import Relation
from foveate.training.loader import BadSample, Loader
from foveate.training.optimizer import ParameterRule
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Losses, Report, Task

# Training of a link model: one loss for each pass, never added together, under one optimizer.
#
# The optimizer is AdamW without decay, which is Adam; its moments are shared by all passes. Between batches gradients
# are None, so parameters outside a pass neither move nor count a step.


IMAGE_PATTERN = r"model\.image\..*"


def link_loss(scores_BN: Tensor, labels_B: Tensor, relation: Relation) -> Tensor:
    """Return the mean loss of a batch of one relation.

    Source: the released code of COSMO, main.py: cross-entropy over taxa (PARENT, SPECIES); over places and hours binary
    cross-entropy against a one-hot row, mean over B N, so that the one positive weighs 1 / N.
    """
    if relation in (Relation.PARENT, Relation.SPECIES):
        return F.cross_entropy(scores_BN, labels_B)
    # Keep the scores' type: the released code rounds it to float32 even in a float64 run, which shifts the loss.
    target_BN = F.one_hot(labels_B, scores_BN.shape[1]).to(scores_BN.dtype)
    return F.binary_cross_entropy_with_logits(scores_BN, target_BN)


def chance_loss(num_candidates: int) -> float:
    """Return the binary cross-entropy of places or hours at chance: the entropy of Bernoulli(1 / N)."""
    share = 1 / num_candidates
    if num_candidates == 1:
        return 0.0
    return float(-(share * np.log(share) + (1 - share) * np.log1p(-share)))


def class_offsets(labels_N: NDArray[np.int64], num_classes: int, tau: float) -> Tensor:
    """Return tau times the log frequency of each class [K], added to logits in training only.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment" (arXiv 2007.07314), equation 10. A class
    without an image counts as one: its frequency has no logarithm.
    """
    # Add the prior instead of subtracting it: training then fits logits minus the prior, and prediction without the
    # term is balanced.
    counts_K = np.bincount(labels_N, minlength=num_classes).clip(min=1)
    return torch.from_numpy(tau * np.log(counts_K / counts_K.sum())).float()


class LinkTask(Task):
    """Losses of a link model; see `foveate.training.task.Task`.

    Args:
        model: a `LinkModel`, or a baseline, which has only the species relation.
        image_rate_scale: learning rate of the image network, its linear layer included, over the recipe's.
        offsets_K: added to species scores in training; see `class_offsets`.
        steps_per_epoch: an evaluation follows every so many steps; None: none.
        evaluation: returns the metrics of an evaluation.
        save: writes the trained model to a folder.
    """

    # A pass trains only the parameters of its relation.
    find_unused_parameters = True

    def __init__(
        self,
        model: nn.Module,
        *,
        image_rate_scale: float = 1.0,
        offsets_K: Tensor | None = None,
        steps_per_epoch: int | None = None,
        evaluation: Callable[[], Mapping[str, float]] | None = None,
        save: Callable[[Path], object] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("offsets_K", offsets_K, persistent=False)
        self._rate_scale, self._steps_per_epoch = image_rate_scale, steps_per_epoch
        self._evaluation, self._save = evaluation, save

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Return the loss of the batch's relation, and the same under the relation's name for the log."""
        relation = batch["relation"]
        scores_BN = self.model(batch["inputs"], relation)
        if relation is Relation.SPECIES and self.offsets_K is not None:
            scores_BN = scores_BN + self.offsets_K
        loss = link_loss(scores_BN, batch["labels"], relation)
        return {"loss": loss}, {f"loss_{relation.name.lower()}": loss.detach()}

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Return the rule of the image network: its linear layer learns as slowly as the encoder below it."""
        return (ParameterRule(IMAGE_PATTERN, learning_rate_scale=self._rate_scale),)

    def should_evaluate(self, step: int, *, settings: TrainingSettings) -> bool:
        """Whether an epoch ends with this step."""
        return self._steps_per_epoch is not None and step % self._steps_per_epoch == 0

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Return the metrics of the validation images."""
        return super().evaluate(step) if self._evaluation is None else self._evaluation()

    def export(self, folder: Path) -> None:
        """Write the trained model."""
        assert self._save is not None, "the task was built without a folder to write"
        self._save(folder)


Schedule = Literal["official", "interleaved"]
Rows = NDArray[np.int64]


# Compared by identity: arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class LinkRows:
    """Links of one relation that training reads.

    Attributes:
        heads_N: row of the image, or index of the taxon for PARENT.
        tails_N: index of the true tail among the relation's candidates.
        balanced: draw every tail equally often, in as many draws as there are links.
        name: distinguishes several passes of one relation in an epoch.
    """

    relation: Relation
    heads_N: Rows
    tails_N: Rows
    balanced: bool = False
    name: str = ""


class PassOrder:
    """The batches of every epoch.

    Args:
        passes: of an epoch, in order; those without links are left out.
        batch_size: links of a batch; the last one of a pass may be smaller.
        drop_last: leave out that last one.
        schedule: "official": pass after pass; "interleaved": the batches of all passes spread evenly over the epoch.

    Raises:
        UserError: no species link fills a batch.
    """

    def __init__(
        self,
        passes: Sequence[LinkRows],
        *,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        schedule: Schedule = "official",
    ) -> None:
        self.passes = [links for links in passes if len(links.heads_N)]
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        counts = [len(links.heads_N) / batch_size for links in self.passes]
        self.batches_of_passes = [int(count) if drop_last else int(np.ceil(count)) for count in counts]
        trained = {links.relation for links, count in zip(self.passes, self.batches_of_passes, strict=True) if count}
        # With `drop_last` a pass shorter than a batch has no step: species would silently not be trained.
        if Relation.SPECIES not in trained:
            num_links = sum(len(links.heads_N) for links in passes if links.relation is Relation.SPECIES)
            raise UserError(
                f"training: too few labeled images of the splits in data.train (got {num_links}); expected at least "
                f"{batch_size if drop_last else 1}"
            )
        # Pass and batch within the pass of each step.
        steps = [(index, batch) for index, count in enumerate(self.batches_of_passes) for batch in range(count)]
        if schedule == "interleaved":
            # Sort by the middle of each batch's slot, which puts a pass of one batch in mid-epoch, not first.
            steps.sort(key=lambda step: (step[1] + 0.5) / self.batches_of_passes[step[0]])
        self._steps = steps
        self._orders: dict[int, list[Rows]] = {}
        # Loader threads request batches concurrently; see `batch`.
        self._lock = threading.Lock()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, over all passes."""
        return len(self._steps)

    def count_steps(self) -> dict[str, int]:
        """Return the steps of an epoch by relation, in lower case."""
        counts: dict[str, int] = {}
        for links, count in zip(self.passes, self.batches_of_passes, strict=True):
            name = links.relation.name.lower()
            counts[name] = counts.get(name, 0) + count
        return counts

    def batch(self, step: int) -> tuple[LinkRows, Rows]:
        """Return the pass of a step (from 0) and the numbers of its links."""
        epoch, within = divmod(step, len(self._steps))
        with self._lock:
            # Loader threads may be in the next epoch already, so the one before stays.
            if epoch not in self._orders:
                self._orders = {number: self._orders[number] for number in self._orders if number == epoch - 1}
                self._orders[epoch] = [self._order(links, epoch) for links in self.passes]
            orders = self._orders[epoch]
        index, batch = self._steps[within]
        start = batch * self.batch_size
        return self.passes[index], orders[index][start : start + self.batch_size]

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step, both from 0."""
        return step // len(self._steps)

    def _order(self, links: LinkRows, epoch: int) -> Rows:
        count, parts = len(links.heads_N), (self.seed, links.relation.name, links.name, epoch)
        # The pass name is part of the seed, so that two passes of one relation in an epoch see different batches.
        if not links.balanced:
            return _shuffle(count, *parts)
        # Each tail's links in an order of their own, begun anew as often as needed.
        classes, sizes = np.unique(links.tails_N, return_counts=True)
        draws_C = np.full(len(classes), count // len(classes))
        draws_C[_shuffle(len(classes), "rest", *parts)[: count % len(classes)]] += 1
        drawn = []
        for tail, size, draws in zip(classes.tolist(), sizes.tolist(), draws_C.tolist(), strict=True):
            members = np.flatnonzero(links.tails_N == tail)
            rounds = range(-(-draws // size))
            order = np.concatenate([_shuffle(size, tail, number, *parts) for number in rounds] or [np.arange(0)])
            drawn.append(members[order[:draws]])
        joined = np.concatenate(drawn)
        return joined[_shuffle(count, "joined", *parts)]

    def describe(self) -> dict[str, Any]:
        """Return what decides the order, as JSON values: counts and hashes, no place and no name."""
        described = []
        for links in self.passes:
            digest = hashlib.sha256(np.stack([links.heads_N, links.tails_N]).astype("<i8").tobytes()).hexdigest()
            described.append(
                {
                    "relation": links.relation.name.lower(),
                    "links": len(links.heads_N),
                    "links_hash": digest[:16],
                    "balanced": links.balanced,
                }
            )
        return {
            "passes": described,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "steps_hash": hashlib.sha256(repr(self._steps).encode()).hexdigest()[:16],
        }


def _shuffle(count: int, *parts: object) -> Rows:
    # Raw words of the bit generator stay the same over NumPy versions, `Generator.permutation` need not.
    draws = seeds.generator("links", *parts).bit_generator.random_raw(count)
    return np.argsort(draws, kind="stable").astype(np.int64)


class FeatureBatches:
    """Batches of a training on features in memory: one gather each, no threads. See `training.loader.BatchSource`.

    Args:
        features_NF: of all images that links name by row.
    """

    # Training runs in one process; `fit.build_task` refuses more.
    world_size = 1

    def __init__(self, order: PassOrder, features_NF: Tensor) -> None:
        self.order, self.features_NF = order, features_NF
        self.batch_size = order.batch_size
        self.bad_samples: dict[str, str] = {}
        self.bad_draws = self.drawn = 0

    def batches(self, start_step: int, stop_step: int) -> Generator[dict[str, Any], None, None]:
        """Yield batches number `start_step` up to, not including, `stop_step`."""
        for step in range(start_step, stop_step):
            links, numbers_B = self.order.batch(step)
            heads = torch.from_numpy(links.heads_N[numbers_B])
            inputs = heads if links.relation is Relation.PARENT else self.features_NF[heads]
            self.drawn += len(numbers_B)
            yield {
                "relation": links.relation,
                "inputs": inputs,
                "labels": torch.from_numpy(links.tails_N[numbers_B]),
                "heads": heads,
            }

    def describe(self) -> dict[str, Any]:
        """Return what decides the order."""
        return self.order.describe()


class ImageBatches(Loader):
    """Batches of a training on pixels, loaded ahead by threads; an image that cannot be read is replaced by another.

    Args:
        load: row of an image to its pixels; raises BadImage.
        keys: of the images, for errors.
    """

    def __init__(
        self, order: PassOrder, load: Callable[[int], Tensor], keys: Sequence[str], *, workers: int = 2
    ) -> None:
        self.order = order
        self._tails = [dict(zip(links.heads_N.tolist(), links.tails_N.tolist(), strict=True)) for links in order.passes]
        # Heads of PARENT are taxa, whose indices must not be taken for rows of images.
        images = [links.heads_N for links in order.passes if links.relation is not Relation.PARENT]
        super().__init__(
            _PixelDataset(load, keys),
            rows=np.unique(np.concatenate(images)),
            batch_size=order.batch_size,
            seed=order.seed,
            workers=workers,
        )

    def describe(self) -> dict[str, Any]:
        """Return what decides the order."""
        return self.order.describe()

    def draws(self, step: int) -> Rows:
        """Return pass, link and epoch [B, 3] of a step."""
        links, numbers_B = self.order.batch(step)
        columns = (np.full(len(numbers_B), self.order.passes.index(links)), numbers_B)
        return np.stack([*columns, np.full(len(numbers_B), self.order.epoch_of(step))], axis=1)

    def count_share(self, step: int) -> int:
        """Return the size of a step's batch, which is smaller at the end of a pass."""
        return len(self.order.batch(step)[1])

    def _sample(self, draw: Sequence[int], failures: list[BadSample]) -> dict[str, Any]:
        index, number, epoch = draw
        links = self.order.passes[index]
        head = int(links.heads_N[number])
        if links.relation is Relation.PARENT:
            sample = {"inputs": torch.tensor(head), "head": head, "label": int(links.tails_N[number])}
        else:
            sample = self._load(self.dataset, links.heads_N, None, head, epoch, failures)
            # Take the label of the image that was loaded: it replaces the drawn one if that could not be read.
            sample["label"] = self._tails[index][sample["head"]]
        return {**sample, "relation": links.relation}


class _PixelDataset:
    def __init__(self, load: Callable[[int], Tensor], keys: Sequence[str]) -> None:
        self._load, self._keys = load, keys

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        try:
            return {"inputs": self._load(row), "head": row}
        except BadImage as problem:
            raise BadSample(self._keys[row], str(problem)) from problem

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "relation": samples[0]["relation"],
            "inputs": torch.stack([sample["inputs"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples]),
            "heads": torch.tensor([sample["head"] for sample in samples]),
        }
