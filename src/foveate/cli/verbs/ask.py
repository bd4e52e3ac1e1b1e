"""`foveate ask`: ask an image a question."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, run_option

if TYPE_CHECKING:
    from foveate.multimodal.ask import Answer
    from foveate.multimodal.results import AskResult, Exchange
    from foveate.records.boxes import PixelBox


@click.command("ask", cls=FieldsCommand, short_help="Ask an image a question.")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.argument("question")
@fields("foveate.multimodal.ask_settings:AskSettings", "model", "max_tokens")
@click.option("--region", multiple=True, metavar="X1,Y1,X2,Y2", help="Box in pixels that the next <region> stands for.")
@click.option("--chat", is_flag=True, help="Keep asking: each line of the input is the next question.")
@click.option("--image-out", type=click.Path(path_type=Path), help="File for the image with the answer's boxes.")
@run_option("none", "Folder for a page with images, answers and boxes")
@common()
def command(
    images: tuple[Path, ...],
    question: str,
    settings: dict[str, Any],
    region: tuple[str, ...],
    chat: bool,
    image_out: Path | None,
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Answer QUESTION about IMAGES; boxes in the answer are in pixels of the image.

    <region> in the question stands for a box of --region. With several images, "the first image" is the first file.

    \b
    Example:
      foveate ask holiday.jpg "Where is the red apple?" --image-out found.png --run runs/apple
      foveate ask holiday.jpg "What is <region>?" --region 40,60,180,200
    """
    from foveate.core.errors import UserError
    from foveate.core.recipes import validate
    from foveate.multimodal.ask_settings import AskSettings
    from foveate.multimodal.opening import open_mllm

    checked = validate(AskSettings, settings, where="foveate ask")
    for name, value in (("--json", as_json), ("--image-out", image_out)):
        if chat and value:
            raise click.UsageError(f"{name} has no effect with --chat; --run writes a page of the conversation")
    if not images:
        raise UserError('IMAGE: none was passed; write foveate ask IMAGE "QUESTION"')
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such file")
    boxes = [_parse_region(text) for text in region]
    start = time.perf_counter()
    model = open_mllm(checked.model, device=device)
    loaded = time.perf_counter()
    if chat:
        exchanges = _chat(model.chat(images), question, boxes, checked.max_tokens, num_images=len(images))
        if run is not None:
            result = _ask_result(model, checked.model, loaded - start, exchanges)
            finish({}, [], _write_page(run, images, result), as_json=False)
        return
    if as_json or image_out or run:
        answer = model.ask(images, question, regions=boxes, max_tokens=checked.max_tokens)
    else:
        for piece in model.stream(images, question, regions=boxes, max_tokens=checked.max_tokens):
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()
        return
    exchange = _exchange(question, boxes, answer, time.perf_counter() - loaded, num_images=len(images))
    result = _ask_result(model, checked.model, loaded - start, [exchange])
    paths = {"image": _write_image(image_out, images, answer)} if image_out else {}
    if run is not None:
        paths |= _write_page(run, images, result)
    printed = exchange.to_json() | result.model_dump(include={"seconds_to_open", "model", "description"})
    finish(printed, [answer.text], paths, as_json=as_json)


def _exchange(question: str, regions: list[PixelBox], answer: Answer, seconds: float, *, num_images: int) -> Exchange:
    """Note a question and its answer; `num_images` are new with this question."""
    from foveate.multimodal.ask import ask_turns
    from foveate.multimodal.results import Exchange
    from foveate.records.conversations import Conversation, locate_regions

    names = tuple(map(str, range(num_images)))
    conversation = Conversation("question", names, tuple(ask_turns(question, regions, images=num_images)))
    return Exchange(
        question=question,
        regions=[(box.x1, box.y1, box.x2, box.y2) for box in regions],
        region_images=locate_regions(conversation)[0],
        text=answer.text,
        boxes=[(box.x1, box.y1, box.x2, box.y2) for box in answer.boxes],
        box_images=list(answer.images),
        tokens=answer.tokens,
        finished=answer.finished,
        seconds=round(seconds, 3),
    )


def _ask_result(model: Any, name: str, seconds_to_open: float, exchanges: list[Exchange]) -> AskResult:
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


def _write_page(path: Path, images: tuple[Path, ...], result: AskResult) -> dict[str, Path]:
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


def _parse_region(text: str) -> PixelBox:
    from foveate.core.errors import UserError
    from foveate.records.boxes import PixelBox

    try:
        x1, y1, x2, y2 = map(float, text.split(","))
    except ValueError as error:
        raise UserError(f"--region: not four numbers (got '{text}'); expected X1,Y1,X2,Y2 in pixels") from error
    return PixelBox(x1, y1, x2, y2)


def _chat(chat: Any, question: str, boxes: list[PixelBox], max_tokens: int, *, num_images: int) -> list[Exchange]:
    """Answer the first question, then each line of the input, until it ends; return all exchanges."""
    from foveate.core.errors import UserError

    exchanges: list[Exchange] = []

    def ask(text: str, regions: list[PixelBox]) -> None:
        start = time.perf_counter()
        answer = chat.ask(text, regions=regions, max_tokens=max_tokens)
        click.echo(answer.text)
        new_images = 0 if exchanges else num_images
        exchanges.append(_exchange(text, regions, answer, time.perf_counter() - start, num_images=new_images))

    ask(question, boxes)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return exchanges
        if line:
            try:
                ask(line, [])
            except UserError as problem:
                # One wrong question ends no conversation.
                click.echo(str(problem), err=True)


def _write_image(path: Path, images: tuple[Path, ...], answer: Answer) -> Path:
    """Write the image of the first box, or the first image, with the boxes that lie in it."""
    from io import BytesIO

    from PIL import Image

    from foveate.core.errors import UserError
    from foveate.core.files import write_bytes_atomically
    from foveate.multimodal.draw import draw_boxes
    from foveate.records.images import decode

    number = answer.images[0] if answer.images else 0
    boxes = [box for box, image in zip(answer.boxes, answer.images, strict=True) if image == number]
    format = Image.registered_extensions().get(path.suffix.lower())
    if format is None:
        raise UserError(f"--image-out: unknown kind of image file '{path.suffix}'; expected .png or .jpg")
    buffer = BytesIO()
    draw_boxes(decode(images[number].read_bytes()), boxes).save(buffer, format)
    write_bytes_atomically(path, buffer.getvalue())
    return path
