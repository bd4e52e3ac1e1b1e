"""Questions about images as tensors: images encoded, text tokenized, lengths and regions checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.multimodal.answer_writer import EncodedImage, PendingAnswer
from foveate.multimodal.assemble import SamplePlan
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.frames import CoordinateFrame, move_regions
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.prompts import image_slots
from foveate.multimodal.questions import ask_turns, check_regions
from foveate.multimodal.views import Visual, list_views
from foveate.records.conversations import Conversation, Turn
from foveate.records.geometry import View
from foveate.records.images import BadImage, ImageInput, decode, decode_fraction, encode_input, is_single_image
from foveate.records.region_prompts import GROUNDING_REQUEST
from foveate.records.shapes import Shape
from foveate.vision.canvas import render_input
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.preprocess import DECODE_FACTOR, place_image, render_image
from foveate.vision.tiling import OVERVIEW, ImageSize, TilePlan, plan_tiles

# Views of one pass of the tower: a batch of questions about tiled images has hundreds.
_VIEWS = 32
_QUESTION = "question"


class Question(NamedTuple):
    """Images, a question about them, and the regions of its `<region>` placeholders in pixels."""

    images: Sequence[ImageInput] | ImageInput
    text: str
    regions: Sequence[Shape] = ()


class Dialog(NamedTuple):
    """Images and the turns of a conversation about them, of which the last is a question.

    Attributes:
        images: in the order of the placeholders in the turns. regions: of the last turn, by their numbers.
    """

    images: Sequence[ImageInput]
    turns: Sequence[Turn]
    regions: Sequence[Shape] = ()


def request_boxes(loaded: LoadedModel, text: str, *, ground: bool) -> str:
    """Ask for boxes in words, where the names of an answer are not located afterwards."""
    return f"{text} {GROUNDING_REQUEST}" if ground and not loaded.name_ids else text


def prepare_questions(
    loaded: LoadedModel, questions: Sequence[tuple[Any, ...]], *, ground: bool = False
) -> tuple[Visual, list[PendingAnswer]]:
    """Encode the images of `Question`s, or tuples of the same, and tokenize them; with `ground` they ask for boxes.

    Raises:
        UserError: one of them cannot be asked; see `foveate.multimodal.ask.Mllm.ask`.
    """
    dialogs, readings = [], []
    for question in (Question(*question) for question in questions):
        images = list_images(question.images)
        text = loaded.read_question(question.text, num_images=len(images))
        readings.append(text if text != question.text else "")
        text = request_boxes(loaded, text, ground=ground)
        dialogs.append(Dialog(images, ask_turns(text, question.regions, images=len(images)), question.regions))
    visual, pending = prepare_dialogs(loaded, dialogs)
    for question, reading in zip(pending, readings, strict=True):
        question.read_as = reading
    return visual, pending


def prepare_dialogs(loaded: LoadedModel, dialogs: Sequence[Dialog]) -> tuple[Visual, list[PendingAnswer]]:
    """Encode the images of conversations and tokenize their turns; see `prepare_questions`."""
    # An image that several questions are about is encoded once, unless it is split in some only.
    distinct: dict[tuple[int, bool], int] = {}
    unique: list[tuple[ImageInput, bool]] = []
    keys: list[list[tuple[int, bool]]] = []
    for dialog in dialogs:
        _check_number(loaded.model, dialog.images)
        split = len(dialog.images) <= loaded.model.assembly.max_split_images
        # By identity: arrays and Pillow images have no hash.
        keys.append([(id(image), split) for image in dialog.images])
        for image, key in zip(dialog.images, keys[-1], strict=True):
            if key not in distinct:
                distinct[key] = len(unique)
                unique.append((image, split))
    visual, seen = _encode(loaded.model, unique)
    pending: list[PendingAnswer] = []
    for dialog, of_dialog in zip(dialogs, keys, strict=True):
        images = [seen[distinct[key]] for key in of_dialog]
        pending.append(prepare_turns(loaded, dialog.turns, images, numbered=dialog.regions))
    return visual, pending


def encode_sample(loaded: LoadedModel, images: Sequence[ImageInput]) -> tuple[Visual, list[EncodedImage]]:
    """Encode the images of one sample."""
    _check_number(loaded.model, images)
    split = len(images) <= loaded.model.assembly.max_split_images
    return _encode(loaded.model, [(image, split) for image in images])


def prepare_turns(
    loaded: LoadedModel,
    turns: Sequence[Turn],
    images: Sequence[EncodedImage],
    *,
    numbered: Sequence[Shape],
    read: int = 0,
) -> PendingAnswer:
    """Tokenize a question and check that it fits behind the `read` positions of its images and earlier turns.

    Args:
        numbered: its regions in the order of their numbers.
    """
    model, prompts = loaded.model, loaded.prompts
    views = [view for image in images for view in image.views]
    layout: list[tuple[int, list[int]]] = [(number, []) for number in range(len(views))]
    plans = tuple(image.plan for image in images if image.plan is not None)
    if plans:
        layout = list_views(SamplePlan(plans, model.assembly), prompts.tokenizer.encode)
    frames = [image.frame for image in images]
    conversation = Conversation(_QUESTION, tuple(str(number) for number in range(len(images))), tuple(turns))
    placements = [frame.placement for frame in frames]
    check_regions(conversation, [image.size for image in images], numbered)
    in_text = not prompts.lead_images(turns)
    written = prompts.write_question(
        move_regions(conversation, frames),
        placements,
        images=image_slots(layout, model.connector.num_tokens) if in_text else None,
        goes_on=bool(read),
    )
    vectors = [image.vector_D for image in images if image.vector_D is not None]
    pending = PendingAnswer(views, layout, frames, written, in_text, vectors=vectors)
    check_length(model, pending, read=read)
    return pending


def check_length(model: MultimodalModel, pending: PendingAnswer, *, read: int = 0, more: int = 0) -> None:
    """Raise UserError if a question, and `more` tokens of its answer, do not fit; nothing is ever cut."""
    images = len(pending.views) * model.connector.num_tokens + sum(len(ids) for _, ids in pending.layout)
    # Images within the text are already among its ids.
    before = read or (0 if pending.in_text else images)
    length = before + len(pending.written.tokens.ids) + more
    # A question needs room for a token of its answer; options bring theirs along.
    if length >= model.max_positions + (more > 0):
        raise UserError(
            f"question: too long (got {length} positions, {before} of them images or earlier turns); expected "
            f"fewer than {model.max_positions}"
        )


def list_images(images: Sequence[ImageInput] | ImageInput) -> list[ImageInput]:
    """Return the images of a question, of which one may stand alone."""
    return [cast(ImageInput, images)] if is_single_image(images) else list(cast(Sequence[ImageInput], images))


def _check_number(model: MultimodalModel, images: Sequence[ImageInput]) -> None:
    max_images = model.settings.max_images
    if len(images) > max_images:
        raise UserError(f"images: too many for this model (got {len(images)}); expected at most {max_images}")


@torch.inference_mode()
def _encode(model: MultimodalModel, images: Sequence[tuple[ImageInput, bool]]) -> tuple[Visual, list[EncodedImage]]:
    """Encode images; return their visual tokens, and which are whose."""
    views: list[Tensor] = []
    seen: list[EncodedImage] = []
    for number, (image, split) in enumerate(images):
        try:
            pixels_V3HW, frame, plan = _render(model, image, split=split)
        except BadImage as problem:
            name = image if isinstance(image, str) else getattr(image, "name", f"image {number + 1}")
            raise UserError(f"{name}: cannot be read: {problem}") from problem
        seen.append(EncodedImage(list(range(len(views), len(views) + len(pixels_V3HW))), frame, plan))
        views += list(pixels_V3HW)
    device = model.visual_gain.device
    if not views:
        # A question without images goes the same way, behind no visual tokens.
        width, (rows, columns) = model.width, model.grid
        none = torch.zeros(0, rows * columns, width, device=device)
        return Visual(none, none[:, : model.connector.num_tokens], none), []
    cells = [cell for image in seen for cell in (image.plan.views if image.plan else [OVERVIEW])]
    cell_V2 = torch.tensor(cells, device=device)
    blocks = zip(torch.stack(views).split(_VIEWS), cell_V2.split(_VIEWS), strict=True)
    # Ordered behind the blocks: one may end within an image, whose tokens are brought into order together.
    if isinstance(model.tower, Lite0Encoder):
        # The network's own features, before any trained layer, also say what kind of picture it is.
        features = [(model.tower.frozen_features(part.to(device)), of_part) for part, of_part in blocks]
        vectors_VD = torch.cat([model.tower.image_vectors(part) for part, _ in features])
        seen = [image._replace(vector_D=vectors_VD[image.views[0]]) for image in seen]
        parts = [model.encode_views(part, of_part) for part, of_part in features]
    else:
        parts = [model.encode_views(part.to(device), of_part) for part, of_part in blocks]
    visual = Visual(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    return model.order_views(visual, cell_V2), seen


def _render(
    model: MultimodalModel, image: ImageInput, *, split: bool
) -> tuple[Tensor, CoordinateFrame, TilePlan | None]:
    """Render the views of an image as uint8 [views, 3, height, width]."""
    data, preprocess, assembly = encode_input(image), model.tower.preprocess, model.settings.assembly
    if assembly is None:
        # One view shrinks the image anyway: a JPEG is decoded at a fraction. Tiles read every pixel.
        decoded, size = decode_fraction(data, min_side=DECODE_FACTOR * preprocess.long_side)
        placement = place_image(preprocess, size, View())
        return render_image(preprocess, decoded, placement)[None], CoordinateFrame(placement), None
    decoded = decode(data)
    plan = plan_tiles(ImageSize(decoded.height, decoded.width), assembly.tiling, split=split)
    frame = CoordinateFrame.create(plan, model.settings.frame)
    return render_input(preprocess, decoded, plan), frame, plan
