"""The result of `foveate video ask`, `chat` and `frames`, which its page reads. No torch."""

from __future__ import annotations

from typing import Literal

from foveate.core.results import ResultModel, RunResult


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
        mass: probability that the model continues with a letter at all.
        drops, control: occlusion of each frame, in nats, and that behind the shuffled question; empty where it was
            not measured.
    """

    question: str
    options: list[str] = []
    probabilities: list[float] = []
    mass: float | None = None
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
