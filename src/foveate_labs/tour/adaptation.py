"""The tour's adaptation: its CLOC learns a question that it was trained to ignore, from a few drawings.

Which of two styles is an emoji drawn in? CLOC gave both drawings of a thing one text, so that style is what its vectors
leave out: a head on them has little to read, and the layers below must change. The frozen features are those that the
tour has cached.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.adapt.model import adapt
from foveate.adapt.recipe import AdaptTraining
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.metrics.intervals import bootstrap_interval
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import save_thumbnail
from foveate.training import loop
from foveate.training.classification import ClassificationTask, LabeledImages, training_loader
from foveate.training.linear_probe import solve_head
from foveate.vision.feature_cache import FeatureCache
from foveate.vision.localizer.model import LocalizingModel
from foveate_labs.studies.results import AdaptedExample, AdaptedRow, TourAdaptation

FOLDER = "adaptation"
FIELD, SHOTS = "style", 64
NUM_EXAMPLES = 6
# LoRA starts at zero and takes a larger rate than weights that are trained already. Of two rates each, three times
# apart, both gave the same to one in a hundred drawings.
METHODS = {"lora": ({"method": "lora", "targets": ["image_encoder.*"]}, 3e-3), "full": ({"method": "full"}, 1e-3)}
TITLES = {"linear": "Linear head", "lora": "LoRA", "full": "All weights"}


def tour_adaptation(
    collection: Collection, run: RunFolder, *, model: LocalizingModel, cache: Path, seed: int, epochs: int = 12
) -> dict[str, Any]:
    """Tune copies of a model on a few drawings of each style; return the result for the tour's page.

    Args:
        model: whose frozen features of all emoji lie in the folder `cache`; it is left as it is.
    """
    images, features = _open_images(collection, model, cache)
    # Seconds of work on 128 drawings: a processor does it everywhere.
    model = copy.deepcopy(model).cpu()
    train = images.draw_shots(images.rows("train"), SHOTS, seed=seed)
    test = images.rows("test")
    with torch.no_grad():
        encoder = model.image_encoder.eval()
        vectors_ND, vectors_MD = (encoder(features(rows)).pooled.numpy() for rows in (train, test))
    began, num_classes = time.monotonic(), len(images.classes)
    solved = solve_head(vectors_ND, images.labels_N[train], num_classes=num_classes, seed=seed)
    predicted = {"linear": solved.logits(vectors_MD).argmax(axis=1)}
    rows = [_row("linear", predicted["linear"], images.labels_N[test], 0, time.monotonic() - began)]
    for name, (config, rate) in METHODS.items():
        began = time.monotonic()
        # Both start from the solved head: from a random one, the first steps would spoil what the layers know.
        head = nn.Linear(vectors_ND.shape[1], num_classes)
        solved.copy_to(head)
        # A copy for each method, so that all start from the same untuned weights.
        adapted = adapt(copy.deepcopy(model), config, head=head, seed=seed)
        settings = AdaptTraining(epochs=epochs, batch_size=32, learning_rate=rate, seed=seed).resolve(len(train))
        task = ClassificationTask(adapted)
        trained = loop.train(
            task,
            training_loader(images, train, settings, workers=0),
            settings,
            RunFolder.create(run.path / FOLDER / name),
        )
        if trained.status != "finished":
            raise UserError(f"{run.path}: stopped; run the same command to resume")
        seconds = time.monotonic() - began
        with torch.no_grad():
            predicted[name] = adapted.eval()(features(test)).argmax(dim=1).numpy()
        rows.append(_row(name, predicted[name], images.labels_N[test], adapted.count_parameters().trained, seconds))
    return TourAdaptation(
        classes=list(images.classes),
        train_images=len(train),
        test_images=len(test),
        backbone=sum(weight.numel() for weight in model.image_encoder.parameters()),
        rows=rows,
        examples=_draw_examples(collection, run.path, images, test, predicted, seed=seed),
    ).to_json()


def _open_images(
    collection: Collection, model: LocalizingModel, cache: Path
) -> tuple[LabeledImages, Callable[[NDArray[np.int64]], Tensor]]:
    """Return the emoji with their styles, and a function from rows to their frozen features [N, F]."""
    encoder = model.image_encoder
    rows = collection.rows(where={"source": "emoji"})
    stored = FeatureCache.of_whole_images(encoder, collection, rows, folder=cache, device=model.device)
    values = collection.label_values(FIELD)
    classes = tuple(sorted(set(values[rows].tolist()) - {""}))
    # -1 keeps images without a style, and those that cannot be read, out of every split.
    labels_N = np.full(len(values), -1, dtype=np.int64)
    for row in rows.tolist():
        if values[row] in classes and row not in stored.bad:
            labels_N[row] = classes.index(values[row])

    def load(row: int, view: View = View()) -> Tensor:  # noqa: B008, a view is frozen
        return stored.features(row, 0).float()

    images = LabeledImages("emoji", classes, collection.keys, labels_N, np.asarray(collection.splits), load)
    return images, lambda rows: torch.stack([load(row) for row in rows.tolist()])


def _row(
    name: str, predicted_N: NDArray[np.int64], labels_N: NDArray[np.int64], trained: int, seconds: float
) -> AdaptedRow:
    # An interval over images, because each method is trained only once.
    accuracy = bootstrap_interval((predicted_N == labels_N).astype(float), seed=("tour adaptation", name)).to_value()
    return AdaptedRow(key=name, title=TITLES[name], trained=trained, accuracy=accuracy, seconds=round(seconds, 1))


def _draw_examples(
    collection: Collection,
    run: Path,
    images: LabeledImages,
    test: NDArray[np.int64],
    predicted: Mapping[str, NDArray[np.int64]],
    *,
    seed: int,
) -> list[AdaptedExample]:
    """Draw held-out images, right or wrong alike."""
    order = np.argsort([seeds.uniform("tour adaptation", seed, images.keys[row]) for row in test.tolist()])
    examples = []
    for position in order[:NUM_EXAMPLES].tolist():
        row = int(test[position])
        path = run / "images" / f"adaptation-{row:06d}.webp"
        save_thumbnail(collection.image_bytes(row), path, longest_side=160)
        titles = [caption.text for caption in collection.read_captions(row) if caption.kind == "title"]
        examples.append(
            AdaptedExample(
                image=path.relative_to(run).as_posix(),
                title=titles[0] if titles else "",
                label=images.classes[int(images.labels_N[row])],
                answers={name: images.classes[int(answers[position])] for name, answers in predicted.items()},
            )
        )
    return examples
