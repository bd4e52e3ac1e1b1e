"""ChartQA: a collection with its questions and answers."""

from __future__ import annotations

from foveate.metrics.text_answers import relaxed_accuracy
from foveate.mllm.suite import SHORT_ANSWER, ModelAnswer, Suite, SuiteQuestion, read_conversations


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Relaxed accuracy, without a full stop at the end: "12." is the number 12 already, "Yes." is not "Yes"."""
    return relaxed_accuracy(answer.text.strip().removesuffix("."), question.references)


SUITE = Suite("ChartQA", "relaxed accuracy", read_conversations, score, instruction=SHORT_ANSWER)
