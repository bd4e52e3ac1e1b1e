"""Generated scenes: their truth gives several short captions by template, the drawn words, and exact formats."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from foveate.caption.assertions.scene_truth import SceneTruth, SceneTruths
from foveate.caption.scene_captions import plan_claims, write_sentences
from foveate.caption.scene_claims import Claim, describe_position, relation_claims, unique_things, write_claim
from foveate.caption.targets.material import Material
from foveate.caption.targets.settings import TargetSettings
from foveate.core import seeds
from foveate.records.alt_texts import select_alt_text
from foveate.records.collection import Collection

_SHORT = 8
_RELATIONS = 6
_STATED = 2  # relations in a dense caption: more would be most of its text
# Kinds of noise (`records.scenes.alt_text`) whose texts name what is there.
_CLEAN = ("scenes: partial", "scenes: list", "scenes: keywords")


def read(collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int) -> list[Material]:
    """Material of the rows that are generated scenes with a visible thing."""
    truths = SceneTruths(collection)
    found = []
    for row in rows.tolist():
        truth = truths.get(row)
        if truth is None or not truth.things:
            continue
        key = collection.keys[row]
        captions = collection.read_captions(row)
        alt = select_alt_text(captions, settings.alt_kinds)
        clean = next((caption.source in _CLEAN for caption in captions if caption.text == alt), False)
        found.append(
            Material(
                row=row,
                key=key,
                source="scenes",
                short=tuple(short_captions(truth, rng=seeds.generator("short captions", seed, key))),
                written=truth.written,
                formats=formats(truth),
                describe=functools.partial(_descriptive, truth),
                alt=alt,
                alt_clean=clean,
                facts=tuple(thing.phrase for thing in truth.things),
            )
        )
    return found


def formats(truth: SceneTruth) -> dict[str, str]:
    """The exact text of each format, of what can be seen.

    Which photograph lies behind the things can be told of those of the training scenes alone; only the dense format
    names it, the others say what kind of ground it is, or nothing. The same holds for drawn words.
    """
    return {"ssc": _short(truth), "dsc": _descriptive(truth), "dsc_plus": _dense(truth)}


def _short(truth: SceneTruth) -> str:
    """The largest thing and where it is: one name can be seen more surely than two."""
    main = plan_claims("ssc", truth)[0].names[0]
    known = next((thing for thing in unique_things(truth) if thing.phrase == main), None)
    return f"{write_claim(Claim('line', (main,), '|'))} {describe_position(known) if known else 'more than once'}."


def _descriptive(truth: SceneTruth, main: str = "") -> str:
    kept = [claim for claim in plan_claims("dsc", truth, main=main) if claim.kind not in ("ground", "written")]
    return " ".join(write_sentences([*kept, *_ground_kind(truth)]))


def _dense(truth: SceneTruth) -> str:
    """Each thing with its place in one sentence, and few of the relations: all of them would be most of the text."""
    planned = plan_claims("dsc_plus", truth)
    main = planned[0].names
    links = [claim for claim in planned if claim.kind == "relation"][:_STATED]
    where = {claim.names: claim.word for claim in planned if claim.kind == "place"}
    told = []
    for claim in planned:
        if claim.kind == "there" and claim.names in where:
            told.append(f"{write_claim(claim)} {where[claim.names]}.")
        elif claim.kind == "place" and claim.names == main:
            told.insert(1, f"{write_claim(claim)}.")
        elif claim.kind not in ("place", "relation") or claim in links:
            told.append(f"{write_claim(claim)}.")
    return " ".join(told)


def _ground_kind(truth: SceneTruth) -> list[Claim]:
    return [Claim("ground kind", word=truth.ground_kind)] if truth.ground_kind else []


def short_captions(truth: SceneTruth, *, rng: np.random.Generator) -> list[str]:
    """Up to eight true sentences, each on one or two things, as different people might say them; and the ground."""
    single = unique_things(truth)
    links = relation_claims(single)[:_RELATIONS]
    said = [f"{write_claim(Claim('line', link.names, f'{link.word}|'))}." for link in links[:2]]
    said += [f"{write_claim(Claim('line', (thing.phrase,), '|'))} {describe_position(thing)}." for thing in single]
    said += [f"{write_claim(link)}." for link in links[2:]]
    repeated = {thing.phrase for thing in truth.things} - {thing.phrase for thing in single}
    said += [f"{write_claim(Claim('there', (phrase,), number=truth.count(phrase)))}." for phrase in sorted(repeated)]
    chosen = sorted(rng.permutation(len(said))[:_SHORT].tolist())
    on_ground = (
        [f"{write_claim(Claim('line', (single[0].phrase,), f'|{truth.ground}'))}."] if single and truth.ground else []
    )
    return [*(said[place] for place in chosen), *on_ground]
