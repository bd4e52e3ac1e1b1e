"""The fine-tuning sets of both stages: one row per image, format and stage; what is dropped is counted.

Every row passes the answer parser, the gates, and a check that the target has no content word that none of its inputs
has. The AltText of an AFC row is its own or, in a given share, noise that the target ignores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from foveate.caption.captioner import CaptionResponse
from foveate.caption.length_filters import LENGTH_FILTERS, apply_length_filter
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.response_parser import parse_caption, serialize
from foveate.caption.targets.material import Material
from foveate.caption.targets.rewriting import Rewriter, content_words, fuse, names_in, new_words
from foveate.caption.targets.settings import TargetSettings
from foveate.core import seeds
from foveate.records.alt_texts import is_usable_alt_text
from foveate.records.text import split_words

FORMAT_STAGE, ALIGN_STAGE = 1, 2
EXACT = "exact"
_BAD_FLAGS = ("too_long", "too_short")
_SYLLABLES = (
    "ba bren da del el fen gor har il ka kes lin lo mar mi na nor os pel ra ri sa ster ta ter ul va vel wen".split()
)
_PLACES = ("Port", "Old", "Lake", "Mount", "Saint", "New")
_MISMATCHES = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One target. image: key of the image; row: its number in the collection. alt: what an AFC prompt shows, else "".
    source: of the material. rewrite: who wrote the target. tokens: its length in CLIP tokens."""

    image: str
    row: int
    kind: str
    alt: str
    target: str
    source: str
    stage: int
    rewrite: str
    tokens: int


@dataclass(frozen=True)
class Rows:
    """rows: ascending by stage and image. dropped: (stage, kind, reason) -> number."""

    rows: list[Row]
    dropped: Counter[tuple[int, str, str]]

    def of_stage(self, stage: int) -> list[Row]:
        """The rows of one stage."""
        return [row for row in self.rows if row.stage == stage]

    def to_table(self) -> pa.Table:
        """The rows as a table with the columns of `Row`."""
        return pa.Table.from_pylist([asdict(row) for row in self.rows], schema=SCHEMA)

    def summary(self) -> dict[str, dict[str, int]]:
        """Counts for result.json: written by stage and kind, dropped by stage, kind and reason."""
        written = Counter(f"stage {row.stage}, {row.kind}" for row in self.rows)
        dropped = {f"stage {stage}, {kind}: {why}": n for (stage, kind, why), n in sorted(self.dropped.items())}
        return {"written": dict(sorted(written.items())), "dropped": dropped}


SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("row", pa.int64()),
        ("kind", pa.string()),
        ("alt", pa.string()),
        ("target", pa.string()),
        ("source", pa.string()),
        ("stage", pa.int32()),
        ("rewrite", pa.string()),
        ("tokens", pa.int32()),
    ]
)


def rows_of_table(table: pa.Table) -> list[Row]:
    """The inverse of `Rows.to_table`."""
    return [Row(**row) for row in table.to_pylist()]


def write_rows(materials: Sequence[Material], settings: TargetSettings, rewriter: Rewriter, *, seed: int) -> Rows:
    """The rows of both stages for all materials."""
    rows, dropped = list[Row](), Counter[tuple[int, str, str]]()
    for stage in (FORMAT_STAGE, ALIGN_STAGE):
        for material, answers, who in _targets(materials, stage, rewriter):
            inputs = material.inputs() if settings.text_check else None
            for kind, answer in answers.items():
                target, why = _read(kind, answer, inputs)
                if why:
                    dropped[stage, kind, why] += 1
                    continue
                rows.append(_row(material, kind, "", target, stage, who))
                if kind != "dsc":
                    continue
                made = _afc(material, target, stage, who, materials, settings, seed)
                if isinstance(made, Row):
                    rows.append(made)
                else:
                    dropped[stage, "afc", made] += 1
    return Rows(rows, dropped)


def _targets(
    materials: Sequence[Material], stage: int, rewriter: Rewriter
) -> Iterator[tuple[Material, Mapping[str, CaptionResponse], str]]:
    """Of each image with something to rewrite: the answers, and whose they are."""
    if stage == FORMAT_STAGE:
        chosen = [material for material in materials if material.short]
        merged = rewriter.merge([(material.short, material.written) for material in chosen])
        yield from ((material, found, rewriter.provenance) for material, found in zip(chosen, merged, strict=True))
        return
    for material in materials:
        if material.formats:
            yield material, {kind: CaptionResponse(serialize(text)) for kind, text in material.formats.items()}, EXACT
    chosen = [material for material in materials if material.descriptions and not material.formats]
    written = rewriter.formats([max(material.descriptions, key=len) for material in chosen])
    yield from ((material, found, rewriter.provenance) for material, found in zip(chosen, written, strict=True))


def _read(kind: str, answer: CaptionResponse, inputs: Sequence[str] | None) -> tuple[str, str]:
    """The target in an answer, or "" and why there is none."""
    if answer.error:
        return "", f"rewriter: {answer.error}"
    read = parse_caption(answer.text)
    if read.caption is None:
        return "", f"parser: {read.error}"
    return checked(kind, read.caption, inputs)


def checked(kind: str, text: str, inputs: Sequence[str] | None) -> tuple[str, str]:
    """A text as it may be a target, or "" and why it may not."""
    passed = apply_length_filter(kind, text)
    bad = passed.error or next((flag for flag in passed.flags if flag in _BAD_FLAGS), "")
    if bad:
        return "", f"gate: {bad}"
    if inputs is not None and new_words(passed.caption, inputs):
        return "", "new word"
    return passed.caption, ""


def _row(material: Material, kind: str, alt: str, target: str, stage: int, who: str) -> Row:
    tokens = count_clip_tokens(target)
    return Row(material.key, material.row, kind, alt, target, material.source, stage, who, tokens)


def _afc(
    material: Material,
    dsc: str,
    stage: int,
    who: str,
    materials: Sequence[Material],
    settings: TargetSettings,
    seed: int,
) -> Row | str:
    """The AFC row of an image, or why it has none."""
    draw = seeds.generator("afc", seed, stage, material.key)
    inputs = material.inputs()
    noisy = draw.random() < settings.noisy_alt
    alt, facts = material.alt, tuple[str, ...]()
    if noisy:
        if material.alt_clean is not False or not alt:
            alt = _mismatched(material, materials, draw)
    else:
        if material.alt_clean is False or not is_usable_alt_text(alt):
            alt = _listed(material, draw)
        if material.alt_clean is not None and draw.random() < settings.invented_names:
            name = invented_name(draw)
            alt, facts = (f"{alt}, {name}" if alt else name), (name,)
        elif material.alt_clean is None:
            facts = names_in(alt, [*inputs, dsc])
    if not is_usable_alt_text(alt):
        return "no usable AltText"
    named = [fact for fact in material.facts if _says(alt, fact)]
    if stage == ALIGN_STAGE and material.describe is not None and named and not noisy:
        dsc = material.describe(named[0])
    text = dsc if noisy else fuse(dsc, facts, alt=alt, most=LENGTH_FILTERS["afc"].max_tokens)
    target, why = checked("afc", text, [*inputs, *facts] if settings.text_check else None)
    return why or _row(material, "afc", alt, target, stage, who)


def _says(alt: str, fact: str) -> bool:
    """Whether an AltText has all words of a fact."""
    return set(split_words(fact)) <= set(split_words(alt))


def _mismatched(material: Material, materials: Sequence[Material], draw: np.random.Generator) -> str:
    """The AltText of another image that shares no content word with this one; "" where ten draws gave none."""
    own = set[str]().union(*(content_words(text) for text in material.inputs()))
    for _ in range(_MISMATCHES):
        other = materials[int(draw.integers(len(materials)))]
        if other.key != material.key and other.alt and not content_words(other.alt) & own:
            return other.alt
    return ""


def _listed(material: Material, draw: np.random.Generator) -> str:
    """A short AltText of one or two known facts, for built-in images whose own says nothing."""
    facts = [fact for fact in material.facts if fact]
    if material.alt_clean is None or not facts:
        return material.alt
    count = min(len(facts), 1 + int(draw.integers(2)))
    return " and ".join(facts[place] for place in draw.permutation(len(facts))[:count])


def invented_name(draw: np.random.Generator) -> str:
    """A name that no image shows: of a place or a person, now and then with a year.

    So that what is copied into a caption is learnt as copying, and not as a list of known names.
    """
    word = "".join(_SYLLABLES[int(place)] for place in draw.integers(0, len(_SYLLABLES), int(draw.integers(2, 4))))
    name = word.capitalize()
    if draw.random() < 0.3:
        name = f"{_PLACES[int(draw.integers(len(_PLACES)))]} {name}"
    return f"{name} {int(draw.integers(1850, 2025))}" if draw.random() < 0.4 else name
