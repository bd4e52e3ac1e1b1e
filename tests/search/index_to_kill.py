"""Making an index in small parts, for tests that kill it."""

from __future__ import annotations

from pathlib import Path

import torch

from foveate.core import progress
from foveate.search import calibration, index, index_folder
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.sources import ModelSource

progress.configure(quiet=True)


def prepare(model: str) -> None:
    """Opens the model once for all calls: it only reads, and takes longer than all the rest."""
    torch.set_num_threads(1)
    opened = ModelSource.load(index.find_model(model))
    embed_phrases(opened, ["opens the text tower, which waits for its first text"])
    ModelSource.load = lambda self, *, device=None: opened  # pyrefly: ignore[bad-assignment]


def make(model: str, collection: str, out: str, part: int = 3) -> None:
    """An index in parts of so many images and segments of 25 rows."""
    torch.set_num_threads(1)
    index.PART, index_folder.SEGMENT_ROWS = part, 25
    # Embedding random texts takes longer than all the rest, and no kill cares how many they are.
    names, letters = calibration.draw_texts()[::8], calibration.draw_letters()[::8]
    index.draw_texts = calibration.draw_texts = lambda: names
    index.draw_letters = lambda: letters
    index.build_index(Path(model), Path(collection), Path(out))
