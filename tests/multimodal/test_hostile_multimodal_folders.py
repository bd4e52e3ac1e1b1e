"""Model folders that someone edited by hand, or to do harm: refused before they take memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_multimodal_model import loaded

from foveate.core.errors import UserError
from foveate.language.vocabulary import SPECIALS, train_tokenizer
from foveate.multimodal.folder import load_model, save_model
from naming import raises_naming


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    one = loaded()
    return save_model(
        tmp_path_factory.mktemp("models") / "model",
        settings=one.model.settings,
        weights=one.model.state_dict(),
        tokenizer_json=one.tokenizer.backend.to_str(),
        preprocess=one.model.tower.preprocess.to_dict(),
        card="card",
    )


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("language", "hidden_size", 10**7, "10000"),
        ("language", "hidden_size", "wide", "hidden_size"),
        ("language", "num_attention_heads", 10**7, "attention heads"),
        ("language", "num_hidden_layers", 10**7, "num_hidden_layers"),
        ("language", "max_position_embeddings", "many", "max_position_embeddings"),
        ("connector", "depth", 10**7, "depth"),
        ("connector", "side", 10**7, "side"),
        ("connector", "kind", None, "model.connector.kind"),
        ("connector", "kind", 5, "model.connector.kind"),
        ("tower", "width", 10**7, "10000000"),
    ],
)
def test_configs_beyond_their_weights_are_refused(
    folder: Path, tmp_path: Path, part: str, field: str, value: Any, named: str
) -> None:
    edited = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((edited / "config.json").read_text())
    config["model"][part][field] = value
    (edited / "config.json").write_text(json.dumps(config))
    with raises_naming(UserError, named):
        load_model(edited)


def test_a_small_vocabulary_keeps_to_its_size() -> None:
    names = [f"thing{number}" for number in range(300)] * 2
    tokenizer = train_tokenizer([" a thing"], size=400, names=names)
    assert tokenizer.get_vocab_size() == 400
    assert 256 + len(SPECIALS) < 400
