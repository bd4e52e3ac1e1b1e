"""A model behind a server that judges answers; each reply bears the judge's name and the date."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.protocol import ChatRequest, ChatResponse
from foveate.core.errors import UserError
from foveate.core.recipes import validate

_MAX_REPLY_LETTERS = 2000


@dataclass(frozen=True)
class JudgeReply:
    """What a judge replied: its text, or the reason why there is none ("timeout", "refused", ...)."""

    judge: str
    date: str
    text: str
    error: str = ""


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
        UserError: no address or no name, or a wrong option.
    """

    def __init__(self, endpoint: str, model: str, *, key_env: str = "", **options: Any) -> None:
        if not endpoint or not model:
            raise UserError("--judge and --judge-model are missing: these answers are scored by a judge, at a server")
        content = {"endpoint": endpoint, "model": model, "api_key_env": key_env, **options}
        self.settings = validate(ChatSettings, content, where="--judge")
        self.name = self.settings.model

    def ask(self, requests: Sequence[ChatRequest]) -> list[JudgeReply]:
        """Return a reply for each request; raise UserError where no request can succeed, as with a wrong key."""
        # Of the requests, not of a later score: snapshots of judges differ by many points.
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        return [
            JudgeReply(self.name, date, response.text[:_MAX_REPLY_LETTERS], response.error)
            for response in asyncio.run(self._complete(requests))
        ]

    async def _complete(self, requests: Sequence[ChatRequest]) -> list[ChatResponse]:
        client = ChatClient(self.settings)
        try:
            return list(await asyncio.gather(*(client.complete(request) for request in requests)))
        finally:
            await client.close()
