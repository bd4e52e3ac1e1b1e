"""Audit captions: length, richness, truth and variety of each format on one sample.

All formats are compared on the same images: those that have every format, the first by a hash of their keys. Generated
scenes and real images are reported separately. On scenes the ground truth decides whether an assertion holds; on real
images an image-text model or a chat model may judge (`foveate.caption.judges`); without
one, nobody does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.caption import splitter
from foveate.caption.audit_metrics import (
    NAMED,
    JudgedCaptions,
    MetricSettings,
    build_table,
    compute_metrics,
    measure_accuracy,
    open_entities,
    open_phrases,
    shuffled_order,
)
from foveate.caption.judges import (
    MIN_IMAGES,
    AuditMethod,
    ClipJudge,
    GroundTruth,
    Judge,
    JudgeModel,
    hash_definition,
    open_ground_truth,
)
from foveate.caption.lengths import OtherTokenizer
from foveate.caption.results import (
    AuditAssertion,
    AuditCaption,
    AuditImage,
    AuditJudge,
    AuditResult,
    AuditSample,
)
from foveate.caption.settings import AuditSettings
from foveate.caption.vesl.tagging import Extractor
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import say, track
from foveate.core.results import Column
from foveate.records.caption_formats import ALT, TITLES
from foveate.records.captions import CaptionVerdict, select_current
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.tables import now
from foveate.training.image_texts import ImageTexts, TextRule
from foveate.training.mixture import FORMATS, MixtureSampler

SCENES, IMAGES = "scenes", "images"
MODEL_ON_SCENES = "scenes, the model's verdicts"
_THUMBNAIL_PX = 360


def audit(
    collection: Collection,
    run: Path,
    settings: AuditSettings | None = None,
    method: AuditMethod | None = None,
    *,
    device: str | None = None,
) -> AuditResult:
    """Audit the current captions of a collection.

    Args:
        run: folder that the gallery's images and cached features are written into.

    Raises:
        UserError: no image has all formats, or a format, split, model or tagger is unknown.

    Example:
        >>> result = audit_captions(Collection.open(collection_folder), new_folder, AuditSettings(formats=("alt",)))
        >>> result.sample.images, result.formats
        (30, ['alt'])
    """
    settings, method = settings or AuditSettings(), method or AuditMethod()
    tokenizer = None if settings.tokenizer is None else OtherTokenizer(settings.tokenizer)
    metric_settings = MetricSettings(settings.context, tokenizer, settings.entity, settings.seed)
    # Model and tagger are opened first: a missing one must fail before captions are read for minutes.
    model = None if method.model is None else JudgeModel.open(method.model, device=device)
    extract = open_entities() if metric_settings.entity == NAMED else open_phrases(settings.tagger)
    formats = choose_formats(collection, settings.formats)
    # Equal weights do no harm: all texts of a row are read, none is drawn.
    rule = TextRule(MixtureSampler(dict.fromkeys(formats, 1.0), sources=formats))
    texts = ImageTexts(collection, rule, prefer=settings.prefer)
    rows, num_incomplete = sample_rows(collection, texts, formats, settings)
    truth = open_ground_truth(collection)
    # Truth and models judge by different rules, so scenes and real images never share a number.
    groups = {SCENES: [row for row in rows if row in truth], IMAGES: [row for row in rows if row not in truth]}
    groups = {name: members for name, members in groups.items() if members}
    captions: dict[str, dict[str, JudgedCaptions]] = {}
    verdicts: list[CaptionVerdict] = []
    definitions: dict[str, str] = {}
    for name, members in groups.items():
        judges = _open_judges(name, members, collection, truth, method, model, settings, run)
        definitions[name] = judges.definition
        if judges.compared is not None:
            definitions[MODEL_ON_SCENES] = f"Compared with the ground truth. {judges.compared.definition}"
        captions[name] = _judge_captions(collection, texts, members, formats, method, settings, judges, extract)
        definition = f"{judges.definition} Assertions: {method.splitter_name}."
        verdicts += judge_captioners(name, captions[name], texts, members, settings, judge=definition)
    metrics = {
        name: [compute_metrics(judged, metric_settings, alt=by_format.get(ALT)) for judged in by_format.values()]
        for name, by_format in captions.items()
    }
    models = count_models(collection, rows, formats, settings.prefer)
    return AuditResult(
        collection=collection.name,
        formats=list(formats),
        models=models,
        # The page notes this: captions rendered from the ground truth are no evidence about a captioner.
        scene_oracle=any("scene-oracle" in model for counts in models.values() for model in counts),
        sample=AuditSample(
            images=len(rows),
            of={name: len(members) for name, members in groups.items()},
            without_all_formats=num_incomplete,
            split=settings.split,
            seed=settings.seed,
            ids=[collection.keys[row] for row in rows],
        ),
        context=metric_settings.context,
        splitter=method.splitter_name,
        tagger=extract.name,
        judges={name: AuditJudge(definition=text, hash=hash_definition(text)) for name, text in definitions.items()},
        metrics=metrics,
        columns=[Column(key=kind, title=TITLES.get(kind, kind), what=", ".join(models[kind])) for kind in formats],
        table=build_table(metrics),
        verdicts=verdicts,
        gallery=_build_gallery(collection, run, groups, captions, settings.gallery),
    )


def choose_formats(collection: Collection, requested: Sequence[str]) -> tuple[str, ...]:
    """Return the formats to audit, alt first, the others in canonical order.

    Args:
        requested: () for all known formats of the collection.

    Raises:
        UserError: a requested format is not in the collection, or it has no captions at all.
    """
    available = set(collection.table("captions")["kind"].unique().to_pylist())
    if available & {"title", "description", "caption", "keywords"}:  # kinds that may serve as alt-text
        available.add(ALT)
    missing = [kind for kind in requested if kind not in available]
    if missing or not available:
        kinds = ", ".join(sorted(available)) or "none"
        raise UserError(
            f"collection {collection.path}: no captions of format {', '.join(missing) or 'any kind'} (it has: "
            f"{kinds}); write them with foveate caption"
        )
    kinds = list(requested) or [kind for kind in FORMATS if kind in available]
    order = {kind: index for index, kind in enumerate(FORMATS)}
    return tuple(sorted(dict.fromkeys(kinds), key=lambda kind: order.get(kind, len(FORMATS))))


def sample_rows(
    collection: Collection, texts: ImageTexts, formats: Sequence[str], settings: AuditSettings
) -> tuple[list[int], int]:
    """Draw the sample; return its rows, ascending, and the number of images that lack a format.

    Raises:
        UserError: no image has all formats.
    """
    rows = collection.rows(settings.split).tolist()
    # The same images for every format: otherwise formats would differ by which images have them.
    complete = [row for row in track(rows, description="captions") if set(formats) <= texts.read_row(row).keys()]
    if not complete:
        raise UserError(
            f"collection {collection.path}: no image has all of {', '.join(formats)}; name fewer with --formats"
        )
    # By a hash of the key, so that a larger sample contains a smaller one and new images do not move the rest.
    ranked = sorted(complete, key=lambda row: seeds.uniform("audit", settings.seed, collection.keys[row]))
    return sorted(ranked[: settings.sample]), len(rows) - len(complete)


@dataclass(frozen=True)
class _Judges:
    """Judges of a group of images.

    Attributes:
        judge, definition: None and the reason, if there is no judge.
        model: computes CLIPScores.
        compared: model that judges the same assertions for comparison where the ground truth judges.
    """

    judge: Judge | None
    definition: str
    model: ClipJudge | None = None
    compared: ClipJudge | None = None


def _open_judges(
    group: str,
    rows: Sequence[int],
    collection: Collection,
    truth: GroundTruth,
    method: AuditMethod,
    opened: JudgeModel | None,
    settings: AuditSettings,
    run: Path,
) -> _Judges:
    model = None
    # On scenes the model is only compared with the ground truth, so too few images are not an error.
    if opened is not None and group == SCENES and len(rows) < MIN_IMAGES:
        say(f"{len(rows)} scenes are too few to compare the model of --judge with the truth; at least {MIN_IMAGES}")
    elif opened is not None:
        row_N = np.array(rows, dtype=np.int64)
        model = ClipJudge.from_collection(opened, collection, row_N, seed=settings.seed, cache=run / "cache")
    if group == SCENES:

        def judge_by_truth(rows: Sequence[int], assertions: Sequence[Sequence[str]]) -> list[list[str]]:
            return [truth.judge(row, of_caption) for row, of_caption in zip(rows, assertions, strict=True)]

        return _Judges(judge_by_truth, truth.definition, model, model)
    if method.judge is not None:
        return _Judges(method.judge, method.judge_definition)
    if model is not None:
        return _Judges(model.judge, model.definition, model)
    return _Judges(
        None, "Nobody judged these assertions: give an image-text model (--judge) or a served one (--judge-url)."
    )


def _judge_captions(
    collection: Collection,
    texts: ImageTexts,
    rows: Sequence[int],
    formats: Sequence[str],
    method: AuditMethod,
    settings: AuditSettings,
    judges: _Judges,
    extract: Extractor,
) -> dict[str, JudgedCaptions]:
    """Split and judge the captions of each format, and judge them once more as captions of other images."""
    # One order for all formats: their controls are judged on the same pairs of images.
    order = _draw_control(rows, settings)
    by_format = {}
    for kind in formats:
        captions = JudgedCaptions(kind, [texts.read_row(row)[kind][0] for row in rows], [])
        split = method.split or _split_by_rules
        captions.assertions = split(rows, captions.texts)
        captions.phrases = [extract(text).phrases for text in track(captions.texts, description=f"phrases of {kind}")]
        # The control: the same assertions of other images. What holds there holds by chance or because it is vague.
        others = [captions.assertions[index] for index in order] if len(rows) > 1 else None
        if judges.judge is not None:
            captions.verdicts = judges.judge(rows, captions.assertions)
            captions.shuffled = None if others is None else judges.judge(rows, others)
        if judges.model is not None:
            captions.scores = judges.model.scores(rows, captions.texts)
        if judges.compared is not None:
            captions.model_verdicts = judges.compared.judge(rows, captions.assertions)
            captions.model_shuffled = None if others is None else judges.compared.judge(rows, others)
        by_format[kind] = captions
    return by_format


def _draw_control(rows: Sequence[int], settings: AuditSettings) -> list[int]:
    return shuffled_order(len(rows), seeds.generator("shuffled captions", settings.seed)).tolist()


def judge_captioners(
    data: str,
    captions: Mapping[str, JudgedCaptions],
    texts: ImageTexts,
    rows: Sequence[int],
    settings: AuditSettings,
    *,
    judge: str,
) -> list[CaptionVerdict]:
    """Measure the share of assertions that hold of each captioner and format; without a judge there is none.

    Args:
        data: "scenes" or "images".
        captions: judged captions of each format, in the order of `rows`.
        judge: meaning of the verdicts.
    """
    order = _draw_control(rows, settings)
    writers = [texts.read_captioners(row) for row in rows]
    created, described = now(), settings.model_dump_json(exclude={"formats", "gallery"})
    verdicts = []
    for kind, judged in captions.items():
        for model in sorted({of_row.get(kind, "") for of_row in writers} - {""}):
            by_model = [of_row.get(kind) == model for of_row in writers]
            true = measure_accuracy(list(compress(judged.verdicts or [], by_model)), settings.seed)
            if true["accuracy"] is None:
                continue
            # The control's captions are those of the images in `order`, so the captioner is theirs.
            shuffled = list(compress(judged.shuffled or [], (by_model[index] for index in order)))
            control = measure_accuracy(shuffled, settings.seed)["accuracy"] or dict.fromkeys(("value", "low", "high"))
            verdicts.append(
                CaptionVerdict(
                    kind=kind,
                    model=model,
                    data=data,
                    captions=sum(by_model),
                    assertions=true["assertions"]["n_assertions"],
                    holds=true["accuracy"]["value"],
                    low=true["accuracy"]["low"],
                    high=true["accuracy"]["high"],
                    control=control["value"],
                    control_low=control["low"],
                    control_high=control["high"],
                    judge=judge,
                    settings=described,
                    created=created,
                )
            )
    return verdicts


def _split_by_rules(rows: Sequence[int], captions: Sequence[str]) -> list[list[str]]:
    return [splitter.split(text) for text in captions]


def count_models(
    collection: Collection, rows: Sequence[int], formats: Sequence[str], prefer: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count captions of the sample by format and captioner; captions without a captioner are left out."""
    captions = collection.grouped("captions")
    in_sample = np.zeros(len(collection), dtype=bool)
    in_sample[list(rows)] = True
    current: NDArray[np.bool_] = select_current(captions.table, prefer=prefer) & in_sample[captions.row_numbers]
    table = captions.table.filter(pa.array(current))
    counts: dict[str, dict[str, int]] = {kind: {} for kind in formats}
    for kind, model in zip(table["kind"].to_pylist(), table["model"].to_pylist(), strict=True):
        if kind in counts and model:
            counts[kind][model] = counts[kind].get(model, 0) + 1
    return counts


def _build_gallery(
    collection: Collection,
    run: Path,
    groups: Mapping[str, Sequence[int]],
    captions: Mapping[str, Mapping[str, JudgedCaptions]],
    count: int,
) -> list[AuditImage]:
    """Collect `count` images with all captions and verdicts, the same number of each group as far as they reach."""
    images = []
    for name, rows in groups.items():
        for index in range(min(len(rows), max(1, count // len(groups)))):
            # Rows are ascending, so the gallery shows the first of the sample: the same images for every format.
            row = rows[index]
            try:
                data = collection.image_bytes(row)
                path = save_thumbnail(data, run / "images" / f"{name}-{index:03d}.webp", longest_side=_THUMBNAIL_PX)
            except BadImage:
                continue
            images.append(
                AuditImage(
                    image=path.relative_to(run).as_posix(),
                    data=name,
                    key=collection.keys[row],
                    captions=[_gallery_caption(judged, index) for judged in captions[name].values()],
                )
            )
    return images


def _gallery_caption(captions: JudgedCaptions, index: int) -> AuditCaption:
    verdicts = [""] * len(captions.assertions[index]) if captions.verdicts is None else captions.verdicts[index]
    return AuditCaption(
        format=captions.format,
        title=TITLES.get(captions.format, captions.format),
        text=captions.texts[index],
        assertions=[
            AuditAssertion(text=text, verdict=verdict)
            for text, verdict in zip(captions.assertions[index], verdicts, strict=True)
        ],
    )
