"""Model card of a multimodal LLM: its failures first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.results import BoxScoreResult, SuiteResult

GOALS = {
    "name, open": 0.60,
    "where, open": 0.50,
    "is there, two answers": 0.75,
    "color, two answers": 0.75,
    "count, two answers": 0.75,
    "position, two answers": 0.75,
    "compare, two answers": 0.75,
}
"""Score that a small model should reach on generated scenes, by slice of the suite."""
REGION_GOALS = {"refer, open": 0.60, "ground, open": 0.60}
"""The same of a model that was measured on questions about regions."""


_BOX_SCORES, _DATA = "## Not found\n\n", "\n## Data\n"
_READING = "## Written words\n\n"
_PEOPLE, _PEOPLE_PART = "## People's wordings\n\n", "people's wordings"


def model_card(
    recipe: MllmRecipe,
    parameters: int,
    provenance: Mapping[str, Any],
    evaluation: SuiteResult | None = None,
    box_scores: BoxScoreResult | None = None,
) -> str:
    """Write the card.

    Args:
        parameters: number of parameters.
        provenance: collection, license, command and revision.
        evaluation: of the suite `scenes`.
        box_scores: threshold of boxes.
    """
    language = recipe.model.language
    name = language.get("model_type") if isinstance(language, dict) else language.source
    base = "" if isinstance(language, dict) else ", which is not in this folder but opened from its source"
    command = f"`{shlex.join(provenance['command'])}`" if provenance.get("command") else "not recorded"
    card = f"""---
license: apache-2.0
library_name: foveate
pipeline_tag: image-text-to-text
---
# A small multimodal model

{_failures(evaluation)}It knows the names and phrasings of its training data and nothing else: asked about other things,
or in other words, it answers as confidently and wrong. It is made for learning, tests and demonstrations, not for
decisions about people.

{parameters:,} parameters: tower `{recipe.model.tower["kind"]}`, connector `{recipe.model.connector["kind"]}`,
language model `{name}`{base}.

## How to use it

`foveate ask IMAGE "Where is the red apple?" --model THIS_FOLDER`, and of a region
`foveate ask IMAGE "What is <1>?" --point 120,80 --model THIS_FOLDER`

## Measured

{_table(evaluation)}
## Data

Collection `{provenance.get("collection")}`; its license, as it states it: {provenance.get("license") or "none stated"}.
Trained by {command}, {provenance.get("revision") or "revision unknown"}.
"""
    return card if box_scores is None else put_box_scores(card, box_scores)


def put_box_scores(card: str, result: BoxScoreResult) -> str:
    """Replace a card's section about "not found" by a description of the calibrated threshold."""
    text = (
        f"Where no patch of the image matches a phrase with a score of {result.min_box_score:.2f}, the answer is "
        f'"not found".\n{result.hit_rate:.3f} of {result.present} phrases that an image shows then get a box, and '
        f"{result.false_alarm_rate:.3f} of {result.absent} that only\nother images show (AUC {result.auc:.3f}; split "
        f"`{result.split}` of `{result.collection}`)."
    )
    return _put_section(card, _BOX_SCORES, text)


def put_people(card: str, evaluation: SuiteResult) -> str:
    """Replace a card's section about people's wordings by the rows of an evaluation on `foveate collect wordings`."""
    rows = [row for row in evaluation.table if _PEOPLE_PART in row.question]
    table = _table(evaluation.model_copy(update={"table": rows})).replace(f", {_PEOPLE_PART}", "")
    _, _, table = table.rstrip().partition("\n\n")
    command = f"foveate mllm evaluate {evaluation.model} --suite scenes --data wordings --limit {evaluation.questions}"
    text = (
        "Share of right answers to questions in people's wordings that neither training nor the reading of questions "
        f"has seen.\nEach is read as a question of training first, where it is understood (`{command}`).\n\n{table}"
    )
    return _put_section(card, _PEOPLE, text)


def put_reading(card: str, reading: Mapping[str, Any], further: str = "") -> str:
    """Replace a card's section about written words.

    Args:
        reading: settings and provenance of the character head, as the config has them. further: text behind it.
    """
    notes = reading["provenance"]
    text = (
        "Asked what is written, a character head answers instead of the language model: words of two letters or more, "
        "in small letters;\nit knows no digits and no other signs. A word counts as read from a score of "
        f"{reading['min_score']:.4f} on. {notes['exact']:.3f} of {notes['num_written']} images with words\nare then "
        f"read exactly, and nothing else in them ({notes['another_image']:.3f} against another image's words), and in "
        f"{notes['false_rate']:.3f} of\n{notes['num_empty']} images without a word one is read (validation images of "
        f"`{notes['collection']}`, by which the score was chosen).\n\nTrained by `{shlex.join(notes['command'])}`, "
        f"{notes['revision']}."
    )
    return _put_section(card, _READING, text + further)


def _put_section(card: str, title: str, text: str) -> str:
    """Replace a section of a card, or put it in front of its section about data."""
    if title in card:
        before, _, after = card.partition(title)
        # Replace only this section: the owner of the folder may have added others behind it.
        _, heading, rest = after.partition("\n## ")
    else:
        before, heading, rest = card.partition(_DATA)
        before += "\n"
    return f"{before}{title}{text}\n{heading}{rest}"


def _failures(evaluation: SuiteResult | None) -> str:
    """Describe missed goals and missing measurements; the card begins with this."""
    if evaluation is None:
        return ""
    values = {_slice(row.question): row.values.get("image") for row in evaluation.table}
    goals = REGION_GOALS if REGION_GOALS.keys() & values.keys() else GOALS
    missed = [
        f"{name} ({value.value:.2f} of {goal:.2f})"
        for name, goal in goals.items()
        if (value := values.get(name)) is not None and value.value < goal
    ]
    unknown = [name for name in goals if values.get(name) is None]
    sentences = []
    if missed:
        sentences.append(f"It misses its goals for {', '.join(missed)}.")
    if unknown:
        sentences.append(f"It was not trained or measured on {', '.join(unknown)}.")
    return " ".join(sentences) + "\n\n" if sentences else ""


def _slice(question: str) -> str:
    """Return the part of the suite that a row is about: what follows its title."""
    title, _, part = question.partition(": ")
    return part or title.partition(", ")[2]


def _table(evaluation: SuiteResult | None) -> str:
    if evaluation is None:
        return "Not evaluated; `foveate mllm evaluate` writes the table.\n"
    rows = []
    for row in evaluation.table:
        part = _slice(row.question)
        cells = [f"all, {part}" if part and ": " not in row.question else part or "all"]
        for column in evaluation.columns:
            value = row.values.get(column.key)
            interval = "" if value is None or value.low is None else f" ({value.low:.3f} to {value.high:.3f})"
            cells.append("" if value is None else f"{value.value:.3f}{interval}")
        rows.append(f"| {' | '.join([*cells, str(row.n)])} |")
    titles = ["question", *(column.title.lower() for column in evaluation.columns), "n"]
    head = f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"
    note = f"Share of right answers with 95 % intervals; a box is right from an IoU of .5. Split `{evaluation.split}`."
    return f"{note}\n\n{head}\n" + "\n".join(rows) + "\n"
