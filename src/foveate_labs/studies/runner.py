"""Run a study: prepare what all cells share, work on cells in several processes, and write the result."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.core.experiment_grid import Cell, CellStore, Work, run_cells
from foveate.core.files import FolderLock
from foveate.core.progress import configure, say
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.core.version import __version__
from foveate_labs.studies import find_study
from foveate_labs.studies.results import StudyResult
from foveate_labs.studies.study import Design, GridStudy, summary


def run_study(
    name: str,
    run_path: Path,
    *,
    quick: bool = False,
    scale: Any = None,
    seeds: int | None = None,
    seed: int = 0,
    workers: int = 1,
    variants: Sequence[str] = (),
    device: str | None = None,
    data: Sequence[Path] = (),
    dry_run: bool = False,
    so_far: bool = False,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Work on all cells of a study and return its result; repeated, it resumes.

    Args:
        quick: the small scale instead of the full one.
        scale: another scale than the study's two.
        seeds: trainings of each variant; the scale's own number by default.
        seed: the first seed.
        variants: train only these; all by default. The result has what is finished of the others, too.
        workers: processes, one thread each. Further calls on the same folder, also from elsewhere, help.
        data: folders in which packages with optional data were unpacked, besides the system's own.
        dry_run: only count the trainings.
        so_far: only write the result of those that are finished.

    Raises:
        UserError: an unknown study or variant, a folder of another study, or with `so_far` one without a training.
    """
    study = find_study(name)
    scale = scale or (study.quick if quick else study.full)
    if seeds is not None:
        scale = replace(scale, seeds=seeds)
    datasets = study.find_datasets(data)
    cells = study.cells(scale, seed=seed, datasets=datasets)
    selected = _select_variants(cells, variants)
    # Before the run folder is created: a dry run writes nothing.
    if dry_run:
        return _plan(study, selected, scale, datasets)
    if so_far and not (run_path / "cells").is_dir():
        raise UserError(f"{run_path} holds no study yet; leave --so-far out to begin one")
    run = RunFolder.create(run_path, command=command)
    store = CellStore(run.path / "cells", study.identity(scale, datasets=datasets))
    work = study(run.path, scale, datasets, device, variants)
    seconds: dict[str, float] = {}
    if so_far:
        if all(store.done(cell) is None for cell in cells):
            raise UserError(f"{run_path}: no training is finished yet; run the same command without --so-far")
    else:
        started = time.monotonic()
        _prepare(work)
        seconds["prepare"] = round(time.monotonic() - started, 1)
        # After the preparation, which one process does for all and which may use every core.
        _single_thread()
        announce_duration(store, selected, work.measure, workers=workers)
        helpers = [_start_helper(name, run.path, scale, datasets, device, selected) for _ in range(workers - 1)]
        try:
            for number, cell in enumerate(run_cells(store, selected, work.measure), start=1):
                say(f"{cell.name} is finished, {number} by this process")
        finally:
            # After an error or Ctrl-C a helper would go on training, and `join` would wait for it.
            for helper in helpers:
                if sys.exc_info()[0] is not None:
                    helper.terminate()
                helper.join()
    result = _result(study, store, cells, scale, datasets, command)
    result["seconds"] = {**seconds, **result["seconds"]}
    result["further_tables"] = work.further_tables()
    run.write_result(result)
    return result


def announce_duration(store: CellStore, cells: Sequence[Cell], work: Work, *, workers: int) -> None:
    """Work on the first missing cell, time it, and print how long the rest will take."""
    missing = [cell for cell in cells if store.done(cell) is None]
    if not missing:
        say(f"all {len(cells)} trainings are finished")
        return
    # Without waiting: a cell that another process works on cannot be timed here.
    for cell in run_cells(store, missing[:1], work, wait=False):
        done = store.done(cell)
        assert done is not None
        rest = (len(missing) - 1) * done.seconds / workers
        say(
            f"first of {len(missing)} trainings: {done.seconds:.0f} s; the other {len(missing) - 1} will take about "
            f"{rest / 3600:.1f} h ({rest / 60:.0f} min) with {workers} workers; the study can be stopped and resumed"
        )


def _select_variants(cells: list[Cell], variants: Sequence[str]) -> list[Cell]:
    """Return the cells of some variants; of all without any."""
    known = {cell.variant for cell in cells}
    for variant in variants:
        choose(variant, known, "variant of this study")
    return [cell for cell in cells if not variants or cell.variant in variants]


def _prepare(study: GridStudy) -> None:
    """Prepare in one process at a time; a second process waits until the data are prepared."""
    lock = FolderLock(study.folder / "preparing", purpose="study")
    while True:
        try:
            lock.__enter__()
            break
        except UserError:  # another process prepares
            time.sleep(2.0)
    try:
        study.prepare()
    finally:
        lock.__exit__(None, None, None)


def _single_thread() -> None:
    import torch

    # Trainings this small do not gain from a second thread, and workers would fight over the cores.
    torch.set_num_threads(1)


def _start_helper(
    name: str, folder: Path, scale: Any, datasets: Mapping[str, Path], device: str | None, cells: list[Cell]
) -> SpawnProcess:
    # Spawned, not forked: torch has threads, and a fork copies locks that they hold.
    context = multiprocessing.get_context("spawn")
    helper = context.Process(target=_help, args=(name, folder, scale, datasets, device, cells), daemon=True)
    helper.start()
    return helper


def _help(
    name: str, folder: Path, scale: Any, datasets: Mapping[str, Path], device: str | None, cells: list[Cell]
) -> None:
    configure(quiet=True)
    # Without a traceback: Ctrl-C stops the main process, too, and a cell that failed here is taken over by it, which
    # reports the error.
    with contextlib.suppress(KeyboardInterrupt, UserError):
        _single_thread()
        study = find_study(name)
        store = CellStore(folder / "cells", study.identity(scale, datasets=datasets))
        # Does not wait: the main process does.
        for _ in run_cells(store, cells, study(folder, scale, datasets, device).measure, wait=False):
            pass


def _plan(study: type[GridStudy], cells: list[Cell], scale: Any, datasets: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "kind": "study",
        "study": study.design.name,
        "trainings": len(cells),
        "scale": vars(scale),
        "optional_data": _list_datasets(study.design, datasets),
        "cells": [cell.name for cell in cells],
    }


def _list_datasets(design: Design, datasets: Mapping[str, Path]) -> list[dict[str, Any]]:
    """List which optional data were found and which are missing."""
    return [
        {"name": data.title, "package": data.package, "used": data.key in datasets} for data in design.optional_data
    ]


def _result(
    study: type[GridStudy],
    store: CellStore,
    cells: list[Cell],
    scale: Any,
    datasets: Mapping[str, Path],
    command: list[str] | None,
) -> dict[str, Any]:
    import torch

    design = study.design
    finished = {cell: done for cell in cells if (done := store.done(cell)) is not None}
    judged = summary(design, study.row_values({cell: done.values for cell, done in finished.items()}))
    # A condition without a finished cell, such as one of missing optional data, has no column on the page.
    present = {entry["condition"] for entry in judged["table"]}
    result = {
        "kind": "study",
        "study": design.name,
        "title": design.title,
        "question": design.question,
        "reference": design.reference,
        "seeds": sorted({cell.seed for cell in finished}),
        "scale": vars(scale),
        "conditions": [vars(condition) for condition in design.conditions if condition.key in present],
        "rows": [{"key": r.key, "title": r.title, "what": r.what, "role": r.role} for r in design.rows],
        "measures": [vars(measure) for measure in design.measures],
        **judged,
        "optional_data": _list_datasets(design, datasets),
        "limits": list(design.limits),
        "trainings": len(finished),
        "planned": len(cells),
        "seconds": {"trainings": round(sum(done.seconds for done in finished.values()), 1)},
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "version": __version__,
        "command": command or [sys.argv[0]],
    }
    # Checked against its declaration before it is written: a page never meets a field that it cannot read.
    return parse_result(StudyResult, result).to_json()
