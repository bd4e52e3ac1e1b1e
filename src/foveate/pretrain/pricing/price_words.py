"""A price in words, for the command line."""

from __future__ import annotations

from typing import Any

from foveate.core.progress import duration


def lines(result: dict[str, Any]) -> list[str]:
    """The price in words."""
    flops, memory, hardware = result["flops_per_image"], result["memory_per_device"], result["hardware"]
    parts = {name: count for name, count in result["parameters_by_part"].items() if count}
    said = [
        f"parameters: {result['parameters']:,} ({', '.join(f'{name} {count:,}' for name, count in parts.items())})",
        f"trained parameters: {result['parameters_trained']:,}",
        f"tokens per image: {result['tokens_per_image']} at {result['input_px']} px",
        f"steps: {result['steps']:,} of {result['batch_size']:,} images: {result['samples']:,} samples",
    ]
    if "images" in result:
        said.append(f"images: {result['images']:,}, with a text of a wanted kind {result['images_with_text']:,}")
        said.append(f"epochs: {result['epochs']:,}")
    named = ("image tower", "caption", "phrases", "prompter")
    by_part = ", ".join(f"{name} {flops[name] / 1e9:,.3g}" for name in named if flops[name])
    over = result["cloc_over_clip"]
    uses = {name.replace("_", " "): size / 1e9 for name, size in memory.items() if name != "total" and size}
    by_use = ", ".join(f"{name} {size:,.2f}" for name, size in uses.items())
    devices = f", {result['device_days']:,.4g} device-days" if result["devices"] > 1 else ""
    said += [
        f"GFLOPs per image: {flops['total'] / 1e9:,.4g} with backward; forward {by_part}",
        f"forward over CLIP alone: {over['ours']:.2f}x (a plain Prompter would take {over['plain']:.2f}x)",
        f"FLOPs in all: {result['flops_in_all']:.3g}",
        f"hardware: {result['devices']} x {hardware['name']}, {hardware['tflops']:,.4g} TFLOP/s each, "
        f"MFU {result['mfu']:g}",
        f"time: {result['seconds_per_step']:,.3g} s a step, {duration(86_400 * result['days'])} in all"
        f"{devices}; {result['loss_share_of_step']:.0%} of it in the loss matrices",
        f"must be read: {result['bytes_per_image'] / 1e3:,.4g} kB an image"
        f"{' (cached features)' if result['reads_cached_features'] else ''}, "
        f"{result['bytes_read_per_second'] / 1e6:,.4g} MB/s and {result['images_per_second']:,.4g} images/s "
        f"in all, {result['bytes_read_in_all'] / 1e12:,.3g} TB over the run",
        f"memory per device: {memory['total'] / 1e9:,.4g} of {hardware['gb']:,.4g} GB ({by_use})",
        f"with ddp {result['memory_ddp'] / 1e9:,.4g} GB, with fsdp {result['memory_fsdp'] / 1e9:,.4g} GB",
    ]
    possible, chosen = result["checkpointing"]["possible"], result["checkpointing"]["chosen"]
    if possible != chosen:
        switches = " and ".join(f"{name}.checkpointing=true" for name in possible)
        said.append(f"with {switches} {result['memory_per_device_checkpointed'] / 1e9:,.4g} GB, and the layers twice")
    return said + [f"warning: {sentence}" for sentence in result["warnings"]]
