"""Splitting and judging by a model at an OpenAI-compatible server.

Two calls a caption: `split` gives the assertions, `verify` a verdict for each, both with the image. A caption whose
answer cannot be read is split by the rules, or judged unverifiable, and counted: the report names how many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from foveate.caption.answers import parse_assertions, parse_verdicts
from foveate.caption.assertions import splitter
from foveate.caption.audit import Method
from foveate.caption.images import prepare
from foveate.caption.prompts import prompt_for, response_schema
from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.protocol import ChatImage, ChatMessage, ChatRequest, ResponseSchema
from foveate.core.progress import say
from foveate.core.recipes import validate
from foveate.metrics.captions import UNVERIFIABLE
from foveate.records.collection import Collection
from foveate.records.images import BadImage

_LONGEST_SIDE = 1024
_MAX_TOKENS = 1500
T = TypeVar("T")


@dataclass
class Served:
    """A splitter and judge over a chat client; `failed` counts responses that could not be used, by purpose."""

    client: ChatClient
    collection: Collection
    failed: dict[str, int] = field(default_factory=lambda: {"split": 0, "verify": 0})

    async def _ask(self, purpose: str, row: int, **values: object) -> str | None:
        """The raw answer, None where there is none."""
        try:
            image = prepare(self.collection.image_bytes(row), longest_side=_LONGEST_SIDE)
        except BadImage:
            return None
        prompt = prompt_for(purpose)
        message = ChatMessage(prompt.fill(**values), (ChatImage(image.data, image.media_type),))
        schema = ResponseSchema(purpose, response_schema(purpose))
        response = await self.client.complete(ChatRequest((message,), _MAX_TOKENS, schema=schema))
        return None if response.error else response.text

    async def split_one(self, row: int, caption: str) -> list[str]:
        """The assertions of a caption; by rules where the answer cannot be read."""
        raw = await self._ask("split", row, caption=caption) if caption.strip() else None
        status, found = parse_assertions(raw) if raw is not None else ("error:none", [])
        if status.startswith("error"):
            self.failed["split"] += bool(caption.strip())
            return splitter.split(caption)
        return list({splitter.folded(one): one for one in found if splitter.folded(one)}.values())

    async def judge_one(self, row: int, assertions: Sequence[str]) -> list[str]:
        """A verdict for each assertion; unverifiable where the answer cannot be read."""
        if not assertions:
            return []
        raw = await self._ask("verify", row, assertions=list(assertions))
        status, found = parse_verdicts(raw, len(assertions)) if raw is not None else ("error:none", [])
        if status.startswith("error"):
            self.failed["verify"] += 1
            return [UNVERIFIABLE] * len(assertions)
        return found

    def split(self, rows: Sequence[int], captions: Sequence[str]) -> list[list[str]]:
        """The assertions of many captions; at most `client.concurrency` requests at a time."""
        return self._all("split", [self.split_one(row, text) for row, text in zip(rows, captions, strict=True)])

    def judge(self, rows: Sequence[int], assertions: Sequence[Sequence[str]]) -> list[list[str]]:
        """The verdicts of many captions' assertions."""
        return self._all("verify", [self.judge_one(row, said) for row, said in zip(rows, assertions, strict=True)])

    def _all(self, purpose: str, questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        before = self.failed[purpose]
        found = asyncio.run(self._gather(questions))
        if self.failed[purpose] > before:
            lost = self.failed[purpose] - before
            say(f"{self.client.settings.model}: {lost} of {len(questions)} answers to {purpose} could not be used")
        return found

    async def _gather(self, questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        places = asyncio.Semaphore(max(1, self.client.concurrency))

        async def one(question: Coroutine[Any, Any, T]) -> T:
            async with places:
                return await question

        try:
            return list(await asyncio.gather(*(one(question) for question in questions)))
        finally:
            await self.client.close()  # its connections belong to this loop

    @property
    def splitter_name(self) -> str:
        """What goes into the report beside the number of assertions."""
        return f"{self.client.settings.model} with prompt {_stamp('split')}"

    @property
    def definition(self) -> str:
        """What the verdicts mean."""
        return (
            f"Judged by {self.client.settings.model} with prompt {_stamp('verify')}: supported if the image shows it, "
            "contradicted if the image shows otherwise, unverifiable if the picture does not say or no answer could "
            "be read. A model that judges its own captions prefers them."
        )


def _stamp(purpose: str) -> str:
    prompt = prompt_for(purpose)
    return f"{prompt.id} ({prompt.sha256[:12]})"


def served_method(collection: Collection, endpoint: str, model: str) -> Method:
    """The method of an audit that asks an OpenAI-compatible server.

    Raises:
        UserError: when the address is none.
    """
    settings = validate(ChatSettings, {"endpoint": endpoint, "model": model}, where="--endpoint")
    judge = Served(ChatClient(settings), collection)
    return Method(judge.split, judge.splitter_name, judge=judge.judge, judge_definition=judge.definition)
