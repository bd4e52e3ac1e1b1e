"""`foveate audit`: how long, how rich, how true and how alike the captions of each format are, on one sample.

The same images for every format: those that have all of them, the first by a hash of their keys. Generated scenes
and real images are reported apart. On scenes the truth decides whether an assertion holds; on real images an
image-text model may judge (`foveate.caption.assertions.clip_judge`), or a captioner behind the common protocol; else
nobody does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.caption.assertions import scene_judge as scenes
from foveate.caption.assertions import splitter
from foveate.caption.assertions.clip_judge import LEAST_IMAGES, ModelJudge, OpenedModel, definition_hash
from foveate.caption.assertions.scene_truth import SceneTruths
from foveate.caption.audit_metrics import Said, Units, numbers, shuffled_order, table
from foveate.caption.entities import NAMED, open_entities
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import Extractor, open_extractor
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import say, track
from foveate.records.collection import Collection
from foveate.records.current_captions import holds
from foveate.records.images import BadImage, save_thumbnail
from foveate.training.image_texts import ALT, ImageTexts, TextRule
from foveate.training.mixture import FORMATS, MixtureSampler

SCENES, IMAGES = "scenes", "images"
COMPARED = "scenes, the model's verdicts"
_ALL_PHRASES = 10_000
Split = Callable[[Sequence[int], Sequence[str]], list[list[str]]]
Judge = Callable[[Sequence[int], Sequence[Sequence[str]]], list[list[str]]]


@dataclass(frozen=True)
class Method:
    """How captions are split and judged; the rules alone by default.

    split: from rows and their captions to assertions; splitter_name goes into the report, as a number of one splitter
    is never compared with another's. model: a folder of an image-text model. judge, judge_definition: another judge of
    real images, such as a captioner.
    """

    split: Split | None = None
    splitter_name: str = splitter.NAME
    model: Path | None = None
    judge: Judge | None = None
    judge_definition: str = ""


@dataclass(frozen=True)
class Question:
    """What is audited, and on how many images."""

    formats: tuple[str, ...] = ()
    split: str | None = None
    sample: int = 2000
    seed: int = 0
    prefer: tuple[str, ...] = ()
    tagger: str = "rules"
    gallery: int = 24


def audit(
    collection: Collection,
    run: Path,
    question: Question,
    units: Units,
    method: Method | None = None,
    *,
    device: str | None = None,
) -> dict[str, Any]:
    """Audits the captions that hold; writes the images of the gallery and the ids of the sample into `run`.

    A model or tagger that cannot be opened is refused before any caption is read.

    Raises:
        UserError: when no image has all formats, or a format, split, model or tagger is unknown.
    """
    method = method or Method()
    opened = None if method.model is None else OpenedModel.open(method.model, device=device)
    phrases = PhraseSettings(tagger=question.tagger, recipe="paper", max_phrases=_ALL_PHRASES)
    extract = open_entities() if units.entity == NAMED else open_extractor(phrases)
    formats = formats_of(collection, question.formats)
    # Weights do not matter here: only the texts of each kind are read, not drawn.
    rule = TextRule(MixtureSampler(dict.fromkeys(formats, 1.0), sources=formats))
    texts = ImageTexts(collection, rule, prefer=question.prefer)
    rows, without = sample_rows(collection, texts, formats, question)
    truths = SceneTruths(collection)
    groups = {SCENES: [row for row in rows if truths.get(row)], IMAGES: [row for row in rows if not truths.get(row)]}
    groups = {name: members for name, members in groups.items() if members}
    of_groups, definitions = {}, {}
    for name, members in groups.items():
        judges = _judges_of(name, members, collection, truths, method, opened, question, run)
        definitions[name] = judges.definition
        if judges.compared is not None:
            definitions[COMPARED] = f"Beside the truth, to see what such a judge is worth. {judges.compared.definition}"
        of_groups[name] = _read(collection, texts, members, formats, method, question, judges, extract)
    per_format = {
        name: [numbers(said, units, alt=found.get(ALT)) for said in found.values()] for name, found in of_groups.items()
    }
    models = made_by(collection, rows, formats, question.prefer)
    return {
        "kind": "audit",
        "collection": collection.name,
        "formats": list(formats),
        "models": models,
        "scene_oracle": any("scene-oracle" in model for found in models.values() for model in found),
        "sample": {
            "images": len(rows),
            "of": {name: len(members) for name, members in groups.items()},
            "without_all_formats": without,
            "split": question.split,
            "seed": question.seed,
            "ids": [collection.keys[row] for row in rows],
        },
        "context": units.context,
        "splitter": method.splitter_name,
        "tagger": extract.name,
        "judges": {name: {"definition": text, "hash": definition_hash(text)} for name, text in definitions.items()},
        "numbers": per_format,
        "columns": [{"key": kind, "title": title(kind), "what": ", ".join(models[kind]) or ""} for kind in formats],
        "table": table(per_format),
        "interval": "95 % intervals, bootstrap over images",
        "gallery": _gallery(collection, run, groups, of_groups, question.gallery),
    }


def title(kind: str) -> str:
    """A format as people write it."""
    return {"alt": "AltText", "ssc": "SSC", "dsc": "DSC", "dsc_plus": "DSC+", "afc": "AFC"}.get(kind, kind)


def formats_of(collection: Collection, wanted: Sequence[str]) -> tuple[str, ...]:
    """The formats to audit, alt first, the others in canonical order.

    Raises:
        UserError: when a wanted one is not in the collection, or it has no captions at all.
    """
    there = set(collection.table("captions")["kind"].unique().to_pylist())
    if there & {"title", "description", "caption", "keywords"}:
        there.add(ALT)
    missing = [kind for kind in wanted if kind not in there]
    if missing or not there:
        kinds = ", ".join(sorted(there)) or "no captions"
        raise UserError(
            f"collection {collection.path}: has no captions of format {', '.join(missing) or 'any kind'}; it has "
            f"{kinds}. Write them with foveate caption"
        )
    found = list(wanted) or [kind for kind in FORMATS if kind in there]
    order = {kind: place for place, kind in enumerate(FORMATS)}
    return tuple(sorted(dict.fromkeys(found), key=lambda kind: order.get(kind, len(FORMATS))))


def sample_rows(
    collection: Collection, texts: ImageTexts, formats: Sequence[str], question: Question
) -> tuple[list[int], int]:
    """Rows of the sample, ascending, and how many images lack a format.

    Raises:
        UserError: when none has all.
    """
    every = collection.rows(question.split).tolist()
    full = [row for row in track(every, description="captions") if set(formats) <= texts.of(row).keys()]
    if not full:
        raise UserError(
            f"collection {collection.path}: no image has all of {', '.join(formats)}; name fewer with --formats"
        )
    drawn = sorted(full, key=lambda row: seeds.uniform("audit", question.seed, collection.keys[row]))
    return sorted(drawn[: question.sample]), len(every) - len(full)


@dataclass(frozen=True)
class _Judges:
    """Who judges the assertions of a group and by which definition; and the image-text model, if there is one.

    compared: the model where the truth judges, and the model is asked about the same assertions.
    """

    judge: Judge | None
    definition: str
    model: ModelJudge | None = None
    compared: ModelJudge | None = None


def _judges_of(
    group: str,
    rows: Sequence[int],
    collection: Collection,
    truths: SceneTruths,
    method: Method,
    opened: OpenedModel | None,
    question: Question,
    run: Path,
) -> _Judges:
    model = None
    if opened is not None and group == SCENES and len(rows) < LEAST_IMAGES:
        say(f"{len(rows)} scenes are too few to compare the model of --judge with the truth: {LEAST_IMAGES} are")
    elif opened is not None:
        chosen = np.array(rows, dtype=np.int64)
        model = ModelJudge.seeing(opened, collection, chosen, seed=question.seed, cache=run / "cache")
    if group == SCENES:

        def by_truth(rows: Sequence[int], assertions: Sequence[Sequence[str]]) -> list[list[str]]:
            known = [truths.get(row) for row in rows]
            return [scenes.judge_all(said, truth) for said, truth in zip(assertions, known, strict=True) if truth]

        return _Judges(by_truth, scenes.DEFINITION, model, model)
    if method.judge is not None:
        return _Judges(method.judge, method.judge_definition)
    if model is not None:
        return _Judges(model.judge, model.definition, model)
    return _Judges(
        None, "Nobody judged these assertions: give an image-text model (--judge) or a served one (--endpoint)."
    )


def _read(
    collection: Collection,
    texts: ImageTexts,
    rows: Sequence[int],
    formats: Sequence[str],
    method: Method,
    question: Question,
    judges: _Judges,
    extract: Extractor,
) -> dict[str, Said]:
    """Captions of each format, split and judged, and judged again for the images of others."""
    order = shuffled_order(len(rows), seeds.generator("shuffled captions", question.seed))
    found = {}
    for kind in formats:
        said = Said(kind, [texts.of(row)[kind][0] for row in rows], [])
        split = method.split or _by_rules
        said.assertions = split(rows, said.texts)
        said.phrases = [extract(text).phrases for text in track(said.texts, description=f"phrases of {kind}")]
        others = [said.assertions[place] for place in order] if len(rows) > 1 else None
        if judges.judge is not None:
            said.verdicts = judges.judge(rows, said.assertions)
            said.shuffled = None if others is None else judges.judge(rows, others)
        if judges.model is not None:
            said.scores = judges.model.scores(rows, said.texts)
        if judges.compared is not None:
            said.model = judges.compared.judge(rows, said.assertions)
            said.model_shuffled = None if others is None else judges.compared.judge(rows, others)
        found[kind] = said
    return found


def _by_rules(rows: Sequence[int], captions: Sequence[str]) -> list[list[str]]:
    return [splitter.split(text) for text in captions]


def made_by(
    collection: Collection, rows: Sequence[int], formats: Sequence[str], prefer: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Format -> model -> captions of the sample that it wrote; captions that no model wrote are not counted."""
    captions = collection.grouped("captions")
    chosen = np.zeros(len(collection), dtype=bool)
    chosen[list(rows)] = True
    kept: NDArray[np.bool_] = holds(captions.table, prefer=prefer) & chosen[captions.row_numbers]
    part = captions.table.filter(pa.array(kept))
    found: dict[str, dict[str, int]] = {kind: {} for kind in formats}
    for kind, model in zip(part["kind"].to_pylist(), part["model"].to_pylist(), strict=True):
        if kind in found and model:
            found[kind][model] = found[kind].get(model, 0) + 1
    return found


def _gallery(
    collection: Collection,
    run: Path,
    groups: Mapping[str, Sequence[int]],
    of_groups: Mapping[str, Mapping[str, Said]],
    count: int,
) -> list[dict[str, Any]]:
    """Images with all their captions and verdicts, as many of each group as fit."""
    shown = []
    for name, rows in groups.items():
        for place in range(min(len(rows), max(1, count // len(groups)))):
            row = rows[place]
            try:
                image = collection.image_bytes(row)
                path = save_thumbnail(image, run / "images" / f"{name}-{place:03d}.webp", longest_side=360)
            except BadImage:
                continue
            captions = [
                {
                    "format": kind,
                    "title": title(kind),
                    "text": said.texts[place],
                    "assertions": [
                        {"text": text, "verdict": "" if said.verdicts is None else said.verdicts[place][number]}
                        for number, text in enumerate(said.assertions[place])
                    ],
                }
                for kind, said in of_groups[name].items()
            ]
            shown.append(
                {
                    "image": str(path.relative_to(run)),
                    "data": name,
                    "key": collection.keys[row],
                    "captions": captions,
                }
            )
    return shown
