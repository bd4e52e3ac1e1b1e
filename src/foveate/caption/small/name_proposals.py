"""Which names are proposed for the next token: after "the" those that the text has said, else those that the image
shows or its AltText says, and the text has not said.

A decoder that sees a few thousand captions learns when to name something long before it learns what. So what is seen is
added to the scores of names directly, until it is said. After Fang et al. 2015 ("From Captions to Visual Concepts and
Back", arXiv 1411.4952, section 4), whose language model is told the detected words that were not said yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.caption.small.model import CaptionerModel, Texts


def proposals(model: CaptionerModel, prefix_BPD: Tensor, texts: Texts) -> Tensor:
    """What is added to the scores of names [N, names] at the N positions before a token that is learnt, in reading
    order (position t of `texts` proposes token t + 1)."""
    wanted_BT = texts.target_BT[:, 1:]
    number_BT = wanted_BT.flatten().cumsum(0).view_as(wanted_BT) - 1
    name_BT = texts.ids_BT - model.first_name
    named_BT = (name_BT >= 0)[:, :-1]
    text_BT = texts.text_BT[:, :-1]
    steps = torch.arange(wanted_BT.shape[1], device=text_BT.device)
    # Which name m stands before the proposed token t in the same text.
    pairs_BTT = wanted_BT[:, :, None] & named_BT[:, None] & (steps[:, None] >= steps)
    image_R, step_R, place_R = (pairs_BTT & (texts.text_BT[:, 1:, None] == text_BT[:, None])).nonzero(as_tuple=True)
    row_R, column_R = number_BT[image_R, step_R], name_BT[image_R, place_R]
    said_R = texts.target_BT[image_R, place_R]

    seen_BW = model.seen_names(prefix_BPD)
    found_NW = seen_BW[wanted_BT.nonzero(as_tuple=True)[0]]
    read_NW, open_NW = torch.zeros_like(found_NW), torch.ones_like(found_NW)
    read_NW[row_R[~said_R], column_R[~said_R]] = 1
    open_NW[row_R[said_R], column_R[said_R]] = 0
    before_N = texts.ids_BT[:, :-1][wanted_BT]
    definite_N1 = torch.isin(before_N, before_N.new_tensor(model.definite))[:, None]
    known_NW = torch.where(definite_N1, 1 - open_NW, read_NW)
    return (found_NW + model.read_gain * known_NW) * torch.where(definite_N1, 1 - open_NW, open_NW) - model.rarity


class Proposed:
    """The same while captions are written: of requests with these prompts.

    Args:
        prefix_BPD: of the requests. prompts: their token ids, in which names of AltTexts stand.
    """

    def __init__(self, model: CaptionerModel, prefix_BPD: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        self.first, self.definite = model.first_name, model.definite
        seen_BW = model.seen_names(prefix_BPD).float()
        gain = model.read_gain.float()
        read_BW = torch.zeros_like(seen_BW)
        for row, prompt in enumerate(prompts):
            read_BW[row, [token - self.first for token in prompt if token >= self.first]] = 1
        self.new_BW, self.known_BW, self._again_BW = seen_BW + gain * read_BW, torch.zeros_like(seen_BW), seen_BW + gain
        self.after, self._rarity = [False] * len(prompts), model.rarity.float()

    def add(self, logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        """Scores with what is proposed for the requests `rows`."""
        proposed = [self.known_BW[row] if self.after[row] else self.new_BW[row] for row in rows]
        logits_BV = logits_BV.float()
        logits_BV[:, self.first :] += torch.stack(proposed) - self._rarity
        return logits_BV

    def say(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Notes what was said."""
        for row, token in zip(rows, tokens, strict=True):
            self.after[row] = token in self.definite
            if token >= self.first:
                name = token - self.first
                self.new_BW[row, name] = 0
                self.known_BW[row, name] = self._again_BW[row, name]
