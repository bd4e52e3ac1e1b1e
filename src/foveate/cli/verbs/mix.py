"""`foveate mix`: what share each caption format will really get in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish


@click.command("mix", short_help="What share of training each caption format gets.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option(
    "--preset", default=None, metavar="NAME", help="clip, mllm_pretrain, mllm_sft, mllm_sft_mixed or diffusion."
)
@click.option("--weights", default=None, metavar="FORMAT=W,...", help="Own weights, such as alt=.5,ssc=.5.")
@click.option(
    "--missing",
    type=click.Choice(["renormalize", "alt", "skip", "error"]),
    default="renormalize",
    show_default=True,
    help="Where the weight of formats goes that an image lacks.",
)
@click.option("--split", default="train", show_default=True, help="Split that is trained on.")
@click.option("--prefer", multiple=True, metavar="MODEL", help="Caption model to prefer, best first; may be repeated.")
@click.option(
    "--context", type=click.IntRange(8), default=None, help="Tokens that the text tower reads; 77 for clip and weights."
)
@click.option("--allow-truncation", is_flag=True, help="Accept that such a tower reads only the start of dsc_plus.")
@click.option("--recipe", default=None, metavar="NAME", help="With --to: the pretrain recipe that gets the weights.")
@click.option("--to", "to", type=click.Path(path_type=Path), default=None, help="Write that recipe to this file.")
@common(device=False)
def command(
    collection: Path,
    preset: str | None,
    weights: str | None,
    missing: Any,
    split: str,
    prefer: tuple[str, ...],
    context: int | None,
    allow_truncation: bool,
    recipe: str | None,
    to: Path | None,
    as_json: bool,
    seed: int | None,
) -> None:
    """Shows, for a preset or own weights, how many images of COLLECTION have each format and what share of the texts
    it will get in training; an image's lacking formats give their weight to the others.

    The last line is the override for `foveate pretrain`; --recipe NAME --to FILE writes a whole recipe. A run of the
    same seed reports the same numbers after its first epoch.

    \b
    Example:
      foveate mix my-images --preset clip
      foveate mix my-images --weights alt=.4,ssc=.4,dsc=.2 --recipe clip-vit-b16 --to my-recipe.yaml
    """
    from foveate.caption import shares as mixing
    from foveate.records.collection import Collection

    if (preset is None) == (weights is None):
        raise click.UsageError(f"give one of --preset ({', '.join(mixing.preset_names())}) and --weights")
    if (recipe is None) != (to is None):
        raise click.UsageError("--recipe and --to belong together")
    opened = Collection.open(collection)
    weights_given = None if weights is None else mixing.parse_weights(weights)
    sampler = mixing.build_sampler(opened, preset=preset, weights=weights_given, missing=missing)
    context = context or mixing.default_context(preset)
    mixing.check_window(sampler, context, allowed=allow_truncation)
    result = mixing.measure_shares(opened, sampler, split=split, seed=seed or 0, prefer=prefer, context=context)
    paths = {}
    if to is not None and recipe is not None:
        paths["recipe"] = _write_recipe(to, recipe, sampler.weights, missing, prefer, allow_truncation, split, seed)
    finish(result.to_json(), _lines(result.to_json(), preset), paths, as_json=as_json)


def _write_recipe(
    to: Path,
    recipe: str,
    weights: dict[str, float],
    missing: str,
    prefer: tuple[str, ...],
    allow_truncation: bool,
    split: str,
    seed: int | None,
) -> Path:
    from foveate.caption.shares import format_weights
    from foveate.core.files import write_text_atomically
    from foveate.core.recipes import dump, load
    from foveate.pretrain.recipe import PretrainRecipe

    changes = [f"data.captions={format_weights(weights)}", "data.mixture=null", f"data.missing={missing}"]
    changes += [f"data.split={split}", f"data.prefer={list(prefer)!r}"]
    changes += ["data.allow_truncation=true"] * allow_truncation
    changes += [] if seed is None else [f"training.seed={seed}"]
    changed = load(PretrainRecipe, recipe, changes)
    head = f"# foveate pretrain {to.name} --collection DIR\n# {recipe} with other weights of its texts\n"
    write_text_atomically(to, head + dump(changed))
    return to


def _lines(result: dict[str, Any], preset: str | None) -> list[str]:
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
        lines.append(f"{result['left_out_in_first_epoch']} visits of the first epoch draw a format that is not there")
    for row in result["formats"]:
        if row["weight"] and not row["images"]:
            lines.append(f"no image has {row['format']}: its weight goes to the others (write it: foveate caption)")
    again = f" (or data.mixture={preset})" if preset else ""
    return [*lines, f"foveate pretrain RECIPE '{result['override']}'{again}"]
