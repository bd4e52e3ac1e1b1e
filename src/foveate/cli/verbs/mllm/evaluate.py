"""`foveate mllm evaluate`: ask a model all questions of a suite, and score it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option, run_option

if TYPE_CHECKING:
    from foveate.mllm.results import SuiteResult


@click.command("evaluate", cls=FieldsCommand, short_help="Ask a model all questions of a suite, and score it.")
@click.argument("model")
@click.option(
    "--suite",
    required=True,
    help="Suite: ai2d, chartqa, ferret-bench, flickr, lvis-refer, pope, refcoco, scenes, self-check, ...",
)
@path_option("--data", "Data of the suite: a collection for most.", required=True)
@fields(
    "foveate.mllm.suite_settings:SuiteSettings",
    "split",
    "limit",
    "batch_size",
    "judge",
    "judge_model",
    "judge_key_env",
    "training_words",
)
@run_option("runs/mllm-evaluate-SUITE", "Folder for answers, result and page")
@common()
def command(
    model: str,
    suite: str,
    data: Path,
    settings: dict[str, Any],
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Ask MODEL every question with its image, without an image, and with the image of another question.

    A score means something only above these two controls. If stopped, the same command resumes.

    \b
    Example:
      foveate mllm evaluate mini --suite scenes --data questions --limit 2000
    """
    from foveate.core.recipes import validate
    from foveate.mllm.evaluate import evaluate as evaluate_suite
    from foveate.mllm.suite_settings import SuiteSettings
    from foveate.multimodal.opening import open_mllm
    from foveate.report import render
    from foveate.video.networks import hash_weights

    checked = validate(SuiteSettings, {**settings, "seed": seed or 0}, where="foveate mllm evaluate")
    target = run or Path("runs") / f"mllm-evaluate-{suite}"
    opened = open_mllm(model, device=device)
    result = evaluate_suite(
        opened,
        suite,
        data,
        run=target,
        settings=checked,
        name=model,
        # A folder of the same name may hold other weights by now: answers of two models must not mix in one run.
        weights=hash_weights(model),
        command=["foveate", *sys.argv[1:]],
    )
    finish(result.to_json(), _score_lines(result), {"run": target, "report": render(target)}, as_json=as_json)


def _score_lines(result: SuiteResult) -> list[str]:
    """Format one line per slice: its score under each condition."""
    lines = []
    for row in result.table:
        scores = ", ".join(
            f"{column.title.lower()} {value.value:.3f}"
            for column in result.columns
            if (value := row.values.get(column.key)) is not None
        )
        lines.append(f"{row.question}: {scores}, n {row.n:,}")
    shares = result.further.get("image", {}).items()
    return lines + [f"  {name}: {share:.3f}" for name, share in shares if share is not None]
