"""Model cards: architecture, training data, measured metrics, and how to load the model.

The front matter is the hub's: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

METHODS = {"none": "CLIP", "prompter": "CLOC (Prompter)", "roi": "CLOC (RoI-Align)"}


def model_card(
    *,
    recipe: Mapping[str, Any],
    parameters: int,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    loading: str,
    library: str = "foveate",
    notes: str = "",
) -> str:
    """Write the text of README.md for a model folder or an export.

    Args:
        recipe: of the model, as JSON values.
        parameters: number of trained weights.
        metrics: content of metrics.json; empty where nothing was evaluated.
        provenance: of config.json: collection, license, split, images, command, revision. What is unknown is absent.
        loading: Markdown: how this folder is opened.
        library: `library_name` of the front matter.
        notes: Markdown that goes behind it, for example what an export does differently.
    """
    method = METHODS[recipe["regions"]["method"]]
    kinds = {name: recipe[f"{name}_encoder"]["kind"] for name in ("image", "text")}
    tags = [method.split()[0].lower(), "vision-language", "localization", "zero-shot-image-classification"]
    # The replacement at the end closes the gap that empty notes leave.
    return f"""---
license: other
license_name: chosen-by-the-publisher
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags: [{", ".join(tags)}]
---
# {method} image and text encoder

{parameters:,} trained weights; image encoder `{kinds["image"]}`, text encoder `{kinds["text"]}`;
joint space of {recipe["embed_dim"]} numbers. {_maker(provenance)}

## How to load it

{loading.strip()}

{notes.strip()}

## Data

{_data(provenance)}

## Measured

{_measured(metrics, provenance)}

## Intended use and limits

For comparing {_use(method)} with words: search, sorting, zero-shot classes, research.
It knows what its training images and texts showed, no more; it always answers, also where a phrase means nothing in an
image; it takes over whatever is one-sided or wrong in its training texts. Measure it on your own images
(`foveate evaluate`) before you rely on it. Do not identify people with it, and let it decide nothing that matters
about a person.
""".replace("\n\n\n", "\n")


def _maker(provenance: Mapping[str, Any]) -> str:
    revision = provenance.get("revision")
    return f"Trained with {revision}." if revision else "The release that trained it is not recorded in this folder."


def _use(method: str) -> str:
    return "images" if method == "CLIP" else "images, and boxes in them,"


def _data(provenance: Mapping[str, Any]) -> str:
    if not provenance.get("collection"):
        return "The training collection is not recorded in this folder."
    split = f", split `{provenance['split']}`" if provenance.get("split") else ""
    count = f", {provenance['images']:,} images with text" if provenance.get("images") else ""
    license = provenance.get("license") or "none stated"
    lines = [f"Collection `{provenance['collection']}`{split}{count}.", f"Its license, as it states it: {license}."]
    if provenance.get("command"):
        lines.append(f"Trained by `{shlex.join(provenance['command'])}`; the whole recipe is in `config.json`.")
    lines.append("The license of the weights is for whoever publishes them to choose; the front matter says so.")
    return "\n".join(lines)


def _measured(metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    table = metrics.get("table") or []
    if not table:
        return "Not evaluated."
    assert {"collection", "split", "images", "regions"} <= metrics.keys(), sorted(metrics)
    command = f"foveate evaluate MODEL --collection {metrics['collection']} --split {metrics['split']}"
    revision = provenance.get("revision") or "a release that is not recorded"
    rows = "".join(
        f"| {row['question']} | {row['data']} | {column} | {_number(value)} | {row['n']} |\n"
        for row in table
        for column, value in row["values"].items()
    )
    return f"""On collection `{metrics["collection"]}`, split `{metrics["split"]}`: {metrics["images"]:,} images,
{metrics["regions"]:,} regions, one training. Measured by {revision} at its end; again with `{command}`.

| question | data | way | value (95 % interval) | n |
|---|---|---|---|---|
{rows}"""


def _number(value: Mapping[str, float | None]) -> str:
    """Format a value with its interval, where there were enough images for one."""
    interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value['value']:.3f}{interval}"
