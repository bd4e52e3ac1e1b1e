"""Published question sets about videos, and a user's: each reads its files as they are. A set is a row of SETS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, nearest
from foveate.core.json_fields import get_field, read_lines, read_table
from foveate.video.questions import (
    CLIP_SUFFIXES,
    FIVE_OPTIONS,
    Columns,
    QuestionSet,
    VideoQuestion,
    find_column,
    get_text,
    make_choice,
    make_question,
    read_entries,
    read_rows,
)

# Questions of a user: JSON Lines with video, question and answer, and options for a multiple choice.
#
#     {"video": "trips/taxi.mp4", "question": "What follows the taxi?", "answer": "a bus"}
#     {"video": "taxi", "question": "Where is it?", "options": ["on the left", "on the right"], "answer": "on the left"}
#
# `id` names a question and `type` a part that is also reported by itself. `answer` is a text, and of a multiple choice
# the text of an option or its number from 0. `evidence` names the frames that hold the answer, counted from 0, in
# groups of which one frame each is needed; how often they were among the frames that a model saw is then reported.

_OWN_FIELDS = ("id", "video", "question", "answer", "options", "type", "evidence")


def _read_own(path: Path) -> list[VideoQuestion]:
    """Read a file of questions, one a line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected questions as JSON Lines")
    questions = [
        _read_line(entry, f"{path}, line {number}", number) for number, entry in enumerate(read_lines(path), 1)
    ]
    if not questions:
        raise UserError(f"{path}: no questions; expected a line of JSON for each")
    return questions


def _read_line(entry: dict[str, Any], where: str, number: int) -> VideoQuestion:
    for name in entry:
        if name not in _OWN_FIELDS:
            raise UserError(
                f"{where}: unknown field '{name}'; expected {', '.join(_OWN_FIELDS)}{nearest(name, _OWN_FIELDS)}"
            )
    video, text = (get_field(entry, name, str, where=where) for name in ("video", "question"))
    # Names may have dots of their own: only the suffix of a clip is cut off.
    stem, _, suffix = video.rpartition(".")
    clip = (stem if suffix.lower() in CLIP_SUFFIXES else video,)
    id, kind, answer = get_text(entry, "id", number), get_text(entry, "type"), entry.get("answer", "")
    if isinstance(answer, bool) or not isinstance(answer, str | int):
        raise UserError(f"{where}: field 'answer': expected a text or the number of an option (got {answer!r:.60})")
    evidence = _read_evidence(entry.get("evidence", []), where)
    if "options" not in entry:
        return make_question(id=id, clip=clip, texts=(text,), answer=str(answer), kind=kind, evidence=evidence)
    options = [str(option) for option in get_field(entry, "options", list, where=where)]
    if len(options) < 2:
        raise UserError(f"{where}: field 'options': expected at least two (got {len(options)})")
    return make_choice(options, answer, id=id, clip=clip, texts=(text,), kind=kind, evidence=evidence)


def _read_evidence(value: Any, where: str) -> tuple[tuple[int, ...], ...]:
    groups = value if isinstance(value, list) else [None]
    if not all(isinstance(group, list) and group and all(map(_is_frame, group)) for group in groups):
        expected = "expected groups of frames counted from 0, [[3], [7, 8]]"
        raise UserError(f"{where}: field 'evidence': {expected} (got {value!r:.60})")
    return tuple(tuple(group) for group in groups)


def _is_frame(value: Any) -> bool:
    # bool is an int, too.
    return type(value) is int and value >= 0


# ActivityNet-QA: `test_q.json` with `test_a.json` beside it as published, or IG-VLM's `ActivityNet_QA.csv`.
#
# The same clip is called v_1QIUV7WYKXg in one place and 1QIUV7WYKXg in another; both names are looked for.


_ACTIVITYNET_KINDS = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")


def _read_activitynet(path: Path) -> list[VideoQuestion]:
    """Read the questions; one that the file of answers lacks is a row that is missing, and so is the reverse."""
    if path.suffix != ".json":
        return Columns().read(read_rows(path), path, name_clip=name_clip, name_kind=_name_kind)
    answers_path = path.with_name(f"{path.stem.removesuffix('_q')}_a.json")
    if not path.stem.endswith("_q") or not answers_path.is_file():
        raise UserError(f"{path}: expected a file such as test_q.json with its answers, test_a.json, beside it")
    entries, answers = read_entries(path), read_entries(answers_path)
    for name in ("answer", "question_id"):
        find_column(answers, name, path=answers_path)
    by_id = {get_text(answer, "question_id"): answer for answer in answers}
    ids = [get_text(entry, "question_id") for entry in entries]
    # The defaults complete the columns where the first question has no answer: `find_column` looks at the first row
    # alone.
    rows = [{"answer": "", "type": ""} | by_id.get(id, {}) | entry for id, entry in zip(ids, entries, strict=True)]
    questions = Columns(kind=("type",)).read(rows, path, name_clip=name_clip, name_kind=_name_kind)
    known_ids = set(ids)
    missing = f"{answers_path.name} has no answer"
    unasked = f"{path.name} has no such question"
    return [each if each.id in by_id else replace(each, problem=missing) for each in questions] + [
        make_question(id=id, clip=(), texts=("",), answer="", problem=unasked) for id in by_id if id not in known_ids
    ]


def _name_kind(number: str) -> str:
    return _ACTIVITYNET_KINDS[int(number)] if number in map(str, range(len(_ACTIVITYNET_KINDS))) else ""


def name_clip(video: str) -> tuple[str, ...]:
    """Return both names of a clip of ActivityNet."""
    bare = video.removeprefix("v_")
    return (f"v_{bare}", bare) if bare else ()


# VCGBench: a folder with the questions of its three parts, about clips of ActivityNet.
#
# Either `generic_qa.json`, `temporal_qa.json` and `consistency_qa.json` of Video-ChatGPT, or IG-VLM's `Generic_QA.csv`,
# `Temporal_QA.csv`, `Consistency_QA1.csv` and `Consistency_QA2.csv`. A judge scores correctness, detail and context of
# the generic answers, time of the temporal ones, and how consistent the answers to two wordings of a question are.


_VCGBENCH_ASPECTS = {"generic": ("CI", "DO", "CU"), "temporal": ("TU",), "consistency": ("CO",)}


def _read_vcgbench(path: Path) -> list[VideoQuestion]:
    """Read all three parts of a folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected VCGBench's generic, temporal and consistency questions")
    return [question for part in _VCGBENCH_ASPECTS for question in _read_part(path, part)]


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
        for number, each in enumerate(columns.read(rows, source, name_clip=name_clip, aspects=_VCGBENCH_ASPECTS[part]))
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


# EgoSchema: `questions.json` as published with `subset_answers.json` beside it, or IG-VLM's `EgoSchema.csv`.
#
# The answers of 500 of the 5,031 questions are published, and these are asked. An answer without a question is a row
# that is missing.


_EGOSCHEMA_ANSWERS = "subset_answers.json"
# A question is named by its clip, which is its own.
_EGOSCHEMA_LISTED = Columns(("video_name",), kind=(), options=FIVE_OPTIONS)
_EGOSCHEMA_PUBLISHED = Columns(
    ("q_uid",), ("q_uid",), kind=(), options=tuple(f"option {index}" for index in range(5)), by_number=True
)


def _read_egoschema(path: Path) -> list[VideoQuestion]:
    """Read the questions that have an answer."""
    if path.suffix == ".csv":
        return _EGOSCHEMA_LISTED.read(read_rows(path), path)
    answers_path = path.with_name(_EGOSCHEMA_ANSWERS)
    if not answers_path.is_file():
        raise UserError(f"{answers_path}: no such file; it holds the answers of {path.name}")
    answers, entries = read_table(answers_path), read_entries(path)
    for name in ("q_uid", *_EGOSCHEMA_PUBLISHED.texts, *_EGOSCHEMA_PUBLISHED.options):
        find_column(entries, name, path=path)
    by_id = {get_text(entry, "q_uid"): entry for entry in entries}
    # The first answer may have no question, but `find_column` looks at the first row alone and needs all columns there.
    empty = dict.fromkeys([*_EGOSCHEMA_PUBLISHED.texts, *_EGOSCHEMA_PUBLISHED.options], "")
    rows = [by_id.get(id, empty) | {"q_uid": id, "answer": answer} for id, answer in answers.items()]
    questions = _EGOSCHEMA_PUBLISHED.read(rows, path) if rows else []
    problem = f"{path.name} has no such question"
    return [each if each.id in by_id else replace(each, problem=problem) for each in questions]


# NExT-QA: `val.csv` or `test.csv` as published, with `map_vid_vidorID.json` beside it, or IG-VLM's `NExT_QA.csv`.
#
# The videos are those of VidOR, which lie in folders by number; the map names these. Of the questions in three of val
# two options are equal, so that only the number of the right one counts.


_NEXTQA_MAP = "map_vid_vidorID.json"
_NEXTQA_PUBLISHED = Columns(("qid",), ("video", "video_id"), kind=("type",), options=FIVE_OPTIONS, by_number=True)
_NEXTQA_LISTED = Columns(options=FIVE_OPTIONS)
_NEXTQA_NUMBERED = Columns(answer=("answer_number",), options=FIVE_OPTIONS, by_number=True)


def _read_nextqa(path: Path) -> list[VideoQuestion]:
    """Read the questions; clips are looked for by the map's path, then by number."""
    paths = read_table(path.with_name(_NEXTQA_MAP)) if path.with_name(_NEXTQA_MAP).is_file() else {}
    rows = read_rows(path)
    is_published = "qid" in rows[0]
    columns = _NEXTQA_PUBLISHED if is_published else _NEXTQA_NUMBERED if "answer_number" in rows[0] else _NEXTQA_LISTED
    questions = columns.read(
        rows, path, name_clip=lambda video: tuple(dict.fromkeys((str(paths.get(video, video)), video)))
    )
    # As published, questions are counted by video.
    return [replace(each, id=f"{each.clip[-1]}_{each.id}") for each in questions] if is_published else questions


# MSVD-QA: `val_qa.json` or `test_qa.json` with `youtube_mapping.txt` beside it, or IG-VLM's `MSVD_QA.csv` (val).
#
# Clips are called by their place on YouTube, or vid1 to vid1970; the mapping has both names on a line. Published scores
# are mostly of test (13,157 questions), those of SlowFast-LLaVA of val: other questions, other numbers.


_MSVD_MAPPING = "youtube_mapping.txt"
_MSVD_PUBLISHED = Columns(("id",), ("video_id",), kind=("category_id",))
"""Of the JSON of MSVD-QA and MSRVTT-QA."""


def _read_msvd(path: Path) -> list[VideoQuestion]:
    """Read the questions; clips are looked for by both names."""
    if path.suffix != ".json":
        rows = read_rows(path)
        return [
            replace(each, clip=(*each.clip, f"vid{row.get('video_id', '')}"))
            for each, row in zip(Columns().read(rows, path), rows, strict=True)
        ]
    names = _read_mapping(path.with_name(_MSVD_MAPPING))

    def name_clip(number: str) -> tuple[str, ...]:
        return tuple(name for name in (names.get(f"vid{number}", ""), f"vid{number}") if name)

    return _MSVD_PUBLISHED.read(read_entries(path), path, name_clip=name_clip)


def _read_mapping(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    # What is no UTF-8 is the name of no clip, and must not end in a traceback.
    content = path.read_text(encoding="utf-8", errors="replace")
    pairs = [line.split() for line in content.splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path}: expected two names on a line, such as -4wsuPCjDBc_5_15 vid1")
    return {number: name for name, number in pairs}


# MSRVTT-QA: `val_qa.json` or `test_qa.json` as published, or IG-VLM's `MSRVTT_QA.csv` (val); clips are video0, ...


def _read_msrvtt(path: Path) -> list[VideoQuestion]:
    """Read the questions; published scores are mostly of test, those of SlowFast-LLaVA of val."""
    if path.suffix != ".json":
        return Columns().read(read_rows(path), path)
    return _MSVD_PUBLISHED.read(read_entries(path), path, name_clip=lambda number: (f"video{number}",))


# TGIF-FrameQA: `Test_frameqa_question.csv` as published (tabs), or IG-VLM's `TGIF_FrameQA.csv`.
#
# A question is named by its own id (FRAMEQA1159). `key` and IG-VLM's `question_id` number the GIFs: 13,691 questions
# have 7,132 of these, and an evaluator that stores a reply by them judges one question of each GIF.


_TGIF_COLUMNS = Columns(("vid_id", "video_id"), ("gif_name", "video_name"), kind=("type", "question_type"))
_TGIF_KINDS = {"0": "object", "1": "number", "2": "color", "3": "location"}


def _read_tgif(path: Path) -> list[VideoQuestion]:
    """Read the questions of GIFs, or of these as videos."""
    return _TGIF_COLUMNS.read(read_rows(path), path, name_kind=lambda number: _TGIF_KINDS.get(number, ""))


SETS: Mapping[str, QuestionSet] = {
    "own": QuestionSet("Own questions", _read_own),
    "activitynet": QuestionSet("ActivityNet-QA", _read_activitynet, published=(8000,)),
    "vcgbench": QuestionSet("VCGBench", _read_vcgbench, published=(2994,)),
    "egoschema": QuestionSet("EgoSchema, subset", _read_egoschema, published=(500,)),
    "nextqa": QuestionSet("NExT-QA", _read_nextqa, published=(4996, 8564)),
    "intentqa": QuestionSet("IntentQA", _read_nextqa, published=(2044, 2134)),
    "msvd": QuestionSet("MSVD-QA", _read_msvd, published=(6415, 13157)),
    "msrvtt": QuestionSet("MSRVTT-QA", _read_msrvtt, published=(12278, 72821)),
    "tgif": QuestionSet("TGIF-FrameQA", _read_tgif, published=(13691,)),
}
