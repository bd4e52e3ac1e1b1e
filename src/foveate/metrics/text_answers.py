"""Scores of short written answers: ANLS, VQA accuracy, relaxed accuracy, exact match, choices, yes and no.

Each function follows the evaluator that published numbers come from, including where it is odd, and its docstring says
where that is. All give 1 for right and 0 for wrong, per question: the score of a test set is the mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from foveate.core.errors import UserError

# Contractions that VQA's evaluator restores from spellings that lack one apostrophe.
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've "
    "you'll you're you've"
).split()
_RESTORED = {
    contraction[: mark.start()] + contraction[mark.end() :]: contraction
    for contraction in _CONTRACTIONS
    for mark in re.finditer("'", contraction)
}
# A slip of the official table, which removes this apostrophe; scores must agree with it.
_RESTORED["somebody'd"] = "somebodyd"
_DIGITS = {
    word: str(index) for index, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
# VQA's evaluator has it in its table of numbers.
_DIGITS["none"] = "0"
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def edit_distance(first: str, second: str) -> int:
    """Count the insertions, deletions and substitutions of characters that turn one text into the other.

    >>> edit_distance("kitten", "sitting")
    3
    """
    if len(first) < len(second):
        first, second = second, first
    # One row of the table: texts of pages would need their product in memory.
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def anls(answer: str, references: Sequence[str], *, threshold: float = 0.5) -> float:
    """Score an answer by normalized Levenshtein similarity to the nearest reference (DocVQA, InfographicVQA).

    Lower case and single spaces first; similarities below `threshold` count as 0, the threshold itself counts. ANLS of
    a test set is the mean. In the official evaluator the lengths that normalize the distance are those of the untouched
    texts in upper case ("ß" counts two), so white space around an answer raises its score: answers are stripped here,
    references are not.

    Args:
        threshold: similarity in [0, 1] below which an answer is wrong rather than misread.

    Source: Biten et al. 2019, "Scene Text Visual Question Answering", equation 1; the evaluation script of
    rrc.cvc.uab.es (challenge 17).

    >>> anls("Room B1", ["room b12"])
    0.875
    """
    _check_references(references)
    answer = answer.strip()
    folded = " ".join(answer.lower().split())
    # The 1 avoids a division by zero where both texts are empty, which is a match.
    similarity = max(
        1
        - edit_distance(" ".join(reference.lower().split()), folded)
        / max(len(reference.upper()), len(answer.upper()), 1)
        for reference in references
    )
    return similarity if similarity >= threshold else 0.0


def normalize_vqa(text: str) -> str:
    """Normalize an answer as VQA v2's evaluator does: punctuation, numbers up to ten, articles, contractions.

    Source: GT-Vision-Lab/VQA, vqaEval.py at a013f00 (processPunctuation, processDigitArticle).

    >>> normalize_vqa("Two dogs, and the cat.")
    '2 dogs and cat'
    """
    tokens = [_DIGITS.get(token, token) for token in _strip_vqa_punctuation(_join_lines(text)).lower().split()]
    return " ".join(_RESTORED.get(token, token) for token in tokens if token not in _ARTICLES)


def _join_lines(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_vqa_punctuation(text: str) -> str:
    """Remove punctuation as VQA v2's evaluator does; apostrophes and colons stay.

    A mark goes without a trace if it stands beside a space anywhere in the text, or if the text has a comma between
    digits; otherwise it becomes a space: "black/white" -> "black white", "1,000-2" -> "10002".
    """
    joined = _DIGIT_COMMA.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        # Looked for in the whole text and not at the mark: one "a, b" removes every comma.
        stripped = stripped.replace(mark, "" if joined or beside_space else " ")
    # The evaluator passes a flag where the number of replacements belongs: 32, the value of re.UNICODE.
    return _PERIOD.sub("", stripped, count=32)


def normalize_textvqa(text: str) -> str:
    """Normalize an answer as TextVQA's evaluator does: commas, question marks and 's first, then VQA's rules.

    Source: facebookresearch/mmf, m4c_evaluators.py at 2dc099a (EvalAIAnswerProcessor).
    """
    return normalize_vqa(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def vqa_accuracy(answer: str, references: Sequence[str], *, rule: Literal["vqa", "textvqa"] = "vqa") -> float:
    """Score an answer against ten people's answers: the mean over them of min(1, matches among the others / 3).

    The mean over leaving one person out makes 3 of 10 matches .9 and not 1. VQA's evaluator normalizes nothing where
    all people agree: "Yes." then misses ten times "yes". Submissions therefore go through `normalize_textvqa` first
    (haotian-liu/LLaVA, convert_vqav2_for_submission.py), and so do the suites here. TextVQA's evaluator normalizes
    answer and references always.

    Source: Antol et al. 2015, "VQA: Visual Question Answering", section 4; GT-Vision-Lab/VQA, vqaEval.py at a013f00;
    facebookresearch/mmf, m4c_evaluators.py at 2dc099a.

    >>> round(vqa_accuracy("Two.", ["2"] * 3 + ["3"] * 7), 3)
    0.9
    """
    _check_references(references)
    normalize = normalize_textvqa if rule == "textvqa" else normalize_vqa
    people = [_join_lines(reference) for reference in references]
    if rule == "vqa" and len(set(people)) == 1:
        normalize = _join_lines
    answer, normalized = normalize(answer), [normalize(text) for text in people]
    # `total - match`: the matches that are left when one of the ten people is left out.
    matches = [text == answer for text in normalized]
    total = sum(matches)
    return float(np.mean([min(1.0, (total - match) / 3) for match in matches]))


def relaxed_accuracy(answer: str, references: Sequence[str], *, tolerance: float = 0.05) -> float:
    """Score 1 for a number within 5 % of a reference, or for the same text in any case (ChartQA).

    "12%" is the number .12, so "12" for "12%" is wrong. A reference of 0 and numbers with a unit or a thousands comma
    are compared as text, as in the evaluator; answers that are infinite or no number ("nan") are never near.

    Args:
        tolerance: relative to the reference; exactly 5 % off is right, up to rounding.

    Source: Masry et al. 2022, "ChartQA", section 5.1; google-research/pix2struct, metrics.py at 5b086ef.

    >>> relaxed_accuracy("104.9", ["100"])
    1.0
    """
    _check_references(references)
    answer = answer.strip()
    number = _read_number(answer)

    def matches(reference: str) -> bool:
        target = _read_number(reference)
        if number is not None and target:
            return abs(number - target) / abs(target) <= tolerance
        return answer.lower() == reference.strip().lower()

    return float(any(matches(reference) for reference in references))


def _read_number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    # "inf" and "nan" parse as numbers.
    return value if math.isfinite(value) else None


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Score 1 if the answer is one of the references, ignoring case, outer and repeated space and a last full stop.

    >>> exact_match("A red apple. ", ["a red  apple"])
    1.0
    """
    _check_references(references)
    return float(_fold(answer) in {_fold(reference) for reference in references})


def _fold(text: str) -> str:
    folded = " ".join(text.casefold().split())
    return folded[:-1].rstrip() if folded.endswith(".") else folded


def parse_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Read which of the lettered choices an answer names, counted from 0; None if it names none.

    Accepted, in this order: a letter alone ("B", "(b)", "B."); a letter with a mark, then text ("B. the cat"); "answer
    is B" anywhere; the text of a choice alone. A letter without a mark before more words is no choice: "A dog" is not
    answer A. Nothing is guessed: the evaluators of ScienceQA and MMMU draw a random choice here, which gives a model
    that says nothing the score of chance.

    Source: haotian-liu/LLaVA, eval_science_qa.py at 5200b75 (letter, "B. ...", "The answer is B").

    >>> parse_choice("The answer is (b).", ["cat", "dog"])
    1
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if not letters or len(letters) < len(choices):
        raise UserError(f"choices: cannot be lettered (got {len(choices)}); expected 1 to 26")
    text = " ".join(answer.split())
    for pattern in (
        rf"\(?([{letters}])[).:]?$",
        rf"\(?([{letters}])[).:]\s",
        rf".*?\banswer(?:\s+is|\s*:)(?:\s+option)?\s*:?\s*\(?([{letters}])\b(?![\w'-])",
    ):
        match = re.match(pattern, text, re.IGNORECASE)
        # A lower-case article behind "answer is" is the beginning of words, not a letter.
        if match and not (match[1] == "a" and text[match.end() :].lstrip(").:")):
            return letters.index(match[1].upper())
    named = [index for index, choice in enumerate(choices) if _fold(choice) == _fold(text)]
    return named[0] if len(named) == 1 else None


def parse_yes_no(answer: str) -> bool | None:
    """Read whether an answer begins with yes or no; None if with neither.

    >>> parse_yes_no("No, there is none.")
    False
    """
    match = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return match[1].lower() == "yes" if match else None


def parse_pope(answer: str) -> bool:
    """Read an answer as POPE's evaluator does: no if the first sentence has the word "no" or "not", otherwise yes.

    Whatever is neither is a yes, an empty answer too, so that the share of yes must be read beside the accuracy;
    `parse_yes_no` is the strict rule.

    Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models"; RUCAIBox/POPE,
    evaluate.py, and the same rule in haotian-liu/LLaVA, eval_pope.py at 4241f08.
    """
    return not {"No", "not", "no"} & set(answer.split(".")[0].replace(",", "").split(" "))


def yes_no_metrics(predicted: Sequence[bool | None], true: Sequence[bool]) -> dict[str, float | None]:
    """Return accuracy, precision, recall and F1 of "yes", and the share of yes among the answers.

    An answer that is neither (None) is wrong, and a "no" for precision and recall. A number without anything to divide
    by is None.

    Raises:
        UserError: different numbers of both, or none.
    """
    if len(predicted) != len(true) or not true:
        raise UserError(f"yes and no: {len(predicted)} answers for {len(true)} questions; expected one for each")
    says_yes, is_yes = np.array([answer is True for answer in predicted]), np.array(true, dtype=bool)
    hits = int((says_yes & is_yes).sum())
    # F1 as 2 TP / (predicted + true), which is defined even where precision or recall is not.
    positives = int(says_yes.sum()) + int(is_yes.sum())
    return {
        "accuracy": float(np.mean([answer is truth for answer, truth in zip(predicted, is_yes.tolist(), strict=True)])),
        "precision": hits / int(says_yes.sum()) if says_yes.any() else None,
        "recall": hits / int(is_yes.sum()) if is_yes.any() else None,
        "f1": 2 * hits / positives if positives else None,
        "yes_share": float(says_yes.mean()),
    }


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise UserError(f"references: expected a list of at least one text (got {references!r})")
