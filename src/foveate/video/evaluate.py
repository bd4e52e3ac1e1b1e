"""Ask a model all questions of a set about their clips.

Each answer is a row of `answers.jsonl` in the run folder: the same command goes on where it was stopped, and ends
with the same file, byte for byte. Nothing is skipped: a question without a clip, or with one that cannot be read, stops
the evaluation, or counts as wrong where this is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic import Field

from foveate.chat.batching import run_in_halves
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import sha256_file, sha256_folder
from foveate.core.recipes import Settings
from foveate.multimodal.evaluation import AnswerRow, EvaluationRun, cut_batches
from foveate.video.questions import VideoQuestion, find_clips, hash_questions, load_set
from foveate.video.results import VideoScores
from foveate.video.score_table import ANSWERS, read_recipe, refuse_missing, summarize
from foveate.vision.video.sources import load_decoder

if TYPE_CHECKING:
    from foveate.multimodal.choose import Choice

_NO_CLIP = "no such clip"
# Fields of a row that name files.
PATHS = {"error", "seen"}


class ClipAnswer(Protocol):
    """Answer about a clip: its text, whether it came to an end, and what was seen, ready for JSON.

    Attributes:
        choice: from the options, if their probabilities were requested and they fit behind the question.
    """

    @property
    def text(self) -> str: ...

    @property
    def finished(self) -> bool: ...

    @property
    def seen(self) -> Mapping[str, Any]: ...

    @property
    def choice(self) -> Choice | None: ...


def write_row(question: VideoQuestion, clips: Mapping[str, Path]) -> AnswerRow:
    """Return what a row says of its question; with an error where it cannot be asked."""
    row: AnswerRow = {
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


def read_answered(questions: Sequence[VideoQuestion], hashes: ClipHashes, run: EvaluationRun) -> dict[str, AnswerRow]:
    """Return the rows of earlier sessions by question; those without an answer are left out if their clip has changed.

    Raises:
        UserError: a clip was replaced since questions about it were answered, or another process evaluates.
    """
    rows = run.read_rows(lambda row: row["id"])
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
            f"{run.path / ANSWERS}: clip {listed} is not the one of {len(replaced)} stored answers (another SHA-256); "
            "put the old clip back, or choose another folder with --out"
        )
    return answered


def describe_answers(answers: Sequence[ClipAnswer | UserError]) -> AnswerRow:
    # A pair of questions is one row, which cannot be scored if one of its answers is missing.
    errors = [str(answer) for answer in answers if isinstance(answer, UserError)]
    if errors:
        return {"error": errors[0]}
    texts = [answer for answer in answers if not isinstance(answer, UserError)]
    # Only multiple choices have probabilities, and these have one wording each.
    choice = texts[0].choice
    scores = {} if choice is None else {"probabilities": list(choice.probabilities), "mass": choice.mass}
    return {
        # Models of images speak of an image, which the official evaluation mends for all.
        "predictions": [answer.text.replace("In the image", "In the video").strip() for answer in texts],
        "finished": [answer.finished for answer in texts],
        **(scores if choice is None else scores | {"scored_by": choice.scored_by}),
        "seen": dict(texts[0].seen),
    }


def cut_folder(value: Any, folder: str) -> Any:
    """Return a value of JSON whose texts are without the path of a folder."""
    if isinstance(value, str):
        return value.replace(folder, "")
    if isinstance(value, list):
        return [cut_folder(entry, folder) for entry in value]
    return {name: cut_folder(entry, folder) for name, entry in value.items()} if isinstance(value, dict) else value


class VideoEvaluationSettings(Settings):
    """Which questions a model is asked about clips, and how many together."""

    question_set: str = Field(
        description="Question set: nextqa, egoschema, intentqa, msvd, msrvtt, tgif, activitynet, vcgbench or own"
    )
    allow_missing: bool = Field(False, description="count questions without a clip or an answer as wrong")
    limit: int | None = Field(None, ge=1, description="maximum number of questions, drawn by the seed")
    batch_size: int = Field(8, ge=1, le=1024, description="questions that are asked together")
    max_tokens: int = Field(128, ge=1, le=8192, description="longest answer")
    likelihood: bool = Field(
        False,
        description="score multiple choices by probabilities too: of letters, or of texts if letters have below .001",
    )
    seed: int = Field(0, ge=0, description="of the drawn questions and the intervals")


class ClipRequest(NamedTuple):
    """A question about a clip; with options it is a multiple choice.

    Attributes:
        likelihood: the probabilities of its options are needed, too.
    """

    clip: Path
    text: str
    options: tuple[str, ...] = ()
    likelihood: bool = False


class ClipModel(Protocol):
    """Model that a question set asks."""

    def ask_all(self, requests: Sequence[ClipRequest], *, max_tokens: int) -> Sequence[ClipAnswer | UserError]:
        """Answer requests in their order; a clip or question that cannot be used is an error, returned or raised."""
        ...


def evaluate(
    model: ClipModel,
    questions: str | Path,
    videos: str | Path,
    *,
    run: str | Path,
    settings: VideoEvaluationSettings,
    name: str = "model",
    how: str = "",
    weights: str = "",
    command: list[str] | None = None,
) -> VideoScores:
    """Ask a model all questions of a set, and write rows and `result.json` into the run folder.

    Multiple choices are scored at once; open answers wait for the judge of `score`.

    Args:
        questions: the published file of the set, or its folder. videos: folder with the clips, however nested.
        run: folder; the same arguments go on where a stopped run was.
        name: of the model, `how` it looks at clips, and a hash of its `weights`, which a repeated run must have, too.

    Raises:
        UserError: unusable questions, a run folder of another evaluation or in use, questions without a clip or an
            answer that are not allowed, a clip that was replaced since questions about it were answered, or videos
            without the extra `video`.
    """
    listed = load_set(settings.question_set).read(Path(questions))
    rows = seeds.draw([question.id for question in listed], settings.limit, "video", settings.seed, what="question")
    selected = _sort_by_clip([listed[row] for row in rows])
    identity = {
        # Not part of the identity: a stopped run may be resumed with missing clips allowed, or another batch size.
        **settings.model_dump(exclude={"allow_missing", "batch_size"}),
        **{"model": name, "weights": weights, "how": how},
        **{"questions": len(selected), "sha256": hash_questions(selected)},
    }
    clips = find_clips(Path(videos), {question.id: question.clip for question in selected})
    for clip in clips.values():
        if clip.suffix.lower() not in (".gif", ".webp") and clip.is_file():
            # Before any row: one without an answer is asked again only if its clip has changed.
            load_decoder(clip)
            break
    with EvaluationRun(run, identity, rows=ANSWERS, command=command) as evaluation:
        if not settings.allow_missing:
            refuse_missing([write_row(question, clips) for question in selected], where=str(videos))
        answers = _ask_all(model, selected, clips, evaluation, settings, folder=str(Path(videos)))
        # Some clips turn out to be unreadable only when they are decoded.
        if not settings.allow_missing:
            refuse_missing(answers, where=str(evaluation.path))
        result = summarize(answers, read_recipe(evaluation.path))
        evaluation.write_result(result.model_copy(update={"command": command or ""}))
    return result


def _sort_by_clip(questions: Sequence[VideoQuestion]) -> list[VideoQuestion]:
    """Put questions about one clip together, which is then encoded once; the clips stay in their order."""
    position: dict[tuple[str, ...], int] = {}
    for question in questions:
        position.setdefault(question.clip, len(position))
    return sorted(questions, key=lambda question: position[question.clip])


def _ask_all(
    model: ClipModel,
    questions: Sequence[VideoQuestion],
    clips: Mapping[str, Path],
    run: EvaluationRun,
    settings: VideoEvaluationSettings,
    *,
    folder: str,
) -> list[AnswerRow]:
    """Ask what has no row yet, and return the rows of all questions in their order."""
    hashes = ClipHashes(clips)
    answered = read_answered(questions, hashes, run)
    # Batches are cut from all questions, not from those that are left: their padding moves the last bits of answers,
    # so that a batch is asked again as a whole if a kill took some of its rows.
    batches = cut_batches(questions, settings.batch_size)
    pending = [batch for batch in batches if not all(question.id in answered for question in batch)]
    left = {question.id for batch in pending for question in batch}

    def ask(batch: Sequence[VideoQuestion]) -> list[AnswerRow]:
        rows = _ask_batch(model, batch, clips, hashes, settings)
        # Where the clips are on this machine is of no use elsewhere, and names its user.
        return [row | cut_folder({key: row[key] for key in PATHS & row.keys()}, folder + os.sep) for row in rows]

    finished = [row for id, row in answered.items() if id not in left]
    by_id = {row["id"]: row for row in run.answer(pending, ask, finished=finished)}
    rows = [by_id[question.id] for question in questions]
    # In order, and without rows of batches that were asked twice.
    run.replace_rows(rows)
    return rows


def _ask_batch(
    model: ClipModel,
    questions: Sequence[VideoQuestion],
    clips: Mapping[str, Path],
    hashes: ClipHashes,
    settings: VideoEvaluationSettings,
) -> list[AnswerRow]:
    rows = [write_row(question, clips) | {"sha256": hashes.get(question)} for question in questions]
    requests = [
        (row["id"], ClipRequest(clips[row["id"]], text, tuple(row["options"]), settings.likelihood))
        for row in rows
        if "error" not in row
        for text in row["texts"]
    ]
    # One clip that is damaged, or too long, must not end an evaluation.
    answers = run_in_halves(
        lambda part: model.ask_all([request for _, request in part], max_tokens=settings.max_tokens),
        requests,
        errors=UserError,
    )
    by_id: dict[str, list[ClipAnswer | UserError]] = {}
    for (id, _), answer in zip(requests, answers, strict=True):
        by_id.setdefault(id, []).append(answer)
    return [row | describe_answers(by_id[row["id"]]) if row["id"] in by_id else row for row in rows]
