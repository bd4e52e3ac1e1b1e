"""Cost of a model without allocating it: FLOPs and saved activations, per image, text and region.

Towers are counted (`foveate.training.costs`). The Prompter and the losses work on ragged rows whose number decides what
is computed, so they are formulas; tests compare them with the counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from foveate.training.costs import ModuleCost, count_blocks, count_parameters, make_fake, measure
from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.model import LocalizingModel


@dataclass(frozen=True)
class ModelCost:
    """Cost of both towers, and the parameter counts of the other parts.

    Attributes:
        trained: parameters. largest_unit: parameters of the largest module that FSDP2 shards.
    """

    image: ModuleCost
    text: ModuleCost
    parameters: dict[str, int]
    trained: int
    largest_unit: int


def model_cost(model: LocalizingModel, *, units: list[nn.Module], precision: str) -> ModelCost:
    """Count the cost of a model on the meta device; its weights are fake tensors afterwards.

    Args:
        units: modules that FSDP2 shards one by one, as the task lists them.
        precision: "fp32" or "bf16", of the saved tensors under autocast (as on a CPU; CUDA computes norms in float32:
            up to an eighth more).
    """
    image, text = model.image_encoder, model.text_encoder
    # Fake tensors propagate shapes through every kernel, as no formula for an unknown architecture could.
    mode = FakeTensorMode()
    make_fake(model, mode)
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with mode, narrow, _data_free(text):
        text_cost = measure(
            lambda batch: [text(_features(batch, text.feature_shape, text.feature_dtype))],
            blocks=count_blocks(text),
            length=text.feature_shape[0] if text.feature_dtype in (torch.int32, torch.int64) else 1,
            width=_width(text, default=text.embed_dim),
        )
    with mode, narrow, _data_free(image):
        image_cost = measure(
            lambda batch: _outputs(image(_features(batch, image.feature_shape, image.feature_dtype))),
            blocks=count_blocks(image),
            length=image.grid[0] * image.grid[1],
            width=image.width,
        )
    heads = [model.prompter, model.box_head, model.roi]
    parameters = {
        "image tower": count_parameters(image),
        "text tower": count_parameters(text),
        "prompter": count_parameters(model.prompter) + count_parameters(model.roi),
        "box head": count_parameters(model.box_head),
    }
    parameters["temperatures"] = (
        count_parameters(model) - count_parameters(image) - count_parameters(text) - sum(map(count_parameters, heads))
    )
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return ModelCost(image_cost, text_cost, parameters, trained, max(map(count_parameters, units), default=0))


def _outputs(features: ImageFeatures) -> list[Tensor]:
    return [features.tokens, features.pooled]


def _features(batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(batch, *shape, dtype=dtype)


@contextmanager
def _data_free(encoder: nn.Module) -> Iterator[None]:
    """Set training mode on all submodules but not on the encoder itself."""
    # In training an encoder may trim texts by their values, and fake tensors have none.
    before = encoder.training
    encoder.train()
    encoder.training = False
    try:
        yield
    finally:
        encoder.train(before)


def _width(encoder: nn.Module, *, default: int) -> int:
    norms = [module.normalized_shape[0] for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    return max(norms, default=default)


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
    processes: int = 1,
) -> float:
    """Return the FLOPs of the contrastive losses of one step in one process, which computes its own rows.

    Args:
        images, regions: N and R of the batch of all processes; each has its share of them.
        filter: of duplicate phrases; "embedding" is one more matrix product.
        chunked: in blocks of rows, whose logits and filter are computed again in the backward pass.
    """
    # 2 FLOPs per entry and unit of width: logits, gradients of rows and of columns, and the logits again in chunks.
    per_entry = 8.0 if chunked else 6.0
    total = per_entry * images**2 * embed_dim
    if with_regions:
        per_entry += (4.0 if chunked else 2.0) * (filter == "embedding")
        total += per_entry * regions**2 * embed_dim
    return total / processes


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
