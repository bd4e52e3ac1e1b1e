"""Runs a study: prepares what all cells share, works on cells in several processes, and writes the result.

A study is a module of `foveate.studies` with DESIGN, the scales FULL and QUICK (dataclasses with a field `seeds`),
`cells(scale, seed=, extras=)`, `identity(scale, extras=)` and `Work(folder, scale, extras, device)` with `prepare()`.
It may have `installed(folders)` (what it found of optional data, by name), `row_values(done)` where rows are more than
`foveate.studies.study.row_values` gives, and `beside(folder, scale)`: further tables for its page, each with title,
note, columns and lines of texts. Nothing else names it: a module with a DESIGN is a study.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
import platform
import sys
import time
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import foveate.studies
from foveate.core.cells import Cell, CellStore, run_cells
from foveate.core.errors import UserError, choose
from foveate.core.files import FolderLock
from foveate.core.progress import configure, say
from foveate.core.runs import RunFolder
from foveate.core.version import __version__
from foveate.studies.cells import announce
from foveate.studies.study import Design, row_values, summary


def study_names() -> list[str]:
    """Names of all studies: the modules of `foveate.studies` that have a DESIGN."""
    return [name for name in _modules() if hasattr(_module(name), "DESIGN")]


def study_of(name: str) -> Any:
    """The module of a study.

    Raises:
        UserError: when there is none of that name.
    """
    if name in _modules() and hasattr(found := _module(name), "DESIGN"):  # the others need not be imported then
        return found
    return _module(choose(name, study_names(), "study"))


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(foveate.studies.__path__))


def _module(name: str) -> Any:
    return importlib.import_module(f"foveate.studies.{name}")


def run_study(
    name: str,
    run_path: Path,
    *,
    quick: bool = False,
    scale: Any = None,
    seeds: int | None = None,
    seed: int = 0,
    workers: int = 1,
    device: str | None = None,
    data: tuple[Path, ...] = (),
    dry_run: bool = False,
    so_far: bool = False,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Works on all cells of a study and returns its result; repeated, it goes on where it was.

    Args:
        quick: the small scale instead of the full one. scale: another one.
        seeds: trainings of each variant; the scale's own number by default. seed: the first of them.
        workers: processes, one thread each. Further calls on the same folder, also from elsewhere, help.
        data: folders in which packages with real regions were unpacked, besides the system's own.
        dry_run: only count the trainings. so_far: only write the result of those that are finished.

    Raises:
        UserError: for an unknown study, a folder that holds another study, or with `so_far` one without a training.
    """
    study = study_of(name)
    scale = scale or (study.QUICK if quick else study.FULL)
    if seeds is not None:
        scale = replace(scale, seeds=seeds)
    extras = _installed(study, data)
    cells: list[Cell] = study.cells(scale, seed=seed, extras=extras)
    if dry_run:
        return _plan(study, cells, scale, extras)
    if so_far and not (run_path / "cells").is_dir():
        raise UserError(f"{run_path}: holds no study yet; leave --so-far out to begin one")
    run = RunFolder.create(run_path, command=command)
    store = CellStore(run.path / "cells", study.identity(scale, extras=extras))
    if so_far:
        if all(store.done(cell) is None for cell in cells):
            raise UserError(f"{run_path}: no training is finished yet")
        result = _result(study, store, cells, scale, extras, command)
        result["beside"] = _beside(study, run.path, scale)
        run.write_result(result)
        return result
    work = study.Work(run.path, scale, extras, device)
    started = time.monotonic()
    _prepare(work)
    prepared = time.monotonic() - started
    _single_thread()
    announce(store, cells, work, workers=workers)
    helpers = [_helper(name, run.path, scale, extras, device, cells) for _ in range(workers - 1)]
    try:
        for number, cell in enumerate(run_cells(store, cells, work), start=1):
            say(f"{cell.name} is finished, {number} by this process")
    finally:
        for helper in helpers:
            if sys.exc_info()[0] is not None:
                helper.terminate()
            helper.join()
    result = _result(study, store, cells, scale, extras, command)
    result["seconds"] = {"prepare": round(prepared, 1), **result["seconds"]}
    result["beside"] = _beside(study, run.path, scale)
    run.write_result(result)
    return result


def _installed(study: Any, data: tuple[Path, ...]) -> dict[str, Path]:
    """What a study found of its optional data. Raises UserError for folders that a study without any was given."""
    if hasattr(study, "installed"):
        return study.installed(data)
    if data:
        raise UserError(f"--data: the study '{study.DESIGN.name}' uses no further data; leave it out")
    return {}


def _beside(study: Any, folder: Path, scale: Any) -> list[dict[str, Any]]:
    """The study's further tables, if it has any."""
    return study.beside(folder, scale) if hasattr(study, "beside") else []


def _prepare(work: Any) -> None:
    """Images and frozen features, by one process at a time; a second one waits until they are there."""
    lock = FolderLock(work.folder / "preparing", purpose="study")
    while True:
        try:
            lock.__enter__()
            break
        except UserError:  # another process prepares
            time.sleep(2.0)
    try:
        work.prepare()
    finally:
        lock.__exit__(None, None, None)


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _helper(
    name: str, folder: Path, scale: Any, extras: dict[str, Path], device: str | None, cells: list[Cell]
) -> SpawnProcess:
    # Spawned, not forked: torch has threads.
    context = multiprocessing.get_context("spawn")
    helper = context.Process(target=_help, args=(name, folder, scale, extras, device, cells), daemon=True)
    helper.start()
    return helper


def _help(name: str, folder: Path, scale: Any, extras: dict[str, Path], device: str | None, cells: list[Cell]) -> None:
    configure(quiet=True)
    _single_thread()
    study = study_of(name)
    store = CellStore(folder / "cells", study.identity(scale, extras=extras))
    # What this process cannot finish, the main one takes over, and says why.
    for _ in run_cells(store, cells, study.Work(folder, scale, extras, device), wait=False):
        pass


def _plan(study: Any, cells: list[Cell], scale: Any, extras: dict[str, Path]) -> dict[str, Any]:
    return {
        "kind": "study",
        "study": study.DESIGN.name,
        "trainings": len(cells),
        "scale": vars(scale),
        "real": _real(study.DESIGN, extras),
        "cells": [cell.name for cell in cells],
    }


def _real(design: Design, extras: dict[str, Path]) -> list[dict[str, Any]]:
    """What was found of optional data, for people: an absence is said."""
    return [{"name": one.title, "package": one.package, "used": one.key in extras} for one in design.extras]


def _result(
    study: Any, store: CellStore, cells: list[Cell], scale: Any, extras: dict[str, Path], command: list[str] | None
) -> dict[str, Any]:
    import torch

    design: Design = study.DESIGN
    done = {cell: found for cell in cells if (found := store.done(cell)) is not None}
    values = {cell: one.values for cell, one in done.items()}
    own = study.row_values(values) if hasattr(study, "row_values") else row_values(design.rows, values.items())
    found = summary(design, own)
    present = {entry["condition"] for entry in found["table"]}
    return {
        "kind": "study",
        "study": design.name,
        "title": design.title,
        "question": design.question,
        "reference": design.reference,
        "seeds": sorted({cell.seed for cell in done}),
        "scale": vars(scale),
        "conditions": [vars(one) for one in design.conditions if one.key in present],
        "rows": [{"key": r.key, "title": r.title, "what": r.what, "role": r.role} for r in design.rows],
        "measures": [vars(one) for one in design.measures],
        **found,
        "real": _real(design, extras),
        "limits": list(design.limits),
        "trainings": len(done),
        "planned": len(cells),
        "seconds": {"trainings": round(sum(one.seconds for one in done.values()), 1)},
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "version": __version__,
        "command": command or [sys.argv[0]],
    }
