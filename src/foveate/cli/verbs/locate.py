"""`foveate locate`: where is this phrase in this image?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import (
    NOT_FOUND,
    Call,
    check_opening,
    common,
    model_first,
    opening_options,
    run_option,
    unit_of_boxes_option,
)


@click.command("locate", cls=FieldsCommand, short_help="Find a phrase in an image.")
@model_first("image", "phrase")
@fields("foveate.search.settings:LocateSettings", "rule")
@unit_of_boxes_option
@opening_options
@run_option("runs/locate", "Folder for the page")
@common()
def command(
    call: Call,
    model: str,
    image: str,
    phrase: str,
    settings: dict[str, Any],
    unit_of_boxes: str | None,
    opening: dict[str, Any],
) -> None:
    """Print the box of PHRASE in IMAGE, in pixels and as fractions, by every rule, and write a page with it.

    --model: small (default), which ships with Foveate and compares PHRASE with a detector's boxes, or as for `index`.
    `head` is the box of the grounding head; `candidates` the best of several hundred boxes that the Prompter embeds
    after one pass over the image. A center box and a random box are baselines: a box that does not beat them is no
    answer. A multimodal model, such as mini, is asked where the phrase is, and has no rules: its answer without a box
    means not found. Exit status 3 where PHRASE is not found: the boxes of rules are printed all the same.

    \b
    Example:
      foveate locate holiday.jpg "a red boat"
      foveate locate holiday.jpg "a red boat" --model runs/study-tour/cloc-seed0/model
      foveate locate holiday.jpg "a red boat" --model mini
    """
    from foveate.multimodal.opening import is_multimodal

    if is_multimodal(model):
        if settings:
            raise click.UsageError(f"--rule has no effect: {model} is a multimodal model, which is asked for the box")
        _ask_for_box(call, model, Path(image), phrase, unit_of_boxes, opening)
        return
    if unit_of_boxes is not None:
        raise click.UsageError(f"--unit-of-boxes has no effect: {model} is no multimodal model")
    if opening:
        raise click.UsageError(f"--{next(iter(opening)).replace('_', '-')} has no effect: {model} is an encoder")
    from foveate.core.runs import RunFolder
    from foveate.records.images import save_thumbnail
    from foveate.report.render import render_and_tell
    from foveate.search.locate import locate, read_image
    from foveate.search.results import LocateResult
    from foveate.vision.localizer.model import LEARN_PLACES
    from foveate.vision.localizer.sources import open_localizer

    data = read_image(Path(image))
    network = open_localizer(model, device=call.device)
    located = locate(network, data, phrase, seed=call.seed or 0, **settings)
    # Created only now: a mistake in the phrase or the image leaves no folder.
    folder = RunFolder.create(call.run or Path("runs/locate"))
    save_thumbnail(data, folder.path / "images" / "image.webp")
    result = LocateResult.model_validate(
        {
            "command": call.command,
            "model": model,
            "file": image,
            "image": "images/image.webp",
            "phrase": phrase,
            "default": located.rule,
            "boxes": located.boxes,
            "scores": located.scores,
            "width": located.width,
            "height": located.height,
            "localizes": network.localizes,
            "has_match": located.has_match,
            "reason": located.reason,
            "floor": located.floor,
            "unknown_words": list(located.unknown_words),
        }
    ).to_json()
    folder.write_result(result)
    report, lines = render_and_tell(folder.path)
    if not network.localizes:
        lines.append(f"this model never learned places: boxes are compared by pooled tokens, a guess; {LEARN_PLACES}")
    call.finish(result, lines, {"report": report})
    if not located.has_match or located.scores[located.rule] is None:
        sys.exit(NOT_FOUND)


def _ask_for_box(
    call: Call, model: str, image: Path, phrase: str, unit_of_boxes: str | None, opening: dict[str, Any]
) -> None:
    """Ask a multimodal model where a phrase is, and write the page of the question."""
    import time

    from foveate.cli.exchanges import make_exchange, make_result, write_page
    from foveate.core.errors import UserError
    from foveate.core.runs import check_run_path
    from foveate.multimodal.opening import open_mllm
    from foveate.multimodal.questions import ask_where
    from foveate.records.images import decode

    question = ask_where(phrase)
    # Checked first, because opening the model takes seconds.
    if not image.is_file():
        raise UserError(f"{image}: no such file")
    check_run_path(call.run)
    start = time.perf_counter()
    opened_as = check_opening(opening, device=call.device)
    opened = open_mllm(model, device=call.device, unit_of_boxes=unit_of_boxes, opening=opened_as)
    loaded = time.perf_counter()
    answer = opened.locate(image, phrase)
    exchange = make_exchange(question, (), answer, time.perf_counter() - loaded, num_images=1)
    verdict = {"has_match": bool(answer.boxes), "reason": answer.reason}
    result = make_result(opened, model, loaded - start, [exchange]).model_copy(update=verdict)
    # Width and height twice, one for each of x1, y1, x2, y2.
    sides = decode(image.read_bytes()).size * 2
    lines = []
    for box in answer.boxes:
        corners = (box.x1, box.y1, box.x2, box.y2)
        edges = zip(("x1", "y1", "x2", "y2"), corners, sides, strict=True)
        fractions = "  ".join(f"{edge} {value / side:.3f}" for edge, value, side in edges)
        lines.append(f"{fractions}  px {' '.join(f'{value:.0f}' for value in corners)}")
    lines = lines or [f"not found: {answer.reason}"]
    paths = write_page(call.run or Path("runs/locate"), (image,), result)
    printed = exchange.to_json() | result.model_dump(include={"seconds_to_open", "model", "description", *verdict})
    call.finish(printed, lines, paths)
    if not answer.boxes:
        sys.exit(NOT_FOUND)
