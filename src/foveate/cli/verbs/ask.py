"""`foveate ask`: ask an image a question."""

from __future__ import annotations

import contextlib
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.exchanges import describe_choice, find_nearest_requests, make_exchange, make_result, write_page
from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import (
    Call,
    check_opening,
    common,
    opening_options,
    print_stream,
    run_option,
    unit_of_boxes_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveate.multimodal.answers import Answer
    from foveate.multimodal.choose import Choice
    from foveate.multimodal.prepare import Question
    from foveate.multimodal.results import Exchange
    from foveate.multimodal.settings import Unit
    from foveate.records.shapes import Shape

_REGIONS = ("box", "point", "stroke", "mask")


class RegionsCommand(FieldsCommand):
    """Notes the order of options for regions: click gathers the values of each option by themselves."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; `ctx.meta` gets the regions' options in their order."""
        # A copy: click's parser empties the list that it is given.
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta["foveate.regions"] = [parameter.name for parameter in order if parameter.name in _REGIONS]
        return super().parse_args(ctx, args)


@click.command("ask", cls=RegionsCommand, short_help="Ask an image a question.")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.argument("question")
@fields("foveate.multimodal.settings:AskSettings", "model", "adapter", "max_tokens", "unit", "region_prompt")
@opening_options
@click.option("--box", multiple=True, metavar="X1,Y1,X2,Y2", help="Region of the question: a box. Repeatable.")
@click.option("--point", multiple=True, metavar="X,Y", help="Region of the question: a point. Repeatable.")
@click.option(
    "--stroke",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Region of the question: a JSON file with a list of [x, y]. Repeatable.",
)
@click.option(
    "--mask",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Region of the question: an image file of the image's size, black outside of the region. Repeatable.",
)
@unit_of_boxes_option
@click.option("--option", "options", multiple=True, help="Answer to choose from by its likelihood. At least two.")
@click.option("--ground", is_flag=True, help="Ask for the boxes of all things that the answer mentions.")
@click.option("--chat", is_flag=True, help="Keep asking: each line of the input is the next question.")
@click.option(
    "--image-out",
    type=click.Path(path_type=Path),
    help="File for the image with the answer's boxes; of several images FILE-1, FILE-2 and so on.",
)
@click.option("--coco-out", type=click.Path(path_type=Path), help="File for the answer's boxes and phrases as COCO.")
@run_option("none", "Folder for a page with images, answers and boxes")
@common(seed=False)
def command(
    call: Call,
    images: tuple[Path, ...],
    question: str,
    settings: dict[str, Any],
    unit_of_boxes: str | None,
    opening: dict[str, Any],
    options: tuple[str, ...],
    ground: bool,
    chat: bool,
    image_out: Path | None,
    coco_out: Path | None,
    **regions: tuple[Any, ...],
) -> None:
    """Answer QUESTION about IMAGES; boxes in the answer are in pixels of the image.

    <1>, <2> in the question are the regions of --box, --point, --stroke and --mask in their order. They lie in the last
    image, unless <image> in the question says where the images stand. With several images, "the first image" is the
    first file.

    \b
    Example:
      foveate ask holiday.jpg "Where is the red apple?" --image-out found.png --out runs/apple
      foveate ask holiday.jpg "What is <1> doing beside <2>?" --box 120,40,300,310 --point 420,200
      foveate ask holiday.jpg "Is there a dog?" --option yes --option no
    """
    from foveate.core.runs import check_run_path
    from foveate.multimodal.choose import check_options
    from foveate.multimodal.opening import open_mllm
    from foveate.multimodal.pointing import drop_crops, prompt_regions
    from foveate.multimodal.questions import ask_turns
    from foveate.multimodal.settings import AskSettings

    checked, opened_as = call.check(AskSettings, settings), check_opening(opening, device=call.device)
    given = {"--json": call.as_json, "--image-out": image_out, "--coco-out": coco_out, "--option": options}
    _refuse_useless(given | {"--ground": ground, "--max-tokens": "max_tokens" in settings}, chat=chat)
    if "unit" in settings and not any(regions[name] for name in ("box", "point", "stroke")):
        raise click.UsageError("--unit has no effect without --box, --point or --stroke")
    if "region_prompt" in settings and not any(regions.values()):
        raise click.UsageError("--region-prompt has no effect without --box, --point, --stroke or --mask")
    check_run_path(call.run)
    _check_inputs(images)
    shapes = _read_regions(click.get_current_context().meta["foveate.regions"], regions)
    # Before a model is opened, which takes seconds.
    ask_turns(question, shapes, images=len(images))
    if options:
        check_options(options)
    _check_outputs(images, image_out, coco_out)
    shapes = _convert(shapes, checked.unit, question, images)
    start = time.perf_counter()
    name = checked.model if "model" in settings or checked.adapter is None else checked.adapter
    adapter = checked.adapter if name != checked.adapter else None
    model = open_mllm(name, device=call.device, adapter=adapter, unit_of_boxes=unit_of_boxes, opening=opened_as)
    loaded = time.perf_counter()
    asked = prompt_regions(model, images, question, shapes, checked.region_prompt)
    find_nearest = partial(find_nearest_requests, model, name=name, silent=call.as_json)
    if chat:
        exchanges = _chat(
            model.chat(asked.images), question, shapes, checked.max_tokens, asked=asked,
            ground=ground, num_images=len(images), find_nearest=find_nearest,
        )  # fmt: skip
        if call.run is not None:
            result = make_result(model, name, loaded - start, exchanges)
            call.finish({}, [], write_page(call.run, images, result))
        return
    choice: Choice | None = None
    if options:
        answer, choice = _choose(model, asked, question, options, num_images=len(images))
    elif ground:
        # Boxes are added behind the text, which thus cannot be printed as it comes.
        answer = model.ask(asked.images, asked.text, regions=asked.regions, ground=True, max_tokens=checked.max_tokens)
        if not call.as_json:
            click.echo(answer.text)
    else:
        pieces = model.stream(asked.images, asked.text, regions=asked.regions, max_tokens=checked.max_tokens)
        answer = print_stream(pieces, silent=call.as_json)
    answer = drop_crops(answer, len(images))
    exchange = make_exchange(question, shapes, answer, time.perf_counter() - loaded, num_images=len(images))
    exchange = exchange.model_copy(
        update={
            "options": list(options),
            **(_describe_scores(choice) if choice is not None else {}),
            "nearest_requests": find_nearest(question, exchange.read_as, source=exchange.source),
        }
    )
    result = make_result(model, name, loaded - start, [exchange])
    paths = _write_images(image_out, images, answer) if image_out else {}
    if coco_out:
        paths["coco"] = _write_coco(coco_out, images, question, answer)
    if call.run is not None:
        paths |= write_page(call.run, images, result)
    printed = exchange.to_json() | result.model_dump(include={"seconds_to_open", "model", "description"})
    if choice is None:
        lines = _describe_boxes(answer, images, ground=ground)
    else:
        lines = [choice.refusal] if choice.refusal else describe_choice(choice, options)
    call.finish(printed, lines, paths)


def _refuse_useless(given: dict[str, Any], *, chat: bool) -> None:
    """Raise UsageError if an option was passed that has no effect with another one."""
    if chat:
        for name in ("--json", "--image-out", "--coco-out", "--option"):
            if given[name]:
                raise click.UsageError(f"{name} has no effect with --chat; --out writes a page of the conversation")
    if given["--option"]:
        for name in ("--ground", "--image-out", "--coco-out"):
            if given[name]:
                raise click.UsageError(f"{name} has no effect with --option; the options have no boxes")
        if given["--max-tokens"]:
            raise click.UsageError("--max-tokens has no effect with --option; the options are scored whole")


def _check_inputs(images: tuple[Path, ...]) -> None:
    """Raise UserError if no image was passed, or one is missing."""
    from foveate.core.errors import UserError

    if not images:
        raise UserError('IMAGE: none was passed; write foveate ask IMAGE "QUESTION"')
    for path in images:
        if not path.is_file():
            raise UserError(f"{path}: no such file")


def _choose(
    model: Any, asked: Question, question: str, options: tuple[str, ...], *, num_images: int
) -> tuple[Answer, Choice]:
    """Return the likeliest option as the answer, or why there is none, and how it was chosen."""
    from foveate.multimodal.answers import Answer

    choice = model.decide(asked.images, asked.text, options, regions=asked.regions)
    # Models of transformers are asked as the question is worded, and all models for a letter.
    loaded = getattr(model, "loaded", None)
    is_read = loaded is not None and choice.scored_by == "texts"
    # The answer that is chosen is none of `ask`, which would say how the question was read.
    read_as = loaded.read_question(question, num_images=num_images) if is_read else question
    text = choice.refusal or options[choice.index]
    return Answer(text, source=choice.source, read_as=read_as if read_as != question else ""), choice


def _describe_scores(choice: Choice) -> dict[str, Any]:
    """Return the fields of an exchange that say how an option was chosen; where nothing knows, all are alike."""
    probabilities = [] if choice.refusal else list(choice.probabilities)
    return {"probabilities": probabilities, "mass": choice.mass, "scored_by": choice.scored_by}


def _describe_boxes(answer: Answer, images: tuple[Path, ...], *, ground: bool) -> list[str]:
    """Return a line for what was not found, each box whose image the text does not tell, what lacks box or phrase."""
    from foveate.multimodal.answers import CHARACTER_HEAD

    lines = [f"not found: its best match scores {score:.2f}" for score in answer.rejected]
    # Boxes of words that were read are in no text.
    if len(images) == 1 and not ground and answer.source != CHARACTER_HEAD:
        return lines
    for box, image, phrase in zip(answer.boxes, answer.images, answer.phrases, strict=True):
        corners = " ".join(f"{edge:.0f}" for edge in (box.x1, box.y1, box.x2, box.y2))
        where = f"  in image {image + 1}, {images[image]}" if len(images) > 1 else ""
        lines.append(f"box {corners}  {phrase or '(no phrase)'}{where}")
    return lines + [f"no box: {phrase}" for phrase in answer.unboxed]


def _read_regions(order: Sequence[str], values: dict[str, tuple[Any, ...]]) -> list[Shape]:
    """Read the regions in the order of their options, in the unit that they were passed in."""
    from foveate.records.region_prompts import parse_box, parse_point, read_mask, read_stroke

    # Each option's values are in their order, so that the next one of it is meant.
    queues = {name: iter(values[name]) for name in _REGIONS}
    shapes: list[Shape] = []
    for name in order:
        value = next(queues[name])
        if name in ("box", "point"):
            parse = parse_box if name == "box" else parse_point
            shapes.append(parse(value, name=f"--{name}"))
        else:
            shapes.append(read_stroke(value) if name == "stroke" else read_mask(value))
    return shapes


def _convert(shapes: Sequence[Shape], unit: Unit, question: str, images: tuple[Path, ...]) -> list[Shape]:
    """Convert regions from a unit to pixels of the images that they lie in."""
    if unit == "pixels" or not shapes:
        return list(shapes)
    from foveate.multimodal.questions import ask_turns
    from foveate.records.conversations import Conversation, locate_regions
    from foveate.records.importers.coordinates import CoordinateFrame

    turns = ask_turns(question, shapes, images=len(images))
    conversation = Conversation("question", tuple(map(str, images)), tuple(turns))
    converted = list(shapes)
    for shape, image in zip(turns[0].regions, locate_regions(conversation)[0], strict=True):
        width, height = _read_size(images[image])
        # By identity: the question may name regions in another order, and two equal regions are still two.
        number = next(index for index, other in enumerate(shapes) if other is shape)
        converted[number] = CoordinateFrame(unit, width, height).to_pixels(shape)
    return converted


def _read_size(path: Path) -> tuple[int, int]:
    """Read width and height of an image after its EXIF rotation; raise UserError if it is none."""
    from foveate.core.errors import UserError
    from foveate.records.images import BadImage, read_image_info

    try:
        info, _ = read_image_info(path.read_bytes())
    except BadImage as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from problem
    return info.width, info.height


def _chat(
    chat: Any,
    question: str,
    regions: Sequence[Shape],
    max_tokens: int,
    *,
    asked: Question | None = None,
    ground: bool,
    num_images: int,
    find_nearest: Callable[..., list[str]],
) -> list[Exchange]:
    """Answer the first question, then each line of the input, until it ends or Ctrl-C; return all exchanges."""
    from foveate.core.errors import UserError
    from foveate.multimodal.pointing import drop_crops

    exchanges: list[Exchange] = []

    def ask(text: str, regions: Sequence[Shape]) -> None:
        start = time.perf_counter()
        # The images of the conversation are those of its first question.
        words, shapes = (text, regions) if exchanges or asked is None else (asked.text, asked.regions)
        answer = drop_crops(chat.ask(words, regions=shapes, ground=ground, max_tokens=max_tokens), num_images)
        click.echo(answer.text)
        new_images = 0 if exchanges else num_images
        exchange = make_exchange(text, regions, answer, time.perf_counter() - start, num_images=new_images)
        nearest = find_nearest(text, exchange.read_as, source=exchange.source)
        exchanges.append(exchange.model_copy(update={"nearest_requests": nearest}))

    ask(question, regions)
    # Ctrl-C ends only the conversation, at the prompt or in an answer: what was answered belongs on the page.
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            line = input("> " if sys.stdin.isatty() else "").strip()
            try:
                if line:
                    ask(line, [])
            except UserError as problem:
                # One wrong question ends no conversation.
                click.echo(str(problem), err=True)
    return exchanges


def _find_format(path: Path) -> str:
    """Return Pillow's name of the format of an image file; raise UserError if its suffix is none."""
    from PIL import Image

    from foveate.core.errors import UserError

    format = Image.registered_extensions().get(path.suffix.lower())
    # Some formats are only read, such as PSD.
    if format is None or format not in Image.SAVE:
        raise UserError(f"--image-out: unknown kind of image file '{path.suffix}'; expected .png or .jpg")
    return format


def _name_outputs(path: Path, count: int) -> list[Path]:
    """Return the files of the drawn images."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{number + 1}") for number in range(count)]


def _check_outputs(images: tuple[Path, ...], image_out: Path | None, coco_out: Path | None) -> None:
    """Raise UserError if an output is a folder or no kind of image, or would overwrite another file of the command."""
    drawn: list[Path] = []
    if image_out:
        _find_format(image_out)
        drawn = _name_outputs(image_out, len(images))
        _check_writable("--image-out", drawn, images)
    if coco_out:
        _check_writable("--coco-out", [coco_out], (*images, *drawn))


def _check_writable(option: str, files: Sequence[Path], images: tuple[Path, ...]) -> None:
    """Raise UserError if a file that is written is a folder, or would overwrite an image of question or answer."""
    from foveate.core.errors import UserError

    others = {image.resolve() for image in images}
    for file in files:
        if file.is_dir():
            raise UserError(f"{option}: {file} is a folder; expected a file")
        if file.resolve() in others:
            raise UserError(f"{option}: {file} is an image of the question or of --image-out; expected another file")


def _write_coco(path: Path, images: tuple[Path, ...], question: str, answer: Answer) -> Path:
    """Write the boxes of an answer and their phrases as a COCO file."""
    from foveate.core.files import write_json_atomically
    from foveate.records.exporters.coco import list_coco_boxes

    boxes = list(zip(answer.images, answer.boxes, answer.phrases, strict=True))
    sizes = [(str(image), *_read_size(image)) for image in images]
    write_json_atomically(path, list_coco_boxes(sizes, boxes, unboxed=answer.unboxed, description=question))
    return path


def _write_images(path: Path, images: tuple[Path, ...], answer: Answer) -> dict[str, Path]:
    """Write each image with the boxes that lie in it; return the files."""
    from io import BytesIO

    from foveate.core.files import write_bytes_atomically
    from foveate.multimodal.answers import draw_boxes
    from foveate.records.images import decode

    paths, files = {}, _name_outputs(path, len(images))
    for number, image in enumerate(images):
        boxes = [box for box, at in zip(answer.boxes, answer.images, strict=True) if at == number]
        buffer = BytesIO()
        draw_boxes(decode(image.read_bytes()), boxes).save(buffer, _find_format(path))
        file = files[number]
        write_bytes_atomically(file, buffer.getvalue())
        paths["image" if len(images) == 1 else f"image {number + 1}"] = file
    return paths
