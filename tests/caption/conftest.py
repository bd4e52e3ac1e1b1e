"""What the tests of captions share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image-text model, saved untrained: what it says is noise, how it is asked is not."""
    import tiny
    from foveate.pretrain.train import build_model
    from foveate.vision.localizer.folder import save_model

    model = build_model(tiny.recipe(regions={"method": "none"})).eval().requires_grad_(False)
    return save_model(model, tmp_path_factory.mktemp("judge") / "model")


@pytest.fixture(scope="session")
def scene_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty generated scenes; tests read them only (features may be cached beside them)."""
    from foveate_labs.worlds.scenes.scene_collection import build_scenes

    path = tmp_path_factory.mktemp("scenes") / "scenes"
    build_scenes(path, train=24, test=6, size=96)
    return path
