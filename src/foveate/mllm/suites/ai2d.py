"""AI2D as it is published: `questions/NAME.json` and `images/NAME`; `ai2d_test_ids.csv` lists the test images.

Questions about a letter in the diagram (`abcLabel`) need the images with drawn letters, `abc_images`; without that
folder they are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
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

_TEST_IDS = "ai2d_test_ids.csv"
_LABELED = "abc_images"


def read(path: Path, split: str) -> SuiteData:
    """Read the questions of one split, by the numbers of the test images."""
    if split not in ("train", "test"):
        raise UserError(f"split of {path}: unknown (got '{split}'); expected train or test")
    files = sorted((path / "questions").glob("*.json"))
    if not files:
        raise UserError(f"{path}: no files questions/*.json; expected the folder of AI2D")
    listed = path / _TEST_IDS
    if not listed.is_file():
        raise UserError(f"{listed}: no such file; it lists the numbers of the test images, which AI2D's archive lacks")
    test = {line.strip() for line in listed.read_text(encoding="utf-8").splitlines()}
    labeled = (path / _LABELED).is_dir()
    questions: list[SuiteQuestion] = []
    for file in files:
        table = read_table(file)
        image = get_field(table, "imageName", str, where=str(file))
        if (image.split(".")[0] in test) == (split == "test"):
            for text, entry in get_field(table, "questions", dict, where=str(file)).items():
                if labeled or not entry.get("abcLabel"):
                    questions.append(_read(text, entry, image, where=f"{file}: question '{text}'"))
    # Called only for its error: image names include their folder, and labeled images are in another folder.
    folder_reader(path / "images")
    return SuiteData(questions, folder_reader(path))


def _read(text: str, entry: dict[str, Any], image: str, *, where: str) -> SuiteQuestion:
    choices = tuple(map(str, get_field(entry, "answerTexts", list, where=where)))
    answer = get_field(entry, "correctAnswer", int, where=where)
    if not 0 <= answer < len(choices):
        raise UserError(f"{where}: correctAnswer {answer} is not one of {len(choices)} choices")
    return SuiteQuestion(
        id=str(entry.get("questionId", text)),
        images=(f"{_LABELED if entry.get('abcLabel') else 'images'}/{image}",),
        text=letter_choices(text, choices),
        references=(choices[answer],),
        choices=choices,
        slices=("labels" if entry.get("abcLabel") else "texts",),
        chance=1 / len(choices),
    )


SUITE = Suite("AI2D", "accuracy", read, score_choice, instruction=LETTER_ANSWER)
