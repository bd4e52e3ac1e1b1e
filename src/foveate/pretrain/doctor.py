"""`foveate doctor`: check the installation, and whether this machine can train a recipe on a collection."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.core.paths import DATA
from foveate.core.progress import duration
from foveate.pretrain.pricing import price_recipe
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.settings import DoctorSettings
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage, decode
from foveate.training import doctor
from foveate.vision.lite0 import load_lite0
from foveate.vision.minilm import package_folder
from foveate.vision.preprocess import Preprocess, place_image, read_image, render_image

_PLAIN = Preprocess(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def installation(folder: Path) -> dict[str, Any]:
    """Describe machine, versions and extras; verify weights and built-in data by their checksums.

    Returns:
        `machine`, `extras`, `files` (name, ok, reason) and `problems`, sentences; empty if all is well.
    """
    files = [
        _check_file("EfficientNet-Lite0 weights", load_lite0),
        _check_file("MiniLM weights", package_folder),
        *_builtin_data(),
    ]
    return {
        "kind": "doctor",
        "machine": doctor.machine(folder),
        "extras": doctor.extras(),
        "files": files,
        "problems": [f"{file['name']}: {file['reason']}" for file in files if not file["ok"]],
    }


def _check_file(name: str, load: Callable[[], object]) -> dict[str, Any]:
    try:
        load()
    except UserError as problem:
        return {"name": name, "ok": False, "reason": str(problem)}
    return {"name": name, "ok": True, "reason": ""}


def _builtin_data() -> list[dict[str, Any]]:
    folder = DATA
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = []
    for name, expected in (manifest["files"] | manifest["weights"] | manifest["photographs"]).items():
        exists = (folder / name).is_file()
        ok = exists and sha256_file(folder / name) == expected["sha256"]
        reason = "" if ok else "differs from the released one: reinstall foveate" if exists else "missing"
        files.append({"name": f"shipped {name}", "ok": ok, "reason": reason})
    return files


def examine(
    collection: Collection,
    recipe: PretrainRecipe | None = None,
    settings: DoctorSettings | None = None,
    *,
    workers: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure read and decode rates of a collection; with a recipe, estimate the speed of a run and find problems.

    Args:
        settings: of the planned run; this machine runs as many processes as it has accelerators, one without any.
        workers: loader threads per process; by default the recipe's, or one per core without a recipe.
        seed: which images are read.

    Returns:
        `machine`, `rates`, `collection`, `reach` and `remarks`; `problems` are sentences, empty if the run is possible.
    """
    settings = settings or DoctorSettings()
    facts = doctor.machine(collection.path)
    # Without a recipe use all cores, to measure what the machine can do.
    threads = workers or (recipe.training.workers if recipe is not None else facts["cores"]) or 1
    split = recipe.data.split if recipe is not None else None
    preprocess = _PLAIN
    if recipe is not None:
        # Only its preprocessing is needed: on "meta" the model takes no memory and reads no weights.
        with torch.device("meta"):
            preprocess = build_model(recipe).image_encoder.preprocess
    problems: list[str] = []
    try:
        rows = collection.rows(split)
    except UserError as problem:
        # Reported as one problem among others: the rates over all images are still worth measuring.
        problems.append(str(problem))
        rows = collection.rows()
    if not len(rows):
        raise UserError(f"collection {collection.path}: it has no images")
    rates = doctor.measure(
        collection,
        rows,
        whole=lambda data: _whole(data, preprocess),
        draft=lambda row: read_image(collection, row, preprocess)[0],
        threads=threads,
        seed=seed,
        seconds=settings.seconds,
    )
    result: dict[str, Any] = {
        "kind": "doctor",
        "machine": facts,
        "collection": {
            "images": len(collection),
            "shards": len(collection.shards),
            "rows": len(rows),
            "mean_bytes": float(np.mean(collection.index["length"][rows])),
            "mean_px": [float(np.mean(collection.index[side][rows])) for side in ("width", "height")],
        },
        "input_px": preprocess.side,
        "rates": rates.as_json(),
        "reach": None,
        "remarks": _rate_remarks(rates, facts["cores"]),
        "problems": problems,
    }
    if rates.unreadable:
        key, reason = next(iter(rates.unreadable.items()))
        result["remarks"].append(
            f"{len(rates.unreadable)} of {rates.images} images cannot be read, for example '{key}': {reason}"
        )
    if recipe is not None and not problems:
        _check_run(result, collection, recipe, rates, settings, workers=threads)
    return result


def _whole(data: bytes, preprocess: Preprocess) -> object:
    image = decode(data)
    try:
        return render_image(preprocess, image, place_image(preprocess, image.size, View()))
    except UserError as problem:
        raise BadImage("too narrow", str(problem)) from problem


def _rate_remarks(rates: doctor.Rates, cores: int) -> list[str]:
    remarks = []
    # More threads than cores cannot reach a multiple of one thread's rate.
    if rates.threads <= cores and rates.loader < 0.7 * rates.decode_draft * rates.threads:
        remarks.append(
            f"the loader reaches {rates.loader / max(rates.decode_draft * rates.threads, 1e-9):.0%} of "
            f"{rates.threads} x one thread: other processes or a cgroup limit use the cores"
        )
    if rates.read_images < rates.loader:
        remarks.append(
            f"reading in random order gives {rates.read_images:,.0f} images/s, less than can be decoded: the disk "
            "is the bottleneck"
        )
    return remarks


def _check_run(
    result: dict[str, Any],
    collection: Collection,
    recipe: PretrainRecipe,
    rates: doctor.Rates,
    settings: DoctorSettings,
    *,
    workers: int,
) -> None:
    """Add `reach`, `problems` and `remarks` of a run."""
    devices, hardware, reader = settings.devices, settings.hardware, settings.reader
    facts = result["machine"]
    accelerators = facts["accelerators"]
    local = min(devices, max(len(accelerators), 1))
    even = recipe
    if recipe.training.batch_size % devices:
        # Price the nearest batch that can be split; `doctor.problems` reports the uneven one.
        share = max(1, recipe.training.batch_size // devices)
        even = recipe.model_copy(
            update={"training": recipe.training.model_copy(update={"batch_size": share * devices})}
        )
    try:
        assumed = {"devices": devices, "hardware": hardware or _hardware_here(accelerators)}
        priced = price_recipe(even, collection=collection, **assumed)
    except UserError as problem:
        result["problems"].append(str(problem))
        return
    (stage,) = priced.stages
    # Without accelerators the processes of this machine share its memory.
    memory_there = facts["memory_free_bytes"] / local
    if hardware is not None:
        memory_there = priced.hardware["gb"] * 1e9
    elif accelerators:
        # All processes hold the same, so the smallest device decides.
        memory_there = min(device["memory_bytes"] for device in accelerators)
    cached, usable = priced.facts["reads_cached_features"], priced.facts["images_with_text"]
    features = priced.facts["bytes_per_image"] * usable if cached else 0.0
    # One more than is kept, while a new one is written; weights and two moments in float32 are 12 bytes.
    checkpoints = (recipe.training.keep_checkpoints + 1) * 12.0 * stage.trained
    regions = set(collection.table("regions")["key"].to_pylist())
    rows = collection.rows(recipe.data.split)
    plan = doctor.PlannedRun(
        batch_size=recipe.training.batch_size,
        devices=devices,
        local=local,
        workers=workers,
        usable=usable,
        labeled=sum(collection.keys[int(row)] in regions for row in rows),
        needs_regions=recipe.regions.method != "none" and not recipe.data.whole_image_region,
        shards=len(collection.shards),
        needed=stage.samples_per_second,
        memory_bytes=stage.memory_per_device["total"],
        memory_there=memory_there,
        disk_bytes=features + checkpoints,
        disk_there=facts["disk_free_bytes"],
    )
    # Every process has its own threads, but more threads than cores add nothing.
    at_once = min(plan.local * workers, facts["cores"]) * (devices / plan.local)
    available = math.inf if cached else rates.loader / rates.threads * at_once
    reached = min(available, plan.needed)
    result["problems"] += doctor.problems(plan, cores=facts["cores"], reader=reader)
    result["remarks"] += doctor.remarks(plan, available=available, cores=facts["cores"], reader=reader)
    # A batch larger than the images is a problem above already.
    result["remarks"] += [sentence for sentence in [*stage.warnings, *priced.warnings] if "larger than" not in sentence]
    result["reach"] = {
        "hardware": priced.hardware,
        "devices": devices,
        "images_per_second_needed": plan.needed,
        # Cached features are read, not decoded, so the loader's rate does not apply to them.
        "images_per_second_available": None if cached else available,
        "reads_cached_features": cached,
        "hours": stage.samples / reached / 3600,
        "hours_if_the_loader_kept_up": stage.samples / plan.needed / 3600,
        "hours_to_make_features": plan.usable / max(rates.decode_draft * local, 1e-9) / 3600 if cached else 0.0,
        "memory_bytes": plan.memory_bytes,
        "disk_bytes": plan.disk_bytes,
    }


def _hardware_here(accelerators: list[dict[str, Any]]) -> str:
    """Return the entry of this machine's accelerator, or "cpu" without one."""
    if not accelerators:
        return "cpu"
    name = accelerators[0]["name"].lower()
    memory = accelerators[0]["memory_bytes"] / 1e9
    for part, entry in (("h200", "h200"), ("h100", "h100-80gb"), ("a100", "a100-80gb")):
        if part in name:
            return entry
    raise UserError(
        f"--hardware: the peak of '{accelerators[0]['name']}' is unknown; expected name=TFLOPs,GB, for example "
        f"mine=100,{memory:.0f}"
    )


def format_report(result: dict[str, Any]) -> list[str]:
    """Format the result in lines of text for the command line."""
    facts = result["machine"]
    lines = [
        f"machine: {facts['system']}, {facts['cores']} cores, {facts['memory_bytes'] / 1e9:.1f} GB memory "
        f"({facts['memory_free_bytes'] / 1e9:.1f} free), {facts['disk_free_bytes'] / 1e9:.1f} GB disk free",
        "accelerators: " + (", ".join(device["name"] for device in facts["accelerators"]) or "none"),
        f"precision auto: {facts['auto_precision']}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"Hugging Face hub: {'offline (by environment variable)' if facts['hub_offline'] else 'not switched off'}",
    ]
    lines += [f"{file['name']}: {'ok' if file['ok'] else file['reason']}" for file in result.get("files", [])]
    for extra, libraries in result.get("extras", {}).items():
        missing = [name for name, version in libraries.items() if version is None]
        command = f"{', '.join(missing)} missing; {doctor.install_command(missing, extra)}"
        lines.append(f"extra {extra}: {command if missing else 'installed'}")
    if "rates" in result:
        lines += _format_rates(result)
    lines += [f"remark: {sentence}" for sentence in result.get("remarks", [])]
    lines += [f"problem: {sentence}" for sentence in result["problems"]]
    return lines if result["problems"] else [*lines, "no problems"]


def _format_rates(result: dict[str, Any]) -> list[str]:
    rates, collection = result["rates"], result["collection"]
    lines = [
        f"collection: {collection['images']:,} images in {collection['shards']} shards, "
        f"mean {collection['mean_bytes'] / 1e3:.0f} kB, "
        f"{collection['mean_px'][0]:.0f} x {collection['mean_px'][1]:.0f} px",
        f"reading in random order: {rates['read_bytes_per_second'] / 1e6:,.0f} MB/s, "
        f"{rates['read_images']:,.0f} images/s "
        + (
            "(after dropping the page cache, as far as the kernel did)"
            if rates["cold"]
            else "(warm: from the page cache)"
        ),
        f"decoding to {result['input_px']} px, one thread: {rates['decode_whole']:,.0f} images/s whole, "
        f"{rates['decode_draft']:,.0f} with JPEGs decoded at reduced size, reading from the shard included",
        f"loader with {rates['threads']} threads: {rates['loader']:,.0f} images/s",
    ]
    reach = result["reach"]
    if reach is not None:
        available = reach["images_per_second_available"]
        lines += [
            f"devices: {reach['devices']} x {reach['hardware']['name']} take "
            f"{reach['images_per_second_needed']:,.4g} images/s; "
            + ("features are cached" if available is None else f"the loaders deliver {available:,.4g}"),
            f"the run takes about {duration(3600 * reach['hours'])}"
            + (
                f", and {duration(3600 * reach['hours_to_make_features'])} or more for the features first"
                if available is None
                else ""
            ),
            f"it needs {reach['memory_bytes'] / 1e9:,.3g} GB of memory a process and "
            f"{reach['disk_bytes'] / 1e9:,.3g} GB of disk",
        ]
    return lines
