"""The base of an adapter with what PEFT adds to it: targets, memory before anything is loaded, weights, export."""

from __future__ import annotations

import copy
import importlib.util
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.devices import available_memory
from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, write_bytes_atomically, write_json_atomically
from foveate.core.hub import Checkpoint, fetch, loading
from foveate.core.peft_folder import WEIGHTS, exact_pattern, is_peft
from foveate.language.positions import find_context
from foveate.mllm.tuning.recipe import TuningRecipe
from foveate.multimodal.foreign import ForeignMllm
from foveate.multimodal.foreign_adapter import NOTES, adding, require_peft
from foveate.multimodal.foreign_loading import load_foreign, read_foreign
from foveate.multimodal.opening import find_native_folder
from foveate.training.costs import count_parameters
from foveate.training.distributed import world
from foveate.training.price import optimizer_bytes
from foveate.vision.registry import seeded

# Bytes of a weight in NF4 with its scales, which are quantized too (arXiv 2305.14314, section 3).
_NF4 = 0.52


@dataclass(frozen=True)
class Base:
    """A model to tune, without its weights.

    Attributes:
        model: of shapes alone (meta device), with its processor: writes conversations.
        targets: names of its linear layers that get pairs.
        trained: parameters that will be trained.
    """

    checkpoint: Checkpoint
    model: ForeignMllm
    config: Any
    targets: list[str]
    trained: int

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @property
    def max_positions(self) -> int | None:
        return find_context(self.model.model)


def open_base(recipe: TuningRecipe) -> Base:
    """Read the files of a recipe's base.

    Raises:
        UserError: no base is named, or it is no image-text-to-text model of transformers.
    """
    require_peft()
    if not recipe.base:
        raise UserError("base: missing; expected --base OWNER/NAME or a folder of a model of transformers")
    _check_base(recipe.base)
    checkpoint, processor, unit = read_foreign(recipe.base, unit=recipe.unit_of_boxes)
    from transformers import AutoConfig, AutoModelForImageTextToText

    with loading(recipe.base, kind="it as an image-text-to-text model"), torch.device("meta"):
        config = AutoConfig.from_pretrained(str(checkpoint.folder))
        shapes: Any = AutoModelForImageTextToText.from_config(config)
    # The token that ends an answer stands beside the weights.
    with loading(recipe.base):
        from transformers import GenerationConfig

        if (checkpoint.folder / "generation_config.json").is_file():
            shapes.generation_config = GenerationConfig.from_pretrained(str(checkpoint.folder))
    targets = list_targets(shapes, recipe.adapter.targets)
    trained = sum(_count_pair(shapes.get_submodule(name), recipe) for name in targets)
    return Base(checkpoint, ForeignMllm(shapes, processor, name=recipe.base, unit=unit), config, targets, trained)


def _check_base(source: str) -> None:
    """Raise UserError for what is no image-text-to-text model of transformers."""
    if is_peft(Path(source).expanduser()):
        raise UserError(f"base: {source} is an adapter; expected the model that it belongs to")
    if find_native_folder(source) is not None:
        raise UserError(f"base: {source} is a model of Foveate; tune it with foveate mllm train mllm-own")
    from transformers import AutoConfig, AutoModelForImageTextToText

    checkpoint = fetch(source, field="base")
    with loading(source, kind="its config"):
        config = AutoConfig.from_pretrained(str(checkpoint.folder))
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise UserError(
            f"base: {source} is no vision-language model (got '{config.model_type}'); expected an image-text-to-text "
            "model of transformers, such as qwen2_5_vl or smolvlm"
        )


def list_targets(model: Any, targets: str) -> list[str]:
    """List the linear layers that get pairs: those of the language model, or all but the head."""
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    prefix = next((name for name, module in model.named_modules() if module is decoder and name), "")
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and (targets == "all" or name.startswith(f"{prefix}."))
    ]
    if not names:
        raise UserError(
            f"adapter.targets: {type(model).__name__} has no linear layers there (got {targets}); expected all"
        )
    return names


def _write_pattern(model: nn.Module, names: list[str]) -> str:
    """Return names as an expression of PEFT: the common beginning and the ends of names, where these mean the same."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    beginning = names[0].split(".")
    while beginning and not all(name.startswith(".".join(beginning) + ".") for name in names):
        beginning.pop()
    pattern = re.escape(".".join(beginning)) + rf".*\.({'|'.join(map(re.escape, ends))})"
    matches = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    return pattern if matches == names else exact_pattern(names)


def _count_pair(layer: Any, recipe: TuningRecipe) -> int:
    magnitudes = layer.out_features if recipe.adapter.method == "dora" else 0
    return recipe.adapter.rank * (layer.in_features + layer.out_features) + magnitudes


def estimate_memory(base: Base, recipe: TuningRecipe, device: torch.device, *, tokens: int) -> dict[str, float]:
    """Estimate the bytes of a training by use, with their `total`.

    Args:
        tokens: of the longest conversation that was looked at.
    """
    shapes, text = base.model.model, base.config.get_text_config()
    dtype = recipe.dtype or ("float32" if device.type == "cpu" else "auto")
    # Checkpoints that do not say how they are stored are float32.
    width = ((base.config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)).itemsize
    linear = sum(base.model.model.get_submodule(name).weight.numel() for name in base.targets)
    weights = width * (count_parameters(shapes) - linear) + (_NF4 if recipe.quantization == "4bit" else width) * linear
    training, layers, hidden = recipe.training, text.num_hidden_layers, text.hidden_size
    # What a layer saves for its backward pass: about ten vectors of its width, and four of its inner width.
    layer = tokens * width * (10 * hidden + 4 * getattr(text, "intermediate_size", 4 * hidden))
    saved = layers * tokens * width * hidden + layer if recipe.recompute else layers * layer
    rows = training.batch_size / training.accumulate
    memory = {
        "base": float(weights),
        "adapter": 8.0 * base.trained,
        "optimizer": float(optimizer_bytes(training, base.trained)),
        "activations": rows * saved,
        # Logits in float32, with their gradient.
        "logits": rows * tokens * 8.0 * text.vocab_size,
    }
    return memory | {"total": sum(memory.values())}


def check_memory(memory: Mapping[str, float], device: torch.device, *, is_spread: bool = False) -> None:
    """Raise UserError if a training needs more memory than is free on its device, or, if it is spread, on all GPUs."""
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())] if is_spread else [device]
    on_gpus = sum(torch.cuda.mem_get_info(each)[0] for each in devices if each.type == "cuda")
    free = on_gpus or available_memory()
    if memory["total"] > free:
        raise UserError(
            f"not enough memory: about {describe_memory(memory)} (got {free / 1e9:.1f} GB free); expected a smaller "
            "base or adapter.rank, training.accumulate equal to training.batch_size, recompute=true, or on a GPU "
            "--quantization 4bit"
        )


def describe_memory(memory: Mapping[str, float]) -> str:
    """Write an estimate in one line."""
    scale, unit = (1e9, "GB") if memory["total"] >= 1e8 else (1e6, "MB")
    parts = ", ".join(f"{name} {value / scale:.2f}" for name, value in memory.items() if name != "total")
    return f"{memory['total'] / scale:.2f} {unit} ({parts})"


def check_opening(recipe: TuningRecipe, device: torch.device) -> None:
    """Raise UserError where the base cannot be spread over GPUs, or held in 4 bits."""
    if recipe.device_map is not None and world().size > 1:
        raise UserError(f"device_map: {recipe.device_map} is of one process; expected none under torchrun")
    if recipe.quantization == "none":
        return
    if device.type != "cuda":
        raise UserError(f"quantization: 4bit needs a CUDA GPU (got {device.type}); expected none, or --device cuda")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantization: 4bit needs the package bitsandbytes; pip install 'foveate[qlora]'")


def load_network(base: Base, recipe: TuningRecipe, device: torch.device) -> Any:
    """Load the base with a new adapter: a model of PEFT, whose base is frozen."""
    peft = require_peft()
    model = load_foreign(base.checkpoint, device=device, opening=recipe.opening)
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    # Weights that accelerate keeps elsewhere are loaded for a forward pass alone.
    if left := places & {"cpu", "disk"} if len(places) > 1 else places & {"disk"}:
        raise UserError(
            f"device_map: {recipe.base} does not fit the GPUs (got parts on {', '.join(sorted(left))}); expected "
            "--quantization 4bit or a smaller base"
        )
    adapter = recipe.adapter
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=_write_pattern(model, base.targets),
        use_dora=adapter.method == "dora",
        use_rslora=adapter.method == "rslora",
        init_lora_weights="pissa" if adapter.method == "pissa" else True,
    )
    # PEFT draws the first values from torch's global generator.
    with seeded(recipe.training.seed), adding(recipe.base, kind="an adapter for it"):
        network = peft.get_peft_model(model, lora)
    if recipe.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network


def read_state(network: Any) -> dict[str, Tensor]:
    """Return copies of the adapter's weights, named as in its folder."""
    state = require_peft().get_peft_model_state_dict(network, save_embedding_layers=False)
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def save_adapter(
    network: Any, folder: Path, *, base: str, initial: Mapping[str, Tensor] | None, notes: Mapping[str, Any]
) -> Path:
    """Write an adapter as PEFT and transformers open it.

    Args:
        base: name of the model that it belongs to.
        initial: first weights of an adapter that PEFT took out of the base (PiSSA). What was learned is their
            difference, a LoRA of twice the rank for the base as it is (arXiv 2404.02948, appendix C).
        notes: what else is known of it, see `NOTES`.
    """
    from safetensors.torch import save

    state, config = read_state(network), copy.deepcopy(network.peft_config["default"])
    config.inference_mode, config.base_model_name_or_path = True, base
    if initial is not None:
        config.init_lora_weights, config.r, config.lora_alpha = True, 2 * config.r, 2 * config.lora_alpha
        state = {
            name: torch.cat([value, initial[name]]) if ".lora_A." in name else torch.cat([value, -initial[name]], dim=1)
            for name, value in state.items()
        }
    # Written beside and renamed: a stopped run leaves no half of an adapter.
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_json_atomically(temporary / NOTES, dict(notes))
    write_bytes_atomically(temporary / WEIGHTS, save(state, metadata={"format": "pt"}))
    with loading(folder, kind="the config of an adapter"):
        config.save_pretrained(str(temporary))
    # An earlier adapter goes only when the new one is whole.
    shutil.rmtree(folder, ignore_errors=True)
    commit_atomically(temporary, folder)
    return folder
