"""Generated scenes: their truth gives several short captions by template, the drawn words, and exact formats."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from foveate.caption.assertions.truth import SceneTruth, SceneTruths
from foveate.caption.scene_captions import render
from foveate.caption.scene_claims import Claim, once, place_of, relations, say
from foveate.caption.small.material import Material
from foveate.caption.small.recipe import CaptionDataSettings
from foveate.records.alt_texts import alt_text
from foveate.records.collection import Collection
from foveate.records.sentences import sentences
from foveate.settings import seeds

_SHORT = 8
_RELATIONS = 6
_STATED = 2  # relations in a dense caption: more would be most of its text
_RELATION = re.compile(r"^The .* (?:to the left of|above|inside the outline of|overlapping) the [^.]*\.$")
# Kinds of noise (`records.scenes.alt_text`) whose texts name what is there.
_CLEAN = ("scenes: partial", "scenes: list", "scenes: keywords")


def read(
    collection: Collection, rows: NDArray[np.int64], settings: CaptionDataSettings, *, seed: int
) -> list[Material]:
    """Material of the rows that are generated scenes with a visible thing."""
    truths = SceneTruths(collection)
    found = []
    for row in rows.tolist():
        truth = truths.of(row)
        if truth is None or not truth.things:
            continue
        key = collection.keys[row]
        captions = collection.captions_of(row)
        alt = alt_text(captions, settings.alt_kinds)
        clean = next((caption.source in _CLEAN for caption in captions if caption.text == alt), False)
        found.append(
            Material(
                row=row,
                key=key,
                source="scenes",
                short=tuple(short_captions(truth, rng=seeds.generator("short captions", seed, key))),
                written=truth.written,
                formats=formats(truth, rng=seeds.generator("formats", seed, key)),
                alt=alt,
                alt_clean=clean,
                facts=tuple(thing.phrase for thing in truth.things),
            )
        )
    return found


def formats(truth: SceneTruth, *, rng: np.random.Generator) -> dict[str, str]:
    """The exact text of each format; of the relations of a dense caption the first few."""
    found = {kind: render(kind, truth, alt="", rng=rng).text for kind in ("ssc", "dsc", "dsc_plus")}
    told = sentences(found["dsc_plus"])
    stated = [place for place, sentence in enumerate(told) if _RELATION.match(sentence)]
    left_out = set(stated[_STATED:])
    found["dsc_plus"] = " ".join(sentence for place, sentence in enumerate(told) if place not in left_out)
    return found


def short_captions(truth: SceneTruth, *, rng: np.random.Generator) -> list[str]:
    """Up to eight true sentences, each on one or two things, as different people might say them."""
    single = once(truth)
    ground = truth.ground or "a plain ground"
    links = relations(single)[:_RELATIONS]
    said = [Claim("line", link.names, f"{link.word}|{ground}") for link in links[:2]]
    said += [Claim("line", (thing.phrase,), f"|{ground}") for thing in single]
    said += [Claim("place", (thing.phrase,), place_of(thing)) for thing in single]
    said += links[2:]
    repeated = {thing.phrase for thing in truth.things} - {thing.phrase for thing in single}
    said += [Claim("there", (phrase,), number=truth.count(phrase)) for phrase in sorted(repeated)]
    chosen = sorted(rng.permutation(len(said))[:_SHORT].tolist())
    return [f"{say(said[place])}." for place in chosen]
