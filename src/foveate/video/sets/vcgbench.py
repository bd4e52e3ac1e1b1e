"""VCGBench: a folder with the questions of its three parts, about clips of ActivityNet.

Either `generic_qa.json`, `temporal_qa.json` and `consistency_qa.json` of Video-ChatGPT, or IG-VLM's `Generic_QA.csv`,
`Temporal_QA.csv`, `Consistency_QA1.csv` and `Consistency_QA2.csv`. A judge scores correctness, detail and context of
the generic answers, time of the temporal ones, and how consistent the answers to two wordings of a question are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.records.video_questions import Columns, QuestionSet, VideoQuestion, find_column, read_entries, read_rows
from foveate.video.sets.activitynet import name_clip

_ASPECTS = {"generic": ("CI", "DO", "CU"), "temporal": ("TU",), "consistency": ("CO",)}


def read(path: Path) -> list[VideoQuestion]:
    """Read all three parts of a folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected VCGBench's generic, temporal and consistency questions")
    return [question for part in _ASPECTS for question in _read_part(path, part)]


def _read_part(folder: Path, part: str) -> list[VideoQuestion]:
    is_pair, source = part == "consistency", folder / f"{part}_qa.json"
    if source.is_file():
        rows: Sequence[Mapping[str, Any]] = read_entries(source)
        # The JSON has no ids.
        columns = Columns(("video_name",), texts=("Q1", "Q2") if is_pair else ("Q",), answer=("A",))
    else:
        source, rows = _read_tables(folder, part)
        columns = Columns(texts=("question", "other question") if is_pair else ("question",))
    # Those of the tables are unique in their part alone.
    return [
        replace(each, id=f"{part}/{number}", kind=part)
        for number, each in enumerate(columns.read(rows, source, name_clip=name_clip, aspects=_ASPECTS[part]))
    ]


def _read_tables(folder: Path, part: str) -> tuple[Path, list[dict[str, str]]]:
    """Return the first table of a part, and its rows; of a pair with the second wording."""
    names = (
        [f"Consistency_QA{number}.csv" for number in (1, 2)] if part == "consistency" else [f"{part.title()}_QA.csv"]
    )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no {part}_qa.json and no {missing[0]}; expected one of them")
    rows, *others = [read_rows(folder / name) for name in names]
    for other in others:
        for name, table in zip(names, (rows, other), strict=True):
            for column in ("question", "question_id"):
                find_column(table, column, path=folder / name)
        if [row["question_id"] for row in rows] != [row["question_id"] for row in other]:
            raise UserError(
                f"{folder / names[1]}: other question_ids than {names[0]}; expected the same ones in their order"
            )
        rows = [row | {"other question": second["question"]} for row, second in zip(rows, other, strict=True)]
    return folder / names[0], rows


SET = QuestionSet("VCGBench", read, published=(2994,))
