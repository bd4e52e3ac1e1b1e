"""Training sets of both stages: one row per image, format and stage; dropped rows are counted.

Every row passes the response parser, the length filters, and a check that the target has no content word that none of
its inputs has. The AltText of an AFC row is its own or, in a given share, noise that the target ignores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.caption.captioner import CaptionResponse
from foveate.caption.lengths import LENGTH_FILTERS, apply_length_filter, count_clip_tokens
from foveate.caption.response_parser import parse_caption, serialize
from foveate.caption.settings import TargetSettings
from foveate.caption.targets.material import Material
from foveate.caption.targets.rewriting import Rewriter, content_words, find_names, fuse, new_words
from foveate.core import seeds
from foveate.records.captions import is_usable_alt_text
from foveate.records.text import split_words

FORMAT_STAGE, ALIGN_STAGE = 1, 2
EXACT = "exact"
_BAD_FLAGS = ("too_long", "too_short")
_SYLLABLES = (
    "ba bren da del el fen gor har il ka kes lin lo mar mi na nor os pel ra ri sa ster ta ter ul va vel wen".split()
)
_PLACE_PREFIXES = ("Port", "Old", "Lake", "Mount", "Saint", "New")
# Draws of another image's AltText until one shares no word. In a narrow collection none may, so there is a limit.
_MISMATCH_DRAWS = 10


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One training target.

    Attributes:
        image: key of the image.
        row: its row in the collection.
        alt: AltText in an AFC prompt, else "".
        source: of the material.
        rewrite: provenance of the target's text.
        tokens: length of the target in CLIP tokens.
    """

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
class TargetRows:
    """The rows of both stages.

    Attributes:
        rows: ascending by stage and image.
        dropped: (stage, kind, reason) -> number.
    """

    rows: list[TargetRow]
    dropped: Counter[tuple[int, str, str]]

    def of_stage(self, stage: int) -> list[TargetRow]:
        """Select the rows of one stage."""
        return [row for row in self.rows if row.stage == stage]

    def summary(self) -> dict[str, dict[str, int]]:
        """Count rows by stage and kind, and dropped ones by stage, kind and reason, for result.json."""
        written = Counter(f"stage {row.stage}, {row.kind}" for row in self.rows)
        dropped = {f"stage {stage}, {kind}: {why}": n for (stage, kind, why), n in sorted(self.dropped.items())}
        return {"written": dict(sorted(written.items())), "dropped": dropped}


def write_rows(
    materials: Sequence[Material],
    settings: TargetSettings,
    rewriter: Rewriter,
    *,
    seed: int,
    others: Sequence[Material] | None = None,
) -> TargetRows:
    """Write the rows of both stages.

    Args:
        others: whose AltTexts are drawn as noise; by default `materials`.
    """
    others = materials if others is None else others
    rows, dropped = list[TargetRow](), Counter[tuple[int, str, str]]()
    for stage in (FORMAT_STAGE, ALIGN_STAGE):
        for material, answers, provenance in _write_targets(materials, stage, rewriter):
            inputs = material.inputs() if settings.text_check else None
            for kind, answer in answers.items():
                target, reason = _parse_target(kind, answer, inputs)
                if reason:
                    dropped[stage, kind, reason] += 1
                    continue
                rows.append(_make_row(material, kind, "", target, stage, provenance))
                if kind != "dsc":
                    continue
                # AFC is the dsc with facts of the AltText: nothing needs to be rewritten for it.
                afc = _make_afc_row(material, target, stage, provenance, others, settings, seed)
                if isinstance(afc, TargetRow):
                    rows.append(afc)
                else:
                    dropped[stage, "afc", afc] += 1
    return TargetRows(rows, dropped)


def _write_targets(
    materials: Sequence[Material], stage: int, rewriter: Rewriter
) -> Iterator[tuple[Material, Mapping[str, CaptionResponse], str]]:
    """Yield each image that has something to rewrite, with the responses by kind and their provenance."""
    if stage == FORMAT_STAGE:
        with_short = [material for material in materials if material.short]
        merged = rewriter.merge([(material.short, material.written) for material in with_short])
        yield from ((material, texts, rewriter.provenance) for material, texts in zip(with_short, merged, strict=True))
        return
    for material in materials:
        if material.formats:
            # Write texts as a response: exact texts pass the same parser and filters as rewrites.
            yield material, {kind: CaptionResponse(serialize(text)) for kind, text in material.formats.items()}, EXACT
    described = [material for material in materials if material.descriptions and not material.formats]
    # Take the longest description; it offers the most phrases.
    written = rewriter.formats([max(material.descriptions, key=len) for material in described])
    yield from ((material, texts, rewriter.provenance) for material, texts in zip(described, written, strict=True))


def _parse_target(kind: str, answer: CaptionResponse, inputs: Sequence[str] | None) -> tuple[str, str]:
    """Return the target in a response and "", or "" and the reason why there is none."""
    if answer.error:
        return "", f"rewriter: {answer.error}"
    read = parse_caption(answer.text)
    if read.caption is None:
        return "", f"parser: {read.error}"
    return check_target(kind, read.caption, inputs)


def check_target(kind: str, text: str, inputs: Sequence[str] | None) -> tuple[str, str]:
    """Return the text as it may be a target and "", or "" and the reason why it may not."""
    passed = apply_length_filter(kind, text)
    bad = passed.error or next((flag for flag in passed.flags if flag in _BAD_FLAGS), "")
    if bad:
        return "", f"gate: {bad}"
    if inputs is not None and new_words(passed.caption, inputs):
        return "", "new word"
    return passed.caption, ""


def _make_row(material: Material, kind: str, alt: str, target: str, stage: int, provenance: str) -> TargetRow:
    tokens = count_clip_tokens(target)
    return TargetRow(material.key, material.row, kind, alt, target, material.source, stage, provenance, tokens)


def _make_afc_row(
    material: Material,
    dsc: str,
    stage: int,
    provenance: str,
    others: Sequence[Material],
    settings: TargetSettings,
    seed: int,
) -> TargetRow | str:
    """Return the AFC row of an image, or the reason why it has none."""
    draw = seeds.generator("afc", seed, stage, material.key)
    inputs = material.inputs()
    # The model must learn when to ignore the AltText, so a share of rows has one without any true content.
    noisy = draw.random() < settings.noisy_alt
    alt, facts = material.alt, tuple[str, ...]()
    if noisy:
        if material.alt_clean is not False or not alt:
            alt = _draw_mismatched(material, others, draw)
    else:
        if material.alt_clean is False or not is_usable_alt_text(alt):
            alt = _list_facts(material, draw)
        if material.alt_clean is not None and draw.random() < settings.invented_names:
            name = invented_name(draw)
            alt, facts = (f"{alt}, {name}" if alt else name), (name,)
        elif material.alt_clean is None:
            facts = find_names(alt, [*inputs, dsc])
    if not is_usable_alt_text(alt):
        return "no usable AltText"
    # A thing that the AltText names comes first in the target, which shows the model what to take from it.
    named = [fact for fact in material.facts if _contains_words(alt, fact)]
    if stage == ALIGN_STAGE and material.describe is not None and named and not noisy:
        dsc = material.describe(named[0])
    text = dsc if noisy else fuse(dsc, facts, alt=alt, max_tokens=LENGTH_FILTERS["afc"].max_tokens)
    target, reason = check_target("afc", text, [*inputs, *facts] if settings.text_check else None)
    return reason or _make_row(material, "afc", alt, target, stage, provenance)


def _contains_words(alt: str, fact: str) -> bool:
    """Whether an AltText has all words of a fact."""
    return set(split_words(fact)) <= set(split_words(alt))


def _draw_mismatched(material: Material, others: Sequence[Material], draw: np.random.Generator) -> str:
    """Draw the AltText of another image that shares no content word with this one; "" if no draw gave one."""
    content = set[str]().union(*(content_words(text) for text in material.inputs()))
    for _ in range(_MISMATCH_DRAWS):
        other = others[int(draw.integers(len(others)))]
        # A shared word could make the foreign AltText true by chance.
        if other.key != material.key and other.alt and not content_words(other.alt) & content:
            return other.alt
    return ""


def _list_facts(material: Material, draw: np.random.Generator) -> str:
    """Draw an AltText of one or two known facts, for built-in images whose own is uninformative."""
    facts = [fact for fact in material.facts if fact]
    if material.alt_clean is None or not facts:
        return material.alt
    count = min(len(facts), 1 + int(draw.integers(2)))
    return " and ".join(facts[index] for index in draw.permutation(len(facts))[:count])


def invented_name(draw: np.random.Generator) -> str:
    """Make up a name of a place or a person, sometimes with a year.

    No image shows it, and no list holds it: the model has to learn to copy it from the AltText.
    """
    word = "".join(_SYLLABLES[int(index)] for index in draw.integers(0, len(_SYLLABLES), int(draw.integers(2, 4))))
    name = word.capitalize()
    if draw.random() < 0.3:
        name = f"{_PLACE_PREFIXES[int(draw.integers(len(_PLACE_PREFIXES)))]} {name}"
    return f"{name} {int(draw.integers(1850, 2025))}" if draw.random() < 0.4 else name
