"""The results of this wing: built by its functions, printed with --json, and read by their pages. No torch."""

from __future__ import annotations

from typing import Any, Literal

from foveate.core.results import BoxValues, Evaluation, Region, ResultModel, RunResult


class SuiteSample(ResultModel):
    """A question of a suite with its answer under each condition.

    Attributes:
        image: file in the run folder, empty for a question without an image. regions: boxes in it that the question
            names, from 0 to 1. boxes: of the answer with the image. true_boxes: that it should have.
        answers: condition -> answer. score: of the answer with the image.
        miss: why that answer misses, if the suite reports it.
    """

    image: str = ""
    regions: list[BoxValues] = []
    boxes: list[BoxValues] = []
    true_boxes: list[BoxValues] = []
    question: str
    references: list[str]
    answers: dict[str, str]
    score: float
    miss: str = ""
    slice: str = ""


class ScorePair(ResultModel):
    """One score twice: read as we read answers, and as the published evaluator does, with its flaws."""

    name: str
    ours: float | None
    official: float | None


class SuiteResult(Evaluation, RunResult):
    """`foveate mllm evaluate`: a row for the suite and each of its slices, a column for each condition.

    Attributes:
        questions: counted, of `images` images. unreadable: questions left out because an image
            could not be read or the model refused them.
        further: condition -> further metrics of the suite.
        official: our scores beside the published evaluator's, of the answers with the image; empty without --official.
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
    official: list[ScorePair] = []
    samples: list[SuiteSample] = []


class StageResult(ResultModel):
    """One stage of a training.

    Attributes:
        seconds: over all sessions. processor_seconds: of the last session, without the loader's other processes.
        samples: sets of images with their conversations, or of conversations without images. bad_samples: key ->
            reason. shares: group -> share of the samples, with a mixture.
        last: last row of `curves`, which is a file in the run folder.
    """

    name: str
    status: str
    steps: int
    seconds: float
    processor_seconds: float = 0.0
    samples: int
    bad_samples: dict[str, str] = {}
    shares: dict[str, float] = {}
    last: dict[str, Any] = {}
    curves: str = ""


class BoxScoreResult(ResultModel):
    """When a phrase counts as not shown, and how well that separates phrases that an image shows from others.

    Attributes:
        min_box_score: the threshold. auc: probability that a phrase which is shown scores above one which is not.
        hit_rate, false_alarm_rate: share of the `present` and `absent` phrases that then get a box.
        without_box: phrases to which the model answered without a box, left out.
        unreadable: images that could not be read, left out beside the `images`.
    """

    collection: str
    split: str
    images: int
    min_box_score: float
    auc: float
    hit_rate: float
    false_alarm_rate: float
    present: int
    absent: int
    without_box: int = 0
    unreadable: int = 0

    def to_metrics(self) -> dict[str, Any]:
        """Return the entry of a model folder's metrics.json."""
        return {"box_scores": self.to_json()}


class MllmResult(RunResult):
    """A training of a multimodal LLM.

    Attributes:
        initial: the model folder that it started from, and `initial_sha256` of its config, weights and tokenizer; empty
            for a new model.
        box_scores: of a model with a trained box head, where the collection has images to measure on.
        trained: parameters of an adapter. left_out: reason -> conversations that it was not trained on.
        before, after: images that are shown -> measures of the validation conversations, of an adapter.
    """

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
    initial: str = ""
    initial_sha256: str = ""
    box_scores: BoxScoreResult | None = None
    trained: int = 0
    left_out: dict[str, int] = {}
    before: dict[str, dict[str, float]] = {}
    after: dict[str, dict[str, float]] = {}


class PreviewToken(ResultModel):
    """A token of a training row; `region` is the number of its region in the sample, 0 for any other token."""

    text: str
    learned: bool = False
    region: int = 0


class PreviewConversation(ResultModel):
    """A conversation of a training row.

    Attributes:
        reads_images, reads_itself, reads_others: how many visual tokens, tokens of its own, and tokens of other
            conversations one of its tokens reads at most.
    """

    id: str
    group: str
    tokens: list[PreviewToken]
    reads_images: int
    reads_itself: int
    reads_others: int


class PreviewRegion(ResultModel):
    """The box of a region token in the model input of an image of the sample, by its number from 0."""

    image: int
    box: BoxValues


class PreviewView(ResultModel):
    """An image, or a tile of one, as the model gets it.

    Attributes:
        file: in the run folder. image: number of its image in the sample, from 0.
        size: height and width of the model input in pixels.
        label: which tile it is. before: text of the tokens between the views, in front of this one.
        names: regions that embedding alignment trains, in the model input.
    """

    file: str
    image: int = 0
    key: str
    size: tuple[int, int]
    label: str = ""
    before: str = ""
    names: list[Region] = []


class PreviewSample(ResultModel):
    """A training sample: views of images, the conversations of its row, and their regions in the order of their tokens.

    Attributes:
        visual: visual tokens and indicators of tiles in front of the row.
        padding: of its text, to the longest of the batch.
        mask: file of the drawn attention mask, empty without conversations.
    """

    views: list[PreviewView]
    regions: list[PreviewRegion] = []
    conversations: list[PreviewConversation] = []
    visual: int
    padding: int = 0
    mask: str = ""


class LeftOut(ResultModel):
    """Number of items left out of a batch, and the reason."""

    what: str
    count: int
    reason: str


class PreviewResult(RunResult):
    """`foveate mllm preview`: a batch of a stage, `samples` of it in full.

    Attributes:
        batch: samples of the batch. sets: samples of the stage.
        lengths, visual: tokens of the text and in front of it, of each sample of the batch.
        padding_share: of the text positions of the batch. learned_share: of its text tokens.
        names: regions that embedding alignment trains.
    """

    kind: Literal["mllm_preview"] = "mllm_preview"
    collection: str
    split: str
    stage: str
    step: int
    batch: int
    sets: int
    conversations: int
    lengths: list[int]
    visual: list[int]
    max_positions: int
    padding_share: float
    learned_share: float
    names: int
    left_out: list[LeftOut] = []
    samples: list[PreviewSample]
