"""Suites of places: RefCOCO, Flickr30k Entities, LVIS referring, and a self-check of boxes as text.

Tables have the corrected scores; the official ones and the shares of misses by reason stand beside them, see
`foveate.metrics.referring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.json_fields import get_field, read_lines
from foveate.metrics.referring import Mode, PhraseScores, TruePhrase, score_name, score_phrases
from foveate.mllm.suite import (
    OFFICIAL,
    ModelAnswer,
    StoredAnswer,
    Suite,
    SuiteData,
    SuiteQuestion,
    ask_collection,
    explain_box,
    folder_reader,
    score_by,
    score_first_boxes,
    share_misses,
    write_bins,
)
from foveate.records.box_text import format_region
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.importers.grounded import IMAGE_FOLDERS, Expression, read_expressions, read_sentences
from foveate.records.layout import DESCRIPTION
from foveate.records.shapes import Mask, Point, Shape, encode_mask

MIN_SIDE = 32
_LVIS_FILE = "lvis_eval.jsonl"


# RefCOCO, RefCOCO+ and RefCOCOg: one box for an expression.


def read_refcoco(path: Path, split: str) -> SuiteData:
    """Read the JSON files that `foveate collect` reads, beside COCO's images in `train2014`; or one file of these.

    The splits are "val", "testA", "testB" and "test".
    """
    files = [path] if path.is_file() else sorted((*path.glob("*refcoco*.json"), *path.glob("refs*.json")))
    if not files:
        raise UserError(f"{path}: no files *refcoco*.json or refs*.json; expected RefCOCO as JSON")
    questions = []
    for file in files:
        for expression in read_expressions(file):
            # The files of MDETR and Ferret have one split each, given by their names.
            if split == (expression.split or file.stem.rpartition("_")[2]):
                questions.append(_make_referring(expression, file))
    if not questions:
        raise UserError(f"{path}: no expressions of the split '{split}'; expected val, testA, testB or test")
    root = path if path.is_dir() else path.parent
    images = root / "train2014"
    return SuiteData(questions, folder_reader(images if images.is_dir() else root))


def _make_referring(expression: Expression, file: Path) -> SuiteQuestion:
    if expression.problem or expression.box is None or expression.size is None:
        raise UserError(f"{file}: {expression.problem or f'{expression.id}: no width and height of its image'}")
    # The official question has no commas. The reference keeps them: phrases are compared without punctuation.
    phrase = expression.phrase.replace(",", "").strip()
    name = expression.dataset or file.stem
    return SuiteQuestion(
        id=f"{name}/{expression.id}",
        images=(expression.names[-1],),
        text=f"Where is {phrase} in the image?",
        references=(expression.phrase,),
        boxes=(expression.box,),
        slices=(name,),
        size=expression.size,
    )


def summarize_refcoco(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
    """Official and corrected accuracies, of each data set too, and the share of each reason among all answers."""
    sets = [question.slices[0] for question, _ in answered]
    further: dict[str, float | None] = {}
    for mode in ("official", "corrected"):
        scores = score_first_boxes(answered, mode)
        parts = scores.summarize()
        if len(set(sets)) > 1:
            parts |= scores.summarize(sets)
        for name, values in parts.items():
            further |= {" ".join(filter(None, (mode, key, str(name)))): value for key, value in values.items()}
        if mode == "corrected":
            further |= share_misses(scores.misses)
    return further


# Self-check: true boxes are written as text of 0..999 and read back; no model is asked. It shows what the form of boxes
# itself costs: all boxes of 32 pixels and more must come back at IoU .5, with the robust parser and the official one.


def read_true_boxes(path: Path, split: str) -> SuiteData:
    """Read the regions of one split of a collection, or RefCOCO's expressions."""
    if not (path / DESCRIPTION).is_file():
        data = read_refcoco(path, split)
        return SuiteData([_slice_by_size(question) for question in data.questions], data.read_image, data.close)
    collection = Collection.open(path)
    questions = [
        SuiteQuestion(
            id=f"{record.key}/{number}",
            images=(record.key,),
            text=f"Where is the {region.phrase}?",
            references=(region.phrase,),
            boxes=(region.box.to_pixels(record.width, record.height),),
            size=(record.width, record.height),
        )
        for record in (collection.record(row) for row in collection.rows(split))
        for number, region in enumerate(record.regions)
    ]
    missing = f"split '{split}' has no regions; expected a collection with boxes"
    return ask_collection(collection, [_slice_by_size(question) for question in questions], missing=missing)


def _slice_by_size(question: SuiteQuestion) -> SuiteQuestion:
    (box,) = question.boxes
    large = min(box.x2 - box.x1, box.y2 - box.y1) >= MIN_SIDE
    return replace(question, slices=(f"{MIN_SIDE} pixels and more" if large else f"below {MIN_SIDE} pixels",))


def write_true_box(question: SuiteQuestion) -> StoredAnswer:
    """Write the true box as a model would."""
    assert question.size is not None
    width, height = question.size
    return StoredAnswer(f"{question.references[0]} {format_region(question.boxes[0], width=width, height=height)}.")


def summarize_sizes(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
    """The same of the official parser, by size, and the share of each reason."""
    sizes = [question.slices[0] for question, _ in answered]
    further: dict[str, float | None] = {}
    for mode in ("official", "corrected"):
        scores = score_first_boxes(answered, mode)
        further |= {f"{mode}, {name}": values["k=1"] for name, values in scores.summarize(sizes).items()}
        if mode == "corrected":
            further |= share_misses(scores.misses)
    return further


# Flickr30k Entities: boxes of all phrases of a sentence. Its score is the share of its phrases whose first box hits the
# merged true box; the recalls of the whole split are reported beside it, official and corrected.


def read_flickr(path: Path, split: str) -> SuiteData:
    """Read the sentences with boxes of `train.txt`, `val.txt` or `test.txt`, as `foveate collect` does.

    The model gets the phrases of a sentence and boxes each.
    """
    questions = []
    for sentence in read_sentences(path, split):
        if sentence.problem:
            raise UserError(sentence.problem)
        phrases = tuple(
            TruePhrase(sentence.text[phrase.start : phrase.end], phrase.boxes, phrase.categories)
            for phrase in sentence.phrases
            if phrase.boxes
        )
        if phrases:
            questions.append(
                SuiteQuestion(
                    id=sentence.id,
                    images=(sentence.image,),
                    # The phrases, as Ferret asks: the sentence would make finding them a part of the task.
                    text=f"Box all things of this text: {', '.join(p.phrase.replace(',', '') for p in phrases)}.",
                    references=tuple(phrase.phrase for phrase in phrases),
                    phrases=phrases,
                    size=sentence.size,
                )
            )
    folder = next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), path / IMAGE_FOLDERS[0])
    return SuiteData(questions, folder_reader(folder))


def _score_sentence(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Share of the phrases that are found at rank 1, corrected, with merged boxes."""
    return float((_score_phrases([(question, answer)], "corrected").ranks_P == 1).mean())


def _score_phrases(
    answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: Mode, *, merged: bool = True
) -> PhraseScores:
    return score_phrases(
        [write_bins(answer, question.size) for question, answer in answered],
        [question.phrases for question, _ in answered],
        [question.size or (0, 0) for question, _ in answered],
        merged=merged,
        mode=mode,
    )


def _explain_sentence(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the phrases that are missed, each with its reason."""
    misses = zip(question.phrases, _score_phrases([(question, answer)], "corrected").misses, strict=True)
    return "; ".join(f"{phrase.phrase}: {reason}" for phrase, reason in misses if reason)


def summarize_flickr(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
    """Recalls of phrases by category, official and corrected, merged and any box, and the share of each reason."""
    further: dict[str, float | None] = {}
    for mode in ("official", "corrected"):
        for way, merged in (("merged", True), ("any", False)):
            scores = _score_phrases(answered, mode, merged=merged)
            for k, values in scores.recall().items():
                names = values if k == 1 else ("all",)
                rank = "all" if k == -1 else k
                further |= {f"{mode} recall@{rank}, {way} boxes, {name}": values[name] for name in names}
            if mode == "corrected" and merged:
                further |= share_misses(scores.misses)
    return further


# LVIS: "is the object at the region a cat or a dog?", of a point, a box and a free-form region.


def read_lvis(path: Path, split: str) -> SuiteData:
    """Read the file `lvis_eval.jsonl` of Ferret beside `val2017`, which has no splits, or one split of a collection.

    Each named region of a collection (LVIS by `foveate collect`, generated scenes) is asked about by its box, and the
    wrong name is drawn by a hash from names that the image has not. LVIS does not name everything in an image, so that
    a wrong name may be right there.
    """
    if (path / _LVIS_FILE).is_file():
        questions = []
        for number, entry in enumerate(read_lines(path / _LVIS_FILE)):
            questions += _read_entry(entry, number, where=f"{path / _LVIS_FILE}, line {number + 1}")
        return SuiteData(questions, folder_reader(path / "val2017"))
    collection = Collection.open(path)
    missing = f"split '{split}' has no named regions of two names; expected {_LVIS_FILE} or a collection"
    return ask_collection(collection, _ask_regions(collection, split), missing=missing)


def _make_pair(
    id: str, image: str, region: Shape, names: tuple[str, ...], other: str, kind: str, *, swap: bool
) -> SuiteQuestion:
    """Make a question; the order of the two names alternates."""
    # LVIS writes spaces in its names as underscores.
    name = names[0].replace("_", " ")
    # A model that always picks the first name must not score above one half.
    first, second = (other, name) if swap else (name, other)
    return SuiteQuestion(
        id=f"{id}/{kind}",
        images=(image,),
        text=f"Is the object at <region> of the image a {first} or a {second}?",
        references=(name, *names[1:]),
        choices=(name, other),
        regions=(region,),
        slices=(kind,),
        chance=0.5,
    )


def _read_entry(entry: dict[str, Any], number: int, *, where: str) -> list[SuiteQuestion]:
    width, height = (get_field(entry, name, int, where=where) for name in ("width", "height"))
    names = (get_field(entry, "name", str, where=where), *map(str, get_field(entry, "synonyms", list, where=where)))
    regions: dict[str, Shape] = {
        "point": Point(*_get_numbers(entry, "sample_point", 2, where=where)),
        "box": PixelBox(
            *(
                fraction * side
                for fraction, side in zip(
                    _get_numbers(entry, "bbox_norm", 4, where=where), (width, height) * 2, strict=True
                )
            )
        ),
    }
    if "free_shape_segment_mask" in entry:
        try:
            mask = np.array(entry["free_shape_segment_mask"], dtype=bool)
        except ValueError as error:
            raise UserError(f"{where}: free_shape_segment_mask is no array of {width} x {height} ({error})") from error
        if mask.shape != (width, height):
            raise UserError(
                f"{where}: free_shape_segment_mask of shape {list(mask.shape)}; expected [{width}, {height}]"
            )
        # The file has x first, as all masks of Ferret's code.
        encoded = encode_mask(mask.T)
        regions["free-form"] = Mask((height, width), tuple(encoded["counts"]))
    image = get_field(entry, "image_path", str, where=where).rpartition("/")[2]
    other = get_field(entry, "neg_class", str, where=where).replace("_", " ")
    id = str(entry.get("id", number))
    return [_make_pair(id, image, region, names, other, kind, swap=number % 2 == 1) for kind, region in regions.items()]


def _get_numbers(entry: dict[str, Any], name: str, count: int, *, where: str) -> list[float]:
    values = get_field(entry, name, list, where=where)
    if len(values) != count or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise UserError(f"{where}: field '{name}': expected {count} numbers (got {str(values)[:60]})")
    return [float(value) for value in values]


def _ask_regions(collection: Collection, split: str) -> list[SuiteQuestion]:
    records = [collection.record(row) for row in collection.rows(split)]
    names = sorted({region.phrase for record in records for region in record.regions})
    questions = []
    for record in records:
        absent = [name for name in names if name not in {region.phrase for region in record.regions}]
        for number, region in enumerate(record.regions if absent else ()):
            id = f"{record.key}/{number}"
            # Drawn by a hash of the region, so that the draw does not depend on earlier regions.
            other = absent[int(seeds.uniform("lvis-refer", id) * len(absent))]
            box = region.box.to_pixels(record.width, record.height)
            questions.append(
                _make_pair(id, record.key, box, (region.phrase,), other, "box", swap=len(questions) % 2 == 1)
            )
    return questions


def _explain_pair(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the reason of a miss, "" for a hit; see `foveate.metrics.referring.score_name`."""
    return score_name(answer.text, question.choices[0], question.references[1:], other=question.choices[1])


def summarize_lvis(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
    """Official and corrected accuracy, and the share of each reason."""
    official = [
        score_name(
            answer.text, question.choices[0], question.references[1:], other=question.choices[1], mode="official"
        )
        for question, answer in answered
    ]
    misses = [_explain_pair(question, answer) for question, answer in answered]
    further: dict[str, float | None] = {"official accuracy": official.count("") / len(official)}
    further["corrected accuracy"] = misses.count("") / len(misses)
    return further | share_misses(misses)


SUITES = {
    "refcoco": Suite(
        "RefCOCO",
        "accuracy at IoU .5, corrected",
        read_refcoco,
        score_by(explain_box),
        max_tokens=64,
        summarize=summarize_refcoco,
        official=OFFICIAL,
        explain=explain_box,
    ),
    "self_check": Suite(
        "Self-check of boxes as text",
        "accuracy at IoU .5",
        read_true_boxes,
        score_by(explain_box),
        summarize=summarize_sizes,
        explain=explain_box,
        answer=write_true_box,
    ),
    "flickr": Suite(
        "Flickr30k Entities",
        "recall@1, corrected",
        read_flickr,
        _score_sentence,
        max_tokens=256,
        summarize=summarize_flickr,
        official=OFFICIAL,
        explain=_explain_sentence,
    ),
    "lvis_refer": Suite(
        "LVIS referring",
        "accuracy, corrected",
        read_lvis,
        score_by(_explain_pair),
        max_tokens=64,
        summarize=summarize_lvis,
        official=OFFICIAL,
        explain=_explain_pair,
    ),
}
