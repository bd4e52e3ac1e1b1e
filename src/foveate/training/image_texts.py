"""The texts of a collection's images, and the one that an epoch draws: what the loader trains on and `mix` foretells.

Which caption holds where several models wrote one is the rule of `foveate.records.current_captions`. An image without a text of
kind `alt` lends one of its own texts (title, description, ...) where that kind has no weight of its own.
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
from foveate.records.alt_texts import ALT_KINDS
from foveate.records.collection import Collection
from foveate.records.current_captions import select_current
from foveate.records.text import split_sentences
from foveate.training.mixture import FORMATS, MixtureSampler

Combine = Literal["none", "concat", "fuse", "part", "uniform"]
ALT = "alt"
_SYNTHETIC = frozenset(FORMATS) - {ALT}
_ROWS_AT_A_TIME = 65_536

_FUSED = ("afc", "fuse")
Texts = Mapping[str, tuple[str, ...]]


class Drawn(NamedTuple):
    """What an epoch reads: the kind that it was drawn as, and the text."""

    kind: str
    text: str


@dataclass(frozen=True)
class TextRule:
    """How one text per epoch is drawn from those of an image.

    combine: "none" draws by the mixture. The others are the ablations of Lai et al. 2024 and its relatives: "concat"
    puts the alt-text before the drawn synthetic caption; "fuse" takes the alt-fused caption (afc) where there is one;
    "part" takes one sentence of a synthetic caption (CLIPS); "uniform" takes each text of the wanted kinds equally
    often, and the alt-text instead of one of a single word (LaCLIP).
    """

    mixture: MixtureSampler
    combine: Combine = "none"

    @property
    def kinds(self) -> list[str]:
        """The kinds that a text may be drawn from, in the order of the mixture."""
        wanted = [kind for kind, weight in self.mixture.weights.items() if weight > 0]
        more = {"concat": [ALT], "fuse": ["afc"], "uniform": [ALT]}.get(self.combine, [])
        more += [ALT] if self.mixture.missing == ALT else []
        return [*wanted, *(kind for kind in more if kind not in wanted)]

    @property
    def drawable(self) -> list[str]:
        """Those of `kinds` that a text may be drawn as; the alt-text may only be there to stand before another."""
        weights = self.mixture.weights
        lost = self.mixture.missing == ALT
        return [k for k in self.kinds if weights.get(k, 0) > 0 or (k == ALT and lost) or (k, self.combine) == _FUSED]

    def draw(self, texts: Texts, *, seed: int, epoch: int, key: str) -> Drawn | None:
        """The text of this epoch, a pure function of its arguments; None: leave the image out and count it."""
        if self.combine == "uniform":
            return self._uniform(texts, seed, epoch, key)
        if self.combine == "fuse" and texts.get("afc"):
            return Drawn("afc", _one_of(texts["afc"], "text", seed, epoch, key))
        kind = self.mixture.draw(list(texts), seed=seed, epoch=epoch, key=key)
        if kind is None:
            return None
        text = _one_of(texts[kind], "text", seed, epoch, key)
        if self.combine == "part" and kind in _SYNTHETIC:
            return Drawn(kind, _one_of(split_sentences(text) or [text], "sentence", seed, epoch, key))
        if self.combine == "concat" and kind in _SYNTHETIC and texts.get(ALT):
            return Drawn(f"alt+{kind}", joined(_one_of(texts[ALT], "alt", seed, epoch, key), text))
        return Drawn(kind, text)

    def _uniform(self, texts: Texts, seed: int, epoch: int, key: str) -> Drawn | None:
        every = [
            Drawn(kind, text) for kind, own in texts.items() if self.mixture.weights.get(kind, 0) > 0 for text in own
        ]
        if not every:
            return None
        drawn = every[int(seeds.uniform("text", seed, epoch, key) * len(every))]
        if len(drawn.text.split()) < 2 and texts.get(ALT):
            return Drawn(ALT, _one_of(texts[ALT], "alt", seed, epoch, key))
        return drawn

    def possible(self, texts: Texts) -> Iterable[str]:
        """Every text that `draw` may give for an image."""
        for kind, own in texts.items():
            for text in own:
                yield text
                if self.combine == "part" and kind in _SYNTHETIC:
                    yield from split_sentences(text)
                if self.combine == "concat" and kind in _SYNTHETIC:
                    yield from (joined(alt, text) for alt in texts.get(ALT, ()))


def _one_of(choices: Sequence[str], what: str, seed: int, epoch: int, key: str) -> str:
    return choices[int(seeds.uniform(what, seed, epoch, key) * len(choices))]


def joined(alt: str, caption: str) -> str:
    """Two texts as one, the alt-text with a full stop.

    >>> joined("Red boat", "A boat on a lake.")
    'Red boat. A boat on a lake.'
    """
    return f"{alt.rstrip()}{'' if alt.rstrip().endswith(('.', '!', '?')) else '.'} {caption}"


class ImageTexts:
    """The texts of the wanted kinds of every image of a collection.

    Args:
        prefer: models whose captions are preferred, best first (`foveate.records.current_captions`).

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
        self.usable = select_current(captions.table, prefer=prefer) & self._said(captions.table)
        drawable = [*rule.drawable, *(lenders if ALT in rule.drawable else [])]
        self._drawable = self.usable & pc.call_function(
            "is_in", [captions.table["kind"]], pc.SetLookupOptions(value_set=pa.array(drawable, pa.string()))
        ).to_numpy(zero_copy_only=False)

    def _said(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which captions have a wanted kind and letters."""
        said = np.zeros(table.num_rows, dtype=bool)
        wanted = pc.SetLookupOptions(value_set=pa.array(self._read_kinds, pa.string()))
        for start in range(0, table.num_rows, _ROWS_AT_A_TIME):
            part = table.slice(start, _ROWS_AT_A_TIME)
            trimmed = pc.call_function("utf8_trim_whitespace", [part["text"]])
            letters = pc.call_function("utf8_length", [trimmed]).to_numpy() > 0
            of_kind = pc.call_function("is_in", [part["kind"]], wanted).to_numpy()
            said[start : start + part.num_rows] = of_kind & letters
        return said

    def rows_with_text(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `rows` that have a text which may be drawn."""
        has_text = np.zeros(len(self.collection), dtype=bool)
        has_text[self.collection.grouped("captions").row_numbers[self._drawable]] = True
        return rows[has_text[rows]].astype(np.int64)

    def of(self, row: int) -> dict[str, tuple[str, ...]]:
        """Texts by kind; `alt` may be lent by another kind."""
        captions = self.collection.grouped("captions")
        start, end = captions.bounds(row)
        found: dict[str, tuple[str, ...]] = {}
        columns = captions.texts("kind", start, end), captions.texts("text", start, end)
        for usable, kind, text in zip(self.usable[start:end].tolist(), *columns, strict=True):
            if usable:
                found[kind] = (*found.get(kind, ()), text)
        if ALT in self.kinds and ALT not in found:
            lender = next((kind for kind in self._lenders if kind in found), None)
            if lender is not None:
                found[ALT] = found[lender]
        return {kind: texts for kind, texts in found.items() if kind in self.kinds}

    def draw(self, row: int, *, seed: int, epoch: int) -> Drawn | None:
        """The text of an epoch."""
        return self.rule.draw(self.of(row), seed=seed, epoch=epoch, key=self.collection.keys[row])

    def possible(self, rows: NDArray[np.int64]) -> pa.ChunkedArray:
        """Every text that may be drawn for one of `rows`."""
        if self.rule.combine in ("concat", "part"):
            texts = (text for row in rows.tolist() for text in self.rule.possible(self.of(row)))
            return pa.chunked_array([pa.array(texts, pa.string())])
        chosen = np.zeros(len(self.collection), dtype=bool)
        chosen[rows] = True
        captions = self.collection.grouped("captions")
        return pa.chunked_array(captions.table["text"].filter(pa.array(self.usable & chosen[captions.row_numbers])))

    def drawn_in_epoch(self, rows: Iterable[int], *, seed: int, epoch: int = 0) -> Counter[str]:
        """How often each kind is drawn when every one of `rows` is visited once; "" counts those left out."""
        counts: Counter[str] = Counter()
        for row in rows:
            drawn = self.draw(row, seed=seed, epoch=epoch)
            counts["" if drawn is None else drawn.kind] += 1
        return counts

    def expected(self, rows: Iterable[int]) -> dict[str, float]:
        """Mean probability of each kind over the images (combine "none"): what a long training gets."""
        if self.rule.combine != "none":
            raise UserError("expected shares are those of the mixture alone: combine must be 'none'")
        sums: dict[str, float] = {}
        count = 0
        for row in rows:
            count += 1
            for kind, probability in self.rule.mixture.probabilities(list(self.of(row))).items():
                sums[kind] = sums.get(kind, 0.0) + probability
        return {kind: total / count for kind, total in sums.items()} if count else {}
