"""VCGBench: a folder with the questions of its three parts, about clips of ActivityNet.

Either `generic_qa.json`, `temporal_qa.json` and `consistency_qa.json` of Video-ChatGPT, or IG-VLM's `Generic_QA.csv`,
`Temporal_QA.csv`, `Consistency_QA1.csv` and `Consistency_QA2.csv`. A judge scores correctness, detail and context of
the generic answers, time of the temporal ones, and how consistent the answers to two wordings of a question are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.mllm.video.questions import (
    QuestionSet,
    VideoQuestion,
    find_column,
    make_question,
    read_entries,
    read_rows,
)
from foveate.mllm.video.sets.activitynet import name_clip

_ASPECTS = {"generic": ("CI", "DO", "CU"), "temporal": ("TU",), "consistency": ("CO",)}


def read(path: Path) -> list[VideoQuestion]:
    """Read all three parts of a folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected VCGBench's generic, temporal and consistency questions")
    return [question for part in _ASPECTS for question in _read_part(path, part)]


def _read_part(folder: Path, part: str) -> list[VideoQuestion]:
    published = folder / f"{part}_qa.json"
    if published.is_file():
        entries = read_entries(published)
        texts = ("Q1", "Q2") if part == "consistency" else ("Q",)
        for name in ("video_name", "A", *texts):
            find_column(entries, name, path=published)
        rows = [({name: str(entry.get(name, "")) for name in entries[0]}, texts, "A") for entry in entries]
    else:
        rows = [(row, *names) for row, *names in _read_tables(folder, part)]
    # The JSON has no ids, and those of the tables are unique in their part alone.
    return [
        make_question(
            id=f"{part}/{number}",
            clip=name_clip(row["video_name"]),
            texts=tuple(row[name] for name in texts),
            answer=row[answer],
            kind=part,
            aspects=_ASPECTS[part],
        )
        for number, (row, texts, answer) in enumerate(rows)
    ]


def _read_tables(folder: Path, part: str) -> list[tuple[Any, ...]]:
    names = (
        [f"Consistency_QA{number}.csv" for number in (1, 2)] if part == "consistency" else [f"{part.title()}_QA.csv"]
    )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no {part}_qa.json and no {missing[0]}; expected one of them")
    tables = [read_rows(folder / name) for name in names]
    for name, rows in zip(names, tables, strict=True):
        for column in ("video_name", "question", "question_id", "answer"):
            find_column(rows, column, path=folder / name)
    first = tables[0]
    if part != "consistency":
        return [(row, ("question",), "answer") for row in first]
    ids = [[row["question_id"] for row in rows] for rows in tables]
    if ids[0] != ids[1]:
        raise UserError(
            f"{folder / names[1]}: other question_ids than {names[0]}; expected the same ones in their order"
        )
    return [
        (row | {"other question": other["question"]}, ("question", "other question"), "answer")
        for row, other in zip(*tables, strict=True)
    ]


SET = QuestionSet("VCGBench", read, published=(2994,))
