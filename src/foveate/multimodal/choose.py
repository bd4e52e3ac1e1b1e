"""Choose among given answers by their likelihood: which of several options a model holds most probable.

A written answer is right only if it is written as expected; a model that says "on the left" instead of "left" knows
the answer and gets no point. The likelihood of each option has no such form, and guessing is right as often as chance.

Models that were trained on multiple choices are asked for a letter, which every option has one of, however long it is.
Others give all letters next to no probability, so that their order says nothing: `decide` then scores the texts.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.packing import Tokens, pack_texts
from foveate.multimodal.answers import LANGUAGE_MODEL
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.prompts import Written
from foveate.multimodal.referring import RegionPrompts
from foveate.multimodal.views import ViewLayout, Visual
from foveate.records.conversations import IMAGE, REGION
from foveate.records.rows import clean_text


class OptionRow(NamedTuple):
    """A question with the tokens of its options.

    Attributes:
        views: numbers of its views. layout: image of each, and ids in front of it.
        written: the tokens of the question. options: of each answer, its end mark included.
        in_text: the images stand within the question, at its slots.
    """

    views: Sequence[int]
    layout: Sequence[tuple[int, Sequence[int]]]
    written: Written
    options: Sequence[Sequence[int]]
    in_text: bool = False


LETTERS = string.ascii_uppercase
# The shipped models, which were not trained on letters, give all of them together 2e-7 to 6e-5 on clips of photographs,
# and 1e-8 to 2e-4 on scenes. No model that was trained on letters has been measured: the floor is 5 times the largest.
MIN_LETTER_MASS = 1e-3
# The wording of LLaVA-1.5 (arXiv 2310.03744), with which later families were trained and are evaluated.
_LETTER_REQUEST = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Choice:
    """What was chosen from options.

    Attributes:
        probabilities: of the options, in their order; all alike where nothing here knows.
        source: what decided, as in `Answer`. refusal: why nothing was chosen; "" where an option was.
        mass: probability that the model answers with one of the options' letters at all; None where they were not
            scored: recognition decided, there are more options than letters, or the tokenizer does not tell them apart.
        scored_by: what the probabilities are of: letters, or whole texts; "" where recognition decided.
    """

    probabilities: tuple[float, ...]
    source: str = LANGUAGE_MODEL
    refusal: str = ""
    mass: float | None = None
    scored_by: Literal["letters", "texts", ""] = ""

    @property
    def index(self) -> int:
        """Number of the likeliest option, from 0."""
        return self.probabilities.index(max(self.probabilities))

    @property
    def letter(self) -> str:
        """Letter of the likeliest option, "A" for the first."""
        return list_letters(self.probabilities)[self.index]


def decide(letters: Sequence[Tensor], score_texts: Callable[[], Sequence[Tensor]]) -> Choice:
    """Choose by the letters of options, or by their texts where all letters have less than `MIN_LETTER_MASS`.

    Args:
        letters: log-likelihoods of the tokens of each option's letter; none where letters cannot be scored. Unless an
            open bracket stands in front of it, the end of the answer counts too: "A" also begins "A dog sits there".
        score_texts: returns those of each option as the whole answer to the question, its end included.
    """
    mass = None
    if letters:
        # A sum of rounded probabilities may pass 1 in its last bits.
        mass = min(float(torch.stack([log_T.double().sum() for log_T in letters]).exp().sum()), 1.0)
        if mass >= MIN_LETTER_MASS:
            return Choice(to_probabilities(letters, per_token=False), mass=mass, scored_by="letters")
    return Choice(to_probabilities(score_texts(), per_token=False), mass=mass, scored_by="texts")


def list_letters(options: Sequence[object]) -> list[str]:
    """Return the letters of options; raise UserError where the alphabet ends before them."""
    if len(options) > len(LETTERS):
        raise UserError(f"options: too many (got {len(options)}); expected at most {len(LETTERS)}")
    return list(LETTERS[: len(options)])


def are_distinct(endings: Sequence[Sequence[int]]) -> bool:
    """Return whether tokens tell letters apart: some vocabularies have one unknown token for all of them."""
    return all(endings) and len(set(map(tuple, endings))) == len(endings)


def request_letter(question: str, options: Sequence[str]) -> str:
    """Write options as lines behind a question that asks for the letter of one.

    >>> print(request_letter("Which color is it?", ["red", "blue"]))
    Which color is it?
    A. red
    B. blue
    Answer with the option's letter from the given choices directly.
    """
    # On one line each, since a line break in an option would look like the start of the next one.
    lines = [f"{letter}. {' '.join(text.split())}" for letter, text in zip(list_letters(options), options, strict=True)]
    return "\n".join([question, *lines, _LETTER_REQUEST])


def check_options(options: Sequence[str]) -> list[str]:
    """Return the cleaned options; raise UserError if there are fewer than two different ones, or one is no text."""
    texts = [clean_text(option) for option in options]
    for number, text in enumerate(texts, 1):
        # A placeholder in an option would be a token without an image or region.
        if not text or IMAGE in text or REGION in text:
            raise UserError(f"option {number}: not a text (got {text!r}); expected an answer in words")
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise UserError(f"options: expected at least two different ones (got {', '.join(map(repr, texts)) or 'none'})")
    return texts


@torch.inference_mode()
def score_options(loaded: LoadedModel, visual: Visual, rows: Sequence[OptionRow]) -> list[list[Tensor]]:
    """Return the log-likelihoods of the tokens of each option of each row.

    All options of a question are packed behind one copy of its images, unless these stand within the question, which
    each option then repeats.
    """
    model, device = loaded.model, visual.full_VLE.device
    num_options = [len(row.options) for row in rows]
    rows = [part for row in rows for part in _split_in_text(row)]
    packed = [
        [
            Tokens([*row.written.tokens.ids, *ids], [False] * len(row.written.tokens.ids) + [True] * len(ids))
            for ids in row.options
        ]
        for row in rows
    ]
    texts = pack_texts(packed, pad=loaded.tokenizer.pad)
    texts = type(texts)(*(column.to(device) for column in texts))
    views_BK = torch.full((len(rows), max(len(row.views) for row in rows)), -1, device=device)
    for index, row in enumerate(rows):
        views_BK[index, : len(row.views)] = torch.tensor(row.views, device=device)
    regions = [region for row in rows for _ in row.options for region in row.written.regions]
    points = [each for row in rows for _ in row.options for each in row.written.points]
    prompts = RegionPrompts.create(regions, points).to(device)
    layout = ViewLayout.create([row.layout for row in rows], in_text=[row.in_text for row in rows]).to(device)
    states_BTE = model.hidden_states(visual, views_BK, texts, prompts, layout)
    is_target_BT = texts.learned_BT[:, 1:]
    # Position t predicts token t + 1.
    logs_NV = model.logits(states_BTE[:, :-1][is_target_BT]).float().log_softmax(dim=-1)
    logs_N = logs_NV.gather(1, texts.ids_BT[:, 1:][is_target_BT][:, None])[:, 0]
    # Row by row and option by option, as they were packed.
    per_option = iter(logs_N.split([len(ids) for row in rows for ids in row.options]))
    return [[next(per_option) for _ in range(count)] for count in num_options]


def _split_in_text(row: OptionRow) -> list[OptionRow]:
    return [row._replace(options=[ids]) for ids in row.options] if row.in_text else [row]


def to_probabilities(logs: Sequence[Tensor], *, per_token: bool) -> tuple[float, ...]:
    """Return the share of each option in the sum of their likelihoods.

    Args:
        logs: log-likelihoods of the tokens of each option.
        per_token: compare the means over tokens instead of the sums, which favor short options. lm-evaluation-harness
            reports both, as acc and (divided by bytes) acc_norm.
    """
    scores_O = torch.stack([log_T.double().mean() if per_token else log_T.double().sum() for log_T in logs])
    return tuple(scores_O.softmax(dim=0).tolist())
