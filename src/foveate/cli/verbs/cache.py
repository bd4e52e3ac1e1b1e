"""`foveate cache`: which frozen features a collection keeps on disk, and removing those that nobody uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option


@click.command("cache", cls=FieldsCommand, short_help="List or remove cached features.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields("foveate.pretrain.caches:CacheSettings", "remove", "days")
@dry_run_option("With --remove: print what would be removed; remove nothing.")
@common(seed=False, device=False)
def command(call: Call, collection: Path, settings: dict[str, Any]) -> None:
    """List the cached features of frozen encoders beside a collection's images, or remove some.

    Nothing is lost: the next run that wants them computes them again. COLLECTION may also be a run folder.

    \b
    Example:
      foveate cache my-images
      foveate cache my-images --remove unused
    """
    from foveate.core.errors import UserError
    from foveate.pretrain.caches import CacheSettings, list_caches, remove_caches, select_caches
    from foveate.records.layout import DESCRIPTION

    resolved = call.check(CacheSettings, settings)
    if not collection.is_dir():
        raise UserError(f"{collection}: is no folder; give a collection or a run folder")
    folder = collection / "cache"
    # A mistyped path to a folder that exists would otherwise read as "nothing is cached".
    if not any((collection / name).exists() for name in ("cache", DESCRIPTION, "run.json")):
        raise UserError(f"{collection}: is neither a collection ({DESCRIPTION}) nor a run folder (run.json)")
    caches = list_caches(folder)
    # Selected from the listing that is printed: a dry run names exactly what the same command would remove.
    removed = select_caches(caches, resolved)
    if resolved.remove is not None and not call.dry_run:
        removed = remove_caches(folder, which=resolved.remove, days=resolved.days)
    # By name: a removed cache is listed again as it was, but is another object.
    names = {cache.path.name for cache in removed}
    rows = [
        {
            "name": cache.path.name,
            "kind": cache.kind,
            "encoder": cache.encoder,
            "bytes": cache.size,
            "parts": cache.parts,
            "days_since_use": round(cache.days, 2),
            "unused": cache.is_unused(days=resolved.days),
            "removed": cache.path.name in names and not call.dry_run,
        }
        for cache in caches
    ]
    lines = [
        f"{cache.path.name}: {cache.kind}, {_size(cache.size)}, opened {cache.days:.0f} days ago"
        + ("" if cache.readable else ", of another release")
        + (", would be removed" if call.dry_run else ", removed") * (cache.path.name in names)
        for cache in caches
    ] or [f"no cache in {folder}"]
    freed = sum(cache.size for cache in removed)
    if resolved.remove is not None:
        lines.append(f"{'would free' if call.dry_run else 'freed'}: {_size(freed)}")
    result = {"kind": "cache", "caches": rows, "bytes": sum(cache.size for cache in caches), "freed_bytes": freed}
    call.finish(result, lines, {"cache": folder})


def _size(count: int) -> str:
    for unit, bound in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bound:
            return f"{count / bound:.1f} {unit}"
    return f"{count} bytes"
