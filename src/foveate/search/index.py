"""Build an index of a collection: embeddings of its images and regions, in parts that survive a kill.

A run embeds what the index lacks, in parts of 128 images; a part is valid once its table exists. At the end all parts
become segments in one step. The same command resumes with the next part; on a complete index it only drops what
the collection has since removed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from foveate.core.errors import UserError
from foveate.core.files import LOCK_FILES, FolderLock
from foveate.core.progress import say
from foveate.core.recipes import validate
from foveate.records import layout
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.folder_collection import FolderChanges, check_images, refer_to_folder
from foveate.records.geometry import Placement
from foveate.records.images import BadImage
from foveate.records.ocr import INSTALL, has_ocr
from foveate.records.ray_work import ExecutorSettings, run_to_end, share_work
from foveate.records.record import Region
from foveate.records.region_sources import OWN_SOURCES, SelectedRegions, is_pseudo_label
from foveate.records.tables import write_table
from foveate.search.calibration import draw_letters, draw_texts, measure_floor, measure_spreads
from foveate.search.index_folder import (
    BUILDING,
    DESCRIPTION,
    IMAGE,
    QUARANTINE,
    RANDOM_LETTERS,
    RANDOM_TEXTS,
    REGION,
    ROWS,
    UNREADABLE,
    Description,
    MovablePath,
    merge_parts,
    new_vectors,
    read_rows,
    sweep,
    write_texts,
)
from foveate.search.settings import IndexSettings
from foveate.vision.localizer.inference import coarse_boxes, embed_phrases, encode_crops
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.sources import ModelSource, find_model
from foveate.vision.preprocess import move_boxes, read_image

WITH_REGIONS = ("auto", "boxes", "both")
_OPTIONS = {"regions": "--regions", "region_sources": "--region-source", "precision": "--precision"}
# A part takes seconds, so a kill costs little; its files are still large enough to write at full speed.
PART = 128
# The collection of a plain folder of images, inside the index.
COLLECTION = "collection"
_BATCH = 32
_PART_ROWS = pa.schema([*ROWS, pa.field("reason", pa.string())])


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """The work of a run: images to embed (`todo`), indexed and dropped ones, new rows and bytes, notes.

    Attributes:
        crops: boxes that are embedded as images of their own. folder: counts of a plain folder of images.
    """

    todo: NDArray[np.int64]
    indexed: int
    dropped: int
    new_regions: int
    new_bytes: int
    left_out: str = ""
    crops: int = 0
    folder: FolderChanges | None = None

    def format_line(self) -> str:
        """Describe the work in one line."""
        text = (
            f"{len(self.todo):,} images to embed with {self.new_regions:,} regions, {self.new_bytes / 1e6:,.1f} MB; "
            f"{self.indexed:,} already indexed, {self.dropped:,} to drop"
        )
        return f"{text}; {self.left_out}" if self.left_out else text

    def price_crops(self) -> str:
        """Say what boxes cost with a model that never learned places; "" where there are none."""
        passes = 1 + self.crops / max(1, len(self.todo))
        text = f"this model never learned places, so {self.crops:,} boxes are embedded as crops: {passes:.1f} passes of"
        return f"{text} the image encoder for each image instead of one" if self.crops else ""


def select_boxes(regions: Sequence[Region], rule: str, *, crops: bool = False) -> tuple[Sequence[Region], bool]:
    """Return the regions that a rule embeds, and whether the grid of coarse boxes is embedded too.

    Args:
        crops: each box costs a pass of the encoder, so `auto` has no grid.
    """
    selected = regions if rule in WITH_REGIONS else ()
    return selected, rule in ("grid", "both") or (rule == "auto" and not regions and not crops)


def hash_content(collection: Collection, regions: SelectedRegions, row: int, rule: str) -> str:
    """Return a hash of what an image's rows in the index depend on: its bytes and its embedded regions."""
    selected = select_boxes(regions.read(row), rule)[0] if rule != "none" else ()
    described = [(region.phrase, *region.box.to_array().tolist()) for region in selected]
    # The image's own hash: a re-encoded file is another image, a moved one is not.
    text = f"{collection.index['sha256'][row]} {described!r}"
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def build_index(
    model: str | Path,
    collection_folder: Path,
    out: Path,
    *,
    regions: str | None = None,
    region_sources: Sequence[str] | None = None,
    precision: str | None = None,
    ocr: bool = False,
    device: str | None = None,
    workers: int = 2,
    retry: bool = False,
    executor: str = "local",
    processes: int = 2,
    dry_run: bool = False,
) -> tuple[Description, IndexPlan]:
    """Build the index `out`, or bring it up to date with its collection.

    Args:
        model: see `foveate.vision.localizer.sources.find_model`.
        collection_folder: a collection, or a plain folder of images; `out` then has a collection that refers to them.
        regions: "auto" (an image's regions, or the grid where it has none and the model learned places), "boxes",
            "grid", "both" or "none". By default that of the existing index, "auto" for a new one.
        region_sources: sources of the regions, as in `foveate.records.region_sources`. By default those of the existing
            index; for a new one all but a detector's.
        precision: "float32" or "float16" of the stored vectors. By default that of the existing index, else
            "float32".
        ocr: words that are read in the images find them, as captions do; an index keeps to it.
        retry: also try the quarantined images again.
        executor: where images are embedded: "local", or "ray" (extra) in `processes` of them.
        dry_run: only plan.

    Raises:
        UserError: another model, rule, choice of sources or precision than those of the index; a source without a
            region; too little room on the disk; `ocr` without the extra of that name.
    """
    content = {"regions": regions, "region_sources": region_sources or None, "precision": precision}
    content |= {"ocr": ocr, "retry": retry, "executor": executor, "processes": processes}
    settings = validate(IndexSettings, content, where="foveate index")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder for --out")
    if settings.ocr and not has_ocr():
        raise UserError(f"--ocr: RapidOCR is not installed; run `{INSTALL}`")
    source = find_model(model)
    options = settings.model_dump(include=set(_OPTIONS))
    # A first run opens the model before all else: one out of reach must not cost an import, nor leave a folder.
    is_first = not dry_run and not (out / DESCRIPTION).is_file()
    network: LocalizingModel | None = None
    with contextlib.ExitStack() as stack:
        changes = None
        if is_plain_folder(collection_folder):
            # Before the lock, so that a mistake leaves no folder.
            _check_new(out)
            check_images(collection_folder, out)
            network = source.load(device=device) if is_first else None
            images, collection_folder = collection_folder, out / COLLECTION
            if dry_run:
                # What a run would do with the folder is known only after reading it; nothing of that is kept.
                collection_folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / COLLECTION
            else:
                stack.enter_context(FolderLock(out, purpose="foveate index"))
            changes = refer_to_folder(images, collection_folder, workers=workers)
        collection = Collection.open(collection_folder)
        target, source_regions = _describe_target(source, collection, out, options)
        if not dry_run and changes is None:
            network = source.load(device=device) if is_first else None
            stack.enter_context(FolderLock(out, purpose="foveate index"))
            # Read again under the lock: another process may have written in between.
            target, source_regions = _describe_target(source, collection, out, options)
        if not dry_run:
            sweep(out, target)
        contents = _contents(collection, source_regions, target.regions)
        plan = replace(_plan(collection, source_regions, contents, target, out, retry=retry), folder=changes)
        if dry_run:
            return target, plan
        _check_room(out, plan)
        say(plan.format_line())
        if plan.crops:
            say(plan.price_crops())
        outdated = bool(len(plan.todo) or plan.dropped or not target.finished)
        if outdated or not target.spreads or target.floor is None:
            # Written before any work: after a kill, the next run knows that parts may wait to be merged.
            replace(target, finished=False).write(out)
            missing = not all((out / name).is_file() for name in (RANDOM_TEXTS, RANDOM_LETTERS))
            if len(plan.todo) or missing:
                network = network or source.load(device=device)
                if missing:
                    write_random_texts(network, out)
                _embed_parts(
                    network, collection, source_regions, target, out, plan.todo,
                    source=source, device=device, workers=workers, work=settings,
                )  # fmt: skip
            target = merge_parts(target, out, contents=contents) if outdated else target
            target = replace(target, spreads=measure_spreads(out, target))
            target = replace(target, floor=measure_floor(out, target))
        target = replace(target, ocr=target.ocr or settings.ocr)
        # Also without new images: captions, or the folders of the model or the collection, may be new.
        target = replace(target, texts=write_texts(target, out, collection))
        target.write(out)
        sweep(out, target)
        # Only after index.json lists the segments made from the parts.
        shutil.rmtree(out / BUILDING, ignore_errors=True)
    return target, plan


def is_plain_folder(path: Path) -> bool:
    """Tell whether a path is a folder, but no collection."""
    return path.is_dir() and not (path / layout.DESCRIPTION).is_file()


def _describe_target(
    source: ModelSource, collection: Collection, out: Path, options: Mapping[str, Any]
) -> tuple[Description, SelectedRegions]:
    """Return the description of the index that a run writes, and the regions that it embeds."""
    target = _target_description(source, collection, out, options)
    if options["region_sources"] and target.regions not in WITH_REGIONS:
        raise UserError(
            f"--region-source has no effect with --regions {target.regions}, which embeds no regions of the data"
        )
    return target, SelectedRegions(collection, target.region_sources)


def _check_new(out: Path) -> None:
    """Raise UserError if `out` is neither an index, nor empty, nor what a killed first run leaves."""
    leftovers = {*(out / name for name in LOCK_FILES), out / COLLECTION, *out.glob(f".{DESCRIPTION}.*.tmp")}
    if (out / DESCRIPTION).is_file() or not out.is_dir() or leftovers.issuperset(out.iterdir()):
        return
    raise UserError(f"{out}: is neither empty nor an index; give another folder with --out")


def _target_description(
    source: ModelSource, collection: Collection, out: Path, options: Mapping[str, Any]
) -> Description:
    """Return the existing index's description, checked against the options, or that of a new index."""
    if (out / DESCRIPTION).is_file():
        existing = Description.read(out)
        if existing.fingerprint != source.fingerprint():
            raise UserError(
                f"{out}: was made with another model ({existing.model.path}); give another folder with --out"
            )
        if existing.collection_name != collection.name:
            raise UserError(
                f"{out}: is an index of the collection '{existing.collection_name}', not of '{collection.name}'; "
                "give another folder with --out"
            )
        for name, value in options.items():
            current = getattr(existing, name)
            if value is not None and value != current:
                option = _OPTIONS[name]
                text = f" {option} ".join(current) if isinstance(current, tuple) else current
                raise UserError(f"{out}: was made with {option} {text}; leave {option} out, or give another --out")
        # The paths are updated, because model and collection may have moved since the index was made.
        return existing.at(source, collection.path, out)
    _check_new(out)
    description = Description(
        model=MovablePath("", ""),
        fingerprint=source.fingerprint(),
        embed_dim=source.embed_dim,
        method=source.method,
        crops=not source.localizes,
        collection=MovablePath.of(collection.path, out),
        collection_name=collection.name,
        regions=options["regions"] or "auto",
        region_sources=options["region_sources"] or (OWN_SOURCES,),
        precision=options["precision"] or "float32",
    )
    return description.at(source, collection.path, out)


def _contents(collection: Collection, source_regions: SelectedRegions, rule: str) -> dict[str, str]:
    """Return key -> content hash of every image of the collection."""
    return {key: hash_content(collection, source_regions, row, rule) for row, key in enumerate(collection.keys)}


def _building(out: Path) -> list[Path]:
    """List the tables of the finished parts, in the order of writing."""
    folder = out / BUILDING
    return sorted(folder.glob("?????.parquet")) if folder.is_dir() else []


def _plan(
    collection: Collection,
    source_regions: SelectedRegions,
    contents: Mapping[str, str],
    target: Description,
    out: Path,
    *,
    retry: bool,
) -> IndexPlan:
    done: dict[str, str] = {}
    dropped = 0
    for segment in target.segments:
        if segment.kind == IMAGE:
            table = read_rows([segment.rows_path(out)])
            pairs = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
            # An image whose regions changed is dropped and embedded anew: its rows describe what is no longer there.
            current = {key: content for key, content in pairs if contents.get(key) == content}
            dropped += table.num_rows - len(current)
            done |= current
    if (out / QUARANTINE).is_file() and not retry:
        table = read_rows([out / QUARANTINE], UNREADABLE)
        done |= _known(zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True), contents)
        dropped += sum(contents.get(key) is None for key in table["key"].to_pylist())
    parts = read_rows(_building(out), _PART_ROWS)
    done |= _known(zip(parts["key"].to_pylist(), parts["content"].to_pylist(), strict=True), contents)
    todo = np.array([row for row, key in enumerate(collection.keys) if key not in done], dtype=np.int64)
    grid = len(coarse_boxes())
    new_regions = 0
    for row in todo.tolist() if target.regions != "none" else ():
        boxes, with_grid = select_boxes(source_regions.read(row), target.regions, crops=target.crops)
        new_regions += len(boxes) + grid * with_grid
    size = target.embed_dim * target.dtype.itemsize
    new_bytes = (new_regions + len(todo)) * size
    left_out = source_regions.describe_left_out() if target.regions in WITH_REGIONS else ""
    crops = new_regions if target.crops else 0
    return IndexPlan(todo, len(collection) - len(todo), dropped, new_regions, new_bytes, left_out, crops)


def _known(pairs: Any, contents: Mapping[str, str]) -> dict[str, str]:
    return {key: content for key, content in pairs if content is not None and contents.get(key) == content}


def _check_room(out: Path, plan: IndexPlan) -> None:
    """Fail early if the disk has no room for the parts and the segments made from them."""
    free = shutil.disk_usage(out).free
    # Twice: the parts stay until the segments made from them are valid.
    if 2 * plan.new_bytes > free:
        raise UserError(
            f"{out}: the run needs about {2 * plan.new_bytes / 1e9:,.1f} GB of disk ({free / 1e9:,.1f} GB are free); "
            "--regions boxes or none, or --precision float16, needs less"
        )


def write_random_texts(model: LocalizingModel, out: Path) -> None:
    """Embed the random names that scores are calibrated against, and the random letters of the floor."""
    for name, texts in ((RANDOM_TEXTS, draw_texts()), (RANDOM_LETTERS, draw_letters())):
        vectors = unit(embed_phrases(model, texts)).astype(np.float32)
        with new_vectors(out / name, rows=len(vectors), width=vectors.shape[1], dtype=vectors.dtype) as handle:
            handle.write(vectors.tobytes())


def _embed_parts(
    model: LocalizingModel,
    collection: Collection,
    source_regions: SelectedRegions,
    target: Description,
    out: Path,
    todo: NDArray[np.int64],
    *,
    source: ModelSource,
    device: str | None,
    workers: int,
    work: ExecutorSettings,
) -> None:
    folder = out / BUILDING
    numbers_of_parts = [int(path.stem) for path in _building(out)]
    # Numbering continues after the parts of a killed run, which are merged with the new ones.
    number = max(numbers_of_parts, default=-1) + 1
    items = [(number + index, todo[start : start + PART]) for index, start in enumerate(range(0, len(todo), PART))]
    with ThreadPoolExecutor(workers) as pool:
        executor = share_work(
            functools.partial(_embed, model, collection, source_regions, target, pool),
            functools.partial(_open_embedder, source, collection.path, target, device, workers),
            items,
            work,
            description=f"images, parts of {PART}",
        )
        for number, table, vectors in run_to_end(executor):
            # The table last: with it the part is complete, and a killed run has it whole or not at all.
            for kind, parts in vectors.items():
                path, count = folder / f"{number:05d}-{kind}.npy", sum(map(len, parts))
                with new_vectors(path, rows=count, width=target.embed_dim, dtype=target.dtype) as handle:
                    for part in parts:
                        handle.write(part.tobytes())
            write_table(folder / f"{number:05d}.parquet", table)


def _open_embedder(
    source: ModelSource, collection: Path, target: Description, device: str | None, workers: int
) -> Callable[[_Part], Iterator[_Embedded]]:
    """Open model and collection in a process of its own; return what embeds a part there."""
    opened = Collection.open(collection)
    regions = SelectedRegions(opened, target.region_sources)
    return functools.partial(_embed, source.load(device=device), opened, regions, target, ThreadPoolExecutor(workers))


# Number and rows of a part; its number, rows of tables (images, regions, unreadable images), vectors of each kind.
_Part = tuple[int, NDArray[np.int64]]
_Embedded = tuple[int, pa.Table, dict[str, list[NDArray[np.floating]]]]


@torch.inference_mode()
def _embed(
    model: LocalizingModel,
    collection: Collection,
    source_regions: SelectedRegions,
    target: Description,
    pool: ThreadPoolExecutor,
    part: _Part,
) -> Iterator[_Embedded]:
    """Embed one part."""
    number, rows = part
    preprocess, rule, dtype = model.image_encoder.preprocess, target.regions, target.dtype
    rows_of_part: list[dict[str, Any]] = []
    vectors: dict[str, list[NDArray[np.floating]]] = {IMAGE: [], REGION: []}

    def read_row(row: int) -> tuple[Tensor, Placement] | str:
        try:
            return read_image(collection, row, preprocess)
        except BadImage as problem:
            return str(problem)

    for start in range(0, len(rows), _BATCH):
        batch_rows = [int(row) for row in rows[start : start + _BATCH]]
        pairs = list(zip(batch_rows, pool.map(read_row, batch_rows), strict=True))
        good = [(row, image) for row, image in pairs if not isinstance(image, str)]
        bad = {row: image for row, image in pairs if isinstance(image, str)}
        if good:
            pixels = torch.stack([image[0] for _, image in good]).to(model.device)
            # The tokens are computed once per image: all its boxes read the same ones.
            tokens = model.encode_image_tokens(pixels)
            image_BE = unit(model.encode_image(tokens))
            boxes: list[NDArray[Any]] = [np.zeros((0, 4), np.float32)]
            region_rows: list[dict[str, Any]] = []
            owner: list[int] = []
            for index, (row, (_, placement)) in enumerate(good):
                view = None if target.crops else placement
                inside, described = _embedded_regions(collection.keys[row], source_regions.read(row), view, rule)
                boxes.append(inside)
                region_rows += described
                owner += [index] * len(inside)
            boxes_R4 = np.concatenate(boxes)
            z_RE = np.zeros((0, image_BE.shape[1]))
            if owner and target.crops:
                pairs_R = [
                    (good[index][0], Box.from_array(box, clipped=True))
                    for index, box in zip(owner, boxes_R4, strict=True)
                ]
                z_RE = encode_crops(model, collection, pairs_R).astype(np.float64)
            elif owner:
                owner_R = torch.tensor(owner, dtype=torch.int64, device=model.device)
                z_RE = unit(model.encode_regions(tokens, torch.from_numpy(boxes_R4).to(model.device), owner_R))
            # A vector with NaN has no cosine, and sorts before or after all others, as the backend pleases.
            usable_B, usable_R = _finite(image_BE), _finite(z_RE)
            bad |= {
                row: "its embedding is not finite" for (row, _), fine in zip(good, usable_B, strict=True) if not fine
            }
            # The regions of an image that is left out are left out too: their rows would have no image.
            usable_R &= usable_B[np.array(owner, dtype=np.int64)]
            vectors[IMAGE].append(image_BE[usable_B].astype(dtype))
            vectors[REGION].append(z_RE[usable_R].astype(dtype))
            rows_of_part += [
                {
                    "key": collection.keys[row],
                    "kind": IMAGE,
                    "content": hash_content(collection, source_regions, row, rule),
                }
                for (row, _), fine in zip(good, usable_B, strict=True)
                if fine
            ]
            rows_of_part += [described for described, fine in zip(region_rows, usable_R, strict=True) if fine]
        rows_of_part += [
            {
                "key": collection.keys[row],
                "kind": "unreadable",
                "content": hash_content(collection, source_regions, row, rule),
                "reason": reason,
            }
            for row, reason in sorted(bad.items())
        ]
    yield number, pa.Table.from_pylist(rows_of_part, schema=_PART_ROWS), vectors


def _embedded_regions(
    key: str, regions: Sequence[Region], placement: Placement | None, rule: str
) -> tuple[NDArray[Any], list[dict[str, Any]]]:
    """Return the boxes [R, 4] of the model input to embed, and their rows; those out of view are left out.

    Args:
        placement: of the image in the model input; None for crops, whose boxes are those of the image.
    """
    if rule == "none":
        return np.zeros((0, 4), np.float32), []
    selected, with_grid = select_boxes(regions, rule, crops=placement is None)
    boxes: list[NDArray[Any]] = [np.zeros((0, 4), np.float32)]
    rows: list[dict[str, Any]] = []
    if selected:
        boxes_R4 = np.stack([region.box.to_array() for region in selected])
        # Crops are cut from the original, so no box is out of view.
        if placement is None:
            moved_K4, visible_R = boxes_R4, np.ones(len(boxes_R4), bool)
        else:
            moved_K4, visible_R = move_boxes(placement, boxes_R4, min_visible=0)
        boxes.append(moved_K4)
        rows += [
            _row(
                key,
                region.box.to_array(),
                region.phrase,
                region.source if is_pseudo_label(region.source) else "collection",
            )
            for region, visible in zip(selected, visible_R, strict=True)
            if visible
        ]
    if with_grid:
        # The grid covers only the content: a box on the letterbox bars shows nothing.
        grid_C4 = coarse_boxes(None if placement is None else placement.letterbox.content_box.to_array())
        boxes.append(grid_C4)
        original_C4 = grid_C4 if placement is None else placement.to_original(grid_C4)
        rows += [_row(key, box, "", "grid") for box in original_C4]
    return np.concatenate(boxes), rows


def _row(key: str, box_4: NDArray[np.floating], phrase: str, source: str) -> dict[str, Any]:
    corners = dict(zip(("x1", "y1", "x2", "y2"), box_4.tolist(), strict=True))
    return {"key": key, "kind": REGION, **corners, "phrase": phrase, "source": source}


def _finite(vectors_NE: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(vectors_NE).all(axis=1), dtype=np.bool_)


def unit(vectors: Tensor) -> NDArray[np.float64]:
    """Scale vectors to unit length in float64; NaN where a vector is zero or not finite."""
    # In float64, so that a stored vector has its length to the last bit of float32.
    wide = vectors.detach().cpu().double()
    length = wide.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, F.normalize(wide, dim=-1), torch.nan).numpy()
