"""Makes an index of a collection: embeddings of its images and regions, in parts that a kill does not undo.

A run embeds what the index does not hold yet, in parts of 128 images; a part counts from the moment its table is
there. At the end all parts become segments in one step. Repeated, the command goes on with the next part; when all is
there it only drops what the collection has removed since.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.core.files import FolderLock, read_json
from foveate.core.progress import say, track
from foveate.pretrain.searching.index_folder import (
    BUILDING,
    DESCRIPTION,
    IMAGE,
    PRECISIONS,
    QUARANTINE,
    REGION,
    ROWS,
    UNREADABLE,
    Description,
    Place,
    fingerprint,
    new_vectors,
    read_rows,
    sweep,
)
from foveate.pretrain.searching.merge import merged
from foveate.records.collection import Collection
from foveate.records.geometry import Placement
from foveate.records.images import BadImage
from foveate.records.record import Region
from foveate.records.region_sources import OWN, SelectedRegions, is_pseudo_label
from foveate.records.tables import write_table
from foveate.vision.localizer.candidates import coarse_boxes
from foveate.vision.localizer.folder import CONFIG, load_model
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.views import input_boxes, read

REGIONS = ("auto", "boxes", "grid", "both", "none")
WITH_OWN = ("auto", "boxes", "both")
_OPTIONS = {"regions": "--regions", "region_sources": "--region-source", "precision": "--precision"}
PART = 128
_BATCH = 32
_PART_ROWS = pa.schema([*ROWS, pa.field("reason", pa.string())])


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: images to embed, rows and bytes that come of it, images to drop, regions not taken."""

    todo: NDArray[np.int64]
    kept: int
    dropped: int
    new_regions: int
    new_bytes: int
    left_out: str = ""

    def line(self) -> str:
        told = (
            f"{len(self.todo):,} images to embed with {self.new_regions:,} regions, {self.new_bytes / 1e6:,.1f} MB; "
            f"{self.kept:,} are there already, {self.dropped:,} to drop"
        )
        return f"{told}; {self.left_out}" if self.left_out else told


def boxes_of(regions: Sequence[Region], rule: str) -> tuple[Sequence[Region], bool]:
    """Which of an image's own regions a rule embeds, and whether the grid of coarse boxes comes with them."""
    own = regions if rule in WITH_OWN else ()
    return own, rule in ("grid", "both") or (rule == "auto" and not regions)


def content_of(collection: Collection, regions: SelectedRegions, row: int, rule: str) -> str:
    """A hash of what an image's rows in the index are made from: its bytes and the boxes that are its own."""
    own = boxes_of(regions.of(row), rule)[0] if rule != "none" else ()
    told = [(region.phrase, *region.box.to_array().tolist()) for region in own]
    text = f"{collection.index['sha256'][row]} {told!r}"
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def build_index(
    model_folder: Path,
    collection_folder: Path,
    out: Path,
    *,
    regions: str | None = None,
    region_sources: Sequence[str] | None = None,
    precision: str | None = None,
    device: str | None = None,
    workers: int = 2,
    retry: bool = False,
    dry_run: bool = False,
) -> tuple[Description, Plan]:
    """Makes the index `out`, or brings it up to date with its collection.

    Args:
        regions: "auto" (own boxes, and the grid where an image has none), "boxes", "grid", "both" or "none"; an
            index keeps the rule it was made with, "auto" for a new one.
        region_sources: whose regions are an image's own, as in `foveate.records.region_sources`; likewise, those that no
            detector made for a new one.
        precision: "float32" or "float16" of the stored vectors; likewise.
        retry: also try again what is in the quarantine.
        dry_run: only say what would be done.

    Raises:
        UserError: another model, rule, choice of sources or precision than those of the index; a source without a
            region; too little room on the disk.
    """
    collection = Collection.open(collection_folder)
    mark = fingerprint(model_folder)
    asked = {"regions": regions, "region_sources": region_sources and tuple(region_sources), "precision": precision}
    wanted = _described(model_folder, mark, collection, out, asked)
    if region_sources and wanted.regions not in WITH_OWN:
        raise UserError(f"--region-source has no effect with --regions {wanted.regions}: it takes no own regions")
    own = SelectedRegions(collection, wanted.region_sources)
    if dry_run:
        return wanted, _plan(collection, own, _contents(collection, own, wanted.regions), wanted, out, retry=retry)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; an index needs a folder")
    with FolderLock(out, purpose="foveate index"):
        # Another process may have written in between.
        wanted = _described(model_folder, mark, collection, out, asked)
        sweep(out, wanted)
        contents = _contents(collection, own, wanted.regions)
        plan = _plan(collection, own, contents, wanted, out, retry=retry)
        _check_room(out, plan)
        say(plan.line())
        if len(plan.todo) or plan.dropped or not wanted.finished:
            replace(wanted, finished=False).write(out)
            if len(plan.todo):
                model = load_model(model_folder, device=device)
                _embed_parts(model, collection, own, wanted, out, plan.todo, workers=workers)
            wanted = merged(wanted, out, contents=contents)
        else:
            wanted.write(out)  # the model or the collection may have moved
        shutil.rmtree(out / BUILDING, ignore_errors=True)
    return wanted, plan


def _described(
    model_folder: Path, mark: str, collection: Collection, out: Path, asked: Mapping[str, Any]
) -> Description:
    """The description of the index that is there, checked against what is asked for, or that of a new one."""
    if (out / DESCRIPTION).is_file():
        there = Description.read(out)
        if there.fingerprint != mark:
            raise UserError(f"{out}: was made with another model ({there.model.path}); give another folder with --out")
        if there.collection_name != collection.name:
            raise UserError(
                f"{out}: is an index of the collection '{there.collection_name}', not of '{collection.name}'; "
                "give another folder with --out"
            )
        for name, value in asked.items():
            has = getattr(there, name)
            if value is not None and value != has:
                option = _OPTIONS[name]
                told = f" {option} ".join(has) if isinstance(has, tuple) else has
                raise UserError(f"{out}: was made with {option} {told}; leave {option} out, or give another --out")
        return replace(there, model=Place.of(model_folder, out), collection=Place.of(collection.path, out))
    # A first run that is killed before it says what it makes leaves its lock and a half-written index.json.
    left = {out / "writer.lock", *out.glob(f".{DESCRIPTION}.*.tmp")}
    if out.is_dir() and not left.issuperset(out.iterdir()):
        raise UserError(f"{out}: is a folder of something else; give another one with --out")
    # Only what the embeddings' shape needs; the model itself is opened when there is something to embed.
    recipe = read_json(model_folder / CONFIG)["recipe"]
    return Description(
        model=Place.of(model_folder, out),
        fingerprint=mark,
        embed_dim=int(recipe["embed_dim"]),
        method=str(recipe["regions"]["method"]),
        collection=Place.of(collection.path, out),
        collection_name=collection.name,
        regions=choose(asked["regions"] or "auto", REGIONS, "value of --regions"),
        region_sources=asked["region_sources"] or (OWN,),
        precision=choose(asked["precision"] or "float32", PRECISIONS, "value of --precision"),
    )


def _contents(collection: Collection, own: SelectedRegions, rule: str) -> dict[str, str]:
    """Key -> content of every image of the collection."""
    return {key: content_of(collection, own, row, rule) for row, key in enumerate(collection.keys)}


def _building(out: Path) -> list[Path]:
    """Tables of the parts that are done, in the order in which they were made."""
    folder = out / BUILDING
    return sorted(folder.glob("?????.parquet")) if folder.is_dir() else []


def _plan(
    collection: Collection,
    own: SelectedRegions,
    contents: Mapping[str, str],
    wanted: Description,
    out: Path,
    *,
    retry: bool,
) -> Plan:
    done: dict[str, str] = {}
    dropped = 0
    for segment in wanted.segments:
        if segment.kind == IMAGE:
            table = read_rows([segment.rows_path(out)])
            pairs = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
            kept = {key: content for key, content in pairs if contents.get(key) == content}
            dropped += table.num_rows - len(kept)
            done |= kept
    if (out / QUARANTINE).is_file() and not retry:
        table = read_rows([out / QUARANTINE], UNREADABLE)
        done |= _known(zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True), contents)
        dropped += sum(contents.get(key) is None for key in table["key"].to_pylist())
    parts = read_rows(_building(out), _PART_ROWS)
    done |= _known(zip(parts["key"].to_pylist(), parts["content"].to_pylist(), strict=True), contents)
    todo = np.array([row for row, key in enumerate(collection.keys) if key not in done], dtype=np.int64)
    grid = len(coarse_boxes())
    new_regions = 0
    for row in todo.tolist() if wanted.regions != "none" else ():
        boxes, with_grid = boxes_of(own.of(row), wanted.regions)
        new_regions += len(boxes) + grid * with_grid
    size = wanted.embed_dim * wanted.dtype.itemsize
    new_bytes = (new_regions + len(todo)) * size
    left_out = own.describe_left_out() if wanted.regions in WITH_OWN else ""
    return Plan(todo, len(collection) - len(todo), dropped, new_regions, new_bytes, left_out)


def _known(pairs: Any, contents: Mapping[str, str]) -> dict[str, str]:
    return {key: content for key, content in pairs if content is not None and contents.get(key) == content}


def _check_room(out: Path, plan: Plan) -> None:
    """Refuses before any work what cannot fit: the parts, and the segments that are made of them."""
    free = shutil.disk_usage(out).free
    if 2 * plan.new_bytes > free:
        raise UserError(
            f"{out}: the run needs about {2 * plan.new_bytes / 1e9:,.1f} GB while it is at work and "
            f"{free / 1e9:,.1f} GB are free; --regions boxes or none, or --precision float16, needs less"
        )


def _embed_parts(
    model: LocalizingModel,
    collection: Collection,
    own: SelectedRegions,
    wanted: Description,
    out: Path,
    todo: NDArray[np.int64],
    *,
    workers: int,
) -> None:
    folder = out / BUILDING
    taken = [int(path.stem) for path in _building(out)]
    number = max(taken, default=-1) + 1
    starts = range(0, len(todo), PART)
    with ThreadPoolExecutor(workers) as pool:
        for start in track(starts, description=f"images, parts of {PART}"):
            rows = todo[start : start + PART]
            table, vectors = _embed(model, collection, own, rows, wanted.regions, pool, dtype=wanted.dtype)
            for kind, parts in vectors.items():
                path, count = folder / f"{number:05d}-{kind}.npy", sum(map(len, parts))
                with new_vectors(path, rows=count, width=wanted.embed_dim, dtype=wanted.dtype) as handle:
                    for part in parts:
                        handle.write(part.tobytes())
            write_table(folder / f"{number:05d}.parquet", table)
            number += 1


@torch.inference_mode()
def _embed(
    model: LocalizingModel,
    collection: Collection,
    own: SelectedRegions,
    rows: NDArray[np.int64],
    rule: str,
    pool: ThreadPoolExecutor,
    *,
    dtype: np.dtype[Any],
) -> tuple[pa.Table, dict[str, list[NDArray[np.floating]]]]:
    """The rows of one part (images, regions and what could not be read), and the vectors of each kind."""
    preprocess = model.image_encoder.preprocess
    told: list[dict[str, Any]] = []
    vectors: dict[str, list[NDArray[np.floating]]] = {IMAGE: [], REGION: []}

    def one(row: int) -> tuple[Tensor, Placement] | str:
        try:
            return read(collection, row, preprocess)
        except BadImage as problem:
            return str(problem)

    for start in range(0, len(rows), _BATCH):
        chosen = [int(row) for row in rows[start : start + _BATCH]]
        seen = list(pool.map(one, chosen))
        good = [(row, found) for row, found in zip(chosen, seen, strict=True) if not isinstance(found, str)]
        bad = {row: found for row, found in zip(chosen, seen, strict=True) if isinstance(found, str)}
        if good:
            pixels = torch.stack([found[0] for _, found in good]).to(model.device)
            tokens = model.encode_image_tokens(pixels)
            image_BE = unit(model.encode_image(tokens))
            boxes, region_rows, owner = [np.zeros((0, 4), np.float32)], [], []
            for index, (row, (_, placement)) in enumerate(good):
                inside, described = _regions(collection.keys[row], own.of(row), placement, rule)
                boxes.append(inside)
                region_rows += described
                owner += [index] * len(inside)
            flat = torch.from_numpy(np.concatenate(boxes)).to(model.device)
            owner_R = torch.tensor(owner, dtype=torch.int64, device=model.device)
            z_RE = unit(model.encode_regions(tokens, flat, owner_R)) if owner else np.zeros((0, image_BE.shape[1]))
            usable_B, usable_R = _finite(image_BE), _finite(z_RE)
            bad |= {
                row: "its embedding is not finite" for (row, _), fine in zip(good, usable_B, strict=True) if not fine
            }
            usable_R &= usable_B[np.array(owner, dtype=np.int64)]
            vectors[IMAGE].append(image_BE[usable_B].astype(dtype))
            vectors[REGION].append(z_RE[usable_R].astype(dtype))
            told += [
                {"key": collection.keys[row], "kind": IMAGE, "content": content_of(collection, own, row, rule)}
                for (row, _), fine in zip(good, usable_B, strict=True)
                if fine
            ]
            told += [described for described, fine in zip(region_rows, usable_R, strict=True) if fine]
        told += [
            {
                "key": collection.keys[row],
                "kind": "unreadable",
                "content": content_of(collection, own, row, rule),
                "reason": reason,
            }
            for row, reason in sorted(bad.items())
        ]
    return pa.Table.from_pylist(told, schema=_PART_ROWS), vectors


def _regions(
    key: str, regions: Sequence[Region], placement: Placement, rule: str
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """Boxes [R, 4] of the model input that an image is embedded at, and their rows; those out of view left out."""
    if rule == "none":
        return np.zeros((0, 4), np.float32), []
    own, with_grid = boxes_of(regions, rule)
    found, told = [np.zeros((0, 4), np.float32)], []
    if own:
        moved_K4, kept_R = input_boxes(placement, np.stack([one.box.to_array() for one in own]), min_visible=0)
        found.append(moved_K4)
        told += [
            _row(
                key,
                region.box.to_array(),
                region.phrase,
                region.source if is_pseudo_label(region.source) else "collection",
            )
            for region, kept in zip(own, kept_R, strict=True)
            if kept
        ]
    if with_grid:
        grid_C4 = coarse_boxes(placement.letterbox.content_box.to_array())
        found.append(grid_C4)
        told += [_row(key, box, "", "grid") for box in placement.to_original(grid_C4)]
    return np.concatenate(found), told


def _row(key: str, box_4: NDArray[np.floating], phrase: str, source: str) -> dict[str, Any]:
    corners = dict(zip(("x1", "y1", "x2", "y2"), box_4.tolist(), strict=True))
    return {"key": key, "kind": REGION, **corners, "phrase": phrase, "source": source}


def _finite(vectors_NE: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(vectors_NE).all(axis=1), dtype=np.bool_)


def unit(vectors: Tensor) -> NDArray[np.float64]:
    """Unit-length vectors in float64; NaN where a vector is zero or not finite."""
    wide = vectors.detach().cpu().double()
    length = wide.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, F.normalize(wide, dim=-1), torch.nan).numpy()
