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
from foveate.caption.small.name_proposals import proposals
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
        """`caption_loss` per target token and `word_loss` per place."""
        prefix_BPD = self.model.prefix(batch["image"])
        terms: Losses = {}
        report: Report = {}
        if self.captions:
            loss, right, count = self._caption_sums(prefix_BPD, batch)
            terms["caption_loss"] = loss / count.clamp(min=1)
            report["token_accuracy"] = (right / count.clamp(min=1)).detach()
        if self.word_weight > 0 and len(self.words_W):
            loss, right, count = self._word_sums(prefix_BPD, batch)
            terms["word_loss"] = loss / count.clamp(min=1)
            report["word_accuracy"] = (right / count.clamp(min=1)).detach()
        return {**terms, "loss": self.total(terms)}, report

    def total(self, terms: Losses) -> Tensor:
        """Loss of the captions plus the weighted loss of the words."""
        loss = terms.get("caption_loss", self.words_W.new_zeros((), dtype=torch.float32))
        return loss + self.word_weight * terms["word_loss"] if "word_loss" in terms else loss

    def count_targets(self, batch: Batch) -> dict[str, float]:
        """Target tokens, and the places that have words: the two losses are means over different things."""
        tokens, places = float(batch["target_BT"][:, 1:].sum()), float(len(batch["words_RW"]))
        return {
            "loss": tokens,
            "caption_loss": tokens,
            "token_accuracy": tokens,
            "word_loss": places,
            "word_accuracy": places,
        }

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Split images with their texts and places; images with texts come first in a batch, and so in each part."""
        images, captioned = len(batch["image"]), len(batch["text_BT"])
        device = batch["image"].device
        with_text = torch.arange(captioned, device=device).tensor_split(parts)
        # The first parts get the remainder of the one and the last parts that of the other: no part is empty.
        without_text = torch.arange(captioned, images, device=device).tensor_split(parts)[::-1]
        pieces: list[Batch] = []
        for rows in zip(with_text, without_text, strict=True):
            part = torch.cat(rows)
            index = torch.full((images,), -1, device=device)
            index[part] = torch.arange(len(part), device=device)
            index_R = index[batch["place_R"]]
            inside = index_R >= 0
            piece = {name: batch[name][rows[0]] for name in Texts._fields[:-1]}
            piece |= {name: batch[name][inside] for name in ("words_RW", "cells_RP")}
            pieces.append({**batch, **piece, "image": batch["image"][part], "place_R": index_R[inside]})
        return pieces

    def _caption_sums(self, prefix_BPD: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, right guesses and number of target tokens. Groups of like length waste little on padding."""
        lengths_B = (batch["text_BT"] > 0).sum(dim=1)
        if not len(lengths_B):  # a part of a batch may hold images without texts alone
            zero = prefix_BPD.new_zeros((), dtype=torch.float32)
            return zero, zero, zero
        order = torch.argsort(lengths_B, stable=True)
        sums: list[Tensor] = []
        for group in order.chunk(self.model.recipe.length_groups):
            longest = int(lengths_B[group].max())
            columns = (batch[name][group, :longest] for name in Texts._fields[:-1])
            sums.append(self._group_sums(prefix_BPD[group], Texts(*columns, pad=self.pad)))
        loss, right, count = torch.stack(sums).sum(dim=0).unbind()
        return loss, right, count

    def _group_sums(self, prefix_BPD: Tensor, texts: Texts) -> Tensor:
        states = self.model.text_states(prefix_BPD, texts)
        # Position t predicts token t + 1: of targets those from their first token to the end mark.
        is_target = texts.target_BT[:, 1:]
        logits_NV = self.model.logits(states[:, :-1][is_target]).float()
        if self.model.names:
            added = proposals(self.model, prefix_BPD, texts).float()
            logits_NV = logits_NV + F.pad(added, (self.model.first_name, 0))
        targets_N = texts.ids_BT[:, 1:][is_target]
        loss = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        right = (logits_NV.detach().argmax(-1) == targets_N).sum()
        return torch.stack((loss, right.to(loss.dtype), torch.full_like(loss, len(targets_N))))

    def _word_sums(self, prefix_BPD: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, places whose best word is one of their own, and number of places.

        Softmax over all telling words, uniform over the place's own (as for hashtags: Mahajan et al. 2018, 2.2).
        """
        words_RW = batch["words_RW"]
        pooled_RD = torch.bmm(batch["cells_RP"][:, None].to(prefix_BPD.dtype), prefix_BPD[batch["place_R"]])[:, 0]
        present = words_RW >= 0
        logs_RV = self.model.word_scores(pooled_RD, self.words_W).float().log_softmax(dim=-1)
        picked_RW = logs_RV.gather(1, words_RW.clamp(min=0)) * present
        loss_R = -picked_RW.sum(dim=1) / present.sum(dim=1).clamp(min=1)
        right_R = (logs_RV.argmax(dim=-1, keepdim=True) == words_RW).any(dim=1)
        return loss_R.sum(), right_R.sum().to(loss_R.dtype), loss_R.new_tensor(float(len(words_RW)))

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Beside captions the seeing part learns slowly: it must not forget what the stage of words taught it. In that
        stage only the direction of the words' embeddings counts: long ones turn slowly, and get a higher rate."""
        if self.captions:
            names = ParameterRule(_SEEING, learning_rate_scale=self.seeing_rate)
        else:
            table = self.model.decoder.get_input_embeddings().weight
            name = next(name for name, value in self.named_parameters() if value is table)
            names = ParameterRule(re.escape(name), learning_rate_scale=_WORDS_RATE)
        return (ParameterRule(r"model\.(word_scale|read_gain|rarity)", weight_decay=0.0), names)

    def shard_units(self) -> Sequence[nn.Module]:
        """The decoder's layers."""
        return [layer for part in self.model.decoder.children() if isinstance(part, nn.ModuleList) for layer in part]

    def export(self, folder: Path) -> None:
        """Writes the model folder."""
        assert self._export is not None
        self._export(self.model, folder)
