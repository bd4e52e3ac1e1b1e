"""What an executor is: it takes the images of a worklist and gives outcomes, in any order.

Executor `x` is the module `foveate.caption.executors.x`; a new one is one new module. All of them ask through
`foveate.caption.asking.ask`, so that the rows are the same.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foveate.caption.executors
from foveate.caption.captioner import Captioner, find_backend
from foveate.caption.work import Asking, Worklist
from foveate.core.errors import choose
from foveate.core.recipes import validate
from foveate.records.collection import Collection


@dataclass(frozen=True, slots=True)
class Job:
    """A run as another process can take it up: paths and plain values only.

    `workers` are threads that read and prepare images in one process; `processes` is for executors that start some.
    """

    collection: Path
    asking: Asking
    backend_settings: dict[str, Any]
    run_id: str
    tokenizer: Path | None = None
    workers: int = 2
    processes: int = 2

    def open_captioner(self, collection: Collection) -> Captioner:
        """The captioner of this job, opened in this process."""
        backend = find_backend(self.asking.backend)
        settings = validate(backend.settings, self.backend_settings, where=f"backend '{self.asking.backend}'")
        return backend.open(settings, collection)


@dataclass(frozen=True, slots=True)
class Executor:
    """`run(job, worklist, captioner, stopping)` yields lists of outcomes; an empty list is a sign of life, and comes at
    least every second. When `stopping()` is true it takes no new images and ends once what is in flight is done.
    UserError from it says that the run cannot go on; what it yielded before stands."""

    run: Callable[[Job, Worklist, Captioner, Callable[[], bool]], AsyncGenerator[list[Any], None]]
    note: str = ""


def executor_names() -> list[str]:
    """Names of all executors, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(foveate.caption.executors.__path__))


def find_executor(name: str) -> Executor:
    """The executor `name`. Raises UserError for an unknown one, with the nearest match."""
    choose(name, executor_names(), "executor")
    return importlib.import_module(f"foveate.caption.executors.{name}").EXECUTOR
