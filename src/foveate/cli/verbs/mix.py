"""`foveate mix`: what share each caption format will really get in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common

if TYPE_CHECKING:
    from foveate.caption.shares import MixSettings


@click.command("mix", cls=FieldsCommand, short_help="Show the training share of each caption format.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(
    "foveate.caption.shares:MixSettings",
    "preset",
    "weights",
    "missing",
    "split",
    "prefer",
    "context",
    "allow_truncation",
    "recipe",
    ("to", "--out"),
    repeat=("prefer",),
    metavars={"preset": "NAME", "weights": "FORMAT=W,...", "prefer": "MODEL", "recipe": "NAME"},
)
@common(device=False)
def command(call: Call, collection: Path, settings: dict[str, Any]) -> None:
    """Show how many images of COLLECTION have each caption format, and what share of the training texts it will get.

    For a preset or custom weights; by default the formats that an image lacks give their weight to the others.

    The last line is the override for `foveate pretrain`; --recipe NAME --out FILE writes a whole recipe. A run of the
    same seed reports the same numbers after its first epoch.

    \b
    Example:
      foveate mix my-images --preset clip
      foveate mix my-images --weights alt=.4,ssc=.4,dsc=.2 --recipe clip-vit-b16 --out my-recipe.yaml
    """
    from foveate.caption import shares
    from foveate.core.errors import UserError
    from foveate.records.collection import Collection

    resolved = call.check(shares.MixSettings, settings)
    if (resolved.preset is None) == (resolved.weights is None):
        raise click.UsageError(f"give one of --preset ({', '.join(shares.preset_names())}) and --weights")
    if (resolved.recipe is None) != (resolved.to is None):
        raise click.UsageError("--recipe and --out belong together")
    # Before anything is measured. Most likely a recipe that the user has changed already.
    if resolved.to is not None and resolved.to.exists():
        raise UserError(f"{resolved.to}: exists; choose another file with --out")
    opened = Collection.open(collection)
    sampler = shares.build_sampler(opened, preset=resolved.preset, weights=resolved.weights, missing=resolved.missing)
    context = resolved.context or shares.default_context(resolved.preset)
    shares.check_window(sampler, context, allowed=resolved.allow_truncation)
    result = shares.measure_shares(
        opened, sampler, split=resolved.split, seed=call.seed or 0, prefer=resolved.prefer, context=context
    )
    paths = {}
    if resolved.to is not None and resolved.recipe is not None:
        paths["recipe"] = _write_recipe(resolved.to, resolved.recipe, sampler.weights, resolved, call.seed)
    call.finish(result.to_json(), _lines(result.to_json(), resolved.preset), paths)


def _write_recipe(to: Path, recipe: str, weights: Mapping[str, float], settings: MixSettings, seed: int | None) -> Path:
    """Write a copy of a pretrain recipe with other weights of its texts."""
    from foveate.caption.shares import format_weights
    from foveate.core.files import write_text_atomically
    from foveate.core.recipes import dump, load
    from foveate.pretrain.recipe import PretrainRecipe

    # A recipe may name a preset; it would take precedence over the weights.
    changes = [f"data.captions={format_weights(weights)}", "data.mixture=null", f"data.missing={settings.missing}"]
    changes += [f"data.split={settings.split}", f"data.prefer={list(settings.prefer)!r}"]
    changes += ["data.allow_truncation=true"] * settings.allow_truncation
    changes += [] if seed is None else [f"training.seed={seed}"]
    changed = load(PretrainRecipe, recipe, changes)
    head = f"# foveate pretrain {to.name} --collection DIR\n# {recipe} with other weights of its texts\n"
    write_text_atomically(to, head + dump(changed))
    return to


def _lines(result: dict[str, Any], preset: str | None) -> list[str]:
    from foveate.training.mixture import LOST_WEIGHT

    # Expected share and first epoch side by side: their difference is the noise of one draw.
    lines = [
        f"{result['images']} images of split {result['split']}, {result['with_text']} with a text to draw",
        f"{'format':<10} {'weight':>7} {'images':>9} {'expected':>9} {'epoch 1':>8} {'CLIP tokens':>12}",
    ]
    for row in result["formats"]:
        tokens = "" if row["clip_tokens"] is None else f"{row['clip_tokens']:.1f}"
        lines.append(
            f"{row['format']:<10} {row['weight']:>7.3f} {row['images']:>9} {row['expected_share']:>9.3f} "
            f"{row['first_epoch_share']:>8.3f} {tokens:>12}"
        )
    if result["left_out_in_first_epoch"]:
        lines.append(
            f"{result['left_out_in_first_epoch']} draws of the first epoch fall on formats that an image lacks"
        )
    for row in result["formats"]:
        if row["weight"] and not row["images"]:
            effect = LOST_WEIGHT[result["missing"]]
            lines.append(f"no image has {row['format']}: {effect} (write it: foveate caption)")
    lines += [f"captions that hold no more often than by chance: {verdict}" for verdict in result["wrong_captioners"]]
    again = f" (or data.mixture={preset})" if preset else ""
    return [*lines, f"foveate pretrain RECIPE '{result['override']}'{again}"]
