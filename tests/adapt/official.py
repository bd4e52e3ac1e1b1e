"""The released code's names and options in our terms, to read its tensors; and its tiny networks built with timm."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.adapt.backbone import Backbone
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.registry import get_method

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "petl"


@cache
def index() -> dict[str, Any]:
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def cases() -> list[dict[str, Any]]:
    return index()["cases"]


def case_of(name: str) -> dict[str, Any]:
    return next(case for case in cases() if case["case"] == name)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def backbone(case: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    """The plain timm network of a case with its stored weights."""
    from timm.models.vision_transformer import VisionTransformer

    kind = case["backbone"].removeprefix("backbone").removesuffix(".safetensors")
    clip = kind == "_clip"
    model = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=7,
        init_values=1e-5 if kind == "_layerscale" else None,
        pre_norm=clip,
        act_layer=QuickGELU if clip else nn.GELU,
        norm_layer=(lambda size, **more: nn.LayerNorm(size, eps=1e-5, **more)) if clip else None,
    )
    model.load_state_dict(load_file(FOLDER / case["backbone"]), strict=True)
    return model.to(dtype).eval()


def settings(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Our settings of the released code's options; fields that only say which method it is are left out."""
    names = {
        "lora_bottleneck": "rank",
        "adapter_bottleneck": "rank",
        "adapter_scaler": "scale",
        "convpass_bottleneck": "rank",
        "convpass_scaler": "scale",
        "repadapter_bottleneck": "rank",
        "repadapter_scaler": "scale",
        "repadapter_group": "groups",
        "fact_dim": "rank",
        "fact_scaler": "scale",
        "vpt_num": "prompts",
        "vpt_layer": "last_blocks",
    }
    ours = {names[key]: value for key, value in options.items() if key in names}
    if ours.get("scale") == "learnable_scalar":
        ours["scale"] = "learnable"
    return {"method": name, **ours}


def translated(name: str, params: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The released code's tensors under our names; `head.` kept, the backbone's own under `backbone.`."""
    native = set(backbone.tower_parameters())
    found: dict[str, Tensor] = {}
    for key, value in params.items():
        if key.startswith("head."):
            found[key] = value
        elif key in native:
            found[f"backbone.{key}"] = value
        else:
            ours, changed = _ours(name, key, value)
            found[ours] = changed
    return found


_SSF = {
    r"patch_embed\.ssf_(\w+)_1": "patch",
    r"blocks\.(\d+)\.ssf_(scale|shift)_1": "norm1",
    r"blocks\.(\d+)\.ssf_(scale|shift)_2": "norm2",
    r"blocks\.(\d+)\.attn\.ssf_(scale|shift)_qkv": "qkv",
    r"blocks\.(\d+)\.attn\.ssf_(scale|shift)_linear": "proj",
    r"blocks\.(\d+)\.mlp\.ssf_(scale|shift)_hidden": "fc1",
    r"blocks\.(\d+)\.mlp\.ssf_(scale|shift)_out": "fc2",
    r"ssf_(scale|shift)": "norm",
}
_CORES = {"attn.0": "q", "attn.1": "k", "attn.2": "v", "attn.3": "proj", "mlp.0": "fc1", "mlp.1": "fc2"}


def _ours(name: str, key: str, value: Tensor) -> tuple[str, Tensor]:
    if "ssf" in key:
        for pattern, place in _SSF.items():
            found = re.fullmatch(pattern, key)
            if found:
                block = f"block{found[1]}_" if found.re.groups == 2 else ""
                return f"{found[found.re.groups]}s.{block}{place}", value
    found = re.fullmatch(r"blocks\.(\d+)\.attn\.lora\.lora_([ab])\.weight", key)
    if found:
        return f"blocks.{found[1]}.{found[2]}.weight", value
    found = re.fullmatch(r"blocks\.(\d+)\.difffit_gamma([12])", key)
    if found:
        return f"{'attention' if found[2] == '1' else 'mlp'}.{found[1]}", value
    found = re.fullmatch(r"blocks\.(\d+)\.ft_(attn|mlp)_module\.(.+)", key)
    if found:
        both = name in ("houlsby", "convpass", "repadapter")
        part = {"attn": "attention", "mlp": "mlp"}[found[2]] if both else "blocks"
        inner = found[3]
        for old, new in (
            ("adapter_", ""),
            ("_proj", ""),
            ("conv_A.", "a_"),
            ("conv_B.", "b_"),
        ):
            inner = inner.replace(old, new)
        if inner == "scale":
            inner = "learnt_scale"
        return f"{part}.{found[1]}.{inner}", value.squeeze(-1) if name == "repadapter" and value.dim() == 3 else value
    found = re.fullmatch(r"fact\.per_block_para\.(\d+)\.((?:attn|mlp)\.\d)\.weight", key)
    if found:
        return f"blocks.{found[1]}.{_CORES[found[2]]}.weight", value
    fixed = {
        "fact.FacTu.weight": "u.weight",
        "fact.FacTv.weight": "v.weight",
        "fact.FacTc": "c",
        "fact.FacTp": "p",
        "vpt.prompt_embeddings": "prompts",
    }
    return fixed[key], value


def stored(case: dict[str, Any]) -> dict[str, Tensor]:
    return load_file(FOLDER / case["file"])


def batch(case: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    found = load_file(FOLDER / case["batch"])
    return found["images"].to(dtype), found["labels"].long()


def adapted_case(case: dict[str, Any], dtype: torch.dtype = torch.float64) -> AdaptedModel:
    """The case's network with the stored tuned tensors, dropout off."""
    options = settings(case["method"], case["options"])
    if case["method"] == "vpt_shallow":
        options["keep_prompts"] = False
    if case["case"].endswith("_layerscale"):
        options["layerscale"] = "official"
    if "dropout" in get_method(case["method"]).settings.model_fields:
        options["dropout"] = 0.0
    adapted = adapt(backbone(case, dtype), options)
    fill(adapted, case["method"], _part(stored(case), "param/"))
    return adapted.eval()


def fill(adapted: AdaptedModel, name: str, params: dict[str, Tensor]) -> None:
    """Puts stored tensors in place; there must be exactly as many as are trained."""
    values = translated(name, params, adapted.backbone)
    targets = {**adapted.adapter().tensors(adapted.backbone)}
    targets |= {f"head.{key}": value for key, value in adapted.head.named_parameters()}
    assert values.keys() == targets.keys(), sorted(values.keys() ^ targets.keys())
    with torch.no_grad():
        for key, target in targets.items():
            assert target.shape == values[key].shape, key
            target.copy_(values[key])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def gradients(case: dict[str, Any]) -> dict[str, Tensor]:
    return _part(stored(case), "grad/")
