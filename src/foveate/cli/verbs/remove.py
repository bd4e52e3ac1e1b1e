"""`foveate remove`: take images out of a collection for good."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import finish, json_option, quiet_option
from foveate.core.errors import UserError


def parse_conditions(texts: tuple[str, ...]) -> dict[str, str]:
    """`("site=A", "split=test")` as a mapping.

    Raises:
        UserError: when one is not field=value, or a field comes twice.
    """
    conditions: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UserError(f"--where '{text}': write it as field=value, for example color=red")
        if name in conditions:
            raise UserError(f"--where '{text}': the field '{name}' comes twice")
        conditions[name] = value
    return conditions


@click.command("remove", short_help="Take images out of a collection for good.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--from", "list_file", type=click.Path(path_type=Path), help="Text file with one key a line.")
@click.option(
    "--where",
    multiple=True,
    metavar="FIELD=VALUE",
    help="All images with this label, source, split or group. Repeated, all must hold.",
)
@click.option("--reason", default="", help="Why; kept in removed.parquet.")
@click.option("--keep-bytes", is_flag=True, help="Only hide the images: bytes and rows stay in the folder.")
@click.option("--purge", is_flag=True, help="Bytes and rows go from the folder. This is the default.")
@click.option("--copies", is_flag=True, help="Also take out images with the same bytes under other keys.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@quiet_option
def command(
    collection: Path,
    keys: tuple[str, ...],
    list_file: Path | None,
    where: tuple[str, ...],
    reason: str,
    keep_bytes: bool,
    purge: bool,
    copies: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Takes images out of a collection: no reader shows them, no import takes them in again, bytes and rows go.

    Key and SHA-256 stay in removed.parquet: they are what keeps the image out. Files that are referenced stay where
    they are. Stopped, the same command goes on.

    \b
    Example:
      foveate remove my-images birds/owl birds/crow --reason "asked for by the photographer"
      foveate remove my-images --from keys.txt --dry-run
      foveate remove my-images --where site=A --keep-bytes
    """
    from foveate.records.removal import read_keys, remove_images

    if keep_bytes and purge:
        raise UserError("--keep-bytes and --purge: choose one")
    listed = read_keys(list_file) if list_file is not None else []
    if list_file is not None and not listed:
        raise UserError(f"{list_file}: no keys in it; one a line is wanted")
    summary = remove_images(
        collection,
        [*keys, *listed],
        where=parse_conditions(where),
        reason=reason,
        purge=not keep_bytes,
        copies=copies,
        dry_run=dry_run,
    )
    finish(summary.as_dict(), summary.lines(), {"collection": collection}, as_json=as_json)
