"""What adaptation costs: steps and memory of every method, PEFT on the same ViT, merged models, frozen parts kept.

    python -m benchmarks.adapt --out bench
    python -m benchmarks.adapt --parts steps --model vit_small_patch16_224 --batch 8 --threads 1 --out bench

steps: one update (forward pass, cross-entropy, backward pass, AdamW) of every method at its default options, beside
full fine-tuning. peft: LoRA, LayerNorm tuning and the biases of linear layers (BEFT) in PEFT and here, the same numbers
trained. merged: forward passes of the network alone and of merged models, and how far merged outputs are from those
before merging. kept: whole trainings by `foveate adapt train`'s own function, what lies in front of the first change
computed once against at every epoch, the pass that computes it included. compare: the same for the whole run of
`foveate adapt compare` on one task: two learning rates, chosen on validation images, the better one trained again on
all and tested.

Memory is what PyTorch's allocator held at the peak of an update (from its profiler; of an accelerator its own counter),
with weights and moments: exact and the same in every repeat. Time ratios are paired by round, on a CPU of processor
time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import nn

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from foveate.adapt.compare.recipe import CompareRecipe, parse_tasks
from foveate.adapt.compare.run import compare as compare_methods
from foveate.adapt.model import adapt
from foveate.adapt.recipe import build_recipe
from foveate.adapt.registry import method_names
from foveate.adapt.train import train_adapter
from foveate.core.progress import silent
from foveate.vision.registry import seeded

CLASSES = 100
LINEAR_LAYERS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
NORMS = r"(blocks\.\d+\.norm[12]|norm)"
PEFT_METHODS = ("lora", "layernorm", "biases of linear layers")
KEPT = {
    "linear": {},
    "lora, last 2 blocks": {"method": "lora", "last_blocks": 2},
    "vpt-deep, last 2 blocks": {"method": "vpt-deep", "last_blocks": 2},
    "last block whole": {"method": "subset", "blocks": [-1]},
    "lora": {},
}


def network(name: str, device: str, *, classes: int = 0) -> Any:
    """A ViT of timm with values drawn from a fixed seed."""
    import timm

    with seeded(0):
        return timm.create_model(name, num_classes=classes).to(device)


class Update:
    """One update of a model's trained parameters on one batch."""

    def __init__(self, model: nn.Module, pixels: torch.Tensor) -> None:
        self.model, self.pixels = model.train(), pixels
        self.labels = torch.arange(len(pixels), device=pixels.device) % CLASSES
        trained = [value for value in model.parameters() if value.requires_grad]
        self.trained = sum(value.numel() for value in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def __call__(self) -> None:
        F.cross_entropy(self.model(self.pixels), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.pixels.is_cuda:
            torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        """Weights, moments, gradients, and what one update holds besides, at its peak."""
        self()  # moments exist after the first
        if self.pixels.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self()
            return torch.cuda.max_memory_allocated() - before + self._standing()
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self()
        kineto: Any = profiler.profiler
        events = [one for one in kineto.kineto_results.events() if one.name() == "[memory]"]
        held = np.cumsum([one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())])
        return int(held.max(initial=0)) + self._standing()

    def _standing(self) -> int:
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states]
        storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
        return sum(storages.values())


def adapted(name: str, device: str, method: str | dict[str, Any]) -> nn.Module:
    """A fresh network with a method of ours."""
    with silent():
        return adapt(network(name, device), method, classes=CLASSES)


def steps(given: argparse.Namespace, pixels: torch.Tensor) -> None:
    """Every method beside full fine-tuning."""
    methods = ["full", *(name for name in method_names() if name not in ("full", "subset"))]
    updates = {name: Update(adapted(given.model, given.device, name), pixels) for name in methods}
    memory = {name: update.peak_bytes() for name, update in updates.items()}
    timings = compare(updates, repeats=given.repeats)
    ratios = {name: _ratio(given, timings, name, "full") for name in methods if name != "full"}
    extra = {
        **_about(given),
        "peak_bytes": memory,
        "trained": {name: update.trained for name, update in updates.items()},
        "memory_over_full": {name: memory[name] / memory["full"] for name in methods},
    }
    publish("adapt-steps", timings, out=given.out, ratios=ratios, items=given.batch, unit="images", extra=extra)
    for name in methods:
        print(f"{name}: {memory[name] / 2**20:,.1f} MiB, {memory[name] / memory['full']:.2f} of full fine-tuning")


def peft(given: argparse.Namespace, pixels: torch.Tensor) -> None:
    """The methods that PEFT has, in both libraries."""
    from peft import BeftConfig, LNTuningConfig, LoraConfig, get_peft_model

    saved = {"modules_to_save": ["head"]}
    theirs: dict[str, Any] = {
        "lora": LoraConfig(r=8, lora_alpha=8, lora_dropout=0.1, target_modules=["qkv"], **saved),
        "layernorm": LNTuningConfig(target_modules=NORMS, **saved),
        "biases of linear layers": BeftConfig(target_modules=LINEAR_LAYERS, **saved),
    }
    ours: dict[str, str | dict[str, Any]] = {
        "lora": "lora",
        "layernorm": "layernorm",
        "biases of linear layers": {"method": "subset", "pattern": rf"{LINEAR_LAYERS}\.bias"},
    }
    updates: dict[str, Update] = {}
    theirs = {name: theirs[name] for name in given.compare}
    for name, config in theirs.items():
        model: Any = network(given.model, given.device, classes=CLASSES)
        updates[f"peft {name}"] = Update(get_peft_model(model, config), pixels)
        updates[f"foveate {name}"] = Update(adapted(given.model, given.device, ours[name]), pixels)
        assert updates[f"peft {name}"].trained == updates[f"foveate {name}"].trained, name
    memory = {name: update.peak_bytes() for name, update in updates.items()}
    timings = compare(updates, repeats=given.repeats)
    ratios = {name: _ratio(given, timings, f"foveate {name}", f"peft {name}") for name in theirs}
    over = {name: memory[f"foveate {name}"] / memory[f"peft {name}"] for name in theirs}
    extra = {**_about(given), "peak_bytes": memory, "memory_over_peft": over}
    publish("adapt-peft", timings, out=given.out, ratios=ratios, items=given.batch, unit="images", extra=extra)
    for name, share in over.items():
        print(f"{name}: memory {share:.3f} of PEFT's")


def merged(given: argparse.Namespace, pixels: torch.Tensor) -> None:
    """Merged models beside the network alone."""
    passes: dict[str, Callable[[], Any]] = {}
    differences: dict[str, float] = {}
    plain = network(given.model, given.device, classes=CLASSES).eval()
    passes["network alone"] = _forward(plain, pixels)
    for name in ("lora", "ssf", "repadapter", "fact-tk"):
        model: Any = adapted(given.model, given.device, name).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in model.adapter().tensors(model.backbone).values():
                value.add_(0.01 * torch.randn(value.shape, generator=generator).to(value.device))
            before = model(pixels)
            passes[f"{name}, not merged"] = _forward(adapted(given.model, given.device, name).eval(), pixels)
            model.merge()
            differences[name] = float((model(pixels) - before).abs().max() / before.abs().max())
        passes[f"{name}, merged"] = _forward(model, pixels)
    timings = compare(passes, repeats=given.repeats)
    ratios = {name: _ratio(given, timings, name, "network alone") for name in passes if name != "network alone"}
    extra = {**_about(given), "largest_relative_difference": differences}
    publish("adapt-merged", timings, out=given.out, ratios=ratios, items=given.batch, unit="images", extra=extra)
    for name, difference in differences.items():
        print(f"{name}: merged outputs differ by {difference:.1e} of the largest logit")


def _forward(model: nn.Module, pixels: torch.Tensor) -> Callable[[], Any]:
    def run() -> None:
        with torch.inference_mode():
            model(pixels)
        if pixels.is_cuda:
            torch.cuda.synchronize()

    return run


def kept(given: argparse.Namespace) -> None:
    """Trainings with what is frozen computed once, and at every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        data = _images(Path(folder) / "images.npz", {"train": given.images})
        count = iter(range(10**6))

        def training(options: Mapping[str, Any], *, keep: bool) -> Callable[[], Any]:
            said = {"method": "linear", **options}
            overrides = [f"{key}={value}" for key, value in said.items() if key != "method"]

            def run() -> None:
                recipe = build_recipe(
                    {"kind": "timm", "model": given.model},
                    said["method"],
                    [f"method.{text}" for text in overrides],
                    # Random, so that the time is that of the steps and not of a linear probe.
                    training={
                        "epochs": given.epochs,
                        "batch_size": given.batch,
                        "cache": keep,
                        "workers": 0,
                        "head_init": "random",
                    },
                )
                with silent():
                    train_adapter(recipe, data, Path(folder) / str(next(count)), device=given.device, evaluate=False)

            return run

        _once_and_every_epoch(given, "adapt-kept", training)


def compared(given: argparse.Namespace) -> None:
    """Whole comparisons with what is frozen computed once for all trainings, and at every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        held = max(4, given.images // 4)
        data = _images(Path(folder) / "images.npz", {"train": given.images, "validation": held, "test": given.images})
        count = iter(range(10**6))

        def comparison(options: Mapping[str, Any], *, keep: bool) -> Callable[[], Any]:
            own = {key: [value] for key, value in options.items() if key != "method"}
            grid = {
                "common": {"training.learning_rate": [0.001, 0.01]},
                "methods": {"one": {"method": options["method"], **own}},
            }
            path = Path(folder) / f"{next(count)}.yaml"
            path.write_text(json.dumps(grid))

            def run() -> None:
                recipe = CompareRecipe(
                    backbone={"kind": "timm", "model": given.model},
                    tasks=parse_tasks([f"images={data}"]),
                    grid=str(path),
                    training={"epochs": given.epochs, "batch_size": given.batch, "cache": keep, "workers": 0},
                )
                with silent():
                    compare_methods(recipe, Path(folder) / str(next(count)), device=given.device)

            return run

        _once_and_every_epoch(given, "adapt-compare", comparison)


def _images(path: Path, splits: Mapping[str, int]) -> Path:
    """Noise of four classes, so many images of each split."""
    random, number = np.random.default_rng(0), sum(splits.values())
    images = random.integers(0, 256, (number, 224, 224, 3)).astype(np.uint8)
    split = np.repeat(list(splits), list(splits.values()))
    np.savez(path, images=images, labels=np.arange(number) % 4, split=split)
    return path


def _once_and_every_epoch(given: argparse.Namespace, name: str, run_of: Callable[..., Callable[[], Any]]) -> None:
    """Times `run_of(options, keep=...)` for the chosen methods both ways; `lora` has nothing to compute once."""
    chosen = {method: KEPT[method] or {"method": method} for method in given.kept}
    runs = {
        f"{method}, {'once' if keep else 'every epoch'}": run_of(options, keep=keep)
        for method, options in chosen.items()
        for keep in (True, False)
        if keep or method != "lora"
    }
    timings = compare(runs, repeats=given.repeats, warmup=0)
    ratios = {one: _ratio(given, timings, f"{one}, once", f"{one}, every epoch") for one in chosen if one != "lora"}
    extra = {**_about(given), "images": given.images, "epochs": given.epochs}
    publish(name, timings, out=given.out, ratios=ratios, extra=extra)


def _ratio(given: argparse.Namespace, timings: Mapping[str, Timing], ours: str, peer: str) -> Ratio:
    return ratio(timings, ours, peer, processor=given.device == "cpu")


def _about(given: argparse.Namespace) -> dict[str, Any]:
    return {"model": given.model, "batch": given.batch, "device": given.device, "threads": given.threads}


PARTS: dict[str, Callable[..., None]] = {"steps": steps, "peft": peft, "merged": merged}
WHOLE: dict[str, Callable[..., None]] = {"kept": kept, "compare": compared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON files")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, *WHOLE], default=[*PARTS, *WHOLE])
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="a ViT of timm")
    parser.add_argument("--batch", type=int, default=8, help="images of an update")
    parser.add_argument(
        "--compare", nargs="+", choices=PEFT_METHODS, default=PEFT_METHODS, help="of the part peft: methods"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=32, help="of the parts kept, compare")
    parser.add_argument("--epochs", type=int, default=50, help="of the parts kept, compare")
    parser.add_argument(
        "--kept", nargs="+", choices=list(KEPT), default=list(KEPT), help="of the parts kept and compare: what"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with threadpool_limits(given.threads), seeded(0):
        pixels = torch.randn(given.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(given.device)
        for part in given.parts:
            if part in WHOLE:
                WHOLE[part](given)
            else:
                PARTS[part](given, pixels)


if __name__ == "__main__":
    main()
