"""Model card of a multimodal LLM: its failures first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from foveate.mllm.recipe import MllmRecipe


def model_card(
    recipe: MllmRecipe, parameters: int, provenance: Mapping[str, Any], metrics: Mapping[str, Any] | None = None
) -> str:
    """Write the card.

    Args:
        parameters: number of trained parameters.
        provenance: collection, license, command and revision.
        metrics: rows "table" of an evaluation: question, value, low, high, guess, n.
    """
    rows = (metrics or {}).get("table", [])
    failing = [row["question"] for row in rows if row["value"] < row["goal"]]
    lead = f"It does not reach its goals for: {', '.join(failing)}. " if failing else ""
    table = "".join(
        f"| {row['question']} | {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {row['other']:.3f} | "
        f"{row['guess']:.2f} | {row['n']} |\n"
        for row in rows
    )
    measured = (
        f"| question | right | with another image | guessing | n |\n|---|---|---|---|---|\n{table}"
        if rows
        else "Not evaluated; `foveate mllm evaluate` writes the table.\n"
    )
    command = f"`{shlex.join(provenance['command'])}`" if provenance.get("command") else "not recorded"
    return f"""---
license: apache-2.0
library_name: foveate
pipeline_tag: image-text-to-text
---
# A small multimodal model

{lead}It knows the names and phrasings of its training data and nothing else: asked about other things, or in other
words, it answers as confidently and wrong. It is made for learning, tests and demonstrations, not for decisions about
people.

{parameters:,} parameters: tower `{recipe.model.tower["kind"]}`, connector `{recipe.model.connector["kind"]}`,
language model `{recipe.model.language.get("model_type") or recipe.model.language.get("source")}`.

## How to use it

`foveate ask IMAGE "Where is the red apple?" --model THIS_FOLDER`

## Measured

{measured}
## Data

Collection `{provenance.get("collection")}`; its license, as it states it: {provenance.get("license") or "none stated"}.
Trained by {command}, {provenance.get("revision") or "revision unknown"}.
"""
