"""`foveate remove`: take images out of a collection for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option
from foveate.core.errors import UserError


@click.command("remove", cls=FieldsCommand, short_help="Permanently remove images from a collection.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@fields(
    "foveate.records.removal:RemovalSettings",
    ("keys_file", "--from"),
    "where",
    "reason",
    "keep_bytes",
    "purge",
    "copies",
    "captions_of",
    repeat=("where",),
    metavars={"where": "FIELD=VALUE", "captions_of": "MODEL"},
)
@dry_run_option("Print what would be done; change nothing.")
@common(seed=False, device=False)
def command(call: Call, collection: Path, keys: tuple[str, ...], settings: dict[str, Any]) -> None:
    """Remove images from a collection: readers skip them, imports refuse them, bytes and rows are deleted.

    Key and SHA-256 stay in removed.parquet: they are what keeps the image out. Files that are referenced stay where
    they are. If stopped, the same command resumes.

    \b
    Example:
      foveate remove my-images birds/owl birds/crow --reason "asked for by the photographer"
      foveate remove my-images --from keys.txt --dry-run
      foveate remove my-images --where site=A --keep-bytes
      foveate remove my-images --captions-of mini
    """
    from foveate.records.removal import RemovalSettings, read_keys, remove_images

    resolved = call.check(RemovalSettings, settings)
    if resolved.captions_of is not None:
        from foveate.records.captions import remove_captions

        if keys:
            raise UserError(f"KEY has no effect with --captions-of, which removes no images (got {keys[0]!r})")
        removal = remove_captions(collection, resolved.captions_of, dry_run=call.dry_run)
        return call.finish(removal.as_dict(), removal.lines(), {"collection": collection})
    listed = read_keys(resolved.keys_file) if resolved.keys_file is not None else []
    # An empty list is a mistake upstream, for example a query without a result; with other keys it would go unnoticed.
    if resolved.keys_file is not None and not listed:
        raise UserError(f"{resolved.keys_file}: no keys in it; expected one per line")
    summary = remove_images(
        collection,
        [*keys, *listed],
        where=resolved.where,
        reason=resolved.reason,
        purge=not resolved.keep_bytes,
        copies=resolved.copies,
        dry_run=call.dry_run,
    )
    call.finish(summary.as_dict(), summary.lines(), {"collection": collection})
