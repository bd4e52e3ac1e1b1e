"""Write a folder of photographs as people have them: names from a camera, alt-texts that are missing or wrong.

The photographs are generated scenes, so that what is wrong is known. What they show is written into a file beside the
folder, which nobody who only has the folder could know: `add_truth` copies it into a collection, to measure with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.records.collection import Collection
from foveate.records.rows import caption_row, region_row
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from foveate_labs.worlds.scenes.scene import Scene, draw_scene
from foveate_labs.worlds.scenes.scene_collection import SceneRow, make_scene_row

SOURCE = "scenes"
TABLES = ("captions", "regions", "scenes")
# Shares of the alt-texts; what is left over names the largest thing.
ALT_SHARES = {"missing": 0.3, "of another photograph": 0.3, "file name": 0.2}
_TURNS = 200


@dataclass(frozen=True)
class PhotoFolder:
    """What was written: photographs by split, and alt-texts by what is wrong with them ("" for nothing)."""

    folder: Path
    truth: Path
    splits: dict[str, int]
    alt_texts: dict[str, int]


def write_photo_folder(
    folder: str | Path,
    *,
    names: Sequence[str],
    train: int,
    test: int,
    seed: int = 0,
    size: int = 224,
    subjects: Sequence[str] | None = None,
    gray: bool = False,
) -> PhotoFolder:
    """Write photographs with poor alt-texts and a label, and what they show beside the folder.

    IMG_0001.txt has an alt-text, IMG_0001.json the split and the label `subject`, which is the largest thing.
    Of the alt-texts the shares `ALT_SHARES` are useless, the others name the subject.

    Args:
        folder: new; the truth goes into FOLDER-truth.jsonl.
        names: of the things, from at least ten families of the built-in cut-outs.
        train, test: number of photographs of each split, which the .json names; those of the test come first.
        size: side in pixels.
        subjects: of the split train; None = all names. The test always has all.
        gray: without colors, as of another camera.

    Raises:
        UserError: the folder exists, or a name is unknown.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists; expected a new folder")
    count = train + test
    train_subjects = frozenset(names if subjects is None else subjects)
    scenes = _draw_scenes(frozenset(names), train_subjects, train=train, test=test, seed=seed, size=size)
    photographs = list(track(scenes, description="photographs", total=count))
    problems = _assign_problems(count, seed)
    folder.mkdir(parents=True)
    truth = []
    for number, (scene, split) in enumerate(photographs):
        key = f"IMG_{number + 1:04d}"
        image = scene.image.convert("L").convert("RGB") if gray else scene.image
        # The suffix in upper case, as cameras write it.
        image.save(folder / f"{key}.PNG")
        fields = {"split": split, "labels": {"subject": name_subject(scene)}}
        write_text_atomically(folder / f"{key}.json", json.dumps(fields))
        problem = problems[number]
        # Half of the photographs away: its subject is as likely as any other.
        other = photographs[(number + count // 2) % count][0]
        texts = {"missing": "", "of another photograph": name_subject(other), "file name": key}
        if text := texts.get(problem, name_subject(scene)):
            write_text_atomically(folder / f"{key}.txt", text)
        row = make_scene_row(scene, key=key, split=split)
        truth.append({"key": key, "split": split, **_describe(row)})
    path = folder.with_name(f"{folder.name}-truth.jsonl")
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in truth))
    counts = {problem: problems.count(problem) for problem in (*ALT_SHARES, "")}
    return PhotoFolder(folder, path, {"train": train, "test": test}, counts)


def _describe(row: SceneRow) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the tables that say what a photograph shows."""
    exact = [replace(caption, source=SOURCE) for caption in row.captions if caption.kind == "exact"]
    regions = [replace(region, source=SOURCE) for region in row.regions]
    return {
        "captions": [caption_row(row.key, caption) for caption in exact],
        "regions": [region_row(row.key, region) for region in regions],
        "scenes": [{"key": row.key, **scene} for scene in row.extra["scenes"]],
    }


def name_subject(scene: Scene) -> str:
    """Return the name of the largest thing of a scene."""
    return max(scene.regions, key=lambda thing: int(thing.mask_HW.sum())).phrase


def _draw_scenes(
    names: frozenset[str], subjects: frozenset[str], *, train: int, test: int, seed: int, size: int
) -> Iterator[tuple[Scene, str]]:
    index = 0
    # The test first: it stays the same whatever is trained on.
    for split, count, allowed in (("test", test, names), ("train", train, subjects)):
        for _ in range(count):
            for _ in range(_TURNS):
                # Grounds of the split train: the photographs of one person, some of them not trained on.
                scene = draw_scene(seed=seed, split="train", index=index, size=size, names=names)
                index += 1
                if name_subject(scene) in allowed:
                    break
            else:
                raise UserError(f"subjects: none of them in {_TURNS} photographs (got {', '.join(sorted(allowed))})")
            yield scene, split


def _assign_problems(count: int, seed: int) -> list[str]:
    """Return what is wrong with each alt-text, in exact shares and random order."""
    problems = [problem for problem, share in ALT_SHARES.items() for _ in range(round(share * count))]
    problems += [""] * (count - len(problems))
    order: np.ndarray = generator("alt-texts", seed).permutation(count)
    return [problems[position] for position in order]


def add_truth(collection: str | Path, truth: str | Path, *, split: str = "test") -> int:
    """Add what the photographs of a split show to a collection; return their number.

    These are captions of kind `exact`, regions with the source `scenes`, and the table `scenes`.

    Args:
        collection: of the photographs.
        truth: the file that `write_photo_folder` wrote.
        split: whose truth is added. The truth of other photographs stays out, so that nothing can be trained on it.

    Raises:
        UserError: the folder is no collection, or has none of these photographs.
    """
    with Collection.open(collection) as opened:
        keys = set(opened.keys)
    rows = [json.loads(line) for line in Path(truth).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == split and row["key"] in keys]
    if not rows:
        raise UserError(f"{truth}: no photograph of split {split!r} is in {collection}")
    with CollectionWriter(collection) as writer:
        for kind in TABLES:
            writer.annotate(kind, [line for row in rows for line in row[kind]], Provenance(SOURCE))
    return len(rows)
