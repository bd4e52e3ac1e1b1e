"""The result of `foveate ask`: written into its run folder, and read by its page. No torch."""

from __future__ import annotations

from typing import Literal

from foveate.core.results import BoxValues, ResultModel, RunResult


class AskedImage(ResultModel):
    """An image of the questions: `image` is its file in the run folder, `size` height and width in pixels."""

    image: str
    name: str
    size: tuple[int, int]


class Exchange(ResultModel):
    """A question and its answer; boxes are in pixels of the image whose number stands at the same position.

    Attributes:
        regions: of the question, in the order of its text. boxes: of the answer.
        phrases: of each box, "" where no text belongs to it. unboxed: phrases without a box, with --ground.
        box_scores: how well each box matches, of models with a box head. rejected: scores of what was not found.
        read_as: the question in a wording of training, where it was asked so; "" where it was asked as it was worded.
        nearest_requests: forms nearest to a question that has none of those that the model was trained on.
        source: what answered: the language model, recognition for pictures unlike the scenes of its training, or the
            character head for written words.
        points: of the answer, in pixels, of families that point.
        options: answers to choose from, with their probabilities; `text` is the likeliest.
        mass, scored_by: see `foveate.multimodal.choose.Choice`.
    """

    question: str
    regions: list[BoxValues] = []
    region_images: list[int] = []
    text: str
    boxes: list[BoxValues] = []
    box_images: list[int] = []
    phrases: list[str] = []
    unboxed: list[str] = []
    box_scores: list[float] = []
    rejected: list[float] = []
    read_as: str = ""
    nearest_requests: list[str] = []
    source: str = "language model"
    points: list[tuple[float, float]] = []
    options: list[str] = []
    probabilities: list[float] = []
    mass: float | None = None
    scored_by: Literal["letters", "texts", ""] = ""
    tokens: int
    finished: bool
    seconds: float


class AskResult(RunResult):
    """Questions about images; several where the user kept asking.

    Attributes:
        description: the model's parts and parameters.
        has_match: of `foveate locate`: whether the answer has a box. reason: why it has none.
    """

    kind: Literal["ask"] = "ask"
    model: str
    description: str = ""
    seconds_to_open: float = 0.0
    images: list[AskedImage]
    exchanges: list[Exchange]
    has_match: bool | None = None
    reason: str = ""
