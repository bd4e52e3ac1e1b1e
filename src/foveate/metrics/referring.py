"""Scores of referring and grounding: RefCOCO, Flickr30k Entities, LVIS, POPE and Ferret-Bench.

Answers write boxes as integers 0..999. Each evaluator has the mode "official", which repeats the code that published
numbers come from, flaws included, and the mode "corrected"; a score means something only with the name of its mode.
Of every miss a reason is given, one of `MISSES`.

Source: Ferret (arXiv 2310.07704); behavior of the evaluators at apple/ml-ferret 3c9e5c9.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose
from foveate.metrics.grounding import IOU_THRESHOLD
from foveate.metrics.text_answers import parse_pope, parse_yes_no, yes_no_metrics
from foveate.records.box_text import AnswerBoxes, Parser, fold_phrase, parse_answers
from foveate.records.boxes import PixelBox, as_boxes, intersection_over_union

Mode = Literal["official", "corrected"]
MISSES = ("no box", "wrong box", "wrong phrase", "unparsable")
RECALL_RANKS = (1, 5, 10, -1)
_PARSERS: dict[str, Parser] = {"official": "official", "corrected": "robust"}


def _parse(answers: Sequence[str], sizes_N2: NDArray[np.int64], mode: Mode, *, phrases: bool) -> AnswerBoxes:
    parsed = parse_answers(answers, sizes_N2, parser=_PARSERS[choose(mode, tuple(_PARSERS), "mode")], phrases=phrases)
    if mode == "corrected":
        # The official script clips the boxes of the truth and throws the result away; predictions are never clipped.
        limits_B4 = np.tile(sizes_N2[parsed.rows_B], 2)
        np.clip(parsed.boxes_B4, 0, limits_B4, out=parsed.boxes_B4)
    return parsed


def _check_lengths(answers: Sequence[str], **others: Sequence[object] | NDArray) -> None:
    for name, values in others.items():
        if len(values) != len(answers):
            raise UserError(f"{name}: {len(values)} for {len(answers)} answers; expected one for each")


@dataclass(frozen=True)
class BoxScores:
    """Hits of N answers, each with one true box.

    Args:
        first_N: k = 1. mean_N: the mean of all boxes of the answer. best_N: any of them ("upper bound").
        misses: "" for a hit at k = 1, else one of `MISSES`.
        first_ious_N: IoU of the box of k = 1; 0 without a box.
    """

    first_N: NDArray[np.bool_]
    mean_N: NDArray[np.bool_]
    best_N: NDArray[np.bool_]
    misses: tuple[str, ...]
    first_ious_N: NDArray[np.float64]

    def summarize(self, groups: Sequence[Hashable] | None = None) -> dict[Hashable, dict[str, float]]:
        """Return the shares of hits by group, a data set or split; without groups, under ""."""
        names = list(groups) if groups is not None else [""] * len(self.first_N)
        rows: dict[Hashable, list[int]] = defaultdict(list)
        for row, name in enumerate(names):
            rows[name].append(row)
        hits = {"k=1": self.first_N, "mean": self.mean_N, "upper bound": self.best_N}
        return {name: {key: float(hits_N[at].mean()) for key, hits_N in hits.items()} for name, at in rows.items()}


def score_boxes(
    answers: Sequence[str],
    true_N4: ArrayLike,
    sizes_N2: ArrayLike,
    phrases: Sequence[str],
    *,
    mode: Mode = "corrected",
) -> BoxScores:
    """Score answers with the box of one phrase each, as RefCOCO, RefCOCO+ and RefCOCOg do.

    Official: k = 1 takes the first box of the answer, whatever it belongs to; an answer with anything but integers in
    brackets has no box. (Two numbers stop the official evaluator; here they count as no box.) Corrected: k = 1 takes
    the first box of the phrase that was asked for, and only without one the first box; bins decode to their centers,
    corners are put in order, and boxes are clipped to the image.

    Args:
        true_N4: corners in pixels.
        sizes_N2: width and height of the image in pixels.
        phrases: that were asked for.

    Raises:
        UserError: different numbers of answers, boxes, sizes and phrases.

    Example:
        >>> scores = score_boxes(["The dog [0, 0, 499, 999]."], [[0, 0, 50, 100]], [[100, 100]], ["the dog"])
        >>> scores.summarize()[""]
        {'k=1': 1.0, 'mean': 1.0, 'upper bound': 1.0}
    """
    true, sizes = as_boxes(true_N4), np.asarray(sizes_N2, dtype=np.int64).reshape(-1, 2)
    _check_lengths(answers, boxes=true, sizes=sizes, phrases=phrases)
    parsed = _parse(answers, sizes, mode, phrases=mode == "corrected")
    rows, counts = parsed.rows_B, parsed.counts_N
    has_box = counts > 0
    ious_B = intersection_over_union(parsed.boxes_B4, true[rows])
    best_N = np.zeros(len(true))
    # `at`, because plain indexing would keep only the last of several boxes of an answer.
    np.maximum.at(best_N, rows, ious_B)
    firsts_N = np.cumsum(counts) - counts
    mean_N = np.zeros(len(true), bool)
    if has_box.any():
        # The official "mean" is the IoU of the averaged box, not the mean of the IoUs.
        sums = np.stack([np.bincount(rows, parsed.boxes_B4[:, axis], len(true)) for axis in range(4)], axis=1)
        means = sums[has_box] / counts[has_box, None]
        mean_N[has_box] = intersection_over_union(means, true[has_box]) >= IOU_THRESHOLD
    if mode == "corrected":
        for row in np.flatnonzero(counts > 1).tolist():
            phrase = fold_phrase(phrases[row])
            span = range(firsts_N[row], firsts_N[row] + counts[row])
            firsts_N[row] = next((i for i in span if fold_phrase(parsed.phrases[i]) == phrase), firsts_N[row])
    first_ious_N = np.zeros(len(true))
    first_ious_N[has_box] = ious_B[firsts_N[has_box]]
    first_N = first_ious_N >= IOU_THRESHOLD
    is_best_N = best_N >= IOU_THRESHOLD
    misses = [""] * len(true)
    for row in np.flatnonzero(~first_N).tolist():
        misses[row] = _explain_miss(parsed, row, bool(has_box[row]), bool(is_best_N[row]))
    return BoxScores(first_N, mean_N, is_best_N, tuple(misses), first_ious_N)


def _explain_miss(parsed: AnswerBoxes, row: int, has_box: bool, elsewhere: bool) -> str:
    if elsewhere:
        return "wrong phrase"
    if has_box:
        return "wrong box"
    return "unparsable" if row in parsed.problems else "no box"


@dataclass(frozen=True, slots=True)
class TruePhrase:
    """A phrase of a caption with its true boxes in pixels, and its categories ("people", "clothing", ...)."""

    phrase: str
    boxes: tuple[PixelBox, ...]
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhraseScores:
    """Hits of P phrases, in the order of captions and phrases.

    Args:
        ranks_P: rank, from 1, of the first box that hits; 0 if none does.
        categories: of each phrase.
        misses: "" for a hit at rank 1, else one of `MISSES`.
    """

    ranks_P: NDArray[np.int64]
    categories: tuple[tuple[str, ...], ...]
    misses: tuple[str, ...]

    def recall(self) -> dict[int, dict[str, float]]:
        """Return the recall at 1, 5, 10 and of all boxes (-1), for "all" and each category."""
        # Without phrases there is no "all": it would be a mean of nothing.
        members: dict[str, list[int]] = {"all": list(range(len(self.ranks_P)))} if len(self.ranks_P) else {}
        for position, names in enumerate(self.categories):
            for name in names:
                members.setdefault(name, []).append(position)
        hits = {k: (self.ranks_P > 0) & ((self.ranks_P <= k) | (k == -1)) for k in RECALL_RANKS}
        return {k: {name: float(hits_P[at].mean()) for name, at in members.items()} for k, hits_P in hits.items()}


def score_phrases(
    answers: Sequence[str],
    captions: Sequence[Sequence[TruePhrase]],
    sizes_N2: ArrayLike,
    *,
    merged: bool = True,
    mode: Mode = "corrected",
) -> PhraseScores:
    """Score grounded captions, as Flickr30k Entities does: a phrase has the boxes of equal phrases of the answer.

    Corrected: also those directly behind it, so that answers may be whole sentences, "A man [..] in a blue shirt [..]".

    Args:
        answers: one for each caption.
        captions: the phrases of each that have a true box.
        sizes_N2: width and height of the image in pixels.
        merged: a phrase with several true boxes has the box around them; else a hit of any of them counts.

    Raises:
        UserError: different numbers of answers, captions and sizes, or a phrase without a true box.
    """
    sizes = np.asarray(sizes_N2, dtype=np.int64).reshape(-1, 2)
    _check_lengths(answers, captions=captions, sizes=sizes)
    parsed = _parse(answers, sizes, mode, phrases=True)
    entries = [entry for caption in captions for entry in caption]
    rows_P = np.repeat(np.arange(len(captions)), [len(caption) for caption in captions])
    texts = [entry.phrase for entry in entries]
    phrases = _cut_phrases(parsed, captions) if mode == "corrected" else parsed.phrases
    if mode == "official" and entries:
        # A phrase that a caption has twice has the boxes of the first one both times.
        _, firsts, groups = np.unique(_number(texts, rows_P, fold=False), return_index=True, return_inverse=True)
        entries = [entries[index] for index in firsts[groups]]
    # Phrases as integers: boxes and phrases of all answers are then matched by one sort.
    keys = _number([*phrases, *texts], np.concatenate((parsed.rows_B, rows_P)), fold=True)
    keys_B, keys_P = np.split(keys, [len(parsed.rows_B)])
    order = np.argsort(keys_B, kind="stable")
    starts_P, ends_P = (np.searchsorted(keys_B[order], keys_P, side=side) for side in ("left", "right"))
    counts_P = ends_P - starts_P
    owners = np.repeat(np.arange(len(entries)), counts_P)
    ranks = np.arange(len(owners)) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    predicted = order[starts_P[owners] + ranks]
    true, first_true, true_counts = _stack_true(entries, merged)
    # Every predicted box beside every true box of its phrase.
    repeats = true_counts[owners]
    pairs = np.repeat(np.arange(len(predicted)), repeats)
    steps = np.arange(len(pairs)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    owners_P = owners[pairs]
    boxes = parsed.boxes_B4[predicted[pairs]]
    hits = intersection_over_union(boxes, true[first_true[owners_P] + steps]) >= IOU_THRESHOLD
    ranks_P = np.full(len(entries), np.iinfo(np.int64).max)
    # Unbuffered: a phrase may have several hits, and its best rank counts.
    np.minimum.at(ranks_P, owners_P[hits], ranks[pairs][hits] + 1)
    ranks_P[ranks_P == np.iinfo(np.int64).max] = 0
    misses = ["" if rank == 1 else "wrong box" for rank in ranks_P.tolist()]
    for position in np.flatnonzero(counts_P == 0).tolist():
        misses[position] = _explain_phrase_miss(parsed, int(rows_P[position]), true[first_true[position]])
    return PhraseScores(ranks_P, tuple([entry.categories for entry in entries]), tuple(misses))


def _cut_phrases(parsed: AnswerBoxes, captions: Sequence[Sequence[TruePhrase]]) -> list[str]:
    """Cut the phrase of each box to its longest end that is a phrase of the caption, if one is."""
    phrases = []
    for row, phrase in zip(parsed.rows_B.tolist(), parsed.phrases, strict=True):
        true = {fold_phrase(entry.phrase) for entry in captions[row]}
        # An answer may be one endless phrase.
        longest = max((len(text.split()) for text in true), default=0)
        parts = fold_phrase(phrase).split()[-longest:] if longest else []
        ends = (" ".join(parts[start:]) for start in range(len(parts)))
        phrases.append(next((end for end in ends if end in true), phrase))
    return phrases


def _number(phrases: Sequence[str], rows: NDArray[np.int64], *, fold: bool) -> NDArray[np.int64]:
    """Number pairs of an answer and a phrase; equal ones, also up to `fold_phrase`, have equal numbers."""
    ids: dict[str, int] = {}
    table = {phrase: ids.setdefault(fold_phrase(phrase) if fold else phrase, len(ids)) for phrase in set(phrases)}
    # The factor exceeds every phrase number, so that no two answers share a number.
    return rows * (len(table) + 1) + np.array([table[phrase] for phrase in phrases], np.int64)


def _stack_true(
    entries: Sequence[TruePhrase], merged: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all true boxes, and the first one and the number of them of each phrase."""
    counts = np.array([len(entry.boxes) for entry in entries], np.int64)
    if len(counts) and counts.min() == 0:
        phrase = entries[int(counts.argmin())].phrase
        raise UserError(f"phrase {phrase!r}: no true box; expected phrases that have one")
    edges = [edge for entry in entries for box in entry.boxes for edge in (box.x1, box.y1, box.x2, box.y2)]
    boxes, firsts = np.array(edges, np.float64).reshape(-1, 4), np.cumsum(counts) - counts
    if not merged or not len(counts):
        return boxes, firsts, counts
    low, high = np.minimum.reduceat(boxes[:, :2], firsts), np.maximum.reduceat(boxes[:, 2:], firsts)
    return np.concatenate((low, high), axis=1), np.arange(len(counts)), np.ones_like(counts)


def _explain_phrase_miss(parsed: AnswerBoxes, row: int, true_4: NDArray[np.float64]) -> str:
    """Say why an answer has no box of a phrase: one of its other boxes may be the right one."""
    start, end = np.searchsorted(parsed.rows_B, (row, row + 1))
    boxes = parsed.boxes_B4[start:end]
    hit = bool((intersection_over_union(boxes, np.tile(true_4, (len(boxes), 1))) >= IOU_THRESHOLD).any())
    return "wrong phrase" if hit else "unparsable" if row in parsed.problems else "no box"


# A match starts only at the first blank of a run: if it could start at any, a long run would take quadratic time.
_NOT_SPANS = (re.compile(r"(?<!\s)\s+not[^,.]*[,.]"), re.compile(r"(?<!\s)\s+no[^,.]*[,.]"))
_NEGATED = re.compile(
    r"(?:^|(?<=\s)|(?<=\())(?:not|no|neither|nor|\w+n['’]t)\b(?!\s*,)(?:(?!\bbut\b)[^,.;)])*", re.IGNORECASE
)


def remove_negated(text: str, *, mode: Mode = "official") -> str:
    """Remove what an answer denies ("It is a dog, not a cat." -> "It is a dog,").

    Official: from white space and "not", then from white space and "no", to the next comma or full stop; so "nose" and
    "notebook" are eaten with what follows, and a denial without a mark behind it stays. Corrected: whole words, "isn't"
    too, and up to "but".
    """
    if mode == "corrected":
        return _NEGATED.sub("", text)
    for pattern in _NOT_SPANS:
        # Behind the last mark nothing matches; searched, each "not" of an endless answer would read it to its end.
        end = max(text.rfind(","), text.rfind(".")) + 1
        text = pattern.sub("", text[:end]) + text[end:]
    return text


def split_synonyms(synonyms: Sequence[str]) -> list[str]:
    """Return LVIS's synonyms as text: "house_cat_(animal)" -> "house cat", "animal"."""
    parts = []
    for synonym in synonyms:
        name, _, remark = synonym.partition("(")
        parts += [name, remark.replace(")", "")] if "(" in synonym else [name]
    # An empty name would be a part of every answer.
    return [text for part in parts if (text := part.replace("_", " ").strip())]


def _mentions(text: str, names: Sequence[str]) -> tuple[int, int] | None:
    """Return where a text first has one of the names as whole words, in any case, singular or plural, and -length."""
    matches = [re.search(rf"(?<!\w){re.escape(name)}(?:s|es)?(?!\w)", text, re.IGNORECASE) for name in names if name]
    return min(((match.start(), match.start() - match.end()) for match in matches if match), default=None)


def score_name(
    answer: str, name: str, synonyms: Sequence[str] = (), *, other: str = "", mode: Mode = "corrected"
) -> str:
    """Score an answer to LVIS's two-way question ("a cat or a dog?"); return "" for a hit, else one of `MISSES`.

    Official: the name or a synonym is a part of what is not denied, in that case ("cat" is in "caterpillar" and not in
    "Cat"). Corrected: as whole words in any case, and before the `other` name.

    Args:
        name, synonyms, other: as LVIS writes them, with "_".
    """
    names = [name.replace("_", " ").strip(), *split_synonyms(synonyms)]
    rest = remove_negated(answer, mode=mode)
    others = [part for part in split_synonyms([other]) if part and part not in names]
    if mode == "official":
        hit = any(part in rest for part in names)
        return "" if hit else "wrong phrase" if any(part in rest for part in others) else "unparsable"
    # The longer of two names at one position: "cat" must not be read in "cat toy".
    position, wrong = _mentions(rest, names), _mentions(rest, others)
    if position is not None and (wrong is None or position < wrong):
        return ""
    return "unparsable" if position is None and wrong is None else "wrong phrase"


_DENIAL = re.compile(r"\b(?:no|not|none|nope|neither|never|nothing|cannot)\b|n['’]t\b", re.IGNORECASE)
_AFFIRMATION = re.compile(
    r"^\W*(?:there (?:is|are)|i (?:can )?see|it (?:is|does)|the image (?:shows|has))\b", re.IGNORECASE
)


def parse_presence(answer: str) -> bool | None:
    """Read whether an answer says that something is there: its first word, else a denial, else "there is".

    "without" denies only where nothing else says that something is there: "There is a dog without a leash".

    >>> parse_presence("There isn't a dog."), parse_presence("Not at all"), parse_presence("Perhaps")
    (False, False, None)
    """
    first = parse_yes_no(answer)
    if first is not None:
        return first
    if _DENIAL.search(answer):
        return False
    if _AFFIRMATION.search(answer):
        return True
    return False if re.search(r"\bwithout\b", answer, re.IGNORECASE) else None


def score_presence(
    answers: Sequence[str], true: Sequence[bool], *, mode: Mode = "corrected"
) -> dict[str, float | None]:
    """Score POPE's answers: accuracy, precision, recall, F1 and the share of yes; see `yes_no_metrics`.

    Official: `parse_pope`, where "NO", "isn't" and "" are a yes. Corrected: `parse_presence`, where what is neither is
    wrong.
    """
    parse = parse_pope if choose(mode, tuple(_PARSERS), "mode") == "official" else parse_presence
    return yes_no_metrics([parse(answer) for answer in answers], true)


def parse_judge(reply: str) -> tuple[float, float] | None:
    """Read the two scores, of the reference and of the model, of a judge's first line ("9 7" or "9, 7").

    >>> parse_judge("9.5, 7\\nThe second answer misses the hat."), parse_judge("I'd say 9 and 7.")
    ((9.5, 7.0), None)
    """
    # The whole line must match: numbers inside a sentence may count something else.
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[,\s]\s*(\d+(?:\.\d+)?)\s*", reply.strip().split("\n")[0])
    scores = (float(match[1]), float(match[2])) if match else None
    # The judge's scale ends at 10: larger numbers count something else.
    return scores if scores and max(scores) <= 10 else None


def ferret_bench_score(pairs: ArrayLike) -> float:
    """Return 100 x the model's mean score over the reference's mean score; means and result are rounded as published.

    Args:
        pairs: scores of the reference and of the model from 1 to 10, shape [N, 2].

    Raises:
        UserError: no pairs, or the reference has nothing but zeros.

    >>> ferret_bench_score([(10, 7), (8, 6)])
    72.2
    """
    scores = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if len(scores) == 0 or scores[:, 0].sum() <= 0:
        raise UserError(f"Ferret-Bench: {len(scores)} pairs of scores; expected at least one with a reference above 0")
    reference, model = (round(float(mean), 3) for mean in scores.mean(0))
    # In the published order: 100 * model / reference rounds some pairs up.
    return round(model / reference * 100, 1)
