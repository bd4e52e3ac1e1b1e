"""`foveate video evaluate`: ask a model all questions of a published set about their clips."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option, run_option
from foveate.cli.verbs.video.options import allow_damaged_option, build_how, fitting_options, strategy_options
from foveate.cli.verbs.video.page import collect_warnings, describe_warnings, format_scores


@click.command("evaluate", cls=FieldsCommand, short_help="Ask a model all questions of a set about their clips.")
@click.argument("model")
@path_option("--questions", "The set's published file of questions, or its folder.", required=True)
@path_option("--videos", "Folder with the clips, however nested.", required=True)
@fields(
    "foveate.video.evaluate:VideoEvaluationSettings",
    ("question_set", "--set"),
    "limit",
    "batch_size",
    "max_tokens",
    "likelihood",
    "allow_missing",
)
@strategy_options
@fitting_options
@allow_damaged_option
@run_option("runs/video-evaluate-SET", "Folder for answers, result and page")
@common()
def command(
    model: str,
    questions: Path,
    videos: Path,
    settings: dict[str, Any],
    how: str,
    fit: bool,
    prompt: str,
    rope_factor: float | None,
    allow_damaged: bool,
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
    **strategy_options: Any,
) -> None:
    """Ask MODEL all questions of a set. Multiple choices are scored at once, open answers by `foveate video score`.

    A question without a clip stops it, or counts as wrong with --allow-missing. If stopped, the same command resumes.

    \b
    Example:
      foveate video evaluate llava-hf/llava-v1.6-vicuna-7b-hf --set nextqa --questions val.csv --videos NExTVideo
    """
    from foveate.core.recipes import validate
    from foveate.report import render
    from foveate.video.evaluate import ClipWatcher, VideoEvaluationSettings
    from foveate.video.evaluate import evaluate as evaluate_set
    from foveate.video.networks import hash_weights, open_network

    checked = validate(VideoEvaluationSettings, {**settings, "seed": seed or 0}, where="foveate video evaluate")
    strategy = build_how(how, strategy_options)
    target = run or Path("runs") / f"video-evaluate-{checked.question_set}"
    with collect_warnings() as texts:
        network = open_network(model, device=device, rope_factor=rope_factor)
        watcher = ClipWatcher(network, strategy, fit=fit, prompt=prompt, allow_damaged=allow_damaged)
        result = evaluate_set(
            watcher,
            questions,
            videos,
            run=target,
            settings=checked,
            name=model,
            how=watcher.description,
            # A folder of the same name may hold other weights by now: answers of two models must not mix in one run.
            weights=hash_weights(model),
            command=["foveate", *sys.argv[1:]],
        )
    lines = [*format_scores(result), *describe_warnings(texts)]
    finish(result.to_json(), lines, {"run": target, "report": render(target)}, as_json=as_json)
