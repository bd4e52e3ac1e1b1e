"""Conversations about images: questions, answers and the regions that they point at, as an annotation table.

A conversation belongs to one image, to several in order, or to none. Its text holds `<image>` where an image stands and
`<region>` where a region stands; regions are in pixels of the original image. How a model reads or writes a region is
decided when a training sample is assembled, never here.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError, choose
from foveate.records import layout, tables
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.quarantine import Quarantine
from foveate.records.record import GROUPS
from foveate.records.rows import clean_text
from foveate.records.shapes import Mask, Point, Shape, Stroke, decode_mask
from foveate.records.tables import Provenance

KIND = "conversations"
IMAGE = "<image>"
REGION = "<region>"

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
_ROWS_PER_PART = 20_000


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Args:
        role: "system" (only first), "user" or "assistant".
        text: holds `<image>` once per image (user turns only) and `<region>` once per region, in order.
        regions: in pixels of the image that stands last before each; see `locate_regions`.

    Example:
        >>> Turn("user", "<image>\\nWhat is <region>?", (PixelBox(0, 0, 9, 9),)).role
        'user'
    """

    role: str
    text: str
    regions: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation about images of a collection.

    Args:
        id: name within its source.
        images: keys of the images, in the order of their placeholders.
        group: of the training mixture; one of `GROUPS`.
        source: data set, person or generator.
        answers: all accepted answers of the last question, for metrics; () if only the last turn is.
        choices: the short answers that the last question leaves; () if it is open.

    Example:
        >>> turns = (Turn("user", "<image>\\nWhat is <region>?", (PixelBox(0, 0, 9, 9),)), Turn("assistant", "A boat."))
        >>> Conversation("1", ("harbor/1",), turns).group
        'general'
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    group: str = "general"
    source: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


class ConversationProblem(NamedTuple):
    """Why a conversation cannot be used: a short reason that is counted, and one sentence."""

    reason: str
    detail: str


def find_problem(
    conversation: Conversation, sizes: Mapping[str, tuple[int, int]] | None = None
) -> ConversationProblem | None:
    """Return the first problem of a conversation, or None.

    Args:
        sizes: width and height of the images by key; without it, images and regions are not compared with them.
    """
    if conversation.group not in GROUPS:
        return ConversationProblem(
            "unknown group", f"group {conversation.group!r}; expected one of {', '.join(GROUPS)}"
        )
    try:
        for text in (conversation.id, conversation.source, *conversation.answers, *conversation.choices):
            clean_text(text)
        # Check texts as they will be stored: one that consists of control characters becomes empty.
        cleaned = [replace(turn, text=clean_text(turn.text)) for turn in conversation.turns]
    except UserError as error:
        return ConversationProblem("text not storable", str(error))
    return find_turn_problem(cleaned) or _find_image_problem(conversation, sizes)


def check_conversation(conversation: Conversation, sizes: Mapping[str, tuple[int, int]] | None = None) -> Conversation:
    """Return the conversation; raise UserError with its first problem."""
    finding = find_problem(conversation, sizes)
    if finding is not None:
        raise UserError(f"conversation {conversation.id!r}: {finding.reason}: {finding.detail}")
    return conversation


def find_turn_problem(turns: Sequence[Turn], *, answered: bool = True) -> ConversationProblem | None:
    """Return the first problem of the roles and texts of turns, or None.

    Args:
        answered: the last turn must be an answer; otherwise it must be a question.
    """
    if not turns:
        return ConversationProblem("no turns", "expected a user turn and an assistant turn")
    # From here on questions have even numbers and answers odd ones.
    dialog = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(dialog):
        if turn.role not in ROLES:
            return ConversationProblem("unknown role", f"role {turn.role!r}; expected one of {', '.join(ROLES)}")
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            if number == 0:
                return ConversationProblem("no question first", f"it begins with the {turn.role}; expected the user")
            detail = f"turn {number + 1} is of the {turn.role}; expected the {expected}"
            return ConversationProblem("roles do not alternate", detail)
        if not turn.text:
            return ConversationProblem(
                "empty answer" if number % 2 else "empty question", f"turn {number + 1} has no text"
            )
    if not answered:
        return (
            None
            if len(dialog) % 2
            else ConversationProblem("no question", "the last turn must be a question of the user")
        )
    if len(dialog) % 2 or not dialog:
        return ConversationProblem("no answer", "the last turn is a question; nothing can be learned from it")
    return None


def _find_image_problem(
    conversation: Conversation, sizes: Mapping[str, tuple[int, int]] | None
) -> ConversationProblem | None:
    num_placeholders = 0
    for turn in conversation.turns:
        placeholders = turn.text.count(IMAGE)
        if placeholders and turn.role != "user":
            detail = f"{IMAGE} in a turn of the {turn.role}; expected user turns"
            return ConversationProblem("placeholder outside a question", detail)
        num_placeholders += placeholders
        if turn.text.count(REGION) != len(turn.regions):
            detail = f"{turn.text.count(REGION)} {REGION} in a text with {len(turn.regions)} regions"
            missing = turn.text.count(REGION) < len(turn.regions)
            return ConversationProblem(
                "region without placeholder" if missing else "placeholder without region", detail
            )
    if num_placeholders != len(conversation.images):
        missing = num_placeholders < len(conversation.images)
        detail = f"{num_placeholders} {IMAGE} in the text and {len(conversation.images)} images"
        return ConversationProblem("image without placeholder" if missing else "placeholder without image", detail)
    if any(turn.regions for turn in conversation.turns) and not conversation.images:
        return ConversationProblem("region without image", "it has regions but no image")
    if sizes is None:
        return None
    for key in conversation.images:
        if key not in sizes:
            return ConversationProblem("unknown image", f"the collection has no image {key!r}")
    # By now every region has its placeholder, and every placeholder of an image its image.
    for turn, indices in zip(conversation.turns, locate_regions(conversation), strict=True):
        for shape, index in zip(turn.regions, indices, strict=True):
            width, height = sizes[conversation.images[index]]
            problem = find_shape_problem(shape, width=width, height=height)
            if problem:
                return ConversationProblem(problem, f"{str(shape)[:100]} in an image of {width} x {height} pixels")
    return None


def locate_regions(conversation: Conversation) -> list[list[int]]:
    """Return the number of the image that each region of each turn lies in: the last one that stands before it.

    A region before the first image lies in that.
    """
    image = 0
    located = []
    for turn in conversation.turns:
        indices = []
        parts = turn.text.split(REGION)
        for part in parts[:-1]:
            image += part.count(IMAGE)
            indices.append(max(0, image - 1))
        image += parts[-1].count(IMAGE)
        located.append(indices)
    return located


def find_shape_problem(shape: Shape, *, width: int, height: int) -> str | None:
    """Return what is wrong with a shape in an image of that size, as a short reason, or None."""
    if isinstance(shape, Mask):
        # Compared before decoding, which allocates memory for the size that the mask states.
        if tuple(shape.size) != (height, width):
            return "mask of another size"
        try:
            mask = decode_mask({"size": list(shape.size), "counts": list(shape.counts)})
        except (UserError, ValueError, OverflowError):
            return "damaged mask"
        return None if mask.any() else "region empty"
    if isinstance(shape, PixelBox):
        if not all(map(math.isfinite, (shape.x1, shape.y1, shape.x2, shape.y2))):
            return "region not finite"
        if shape.x2 < shape.x1 or shape.y2 < shape.y1:
            return "region inverted"
        if shape.x2 == shape.x1 or shape.y2 == shape.y1:
            return "region empty"
        # Up to the width and height inclusive: coordinates are edges of pixels, not their centers (see `PixelBox`).
        inside = shape.x1 >= 0 and shape.y1 >= 0 and shape.x2 <= width and shape.y2 <= height
        return None if inside else "region outside the image"
    points = (shape,) if isinstance(shape, Point) else shape.points
    if not points:
        return "region empty"
    if not all(math.isfinite(point.x) and math.isfinite(point.y) for point in points):
        return "region not finite"
    inside = all(0 <= point.x <= width and 0 <= point.y <= height for point in points)
    return None if inside else "region outside the image"


def encode_shape(shape: Shape) -> dict[str, object]:
    """Return a shape as a JSON object with one field: `point`, `box`, `stroke` or `mask`."""
    if isinstance(shape, Point):
        return {"point": [shape.x, shape.y]}
    if isinstance(shape, PixelBox):
        return {"box": [shape.x1, shape.y1, shape.x2, shape.y2]}
    if isinstance(shape, Stroke):
        return {"stroke": [[point.x, point.y] for point in shape.points]}
    return {"mask": {"size": list(shape.size), "counts": list(shape.counts)}}


def decode_shape(stored: Mapping[str, object]) -> Shape:
    """Return the shape of the result of `encode_shape`; raise UserError if it is none."""
    try:
        ((name, value),) = stored.items()
        return _DECODERS[name](value)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"region {str(stored)[:80]}: expected one field of {', '.join(_DECODERS)}, of numbers"
        ) from error


def _check_numbers(values: Iterable[object], kind: type = Real) -> tuple[Any, ...]:
    """Return numbers as they are; raise TypeError or OverflowError for what is none, or too large for a float."""
    entries = tuple(values)
    for number in entries:
        # A bool is an int in Python, but `true` in a JSON list is no coordinate.
        if isinstance(number, bool) or not isinstance(number, kind):
            raise TypeError("not a number")
        # An integer of a JSON file may be beyond the range of floats, where arithmetic would fail later.
        float(number)
    return entries


def _decode_mask(value: Mapping[str, Any]) -> Mask:
    height, width = _check_numbers(value["size"], Integral)
    return Mask((height, width), _check_numbers(value["counts"], Integral))


_DECODERS: dict[str, Callable[[Any], Shape]] = {
    "point": lambda value: Point(*_check_numbers(value)),
    "box": lambda value: PixelBox(*_check_numbers(value)),
    "stroke": lambda value: Stroke(tuple(Point(*_check_numbers(point)) for point in value)),
    "mask": _decode_mask,
}


def conversation_row(conversation: Conversation) -> dict[str, object]:
    """Return the row of a conversation, without row id, and with its source as the only provenance.

    Raises:
        UserError: a text cannot be stored; see `find_problem`.
    """
    turns = [
        {
            "role": turn.role,
            "text": clean_text(turn.text),
            "regions": json.dumps([encode_shape(shape) for shape in turn.regions]) if turn.regions else "",
        }
        for turn in conversation.turns
    ]
    choices = {"choices": [clean_text(choice) for choice in conversation.choices]} if conversation.choices else {}
    return {
        # Every annotation table has one key per row; the first image goes there, and `images` names all of them.
        "key": conversation.images[0] if conversation.images else "",
        "id": conversation.id,
        "images": list(conversation.images),
        "turns": turns,
        "group": conversation.group,
        "answers": [clean_text(answer) for answer in conversation.answers],
        "source": conversation.source,
        **choices,
    }


def read_conversation(row: Mapping[str, object]) -> Conversation:
    """Return the conversation of a row; raise UserError if a region in it is damaged."""
    turns = tuple(
        Turn(turn["role"], turn["text"], _read_shapes(turn["regions"]))  # type: ignore[index]
        for turn in row["turns"] or ()  # type: ignore[union-attr]
    )
    # Parts written by earlier versions lack columns, which are read as null.
    images, answers, choices = (tuple(row.get(name) or ()) for name in ("images", "answers", "choices"))  # type: ignore[call-overload]
    return Conversation(str(row["id"]), images, turns, str(row["group"]), str(row["source"]), answers, choices)


def _read_shapes(text: str | None) -> tuple[Shape, ...]:
    if not text:
        return ()
    try:
        stored = json.loads(text)
    # The JSON decoder raises RecursionError for deeply nested brackets, which a damaged file may hold.
    except (ValueError, RecursionError) as error:
        raise UserError(f"regions {text[:80]!r} of a conversation are not JSON") from error
    if not isinstance(stored, list):
        raise UserError(f"regions {text[:80]!r} of a conversation: not a list; expected one of shapes")
    return tuple(map(decode_shape, stored))


class Conversations(Sequence[Conversation]):
    """The conversations of a collection, read one by one from its table.

    Conversations with a removed image are left out.

    Args:
        collection: an opened collection.
        split: only conversations all of whose images are in this split; "train" also has those without images.
        groups: only these groups of the mixture; all by default.

    Raises:
        UserError: a split or group does not exist.

    Example:
        >>> conversations = Conversations(Collection.open(asked_folder), split="train", groups=["general"])
        >>> conversations[0].turns[0].text
        '<image>\\nWhat is <region>?'
    """

    def __init__(
        self, collection: Collection, *, split: str | None = None, groups: Iterable[str] | None = None
    ) -> None:
        self._table = collection.table(KIND)
        self.groups = np.array(self._table["group"].to_pylist(), dtype=object)
        mask_N = np.ones(len(self._table), bool)
        if groups is not None:
            names = [choose(group, GROUPS, "conversation group") for group in groups]
            mask_N &= np.isin(self.groups.astype(str), names)
        if split is not None:
            collection.rows(split)  # refuses an unknown split
            keys = [collection.keys[row] for row in collection.rows(split)]
            present, total = tables.count_images(self._table, among=pa.array(keys, pa.string()))
            # A conversation whose images lie in two splits is in neither: one of them was trained on.
            mask_N &= (present == total) & ((total > 0) | (split == "train"))
        # The table stays in Arrow; a row becomes Python objects only when it is read.
        self.rows = np.flatnonzero(mask_N)
        self.groups = self.groups[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]
        return read_conversation(self._table.slice(int(self.rows[index]), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))


@dataclass(slots=True)
class ConversationSummary:
    """Result of `add_conversations`: new rows, rows that were there already, and quarantined ones by reason."""

    added: int = 0
    existing: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)


def add_conversations(
    path: str | Path,
    conversations: Iterable[Conversation | tuple[Conversation, ConversationProblem]],
    *,
    created: str | None = None,
    recipe_hash: str = "",
) -> ConversationSummary:
    """Add conversations to a collection in resumable parts; quarantine the unusable with their reasons.

    Args:
        path: the collection; it has the images already.
        conversations: consumed lazily; with a finding, one that the caller refuses.
        created: time stamp (ISO 8601), by default now.
        recipe_hash: of the settings that the conversations were written with.

    Raises:
        UserError: the folder is no collection, or another process writes it.

    Example:
        >>> question = Turn("user", "<image>\\nWhat is <region>?", (PixelBox(4, 4, 20, 30),))
        >>> conversation = Conversation("1", ("test-00",), (question, Turn("assistant", "A disc.")))
        >>> add_conversations(collection_copy, [conversation]).added
        1
    """
    path = layout.check_collection(Path(path))
    created = created or tables.now()
    summary = ConversationSummary()
    # Read before taking the lock: adding conversations changes none of this.
    with Collection.open(path) as collection:
        index = collection.index
        sides = zip(index["width"].tolist(), index["height"].tolist(), strict=True)
        sizes = dict(zip(collection.keys, sides, strict=True))
    with AnnotationAppender(path, purpose="adding conversations", created=created) as appender:
        quarantine = Quarantine(path)

        def usable_rows() -> Iterator[dict[str, object]]:
            for entry in conversations:
                conversation, finding = entry if isinstance(entry, tuple) else (entry, None)
                finding = finding or find_problem(conversation, sizes)
                if finding is None:
                    yield conversation_row(conversation)
                    continue
                summary.quarantined[finding.reason] += 1
                quarantine.add(
                    conversation.id,
                    *finding,
                    source=conversation.source,
                    subject="conversation",
                    position=-1,
                    created=created,
                )

        rows = usable_rows()
        # Cut at the same rows in every run, so that a resumed one ends with the same parts.
        while part := list(itertools.islice(rows, _ROWS_PER_PART)):
            added = appender.append(KIND, part, Provenance(recipe_hash=recipe_hash, created=created))
            summary.added += added
            summary.existing += len(part) - added
        quarantine.save()
    return summary
