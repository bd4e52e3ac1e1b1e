"""List pending caption requests, skip completed ones, estimate the cost of a run.

A request has a key: the SHA-256 of all that decides its response. It is complete when a caption or a final error with
that key is in the collection, whichever command wrote it; so a repeated command asks only for what is missing. Changing
a letter of a prompt changes the keys of its formats; changing an alt-text those of formats that contain it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from foveate.caption.prompts import CAPTION_KINDS, Prompt, find_prompt
from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings
from foveate.records import tables
from foveate.records.annotate import completed_requests
from foveate.records.appender import NameSet, read_parts
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.captions import ALT_KINDS, is_usable_alt_text
from foveate.records.collection import Collection


def parse_format(name: str) -> str:
    """Return the canonical name of a format: `dsc+` is `dsc_plus`.

    Raises:
        UserError: there is no such format; the error names the nearest one.
    """
    return choose(name.strip().casefold().replace("+", "_plus"), CAPTION_KINDS, "caption format")


def _sort_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    # Canonical order, whatever the order of the option: formats are bits of a mask in `PendingRequests`.
    requested = {parse_format(name) for name in names}
    return tuple(kind for kind in CAPTION_KINDS if kind in requested)


# As people write them.
_NAMES = [row.title.lower() for row in CAPTION_FORMATS.values()]


class CaptionSettings(Settings):
    """Options of a captioning run that hold for every backend."""

    formats: Annotated[tuple[str, ...], AfterValidator(_sort_formats)] = Field(
        min_length=1, description=f"Caption formats, of {', '.join(_NAMES[:-1])} and {_NAMES[-1]}."
    )
    split: str | None = Field(None, description="Only images of this split.")
    limit: int | None = Field(None, ge=1, description="Caption at most this many images, drawn by the seed.")
    seed: int = Field(0, ge=0, description="Seed of drawn images and of sampling.")
    language: str = Field("English", description="Language of the captions.")
    alt_kinds: tuple[str, ...] = Field(ALT_KINDS, description="Kinds of text that count as alt-text, best first.")
    longest_side: int = Field(1024, ge=32, le=8192, description="Longest side of the image that is sent, in pixels.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="Temperature of all formats; by default each has its own."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=32768,
        description="Maximum number of tokens of one response; by default each format has its own.",
    )
    retry_errors: bool = Field(False, description="Retry requests that ended with a final error.")
    rows_per_part: int = Field(1000, ge=1, description="Rows of one annotation file.")
    seconds_per_part: float = Field(
        30.0, gt=0, description="Write a file after this many seconds, even if it has few rows."
    )
    price_in: float = Field(0.0, ge=0, description="Price per million input tokens.")
    price_out: float = Field(0.0, ge=0, description="Price per million output tokens.")


@dataclass(frozen=True)
class RequestConfig:
    """All that decides the requests of a run: its settings, the captioner, and the prompt of each format."""

    settings: CaptionSettings
    backend: str
    model: str
    revision: str

    # Rendered once: request keys need their hashes for every image and format.
    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The prompt of each format, and of `shorten` and `lengthen`."""
        names = (*CAPTION_KINDS, "shorten", "lengthen")
        return {name: find_prompt(name, language=self.settings.language) for name in names}

    def select_prompt(self, kind: str, alt: str) -> tuple[Prompt, str]:
        """Return the prompt for an image, and its alt-text if the prompt contains it, else ""."""
        without_alt = CAPTION_FORMATS[kind].without_alt
        if without_alt and is_usable_alt_text(alt):
            return self.prompts[kind], alt
        # An unusable alt-text (empty, a file name) has no facts to weave in: afc then asks as dsc does.
        return self.prompts[without_alt or kind], ""

    def parameters(self, kind: str) -> dict[str, float | int]:
        """Everything besides prompt and model that decides a response."""
        settings = self.settings
        return {
            "temperature": CAPTION_FORMATS[kind].temperature if settings.temperature is None else settings.temperature,
            "max_tokens": settings.max_tokens or CAPTION_FORMATS[kind].max_tokens,
            "longest_side": settings.longest_side,
            "seed": settings.seed,
        }

    def request_key(self, key: str, sha256: str, kind: str, alt: str) -> str:
        """Hash all that decides the response to one request.

        Args:
            key, sha256: of the image.
            alt: its alt-text. It counts where the prompt contains it: better alt-texts must not make other formats
                pending again.
        """
        prompt, _ = self.select_prompt(kind, alt)
        return _digest(
            key,
            sha256,
            kind,
            prompt.sha256,
            self.model,
            self.revision,
            self.parameters(kind),
            hash_alt(alt) if CAPTION_FORMATS[kind].without_alt else "",
        )

    def recipe_hash(self, kind: str, prompt: Prompt) -> str:
        """Hash prompt and settings, for the provenance of a row."""
        return _digest(prompt.sha256, self.backend, self.parameters(kind))[:16]

    def sampling_seed(self, key: str, kind: str) -> int:
        """Draw the seed of one request, in [0, 2**31)."""
        # 31 bits fit the smallest seed type that servers use, a signed 32-bit integer.
        return seeds.integer("caption", self.settings.seed, key, kind) >> 32


def hash_alt(alt: str) -> str:
    """Return a short hash of an alt-text; "" of none."""
    return hashlib.sha256(alt.encode()).hexdigest()[:16] if alt else ""


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class AltTexts:
    """The alt-text of every image by row: the first text of its first kind of `kinds`.

    Args:
        keys: of the images, by row.
        kinds: kinds of text that count as alt-text, best first.
    """

    def __init__(self, collection: Path, keys: pa.Array, kinds: Sequence[str]) -> None:
        best = np.full(len(keys), len(kinds), dtype=np.int64)
        # Texts of all parts are numbered through: one integer per image finds its text.
        position = np.full(len(keys), -1, dtype=np.int64)
        texts: list[pa.Array] = []
        num_before = 0
        # Part by part, and of each part only the texts stay in memory: collections have millions of captions.
        for part in read_parts(collection, "captions", ["key", "kind", "text", "request"]):
            columns = zip(*(part[name].to_pylist() for name in ("kind", "text", "request")), strict=True)
            # Rows with a request were written by a captioner; they are no alt-texts, whatever their kind.
            selected = [
                index
                for index, (kind, text, request) in enumerate(columns)
                if not request and kind in kinds and text.strip()
            ]
            part = part.take(pa.array(selected, pa.int64()))
            rows = tables.positions(part["key"], among=keys)
            for index, (row, kind) in enumerate(zip(rows.tolist(), part["kind"].to_pylist(), strict=True)):
                # `<`, not `<=`: of one kind the first text stays.
                if row >= 0 and kinds.index(kind) < best[row]:
                    best[row], position[row] = kinds.index(kind), num_before + index
            texts.append(part["text"].combine_chunks())
            num_before += len(part)
        self._texts = pa.chunked_array(texts, pa.string()).combine_chunks() if texts else pa.array([], pa.string())
        self._position = position

    def __getitem__(self, row: int) -> str:
        position = int(self._position[row])
        return "" if position < 0 else self._texts[position].as_py()


@dataclass(slots=True)
class RequestCounts:
    """Requests of one format: all, completed ones, and those that ended in a final error."""

    total: int = 0
    completed: int = 0
    final_errors: int = 0

    @property
    def pending(self) -> int:
        """Requests that this run sends."""
        return self.total - self.completed - self.final_errors


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """One image with the formats that are still to be requested."""

    row: int
    key: str
    sha256: str
    alt: str
    kinds: tuple[str, ...]


@dataclass(slots=True)
class PendingRequests:
    """Requests of a run: counts by format, and an iterator over images that still need some.

    It keeps 9 bytes per image (a row and a bit mask of formats), beside the collection's own index and the alt-texts.
    """

    config: RequestConfig
    collection: Collection
    counts: dict[str, RequestCounts] = field(default_factory=dict)
    images: int = 0
    _rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _masks: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    _alts: AltTexts | None = None

    def __iter__(self) -> Iterator[PendingRequest]:
        formats = self.config.settings.formats
        hashes = self.collection.index["sha256"]
        for row, mask in zip(self._rows.tolist(), self._masks.tolist(), strict=True):
            # A bit per format: the pending formats of millions of images take a byte each.
            kinds = tuple(kind for bit, kind in enumerate(formats) if mask >> bit & 1)
            yield PendingRequest(row, self.collection.keys[row], hashes[row], self.alt(row), kinds)

    @property
    def pending(self) -> int:
        """Requests that this run sends, over all formats."""
        return sum(counts.pending for counts in self.counts.values())

    def alt(self, row: int) -> str:
        """Return the alt-text of an image."""
        return "" if self._alts is None else self._alts[row]


def select_rows(collection: Collection, settings: CaptionSettings) -> np.ndarray:
    """Select the images of a run: the split, or a sample of it drawn by the seed.

    Rows are in ascending order.
    """
    rows = collection.rows(settings.split)
    if settings.limit is None or settings.limit >= len(rows):
        return rows
    return np.sort(seeds.generator("caption", settings.seed).choice(rows, size=settings.limit, replace=False))


def list_pending(collection: Collection, config: RequestConfig) -> PendingRequests:
    """List the requests of a run that the collection does not answer yet.

    Raises:
        UserError: the split is unknown or has no images.
    """
    settings = config.settings
    rows = select_rows(collection, settings)
    if not len(rows):
        where = "" if settings.split is None else f" in the split '{settings.split}'"
        raise UserError(f"The collection {collection.name!r} has no images{where}")
    captioned, failed = completed_requests(collection.path, "captions"), NameSet()
    if not settings.retry_errors:
        failed = completed_requests(collection.path, "caption_errors", where={"final": True})
    alts = AltTexts(collection.path, pa.array(collection.keys, pa.string()), settings.alt_kinds)
    counts = {kind: RequestCounts() for kind in settings.formats}
    masks = np.zeros(len(rows), dtype=np.uint8)
    hashes = collection.index["sha256"]
    # Keys are computed, not stored with the images: a change of prompt, model or alt-text makes requests pending again.
    for index, row in enumerate(rows.tolist()):
        for bit, kind in enumerate(settings.formats):
            request = config.request_key(collection.keys[row], hashes[row], kind, alts[row])
            counts[kind].total += 1
            # A caption wins: with --retry-errors a request may have ended in an error first.
            if request in captioned:
                counts[kind].completed += 1
            elif request in failed:
                counts[kind].final_errors += 1
            else:
                masks[index] |= 1 << bit
    needed = masks > 0
    return PendingRequests(config, collection, counts, len(rows), rows[needed], masks[needed], alts)


# Language models' tokenizers take about a third more than CLIP's, and the JSON around a caption comes on top.
_TOKENS_PER_CLIP_TOKEN = 4 / 3
_JSON_TOKENS = 15
_LETTERS_PER_TOKEN = 4
# Qwen's models take one token per 28 x 28 pixels; others take fewer or many more.
_IMAGE_PATCH_PX = 28


def estimate(pending: PendingRequests) -> dict[str, Any]:
    """Estimate requests, tokens and cost of a captioning run at the settings' prices.

    Text counts one token per four letters of the prompt, an image one per 28 x 28 pixels of its prepared size.
    """
    settings = pending.config.settings
    index = pending.collection.index
    tokens_in = tokens_out = 0.0
    for request in pending:
        width, height = int(index["width"][request.row]), int(index["height"][request.row])
        scale = min(1.0, settings.longest_side / max(width, height))
        image_tokens = math.ceil(width * scale / _IMAGE_PATCH_PX) * math.ceil(height * scale / _IMAGE_PATCH_PX)
        for kind in request.kinds:
            prompt, alt = pending.config.select_prompt(kind, request.alt)
            tokens_in += image_tokens + (len(prompt.text) + len(alt)) / _LETTERS_PER_TOKEN
            tokens_out += _JSON_TOKENS + CAPTION_FORMATS[kind].mean_tokens * _TOKENS_PER_CLIP_TOKEN
    return {
        "images": pending.images,
        "requests": pending.pending,
        "formats": {
            kind: {
                "in": counts.total,
                "to ask": counts.pending,
                "done": counts.completed,
                "final error earlier": counts.final_errors,
            }
            for kind, counts in pending.counts.items()
        },
        "tokens_in": round(tokens_in),
        "tokens_out": round(tokens_out),
        "cost": (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6,
    }
