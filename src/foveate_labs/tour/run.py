"""Run the tour: first what ships, on pictures; then a lesson, and what follows from it. Each part has a process.

Two parts run at once, each with its share of the cores. A finished part is a file: a tour that is killed goes on with
those that are missing. The page is written again whenever a part has finished.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import yaml

from foveate.core.devices import peak_gigabytes, tree_gigabytes, usable_cores
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.core.hub import DEFAULT_ENCODER
from foveate.core.paths import CHECKOUT
from foveate.core.progress import Meter, configure
from foveate.core.recipes import recipe_path
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.core.version import __version__
from foveate_labs.studies.results import TourResult
from foveate_labs.studies.settings import TourSettings

PARTS = "parts"  # folder of the finished parts
RECIPE = "tour"  # of the lesson
EMOJI = "emoji"  # collection of the later parts
PROCESSES = 2
# What most parts import; torch asks for its compiler by itself when an optimizer is first made.
_IMPORTED_ONCE = ("torch._dynamo", "torchvision", "foveate_labs.tour.find", "foveate_labs.tour.lesson")
_SAMPLING_S = 0.5  # between two looks at the memory: each takes milliseconds of the kernel


@dataclass(frozen=True)
class Part:
    """A part of the tour.

    Attributes:
        title: for the terminal. after: parts that must be finished. opening: whether it shows what ships.
    """

    title: str
    after: tuple[str, ...] = ()
    opening: bool = False


# In the order in which they are begun: the longest of the opening first. A part that is a field of `TourResult` is on
# the page; the others make what parts behind them read.
ALL_PARTS = {
    "pictures": Part("search, and locate", opening=True),
    "ask": Part("ask mini", opening=True),
    "captions": Part("captions", opening=True),
    "video": Part("a clip", opening=True),
    "ferret": Part("ask mini-ferret", opening=True),
    "traps": Part("boxes on camera-trap images", opening=True),
    "scenes": Part("scenes of the lesson"),
    "head": Part("the lesson", ("scenes",)),
    "features": Part("features of emoji"),
    "control": Part("the lesson with permuted names", ("head",)),
    "species": Part("species of camera traps"),
    "lesson": Part("before and after the lesson", ("head", "control")),
    "adaptation": Part("adaptation", ("head", "features")),
    "calibration": Part("calibration", ("features",)),
    "federated": Part("federated clusters and maps", ("calibration",)),
}


def tour(
    run_path: Path,
    settings: TourSettings | None = None,
    *,
    seed: int = 0,
    device: str | None = None,
    command: list[str] | None = None,
    on_page: Callable[[Path, bool], object] = lambda path, opened: None,
) -> Path:
    """Run all parts and write result.json; return the run folder. Repeated with the same arguments, it resumes.

    Args:
        settings: whether it is short, and which parts are run.
        on_page: called with the run folder whenever result.json has a part more, and whether it is that with which the
            opening is complete.

    Raises:
        UserError: the recipe of the lesson is missing, or the folder holds a tour of another seed or length; before
            anything is written. An error of a part ends the tour.
    """
    settings = settings or TourSettings()
    # Fail early: a tree without recipes would else be missed only after the opening.
    recipe_path(RECIPE)
    if (run_path / "collection").exists():
        raise UserError(f"{run_path}: holds a tour of an earlier version; choose another --out")
    run = RunFolder.create(
        run_path, command=command, recipe=yaml.safe_dump({"seed": seed, "short": settings.short}), prepared=(PARTS,)
    )
    (run.path / PARTS).mkdir(exist_ok=True)
    (run.path / "images").mkdir(exist_ok=True)
    selected = _select(settings.part)
    finished = {name: read_json(path) for name in selected if (path := _part_path(run.path, name)).is_file()}
    resumed = bool(finished)
    began = time.monotonic()
    opening_seconds: float | None = None

    def write(name: str, running: bool) -> None:
        nonlocal opening_seconds
        opening = [part for part in selected if ALL_PARTS[part].opening]
        opened = name in opening and all(part in finished for part in opening)
        if opened:
            opening_seconds = round(time.monotonic() - began, 1)
        result = {
            **_describe(seed, command),
            **_collect(finished),
            "resumed": resumed,
            "running": running,
            "wall_seconds": round(time.monotonic() - began, 1),
            "opening_seconds": opening_seconds,
        }
        # Checked against its declaration before it is written: a page never meets a field that it cannot read.
        run.write_result(parse_result(TourResult, result).to_json())
        on_page(run.path, opened)

    missing = [name for name in selected if name not in finished]
    with Meter("tour", len(selected)) as meter:
        meter.advance(len(finished))
        for name, content in _run_parts(run.path, missing, finished, seed, device, settings.short):
            finished[name] = content
            running = len(finished) < len(selected)
            if running and (name in TourResult.model_fields):
                write(name, True)
            meter.advance(note=ALL_PARTS[name].title)
    write("", False)
    return run.path


def _select(names: tuple[str, ...]) -> list[str]:
    """Return the parts to run, with those that they need, in the order of `ALL_PARTS`."""
    needed = set(names or ALL_PARTS)
    while more := {before for name in needed for before in ALL_PARTS[name].after} - needed:
        needed |= more
    return [name for name in ALL_PARTS if name in needed]


def _part_path(run: Path, name: str) -> Path:
    return run / PARTS / f"{name}.json"


def _run_parts(
    run: Path, missing: list[str], finished: Mapping[str, Any], seed: int, device: str | None, short: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run parts in processes of their own, as many at once as there are cores for; yield what each wrote."""
    workers = min(PROCESSES, usable_cores())
    threads = max(1, usable_cores() // workers)
    # A process for each part: its memory is free again when it ends. Forked from a server that has imported torch and
    # started none of its threads: the import is paid once, in seconds and in memory. Only on Linux: the libraries of
    # macOS do not survive a fork. Daemonic, so that none outlives this one.
    is_linux = sys.platform == "linux"
    context = multiprocessing.get_context("forkserver") if is_linux else multiprocessing.get_context("spawn")
    context.set_forkserver_preload(list(_IMPORTED_ONCE))
    errors = context.SimpleQueue()
    waiting, running, done = list(missing), dict[str, BaseProcess](), set(finished)
    peaks: dict[str, float] = {}
    try:
        while waiting or running:
            for name in [name for name in waiting if done.issuperset(ALL_PARTS[name].after)][: workers - len(running)]:
                waiting.remove(name)
                arguments = (name, run, seed, device, short, threads, errors)
                running[name] = context.Process(target=_work, args=arguments, daemon=True)
                running[name].start()
            wait([process.sentinel for process in running.values()], timeout=_SAMPLING_S)
            gigabytes = tree_gigabytes()
            peaks.update({name: max(gigabytes, peaks.get(name, 0.0)) for name in running})
            for name in [name for name, process in running.items() if not process.is_alive()]:
                exit_code = running.pop(name).exitcode
                if exit_code:
                    raise UserError(
                        errors.get() if not errors.empty() else f"tour: part '{name}' ended with {exit_code}"
                    )
                done.add(name)
                content = read_json(_part_path(run, name))
                content["memory_gb"] = max(content["memory_gb"], round(peaks[name], 3))
                write_json_atomically(_part_path(run, name), content)
                yield name, content
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _work(
    name: str, run: Path, seed: int, device: str | None, short: bool, threads: int, errors: SimpleQueue[str]
) -> None:
    """Run one part in its process."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The main process reports on the whole.
    configure(quiet=True)
    torch.set_num_threads(threads)
    try:
        run_part(name, run, seed, device, short)
    except UserError as error:
        errors.put(str(error))
        sys.exit(1)
    except KeyboardInterrupt:  # of the whole group: the main process says so
        sys.exit(130)


def _end_with_parent() -> None:
    """End this process when the main one is gone, however it ended: a resumed tour must find nobody at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_part(name: str, run_path: Path, seed: int, device: str | None, short: bool) -> None:
    """Run one part in this process, and write its result with its costs."""
    wall, processor = time.monotonic(), time.process_time()
    result = _make(name, RunFolder(run_path), seed, device, short)
    content = {
        "result": result,
        "seconds": round(time.monotonic() - wall, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        # The memory of this process alone, until the one that started it knows what all had at once.
        "memory_gb": round(peak_gigabytes(), 3),
    }
    write_json_atomically(_part_path(run_path, name), content)


def _make(name: str, run: RunFolder, seed: int, device: str | None, short: bool) -> Any:
    """Return the result of a part. Imports are of the part alone: each has a process of its own."""
    where: dict[str, Any] = {"seed": seed, "device": device}
    if name == "pictures":
        from foveate_labs.tour.find import find_in_pictures
        from foveate_labs.tour.pictures import NUM_DRAWINGS, NUM_SCENES

        drawings, scenes = (4, 2) if short else (NUM_DRAWINGS, NUM_SCENES)
        return find_in_pictures(run, seed=seed, device=device, drawings=drawings, scenes=scenes)
    if name in ("ask", "ferret"):
        from foveate_labs.tour.ask import ask_shipped

        model, scenes = {"ask": ("mini", 6), "ferret": ("mini-ferret", 2)}[name]
        return ask_shipped(run, model, scenes=2 if short else scenes, photographs=2 if short else None, device=device)
    if name == "captions":
        from foveate_labs.tour.captions import NUM_EXAMPLES, tour_captions

        return tour_captions(run, **where, count=2 if short else NUM_EXAMPLES)
    if name == "video":
        from foveate.vision.localizer.sources import open_localizer
        from foveate_labs.tour.video import NUM_FRAMES, tour_video

        model = open_localizer(DEFAULT_ENCODER, device=device)
        return tour_video(run, model, seed=seed, num_frames=18 if short else NUM_FRAMES)
    if name == "traps":
        from foveate_labs.tour.traps import NUM_IMAGES, tour_traps

        return tour_traps(run, **where, count=8 if short else NUM_IMAGES)
    if name in ("scenes", "head", "control", "lesson", "features", "adaptation", "calibration"):
        return _make_lesson(name, run, seed, device, short)
    if name == "federated":
        from foveate.records.collection import Collection
        from foveate_labs.tour.calibration import FOLDER
        from foveate_labs.tour.federated import ROUNDS, tour_federated

        features = run.path / FOLDER / "features.npz"
        rounds = 4 if short else ROUNDS
        return tour_federated(Collection.open(run.path / EMOJI), run, features=features, seed=seed, rounds=rounds)
    from foveate_labs.tour import species

    return species.tour_species(run, **where, size=species.SHORT if short else species.FULL)


def _make_lesson(name: str, run: RunFolder, seed: int, device: str | None, short: bool) -> Any:
    """Return the result of a part that trains or reads the head of the lesson, or features as its encoder has them."""
    from foveate.core.devices import choose_device
    from foveate.records.collection import Collection
    from foveate.vision.feature_cache import CACHE, FeatureCache
    from foveate.vision.lite0 import Lite0Encoder
    from foveate.vision.localizer.folder import load_model
    from foveate_labs.tour import lesson
    from foveate_labs.worlds.builtin import build_emoji

    size = lesson.SHORT if short else lesson.FULL
    if name == "scenes":
        return lesson.build_scenes(run, size, seed=seed)
    if name in ("head", "control"):
        key = {"head": "after", "control": "permuted"}[name]
        return lesson.train_head(run, key, size, seed=seed, device=device)
    if name == "lesson":
        trained = read_json(_part_path(run.path, "head"))["result"]
        return lesson.compare(run, trained, size, seed=seed, device=device)
    path = run.path / EMOJI
    encoder = Lite0Encoder(image_size=size.image_size).to(choose_device(device or "auto"))
    if name == "features":
        build_emoji(path)
        collection = Collection.open(path)
        rows = collection.rows()
        cached = FeatureCache.of_whole_images(
            encoder, collection, rows, folder=path / CACHE, device=encoder.proj.weight.device
        )
        return {"images": len(rows), "bad": len(cached.bad)}
    collection = Collection.open(path)
    if name == "adaptation":
        from foveate_labs.tour.adaptation import tour_adaptation

        model = load_model(run.path / lesson.FOLDER / "after" / "model", device=device)
        epochs = {"epochs": 1} if short else {}
        return tour_adaptation(collection, run, model=model, cache=path / CACHE, seed=seed, **epochs)
    from foveate_labs.tour.calibration import tour_calibration

    epochs = 1 if short else None
    return tour_calibration(
        collection, run, encoder=encoder, cache=path / CACHE, seed=seed, device=device, epochs=epochs
    )


def _collect(finished: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of the result that finished parts made, and what they cost."""
    return {
        **{name: content["result"] for name, content in finished.items() if name in TourResult.model_fields},
        "seconds": {name: content["seconds"] for name, content in finished.items()},
        "processor_seconds": {name: content["processor_seconds"] for name, content in finished.items()},
        "memory_gb": round(max(content["memory_gb"] for content in finished.values()), 2),
    }


def _commit() -> str | None:
    """Return the commit of the running checkout; None outside one."""
    try:
        process = subprocess.run(
            ["git", "-C", str(CHECKOUT), "rev-parse", "--show-toplevel", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    root, commit = process.stdout.splitlines()
    # An installed package may lie in a repository of its user.
    return commit if Path(root).resolve() == CHECKOUT.resolve() else None


def _describe(seed: int, command: list[str] | None) -> dict[str, Any]:
    """Return what a result says about its run."""
    from importlib.metadata import version

    # Asked of the package, as the main process does without torch.
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": version("torch")}
    return {
        "kind": "tour",
        "seed": seed,
        "machine": machine,
        "version": __version__,
        "commit": _commit(),
        "command": command or [sys.argv[0]],
    }
