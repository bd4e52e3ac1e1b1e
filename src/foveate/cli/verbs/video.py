"""`foveate video ...`: questions about clips, asked of image models without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, json_option, path_option, quiet_option, run_option

if TYPE_CHECKING:
    from foveate.mllm.video.scores import VideoScores


@click.group("video", short_help="Ask image models about video, without training.")
def command() -> None:
    """Ask image models about video, without training (SlowFast-LLaVA).

    \b
    Example:
      foveate video evaluate mini --set own --questions questions.jsonl --videos clips
      foveate video score runs/video-evaluate-own --judge http://127.0.0.1:8000/v1 --judge-model qwen
    """


@command.command("evaluate", cls=FieldsCommand, short_help="Ask a model all questions of a set about their clips.")
@click.argument("model")
@path_option("--questions", "The set's published file of questions, or its folder.", required=True)
@path_option("--videos", "Folder with the clips, however nested.", required=True)
@fields(
    "foveate.mllm.video.evaluate:VideoEvaluationSettings",
    ("question_set", "--set"),
    "limit",
    "batch_size",
    "max_tokens",
    "allow_missing",
)
@click.option("--how", default="slowfast", show_default=True, help="Strategy, or the paper's string.")
@click.option("--frames", type=click.IntRange(1), help="Frames to sample from a clip; the strategy's by default.")
@click.option("--fit", is_flag=True, help="Shrink the strategy where a clip does not fit the context.")
@click.option("--prompt", default="", metavar="NAME|FILE", help="Wording: video, plain or a file.")
@click.option("--allow-damaged", is_flag=True, help="Use what can be decoded of damaged clips.")
@run_option("runs/video-evaluate-SET", "Folder for answers, result and page")
@common()
def evaluate(
    model: str,
    questions: Path,
    videos: Path,
    settings: dict[str, Any],
    how: str,
    frames: int | None,
    fit: bool,
    prompt: str,
    allow_damaged: bool,
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Ask MODEL all questions of a set. Multiple choices are scored at once, open answers by `foveate video score`.

    A question without a clip stops it, or counts as wrong with --allow-missing. Stopped, the same command goes on.

    \b
    Example:
      foveate video evaluate llava-hf/llava-v1.6-vicuna-7b-hf --set nextqa --questions val.csv --videos NExTVideo
    """
    from foveate.core.recipes import validate
    from foveate.mllm.video.clip_model import ClipWatcher
    from foveate.mllm.video.evaluate import VideoEvaluationSettings
    from foveate.mllm.video.evaluate import evaluate as evaluate_set
    from foveate.mllm.video.grammar import parse_how
    from foveate.mllm.video.networks import open_network
    from foveate.report import render

    checked = validate(VideoEvaluationSettings, {**settings, "seed": seed or 0}, where="foveate video evaluate")
    strategy = parse_how(how) if frames is None else parse_how(how, frames=frames)
    target = run or Path("runs") / f"video-evaluate-{checked.question_set}"
    network = open_network(model, device=device)
    watcher = ClipWatcher(network, strategy, fit=fit, prompt=prompt, allow_damaged=allow_damaged)
    result = evaluate_set(
        watcher,
        questions,
        videos,
        run=target,
        settings=checked,
        name=model,
        how=watcher.description,
        command=["foveate", *sys.argv[1:]],
    )
    finish(result.to_json(), _score_lines(result), {"run": target, "report": render(target)}, as_json=as_json)


@command.command("score", cls=FieldsCommand, short_help="Score a run of a question set, by a judge where it is open.")
@click.argument("run", type=click.Path(path_type=Path))
@fields(
    "foveate.mllm.video.judging:JudgeSettings",
    "judge",
    "judge_model",
    "judge_key_env",
    "judge_prompts",
    "judge_seconds",
    "allow_missing",
)
@json_option
@quiet_option
def score(run: Path, settings: dict[str, Any], as_json: bool) -> None:
    """Score the answers of RUN, strict and official side by side. Replies of a judge are stored, and not asked again.

    \b
    Example:
      foveate video score runs/video-evaluate-msvd --judge http://127.0.0.1:8000/v1 --judge-model qwen
    """
    from foveate.core.recipes import validate
    from foveate.mllm.video.judging import JudgeSettings
    from foveate.mllm.video.scores import score as score_run
    from foveate.report import render

    checked = validate(JudgeSettings, settings, where="foveate video score")
    result = score_run(run, checked, command=["foveate", *sys.argv[1:]])
    finish(result.to_json(), _score_lines(result), {"run": run, "report": render(run)}, as_json=as_json)


def _score_lines(result: VideoScores) -> list[str]:
    lines = []
    for row in result.table:
        values = [(column.title.lower(), row.values.get(column.key)) for column in result.columns]
        scores = ", ".join(f"{title} {value.value:.3f}" for title, value in values if value is not None)
        lines.append(f"{row.question}, {row.data}: {scores or 'none'}, n {row.n or 0:,}")
    counts = {
        "without an answer, counted as wrong": result.missing,
        "answers cut at the longest": result.unfinished,
        "not readable": result.unparsed,
        "not judged: the request failed": result.failed,
        "open questions, to be judged by `foveate video score`": result.unjudged,
    }
    lines += [f"  {count:,} {what}" for what, count in counts.items() if count]
    if result.judge:
        lines.append(f"  judged by {result.judge}, {' to '.join(dict.fromkeys(result.judge_dates))}")
    return lines
