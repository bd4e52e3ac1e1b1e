"""Captions by the decoder: batches with a cache of keys and values, greedy or sampled, each request with its own seed.

A sentence that a caption has already ends it (`until_repeated`). A caption depends on its request alone, not on those
that share its batch: the draws come from its own seed, and masked padding changes nothing but the last bits of a logit
(a test holds that texts are equal).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.caption.small.folder import SmallCaptioner
from foveate.caption.small.name_proposals import Proposed
from foveate.core import seeds

MOST_TOKENS = 320  # of one caption, where nothing else is said
BATCH = 32


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of one image. kind: of the caption formats. alt: AltText that is shown (afc), else "". length: a
    length class (`tokens.EDGES`), None for the captioner's own. temperature 0 is greedy. name: goes into the draws."""

    kind: str
    alt: str = ""
    length: int | None = None
    max_tokens: int = MOST_TOKENS
    temperature: float = 0.0
    seed: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """text: the caption. finished: it came to its end mark. score: mean log-probability of its tokens."""

    text: str
    finished: bool
    tokens_in: int
    tokens_out: int
    score: float


@torch.inference_mode()
def write(captioner: SmallCaptioner, prefix_BPD: Tensor, asks: Sequence[Ask], *, batch: int = BATCH) -> list[Written]:
    """Captions of B images, one for each `asks[b]`, in the same order.

    Args:
        prefix_BPD: of `CaptionerModel.prefix`, one row per request.
        batch: most requests that are written together; those of like prompts go together.
    """
    prompts = [_prompt(captioner, ask) for ask in asks]
    order = sorted(range(len(asks)), key=lambda place: (len(prompts[place]), asks[place].kind, place))
    results: list[Written | None] = [None] * len(asks)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        written = _write_batch(
            captioner, prefix_BPD[chosen], [prompts[place] for place in chosen], [asks[place] for place in chosen]
        )
        for place, one in zip(chosen, written, strict=True):
            results[place] = one
    return [one for one in results if one is not None]


def _prompt(captioner: SmallCaptioner, ask: Ask) -> list[int]:
    length = captioner.lengths[ask.kind] if ask.length is None else ask.length
    shown = None
    if ask.kind == "afc":
        shown = captioner.tokens.encode([captioner.tokens.shown(ask.alt)])[0][: captioner.model.recipe.longest_alt]
    return captioner.tokens.prompt(ask.kind, length=length, alt=shown)


def until_repeated(ids: Sequence[int], stop: int) -> int:
    """How many tokens stand before the first sentence that was there before; all where none was. A caption that begins
    to say a sentence again ends there.

    >>> until_repeated([5, 9, 6, 9, 5, 9], stop=9)
    4
    """
    known, start = set[tuple[int, ...]](), 0
    for place, token in enumerate(ids):
        if token == stop:
            sentence = tuple(ids[start : place + 1])
            if sentence in known:
                return start
            known.add(sentence)
            start = place + 1
    return len(ids)


class _Writing:
    """The requests of a batch that are still being written."""

    def __init__(self, asks: Sequence[Ask], room: int, stop: int) -> None:
        self.asks, self.stop = list(asks), stop
        self.draws = [seeds.generator("caption", ask.seed, ask.name, ask.kind) for ask in asks]
        self.ids: list[list[int]] = [[] for _ in asks]
        self.scores = [0.0] * len(asks)
        self.limits = [max(1, min(ask.max_tokens, room)) for ask in asks]
        self.finished = [False] * len(asks)

    def take(self, places: Sequence[int], logits_BV: Tensor, end: int) -> tuple[Tensor, list[bool]]:
        """The next token of each of the requests `places`, and which of them go on."""
        logs_BV = logits_BV.float().log_softmax(dim=-1)
        best_B = logs_BV.argmax(dim=-1)
        chosen = best_B.tolist()
        for number, place in enumerate(places):
            if self.asks[place].temperature > 0:
                chosen[number] = self._sampled(logits_BV[number], place)
        next_B = torch.tensor(chosen, device=logits_BV.device)
        scores = logs_BV.gather(1, next_B[:, None])[:, 0].tolist()
        goes_on = []
        for place, token, score in zip(places, chosen, scores, strict=True):
            self.scores[place] += score
            self.ids[place].append(token)
            again = token == self.stop and (kept := until_repeated(self.ids[place], self.stop)) < len(self.ids[place])
            if again:
                self.ids[place] = [*self.ids[place][:kept], end]
            self.finished[place] = again or token == end
            goes_on.append(not self.finished[place] and len(self.ids[place]) < self.limits[place])
        return next_B, goes_on

    def _sampled(self, logits_V: Tensor, place: int) -> int:
        """A draw by the inverse of the distribution function, in float64, with one number of its own generator."""
        scaled_V = logits_V.double().cpu().numpy() / self.asks[place].temperature
        shares_V = np.cumsum(np.exp(scaled_V - scaled_V.max()))
        return int(np.searchsorted(shares_V, self.draws[place].random() * shares_V[-1], side="right"))


def _write_batch(
    captioner: SmallCaptioner, prefix_BPD: Tensor, prompts: Sequence[Sequence[int]], asks: Sequence[Ask]
) -> list[Written]:
    from transformers import DynamicCache

    model, device = captioner.model, prefix_BPD.device
    ids_BT, keep_BL = _left_padded(prompts, model.prefix_length, captioner.tokens.pad)
    embeddings_BLD, keep_BL = _joined(model, prefix_BPD, ids_BT.to(device), keep_BL.to(device), captioner.tokens.pad)
    ragged = not bool(keep_BL.all())
    positions_BL = (keep_BL.cumsum(dim=1) - 1).clamp(min=0)
    room = model.longest - embeddings_BLD.shape[1]
    writing, cache = _Writing(asks, room, captioner.tokens.stop), DynamicCache(config=model.decoder.config)
    proposed = Proposed(model, prefix_BPD, prompts)
    places = list(range(len(asks)))
    cached = _cache_argument(model.decoder)
    inputs: dict[str, Any] = {"inputs_embeds": embeddings_BLD, "position_ids": positions_BL}
    next_position_B = positions_BL[:, -1] + 1
    while True:
        found = model.decoder(**inputs, attention_mask=keep_BL if ragged else None, use_cache=True, **{cached: cache})
        logits_BV = proposed.add(model.logits(found.last_hidden_state[:, -1]), places)
        next_B, goes_on = writing.take(places, logits_BV, captioner.tokens.end)
        proposed.say(places, next_B.tolist())
        if not any(goes_on):
            break
        left = [number for number, on in enumerate(goes_on) if on]
        places_left = [places[number] for number in left]
        if len(left) < len(places):
            # Finished rows are cut out: nothing is computed for them any more.
            index = torch.tensor(left, device=device)
            cache.batch_select_indices(index)
            keep_BL, next_B, next_position_B = keep_BL[index], next_B[index], next_position_B[index]
            places = places_left
        if ragged:
            keep_BL = torch.cat([keep_BL, keep_BL.new_ones((len(places), 1))], dim=1)
        inputs = {"inputs_embeds": model.embed(next_B)[:, None], "position_ids": next_position_B[:, None]}
        next_position_B = next_position_B + 1
    return [
        Written(
            text=captioner.tokens.decode(ids[:-1] if done else ids),
            finished=done,
            tokens_in=len(prompt) + model.prefix_length,
            tokens_out=len(ids),
            score=score / len(ids),
        )
        for ids, done, prompt, score in zip(writing.ids, writing.finished, prompts, writing.scores, strict=True)
    ]


def _cache_argument(decoder: Any) -> str:
    """What the decoder calls its cache: transformers renamed it within its fifth version."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def _left_padded(prompts: Sequence[Sequence[int]], prefix: int, pad: int) -> tuple[Tensor, Tensor]:
    """Prompts [B, T] filled up on the left, and which positions [B, P + T] are real, the prefix being just before each
    prompt."""
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    keep_BL = torch.zeros((len(prompts), prefix + longest), dtype=torch.int64)
    for place, prompt in enumerate(prompts):
        ids_BT[place, longest - len(prompt) :] = torch.tensor(list(prompt))
        keep_BL[place, longest - len(prompt) :] = 1
    return ids_BT, keep_BL


def _joined(model: Any, prefix_BPD: Tensor, ids_BT: Tensor, keep_BL: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Prefix and prompt of each row side by side, all padding on the left: [B, P + T, D]."""
    before_BT = F.pad(ids_BT[:, :-1], (1, 0), value=pad)
    embedded_BTD = model.embed_prompt(ids_BT, before_BT, pad)
    if bool(keep_BL.all()):
        return torch.cat([prefix_BPD, embedded_BTD], dim=1), keep_BL
    batch, prefix, width = prefix_BPD.shape
    joined = embedded_BTD.new_zeros((batch, keep_BL.shape[1], width))
    for row in range(batch):
        first = int(keep_BL.shape[1] - keep_BL[row].sum())
        joined[row, first : first + prefix] = prefix_BPD[row]
        joined[row, first + prefix :] = embedded_BTD[row, first:]
    return joined, keep_BL
