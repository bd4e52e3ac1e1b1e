"""`foveate cache`: which frozen features a collection keeps on disk, and removing those that nobody uses."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import finish, json_option, quiet_option


@click.command("cache", short_help="Frozen features on disk: list, remove.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--remove", metavar="unused|all", help="Remove caches: those that nobody uses, or all.")
@click.option(
    "--days", type=click.FloatRange(0), default=30.0, show_default=True, help="Unused: not opened for that long."
)
@click.option("--dry-run", is_flag=True, help="With --remove: only say what would go.")
@json_option
@quiet_option
def command(collection: Path, remove: str | None, days: float, dry_run: bool, as_json: bool) -> None:
    """Lists the frozen features that runs keep beside a collection's images, or removes some.

    Nothing is lost: the next run that wants them computes them again. COLLECTION may also be a run folder.

    \b
    Example:
      foveate cache my-images
      foveate cache my-images --remove unused
    """
    from foveate.core.errors import UserError, choose
    from foveate.pretrain.caches import WHICH, list_caches, remove_caches

    if not collection.is_dir():
        raise UserError(f"{collection}: is no folder; give a collection or a run folder")
    folder = collection / "cache"
    caches = list_caches(folder)
    removed = []
    if remove is not None:
        choose(remove, WHICH, "--remove")
        removed = [cache for cache in caches if remove == "all" or cache.is_unused(days=days)]
        if not dry_run:
            removed = remove_caches(folder, which=remove, days=days)
    names = {cache.path.name for cache in removed}
    rows = [
        {
            "name": cache.path.name,
            "kind": cache.kind,
            "encoder": cache.encoder,
            "bytes": cache.size,
            "parts": cache.parts,
            "days_since_use": round(cache.days, 2),
            "unused": cache.is_unused(days=days),
            "removed": cache.path.name in names and not dry_run,
        }
        for cache in caches
    ]
    lines = [
        f"{cache.path.name}: {cache.kind}, {_size(cache.size)}, opened {cache.days:.0f} days ago"
        + ("" if cache.readable else ", of another release")
        + (", would be removed" if dry_run else ", removed") * (cache.path.name in names)
        for cache in caches
    ] or [f"no cache in {folder}"]
    freed = sum(cache.size for cache in removed)
    if remove is not None:
        lines.append(f"{'would free' if dry_run else 'freed'}: {_size(freed)}")
    result = {"kind": "cache", "caches": rows, "bytes": sum(cache.size for cache in caches), "freed_bytes": freed}
    finish(result, lines, {"cache": folder}, as_json=as_json)


def _size(count: int) -> str:
    for unit, bound in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bound:
            return f"{count / bound:.1f} {unit}"
    return f"{count} bytes"
