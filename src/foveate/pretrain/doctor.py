"""`foveate doctor`: is the installation whole, and can this machine train this recipe on this collection?"""

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
from foveate.pretrain.pricing.price import price
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage, decode
from foveate.training import doctor
from foveate.vision.lite0_network import load_lite0
from foveate.vision.minilm import package_folder
from foveate.vision.pixels import Preprocess
from foveate.vision.views import placed, read, render

_PLAIN = Preprocess(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def installation(folder: Path) -> dict[str, Any]:
    """Machine, versions, extras, and whether weights and built-in data are the known ones.

    Returns:
        `machine`, `extras`, `files` (name, ok, reason) and `problems`, sentences; empty when all is well.
    """
    files = [
        _checked("EfficientNet-Lite0 weights", load_lite0),
        _checked("MiniLM weights", package_folder),
        *_builtin_data(),
    ]
    return {
        "kind": "doctor",
        "machine": doctor.machine(folder),
        "extras": doctor.extras(),
        "files": files,
        "problems": [f"{one['name']}: {one['reason']}" for one in files if not one["ok"]],
    }


def _checked(name: str, load: Callable[[], object]) -> dict[str, Any]:
    try:
        load()
    except UserError as problem:
        return {"name": name, "ok": False, "reason": str(problem)}
    return {"name": name, "ok": True, "reason": ""}


def _builtin_data() -> list[dict[str, Any]]:
    folder = DATA
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = []
    for name, expected in manifest["files"].items():
        there = (folder / name).is_file()
        ok = there and sha256_file(folder / name) == expected["sha256"]
        reason = "" if ok else "differs from the released one: reinstall foveate" if there else "missing"
        files.append({"name": f"built-in data {name}", "ok": ok, "reason": reason})
    return files


def examine(
    collection: Collection,
    recipe: PretrainRecipe | None = None,
    *,
    devices: int = 1,
    workers: int | None = None,
    hardware: str | None = None,
    reader: str = "foveate",
    seed: int = 0,
    seconds: float = 4.0,
) -> dict[str, Any]:
    """Measures the collection on this machine; with a recipe, says what a run reaches and what makes it impossible.

    Args:
        devices: processes in all; as many of them on this machine as it has accelerators, one without any.
        workers: loader threads per process; the recipe's, or one per core without a recipe.
        hardware: of a device, as in a price; what is found here when not given.
        reader: "webdataset" judges the shards for a reader that hands out whole ones.
        seconds: for each rate.

    Returns:
        `machine`, `rates`, `collection`, `reach` and `remarks`; `problems` are sentences, empty when the run can be.
    """
    facts = doctor.machine(collection.path)
    threads = workers or (recipe.training.workers if recipe is not None else facts["cores"]) or 1
    split = recipe.data.split if recipe is not None else None
    preprocess = _PLAIN
    if recipe is not None:
        with torch.device("meta"):
            preprocess = build_model(recipe).image_encoder.preprocess
    problems: list[str] = []
    try:
        rows = collection.rows(split)
    except UserError as problem:
        problems.append(str(problem))
        rows = collection.rows()
    if not len(rows):
        raise UserError(f"collection {collection.path}: it has no images")
    rates = doctor.measure(
        collection,
        rows,
        whole=lambda data: _whole(data, preprocess),
        draft=lambda row: read(collection, row, preprocess)[0],
        threads=threads,
        seed=seed,
        seconds=seconds,
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
        "remarks": _about_rates(rates, facts["cores"]),
        "problems": problems,
    }
    if rates.unreadable:
        key, reason = next(iter(rates.unreadable.items()))
        result["remarks"].append(
            f"{len(rates.unreadable)} of {rates.images} images cannot be read, for example '{key}': {reason}"
        )
    if recipe is not None and not problems:
        _judge(result, collection, recipe, rates, devices=devices, workers=threads, hardware=hardware, reader=reader)
    return result


def _whole(data: bytes, preprocess: Preprocess) -> object:
    image = decode(data)
    try:
        return render(preprocess, image, placed(preprocess, image.size, View()))
    except UserError as problem:
        raise BadImage("too narrow", str(problem)) from problem


def _about_rates(rates: doctor.Rates, cores: int) -> list[str]:
    said = []
    if rates.threads <= cores and rates.loader < 0.7 * rates.decode_draft * rates.threads:
        said.append(
            f"the loader reaches {rates.loader / max(rates.decode_draft * rates.threads, 1e-9):.0%} of "
            f"{rates.threads} x one thread: other processes, or a cgroup's limit, take the cores"
        )
    if rates.read_images < rates.loader:
        said.append(
            f"reading in random order gives {rates.read_images:,.0f} images/s, less than can be decoded: the disk "
            "is the limit"
        )
    return said


def _judge(
    result: dict[str, Any],
    collection: Collection,
    recipe: PretrainRecipe,
    rates: doctor.Rates,
    *,
    devices: int,
    workers: int,
    hardware: str | None,
    reader: str,
) -> None:
    """Adds `reach`, `problems` and `remarks` of a run."""
    facts = result["machine"]
    accelerators = facts["accelerators"]
    local = min(devices, max(len(accelerators), 1))
    even = recipe
    if recipe.training.batch_size % devices:
        # Priced as if it could be split; the rule below refuses it.
        share = max(1, recipe.training.batch_size // devices)
        even = recipe.model_copy(
            update={"training": recipe.training.model_copy(update={"batch_size": share * devices})}
        )
    try:
        priced = price(even, devices=devices, hardware=hardware or _hardware_here(accelerators), collection=collection)
    except UserError as problem:
        result["problems"].append(str(problem))
        return
    memory_there = facts["memory_free_bytes"] / local
    if hardware is not None:
        memory_there = priced["hardware"]["gb"] * 1e9
    elif accelerators:
        memory_there = min(one["memory_bytes"] for one in accelerators)
    cached = priced["reads_cached_features"]
    features = priced["bytes_per_image"] * priced["images_with_text"] if cached else 0.0
    checkpoints = (recipe.training.keep_checkpoints + 1) * 12.0 * priced["parameters_trained"]
    regions = set(collection.table("regions")["key"].to_pylist())
    rows = collection.rows(recipe.data.split)
    plan = doctor.Plan(
        batch_size=recipe.training.batch_size,
        devices=devices,
        local=local,
        workers=workers,
        usable=priced["images_with_text"],
        labeled=sum(collection.keys[int(row)] in regions for row in rows),
        needs_regions=recipe.regions.method != "none" and not recipe.data.whole_image_region,
        shards=len(collection.shards),
        needed=priced["images_per_second"],
        memory_bytes=priced["memory_per_device"]["total"],
        memory_there=memory_there,
        disk_bytes=features + checkpoints,
        disk_there=facts["disk_free_bytes"],
    )
    # Every process has its own threads; beyond this machine's cores they add nothing.
    at_once = min(plan.local * workers, facts["cores"]) * (devices / plan.local)
    available = math.inf if cached else rates.loader / rates.threads * at_once
    reached = min(available, plan.needed)
    result["problems"] += doctor.problems(plan, cores=facts["cores"], reader=reader)
    result["remarks"] += doctor.remarks(plan, available=available, cores=facts["cores"], reader=reader)
    result["remarks"] += [sentence for sentence in priced["warnings"] if "larger than" not in sentence]
    result["reach"] = {
        "hardware": priced["hardware"],
        "devices": devices,
        "images_per_second_needed": plan.needed,
        "images_per_second_available": None if cached else available,
        "reads_cached_features": cached,
        "hours": priced["samples"] / reached / 3600,
        "hours_if_the_loader_kept_up": priced["samples"] / plan.needed / 3600,
        "hours_to_make_features": plan.usable / max(rates.decode_draft * local, 1e-9) / 3600 if cached else 0.0,
        "memory_bytes": plan.memory_bytes,
        "disk_bytes": plan.disk_bytes,
    }


def _hardware_here(accelerators: list[dict[str, Any]]) -> str:
    """The accelerator's entry where its name is known; else the cores."""
    if not accelerators:
        return "cpu"
    name = accelerators[0]["name"].lower()
    memory = accelerators[0]["memory_bytes"] / 1e9
    for part, entry in (("h200", "h200"), ("h100", "h100-80gb"), ("a100", "a100-80gb")):
        if part in name:
            return entry
    raise UserError(
        f"the peak of '{accelerators[0]['name']}' is not known: give --hardware name=TFLOPs,GB, for example "
        f"mine=100,{memory:.0f}"
    )


def format_report(result: dict[str, Any]) -> list[str]:
    """The findings as lines."""
    facts = result["machine"]
    said = [
        f"machine: {facts['system']}, {facts['cores']} cores, {facts['memory_bytes'] / 1e9:.1f} GB memory "
        f"({facts['memory_free_bytes'] / 1e9:.1f} free), {facts['disk_free_bytes'] / 1e9:.1f} GB disk free",
        "accelerators: " + (", ".join(one["name"] for one in facts["accelerators"]) or "none"),
        "versions: " + ", ".join(f"{name} {found}" for name, found in facts["versions"].items()),
        f"Hugging Face hub: {'offline (by environment variable)' if facts['hub_offline'] else 'not switched off'}",
    ]
    said += [f"{one['name']}: {'ok' if one['ok'] else one['reason']}" for one in result.get("files", [])]
    for extra, libraries in result.get("extras", {}).items():
        missing = [name for name, found in libraries.items() if found is None]
        said.append(f"extra {extra}: " + ("installed" if not missing else f"missing {', '.join(missing)}"))
    if "rates" in result:
        said += _rates_in_words(result)
    said += [f"remark: {sentence}" for sentence in result.get("remarks", [])]
    said += [f"problem: {sentence}" for sentence in result["problems"]]
    return said if result["problems"] else [*said, "nothing stands in the way"]


def _rates_in_words(result: dict[str, Any]) -> list[str]:
    rates, held = result["rates"], result["collection"]
    said = [
        f"collection: {held['images']:,} images in {held['shards']} shards, "
        f"mean {held['mean_bytes'] / 1e3:.0f} kB, {held['mean_px'][0]:.0f} x {held['mean_px'][1]:.0f} px",
        f"reading in random order: {rates['read_bytes_per_second'] / 1e6:,.0f} MB/s, "
        f"{rates['read_images']:,.0f} images/s "
        + ("(cache dropped first, as far as the kernel did)" if rates["cold"] else "(warm: from the cache)"),
        f"decoding to {result['input_px']} px, one thread: {rates['decode_whole']:,.0f} images/s whole, "
        f"{rates['decode_draft']:,.0f} with JPEGs unpacked at a fraction and read from the shard",
        f"loader with {rates['threads']} threads: {rates['loader']:,.0f} images/s",
    ]
    reach = result["reach"]
    if reach is not None:
        available = reach["images_per_second_available"]
        said += [
            f"devices: {reach['devices']} x {reach['hardware']['name']} take "
            f"{reach['images_per_second_needed']:,.4g} images/s; "
            + ("features are cached" if available is None else f"the loaders give {available:,.4g}"),
            f"the run takes about {duration(3600 * reach['hours'])}"
            + (
                f", and {duration(3600 * reach['hours_to_make_features'])} or more for the features first"
                if available is None
                else ""
            ),
            f"it needs {reach['memory_bytes'] / 1e9:,.3g} GB of memory a process and "
            f"{reach['disk_bytes'] / 1e9:,.3g} GB of disk",
        ]
    return said
