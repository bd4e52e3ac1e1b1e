"""Judge the assertions of captions: by ground truth, by an image-text model, or by a served chat model.

Generated worlds have a ground truth, photographs have none. For these an image-text model is an approximation, whose
rule is part of the report. A cosine by itself is no evidence: short, general texts are near every image. So an
assertion is compared with other images of the same sample, and its rank decides, with the same thresholds for every
model:

- supported: its own image fits better than 90 % of the others;
- contradicted: it fits no better than half of them;
- unverifiable: between.

By chance one assertion in ten is supported, which the audit's control (shuffled captions) shows. What is true of every
image of the sample cannot be supported.

A chat model gets two requests per caption, both with the image: `split` returns assertions, `verify` a verdict for
each. A caption whose response cannot be parsed is split by the rules, or judged unverifiable, and counted: a report
names the number.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from foveate.caption import splitter
from foveate.caption.captioner import prepare_image
from foveate.caption.prompts import find_prompt, response_schema
from foveate.caption.response_parser import parse_assertions, parse_verdicts
from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.judge import judge_options
from foveate.chat.protocol import ChatImage, ChatMessage, ChatRequest, ResponseSchema
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.core.plugins import load_all
from foveate.core.progress import say, track
from foveate.core.recipes import validate
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.vision.feature_cache import feature_batches
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.model import LocalizingModel

# Rank above which an assertion is supported, and up to which it is contradicted.
MIN_SUPPORTED_RANK, MAX_CONTRADICTED_RANK = 0.9, 0.5
NUM_OTHERS = 256  # images that an assertion is compared with: a rank is then exact to half a percent
MIN_IMAGES = 20  # below, one image is more than 5 % of the rank
_BATCH = 64
_TEXT_BATCH = 256
# With fewer batches than this a progress line would only flicker.
_MIN_BATCHES_FOR_PROGRESS = 5
_MAX_SIDE_PX = 1024
# Room for the assertions of a dense caption as JSON, several times over.
_MAX_TOKENS = 1500
T = TypeVar("T")
Split = Callable[[Sequence[int], Sequence[str]], list[list[str]]]
Judge = Callable[[Sequence[int], Sequence[Sequence[str]]], list[list[str]]]


@dataclass(frozen=True)
class AuditMethod:
    """Splitter and judge of an audit; by default the rules split, and real images are not judged.

    Attributes:
        split: (rows, captions) -> assertions of each.
        splitter_name: written into the report, as numbers of different splitters must not be compared.
        model: folder of an image-text model that judges real images and is compared with the truth of scenes.
        judge: (rows, assertions) -> verdicts: another judge of real images, such as a chat model.
        judge_definition: what its verdicts mean.
    """

    split: Split | None = None
    splitter_name: str = splitter.NAME
    model: Path | None = None
    judge: Judge | None = None
    judge_definition: str = ""


class GroundTruth(Protocol):
    """Truth of some images of a collection, by which assertions about them are judged.

    Attributes:
        definition: how it judges, in a sentence for pages.
    """

    definition: str

    def __contains__(self, row: int) -> bool:
        """Whether the truth of a row of the collection is known."""
        ...

    def judge(self, row: int, assertions: Sequence[str]) -> list[str]:
        """Return "supported", "contradicted" or "unverifiable" for each assertion about the image of a row."""
        ...


class _Unknown:
    """Ground truth of photographs: there is none."""

    definition = ""

    def __contains__(self, row: int) -> bool:
        return False

    def judge(self, row: int, assertions: Sequence[str]) -> list[str]:
        raise KeyError(row)


def open_ground_truth(collection: Collection) -> GroundTruth:
    """Return the first ground truth that knows images of the collection, or one that knows none.

    The kinds are the modules of `foveate.caption.ground_truths`, each with `open_ground_truth(collection)`, which
    returns None for collections that are not of its world.
    """
    for open_kind in load_all("foveate.caption.ground_truths", "open_ground_truth").values():
        truth: GroundTruth | None = open_kind(collection)
        if truth is not None:
            return truth
    return _Unknown()


@dataclass(frozen=True)
class JudgeModel:
    """An image-text model and its name in reports.

    The name is the folder's and the start of the hash of its weights: verdicts depend on both.
    """

    model: LocalizingModel
    name: str

    @classmethod
    def open(cls, folder: Path, *, device: str | None = None) -> JudgeModel:
        """Open a model folder.

        Raises:
            UserError: the folder holds no model.
        """
        model = load_model(folder, device=device)
        return cls(model, f"{folder.name} ({sha256_file(folder / 'model.safetensors')[:12]})")


@dataclass
class ClipJudge:
    """Judges assertions about the images of a sample.

    Attributes:
        name: of the model, see `JudgeModel`.
        rows: of the collection, those that could be read, ascending.
        image_NE: their embeddings, unit length.
        seed: of the draw of other images.
        bad: row -> reason, for images that could not be read.
    """

    model: LocalizingModel
    name: str
    rows: NDArray[np.int64]
    image_NE: NDArray[np.float32]
    seed: int = 0
    bad: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_collection(
        cls,
        opened: JudgeModel,
        collection: Collection,
        rows: NDArray[np.int64],
        *,
        seed: int = 0,
        cache: Path | None = None,
    ) -> ClipJudge:
        """Encode the images of a sample.

        Args:
            cache: folder for the features of a frozen encoder.

        Raises:
            UserError: fewer than MIN_IMAGES images could be read.
        """
        readable, bad, image_NE = encode_images(opened.model, collection, np.sort(rows), cache=cache)
        if len(readable) < MIN_IMAGES:
            raise UserError(
                f"the sample has too few readable images for a model as judge (got {len(readable)}); expected at least "
                f"{MIN_IMAGES}, as an assertion is compared with other images"
            )
        return cls(opened.model, opened.name, readable, image_NE, seed, bad)

    @property
    def definition(self) -> str:
        """Describe the verdicts for the report."""
        others = min(NUM_OTHERS, len(self.rows) - 1)
        return (
            f"Judged by the image-text model {self.name}: an assertion is supported when its own image fits it "
            f"better than {MIN_SUPPORTED_RANK:.0%} of {others} other images of the sample, contradicted when it fits "
            f"no better than {MAX_CONTRADICTED_RANK:.0%} of them, else unverifiable. Chance supports "
            f"{1 - MIN_SUPPORTED_RANK:.0%}."
        )

    def judge(self, rows: Sequence[int], assertions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Judge the assertions of each row; those of an unreadable image are unverifiable."""
        # Many captions make the same assertion, so each distinct text is encoded only once.
        distinct = list(dict.fromkeys(text for of_row in assertions for text in of_row))
        text_index = {text: index for index, text in enumerate(distinct)}
        text_TE = self._encode_texts(distinct)
        image_index = {int(row): index for index, row in enumerate(self.rows)}
        verdicts = []
        for row, of_row in zip(rows, assertions, strict=True):
            index = image_index.get(int(row))
            if index is None or not of_row:
                verdicts.append([UNVERIFIABLE] * len(of_row))
                continue
            others = self._draw_others(index)
            text_SE = text_TE[[text_index[text] for text in of_row]]
            cosine_S, cosine_SO = text_SE @ self.image_NE[index], text_SE @ self.image_NE[others].T
            # Strictly smaller: another image that fits equally well counts against the assertion.
            rank_S = (cosine_SO < cosine_S[:, None]).mean(1)
            verdicts.append([verdict_of_rank(float(rank)) for rank in rank_S])
        return verdicts

    def scores(self, rows: Sequence[int], captions: Sequence[str]) -> list[float | None]:
        """Compute the CLIPScore of each caption, None for an unreadable image.

        Source: Hessel et al. 2021, eq. 1: 2.5 max(0, cosine of caption and image).
        """
        image_index = {int(row): index for index, row in enumerate(self.rows)}
        text_NE = self._encode_texts(captions)
        indices = [image_index.get(int(row)) for row in rows]
        return [
            None if index is None else 2.5 * max(0.0, float(text_E @ self.image_NE[index]))
            for index, text_E in zip(indices, text_NE, strict=True)
        ]

    def _draw_others(self, index: int) -> NDArray[np.int64]:
        # Seeded by the image, so that all its captions meet the same others and formats can be compared.
        # The label of the stream keeps its old word, since another one would draw other images.
        rng = seeds.generator("other pictures", self.seed, int(self.rows[index]))
        count = len(self.rows)
        drawn = rng.choice(count - 1, size=min(NUM_OTHERS, count - 1), replace=False)
        return drawn + (drawn >= index)  # skips the image itself

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # Sort by length: a batch is padded to its longest text.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        text_TE = np.zeros((len(texts), self.image_NE.shape[1]), np.float32)
        starts = range(0, len(texts), _TEXT_BATCH)
        show = len(starts) >= _MIN_BATCHES_FOR_PROGRESS
        for start in track(starts, description=f"assertions, parts of {_TEXT_BATCH}") if show else starts:
            batch = order[start : start + _TEXT_BATCH]
            text_TE[batch] = self.model.encode_text([texts[index] for index in batch]).cpu().numpy()
        return text_TE


def verdict_of_rank(rank: float) -> str:
    """Return the verdict for the share of other images that fit worse.

    >>> verdict_of_rank(0.95), verdict_of_rank(0.7), verdict_of_rank(0.3)
    ('supported', 'unverifiable', 'contradicted')
    """
    if rank > MIN_SUPPORTED_RANK:
        return SUPPORTED
    return CONTRADICTED if rank <= MAX_CONTRADICTED_RANK else UNVERIFIABLE


@torch.no_grad()
def encode_images(
    model: LocalizingModel, collection: Collection, rows: NDArray[np.int64], *, cache: Path | None
) -> tuple[NDArray[np.int64], dict[int, str], NDArray[np.float32]]:
    """Encode images of a collection.

    Args:
        rows: ascending.
        cache: folder for the features of a frozen encoder; None to compute them anew.

    Returns:
        The rows that could be read, the reasons for the others, and unit-length embeddings [N, E] of the former.
    """
    encoder, bad = model.image_encoder, dict[int, str]()
    parts, readable = [], []
    batches = feature_batches(
        encoder,
        collection,
        rows,
        device=model.device,
        description=f"images, parts of {_BATCH}",
        bad=bad,
        cache=cache,
        batch=_BATCH,
    )
    for batch_rows, _, features in batches:
        parts.append(F.normalize(encoder(features).pooled.float(), dim=-1).cpu().numpy())
        readable += batch_rows
    image_NE = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
    return np.array(readable, dtype=np.int64), bad, image_NE


def hash_definition(definition: str) -> str:
    """Hash a judge's definition, so that reports of the same judge can be recognized."""
    return hashlib.sha256(definition.encode()).hexdigest()[:12]


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
            # An empty caption was never sent, so it is no failure of the model.
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
