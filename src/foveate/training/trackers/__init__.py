"""Experiment trackers: what a run logs goes to them too, as it is logged or afterwards.

Inside `with report_to("wandb"):` (on the command line `--report-to wandb`) each training sends the rows of its
metrics.jsonl, and at its end the numbers and images of its result. `foveate export RUN --to wandb` sends a finished run
of any command. Trackers are no part of a recipe, since they change nothing of the run: metrics.jsonl and the page are
written as without them, and a tracker that fails is left out with a sentence.

A tracker is a module here with `NEEDS`, its package, and `open_tracker(run)`; see `TrackedRun` and `Tracker`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import yaml

from foveate.core.errors import UserError, choose, shorten_reason
from foveate.core.files import read_json, write_json_atomically
from foveate.core.plugins import load_module, module_names
from foveate.core.progress import say
from foveate.core.runs import RunFolder

# The folder in the run folder for what trackers keep: written before any work, so that it does not bind the run folder.
FOLDER = "trackers"
PROJECT = "foveate"
_IMAGES = 16
# Of a result: its table is read on its own, and the others are no outcome.
_NO_SCORES = ("evaluation", "recipe", "options", "bad_samples")
_ENTRIES = 16
_NAMES: ContextVar[tuple[str, ...]] = ContextVar("trackers", default=())
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Tracker(Protocol):
    """An open run of a tracker; any method may raise, which leaves the tracker out."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step; a repeated step has the same numbers."""

    def log_image(self, name: str, path: Path) -> None:
        """Take an image file."""

    def finish(self) -> None:
        """Write everything and close."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run.

    Attributes:
        name: of the run folder.
        id: 32 hexadecimal digits, the same whenever the run goes on.
        folder: for the tracker's files; it exists.
        config: the recipe, nested.
        first_step: of the rows that will come; above it an earlier session may have left rows.
    """

    name: str
    id: str
    folder: Path
    config: Mapping[str, Any]
    first_step: int = 0

    def flat_config(self) -> dict[str, str | int | float | bool]:
        """Return the recipe as `group.field` -> value; a list is its JSON."""
        return dict(_flatten(self.config))


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that does not exist, or whose package is not installed."""
    for name in names:
        module = load_module(__name__, choose(name, tracker_names(), "tracker"), label="tracker")
        if find_spec(module.NEEDS) is None:
            raise UserError(f"tracker '{name}': the package {module.NEEDS} is missing; pip install 'foveate[{name}]'")


def tracker_names() -> list[str]:
    """List the trackers."""
    return module_names(__name__)


@contextlib.contextmanager
def report_to(*names: str) -> Iterator[None]:
    """Send what trainings log inside the `with` to trackers.

    Args:
        names: see `tracker_names`.

    Raises:
        UserError: a tracker that does not exist, or whose package is not installed.

    Example:
        >>> with report_to():  # report_to("tensorboard", "wandb") sends to both
        ...     task = "any training"
    """
    check_trackers(names)
    token = _NAMES.set(tuple(dict.fromkeys(names)))
    try:
        yield
    finally:
        _NAMES.reset(token)


class Trackers:
    """The trackers of a run.

    Args:
        run: the run folder; that of a stage has the recipe in the folder above.
        names: of trackers that exist; by default those of `report_to`.
        strict: raise UserError where a tracker fails; else it is left out, as no training ends for it.
    """

    def __init__(self, run: RunFolder, names: Sequence[str] | None = None, *, strict: bool = False) -> None:
        self._names, self._run = _NAMES.get() if names is None else tuple(names), run
        self._open: dict[str, Tracker] | None = None
        self._strict = strict

    def log_row(self, row: Mapping[str, Any]) -> None:
        """Send a row of metrics.jsonl: numbers of the evaluation as `eval/NAME`, all others as `train/NAME`."""
        step = int(row["step"])
        values = {
            (f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"): float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        }
        self._each(step, lambda tracker: tracker.log(step, values))

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Send the tables of a result as `result/...`, and the first images of the run folder."""
        step, values = int(result.get("steps") or 0), dict(_list_scores(result))
        images = sorted(
            path
            for pattern in ("*", "*/*")
            for path in self._run.path.glob(pattern)
            if path.suffix.lower() in _SUFFIXES and FOLDER not in path.relative_to(self._run.path).parts
        )
        if values:
            self._each(step, lambda tracker: tracker.log(step, values))
        for path in images[:_IMAGES]:
            name = path.relative_to(self._run.path).with_suffix("").as_posix()
            self._each(step, lambda tracker, name=name, path=path: tracker.log_image(name, path))

    def close(self) -> None:
        """Close the trackers that were opened."""
        self._each(None, lambda tracker: tracker.finish())
        self._open = None

    def _each(self, first_step: int | None, call: Callable[[Tracker], None]) -> None:
        """Call something of each tracker, which is opened with the first row: before it nothing is known to resume."""
        if self._open is None:
            if first_step is None or not self._names:
                return
            self._open = {}
            run = _describe_run(self._run, first_step)
            for name in self._names:
                self._try(name, lambda name=name: self._open_one(name, run))
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: call(tracker))

    def _open_one(self, name: str, run: TrackedRun) -> None:
        assert self._open is not None
        self._open[name] = load_module(__name__, name, label="tracker").open_tracker(run)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            # Some print greetings, which would stand in the JSON of a command.
            with contextlib.redirect_stdout(sys.stderr):
                act()
        except Exception as problem:  # of another program, perhaps of a network
            assert self._open is not None
            self._open.pop(name, None)
            folder, reason = self._run.path, shorten_reason(problem)
            if self._strict:
                raise UserError(f"{folder}: could not be sent to {name}: {reason}") from problem
            say(f"{name} is left out: {reason}; `foveate export {folder} --to {name}` sends all rows afterwards")


def send_run(folder: Path, name: str) -> int:
    """Send a finished run to a tracker: its rows, the numbers of its result, and images; return how many rows.

    Raises:
        UserError: the folder has neither rows nor a result, or see `check_trackers`; or the tracker failed.
    """
    run = RunFolder(folder)
    rows = run.read_metrics() if run.metrics_path.exists() else []
    has_result = (folder / "result.json").is_file()
    if not rows and not has_result:
        raise UserError(f"{folder}: no run folder: it has neither metrics.jsonl nor result.json")
    check_trackers([name])
    trackers = Trackers(run, [name], strict=True)
    for row in rows:
        trackers.log_row(row)
    if has_result:
        trackers.log_result(run.read_result())
    trackers.close()
    return len(rows)


def _describe_run(run: RunFolder, first_step: int) -> TrackedRun:
    folder = run.path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "run.json"
    if not known.is_file():
        write_json_atomically(known, {"id": uuid.uuid4().hex})
    places = (run.path / "recipe.yaml", run.path.parent / "recipe.yaml")
    recipe = next((path for path in places if path.is_file()), None)
    config = {} if recipe is None else yaml.safe_load(recipe.read_text(encoding="utf-8"))
    is_stage = recipe is not None and recipe.parent != run.path
    name = f"{run.path.parent.name}-{run.path.name}" if is_stage else run.path.resolve().name
    return TrackedRun(name, read_json(known)["id"], folder, config if isinstance(config, dict) else {}, first_step)


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _list_scores(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """List the numbers of a result: values of its results table by question, all others by their place."""
    for row in (result.get("evaluation") or {}).get("table") or []:
        name = "/".join(filter(None, ("result", row["question"], row.get("data"))))
        for column, value in row["values"].items():
            if value is not None:
                yield f"{name}/{column}", float(value["value"])
    yield from _list_numbers({name: value for name, value in result.items() if name not in _NO_SCORES}, "result")


def _list_numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _list_numbers(inner, f"{name}/{key}")
    # Longer lists are data, such as points of a map.
    elif isinstance(value, list) and len(value) <= _ENTRIES and all(isinstance(entry, Mapping) for entry in value):
        for number, entry in enumerate(value):
            label = next((entry[key] for key in ("name", "method", "title", "key") if entry.get(key)), number)
            yield from _list_numbers(entry, f"{name}/{label}")
