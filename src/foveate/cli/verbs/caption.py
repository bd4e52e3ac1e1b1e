"""`foveate caption`: captions of chosen formats for the images of a collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option, run_option, workers_option

if TYPE_CHECKING:
    from foveate.caption.captioner import CaptionRunSettings
    from foveate.core.recipes import Settings


@click.command("caption", cls=FieldsCommand, short_help="Write captions of chosen formats into a collection.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(
    "foveate.caption.pending_requests:CaptionSettings",
    ("formats", "--format"),
    "split",
    "limit",
    "language",
    ("alt_kinds", "--alt"),
    "longest_side",
    "temperature",
    "max_tokens",
    "retry_errors",
    "rows_per_part",
    "seconds_per_part",
    "price_in",
    "price_out",
)
@fields(
    "foveate.caption.captioner:CaptionRunSettings",
    "backend",
    "model",
    "endpoint",
    "concurrency",
    ("options", "--option"),
    "tokenizer",
    "executor",
    "processes",
    into="answering",
    repeat=("endpoint", "options"),
    metavars={"backend": "NAME", "endpoint": "URL", "options": "NAME=VALUE", "executor": "NAME"},
)
@run_option("runs/caption", "Folder for the page")
@dry_run_option("Count requests and estimate tokens and cost; request nothing.")
@workers_option
@common()
def command(call: Call, collection: Path, settings: dict[str, Any], answering: dict[str, Any]) -> None:
    """Request captions of every image of COLLECTION and write them into it, with their provenance.

    Nothing is overwritten. Ctrl-C or SIGTERM finishes what is in flight and writes it; the same command resumes, and
    asks for nothing that is there.

    \b
    Example:
      foveate caption my-images --format ssc,dsc --backend foveate --model mini
      foveate caption my-images --format ssc,dsc --model Qwen/Qwen3-VL-8B-Instruct --endpoint http://127.0.0.1:8000/v1
      foveate caption my-images --format dsc+,afc --model my-model --dry-run --price-in 0.2 --price-out 0.6
    """
    from foveate.caption.captioner import CaptionRunSettings
    from foveate.caption.pending_requests import CaptionSettings
    from foveate.caption.run import caption, plan
    from foveate.core.runs import RunFolder
    from foveate.records.labeling import end_command
    from foveate.report.render import render_and_tell

    resolved = call.check(CaptionSettings, {**settings, "seed": call.seed or 0})
    options = call.check(CaptionRunSettings, answering)
    backend_settings = _backend_settings(options, call.device)
    if call.dry_run:
        _, estimated = plan(collection, resolved, backend=options.backend, backend_settings=backend_settings)
        call.finish(estimated, _planned(estimated))
        return
    folder = RunFolder.create(call.run or Path("runs/caption"), command=call.command)
    done = caption(
        collection,
        resolved,
        backend=options.backend,
        backend_settings=backend_settings,
        run=folder,
        executor=options.executor,
        workers=call.workers or 2,
        processes=options.processes,
        tokenizer=options.tokenizer,
    )
    result = {**done.result.to_json(), "command": call.command}
    folder.write_result(result)
    report, lines = render_and_tell(folder.path)
    paths = {"usage": folder.path / "usage.jsonl", "report": report}
    # None if no run into this folder has asked anything: all captions were there already.
    if not (folder.path / "usage.jsonl").is_file():
        del paths["usage"]
    call.finish(result, lines, paths)
    end_command(done.failure, stopped=done.stopped)


def _backend_settings(options: CaptionRunSettings, device: str | None) -> Settings:
    """Check the settings of a backend, of which --model, --endpoint, --concurrency and --device are four."""
    from foveate.caption.captioner import find_backend
    from foveate.chat.client import chat_url
    from foveate.core.errors import UserError
    from foveate.core.recipes import validate
    from foveate.core.yaml_text import read_yaml

    plugin = find_backend(options.backend)
    # Only what was given: a backend without such a field must not refuse what nobody asked for.
    content: dict[str, Any] = options.model_dump(include={"model", "endpoint", "concurrency"}, exclude_defaults=True)
    content |= {} if device is None else {"device": device}
    for option in options.options:
        name, equals, text = option.partition("=")
        if not equals or not name:
            raise UserError(f"--option '{option}': write it as NAME=VALUE")
        content[name] = read_yaml(text, where=f"--option {name}", kind="YAML")
    # Before there is a run folder, which stores the command, and before an error repeats it: an address with a password
    # is refused.
    given = content.get("endpoint", ())
    for address in (*options.endpoint, *(given if isinstance(given, tuple | list) else (given,))):
        if isinstance(address, str):
            chat_url(address)
    if "backend" not in options.model_fields_set and "model" not in content:
        raise UserError(
            "no captioner is named: give --model NAME --endpoint URL for a server, --backend transformers --model "
            "FOLDER for a model of transformers, or --backend foveate --model mini for the one that ships"
        )
    return validate(plugin.settings, content, where=f"backend '{options.backend}'")


def _planned(estimated: dict[str, Any]) -> list[str]:
    from foveate.report.numbers import money

    lines = [f"{estimated['images']} images, {estimated['requests']} pending requests"]
    for kind, counts in estimated["formats"].items():
        lines.append(f"{kind}: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    lines.append(f"about {estimated['tokens_in']} input tokens, {estimated['tokens_out']} output tokens")
    if estimated["cost"]:
        lines.append(f"cost about {money(estimated['cost'])} at the given prices")
    return lines
