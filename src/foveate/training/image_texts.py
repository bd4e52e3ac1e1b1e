"""Texts of a collection's images, and the draw of one per epoch, for the loader and `mix`.

Where several models captioned an image, `foveate.records.captions` selects a caption. An image without a text
of kind `alt` uses another one of its texts (title, description, ...) as such, unless that kind has a weight in the
mixture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.records.caption_formats import ALT, CAPTION_FORMATS
from foveate.records.captions import ALT_KINDS, select_current
from foveate.records.collection import Collection
from foveate.records.text import split_sentences
from foveate.training.mixture import MixtureSampler

Combine = Literal["none", "concat", "fuse", "part", "uniform"]
_ROWS_AT_A_TIME = 65_536

_FUSED = ("afc", "fuse")
Texts = Mapping[str, tuple[str, ...]]


class Drawn(NamedTuple):
    """A drawn text with the kind that it was drawn as."""

    kind: str
    text: str


@dataclass(frozen=True)
class TextRule:
    """Rule that draws one text per epoch from those of an image.

    combine: "none" draws by the mixture. The others are the ablations of Lai et al. 2024 and its relatives: "concat"
    puts the alt-text before the drawn synthetic caption; "fuse" takes the alt-fused caption (afc) where there is one;
    "part" takes one sentence of a synthetic caption (CLIPS); "uniform" takes each text of the wanted kinds equally
    often, and the alt-text instead of one of a single word (LaCLIP).
    """

    mixture: MixtureSampler
    combine: Combine = "none"

    @property
    def kinds(self) -> list[str]:
        """Kinds that a text may be drawn from, in the order of the mixture."""
        weighted = [kind for kind, weight in self.mixture.weights.items() if weight > 0]
        more = {"concat": [ALT], "fuse": ["afc"], "uniform": [ALT]}.get(self.combine, [])
        more += [ALT] if self.mixture.missing == ALT else []
        return [*weighted, *(kind for kind in more if kind not in weighted)]

    @property
    def drawable(self) -> list[str]:
        """Kinds that a text may be drawn as: without `alt` where it only precedes another text."""
        weights = self.mixture.weights
        lost = self.mixture.missing == ALT
        return [k for k in self.kinds if weights.get(k, 0) > 0 or (k == ALT and lost) or (k, self.combine) == _FUSED]

    def draw(self, texts: Texts, *, seed: int, epoch: int, key: str) -> Drawn | None:
        """Draw the text of an epoch, a pure function of the arguments; None: leave the image out and count it."""
        if self.combine == "uniform":
            return self._uniform(texts, seed, epoch, key)
        if self.combine == "fuse" and texts.get("afc"):
            return Drawn("afc", _one_of(texts["afc"], "text", seed, epoch, key))
        # Draw among the kinds that the image has; the mixture's rule decides what happens to the weight of a missing
        # one.
        kind = self.mixture.draw(list(texts), seed=seed, epoch=epoch, key=key)
        if kind is None:
            return None
        text = _one_of(texts[kind], "text", seed, epoch, key)
        if self.combine == "part" and kind in CAPTION_FORMATS:
            return Drawn(kind, _one_of(split_sentences(text) or [text], "sentence", seed, epoch, key))
        if self.combine == "concat" and kind in CAPTION_FORMATS and texts.get(ALT):
            return Drawn(f"alt+{kind}", join_texts(_one_of(texts[ALT], "alt", seed, epoch, key), text))
        return Drawn(kind, text)

    def _uniform(self, texts: Texts, seed: int, epoch: int, key: str) -> Drawn | None:
        every = [
            Drawn(kind, text)
            for kind, of_kind in texts.items()
            if self.mixture.weights.get(kind, 0) > 0
            for text in of_kind
        ]
        if not every:
            return None
        drawn = every[int(seeds.uniform("text", seed, epoch, key) * len(every))]
        # As LaCLIP does with captions of a single word.
        if len(drawn.text.split()) < 2 and texts.get(ALT):
            return Drawn(ALT, _one_of(texts[ALT], "alt", seed, epoch, key))
        return drawn

    def list_possible(self, texts: Texts) -> Iterable[str]:
        """List every text that `draw` may return for an image."""
        for kind, of_kind in texts.items():
            for text in of_kind:
                yield text
                if self.combine == "part" and kind in CAPTION_FORMATS:
                    yield from split_sentences(text)
                if self.combine == "concat" and kind in CAPTION_FORMATS:
                    yield from (join_texts(alt, text) for alt in texts.get(ALT, ()))


def _one_of(choices: Sequence[str], what: str, seed: int, epoch: int, key: str) -> str:
    # `what` enters the seed: text, sentence and alt-text of an image are drawn independently of one another.
    return choices[int(seeds.uniform(what, seed, epoch, key) * len(choices))]


def join_texts(alt: str, caption: str) -> str:
    """Join an alt-text, ended with a full stop, and a caption.

    >>> join_texts("Red boat", "A boat on a lake.")
    'Red boat. A boat on a lake.'
    """
    return f"{alt.rstrip()}{'' if alt.rstrip().endswith(('.', '!', '?')) else '.'} {caption}"


class ImageTexts:
    """Texts of a collection's images, of the kinds that a rule may draw.

    Args:
        prefer: models whose captions are preferred, best first (`foveate.records.captions`).

    Raises:
        UserError: for a preferred model that wrote no caption.
    """

    def __init__(self, collection: Collection, rule: TextRule, *, prefer: Sequence[str] = ()) -> None:
        self.collection, self.rule = collection, rule
        self.kinds = rule.kinds
        lenders = [kind for kind in ALT_KINDS if kind not in self.kinds] if ALT in self.kinds else []
        self._lenders = lenders
        self._read_kinds = [*self.kinds, *lenders]
        captions = collection.grouped("captions")
        if prefer:
            models = sorted(set(captions.table["model"].unique().to_pylist()) - {""})
            for model in prefer:
                choose(model, models, f"model of captions in the collection {collection.name!r}")
        self.usable = select_current(captions.table, prefer=prefer) & self._mask_readable(captions.table)
        drawable = [*rule.drawable, *(lenders if ALT in rule.drawable else [])]
        self._drawable = self.usable & pc.call_function(
            "is_in", [captions.table["kind"]], pc.SetLookupOptions(value_set=pa.array(drawable, pa.string()))
        ).to_numpy(zero_copy_only=False)

    def _mask_readable(self, table: pa.Table) -> NDArray[np.bool_]:
        """Mask captions of the kinds to read that are not blank."""
        # Work in parts: trimming the column of millions of captions at once would hold a second copy of it.
        readable = np.zeros(table.num_rows, dtype=bool)
        kinds = pc.SetLookupOptions(value_set=pa.array(self._read_kinds, pa.string()))
        for start in range(0, table.num_rows, _ROWS_AT_A_TIME):
            part = table.slice(start, _ROWS_AT_A_TIME)
            trimmed = pc.call_function("utf8_trim_whitespace", [part["text"]])
            letters = pc.call_function("utf8_length", [trimmed]).to_numpy() > 0
            of_kind = pc.call_function("is_in", [part["kind"]], kinds).to_numpy()
            readable[start : start + part.num_rows] = of_kind & letters
        return readable

    def rows_with_text(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Select the rows that have a text which may be drawn."""
        has_text = np.zeros(len(self.collection), dtype=bool)
        has_text[self.collection.grouped("captions").row_numbers[self._drawable]] = True
        return rows[has_text[rows]].astype(np.int64)

    def read_row(self, row: int) -> dict[str, tuple[str, ...]]:
        """Read an image's texts by kind; another kind may replace a missing `alt`."""
        captions = self.collection.grouped("captions")
        start, end = captions.bounds(row)
        texts_of_kind: dict[str, tuple[str, ...]] = {}
        columns = captions.texts("kind", start, end), captions.texts("text", start, end)
        for usable, kind, text in zip(self.usable[start:end].tolist(), *columns, strict=True):
            if usable:
                texts_of_kind[kind] = (*texts_of_kind.get(kind, ()), text)
        if ALT in self.kinds and ALT not in texts_of_kind:
            lender = next((kind for kind in self._lenders if kind in texts_of_kind), None)
            if lender is not None:
                texts_of_kind[ALT] = texts_of_kind[lender]
        # A kind that was read only to replace `alt` must not be drawn under its own name.
        return {kind: texts for kind, texts in texts_of_kind.items() if kind in self.kinds}

    def read_captioners(self, row: int) -> dict[str, str]:
        """Read who wrote the first text of each kind; texts that no captioner wrote are left out."""
        captions = self.collection.grouped("captions")
        start, end = captions.bounds(row)
        columns = (captions.texts(name, start, end) for name in ("kind", "model", "request"))
        captioners: dict[str, str] = {}
        for usable, kind, model, request in zip(self.usable[start:end].tolist(), *columns, strict=True):
            if usable:
                captioners.setdefault(kind, model if request else "")
        return {kind: model for kind, model in captioners.items() if model}

    def draw(self, row: int, *, seed: int, epoch: int) -> Drawn | None:
        """Draw the text of an epoch."""
        return self.rule.draw(self.read_row(row), seed=seed, epoch=epoch, key=self.collection.keys[row])

    def list_possible(self, rows: NDArray[np.int64]) -> pa.ChunkedArray:
        """List every text that may be drawn for one of `rows`."""
        # Joined and cut texts must be built image by image; all others are drawn unchanged from the column.
        if self.rule.combine in ("concat", "part"):
            texts = (text for row in rows.tolist() for text in self.rule.list_possible(self.read_row(row)))
            return pa.chunked_array([pa.array(texts, pa.string())])
        captions = self.collection.grouped("captions")
        return pa.chunked_array(captions.table["text"].filter(pa.array(self.mask_captions(rows))))

    def mask_captions(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mark the rows of the grouped table of captions that texts of `rows` are drawn from."""
        selected = np.zeros(len(self.collection), dtype=bool)
        selected[rows] = True
        return self.usable & selected[self.collection.grouped("captions").row_numbers]

    def count_drawn(self, rows: Iterable[int], *, seed: int, epoch: int = 0) -> Counter[str]:
        """Count how often each kind is drawn in one epoch over `rows`; "" counts images left out."""
        counts: Counter[str] = Counter()
        for row in rows:
            drawn = self.draw(row, seed=seed, epoch=epoch)
            counts["" if drawn is None else drawn.kind] += 1
        return counts

    def compute_expected_shares(self, rows: Iterable[int]) -> dict[str, float]:
        """Compute the share of each kind in the texts that are drawn (combine "none"): the limit of many epochs."""
        if self.rule.combine != "none":
            raise UserError(f"combine '{self.rule.combine}': expected shares are those of the mixture; expected 'none'")
        sums: dict[str, float] = {}
        for row in rows:
            for kind, probability in self.rule.mixture.probabilities(list(self.read_row(row))).items():
                sums[kind] = sums.get(kind, 0.0) + probability
        # Divide by the sum, not by the number of images: with missing="skip" an image's probabilities may sum to less
        # than 1.
        total = sum(sums.values())
        return {kind: probability / total for kind, probability in sums.items()}
