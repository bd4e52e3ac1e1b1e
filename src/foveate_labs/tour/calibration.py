"""The tour's calibration: fine-tune a network on half of the emoji subcategories in another style, then calibrate it.

The world is that of the study `calibration`; images and frozen features are those that the tour has cached already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.calibrate.diagnosis import Outputs
from foveate.calibrate.fine_tuning import fine_tune, head_weights, make_pseudo_runs, predict_classifier
from foveate.calibrate.run import Evidence, calibrate
from foveate.calibrate.settings import FineTuneSettings
from foveate.core import seeds
from foveate.core.files import atomic_file
from foveate.core.runs import RunFolder
from foveate.metrics.class_groups import ClassGroups
from foveate.metrics.nearest_mean import head_changes
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.training.classification import Predictions
from foveate.vision.feature_cache import FeatureCache
from foveate.vision.lite0 import Lite0Encoder, unpack_maps
from foveate_labs.studies.calibration import EMOJI, FULL, RATES
from foveate_labs.studies.calibration_worlds import FineTuningWorld, emoji_arrays, held_out, open_emoji, prepare_emoji
from foveate_labs.studies.image_features import average_maps

NUM_EXAMPLES = {"absent": 6, "seen": 3}  # images on the page whose answer gamma changes
FOLDER = "calibration"


def tour_calibration(
    collection: Collection,
    run: RunFolder,
    *,
    encoder: Lite0Encoder,
    cache: Path,
    seed: int,
    device: str | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Pre-train, fine-tune and calibrate; return the result for the tour's page.

    Args:
        encoder: whose frozen features of all emoji lie in the folder `cache`.
        epochs: of the fine-tuning; the study's number by default.
    """
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)

    def features(path: Path) -> None:
        _features(path, collection, encoder, cache)

    scale = FULL
    prepare_emoji(folder, epochs=epochs or scale.pretraining_epochs, features=features)
    world = open_emoji(folder)
    order = seeds.generator("tour calibration", seed).permutation(world.classes)
    groups = ClassGroups.of(np.sort(order[: world.classes // 2]), classes=world.classes)
    rate, share = RATES[EMOJI]["safe"]
    settings = FineTuneSettings(
        epochs=epochs or scale.epochs, learning_rate=rate, backbone_rate=share, seed=seed, workers=0
    )
    seen = np.flatnonzero(np.isin(world.train.labels_N, groups.seen))
    after = fine_tune(world.before, world.train, settings, folder / "fine-tuning", rows=seen, device=device)
    # Pseudo runs take the settings of the fine-tuning: gamma is estimated on models that were tuned alike.
    runs = make_pseudo_runs(
        world.before, world.train, groups.seen, settings, folder, count=scale.pseudo_splits, seed=seed, device=device
    )
    whole, tested = predict_classifier(after, world.train), predict_classifier(after, world.test)
    whole_before, first = predict_classifier(world.before, world.train), predict_classifier(world.before, world.test)
    evidence = Evidence(
        world.before.names,
        groups,
        training=(whole.logits[seen], whole.labels[seen]),
        runs=runs,
        test=Outputs(tested.logits, tested.features, (whole.features, whole.labels)),
        labels=tested.labels,
        before=Outputs(first.logits, first.features, (whole_before.features, whole_before.labels)),
        head=head_changes(head_weights(world.before), head_weights(after), groups),
    )
    calibrated = calibrate(evidence, RunFolder.create(folder), method="all", data="emoji")
    examples, changes = _examples(collection, run.path, world, groups, first, tested, calibrated.gamma, seed=seed)
    return {
        **calibrated.result.to_json(),
        "trained": {"pretrained": _pretrained_on(folder), "tuned": len(seen), "classes": world.classes},
        "changes": changes,
        "examples": examples,
    }


def short_epochs(steps: int | None) -> int | None:
    """Return the epochs of a short tour (`steps` given); None for the study's number."""
    return None if steps is None else 1


def _features(path: Path, collection: Collection, encoder: Lite0Encoder, cache: Path) -> None:
    """Write the features that the study uses, of the tour's emoji images, with their rows."""
    rows = collection.rows(where={"source": "emoji"})
    device = encoder.proj.weight.device
    stored = FeatureCache.of_whole_images(encoder, collection, rows, folder=cache, device=device)
    rows = np.array([row for row in rows.tolist() if row not in stored.bad], dtype=np.int64)
    pooled = []
    for row in rows.tolist():
        maps = unpack_maps(stored.features(row, 0)[None].float(), encoder.grid)
        pooled.append(average_maps(maps).numpy())
    with atomic_file(path) as handle:
        np.savez(
            handle,
            features=np.concatenate(pooled).astype(np.float32),
            style=collection.label_values("style")[rows].astype(str),
            subcategory=collection.label_values("subcategory")[rows].astype(str),
            held_out=np.array([held_out(str(group)) for group in collection.groups[rows]]),
            row=rows,
        )


def _pretrained_on(folder: Path) -> int:
    arrays, _ = emoji_arrays(folder / "features.npz")
    return int(((arrays["style"] == "noto") & ~arrays["held_out"]).sum())


def _examples(
    collection: Collection,
    run: Path,
    world: FineTuningWorld,
    groups: ClassGroups,
    first: Predictions,
    tested: Predictions,
    gamma: float,
    *,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Draw held-out images whose answer gamma changes, and count such images by group."""
    arrays, _ = emoji_arrays(run / FOLDER / "features.npz")
    # In the order of test.npz: `prepare_emoji` selects the same rows of the same arrays.
    rows = arrays["row"][(arrays["style"] == "twemoji") & arrays["held_out"]]
    shifted = tested.logits.astype(np.float64)
    shifted[:, groups.absent] += gamma
    answers = {"before": first.logits.argmax(1), "after": tested.logits.argmax(1), "calibrated": shifted.argmax(1)}
    right = {name: predicted == tested.labels for name, predicted in answers.items()}
    examples, changes = [], {}
    for name, classes in (("absent", groups.absent), ("seen", groups.seen)):
        in_group = np.isin(tested.labels, classes)
        changed = in_group & (answers["after"] != answers["calibrated"])
        changes[name] = {
            "samples": int(in_group.sum()),
            "changed": int(changed.sum()),
            "righted": int((changed & right["calibrated"]).sum()),
            "spoiled": int((changed & right["after"]).sum()),
        }
        for position in _drawn(np.flatnonzero(changed), rows, collection, count=NUM_EXAMPLES[name], seed=seed):
            row = int(rows[position])
            path = run / "images" / f"calibration-{row:06d}.webp"
            save_thumbnail(collection.image_bytes(row), path, longest_side=160)
            titles = [caption.text for caption in collection.read_captions(row) if caption.kind == "title"]
            examples.append(
                {
                    "image": path.relative_to(run).as_posix(),
                    "title": titles[0] if titles else "",
                    "group": name,
                    "label": world.before.names[int(tested.labels[position])],
                    "answers": {
                        key: world.before.names[int(predicted[position])] for key, predicted in answers.items()
                    },
                }
            )
    return examples, changes


def _drawn(
    positions: NDArray[np.int64], rows: NDArray[np.int64], collection: Collection, *, count: int, seed: int
) -> list[int]:
    # Drawn by a hash of each key, so that the draw does not depend on which other answers gamma changes.
    key = {int(position): collection.keys[int(rows[position])] for position in positions}
    return sorted(key, key=lambda position: seeds.uniform("tour calibration", seed, key[position]))[:count]
