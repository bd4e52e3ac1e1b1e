"""A small contrastive task with ragged regions, run as a script by the tests: one process, or one of several.

    python contrastive_toy.py RUN_FOLDER --steps 5 --parallel ddp

writes `final.safetensors` (the whole weights), `average.safetensors` and `outcome.json` into the run folder.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.core.runs import RunFolder
from foveate.training import checkpoint, distributed
from foveate.training.loader import Loader
from foveate.training.loop import train
from foveate.training.optimizer import ParameterRule
from foveate.training.order import batch_rows
from foveate.training.settings import TrainingSettings
from foveate.training.task import EmbeddingTask

ROWS, BATCH, SEED = 24, 8, 3


def symmetric_cross_entropy(a_NE: Tensor, b_NE: Tensor, scale: Tensor) -> Tensor:
    if len(a_NE) == 0:
        return (a_NE.sum() + b_NE.sum()) * 0.0
    logits = scale * F.normalize(a_NE, dim=-1) @ F.normalize(b_NE, dim=-1).T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ContrastiveToy(EmbeddingTask):
    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.text = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8))
        self.frozen = nn.Linear(6, 6)
        self.prompter = nn.Linear(4, 8)
        self.log_scale = nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.3, generator=generator)
                elif "log_scale" not in name:
                    parameter.fill_(1.0 if "text.1.weight" in name else 0.0)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image_BE = self.image(self.frozen(batch["image"]))
        region_RE = self.prompter(batch["boxes"]) + image_BE[batch["image_of_region"]]
        texts = {"text": self.text(batch["text"]), "phrase": self.text(batch["phrases"])}
        return {"image": image_BE, "region": region_RE, **texts}

    def loss_of(
        self, batch: dict[str, Any], *, embeddings: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        self.seen += 1
        scale = self.log_scale.exp()
        image_NE, text_NE = (distributed.gather_with_grad(embeddings[name]) for name in ("image", "text"))
        clip = symmetric_cross_entropy(image_NE, text_NE, scale)
        regions = distributed.gather_ragged_with_grad(embeddings["region"])
        phrases = distributed.gather_ragged_with_grad(embeddings["phrase"])
        region = symmetric_cross_entropy(regions, phrases, scale)
        labeled = distributed.all_sum(batch["image_of_region"].unique().numel()) / BATCH
        total = clip + labeled * region
        return {"loss": total, "clip_loss": clip, "region_loss": region}, {"regions": float(len(regions))}

    def split(self, batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
        found = []
        for rows in torch.arange(len(batch["image"])).tensor_split(parts):
            inside = torch.isin(batch["image_of_region"], rows)
            part = {name: batch[name][rows] for name in ("image", "text")}
            part |= {name: batch[name][inside] for name in ("boxes", "phrases")}
            found.append(part | {"image_of_region": batch["image_of_region"][inside] - rows[0]})
        return found

    def evaluate(self, step: int) -> dict[str, float]:
        """The loss of one fixed batch without its gathers, and a random number."""
        batch = ContrastiveSamples().collate([ContrastiveSamples().sample(row, 0, SEED) for row in range(4)])
        assert not self.training
        assert not torch.is_grad_enabled()
        embeddings = self.embed(batch)
        loss = symmetric_cross_entropy(embeddings["image"], embeddings["text"], self.log_scale.exp())
        return {"loss": loss.item(), "draw": torch.rand(()).item()}

    def parameter_groups(self) -> list[ParameterRule]:
        return [
            ParameterRule(r"frozen\..*", frozen=True),
            ParameterRule("log_scale", learning_rate_scale=0.5),
        ]

    def shard_units(self) -> list[nn.Module]:
        return [self.image, self.text]

    def export(self, folder: Path) -> None:
        raise AssertionError("the toy is never exported")


class ContrastiveSamples:
    """Zero to three regions per row; none at all for the rows that rank 1 of 2 sees in steps 0 and 3."""

    def __init__(self) -> None:
        rows = np.arange(ROWS)
        self.without = {
            int(row)
            for step in (0, 3)
            for row in batch_rows(step, rows=rows, batch_size=BATCH, seed=SEED, rank=1, world_size=2)[:, 0]
        }

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        generator = np.random.default_rng([row, epoch, seed])
        count = 0 if row in self.without else int(generator.integers(1, 4))
        corners = np.sort(generator.random((count, 2, 2)), axis=1).reshape(count, 4)
        return {
            "image": generator.normal(size=6),
            "text": generator.normal(size=5),
            "boxes": corners,
            "phrases": generator.normal(size=(count, 5)),
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.astype(np.float32))

        counts = [len(sample["boxes"]) for sample in samples]
        return {
            "image": tensor(np.stack([sample["image"] for sample in samples])),
            "text": tensor(np.stack([sample["text"] for sample in samples])),
            "boxes": tensor(np.concatenate([sample["boxes"] for sample in samples])),
            "phrases": tensor(np.concatenate([sample["phrases"] for sample in samples])),
            "image_of_region": torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        }


def toy_settings(**changes: Any) -> TrainingSettings:
    fields = {
        "steps": 12,
        "batch_size": BATCH,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "seed": SEED,
        "log_every": 1,
        "checkpoint_every": 5,
    }
    return TrainingSettings(**(fields | changes))


def toy_loader(*, workers: int = 2, rank: int = 0, world_size: int = 1) -> Loader:
    return Loader(
        ContrastiveSamples(),
        rows=np.arange(ROWS),
        batch_size=BATCH,
        seed=SEED,
        workers=workers,
        rank=rank,
        world_size=world_size,
    )


class Interrupted:
    """A loader during whose batch number `step` a signal arrives."""

    def __init__(self, loader: Loader, *, step: int, number: signal.Signals) -> None:
        self.loader = loader
        self.step = step
        self.number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(self.loader.batches(start_step, stop_step), start=start_step):
            if step == self.step:
                signal.raise_signal(self.number)
            yield batch


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--parallel", default="ddp")
    parser.add_argument("--checkpoint-every", type=int, default=5)
    parser.add_argument("--stop-in-step", type=int)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--evaluate-every", type=int)
    parser.add_argument("--frozen-bf16", action="store_true")
    parser.add_argument("--settings", type=json.loads, default={})
    options = parser.parse_args(words)
    with distributed.start("cpu") as world:
        given = {
            "steps": options.steps,
            "parallel": options.parallel,
            "checkpoint_every": options.checkpoint_every,
            "evaluate_every": options.evaluate_every,
            "precision": "bf16" if options.frozen_bf16 else "fp32",
            "frozen_precision": "bf16" if options.frozen_bf16 else "fp32",
            "monitor": options.evaluate_every and "loss",
        }
        settings = toy_settings(**given | options.settings)
        task = ContrastiveToy(dropout=options.dropout)
        loader: Any = toy_loader(rank=world.rank, world_size=world.size)
        if options.stop_in_step is not None and world.rank == world.size - 1:
            loader = Interrupted(loader, step=options.stop_in_step, number=signal.SIGTERM)
        outcome = train(task, loader, settings, RunFolder.create(options.run))
        weights = checkpoint.gather_weights(task)
        average = checkpoint.gather_weights(task, ema=outcome.ema)
        if world.is_main and outcome.status == "finished":
            save_file(weights, options.run / "final.safetensors")
            save_file(average, options.run / "average.safetensors")
            described = {
                "model": [kind.__name__ for kind in type(outcome.model).__mro__],
                "parameter": type(task.log_scale).__name__,
                "sharded": [type(parameter.data).__name__ for parameter in task.parameters()],
                "step": outcome.step,
            }
            (options.run / "outcome.json").write_text(json.dumps(described))


if __name__ == "__main__":
    main()
