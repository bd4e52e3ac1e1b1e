from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def trained_folder(scene_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a captioner after a few steps of each stage."""
    from made_captioner import recipe

    from foveate.caption.small.train import train_captioner
    from foveate.records.collection import Collection

    run = tmp_path_factory.mktemp("run") / "run"
    done = train_captioner(recipe(), Collection.open(scene_collection), run, device="cpu")
    assert done.status == "finished"
    return run
