"""The training task of a multimodal LLM: next tokens of answers, embedding alignment, and boxes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from foveate.core.errors import UserError
from foveate.language.packing import SLOT, PackedTexts
from foveate.mllm.recipe import StageSettings
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.names import NameTable
from foveate.multimodal.referring import RegionPrompts
from foveate.multimodal.views import ViewLayout, Visual
from foveate.training.optimizer import ParameterRule
from foveate.training.task import Batch, Losses, Report, Task

# Numbers of the log that are no losses.
_REPORTED = frozenset({"token_accuracy", "nearest_name", "iou"})


def box_loss(boxes_N4: Tensor, targets_N4: Tensor) -> tuple[Tensor, Tensor]:
    """Return L1 over the four corners plus 1 - GIoU, and the IoU, each [N].

    Source: DETR (arXiv 2005.12872), section 3.1; GIoU: arXiv 1902.09630.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
        >>> loss, iou = box_loss(boxes, torch.tensor([[0.0, 0.0, 0.5, 1.0]]))
        >>> round(float(loss), 3), float(iou)
        (1.0, 0.5)
    """
    from torchvision.ops import generalized_box_iou_loss

    def area(corners_N4: Tensor) -> Tensor:
        # Predicted corners may be swapped, and two negative sides would multiply to a positive area.
        return (corners_N4[:, 2:] - corners_N4[:, :2]).clamp(min=0).prod(dim=1)

    low_N2 = torch.maximum(boxes_N4[:, :2], targets_N4[:, :2])
    high_N2 = torch.minimum(boxes_N4[:, 2:], targets_N4[:, 2:])
    inside_N = (high_N2 - low_N2).clamp(min=0).prod(dim=1)
    # The union of two boxes without area is 0.
    iou_N = inside_N / (area(boxes_N4) + area(targets_N4) - inside_N).clamp(min=1e-9)
    giou_N = generalized_box_iou_loss(boxes_N4, targets_N4, reduction="none")
    return (boxes_N4 - targets_N4).abs().sum(dim=1) + giou_N, iou_N


class MllmTask(Task):
    """A `MultimodalModel` and the losses of one stage.

    Args:
        model: trained in place.
        names: for embedding alignment.
        stage: weights and rates.
        export: writes the model folder.
        validation: returns the batches whose losses an evaluation measures (`training.evaluate_every`).
        measure: returns the metrics of an evaluation instead.

    Raises:
        UserError: evaluations are asked for, and there is nothing to measure.
    """

    # A stage that only aligns does not use the language model's layers, and a batch may hold no box.
    find_unused_parameters: ClassVar[bool] = True

    def __init__(
        self,
        model: MultimodalModel,
        *,
        names: NameTable,
        stage: StageSettings,
        export: Callable[[MultimodalModel, Path], object] | None = None,
        validation: Callable[[], Iterable[Batch]] | None = None,
        measure: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__()
        if stage.training.evaluate_every is not None and measure is None and validation is None:
            raise UserError(
                f"stage {stage.name}, training.evaluate_every: nothing is measured during a training (got "
                f"{stage.training.evaluate_every}); leave it unset and use foveate mllm evaluate"
            )
        self.model, self.stage, self._export = model, stage, export
        self._validation, self._measure = validation, measure
        self.register_buffer("name_ids_NW", names.ids_NW, persistent=False)
        self.register_buffer("name_weight_NW", names.weight_NW, persistent=False)

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Compute the means over learned tokens, named regions and boxes of `mllm.samples.MllmSamples.collate`."""
        visual = self.model.see(batch["features"], batch["cell_V2"])
        terms: Losses = {}
        report: Report = {}
        if self.stage.alignment_weight:
            terms["alignment_loss"], report["nearest_name"] = self._align(visual, batch)
        if self.stage.texts:
            texts = PackedTexts(*(batch[name] for name in PackedTexts._fields))
            points = (batch.get(f"region_{name}") for name in RegionPrompts._fields[2:])
            regions = RegionPrompts(batch["region_boxes_R4"], batch["region_image_R"], *points)
            layout = ViewLayout(*(batch[name] for name in ViewLayout._fields))
            states_BTE = self.model.hidden_states(visual, batch["views_BK"], texts, regions, layout)
            terms |= self.model.pop_router_losses()
            terms["token_loss"], report["token_accuracy"] = self._predict(states_BTE, texts)
            if self.stage.box_weight:
                terms["box_loss"], report["iou"] = self._locate(visual, batch["views_BK"], states_BTE, texts, regions)
            if isinstance(self, FSDPModule):
                terms["token_loss"] = terms["token_loss"] + self._sum_to_zero()
        return {**terms, "loss": self.total(terms)}, report

    def _sum_to_zero(self) -> Tensor:
        """Return 0 with a gradient of zeros for every trained weight outside the language model's layers.

        FSDP2 reduces all gradients of a unit in one collective. It would not end, or would add up the wrong numbers,
        where the rows of one process have images, regions or boxes and those of another have none.
        """
        # Inside the forward pass the outermost unit is whole; the layers, still sharded, run in every process anyway.
        whole = [weight for weight in self.parameters() if weight.requires_grad and not isinstance(weight, DTensor)]
        return torch.stack([weight.sum() for weight in whole]).sum() * 0.0

    def total(self, terms: Losses) -> Tensor:
        """Add up the losses with the stage's weights."""
        weights = {"alignment_loss": self.stage.alignment_weight, "box_loss": self.stage.box_weight}
        return torch.stack([weights.get(name, 1.0) * value for name, value in terms.items() if name != "loss"]).sum()

    def count_targets(self, batch: Batch) -> dict[str, float]:
        """Count learned tokens, named regions and boxes of answers."""
        # Nothing comes before the first token that could predict it.
        tokens = float(batch["learned_BT"][:, 1:].sum())
        named = float(len(batch["name_N"]))
        is_box = (batch["ids_BT"] == self.model.region_id) & batch["learned_BT"]
        return {
            # A stage that only aligns has no tokens; its loss is a mean over named regions.
            "loss": tokens or named,
            "token_loss": tokens,
            "token_accuracy": tokens,
            "balance": tokens,
            "router_z": tokens,
            "alignment_loss": named,
            "nearest_name": named,
            "box_loss": float(is_box.sum()),
            "iou": float(is_box.sum()),
        }

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Split a batch by its rows; views, regions and names follow their row."""
        views_BK = batch["views_BK"]
        is_region = batch["ids_BT"] == self.model.region_id
        # Regions have no column for their row: they are in the order of their tokens in the rows.
        region_row_R = is_region.nonzero()[:, 0]
        pieces: list[Batch] = []
        for rows in torch.arange(len(views_BK), device=views_BK.device).tensor_split(parts):
            of_rows = views_BK[rows]
            views = of_rows[of_rows >= 0]
            new_number = torch.full((len(batch["features"]),), -1, device=views.device)
            new_number[views] = torch.arange(len(views), device=views.device)
            named = torch.isin(batch["name_view_N"], views)
            # As in `MllmSamples.collate`, rows without images get a view of zeros.
            features = batch["features"][views] if len(views) else torch.zeros_like(batch["features"][:1])
            regions = torch.isin(region_row_R, rows)
            piece = {name: batch[name][rows] for name in (*PackedTexts._fields, *ViewLayout._fields)}
            piece |= {
                "features": features,
                "cell_V2": batch["cell_V2"][views] if len(views) else torch.zeros_like(batch["cell_V2"][:1]),
                "views_BK": torch.where(of_rows >= 0, new_number[of_rows.clamp(min=0)], of_rows),
                **{name: batch[name][regions] for name in batch if name.startswith("region_")},
                "name_boxes_N4": batch["name_boxes_N4"][named],
                "name_view_N": new_number[batch["name_view_N"][named]],
                "name_N": batch["name_N"][named],
            }
            pieces.append(piece)
        return pieces

    def _align(self, visual: Visual, batch: Batch) -> tuple[Tensor, Tensor]:
        """Softmax over all names of the similarity of a region's mean with the names' embeddings."""
        if not len(batch["name_N"]):
            # Multiply by zero instead of using a constant, so that every weight gets a gradient in all processes.
            zero = visual.full_VLE.sum() * 0.0
            return zero, zero.detach()
        means_NE = self.model.view_regions(visual, batch["name_boxes_N4"], batch["name_view_N"])
        table_VE = self.model.embeddings_VE
        tokens_MWE = table_VE[self.name_ids_NW].to(self.name_weight_NW.dtype)
        names_ME = torch.einsum("mw,mwe->me", self.name_weight_NW, tokens_MWE)
        logits_NM = self.model.name_logits(means_NE, names_ME).float()
        right_N = logits_NM.argmax(dim=1) == batch["name_N"]
        return F.cross_entropy(logits_NM, batch["name_N"]), right_N.float().mean()

    def _predict(self, states_BTE: Tensor, texts: PackedTexts) -> tuple[Tensor, Tensor]:
        """Cross entropy of learned tokens. Position t predicts token t + 1."""
        # No first token of a packed conversation is learned, so that none is predicted from the conversation before.
        is_target = texts.learned_BT[:, 1:]
        logits_NV = self.model.logits(states_BTE[:, :-1][is_target]).float()
        targets_N = texts.ids_BT[:, 1:][is_target]
        return F.cross_entropy(logits_NV, targets_N), (logits_NV.argmax(dim=-1) == targets_N).float().mean()

    def _locate(
        self, visual: Visual, views_BK: Tensor, states_BTE: Tensor, texts: PackedTexts, regions: RegionPrompts
    ) -> tuple[Tensor, Tensor]:
        """Box loss of the region tokens in answers."""
        is_region = texts.ids_BT == self.model.region_id
        is_answer = is_region & texts.learned_BT
        row_N, at_N = is_answer.nonzero().unbind(dim=1)
        if not len(row_N):
            zero = states_BTE.sum() * 0.0
            return zero, zero.detach()
        of_answers_R = is_answer[is_region]
        view_N = views_BK[row_N, regions.image_R[of_answers_R]]
        boxes_N4 = self.model.locate(
            visual,
            view_N,
            # The state before a region token predicts both it and its box.
            states_NE=states_BTE[row_N, at_N - 1],
            ids_NT=texts.ids_BT[row_N],
            read_NT=readable_tokens(texts, row_N, at_N, self.model.region_id),
        )
        loss_N, iou_N = box_loss(boxes_N4.float(), regions.boxes_R4[of_answers_R])
        return loss_N.mean(), iou_N.mean().detach()

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Return what `measure` measures, or the losses and the report of the validation, as means over all of it."""
        if self._measure is not None:
            return self._measure()
        assert self._validation is not None
        sums, counts = defaultdict[str, float](float), defaultdict[str, float](float)
        for loaded in self._validation():
            batch = self.prepare_batch(loaded, self.model.visual_gain.device)
            terms, report = self.losses(batch)
            targets = self.count_targets(batch)
            for name, value in (terms | report).items():
                count = targets.get(name, targets["loss"])
                if name != "loss" and count:  # a mean over nothing is not a number
                    sums[name] += float(value) * count
                    counts[name] += count
        means = {name: sums[name] / count for name, count in counts.items()}
        losses = {name: torch.tensor(mean) for name, mean in means.items() if name not in _REPORTED}
        return {**means, "loss": float(self.total(losses))}

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Return the rates of connector, table and language model in this stage."""
        table = self.model.language_model.get_input_embeddings().weight
        table_name = next(name for name, value in self.named_parameters() if value is table)
        rules = [
            (r"model\.connector\..*", self.stage.connector_rate, None),
            (r"model\.tower\..*", self.stage.tower_factor, None),
            (re.escape(table_name), self.stage.embedding_rate, 0.0),
            (r"model\.language_model\..*", self.stage.language_rate, None),
            (r"model\.(visual_gain|name_scale)", 1.0, 0.0),
        ]
        names = [name for name, _ in self.named_parameters()]
        return [
            # A rate of 0 freezes the part, which saves its gradients; the scale of a frozen rule is never used.
            ParameterRule(pattern, learning_rate_scale=rate or 1.0, weight_decay=decay, frozen=rate == 0)
            for pattern, rate, decay in rules
            if any(re.fullmatch(pattern, name) for name in names)
        ]

    def shard_units(self) -> Sequence[nn.Module]:
        """Return the language model's layers."""
        base = self.model.language_model.base_model
        return [layer for part in base.children() if isinstance(part, nn.ModuleList) for layer in part]

    def export(self, folder: Path) -> None:
        """Write the model folder."""
        assert self._export is not None
        self._export(self.model, folder)


def readable_tokens(texts: PackedTexts, row_N: Tensor, at_N: Tensor, region_id: int) -> Tensor:
    """Return which tokens [N, T] of its conversation a box may be for: text in front of it, no image or region."""
    index_T = torch.arange(texts.ids_BT.shape[1], device=texts.ids_BT.device)
    same_NT = texts.text_BT[row_N] == texts.text_BT[row_N, at_N][:, None]
    is_text_NT = (texts.ids_BT[row_N] != region_id) & (texts.ids_BT[row_N] != SLOT)
    return same_NT & (index_T < at_N[:, None]) & is_text_NT
