"""Flickr30k Entities: grounded captions, from the folder that `foveate collect` reads.

The model gets the phrases of a sentence and boxes each. The score of a sentence is the share of its phrases whose first
box hits the merged true box; the recalls of the whole split are reported beside it, official and corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foveate.core.errors import UserError
from foveate.metrics.referring import MISSES, Mode, PhraseScores, TruePhrase, score_phrases
from foveate.mllm.suite import ModelAnswer, Suite, SuiteData, SuiteQuestion, folder_reader, write_bins
from foveate.records.importers.grounded import IMAGE_FOLDERS, read_sentences


def read(path: Path, split: str) -> SuiteData:
    """Read the sentences with boxes of `train.txt`, `val.txt` or `test.txt`."""
    questions = []
    for sentence in read_sentences(path, split):
        if sentence.problem:
            raise UserError(sentence.problem)
        phrases = tuple(
            TruePhrase(sentence.text[phrase.start : phrase.end], phrase.boxes, phrase.categories)
            for phrase in sentence.phrases
            if phrase.boxes
        )
        if phrases:
            questions.append(
                SuiteQuestion(
                    id=sentence.id,
                    images=(sentence.image,),
                    # The phrases, as Ferret asks: the sentence would make finding them a part of the task.
                    text=f"Box all things of this text: {', '.join(p.phrase.replace(',', '') for p in phrases)}.",
                    references=tuple(phrase.phrase for phrase in phrases),
                    phrases=phrases,
                    size=sentence.size,
                )
            )
    folder = next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), path / IMAGE_FOLDERS[0])
    return SuiteData(questions, folder_reader(folder))


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Share of the phrases that are found at rank 1, corrected, with merged boxes."""
    return float((_score([(question, answer)], "corrected").ranks_P == 1).mean())


def _score(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: Mode, *, merged: bool = True) -> PhraseScores:
    return score_phrases(
        [write_bins(answer, question.size) for question, answer in answered],
        [question.phrases for question, _ in answered],
        [question.size or (0, 0) for question, _ in answered],
        merged=merged,
        mode=mode,
    )


def explain(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the phrases that are missed, each with its reason."""
    misses = zip(question.phrases, _score([(question, answer)], "corrected").misses, strict=True)
    return "; ".join(f"{phrase.phrase}: {reason}" for phrase, reason in misses if reason)


def summarize(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
    """Recalls of phrases by category, official and corrected, merged and any box, and the share of each reason."""
    further: dict[str, float | None] = {}
    for mode in ("official", "corrected"):
        for way, merged in (("merged", True), ("any", False)):
            scores = _score(answered, mode, merged=merged)
            for k, values in scores.recall().items():
                names = values if k == 1 else ("all",)
                rank = "all" if k == -1 else k
                further |= {f"{mode} recall@{rank}, {way} boxes, {name}": values[name] for name in names}
            if mode == "corrected" and merged:
                total = len(scores.misses)
                further |= {f"missed, {reason}": scores.misses.count(reason) / total for reason in MISSES}
    return further


SUITE = Suite(
    "Flickr30k Entities", "recall@1, corrected", read, score, max_tokens=256, summarize=summarize, explain=explain
)
