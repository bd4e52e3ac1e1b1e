"""Split captions and judge assertions by a chat model at an OpenAI-compatible server.

Two requests per caption, both with the image: `split` returns assertions, `verify` a verdict for each. A caption whose
response cannot be parsed is split by the rules, or judged unverifiable, and counted: a report names the number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from foveate.caption.assertions import splitter
from foveate.caption.audit import AuditMethod
from foveate.caption.captioner import prepare_image
from foveate.caption.prompts import find_prompt, response_schema
from foveate.caption.response_parser import parse_assertions, parse_verdicts
from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.judge import judge_options
from foveate.chat.protocol import ChatImage, ChatMessage, ChatRequest, ResponseSchema
from foveate.core.progress import say
from foveate.core.recipes import validate
from foveate.metrics.captions import UNVERIFIABLE
from foveate.records.collection import Collection
from foveate.records.images import BadImage

_MAX_SIDE_PX = 1024
# Room for the assertions of a dense caption as JSON, several times over.
_MAX_TOKENS = 1500
T = TypeVar("T")


@dataclass
class LlmJudge:
    """Splitter and judge over a chat client; `failed` counts unusable responses by purpose."""

    client: ChatClient
    collection: Collection
    failed: dict[str, int] = field(default_factory=lambda: {"split": 0, "verify": 0})

    async def _request(self, purpose: str, row: int, **values: object) -> str | None:
        """Send a prompt with the image of a row; return the raw response, None if there is none."""
        try:
            image = prepare_image(self.collection.image_bytes(row), longest_side=_MAX_SIDE_PX)
        except BadImage:
            return None
        prompt = find_prompt(purpose)
        message = ChatMessage(prompt.fill(**values), (ChatImage(image.data, image.media_type),))
        schema = ResponseSchema(purpose, response_schema(purpose))
        response = await self.client.complete(ChatRequest((message,), _MAX_TOKENS, schema=schema))
        return None if response.error else response.text

    async def split_caption(self, row: int, caption: str) -> list[str]:
        """Split a caption; by the rules if the response cannot be parsed."""
        raw = await self._request("split", row, caption=caption) if caption.strip() else None
        status, assertions = parse_assertions(raw) if raw is not None else ("error:none", [])
        if status.startswith("error"):
            self.failed["split"] += bool(caption.strip())
            return splitter.split(caption)
        # Models repeat themselves; equal assertions count once, as with the rules.
        by_key = {splitter.normalize_assertion(text): text for text in assertions}
        return [text for key, text in by_key.items() if key]

    async def judge_caption(self, row: int, assertions: Sequence[str]) -> list[str]:
        """Judge the assertions of a caption; all are unverifiable if the response cannot be parsed."""
        if not assertions:
            return []
        raw = await self._request("verify", row, assertions=list(assertions))
        status, verdicts = parse_verdicts(raw, len(assertions)) if raw is not None else ("error:none", [])
        if status.startswith("error"):
            self.failed["verify"] += 1
            return [UNVERIFIABLE] * len(assertions)
        return verdicts

    def split(self, rows: Sequence[int], captions: Sequence[str]) -> list[list[str]]:
        """Split many captions, with at most `client.concurrency` requests at a time."""
        tasks = [self.split_caption(row, text) for row, text in zip(rows, captions, strict=True)]
        return self._run_all("split", tasks)

    def judge(self, rows: Sequence[int], assertions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Judge the assertions of many captions, with at most `client.concurrency` requests at a time."""
        tasks = [self.judge_caption(row, of_caption) for row, of_caption in zip(rows, assertions, strict=True)]
        return self._run_all("verify", tasks)

    def _run_all(self, purpose: str, tasks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        before = self.failed[purpose]
        with judge_options():
            results = asyncio.run(self._gather(tasks))
        failed = self.failed[purpose] - before
        if failed:
            say(f"{self.client.settings.model}: {failed} of {len(tasks)} responses to '{purpose}' could not be used")
        return results

    async def _gather(self, tasks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        # An image is read inside its slot: with all requests at once all images would be in memory.
        slots = asyncio.Semaphore(max(1, self.client.concurrency))

        async def run_task(task: Coroutine[Any, Any, T]) -> T:
            async with slots:
                return await task

        try:
            return list(await asyncio.gather(*(run_task(task) for task in tasks)))
        finally:
            await self.client.close()  # its connections belong to the event loop that ends here

    @property
    def splitter_name(self) -> str:
        """Name model and prompt for the report."""
        return f"{self.client.settings.model} with prompt {_prompt_stamp('split')}"

    @property
    def definition(self) -> str:
        """Describe the verdicts for the report."""
        return (
            f"Judged by {self.client.settings.model} with prompt {_prompt_stamp('verify')}: supported if the image "
            "shows it, contradicted if the image shows otherwise, unverifiable if the image does not tell or no "
            "response could be parsed. A model that judges its own captions prefers them."
        )


def _prompt_stamp(purpose: str) -> str:
    prompt = find_prompt(purpose)
    return f"{prompt.id} ({prompt.sha256[:12]})"


def llm_method(collection: Collection, endpoint: str, model: str, *, key_env: str = "") -> AuditMethod:
    """Make the method of an audit that uses an OpenAI-compatible server for splitting and judging.

    Args:
        key_env: environment variable that holds the server's key.

    Raises:
        UserError: `endpoint` is no URL or holds a secret, or the variable is empty.
    """
    content = {"endpoint": endpoint, "model": model, "api_key_env": key_env}
    with judge_options():
        client = ChatClient(validate(ChatSettings, content, where="--judge-url"))
    judge = LlmJudge(client, collection)
    return AuditMethod(judge.split, judge.splitter_name, judge=judge.judge, judge_definition=judge.definition)
