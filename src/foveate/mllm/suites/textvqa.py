"""TextVQA: a collection with its questions and ten answers each."""

from __future__ import annotations

from foveate.metrics.text_answers import vqa_accuracy
from foveate.mllm.suite import SHORT_ANSWER, ModelAnswer, Suite, SuiteQuestion, read_conversations


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """VQA accuracy with TextVQA's normalization of both sides."""
    return vqa_accuracy(answer.text, question.references, rule="textvqa")


SUITE = Suite("TextVQA", "VQA accuracy", read_conversations, score, instruction=SHORT_ANSWER)
