"""A small next-token task with a second loss over words, run as a script by the tests: one process, or one of several.

    python language_toy.py RUN_FOLDER --accumulate 3 --parallel ddp

writes the whole weights after training to `final.safetensors`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.runs import RunFolder
from foveate.training import checkpoint, distributed
from foveate.training.loader import Loader
from foveate.training.loop import train
from foveate.training.settings import TrainingSettings
from foveate.training.task import Task

VOCABULARY, LENGTH, ROWS, BATCH = 11, 9, 24, 8


class LanguageToy(Task):
    """Predicts the next token where it is a target, and the class of rows that have one."""

    find_unused_parameters: ClassVar[bool] = True  # a part without any class leaves the classifier unused

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.mix = nn.Linear(8, 8)
        self.classify = nn.Linear(8, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.5, generator=generator)

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        state = torch.tanh(self.mix(self.embed(batch["ids"]))).cumsum(dim=1)
        target = batch["target"][:, 1:]
        logits = (state[:, :-1] @ self.embed.weight.T)[target]
        labels = batch["ids"][:, 1:][target]
        token_loss = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        with_class = batch["class"] >= 0
        terms = {"token_loss": token_loss}
        if with_class.any():
            terms["class_loss"] = F.cross_entropy(
                self.classify(state.mean(dim=1))[with_class], batch["class"][with_class]
            )
        else:
            terms["class_loss"] = self.classify.weight.sum() * 0.0 + self.classify.bias.sum() * 0.0
        right = (logits.argmax(-1) == labels).float().sum() / max(len(labels), 1)
        return {**terms, "loss": self.total(terms)}, {"token_accuracy": right}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["token_loss"] + 0.5 * terms["class_loss"]

    def count_targets(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"loss": float(batch["target"][:, 1:].sum()), "class_loss": float((batch["class"] >= 0).sum())}

    def export(self, folder: Path) -> None:
        raise AssertionError("the toy is never exported")


class LanguageSamples:
    """Rows of 0 to 8 target tokens; a third has no class."""

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        generator = np.random.default_rng([row, epoch, seed])
        first = int(generator.integers(1, LENGTH + 1))
        return {
            "ids": generator.integers(VOCABULARY, size=LENGTH),
            "target": np.arange(LENGTH) >= first,
            "class": int(generator.integers(3)) if row % 3 else -1,
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def language_settings(**changes: Any) -> TrainingSettings:
    fields = {"steps": 4, "batch_size": BATCH, "learning_rate": 0.3, "optimizer": "sgd", "log_every": 1}
    return TrainingSettings(**(fields | changes))


def language_loader(*, rank: int = 0, world_size: int = 1) -> Loader:
    return Loader(
        LanguageSamples(), rows=np.arange(ROWS), batch_size=BATCH, seed=0, workers=0, rank=rank, world_size=world_size
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--parallel", default="ddp")
    options = parser.parse_args()
    with distributed.start("cpu") as world:
        task = LanguageToy()
        settings = language_settings(accumulate=options.accumulate, parallel=options.parallel)
        loader = language_loader(rank=world.rank, world_size=world.size)
        train(task, loader, settings, RunFolder.create(options.run))
        weights = checkpoint.gather_weights(task)
        if world.is_main:
            save_file(weights, options.run / "final.safetensors")


if __name__ == "__main__":
    main()
