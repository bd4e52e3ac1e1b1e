"""A model behind a server that judges answers; each reply bears the judge's name and the date, and can be stored."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from foveate.chat.client import ChatClient, ChatSettings, chat_url
from foveate.chat.protocol import ChatRequest, ChatResponse
from foveate.core.errors import UserError
from foveate.core.files import append_json_lines, repair_json_lines
from foveate.core.progress import Meter
from foveate.core.recipes import validate

_MAX_REPLY_LETTERS = 2000
# A kill costs the replies of one such part.
_REQUESTS_PER_PART = 64
_OPTIONS = {"--endpoint": "--judge-url", "--model": "--judge-model", "option api_key_env": "--judge-key-env"}


@dataclass(frozen=True)
class JudgeReply:
    """What a judge replied: its text, or the reason why there is none ("timeout", "refused", ...).

    `answered_by` is the model that its server names.
    """

    judge: str
    date: str
    text: str
    error: str = ""
    answered_by: str = ""


@contextlib.contextmanager
def judge_options() -> Iterator[None]:
    """Name the options of the client in its errors as those of a judge."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for option, name in _OPTIONS.items():
            text = text.replace(option, name)
        raise UserError(text) from error


def check_judge_address(address: str) -> None:
    """Raise UserError unless an address is one, without a secret in it: a run folder stores the command."""
    with judge_options():
        chat_url(address)


class Judge(Protocol):
    """Judge of answers; `name` stands in their scores."""

    name: str

    def ask(self, requests: Sequence[ChatRequest]) -> Sequence[JudgeReply]:
        """Return a reply for each request, in their order."""
        ...


class ServerJudge:
    """A judge behind an OpenAI-compatible server.

    Args:
        endpoint: address of the server, up to /v1.
        model: name of the judge at its server.
        key_env: environment variable that holds its key.
        options: further fields of `ChatSettings`.

    Raises:
        UserError: no address or no name, an address that is none or holds a secret, or a wrong option.
    """

    def __init__(self, endpoint: str, model: str, *, key_env: str = "", **options: Any) -> None:
        if not endpoint or not model:
            raise UserError(
                "--judge-url and --judge-model are missing: these answers are scored by a judge, at a server"
            )
        check_judge_address(endpoint)
        content = {"endpoint": endpoint, "model": model, "api_key_env": key_env, **options}
        self.settings = validate(ChatSettings, content, where="--judge-url")
        self.name = self.settings.model

    def ask(self, requests: Sequence[ChatRequest]) -> list[JudgeReply]:
        """Return a reply for each request; raise UserError where no request can succeed, as with a wrong key."""
        # Date the requests, not a later score: snapshots of judges differ by many points.
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        return [
            JudgeReply(self.name, date, response.text[:_MAX_REPLY_LETTERS], response.error, response.model)
            for response in self._send(requests)
        ]

    def _send(self, requests: Sequence[ChatRequest]) -> list[ChatResponse]:
        with judge_options():
            return asyncio.run(self._complete(requests))

    async def _complete(self, requests: Sequence[ChatRequest]) -> list[ChatResponse]:
        client = ChatClient(self.settings)
        try:
            return list(await asyncio.gather(*(client.complete(request) for request in requests)))
        finally:
            await client.close()


JudgeTask = tuple[str, str, ChatRequest]
"""Question id, aspect, and what the judge is asked."""


def collect_replies(judge: Judge, tasks: Sequence[JudgeTask], path: Path) -> dict[tuple[str, str], JudgeReply]:
    """Return the judge's replies by question and aspect: stored ones, and new ones, which are added to the file.

    A reply is asked for again if its request has changed, or if there was none (a timeout, an error of the server). A
    refusal is final, and so is a reply that is no verdict: the same request would get the same again.

    Raises:
        UserError: no request of this judge can succeed. Replies up to there are stored.
    """
    stored: dict[tuple[str, str, str], JudgeReply] = {}
    for row in repair_json_lines(path):
        reply = JudgeReply(row["judge"], row["date"], row["text"], row["error"], row.get("answered_by", ""))
        if reply.judge == judge.name and reply.error in ("", "refused"):
            stored[row["id"], row["aspect"], row["request"]] = reply
    keys = [(id, aspect, _hash_request(request)) for id, aspect, request in tasks]
    pending = [(key, task[2]) for key, task in zip(keys, tasks, strict=True) if key not in stored]
    with Meter("judged", len(tasks)) as meter:
        meter.advance(len(tasks) - len(pending))
        for start in range(0, len(pending), _REQUESTS_PER_PART):
            part = pending[start : start + _REQUESTS_PER_PART]
            replies = judge.ask([request for _, request in part])
            rows = [
                {"id": id, "aspect": aspect, "request": request, **asdict(reply)}
                for ((id, aspect, request), _), reply in zip(part, replies, strict=True)
            ]
            append_json_lines(path, rows)
            stored |= {key: reply for (key, _), reply in zip(part, replies, strict=True)}
            meter.advance(len(part))
    return {key[:2]: stored[key] for key in keys}


def _hash_request(request: ChatRequest) -> str:
    text = "\0".join(message.text for message in request.messages)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
