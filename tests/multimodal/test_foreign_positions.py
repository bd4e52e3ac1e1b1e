"""Positions of questions in a batch behind one reading of their images: those that each has alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_foreign import QUESTION, draw

from foveate.language.generate import GenerationSettings
from foveate.multimodal.foreign import ForeignMllm, open_foreign
from foveate.multimodal.foreign_turns import PrefixCache
from multimodal.foreign_models import save

# Positions of these run behind the number of tokens: an image of many patches takes few of them.
FAMILIES = ["glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def record_positions(model: ForeignMllm, ask: Callable[[], Any]) -> list[torch.Tensor]:
    """Positions [rows] of the last token of each pass of the language model."""
    positions: list[torch.Tensor] = []

    def note(_: Any, __: Any, named: dict[str, Any]) -> None:
        # Time, row and column of a text are alike; some passes have the one, others all of them.
        positions.append(named["position_ids"][-1, :, -1].clone())

    hook = model.model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    ask()
    hook.remove()
    return positions


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_behind_a_kept_image_have_its_positions(family: str, tmp_path: Path) -> None:
    """Also after the model has read another image, whose positions it keeps in itself."""
    model = open_foreign(str(save(family, tmp_path / family)))
    # No answer ends before its last token.
    model.model.generation_config.eos_token_id = None
    image, other = draw(48, 48), draw(20, 16, seed=1)
    texts = [QUESTION, "no", "where is the red disc"]
    expected = [record_positions(model, lambda text=text: model.ask(image, text, max_tokens=3)) for text in texts]
    settings = [GenerationSettings(max_new_tokens=3)] * len(texts)
    prefix, rows = PrefixCache(), [([image], [("user", text)]) for text in texts]
    for _ in range(2):
        passes = record_positions(model, lambda: model._answer_rows(rows, settings, room=3, prefix=prefix))[-3:]
        for row, alone in enumerate(expected):
            assert [int(each[row]) for each in passes] == [int(each[0]) for each in alone]
        # A smaller image, whose positions lie otherwise.
        model.ask(other, "red", max_tokens=1)
        assert int(model.model.model.rope_deltas) != int(prefix._deltas)  # type: ignore[arg-type]
