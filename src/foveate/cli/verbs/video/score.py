"""`foveate video score`: score the answers of `foveate video evaluate`, by a judge where they are open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import finish, json_option, quiet_option
from foveate.cli.verbs.video.page import format_scores


@click.command("score", cls=FieldsCommand, short_help="Score a run of a question set, by a judge where it is open.")
@click.argument("run", type=click.Path(path_type=Path))
@fields(
    "foveate.video.score_table:JudgeSettings",
    "judge",
    "judge_model",
    "judge_key_env",
    "judge_prompts",
    "judge_seconds",
    "allow_missing",
)
@json_option
@quiet_option
def command(run: Path, settings: dict[str, Any], as_json: bool) -> None:
    """Score the answers of RUN, strict and official side by side. Replies of a judge are stored, and not asked again.

    \b
    Example:
      foveate video score runs/video-evaluate-msvd --judge http://127.0.0.1:8000/v1 --judge-model qwen
    """
    from foveate.core.recipes import validate
    from foveate.report import render
    from foveate.video.score_table import JudgeSettings
    from foveate.video.score_table import score as score_run

    checked = validate(JudgeSettings, settings, where="foveate video score")
    result = score_run(run, checked, command=["foveate", *sys.argv[1:]])
    finish(result.to_json(), format_scores(result), {"run": run, "report": render(run)}, as_json=as_json)
