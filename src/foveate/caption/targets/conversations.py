"""Put captions in requested formats into a collection as conversations, for `foveate mllm train captioner`.

Each row of `targets.rows` is a conversation: the request of `chat_requests`, and the caption as its answer. The group
distinguishes the stages.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from foveate.caption.chat_requests import caption_request, length_class
from foveate.caption.settings import TargetSettings
from foveate.caption.targets.material import Material, read_material
from foveate.caption.targets.rewriting import Rewriter, open_rewriter
from foveate.caption.targets.rows import ALIGN_STAGE, FORMAT_STAGE, TargetRow, write_rows
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.records.annotate import remove_rows
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, KIND, Conversation, Turn, add_conversations
from foveate.records.record import CAPTION_GROUPS

GROUP_OF_STAGE = dict(zip((FORMAT_STAGE, ALIGN_STAGE), CAPTION_GROUPS, strict=True))
# Images whose captions are written together: what a kill costs at most, and what is in memory at once.
_IMAGES_PER_PART = 1000
_EXAMINED = 500
# Settings that select images or say where rewrites are requested; the text of a caption does not depend on them.
_WITHOUT_INFLUENCE = {"split", "images", "sources", "llm"}


class CaptionCounts(BaseModel):
    """Counts of `prepare_captions`.

    Attributes:
        images: number of images by source of their material, "none" for those without.
        rewriter: provenance of the rewrites.
        written, dropped: captions by stage and format, and dropped ones with their reason.
        added, existing: conversations that were new, and that were there already.
        others: captions as conversations that were written with other settings, and are still there.
        removed: such captions that were replaced.
    """

    model_config = ConfigDict(frozen=True)

    images: dict[str, int]
    rewriter: str
    written: dict[str, int] = {}
    dropped: dict[str, int] = {}
    added: int = 0
    existing: int = 0
    others: int = 0
    removed: int = 0


def prepare_captions(
    path: Path, settings: TargetSettings, *, seed: int = 0, replace: bool = False, dry_run: bool = False
) -> CaptionCounts:
    """Write captions of a collection's images in all formats, and add them as conversations; repeated, add none.

    Args:
        path: the collection.
        seed: of the drawn images and of the noise of AltTexts.
        replace: remove the captions that earlier calls wrote with other settings.
        dry_run: examine at most 500 images, without text recognition or requests; write nothing.

    Raises:
        UserError: no image has material, or another process writes the collection.
    """
    recipe_hash = _hash(settings, seed)
    with Collection.open(path) as collection:
        rows = _select_rows(collection, settings, seed)
        if dry_run:
            rows, settings = _select_examined(rows, settings, seed)
        materials, sources = read_material(collection, rows, settings, seed=seed)
        if not materials:
            kinds = sorted(set(collection.table("captions")["kind"].to_pylist()))
            raise UserError(
                f"collection {path}: no image of split '{settings.split}' has material; name the caption kinds that "
                f"are short captions (short_kinds) and descriptions (description_kinds); it has "
                f"{', '.join(kinds) or 'no captions'}"
            )
        others = int(_mark_others(collection.table(KIND), recipe_hash).sum())
    if dry_run and settings.rewriter != "rules":
        return CaptionCounts(images=sources, rewriter=settings.rewriter, others=others)
    rewriter = open_rewriter(settings, folder=path / "cache")
    counts: dict[str, Counter[str]] = {"written": Counter(), "dropped": Counter()}
    conversations = map(to_conversation, _write_captions(materials, settings, rewriter, seed=seed, counts=counts))
    added = existing = removed = 0
    if dry_run:
        # Consumed only for the counts, which are updated as the rows are made.
        deque(conversations, maxlen=0)
    else:
        summary = add_conversations(path, conversations, recipe_hash=recipe_hash)
        added, existing = summary.added, summary.existing
        # Last, and only where there are new ones: a kill, or settings that drop every caption, lose none.
        if replace and added + existing:
            removed = remove_rows(
                path, KIND, lambda part: _mark_others(part, recipe_hash), purpose="replacing captions"
            )
    return CaptionCounts(
        images=sources,
        rewriter=rewriter.provenance,
        added=added,
        existing=existing,
        others=others - removed,
        removed=removed,
        **counts,
    )


def to_conversation(row: TargetRow) -> Conversation:
    """Return a caption as the answer to the request for it."""
    request = caption_request(row.kind, length=length_class(row.tokens), alt=row.alt)
    turns = (Turn("user", f"{IMAGE}\n{request}"), Turn("assistant", row.target))
    group = GROUP_OF_STAGE[row.stage]
    return Conversation(f"{row.image}/{group}/{row.kind}", (row.image,), turns, group, f"{row.source}: {row.rewrite}")


def _select_rows(collection: Collection, settings: TargetSettings, seed: int) -> NDArray[np.int64]:
    rows = collection.rows(settings.split)
    if settings.images is None or settings.images >= len(rows):
        return rows
    return np.sort(seeds.generator("captioned images", seed).choice(rows, settings.images, replace=False))


def _select_examined(
    rows: NDArray[np.int64], settings: TargetSettings, seed: int
) -> tuple[NDArray[np.int64], TargetSettings]:
    order = seeds.generator("examined images", seed).permutation(len(rows))[:_EXAMINED]
    return np.sort(rows[order]), settings.model_copy(update={"ocr": "none"})


def _write_captions(
    materials: Sequence[Material],
    settings: TargetSettings,
    rewriter: Rewriter,
    *,
    seed: int,
    counts: Mapping[str, Counter[str]],
) -> Iterator[TargetRow]:
    """Yield the rows of all images in parts, and add to the counts of written and dropped ones."""
    parts = range(0, len(materials), _IMAGES_PER_PART)
    for start in track(parts, description=f"captions, {_IMAGES_PER_PART} images at a time"):
        part = materials[start : start + _IMAGES_PER_PART]
        # `others` is all material: mismatched AltTexts drawn from one part would depend on the size of the parts.
        rows = write_rows(part, settings, rewriter, seed=seed, others=materials)
        for name, of_part in rows.summary().items():
            counts[name].update(of_part)
        yield from rows.rows


def _mark_others(table: pa.Table, recipe_hash: str) -> NDArray[np.bool_]:
    """Mark the captions [N] as conversations that were prepared with other settings."""
    # Conversations of the same groups that a user imported have no hash: they are not replaced.
    not_others = ("", recipe_hash)
    rows = table.select(["group", "recipe_hash"]).to_pylist()
    return np.array(
        [row["group"] in CAPTION_GROUPS and row["recipe_hash"] not in not_others for row in rows], dtype=bool
    )


def _hash(settings: TargetSettings, seed: int) -> str:
    content = settings.model_dump(mode="json", exclude=_WITHOUT_INFLUENCE)
    return hashlib.sha256(json.dumps([content, seed], sort_keys=True).encode()).hexdigest()[:16]
