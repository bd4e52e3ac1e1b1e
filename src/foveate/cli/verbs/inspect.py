"""`foveate inspect`: what is in a collection, with a gallery of records as a model sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, run_option


@click.command("inspect", cls=FieldsCommand, short_help="Show the contents of a collection.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields("foveate.records.inspection:InspectionSettings", "split", "recipe", "samples")
@run_option("runs/inspect", "Folder for the page")
@common(device=False)
def command(call: Call, collection: Path, settings: dict[str, Any]) -> None:
    """Show counts, sizes, text lengths, region sizes, quarantine, and images *after* the recipe's preprocessing.

    \b
    Example:
      foveate inspect my-images
      foveate inspect my-images --split train --samples 48 --recipe my-recipe.yaml
    """
    from foveate.core.recipes import load
    from foveate.core.runs import RunFolder
    from foveate.pretrain.recipe import PretrainRecipe
    from foveate.pretrain.samples import sample_rows, write_samples
    from foveate.records.collection import Collection
    from foveate.records.inspection import InspectionSettings, histograms, quarantine_examples, summarize
    from foveate.report import render

    opened = Collection.open(collection)
    selected = call.check(InspectionSettings, settings)
    split = selected.split
    # The recipe is read before the run folder is created: a misspelled name must not leave an empty folder.
    recipe = load(PretrainRecipe, selected.recipe)
    folder = RunFolder.create(call.run or Path("runs/inspect"))
    summary = summarize(opened, split)
    rows = sample_rows(opened, count=selected.samples, seed=call.seed or 0, split=split)
    written, unreadable = write_samples(opened, recipe, folder.path, rows, seed=call.seed or 0)
    result: dict[str, Any] = {
        "kind": "inspect",
        "collection": str(collection),
        "split": split,
        "recipe": selected.recipe,
        "summary": summary,
        "histograms": histograms(opened, split),
        "quarantine": quarantine_examples(opened),
        "samples": written,
        "unreadable": unreadable,
    }
    folder.write_result(result)
    # Reasons first: a long summary would push them off the screen.
    lines = [f"unreadable: {key}: {reason}" for key, reason in unreadable.items()]
    lines += summary_lines(summary)
    call.finish(result, lines, {"report": render(folder.path)})


_NAMES = {
    "aspect": "aspect (width by height)",
    "images_without": "images without a caption",
    "per_image": "regions per image",
    "area": "share of the image",
    "p05": "5th percentile",
    "p95": "95th percentile",
}
_MAX_ENTRIES = 8  # fit on a line; the page has them all


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Format a collection's summary: a line for each field, and below it one for each of its groups."""
    lines = []
    for name, value in summary.items():
        title = f"images {_name(name)}" if name.startswith("by_") else _name(name)
        if isinstance(value, dict):
            lines += _field_lines(title, value, is_named_by_user=_is_named_by_user(name))
        elif value is not None:
            lines.append(f"{title}: {_format(value)}")
    return lines


def _name(field: str) -> str:
    return _NAMES.get(field, field.replace("_", " "))


def _is_named_by_user(field: str) -> bool:
    """Whether the names in a field are labels, kinds or phrases of the collection, which are printed as they are."""
    return field.startswith("by_") or field in ("quarantine", "frequent_phrases")


def _field_lines(title: str, value: Mapping[str, Any], *, is_named_by_user: bool, indent: str = "") -> list[str]:
    """Format a field: its numbers behind the title, and a line below for each of its tables that has entries."""
    numbers = {name: entry for name, entry in value.items() if not isinstance(entry, dict)}
    tables = {name: entry for name, entry in value.items() if isinstance(entry, dict)}
    if is_named_by_user:
        text = _join([f"{name or '(none)'}: {_format(count)}" for name, count in numbers.items()])
    elif numbers.get("count") == 0:
        # Regions of a collection that has none would be eight lines of zeros.
        return [f"{indent}{title}: none"]
    elif "median" in numbers:
        # Its count is that of the field above.
        text = ", ".join(f"{_name(name)} {_format(number)}" for name, number in numbers.items() if name != "count")
    else:
        named = {name: _format(number) for name, number in numbers.items()}
        text = _join([number if name == "count" else f"{_name(name)}: {number}" for name, number in named.items()])
    lines = [f"{indent}{title}: {text or ('' if tables else 'none')}".rstrip()]
    inside = f"{indent}  "
    for name, entry in tables.items():
        if is_named_by_user:
            lines += _field_lines(name, entry, is_named_by_user=True, indent=inside)
        elif name == "by_kind":  # kinds stand below their field without a line of their own
            for kind, counts in entry.items():
                lines += _field_lines(kind, counts, is_named_by_user=False, indent=inside)
        elif entry:
            lines += _field_lines(_name(name), entry, is_named_by_user=_is_named_by_user(name), indent=inside)
    return lines


def _join(parts: Sequence[str]) -> str:
    # Not how many more: the summary itself stops at the 50 most frequent values.
    return "; ".join([*parts[:_MAX_ENTRIES], *(["and more"] if len(parts) > _MAX_ENTRIES else [])])


def _format(value: Any) -> str:
    if isinstance(value, float):
        # Pixels and words are whole numbers or means of them; shares of the image are small.
        return f"{value:,.0f}" if value == round(value) else f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
