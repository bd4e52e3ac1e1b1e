"""VQA v2: a collection with its questions and ten answers each (`foveate collect` reads the official files)."""

from __future__ import annotations

from foveate.metrics.text_answers import normalize_textvqa, vqa_accuracy
from foveate.mllm.suite import SHORT_ANSWER, ModelAnswer, Suite, SuiteQuestion, read_conversations


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """VQA accuracy of the answer, normalized first as submissions are."""
    return vqa_accuracy(normalize_textvqa(answer.text), question.references)


SUITE = Suite("VQA v2", "VQA accuracy", read_conversations, score, instruction=SHORT_ANSWER)
