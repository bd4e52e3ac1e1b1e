"""Rows of `answers.jsonl`: a question, its clip by hash, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from foveate.core.errors import UserError
from foveate.core.files import repair_json_lines, sha256_file, sha256_folder
from foveate.records.video_questions import VideoQuestion

_NO_CLIP = "no such clip"
# Fields of a row that name files.
PATHS = {"error", "seen"}


class ClipAnswer(Protocol):
    """Answer about a clip: its text, whether it came to an end, and what was seen, ready for JSON.

    Attributes:
        probabilities: of the letter of each option, if they were requested and fit behind the question.
    """

    @property
    def text(self) -> str: ...

    @property
    def finished(self) -> bool: ...

    @property
    def seen(self) -> Mapping[str, Any]: ...

    @property
    def probabilities(self) -> Sequence[float]: ...


def write_row(question: VideoQuestion, clips: Mapping[str, Path]) -> dict[str, Any]:
    """Return what a row says of its question; with an error where it cannot be asked."""
    row: dict[str, Any] = {
        "id": question.id,
        "clip": question.clip[0] if question.clip else "",
        "texts": list(question.texts),
        "options": list(question.options),
        "correct": question.correct,
        "answer": question.answer,
        "kind": question.kind,
        "evidence": [list(group) for group in question.evidence],
        "aspects": list(question.aspects),
    }
    problem = question.problem or ("" if question.id in clips else f"{_NO_CLIP} '{row['clip']}'")
    return row | {"error": problem} if problem else row


class ClipHashes:
    """SHA-256 of clips, each read once in a session."""

    def __init__(self, clips: Mapping[str, Path]) -> None:
        self._clips = clips
        self._hashes: dict[Path, str] = {}

    def get(self, question: VideoQuestion) -> str:
        """Return the hash of a question's clip, "" where there is none."""
        path = self._clips.get(question.id)
        if path is None:
            return ""
        if path not in self._hashes:
            # A folder of images is a clip, too.
            self._hashes[path] = sha256_folder(path) if path.is_dir() else sha256_file(path)
        return self._hashes[path]


def read_answered(questions: Sequence[VideoQuestion], hashes: ClipHashes, path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of earlier sessions by question; those without an answer are left out if their clip has changed.

    Raises:
        UserError: a clip was replaced since questions about it were answered.
    """
    # The last row of a question counts: if a kill cost some rows of a batch, the whole batch was asked again.
    rows = {row["id"]: row for row in repair_json_lines(path)}
    answered, replaced = {}, []
    for question in questions:
        row = rows.get(question.id)
        if row is None:
            continue
        if row["sha256"] == hashes.get(question):
            answered[question.id] = row
        elif "error" not in row:
            replaced.append(f"'{row['clip']}'")
    if replaced:
        listed = ", ".join(list(dict.fromkeys(replaced))[:5])
        raise UserError(
            f"{path}: clip {listed} is not the one of {len(replaced)} stored answers (another SHA-256); put the old "
            "clip back, or choose another folder with --run"
        )
    return answered


def describe_answers(answers: Sequence[ClipAnswer | UserError]) -> dict[str, Any]:
    # A pair of questions is one row, which cannot be scored if one of its answers is missing.
    errors = [str(answer) for answer in answers if isinstance(answer, UserError)]
    if errors:
        return {"error": errors[0]}
    texts = [answer for answer in answers if not isinstance(answer, UserError)]
    probabilities = list(texts[0].probabilities)
    return {
        # Models of images speak of an image, which the official evaluation mends for all.
        "predictions": [answer.text.replace("In the image", "In the video").strip() for answer in texts],
        "finished": [answer.finished for answer in texts],
        **({"probabilities": probabilities} if probabilities else {}),
        "seen": dict(texts[0].seen),
    }


def cut_folder(value: Any, folder: str) -> Any:
    """Return a value of JSON whose texts are without the path of a folder."""
    if isinstance(value, str):
        return value.replace(folder, "")
    if isinstance(value, list):
        return [cut_folder(entry, folder) for entry in value]
    return {name: cut_folder(entry, folder) for name, entry in value.items()} if isinstance(value, dict) else value
