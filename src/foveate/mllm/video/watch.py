"""Show a clip to an image model: read, sample and encode its frames.

Source: SlowFast-LLaVA (arXiv 2407.15841).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.generate import BATCH, generate
from foveate.mllm.video.aggregate import FrameAggregator
from foveate.mllm.video.grammar import parse_how
from foveate.mllm.video.layout import Layout, TowerImage
from foveate.mllm.video.networks import Network, open_network
from foveate.mllm.video.prompts import Prompts, find_prompts
from foveate.mllm.video.splice import Room, check_room, encode_prompt, fit_strategy, splice
from foveate.mllm.video.strategies import SlowStrategy, Strategy
from foveate.mllm.video.strategies.slowfast import SlowFast
from foveate.mllm.video.viewing import MAX_TOKENS, VideoAnswer, Viewing, answer_settings
from foveate.vision.preprocess import Preprocess, squash
from foveate.vision.video.choosing import choose_frames
from foveate.vision.video.reading import Clip, read_clip
from foveate.vision.video.sources import ClipInput

Transform = Callable[[Image.Image], Image.Image]

# Tokens of a question for which `fit` leaves room where it is not known yet.
_QUESTION_TOKENS = 64
# Images of one pass of the tower; memory does not grow with the clip.
_TOWER_BATCH = 8


class Selector(Protocol):
    """An encoder of images and texts in one space, by which frames are chosen."""

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[Any]:
        """Embed images: [T, D]."""
        ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[Any]:
        """Embed texts: [N, D]."""
        ...


def watch(
    model: Network | str | PathLike[str],
    clip: ClipInput,
    *,
    how: Strategy | str = SlowFast(),  # noqa: B008, settings are frozen
    start: float | None = None,
    end: float | None = None,
    selector: Selector | None = None,
    query: str | None = None,
    fit: bool = False,
    text_tokens: int | None = None,
    prompt: str | None = None,
    device: str | None = None,
    allow_damaged: bool = False,
) -> Viewing:
    """Show a clip to an image model.

    Args:
        model: a folder or hub id of a LLaVA of transformers, a folder of `foveate mllm train`, or an opened `Network`.
        clip: a video file, an animated image, a folder of images, or images.
        how: which tokens of which frames the model reads: a strategy, its name, or the paper's string.
        start, end: seconds; only what lies between is shown.
        selector: encoder by whose vectors slow frames are chosen; the model's own tokens by default.
        query: question whose frames are chosen, for a strategy with choose "query".
        fit: shrink the strategy until its video fits, instead of refusing it.
        text_tokens: for which `fit` leaves room, see `count_text`; by default a short question and 128 of an answer.
        prompt: "video", "plain", or a file, see `find_prompts`; by default "plain" for models of `foveate mllm train`,
            which were trained with questions alone, and "video" for others.

    Raises:
        UserError: the model or the clip cannot be read, or the video does not fit the context.

    Example:
        >>> model = open_network("mini", device="cpu")
        >>> viewing = watch(model, [image_file] * 4, how=parse_how("slowfast", slow=2, fast="1x1"))
        >>> viewing.layout.count_tokens()
        {'slow': 48, 'fast': 4}
    """
    network = model if isinstance(model, Network) else open_network(str(model), device=device)
    strategy = parse_how(how) if isinstance(how, str) else how
    prompts = _find_prompts(network, prompt)

    size = (0, 0)

    def shrink(image: Image.Image) -> Image.Image:
        nonlocal size
        size = image.size
        return network.render(image)

    vectors = None if selector is None else FrameVectors(selector)

    def read(num_frames: int) -> Clip:
        # Collages read several frames at once, of which each keeps its pixels until it is pasted.
        whole = not all(image.is_frame for image in strategy.layout(num_frames, network.tokens_per_frame).images)
        transform = None if whole else shrink
        return read_clip(
            clip,
            num_frames,
            start=start,
            end=end,
            transform=transform if vectors is None else vectors.embed_before(transform),
            allow_damaged=allow_damaged,
        )

    frames, changes = read(strategy.frames), ()
    room = Room(len(frames.frames), network.tokens_per_frame, text_tokens or 1, network.limit)
    if text_tokens is None and (fit or not room.holds(strategy)):
        # Also where it is refused: what the error advises must leave room for a question.
        room = room._replace(text=count_text(network, prompt=prompt))
    if fit:
        strategy, changes = fit_strategy(strategy, room)
    check_room(strategy, room)
    if strategy.frames < len(frames.frames):
        frames = read(strategy.frames)
    layout = strategy.layout(
        len(frames.frames),
        network.tokens_per_frame,
        slow_indices=choose_slow(strategy, frames.frames, network=network, vectors=vectors, query=query),
    )
    video_LD = encode_layout(network, layout, frames.frames)
    return Viewing(
        network,
        prompts,
        how=strategy,
        clip=frames,
        layout=layout,
        video_LD=video_LD,
        size=size if size[0] else frames.frames[0].size,
        changes=changes,
    )


class FrameVectors:
    """Embed the frames of a clip by a selector when they are read, at their full size."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        # By the identity of the image that remains, which is held so that no other gets its number.
        self._rows: dict[int, tuple[Image.Image, NDArray[Any]]] = {}

    def embed_before(self, transform: Transform | None) -> Transform:
        """Return a transform of `read_clip` that embeds a frame, then applies another."""

        def embed(image: Image.Image) -> Image.Image:
            reduced = image if transform is None else transform(image)
            self._rows[id(reduced)] = reduced, self.selector.encode_images([image])[0]
            return reduced

        return embed

    def get(self, frames: Sequence[Image.Image]) -> NDArray[Any]:
        """Return the vectors [T, D] of frames that were read."""
        return np.stack([self._rows[id(frame)][1] for frame in frames])


def count_text(
    network: Network,
    questions: Sequence[tuple[str, Sequence[str]]] = (),
    *,
    prompt: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> int:
    """Count the tokens of the longest question with its prompt, and of an answer.

    Args:
        questions: each with its options, or none; without any, a short question.
        prompt: as of `watch`.

    Raises:
        UserError: a question or an option is empty.
    """
    prompts = _find_prompts(network, prompt)
    filled = [prompts.fill(network.frame, question, options) for question, options in questions]
    unknown = 0 if filled else _QUESTION_TOKENS
    # The prompt with options is the longer one.
    filled = filled or [prompts.choose.fill(network.frame, "")]
    return max(sum(map(len, encode_prompt(network, each))) for each in filled) + unknown + max_tokens


def choose_slow(
    how: Strategy,
    frames: Sequence[Image.Image],
    *,
    network: Network | None = None,
    vectors: FrameVectors | None = None,
    query: str | None = None,
) -> list[int] | None:
    """Choose slow frames by what they show; None where they are spread evenly, or there are none.

    Args:
        network: its tokens stand for frames where there is no selector. vectors: of the selector.

    Raises:
        UserError: the rule needs a selector or a query that is missing, or has no use for it.
    """
    rule = how.choose if isinstance(how, SlowStrategy) else "even"
    if query and rule != "query":
        raise UserError(f"query: no effect with choose '{rule}'; expected choose 'query'")
    if rule == "query" and (vectors is None or not query):
        raise UserError("choose: 'query' needs a selector with words and a query; expected --selector and a question")
    if vectors is not None and rule == "even":
        raise UserError(
            "selector: no effect with frames that are spread evenly; expected choose cover, change or query"
        )
    if rule == "even" or not isinstance(how, SlowStrategy):
        return None
    if vectors is not None:
        vectors_TD = vectors.get(frames)
    elif network is not None:
        vectors_TD = _mean_tokens(network, frames)
    else:
        raise UserError(f"choose: '{rule}' compares frames by a model; expected --selector")
    query_D = vectors.selector.encode_text([query])[0] if rule == "query" and vectors and query else None
    return choose_frames(vectors_TD, how.slow, rule, query_D=query_D)


def _mean_tokens(network: Network, frames: Sequence[Image.Image]) -> NDArray[Any]:
    """Return the mean tokens [T, D] of frames; they are encoded once more, as all tokens at once would fill memory."""
    blocks = (frames[begin : begin + _TOWER_BATCH] for begin in range(0, len(frames), _TOWER_BATCH))
    pixels = (network.pixels([network.render(image) for image in block]) for block in blocks)
    return torch.cat([network.encode(each).float().mean(dim=1).cpu() for each in pixels]).numpy()


def ask_all(
    questions: Sequence[tuple[Viewing, str, Sequence[str]]], *, max_tokens: int = MAX_TOKENS, batch: int = BATCH
) -> list[VideoAnswer]:
    """Answer questions about clips, several at once, each as `Viewing.ask` does alone.

    Args:
        questions: viewing of one network, question, and its options or none.
        batch: maximum number of questions answered together; each holds its whole video.

    Raises:
        UserError: as `Viewing.ask`; or the viewings are of several networks.
    """
    answers: list[VideoAnswer] = []
    for begin in range(0, len(questions), batch):
        part = questions[begin : begin + batch]
        network = part[0][0].network
        if any(viewing.network is not network for viewing, _, _ in part):
            raise UserError("questions: their viewings are of several networks; expected one")
        ids = [viewing.encode_question(question, options, max_tokens) for viewing, question, options in part]
        completions = generate(
            network.language,
            [splice(network, row, viewing.video_LD) for row, (viewing, _, _) in zip(ids, part, strict=True)],
            stop=network.stop,
            settings=answer_settings(max_tokens),
            suppress=network.suppress,
            batch=batch,
        )
        answers += [viewing.build_answer(each) for each, (viewing, _, _) in zip(completions, part, strict=True)]
    return answers


def encode_layout(network: Network, layout: Layout, frames: Sequence[Image.Image]) -> Tensor:
    """Encode the images of a layout and aggregate them to [L, D], a few at a time."""
    aggregator = FrameAggregator(layout)
    for begin in range(0, len(layout.images), _TOWER_BATCH):
        images = layout.images[begin : begin + _TOWER_BATCH]
        pixels_B3HW = network.pixels([network.render(paste(image, frames, network.preprocess)) for image in images])
        for tokens_ND in network.encode(pixels_B3HW):
            aggregator.add(tokens_ND)
    return aggregator.finish()


def paste(image: TowerImage, frames: Sequence[Image.Image], preprocess: Preprocess) -> Image.Image:
    """Return the image that a tower reads: a frame, or a collage of frames (empty cells are white) or a tile of one."""
    if image.is_frame:
        return frames[image.frames[0]]
    width, height = preprocess.width, preprocess.height
    canvas = Image.new("RGB", (width * image.tiles[1], height * image.tiles[0]), "white")
    rows, columns = image.cells
    for number, frame in enumerate(image.frames):
        row, column = divmod(number, columns)
        left, right = (canvas.width * each // columns for each in (column, column + 1))
        top, bottom = (canvas.height * each // rows for each in (row, row + 1))
        canvas.paste(squash(frames[frame], (bottom - top, right - left)), (left, top))
    top, left = image.tile[0] * height, image.tile[1] * width
    return canvas.crop((left, top, left + width, top + height))


def _find_prompts(network: Network, source: str | None) -> Prompts:
    is_chatml = network.tokenizer is not None and "<|im_start|>" in network.tokenizer.special
    return find_prompts(source or ("plain" if network.frame.leads else "video"), chatml=is_chatml)
