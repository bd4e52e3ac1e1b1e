"""Share work among processes of Ray, on one machine or many: the executor `ray` of the commands that read all images.

A worker opens what it needs once, such as a model and a collection, and is then called with one item after the other.
Ray starts a worker that died anew and gives it the same item again. Results come to this process, which alone writes
them, so that nothing is written twice, and a killed run resumes as one without Ray does. A collection and a model must
lie where every machine finds them under the same path.

The results are arrays and rows in memory, not tables: hence Ray's actors, and not Ray Data as in `foveate caption`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from foveate.core.errors import UserError, shorten_reason
from foveate.core.progress import track
from foveate.core.recipes import Settings

if TYPE_CHECKING:
    from foveate.records.labeling import Executor, Stopping

T = TypeVar("T")
R = TypeVar("R")

# A worker that dies again and again, such as of too little memory, must not keep a run busy for ever.
_RESTARTS = 3
# Seconds after which a stop is noticed.
_TICK = 0.5


class ExecutorSettings(Settings):
    """Where the work of a command runs."""

    executor: Literal["local", "ray"] = Field("local", description="executor: local = this process; or ray (extra)")
    processes: int = Field(2, ge=1, description="worker processes of ray")


def share_work(
    work: Callable[[T], Iterable[R]],
    open_worker: Callable[[], Callable[[T], Iterable[R]]],
    items: Sequence[T],
    settings: ExecutorSettings,
    *,
    description: str,
) -> Executor[R]:
    """Return the executor that the settings name.

    Args:
        work: called with one item after the other in this process.
        open_worker: called once in each process of Ray, returns what is called there. Both are sent to it.
        items: their results come in this order in one process, and in any order from several.
        description: of the work, for its progress.
    """
    # Loaded here: the settings above are read for the help of a command, too.
    from foveate.records.labeling import in_order

    if settings.executor == "local":
        return in_order(work, items, description=description)
    # Here already, so that a missing package ends a command before its work.
    import_ray()
    return lambda stopping: _run(open_worker, items, settings.processes, stopping, description)


def run_to_end(executor: Executor[R]) -> Iterator[R]:
    """Yield the results of an executor of `share_work`, which a signal ends as it ends any process."""
    results = executor(lambda: False)
    assert isinstance(results, Iterator)
    return results


def import_ray() -> Any:
    """Import Ray Data.

    Raises:
        UserError: it is not installed.
    """
    # Ray reports usage statistics to its maker unless they are disabled.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A reader that a stop leaves behind may call Ray once more. Ray would start a second cluster for it, whose
    # processes end with the reader's thread, and 60 seconds later end this process.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray.data
    except ImportError as error:
        raise UserError("--executor ray needs Ray Data: run `pip install 'foveate[ray]'`") from error
    return ray


def start_cluster(processes: int) -> bool:
    """Start Ray on this machine unless the caller did, or join the cluster of RAY_ADDRESS; return whether it did."""
    ray = import_ray()
    # A cluster that the caller started is not ours to shut down.
    if ray.is_initialized():
        return False
    # An existing cluster has its own processors; Ray refuses their number as an argument.
    cluster = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": processes, "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **cluster)
    return True


class _Worker:
    """Opened in a process of Ray."""

    def __init__(self, open_worker: Callable[[], Callable[[Any], Iterable[Any]]]) -> None:
        # An error here would end the actor without its sentence: it is kept for the first item.
        self._failure: UserError | None = None
        try:
            self._work = open_worker()
        except UserError as problem:
            self._failure = problem

    def call(self, item: Any) -> list[Any]:
        """Return the results of an item."""
        if self._failure is not None:
            raise self._failure
        return list(self._work(item))


def _run(
    open_worker: Callable[[], Callable[[T], Iterable[R]]],
    items: Sequence[T],
    processes: int,
    stopping: Stopping,
    description: str,
) -> Iterator[R]:
    if not items:
        return
    ray = import_ray()
    started = start_cluster(processes)
    try:
        actor = ray.remote(num_cpus=1, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(_Worker)
        idle = [actor.remote(open_worker) for _ in range(min(processes, len(items)))]
        waiting, running = iter(items), dict[Any, Any]()
        progress = iter(track(items, description=f"{description}, {len(idle)} processes"))
        next(progress)
        is_left = True
        while True:
            # What runs when a stop comes is finished: its results go into the last part.
            while idle and is_left and not stopping():
                try:
                    reference = idle[-1].call.remote(next(waiting))
                except StopIteration:
                    is_left = False
                    break
                running[reference] = idle.pop()
            if not running:
                return
            for reference in ray.wait(list(running), timeout=_TICK)[0]:
                idle.append(running.pop(reference))
                yield from _get(ray, reference)
                next(progress, None)
    finally:
        if started:
            with contextlib.suppress(Exception):  # the run has ended; what Ray says of its own end helps nobody
                ray.shutdown()


def _get(ray: Any, reference: Any) -> list[Any]:
    try:
        results: list[Any] = ray.get(reference)
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"a worker of Ray died {_RESTARTS + 1} times, perhaps of too little memory ({shorten_reason(error)}); what "
            "is finished is written, and the same command resumes, with fewer --processes"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from error
        raise
    return results
