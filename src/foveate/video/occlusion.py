"""Attribute an answer to frames by occlusion: how much less likely it is when a frame's tokens are left out.

What lies behind a frame that is left out moves up, which changes likelihoods too. The control measures that: the same
answer behind the question with its words shuffled.

Source: leave-one-out attribution, after Zeiler and Fergus (arXiv 1311.2901), Section 4.2, who cover parts of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.language.generate import score_tokens
from foveate.multimodal.choose import Choice
from foveate.video.layout import Layout
from foveate.video.splice import PromptIds, splice
from foveate.video.viewing import VideoAnswer, Viewing

_BATCH = 8


class Occlusion(NamedTuple):
    """Occlusion of each frame that is read, in the order of `Viewing.frames`.

    Attributes:
        drops: log-likelihood (nats) of the answer with all frames, minus that without the frame. Above 0: the answer
            depends on the frame; below 0: the frame speaks against it.
        control: drops of the same answer behind the shuffled question; empty where it has no two different words.
    """

    drops: tuple[float, ...]
    control: tuple[float, ...]


def measure_occlusion(
    viewing: Viewing,
    question: str,
    answer: VideoAnswer | Choice,
    options: Sequence[str] = (),
    *,
    batch: int = _BATCH,
) -> Occlusion:
    """Measure how the likelihood of an answer changes when each frame is left out.

    Costs 2 (T + 1) readings of clip and question for T frames; the clip is not encoded anew. A frame that was
    sampled several times is left out as a whole.

    Args:
        answer: of `ask`, or of `choose`, whose letter or text is then scored. options: that the question had.
        batch: maximum number of readings together.

    Raises:
        UserError: tokens of the strategy hold several frames, the answer is empty, or does not fit the context.

    Example:
        >>> viewing = watch("mini", [image_file] * 3, how=parse_how("slowfast", slow=2, fast="1x1"), device="cpu")
        >>> answer = viewing.ask("What is in the image?")
        >>> len(measure_occlusion(viewing, "What is in the image?", answer).drops) == len(viewing.frames)
        True
    """
    rows = list(group_rows(viewing.layout).items())
    if viewing.network.place is not None or not viewing.network.reuses:
        raise UserError(
            f"occlusion: {viewing.network.name} has positions of a grid, or a prompt that sees itself, which "
            "change with a frame that is left out; expected a model with positions of a text"
        )
    indices = [viewing.clip.indices[frame] for frame, _ in rows]
    rows_of_index: dict[int, list[int]] = {}
    for index, (_, positions) in zip(indices, rows, strict=True):
        rows_of_index.setdefault(index, []).extend(positions)

    def measure(text: str) -> tuple[float, ...]:
        prompt, ids = _encode(viewing, text, answer, options)
        # The first leaves nothing out: every drop is measured against it.
        scores = _score(viewing, prompt, ids, [[], *rows_of_index.values()], batch)
        drops = dict(zip(rows_of_index, (scores[0] - score for score in scores[1:]), strict=True))
        return tuple(drops[index] for index in indices)

    shuffled = shuffle_words(question)
    return Occlusion(measure(question), () if shuffled is None else measure(shuffled))


def group_rows(layout: Layout) -> dict[int, list[int]]:
    """List the rows of a video that come from each sampled frame, in the order of time.

    Raises:
        UserError: a row comes from several frames.
    """
    rows: dict[int, list[int]] = {frame: [] for frame in layout.frames}
    start = 0
    for block, count in zip(layout.blocks, layout.block_rows, strict=True):
        if block.images and (block.bins or not all(layout.images[image].is_frame for image in block.images)):
            raise UserError(
                f"occlusion: tokens of path '{block.path}' hold several frames, none of which can be left out; "
                "expected a strategy that pools within frames, such as slowfast"
            )
        for number, image in enumerate(block.images):
            size = count // len(block.images)
            rows[layout.images[image].frames[0]] += range(start + number * size, start + (number + 1) * size)
        start += count
    return rows


def shuffle_words(question: str) -> str | None:
    """Return a question with its words in another order, the same in every run; None where there is no other."""
    texts = question.split()
    if len(set(texts)) < 2:
        return None
    order = seeds.generator("occlusion", question).permutation(len(texts)).tolist()
    shuffled = [texts[position] for position in order]
    # The drawn order may be the old one.
    return " ".join(shuffled if shuffled != texts else texts[1:] + texts[:1])


def _encode(
    viewing: Viewing, question: str, answer: VideoAnswer | Choice, options: Sequence[str]
) -> tuple[PromptIds, Sequence[int]]:
    """Return the ids of a prompt and of the answer that is scored behind it."""
    if isinstance(answer, Choice):
        if answer.scored_by == "letters":
            prompt, endings = viewing.encode_letters(question, options)
        else:
            prompt, endings = viewing.encode_texts(question, options)
        return prompt, endings[answer.index]
    if not answer.ids:
        raise UserError("answer: empty, so that no frame can be attributed; expected at least one token")
    return viewing.encode_question(question, options, len(answer.ids)), answer.ids


def _score(
    viewing: Viewing, prompt: PromptIds, ids: Sequence[int], left_out: Sequence[Sequence[int]], batch: int
) -> list[float]:
    """Return the log-likelihood of ids behind a prompt for each list of rows that are left out of its video."""
    # Sequences of one length need no padding, which would move the last bits of their scores.
    by_length: dict[int, list[int]] = {}
    for number, rows in enumerate(left_out):
        by_length.setdefault(len(rows), []).append(number)
    scores = [0.0] * len(left_out)
    for group in by_length.values():
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            prompts = [_join(viewing, prompt, left_out[row]) for row in part]
            # Drops are small differences of large sums.
            sums_B = score_tokens(viewing.network.language, torch.stack(prompts), ids).double().sum(dim=1)
            for number, total in zip(part, sums_B.tolist(), strict=True):
                scores[number] = total
    return scores


def _join(viewing: Viewing, prompt: PromptIds, left_out: Sequence[int]) -> Tensor:
    joined = splice(viewing.network, prompt, _drop_rows(viewing.video_LD, left_out))
    assert isinstance(joined, Tensor), "models with positions of their own are refused"
    return joined


def _drop_rows(video_LD: Tensor, rows: Sequence[int]) -> Tensor:
    mask_L = torch.ones(len(video_LD), dtype=torch.bool, device=video_LD.device)
    mask_L[list(rows)] = False
    return video_LD[mask_L]
