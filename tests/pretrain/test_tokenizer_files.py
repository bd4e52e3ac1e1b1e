"""open_clip models whose tokenizer is one of transformers: a model folder opens without the place it came from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from exported import opened

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.export import export
from foveate.pretrain.train import build_model
from foveate.vision.localizer.folder import save_model
from foveate.vision.open_clip.export import export_open_clip
from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder
from naming import raises_naming

TEXTS = ["a red disc", "Red DISC, blue!", "", "disc " * 40]
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "disc", ",", "!")


def write_tokenizer(folder: Path) -> None:
    """A tokenizer in the format of transformers: whole words, an end token behind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    own = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    own.save_pretrained(folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as open_clip models with a tokenizer of their own have it on the hub."""
    folder = tmp_path / "source"
    image = tiny.RECIPE["image_encoder"]["vision"]
    text = {
        **tiny.RECIPE["text_encoder"]["text"],
        "vocab_size": len(WORDS),
        "pool_type": "last",
        "no_causal_mask": True,
    }
    towers = (
        OpenClipImageEncoder(model="ViT-B-32", embed_dim=32, vision=image),
        OpenClipTextEncoder(model="ViT-B-32", embed_dim=32, text=text),
    )
    export_open_clip(*towers, log_scale=2.0, folder=folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "owner/words",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


@torch.no_grad()
def test_a_model_folder_is_self_contained(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = {"kind": "open_clip", "model": f"local-dir:{source}"}
    settings = tiny.recipe().model_copy(update={"image_encoder": name, "text_encoder": name})
    model = build_model(settings).eval().requires_grad_(False)
    ids = model.text_encoder.frozen_features(TEXTS)
    assert ids[0].tolist()[:4] == [3, 4, 6, 1], "the tokenizer of the folder, not open_clip's own"
    expected = model.encode_text(TEXTS)
    saved = save_model(model, tmp_path / "model")
    assert (saved / "tokenizer" / "tokenizer.json").is_file()
    shutil.rmtree(source)
    found = opened(saved)
    assert torch.equal(found.text_encoder.frozen_features(TEXTS), ids)
    assert torch.equal(found.encode_text(TEXTS), expected)

    again = opened(save_model(found, tmp_path / "again"))
    assert torch.equal(again.encode_text(TEXTS), expected)

    target, result, _ = export(saved, to="open_clip", out=tmp_path / "out", device="cpu")
    assert result.differences["token ids"] == 0
    assert result.differences["text embeddings"] == 0
    assert torch.equal(open_clip.get_tokenizer(f"local-dir:{target}")(TEXTS).int(), ids)
    with raises_naming(UserError, "owner/words", "text_cfg.hf_tokenizer_name"):
        export(saved, to="transformers", device="cpu")

    (saved / "tokenizer" / "tokenizer.json").write_text("{")
    with raises_naming(UserError, "tokenizer"):
        opened(saved)


def test_own_byte_pairs_need_no_files(tmp_path: Path) -> None:
    saved = save_model(build_model(tiny.recipe()), tmp_path / "model")
    assert not (saved / "tokenizer").exists()
