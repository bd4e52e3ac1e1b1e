"""`foveate pretrain RECIPE --dry-run`: estimate time and memory of a run, without data and without allocating it.

FLOPs are counted, memory is summed, and time follows from the peak rate of the hardware and the share of it that is
reached (MFU). Communication between devices is not modeled: it is part of that share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from foveate.core.errors import UserError
from foveate.core.progress import duration
from foveate.core.recipes import validate
from foveate.pretrain.dataset import describe_no_regions
from foveate.pretrain.pricing import costs
from foveate.pretrain.pricing.costs import ModelCost
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.task import PretrainTask
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.records.region_sources import select_region_rows
from foveate.training.costs import state_bytes
from foveate.training.hardware import PriceSettings, parse_hardware
from foveate.training.image_texts import ImageTexts
from foveate.training.mixture import LOST_WEIGHT
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.registry import tower_options

_DEFAULTS = PriceSettings()
# Tower -> its parts in `flops_per_image`.
TOWERS = {"image_encoder": ("image tower",), "text_encoder": ("caption", "phrases")}
# Assumed without a collection: a photograph of some 640 pixels, and a noun phrase with its start and end tokens.
IMAGE_BYTES = 100_000
PHRASE_TOKENS = 10


@dataclass(frozen=True)
class Layout:
    """Distribution of a step: devices, parts of a process's share, DDP or FSDP2.

    checkpointed: towers ("image_encoder", "text_encoder") whose layers are computed again in the backward pass.
    """

    devices: int
    accumulate: int
    parallel: str
    checkpointed: frozenset[str] = frozenset()


def price(
    recipe: PretrainRecipe,
    *,
    devices: int = _DEFAULTS.devices,
    hardware: str = _DEFAULTS.hardware,
    samples: float | None = _DEFAULTS.samples,
    mfu: float = _DEFAULTS.mfu,
    collection: Collection | None = None,
) -> dict[str, Any]:
    """Estimate the cost of a run as JSON values; sizes in bytes and FLOPs, times in seconds and days.

    Args:
        devices: processes, each with one device of `hardware`.
        samples: images seen in all epochs; by default the recipe's steps x batch_size.
        mfu: share of the peak that is reached, in (0, 1].
        collection: checked for split and kinds of texts; its mean image size replaces the assumed one.

    Raises:
        UserError: when the recipe, the hardware or the collection does not fit.
    """
    content = {"devices": devices, "hardware": hardware, "samples": samples, "mfu": mfu}
    validate(PriceSettings, content, where="price of a run")
    device = parse_hardware(hardware)
    settings = recipe.training.model_copy(update={"precision": device.resolve_precision(recipe.training.precision)})
    recipe = recipe.model_copy(update={"training": settings})
    if settings.batch_size % devices:
        # The largest power of two that divides the batch size and does not exceed `devices`.
        divisor = math.gcd(settings.batch_size, 2 ** int(math.log2(devices)))
        raise UserError(
            f"devices: {devices} do not divide batch_size {settings.batch_size}; expected a divisor, for example "
            f"{divisor}"
        )
    facts = check_collection(recipe, collection) if collection is not None else {}
    with torch.device("meta"):
        model = build_model(_without_checkpointing(recipe))  # its savings are computed from the whole
    supported = frozenset(name for name in TOWERS if _supports_checkpointing(model.recipe, name))
    checkpointed = frozenset(name for name in supported if getattr(recipe, name).get("checkpointing"))
    cached = bool(model.image_encoder.fingerprint())
    feature_bytes = math.prod(model.image_encoder.feature_shape) * model.image_encoder.feature_dtype.itemsize
    task = PretrainTask(model)
    cost = costs.model_cost(model, units=list(task.shard_units()), precision=settings.precision)

    steps = settings.steps if samples is None else max(1, round(samples / settings.batch_size))
    per_image = flops_per_image(recipe, cost)
    # Cached embeddings (Gao et al. 2021): with parts every image goes forward twice.
    again = per_image["forward"] if settings.accumulate > 1 else 0.0
    again += sum(per_image[part] for name in checkpointed for part in TOWERS[name])
    step_flops = settings.batch_size * per_image["total"]
    extra = 1 + again / per_image["total"]
    loss = costs.loss_flops(with_regions=recipe.regions.method != "none", processes=devices, **_loss_shape(recipe))
    peak = device.tflops if settings.precision == "bf16" else device.wide_tflops
    seconds_model = step_flops * extra / devices / (peak * 1e12 * mfu)
    # Use the float32 peak: the losses are computed without autocast.
    seconds_loss = loss / (device.wide_tflops * 1e12 * mfu)
    seconds = seconds_model + seconds_loss
    image = feature_bytes if cached else facts.get("image_bytes", IMAGE_BYTES)
    layout = Layout(devices, settings.accumulate, settings.parallel, checkpointed)
    memory = memory_per_device(recipe, cost, layout)
    capacity = device.gigabytes * 1e9
    result: dict[str, Any] = {
        "parameters": sum(cost.parameters.values()),
        "parameters_by_part": cost.parameters,
        "parameters_trained": cost.trained,
        "tokens_per_image": model.image_encoder.grid[0] * model.image_encoder.grid[1],
        "input_px": model.image_encoder.preprocess.side,
        "steps": steps,
        "batch_size": settings.batch_size,
        "samples": steps * settings.batch_size,
        "flops_per_image": per_image,
        "cloc_over_clip": cloc_over_clip(recipe, cost),
        "flops_per_step": step_flops * extra + loss * devices,
        "loss_flops_per_device": loss,
        "flops_in_all": (step_flops * extra + loss * devices) * steps,
        "hardware": {"name": device.name, "tflops": peak, "float32_tflops": device.wide_tflops, "gb": device.gigabytes},
        "devices": devices,
        "mfu": mfu,
        "seconds_per_step": seconds,
        "loss_share_of_step": seconds_loss / seconds,
        "days_without_losses": seconds_model * steps / 86_400,
        "images_per_second": settings.batch_size / seconds,
        "days": seconds * steps / 86_400,
        "device_days": seconds * steps * devices / 86_400,
        "reads_cached_features": cached,
        "bytes_per_image": image,
        "bytes_read_per_step": image * settings.batch_size,
        "bytes_read_per_second": image * settings.batch_size / seconds,
        "bytes_read_in_all": image * settings.batch_size * steps,
        "memory_per_device": memory,
        "checkpointing": {"possible": sorted(supported), "enabled": sorted(checkpointed)},
        "memory_per_device_checkpointed": memory_per_device(recipe, cost, replace(layout, checkpointed=supported))[
            "total"
        ],
        "memory_ddp": memory_per_device(recipe, cost, replace(layout, parallel="ddp"))["total"],
        "memory_fsdp": memory_per_device(recipe, cost, replace(layout, parallel="fsdp"))["total"],
        "fits": memory["total"] <= capacity,
        # Weights, gradients and Adam's two moments in float32.
        "optimizer_bytes": 16 * sum(cost.parameters.values()),
    }
    if facts:
        result["kinds_missing"] = facts["kinds_missing"]
        result |= {"images": facts["images"], "images_with_text": facts["with_text"], "regions": facts["regions"]}
        result["epochs"] = round(result["samples"] / max(facts["with_text"], 1), 2)
    result["warnings"] = warnings(recipe, cost, layout, capacity=capacity, result=result)
    # Put before all other warnings: without regions the run cannot learn places at all.
    if facts and not facts["regions"] and recipe.regions.method != "none":
        result["warnings"].insert(0, describe_no_regions(facts["path"], recipe.data.split))
    return result


def format_price(result: dict[str, Any]) -> list[str]:
    """Describe a price in lines of text, for the command line."""
    flops, memory, hardware = result["flops_per_image"], result["memory_per_device"], result["hardware"]
    parts = {name: count for name, count in result["parameters_by_part"].items() if count}
    lines = [
        f"parameters: {result['parameters']:,} ({', '.join(f'{name} {count:,}' for name, count in parts.items())})",
        f"trained parameters: {result['parameters_trained']:,}",
        f"tokens per image: {result['tokens_per_image']} at {result['input_px']} px",
        f"steps: {result['steps']:,} of {result['batch_size']:,} images: {result['samples']:,} samples",
    ]
    if "images" in result:
        lines.append(f"images: {result['images']:,}, with a text of the recipe's kinds {result['images_with_text']:,}")
        lines.append(f"epochs: {result['epochs']:,}")
    named = ("image tower", "caption", "phrases", "prompter")
    by_part = ", ".join(f"{name} {flops[name] / 1e9:,.3g}" for name in named if flops[name])
    over = result["cloc_over_clip"]
    uses = {name.replace("_", " "): size / 1e9 for name, size in memory.items() if name != "total" and size}
    by_use = ", ".join(f"{name} {size:,.2f}" for name, size in uses.items())
    devices = f", {result['device_days']:,.4g} device-days" if result["devices"] > 1 else ""
    lines += [
        f"GFLOPs per image: {flops['total'] / 1e9:,.4g} with backward; forward {by_part}",
        f"forward over CLIP alone: {over['ours']:.2f}x (a plain Prompter would take {over['plain']:.2f}x)",
        f"FLOPs in all: {result['flops_in_all']:.3g}",
        f"hardware: {result['devices']} x {hardware['name']}, {hardware['tflops']:,.4g} TFLOP/s each, "
        f"MFU {result['mfu']:g}",
        f"time: {result['seconds_per_step']:,.3g} s a step, {duration(86_400 * result['days'])} in all"
        f"{devices}; {result['loss_share_of_step']:.0%} of it in the loss matrices",
        f"to be read: {result['bytes_per_image'] / 1e3:,.4g} kB an image"
        f"{' (cached features)' if result['reads_cached_features'] else ''}, "
        f"{result['bytes_read_per_second'] / 1e6:,.4g} MB/s and {result['images_per_second']:,.4g} images/s "
        f"in all, {result['bytes_read_in_all'] / 1e12:,.3g} TB over the run",
        f"memory per device: {memory['total'] / 1e9:,.4g} of {hardware['gb']:,.4g} GB ({by_use})",
        f"with ddp {result['memory_ddp'] / 1e9:,.4g} GB, with fsdp {result['memory_fsdp'] / 1e9:,.4g} GB",
    ]
    possible, enabled = result["checkpointing"]["possible"], result["checkpointing"]["enabled"]
    if possible != enabled:
        switches = " and ".join(f"{name}.checkpointing=true" for name in possible)
        lines.append(f"with {switches} {result['memory_per_device_checkpointed'] / 1e9:,.4g} GB, and the layers twice")
    return lines + [f"warning: {sentence}" for sentence in result["warnings"]]


def check_collection(recipe: PretrainRecipe, collection: Collection) -> dict[str, Any]:
    """Return the collection's images of the split, those with a text of the recipe's kinds, and mean bytes.

    Raises:
        UserError: for an unknown split or source of regions, or when no image has a text of the recipe's kinds.
    """
    rows = collection.rows(recipe.data.split)
    captions = collection.table("captions")
    texts = ImageTexts(collection, recipe.data.text_rule(), prefer=recipe.data.prefer)
    kinds = texts.rule.drawable
    existing = captions["kind"].unique().to_pylist()
    with_text = len(texts.rows_with_text(rows))
    if not with_text:
        raise UserError(
            f"collection {collection.path}: no image of split '{recipe.data.split}' has a text of the kinds "
            f"{', '.join(kinds)} (field data.captions); it has {', '.join(sorted(existing)) or 'no texts'}"
        )
    regions = 0
    if recipe.regions.method != "none":
        grouped, where = collection.grouped("regions"), "field data.region_sources"
        drawn_R = select_region_rows(grouped.table, recipe.data.region_sources, where=where)
        regions = int((drawn_R & np.isin(grouped.row_numbers, rows)).sum())
    lengths = collection.index["length"][rows]
    return {
        "images": len(rows),
        "with_text": with_text,
        "image_bytes": float(lengths.mean()),
        "kinds_missing": sorted(set(kinds) - set(existing)),
        "regions": regions,
        "path": collection.path,
    }


def _without_checkpointing(recipe: PretrainRecipe) -> PretrainRecipe:
    """Return the recipe with all activations saved."""
    towers = {name: {k: v for k, v in getattr(recipe, name).items() if k != "checkpointing"} for name in TOWERS}
    return recipe.model_copy(update=towers)


def _supports_checkpointing(recipe: LocalizerSettings, name: str) -> bool:
    """Whether a tower has the option `checkpointing`; a frozen one saves no activations in any case."""
    options = getattr(recipe, name)
    return "checkpointing" in tower_options(options["kind"], name) and not options.get("frozen")


def _regions(recipe: PretrainRecipe) -> int:
    return recipe.data.regions_per_image if recipe.regions.method != "none" else 0


def _loss_shape(recipe: PretrainRecipe) -> dict[str, Any]:
    batch = recipe.training.batch_size
    return {
        "images": batch,
        "regions": batch * _regions(recipe),
        "embed_dim": recipe.embed_dim,
        "filter": recipe.regions.filter,
        "chunked": recipe.regions.row_chunk is not None,
    }


def flops_per_image(recipe: PretrainRecipe, cost: ModelCost, *, once: bool = True) -> dict[str, float]:
    """Return FLOPs of one image with its text and M regions: by part (forward), forward, and total with backward.

    Args:
        once: False for a plain Prompter, a sequence for each prompt, with phrases at full length.
    """
    regions = _regions(recipe)
    # Phrases are batched at their own length: padded to the context they would cost seven times as much.
    phrase = cost.text.at_length(min(PHRASE_TOKENS, cost.text.length)) if once else cost.text
    parts = {
        "image tower": cost.image.forward,
        "caption": cost.text.forward,
        "phrases": regions * phrase.forward,
        "prompter": 0.0,
    }
    if recipe.regions.method == "prompter":
        parts["prompter"] = costs.prompter_flops(
            tokens=cost.image.length,
            width=cost.image.width,
            embed_dim=recipe.embed_dim,
            boxes=regions,
            phrases=regions,
            pool=recipe.regions.prompter.pool,
            once=once,
        )
    elif recipe.regions.method == "roi":
        # A multiply-add is 2 FLOPs.
        parts["prompter"] = regions * 2.0 * cost.image.width * recipe.embed_dim
    # Twice the forward: gradients of inputs and of weights. The towers know which of theirs are frozen.
    backward = cost.image.backward + cost.text.backward + regions * phrase.backward + 2 * parts["prompter"]
    forward = sum(parts.values())
    return {**parts, "forward": forward, "total": forward + backward}


def cloc_over_clip(recipe: PretrainRecipe, cost: ModelCost) -> dict[str, float]:
    """Return the ratio of forward FLOPs to those of CLIP: as computed here, and with a plain Prompter."""
    clip = cost.image.forward + cost.text.forward
    return {
        "ours": flops_per_image(recipe, cost)["forward"] / clip,
        "plain": flops_per_image(recipe, cost, once=False)["forward"] / clip,
    }


def memory_per_device(recipe: PretrainRecipe, cost: ModelCost, layout: Layout) -> dict[str, float]:
    """Return the bytes in one process by use, and the `total`.

    The training's state; activations of one part of the process's share of the batch; gathered embeddings and the
    blocks of the losses, of which every process computes its own rows.
    """
    settings = recipe.training
    samples = settings.batch_size / layout.devices / layout.accumulate
    regions = _regions(recipe)
    of_text = "text_encoder" in layout.checkpointed
    per_image = cost.image.activations(checkpointed="image_encoder" in layout.checkpointed)
    phrase = cost.text.at_length(min(PHRASE_TOKENS, cost.text.length))
    per_image += cost.text.activations(checkpointed=of_text)
    per_image += regions * phrase.activations(checkpointed=of_text)
    if recipe.regions.method == "prompter":
        per_image += costs.prompter_activations(
            tokens=cost.image.length,
            width=cost.image.width,
            prompts=2 * regions,
            pool=recipe.regions.prompter.pool,
            precision=settings.precision,
        )
    loss_shape = _loss_shape(recipe)
    with_regions = recipe.regions.method != "none"
    # Use the size of the whole batch: accumulation caches embeddings, and the loss sees all of them at once.
    size = {"images": loss_shape["images"], "regions": loss_shape["regions"], "processes": layout.devices}
    state = state_bytes(
        float(sum(cost.parameters.values())),
        float(cost.trained),
        settings,
        devices=layout.devices,
        parallel=layout.parallel,
        largest_unit=float(cost.largest_unit),
    )
    parts = {
        **state,
        "activations": samples * per_image,
        "gathered_embeddings": costs.gathered_bytes(embed_dim=recipe.embed_dim, with_regions=with_regions, **size),
        "loss_blocks": costs.loss_bytes(row_chunk=recipe.regions.row_chunk, with_regions=with_regions, **size),
    }
    return {**parts, "total": sum(parts.values())}


def warnings(
    recipe: PretrainRecipe, cost: ModelCost, layout: Layout, *, capacity: float, result: dict[str, Any]
) -> list[str]:
    """Return problems of a run, each a sentence with what would help."""
    problems = []
    total = result["memory_per_device"]["total"]
    if total > capacity:
        fit = _find_fit(recipe, cost, layout, capacity)
        problems.append(
            f"needs {total / 1e9:,.1f} GB on each device, {result['hardware']['name']} has {capacity / 1e9:,.0f} GB; "
            + (f"it fits with {fit}" if fit else _nothing_fits(result))
        )
    if result["loss_share_of_step"] > 0.2 and layout.devices > 1:
        problems.append(
            f"{result['loss_share_of_step']:.0%} of a step goes into the loss matrices, which are computed in float32 "
            "and grow with the square of the batch: a smaller training.batch_size or data.regions_per_image makes "
            "them smaller"
        )
    if layout.parallel == "fsdp" and layout.devices == 1:
        problems.append("training.parallel=fsdp has no effect with one device")
    if result.get("kinds_missing"):
        problems.append(
            f"no image of the collection has a text of kind {', '.join(result['kinds_missing'])} (data.captions); "
            f"with data.missing={recipe.data.missing} {LOST_WEIGHT[recipe.data.missing]}"
        )
    images = result.get("images_with_text")
    if images is not None and recipe.training.batch_size > images:
        problems.append(
            f"batch_size {recipe.training.batch_size} is larger than the {images} images with a text: a batch "
            "has images twice, and an image's own text counts as a negative for its copy"
        )
    return problems


def _find_fit(recipe: PretrainRecipe, cost: ModelCost, layout: Layout, capacity: float) -> str:
    """Return settings that would fit, the smallest change first; empty if there are none."""
    per_device = recipe.training.batch_size // layout.devices
    parallels = [layout.parallel] + (["fsdp"] if layout.devices > 1 and layout.parallel != "fsdp" else [])
    # Accumulation first: it needs no other hardware, and the loss keeps all negatives of the batch.
    for parallel in parallels:
        parts = layout.accumulate
        while parts <= per_device:
            if memory_per_device(recipe, cost, Layout(layout.devices, parts, parallel))["total"] <= capacity:
                changes = [f"training.accumulate={parts}"] if parts != layout.accumulate else []
                changes += [f"training.parallel={parallel}"] if parallel != layout.parallel else []
                return " ".join(changes) + f" ({per_device // parts} images at a time)"
            parts *= 2
    for devices in _more_devices(recipe.training.batch_size, layout.devices):
        for parallel in ("ddp", "fsdp"):
            if memory_per_device(recipe, cost, Layout(devices, layout.accumulate, parallel))["total"] <= capacity:
                return f"--devices {devices} and training.parallel={parallel}"
    return ""


def _more_devices(batch: int, devices: int) -> list[int]:
    return [devices * 2**power for power in range(1, 15) if batch % (devices * 2**power) == 0]


def _nothing_fits(result: dict[str, Any]) -> str:
    memory = result["memory_per_device"]
    if memory["loss_blocks"] + memory["gathered_embeddings"] > result["hardware"]["gb"] * 1e9:
        return (
            "the embeddings and matrices of the losses alone do not fit: lower training.batch_size, or set "
            "regions.row_chunk"
        )
    return "no number of devices helps: a smaller model, image or training.batch_size does"
