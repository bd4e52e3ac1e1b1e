"""A question and its answer, as `ask` and `locate` note them and show them on a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveate.multimodal.answers import Answer
    from foveate.multimodal.choose import Choice
    from foveate.multimodal.results import AskResult, Exchange
    from foveate.records.shapes import Shape


def make_exchange(
    question: str, regions: Sequence[Shape], answer: Answer, seconds: float, *, num_images: int
) -> Exchange:
    """Note a question and its answer; `num_images` are new with this question."""
    from foveate.multimodal.questions import ask_turns
    from foveate.multimodal.results import Exchange
    from foveate.records.conversations import Conversation, locate_regions
    from foveate.records.shapes import enclosing_box

    # Numbers stand in for file names: `locate_regions` only returns which image each region lies in.
    names = tuple(map(str, range(num_images)))
    turns = ask_turns(question, regions, images=num_images)
    boxes = [enclosing_box(shape) for shape in turns[0].regions]
    return Exchange(
        question=question,
        regions=[(box.x1, box.y1, box.x2, box.y2) for box in boxes if box is not None],
        region_images=locate_regions(Conversation("question", names, tuple(turns)))[0],
        text=answer.text,
        boxes=[(box.x1, box.y1, box.x2, box.y2) for box in answer.boxes],
        box_images=list(answer.images),
        phrases=list(answer.phrases),
        unboxed=list(answer.unboxed),
        box_scores=[round(score, 4) for score in answer.box_scores],
        rejected=[round(score, 4) for score in answer.rejected],
        source=answer.source,
        read_as=answer.read_as,
        points=[(point.x, point.y) for point in answer.points],
        tokens=answer.tokens,
        finished=answer.finished,
        seconds=round(seconds, 3),
    )


def describe_choice(choice: Choice, options: Sequence[str]) -> list[str]:
    """Return a line for each option, the likeliest first, and one that says how they were scored."""
    ranked = sorted(zip(choice.probabilities, options, strict=True), reverse=True)
    lines = [f"{share:.3f}  {option}" for share, option in ranked]
    if choice.mass is None:
        return lines + ["letters cannot be scored, so texts of options were"] * (choice.scored_by == "texts")
    by_texts = "; too little to choose by, so texts of options were scored" if choice.scored_by == "texts" else ""
    return [*lines, f"letters have {choice.mass:.2g} of all{by_texts}"]


def find_nearest_requests(
    model: Any,
    question: str,
    read_as: str = "",
    *,
    name: str,
    silent: bool = False,
    source: str = "language model",
) -> list[str]:
    """Return the requests nearest to a question that the model was not trained for, and tell the user on stderr.

    Args:
        source: of the answer. Where the model did not answer, the picture is to blame, or nothing.
        read_as: the question as it was asked instead, which is told then.
    """
    if source == "recognition":
        if not silent:
            click.echo(
                f"note: this picture is unlike the generated scenes that {name} was trained on, so what recognizes "
                "1,000 kinds of things was asked instead. For any question about photographs name an image-text model: "
                "--model OWNER/NAME",
                err=True,
            )
        return []
    if source == "character head":
        return []
    if read_as:
        if not silent:
            click.echo(f'note: read as "{read_as}"', err=True)
        return []
    # Models of transformers have no `loaded`: which requests they were trained on is unknown.
    loaded = getattr(model, "loaded", None)
    nearest = loaded.requests.find_nearest(question) if loaded is not None and loaded.requests else []
    if nearest and not silent:
        quoted = " or ".join(f'"{form}"' for form in nearest)
        click.echo(f"note: {name} was not trained on such a question and may miss it; nearest: {quoted}", err=True)
    return nearest


def make_result(model: Any, name: str, seconds_to_open: float, exchanges: list[Exchange]) -> AskResult:
    from foveate.multimodal.results import AskResult

    return AskResult(
        title=exchanges[0].question,
        command=["foveate", *sys.argv[1:]],
        model=name,
        description=model.describe(),
        seconds_to_open=round(seconds_to_open, 3),
        images=[],
        exchanges=exchanges,
    )


def write_page(path: Path, images: tuple[Path, ...], result: AskResult) -> dict[str, Path]:
    """Write images, result and page into a run folder."""
    from foveate.core.runs import RunFolder
    from foveate.multimodal.results import AskedImage
    from foveate.records.images import decode, save_thumbnail
    from foveate.report import render

    folder = RunFolder.create(path)
    (folder.path / "images").mkdir(exist_ok=True)
    thumbnails = []
    for number, file in enumerate(images):
        image = decode(file.read_bytes())
        size, name = (image.height, image.width), f"images/{number:03d}.webp"
        save_thumbnail(image, folder.path / name, longest_side=1024)
        thumbnails.append(AskedImage(image=name, name=file.name, size=size))
    folder.write_result(result.model_copy(update={"images": thumbnails}).to_json())
    return {"run": folder.path, "report": render(folder.path)}
