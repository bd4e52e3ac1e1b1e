"""The training task: next-token loss on the target tokens alone, and the telling words of each place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.caption.small.model import CaptionerModel, Texts
from foveate.caption.small.naming import proposals
from foveate.training.distributed import sum_with_grad
from foveate.training.optimizer import ParameterRule
from foveate.training.task import Batch, Losses, Report, Task

_WORDS_RATE = 3.0
_SEEING = r"model\.(image_encoder|fold_in|prefix_ln).*"


class CaptionerTask(Task):
    """A `CaptionerModel` and its losses in one stage.

    Args:
        words_W: token ids of the telling words. word_weight: of their loss. captions: False in stage 0, where the
            decoder takes no part.
        seeing_rate: factor of the learning rate of encoder head and prefix beside captions.
        pad: id of the padding token.
        export: what writes the model folder.
    """

    # The head of an encoder's joint embedding, and the decoder in stage 0, take no part.
    find_unused_parameters: ClassVar[bool] = True

    def __init__(
        self,
        model: CaptionerModel,
        *,
        words_W: Tensor,
        word_weight: float,
        pad: int = 0,
        captions: bool = True,
        seeing_rate: float = 1.0,
        export: Callable[[CaptionerModel, Path], object] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.word_weight, self.captions, self._export = word_weight, captions, export
        self.seeing_rate, self.pad = seeing_rate, pad
        self.register_buffer("words_W", words_W, persistent=False)

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """`caption_loss` per target token and `word_loss` per place, each over the batch of all ranks."""
        prefix_BPD = self.model.prefix(batch["image"])
        found: Losses = {}
        report: Report = {}
        if self.captions:
            loss, right, count = self._caption_sums(prefix_BPD, batch)
            total = sum_with_grad(count).clamp(min=1)
            found["caption_loss"] = sum_with_grad(loss) / total
            report["token_accuracy"] = (sum_with_grad(right) / total).detach()
        if self.word_weight > 0 and len(self.words_W):
            loss, right, count = self._word_sums(prefix_BPD, batch)
            total = sum_with_grad(count).clamp(min=1)
            found["word_loss"] = sum_with_grad(loss) / total
            report["word_accuracy"] = (sum_with_grad(right) / total).detach()
        loss = found.get("caption_loss", prefix_BPD.new_zeros(()))
        if "word_loss" in found:
            loss = loss + self.word_weight * found["word_loss"]
        return {**found, "loss": loss}, report

    def _caption_sums(self, prefix_BPD: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, right guesses and number of target tokens. Groups of like length waste little on padding."""
        lengths_B = (batch["text_BT"] > 0).sum(dim=1)
        order = torch.argsort(lengths_B, stable=True)
        sums: list[Tensor] = []
        for chosen in order.chunk(self.model.recipe.length_groups):
            longest = int(lengths_B[chosen].max())
            columns = (batch[name][chosen, :longest] for name in Texts._fields[:-1])
            sums.append(self._group_sums(prefix_BPD[chosen], Texts(*columns, pad=self.pad)))
        loss, right, count = torch.stack(sums).sum(dim=0).unbind()
        return loss, right, count

    def _group_sums(self, prefix_BPD: Tensor, texts: Texts) -> Tensor:
        states = self.model.text_states(prefix_BPD, texts)
        # Position t predicts token t + 1: of targets those from their first token to the end mark.
        wanted = texts.target_BT[:, 1:]
        logits_NV = self.model.logits(states[:, :-1][wanted]).float()
        if self.model.names:
            added = proposals(self.model, prefix_BPD, texts).float()
            logits_NV = logits_NV + F.pad(added, (self.model.first_name, 0))
        targets_N = texts.ids_BT[:, 1:][wanted]
        loss = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        right = (logits_NV.detach().argmax(-1) == targets_N).sum()
        return torch.stack((loss, right.to(loss.dtype), torch.full_like(loss, len(targets_N))))

    def _word_sums(self, prefix_BPD: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, places whose best word is one of their own, and number of places.

        Softmax over all telling words, uniform over the place's own (as for hashtags: Mahajan et al. 2018, 2.2).
        """
        words_RW = batch["words_RW"]
        pooled_RD = torch.bmm(batch["cells_RP"][:, None].to(prefix_BPD.dtype), prefix_BPD[batch["place_R"]])[:, 0]
        shown = words_RW >= 0
        logs_RV = self.model.word_scores(pooled_RD, self.words_W).float().log_softmax(dim=-1)
        picked_RW = logs_RV.gather(1, words_RW.clamp(min=0)) * shown
        loss_R = -picked_RW.sum(dim=1) / shown.sum(dim=1).clamp(min=1)
        right_R = (logs_RV.argmax(dim=-1, keepdim=True) == words_RW).any(dim=1)
        return loss_R.sum(), right_R.sum().to(loss_R.dtype), loss_R.new_tensor(float(len(words_RW)))

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Beside captions the seeing part learns slowly: it must not forget what the stage of words taught it. In that
        stage only the direction of the words' embeddings counts: long ones turn slowly, and get a higher rate."""
        if self.captions:
            own = ParameterRule(_SEEING, learning_rate_scale=self.seeing_rate)
        else:
            table = self.model.decoder.get_input_embeddings().weight
            name = next(name for name, value in self.named_parameters() if value is table)
            own = ParameterRule(re.escape(name), learning_rate_scale=_WORDS_RATE)
        return (ParameterRule(r"model\.(word_scale|read_gain|rarity)", weight_decay=0.0), own)

    def shard_units(self) -> Sequence[nn.Module]:
        """The decoder's layers."""
        return [layer for part in self.model.decoder.children() if isinstance(part, nn.ModuleList) for layer in part]

    def export(self, folder: Path) -> None:
        """Writes the model folder."""
        assert self._export is not None
        self._export(self.model, folder)
