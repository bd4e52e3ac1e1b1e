"""An image classifier, whoever made it: images to logits and to the features before its head; opened from a folder.

The formats are modules of `foveate.adapt.checkpoints`, each with `reads(folder, config)`, `load(folder, config)` and
`save(classifier, source, target)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapt import checkpoints
from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.vision.precision import choose_device
from foveate.vision.preprocess import Preprocess


class Classifier(nn.Module):
    """A network that gives one logit a class.

    Attributes:
        network: what the folder holds. head_name: its linear classifier's name in it.
        names: of the classes, in the order of the logits.
        preprocess: how an image becomes pixels; None where the network takes arrays as they are.
        format: the module of `foveate.adapt.checkpoints`, or "" where it is in memory only.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        head_name: str,
        names: Sequence[str],
        preprocess: Preprocess | None = None,
        format: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.head_name = head_name
        self.names = tuple(names)
        self.preprocess = preprocess
        self.format = format
        found = dict(network.named_modules()).get(head_name)
        if not isinstance(found, nn.Linear):
            raise UserError(
                f"'{head_name}' of {type(network).__name__} is no linear classifier ({type(found).__name__})"
            )
        if found.out_features != len(self.names) or len(set(self.names)) != len(self.names):
            raise UserError(
                f"the classifier '{head_name}' has {found.out_features} outputs: as many different class names are "
                f"wanted, not {len(set(self.names))}"
            )

    @property
    def head(self) -> nn.Linear:
        """The linear classifier."""
        found = self.network.get_submodule(self.head_name)
        assert isinstance(found, nn.Linear)
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (normalized here), or floating-point ones as they are, to logits [B, C]."""
        if pixels.dtype == torch.uint8:
            if self.preprocess is None:
                raise UserError("this classifier takes arrays of floating-point numbers, not images of 8 bits")
            pixels = self.preprocess.normalize(pixels)
        result: Any = self.network(pixels)
        return getattr(result, "logits", result)

    def logits_and_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C], and what the head was given [B, D]."""
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            logits = self(pixels)
        finally:
            handle.remove()
        return logits, caught[-1].flatten(1)


def formats() -> Iterator[tuple[str, Any]]:
    """Names and modules of the known formats."""
    for module in sorted(pkgutil.iter_modules(checkpoints.__path__), key=lambda one: one.name):
        yield module.name, importlib.import_module(f"foveate.adapt.checkpoints.{module.name}")


def open_classifier(folder: Path, *, device: str | None = None) -> Classifier:
    """Opens a classifier for use (evaluation mode), strictly: every tensor must be there and fit.

    Raises:
        UserError: no folder with config.json, a format that nothing here reads, weights missing or left over.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{folder}: no classifier here; allowed are folders with config.json and model.safetensors")
    config = read_json(config_path)
    if not isinstance(config, dict):
        raise UserError(f"{config_path}: not a JSON object")
    for name, module in formats():
        if module.reads(folder, config):
            found: Classifier = module.load(folder, config)
            found.format = name
            return found.to(choose_device(device or "auto")).eval()
    known = "; ".join(f"{name}: {module.WHAT}" for name, module in formats())
    raise UserError(f"{config_path}: no classifier of a known format ({known})")


def save_classifier(classifier: Classifier, target: Path, *, source: Path | None = None) -> Path:
    """Writes a classifier in the format that it was opened in.

    Args:
        source: the folder it was opened from, whose other files are kept.

    Raises:
        UserError: when it has no format, or the target exists.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; give another folder")
    module = dict(formats()).get(classifier.format)
    if module is None:
        raise UserError("this classifier is in memory only: it was not opened from a folder of a known format")
    module.save(classifier, source, target)
    return target


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], *, name: str) -> None:
    """Fills the network.

    Raises:
        UserError: naming tensors that are missing, left over or of another shape.
    """
    expected = network.state_dict()
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(
            f"{name}: weights missing: {', '.join(missing[:3]) or 'none'} ({len(missing)}), "
            f"unexpected: {', '.join(unexpected[:3]) or 'none'} ({len(unexpected)})"
        )
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise UserError(
                f"{name}: '{key}' has shape {list(value.shape)}, the model's is {list(expected[key].shape)}"
            )
    network.load_state_dict(tensors, strict=True)
