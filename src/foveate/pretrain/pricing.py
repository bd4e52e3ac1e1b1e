"""Parts of `foveate pretrain RECIPE --dry-run`: FLOPs and memory of towers, Prompter and losses, without data.

Towers are counted (`foveate.training.costs`). The Prompter and the losses work on ragged rows whose number decides what
is computed, so they are formulas; tests compare them with the counter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.pretrain.dataset import describe_no_regions
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.task import PretrainTask
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.records.region_sources import select_region_rows
from foveate.training.costs import PartCost, count_blocks, count_parameters, count_part
from foveate.training.image_texts import ImageTexts
from foveate.training.mixture import LOST_WEIGHT
from foveate.training.price import Price, PricedStage, PriceSettings, Stage, price, resolve_training
from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.registry import tower_options

# Tower -> its parts of a stage.
TOWERS = {"image_encoder": ("image tower",), "text_encoder": ("caption", "phrases")}
# Assumed without a collection: a photograph of some 640 pixels, and a noun phrase with its start and end tokens.
IMAGE_BYTES = 100_000
PHRASE_TOKENS = 10


@dataclass(frozen=True)
class ModelCost:
    """Cost of both towers, and the parameter counts of the other parts.

    Attributes:
        trained: parameters. largest_unit: parameters of the largest module that FSDP2 shards.
    """

    image: PartCost
    text: PartCost
    parameters: dict[str, int]
    trained: int
    largest_unit: int


def price_recipe(recipe: PretrainRecipe, *, collection: Collection | None = None, **assumed: Any) -> Price:
    """Estimate the cost of a run.

    Args:
        collection: checked for split and kinds of texts; its mean image size replaces the assumed one.
        assumed: fields of `PriceSettings`.

    Raises:
        UserError: when the recipe, the hardware or the collection does not fit.
    """
    settings = validate(PriceSettings, assumed, where="price of a run")
    recipe = recipe.model_copy(update={"training": resolve_training(recipe.training, settings)})
    data = {} if collection is None else check_collection(recipe, collection)
    with torch.device("meta"):
        # Without checkpointing: its savings are computed from the whole.
        model = build_model(_set_checkpointing(recipe, ()))
    encoder = model.image_encoder
    possible = [name for name in TOWERS if _supports_checkpointing(model.recipe, name)]
    enabled = [name for name in possible if getattr(recipe, name).get("checkpointing")]
    cost = model_cost(model, units=list(PretrainTask(model).shard_units()), precision=recipe.training.precision)
    stage = count_stage(_set_checkpointing(recipe, enabled), cost)
    if possible != enabled:
        option = " and ".join(f"{name}.checkpointing=true" for name in possible)
        stage = replace(stage, options={option: count_stage(_set_checkpointing(recipe, possible), cost).saved})
    priced = price([stage], settings)
    (result,) = priced.stages
    cached = bool(encoder.fingerprint())
    image_bytes = data.get("image_bytes", IMAGE_BYTES)
    if cached:
        image_bytes = math.prod(encoder.feature_shape) * encoder.feature_dtype.itemsize
    facts: dict[str, Any] = {
        "tokens_per_image": encoder.grid[0] * encoder.grid[1],
        "input_px": encoder.preprocess.side,
        "cloc_over_clip": cloc_over_clip(recipe, cost),
        "reads_cached_features": cached,
        "bytes_per_image": image_bytes,
        "bytes_read_per_second": image_bytes * (result.samples_per_second or 0.0),
        "bytes_read_in_all": image_bytes * result.samples,
    }
    if data:
        facts |= {name: data[name] for name in ("images", "images_with_text", "regions", "kinds_missing")}
        facts["epochs"] = round(result.samples / max(data["images_with_text"], 1), 2)
    return priced.model_copy(update={"facts": facts, "warnings": _warn(recipe, result, data)})


def count_stage(recipe: PretrainRecipe, cost: ModelCost) -> Stage:
    """Return the parts of a step, for `price`: towers with checkpointing where the recipe says so."""
    training, regions = recipe.training, _regions(recipe)
    recomputes = training.activation_checkpointing
    checkpointed = [name for name in TOWERS if recomputes or getattr(recipe, name).get("checkpointing")]
    flops = flops_per_image(recipe, cost)
    # Cached embeddings (Gao et al. 2021): with parts every image goes forward twice.
    repeated = sum(flops[part] for name in checkpointed for part in TOWERS[name])
    if training.accumulate > 1:
        repeated += sum(flops.values())
    phrase = cost.text.at_length(min(PHRASE_TOKENS, cost.text.length))
    of_image, of_text = ("image_encoder" in checkpointed), ("text_encoder" in checkpointed)
    saved = cost.image.activations(checkpointed=of_image) + cost.text.activations(checkpointed=of_text)
    saved += regions * phrase.activations(checkpointed=of_text)
    if recipe.regions.method == "prompter":
        saved += prompter_activations(
            tokens=cost.image.length,
            width=cost.image.width,
            prompts=2 * regions,
            pool=recipe.regions.prompter.pool,
            precision=training.precision,
        )
    # Use the size of the whole batch: accumulation caches embeddings, and the loss sees all of them at once.
    size: dict[str, Any] = {"images": training.batch_size, "regions": training.batch_size * regions}
    size["with_regions"] = recipe.regions.method != "none"
    row_chunk = recipe.regions.row_chunk
    return Stage(
        training=training,
        parameters=cost.parameters,
        trained=cost.trained,
        largest_unit=cost.largest_unit,
        forward=flops,
        # Twice the forward: gradients of inputs and of weights. The towers know which of theirs are frozen.
        backward={
            "image tower": cost.image.backward,
            "caption": cost.text.backward,
            "phrases": regions * phrase.backward,
            "prompter": 2 * flops["prompter"],
        },
        saved={"activations": saved},
        repeated=repeated,
        loss_flops=loss_flops(
            embed_dim=recipe.embed_dim, filter=recipe.regions.filter, chunked=row_chunk is not None, **size
        ),
        loss_bytes=lambda devices: {
            "gathered_embeddings": gathered_bytes(embed_dim=recipe.embed_dim, processes=devices, **size),
            "loss_blocks": loss_bytes(row_chunk=row_chunk, processes=devices, **size),
        },
    )


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
    return {
        "images": len(rows),
        "images_with_text": with_text,
        "image_bytes": float(collection.index["length"][rows].mean()),
        "kinds_missing": sorted(set(kinds) - set(existing)),
        "regions": regions,
        "path": collection.path,
    }


def _warn(recipe: PretrainRecipe, stage: PricedStage, data: Mapping[str, Any]) -> list[str]:
    """Return problems of a run, each a sentence with what would help."""
    problems = []
    # Put before all other warnings: without regions the run cannot learn places at all.
    if data and not data["regions"] and recipe.regions.method != "none":
        problems.append(describe_no_regions(data["path"], recipe.data.split))
    if stage.loss_share > 0.2 and stage.devices > 1:
        problems.append(
            f"{stage.loss_share:.0%} of a step goes into the loss matrices, which are computed in float32 and grow "
            "with the square of the batch: a smaller training.batch_size or data.regions_per_image makes them smaller"
        )
    if data.get("kinds_missing"):
        problems.append(
            f"no image of the collection has a text of kind {', '.join(data['kinds_missing'])} (data.captions); "
            f"with data.missing={recipe.data.missing} {LOST_WEIGHT[recipe.data.missing]}"
        )
    images = data.get("images_with_text")
    if images is not None and recipe.training.batch_size > images:
        problems.append(
            f"batch_size {recipe.training.batch_size} is larger than the {images} images with a text: a batch "
            "has images twice, and an image's own text counts as a negative for its copy"
        )
    return problems


def _set_checkpointing(recipe: PretrainRecipe, names: Sequence[str]) -> PretrainRecipe:
    """Return the recipe with checkpointing in the towers named, and in no other."""
    towers = {name: {k: v for k, v in getattr(recipe, name).items() if k != "checkpointing"} for name in TOWERS}
    return recipe.model_copy(
        update={name: (tower | {"checkpointing": True} if name in names else tower) for name, tower in towers.items()}
    )


def _supports_checkpointing(recipe: LocalizerSettings, name: str) -> bool:
    """Whether a tower has the option `checkpointing`; a frozen one saves no activations in any case."""
    options = getattr(recipe, name)
    return "checkpointing" in tower_options(options["kind"], name) and not options.get("frozen")


def _regions(recipe: PretrainRecipe) -> int:
    return recipe.data.regions_per_image if recipe.regions.method != "none" else 0


def model_cost(model: LocalizingModel, *, units: list[nn.Module], precision: str) -> ModelCost:
    """Count the cost of a model on the meta device.

    Args:
        units: modules that FSDP2 shards one by one, as the task lists them.
    """
    image, text = model.image_encoder, model.text_encoder
    # A frozen text tower is cached as one vector per text, so its trained part reads a sequence of length 1.
    has_tokens = text.feature_dtype in (torch.int32, torch.int64)
    # Text encoders do not declare the width of their layers, but every transformer normalizes its residual stream.
    norms = [module.normalized_shape[0] for module in text.modules() if isinstance(module, nn.LayerNorm)]
    text_cost = count_part(
        _without_data(text),
        lambda tower, batch: [tower(_empty_features(tower, batch))],
        precision=precision,
        blocks=count_blocks(text),
        length=text.feature_shape[0] if has_tokens else 1,
        width=max(norms, default=text.embed_dim),
    )
    image_cost = count_part(
        _without_data(image),
        lambda tower, batch: _outputs(tower(_empty_features(tower, batch))),
        precision=precision,
        blocks=count_blocks(image),
        length=image.grid[0] * image.grid[1],
        width=image.width,
    )
    parameters = {
        "image tower": image_cost.parameters,
        "text tower": text_cost.parameters,
        "prompter": count_parameters(model.prompter) + count_parameters(model.roi),
        "box head": count_parameters(model.box_head),
    }
    parameters["temperatures"] = count_parameters(model) - sum(parameters.values())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return ModelCost(image_cost, text_cost, parameters, trained, max(map(count_parameters, units), default=0))


def _outputs(features: ImageFeatures) -> list[Tensor]:
    return [features.tokens, features.pooled]


def _empty_features(encoder: Any, batch: int) -> Tensor:
    return torch.empty(batch, *encoder.feature_shape, dtype=encoder.feature_dtype)


def _without_data(encoder: nn.Module) -> nn.Module:
    """Return a copy whose submodules are in training mode, and the encoder itself is not."""
    # In training an encoder may trim texts by their values, and fake tensors have none.
    encoder = copy.deepcopy(encoder).train()
    encoder.training = False
    return encoder


def flops_per_image(recipe: PretrainRecipe, cost: ModelCost, *, once: bool = True) -> dict[str, float]:
    """Return forward FLOPs by part of one image with its text and M regions.

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
        parts["prompter"] = prompter_flops(
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
    return parts


def cloc_over_clip(recipe: PretrainRecipe, cost: ModelCost) -> dict[str, float]:
    """Return the ratio of forward FLOPs to those of CLIP: as computed here, and with a plain Prompter."""
    clip = cost.image.forward + cost.text.forward
    ways = {"ours": True, "plain": False}
    return {name: sum(flops_per_image(recipe, cost, once=once).values()) / clip for name, once in ways.items()}


def prompter_flops(
    *, tokens: int, width: int, embed_dim: int, boxes: float, phrases: float, pool: str, once: bool = True
) -> float:
    """Return the forward FLOPs of the Prompter and the box head for one image.

    Args:
        tokens: L, image tokens. width: D. embed_dim: E.
        boxes, phrases: prompts of the image, of two tokens and of one.
        pool: "all" or "prompt".
        once: work that all prompts of an image share is done once, as this Prompter does; False for a plain Prompter,
            a sequence [prompt ; image] through the layer for each prompt.
    """
    # 24 D^2 per token: 4 projections of D^2 and an MLP of 8 D^2, 2 FLOPs each; attention adds 4 L D per token.
    square = width * width
    ends = (boxes + phrases) * 2 * width * embed_dim  # projection of z
    ends += phrases * (2 * embed_dim * width + 2 * embed_dim * width + 8 * width)  # phrase prompt, box head
    if not once:

        def layer(length: int) -> float:
            return 24 * length * square + 4 * length**2 * width

        return boxes * layer(tokens + 2) + phrases * layer(tokens + 1) + ends
    prompt_tokens = 2 * boxes + phrases
    inner = prompt_tokens * (24 * square + 4 * tokens * width)
    if pool == "prompt":
        return inner + ends
    shared = 8 * tokens * square + 4 * tokens**2 * width
    each = prompt_tokens * (6 * square + 4 * tokens * width) + (boxes + phrases) * 16 * tokens * square
    return inner + shared + each + ends


def prompter_activations(*, tokens: int, width: int, prompts: float, pool: str, precision: str) -> float:
    """Return the bytes that the Prompter saves for one image; with pool "all" outputs at all tokens per prompt."""
    shared = (10 if precision == "bf16" else 16) * tokens * width
    if pool == "prompt":
        return shared
    return 2 * shared + prompts * (36 if precision == "bf16" else 64) * tokens * width


def loss_flops(
    *,
    images: int,
    regions: float,
    embed_dim: int,
    filter: str,
    chunked: bool,
    with_regions: bool,
) -> float:
    """Return the FLOPs of the contrastive losses of one step; each process computes its own rows.

    Args:
        images, regions: N and R of the batch of all processes.
        filter: of duplicate phrases; "embedding" is one more matrix product.
        chunked: in blocks of rows, whose logits and filter are computed again in the backward pass.
    """
    # 2 FLOPs per entry and unit of width: logits, gradients of rows and of columns, and the logits again in chunks.
    per_entry = 8.0 if chunked else 6.0
    total = per_entry * images**2 * embed_dim
    if with_regions:
        per_entry += (4.0 if chunked else 2.0) * (filter == "embedding")
        total += per_entry * regions**2 * embed_dim
    return total


def loss_bytes(*, images: int, regions: float, row_chunk: int | None, with_regions: bool, processes: int = 1) -> float:
    """Return the bytes of the losses' float32 matrices that are alive at once in one process.

    At most four blocks of this process's rows of each matrix: logits, their gradient, and two temporaries. The blocks
    of the regions come after those of the images were made and before they are freed.
    """

    def matrix(size: float) -> float:
        rows = size / processes
        return 4 * 4.0 * (rows if row_chunk is None else min(row_chunk, rows)) * size

    return matrix(images) + (matrix(regions) if with_regions else 0.0)


def gathered_bytes(*, images: int, regions: float, embed_dim: int, with_regions: bool, processes: int = 1) -> float:
    """Return the bytes of the float32 embeddings of the whole batch in one process.

    A single process has both sides of images and regions, with gradients, and the regions' once more at unit length.
    With several each has the texts and phrases of all: gathered, their gradient, and its sum over the processes.
    """
    regions = regions if with_regions else 0
    if processes == 1:
        return 4.0 * embed_dim * 2 * (2 * images + 4 * regions)
    return 4.0 * embed_dim * 3 * (images + regions)
