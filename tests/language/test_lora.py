"""LoRA on language models: equal to PEFT's in both directions, merged equal to unmerged, unusable folders refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from foveate.core.errors import UserError
from foveate.core.peft_folder import read_lora_config
from foveate.language.lora import LoraOptions, add_lora, load_lora, lora_layers, lora_state, merge_lora, save_lora
from naming import raises_naming

TOKENS = torch.arange(22).view(2, 11)
TARGETS: dict[str, list[str]] = {
    "all": ["all-linear"],
    "attention": ["q_proj", "v_proj"],
    "one layer": ["layers.1.mlp.up_proj", "o_proj"],
}


def llama(kind: type[Any] = LlamaForCausalLM, **config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    return kind(LlamaConfig(vocab_size=30, **sizes | config)).eval()


def moved(model: Any) -> Any:
    """Give B values, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.weight.normal_(std=0.2, generator=generator)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_starts_as_the_model_and_merges_as_it_acts(targets: list[str]) -> None:
    model, base = llama(), llama()
    names = add_lora(model, LoraOptions(rank=4, alpha=6.0, targets=targets))
    assert [name for name, _ in lora_layers(model)] == names
    # alpha / rank, as in PEFT; its inverse would be written to the file, too, and read back without a difference.
    assert {layer.factor for _, layer in lora_layers(model)} == {1.5}
    assert "lm_head" not in names
    torch.testing.assert_close(logits(model), logits(base), atol=0, rtol=0)
    # The names of the model's own weights are what they were.
    assert set(base.state_dict()) == set(model.state_dict()) - set(lora_state(model))
    expected = logits(moved(model))
    assert (expected - logits(base)).abs().max() > 1e-2
    assert merge_lora(model) == len(names)
    assert set(model.state_dict()) == set(base.state_dict())
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_peft_reads_what_we_write(targets: list[str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = llama()
    add_lora(model, LoraOptions(rank=4, alpha=6.0, targets=targets))
    expected = logits(moved(model))
    save_lora(model, tmp_path / "adapter", source="base")
    theirs = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(theirs), expected, atol=1e-6, rtol=0)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert isinstance(config["target_modules"], str if targets == TARGETS["one layer"] else list)
    again = llama()
    load_lora(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), expected, atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_we_read_what_peft_writes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.mlp.down_proj": 3},
        alpha_pattern={"q_proj": 10},
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(llama(), config).eval()
    theirs.save_pretrained(tmp_path)
    model = llama()
    assert len(load_lora(model, tmp_path, trainable=True)) == 4
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-6, rtol=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert set(trained) == set(lora_state(model))
    save_lora(model, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "again"))
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-6, rtol=0)


def test_a_body_reads_the_adapter_of_a_whole_model(tmp_path: Path) -> None:
    model = llama()
    add_lora(model, LoraOptions(rank=2, targets=["q_proj"]))
    save_lora(moved(model), tmp_path)
    body = llama(LlamaModel)
    assert load_lora(body, tmp_path) == ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]
    save_lora(body, tmp_path / "body")
    whole = llama()
    assert load_lora(whole, tmp_path / "body") == [f"model.layers.{number}.self_attn.q_proj" for number in (0, 1)]
    torch.testing.assert_close(logits(whole), logits(model), atol=0, rtol=0)


def test_training_changes_the_pairs_alone() -> None:
    model = llama(mlp_bias=True, initializer_range=0.3).to(torch.bfloat16)
    add_lora(model, LoraOptions(rank=4, dropout=0.1))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, 2e-2)
    losses = []
    for _ in range(12):
        loss = model.train()(TOKENS, labels=TOKENS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(lora_state(model))


def test_same_seed_same_pairs_and_no_global_state() -> None:
    first, second, other = llama(), llama(), llama()
    state = torch.random.get_rng_state()
    add_lora(first, LoraOptions(), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    add_lora(second, LoraOptions(), seed=1)
    add_lora(other, LoraOptions(), seed=2)
    name = "model.layers.0.mlp.up_proj.lora_A.weight"
    assert torch.equal(lora_state(first)[name], lora_state(second)[name])
    assert not torch.equal(lora_state(first)[name], lora_state(other)[name])


def test_pairs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2))
    add_lora(model, LoraOptions(rank=4))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(tensor.numel() for tensor in lora_state(model).values()) == 2 * 4 * (4 * 128 + 3 * 160)


def test_unusable_targets_are_named() -> None:
    with raises_naming(UserError, "targets", "q_prog", "LlamaForCausalLM", "Did you mean 'q_proj'"):
        add_lora(llama(), LoraOptions(targets=["q_prog"]))
    with raises_naming(UserError, "targets", "lm_head"):
        add_lora(llama(), LoraOptions(targets=["lm_head"]))
    model = llama()
    add_lora(model, LoraOptions())
    with raises_naming(UserError, "LoRA", "merge"):
        add_lora(model, LoraOptions())
    with raises_naming(UserError, "nowhere", "no LoRA"):
        save_lora(nn.Linear(2, 2), "nowhere")


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_4", "OLoRA", "corda", "lora_ga", "loftq", "new", 1, ["eva"]])
def test_adapters_whose_training_changed_the_model_are_refused(value: Any, tmp_path: Path) -> None:
    config_file = tmp_path / "adapter_config.json"
    config_file.write_text(json.dumps({"peft_type": "LORA", "init_lora_weights": value}))
    with raises_naming(UserError, str(config_file), "init_lora_weights", repr(value), '"gaussian"', "null") as caught:
        read_lora_config(tmp_path)
    converts = str(value).lower().startswith(("pissa", "olora", "corda", "lora_ga"))
    assert ("path_initial_model_for_weight_conversion" in str(caught.value)) == converts


@pytest.mark.parametrize("value", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_adapters_whose_training_left_the_model_are_read(value: Any, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "init_lora_weights": value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_lora_config(tmp_path) == config


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("value", "name"),
    [({"(": 8}, "'('"), ({"a{9999999999}": 8}, "a{9999999999}"), ({"(" * 3000 + ")" * 3000: 8}, "(((("), ([8], "list")],
)
def test_unusable_patterns_are_named(field: str, value: Any, name: str, tmp_path: Path) -> None:
    config_file = tmp_path / "adapter_config.json"
    config_file.write_text(json.dumps({"peft_type": "LORA", field: value}))
    with raises_naming(UserError, str(config_file), field, name):
        read_lora_config(tmp_path)


@pytest.mark.parametrize("case", ["field", "rank", "layer", "nan", "half", "method", "alpha", "text", "dropout"])
def test_unusable_folders_leave_the_model_as_it_was(case: str, tmp_path: Path) -> None:
    model = llama()
    add_lora(model, LoraOptions(rank=4, targets=["q_proj"]))
    save_lora(model, tmp_path)
    config_file, weights_file = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    config, tensors = json.loads(config_file.read_text()), load_file(weights_file)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    names: list[str] = [str(weights_file)]
    if case == "field":
        config["use_dora"], names = True, [str(config_file), "use_dora"]
    elif case == "method":
        config["peft_type"], names = "IA3", [str(config_file), "IA3"]
    elif case in ("alpha", "text"):
        # Of the second layer: the first is in order.
        value = 0 if case == "alpha" else "8"
        config["alpha_pattern"], names = {r"layers\.1\..*": value}, [str(config_file), "alpha", repr(value)]
    elif case == "dropout":
        config["lora_dropout"], names = 1.5, [str(config_file), "lora_dropout", "1.5"]
    elif case == "rank":
        tensors[key] = torch.zeros(16, 5)
        names += ["q_proj.lora_B", "[16, 5]", "[16, 4]"]
    elif case == "layer":
        tensors = {name.replace("q_proj", "qq_proj"): value for name, value in tensors.items()}
        names += ["qq_proj", "q_proj"]
    elif case == "nan":
        tensors[key][0, 0] = torch.nan
        names += [key]
    else:
        del tensors[key]
        names += ["model.layers.1.self_attn.q_proj.lora_B.weight"]
    config_file.write_text(json.dumps(config))
    save_file(tensors, weights_file)
    fresh = llama()
    with raises_naming(UserError, *names):
        load_lora(fresh, tmp_path)
    assert not dict(lora_layers(fresh))
    assert all(parameter.requires_grad for parameter in fresh.parameters())
