"""Exports are loaded by the libraries that they are for; PEFT is a second reference for LoRA and norm tuning."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapt.test_matrix import config, moved
from adapt.towers import CLASSES, pixels, shaken, tower
from foveate.adapt import export
from foveate.adapt.export import export_merged, export_peft, merge_adapter
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.registry import get_method, method_names
from foveate.core.errors import UserError
from naming import raises_naming


def classifier() -> Any:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=CLASSES
        )
    return shaken(model)


def adapted_timm(options: dict[str, Any]) -> AdaptedModel:
    adapted = moved(adapt(classifier(), options)).eval()
    with torch.no_grad():
        adapted.head.weight.add_(0.1)
    return adapted


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 4, "scale": "alpha/r", "alpha": 16.0},
        {"method": "lora", "rank": 2, "last_blocks": 1},
        {"method": "layernorm"},
    ],
)
def test_peft_opens_it(options: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = adapted_timm(options)
    images = pixels()
    with torch.no_grad():
        expected = adapted(images)
    folder = export_peft(adapted, tmp_path / "peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT does not know timm's own LayerNorm class
        opened = peft.PeftModel.from_pretrained(classifier(), folder).eval()
    with torch.no_grad():
        assert float((opened(images) - expected).abs().max()) < 1e-6


def test_peft_opens_split_projections(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = moved(adapt(tower("clip"), {"method": "lora", "rank": 4}, classes=CLASSES)).eval()
    with torch.no_grad():
        expected = adapted.features(pixels())
    opened = peft.PeftModel.from_pretrained(tower("clip"), export_peft(adapted, tmp_path)).eval()
    with torch.no_grad():
        assert float((opened(pixel_values=pixels()).pooler_output - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["lora", "layernorm"])
def test_peft_trains_as_we_do(name: str) -> None:
    """Five steps of AdamW from the same start: the same losses."""
    peft = pytest.importorskip("peft")
    images, labels = pixels(batch=8, dtype=torch.float64), torch.arange(8) % CLASSES
    saved = {"modules_to_save": ["head"]}
    options: dict[str, Any] = {"method": name}
    if name == "lora":
        options |= {"rank": 4, "dropout": 0.0}
        setup = peft.LoraConfig(r=4, lora_alpha=4, target_modules=r"blocks\.\d+\.attn\.qkv", **saved)
    else:
        setup = peft.LNTuningConfig(target_modules=r"(blocks\.\d+\.norm[12]|norm)", **saved)
    adapted = adapt(classifier().double(), options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT does not know timm's own LayerNorm class
        theirs = peft.get_peft_model(classifier().double(), setup)
    if name == "lora":
        moved(adapted)
        with torch.no_grad():
            for number, pair in adapted.adapter().blocks.items():
                layer = theirs.base_model.model.blocks[int(number)].attn.qkv
                layer.lora_A["default"].weight.copy_(pair.a.weight)
                layer.lora_B["default"].weight.copy_(pair.b.weight)

    def losses(model: torch.nn.Module) -> list[float]:
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        found = []
        for _ in range(5):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    ours = losses(adapted.train())
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(losses(theirs.train()), abs=1e-10)


@pytest.mark.parametrize("name", [name for name in method_names() if get_method(name).mergeable])
def test_timm_opens_merged_weights(name: str, tmp_path: Path) -> None:
    import timm

    adapted = adapted_timm(config(name))
    with torch.no_grad():
        expected = adapted(pixels())
    arguments = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    folder, difference = export_merged(adapted, tmp_path, model_args=arguments)
    assert difference < 2e-5
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert float((opened(pixels()) - expected).abs().max()) == pytest.approx(difference, abs=2e-5)
        assert torch.equal(adapted(pixels()), expected)
    assert f"{difference:.3g}" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ["clip", "clip_projected", "dinov2"])
def test_transformers_opens_merged_weights(family: str, tmp_path: Path) -> None:
    model = tower(family)
    adapted = moved(adapt(model, {"method": "ssf"}, classes=CLASSES)).eval()
    with torch.no_grad():
        expected = adapted.features(pixels())
    folder, difference = export_merged(adapted, tmp_path)
    assert difference < 2e-5
    opened = type(model).from_pretrained(folder).eval()
    said = opened(pixel_values=pixels())
    found = {"clip": "pooler_output", "clip_projected": "image_embeds"}.get(family)
    got = said[found] if found else said.last_hidden_state[:, 0]
    assert float((got - expected).abs().max()) < 2e-5


def test_a_localizing_model_stays_one(tmp_path: Path) -> None:
    from foveate.vision.localizer.folder import load_model

    adapted = moved(adapt(tower("localizer"), {"method": "lora", "rank": 4}, classes=CLASSES)).eval()
    with torch.no_grad():
        expected = adapted.features(pixels())
        folder, _ = export_merged(adapted, tmp_path)
        opened = load_model(folder, device="cpu").image_encoder
        assert float((opened(pixels()).pooled - expected).abs().max()) < 2e-5


def test_open_clip_gets_its_own_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapted = moved(adapt(tower("open_clip"), {"method": "fact-tk", "rank": 4}, classes=CLASSES)).eval()
    with torch.no_grad():
        expected = adapted.features(pixels())
        folder, _ = export_merged(adapted, tmp_path)
        plain = tower("open_clip")
        plain.load_state_dict(load_file(folder / "model.safetensors"))
        assert float((plain.encode_image(pixels()) - expected).abs().max()) < 2e-5


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with raises_naming(UserError, "ssf"):
        export_peft(adapted_timm({"method": "ssf"}), tmp_path)
    with pytest.raises(UserError, match="export merged weights instead"):
        export_peft(adapt(tower("open_clip"), "lora", classes=3), tmp_path)
    with raises_naming(UserError, "ReLU"):
        export_merged(adapted_timm({"method": "adaptformer", "rank": 4}), tmp_path)


def test_a_merge_that_is_refused_or_killed_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, write = adapted_timm({"method": "layernorm"}), export._write
    arguments = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}

    def write_wrong(*given: Any) -> torch.Tensor:
        return write(*given) + 1

    def write_killed(*given: Any) -> torch.Tensor:
        write(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_write", write_wrong)
    with raises_naming(UserError, f"{tmp_path / 'merged'}: the exported model has other outputs"):
        export_merged(adapted, tmp_path / "merged", model_args=arguments)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(export, "_write", write_killed)
    with pytest.raises(KeyboardInterrupt):
        export_merged(adapted, tmp_path / "merged", model_args=arguments)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    export_merged(adapted, tmp_path / "merged", model_args=arguments)
    with raises_naming(UserError, tmp_path / "merged", "not empty"):
        export_merged(adapted, tmp_path / "merged", model_args=arguments)


def test_a_killed_merge_for_peft_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SimpleNamespace(settings={"kind": "timm"}, model_args={})

    def write_killed(_: object, folder: Path, **__: object) -> Path:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "open_adapted", lambda *_, **__: (adapted_timm({"method": "lora"}), network, {}))
    monkeypatch.setattr(export, "export_peft", write_killed)
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(tmp_path / "run", tmp_path / "peft", format="peft")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_images_of_other_channels(name: str, channels: int, tmp_path: Path) -> None:
    import timm

    shape = {"img_size": 24, "patch_size": 6, "embed_dim": 32, "depth": 2, "num_heads": 2} if name == "vit" else {}
    built = {"vit": "vit_tiny_patch16_224", "resnet": "resnet10t"}[name]
    model = shaken(timm.create_model(built, in_chans=channels, num_classes=CLASSES, **shape))
    adapted = moved(adapt(model, "bitfit")).eval()
    size = 24 if name == "vit" else 64
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = adapted(images)
        folder, difference = export_merged(adapted, tmp_path / "merged", model_args=shape)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.allclose(again(images), expected, atol=1e-5)
    assert difference < 1e-5
    assert again.pretrained_cfg["input_size"][0] == channels


def test_one_channel_of_a_tower_of_transformers(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = shaken(CLIPVisionModel(CLIPVisionConfig(**shape, image_size=32, patch_size=8, num_channels=1)))
    adapted = moved(adapt(model, {"method": "lora", "rank": 4}, classes=CLASSES)).eval()
    folder, difference = export_merged(adapted, tmp_path / "merged")
    assert difference < 1e-5
    assert CLIPVisionModel.from_pretrained(folder).config.num_channels == 1
