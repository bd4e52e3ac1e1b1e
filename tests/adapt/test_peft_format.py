"""PEFT's folders: a process without Foveate gives the same logits from an export; adapters of PEFT are read."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from adapt.networks import images, network
from adapt.test_adapter_export import classifier
from adapt.test_matrix import moved
from adapt.towers import pixels, shaken
from foveate.adapt.folder import load_adapter, save_adapter
from foveate.adapt.load_backbone import load_backbone, parse_backbone
from foveate.adapt.model import adapt
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.vision.registry import seeded
from naming import raises_naming

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")

NAMES = ["oak", "beech", "birch"]
_VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8}  # fmt: skip
_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "image_mean": (0.4, 0.5, 0.6), "image_std": (0.2, 0.3, 0.2),
    "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 2,
}  # fmt: skip


def save_network(kind: str, folder: Path) -> None:
    """A tiny random network as its library saves it."""
    import transformers
    from timm.models import save_for_hf

    if kind == "timm":
        save_for_hf(shaken(_timm()), folder, safe_serialization=True, model_args=_TIMM)
        return
    with seeded(3):
        text = {**_VIT, "vocab_size": 99, "eos_token_id": 2}
        text.pop("image_size")
        text.pop("patch_size")
        built: Any = {
            "CLIPModel": lambda: transformers.CLIPModel(
                transformers.CLIPConfig(vision_config=_VIT, text_config=text, projection_dim=16)
            ),
            "CLIPVisionModel": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VIT)),
            "Dinov2Model": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_VIT, mlp_ratio=2)),
        }[kind]()
    shaken(built).save_pretrained(folder)
    processor = {**_PROCESSOR, "image_processor_type": "BitImageProcessor"} if kind == "Dinov2Model" else _PROCESSOR
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def _timm() -> Any:
    import timm

    with seeded(3):
        return timm.create_model("vit_tiny_patch16_224", num_classes=7, **_TIMM)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPModel", {"method": "lora", "rank": 4}),
    "clip-vision": ("CLIPVisionModel", {"method": "lora", "rank": 4, "scale": "alpha/r", "alpha": 16.0}),
    "clip-norms": ("CLIPModel", {"method": "layernorm"}),
    "dinov2": ("Dinov2Model", {"method": "lora", "rank": 2, "targets": ["q", "v", "mlp"]}),
    "timm": ("timm", {"method": "lora", "rank": 4}),
    "timm-parts": ("timm", {"method": "lora", "rank": 3, "targets": ["q", "v", "proj", "conv"]}),
    "timm-each": ("timm", {"method": "lora", "rank": 3, "shared": False}),
    "timm-norms": ("timm", {"method": "layernorm"}),
}
_RUN = """
import json, re, sys
import torch
from pathlib import Path
from safetensors.torch import load_file
for folder in json.loads(sys.argv[1]):
    code = re.search("```python\\n(.*?)```", Path(folder, "README.md").read_text(), re.S).group(1)
    values = {"pixels": load_file(sys.argv[2])["pixels"]}
    exec(code.replace("FOLDER", folder), values)
    torch.save(values["logits"], Path(folder, "logits.pt"))
assert not [name for name in sys.modules if name.startswith("foveate")]
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each case adapted, exported by the command, and answered by a process that knows PEFT alone."""
    root = tmp_path_factory.mktemp("peft")
    for kind in {kind for kind, _ in CASES.values()}:
        save_network(kind, root / kind)
    for name, (kind, config) in CASES.items():
        opened = load_backbone(parse_backbone(str(root / kind)))
        adapted = moved(adapt(opened.model, config, classes=3)).eval()
        with torch.no_grad():
            adapted.head.bias.add_(torch.tensor([0.1, -0.2, 0.3]))
            torch.save(adapted(pixels()), root / f"{name}.pt")
        adapted.info["default"] = {
            "backbone": opened.settings, "classes": NAMES, "preprocess": opened.preprocess.to_dict(),
        }  # fmt: skip
        save_adapter(adapted, root / f"adapter-{name}")
        done = CliRunner().invoke(
            cli,
            ["adapt", "merge", str(root / f"adapter-{name}"), "--out", str(root / f"for-{name}"), "--format", "peft"],
        )
        assert done.exit_code == 0, (done.output, done.exception)
    save_file({"pixels": pixels()}, root / "pixels.safetensors")
    folders = json.dumps([str(root / f"for-{name}") for name in CASES])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN, folders, str(root / "pixels.safetensors")],
        capture_output=True, text=True, timeout=300, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", CASES)
def test_a_process_without_foveate_gives_the_same_logits(name: str, exported: Path) -> None:
    folder = exported / f"for-{name}"
    expected = torch.load(exported / f"{name}.pt", weights_only=True)
    logits = torch.load(folder / "logits.pt", weights_only=True)
    assert float((logits - expected).abs().max()) < 1e-5
    assert json.loads((folder / "head.json").read_text())["names"] == NAMES
    card = (folder / "README.md").read_text()
    assert all(label in card for label in NAMES)
    config = json.loads((folder / "adapter_config.json").read_text())
    kind, _ = CASES[name]
    expected_class = "VisionTransformer" if kind == "timm" else kind
    assert config["auto_mapping"]["base_model_class"] == expected_class
    assert config["base_model_name_or_path"] == str(exported / kind)
    prefix = "base_model.model.vision_model." if kind == "CLIPModel" else "base_model.model."
    assert all(key.startswith(prefix) for key in load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", ["clip", "dinov2", "timm", "timm-parts"])
def test_an_export_is_read_again(name: str, exported: Path) -> None:
    opened = load_backbone(parse_backbone(str(exported / CASES[name][0])))
    adapted = load_adapter(opened.model, exported / f"for-{name}")
    with torch.no_grad():
        assert torch.allclose(adapted(pixels()), torch.load(exported / f"{name}.pt", weights_only=True), atol=1e-5)
    assert adapted.info["default"]["classes"] == NAMES


PEFTS: dict[str, dict[str, Any]] = {
    "q": {"target_modules": ["qkv"]},
    "several": {"target_modules": ["qkv", "fc1", "proj"], "modules_to_save": ["head"]},
    "patterns": {
        "target_modules": ["qkv", "fc2"],
        "rank_pattern": {"fc2": 2},
        "alpha_pattern": {"fc2": 5, "blocks.0.attn.qkv": 3},
    },
    "rslora": {"target_modules": ["qkv"], "use_rslora": True},
    "one layer": {"target_modules": r"blocks\.1\.mlp\.fc1"},
}  # fmt: skip


def peft_model(base: Any, **options: Any) -> Any:
    with warnings.catch_warnings(), seeded(1):
        warnings.simplefilter("ignore")
        import peft

        model = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options})).eval()
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.add_(0.05 * torch.randn(value.shape))
    return model


@pytest.mark.parametrize("name", PEFTS)
def test_an_adapter_of_peft_is_read(name: str, tmp_path: Path) -> None:
    model = peft_model(classifier(), **PEFTS[name])
    with torch.no_grad():
        expected = model(pixels())
    model.save_pretrained(tmp_path)
    adapted = load_adapter(classifier(), tmp_path)
    with torch.no_grad():
        assert torch.allclose(adapted(pixels()), expected, atol=1e-5)
        adapted.merge()
        assert torch.allclose(adapted(pixels()), expected, atol=1e-4)
        adapted.unmerge()
    # It is one of ours from here on: saved, opened again strictly, trained.
    again = load_adapter(classifier(), save_adapter(adapted, tmp_path / "ours"))
    with torch.no_grad():
        assert torch.allclose(again(pixels()), expected, atol=1e-5)
    again.train()(pixels()).sum().backward()
    assert all(value.grad is not None for value in again.tensors().values())


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["adapt", *map(str, arguments)])


def test_the_verb_makes_an_adapter_that_other_verbs_open(tmp_path: Path) -> None:
    save_network("timm", tmp_path / "vit")
    network = load_backbone(parse_backbone(str(tmp_path / "vit")))
    network.model.reset_classifier(7)
    model = peft_model(network.model, target_modules=["qkv", "fc1"], modules_to_save=["head"])
    model.save_pretrained(tmp_path / "lora")
    images = tmp_path / "photos"
    images.mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (32, 32), color).save(images / f"{number}.png")
    names = [f"tree {number}" for number in range(7)]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    command = ("import-peft", tmp_path / "lora", "--backbone", tmp_path / "vit", "--out", tmp_path / "ours")
    assert "--classes" in str(invoke(*command).exception)
    assert "7 classes" in str(invoke(*command, "--classes", "a,b").exception)
    # As many different names as classes, and one more.
    repeated = invoke(*command, "--classes", ",".join([*names, "tree 3"])).exception
    assert isinstance(repeated, UserError), repeated
    assert "'tree 3'" in str(repeated)
    assert not (tmp_path / "ours").exists()
    done = invoke(*command, "--classes", f"@{tmp_path / 'names.txt'}", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    result = json.loads(done.stdout)
    assert result["classes"] == names
    assert "attn.qkv" in result["matched"]
    done = invoke("predict", tmp_path / "ours", images, "--out", tmp_path / "answers.csv")
    assert done.exit_code == 0, (done.output, done.exception)
    values = torch.stack([network.preprocess.pixels(Image.open(path)) for path in sorted(images.glob("*.png"))])
    with torch.no_grad():
        expected = model(network.normalize(values)).softmax(dim=1)
    rows = list(csv.DictReader((tmp_path / "answers.csv").open(encoding="utf-8")))
    assert [row["class"] for row in rows] == [names[label] for label in expected.argmax(dim=1).tolist()]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.max(dim=1).values.tolist(), abs=1e-4)
    done = invoke("merge", tmp_path / "ours", "--out", tmp_path / "merged")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "not empty" in str(invoke(*command, "--classes", f"@{tmp_path / 'names.txt'}").exception)
    assert "adapter_config.json" in str(invoke("import-peft", images, *command[2:4], "--out", tmp_path / "b").exception)


def test_the_verb_draws_no_head(tmp_path: Path) -> None:
    save_network("timm", tmp_path / "vit")
    peft_model(load_backbone(parse_backbone(str(tmp_path / "vit"))).model, target_modules=["qkv"]).save_pretrained(
        tmp_path / "lora"
    )
    command = ("import-peft", tmp_path / "lora", "--backbone", tmp_path / "vit", "--out", tmp_path / "ours")
    assert "modules_to_save" in str(invoke(*command, "--classes", "a,b").exception)
    assert not (tmp_path / "ours").exists()


def test_an_adapter_of_a_whole_model_fits_its_tower(tmp_path: Path) -> None:
    whole = network("transformers-siglip-both")
    model = peft_model(whole, target_modules=r"vision_model\..*\.(q|v)_proj")
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=images("transformers-siglip-both")).pooler_output
    model.save_pretrained(tmp_path)
    tower = network("transformers-siglip-both").vision_model
    adapted = load_adapter(tower, tmp_path, classes=3)
    with torch.no_grad():
        assert torch.allclose(adapted.features(images("transformers-siglip-both")), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"use_dora": True}, ("use_dora", "True")),
        ({"bias": "all"}, ("bias", "all")),
        ({"peft_type": "VERA"}, ("peft_type", "VERA", "LORA")),
        ({"lora_alpha": "x"}, ("lora_alpha", "x")),
    ],
)
def test_what_is_no_plain_lora_is_refused(options: dict[str, Any], names: tuple[str, ...], tmp_path: Path) -> None:
    peft_model(classifier(), target_modules=["qkv"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))
    with raises_naming(UserError, path, *names):
        load_adapter(classifier(), tmp_path)


def _rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for key in [key for key in tensors if old in key]:
        tensors[key.replace(old, new)] = tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda t: _rename(t, "attn.qkv", "attn.query"), ("blocks.0.attn.query", "Did you mean")),
        (lambda t: t.pop(next(key for key in t if ".lora_B." in key)), ("lora_B", "missing")),
        (lambda t: t.pop(next(key for key in t if ".lora_A." in key)), ("lora_B", "no pair")),
        (lambda t: t.update({"base_model.model.norm.weight": torch.zeros(3)}), ("norm",)),
        (lambda t: t.update({"base_model.model.head.weight": torch.zeros(3, 9)}), ("head", "9", "32")),
        (lambda t: t[next(iter(t))].fill_(float("nan")), ("NaN",)),
        (lambda t: t.clear(), ("no tensors of LoRA",)),
    ],
)
def test_tensors_that_do_not_fit(change: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    peft_model(classifier(), target_modules=["qkv"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    model = classifier()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with raises_naming(UserError, path, *names):
        load_adapter(model, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    peft_model(classifier(), target_modules=["qkv"]).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with raises_naming(UserError, tmp_path / "adapter_model.bin", "pickle"):
        load_adapter(classifier(), tmp_path)


def test_a_network_without_a_head_needs_a_number_of_classes(tmp_path: Path) -> None:
    tower = network("transformers-vit")
    peft_model(network("transformers-vit"), target_modules=["q_proj"]).save_pretrained(tmp_path)
    with raises_naming(UserError, "classes"):
        load_adapter(tower, tmp_path)
    assert load_adapter(tower, tmp_path, classes=3)(images("transformers-vit")).shape == (2, 3)
