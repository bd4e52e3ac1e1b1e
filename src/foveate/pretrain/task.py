"""The training task of CLIP and CLOC: equations 1 to 4 on the global batch, each process with its own rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.pretrain.evaluate import Validation
from foveate.pretrain.losses import (
    RegionLoss,
    clip_loss,
    grounding_loss,
    labeled_fraction,
    region_text_loss,
    sigmoid_loss,
    sigmoid_region_loss,
    total_loss,
)
from foveate.pretrain.recipe import PretrainRecipe
from foveate.training.distributed import gather_with_grad
from foveate.training.optimizer import ParameterRule
from foveate.training.task import Batch, EmbeddingTask, Losses, Report
from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.folder import save_model
from foveate.vision.localizer.model import LocalizingModel

_PER_IMAGE = ("image", "text", "counts_B", "lost_B")
_PER_REGION = ("boxes_R4", "region_text", "phrase_ids_R")


class PretrainTask(EmbeddingTask):
    """A `LocalizingModel` and its losses; method "none" is CLIP."""

    def __init__(self, model: LocalizingModel, *, validation: Validation | None = None) -> None:
        super().__init__()
        self.validation = validation
        assert isinstance(model.recipe, PretrainRecipe), "a model opened from a folder has no training recipe"
        self.model, self.recipe = model, model.recipe
        self.settings = model.recipe.regions
        self.max_regions = model.recipe.data.regions_per_image

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return embeddings, not normalized.

        `image` and `text` [B, E]; with regions also `region` and `phrase` [R, E]; with a Prompter also `box` [R, 4],
        the predicted box of each phrase.
        """
        model = self.model
        tokens: ImageFeatures = model.image_encoder(batch["image"])
        embeddings = {"image": tokens.pooled, "text": model.text_encoder(batch["text"])}
        if self.settings.method == "none":
            return embeddings
        # A batch apart from the captions: a tower that trims its input to the longest text then reads a few tokens per
        # phrase instead of the length of the longest caption.
        phrase_RE = embeddings["phrase"] = model.text_encoder(batch["region_text"])
        boxes_R4, index_R = batch["boxes_R4"], batch["image_index_R"]
        if model.prompter is None or model.box_head is None:
            return embeddings | {"region": model.encode_regions(tokens, boxes_R4, index_R)}
        tokens_ALD, index_R = _images_with_regions(tokens.tokens, batch["counts_B"], index_R)
        prepared = model.prompter.prepare(tokens_ALD, tokens.grid)
        # Unchecked, because the loader has already checked the boxes, and a check here would wait for the device.
        region, phrase = model.prompter.boxes_and_phrases(prepared, boxes_R4, index_R, phrase_RE, index_R, check=False)
        return embeddings | {"region": region.embedding_RE, "box": model.box_head(phrase)}

    def loss_of(self, batch: Batch, *, embeddings: Mapping[str, Tensor]) -> tuple[Losses, Report]:
        """Return `clip_loss`, `region_loss`, `grounding_loss`, their total, and a report of counts and masked share."""
        scale = self.model.logit_scale()
        clip = self.image_text_loss(embeddings["image"], embeddings["text"], scale)
        report: Report = {"logit_scale": scale.detach()}
        if self.settings.method == "none":
            return {"clip_loss": clip, "loss": clip}, report
        return self._with_regions(batch, embeddings, clip, report)

    def image_text_loss(self, image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
        """Return the loss between the images and texts of all ranks, from this rank's embeddings (not normalized)."""
        # float32 before normalizing: bfloat16 embeddings would lose the small differences between near neighbors.
        image_BE, text_BE = F.normalize(image_BE.float(), dim=-1), F.normalize(text_BE.float(), dim=-1)
        chunk = self.settings.row_chunk
        if self.recipe.loss == "sigmoid":
            return sigmoid_loss(image_BE, text_BE, scale, self.model.logit_bias(), row_chunk=chunk)
        return clip_loss(image_BE, text_BE, scale, row_chunk=chunk)

    def _with_regions(
        self, batch: Batch, embeddings: Mapping[str, Tensor], clip: Tensor, report: Report
    ) -> tuple[Losses, Report]:
        settings = self.settings
        # Gathered, since lambda and M N are those of the whole batch.
        counts_N, lost_N = gather_with_grad(torch.stack((batch["counts_B"], batch["lost_B"]), dim=1)).float().unbind(1)
        fixed: dict[str, Any] = {"normalize": settings.normalize, "M": self.max_regions, "N": len(counts_N)}
        grounding: Tensor | float = 0.0
        if "box" in embeddings:
            # Use float32: between 0.5 and 1, bfloat16 has steps of 1/256 of the image.
            grounding = grounding_loss(embeddings["box"].float(), batch["boxes_R4"].float(), **fixed)
        region = self._region_loss(batch, embeddings, **fixed)
        labeled = labeled_fraction(counts_N)
        total = total_loss(
            clip,
            region.loss,
            grounding,
            labeled_fraction=labeled,
            lambda_scale=settings.lambda_scale,
            grounding_weight=settings.grounding_weight,
        )
        report |= {
            "masked_negatives": region.masked_fraction,
            "labeled_images": labeled,
            "regions": counts_N.sum(),
            "regions_lost": lost_N.sum(),
        }
        terms = {"clip_loss": clip, "region_loss": region.loss}
        if isinstance(grounding, Tensor):
            terms["grounding_loss"] = grounding
        return terms | {"loss": total}, report

    def _region_loss(self, batch: Batch, embeddings: Mapping[str, Tensor], **fixed: Any) -> RegionLoss:
        settings, model = self.settings, self.model
        embedded = embeddings["region"].float(), embeddings["phrase"].float(), model.region_logit_scale()
        options: dict[str, Any] = {
            "filter": settings.filter,
            "threshold": settings.filter_threshold,
            "phrase_ids": batch["phrase_ids_R"],
            "row_chunk": settings.row_chunk,
            **fixed,
        }
        if settings.loss == "sigmoid":
            return sigmoid_region_loss(*embedded, logit_bias=model.region_logit_bias(), **options)
        return region_text_loss(*embedded, **options)

    def evaluate(self, step: int) -> dict[str, float]:
        """Return the metrics of the validation images, see `Validation.metrics`; every rank computes all of them."""
        assert self.validation is not None, "training.evaluate_every needs validation images"
        return self.validation.metrics(self.model)

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Split into consecutive images with their regions."""
        index_R = batch["image_index_R"]
        # Rounded multiples, so that the parts differ by at most one image.
        starts = [round(part * len(batch["counts_B"]) / parts) for part in range(parts + 1)]
        first = torch.searchsorted(index_R, torch.tensor(starts, device=index_R.device)).tolist()
        # searchsorted needs sorted owners.
        assert bool((index_R.diff() >= 0).all()), "regions are in the order of their images"
        return [
            {name: batch[name][start:stop] for name in _PER_IMAGE}
            | {name: batch[name][first[part] : first[part + 1]] for name in _PER_REGION}
            | {"image_index_R": index_R[first[part] : first[part + 1]] - start}
            for part, (start, stop) in enumerate(itertools.pairwise(starts))
        ]

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Return the recipe's rules, after one that exempts temperatures and biases from weight decay."""
        rules = (ParameterRule(**rule.model_dump()) for rule in self.recipe.parameter_rules)
        # First, so that no pattern of the recipe can decay a temperature to 1.
        return (ParameterRule(r"model\.(region_)?(log_scale|bias)", weight_decay=0.0), *rules)

    def shard_units(self) -> Sequence[nn.Module]:
        """Return the transformer blocks of both towers: the members of their lists of layers, inner ones first."""
        outer_first = [
            block
            for tower in (self.model.image_encoder, self.model.text_encoder)
            for name, module in tower.named_modules()
            if isinstance(module, nn.ModuleList) or name.endswith("trunk.blocks")
            for block in module.children()
            if not isinstance(block, nn.ModuleList | nn.ModuleDict)  # lists within lists are never called
        ]
        # FSDP2 must shard inner modules before the ones that contain them; dict.fromkeys drops repeated modules.
        return list(dict.fromkeys(reversed(outer_first)))

    def export(self, folder: Path) -> None:
        """Write the model folder."""
        save_model(self.model, folder)


def _images_with_regions(tokens_BLD: Tensor, counts_B: Tensor, index_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens of the images with regions, and the index of each region's image among them.

    The other images need no Prompter.
    """
    with_regions_B = counts_B > 0
    if bool(with_regions_B.all()) or not len(index_R):
        return tokens_BLD, index_R
    # Select by index: the gradient of indexing with the mask is written element by element.
    chosen_A = with_regions_B.nonzero().squeeze(1)
    return tokens_BLD.index_select(0, chosen_A), (with_regions_B.cumsum(0) - 1)[index_R]
