"""Scores of a run over a question set, from the run folder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.chat.judge import Judge, JudgeReply, collect_replies
from foveate.core.errors import UserError
from foveate.core.files import FolderLock, read_json_lines
from foveate.core.runs import RunFolder
from foveate.core.yaml_text import read_yaml
from foveate.video.judging import PROMPTS, REPLIES, JudgePrompt, JudgeSettings, hash_prompts, read_prompts
from foveate.video.results import VideoScores
from foveate.video.score_table import AnswerRow, list_reasons, summarize

ANSWERS = "answers.jsonl"


def score(
    run: str | Path,
    settings: JudgeSettings | None = None,
    *,
    judge: Judge | None = None,
    command: list[str] | None = None,
) -> VideoScores:
    """Score the answers of a run folder, and write its `result.json` anew.

    Args:
        judge: in the place of the server that `settings` name.

    Raises:
        UserError: no run of a question set, one that is not finished, or questions without an answer that are not
            allowed; open answers without a judge.
    """
    settings = settings or JudgeSettings()
    judge = judge or settings.open_judge()
    folder = RunFolder(Path(run))
    recipe = read_recipe(folder.path)
    prompts = read_prompts(settings.judge_prompts) if settings.judge_prompts else PROMPTS
    with FolderLock(folder.path, purpose="scoring a run"):
        rows = read_json_lines(folder.path / ANSWERS)
        if len(rows) != recipe["questions"]:
            raise UserError(
                f"{folder.path}: {len(rows)} of {recipe['questions']} questions are answered; run the same "
                "`foveate video evaluate` to finish it"
            )
        if not settings.allow_missing:
            refuse_missing(rows, where=str(folder.path))
        replies = None
        if any(row["aspects"] for row in rows):
            if judge is None:
                raise UserError(f"{folder.path}: --judge is missing; open answers are scored by a judge, at a server")
            replies = judge_answers(rows, judge, prompts, folder.path / REPLIES)
        result = summarize(rows, recipe, replies=replies)
        # A run of only multiple-choice questions names no judge, even if one was given.
        if judge is not None and replies:
            result = result.model_copy(update={"judge": judge.name, "judge_prompts": hash_prompts(prompts)})
        folder.write_result(result.model_copy(update={"command": command or ""}).to_json())
    return result


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read what a run was; raise UserError if the folder holds none of a question set."""
    path = folder / "recipe.yaml"
    recipe = read_yaml(path.read_text(encoding="utf-8"), where=str(path)) if path.is_file() else None
    if not isinstance(recipe, dict) or "question_set" not in recipe:
        raise UserError(f"{folder}: no run of `foveate video evaluate`; expected its folder")
    return recipe


def refuse_missing(rows: Sequence[AnswerRow], *, where: str) -> None:
    """Raise UserError with the first five questions that have no answer, if there are any."""
    reasons = list_reasons(rows)
    if reasons:
        count = sum("error" in row for row in rows)
        raise UserError(
            f"{where}: {count} of {len(rows)} questions have no answer: {'; '.join(reasons)}. Mend their clips or rows "
            "and run the same command again, or count them as wrong with --allow-missing"
        )


def judge_answers(
    rows: Sequence[AnswerRow], judge: Judge, prompts: Mapping[str, JudgePrompt], path: Path
) -> dict[tuple[str, str], JudgeReply]:
    """Return the replies of a judge to all open answers; see `collect_replies`."""
    tasks = [
        (row["id"], aspect, prompts[aspect].fill(row["texts"], row["answer"], row["predictions"]))
        for row in rows
        if "error" not in row
        for aspect in row["aspects"]
    ]
    return collect_replies(judge, tasks, path)
