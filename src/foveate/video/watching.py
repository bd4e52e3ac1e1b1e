"""Show a clip to an image model: read, sample and encode its frames.

Source: SlowFast-LLaVA (arXiv 2407.15841).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.chat.batching import run_in_halves
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.language.generate import BATCH, generate
from foveate.video.adapter import Network
from foveate.video.aggregate import FrameAggregator
from foveate.video.evaluate import ClipRequest
from foveate.video.layout import Layout, NativeLayout, RowBlock
from foveate.video.networks import open_network
from foveate.video.prompts import Prompts, find_prompts
from foveate.video.splice import Room, check_room, encode_prompt, fit_strategy
from foveate.video.strategies import Native, SlowFast, SlowStrategy, Strategy, parse_how
from foveate.video.viewing import MAX_TOKENS, VideoAnswer, Viewing, answer_settings
from foveate.vision.video.collages import assemble_images, frame_images
from foveate.vision.video.reading import ClipReader
from foveate.vision.video.sampling import SampleRule, choose_frames
from foveate.vision.video.sources import ClipInput

# Choose the slow frames of a clip by what they show.


class Selector(Protocol):
    """An encoder of images and texts in one space, by which frames are chosen."""

    def encode_images(self, images: Iterable[Image.Image]) -> NDArray[Any]:
        """Embed images: [T, D]."""
        ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[Any]:
        """Embed texts: [N, D]."""
        ...


def check_choice(how: Strategy, *, selector: Selector | None, query: str | None) -> bool:
    """Return whether slow frames are chosen by what they show, and not spread evenly.

    Raises:
        UserError: the rule needs a selector or a query that is missing, or has no use for it.
    """
    rule = how.choose if isinstance(how, SlowStrategy) else "even"
    if query and rule != "query":
        raise UserError(f"query: no effect with choose '{rule}'; expected choose 'query'")
    if rule == "query" and (selector is None or not query):
        raise UserError("choose: 'query' needs a selector with words and a query; expected --selector and a question")
    if selector is not None and rule == "even":
        raise UserError(
            "selector: no effect with frames that are spread evenly; expected choose cover, change or query"
        )
    return rule != "even"


def choose_slow(
    how: Strategy,
    frames: Iterable[Image.Image],
    *,
    network: Network | None = None,
    selector: Selector | None = None,
    query: str | None = None,
) -> list[int] | None:
    """Choose slow frames by what they show; None where they are spread evenly, or there are none.

    Args:
        network: its tokens stand for frames where there is no selector.

    Raises:
        UserError: as `check_choice`, or there is nothing by which frames are compared.
    """
    if not check_choice(how, selector=selector, query=query) or not isinstance(how, SlowStrategy):
        return None
    if selector is not None:
        vectors_TD = selector.encode_images(frames)
    elif network is not None:
        # Encoded once more when they are read: the tokens of all frames at once would fill memory.
        # NumPy has no bfloat16, in which the model may run.
        means = [tokens_BND.float().mean(dim=1).cpu() for tokens_BND in network.encode_images(frames)]
        vectors_TD = torch.cat(means).numpy()
    else:
        raise UserError(f"choose: '{how.choose}' compares frames by a model; expected --selector")
    query_D = selector.encode_text([query])[0] if how.choose == "query" and selector and query else None
    return choose_frames(vectors_TD, how.slow, how.choose, query_D=query_D)


# Tokens of a question for which `fit` leaves room where it is not known yet.
_QUESTION_TOKENS = 64


def watch(
    model: Network | str | PathLike[str],
    clip: ClipInput,
    *,
    how: Strategy | str = SlowFast(),  # noqa: B008, settings are frozen
    start: float | None = None,
    end: float | None = None,
    rule: SampleRule | None = None,
    fps: float | None = None,
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
        rule, fps: how frames are sampled, see `foveate.sample`; by default "official", or "fps" with a rate, of which
            the strategy's frames are the maximum.
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
    # Without `fit` every question is checked when it is asked; here the video only has to leave one position.
    text = count_text(network, prompt=prompt) if fit and text_tokens is None else text_tokens or 1
    looks = check_choice(strategy, selector=selector, query=query)
    reader, changes = (
        ClipReader(
            clip,
            strategy.frames,
            rule=rule or ("official" if fps is None else "fps"),
            fps=fps,
            start=start,
            end=end,
            allow_damaged=allow_damaged,
        ),
        (),
    )
    if isinstance(strategy, Native):
        return _watch_natively(network, prompts, strategy, reader, fit=fit)

    def measure_room() -> Room:
        return Room(len(reader.indices), network.tokens_per_frame, text, network.limit)

    # Count the frames of a clip that is short or may not fit: files do not always hold as many as they promise.
    if len(reader.indices) < strategy.frames or not measure_room().holds(strategy):
        reader.count()
    if text_tokens is None and not fit and not measure_room().holds(strategy):
        # What the error advises must leave room for a question.
        text = count_text(network, prompt=prompt)
    if fit:
        strategy, changes = fit_strategy(strategy, measure_room())
    check_room(strategy, measure_room())
    reader.sample(strategy.frames)
    slow = None
    if looks:
        # A pass of its own: vectors of all frames are small, their tokens are not.
        slow = reader.read(
            lambda frames: choose_slow(strategy, frames, network=network, selector=selector, query=query)
        )

    def encode(frames: Iterable[Image.Image]) -> tuple[Layout, Tensor]:
        layout = strategy.layout(len(reader.indices), network.tokens_per_frame, slow_indices=slow)
        return layout, encode_layout(network, layout, frames)

    layout, video_LD = reader.read(encode)
    return Viewing(network, prompts, how=strategy, reader=reader, layout=layout, video_LD=video_LD, changes=changes)


def _watch_natively(
    network: Network, prompts: Prompts, how: Native, reader: ClipReader, *, fit: bool = False
) -> Viewing:
    """Show a clip through the model's own video input."""
    if network.watch is None or network.native_frame is None:
        raise UserError(f"how: {network.name} has no video input of its own (got 'native'); expected another strategy")
    if fit:
        raise UserError("fit: 'native' leaves the tokens to the model's processor; expected --frames")
    # All at once, as processors take them.
    frames = reader.read(lambda frames: [frame.copy() for frame in frames])
    native = network.watch(frames, reader.record.times)
    images = frame_images(range(len(frames)))
    block = RowBlock("native", tuple(range(len(frames))), bins=1)
    layout = NativeLayout(0, images, (block,), rows=len(native.video_LD))
    return Viewing(
        replace(network, frame=network.native_frame),
        prompts,
        how=how,
        reader=reader,
        layout=layout,
        video_LD=native.video_LD,
        native=native,
    )


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
        if any(viewing.network.language is not network.language for viewing, _, _ in part):
            raise UserError("questions: their viewings are of several networks; expected one")
        ids = [viewing.encode_question(question, options, max_tokens) for viewing, question, options in part]
        words = network.filter_words()
        completions = generate(
            network.language,
            [viewing.splice(row) for row, (viewing, _, _) in zip(ids, part, strict=True)],
            stop=network.stop,
            settings=answer_settings(max_tokens, network),
            suppress=network.suppress,
            words=words,
            batch=batch,
        )
        answers += [
            viewing.build_answer(each, avoided=None if words is None else words.avoided.get(row))
            for row, (each, (viewing, _, _)) in enumerate(zip(completions, part, strict=True))
        ]
    return answers


def encode_layout(network: Network, layout: Layout, frames: Iterable[Image.Image]) -> Tensor:
    """Encode the images of a layout as their frames come, and aggregate them to [L, D]."""
    aggregator = FrameAggregator(layout)
    for tokens_BND in network.encode_images(assemble_images(layout.images, frames, network.preprocess)):
        for tokens_ND in tokens_BND:
            aggregator.add(tokens_ND)
    return aggregator.finish()


def _find_prompts(network: Network, source: str | None) -> Prompts:
    is_chatml = network.tokenizer is not None and "<|im_start|>" in network.tokenizer.special
    return find_prompts(source or ("plain" if network.frame.leads else "video"), chatml=is_chatml)


# The model of `evaluate` that watches clips: each is encoded once, and several are answered together.


_TEXT_STEP = 32


class ClipWatcher:
    """Answer questions about clips with an image model.

    A clip with several questions in a batch is read once for all of them; questions of clips with one each are answered
    together. So an answer follows from the questions of its batch, wherever a run was stopped. With `fit` each question
    sees what fits beside itself, whatever else is in its batch.

    Args:
        options: further arguments of `watch`: rule, fps, fit, prompt, allow_damaged.

    Raises:
        UserError: slow frames are to be chosen by a question.
    """

    def __init__(self, network: Network, how: Strategy, **options: Any) -> None:
        if getattr(how, "choose", "even") == "query":
            raise UserError("choose: 'query' reads a clip for each question; expected even, cover or change for a set")
        self.network, self.how = network, how
        # Without options that are off: they must not change the description that identifies a run.
        self.options = {name: value for name, value in options.items() if value}
        self._last: tuple[tuple[Path, int | None], Viewing] | None = None

    @property
    def description(self) -> str:
        """All that decides what is seen, for the recipe of a run."""
        fields = {**self.how.model_dump(mode="json"), **self.options}
        if self.network.rope_factor != 1:
            fields["rope_factor"] = self.network.rope_factor
        prompt = Path(str(self.options.get("prompt", "")))
        if prompt.is_file():
            # By its content: a run resumed with an edited prompt would mix answers to two prompts.
            fields["prompt"] = f"{prompt.name} {sha256_file(prompt)[:12]}"
        return " ".join([self.how.kind, *(f"{name}={value}" for name, value in fields.items())])

    def ask_all(self, requests: Sequence[ClipRequest], *, max_tokens: int) -> list[VideoAnswer | UserError]:
        """Answer requests in their order, with an error in the place of an answer where a clip cannot be used."""
        by_clip: dict[tuple[Path, int | None], list[int]] = {}
        for row, request in enumerate(requests):
            by_clip.setdefault((request.clip, self._count_text(request, max_tokens)), []).append(row)
        answers: dict[int, VideoAnswer | UserError] = {}
        singles: list[tuple[int, Viewing]] = []
        for (clip, text_tokens), rows in by_clip.items():
            viewing = self._watch(clip, text_tokens)
            if isinstance(viewing, UserError):
                answers |= dict.fromkeys(rows, viewing)
            elif len(rows) == 1:
                singles.append((rows[0], viewing))
            else:
                answers |= {row: _ask(viewing, requests[row], max_tokens) for row in rows}
                answers |= {row: _add_likelihood(answers[row], viewing, requests[row]) for row in rows}
                # What was read is the largest thing in memory behind the weights.
                viewing.close()

        def ask_together(part: Sequence[tuple[int, Viewing]]) -> list[VideoAnswer]:
            questions = [(viewing, requests[row].text, requests[row].options) for row, viewing in part]
            return ask_all(questions, max_tokens=max_tokens, batch=len(part))

        replies = run_in_halves(ask_together, singles, errors=UserError)
        for (row, viewing), reply in zip(singles, replies, strict=True):
            answers[row] = _add_likelihood(reply, viewing, requests[row])
            viewing.close()
        return [answers[row] for row in range(len(requests))]

    def _count_text(self, request: ClipRequest, max_tokens: int) -> int | None:
        """Return the tokens for which `fit` leaves room, in steps: questions of about one length share a viewing."""
        if not self.options.get("fit"):
            return None
        try:
            question = [(request.text, request.options)]
            count = count_text(self.network, question, prompt=self.options.get("prompt"), max_tokens=max_tokens)
        except UserError:
            # It is refused when it is asked.
            return None
        return -(-count // _TEXT_STEP) * _TEXT_STEP

    def _watch(self, clip: Path, text_tokens: int | None) -> Viewing | UserError:
        # Questions of a clip may begin in one batch and end in the next.
        if self._last is not None and self._last[0] == (clip, text_tokens):
            return self._last[1]
        try:
            viewing = watch(self.network, clip, how=self.how, text_tokens=text_tokens, **self.options)
        except UserError as error:
            return error
        self._last = ((clip, text_tokens), viewing)
        return viewing


def _ask(viewing: Viewing, request: ClipRequest, max_tokens: int) -> VideoAnswer | UserError:
    try:
        return viewing.ask(request.text, request.options, max_tokens=max_tokens)
    except UserError as error:
        return error


def _add_likelihood(answer: VideoAnswer | UserError, viewing: Viewing, request: ClipRequest) -> VideoAnswer | UserError:
    """Add the choice among the options, where the request wants it and they fit behind the question."""
    if isinstance(answer, UserError) or not (request.likelihood and request.options):
        return answer
    try:
        # Some published questions have two equal options.
        return replace(answer, choice=viewing.choose(request.text, request.options, distinct=False))
    except UserError:
        return answer
