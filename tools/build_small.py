"""Train the shipped model `small`: the collection, the cached features and the run, resumable by the same command.

    python tools/build_small.py train runs/small
"""

from __future__ import annotations

import sys
from pathlib import Path

from foveate_labs.worlds.scenes.scene_collection import build_tour_collection

TRAIN_SCENES, VALIDATION_SCENES, TEST_SCENES = 16_000, 100, 400


def build_collection(folder: Path) -> None:
    """Write emoji, clip art and scenes; only their training parts are trained on. Run again, it adds what is missing."""
    build_tour_collection(
        folder,
        train_scenes=TRAIN_SCENES,
        validation_scenes=VALIDATION_SCENES,
        test_scenes=TEST_SCENES,
        workers=2,
    )


if __name__ == "__main__":
    build_collection(Path(sys.argv[2]) / "collection")
