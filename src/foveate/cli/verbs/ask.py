"""`foveate ask`: ask an image a question."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish

if TYPE_CHECKING:
    from foveate.multimodal.ask import Answer
    from foveate.records.boxes import PixelBox


@click.command("ask", cls=FieldsCommand, short_help="Ask an image a question.")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.argument("question")
@fields("foveate.multimodal.ask_settings:AskSettings", "model", "max_tokens")
@click.option("--region", multiple=True, metavar="X1,Y1,X2,Y2", help="Box in pixels that the next <region> stands for.")
@click.option("--chat", is_flag=True, help="Keep asking: each line of the input is the next question.")
@click.option("--image-out", type=click.Path(path_type=Path), help="File for the image with the answer's boxes.")
@common()
def command(
    images: tuple[Path, ...],
    question: str,
    settings: dict[str, Any],
    region: tuple[str, ...],
    chat: bool,
    image_out: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Answer QUESTION about IMAGES; boxes in the answer are in pixels of the image.

    <region> in the question stands for a box of --region. With several images, "the first image" is the first file.

    \b
    Example:
      foveate ask holiday.jpg "Where is the red apple?" --image-out found.png
      foveate ask holiday.jpg "What is <region>?" --region 40,60,180,200
    """
    from foveate.core.errors import UserError
    from foveate.core.recipes import validate
    from foveate.multimodal.ask_settings import AskSettings
    from foveate.multimodal.opening import open_mllm

    checked = validate(AskSettings, settings, where="foveate ask")
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
        _chat(model.chat(images), question, boxes, checked.max_tokens)
        return
    if as_json or image_out:
        answer = model.ask(images, question, regions=boxes, max_tokens=checked.max_tokens)
    else:
        for piece in model.stream(images, question, regions=boxes, max_tokens=checked.max_tokens):
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()
        return
    result = {
        "text": answer.text,
        "boxes": [[box.x1, box.y1, box.x2, box.y2] for box in answer.boxes],
        "box_images": list(answer.images),
        "tokens": answer.tokens,
        "finished": answer.finished,
        "seconds": round(time.perf_counter() - loaded, 3),
        "seconds_to_open": round(loaded - start, 3),
        "model": checked.model,
    }
    paths = {"image": _write_image(image_out, images, answer)} if image_out else {}
    finish(result, [answer.text], paths, as_json=as_json)


def _parse_region(text: str) -> PixelBox:
    from foveate.core.errors import UserError
    from foveate.records.boxes import PixelBox

    try:
        x1, y1, x2, y2 = map(float, text.split(","))
    except ValueError as error:
        raise UserError(f"--region: not four numbers (got '{text}'); expected X1,Y1,X2,Y2 in pixels") from error
    return PixelBox(x1, y1, x2, y2)


def _chat(chat: Any, question: str, boxes: list[PixelBox], max_tokens: int) -> None:
    """Answer the first question, then each line of the input, until it ends."""
    from foveate.core.errors import UserError

    click.echo(chat.ask(question, regions=boxes, max_tokens=max_tokens).text)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            try:
                click.echo(chat.ask(line, max_tokens=max_tokens).text)
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
