"""Images and collections made hostile, as a model's input reads them: decoding, placing, sampling, batching."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_images import good, random_image, whole
from fuzz_run import Target, Trial
from fuzz_values import as_json, damaged, mutated, odd_number, odd_text

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage, check, decode, decode_fraction, examine
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter


def check_words(problem: UserError) -> None:
    """A refusal is one line, and what is counted has a short code."""
    assert str(problem).strip()
    assert "\n" not in str(problem)
    assert getattr(problem, "reason", "none")


def images(trial: Trial) -> str:
    """Bytes that want to be an image, read in all ways that there are."""
    random, data = trial.random, random_image(trial.random)
    (trial.folder / "image").write_bytes(data)
    try:
        examined = examine(data)
    except BadImage as problem:
        check_words(problem)
        for read in (check, decode, functools.partial(decode, longest_side=32)):
            try:
                read(data)
            except BadImage:
                continue
        return problem.reason
    info = check(data)
    assert (info.width, info.height) == (examined.info.width, examined.info.height)
    image = decode(data, longest_side=random.choice((None, 1, 7, 64, 10_000)))
    assert image.mode == "RGB"
    image, size = decode_fraction(data, min_side=random.choice((1, 16, 300)))
    assert size == (info.width, info.height)
    view = View(crop=Box(0.1, 0.2, 0.9, 0.8) if random.random() < 0.5 else None, flip=random.random() < 0.5)
    square = view.fit(*size, random.choice((1, 16, 33))).render(image)
    assert square.width == square.height
    return "read"


@functools.cache
def _model() -> Any:
    import tiny
    from foveate.vision.localizer.model import LocalizingModel

    return LocalizingModel(tiny.recipe()).eval()


@functools.cache
def collection() -> Path:
    """A good collection: packed and referenced images, texts, regions, labels, splits, one removed."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-collection-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    outside = home / "c" / "files" / "out.jpg"
    with CollectionWriter(home / "c", source="test", images_per_shard=3, created="2026-01-01") as writer:
        outside.parent.mkdir()
        outside.write_bytes(good(50))
        for number, data in enumerate((*whole()[:8], good(50))):
            writer.add(
                f"k{number}",
                data,
                captions=[Caption(f"a thing number {number}")],
                regions=[Region(Box(0.1, 0.1, 0.6, 0.7), "thing"), Region(Box(0, 0, 1, 1), "whole", label="x")],
                labels={"color": "red"},
                split="train" if number else "test",
                location=outside if number == 8 else None,
            )
        writer.remove(["k1"], reason="test")
    return home / "c"


def _hurt(random: Random, path: Path, trial: Trial) -> None:
    """One file of the collection: its bytes, its values, its type, or gone."""
    action = random.randrange(8)
    trial.note((str(path.relative_to(trial.folder)), action))
    if action == 0:
        path.unlink()
    elif action == 1 and path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        pq.write_table(with_odd_cells(random, table), path)
    elif action == 2 and path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        name = random.choice(table.column_names)
        pq.write_table(table.drop([name]) if random.random() < 0.5 else table.take(pa.array([0] * 3)), path)
    elif action == 3:
        path.unlink()
        random.choice((lambda: os.mkfifo(path) if path.suffix == ".jpg" else path.mkdir(), path.mkdir))()
    elif path.suffix == ".json":
        import json

        path.write_bytes(as_json(random, mutated(random, json.loads((collection() / path.name).read_bytes()))))
    else:
        path.write_bytes(damaged(random, path.read_bytes()))


def with_odd_cells(random: Random, table: pa.Table) -> pa.Table:
    """The table with one cell, or the type of one column, changed."""
    name = random.choice(table.column_names)
    kind, values = table.schema.field(name).type, table[name].to_pylist()
    place = random.randrange(len(values)) if values else None
    if place is None:
        return table
    odd: Any = None
    if pa.types.is_string(kind) and random.random() < 0.9:
        odd = random.choice(
            (odd_text(random).encode("utf-8", "replace").decode(), "../../secret", "/etc/passwd", "k0", "")
        )
    elif random.random() < 0.9:
        odd = odd_number(random)
    values[place] = odd
    try:
        column = pa.array(values, random.choice((kind, kind, kind, None)))
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        column = pa.nulls(len(values), kind)
    return table.set_column(table.column_names.index(name), name, column)


def loader(trial: Trial) -> str:
    """A damaged collection: opened, looked at, sampled and batched as training does."""
    import torch

    from foveate.pretrain.dataset import PretrainDataset
    from foveate.pretrain.recipe import DataSettings
    from foveate.training.loader import Loader

    random, place = trial.random, trial.folder / "c"
    shutil.copytree(collection(), place)
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "writer.lock"]
    for _ in range(random.choice((1, 1, 1, 3))):
        path = random.choice(files)
        if path.is_file():
            _hurt(random, path, trial)
    with Collection.open(place) as opened:
        for row in range(len(opened)):
            opened.record(row)
            try:
                opened.image_bytes(row, verify=random.random() < 0.3)
            except BadImage:
                continue
        opened.quarantine()
        model = _model()
        dataset = PretrainDataset(
            opened, DataSettings(), model.image_encoder, model.text_encoder, seed=1, cache=trial.folder / "cache",
            device=torch.device("cpu"), with_regions=True,
        )  # fmt: skip
        batches = Loader(dataset, rows=dataset.rows, batch_size=2, seed=1, workers=0, max_bad_fraction=1.0)
        for batch in batches.batches(0, 2):
            boxes_R4 = batch["boxes_R4"]
            assert bool(((boxes_R4 >= 0) & (boxes_R4 <= 1)).all()), "a box outside of the model input"
            assert bool(torch.isfinite(boxes_R4).all())
    return "sampled, with bad samples" if batches.bad_samples else "sampled"


def writing(trial: Trial) -> str:
    """A damaged collection: an import into it, a removal from it, its inspection, its export."""
    from foveate.records.exporters.coco import export_coco
    from foveate.records.importers.folder import import_folder
    from foveate.records.inspection import summarize
    from foveate.records.removal import remove_images
    from foveate.records.splits import assign_splits

    random, place = trial.random, trial.folder / "c"
    shutil.copytree(collection(), place)
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "writer.lock"]
    _hurt(random, random.choice(files), trial)
    source = trial.folder / "s"
    source.mkdir()
    (source / "new.jpg").write_bytes(good(7))
    steps = {
        "import": lambda: import_folder(source, place, workers=1),
        "remove": lambda: remove_images(place, ["k2"]),
        "inspect": lambda: summarize(Collection.open(place), None),
        "export": lambda: export_coco(Collection.open(place), trial.folder / "out"),
        "split": lambda: assign_splits(place, fractions={"train": 0.5, "test": 0.5}, seed=1),
    }
    refused = 0
    for name in random.sample(sorted(steps), 3):
        trial.note(name)
        try:
            steps[name]()
        except UserError as problem:
            check_words(problem)
            refused += 1
        except OSError as problem:
            from foveate.core.errors import explain_os_error

            if explain_os_error(problem) is None:
                raise
            refused += 1
    return f"{3 - refused} of 3 steps done"


DECODING = {one.name: one for one in (Target("images", images), Target("loader", loader), Target("writing", writing))}
