"""Localizing model: CLIP that embeds boxes and finds the box of a phrase; CLOC and its baselines.

Image tokens are computed once per image and used for every box and every phrase.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.encoder import ImageEncoder, ImageFeatures, TextEncoder
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.prompter import BoxHead, Prompter, sorted_boxes
from foveate.vision.regions.roi import RoiPooler, roi_pool
from foveate.vision.registry import build_image_encoder, build_text_encoder

Module = TypeVar("Module", bound=nn.Module)

# What a model that never learned places needs.
LEARN_PLACES = "`foveate regions COLLECTION` makes regions, and `foveate pretrain` learns places from them"

# Largest intermediate result [prompts, tokens, width] outside training, in elements: 64 MB in float32.
_NUMBERS_AT_A_TIME = 2**24


class _CappedExp(torch.autograd.Function):
    """exp(x), capped. Beyond the cap only a gradient that leads back passes.

    A plain clamp would pass none, and a temperature that overshot once would never move again.
    """

    @staticmethod
    def forward(ctx: Any, log_scale: Tensor, largest: float) -> Tensor:
        scale = log_scale.exp()
        capped = scale.clamp(max=largest)
        ctx.save_for_backward(capped, scale > largest)
        return capped

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        capped, beyond = ctx.saved_tensors
        gradient = grad_outputs[0] * capped
        # A negative gradient would raise the scale further, which the cap forbids anyway.
        return torch.where(beyond & (gradient < 0), torch.zeros_like(gradient), gradient), None


def capped_exp(log_scale: Tensor, largest: float) -> Tensor:
    """Return exp(log_scale), at most `largest`; a gradient that lowers it passes beyond the cap too."""
    return _CappedExp.apply(log_scale, largest)


def towers(recipe: LocalizerSettings, name: str) -> dict[str, Any]:
    """Return the settings of one encoder with the joint width that both share."""
    return {"embed_dim": recipe.embed_dim, **getattr(recipe, name)}


def empty_copy(module: Module) -> Module:
    """Copy a module with parameters that have a shape and no memory; buffers and all else are copied.

    `load_state_dict(weights, assign=True)` fills them.
    """
    empty = {
        id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    # A memo with the replacements: deepcopy takes them for parameters that it has copied already.
    return copy.deepcopy(module, dict(empty))


class LocalizingModel(nn.Module):
    """Image tower, text tower and the module that embeds regions.

    Attributes:
        recipe: what the model was built from.
        trained_as: the other parts of the recipe in the folder that it was opened from: data, training and so on.
        prompter, box_head: of method "prompter"; None otherwise.
        roi: of method "roi"; None otherwise.
        log_scale: logarithm of 1 / temperature, shape (1,). region_log_scale: the same or one of its own.
        bias: of the sigmoid losses, shape (1,); region_bias: one of its own beside a temperature of its own.
        locate_rule: "head" or "candidates": the rule that was better on the validation split, if there was one.
        localizes: whether it learned places; False for a CLIP, and where a Prompter was trained without any region.
    """

    def __init__(self, recipe: LocalizerSettings) -> None:
        super().__init__()
        self.recipe = recipe
        self.trained_as: dict[str, Any] = {}
        seed = recipe.initial_seed()
        self.image_encoder: ImageEncoder = build_image_encoder(towers(recipe, "image_encoder"), seed=seed)
        self.text_encoder: TextEncoder = build_text_encoder(towers(recipe, "text_encoder"), seed=seed)
        width, method = self.image_encoder.width, recipe.regions.method
        options = recipe.regions.prompter.model_dump()
        self.prompter = Prompter(width=width, embed_dim=recipe.embed_dim, **options) if method == "prompter" else None
        self.box_head = BoxHead(width=width, embed_dim=recipe.embed_dim) if method == "prompter" else None
        self.roi = RoiPooler(width=width, embed_dim=recipe.embed_dim) if method == "roi" else None
        scale, bias = self._start()
        # Shape (1,), not (): FSDP2 shards the first dimension of a parameter.
        start = torch.full((1,), math.log(scale))
        self.log_scale = nn.Parameter(start.clone())
        own_scale = recipe.regions.own_temperature and method != "none"
        self.region_log_scale = nn.Parameter(start.clone()) if own_scale else None
        sigmoid_regions = method != "none" and recipe.regions.loss == "sigmoid"
        shared = recipe.loss == "sigmoid" or (sigmoid_regions and not own_scale)
        self.bias = nn.Parameter(torch.full((1,), bias)) if shared else None
        self.region_bias = nn.Parameter(torch.full((1,), bias)) if sigmoid_regions and own_scale else None
        self.locate_rule = "head" if method == "prompter" else "candidates"
        self.localizes = method != "none"

    def _start(self) -> tuple[float, float]:
        """Choose 1 / temperature and bias to start from: the recipe's, those of trained towers, or the papers'."""
        recipe = self.recipe
        # SigLIP starts at 10 with a bias of -10 (arXiv 2303.15343, section 3.2), CLIP at 1 / 0.07 (2103.00020, 2.5).
        default = 10.0 if recipe.loss == "sigmoid" else 1 / 0.07
        scales = (recipe.logit_scale_init, self.trained_start()[0], default)
        biases = (recipe.logit_bias_init, self.trained_start()[1], -10.0)
        return next(value for value in scales if value is not None), next(
            value for value in biases if value is not None
        )

    def trained_start(self) -> tuple[float | None, float | None]:
        """Return 1 / temperature and bias that both towers were trained with; None unless trained together.

        A temperature of a softmax is no start for a sigmoid loss: that needs a bias which fits it.
        """
        image, text = self.image_encoder, self.text_encoder
        bias = image.trained_bias if image.trained_bias == text.trained_bias else None
        scale = image.trained_scale if image.trained_scale == text.trained_scale else None
        return (None, None) if self.recipe.loss == "sigmoid" and bias is None else (scale, bias)

    @property
    def device(self) -> torch.device:
        """Device of the trained weights."""
        return self.log_scale.device

    def logit_scale(self) -> Tensor:
        """Return 1 / temperature of the image-text loss; for a softmax at most the recipe's `logit_scale_max`."""
        return self._scale(self.log_scale, self.recipe.loss)

    def region_logit_scale(self) -> Tensor:
        """Return 1 / temperature of the region-text loss."""
        log_scale = self.region_log_scale
        return self.logit_scale() if log_scale is None else self._scale(log_scale, self.recipe.regions.loss)

    def _scale(self, log_scale: Tensor, loss: str) -> Tensor:
        # SigLIP's is not limited: trained ones lie above 100.
        return log_scale.exp() if loss == "sigmoid" else capped_exp(log_scale, self.recipe.logit_scale_max)

    def logit_bias(self) -> Tensor:
        """Return the bias of the sigmoid image-text loss, shape (1,)."""
        assert self.bias is not None
        return self.bias

    def region_logit_bias(self) -> Tensor:
        """Return the bias of the sigmoid region-text loss, shape (1,)."""
        return self.logit_bias() if self.region_bias is None else self.region_bias

    def encode_image_tokens(self, pixels_B3HW: Tensor) -> ImageFeatures:
        """Encode uint8 or normalized pixels: tokens, grid and the unnormalized joint embedding."""
        return self.image_encoder(self.image_encoder.frozen_features(pixels_B3HW.to(self.device)))

    def encode_image(self, images: Tensor | ImageFeatures) -> Tensor:
        """Return unit-length joint embeddings [B, E] of images, or of features that were computed before."""
        features = images if isinstance(images, ImageFeatures) else self.encode_image_tokens(images)
        return F.normalize(features.pooled.float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return joint embeddings [B, E] of texts before normalization, the input of phrase prompts."""
        return self.text_encoder(self.text_encoder.frozen_features(list(texts)).to(self.device))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length joint embeddings [B, E] of texts."""
        return F.normalize(self.embed_texts(texts).float(), dim=-1)

    def encode_regions(self, features: ImageFeatures, boxes_R4: Tensor, image_index_R: Tensor) -> Tensor:
        """Embed boxes in [0, 1] of the model input, unnormalized: [R, E].

        Without a region module that learned places the tokens under the box are pooled by RoI-Align and projected as
        a whole image's are, the common zero-shot baseline.

        Args:
            boxes_R4: corners; x1 < x2, y1 < y2. image_index_R: row of `features` that each box belongs to.
        """
        own_RE = self.image_encoder.embed_boxes(features, boxes_R4, image_index_R)
        if own_RE is not None:
            return own_RE
        if self.prompter is not None and self.localizes:
            prepared = self.prompter.prepare(features.tokens, features.grid)
            parts = self._in_parts(features, boxes_R4, image_index_R)
            return torch.cat([self.prompter.boxes(prepared, *part).embedding_RE for part in parts])
        if self.roi is not None and self.localizes:
            return self.roi(features.tokens, features.grid, boxes_R4, image_index_R)
        return self.image_encoder.project(roi_pool(features.tokens, features.grid, boxes_R4, image_index_R))

    def ground(self, features: ImageFeatures, texts_RE: Tensor, image_index_R: Tensor) -> Tensor:
        """Find the boxes [R, 4] of phrases, in [0, 1] of the model input, clamped and sorted.

        Args:
            texts_RE: of `embed_texts`, not normalized.

        Raises:
            UserError: for a model without a Prompter, its own or its encoder's.
        """
        own_R4 = self.image_encoder.ground(features, texts_RE, image_index_R)
        if own_R4 is not None:
            return own_R4
        if self.prompter is None or self.box_head is None:
            raise UserError(
                f"this model was trained with regions.method '{self.recipe.regions.method}': "
                "only 'prompter' can answer where a phrase is"
            )
        if not self.localizes:
            raise UserError(f"this model was trained without any region: its box head is untrained; {LEARN_PLACES}")
        prepared = self.prompter.prepare(features.tokens, features.grid)
        parts = self._in_parts(features, texts_RE, image_index_R)
        boxes = [self.box_head(self.prompter.phrases(prepared, *part)) for part in parts]
        return sorted_boxes(torch.cat(boxes))

    @property
    def has_box_head(self) -> bool:
        """Whether `ground` finds the boxes of phrases: by a trained head of its own, or of its encoder."""
        # A model that never learned places may still have a box head, but its boxes would be random.
        return self.image_encoder.has_box_head or (self.prompter is not None and self.localizes)

    def _in_parts(self, features: ImageFeatures, prompts: Tensor, image_index_R: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split the prompts of a call where each of them reads and keeps all tokens of its image."""
        # With gradients, parts would save nothing: the graph holds the activations of all of them.
        if self.prompter is None or self.prompter.pool != "all" or torch.is_grad_enabled():
            return [(prompts, image_index_R)]
        _, length, width = features.tokens.shape
        size = max(1, _NUMBERS_AT_A_TIME // (length * width))
        return list(zip(prompts.split(size), image_index_R.split(size), strict=True))
