"""A CLIP step against open_clip's, and what CLOC adds to it: `python -m benchmarks.training --out DIR`.

(b) The same architecture, images, token ids, loss, optimizer and precision; captions that fill the context, so that
cutting texts to their length gains nothing. (c) A CLOC step over our CLIP step with M regions an image, beside the
bound that counting multiplications gives. A step is forward, loss, backward and the optimizer's update.

    python -m benchmarks.training --out bench --threads 1 --model ViT-S-32-alt --batch 32 --growth

says how the ratios grow with images and regions. On a machine that does other work, one thread and the processor time
say more than the clock on the wall; both are stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from foveate.core.devices import autocast_dtype
from foveate.core.recipes import load, validate
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.task import PretrainTask
from foveate.pretrain.train import build_model
from foveate.training.accumulation import forward_and_backward
from foveate.training.optimizer import build_optimizer, parameter_table

MODEL = "ViT-B-16"
START_TOKEN, END_TOKEN = 49_406, 49_407
AIMS = {"all": 1.7, "prompt": 1.2}
CANDIDATES = (("CLIP", "none", "all"), ("CLOC all", "prompter", "all"), ("CLOC prompt", "prompter", "prompt"))
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=MODEL, help="open_clip architecture")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--regions", type=int, default=4, help="M, regions an image")
    parser.add_argument("--phrase-tokens", type=int, default=10, help="token ids of a phrase, both ends included")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU; 1 where other work shares the cores")
    parser.add_argument("--parts", nargs="+", default=["steps", "tour"], choices=["steps", "tour"])
    parser.add_argument("--growth", action="store_true", help="other numbers of images and of regions instead")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.growth:
        measure_growth(options)
        return
    for precision in options.precisions if "steps" in options.parts else ():
        measure(options, precision)
    if "tour" in options.parts:
        measure_tour(options)


def measure(options: argparse.Namespace, precision: str) -> None:
    """Times all candidates in one precision and writes training-PRECISION.json."""
    dtype = torch.bfloat16 if precision == "bf16" else None
    device = torch.device(options.device)
    steps: dict[str, Step] = {"open_clip": open_clip_step(options, dtype, device)}
    bounds: dict[str, float] = {}
    task = None
    for name, method, pool in CANDIDATES:
        task = build_task(options.model, method, pool, precision).to(device)
        steps[name] = our_step(task, made_batch(task, options), dtype, device)
        if method == "prompter":
            bounds[pool] = flop_bound(task, options.regions, options.phrase_tokens)
    timings = compare(steps, repeats=options.repeats, warmup=1)
    ratios: dict[str, Ratio] = {}
    for clock, processor in (("", False), (", processor time", True)):
        ratios[f"CLIP step against open_clip's{clock}"] = ratio(timings, "CLIP", "open_clip", processor=processor)
        for pool in bounds:
            title = f"CLOC ({pool}) step over CLIP step{clock}"
            ratios[title] = ratio(timings, "CLIP", f"CLOC {pool}", processor=processor)
    clock = ", processor time" if device.type == "cpu" else ""
    over_bound = {
        pool: ratios[f"CLOC ({pool}) step over CLIP step{clock}"].value / bound for pool, bound in bounds.items()
    }
    extra: dict[str, Any] = {"precision": precision, "flop_bounds": bounds, "over_bound": over_bound, "aims": AIMS}
    extra |= size_of(options)
    publish(
        f"training-{precision}",
        timings,
        out=options.out,
        ratios=ratios,
        items=options.batch,
        unit="images",
        extra=extra,
    )
    for pool, bound in bounds.items():
        over = f"measured over it {over_bound[pool]:.2f}, aim {AIMS[pool]}x"
        print(f"CLOC ({pool}): bound by multiplications {bound:.2f}x, {over}")


def measure_growth(options: argparse.Namespace) -> None:
    """CLOC over CLIP in float32 for half, once and twice the images, and for a fourth, once and four times M."""
    device = torch.device(options.device)
    sizes = {(max(1, options.batch // 2), options.regions), (options.batch * 2, options.regions)}
    sizes |= {(options.batch, max(1, options.regions * part // 4)) for part in (1, 4, 16)}
    timings: dict[str, Timing] = {}
    ratios: dict[str, Ratio] = {}
    bounds: dict[str, float] = {}
    for batch, regions in sorted(sizes):
        size = argparse.Namespace(**{**vars(options), "batch": batch, "regions": regions})
        steps: dict[str, Step] = {}
        for name, method, pool in CANDIDATES:
            task = build_task(options.model, method, pool, "fp32").to(device)
            steps[name] = our_step(task, made_batch(task, size), None, device)
            if method == "prompter":
                bounds[f"{batch} images, M {regions}, {pool}"] = flop_bound(task, regions, options.phrase_tokens)
        found = compare(steps, repeats=options.repeats, warmup=1)
        for pool in AIMS:
            title = f"{batch} images, M {regions}: CLOC ({pool}) over CLIP, processor time"
            ratios[title] = ratio(found, "CLIP", f"CLOC {pool}", processor=True)
        timings |= {f"{name}, {batch} images, M {regions}": timing for name, timing in found.items()}
    publish(
        "training-growth", timings, out=options.out, ratios=ratios, extra={"flop_bounds": bounds, **size_of(options)}
    )


def size_of(options: argparse.Namespace) -> dict[str, Any]:
    """What a result depends on besides the machine."""
    return {name: getattr(options, name) for name in ("model", "batch", "regions", "phrase_tokens")}


def measure_tour(options: argparse.Namespace) -> None:
    """The tour's CLOC step over its CLIP step, from cached features; stated without an aim."""
    device = torch.device(options.device)
    steps: dict[str, Step] = {}
    images = 0
    for name, recipe_name in (("CLIP", "tour-clip"), ("CLOC", "tour")):
        recipe = load(PretrainRecipe, recipe_name)
        task = PretrainTask(build_model(recipe)).train().to(device)
        images = recipe.training.batch_size
        precision = autocast_dtype(recipe.training.precision, device)
        steps[name] = our_step(task, cached_batch(task, images), precision, device)
    timings = compare(steps, repeats=options.repeats, warmup=1)
    title = "CLOC step over CLIP step in the tour"
    ratios = {title: ratio(timings, "CLIP", "CLOC")}
    ratios[f"{title}, processor time"] = ratio(timings, "CLIP", "CLOC", processor=True)
    publish("training-tour", timings, out=options.out, ratios=ratios, items=images, unit="images")


def cached_batch(task: PretrainTask, images: int) -> dict[str, Any]:
    """Random features as a cache gives them, with the recipe's M regions an image."""
    generator = torch.Generator().manual_seed(0)
    image, text = task.model.image_encoder, task.model.text_encoder
    max_regions = task.max_regions if task.settings.method != "none" else 0

    def features(rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator).to(dtype)

    return {
        "image": features(images, image.feature_shape, image.feature_dtype),
        "text": features(images, text.feature_shape, text.feature_dtype),
        "region_text": features(images * max_regions, text.feature_shape, text.feature_dtype),
        **make_regions(images, max_regions, generator),
    }


def make_regions(images: int, max_regions: int, generator: torch.Generator) -> dict[str, Any]:
    """`max_regions` boxes for each image, all phrases different."""
    first = torch.rand(images * max_regions, 2, generator=generator) * 0.6
    return {
        "boxes_R4": torch.cat((first, first + 0.3), dim=1),
        "phrase_ids_R": torch.arange(images * max_regions),
        "image_index_R": torch.arange(images).repeat_interleave(max_regions),
        "counts_B": torch.full((images,), max_regions),
        "lost_B": torch.zeros(images, dtype=torch.int64),
    }


def build_task(model: str, method: str, pool: str, precision: str) -> PretrainTask:
    """Our task with the architecture's own towers."""
    recipe: dict[str, Any] = {
        "image_encoder": {"kind": "open_clip", "model": model},
        "text_encoder": {"kind": "open_clip", "model": model},
        "embed_dim": architecture(model)["embed_dim"],
        "regions": {"method": method, "prompter": {"pool": pool}},
        "training": {"steps": 100, "batch_size": 8, "learning_rate": 1e-4, "weight_decay": 0.2, "precision": precision},
    }
    return PretrainTask(build_model(validate(PretrainRecipe, recipe, where="benchmark"))).train()


def token_ids(rows: int, length: int, context: int, generator: torch.Generator) -> torch.Tensor:
    """Made-up texts [rows, context] of `length` token ids with both ends, int32."""
    ids = torch.zeros(rows, context, dtype=torch.int32)
    ids[:, :length] = torch.randint(1000, 40_000, (rows, length), generator=generator, dtype=torch.int32)
    ids[:, 0], ids[:, length - 1] = START_TOKEN, END_TOKEN
    return ids


def made_batch(task: PretrainTask, options: argparse.Namespace) -> dict[str, Any]:
    """Random images, captions that fill the context, M regions an image with short phrases."""
    generator = torch.Generator().manual_seed(0)
    images = options.batch
    regions = options.regions * images
    size, context = task.model.image_encoder.preprocess.side, task.model.text_encoder.feature_shape[0]
    return {
        "image": torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator),
        "text": token_ids(images, context, context, generator),
        "region_text": token_ids(regions, options.phrase_tokens, context, generator),
        **make_regions(images, options.regions, generator),
    }


def our_step(task: PretrainTask, batch: dict[str, Any], dtype: torch.dtype | None, device: torch.device) -> Step:
    """One update of our task."""
    settings = task.recipe.training
    table = parameter_table(task, rules=task.parameter_groups(), settings=settings)
    optimizer = build_optimizer(task, table=table, settings=settings)
    batch = task.prepare_batch(batch, device)

    def step() -> None:
        forward_and_backward(task, task, batch, parts=1, precision=dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish(device)

    return step


def open_clip_step(options: argparse.Namespace, dtype: torch.dtype | None, device: torch.device) -> Step:
    """One update as open_clip's training does it: its model, its loss, AdamW with its two groups."""
    model = open_clip.create_model(options.model, device=device).train()
    loss = ClipLoss()
    named = dict(model.named_parameters())
    plain = [value for name, value in named.items() if value.ndim < 2 or "bn" in name or "ln" in name or "bias" in name]
    kept = {id(value) for value in plain}
    decayed = [value for value in named.values() if id(value) not in kept]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
        lr=1e-4,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    batch = made_batch(build_task(options.model, "none", "all", "fp32"), options)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    images = ((batch["image"] / 255 - mean) / std).to(device)
    texts = batch["text"].long().to(device)

    def step() -> None:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            image_BE, text_BE, scale = model(images, texts)
            total = loss(image_BE, text_BE, scale)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish(device)

    return step


def finish(device: torch.device) -> None:
    """Waits for an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flop_bound(task: PretrainTask, regions: int, phrase_tokens: int) -> float:
    """Multiplications of a CLOC forward pass over those of CLIP's, from the shapes of the modules.

    The image-to-image attention is counted once an image, phrases at their own length; the backward pass has the
    same ratio.
    """
    model = task.model
    config = architecture(task.model.recipe.image_encoder["model"])
    vision, text = config["vision_cfg"], config["text_cfg"]
    grid, width = model.image_encoder.grid, model.image_encoder.width
    patches = grid[0] * grid[1]
    image = vision["layers"] * layer(patches + 1, width) + patches * 3 * vision["patch_size"] ** 2 * width
    clip = image + text["layers"] * layer(text.get("context_length", 77), text["width"])
    phrases = regions * text["layers"] * layer(phrase_tokens, text["width"])
    prompts = regions * 3  # two corners and one phrase
    own = prompts * (12 * width**2 + 2 * patches * width)  # the prompt tokens' own projections, attention and MLP
    if model.recipe.regions.prompter.pool == "all":
        own += 4 * patches * width**2 + 2 * patches**2 * width  # once an image
        own += 2 * regions * patches * 8 * width**2 + 2 * prompts * patches * width  # per prompt: MLP and the new keys
    return (clip + phrases + own) / clip


def architecture(model: str) -> dict[str, Any]:
    """open_clip's configuration of a model."""
    config = open_clip.get_model_config(model)
    assert config is not None, model
    return config


def layer(tokens: int, width: int) -> float:
    """Multiplications of one transformer layer of MLP ratio 4 over a sequence."""
    return 12 * tokens * width**2 + 2 * tokens**2 * width


if __name__ == "__main__":
    main()
