"""Evaluate a captioner on held-out images: obedience to formats, lengths, and on scenes the accuracy of assertions.

The ground truth of generated scenes needs no judge; real images have none and get obedience and lengths only. The two
are never mixed.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.caption.audit_metrics import collect_entities, open_phrases
from foveate.caption.backends.foveate import FoveateSettings, MllmCaptioner, open_captioner
from foveate.caption.captioner import Captioner, CaptionRequest, CaptionResponse, prepare_image
from foveate.caption.evaluation_results import CaptionerEvaluation, CaptionerResult, EvaluatedCaption, EvaluatedImage
from foveate.caption.judges import open_ground_truth
from foveate.caption.lengths import apply_length_filter, count_clip_tokens, repeats
from foveate.caption.pending_requests import CaptionSettings, RequestConfig
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.response_parser import parse_caption
from foveate.caption.settings import EvaluationSettings
from foveate.caption.splitter import split
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import Meter
from foveate.core.results import Column, Row
from foveate.metrics.captions import CONTRADICTED, SUPPORTED
from foveate.metrics.intervals import Interval, bootstrap_interval, bootstrap_statistic
from foveate.multimodal.evaluation import EvaluationRun
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.captions import is_usable_alt_text, select_alt_text
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail
from foveate.records.text import split_sentences

COLUMNS = [Column(key=kind, title=row.title, what=row.what, role="ours") for kind, row in CAPTION_FORMATS.items()]
# The acceptance bar of training stage 1: below it, a captioner has not learned its formats.
_MIN_OBEDIENCE = 0.95
_REAL, _SCENES = "images", "scenes"


@dataclass(frozen=True, slots=True)
class WrittenCaption:
    """A response to a request for a caption of the image in a row.

    Attributes:
        text: the caption, also one that was cut; "" where there is none.
        parses: it is whole.
    """

    row: int
    kind: str
    alt: str
    response: CaptionResponse
    text: str
    parses: bool


@dataclass(frozen=True, slots=True)
class JudgedCaption:
    """One caption.

    Attributes:
        obeys: it parses and has an allowed length as it is, without a cut.
        verdicts: of its assertions; None without a ground truth.
        loops: see `is_looping`.
        named, alt_entities: entities of the AltText that it names, and all of them (0 without a usable AltText).
    """

    row: int
    kind: str
    alt: str
    text: str
    obeys: bool
    loops: bool
    tokens: int
    verdicts: tuple[str, ...] | None
    named: int = 0
    alt_entities: int = 0


def draw_rows(collection: Collection, *, split: str, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Draw at most `limit` rows of a split, ascending."""
    rows = collection.rows(split)
    if not len(rows):
        raise UserError(f"collection {collection.path}: split '{split}' has no images")
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(seeds.generator("captioner evaluation", seed).choice(rows, limit, replace=False))


def caption_rows(
    captioner: Captioner,
    collection: Collection,
    rows: NDArray[np.int64],
    *,
    kinds: Sequence[str] = CAPTION_KINDS,
    temperature: float = 0.0,
    seed: int = 0,
    max_tokens: Mapping[str, int] | None = None,
    shuffled: bool = False,
) -> list[WrittenCaption]:
    """Caption rows of a collection in all kinds, once each, without retries.

    Images that cannot be read are left out; so are formats with the AltText where it is not usable.

    Args:
        max_tokens: kind -> limit; by default that of the format.
        shuffled: caption another image in the place of each (control); the AltText stays.
    """
    settings = CaptionSettings(formats=tuple(kinds), seed=seed, temperature=temperature)
    config = RequestConfig(settings, captioner.name, captioner.model, captioner.revision)
    sources = rows
    if shuffled:
        # The label of the stream keeps its old word: another one would draw another order.
        order = seeds.generator("shuffled pictures", seed).permutation(len(rows))
        sources = np.empty_like(rows)
        sources[order] = rows[np.roll(order, 1)]  # one circle: no image keeps its own
    with_alt = [kind for kind in kinds if CAPTION_FORMATS[kind].without_alt]
    requests: list[tuple[int, int, str, str]] = []
    for row, source in zip(rows.tolist(), sources.tolist(), strict=True):
        alt = select_alt_text(collection.read_captions(row)) if with_alt else ""
        requests += [
            (row, source, kind, alt if kind in with_alt else "")
            for kind in kinds
            if kind not in with_alt or is_usable_alt_text(alt)
        ]
    free = asyncio.Semaphore(max(1, captioner.concurrency))

    # All formats of an image follow one another, so a few images in memory are enough to decode each once.
    @functools.lru_cache(maxsize=2 * captioner.concurrency)
    def read_image(row: int) -> Any:
        return prepare_image(collection.image_bytes(row), longest_side=settings.longest_side)

    async def write(row: int, source: int, kind: str, alt: str) -> WrittenCaption | None:
        prompt, alt = config.select_prompt(kind, alt)
        async with free:
            try:
                image = read_image(source)
            except BadImage:
                return None
            response = await captioner.caption(
                CaptionRequest(
                    key=collection.keys[row],
                    kind=kind,
                    prompt_id=prompt.id,
                    prompt=prompt.fill(alt=alt) if alt else prompt.fill(),
                    image=image.data,
                    media_type=image.media_type,
                    alt=alt,
                    max_tokens=(max_tokens or {}).get(kind) or int(config.parameters(kind)["max_tokens"]),
                    temperature=temperature,
                    seed=config.sampling_seed(collection.keys[row], kind),
                )
            )
            meter.advance(1)
        if response.error:
            return WrittenCaption(row, kind, alt, response, "", parses=False)
        text = parse_caption(response.text).caption
        # The assertions of a cut caption count, too: leaving it out would flatter a captioner that never ends.
        cut = None if text is not None else parse_caption(f'{response.text}"}}').caption
        return WrittenCaption(row, kind, alt, response, text or cut or "", parses=text is not None)

    async def write_all() -> list[WrittenCaption | None]:
        try:
            return await asyncio.gather(*(write(*request) for request in requests))
        finally:
            # The captioner's connections belong to the event loop that ends here.
            await captioner.close()

    with Meter("captions", len(requests)) as meter:
        return [caption for caption in asyncio.run(write_all()) if caption is not None]


def judge_captions(collection: Collection, captions: Sequence[WrittenCaption]) -> list[JudgedCaption]:
    """Compare each caption with its format's contract, and with the scene's ground truth if there is one."""
    truth, judged = open_ground_truth(collection), []
    # The same alt-text is compared with the captions of all formats.
    extract = functools.cache(open_phrases())
    for caption in captions:
        filtered = apply_length_filter(caption.kind, caption.text) if caption.parses else None
        # Any flag: a caption that had to be cut was too long, although what is left of it fits.
        obeys = filtered is not None and not filtered.error and not filtered.flags
        verdicts = tuple(truth.judge(caption.row, split(caption.text))) if caption.row in truth else None
        alt = select_alt_text(collection.read_captions(caption.row))
        alt_entities = collect_entities([extract(alt).phrases], "head") if is_usable_alt_text(alt) else set[str]()
        named = 0
        if alt_entities:
            named = len(alt_entities & collect_entities([extract(caption.text).phrases], "head"))
        judged.append(
            JudgedCaption(
                row=caption.row,
                kind=caption.kind,
                alt=caption.alt,
                text=caption.text,
                obeys=obeys,
                loops=is_looping(caption.text),
                tokens=count_clip_tokens(caption.text),
                verdicts=verdicts,
                named=named,
                alt_entities=len(alt_entities),
            )
        )
    return judged


def is_looping(text: str) -> bool:
    """Return whether a caption has a sentence twice, or the same four words three times in one sentence.

    Over the whole text those words prove nothing: exact dense captions have them in every second text.

    >>> is_looping("An ant. A cat. An ant."), is_looping("The ant is left of the cat. The cat is left of the ant.")
    (True, False)
    """
    sentences = [sentence.casefold() for sentence in split_sentences(text)]
    return len(set(sentences)) < len(sentences) or any(map(repeats, sentences))


def build_table(captions: Sequence[JudgedCaption], *, seed: int) -> list[Row]:
    """Build the table's rows: one per question and kind of data, with the formats as columns."""
    rows = []
    for data in (_SCENES, _REAL):
        of_data = [caption for caption in captions if (caption.verdicts is not None) == (data == _SCENES)]
        groups = {kind: [caption for caption in of_data if caption.kind == kind] for kind in CAPTION_KINDS}
        groups = {kind: group for kind, group in groups.items() if group}
        if not groups:
            continue
        # Images without a usable AltText have no AFC, so the formats may differ in their number of captions.
        n = max(len(group) for group in groups.values())
        obeyed = {kind: _mean([caption.obeys for caption in group], seed) for kind, group in groups.items()}
        rows.append(_row("obeys its format (parses, has an allowed length)", data, n, obeyed, chance=_MIN_OBEDIENCE))
        looped = {kind: _mean([caption.loops for caption in group], seed) for kind, group in groups.items()}
        rows.append(_row("loops (a sentence twice, or four words thrice in one)", data, n, looped))
        tokens = {kind: _mean([caption.tokens for caption in group], seed) for kind, group in groups.items()}
        rows.append(_row("length (mean CLIP tokens without specials)", data, n, tokens, unit="tokens"))
        if data == _SCENES:
            lengths = {kind: [len(caption.verdicts or ()) for caption in group] for kind, group in groups.items()}
            counts = {kind: _mean(lengths_of_kind, seed) for kind, lengths_of_kind in lengths.items()}
            rows.append(_row("assertions per caption (ANA, rule splitter)", data, n, counts, unit="assertions"))
            for name, verdict in (("hold", SUPPORTED), ("are contradicted", CONTRADICTED)):
                shares = {
                    kind: _ratio([(caption.verdicts or ()).count(verdict) for caption in group], lengths[kind], seed)
                    for kind, group in groups.items()
                }
                rows.append(_row(f"share of assertions that {name} (micro, by the scene's truth)", data, n, shares))
        with_alt = {kind: [caption for caption in group if caption.alt_entities] for kind, group in groups.items()}
        if any(with_alt.values()):
            named = {
                kind: _ratio([caption.named for caption in group], [caption.alt_entities for caption in group], seed)
                for kind, group in with_alt.items()
                if group
            }
            n = max(map(len, with_alt.values()))
            rows.append(_row("share of the AltText's entities that are named (head nouns)", data, n, named))
    return rows


def _row(question: str, data: str, n: int, values: dict[str, Interval], **more: Any) -> Row:
    cells = {kind: value.to_value() for kind, value in values.items()}
    return Row(question=question, data=data, n=n, values=cells, **more)


def _mean(values: Sequence[float], seed: int) -> Interval:
    return bootstrap_interval(np.asarray(values, dtype=np.float64), seed=seed)


def _ratio(part: Sequence[int], whole: Sequence[int], seed: int) -> Interval:
    """Ratio of two sums, with an interval that draws images."""
    part_N, whole_N = (np.asarray(values, dtype=np.float64) for values in (part, whole))
    return bootstrap_statistic(
        # A draw may hold no assertion at all: its ratio is 0, not a division by 0.
        lambda rows: float(part_N[rows].sum() / max(whole_N[rows].sum(), 1)),
        rows=len(part_N),
        seed=seed,
    )


def collect_samples(
    collection: Collection, captions: Sequence[JudgedCaption], run: Path, *, count: int, seed: int
) -> list[EvaluatedImage]:
    """Collect `count` images per kind of data with the captions of all formats; write images below `run`/images."""
    by_row: dict[int, dict[str, JudgedCaption]] = {}
    for caption in captions:
        by_row.setdefault(caption.row, {})[caption.kind] = caption
    samples: list[EvaluatedImage] = []
    for data in (_SCENES, _REAL):
        rows = [
            row
            for row, kinds in by_row.items()
            if (next(iter(kinds.values())).verdicts is not None) == (data == _SCENES)
        ]
        # A random stream for each kind of data, so that real images do not change which scenes are shown.
        drawn = seeds.generator("captioner samples", seed, data).permutation(len(rows))[:count]
        for row in sorted(rows[index] for index in drawn):
            path = Path("images") / f"{len(samples):03d}.webp"
            try:
                save_thumbnail(collection.image_bytes(row), run / path)
            except BadImage:
                continue
            samples.append(
                EvaluatedImage(
                    image=str(path),
                    key=collection.keys[row],
                    data=data,
                    alt=select_alt_text(collection.read_captions(row)),
                    captions={kind: _to_result(caption) for kind, caption in by_row[row].items()},
                )
            )
    return samples


def _to_result(caption: JudgedCaption) -> EvaluatedCaption:
    pairs = [] if caption.verdicts is None else list(zip(split(caption.text), caption.verdicts, strict=True))
    return EvaluatedCaption(text=caption.text, obeys=caption.obeys, tokens=caption.tokens, assertions=pairs)


def evaluate(
    captioner: Captioner,
    collection: Collection,
    *,
    split: str,
    run: Path,
    limit: int | None = None,
    seed: int = 0,
    num_samples: int = 6,
    shuffled: bool = False,
) -> CaptionerEvaluation:
    """Caption held-out images in all formats and judge the captions.

    Args:
        run: folder for the images of the samples.
        limit: maximum number of images, drawn by the seed.
        shuffled: see `caption_rows`.

    Raises:
        UserError: the split is empty, or no caption could be written.
    """
    rows = draw_rows(collection, split=split, limit=limit, seed=seed)
    written = caption_rows(captioner, collection, rows, seed=seed, shuffled=shuffled)
    errors = Counter(caption.response.error for caption in written if caption.response.error)
    if errors.total() == len(written):
        reasons = ", ".join(f"{code} {count}" for code, count in errors.items()) or "no image can be read"
        raise UserError(f"{captioner.model}: all {len(written)} captions failed ({reasons})")
    captions = judge_captions(collection, written)
    by_kind = {kind: [caption for caption in captions if caption.kind == kind] for kind in CAPTION_KINDS}
    # Without afc, whose captions are as long as those of dsc.
    groups = [by_kind[kind] for kind in ("ssc", "dsc", "dsc_plus")]
    means = [float(np.mean([caption.tokens for caption in group])) for group in groups if group]
    obedience = {kind: float(np.mean([caption.obeys for caption in group])) for kind, group in by_kind.items() if group}
    return CaptionerEvaluation(
        collection=collection.name,
        split=split,
        images=len(rows),
        captions=len(captions),
        errors=dict(errors),
        seed=seed,
        shuffled=shuffled,
        columns=COLUMNS,
        table=build_table(captions, seed=seed),
        obedience=obedience,
        obeys=all(value >= _MIN_OBEDIENCE for value in obedience.values()),
        lengths_rise=all(low < high for low, high in zip(means, means[1:], strict=False)),
        length_filters={
            kind: (row.lengths.min_tokens, row.lengths.max_tokens) for kind, row in CAPTION_FORMATS.items()
        },
        samples=collect_samples(collection, captions, run, count=num_samples, seed=seed),
    )


def evaluate_model(
    source: str,
    collection: Collection,
    run_path: Path,
    settings: EvaluationSettings,
    *,
    seed: int = 0,
    device: str | None = None,
    command: list[str] | None = None,
) -> CaptionerResult:
    """Evaluate a model in a run folder of its own.

    Raises:
        UserError: there is no such model, or the split is empty.
    """
    captioner = open_captioner(FoveateSettings(model=source, device=device))
    with EvaluationRun(run_path, command=command) as run:
        evaluation = evaluate(
            captioner,
            collection,
            split=settings.split,
            run=run.path,
            limit=settings.limit,
            seed=seed,
            shuffled=settings.shuffled,
        )
        result = CaptionerResult(
            title=f"A captioner on {collection.name}" + (", images shuffled: a control" if settings.shuffled else ""),
            model=source,
            revision=captioner.revision,
            reads_requests=isinstance(captioner, MllmCaptioner) and captioner.reads_requests,
            collection=collection.name,
            command=command or "",
            evaluation=evaluation,
        )
        run.write_result(result)
    return result
