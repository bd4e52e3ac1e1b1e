"""ScienceQA as it is published: `problems.json`, `pid_splits.json`, and images in `images/SPLIT/ID/image.png`."""

from __future__ import annotations

from pathlib import Path

from foveate.core.errors import UserError, choose
from foveate.core.json_fields import get_field, read_table
from foveate.mllm.suite import (
    LETTER_ANSWER,
    Suite,
    SuiteData,
    SuiteQuestion,
    folder_reader,
    letter_choices,
    score_choice,
)


def read(path: Path, split: str) -> SuiteData:
    """Read one split, questions without an image too; they are a slice of their own."""
    problems, splits = read_table(path / "problems.json"), read_table(path / "pid_splits.json")
    choose(split, splits, f"split of {path}")
    return SuiteData([_read(problems, pid, path) for pid in splits[split]], folder_reader(path / "images"))


def _read(problems: dict, pid: str, path: Path) -> SuiteQuestion:
    where = f"{path / 'problems.json'}: problem {pid}"
    problem = get_field(problems, pid, dict, where=where)
    choices = tuple(map(str, get_field(problem, "choices", list, where=where)))
    answer = get_field(problem, "answer", int, where=where)
    if not 0 <= answer < len(choices):
        raise UserError(f"{where}: answer {answer} is not one of {len(choices)} choices")
    image = problem.get("image")
    return SuiteQuestion(
        id=str(pid),
        images=(f"{problem.get('split', '')}/{pid}/{image}",) if image else (),
        text=letter_choices(get_field(problem, "question", str, where=where), choices, hint=problem.get("hint", "")),
        references=(choices[answer],),
        choices=choices,
        slices=("with image" if image else "text only",),
        chance=1 / len(choices),
    )


SUITE = Suite("ScienceQA", "accuracy", read, score_choice, instruction=LETTER_ANSWER)
