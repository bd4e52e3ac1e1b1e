"""`foveate audit`: what the captions of a collection are worth, format by format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, run_option


@click.command("audit", cls=FieldsCommand, short_help="Measure length, detail and accuracy of captions.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(
    "foveate.caption.settings:AuditSettings",
    "formats",
    "sample",
    "split",
    "prefer",
    "context",
    "tokenizer",
    "entity",
    "tagger",
    "gallery",
    repeat=("prefer",),
    metavars={"formats": "FORMAT,...", "prefer": "MODEL", "tagger": "NAME"},
)
@fields(
    "foveate.caption.settings:JudgeSettings",
    "judge",
    ("endpoint", "--judge-url"),
    ("endpoint_model", "--judge-model"),
    ("key_env", "--judge-key-env"),
    into="judging",
    metavars={"judge": "FOLDER", "endpoint": "URL", "endpoint_model": "NAME", "key_env": "NAME"},
)
@run_option("runs/audit")
@common()
def command(call: Call, collection: Path, settings: dict[str, Any], judging: dict[str, Any]) -> None:
    """Measure the captions of COLLECTION, every format on the same images.

    Length in tokens, assertions per caption, the share of them that holds, what they share with the alt-text,
    duplicates and truncation; with intervals and a control of shuffled captions.

    On generated scenes the truth judges; on real images an image-text model (--judge) or a served one (--judge-url).

    \b
    Example:
      foveate audit my-images --judge runs/pretrain-tour/model
      foveate audit my-images --formats alt,ssc,dsc --sample 500 --tokenizer tokenizer.json
    """
    from foveate.caption.settings import AuditSettings, JudgeSettings
    from foveate.core.errors import UserError
    from foveate.core.progress import say
    from foveate.core.runs import RunFolder
    from foveate.records.captions import save_verdicts
    from foveate.records.collection import Collection
    from foveate.report.render import render_and_tell

    resolved = call.check(AuditSettings, {**settings, "seed": call.seed or 0})
    judge = call.check(JudgeSettings, judging)
    if (judge.endpoint is None) != (judge.endpoint_model is None):
        raise click.UsageError("--judge-url and --judge-model belong together")
    if judge.endpoint is not None and judge.judge is not None:
        raise click.UsageError("give one of --judge and --judge-url: one judge, one number")
    if judge.key_env and judge.endpoint is None:
        raise click.UsageError("--judge-key-env has no effect without --judge-url")
    opened = Collection.open(collection)
    # Torch is loaded from here on: a mistake in a path or a name must not wait for it.
    from foveate.caption.audit import AuditMethod, audit

    method = AuditMethod(model=judge.judge)
    if judge.endpoint is not None and judge.endpoint_model is not None:
        from foveate.caption.judges import llm_method

        method = llm_method(opened, judge.endpoint, judge.endpoint_model, key_env=judge.key_env)
    folder = RunFolder.create(call.run or Path("runs/audit"), command=call.command)
    try:
        audited = audit(opened, folder.path, resolved, method, device=call.device)
    except UserError:
        # A refused audit leaves no folder behind; one with the files of an earlier run stays as it was.
        folder.discard()
        raise
    result = audited.to_json()
    result["command"] = call.command
    folder.write_result(result)
    try:
        save_verdicts(opened.path, audited.verdicts)
    except (UserError, OSError) as error:
        # The audit may have taken hours, and its numbers are in the run folder.
        say(f"the verdicts were not stored in the collection: {error}")
    report, page_lines = render_and_tell(folder.path)
    paths = {"result": folder.path / "result.json", "report": report}
    # The gallery is on the page; as text it would bury the numbers.
    lines = [
        f"{verdict.describe()}{': no more than by chance, regions prefers alt-texts' if verdict.is_wrong else ''}"
        for verdict in audited.verdicts
    ]
    call.finish({**result, "gallery": []}, page_lines + lines, paths)
