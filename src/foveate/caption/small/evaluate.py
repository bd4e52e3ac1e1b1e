"""Whether a captioner obeys: answers that parse and pass their gates, lengths that rise; on scenes also what holds.

On generated scenes the truth is known, so that ANA (assertions per caption) and the share of assertions that hold need
no judge; real images have no truth and get obedience and lengths alone. The two are never mixed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.caption.assertions.scene_judge import judge_assertions
from foveate.caption.assertions.scene_truth import SceneTruths
from foveate.caption.assertions.splitter import split
from foveate.caption.entities import collect_entities
from foveate.caption.length_filters import LENGTH_FILTERS, apply_length_filter
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.response_parser import parse_caption
from foveate.caption.small.folder import SmallCaptioner
from foveate.caption.small.generate import MOST_TOKENS, Ask, Written, write
from foveate.caption.small.samples import cached_features
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import open_extractor
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.metrics.captions import CONTRADICTED, SUPPORTED
from foveate.metrics.intervals import Interval, bootstrap_interval, bootstrap_statistic
from foveate.records.alt_texts import is_usable_alt_text, select_alt_text
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail

COLUMNS = [
    {"key": "ssc", "title": "SSC", "what": "short: one sentence", "role": "ours"},
    {"key": "dsc", "title": "DSC", "what": "descriptive, within CLIP's window", "role": "ours"},
    {"key": "dsc_plus", "title": "DSC+", "what": "dense: everything, with places and relations", "role": "ours"},
    {"key": "afc", "title": "AFC", "what": "descriptive, with facts of the AltText", "role": "ours"},
]
_OBEYS = 0.95
_CHUNK = 64
_REAL, _SCENES = "images", "scenes"


@dataclass(frozen=True, slots=True)
class Judged:
    """One caption. obeys: it parses and passes its gate. verdicts: of its assertions, None without a truth. named: how
    many of the AltText's entities it names, `alt_entities`: how many there are (0 where the AltText is not usable)."""

    row: int
    kind: str
    alt: str
    text: str
    obeys: bool
    tokens: int
    verdicts: tuple[str, ...] | None
    named: int = 0
    alt_entities: int = 0


def chosen_rows(collection: Collection, *, split: str, limit: int | None, seed: int) -> NDArray[np.int64]:
    """At most `limit` rows of a split, drawn by the seed, ascending."""
    rows = collection.rows(split)
    if not len(rows):
        raise UserError(f"collection {collection.path}: split '{split}' has no images")
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(seeds.generator("captioner evaluation", seed).choice(rows, limit, replace=False))


def caption_rows(
    captioner: SmallCaptioner,
    collection: Collection,
    rows: NDArray[np.int64],
    *,
    cache: Path,
    kinds: Sequence[str] = CAPTION_KINDS,
    temperature: float = 0.0,
    seed: int = 0,
    most_tokens: Mapping[str, int] | None = None,
    shuffled: bool = False,
) -> list[tuple[int, Ask, Written]]:
    """Captions of all kinds for rows of a collection, from cached features; images that cannot be read are left out,
    and of AFC those whose AltText says nothing.

    Args:
        most_tokens: where writing stops, by kind; a caption that had not ended by then is not `finished`.
        shuffled: each image is captioned from the features of another one (a control).
    """
    model = captioner.model
    device = next(model.parameters()).device
    features = cached_features(collection, model.image_encoder, rows, cache=cache, device=device)
    good = [row for row in rows.tolist() if row not in features.bad]
    alts = {row: select_alt_text(collection.read_captions(row)) for row in good} if "afc" in kinds else {}
    prefixes = []
    for start in range(0, len(good), _CHUNK):
        part = torch.stack([features.features(row, 0) for row in good[start : start + _CHUNK]]).to(device)
        with torch.inference_mode():
            prefixes.append(model.prefix(part))
    prefix_NPD = torch.cat(prefixes)
    if shuffled:
        order = seeds.generator("shuffled pictures", seed).permutation(len(good))
        others = np.empty_like(order)
        others[order] = np.roll(order, 1)  # one circle: no image keeps its own
        prefix_NPD = prefix_NPD[torch.from_numpy(others)]
    found: list[tuple[int, Ask, Written]] = []
    for kind in track(kinds, description="captions"):
        places = [place for place, row in enumerate(good) if kind != "afc" or is_usable_alt_text(alts[row])]
        asks = [
            Ask(
                kind,
                alt=alts[good[place]] if kind == "afc" else "",
                temperature=temperature,
                seed=seed,
                name=collection.keys[good[place]],
                max_tokens=(most_tokens or {}).get(kind, MOST_TOKENS),
            )
            for place in places
        ]
        if asks:
            written = write(captioner, prefix_NPD[places], asks)
            found += [(good[place], ask, one) for place, ask, one in zip(places, asks, written, strict=True)]
    return found


def judged(collection: Collection, written: Sequence[tuple[int, Ask, Written]]) -> list[Judged]:
    """Each caption against its format's contract, and against the scene's truth where there is one."""
    from foveate.caption.backends.foveate import format_response

    truths, found = SceneTruths(collection), []
    phrases = functools.cache(open_extractor(PhraseSettings()))
    for row, ask, one in written:
        read = parse_caption(format_response(one))
        passed = apply_length_filter(ask.kind, read.caption) if read.caption is not None else None
        obeys = passed is not None and not passed.error and not {"too_long", "too_short"} & set(passed.flags)
        truth = truths.get(row)
        verdicts = None if truth is None else tuple(judge_assertions(split(one.text), truth))
        alt = select_alt_text(collection.read_captions(row))
        wanted = collect_entities([phrases(alt).phrases], "head") if is_usable_alt_text(alt) else set()
        named = wanted & collect_entities([phrases(one.text).phrases], "head") if wanted else wanted
        counts = len(named), len(wanted)
        found.append(Judged(row, ask.kind, ask.alt, one.text, obeys, count_clip_tokens(one.text), verdicts, *counts))
    return found


def table(captions: Sequence[Judged], *, seed: int) -> list[dict[str, Any]]:
    """The rows of the page's table: one question and set of images each, the formats as columns."""
    rows = []
    for data in (_SCENES, _REAL):
        groups = {
            kind: [one for one in captions if one.kind == kind and (one.verdicts is not None) == (data == _SCENES)]
            for kind in CAPTION_KINDS
        }
        groups = {kind: group for kind, group in groups.items() if group}
        if not groups:
            continue
        n = max(len(group) for group in groups.values())
        obeyed = {kind: _mean([one.obeys for one in group], seed) for kind, group in groups.items()}
        rows.append(_row("obeys its format (parses, passes the gate)", data, n, obeyed, chance=_OBEYS))
        tokens = {kind: _mean([one.tokens for one in group], seed) for kind, group in groups.items()}
        rows.append(_row("length (mean CLIP tokens without specials)", data, n, tokens, unit="tokens"))
        if data == _SCENES:
            counts = {kind: _mean([len(one.verdicts or ()) for one in group], seed) for kind, group in groups.items()}
            rows.append(_row("assertions per caption (ANA, rule splitter)", data, n, counts, unit="assertions"))
            for name, verdict in (("hold", SUPPORTED), ("are contradicted", CONTRADICTED)):
                shares = {
                    kind: _ratio(
                        [(one.verdicts or ()).count(verdict) for one in group],
                        [len(one.verdicts or ()) for one in group],
                        seed,
                    )
                    for kind, group in groups.items()
                }
                rows.append(_row(f"share of assertions that {name} (micro, by the scene's truth)", data, n, shares))
        known = {kind: [one for one in group if one.alt_entities] for kind, group in groups.items()}
        if any(known.values()):
            named = {
                kind: _ratio([one.named for one in group], [one.alt_entities for one in group], seed)
                for kind, group in known.items()
                if group
            }
            n = max(map(len, known.values()))
            rows.append(_row("share of the AltText's entities that are named (head nouns)", data, n, named))
    return rows


def _row(question: str, data: str, n: int, values: dict[str, Interval], **more: Any) -> dict[str, Any]:
    shown = {kind: {"value": one.value, "low": one.low, "high": one.high} for kind, one in values.items()}
    return {"question": question, "data": data, "n": n, "values": shown, **({"chance": None} | more)}


def _mean(values: Sequence[float], seed: int) -> Interval:
    return bootstrap_interval(np.asarray(values, dtype=np.float64), seed=seed)


def _ratio(part: Sequence[int], whole: Sequence[int], seed: int) -> Interval:
    """Sum of the parts over sum of the wholes; images are drawn for the interval."""
    part_N, whole_N = (np.asarray(values, dtype=np.float64) for values in (part, whole))
    return bootstrap_statistic(
        lambda rows: float(part_N[rows].sum() / max(whole_N[rows].sum(), 1)), rows=len(part_N), seed=seed
    )


def samples(
    collection: Collection, captions: Sequence[Judged], run: Path, *, count: int, seed: int
) -> list[dict[str, Any]]:
    """Some images with their AltText and the captions of all formats, for the page; images below `run`/images."""
    by_row: dict[int, dict[str, Judged]] = {}
    for one in captions:
        by_row.setdefault(one.row, {})[one.kind] = one
    found: list[dict[str, Any]] = []
    for data in (_SCENES, _REAL):
        rows = [
            row
            for row, kinds in by_row.items()
            if (next(iter(kinds.values())).verdicts is not None) == (data == _SCENES)
        ]
        drawn = seeds.generator("captioner samples", seed, data).permutation(len(rows))[:count]
        for row in sorted(rows[place] for place in drawn):
            path = Path("images") / f"{len(found):03d}.webp"
            try:
                save_thumbnail(collection.image_bytes(row), run / path)
            except BadImage:
                continue
            found.append(
                {
                    "image": str(path),
                    "key": collection.keys[row],
                    "data": data,
                    "alt": select_alt_text(collection.read_captions(row)),
                    "captions": {
                        kind: {
                            "text": one.text,
                            "obeys": one.obeys,
                            "tokens": one.tokens,
                            "assertions": _shown(one),
                        }
                        for kind, one in by_row[row].items()
                    },
                }
            )
    return found


def _shown(one: Judged) -> list[list[str]]:
    return [] if one.verdicts is None else [list(pair) for pair in zip(split(one.text), one.verdicts, strict=True)]


def evaluate(
    captioner: SmallCaptioner,
    collection: Collection,
    *,
    split: str,
    run: Path,
    cache: Path,
    limit: int | None = None,
    seed: int = 0,
    shown: int = 6,
    shuffled: bool = False,
) -> dict[str, Any]:
    """Captions of all formats for held-out images, judged: the table, its columns, samples, and what stage 1 must
    reach (every format's obedience at least 95 %, mean length rising from SSC over DSC to DSC+). shuffled: the control
    of `caption_rows`."""
    rows = chosen_rows(collection, split=split, limit=limit, seed=seed)
    written = caption_rows(captioner, collection, rows, cache=cache, seed=seed, shuffled=shuffled)
    captions = judged(collection, written)
    lengths = {kind: [one.tokens for one in captions if one.kind == kind] for kind in ("ssc", "dsc", "dsc_plus")}
    means = [float(np.mean(found)) for found in lengths.values() if found]
    obedience = {
        kind: float(np.mean([one.obeys for one in captions if one.kind == kind]))
        for kind in CAPTION_KINDS
        if any(one.kind == kind for one in captions)
    }
    return {
        "collection": collection.name,
        "split": split,
        "images": len(rows),
        "captions": len(captions),
        "seed": seed,
        "shuffled": shuffled,
        "columns": COLUMNS,
        "table": table(captions, seed=seed),
        "obedience": obedience,
        "obeys": all(value >= _OBEYS for value in obedience.values()),
        "lengths_rise": all(low < high for low, high in zip(means, means[1:], strict=False)),
        "gates": {kind: [rule.min_tokens, rule.max_tokens] for kind, rule in LENGTH_FILTERS.items()},
        "samples": samples(collection, captions, run, count=shown, seed=seed),
    }
