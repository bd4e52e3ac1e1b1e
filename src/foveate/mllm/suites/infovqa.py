"""InfographicVQA: a collection with its questions and all accepted answers."""

from __future__ import annotations

from foveate.metrics.text_answers import anls
from foveate.mllm.suite import SHORT_ANSWER, ModelAnswer, Suite, SuiteQuestion, read_conversations


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """ANLS of the answer."""
    return anls(answer.text, question.references)


SUITE = Suite("InfoVQA", "ANLS", read_conversations, score, instruction=SHORT_ANSWER)
