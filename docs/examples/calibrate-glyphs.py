"""Fine-tunes the 36-glyph network on half of the characters and saves what `foveate calibrate` reads.

python docs/examples/calibrate-glyphs.py OUT     (from the repository's root; about a minute on one core)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from foveate.calibrate.fine_tuning import fine_tune, make_pseudo_runs, predict_classifier
from foveate.calibrate.settings import FineTuneSettings
from foveate.training.classification import array_images
from foveate.training.logit_files import write_logits
from foveate.vision.classifier import Classifier
from foveate_labs.studies.calibration_worlds import glyph_network
from foveate_labs.worlds.builtin import CLASSES, load_glyphs

SEED = 20


def main(out: Path) -> None:
    network = glyph_network()
    network.load_state_dict(load_file("tests/goldens/calibration/glyph_pretrained.safetensors"))
    before = Classifier(network, head_name="head", names=CLASSES).eval()
    drawn = {name: load_glyphs("target", name, per_class=60) for name in ("train", "test")}
    train, test = (array_images(part.images, part.labels) for part in drawn.values())
    seen = np.sort(np.random.default_rng(SEED).permutation(36)[:18])
    rows = np.flatnonzero(np.isin(train.labels_N, seen))
    settings = FineTuneSettings(learning_rate=0.01, seed=SEED)
    after = fine_tune(before, train, settings, out / "ft", rows=rows)
    make_pseudo_runs(before, train, seen, settings, out)
    for name, model, samples, subset in (
        ("test", after, test, None),
        ("before", before, test, None),
        ("training", after, train, rows),
    ):
        predictions = predict_classifier(model, samples, subset, description=name)
        write_logits(
            out / f"{name}.npz", logits=predictions.logits, labels=predictions.labels, class_names=list(CLASSES)
        )
    (out / "seen.txt").write_text("".join(f"{CLASSES[number]}\n" for number in seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
