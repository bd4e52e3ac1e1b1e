"""Doctor: rates of reading, decoding and loading on this machine, and rules that judge a planned run.

What the run needs comes from its price. Nothing here knows of encoders.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.core.devices import available_memory, choose_device, fast_precision, total_memory, usable_cores
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.training.loader import BadSample, Loader

_LIBRARIES = (
    "torch", "torchvision", "numpy", "pillow", "pyarrow", "open-clip-torch", "transformers", "timm", "safetensors",
)  # fmt: skip
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
# As many as `foveate.records.collection` keeps open.
_OPEN_SHARDS = 256
# Flower pins an older protobuf than the rest wants.
_SEPARATE_EXTRAS = ("flower",)


def machine(folder: Path) -> dict[str, Any]:
    """Describe the machine: cores, memory, disk at `folder`, accelerators, fast precision, versions, hub off or not."""
    accelerators = [
        {
            "name": torch.cuda.get_device_name(number),
            "memory_bytes": torch.cuda.get_device_properties(number).total_memory,
        }
        for number in range(torch.cuda.device_count())
    ]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable_cores(),
        "memory_bytes": total_memory(),
        "memory_free_bytes": available_memory(),
        "disk_free_bytes": shutil.disk_usage(_existing(folder)).free,
        "accelerators": accelerators,
        "python": platform.python_version(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
        "torch_threads": torch.get_num_threads(),
        "auto_precision": str(fast_precision(choose_device())).removeprefix("torch."),
        "hub_offline": any(os.environ.get(name, "0").lower() in ("1", "true", "yes", "on") for name in _OFFLINE),
    }


def _existing(folder: Path) -> Path:
    # The run folder may be new; its disk is that of the nearest folder that exists.
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras(package: str = "foveate") -> dict[str, dict[str, str | None]]:
    """Return extra -> library -> installed version (None: missing); empty when the package is not installed."""
    try:
        requirements = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    installed: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        # An extra that lists other extras of the package names the package itself.
        if extra and name and name[0] != package:
            installed.setdefault(extra[1], {})[name[0]] = _version(name[0])
    return installed


def install_command(libraries: Sequence[str], extra: str, package: str = "foveate") -> str:
    """Return the command that installs libraries of an extra in the versions that the package asks for."""
    specs = [requirement.partition(";")[0].strip() for requirement in importlib.metadata.requires(package) or []]
    # List packages instead of the extra: for the extra, pip would look for Foveate itself, which may be on no index.
    missing = [spec for spec in dict.fromkeys(specs) if re.split(r"[^\w.-]", spec)[0] in libraries]
    separate = " in an environment of its own" if extra in _SEPARATE_EXTRAS else ""
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.join(missing)}{separate}"


@dataclass(frozen=True)
class Rates:
    """Measured rates, in images a second.

    Attributes:
        read_bytes_per_second: of image bytes in random order. read_images: the same in images.
        cold: whether the kernel was asked to drop the shards from its cache before; it may keep them all the same.
        decode_whole, decode_draft: of one thread, bytes in memory: the whole image, and a JPEG at a fraction as the
            loader does; both with the resizing to the model input.
        loader: of the whole loader with `threads` threads, warm.
        images: how many were tried. unreadable: key -> reason.
    """

    read_bytes_per_second: float
    read_images: float
    cold: bool
    decode_whole: float
    decode_draft: float
    loader: float
    threads: int
    images: int
    unreadable: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    collection: Collection,
    rows: np.ndarray,
    *,
    whole: Callable[[bytes], object],
    draft: Callable[[int], object],
    threads: int,
    seed: int,
    max_images: int = 128,
    seconds: float = 4.0,
) -> Rates:
    """Measure on at most `max_images` rows drawn from `rows`, about `seconds` for each rate.

    Args:
        whole: bytes to model input with the whole image unpacked. draft: row to model input as the loader makes it.
            Both may raise BadImage.
    """
    order = np.random.default_rng(seed).permutation(len(rows))[:max_images]
    selected = [int(row) for row in np.asarray(rows)[order]]
    unreadable: dict[str, str] = {}
    # Before anything is read: a warm cache would measure the memory instead of the disk.
    cold = _drop_cache(collection)
    data: dict[int, bytes] = {}
    began = time.perf_counter()
    for row in selected:
        try:
            data[row] = collection.image_bytes(row)
        except BadImage as problem:
            unreadable[collection.keys[row]] = str(problem)
    # A clock that is too coarse for a small collection must not divide by 0.
    reading = max(time.perf_counter() - began, 1e-9)
    # Decoded once before it is timed: a broken image would fail, and lazy imports would be measured with the first.
    good = []
    for row in data:
        try:
            draft(row)
            good.append(row)
        except BadImage as problem:
            unreadable[collection.keys[row]] = str(problem)
    decode_whole = _rate(lambda row: whole(data[row]), good, seconds)
    decode_draft = _rate(draft, good, seconds)
    loader = _loader_rate(draft, good, threads=threads, seed=seed, seconds=seconds) if good else 0.0
    return Rates(
        sum(map(len, data.values())) / reading,
        len(data) / reading,
        cold,
        decode_whole,
        decode_draft,
        loader,
        threads,
        len(selected),
        unreadable,
    )


def _drop_cache(collection: Collection) -> bool:
    """Ask the kernel to drop the shards from its cache, so that they are read from the disk; needs no privilege."""
    # macOS and Windows have no such call.
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in (collection.path / "images").glob("*.tar"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def _rate(make: Callable[[int], object], rows: Sequence[int], seconds: float) -> float:
    """Measure calls a second, over all rows again and again until the time is over."""
    if not rows:
        return 0.0
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        make(rows[done % len(rows)])
        done += 1
    return done / (time.perf_counter() - began)


class _ImageDataset:
    """Dataset of images without texts, drawn with the loader's views."""

    def __init__(self, make: Callable[[int], object]) -> None:
        self.make = make

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        try:
            return {"image": self.make(row)}
        except BadImage as problem:
            raise BadSample(str(row), str(problem)) from problem

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"count": len(samples)}


def _loader_rate(
    make: Callable[[int], object], rows: Sequence[int], *, threads: int, seed: int, seconds: float
) -> float:
    batch = min(16, len(rows))
    loader = Loader(_ImageDataset(make), rows=np.array(rows), batch_size=batch, seed=seed, workers=threads)
    # More steps than fit into the time; the generator is closed when it is over.
    batches = loader.batches(0, 1_000_000)
    try:
        for _ in range(threads):
            next(batches)  # until every thread is busy
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            done += next(batches)["count"]
        return done / (time.perf_counter() - began)
    finally:
        batches.close()


@dataclass(frozen=True)
class PlannedRun:
    """Requirements of a run, and what the machine has.

    Attributes:
        batch_size: images of an update over all processes. devices: processes, `local` of them on this machine.
        workers: loader threads per process.
        usable: images of the split with a text of a wanted kind. labeled: those with a region.
        needs_regions: the method has region losses, and no region stands in for a missing one.
        shards: of the collection.
        needed: images a second that the devices take.
        memory_bytes: of a device's process; memory_there: what the device has.
        disk_bytes: features and checkpoints still to be written; disk_there: what is free.
    """

    batch_size: int
    devices: int
    local: int
    workers: int
    usable: int
    labeled: int
    needs_regions: bool
    shards: int
    needed: float
    memory_bytes: float
    memory_there: float
    disk_bytes: float
    disk_there: float


def problems(plan: PlannedRun, *, cores: int, reader: str = "foveate") -> list[str]:
    """List what makes the run impossible, each with a way out; empty when nothing does."""
    sentences = []
    if plan.batch_size % plan.devices:
        sentences.append(
            f"batch_size {plan.batch_size} cannot be split evenly over {plan.devices} processes; "
            f"use {max(1, plan.batch_size // plan.devices) * plan.devices}"
        )
    if plan.batch_size < 2:
        sentences.append("batch_size 1 has no negatives: the loss is 0 for any model; use 2 or more")
    if plan.batch_size > plan.usable:
        sentences.append(
            f"batch_size {plan.batch_size} is larger than the {plan.usable} usable images: a batch would hold "
            f"an image twice and use its own text as a negative; expected at most {plan.usable}"
        )
    if plan.needs_regions and plan.labeled == 0:
        sentences.append(
            "no image of the split has a region, so that no batch can hold a positive of the region loss; add boxes, "
            "or train CLIP with regions.method=none"
        )
    # Without loader threads the process reads the data itself.
    readers = plan.devices * max(plan.workers, 1)
    if reader == "webdataset" and plan.shards < readers:
        sentences.append(
            f"{plan.shards} shards for {readers} WebDataset readers ({plan.devices} processes x {plan.workers}): each "
            f"reads whole shards, so {readers - plan.shards} of them would have nothing to read; use fewer readers or "
            "collect again with smaller shards"
        )
    if plan.memory_bytes > plan.memory_there:
        sentences.append(
            f"a process needs {plan.memory_bytes / 1e9:.1f} GB of memory, {plan.memory_there / 1e9:.1f} GB are "
            "available; `foveate pretrain RECIPE --dry-run` suggests a setting that fits"
        )
    if plan.disk_bytes > plan.disk_there:
        sentences.append(
            f"features and checkpoints need {plan.disk_bytes / 1e9:.1f} GB of disk, {plan.disk_there / 1e9:.1f} GB are "
            "free"
        )
    return sentences


def remarks(plan: PlannedRun, *, available: float, cores: int, reader: str = "foveate") -> list[str]:
    """List what will be slow, or works here and not elsewhere.

    Args:
        available: images a second that the loaders of all processes give together.
    """
    sentences = []
    threads = plan.local * plan.workers
    if threads > cores:
        sentences.append(
            f"{threads} loader threads ({plan.local} processes x {plan.workers}) on {cores} cores: they only take "
            f"turns; training.workers={max(1, cores // plan.local)} is as fast"
        )
    readers = plan.devices * max(plan.workers, 1)
    if reader == "foveate" and plan.shards < readers:
        sentences.append(
            f"{plan.shards} shards for {readers} readers is no limit here, images are read by their offset; readers "
            "of WebDataset shards (open_clip) would need at least as many shards as readers"
        )
    if plan.shards > _OPEN_SHARDS:
        sentences.append(
            f"{plan.shards} shards: files beyond {_OPEN_SHARDS} are opened for each image, which costs on a shared "
            "file system; larger shards avoid it"
        )
    if available < plan.needed:
        lacking = plan.needed - available
        sentences.append(
            f"the loader gives {available:,.0f} images/s, the devices take {plan.needed:,.0f}: they will wait "
            f"{lacking / plan.needed:.0%} of the time"
            + ("; there are more cores, raise --workers" if threads < cores else "")
        )
    return sentences
