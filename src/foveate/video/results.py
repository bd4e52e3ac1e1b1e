"""Results of `foveate video ask`, `chat`, `frames`, `evaluate` and `score`, which their pages read. No torch."""

from __future__ import annotations

from typing import Literal

from foveate.core.results import Evaluation, ResultModel, RunResult


class ShownFrame(ResultModel):
    """A sampled frame: `image` is its file in the run folder, `index` its number in the clip, `time` in seconds."""

    image: str
    index: int
    time: float
    is_slow: bool = False


class VideoExchange(ResultModel):
    """A question about a clip and its answer.

    Attributes:
        options: to choose from, with their probabilities; `text` is then the letter and the likeliest option.
        mass, scored_by: see `foveate.multimodal.choose.Choice`.
        drops, control: occlusion of each frame, in nats, and that behind the shuffled question; empty where it was
            not measured.
    """

    question: str
    options: list[str] = []
    probabilities: list[float] = []
    mass: float | None = None
    scored_by: Literal["letters", "texts", ""] = ""
    drops: list[float] = []
    control: list[float] = []
    text: str
    tokens: int = 0
    finished: bool = True
    seconds: float


class VideoAskResult(RunResult):
    """Questions about a clip, and what the model saw of it; without a model, the frames alone.

    Attributes:
        how: the strategy with its options. fitted: what was changed so that the clip fits.
        tokens: of each path. grids: rows and columns of tokens that a frame keeps in each path, where they are a grid.
        limit: positions of the language model.
    """

    kind: Literal["video_ask"] = "video_ask"
    model: str = ""
    clip: str
    how: str
    fitted: list[str] = []
    num_decoded: int
    frames: list[ShownFrame]
    tokens: dict[str, int] = {}
    grids: dict[str, tuple[int, int]] = {}
    limit: int | None = None
    warnings: list[str] = []
    exchanges: list[VideoExchange] = []


class EvidenceSample(ResultModel):
    """A question whose evidence is known, and the frames that the model read of its clip.

    Attributes:
        prediction: the answer. is_right: None while it waits for a judge.
        evidence: groups of frames; the answer needs one frame of each.
        frames: that were read, `slow` among them: numbers in a clip of `num_frames`.
    """

    question: str
    clip: str
    prediction: str
    is_right: bool | None = None
    evidence: list[list[int]]
    frames: list[int]
    slow: list[int] = []
    num_frames: int


class VideoScores(Evaluation, RunResult):
    """Scores of `foveate video evaluate` and `score`.

    Attributes:
        questions: all of them, about `clips` clips. missing: without an answer, for `reasons`, the first five of these.
        published: numbers of questions of the set's published lists.
        unfinished: answers that were cut at the token limit.
        unparsed: choices and replies of the judge that cannot be read. failed: requests that the judge did not answer.
        unjudged: questions that wait for a judge.
        judge_dates: first and last. judge_prompts: start of their SHA-256, "" for ours.
        further: shares of readable replies and truncated scores, for comparison; how often the evidence was seen.
        samples: questions with evidence, evenly drawn from all of them.
    """

    kind: Literal["video_evaluate"] = "video_evaluate"
    question_set: str = ""
    model: str = ""
    how: str = ""
    questions: int
    clips: int
    published: list[int] = []
    missing: int = 0
    reasons: list[str] = []
    unfinished: int = 0
    unparsed: int = 0
    failed: int = 0
    unjudged: int = 0
    judge: str = ""
    judge_dates: list[str] = []
    judge_prompts: str = ""
    further: dict[str, float | None] = {}
    samples: list[EvidenceSample] = []
    interval: str = "95 % intervals, bootstrap over clips"
