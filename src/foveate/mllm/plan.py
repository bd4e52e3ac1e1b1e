"""Plan the cost of a sample's images without reading them: grids, views, tokens, megapixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

from pydantic import Field

from foveate.core.errors import UserError
from foveate.core.recipes import load, read, validate
from foveate.core.results import ResultModel, RunResult
from foveate.multimodal.assemble import AssemblyOptions, plan_sample
from foveate.records.images import BadImage, encode_input, read_image_info
from foveate.vision.tiling import PRESETS, Fit, ImageSize, Preset, count_llava_tokens

# Published numbers: MM1.5 pools to 12 x 12; LLaVA-NeXT and Ferret-v2 have 24 x 24 patches; pixel shuffling by 2 leaves
# 13 x 13 of Idefics3's 26 x 26 and 16 x 16 of InternVL's and Cohere2's 32 x 32, by 4 it leaves 8 x 8 of SmolVLM's.
_TOKENS_PER_VIEW: dict[Preset, int] = {
    "mm15": 144,
    "mm15-static": 144,
    "llava-next": 576,
    "ferret-v2": 576,
    "idefics3": 169,
    "smolvlm": 64,
    "internvl": 256,
    "cohere2": 256,
}


_ALL_IMAGES = 10**6


class PlanSettings(AssemblyOptions):
    """Options of `foveate mllm plan`."""

    preset: Preset = Field("mm15", description="released model whose options are the defaults")


class PlannedView(ResultModel):
    """One view: row and column of its tile from 1, 0 and 0 for the overview, and the text before it."""

    row: int
    column: int
    indicator: str = ""


class PlannedImage(ResultModel):
    """One image of the sample; sizes are height and width in pixels.

    Attributes:
        image: thumbnail for the page, "" without one.
        offset: rows and columns of padding above and left of the image in its canvas.
        scale: side in the canvas over side in the file; below 1 detail is lost.
    """

    file: str
    image: str = ""
    size: tuple[int, int]
    grid: tuple[int, int]
    tile: int
    resized: tuple[int, int]
    offset: tuple[int, int]
    overview: tuple[tuple[int, int], tuple[int, int]]
    views: list[PlannedView]
    tokens: int
    megapixels: float
    scale: float
    note: str = ""


class MemoryEstimate(ResultModel):
    """Bytes that a recipe's model takes, by precision ("fp32", "bf16") and use.

    Attributes:
        stage: of the recipe, whose settings a step has. samples: in memory at a time, each of `positions` tokens.
        step: of training: weights, gradients, optimizer, narrow_weights (copies in bfloat16), activations, logits,
            total. cache: keys and values of one question with its answer.
    """

    stage: str
    samples: int
    positions: int
    step: dict[str, dict[str, float]]
    cache: dict[str, float]


class PlanResult(RunResult):
    """result.json of `foveate mllm plan`: all images are one sample; memory where a recipe names the model."""

    kind: str = "mllm_plan"
    preset: str = ""
    options: dict[str, Any] = {}
    images: list[PlannedImage] = []
    num_views: int
    num_tokens: int
    megapixels: float
    split: bool
    memory: MemoryEstimate | None = None


def resolve_options(values: Mapping[str, Any], *, recipe: str | None = None) -> tuple[Preset, AssemblyOptions]:
    """Merge a preset or the `model.assembly` of a recipe with the options that the user gave.

    Args:
        values: fields of `PlanSettings`, nested as the model is.

    Raises:
        UserError: a field is wrong, the recipe has no assembly, or both a recipe and a preset are given.

    Example:
        >>> preset, options = resolve_options({"preset": "llava-next"})
        >>> preset, options.tokens_per_view
        ('llava-next', 576)
    """
    overrides = dict(values)
    if recipe is not None and "preset" in overrides:
        raise UserError(
            f"--preset: no effect with --recipe (got {overrides['preset']} and {recipe}); expected one of them"
        )
    preset = overrides.pop("preset", "mm15")
    base: dict[str, Any] = {"tiling": PRESETS[preset], "tokens_per_view": _TOKENS_PER_VIEW[preset]}
    if preset not in ("mm15", "mm15-static"):
        # The other models split each image of a sample, however many there are.
        base |= {"indicator": "none", "max_split_images": _ALL_IMAGES}
    if recipe is not None:
        base = _read_assembly(recipe, overrides)
    merged = {**base, **overrides, "tiling": {**base.get("tiling", {}), **overrides.get("tiling", {})}}
    return preset, validate(AssemblyOptions, merged, where=f"recipe '{recipe}'" if recipe else "foveate mllm plan")


def _read_assembly(recipe: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `model.assembly` of a recipe; without one, that of a model whose images are one view each.

    Raises:
        UserError: it has neither, or there are `overrides` of what it does not have.
    """
    content = read(recipe)
    assembly = (content.get("model") or {}).get("assembly")
    if assembly is not None:
        return assembly
    if "adapter" in content or "stages" not in content:
        raise UserError(f"recipe '{recipe}': no field 'model.assembly' and no stages; expected one of mllm train")
    from foveate.core.model_folder import shapes_alone
    from foveate.mllm.recipe import MllmRecipe
    from foveate.mllm.stages import build_recipe_model  # loads torch, which tiles alone do not need

    loaded = load(MllmRecipe, recipe)
    if loaded.model.assembly is None and overrides:
        raise UserError(f"{next(iter(overrides))}: no effect with recipe '{recipe}', whose images are one view each")
    with shapes_alone():
        return build_recipe_model(loaded).assembly.model_dump()


def plan_memory(
    result: PlanResult, options: AssemblyOptions, recipe: str, *, text_tokens: int = 30, answer_tokens: int = 8
) -> MemoryEstimate | None:
    """Estimate the memory of a recipe's model with the planned images; see `foveate.mllm.pricing.estimate_memory`.

    None where the recipe has tiles alone and nothing that could be trained.

    Raises:
        UserError: the recipe cannot be trained, or its tower and connector have other views than the plan.
    """
    if "stages" not in read(recipe):
        return None
    from foveate.mllm.pricing import estimate_memory
    from foveate.mllm.recipe import MllmRecipe

    return estimate_memory(
        load(MllmRecipe, recipe),
        options,
        views=result.num_views,
        image_tokens=result.num_tokens,
        text_tokens=text_tokens,
        answer_tokens=answer_tokens,
    )


def plan_images(paths: Sequence[Path], options: AssemblyOptions, *, preset: Preset = "mm15") -> PlanResult:
    """Plan the images of one sample from their headers.

    Args:
        preset: "llava-next" counts tokens as that model does: without those of padding, and one more per row.

    Raises:
        BadImage: a file cannot be read or is no image; the error names it.

    Example:
        >>> preset, options = resolve_options({})
        >>> plan = plan_images([image_file], options, preset=preset)
        >>> plan.num_views, plan.num_tokens
        (5, 720)
    """
    headers = []
    for path in paths:
        try:
            headers.append(read_image_info(encode_input(path))[0])
        except BadImage as problem:
            raise BadImage(problem.reason, f"{path}: {problem}") from problem
    sample = plan_sample([ImageSize(header.height, header.width) for header in headers], options)
    images = []
    for number, (path, header, plan) in enumerate(zip(paths, headers, sample.images, strict=True)):
        tokens = len(plan.views) * options.tokens_per_view
        if preset == "llava-next" and len(plan.views) > 1:
            tokens = count_llava_tokens(plan, isqrt(options.tokens_per_view))
        # An image that is not split is seen only in its overview, whose scale may differ from that of tiles.
        whole = plan.overview if plan.views == ((0, 0),) else plan.tiles
        images.append(
            PlannedImage(
                file=str(path),
                size=plan.size,
                grid=plan.grid,
                tile=plan.tile,
                resized=plan.tiles.resized,
                offset=_offset(plan.tiles),
                overview=(plan.overview.resized, _offset(plan.overview)),
                views=[
                    PlannedView(row=row, column=column, indicator=indicator)
                    for (row, column), indicator in zip(plan.views, sample.list_indicators(number), strict=True)
                ],
                tokens=tokens,
                megapixels=plan.megapixels,
                scale=min(whole.resized.height / header.height, whole.resized.width / header.width),
                note=header.note,
            )
        )
    return PlanResult(
        preset=preset,
        options=options.model_dump(mode="json"),
        images=images,
        num_views=len(sample.views),
        num_tokens=sum(image.tokens for image in images),
        megapixels=sum(image.megapixels for image in images),
        split=len(paths) <= options.max_split_images,
    )


def _offset(fit: Fit) -> tuple[int, int]:
    return fit.padding.top, fit.padding.left
