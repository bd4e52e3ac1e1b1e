"""The model of `evaluate` that watches clips: each is encoded once, and several are answered together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.chat.batching import run_in_halves
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.video.adapter import Network
from foveate.video.answers import VideoAnswer
from foveate.video.evaluate import ClipRequest
from foveate.video.strategies import Strategy
from foveate.video.viewing import Viewing
from foveate.video.watch import ask_all, count_text, watch

_TEXT_STEP = 32


class ClipWatcher:
    """Answer questions about clips with an image model.

    A clip with several questions in a batch is read once for all of them; questions of clips with one each are answered
    together. So an answer follows from the questions of its batch, wherever a run was stopped. With `fit` each question
    sees what fits beside itself, whatever else is in its batch.

    Args:
        options: further arguments of `watch`: fit, prompt, allow_damaged.

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
    """Add the probabilities of the letters, where the request wants them and they fit behind the question."""
    if isinstance(answer, UserError) or not (request.likelihood and request.options):
        return answer
    try:
        return replace(answer, probabilities=viewing.score_letters(request.text, request.options)[1])
    except UserError:
        return answer
