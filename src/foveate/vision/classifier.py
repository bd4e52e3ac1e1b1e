"""An image classifier of any library: images to logits and to the features before its head; opened from a folder.

The formats are modules of `foveate.vision.classifiers`, each with `matches(folder, config)`, `load(folder, config)` and
`save(classifier, source, target)`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, read_json
from foveate.core.hub import find
from foveate.core.plugins import load_module, module_names
from foveate.vision.preprocess import Preprocess

_FORMATS = "foveate.vision.classifiers"
# Beside a network whose outputs are no logits of one class per image; see `foveate.adapt.tasks.Answers`.
LABELS_FILE = "labels.json"


class Classifier(nn.Module):
    """A network with one logit per class.

    Attributes:
        network: what the folder holds.
        head_name: name of its linear classifier.
        names: of the classes, in the order of the logits.
        preprocess: how an image becomes pixels; None where the network takes arrays as they are.
        format: module of `foveate.vision.classifiers`, or "" where it is in memory only.
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
        head = dict(network.named_modules()).get(head_name)
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"head '{head_name}' of {type(network).__name__} must be a linear layer (got {type(head).__name__})"
            )
        # Calibrations address classes by name, so a repeated name would be ambiguous.
        if head.out_features != len(self.names) or len(set(self.names)) != len(self.names):
            raise UserError(
                f"head '{head_name}' has {head.out_features} outputs; expected as many different class names (got "
                f"{len(set(self.names))})"
            )

    @property
    def head(self) -> nn.Linear:
        """The linear classifier."""
        head = self.network.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.weight.device

    def forward(self, pixels: Tensor) -> Tensor:
        """Map uint8 pixels (normalized here), or floating-point ones as they are, to logits [B, C]."""
        if pixels.dtype == torch.uint8:
            if self.preprocess is None:
                raise UserError("this classifier takes arrays of floating-point values (got 8-bit images)")
            pixels = self.preprocess.normalize(pixels)
        outputs: Any = self.network(pixels)
        # Models of transformers return an object, timm's the tensor itself.
        return getattr(outputs, "logits", outputs)

    def logits_and_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, C], and the input of the head [B, D]."""
        inputs, thread = list[Tensor](), threading.get_ident()

        def receive(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # The hook is on the one head that all threads share: passes of the others are not this one's.
            if threading.get_ident() == thread:
                inputs.append(arguments[0])

        # By a hook: every library names the method that stops in front of the head differently.
        handle = self.head.register_forward_pre_hook(receive)
        try:
            logits = self(pixels)
        finally:
            handle.remove()
        return logits, inputs[-1].flatten(1)


def classifier_formats() -> dict[str, Any]:
    """Return the modules of the known formats by name."""
    return {name: load_module(_FORMATS, name, label="classifier format") for name in module_names(_FORMATS)}


def open_classifier(folder: str | Path, *, device: str | None = None, any_task: bool = False) -> Classifier:
    """Open a classifier in evaluation mode, strictly: every tensor must be there and fit.

    Args:
        any_task: also open networks of several labels or of values, whose outputs are no logits of one class per image.

    Raises:
        UserError: no folder with config.json, an unknown format, or weights missing or left over.

    Example:
        >>> classifier = open_classifier(classifier_folder)  # of Foveate, timm or transformers
        >>> classifier.names
        ('disc', 'square', 'triangle')
    """
    folder = find("classifier", folder).folder
    if (folder / LABELS_FILE).is_file() and not any_task:
        raise UserError(f"{folder}: is no model of one class per image; {LABELS_FILE} says what its outputs are")
    config_path = folder / "config.json"
    config = read_json(config_path)
    if not isinstance(config, dict):
        raise UserError(f"{config_path}: expected a JSON object (got {type(config).__name__})")
    formats = classifier_formats()
    for name, module in formats.items():
        if module.matches(folder, config):
            classifier: Classifier = module.load(folder, config)
            classifier.format = name
            return classifier.to(choose_device(device or "auto")).eval()
    known = "; ".join(f"{name}: {module.WHAT}" for name, module in formats.items())
    raise UserError(f"{config_path}: not a classifier of a known format ({known})")


def save_classifier(classifier: Classifier, target: Path, *, source: Path | None = None) -> Path:
    """Write a classifier in the format that it was opened in.

    Args:
        source: the folder it was opened from, whose other files are copied.

    Raises:
        UserError: it has no format, or the target exists.

    Example:
        >>> save_classifier(open_classifier(classifier_folder), new_folder, source=classifier_folder) == new_folder
        True
    """
    if target.exists():
        raise UserError(f"{target} exists already; give another folder")
    module = classifier_formats().get(classifier.format)
    if module is None:
        raise UserError("this classifier is in memory only: it was not opened from a folder of a known format")
    module.save(classifier, source, target)
    return target


def copy_with_weights(classifier: Classifier, source: Path | None, target: Path) -> None:
    """Copy all files of `source` but its weights, and write model.safetensors; the folder appears at once."""
    if source is None:
        raise UserError(f"{target}: give the folder that the classifier was opened from; its configuration is copied")
    # Beside the target: a rename is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        # The index too: it names shards that the one file replaces.
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
        weights = {name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        commit_atomically(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
