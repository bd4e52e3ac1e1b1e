"""Material for captioner targets from generated scenes and from single drawings, whose truth is known.

Scenes give short captions by template, drawn words, and exact formats. The built-in clip art and emoji show one named
thing in the middle of a plain background, so that all statements hold by construction; images without a plain name
(label `concept`) are left out, whatever their titles claim.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from foveate.caption.settings import TargetSettings
from foveate.caption.targets.material import Material
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.records.captions import select_alt_text
from foveate.records.collection import Collection
from foveate_labs.captions.scene_captions import (
    Claim,
    describe_position,
    plan_claims,
    relation_claims,
    unique_things,
    write_claim,
    write_sentences,
)
from foveate_labs.captions.scene_truth import SceneTruth, SceneTruths
from foveate_labs.worlds.scenes.language import add_article, is_plural

_STYLES = {"clipart": "clip art", "noto": "an emoji", "twemoji": "an emoji"}
_MAX_SHORT = 8  # short captions of an image, as many as several annotators would write
_MAX_RELATIONS = 6
_MAX_DENSE_RELATIONS = 2  # more would be most of the text of a dense caption
# Kinds of noise (`records.scenes.alt_text`) whose texts name what is there.
_CLEAN = ("scenes: partial", "scenes: list", "scenes: keywords")


def read_scenes(
    collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int
) -> list[Material]:
    """Read material of rows that are generated scenes with a visible thing."""
    truths = SceneTruths(collection)
    materials = []
    for row in rows.tolist():
        truth = truths.get(row)
        if truth is None or not truth.things:
            continue
        key = collection.keys[row]
        captions = collection.read_captions(row)
        alt = select_alt_text(captions, settings.alt_kinds)
        clean = next((caption.source in _CLEAN for caption in captions if caption.text == alt), False)
        materials.append(
            Material(
                row=row,
                key=key,
                source="scenes",
                short=tuple(short_captions(truth, rng=seeds.generator("short captions", seed, key))),
                written=truth.written,
                formats=write_formats(truth),
                describe=functools.partial(_descriptive, truth),
                alt=alt,
                alt_clean=clean,
                facts=tuple(thing.phrase for thing in truth.things),
            )
        )
    return materials


def write_formats(truth: SceneTruth) -> dict[str, str]:
    """Write the exact text of each format about what can be seen.

    Only the dense format names the photograph in the background and drawn words: a model can know the photographs of
    training scenes only. The others say what kind of background it is, or nothing.
    """
    return {"ssc": _short(truth), "dsc": _descriptive(truth), "dsc_plus": _dense(truth)}


def _short(truth: SceneTruth) -> str:
    """Name the largest thing and its position: one name is recognized more surely than two."""
    main = plan_claims("ssc", truth)[0].names[0]
    known = next((thing for thing in unique_things(truth) if thing.phrase == main), None)
    # A repeated thing has no single position.
    return f"{write_claim(Claim('line', (main,), '|'))} {describe_position(known) if known else 'more than once'}."


def _descriptive(truth: SceneTruth, main: str = "") -> str:
    claims = [claim for claim in plan_claims("dsc", truth, main=main) if claim.kind not in ("ground", "written")]
    return " ".join(write_sentences([*claims, *_ground_kind(truth)]))


def _dense(truth: SceneTruth) -> str:
    """Write each thing with its position in one sentence, and few of the relations."""
    planned = plan_claims("dsc_plus", truth)
    main = planned[0].names
    links = [claim for claim in planned if claim.kind == "relation"][:_MAX_DENSE_RELATIONS]
    where = {claim.names: claim.word for claim in planned if claim.kind == "place"}
    sentences = []
    for claim in planned:
        if claim.kind == "there" and claim.names in where:
            sentences.append(f"{write_claim(claim)} {where[claim.names]}.")
        elif claim.kind == "place" and claim.names == main:
            # The first sentence names the main thing, so the sentence on its position comes right after it.
            sentences.insert(1, f"{write_claim(claim)}.")
        elif claim.kind not in ("place", "relation") or claim in links:
            sentences.append(f"{write_claim(claim)}.")
    return " ".join(sentences)


def _ground_kind(truth: SceneTruth) -> list[Claim]:
    return [Claim("ground kind", word=truth.ground_kind)] if truth.ground_kind else []


def short_captions(truth: SceneTruth, *, rng: np.random.Generator) -> list[str]:
    """Write up to eight true sentences on one or two things, as different people would, and one on the background."""
    single = unique_things(truth)
    links = relation_claims(single)[:_MAX_RELATIONS]
    sentences = [f"{write_claim(Claim('line', link.names, f'{link.word}|'))}." for link in links[:2]]
    sentences += [f"{write_claim(Claim('line', (thing.phrase,), '|'))} {describe_position(thing)}." for thing in single]
    sentences += [f"{write_claim(link)}." for link in links[2:]]
    repeated = {thing.phrase for thing in truth.things} - {thing.phrase for thing in single}
    sentences += [
        f"{write_claim(Claim('there', (phrase,), number=truth.count(phrase)))}." for phrase in sorted(repeated)
    ]
    drawn = sorted(rng.permutation(len(sentences))[:_MAX_SHORT].tolist())
    on_ground = (
        [f"{write_claim(Claim('line', (single[0].phrase,), f'|{truth.ground}'))}."] if single and truth.ground else []
    )
    return [*(sentences[index] for index in drawn), *on_ground]


def read_singles(
    collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int
) -> list[Material]:
    """Read material of rows that are named clip art or emoji of the built-in collections."""
    try:
        styles, concepts = (collection.label_values(field) for field in ("style", "concept"))
        groups = collection.label_values("subcategory")
    except UserError:  # the collection has other labels: none of its images is built in
        return []
    materials = []
    for row in rows.tolist():
        concept, style = str(concepts[row]), str(styles[row])
        if not concept or style not in _STYLES:
            continue
        captions = collection.read_captions(row)
        keywords = next((caption.text for caption in captions if caption.kind == "keywords"), "")
        materials.append(
            Material(
                row=row,
                key=collection.keys[row],
                source="singles",
                short=_single_captions(concept, style),
                formats=write_single_formats(concept, style, str(groups[row])),
                alt=select_alt_text(captions, settings.alt_kinds),
                alt_clean=True,
                facts=(concept, keywords, str(groups[row])),
            )
        )
    return materials


def _single_captions(concept: str, style: str) -> tuple[str, ...]:
    thing = add_article(concept)
    first = f"{thing[0].upper()}{thing[1:]}"
    return (
        f"{first} on a plain ground.",
        f"A drawing of {thing}.",
        f"{first} alone in the middle of the picture.",
        f"{first} in the style of {_STYLES[style]}.",
        f"A picture of {thing} on a plain ground.",
    )


def write_single_formats(concept: str, style: str, group: str) -> dict[str, str]:
    """Write the exact text of each format."""
    thing = add_article(concept)
    are = "are" if is_plural(concept) else "is"
    kind = " and ".join(part.replace("-", " ").replace("_", " ") for part in group.split("/") if part)
    ssc = f"{thing[0].upper()}{thing[1:]} on a plain ground."
    dsc = [
        f"A drawing of {thing}.",
        f"The {concept} {are} in the middle of the picture.",
        "The background is plain.",
    ]
    dense = [
        f"A square picture that shows a drawing of {thing}.",
        f"The drawing is in the style of {_STYLES[style]}.",
        f"The {concept} {are} in the middle of the picture.",
        f"The {concept} {are} the only named thing in the picture.",
        f"There is nothing to the left of the {concept}.",
        f"There is nothing to the right of the {concept}.",
        f"There is nothing above the {concept}.",
        f"There is nothing below the {concept}.",
        *([f"The drawing belongs to the group {kind}."] if kind else []),
        "The background is plain.",
        "The background is drawn in one pale colour.",
    ]
    return {"ssc": ssc, "dsc": " ".join(dsc), "dsc_plus": " ".join(dense)}


SOURCES = {"scenes": read_scenes, "singles": read_singles}
