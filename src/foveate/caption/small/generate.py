"""Generate captions in batches with a key-value cache, greedy or sampled.

A sentence that the caption has already ends it (`until_repeated`). A caption depends on its task alone, not on those in
its batch: draws come from its own seed, and masked padding changes no more than the last bits of a logit (a test holds
that texts are equal).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.caption.small.folder import SmallCaptioner
from foveate.caption.small.name_proposals import Proposed
from foveate.core import seeds
from foveate.language.generate import cache_argument, draw_token, until_repeated

MAX_TOKENS = 320  # of one caption by default: more than any dense target has
BATCH = 32


@dataclass(frozen=True, slots=True)
class CaptionTask:
    """One caption to generate.

    Attributes:
        kind: caption format.
        alt: AltText for afc, else "".
        length: length class (`tokens.EDGES`); None for the captioner's default.
        temperature: 0 is greedy.
        name: goes into the seed of the draws.
    """

    kind: str
    alt: str = ""
    length: int | None = None
    max_tokens: int = MAX_TOKENS
    temperature: float = 0.0
    seed: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class GeneratedCaption:
    """A caption.

    Attributes:
        finished: it reached its end token.
        score: mean log-probability of its tokens.
    """

    text: str
    finished: bool
    tokens_in: int
    tokens_out: int
    score: float


@torch.inference_mode()
def generate_captions(
    captioner: SmallCaptioner, prefix_BPD: Tensor, tasks: Sequence[CaptionTask], *, batch: int = BATCH
) -> list[GeneratedCaption]:
    """Generate one caption per task, in the same order.

    Args:
        prefix_BPD: of `CaptionerModel.prefix`, one row per task.
        batch: maximum number of captions generated together.
    """
    prompts = [_build_prompt(captioner, task) for task in tasks]
    # Similar prompts together: less padding, and one format's captions end at about the same time.
    order = sorted(range(len(tasks)), key=lambda index: (len(prompts[index]), tasks[index].kind, index))
    results: list[GeneratedCaption | None] = [None] * len(tasks)
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        captions = _generate_batch(
            captioner, prefix_BPD[indices], [prompts[index] for index in indices], [tasks[index] for index in indices]
        )
        for index, caption in zip(indices, captions, strict=True):
            results[index] = caption
    return [caption for caption in results if caption is not None]


def _build_prompt(captioner: SmallCaptioner, task: CaptionTask) -> list[int]:
    length = captioner.lengths[task.kind] if task.length is None else task.length
    alt = None
    if task.kind == "afc":
        alt = captioner.tokens.encode([captioner.tokens.normalize_alt(task.alt)])[0][
            : captioner.model.recipe.max_alt_tokens
        ]
    return captioner.tokens.prompt(task.kind, length=length, alt=alt)


class _Decoding:
    """State of the captions of a batch while they are generated."""

    def __init__(self, tasks: Sequence[CaptionTask], room: int, stop: int) -> None:
        self.tasks, self.stop = list(tasks), stop
        self.draws = [seeds.generator("caption", task.seed, task.name, task.kind) for task in tasks]
        self.ids: list[list[int]] = [[] for _ in tasks]
        self.scores = [0.0] * len(tasks)
        self.limits = [max(1, min(task.max_tokens, room)) for task in tasks]
        self.finished = [False] * len(tasks)

    def step(self, active: Sequence[int], logits_BV: Tensor, end: int) -> tuple[Tensor, list[bool]]:
        """Choose the next token of the captions `active`; return tokens, and which of them go on."""
        logs_BV = logits_BV.float().log_softmax(dim=-1)
        best_B = logs_BV.argmax(dim=-1)
        token_of = best_B.tolist()
        for row, index in enumerate(active):
            if self.tasks[index].temperature > 0:
                logits_V, number = logits_BV[row].double().cpu().numpy(), self.draws[index].random()
                token_of[row] = draw_token(logits_V, number, temperature=self.tasks[index].temperature)
        next_B = torch.tensor(token_of, device=logits_BV.device)
        scores = logs_BV.gather(1, next_B[:, None])[:, 0].tolist()
        goes_on = []
        for index, token, score in zip(active, token_of, scores, strict=True):
            self.scores[index] += score
            self.ids[index].append(token)
            length = until_repeated(self.ids[index], {self.stop}) if token == self.stop else len(self.ids[index])
            again = length < len(self.ids[index])
            if again:
                self.ids[index] = [*self.ids[index][:length], end]
            self.finished[index] = again or token == end
            goes_on.append(not self.finished[index] and len(self.ids[index]) < self.limits[index])
        return next_B, goes_on


def _generate_batch(
    captioner: SmallCaptioner, prefix_BPD: Tensor, prompts: Sequence[Sequence[int]], tasks: Sequence[CaptionTask]
) -> list[GeneratedCaption]:
    from transformers import DynamicCache

    model, device = captioner.model, prefix_BPD.device
    ids_BT, keep_BL = _left_padded(prompts, model.prefix_length, captioner.tokens.pad)
    embeddings_BLD, keep_BL = _join_prefix(
        model, prefix_BPD, ids_BT.to(device), keep_BL.to(device), captioner.tokens.pad
    )
    ragged = not bool(keep_BL.all())
    positions_BL = (keep_BL.cumsum(dim=1) - 1).clamp(min=0)
    room = model.longest - embeddings_BLD.shape[1]
    decoding, cache = _Decoding(tasks, room, captioner.tokens.stop), DynamicCache(config=model.decoder.config)
    proposed = Proposed(model, prefix_BPD, prompts)
    active = list(range(len(tasks)))
    cached = cache_argument(model.decoder)
    inputs: dict[str, Any] = {"inputs_embeds": embeddings_BLD, "position_ids": positions_BL}
    next_position_B = positions_BL[:, -1] + 1
    while True:
        output = model.decoder(**inputs, attention_mask=keep_BL if ragged else None, use_cache=True, **{cached: cache})
        logits_BV = proposed.add(model.logits(output.last_hidden_state[:, -1]), active)
        next_B, goes_on = decoding.step(active, logits_BV, captioner.tokens.end)
        proposed.say(active, next_B.tolist())
        if not any(goes_on):
            break
        remaining = [row for row, on in enumerate(goes_on) if on]
        active_left = [active[row] for row in remaining]
        if len(remaining) < len(active):
            # Finished captions leave the batch: nothing is computed for them any more.
            index = torch.tensor(remaining, device=device)
            cache.batch_select_indices(index)
            keep_BL, next_B, next_position_B = keep_BL[index], next_B[index], next_position_B[index]
            active = active_left
        if ragged:
            keep_BL = torch.cat([keep_BL, keep_BL.new_ones((len(active), 1))], dim=1)
        inputs = {"inputs_embeds": model.embed(next_B)[:, None], "position_ids": next_position_B[:, None]}
        next_position_B = next_position_B + 1
    return [
        GeneratedCaption(
            text=captioner.tokens.decode(ids[:-1] if done else ids),
            finished=done,
            tokens_in=len(prompt) + model.prefix_length,
            tokens_out=len(ids),
            score=score / len(ids),
        )
        for ids, done, prompt, score in zip(decoding.ids, decoding.finished, prompts, decoding.scores, strict=True)
    ]


def _left_padded(prompts: Sequence[Sequence[int]], prefix: int, pad: int) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left; return ids [B, T], and a mask [B, P + T] with the prefix right before each prompt."""
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    keep_BL = torch.zeros((len(prompts), prefix + longest), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        keep_BL[row, longest - len(prompt) :] = 1
    return ids_BT, keep_BL


def _join_prefix(model: Any, prefix_BPD: Tensor, ids_BT: Tensor, keep_BL: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Concatenate prefix and prompt of each row, with all padding on the left: [B, P + T, D]."""
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
