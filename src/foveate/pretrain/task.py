"""The training task of CLIP and CLOC: equations 1 to 4 on the global batch, with gathers that carry gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.pretrain.folder import save_model
from foveate.pretrain.losses import clip_loss, grounding_loss, labelled_fraction, region_text_loss, total_loss
from foveate.pretrain.model import LocalisingModel
from foveate.training.distributed import gather_ragged_with_grad, gather_with_grad
from foveate.training.optimizer import ParameterRule
from foveate.training.task import Batch, Report, Task
from foveate.vision.encoder import ImageTokens


class PretrainTask(Task):
    """A `LocalisingModel` and its losses; method "none" is CLIP."""

    def __init__(self, model: LocalisingModel) -> None:
        super().__init__()
        self.model = model
        self.settings = model.recipe.regions
        self.most_regions = model.recipe.data.regions_per_picture

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Report]:
        """`clip_loss`, `region_loss`, `grounding_loss` and their total; the report names what was masked."""
        tokens: ImageTokens = self.model.image_encoder(batch["image"])
        count = len(batch["text"])
        texts_TE = self.model.text_encoder(torch.cat([batch["text"], batch["region_text"]]))
        text_BE, phrase_RE = texts_TE[:count], texts_TE[count:]
        scale = self.model.logit_scale()
        image_NE = gather_with_grad(F.normalize(tokens.embedding_BE.float(), dim=-1))
        text_NE = gather_with_grad(F.normalize(text_BE.float(), dim=-1))
        clip = clip_loss(image_NE, text_NE, scale)
        report: Report = {"logit_scale": scale.detach()}
        if self.settings.method == "none":
            return {"clip_loss": clip, "loss": clip}, report
        return self._with_regions(batch, tokens, phrase_RE, clip, report)

    def _with_regions(
        self, batch: Batch, tokens: ImageTokens, phrase_RE: Tensor, clip: Tensor, report: Report
    ) -> tuple[dict[str, Tensor], Report]:
        settings, model = self.settings, self.model
        boxes_R4, index_R = batch["boxes_R4"], batch["image_index_R"]
        counts_N = gather_with_grad(batch["counts_B"].float()[:, None])[:, 0]
        fixed = {"normalise": settings.normalise, "M": self.most_regions, "N": len(counts_N)}
        grounding: Tensor | float = 0.0
        if model.prompter is not None and model.box_head is not None:
            prepared = model.prompter.prepare(tokens.tokens_BLD, tokens.grid)
            boxed, said = model.prompter.boxes_and_phrases(prepared, boxes_R4, index_R, phrase_RE, index_R, check=False)
            z_RE, found_R4 = boxed.embedding_RE, model.box_head(said)
            grounding = grounding_loss(
                gather_ragged_with_grad(found_R4.float()), gather_ragged_with_grad(boxes_R4.float()), **fixed
            )
        else:
            z_RE = model.encode_regions(tokens, boxes_R4, index_R)
        region = region_text_loss(
            gather_ragged_with_grad(z_RE.float()),
            gather_ragged_with_grad(phrase_RE.float()),
            model.region_logit_scale(),
            filter=settings.filter,
            threshold=settings.filter_threshold,
            phrases=gather_ragged_with_grad(batch["phrase_ids_R"][:, None])[:, 0],
            row_chunk=settings.row_chunk,
            **fixed,
        )
        labelled = labelled_fraction(counts_N)
        total = total_loss(
            clip,
            region.loss,
            grounding,
            labelled_fraction=labelled,
            lambda_scale=settings.lambda_scale,
            grounding_weight=settings.grounding_weight,
        )
        report |= {
            "masked_negatives": region.masked_fraction,
            "labelled_pictures": labelled,
            "regions": counts_N.sum(),
        }
        terms = {"clip_loss": clip, "region_loss": region.loss}
        if isinstance(grounding, Tensor):
            terms["grounding_loss"] = grounding
        return terms | {"loss": total}, report

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """No decay on the temperatures; everything else as the optimizer's table decides."""
        return (ParameterRule(r"model\.(region_)?log_scale", weight_decay=0.0),)

    def shard_units(self) -> Sequence[nn.Module]:
        """The transformer blocks of both towers: the members of their lists of layers."""
        return [
            block
            for tower in (self.model.image_encoder, self.model.text_encoder)
            for name, module in tower.named_modules()
            if isinstance(module, nn.ModuleList) or name.endswith("trunk.blocks")
            for block in module.children()
        ]

    def export(self, folder: Path) -> None:
        """Writes the model folder."""
        save_model(self.model, folder)
