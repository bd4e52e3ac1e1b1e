"""Read sidecar files: the text and the JSON object next to an image.

Text (`.txt`): the whole file is one caption. JSON (`.json`): an object with, all optional,

- `caption`, `captions` or `alt`: a text, or a list of texts or of objects `{"text", "kind", "source"}`;
- `regions`: a list, see `foveate.records.importers.regions.read_region`;
- `labels`: an object of field to value; `group`, `split`, `url`: texts.

Other fields, of which img2dataset writes many, are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from foveate.core.errors import UserError
from foveate.records.importers.regions import read_region
from foveate.records.importers.sample import Problem, Sidecar
from foveate.records.record import Caption, Region
from foveate.records.rows import clean_text, has_control_characters


def read_sidecars(
    text: Callable[[], bytes] | None,
    json_file: Callable[[], bytes] | None,
    *,
    size: tuple[int, int] | None,
    fields: Mapping[str, object] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Sidecar:
    """Read both sidecars of an image; unusable parts become problems, the rest is used.

    Args:
        size: (width, height) for boxes in pixels; None leaves regions out.
        fields: content of the JSON sidecar, which is then not read.
        labels: known without a sidecar; those of the JSON take precedence.
    """
    sidecar = Sidecar()
    content = None if text is None else _decode(text, "text", sidecar)
    fields = fields or ({} if json_file is None else _read_object(json_file, sidecar))
    captions: list[Caption] = []
    for name in ("caption", "captions", "alt"):
        captions.extend(_parse_captions(fields.get(name), name, sidecar))
    # img2dataset writes the caption into both files.
    if content is not None and content.strip() not in {caption.text.strip() for caption in captions}:
        captions.insert(0, Caption(content))
    _add_captions(captions, sidecar)
    for name in ("group", "split", "url", "status", "key"):
        value = fields.get(name)
        # Strings as in img2dataset; numbers, which some writers use for `key`, would not name the image elsewhere.
        if isinstance(value, str) and _is_storable(value):
            setattr(sidecar, name, clean_text(value))
    _add_labels(labels, sidecar)
    _add_labels(fields.get("labels"), sidecar)
    if size is not None:
        _add_regions(fields.get("regions"), size, sidecar)
    return sidecar


def _decode(read: Callable[[], bytes], what: str, sidecar: Sidecar) -> str | None:
    try:
        return read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"the {what} sidecar is not UTF-8: {error.reason} at byte {error.start}"
        sidecar.problems.append(Problem("sidecar", "not UTF-8", detail))
    except OSError as error:
        detail = f"the {what} sidecar cannot be read: {error.strerror or error}"
        sidecar.problems.append(Problem("sidecar", "unreadable", detail))
    return None


def _read_object(read: Callable[[], bytes], sidecar: Sidecar) -> Mapping[str, object]:
    content = _decode(read, "JSON", sidecar)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        detail = f"the JSON sidecar cannot be read: {str(error)[:120]}"
        sidecar.problems.append(Problem("sidecar", "malformed JSON", detail))
        return {}
    if not isinstance(value, dict):
        detail = f"the JSON sidecar must be an object, not a {type(value).__name__}"
        sidecar.problems.append(Problem("sidecar", "malformed JSON", detail))
        return {}
    return value


def _parse_captions(value: object, name: str, sidecar: Sidecar) -> list[Caption]:
    captions = []
    for position, entry in enumerate(value if isinstance(value, list) else [value]):
        if entry is None:
            continue
        fields = entry if isinstance(entry, dict) else {"text": entry}
        parts = [fields.get("text"), fields.get("kind", "alt"), fields.get("source", "")]
        if all(isinstance(part, str) for part in parts):
            captions.append(Caption(*map(str, parts)))
        else:
            detail = f"field {name!r} must hold text, or objects with the texts 'text', 'kind' and 'source'"
            sidecar.problems.append(Problem("caption", "not text", detail, position))
    return captions


def _add_captions(captions: list[Caption], sidecar: Sidecar) -> None:
    seen = set()
    for position, caption in enumerate(captions):
        if not all(map(_is_storable, (caption.text, caption.kind, caption.source))):
            detail = "the caption has half a surrogate pair, which is not valid Unicode"
            sidecar.problems.append(Problem("caption", "not Unicode", detail, position))
            continue
        cleaned = clean_text(caption.text)
        if not cleaned or (cleaned, caption.kind) in seen:
            continue
        seen.add((cleaned, caption.kind))
        sidecar.cleaned += has_control_characters(caption.text)
        sidecar.captions.append(Caption(cleaned, caption.kind, caption.source))
        sidecar.caption_indices.append(position)


def _add_labels(value: object, sidecar: Sidecar) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        problem = Problem("labels", "malformed labels", "field 'labels' must be an object of field to value")
        sidecar.problems.append(problem)
        return
    for position, (name, label) in enumerate(value.items()):
        usable = isinstance(label, str | int | float) and _is_storable(f"{name}{label}")
        if usable and clean_text(name):
            sidecar.labels[clean_text(name)] = clean_text(str(label))
        else:
            detail = f"the label {name!r} must have a name and be text or a number"
            sidecar.problems.append(Problem("labels", "malformed labels", detail, position))


def _add_regions(value: object, size: tuple[int, int], sidecar: Sidecar) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        detail = "field 'regions' must be a list of objects"
        sidecar.problems.append(Problem("region", "malformed region", detail))
        return
    for position, raw in enumerate(value):
        outcome = read_region(raw, position=position, width=size[0], height=size[1])
        if isinstance(outcome, Problem):
            sidecar.problems.append(outcome)
            continue
        region, clipped = outcome
        texts = (region.phrase, region.label, region.slice, region.source)
        if not all(map(_is_storable, texts)):
            detail = "the text of the region has half a surrogate pair, which is not valid Unicode"
            sidecar.problems.append(Problem("region", "not Unicode", detail, position))
            continue
        sidecar.cleaned += any(map(has_control_characters, texts))
        sidecar.clipped += clipped
        sidecar.regions.append(_clean(region))
        sidecar.region_indices.append(position)


def _clean(region: Region) -> Region:
    texts = map(clean_text, (region.label, region.slice, region.source))
    return Region(region.box, clean_text(region.phrase), region.score, *texts)


def _is_storable(text: str) -> bool:
    try:
        clean_text(text)
    except UserError:
        return False
    return True
