"""What the tests of multimodal LLMs share."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_mllm


@pytest.fixture(scope="session")
def asked_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny collection with questions."""
    return tiny_mllm.make_asked_collection(tmp_path_factory.mktemp("asked") / "shapes")
