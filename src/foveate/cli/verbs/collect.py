"""`foveate collect`: pictures and their texts into a collection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish, workers_option
from foveate.settings.errors import UserError, choose, nearest

DEFAULT_SPLIT = "train=0.8,validation=0.1,test=0.1"


def parse_fractions(text: str) -> dict[str, float]:
    """`train=0.8,test=0.2` as a mapping.

    Raises:
        UserError: when a part is not name=number.
    """
    fractions = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            fractions[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise UserError(f"--split '{text}': write it as train=0.8,validation=0.1,test=0.1")
    return fractions


def _clipart(target: Path, workers: int, seed: int) -> None:
    from foveate.records.builtin import build_clipart

    build_clipart(target)


def _emoji(target: Path, workers: int, seed: int) -> None:
    from foveate.records.builtin import build_emoji

    build_emoji(target)


def _scenes(target: Path, workers: int, seed: int) -> None:
    from foveate.records.scenes import build_scenes

    build_scenes(target, train=2000, validation=200, test=400, seed=seed, workers=workers)


BUILT_IN: dict[str, Callable[[Path, int, int], None]] = {"clipart": _clipart, "emoji": _emoji, "scenes": _scenes}


@click.command("collect", short_help="Pictures and texts into a collection.")
@click.argument("source")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="Collection folder.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["auto", "folder", "webdataset", "builtin"]),
    default="auto",
    show_default=True,
    help="auto: tar files are WebDataset shards, clipart, emoji and scenes are built in, the rest is a folder.",
)
@click.option("--name", default=None, help="Name of a new collection; the folder's by default.")
@click.option("--licence", default=None, help="Licence of the pictures, kept with them.")
@click.option("--group-by", type=click.Choice(["none", "folder"]), default="none", help="What stays in one split.")
@click.option("--split", default=DEFAULT_SPLIT, show_default=True, help="Shares of the splits; 'none' for no splits.")
@workers_option
@common(device=False)
def command(
    source: str,
    target: Path,
    format_name: str,
    name: str | None,
    licence: str | None,
    group_by: str,
    split: str,
    workers: int | None,
    as_json: bool,
    seed: int | None,
) -> None:
    """Takes pictures in: a folder with .txt or .json files beside them, WebDataset tars, or a built-in collection.

    What cannot be taken in is put into the collection's quarantine table with its reason and counted. Repeated, the
    command adds only what is new; stopped, it goes on. Near-duplicates stay in one split.

    \b
    Example:
      foveate collect my-folder --to my-pictures
      foveate collect "shards/{00000..00003}.tar" --to my-pictures
      foveate collect scenes --to scenes
    """
    from foveate.records.collection import Collection
    from foveate.records.importers.folder import import_folder
    from foveate.records.importers.webdataset import import_webdataset
    from foveate.records.splits import assign_splits

    fractions = None if split == "none" else parse_fractions(split)
    chosen = _format(source) if format_name == "auto" else format_name
    if chosen == "builtin":
        BUILT_IN[choose(source, BUILT_IN, "built-in collection")](target, workers or 2, seed or 0)
        opened = Collection.open(target)
        result: dict[str, Any] = {"source": source, "pictures": len(opened)}
        finish(result, [f"{len(opened)} pictures"], {"collection": target}, as_json=as_json)
        return
    if chosen == "webdataset":
        summary = import_webdataset(source, target, name=name, licence=licence)
    else:
        summary = import_folder(source, target, name=name, licence=licence, group_by=group_by, workers=workers)
    result = summary.as_dict()
    lines = summary.lines()
    if fractions is not None:
        assigned = assign_splits(target, fractions=fractions, seed=seed or 0)
        result |= {"splits": assigned.pictures, "divided": assigned.divided}
        lines.append("splits: " + ", ".join(f"{split} {count}" for split, count in assigned.pictures.items()))
        if assigned.divided:
            lines.append(f"{assigned.divided} groups of near-duplicates were given several splits and keep them")
    finish(result, lines, {"collection": target}, as_json=as_json)


def _format(source: str) -> str:
    if source in BUILT_IN and not Path(source).exists():
        return "builtin"
    if source.endswith(".tar"):
        return "webdataset"
    path = Path(source)
    if not path.is_dir():
        known = [*BUILT_IN, *(str(one) for one in path.parent.glob("*"))][:500]
        raise UserError(f"{source}: neither a folder, a .tar nor a built-in collection{nearest(source, known)}")
    names = {one.suffix.lower() for one in path.iterdir()}
    return "webdataset" if ".tar" in names and not names & {".jpg", ".jpeg", ".png", ".webp"} else "folder"
