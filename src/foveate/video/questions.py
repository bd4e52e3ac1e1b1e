"""Published questions about videos, and the clips that they are about.

A set is a row of `foveate.video.sets.SETS`, which reads published lists as they are. A question that
cannot be asked is never left out: it bears its problem.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.core import tables
from foveate.core.errors import UserError, nearest
from foveate.core.files import read_json
from foveate.core.plugins import load_row
from foveate.records.importers.sample import IMAGE_SUFFIXES

FIVE_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
"""Columns of the options of NExT-QA, IntentQA and IG-VLM's lists."""


@dataclass(frozen=True)
class VideoQuestion:
    """One question of a set.

    Attributes:
        clip: names of its clip without suffix, the best first; one with "/" is a path below the folder of videos.
        texts: the question; two that have the same answer where their consistency is judged.
        answer: the reference.
        options: of a multiple choice, of which the number `correct` is right.
        kind: part of the set that is also reported by itself.
        evidence: groups of frames, counted from 0; the answer needs one frame of each.
        aspects: what a judge scores, `""` for right or wrong; none of a multiple choice.
        problem: why it cannot be asked.
    """

    id: str
    clip: tuple[str, ...]
    texts: tuple[str, ...]
    answer: str
    options: tuple[str, ...] = ()
    correct: int | None = None
    kind: str = ""
    evidence: tuple[tuple[int, ...], ...] = ()
    aspects: tuple[str, ...] = ("",)
    problem: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """Question set.

    Attributes:
        title: of its benchmark.
        read: path of its questions -> these. published: how many questions its published lists have.
    """

    title: str
    read: Callable[[Path], list[VideoQuestion]]
    published: tuple[int, ...] = ()


def load_set(name: str) -> QuestionSet:
    """Load a question set by its name; raise UserError with the nearest name."""
    question_set: QuestionSet = load_row("foveate.video.sets", name, "SETS", label="question set")
    return question_set


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table with a header; a cell that a short row lacks is empty.

    Raises:
        UserError: no such file, no text, a quote without an end (a file that was cut), or a row that is too long.
    """
    rows = tables.read_rows(path, pad=True).to_dicts()
    if not rows:
        raise UserError(f"{path}: no rows; expected a header and questions")
    return rows


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects; raise UserError if the file is none."""
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content) or not content:
        raise UserError(f"{path}: expected a JSON list of questions (got {type(content).__name__})")
    return content


def find_column(rows: Sequence[Mapping[str, Any]], *names: str, path: Path) -> str:
    """Return the first of the names that the rows have.

    Raises:
        UserError: they have none; the error lists their columns.
    """
    for name in names:
        if name in rows[0]:
            return name
    columns = [str(column) for column in rows[0]]
    expected = " or ".join(f"'{name}'" for name in names)
    raise UserError(f"{path}: no column {expected} (got {', '.join(columns)}){nearest(names[0], columns)}")


def get_text(row: Mapping[str, Any], name: str, default: object = "") -> str:
    """Return a field as text, the default where it is absent or null: JSON has numbers too."""
    value = row.get(name)
    return str(default if value is None else value)


def make_choice(options: Sequence[str], correct: int | str | None, **fields: Any) -> VideoQuestion:
    """Make a multiple choice; its right option is a number or a text.

    Of two equal options the first is right, as in the official lists.
    """
    if isinstance(correct, str):
        correct = options.index(correct) if correct in options else None
    if correct is not None and not 0 <= correct < len(options):
        correct = None
    return make_question(
        answer="" if correct is None else options[correct],
        options=tuple(options),
        correct=correct,
        aspects=(),
        problem="its answer is none of its options" if correct is None else "",
        **fields,
    )


def make_question(**fields: Any) -> VideoQuestion:
    """Make a question; where a text is missing, it bears this as its problem."""
    question = VideoQuestion(**fields)
    named = {"video": question.clip[0] if question.clip else "", "answer": question.answer}
    named |= {"question": "" if not all(text.strip() for text in question.texts) else "text"}
    named |= {"option": "" if not all(option.strip() for option in question.options) else "text"}
    empty = [name for name, text in named.items() if not text.strip()]
    # Keep a known problem, which is more specific: a choice without a right option has no answer text either.
    if empty and not question.problem:
        return replace(question, problem=f"it has no {' and no '.join(empty)}")
    return question


@dataclass(frozen=True)
class Columns:
    """Under which names a published table has the fields of its questions; of several the first that it has counts.

    The defaults are those of IG-VLM's lists.

    Attributes:
        texts: the question; two names where a row has two wordings of it.
        kind: may be absent. options: of a multiple choice, in their order.
        by_number: the answer of a multiple choice is the number of its option, not its text.
    """

    id: tuple[str, ...] = ("question_id",)
    video: tuple[str, ...] = ("video_name",)
    texts: tuple[str, ...] = ("question",)
    answer: tuple[str, ...] = ("answer",)
    kind: tuple[str, ...] = ("question_type",)
    options: tuple[str, ...] = ()
    by_number: bool = False

    def read(
        self,
        rows: Sequence[Mapping[str, Any]],
        path: Path,
        *,
        name_clip: Callable[[str], tuple[str, ...]] = lambda video: (video,),
        name_kind: Callable[[str], str] = lambda kind: kind,
        aspects: tuple[str, ...] = ("",),
    ) -> list[VideoQuestion]:
        """Make a question of each row; raise UserError with the file where a column is missing."""
        id, video, answer = (find_column(rows, *names, path=path) for names in (self.id, self.video, self.answer))
        # A column that is missing is an error of the file; a field that one row lacks is a problem of that question.
        for name in (*self.texts, *self.options):
            find_column(rows, name, path=path)
        kind = next((name for name in self.kind if name in rows[0]), "")

        def make(row: Mapping[str, Any]) -> VideoQuestion:
            fields = {name: get_text(row, name) for name in (id, video, answer, kind, *self.texts, *self.options)}
            shared: dict[str, Any] = {
                "id": fields[id],
                "clip": name_clip(fields[video]),
                "texts": tuple(fields[name] for name in self.texts),
                "kind": name_kind(fields[kind]),
            }
            if not self.options:
                return make_question(answer=fields[answer], aspects=aspects, **shared)
            correct = _parse_number(fields[answer]) if self.by_number else fields[answer]
            return make_choice([fields[name] for name in self.options], correct, **shared)

        return [make(row) for row in rows]


def _parse_number(text: str) -> int | None:
    # `isdigit` without `isascii` accepts superscripts, which `int` refuses.
    return int(text) if text.isascii() and text.isdigit() else None


def hash_questions(questions: Sequence[VideoQuestion]) -> str:
    """Return the SHA-256 of all fields of questions, from which a run knows its questions again."""
    content = json.dumps([vars(question) for question in questions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


CLIP_SUFFIXES = frozenset("3gp avi flv gif m4v mkv mov mp4 mpeg mpg ogv ts webm webp wmv".split())


def find_clips(folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Find clips below a folder, however nested: key -> video file, or folder of images.

    Args:
        names: key -> names of its clip without suffix, the best first; one with "/" is a path below the folder. Keys
            without a clip are not in the result.

    Raises:
        UserError: no such folder, or several clips of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a folder with videos")
    by_path, by_stem = _index_clips(folder)
    clips = {}
    for key, listed_names in names.items():
        for name in listed_names:
            # A path is no mere name: another folder may hold another clip of this name.
            matches = by_path.get(name) or ([] if "/" in name else by_stem.get(name, []))
            if len(matches) > 1:
                listed = ", ".join(sorted(str(match.relative_to(folder)) for match in matches)[:3])
                raise UserError(f"{folder}: {len(matches)} clips are called '{name}' ({listed}); expected one")
            if matches:
                clips[key] = matches[0]
                break
    return clips


def _index_clips(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    by_path: dict[str, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # Links to a folder above would go round forever.
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        clips = [Path(parent, file) for file in files if _suffix(file) in CLIP_SUFFIXES]
        if not clips and parent != str(folder) and any(_suffix(file) in IMAGE_SUFFIXES for file in files):
            by_path.setdefault(Path(parent).relative_to(folder).as_posix(), []).append(Path(parent))
            by_stem.setdefault(Path(parent).name, []).append(Path(parent))
        for clip in clips:
            by_path.setdefault(clip.relative_to(folder).with_suffix("").as_posix(), []).append(clip)
            by_stem.setdefault(clip.stem, []).append(clip)
    return by_path, by_stem


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()
