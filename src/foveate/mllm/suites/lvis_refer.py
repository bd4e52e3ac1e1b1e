"""LVIS referring: "is the object at the region a cat or a dog?", of a point, a box and a free-form region.

Data are either the file `lvis_eval.jsonl` of Ferret beside `val2017`, or a collection with named regions (LVIS by
`foveate collect`, generated scenes): then each region is asked about by its box, and the wrong name is drawn by a hash
from names that the image has not. LVIS does not name everything in an image, so that a wrong name may be right there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.json_fields import get_field, read_lines
from foveate.metrics.referring import MISSES, score_name
from foveate.mllm.suite import ModelAnswer, Suite, SuiteData, SuiteQuestion, folder_reader
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.shapes import Mask, Point, Shape, encode_mask

_FILE = "lvis_eval.jsonl"


def read(path: Path, split: str) -> SuiteData:
    """Read Ferret's file, which has no splits, or one split of a collection."""
    if (path / _FILE).is_file():
        questions = []
        for number, entry in enumerate(read_lines(path / _FILE)):
            questions += _read_entry(entry, number, where=f"{path / _FILE}, line {number + 1}")
        return SuiteData(questions, folder_reader(path / "val2017"))
    collection = Collection.open(path)
    questions = _ask_regions(collection, split)
    if not questions:
        collection.close()
        raise UserError(f"{path}: split '{split}' has no named regions of two names; expected {_FILE} or a collection")
    return SuiteData(questions, lambda key: collection.image_bytes(collection.find_row(key)), collection.close)


def _make(
    id: str, image: str, region: Shape, names: tuple[str, ...], other: str, kind: str, *, swap: bool
) -> SuiteQuestion:
    """Make a question; the order of the two names alternates."""
    # LVIS writes spaces in its names as underscores.
    name = names[0].replace("_", " ")
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
    return [_make(id, image, region, names, other, kind, swap=number % 2 == 1) for kind, region in regions.items()]


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
            questions.append(_make(id, record.key, box, (region.phrase,), other, "box", swap=len(questions) % 2 == 1))
    return questions


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Corrected accuracy; see `foveate.metrics.referring.score_name`."""
    return float(explain(question, answer) == "")


def explain(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the reason of a miss, "" for a hit."""
    return score_name(answer.text, question.choices[0], question.references[1:], other=question.choices[1])


def summarize(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
    """Official and corrected accuracy, and the share of each reason."""
    official = [
        score_name(
            answer.text, question.choices[0], question.references[1:], other=question.choices[1], mode="official"
        )
        for question, answer in answered
    ]
    misses = [explain(question, answer) for question, answer in answered]
    further: dict[str, float | None] = {"official accuracy": official.count("") / len(official)}
    further["corrected accuracy"] = misses.count("") / len(misses)
    return further | {f"missed, {reason}": misses.count(reason) / len(misses) for reason in MISSES}


SUITE = Suite("LVIS referring", "accuracy, corrected", read, score, max_tokens=64, summarize=summarize, explain=explain)
