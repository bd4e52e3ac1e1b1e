"""Smoothing and restriction against megadetector-utils (MIT), the library that practitioners use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decision_cases import grow_taxa, make_classes

from foveate.species.speciesnet_rules import ANIMAL, BLANK, HUMAN, VEHICLE
from foveate.species.stages.pooling import SmoothingSettings, smooth_labels
from foveate.species.stages.rules import make_labels
from foveate.species.stages.species_list import restrict_classes
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

library = pytest.importorskip("megadetector.postprocessing.classification_postprocessing")

NAMES = {
    "min_detections_to_overwrite_other": "min_to_overwrite_other",
    "min_detections_to_overwrite_secondary": "min_to_overwrite_rare",
    "max_detections_nondominant_class": "max_rare",
    "min_detections_to_overwrite_secondary_same_family": "min_to_overwrite_family",
    "max_detections_nondominant_class_same_family": "max_rare_family",
    "taxonomy_propagation_level_weight": "level_weight",
    "taxonomy_propagation_count_weight": "count_weight",
}


@pytest.fixture(scope="module")
def survey() -> tuple[Classes, Taxa]:
    taxa = grow_taxa(12, np.random.default_rng(5))
    return make_classes(
        taxa, ranks=("species", "genus", "family", "order"), more=("animal", "blank", "human", "vehicle")
    ), taxa


def describe(classes: Classes, taxa: Taxa) -> dict[str, str]:
    labels = make_labels(taxa)
    texts = [labels[taxon] if taxon >= 0 else "" for taxon in classes.taxa_K]
    special = {"animal": ANIMAL, "blank": BLANK, "human": HUMAN, "vehicle": VEHICLE}
    return {str(k): special.get(label) or texts[k] for k, label in enumerate(classes.labels)}


def write_results(classes: Classes, taxa: Taxa, rows: Iterator[tuple[int, float, float]]) -> dict[str, Any]:
    images = [
        {
            "file": f"{n}.jpg",
            "detections": [
                {"category": "1", "conf": conf, "bbox": [0, 0, 1, 1], "classifications": [[str(label), score]]}
            ],
        }
        for n, (label, score, conf) in enumerate(rows)
    ]
    return {
        "info": {"format_version": "1.6", "detector": "unknown"},
        "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
        "classification_categories": {str(k): label for k, label in enumerate(classes.labels)},
        "classification_category_descriptions": describe(classes, taxa),
        "images": images,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_detections_nondominant_class_same_family": 2},
        {"max_detections_nondominant_class_same_family": 1, "min_detections_to_overwrite_secondary": 3},
        {"max_detections_nondominant_class": 3, "min_detections_to_overwrite_other": 1},
        {"taxonomy_propagation_count_weight": 5.0, "min_detections_to_overwrite_secondary_same_family": 0},
    ],
)
def test_smoothing(survey: tuple[Classes, Taxa], options: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    classes, taxa = survey
    rng = np.random.default_rng(len(options))
    lengths = rng.integers(1, 13, 400)
    events = np.repeat(np.arange(len(lengths)), lengths)
    # Few labels an event, so that every rule meets counts on both sides of its bound.
    pools = rng.integers(len(classes), size=(len(lengths), 3))
    labels = pools[events, rng.choice(3, size=len(events), p=[0.6, 0.25, 0.15])]
    scores, confidences = rng.uniform(0.3, 1, len(events)), rng.uniform(0.05, 1, len(events))
    results = write_results(classes, taxa, zip(labels.tolist(), scores.tolist(), confidences.tolist(), strict=True))
    sequences = [{"file_name": f"{n}.jpg", "seq_id": int(event)} for n, event in enumerate(events)]
    theirs = library.ClassificationSmoothingOptions()
    for name, value in options.items():
        setattr(theirs, name, value)
    smoothed = library.smooth_classification_results_sequence_level(results, sequences, options=theirs)
    expected = np.array([int(image["detections"][0]["classifications"][0][0]) for image in smoothed["images"]])
    settings = SmoothingSettings(**{NAMES[name]: value for name, value in options.items()})
    counted = (scores >= settings.min_score) & (confidences >= settings.min_detection)
    ours = labels.copy()
    ours[counted] = smooth_labels(labels[counted], events[counted], classes, taxa, settings)
    assert (expected != labels).sum() > 100, "the library changed next to nothing: this would test nothing"
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("walk_down", [False, True])
def test_restriction(survey: tuple[Classes, Taxa], walk_down: bool, tmp_path: Path) -> None:
    classes, taxa = survey
    rng = np.random.default_rng(3)
    taxonomy = tmp_path / "taxonomy.txt"
    taxonomy.write_text("\n".join([*make_labels(taxa), ANIMAL, BLANK]))
    results = tmp_path / "results.json"
    results.write_text(json.dumps(write_results(classes, taxa, iter([(k, 0.9, 0.9) for k in range(len(classes))]))))
    labels, num_taxa = make_labels(taxa), int((classes.taxa_K >= 0).sum())
    changed = 0
    for trial in range(12):
        names = [taxa.names[i] for i in rng.choice(len(taxa), size=1 + trial % 4, replace=False)]
        listing = tmp_path / "list.csv"
        listing.write_text("latin,common\n" + "".join(f"{name},mine {name}\n" for name in names))
        out = tmp_path / "out.json"
        options = {"allow_walk_down": walk_down, "verbose": False, "combine_redundant_categories": False}
        library.restrict_to_taxa_list(str(listing), str(taxonomy), str(results), str(out), **options)
        restricted = json.loads(out.read_text())
        described = restricted["classification_category_descriptions"]
        categories = [image["detections"][0]["classifications"][0][0] for image in restricted["images"]]
        theirs = [described[category].split(";")[1:6] for category in categories]
        targets = restrict_classes(names, classes, taxa, walk_down=walk_down, where="list")
        described = describe(classes, taxa)
        texts = [labels[i] if i >= 0 else ANIMAL if k < num_taxa else described[str(k)] for k, i in enumerate(targets)]
        ours = [text.split(";")[1:6] for text in texts]
        assert ours == theirs, names
        changed += int((targets != classes.taxa_K).sum())
    assert changed > 50
