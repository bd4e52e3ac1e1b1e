"""Opening language models: every source, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gguf_files
import tiny_models
from foveate.core.errors import UserError
from foveate.language.open import PACKAGE, LanguageModel, open_language_model
from hub_cache import COMMIT, cache, snapshot
from naming import raises_naming

__all__ = ["cache"]


def logits(language_model: LanguageModel) -> torch.Tensor:
    embeddings = language_model.embed(range(9))
    assert embeddings.shape == (9, language_model.width)
    with torch.no_grad():
        return language_model.model(inputs_embeds=embeddings[None]).logits


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_configurations_get_random_weights_by_seed(family: str, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, again, other = tiny_models.tiny(family), tiny_models.tiny(family), tiny_models.tiny(family, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_models.CONFIGS[family]), encoding="utf-8")
    from_file = open_language_model(path, tokenizer=tiny_models.tokenizer(), dtype=torch.bfloat16)
    assert from_file.model.dtype == torch.bfloat16
    assert from_file.chat.template.name == "plain"
    with torch.device("meta"):
        assert open_language_model(path, tokenizer=tiny_models.tokenizer()).device.type == "meta"


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_folders_are_read_as_they_were_saved(family: str, tmp_path: Path) -> None:
    saved = tiny_models.save(tmp_path, family)
    opened = open_language_model(tmp_path)
    assert torch.equal(logits(opened), logits(saved))
    assert opened.chat.template.name == "chatml"
    assert opened.tokenizer.encode("hello <|im_end|>") == saved.tokenizer.encode("hello <|im_end|>")
    assert not opened.model.training


def test_hub_ids_are_pinned_to_their_commit(cache: Path) -> None:
    tiny_models.save(snapshot(cache, "someone/tiny-llama"), chat_template=None)
    opened = open_language_model("someone/tiny-llama", revision="main", offline=True)
    assert (opened.commit, opened.chat.template.name) == (COMMIT, "plain")
    with raises_naming(UserError, "someone/other", "offline"):
        open_language_model("someone/other", offline=True)


def test_gguf_files_open_with_their_template(tmp_path: Path) -> None:
    opened = open_language_model(gguf_files.write_llama(tmp_path / "tiny.gguf"), dtype=torch.bfloat16)
    assert opened.chat.template.name == "chatml"
    assert opened.model.dtype == torch.bfloat16
    assert logits(opened).isfinite().all()
    with raises_naming(UserError, "revision", "main"):
        open_language_model(tmp_path / "tiny.gguf", revision="main")
    with raises_naming(UserError, "none.gguf"):
        open_language_model(tmp_path / "none.gguf")
    # The folder of an unpacked wheel holds this package; another file in it is refused by its hash.
    (tmp_path / PACKAGE).mkdir()
    with raises_naming(UserError, tmp_path):
        open_language_model(tmp_path)


def test_placeholders_get_rows_where_no_token_is_free(tmp_path: Path) -> None:
    tiny_models.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    opened = open_language_model(tmp_path)
    assert {opened.tokenizer.special[name] for name in ("<image>", "<region>")} == {0, 3}
    # Now every special token is used by the template, and the table has no row to spare.
    weights = load_file(tmp_path / "model.safetensors")
    num_tokens = len(tiny_models.foreign_tokenizer())
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:num_tokens].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": num_tokens}), encoding="utf-8")
    template = gguf_files.CHATML + "".join(gguf_files.CONTROL)
    tiny_models.foreign_tokenizer(template).save_pretrained(tmp_path)
    opened = open_language_model(tmp_path)
    assert {opened.tokenizer.special[name] for name in ("<image>", "<region>")} == {num_tokens, num_tokens + 1}
    assert opened.model.get_input_embeddings().num_embeddings == num_tokens + 2
    assert logits(opened).shape[-1] == num_tokens + 2
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:200].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 200}), encoding="utf-8")
    with raises_naming(UserError, tmp_path, f"{num_tokens} tokens", "200 rows"):
        open_language_model(tmp_path)


def test_what_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    tiny_models.save(tmp_path, chat_template="[INST] {{ messages }} [/INST]")
    with raises_naming(UserError, tmp_path, "chatml", "plain"):
        open_language_model(tmp_path)
    assert open_language_model(tmp_path, chat="plain").chat.template.name == "plain"
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors")
    with raises_naming(UserError, tmp_path, name):
        open_language_model(tmp_path, chat="plain")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with raises_naming(UserError, "pytorch_model.bin", "pickle"):
        open_language_model(tmp_path, chat="plain")


def test_configurations_without_a_tokenizer_or_type_are_refused(tmp_path: Path) -> None:
    with raises_naming(UserError, "tokenizer"):
        open_language_model(tiny_models.CONFIGS["llama"])
    with raises_naming(UserError, "model_type"):
        open_language_model({"hidden_size": 8}, tokenizer=tiny_models.tokenizer())
    with raises_naming(UserError, "no_such_type"):
        open_language_model({"model_type": "no_such_type"}, tokenizer=tiny_models.tokenizer())
    with raises_naming(UserError, "4 rows"):
        open_language_model({**tiny_models.CONFIGS["llama"], "vocab_size": 4}, tokenizer=tiny_models.tokenizer())
    with raises_naming(UserError, "language model", tmp_path / "none"):
        open_language_model(tmp_path / "none")
