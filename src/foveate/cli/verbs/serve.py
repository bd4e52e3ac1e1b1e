"""`foveate serve`: any model folder or index behind an OpenAI-compatible server."""

from __future__ import annotations

import sys
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, check_opening, common, dry_run_option, opening_options


@click.command("serve", cls=FieldsCommand, short_help="Serve models and indexes to OpenAI clients, with a page.")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...")
@fields(
    "foveate.serve.settings:ServeSettings",
    "name",
    "host",
    "port",
    "port_file",
    "batch",
    "queue",
    "max_body_mb",
    "max_pixels",
    "max_clip_frames",
    "max_tokens",
    "max_connections",
    "max_all_connections",
    "timeout_seconds",
    "grace_seconds",
    "api_key_env",
    "without_key",
    "allow_host",
    "allow_origin",
    "page",
    "log_content",
    "precision",
    repeat=("name", "allow_host", "allow_origin"),
    metavars={"name": "NAME", "allow_host": "NAME", "allow_origin": "URL", "api_key_env": "NAME"},
)
@opening_options
@dry_run_option("Print what would be served and its size, and open no model and no socket.")
@common(seed=False)
def command(call: Call, folders: tuple[str, ...], settings: dict[str, Any], opening: dict[str, Any]) -> None:
    """Serve each FOLDER until Ctrl-C: chat, embeddings, locate, search and classify, as far as its model can.

    FOLDER is a model folder of `foveate mllm train`, `pretrain` or `adapt train`, an index, mini, small, or a folder
    of transformers; mini and small by default, which ship with Foveate. Images come as data URLs; nothing is ever
    fetched. A page to play with it is at /.

    \b
    Example:
      foveate serve runs/study-tour/cloc-seed0/model my-index
      foveate serve mini --port 0 --port-file port.txt
    """
    from foveate.core.errors import UserError
    from foveate.core.hub import DEFAULT_ENCODER, KINDS
    from foveate.serve.adapters import check_extra, open_adapters, plan, read_key
    from foveate.serve.settings import ServeSettings

    folders = folders or (KINDS["multimodal"].shipped[0], DEFAULT_ENCODER)
    checked = call.check(ServeSettings, settings | ({"device": call.device} if call.device else {}))
    opened_as = check_opening(opening, device=call.device)
    # Before a model is opened, which takes seconds.
    check_extra()
    key = read_key(checked)
    if checked.port_file is not None and not checked.port_file.parent.is_dir():
        raise UserError(
            f"--port-file: there is no folder {checked.port_file.parent}; expected a file in one that exists"
        )
    models = plan(folders, checked)
    if call.dry_run:
        lines = [
            f"{model['name']}: {model['kind']}, {model['bytes'] / 1e6:,.1f} MB on disk, {model['folder']}"
            for model in models
        ]
        call.finish({"models": models}, lines)
        return
    if not call.as_json:
        # Torch and the models take seconds, on a busy machine a minute, in which nothing listens.
        click.echo(f"opening {', '.join(model['name'] for model in models)}")
        sys.stdout.flush()
    from foveate.serve.application import Application
    from foveate.serve.run import serve

    application = Application(open_adapters(folders, checked, opening=opened_as if opening else None), checked, key=key)

    def ready(port: int) -> None:
        host = f"[{checked.host}]" if ":" in checked.host else checked.host
        address = f"http://{host}:{port}"
        lines = [
            f"{adapter.name}: {adapter.kind}, {', '.join(sorted(adapter.endpoints))}, {adapter.num_bytes / 1e6:,.1f} MB"
            for adapter in application.answerer.adapters.values()
        ]
        lines += [f"listening on {address}/v1; Ctrl-C stops", *([f"page: {address}/"] if checked.page else [])]
        call.finish({"address": address, "port": port, "models": models}, lines)
        # A pipe is block-buffered: whoever waits for this line would wait until the server ends.
        sys.stdout.flush()

    serve(application, ready=ready)
