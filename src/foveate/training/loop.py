"""The training loop: one process, DDP or FSDP2, with resume, safe stop and a log. Read from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from foveate.core import seeds
from foveate.core.devices import autocast_dtype, emulates_bf16
from foveate.core.errors import UserError, choose
from foveate.core.files import FolderLock, fsync_path, read_json, write_json_atomically
from foveate.core.progress import say, track
from foveate.core.runs import RunFolder
from foveate.core.stopping import StopRequest
from foveate.training import checkpoint
from foveate.training.accumulation import check_accumulation, forward_and_backward
from foveate.training.distributed import (
    World,
    all_sum,
    any_rank,
    barrier,
    broadcast_json,
    mean_over_ranks,
    recomputing,
    world,
    wrap,
)
from foveate.training.ema import ExponentialAverage
from foveate.training.loader import BatchSource
from foveate.training.optimizer import (
    ParameterRow,
    build_optimizer,
    freeze,
    frozen_in_bf16,
    parameter_table,
    set_learning_rate,
)
from foveate.training.settings import TrainingSettings
from foveate.training.task import Report, Task

# Both decide which samples a step sees.
_MUST_NOT_CHANGE = ("seed", "batch_size")
# Settings that change neither weights nor metrics, the last two but for rounding; a run may be resumed with other ones.
WITHOUT_INFLUENCE = (
    "log_every", "checkpoint_every", "keep_checkpoints", "checkpoints", "parallel", "shard_size", "offload",
    "activation_checkpointing", "workers", "gathered_precision", "compile",
)  # fmt: skip
_MAX_KEYS = 64  # named in an error


class TrainingError(UserError):
    """Training diverged: the loss or its gradient is no longer a finite number."""


@dataclass
class BestEvaluation:
    """The best evaluation so far, and how many have followed it without improvement.

    It is stored in every checkpoint: a resumed run stops at the same step as an uninterrupted one.

    Attributes:
        step: of the best evaluation; 0 while there is none.
        value: of the monitored metric at that step.
        since: evaluations after the best one.
    """

    step: int = 0
    value: float | None = None
    since: int = 0

    def update(self, value: float, *, step: int, settings: TrainingSettings) -> bool:
        """Take in the metric of an evaluation; return whether it is the best so far.

        A metric that is not a number never improves, so a diverged run uses up its patience.
        """
        if self.value is None:
            improved = not math.isnan(value)
        elif value == self.value:
            improved = settings.ties == "later"
        else:
            improved = value > self.value if settings.monitor_mode == "max" else value < self.value
        if improved:
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1
        return improved

    def is_exhausted(self, settings: TrainingSettings) -> bool:
        """Whether `settings.patience` evaluations have passed without improvement."""
        return settings.patience is not None and self.since >= settings.patience


@dataclass
class TrainingOutcome:
    """Result of `train`; the weights themselves are in the task.

    Attributes:
        status: "finished", or "stopped" by a signal after a checkpoint.
        step: steps done, over all sessions.
        seconds: time in the loop, over all sessions.
        last_row: the last row written to metrics.jsonl in this session, or empty.
        model: the module that was called: the task, its DistributedDataParallel or the sharded task.
        ema: the averaged weights, if there are any: `with outcome.ema.applied(task): task.export(folder)`.
        best: step and value of the best evaluation; its step is 0 where nothing was monitored.
        stopped_early: whether training ended because the evaluations no longer improved; the status is "finished".
        bad_samples: key -> reason, of samples that this rank could not use.
        bad_draws: how often such samples were drawn on all ranks, over all sessions.
    """

    status: Literal["finished", "stopped"]
    step: int
    seconds: float
    model: nn.Module
    ema: ExponentialAverage | None
    last_row: dict[str, Any] = field(default_factory=dict)
    best: BestEvaluation = field(default_factory=BestEvaluation)
    stopped_early: bool = False
    bad_samples: dict[str, str] = field(default_factory=dict)
    bad_draws: int = 0


def train(
    task: Task,
    loader: BatchSource,
    settings: TrainingSettings,
    run: RunFolder,
    *,
    content: Mapping[str, str] | None = None,
    resume: bool = True,
) -> TrainingOutcome:
    """Train `task` on `loader` for `settings.steps` steps.

    Called inside `foveate.training.distributed.start()` on every process; all build the same task. Checkpoints are
    in `run.path / "checkpoints"`, the log in metrics.jsonl. The same call again resumes from the newest whole
    checkpoint. On a CPU in fp32 it ends with exactly the weights of an uninterrupted run: order, views, dropout and
    learning rate are functions of the step, and weights, moments, average and best evaluation are stored.

    Args:
        content: name -> hash of the content of each data set; a run resumes only on the same content. None, and
            checkpoints without hashes, compare only what the loader describes.
        resume: False removes the checkpoints, rows and lists of bad samples of the folder first and starts over.

    Raises:
        TrainingError: loss or gradient are not finite; the weights are then those before that step.
        UserError: the checkpoint belongs to other data or settings, or a parameter rule is wrong.
    """
    with open_session(task, loader, settings, run, content=content) as session:
        return _run(session, resume=resume)


@contextlib.contextmanager
def open_session(
    task: Task,
    loader: BatchSource,
    settings: TrainingSettings,
    run: RunFolder,
    *,
    content: Mapping[str, str] | None = None,
) -> Iterator[Session]:
    """Prepare a task for its steps: check it, freeze, move, wrap, and make its optimizer; see `train`."""
    here = world()
    assert loader.batch_size == settings.batch_size, "the loader was made for another batch size"
    assert loader.world_size == here.size, "the loader was made for another number of processes"
    check_accumulation(task, parts=settings.accumulate, rows=settings.batch_size // here.size)
    _check_evaluation(task, settings)
    table = parameter_table(task, rules=task.parameter_groups(), settings=settings)
    freeze(task, table=table)
    # Hashed before anything is cast or sharded: the base is known by its full precision.
    identity = {
        "data": loader.describe(),
        "content": dict(content or {}),
        "frozen_hash": checkpoint.frozen_hash(task),
    }
    task.to(here.device)
    task.train()
    uses_bf16 = autocast_dtype(settings.precision, here.device) is not None
    if uses_bf16 and here.is_main and emulates_bf16(here.device):
        say("precision bf16: this processor has no instructions for bfloat16; auto or fp32 is faster here")
    with contextlib.ExitStack() as stack:
        if uses_bf16 and settings.frozen_precision == "bf16":
            stack.enter_context(frozen_in_bf16(task))
        if settings.activation_checkpointing:
            stack.enter_context(recomputing(task))
        yield Session(task, loader, settings, run, table=table, identity=identity)


def _run(session: Session, *, resume: bool) -> TrainingOutcome:
    """Find the checkpoint to start from, and take the steps."""
    loader, settings, outcome, here = session.loader, session.settings, session.outcome, session.here
    lock = FolderLock(session.folder, purpose="training") if here.is_main else contextlib.nullcontext()
    with lock, StopRequest() as stop:
        session.start(resume=resume)
        stop_step = outcome.step if outcome.stopped_early else settings.steps
        batches = loader.batches(outcome.step, stop_step)
        with contextlib.ExitStack() as exits:
            # At any exit: the list of unusable samples may explain why a training failed.
            exits.callback(session.write_bad_samples)
            # So that no loader thread outlives the loop.
            exits.enter_context(contextlib.closing(batches))
            for step in _track_steps(outcome.step, stop_step, here):
                taken = session.take_step(step, batches, stop)
                improved = session.log(taken)
                last = outcome.step == settings.steps or outcome.stopped_early
                # An improvement is saved at once: the best weights and the state that names them are one checkpoint.
                if taken.stopping or last or improved or outcome.step % settings.checkpoint_every == 0:
                    session.save()
                if taken.stopping and not last:  # a signal in the last step stops nothing
                    outcome.status = "stopped"
                if taken.stopping or outcome.stopped_early:
                    break
        assert session.saved_step == outcome.step, "the last step was not saved"
        best = outcome.best.step
        # Only at the end: a stopped run resumes from its newest step, not from its best one.
        if settings.restore_best and best and outcome.status == "finished":
            session.load(checkpoint.folder_of_step(session.folder, best).name)
        outcome.bad_samples = dict(loader.bad_samples)
        barrier()  # no rank returns, and exports or resumes, before rank 0 has written everything
    if outcome.status == "stopped" and here.is_main:
        say(f"stopped after step {outcome.step}/{settings.steps}; run the same command to resume")
    return outcome


class _Step(NamedTuple):
    """A step that was taken; losses and report are on the device until they are logged.

    stopping: whether a signal has come to any rank.
    """

    learning_rate: float
    losses: Mapping[str, Tensor]
    report: Report
    gradient_norm: float
    stopping: bool


class Session:
    """What the steps of one session of a training share; one that was interrupted has several sessions.

    Attributes:
        folder: of the checkpoints.
        saved_step: step of the newest checkpoint.
    """

    def __init__(
        self,
        task: Task,
        loader: BatchSource,
        settings: TrainingSettings,
        run: RunFolder,
        *,
        table: Sequence[ParameterRow],
        identity: dict[str, Any],
    ) -> None:
        self.task, self.loader, self.settings, self.run, self.identity = task, loader, settings, run, identity
        self.here, self.folder = world(), run.path / "checkpoints"
        # Averages start from whole weights, so they are made before FSDP2 shards them.
        ema = ExponentialAverage(task, decay=settings.ema_decay) if settings.ema_decay is not None else None
        if settings.parallel == "fsdp" and self.here.size == 1:
            say("parallel 'fsdp' has no effect with one process")
        model = wrap(task, settings)
        if ema is not None:
            ema.shard_like(task)
        self.optimizer = build_optimizer(task, table=table, settings=settings)
        # After wrapping: FSDP2 has replaced the parameters by its shards.
        self.trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
        self.outcome = TrainingOutcome("finished", step=0, seconds=0.0, model=model, ema=ema)

    def start(self, *, resume: bool) -> None:
        """Load the newest checkpoint, if there is one, and start the clock."""
        state = _find_state(self.folder, self.run, settings=self.settings, identity=self.identity, resume=resume)
        if not resume:
            # On every rank, as each has its own list, perhaps on its own disk.
            for path in self.run.path.glob("bad-samples-*.json"):
                path.unlink(missing_ok=True)
        if state["step"]:
            self.load(state["checkpoint"], self.optimizer)
        outcome = self.outcome
        outcome.step, outcome.seconds = state["step"], state["seconds"]
        outcome.best = BestEvaluation(**state["best"])
        outcome.stopped_early = outcome.best.is_exhausted(self.settings)
        # Counts of earlier sessions; this session's are added to them.
        self._earlier_seconds, self._earlier_bad_draws = state["seconds"], state["bad_draws"]
        self._started = self._logged = time.monotonic()
        self.saved_step, self._logged_drawn = outcome.step, self.loader.drawn
        self._report: dict[str, float] = {}

    def load(self, name: str, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load weights and average of a checkpoint, and the moments of an optimizer, if given."""
        base = self.identity["frozen_hash"]
        checkpoint.load(self.folder / name, module=self.task, optimizer=optimizer, ema=self.outcome.ema, base=base)

    def take_step(self, step: int, batches: Iterator[dict[str, Any]], stop: StopRequest) -> _Step:
        """Take one step.

        Raises:
            TrainingError: see `train`.
        """
        task, settings, here, outcome = self.task, self.settings, self.here, self.outcome
        # A function of the step, set anew each time: nothing to store, nothing to resume.
        learning_rate = settings.learning_rate * task.learning_rate_factor(step, settings=settings)
        set_learning_rate(self.optimizer, learning_rate=learning_rate)
        precision = autocast_dtype(settings.precision, here.device)
        with _seeded_step("step", settings.seed, step, here):
            batch = task.prepare_batch(next(batches), here.device)
            losses, report = forward_and_backward(
                outcome.model, task, batch, parts=settings.accumulate, precision=precision
            )
        gradient_norm = _clip_gradients(self.trained, max_norm=settings.gradient_clip_norm)

        # One collective for both questions, and before the step: weights never take in a gradient that is not
        # finite, and no rank stops while another waits for it in an all-reduce.
        finite = math.isfinite(losses["loss"].item()) and math.isfinite(gradient_norm)
        stopping, broken = any_rank(stop.signal_name is not None, not finite)
        if broken:
            problem = _describe_divergence(step + 1, losses, gradient_norm, self._report, self.run)
            raise TrainingError(problem + _name_samples(task.batch_keys))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # frees the gradients' memory for the next forward pass
        if outcome.ema is not None:
            outcome.ema.update(task, step=step)
        outcome.step = step + 1
        outcome.seconds = self._earlier_seconds + time.monotonic() - self._started
        outcome.bad_draws = self._earlier_bad_draws + self.loader.bad_draws
        return _Step(learning_rate, losses, report, gradient_norm, stopping)

    def log(self, taken: _Step) -> bool:
        """Write a row, and evaluate, where the step is due for it; return whether this evaluation is the best."""
        task, settings, outcome, loader = self.task, self.settings, self.outcome, self.loader
        evaluating = task.should_evaluate(outcome.step, settings=settings)
        due = outcome.step == 1 or outcome.step % settings.log_every == 0 or outcome.step == settings.steps
        if not (due or evaluating):
            return False
        # Numbers leave the device here alone: `item` waits for it, in every step it would cost.
        self._report = mean_over_ranks(_to_floats(taken.losses) | _to_floats(taken.report))
        elapsed = time.monotonic() - self._logged
        # Counted, as batches of tokens have fewer samples than `batch_size`; ranks draw equally many.
        rate = (loader.drawn - self._logged_drawn) * loader.world_size / max(elapsed, 1e-9)
        self._logged_drawn = loader.drawn
        outcome.last_row = {
            "step": outcome.step,
            # JSON has no NaN; a share over no samples is null.
            **{name: value if math.isfinite(value) else None for name, value in self._report.items()},
            "learning_rate": taken.learning_rate,
            "gradient_norm": taken.gradient_norm,
            "seconds": round(outcome.seconds, 3),
            "samples_per_second": round(rate, 2),
        }
        improved = False
        if evaluating:
            metrics = self.evaluate()
            outcome.last_row |= {f"eval_{name}": value for name, value in metrics.items()}
            if settings.monitor is not None:
                monitored = _read_monitor(metrics, settings)
                improved = outcome.best.update(monitored, step=outcome.step, settings=settings)
                outcome.stopped_early = outcome.best.is_exhausted(settings)
        if self.here.is_main:
            self.run.append_metrics(outcome.last_row)
        self._logged = time.monotonic()  # an evaluation is no part of the rate of samples
        return improved

    def evaluate(self) -> dict[str, float | None]:
        """Evaluate the task as it is; return its metrics."""
        return _evaluate(self.outcome.model, self.task, self.outcome.ema, self.outcome.step, self.settings, self.here)

    def save(self) -> None:
        """Write a checkpoint of the step that was taken last."""
        settings, outcome = self.settings, self.outcome
        # Summed over ranks here only: in every step it would be one more collective.
        outcome.bad_draws = self._earlier_bad_draws + int(all_sum(self.loader.bad_draws))
        if self.here.is_main and self.run.metrics_path.exists():
            fsync_path(self.run.metrics_path)  # before the checkpoint: its rows must not get lost
        self.write_bad_samples(quiet=True)  # before the checkpoint too: a resumed run does not draw these steps again
        checkpoint.save(
            self.folder,
            module=self.task,
            optimizer=self.optimizer,
            ema=outcome.ema,
            keep=settings.keep_checkpoints,
            base=self.identity["frozen_hash"],
            best_step=outcome.best.step,
            sharded=settings.checkpoints == "sharded",
            state={
                "step": outcome.step,
                "seconds": outcome.seconds,
                "bad_draws": outcome.bad_draws,
                "best": asdict(outcome.best),
                "settings": _settings_here(settings, self.here),
                "identity": self.identity,
            },
        )
        self.saved_step = outcome.step

    def write_bad_samples(self, *, quiet: bool = False) -> None:
        """Add the samples that this rank could not use to bad-samples-RANK.json: key -> reason."""
        samples = self.loader.bad_samples
        if not samples:
            return
        path = self.run.path / f"bad-samples-{self.here.rank}.json"
        known = read_json(path) if path.exists() else {}
        write_json_atomically(path, known | samples)
        if not quiet:
            say(f"{len(samples)} samples could not be used and were replaced; see {path}")


def _check_evaluation(task: Task, settings: TrainingSettings) -> None:
    """Raise UserError for a monitored metric that nothing measures, or a task that has no evaluation."""
    # A task may evaluate by its own rule, such as after each epoch, without this setting.
    evaluates = settings.evaluate_every is not None or type(task).should_evaluate is not Task.should_evaluate
    if settings.monitor is not None and not evaluates:
        raise UserError(f"training.monitor '{settings.monitor}' needs training.evaluate_every (got none)")
    if evaluates and type(task).evaluate is Task.evaluate:
        raise UserError(
            f"training.evaluate_every: {type(task).__name__} has no evaluation (got {settings.evaluate_every}); "
            "leave it unset"
        )


def _evaluate(
    model: nn.Module, task: Task, ema: ExponentialAverage | None, step: int, settings: TrainingSettings, here: World
) -> dict[str, float | None]:
    """Evaluate on all ranks and return the metrics of rank 0, None for those that are not finite.

    Every rank gets the same ones, so that all decide alike whether to save and to stop.
    """
    precision = autocast_dtype(settings.precision, here.device)
    task.eval()
    with (
        torch.no_grad(),
        _seeded_step("evaluate", settings.seed, step, here),
        torch.autocast(here.device.type, precision or torch.bfloat16, enabled=precision is not None),
        ema.applied(task) if ema is not None else contextlib.nullcontext(),
    ):
        # Through the wrapper: FSDP2 gathers the root's weights only in its forward.
        metrics = {name: float(value) for name, value in model(call="evaluate", step=step).items()}
        if isinstance(model, FSDPModule):
            # FSDP2 leaves the root unsharded after a forward without a backward; what follows expects shards.
            model.reshard()
    task.train()
    # JSON has neither NaN nor infinities.
    return broadcast_json({name: value if math.isfinite(value) else None for name, value in metrics.items()})


def _read_monitor(metrics: Mapping[str, float | None], settings: TrainingSettings) -> float:
    value = metrics[choose(str(settings.monitor), metrics, "training.monitor")]
    return math.nan if value is None else value


def _track_steps(start: int, stop: int, here: World) -> Iterator[int]:
    """Count the steps that are left, with a progress bar on rank 0."""
    steps = range(start, stop)
    return track(steps, description="training") if here.is_main and len(steps) else iter(steps)


@contextlib.contextmanager
def _seeded_step(purpose: str, seed: int, step: int, here: World) -> Iterator[None]:
    """Make dropout and the like a function of (seed, step, rank).

    PyTorch's modules know the global generator only, so it is set here and put back afterwards: nothing outside the
    block sees a difference.
    """
    devices = [here.device] if here.device.type == "cuda" else []
    # torch.manual_seed would also seed devices that take no part, with a stack trace for each while they are asleep.
    set_seed = torch.default_generator.manual_seed if here.device.type == "cpu" else torch.manual_seed
    with torch.random.fork_rng(devices=devices):
        set_seed(seeds.integer(purpose, seed, step, here.rank))
        yield


def _clip_gradients(trained: Sequence[nn.Parameter], *, max_norm: float | None) -> float:
    """Scale the gradients down to `max_norm`, if given; return their global norm before that."""
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()  # of shards: each rank has the norm of its own part only
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm.item()


def _to_floats(values: Mapping[str, Tensor] | Report) -> dict[str, float]:
    return {name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in values.items()}


def _describe_divergence(
    step: int, losses: Mapping[str, Tensor], gradient_norm: float, report: Mapping[str, float], run: RunFolder
) -> str:
    """Describe in one sentence which number diverged at `step`, with the last good values."""
    now = ", ".join(f"{name} {value:g}" for name, value in _to_floats(losses).items())
    before = ", ".join(f"{name} {value:g}" for name, value in report.items()) or "none logged in this session"
    return (
        f"{run.path}: step {step}: loss or gradient is not finite ({now}, gradient norm {gradient_norm:g}); "
        f"last logged values: {before}. Try a lower learning_rate, more warmup_steps or fp32"
    )


def _name_samples(keys: Sequence[str]) -> str:
    """Return the end of an error that names the samples of a step, as far as the task knows them."""
    if not keys:
        return ""
    more = f" and {len(keys) - _MAX_KEYS} more" if len(keys) > _MAX_KEYS else ""
    return f"; images of this step: {', '.join(keys[:_MAX_KEYS])}{more}"


def _find_state(
    folder: Path, run: RunFolder, *, settings: TrainingSettings, identity: dict[str, Any], resume: bool
) -> dict[str, Any]:
    """Find where to start: step, seconds, bad draws, best evaluation, and the checkpoint's name.

    Rows of metrics.jsonl beyond that step are cut off: they will be written again.
    """
    state: dict[str, Any] = {}
    if world().is_main:
        # Rank 0 alone reads the disk, which need not be shared. An error travels too: raised on one rank only, it
        # would leave the others waiting.
        try:
            state = _read_newest(folder, settings=settings, identity=identity, resume=resume)
            run.truncate_metrics(after_step=state["step"])
        except UserError as error:
            state = {"error": str(error)}
    state = broadcast_json(state)
    if "error" in state:
        raise UserError(state["error"])
    return state


def _settings_here(settings: TrainingSettings, here: World) -> dict[str, Any]:
    """Return the settings as JSON, with the precision that `auto` is on this device."""
    precision = "fp32" if autocast_dtype(settings.precision, here.device) is None else "bf16"
    return settings.model_dump(mode="json") | {"precision": precision}


def _read_newest(folder: Path, *, settings: TrainingSettings, identity: dict[str, Any], resume: bool) -> dict[str, Any]:
    if not resume:
        checkpoint.remove_all(folder)
    path = checkpoint.newest(folder)
    if path is None:
        return {"step": 0, "seconds": 0.0, "bad_draws": 0, "best": {}}
    state = checkpoint.read_state(path)
    saved, now = state["settings"], _settings_here(settings, world())
    for name in _MUST_NOT_CHANGE:
        if saved.get(name) != now[name]:
            raise UserError(
                f"{path}: trained with {name} {saved.get(name)} (got {now[name]}); the order of samples would change. "
                "Use another run folder"
            )
    if state["identity"]["data"] != identity["data"]:
        raise UserError(
            f"{path}: was trained on other data: {state['identity']['data']} (got {identity['data']}). Use another "
            "run folder"
        )
    # Checkpoints written before contents were hashed have none; the next one has them.
    content = state["identity"].get("content")
    changed = [name for name, value in identity["content"].items() if content and content.get(name) != value]
    if changed:
        raise UserError(
            f"{path}: was trained on other data: images, texts or regions of {', '.join(changed)} have changed since, "
            "or it is another collection. Use another run folder"
        )
    if state["identity"]["frozen_hash"] != identity["frozen_hash"]:
        raise UserError(f"{path}: the frozen weights differ from those it was trained with. Use another run folder")
    if state["step"] > settings.steps:
        raise UserError(
            f"{path}: already trained for {state['step']} steps, more than training.steps (got {settings.steps})"
        )
    for name in sorted(now.keys() - set(WITHOUT_INFLUENCE)):
        # Checkpoints written before a field existed were trained with its default.
        before = saved.get(name, type(settings).model_fields[name].default)
        if before != now[name]:
            say(f"resumed with {name} {now[name]} (was {before} until step {state['step']})")
    best = state.get("best", {})
    if best.get("step") and (problem := checkpoint.damage(checkpoint.folder_of_step(folder, best["step"]))):
        say(f"best checkpoint, step {best['step']}, is damaged ({problem}); the next evaluation starts a new best")
        best = {}
    if any(saved.get(name) != now[name] for name in ("monitor", "monitor_mode")):
        best = {}  # values of another metric cannot be compared
    say(f"resumed from step {state['step']}/{settings.steps} ({path.name})")
    return {
        "step": state["step"],
        "seconds": state["seconds"],
        "bad_draws": state["bad_draws"],
        "best": best,
        "checkpoint": path.name,
    }
