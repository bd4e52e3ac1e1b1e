"""The results of this wing: built by its functions, printed with --json, and read by their pages. No torch."""

from __future__ import annotations

from typing import Any, Literal

from foveate.core.results import Evaluation, ResultModel, RunResult


class SuiteSample(ResultModel):
    """A question of a suite with what was answered under each condition.

    Attributes:
        image: file in the run folder, empty for a question without an image.
        answers: condition -> answer. score: of the answer with the image.
    """

    image: str = ""
    question: str
    references: list[str]
    answers: dict[str, str]
    score: float
    slice: str = ""


class SuiteResult(Evaluation, RunResult):
    """`foveate mllm evaluate`: a row for the suite and each of its slices, a column for each condition.

    Attributes:
        questions: counted, of `images` images. unreadable: questions left out because an image could not be read.
        further: condition -> further metrics of the suite.
        samples: right and wrong ones alike.
    """

    kind: Literal["mllm_evaluate"] = "mllm_evaluate"
    suite: str = ""
    metric: str = ""
    model: str = ""
    data: str = ""
    split: str = ""
    questions: int = 0
    images: int = 0
    unreadable: int = 0
    unfinished: int = 0
    further: dict[str, dict[str, float | None]] = {}
    samples: list[SuiteSample] = []


class StageResult(ResultModel):
    """One stage of a training.

    Attributes:
        samples: sets of images. bad_samples: key -> reason.
        last: last row of `curves`, which is a file in the run folder.
    """

    name: str
    status: str
    steps: int
    seconds: float
    samples: int
    bad_samples: dict[str, str] = {}
    last: dict[str, Any] = {}
    curves: str = ""


class MllmResult(RunResult):
    """A training of a multimodal LLM."""

    kind: Literal["mllm_train"] = "mllm_train"

    status: str
    recipe: dict[str, Any]
    collection: str
    images: int
    conversations: dict[str, int]
    names: int
    parameters: int
    stages: list[StageResult]
    seconds: float
    model: str
