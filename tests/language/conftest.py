"""What the tests of `language` share: SmolLM2, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.language.open import LanguageModel, open_language_model


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> LanguageModel:
    """SmolLM2 in float32; tests do not change it."""
    return open_language_model(smollm2_file)
