"""What is to be captioned: which images, in which formats, and which of it is done already.

A request has a key: the SHA-256 of all that decides its answer. It is done when a caption or a final error with that
key is in the collection, whichever command wrote it; so a repeated command asks only for what is missing. Changing a
letter of a prompt changes the keys of its formats; changing an alt-text those of afc.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from foveate.caption.prompts import CAPTION_KINDS, MAX_TOKENS, TEMPERATURES, Prompt, prompt_for
from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings
from foveate.records import tables
from foveate.records.alt_texts import ALT_KINDS, is_usable_alt_text
from foveate.records.annotate import completed_requests
from foveate.records.appender import Names, read_parts
from foveate.records.collection import Collection


def format_of(name: str) -> str:
    """The canonical name of a format: `dsc+` is `dsc_plus`. Raises UserError with the nearest one."""
    return choose(name.strip().casefold().replace("+", "_plus"), CAPTION_KINDS, "caption format")


def _formats(names: tuple[str, ...]) -> tuple[str, ...]:
    wanted = {format_of(name) for name in names}
    return tuple(kind for kind in CAPTION_KINDS if kind in wanted)


class CaptionSettings(Settings):
    """What a captioning run does, whatever the backend."""

    formats: Annotated[tuple[str, ...], AfterValidator(_formats)] = Field(
        min_length=1, description="Caption formats, of ssc, dsc, dsc+ and afc."
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
        None, ge=1, le=32768, description="Tokens of one answer at most; by default each format has its own."
    )
    retry_errors: bool = Field(False, description="Request again what ended with a final error.")
    rows_per_part: int = Field(1000, ge=1, description="Rows of one annotation file.")
    seconds_per_part: float = Field(
        30.0, gt=0, description="Write a file after this many seconds, however few rows wait."
    )
    price_in: float = Field(0.0, ge=0, description="Price per million input tokens.")
    price_out: float = Field(0.0, ge=0, description="Price per million output tokens.")


@dataclass(frozen=True)
class Asking:
    """How a run asks: its settings, who answers, and the prompt of each format."""

    settings: CaptionSettings
    backend: str
    model: str
    revision: str

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The prompt of each format, and of `shorten` and `lengthen`."""
        names = (*CAPTION_KINDS, "shorten", "lengthen")
        return {name: prompt_for(name, language=self.settings.language) for name in names}

    def prompt(self, kind: str, alt: str) -> tuple[Prompt, str]:
        """The prompt for an image with this alt-text, and what of the alt-text it shows.

        An unusable alt-text has no facts to weave in: afc then asks as dsc does.
        """
        if kind == "afc" and is_usable_alt_text(alt):
            return self.prompts["afc"], alt
        return self.prompts["dsc" if kind == "afc" else kind], ""

    def parameters(self, kind: str) -> dict[str, float | int]:
        """What else decides an answer."""
        chosen = self.settings
        return {
            "temperature": TEMPERATURES[kind] if chosen.temperature is None else chosen.temperature,
            "max_tokens": chosen.max_tokens or MAX_TOKENS[kind],
            "longest_side": chosen.longest_side,
            "seed": chosen.seed,
        }

    def request(self, key: str, sha256: str, kind: str, alt: str) -> str:
        """The key of one request. `alt` counts for afc alone."""
        prompt, _ = self.prompt(kind, alt)
        return _digest(
            key,
            sha256,
            kind,
            prompt.sha256,
            self.model,
            self.revision,
            self.parameters(kind),
            alt_hash(alt) if kind == "afc" else "",
        )

    def recipe_hash(self, kind: str, prompt: Prompt) -> str:
        """Hash of prompt and settings, for the provenance of a row."""
        return _digest(prompt.sha256, self.backend, self.parameters(kind))[:16]

    def draw_seed(self, key: str, kind: str) -> int:
        """The seed of one request, in [0, 2**31)."""
        return seeds.integer("caption", self.settings.seed, key, kind) >> 32


def alt_hash(alt: str) -> str:
    """A short hash of an alt-text; "" of none."""
    return hashlib.sha256(alt.encode()).hexdigest()[:16] if alt else ""


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class AltTexts:
    """The alt-text of every image, read part by part: only the texts are kept, not what else is said of captions."""

    def __init__(self, collection: Path, keys: pa.Array, kinds: Sequence[str]) -> None:
        """For images with these keys, by row; the first text of the first of `kinds` that an image has."""
        best = np.full(len(keys), len(kinds), dtype=np.int64)
        place = np.full(len(keys), -1, dtype=np.int64)
        found: list[pa.Array] = []
        before = 0
        for part in read_parts(collection, "captions", ["key", "kind", "text", "request"]):
            wanted = [
                number
                for number, (kind, text, request) in enumerate(
                    zip(*(part[name].to_pylist() for name in ("kind", "text", "request")), strict=True)
                )
                if not request and kind in kinds and text.strip()
            ]
            part = part.take(pa.array(wanted, pa.int64()))
            rows = tables.positions(part["key"], among=keys)
            for number, (row, kind) in enumerate(zip(rows.tolist(), part["kind"].to_pylist(), strict=True)):
                if row >= 0 and kinds.index(kind) < best[row]:
                    best[row], place[row] = kinds.index(kind), before + number
            found.append(part["text"].combine_chunks())
            before += len(part)
        self._texts = pa.chunked_array(found, pa.string()).combine_chunks() if found else pa.array([], pa.string())
        self._place = place

    def __getitem__(self, row: int) -> str:
        place = int(self._place[row])
        return "" if place < 0 else self._texts[place].as_py()


@dataclass(slots=True)
class Counts:
    """Requests of one format: all, and those that are not asked now because they are done or ended in a final error."""

    total: int = 0
    done: int = 0
    final_errors: int = 0

    @property
    def todo(self) -> int:
        """How many are asked."""
        return self.total - self.done - self.final_errors


@dataclass(frozen=True, slots=True)
class Todo:
    """One image with the formats that are still to be asked."""

    row: int
    key: str
    sha256: str
    alt: str
    kinds: tuple[str, ...]


@dataclass(slots=True)
class Worklist:
    """All requests of a run: counts by format, and an iterator over images that still need any.

    It keeps 9 bytes per image, beside the collection's own index and the alt-texts.
    """

    asking: Asking
    collection: Collection
    counts: dict[str, Counts] = field(default_factory=dict)
    images: int = 0
    _rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _masks: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    _alts: AltTexts | None = None

    def __iter__(self) -> Iterator[Todo]:
        for row, mask in zip(self._rows.tolist(), self._masks.tolist(), strict=True):
            kinds = tuple(kind for place, kind in enumerate(self.asking.settings.formats) if mask >> place & 1)
            yield Todo(row, self.collection.keys[row], self.collection.index["sha256"][row], self.alt(row), kinds)

    @property
    def todo(self) -> int:
        """Requests that are still to be asked."""
        return sum(one.todo for one in self.counts.values())

    def alt(self, row: int) -> str:
        """The alt-text of an image."""
        return "" if self._alts is None else self._alts[row]


def chosen_rows(collection: Collection, settings: CaptionSettings) -> np.ndarray:
    """Rows of the images that a run is about, ascending: of the split; with a limit a sample drawn by the seed."""
    rows = collection.rows(settings.split)
    if settings.limit is None or settings.limit >= len(rows):
        return rows
    return np.sort(seeds.generator("caption", settings.seed).choice(rows, size=settings.limit, replace=False))


def worklist(collection: Collection, asking: Asking) -> Worklist:
    """What of a collection is to be asked.

    Raises:
        UserError: for an unknown split, or where no image is meant.
    """
    settings = asking.settings
    rows = chosen_rows(collection, settings)
    if not len(rows):
        where = "" if settings.split is None else f" in the split '{settings.split}'"
        raise UserError(f"the collection {collection.name!r} has no images{where}")
    captioned, refused = completed_requests(collection.path, "captions"), Names()
    if not settings.retry_errors:
        refused = completed_requests(collection.path, "caption_errors", where={"final": True})
    keys = pa.array(collection.keys, pa.string())
    alts = AltTexts(collection.path, keys, settings.alt_kinds)
    counts = {kind: Counts() for kind in settings.formats}
    masks = np.zeros(len(rows), dtype=np.uint8)
    hashes = collection.index["sha256"]
    for number, row in enumerate(rows.tolist()):
        for place, kind in enumerate(settings.formats):
            request = asking.request(collection.keys[row], hashes[row], kind, alts[row])
            counts[kind].total += 1
            if request in captioned:
                counts[kind].done += 1
            elif request in refused:
                counts[kind].final_errors += 1
            else:
                masks[number] |= 1 << place
    kept = masks > 0
    return Worklist(asking, collection, counts, len(rows), rows[kept], masks[kept], alts)
