"""The commands of `foveate video`: ask, chat, find, frames, plan, evaluate and score."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import (
    NOT_FOUND,
    Call,
    check_opening,
    common,
    finish,
    json_option,
    model_first,
    opening_options,
    path_option,
    quiet_option,
    run_option,
    unit_of_boxes_option,
)
from foveate.cli.verbs.video.clip import (
    Span,
    allow_damaged_option,
    ask_question,
    build_how,
    collect_warnings,
    describe_how,
    describe_viewing,
    describe_warnings,
    fitting_options,
    open_selector,
    rope_option,
    sampling_options,
    save_frame,
    save_frames,
    save_viewing,
    shrink,
    span_options,
    strategy_options,
    viewing_options,
    watch_clip,
)

if TYPE_CHECKING:
    from foveate.video.results import VideoExchange
    from foveate.vision.video.sampling import SampleRule


# `foveate video ask`: answer questions about a clip, in words or by the letter of an option.


@click.command("ask", cls=FieldsCommand, short_help="Ask questions about a clip.")
@click.argument("model")
@click.argument("clip", type=click.Path(path_type=Path))
@click.argument("questions", nargs=-1, required=True)
@click.option("--option", "options", multiple=True, help="Answer to choose from, by its letter. At least two.")
@viewing_options
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option("--evidence", is_flag=True, help="Measure how much each answer depends on each frame; takes minutes.")
@run_option("none", "Folder for a page with frames and answers")
@common(seed=False)
def ask_command(
    call: Call,
    model: str,
    clip: Path,
    questions: tuple[str, ...],
    options: tuple[str, ...],
    max_tokens: int,
    evidence: bool,
    **watching: Any,
) -> None:
    """Answer QUESTIONS about CLIP, then list what MODEL saw of it.

    CLIP is a video file, an animated GIF or WebP, or a folder of images. MODEL is a folder or hub id of an image-text
    model of transformers (fourteen families, see the docs), mini, which knows generated scenes alone, or a folder of
    foveate mllm train. It needs no training on video. The clip is encoded and read once for all questions.

    \b
    Example:
      foveate video ask mini street.mp4 "What is in the image?" --frames 24
      foveate video ask llava-hf/llava-v1.6-vicuna-7b-hf street.mp4 "What comes after the taxi?" --start 1:20 --end 2:00
      foveate video ask mini street.mp4 "Which color is it?" --option red --option green --frames 24
      foveate video ask mini street.mp4 "Which color is it?" --frames 24 --evidence --out runs/street
    """
    if options:
        from foveate.video.prompts import check_choices

        source = click.get_current_context().get_parameter_source("max_tokens")
        if source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--max-tokens has no effect with --option: an answer is a letter")
        # Before a model is opened, which takes seconds.
        check_choices(options)
    requests = [(question, options) for question in questions]
    viewing = watch_clip(model, clip, requests, max_tokens=max_tokens, run=call.run, device=call.device, **watching)
    if evidence:
        from foveate.video.occlusion import group_rows

        # A strategy whose frames cannot be left out is refused before it answers.
        group_rows(viewing.layout)
    exchanges = []
    for question in questions:
        if len(questions) > 1 and not call.as_json:
            click.echo(f"> {question}")
        exchanges.append(ask_question(viewing, question, options, max_tokens, silent=call.as_json, evidence=evidence))
    result, paths = save_viewing(viewing, exchanges, call.run)
    call.finish(result, [] if call.as_json else describe_viewing(viewing), paths)


# `foveate video chat`: answer each line of the input as a question about a clip.


@click.command("chat", cls=FieldsCommand, short_help="Ask about a clip, question after question.")
@click.argument("model")
@click.argument("clip", type=click.Path(path_type=Path))
@viewing_options
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@run_option("none", "Folder for a page with frames and answers")
@common(seed=False)
def chat_command(call: Call, model: str, clip: Path, max_tokens: int, **watching: Any) -> None:
    """Answer each line of the input as a question about CLIP, until it ends.

    The clip is encoded and read once; every further question costs its own text. A question does not see earlier ones.
    With --json all questions and answers are printed at the end.

    \b
    Example:
      foveate video chat mini street.mp4 --frames 24
    """
    from foveate.core.errors import UserError

    viewing = watch_clip(model, clip, [], max_tokens=max_tokens, run=call.run, device=call.device, **watching)
    for line in describe_viewing(viewing):
        click.echo(line, err=True)
    exchanges: list[VideoExchange] = []
    # Ctrl-C ends only the conversation, at the prompt or in an answer: what was answered belongs on the page.
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            question = input("> " if sys.stdin.isatty() else "").strip()
            try:
                if question:
                    exchanges.append(ask_question(viewing, question, (), max_tokens, silent=call.as_json))
            except UserError as problem:
                # One question that does not fit ends no conversation.
                click.echo(str(problem), err=True)
    result, paths = save_viewing(viewing, exchanges, call.run)
    call.finish(result, [], paths)


# `foveate video find`: find when and where a clip shows a phrase.


@click.command("find", short_help="Find when and where a clip shows a phrase.")
@model_first("clip", "phrase")
@click.option("--frames", type=click.IntRange(1), default=50, show_default=True, help="Frames to sample from the clip.")
@sampling_options
@span_options
@click.option("--count", type=click.IntRange(1), default=5, show_default=True, help="Frames to list, best first.")
@unit_of_boxes_option
@run_option("runs/video-find", "Folder for frames and page")
@common()
def find_command(
    call: Call,
    model: str,
    clip: str,
    phrase: str,
    frames: int,
    start: str | None,
    end: str | None,
    rule: SampleRule | None,
    fps: float | None,
    allow_damaged: bool,
    count: int,
    unit_of_boxes: str | None,
) -> None:
    """List the frames of CLIP whose best box is most like PHRASE, with the time and the box in pixels.

    MODEL: small (default), which ships with Foveate, or an image-text model as for `foveate index`. The page draws the
    cosine over time, beside that of the center of each frame: a phrase that is in sight stands out from both. A
    multimodal model, such as mini, is asked where PHRASE is in each frame, as `foveate locate` asks it: frames with a
    box come first. Exit status 3 where no frame has one.

    \b
    Example:
      foveate video find street.mp4 "a red boat"
      foveate video find runs/study-tour/cloc-seed0/model street.mp4 "a red boat"
      foveate video find mini street.mp4 "a red boat"
    """
    from foveate.core.runs import RunFolder, check_run_path
    from foveate.multimodal.opening import is_multimodal, open_mllm
    from foveate.report.render import render_and_tell
    from foveate.search.locate import ask_frames, locate_frames, rank_frames
    from foveate.search.results import LocatedFrame, VideoFindResult
    from foveate.vision.localizer.sources import open_localizer
    from foveate.vision.video.reading import read_clip

    check_run_path(call.run)
    span = Span.parse(start, end)
    is_asked = is_multimodal(model)
    if unit_of_boxes is not None and not is_asked:
        raise click.UsageError(f"--unit-of-boxes has no effect: {model} is no multimodal model")
    asked = open_mllm(model, device=call.device, unit_of_boxes=unit_of_boxes) if is_asked else None
    network = None if is_asked else open_localizer(model, device=call.device)
    # The paper's rule would repeat a frame of a short clip and never look at its last one.
    read = read_clip(
        Path(clip),
        frames,
        rule=rule or ("uniform_mid" if fps is None else "fps"),
        fps=fps,
        start=span.start,
        end=span.end,
        allow_damaged=allow_damaged,
    )
    # Box in pixels, in fractions, score, and that of the frame's center.
    places: list[tuple[Any, Any, float | None, float | None]] = []
    if asked is not None:
        answers = ask_frames(asked, read.frames, phrase)
        order = rank_frames(answers, read.times)
        for frame, answer in zip(read.frames, answers, strict=True):
            # A box head scores each box, also the best one that it does not believe.
            scores, (width, height) = answer.box_scores or answer.rejected, frame.size
            best_box = answer.boxes[scores.index(max(scores)) if answer.box_scores else 0] if answer.boxes else None
            corners = None if best_box is None else (best_box.x1, best_box.y1, best_box.x2, best_box.y2)
            parts = corners and tuple(edge / side for edge, side in zip(corners, (width, height) * 2, strict=True))
            places.append((corners, parts, max(scores, default=None), None))
    else:
        assert network is not None
        located = locate_frames(network, read.frames, phrase, seed=call.seed or 0)
        order = sorted(range(len(located)), key=lambda row: (-located[row].cosine, read.times[row]))
        places = [(each.pixel_box, each.box, each.scores[each.rule], each.scores["center"]) for each in located]
    folder = RunFolder.create(call.run or Path("runs/video-find"))
    best = set(order[:count])
    rows = [
        LocatedFrame(
            index=read.indices[row],
            time=read.times[row],
            # The page shows only the best frames; of the others it plots just the scores.
            image=save_frame(folder, read.frames[row], read.indices[row]) if row in best else "",
            box=box,
            fractions=fractions,
            score=score,
            center_score=center_score,
        )
        for row, (box, fractions, score, center_score) in enumerate(places)
    ]
    result = VideoFindResult(
        title=f"“{phrase}” in {Path(clip).name}",
        command=call.command,
        model=model,
        clip=read.name,
        phrase=phrase,
        best=[int(row) for row in order[:count]],
        frames=rows,
        measure="match" if is_asked else "cosine",
        warnings=list(read.warnings),
    )
    folder.write_result(result.to_json())
    report, lines = render_and_tell(folder.path)
    paths = {"run": folder.path, "report": report}
    call.finish(result.to_json(), [*lines, *describe_warnings(read.warnings)], paths)
    if not any(row.box for row in rows):
        sys.exit(NOT_FOUND)


# `foveate video frames`: show which frames of a clip would be read.


@click.command("frames", short_help="Show which frames of a clip would be read.")
@click.argument("clip", type=click.Path(path_type=Path))
@strategy_options
@sampling_options
@span_options
@path_option("--selector", "Model folder by which slow frames are chosen with --choose cover, change or query.")
@click.option("--query", help="Question whose frames are chosen, with --choose query.")
@run_option("runs/video-frames", "Folder for frames and page")
@common(seed=False)
def frames_command(
    call: Call,
    clip: Path,
    how: str,
    start: str | None,
    end: str | None,
    rule: SampleRule | None,
    fps: float | None,
    allow_damaged: bool,
    selector: Path | None,
    query: str | None,
    **strategy: Any,
) -> None:
    """Write the sampled frames of CLIP with their times, slow ones marked. No language model is read.

    \b
    Example:
      foveate video frames street.mp4 --frames 24 --slow 4 --start 1:20 --end 2:00
      foveate video frames street.mp4 --choose query --selector runs/study-tour/cloc-seed0/model --query "a red boat"
    """
    from foveate.core.runs import RunFolder, check_run_path
    from foveate.report.render import render_and_tell
    from foveate.video.results import VideoAskResult
    from foveate.video.viewing import SeenFrame
    from foveate.video.watching import check_choice, choose_slow
    from foveate.vision.video.reading import ClipReader

    check_run_path(call.run)
    strategy_settings, span = build_how(how, strategy), Span.parse(start, end)
    encoder = open_selector(selector, call.device)
    reader = ClipReader(
        clip,
        strategy_settings.frames,
        rule=rule or ("official" if fps is None else "fps"),
        fps=fps,
        start=span.start,
        end=span.end,
        allow_damaged=allow_damaged,
    )
    indices = None
    if check_choice(strategy_settings, selector=encoder, query=query):
        indices = reader.read(lambda frames: choose_slow(strategy_settings, frames, selector=encoder, query=query))
    # A separate pass that shrinks each frame as it is decoded: a long clip at full size may not fit in memory.
    images = reader.read(lambda frames: [shrink(frame) for frame in frames])
    read = reader.record
    slow = strategy_settings.pick_slow(len(images), indices)
    # Which frames are read does not depend on a model's grid; 24 x 24 is LLaVA's.
    rows = strategy_settings.layout(len(images), 24 * 24, slow_indices=indices).frames
    seen = [SeenFrame(read.indices[row], read.times[row], row in slow, images[row]) for row in rows]
    folder = RunFolder.create(call.run or Path("runs/video-frames"))
    result = VideoAskResult(
        title=f"Frames of {clip.name}",
        command=call.command,
        clip=read.name,
        how=describe_how(strategy_settings),
        num_decoded=read.num_decoded,
        frames=save_frames(folder, seen),
        warnings=list(read.warnings),
    )
    folder.write_result(result.to_json())
    report, lines = render_and_tell(folder.path)
    paths = {"run": folder.path, "report": report}
    call.finish(result.to_json(), [*lines, *describe_warnings(read.warnings)], paths)


# `foveate video plan`: count tokens, FLOPs and memory of a clip for a model, without its weights.


@click.command("plan", short_help="Count tokens, FLOPs and memory of a clip for a model.")
@click.argument("model")
@click.argument("clip", type=click.Path(path_type=Path), required=False)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Length of a clip that is not at hand.")
@click.option("--text-tokens", type=click.IntRange(1), help="Tokens of prompt, question and answer; 416 by default.")
@strategy_options
@span_options
@rope_option
@common(seed=False, device=False)
def plan_command(
    call: Call,
    model: str,
    clip: Path | None,
    seconds: float | None,
    text_tokens: int | None,
    rope_factor: float | None,
    how: str,
    start: str | None,
    end: str | None,
    allow_damaged: bool,
    **strategy: Any,
) -> None:
    """Count what MODEL would read of CLIP: tokens of each path, positions left, FLOPs, memory. No weights are read.

    \b
    Example:
      foveate video plan mini street.mp4 --frames 24
      foveate video plan llava-hf/llava-v1.6-vicuna-7b-hf --seconds 600
    """
    import dataclasses

    from foveate.video.plan import TEXT_TOKENS, format_plan, plan_video
    from foveate.vision.video.reading import read_clip

    if clip is not None and seconds is not None:
        raise click.UsageError("--seconds has no effect with a CLIP, whose length is read")
    if clip is None and (start or end or allow_damaged):
        raise click.UsageError("--start, --end and --allow-damaged have no effect without a CLIP")
    span, total = Span.parse(start, end), None
    if clip is not None:
        # The frames are decoded to be counted: headers are often wrong.
        read = read_clip(clip, 1, start=span.start, end=span.end, transform=shrink, allow_damaged=allow_damaged)
        total, seconds = read.num_decoded, (read.seconds[1] - read.seconds[0]) or None
    with collect_warnings() as texts:
        planned = plan_video(
            model,
            how=build_how(how, strategy),
            total=total,
            seconds=seconds,
            text_tokens=text_tokens or TEXT_TOKENS,
            rope_factor=rope_factor,
        )
    # Those of the strategy are among its fields.
    texts = [text for text in texts if text not in planned.warnings]
    planned = dataclasses.replace(planned, warnings=(*texts, *planned.warnings))
    call.finish(dataclasses.asdict(planned), format_plan(planned), {})


# `foveate video evaluate`: ask a model all questions of a published set about their clips.


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
@sampling_options
@fitting_options
@allow_damaged_option
@opening_options
@run_option("runs/video-evaluate-SET", "Folder for answers, result and page")
@common()
def evaluate_command(
    call: Call,
    model: str,
    questions: Path,
    videos: Path,
    settings: dict[str, Any],
    how: str,
    rule: SampleRule | None,
    fps: float | None,
    fit: bool,
    prompt: str,
    rope_factor: float | None,
    allow_damaged: bool,
    opening: dict[str, Any],
    **strategy_options: Any,
) -> None:
    """Ask MODEL all questions of a set. Multiple choices are scored at once, open answers by `foveate video score`.

    A question without a clip stops it, or counts as wrong with --allow-missing. If stopped, the same command resumes.

    \b
    Example:
      foveate video evaluate llava-hf/llava-v1.6-vicuna-7b-hf --set nextqa --questions val.csv --videos NExTVideo
    """
    from foveate.report.render import render_and_tell
    from foveate.video.evaluate import VideoEvaluationSettings
    from foveate.video.evaluate import evaluate as evaluate_set
    from foveate.video.networks import hash_weights, open_network
    from foveate.video.watching import ClipWatcher

    checked = call.check(VideoEvaluationSettings, {**settings, "seed": call.seed or 0})
    strategy = build_how(how, strategy_options)
    target, opened_as = (
        call.run or Path("runs") / f"video-evaluate-{checked.question_set}",
        check_opening(opening, device=call.device),
    )
    with collect_warnings() as texts:
        network = open_network(model, device=call.device, rope_factor=rope_factor, opening=opened_as)
        options = {"rule": rule, "fps": fps, "fit": fit, "prompt": prompt, "allow_damaged": allow_damaged}
        watcher = ClipWatcher(network, strategy, **options)
        result = evaluate_set(
            watcher,
            questions,
            videos,
            run=target,
            settings=checked,
            name=model,
            how=watcher.description,
            # A folder of the same name may hold other weights by now: answers of two models must not mix in one run.
            weights=f"{hash_weights(model)} {opened_as.describe()}".strip(),
            command=call.command,
        )
    report, lines = render_and_tell(target)
    call.finish(result.to_json(), [*lines, *describe_warnings(texts)], {"run": target, "report": report})


# `foveate video score`: score the answers of `foveate video evaluate`, by a judge where they are open.


@click.command("score", cls=FieldsCommand, short_help="Score a run of a question set, by a judge where it is open.")
@click.argument("run", type=click.Path(path_type=Path))
@fields(
    "foveate.video.score_table:JudgeSettings",
    ("judge", "--judge-url"),
    "judge_model",
    "judge_key_env",
    "judge_prompts",
    "judge_seconds",
    "allow_missing",
)
@json_option
@quiet_option
def score_command(run: Path, settings: dict[str, Any], as_json: bool) -> None:
    """Score the answers of RUN, strict and official side by side. Replies of a judge are stored, and not asked again.

    \b
    Example:
      foveate video score runs/video-evaluate-msvd --judge-url http://127.0.0.1:8000/v1 --judge-model qwen
    """
    from foveate.core.recipes import validate
    from foveate.report.render import render_and_tell
    from foveate.video.score_table import JudgeSettings
    from foveate.video.score_table import score as score_run

    checked = validate(JudgeSettings, settings, where="foveate video score")
    result = score_run(run, checked, command=["foveate", *sys.argv[1:]])
    report, lines = render_and_tell(run)
    finish(result.to_json(), lines, {"run": run, "report": report}, as_json=as_json)
