"""Train an adapter for a vision-language model: recipe and collection in; curves, controls and a folder of PEFT out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core import seeds
from foveate.core.devices import autocast_dtype, choose_device
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.core.progress import duration, say
from foveate.core.runs import RunFolder
from foveate.mllm.data import hash_collection
from foveate.mllm.results import MllmResult, StageResult
from foveate.mllm.tuning.network import (
    Base,
    check_memory,
    check_opening,
    describe_memory,
    estimate_memory,
    load_network,
    open_base,
    read_state,
    save_adapter,
)
from foveate.mllm.tuning.recipe import TuningRecipe
from foveate.mllm.tuning.samples import TuningRow, TuningSamples, check_conversations, select_conversations
from foveate.multimodal.foreign import BATCHED
from foveate.records.collection import Collection
from foveate.training.costs import count_parameters
from foveate.training.distributed import start
from foveate.training.loader import BadSample, Loader
from foveate.training.loop import TrainingOutcome
from foveate.training.run import Run
from foveate.training.task import Batch, Losses, Report, Task
from foveate.training.timing import StepTimes, time_steps

# Conversations that are written before the weights are loaded: their length decides the memory.
_LOOKED_AT = 16
BEFORE, FOLDER = "before.json", "adapter"


class TuningTask(Task):
    """A model of PEFT and the cross entropy of the tokens of answers.

    Args:
        model: of PEFT, trained in place.
        validation: conversations that `evaluate` measures; None: it measures nothing.
    """

    def __init__(self, model: nn.Module, *, validation: TuningSamples | None = None) -> None:
        super().__init__()
        self.model = model
        self._validation = validation
        base: Any = model
        self._is_batched = base.config.model_type in BATCHED
        self._dtype = base.get_base_model().dtype

    def to(self, *arguments: Any, **named: Any) -> TuningTask:
        """Move the model, unless a device map has placed its parts."""
        base: Any = self.model
        return self if getattr(base.get_base_model(), "hf_device_map", None) else super().to(*arguments, **named)

    def prepare_batch(self, batch: Batch, device: torch.device) -> Batch:
        """Move the rows to the device, pixels in the dtype of the base's weights."""
        return {"rows": [TuningRow(self._move(row.inputs, device), row.learned_T.to(device)) for row in batch["rows"]]}

    def _move(self, inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        return {
            name: value.to(device, self._dtype if value.is_floating_point() else None) for name, value in inputs.items()
        }

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Compute the means over the tokens of answers."""
        scores = self.score(batch["rows"])
        count = sum(len(loss_N) for loss_N, _ in scores)
        loss = torch.stack([loss_N.sum() for loss_N, _ in scores]).sum() / count
        right = torch.stack([right_N.sum() for _, right_N in scores]).sum() / count
        return {"loss": loss}, {"token_accuracy": right}

    def count_targets(self, batch: Batch) -> dict[str, float]:
        """Count the tokens of answers."""
        return {"loss": float(sum(int(row.learned_T.sum()) for row in batch["rows"]))}

    def score(self, rows: Sequence[TuningRow]) -> list[tuple[Tensor, Tensor]]:
        """Return for each row the cross entropy of its learned tokens and whether each is the likeliest one."""
        stacked = stack_rows(rows) if self._is_batched and len(rows) > 1 else None
        together = None if stacked is None else self.model(**stacked, use_cache=False).logits
        scores = []
        for number, row in enumerate(rows):
            row_TV = self.model(**row.inputs, use_cache=False).logits[0] if together is None else together[number]
            # Position t predicts token t + 1; padding stands behind.
            of_row_TV = row_TV[: len(row.learned_T) - 1]
            logits_NV = of_row_TV[row.learned_T[1:]].float()
            targets_N = row.inputs["input_ids"][0, 1:][row.learned_T[1:]]
            scores.append((F.cross_entropy(logits_NV, targets_N, reduction="none"), logits_NV.argmax(-1) == targets_N))
        return scores

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Measure the validation conversations."""
        assert self._validation is not None
        return measure(self, self._validation)

    def export(self, folder: Path) -> None:
        """Write nothing: the run writes the adapter with what it knows of its origin."""


def stack_rows(rows: Sequence[TuningRow]) -> dict[str, Tensor] | None:
    """Return rows as one batch, padded behind; None where the images of one have other sizes than those of another."""
    first, lengths = rows[0].inputs, [len(row.learned_T) for row in rows]
    stacked = {}
    for name, value in first.items():
        values = [row.inputs.get(name) for row in rows]
        if any(each is None for each in values):
            return None
        if value.shape == (1, lengths[0]):
            # Attention is 0 there, so that no token of a conversation reads what fills its row.
            stacked[name] = torch.cat(
                [F.pad(each, (0, max(lengths) - each.shape[1])) for each in values if each is not None]
            )
        elif any(each.shape[1:] != value.shape[1:] for each in values if each is not None):
            return None
        else:
            stacked[name] = torch.cat([each for each in values if each is not None])
    return stacked


@torch.no_grad()
def measure(task: TuningTask, samples: TuningSamples, *, other_images: bool = False) -> dict[str, float]:
    """Measure loss, share of likeliest tokens, and share of answers that are likeliest as a whole.

    Args:
        other_images: show each conversation the images of another one, as a control.
    """
    device = next(task.parameters()).device
    losses, right, exact = 0.0, 0, []
    tokens = 0
    for row in range(len(samples)):
        try:
            other = samples.find_other(row) if other_images else None
            if other_images and other is None:
                continue
            encoded = samples.encode(row, images_of=other)
        except BadSample:
            continue
        ((loss_N, right_N),) = task.score(task.prepare_batch({"rows": [encoded]}, device)["rows"])
        losses += float(loss_N.sum())
        tokens += len(loss_N)
        right += int(right_N.sum())
        exact.append(bool(right_N.all()))
    if not tokens:
        return {}
    return {"loss": losses / tokens, "token_accuracy": right / tokens, "exact": sum(exact) / len(exact)}


@dataclass
class Tuned:
    """A training run; `adapter` is None if it was stopped before its end, and on other ranks."""

    run: RunFolder
    result: MllmResult
    adapter: Path | None
    is_main: bool


def tune(
    recipe: TuningRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: Sequence[str] = (),
) -> Tuned:
    """Train the adapter of a recipe on a collection; the same call again resumes.

    Raises:
        UserError: the base is no vision-language model or does not fit the memory, the collection has no conversation
            for it, or the run folder holds another run.
    """
    with Run(recipe, run_path, device=device, command=command, free=("device_map",), prepared=(BEFORE,)) as run:
        tuning = Tuning(recipe, collection, run.here.device)
        tuning.check()
        run.open({"collection": {"name": collection.name, "sha256": hash_collection(collection)}})
        checkpoint = tuning.base.checkpoint
        run.identify(base={"source": recipe.base, "sha256": checkpoint.commit or checkpoint.digest()})
        task = tuning.load()
        before = tuning.measure_before(run.path / BEFORE, write=run.here.is_main)
        loader = tuning.loader(rank=run.here.rank, world_size=run.here.size)
        outcome = run.train(task, loader, tuning.training)
        folder = None
        if run.saves(outcome):
            notes = run.provenance(
                base=recipe.base, collection=collection.name, license=collection.license, split=recipe.split
            )
            folder = tuning.save(run.path / FOLDER, notes)
        result = tuning.result(outcome, before, command=run.command or [])
        run.write_result(result)
        is_main = run.here.is_main
    return Tuned(run.folder, result, folder, is_main)


class Tuning:
    """What a run and a dry run of an adapter share: base, conversations, memory, and the task.

    Args:
        collection: of conversations.
    """

    def __init__(self, recipe: TuningRecipe, collection: Collection, device: torch.device) -> None:
        check_opening(recipe, device)
        self.recipe, self.collection, self.device = recipe, collection, device
        self.base: Base = open_base(recipe)
        # A family whose way with boxes is not known learns what has none.
        unit = self.base.model.unit or "none"
        conversations, self.left_out = select_conversations(collection, recipe.split, unit=unit)
        check_conversations(
            conversations, self.left_out, collection, split=recipe.split, model_type=self.base.model_type
        )
        self.conversations = conversations
        self.samples = self._samples(conversations)
        held, _ = select_conversations(collection, recipe.validation_split, unit=unit)
        drawn = seeds.draw(
            [f"{talk.source} {talk.id}" for talk in held], recipe.validation_conversations,
            "validation", recipe.training.seed, what="conversation",
        )  # fmt: skip
        self.validation = self._samples([held[index] for index in drawn]) if held else None
        self.training = recipe.training
        if self.validation is None:
            # Without a measure there is nothing to stop by; a recipe asks for one where there is.
            self.training = recipe.training.model_copy(
                update={"evaluate_every": None, "monitor": None, "patience": None, "restore_best": False}
            )
        self.task: TuningTask | None = None
        self._initial: dict[str, Tensor] | None = None

    def _samples(self, conversations: Sequence[Any]) -> TuningSamples:
        return TuningSamples(self.base.model, self.collection, conversations, max_positions=self.base.max_positions)

    def check(self) -> dict[str, float]:
        """Say what is trained on what; return the memory that it needs.

        Raises:
            UserError: the template does not fit, or there is not enough memory.
        """
        for reason, count in self.left_out.items():
            say(f"left out: {count} conversations, {reason}; --unit-of-boxes writes boxes in a unit")
        if self.validation is None:
            say(f"split '{self.recipe.validation_split}' has no conversations: nothing is measured, no early stop")
        memory = estimate_memory(self.base, self.recipe, self.device, tokens=self._longest())
        say(
            f"{self.base.trained:,} parameters trained beside {count_parameters(self.base.model.model):,}; memory "
            f"about {describe_memory(memory)}"
        )
        check_memory(memory, self.device, is_spread=self.recipe.device_map is not None)
        return memory

    def _longest(self) -> int:
        """Return the tokens of the longest of some conversations; raise UserError if none of them can be used."""
        step = max(1, len(self.samples) // _LOOKED_AT)
        lengths, problems = [], []
        for row in range(0, len(self.samples), step):
            try:
                lengths.append(len(self.samples.encode(row).learned_T))
            except BadSample as problem:
                problems.append(problem)
        if not lengths:
            raise UserError(f"none of {len(problems)} conversations can be learned, such as {problems[0]}")
        return max(lengths)

    def load(self) -> TuningTask:
        """Load the base with its adapter."""
        network = load_network(self.base, self.recipe, self.device)
        if self.recipe.adapter.method == "pissa":
            self._initial = read_state(network)
        self.task = TuningTask(network, validation=self.validation)
        return self.task

    def loader(self, **options: Any) -> Loader:
        """Return the loader of the conversations."""
        training = self.training
        return Loader(
            self.samples,
            rows=self.samples.rows,
            batch_size=training.batch_size,
            seed=training.seed,
            workers=training.workers,
            **options,
        )

    def measure_before(self, path: Path, *, write: bool) -> dict[str, dict[str, float]]:
        """Measure the untrained adapter, once for all sessions of a run."""
        if path.is_file():
            return read_json(path)
        measured = self._measure()
        if write:
            write_json_atomically(path, measured)
        return measured

    def _measure(self) -> dict[str, dict[str, float]]:
        if self.validation is None:
            return {}
        assert self.task is not None
        task, precision = self.task.to(self.device).eval(), autocast_dtype(self.training.precision, self.device)
        with torch.autocast(self.device.type, precision or torch.bfloat16, enabled=precision is not None):
            rows = {
                "own image": measure(task, self.validation),
                "another image": measure(task, self.validation, other_images=True),
            }
        return {name: row for name, row in rows.items() if row}

    def save(self, folder: Path, notes: Mapping[str, Any]) -> Path:
        """Write the adapter's folder."""
        assert self.task is not None
        base = self.recipe.base
        # A folder is named from any working directory.
        name = str(Path(base).expanduser().resolve()) if Path(base).expanduser().is_dir() else base
        notes = {"unit_of_boxes": self.base.model.unit or "none", **notes}
        return save_adapter(self.task.model, folder, base=name, initial=self._initial, notes=notes)

    def result(
        self, outcome: TrainingOutcome, before: dict[str, dict[str, float]], *, command: Sequence[str]
    ) -> MllmResult:
        """Put the result together; a finished training is measured as it was before."""
        assert self.task is not None
        finished = outcome.status == "finished"
        stage = StageResult(
            name="tuning",
            status=outcome.status,
            steps=outcome.step,
            seconds=round(outcome.seconds, 1),
            samples=len(self.samples),
            bad_samples=outcome.bad_samples,
            last=outcome.last_row,
            curves="metrics.jsonl",
        )
        return MllmResult(
            status=outcome.status,
            recipe=self.recipe.model_dump(mode="json"),
            command=list(command),
            collection=self.collection.name,
            images=len({key for talk in self.conversations for key in talk.images}),
            conversations=dict(Counter(talk.group for talk in self.conversations)),
            names=0,
            parameters=count_parameters(self.task.model),
            stages=[stage],
            seconds=round(outcome.seconds, 1),
            model=f"{FOLDER}/",
            initial=self.recipe.base,
            trained=self.base.trained,
            left_out=dict(self.left_out),
            before=before,
            after=self._measure() if finished else {},
        )

    def time_steps(self) -> StepTimes:
        """Load the base and time the first steps of the training, and an evaluation."""
        return time_steps(self.load(), self.loader(), self.training, evaluate=self.validation is not None)


def plan_tuning(
    recipe: TuningRecipe, collection: Collection, *, device: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return trainable parameters, memory and the time of the run, and the same in lines; nothing is trained."""
    tuning = Tuning(recipe, collection, choose_device(device or "auto"))
    memory = tuning.check()
    with start(device or "auto"):
        times = tuning.time_steps()
    # Before and after the training, with the own image and with another one.
    seconds = times.total(tuning.training, evaluations=4)
    steps, total = recipe.training.steps, count_parameters(tuning.base.model.model)
    result = {
        "kind": "tuning-plan",
        "base": recipe.base,
        "parameters": total,
        "trained": tuning.base.trained,
        "targets": len(tuning.base.targets),
        "conversations": len(tuning.samples),
        "left_out": dict(tuning.left_out),
        "memory_bytes": {name: round(value) for name, value in memory.items()},
        "seconds_per_step": times.step,
        "seconds_per_evaluation": times.evaluation,
        "seconds": seconds,
    }
    lines = [
        f"base: {recipe.base}, {total:,} parameters; boxes: {tuning.base.model.unit}",
        f"trained: {tuning.base.trained:,} parameters, {recipe.adapter.method} on {len(tuning.base.targets)} layers",
        f"conversations: {len(tuning.samples)}, left out: {sum(tuning.left_out.values())}",
        f"memory: about {describe_memory(memory)}",
        f"a step of {recipe.training.batch_size}: {times.step:.2f} s, an evaluation {times.evaluation:.1f} s; "
        f"{steps} steps: about {duration(seconds)}",
    ]
    return result, lines
