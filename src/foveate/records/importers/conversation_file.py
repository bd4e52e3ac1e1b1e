"""Shared last step of conversation importers: entries to drafts, their images, regions in pixels."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from foveate.core.errors import UserError
from foveate.core.files import sweep
from foveate.core.progress import say
from foveate.core.text_tables import iterate_json_lines
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.conversations import (
    Conversation,
    ConversationProblem,
    Turn,
    add_conversations,
    find_shape_problem,
    locate_regions,
)
from foveate.records.images import BadImage, read_image_info
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.coordinates import (
    MAX_CHECKED,
    CheckedBox,
    CoordinateFrame,
    check_unit,
    draw_sample,
    fit_shape,
    format_sample,
    list_values,
    pick_evenly,
)
from foveate.records.importers.files import (
    file_sample,
    find_image_folder,
    locate_file,
    make_key,
    read_annotations,
    read_head,
)
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import SIZE_TOLERANCE, check_source, import_samples
from foveate.records.importers.sample import Problem, Sample, SharedOptions
from foveate.records.rows import storable
from foveate.records.shapes import Mask

_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
# Fields, parts of messages and marks in texts by which data of LLaVA-Video, ShareGPT4Video, chat templates of
# transformers and Qwen-VL name a video.
_VIDEO_FIELDS = ("video", "videos", "video_path", "video_file", "video_url")
_VIDEO_PARTS = ("video", "video_url", "input_video")
_VIDEO_MARKS = ("<video>", "<|video|>", "<|video_pad|>")
OPTIONS = ("images", "coordinates", "resize_min_pixels", "resize_max_pixels", "data_group", "reference")


class MalformedEntryError(UserError):
    """An entry of a file that is no conversation; its message goes to the quarantine."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image that a file names: possible names below the folder of images, or the bytes themselves.

    Args:
        key: of the image in the collection; by default made from its name.
    """

    names: tuple[str, ...] = ()
    data: bytes = b""
    key: str = ""


@dataclass(slots=True)
class Draft:
    """A conversation of a file before its images are known.

    Args:
        id: name within the file.
        images: in the order of their placeholders.
        turns: with regions in the unit of the file.
        group: of the training mixture, where the format knows it.
        answers: see `Conversation`.
        stated, resized: see `CoordinateFrame`.
        finding: why the entry is no conversation.
    """

    id: str
    images: list[FileImage] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    group: str = ""
    answers: tuple[str, ...] = ()
    stated: tuple[int, int] | None = None
    resized: tuple[int, int] | None = None
    finding: ConversationProblem | None = None


def read_entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (name, entry) of a JSON list, an object with a list `data`, or JSON Lines; a bad line is a Finding."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, entry in iterate_json_lines(path):
            if isinstance(entry, ValueError):
                entry = ConversationProblem("malformed entry", f"the line is not JSON ({str(entry)[:120]})")
            # Counted from 0, as in collections that were imported before.
            yield str(number - 1), entry
        return
    content = read_annotations(path)
    entries = content.get("data") if isinstance(content, Mapping) else content
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of conversations (got {type(content).__name__})")
    # Taken out one by one, so that the parsed file and the drafts are never in memory together.
    entries.reverse()
    for number in range(len(entries)):
        yield str(number), entries.pop()


def make_drafts(entries: Iterable[tuple[str, object]], parse: Callable[[Mapping[str, Any]], Draft]) -> list[Draft]:
    """Parse the entries of a file; an unusable entry becomes a draft with a finding.

    Args:
        entries: as `read_entries` yields them.
        parse: makes a draft without id of an entry, or raises MalformedEntryError.
    """
    drafts = []
    used: Counter[str] = Counter()
    for number, entry in entries:
        name, finding, draft, video = number, None, None, ""
        if isinstance(entry, Mapping):
            stated = next((entry[field] for field in ("id", "question_id", "questionId") if field in entry), number)
            name = storable(str(stated))[: layout.MAX_KEY_LENGTH] if isinstance(stated, str | int) else number
            video = find_video(entry)
            try:
                # Skip rows with a video: without it the row would be plain text and teach a model to answer blindly.
                draft = parse(entry) if not video else None
            except MalformedEntryError as error:
                finding = ConversationProblem("malformed entry", str(error))
        else:
            finding = (
                entry
                if isinstance(entry, ConversationProblem)
                else ConversationProblem("malformed entry", "expected an object")
            )
        draft = draft or Draft(name, finding=finding)
        # LLaVA's ids are those of images, and several conversations of one image have the same.
        used[name] += 1
        draft.id = name if used[name] == 1 else f"{name}#{used[name]}"
        if video:
            draft.finding = ConversationProblem(
                "video not imported", f"row '{draft.id}': {video}; videos are not imported"
            )
        drafts.append(draft)
    return drafts


def find_video(entry: Mapping[str, Any]) -> str:
    """Say where an entry names a video; "" if it names none."""
    for name in _VIDEO_FIELDS:
        # Tables fill a field that a row lacks with null, or with an empty list.
        if entry.get(name):
            return f"field {name!r} ({str(entry[name])[:80]})"
    for name, role_name, content_name in (("conversations", "from", "value"), ("messages", "role", "content")):
        turns = entry.get(name)
        for turn in (turn for turn in turns if isinstance(turn, Mapping)) if isinstance(turns, list) else ():
            role = str(turn.get(role_name, turn.get("role")))
            # Look only at questions: a placeholder is in a question, whereas an answer may be about HTML's tag of that
            # name.
            if _ROLES.get(role, role) != "assistant":
                video = _find_video_part(turn.get(content_name, turn.get("content")))
                if video:
                    return video
    return ""


def _find_video_part(content: object) -> str:
    for part in content if isinstance(content, list) else [content]:
        text = part
        if isinstance(part, Mapping):
            if part.get("type") in _VIDEO_PARTS or any(part.get(name) for name in _VIDEO_FIELDS):
                return "a part of a message is a video"
            text = part.get("text")
        mark = next((mark for mark in _VIDEO_MARKS if isinstance(text, str) and mark in text), None)
        if mark:
            return f"placeholder {mark}"
    return ""


def read_turns(entry: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return (role, content) of the list `conversations` (`from`, `value`) or `messages` (`role`, `content`)."""
    for name, role_name, content_name in (("conversations", "from", "value"), ("messages", "role", "content")):
        if name in entry:
            turns = entry[name]
            if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
                raise MalformedEntryError(f"field {name!r} must be a list of objects")
            # Files may mix the spellings: a list "conversations" of objects with "role" and "content".
            roles = [turn.get(role_name, turn.get("role", "")) for turn in turns]
            contents = [turn.get(content_name, turn.get("content")) for turn in turns]
            return [(_ROLES.get(str(role), str(role)), content) for role, content in zip(roles, contents, strict=True)]
    raise MalformedEntryError("neither field 'conversations' nor 'messages'")


def get_text(content: object) -> str:
    """Return the text of a turn; nothing is an empty text, which the validation refuses with a reason."""
    if content is None:
        return ""
    if not isinstance(content, str):
        raise MalformedEntryError(f"a turn must be text (got {type(content).__name__})")
    return content


def read_image_list(value: object) -> list[FileImage]:
    """Return the images of a field: a name, an object with `path`, `url` or `bytes`, a list of these, or none."""
    if value is None or value == "":
        return []
    return [read_image(item) for item in (value if isinstance(value, list) else [value])]


def read_image(value: object) -> FileImage:
    """Return an image given as a name, a file or data URL, or an object with one."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in ("path", "url", "image", "bytes", "base64") if value.get(name)), None)
    if not isinstance(value, str):
        raise MalformedEntryError(f"an image must be a file name or an object with one (got {str(value)[:40]})")
    if value.startswith("data:"):
        return FileImage(data=_decode_base64(value.partition(",")[2]))
    return FileImage((value.removeprefix("file://"),))


def _decode_base64(text: str) -> bytes:
    try:
        # Without `validate` foreign characters would be skipped, and a damaged image would go on as bytes.
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedEntryError(f"a data URL is not base64 ({error})") from error


def get_size(entry: Mapping[str, Any], width: str, height: str) -> tuple[int, int] | None:
    """Return (width, height) of two fields, or None if one is missing or not positive."""
    sides = (entry.get(width), entry.get(height))
    # JSON's true is an integer for Python, and would be a side of one pixel.
    if all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 2**31 for side in sides):
        return sides  # type: ignore[return-value]
    return None


def import_conversations(
    path: Path,
    target: str | Path,
    drafts: Sequence[Draft],
    *,
    images: str | Path | None = None,
    folders: Iterable[str] = (),
    coordinates: str | None = None,
    resize_min_pixels: int = 3136,
    resize_max_pixels: int = 12_845_056,
    data_group: str | None = None,
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import the images of drafts and the conversations about them into the collection `target`.

    Args:
        path: the file of the drafts.
        images: folder of images; by default searched near the file, also in its `folders`.
        coordinates: unit of the regions; see `foveate.records.importers.formats.FormatOptions`.
        resize_min_pixels, resize_max_pixels, data_group, reference: see there.
        shared: see `SharedOptions`.

    Raises:
        UserError: no image is found, or the boxes have no unit or are not plausible in it; then nothing is imported.
    """
    named: list[list[object]] = [list(image.names) for draft in drafts for image in draft.images if image.names]
    requested = None if images is None else Path(images)
    near = [path.parent / name for name in (*folders, "images", "")] + [path.parent.parent]
    root = find_image_folder(named, near, source=path, requested=requested) if named else path.parent
    # The size 1 x 1 is a placeholder: `replace` sets that of each image.
    frame = CoordinateFrame(coordinates or "", 1, 1, None, None, resize_min_pixels, resize_max_pixels)
    boxes = _first_boxes(drafts, root, frame) if coordinates not in (None, "none") else []
    if coordinates is None:
        _refuse_unknown_unit(drafts, path)
    # Before anything is imported: in a wrong unit every box would be at a wrong place.
    notes = check_unit(boxes, frame.unit, source=path)
    importing = _ImageImport(root, path.name)
    source = shared.get("source_name") or path.stem
    summary = import_samples(
        target, importing.samples(drafts), default_source=source, reference=reference, total=None, **shared
    )
    with Collection.open(target) as collection:
        index = collection.index
        hashes = dict(zip(collection.keys, index["sha256"].tolist(), strict=True))
        sides = zip(index["width"].tolist(), index["height"].tolist(), strict=True)
        sizes = dict(zip(collection.keys, sides, strict=True))
    # An image counts only if the collection has these very bytes under its key, not another image of that name.
    keys = {image: key for image, key in importing.keys.items() if hashes.get(key) == importing.hashes.get(key, "-")}
    finished = (_finish(draft, keys, sizes, frame, group=data_group, source=source) for draft in drafts)
    summary.without_text = 0  # their texts are conversations
    added = add_conversations(target, finished, created=shared.get("created"))
    summary.further["conversations imported"] += added.added
    if added.existing:
        summary.further["conversations already in the collection"] += added.existing
    summary.quarantined.update({f"conversation: {reason}": count for reason, count in added.quarantined.items()})
    if boxes:
        picked = pick_evenly(boxes, 12)
        sheet = Path(target) / layout.CACHE_FOLDER / f"boxes-{path.stem}.png"
        sweep(sheet)
        draw_sample(picked, sheet)
        notes += [*format_sample(pick_evenly(picked, 4)), f"drawn sample of the boxes: {sheet}"]
    summary.notes += notes
    return summary


def _refuse_unknown_unit(drafts: Sequence[Draft], path: Path) -> None:
    """Raise UserError if there are regions other than masks: their unit is not guessed."""
    shapes = (shape for draft in drafts for turn in draft.turns for shape in turn.regions)
    listed = [list_values(shape) for shape in shapes if not isinstance(shape, Mask)]
    if listed:
        example = ", ".join(f"{value:g}" for value in listed[0])
        raise UserError(
            f"--coordinates is missing: {path} has {len(listed)} points or boxes, such as ({example}); expected "
            "pixels, resized-pixels, 0-1, 0-1-padded or 0-1000, or none if these are no regions"
        )


class _ImageImport:
    """Makes one sample per image of the drafts; knows the key and, once read, the hash of each."""

    def __init__(self, root: Path, source: str) -> None:
        self.keys: dict[FileImage, str] = {}
        self.hashes: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._yielded: set[str] = set()
        self._root, self._source = root, source

    def samples(self, drafts: Iterable[Draft]) -> Iterator[Sample]:
        """Yield a sample for each image that is named for the first time."""
        for draft in drafts:
            for image in draft.images:
                if image not in self.keys:
                    sample = self._make_sample(image)
                    repeated = sample.key in self._yielded
                    self.keys[image] = "" if sample.only_problems else sample.key
                    self._yielded.add(sample.key)
                    if not repeated:  # "a.jpg" and "./a.jpg" are one image
                        yield sample

    def _make_sample(self, image: FileImage) -> Sample:
        if not image.names:
            # Named by content: an inline image has no name, and a repeated import must recognize it.
            key = f"inline/{hashlib.sha256(image.data).hexdigest()[:32]}"
            sample = Sample(key, f"{self._source}: inline image", lambda: image.data)
        else:
            sample = file_sample(
                locate_image(image, self._root), self._root, source=f"{self._source}: {image.names[0]}"[:400]
            )
            location = locate_file(image.names[0], self._root)
            if image.key:
                sample.key = image.key
            elif not isinstance(location, Problem):
                # From the name in the file, so that the key does not depend on where the images are today.
                sample.key = make_key(location[0])
                if self._names.setdefault(sample.key, location[0]) != location[0]:
                    sample.key = location[0]  # chart.jpg beside chart.png: the second keeps its extension
                    if self._names.setdefault(sample.key, location[0]) != location[0]:
                        detail = f"key {sample.key!r} belongs to another image of the file"
                        sample.problems, sample.only_problems = [Problem("image", "duplicate key", detail)], True
        if sample.load is not None:
            # Hashed while the import reads it: reading every image once more would take as long again.
            sample.load = self._noting_hash(sample.key, sample.load)
        return sample

    def _noting_hash(self, key: str, load: Callable[[], bytes]) -> Callable[[], bytes]:
        def read() -> bytes:
            data = load()
            self.hashes.setdefault(key, hashlib.sha256(data).hexdigest())
            return data

        return read


def locate_image(image: FileImage, root: Path) -> str:
    """Return the first of an image's names that exists below `root`, else the first."""
    for name in image.names:
        location = locate_file(name, root)
        if not isinstance(location, Problem) and location[1].is_file():
            return name
    return image.names[0]


def _first_boxes(drafts: Iterable[Draft], root: Path, frame: CoordinateFrame) -> list[CheckedBox]:
    """Return up to 1,000 regions of the file with their images; those of unusable images are left out."""
    boxes: list[CheckedBox] = []
    opened: dict[FileImage, tuple[Callable[[], bytes], tuple[int, int]] | None] = {}
    for draft in drafts:
        if draft.finding is not None or not draft.images:
            continue
        indices = locate_regions(Conversation(draft.id, (), tuple(draft.turns)))
        for turn, turn_indices in zip(draft.turns, indices, strict=True):
            texts = turn.text.split("<region>")
            # There is one more text than there are regions: the last one comes after the last region.
            for shape, index, text in zip(turn.regions, turn_indices, texts, strict=False):
                # A file may have more placeholders than images; such a conversation is refused later, with its reason.
                image = draft.images[min(index, len(draft.images) - 1)]
                if image not in opened:
                    opened[image] = _read_size(image, root)
                content = opened[image]
                # A damaged mask is put aside with its conversation; it cannot be drawn.
                if content is None:
                    continue
                width, height = content[1]
                if isinstance(shape, Mask) and find_shape_problem(shape, width=width, height=height) is not None:
                    continue
                of_image = replace(frame, width=width, height=height, stated=draft.stated, resized=draft.resized)
                name = image.names[0] if image.names else "inline image"
                boxes.append(CheckedBox(shape, of_image, content[0], name, text))
                if len(boxes) == MAX_CHECKED:
                    return boxes
    return boxes


def _read_size(image: FileImage, root: Path) -> tuple[Callable[[], bytes], tuple[int, int]] | None:
    load = file_sample(locate_image(image, root), root, source="").load if image.names else lambda: image.data
    if load is None:
        return None
    try:
        info = read_image_info(load())[0]
    except (BadImage, OSError):
        return None
    return load, (info.width, info.height)


def _finish(
    draft: Draft,
    keys: Mapping[FileImage, str],
    sizes: Mapping[str, tuple[int, int]],
    frame: CoordinateFrame,
    *,
    group: str | None,
    source: str,
) -> tuple[Conversation, ConversationProblem] | Conversation:
    """Make the conversation of a draft, with regions in pixels of the imported images."""
    images = tuple(keys.get(image, "") for image in draft.images)
    has_regions = any(turn.regions for turn in draft.turns)
    by_content = "refer-ground" if has_regions else draft.group or "general"
    # Images decide before regions: the mixture divides its samples by their number first.
    by_content = "text" if not images else "multi-image" if len(images) > 1 else by_content
    conversation = Conversation(draft.id, images, tuple(draft.turns), group or by_content, source, tuple(draft.answers))
    if draft.finding is not None:
        return conversation, draft.finding
    if "" in images:
        image = draft.images[images.index("")]
        name = image.names[0] if image.names else "an inline image"
        return conversation, ConversationProblem("image not imported", f"{name[:120]!r} is missing, damaged or removed")
    if not has_regions or not images:
        return conversation
    turns = []
    for turn, indices in zip(draft.turns, locate_regions(conversation), strict=True):
        shapes = []
        for shape, index in zip(turn.regions, indices, strict=False):
            width, height = sizes[images[min(index, len(images) - 1)]]
            if draft.stated is not None and frame.unit == "pixels":
                across, down = width / draft.stated[0], height / draft.stated[1]
                # A resized copy is scaled alike on both sides; anything else is another image, or a crop, where the
                # boxes would be off.
                if abs(across - down) > SIZE_TOLERANCE * max(across, down):
                    stated = f"{draft.stated[0]} x {draft.stated[1]}"
                    detail = f"regions are for {stated} pixels, but the image has {width} x {height}"
                    return conversation, ConversationProblem("other image shape", detail)
            of_image = replace(frame, width=width, height=height, stated=draft.stated, resized=draft.resized)
            shapes.append(fit_shape(of_image.to_pixels(shape), width=width, height=height))
        # With fewer placeholders than regions the turn stays as it is, and the check that follows refuses it.
        turns.append(replace(turn, regions=tuple(shapes) if len(shapes) == len(turn.regions) else turn.regions))
    return replace(conversation, turns=tuple(turns))


def run_importer(
    source: str | Path,
    target: str | Path,
    *,
    parse: Callable[..., Draft],
    unit: str | None = None,
    without_unit: str = "",
    coordinates: str | None = None,
    **options: Any,
) -> ImportSummary:
    """Import a file of conversations into the collection `target`; see `import_conversations`.

    Args:
        parse: makes a draft of an entry, as `parse(entry, extract=...)`; `extract` is whether texts may hold regions.
        unit: of regions without `coordinates`.
        without_unit: why regions cannot be left in the text, for the error.
    """
    if without_unit and coordinates == "none":
        raise UserError(without_unit)
    path = check_source(Path(source))
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a file of conversations, .json or .jsonl")
    coordinates = coordinates or unit
    drafts = make_drafts(read_entries(path), lambda entry: parse(entry, extract=coordinates != "none"))
    if not drafts:
        say(f"{path} has no conversations")
    return import_conversations(path, target, drafts, coordinates=coordinates, **options)


def make_format(
    name: str,
    parse: Callable[..., Draft],
    evidence: str,
    *,
    marks: Sequence[Sequence[bytes]],
    foreign: Sequence[bytes] = (),
    suffixes: Sequence[str] = (".json", ".jsonl"),
    **fixed: str,
) -> Format:
    """Make the import format of a file of conversations.

    Args:
        evidence: of a recognized file; `{mark}` is the first mark of the first group that it has.
        marks: groups, of each of which the beginning of a file has at least one.
        foreign: marks of other formats, of which it has none.
        parse, fixed: see `run_importer`.
    """

    def recognize(source: str) -> str | None:
        head = read_head(source, *suffixes)
        matches = [next((mark for mark in group if mark in head), None) for group in marks]
        if None in matches or any(mark in head for mark in foreign):
            return None
        return evidence.format(mark=(matches[0] or b"").decode())

    run = functools.partial(run_importer, parse=parse, **fixed)
    return Format(name=name, run=run, recognize=recognize, options=OPTIONS)
