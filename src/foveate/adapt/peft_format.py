"""Adapter folders of PEFT: written from an adapted model, and read as LoRA of ours.

PEFT's folder names modules of one class of networks, and holds a head only where that class has one. So an export is
made for the class that the backbone's folder holds, a head that has no place there lies next to it, and the card has
the code that gives the same logits without Foveate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, InProjection, get_tensor
from foveate.adapt.families import FAMILIES
from foveate.adapt.heads import ZeroShotHead, build_head, describe_head, num_classes
from foveate.adapt.methods.lora import LoraAdapter, LoraSettings, find_targets
from foveate.adapt.model import AdaptedModel
from foveate.adapt.module_map import match_names
from foveate.adapt.registry import get_method
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically, write_text_atomically
from foveate.core.model_folder import read_tensors
from foveate.core.peft_folder import (
    WEIGHTS,
    check_shape,
    collect_pairs,
    describe_ranks,
    exact_pattern,
    lora_factor,
    match_modules,
    read_lora_config,
    read_peft_tensors,
    write_peft_config,
    write_peft_tensors,
)
from foveate.core.progress import say

HEAD_CONFIG, HEAD_WEIGHTS, CARD = "head.json", "head.safetensors", "README.md"


@dataclass(frozen=True)
class Base:
    """The network that a PEFT process builds.

    Attributes:
        kind: its class, and the module that has it.
        prefix: of the adapted network's names in it ("" or ending in a dot).
        head: name of its classifier, which PEFT replaces; "" where the head lies next to the adapter.
        imports, build: lines of Python that make it, for the card.
        features: expression of what the head reads, or of the logits where `head` is not "".
        source, revision: where its weights are.
    """

    kind: tuple[str, str]
    prefix: str
    head: str
    imports: str
    build: str
    features: str
    source: str | None = None
    revision: str | None = None


def export_peft(adapted: AdaptedModel, folder: str | Path, *, backbone: Mapping[str, Any] | None = None) -> Path:
    """Write a folder as PEFT's `PeftModel.from_pretrained` reads it, with head, class names and a card.

    Args:
        backbone: settings of `load_backbone`; modules are then named as in the class that its folder holds, which may
            be another one than the tower that was adapted.

    Raises:
        UserError: a method that PEFT does not have, or a module that it addresses in another way.

    Example:
        >>> sorted(path.name for path in export_peft(tuned_tower, new_folder).iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'head.json']
    """
    path, adapter = Path(folder), adapted.adapter()
    method = adapter.settings.method
    kind = get_method(method).peft
    if not kind:
        raise UserError(f"PEFT has no method '{method}': export merged weights, or keep Foveate's adapter folder")
    base = _find_base(adapted, backbone or {})
    tensors, config = _lora(adapted, base) if isinstance(adapter, LoraAdapter) else _norms(adapted, base)
    head = {key: value.detach() for key, value in adapted.head.state_dict().items()}
    config["modules_to_save"] = [base.head] if base.head else None
    if base.head:
        tensors |= {f"{base.head}.{key}": value for key, value in head.items()}
    config |= {
        "peft_type": kind,
        # PEFT's `AutoPeftModel` reads `auto_mapping` only where the task type is None.
        "task_type": None,
        "base_model_name_or_path": base.source,
        "revision": base.revision,
        "inference_mode": True,
        "auto_mapping": {"base_model_class": base.kind[0], "parent_library": base.kind[1]},
    }
    names = list(adapted.info[adapted.active].get("classes", ()))
    write_peft_tensors(path, tensors)
    if not base.head:
        plain = {key: value.cpu().contiguous() for key, value in head.items()}
        write_bytes_atomically(path / HEAD_WEIGHTS, save(plain, metadata={"format": "pt"}))
    where = {"module": base.head} if base.head else {"file": HEAD_WEIGHTS}
    write_json_atomically(path / HEAD_CONFIG, {**describe_head(adapted.head), **where, "names": names})
    write_text_atomically(path / CARD, _card(adapted, base, names))
    # Last, because PEFT takes a folder with this file for an adapter: a killed export is none.
    write_peft_config(path, config)
    return path


def _find_base(adapted: AdaptedModel, settings: Mapping[str, Any]) -> Base:
    """Return the network that a PEFT process builds for this adapter."""
    model: Any = adapted.model
    family, name = adapted.backbone.family, type(model).__name__
    if family in ("timm", "cnn"):
        return _timm_base(adapted, settings)
    if family == "transformers":
        return _transformers_base(adapted, settings)
    head = adapted.backbone.classifier if isinstance(adapted.head, nn.Linear) else ""
    return Base(
        kind=(name, type(model).__module__),
        prefix="",
        head=head,
        imports="",
        build=f"base = ...  # your {name}, with {num_classes(adapted.head)} classes",
        features="model(pixels)",
    )


def _timm_base(adapted: AdaptedModel, settings: Mapping[str, Any]) -> Base:
    model: Any = adapted.model
    published = getattr(model, "pretrained_cfg", None) or {}
    named = adapted.backbone.classifier or published.get("classifier")
    if not isinstance(named, str) or not isinstance(adapted.head, nn.Linear):
        raise UserError(
            f"PEFT replaces one linear classifier, a {type(model).__name__} with this head has none: export merged "
            "weights"
        )
    source = settings.get("source")
    if source is None:
        name, pretrained = str(settings.get("model") or published.get("architecture") or ""), False
    else:
        name, pretrained = f"{'local-dir' if Path(str(source)).is_dir() else 'hf-hub'}:{source}", True
    options = [f"{name!r}", f"pretrained={pretrained}", f"num_classes={num_classes(adapted.head)}"]
    # The architecture's name does not imply it: without this option the base would have fixed positions.
    if getattr(model, "dynamic_img_size", False):
        options.append("dynamic_img_size=True")
    note = "" if pretrained else "  # and load the weights that the adapter was trained on"
    return Base(
        kind=(type(model).__name__, type(model).__module__),
        prefix="",
        head=named,
        imports="import timm",
        build=f"base = timm.create_model({', '.join(options)}){note}",
        features="model(pixels)",
        source=None if source is None else str(source),
        revision=settings.get("revision"),
    )


def _transformers_base(adapted: AdaptedModel, settings: Mapping[str, Any]) -> Base:
    model: Any = adapted.model
    kind, source, revision = type(model), settings.get("source"), settings.get("revision")
    prefix = ""
    if source is not None:
        kind, prefix = _class_in_folder(adapted, str(source), revision)
    # Only if the folder holds the adapted class: another one, such as a whole CLIP model, has no such layer.
    head = adapted.backbone.classifier if kind is type(model) and isinstance(adapted.head, nn.Linear) else ""
    if head:
        features = "model(pixel_values=pixels).logits"
    else:
        tower = f"{prefix}{adapted.backbone.root}".rstrip(".")
        called = f"model.get_base_model(){f'.{tower}' if tower else ''}(pixel_values=pixels)"
        features = called + _pooling(adapted.backbone)
    where = repr(str(source)) if source is not None else "..."
    options = f", revision={revision!r}" if revision and source is not None else ""
    options += f", num_labels={num_classes(adapted.head)}, ignore_mismatched_sizes=True" if head else ""
    return Base(
        kind=(kind.__name__, kind.__module__),
        prefix=prefix,
        head=head,
        imports=f"from transformers import {kind.__name__}",
        build=f"base = {kind.__name__}.from_pretrained({where}{options})",
        features=features,
        source=None if source is None else str(source),
        revision=revision,
    )


def _pooling(backbone: Backbone) -> str:
    """Return the attribute of the outputs of a tower of transformers that the head reads."""
    kind = type(backbone.model).__name__
    if kind in ("CLIPVisionModelWithProjection", "CLIPModel"):
        raise UserError(
            f"{kind}: its head reads projected embeddings; adapt its CLIPVisionModel, or export merged weights"
        )
    family = FAMILIES.get(f"transformers.{kind}")
    cls = family is not None and family.pooled == "cls"
    return ".last_hidden_state[:, 0]" if cls else ".pooler_output.flatten(1)"


def _class_in_folder(adapted: AdaptedModel, source: str, revision: str | None) -> tuple[type, str]:
    """Return the class of transformers that a folder holds, and the prefix of the adapted tower's names in it."""
    import transformers

    from foveate.core.hub import fetch

    checkpoint = fetch(source, revision=revision)
    names = checkpoint.config().get("architectures") or []
    kind = getattr(transformers, str(names[0]), None) if names else None
    if kind is None or kind is type(adapted.model):
        return type(adapted.model), ""
    config = transformers.AutoConfig.from_pretrained(str(checkpoint.folder))
    with torch.device("meta"):
        # Names alone are read: on the meta device the largest CLIP takes no memory.
        modules = {name for name, _ in kind(config).named_modules()}
    known = [name for name, _ in adapted.model.named_modules() if name]
    prefixes: list[str] = [name.removesuffix(known[0]) for name in sorted(modules) if name.endswith(known[0])]
    # All names, not that of one block: the text tower of a CLIP model has blocks of the same names.
    fitting = [prefix for prefix in prefixes if all(f"{prefix}{name}" in modules for name in known)]
    return (kind, fitting[0]) if fitting else (type(adapted.model), "")


def _lora(adapted: AdaptedModel, base: Base) -> tuple[dict[str, Tensor], dict[str, Any]]:
    adapter = adapted.adapter()
    assert isinstance(adapter, LoraAdapter)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    blocks, targets = find_targets(adapted.backbone, adapter.settings)
    for block in blocks:
        # One B holds the rows of q, k and v below one another, over one A; PEFT has a pair for each module.
        pair = adapter.pair(block.number)
        for module, rows in zip(block.qkv, pair.b.weight.chunk(len(block.qkv)), strict=True):
            pairs.setdefault(_peft_name(adapted, module), []).append((pair.a.weight, rows))
    for target in targets:
        pair, rows = adapter.layer_pair(target), target.rows
        b = pair.b.weight
        if target.part[1] > 1:
            # PEFT's pair is beside the whole layer: zeros for the rows of the other letters.
            weight = get_tensor(target.layer, "weight")
            assert weight is not None
            whole = b.new_zeros(len(weight), b.shape[1])
            whole[rows] = b.detach()
            b = whole
        pairs.setdefault(_peft_name(adapted, target.layer), []).append((pair.a.weight, b))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, parts in pairs.items():
        key = f"{base.prefix}{name}"
        # Several pairs beside one layer are one of their ranks together; a copy, for safetensors refuses shared memory.
        tensors[f"{key}.lora_A.weight"] = torch.cat([a for a, _ in parts]).clone()
        tensors[f"{key}.lora_B.weight"] = torch.cat([b for _, b in parts], dim=1).clone()
        ranks[key] = len(tensors[f"{key}.lora_A.weight"])
    settings = adapter.settings
    factor = settings.factor * adapter.strength
    return tensors, {
        **describe_ranks(ranks, dict.fromkeys(ranks, factor), rank=settings.rank, factor=factor),
        "lora_dropout": settings.dropout,
        "bias": "none",
        "target_modules": exact_pattern(ranks),
    }


def _peft_name(adapted: AdaptedModel, module: nn.Module) -> str:
    name = adapted.backbone.name_of(module)
    if isinstance(module, InProjection) or type(module).__name__ == "NonDynamicallyQuantizableLinear":
        raise UserError(
            f"{name}: PEFT changes a whole nn.MultiheadAttention, not its projections; export merged weights instead"
        )
    return name


def _norms(adapted: AdaptedModel, base: Base) -> tuple[dict[str, Tensor], dict[str, Any]]:
    swap = adapted.adapter().parameter_swap
    assert swap is not None
    tuned = {f"{base.prefix}{key}": value for key, value in swap.tuned_values(adapted.model).items()}
    owners = sorted({key.rpartition(".")[0] for key in tuned})
    tensors: dict[str, Tensor] = {}
    for key, value in tuned.items():
        owner, _, attribute = key.rpartition(".")
        # PEFT's LN tuning wraps the layer, and keeps its copy of the parameters under this name.
        tensors[f"{owner}.ln_tuning_layers.{attribute}"] = value
    return tensors, {"target_modules": exact_pattern(owners)}


def _card(adapted: AdaptedModel, base: Base, names: Sequence[str]) -> str:
    """Return the card: what it is, the code that gives the logits, names of the classes."""
    settings = adapted.adapter().settings
    lines = ["import torch", base.imports, "from peft import PeftModel"]
    code = [base.build, 'model = PeftModel.from_pretrained(base, "FOLDER").eval()', "with torch.no_grad():"]
    if base.head:
        code.append(f"    logits = {base.features}")
    else:
        lines.append("from safetensors.torch import load_file")
        code.insert(2, f'head = load_file("FOLDER/{HEAD_WEIGHTS}")')
        code.append(f"    features = {base.features}")
        # Spells out `ZeroShotHead.forward`, because a process without Foveate lacks that class.
        if isinstance(adapted.head, ZeroShotHead):
            if adapted.head.projection is not None:
                code.append('    features = features @ head["projection"].T')
            code.append("    features = torch.nn.functional.normalize(features, dim=-1)")
            code.append('    logits = features @ head["linear.weight"].T + head["linear.bias"]')
        else:
            code.append('    logits = features @ head["weight"].T + head["bias"]')
    program = "\n".join([*(line for line in lines if line), "", *code])
    preprocess = adapted.info[adapted.active].get("preprocess")
    pixels = "Pixels are [B, 3, H, W] as the network takes them"
    if preprocess is not None:
        pixels += (
            f": {preprocess['size']} pixels a side, scaled to 0 to 1, then mean {list(preprocess['mean'])} and "
            f"deviation {list(preprocess['std'])}"
        )
    classes = "\n".join(f"{number}. {name}" for number, name in enumerate(names)) or "not saved with the adapter"
    return f"""# Adapter for PEFT

A {base.kind[0]} adapted with {settings.method} by Foveate. FOLDER is the folder of this file.

```python
{program}
```

{pixels}.

Classes, in the order of the logits (also in {HEAD_CONFIG}):

{classes}
"""


def has_head(folder: Path) -> bool:
    """Whether a folder of PEFT has a classifier: in `modules_to_save`, or next to the adapter as in our exports."""
    tensors = read_peft_tensors(folder)
    return (folder / HEAD_WEIGHTS).is_file() or any(".lora_" not in key for key in tensors)


def add_peft(adapted: AdaptedModel, folder: str | Path, *, name: str = "default", classes: int | None = None) -> None:
    """Add a LoRA adapter of PEFT to an adapted model and use it; it can be trained on.

    A pair for each layer becomes LoRA with `targets` of its names and `shared` false; layers of smaller ranks or other
    scales get zeros and a factor, which changes no output. PEFT notes no digest of the network, so that these are the
    weights that it was trained on is not checked.

    Args:
        classes: of a new head, where the folder has none and the network neither.

    Raises:
        UserError: another method of PEFT, an option that changes more than a low-rank matrix does, or tensors for
            modules that the network does not have.
    """
    path = Path(folder)
    config = read_lora_config(path)
    tensors = read_peft_tensors(path)
    head = _take_head(tensors, adapted.backbone, path)
    pairs = collect_pairs(tensors, path)
    names = match_modules(
        list(pairs),
        {name for name, _ in adapted.backbone.model.named_modules()},
        path,
        prefixes=dict.fromkeys(("", adapted.backbone.root)),
        network=type(adapted.backbone.model).__name__,
    )
    factors = {key: lora_factor(config, key, len(a), path) for key, (a, _) in pairs.items()}
    # The settings have one rank and one factor: smaller ranks are padded with zeros, other factors go into B.
    rank, factor = max(len(a) for a, _ in pairs.values()), next(iter(factors.values()))
    settings = LoraSettings(
        rank=rank,
        scale="alpha/r",
        alpha=factor * rank,
        dropout=float(config.get("lora_dropout") or 0.0),
        targets=_shorten(list(names.values()), adapted.backbone),
        shared=False,
    )
    before = adapted.active
    adapter = adapted.add(settings, head=head, classes=None if head is not None else classes, name=name)
    assert isinstance(adapter, LoraAdapter)
    try:
        targets = {target.name: target for target in find_targets(adapted.backbone, settings)[1]}
        with torch.no_grad():
            for key, (a, b) in pairs.items():
                pair = adapter.layer_pair(targets[names[key]])
                check_shape(pair.a.weight.shape[1:], a.shape[1:], f"{key}.lora_A", path)
                check_shape(pair.b.weight.shape[:1], b.shape[:1], f"{key}.lora_B", path)
                pair.a.weight.zero_()
                pair.b.weight.zero_()
                pair.a.weight[: len(a)].copy_(a)
                # All pairs have one factor here; another one of PEFT goes into B, which the output is linear in.
                pair.b.weight[:, : len(a)].copy_(b * (factors[key] / factor))
    except BaseException:
        adapted.remove(name, use=before)
        raise
    if (path / HEAD_CONFIG).is_file():
        adapted.info[name] = {"classes": read_json(path / HEAD_CONFIG).get("names", [])}
    say(f"loaded {len(pairs)} pairs of PEFT from {path}; that the network has the same weights is not checked")


def _take_head(tensors: dict[str, Tensor], backbone: Backbone, path: Path) -> nn.Module | None:
    """Remove the classifier from the tensors and return it; else the head that lies next to them; else None."""
    plain = sorted({key.rpartition(".")[0] for key in tensors if ".lora_" not in key})
    if len(plain) == 1 and f"{plain[0]}.weight" in tensors and tensors[f"{plain[0]}.weight"].dim() == 2:
        weight, bias = tensors.pop(f"{plain[0]}.weight"), tensors.pop(f"{plain[0]}.bias", None)
        if weight.shape[1] != backbone.features_dim:
            raise UserError(
                f"{path / WEIGHTS}: its classifier '{plain[0]}' reads {weight.shape[1]} features; this network has "
                f"{backbone.features_dim}"
            )
        head = nn.Linear(weight.shape[1], weight.shape[0])
        head.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight)) if bias is None else bias})
        return head
    if plain:
        raise UserError(
            f"{path / WEIGHTS}: tensors of {', '.join(plain[:3])} are no pairs; expected those of LoRA and of one "
            "linear classifier (modules_to_save)"
        )
    if not (path / HEAD_WEIGHTS).is_file():
        return None
    head = build_head(read_json(path / HEAD_CONFIG))
    head.load_state_dict(read_tensors(path / HEAD_WEIGHTS))
    return head


def _shorten(names: list[str], backbone: Backbone) -> list[str]:
    """Return patterns of exactly these names, with * for numbers where all of them are there."""
    layers = [name for name, module in backbone.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    patterns: dict[str, None] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        exact = set(match_names(pattern, layers)) <= set(names)
        # A name without a dot would be taken for a role.
        patterns[pattern if exact else name if "." in name else f"{name}|{name}"] = None
    return list(patterns)
