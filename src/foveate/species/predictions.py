"""Read and write the results folder of `foveate species predict`.

    predict.json          model, collection, view: what the probabilities depend on
    scores/00000.safetensors ...   probabilities, 256 images a part, in the order of the collection
    images.parquet        key, file, deployment, sequence, time, status and failure of each image
    detections.parquet    boxes
    classes.json, taxa.parquet     meaning of the columns of the scores
    decisions.parquet     one row an event or image, written by `decide`

No file here has coordinates: `decide` reads places from the collection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from foveate.core.errors import UserError, nearest
from foveate.core.files import LOCK_FILES, read_json, sweep, write_bytes_atomically, write_json_atomically
from foveate.core.model_folder import read_config
from foveate.core.results import BoxValues
from foveate.core.version import __version__
from foveate.records import layout, tables
from foveate.records.collection import Collection
from foveate.records.images import is_passing
from foveate.species.rows import StoredRows
from foveate.species.taxonomy import Classes
from foveate.survey.deployments import TABLE
from foveate.survey.survey import Survey
from foveate.survey.taxa import Taxa
from foveate.survey.videos import find_video

KIND, FORMAT = "species-results", 1
CONFIG, CLASSES, TAXA, IMAGES, BOXES, DECISIONS = (
    "predict.json",
    "classes.json",
    "taxa.parquet",
    "images.parquet",
    "detections.parquet",
    "decisions.parquet",
)
DECIDE = "decide.json"  # the settings of the decisions
_SCORES = "scores"
SURVEY = "survey"  # cards, collected by reference
TRIAGE = "triage"  # name of the model in a folder of `foveate species triage`, which has none
# What a killed run may leave before `predict.json`: the lock, the survey, and a first table of its deployments.
_BEFORE = (*LOCK_FILES, SURVEY, TABLE)
OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class ScorePart:
    """Probabilities of consecutive images.

    Attributes:
        rows_hash: of keys, bytes and views of the images: a part of other images is computed again.
        probabilities_NK: NaN where an image failed.
        failures: position in the part -> reason.
        box_rows_B: position in the part of the image of each further box, ascending; see `crops.further_boxes`.
        box_probabilities_BK: of what these boxes show.
        links: scores of the model's candidates by the graph, "hours" [N, H] and "places" [N, P], and "place_columns"
            [N], the candidate that is the image's place, -1 for none; without those that the model has not.
    """

    rows_hash: str
    probabilities_NK: NDArray[np.float32]
    failures: dict[int, str]
    links: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    box_rows_B: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    box_probabilities_BK: NDArray[np.float32] | None = None

    @property
    def all_probabilities_MK(self) -> NDArray[np.float32]:
        """Probabilities of the images, and after them those of the further boxes."""
        boxes_BK = self.box_probabilities_BK
        return self.probabilities_NK if boxes_BK is None else np.concatenate([self.probabilities_NK, boxes_BK])

    def replace_rows(self, positions: Sequence[int], part: ScorePart) -> ScorePart:
        """Return this part with other values of some images; `part` has only those of `positions`."""
        rows = list(positions)
        probabilities_NK = self.probabilities_NK.copy()
        probabilities_NK[rows] = part.probabilities_NK
        # Keep only links that both parts have: since the first one, the survey may have gained or lost coordinates.
        links = {name: values.copy() for name, values in self.links.items() if name in part.links}
        for name, values in links.items():
            values[rows] = part.links[name]
        failures = {row: reason for row, reason in self.failures.items() if row not in set(rows)}
        failures |= {rows[row]: reason for row, reason in part.failures.items()}
        joined = ScorePart(self.rows_hash, probabilities_NK, dict(sorted(failures.items())), links)
        stays_B = ~np.isin(self.box_rows_B, rows)
        box_rows_B = np.concatenate([self.box_rows_B[stays_B], np.array(rows, np.int64)[part.box_rows_B]])
        scored = [] if self.box_probabilities_BK is None else [self.box_probabilities_BK[stays_B]]
        scored += [] if part.box_probabilities_BK is None else [part.box_probabilities_BK]
        if not scored:
            return joined
        order = np.argsort(box_rows_B, kind="stable")
        return replace(joined, box_rows_B=box_rows_B[order], box_probabilities_BK=np.concatenate(scored)[order])


def write_part(folder: Path, number: int, part: ScorePart) -> None:
    """Write a part whole or not at all."""
    failures = json.dumps({str(row): reason for row, reason in part.failures.items()})
    tensors = {"probabilities": part.probabilities_NK, **part.links}
    if part.box_probabilities_BK is not None:
        tensors |= {"box_rows": part.box_rows_B, "box_probabilities": part.box_probabilities_BK}
    data = save(tensors, metadata={"rows": part.rows_hash, "failures": failures})
    path = _part_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, data)


def list_pending(folder: Path, number: int, rows_hash: str, count: int) -> list[int]:
    """List the positions of a part of `count` images that are to be computed.

    All of them if the part was not computed for exactly these images; else those that could not be reached.
    """
    path = _part_path(folder, number)
    if path.is_file():
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
            if metadata.get("rows") == rows_hash:
                failures = json.loads(metadata.get("failures", "{}"))
                return sorted(int(row) for row, reason in failures.items() if is_passing(reason))
        except (SafetensorError, OSError, ValueError):
            pass  # damaged: it is computed again
    return list(range(count))


def read_part(folder: Path, number: int) -> ScorePart:
    """Read a part.

    Raises:
        UserError: the part is missing or damaged.
    """
    path = _part_path(folder, number)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            failures = {int(row): reason for row, reason in json.loads(metadata.get("failures", "{}")).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            boxes_BK = tensors.pop("box_probabilities", None)
            box_rows_B = tensors.pop("box_rows", np.zeros(0, np.int64))
            probabilities_NK = tensors.pop("probabilities")
            return ScorePart(metadata.get("rows", ""), probabilities_NK, failures, tensors, box_rows_B, boxes_BK)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: missing or damaged; run foveate species predict again") from error


def remove_parts(folder: Path, *, first: int) -> None:
    """Remove parts behind the last one, of a collection that had more images."""
    for path in sorted((folder / _SCORES).glob("*.safetensors")):
        if path.stem.isdecimal() and int(path.stem) >= first:
            path.unlink()


def _part_path(folder: Path, number: int) -> Path:
    return folder / _SCORES / f"{number:05d}.safetensors"


def write_classes(folder: Path, classes: Classes, taxa: Taxa) -> None:
    """Write the meaning of the score columns: labels, and their taxa."""
    ids = [taxa.ids[taxon] if taxon >= 0 else "" for taxon in classes.taxa_K.tolist()]
    write_json_atomically(folder / CLASSES, {"labels": list(classes.labels), "taxa": ids})
    columns = ("id", "name", "rank", "parent", "common", "synonyms")
    rows = taxa.to_rows()
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in columns})
    tables.write_table(folder / TAXA, table)


def check_folder(folder: Path) -> None:
    """Raise UserError for a folder that is neither new nor one of results."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; --out must be a directory")
    # Besides the lock, the cards that a killed run collected into it, and the file that it was writing.
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    foreign = sorted(names - {*_BEFORE, *(path.name for path in folder.glob(f".{CONFIG}.*.tmp"))})
    if foreign and not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not empty and no results folder (it has {foreign[0]!r}); choose another with --out")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write `predict.json`, or check that the folder's one is of the same model and view; remove what a kill left.

    Raises:
        UserError: the folder holds results of another model, collection or view.
    """
    path = folder / CONFIG
    for name in (CONFIG, CLASSES, TAXA, IMAGES, BOXES):
        sweep(folder / name)
    for leftover in (folder / _SCORES).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    if path.is_file():
        stored = read_json(path)
        for name in ("kind", "collection", "split", "model", "view", "features"):
            value: Any = stored.get(name)
            expected: Any = KIND if name == "kind" else config[name]
            if name == "model" and isinstance(value, dict):
                # Compare hashes: the path may be written in another way, or the model may have moved.
                value, expected = value.get("sha256"), expected["sha256"]
            if value != expected:
                raise UserError(f"{path}: holds results of another {name}; choose another folder with --out")
        if stored["model"] != config["model"]:
            # The model has moved, so store its new path: `explain` opens it, and a prior lies beside it.
            write_json_atomically(path, stored | {"model": config["model"]})
        return
    write_json_atomically(path, {"kind": KIND, "format": FORMAT, "foveate": __version__, **config})


class Predictions:
    """A results folder, opened.

    Attributes:
        config: content of `predict.json`.
        classes, taxa: meaning of the K columns.
        images: table of all images; behind those with scores come files that are no readable image.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.taxa = Taxa.from_rows(tables.read_table(folder / TAXA).to_pylist())
        content = read_json(folder / CLASSES)
        taxa_K = [self.taxa.index(taxon) if taxon else -1 for taxon in content["taxa"]]
        self.classes = Classes(tuple(content["labels"]), np.array(taxa_K, dtype=np.int64))
        self.images = tables.read_table(folder / IMAGES)

    @classmethod
    def open(cls, folder: Path) -> Predictions:
        """Open a results folder.

        Raises:
            UserError: the folder is none, or `predict` has not finished.
        """
        fields = {"collection": str, "model": dict, "images_per_part": int}
        config = read_config(
            folder, kind=KIND, formats=(FORMAT,), fields=fields, label="species results", config_name=CONFIG
        )
        if not (folder / IMAGES).is_file():
            raise UserError(f"{folder}: predictions are not finished; run the same foveate species predict to resume")
        return cls(folder, config)

    @cached_property
    def probabilities_NK(self) -> NDArray[np.float32]:
        """Probabilities of the images of the collection; NaN where an image failed."""
        # Filled in place: joined parts would be in memory twice.
        probabilities_NK = np.empty((len(self.collection_keys), len(self.classes)), np.float32)
        for rows, part in self._parts():
            probabilities_NK[rows] = part.probabilities_NK
        return probabilities_NK

    @cached_property
    def stored_probabilities(self) -> StoredRows:
        """The same on disk, for what needs some images at a time."""
        return self._store(lambda part: part.probabilities_NK, len(self.classes))

    def store_subjects(self, images_S: NDArray[np.int64], crops_S: NDArray[np.int64], num_classes: int) -> StoredRows:
        """Return the probabilities [S, num_classes] on disk of what is seen on images.

        Args:
            images_S: position of the image of each row, ascending.
            crops_S: 0 for what the image shows, n for its further box number n; see `boxes`.
            num_classes: those of the model, and further ones behind them, which have 0.
        """
        size, count = self.config["images_per_part"], len(self.collection_keys)
        missing = ((0, 0), (0, num_classes - len(self.classes)))
        starts_P = np.searchsorted(images_S, np.arange(0, max(count, 1), size))
        ends_P = np.append(starts_P[1:], len(images_S))

        def read(number: int) -> NDArray[Any]:
            part = read_part(self.folder, number)
            rows = slice(starts_P[number], ends_P[number])
            positions, crops = images_S[rows] - number * size, crops_S[rows]
            further = len(part.probabilities_NK) + np.searchsorted(part.box_rows_B, positions) + crops - 1
            return np.pad(part.all_probabilities_MK[np.where(crops > 0, further, positions)], missing)

        return StoredRows(read, (len(images_S), num_classes), starts_P)

    def stored_places(self) -> StoredRows:
        """Return the scores [N, P] of the candidate places on disk; `links("place_columns")` tests if there are any."""
        columns = read_part(self.folder, 0).links["places"].shape[1]
        return self._store(lambda part: part.links["places"], columns)

    def _store(self, select: Callable[[ScorePart], NDArray[Any]], columns: int) -> StoredRows:
        shape = (len(self.collection_keys), columns)
        starts_P = np.arange(0, max(shape[0], 1), self.config["images_per_part"])
        return StoredRows(lambda number: select(read_part(self.folder, number)), shape, starts_P)

    def class_probabilities(self, column: int) -> NDArray[np.float32]:
        """Return the probabilities [N] of one class; NaN where an image failed."""
        # Copied: a view of one column would hold its whole part in memory.
        columns = [part.probabilities_NK[:, column].copy() for _, part in self._parts()]
        return np.concatenate([np.empty(0, np.float32), *columns])

    def links(self, name: str) -> NDArray[Any] | None:
        """Return an array of `ScorePart.links` of all images; None where not every part has it."""
        parts = [part.links.get(name) for _, part in self._parts()]
        present = [part for part in parts if part is not None]
        return np.concatenate(present) if present and len(present) == len(parts) else None

    def _parts(self) -> Iterator[tuple[slice, ScorePart]]:
        size = self.config["images_per_part"]
        for number in range(-(-len(self.collection_keys) // size)):
            yield slice(number * size, (number + 1) * size), read_part(self.folder, number)

    @cached_property
    def collection_keys(self) -> list[str]:
        """Keys of the images that have scores, in their order."""
        return self.images.filter(self.images["scored"])["key"].to_pylist()

    @cached_property
    def collection(self) -> Collection:
        """The collection that was predicted.

        Raises:
            UserError: it was moved, or has other images now.
        """
        path = Path(self.config["collection"])
        # Relative if the survey lies in this folder (`predict`), since both may have been moved.
        path = path if path.is_absolute() else self.folder / path
        if not (path / layout.DESCRIPTION).is_file():
            raise UserError(f"{self.folder / CONFIG}: the collection is not at {path} any more; move it back")
        return Collection.open(path)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of the images in the collection, in the order of the scores.

        Raises:
            UserError: the collection lacks an image that was predicted.
        """
        # Looked up by key, because images may have been added to the collection since.
        keys = pa.array(self.collection.keys, pa.string())
        rows = tables.positions(pa.array(self.collection_keys, pa.string()), among=keys)
        if (rows < 0).any():
            key = self.collection_keys[int(np.flatnonzero(rows < 0)[0])]
            raise UserError(
                f"{self.folder}: image {key!r} is not in {self.collection.path} any more; run foveate species predict "
                "again"
            )
        return rows

    @cached_property
    def survey(self) -> Survey:
        """The survey of the collection.

        Raises:
            UserError: the collection is none.
        """
        return Survey.open(self.collection)

    @cached_property
    def boxes(self) -> pa.Table:
        """Boxes: key, x1, y1, x2, y2, score, label, source, whether the image was cropped to it, and crop.

        The column crop is 0 for this box, n for the further one number n of the image, -1 where it was not classified.
        """
        table = tables.read_table(self.folder / BOXES)
        if "crop" not in table.column_names:
            # Older folders have one classified box an image.
            table = table.append_column("crop", pa.array(np.where(table["used"].to_numpy(), 0, -1), pa.int64()))
        return table

    @cached_property
    def used_boxes(self) -> dict[str, BoxValues]:
        """Corners of the box that an image was cropped to, by its key."""
        # Column by column: a survey has many more boxes than images that anyone looks at.
        used = self.boxes.filter(self.boxes["used"])
        keys, *corners = (used[name].to_pylist() for name in ("key", "x1", "y1", "x2", "y2"))
        return {key: (x1, y1, x2, y2) for key, x1, y1, x2, y2 in zip(keys, *corners, strict=True)}

    @cached_property
    def box_corners(self) -> list[BoxValues]:
        """Corners of all boxes, in the order of `boxes`."""
        columns = (self.boxes[name].to_pylist() for name in ("x1", "y1", "x2", "y2"))
        return list(zip(*columns, strict=True))

    def find_image(self, name: str) -> int:
        """Return the row of an image in the scores by its key, its file, or the end of its file's path.

        Raises:
            UserError: no image, or more than one, has that name.
        """
        files = self.images["file"].to_pylist()[: len(self.collection_keys)]
        path = name.replace("\\", "/").removeprefix("./")
        for names in (self.collection_keys, files):
            matches = [row for row, other in enumerate(names) if other == path]
            if len(matches) == 1 or (matches and find_video(self.collection_keys[matches[0]])):
                return matches[0]  # all frames of a video have its path
        # The path as the shell knows it, which begins with the folder of the cards; else the end of the file's path.
        matches = [row for row, file in enumerate(files) if file and f"/{path}".endswith(f"/{file}")]
        matches = matches or [row for row, file in enumerate(files) if f"/{file}".endswith(f"/{path}")]
        if len({files[row] for row in matches}) == 1:
            return matches[0]
        if matches:
            raise UserError(
                f"{name!r} fits {len(matches)} images, such as {files[matches[0]]!r}; give more of the path"
            )
        raise UserError(f"{self.folder}: no image {name!r}{nearest(name, [*self.collection_keys, *files])}")

    @cached_property
    def decisions(self) -> pa.Table:
        """The table of decisions.

        Raises:
            UserError: nothing was decided yet.
        """
        path = self.folder / DECISIONS
        if not path.is_file():
            raise UserError(f"{self.folder}: nothing is decided; run foveate species decide {self.folder}")
        table = tables.read_table(path)
        if "count" in table.column_names:
            return table
        # Older folders count nothing, and have one box an image.
        used = np.flatnonzero(self.boxes["crop"].to_numpy() == 0)
        rows = dict(zip(self.boxes["key"].take(pa.array(used)).to_pylist(), used.tolist(), strict=True))
        boxes = [[rows[key] for key in keys if key in rows] for keys in table["keys"].to_pylist()]
        table = table.append_column("count", pa.array(np.zeros(len(table), dtype=np.int64)))
        return table.append_column("boxes", pa.array(boxes, pa.list_(pa.int64())))

    @cached_property
    def decision_settings(self) -> dict[str, Any]:
        """Settings of the stages that decided."""
        return read_json(self.folder / DECIDE)


def describe_images(collection: Collection, rows: NDArray[np.int64], survey: Survey | None) -> dict[str, list[str]]:
    """Return file, deployment, camera, sequence and time of each image, "" where a collection is no survey."""
    keys = [collection.keys[row] for row in rows.tolist()]
    names = ("file", "deployment", "sequence", "time")
    if survey is None:
        groups = collection.groups[rows].tolist()
        return {"file": keys, "camera": groups, **{name: [""] * len(keys) for name in names[1:]}}
    columns = {name: survey.media[name].take(pa.array(rows)).to_pylist() for name in names}
    files = [file or key for file, key in zip(columns["file"], keys, strict=True)]
    return {**columns, "file": files, "camera": survey.camera_N[rows].tolist()}
