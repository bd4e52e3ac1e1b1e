"""`foveate export RUN`: what was tuned, in a format that other libraries open: ONNX, timm or transformers.

Every export is loaded again with the library it is for and compared on `IMAGES` images; the largest difference of the
outputs is printed and written into its README.md. Where a library has no place for a network, a sentence says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.adapt.export import export_merged, processor_config, write_labels
from foveate.adapt.folder import CONFIG, find_adapter_folder
from foveate.adapt.model import AdaptedModel
from foveate.adapt.predictor import Predictor, open_adapter
from foveate.adapt.tasks import SINGLE_LABEL
from foveate.core.errors import UserError, choose
from foveate.core.export_folder import check_empty_folder, default_folder, list_files, staged_folder
from foveate.core.files import write_json_atomically, write_text_atomically
from foveate.core.results import ExportResult
from foveate.records.geometry import View
from foveate.records.samples import photographs
from foveate.vision.classifier import LABELS_FILE
from foveate.vision.onnx_graphs import check_packages, read_pixels_script, run_graph, write_graph
from foveate.vision.preprocess import Preprocess, place_image, render_image

IMAGES = 20
_MAX_DIFFERENCE = 1e-3  # relative to the largest output
GRAPH, SCRIPT, PREPROCESS, CARD = "model.onnx", "predict.py", "preprocess.json", "README.md"


@dataclass(frozen=True)
class _Source:
    """What is exported: the folder, the model in evaluation mode, and as an adapter where it is one."""

    folder: Path
    predictor: Predictor
    adapted: AdaptedModel | None
    info: dict[str, Any]


def export_tuned(
    folder: Path, *, to: str, out: Path | None = None, dry_run: bool = False
) -> tuple[Path, ExportResult, list[str]]:
    """Export a run of `adapt train`, an adapter folder, or a merged or calibrated classifier folder.

    Args:
        to: "onnx", "timm" or "transformers".
        out: a folder that does not exist or is empty; FOLDER-TARGET by default.
        dry_run: check, list what would be written, and write nothing.

    Returns:
        The folder, the result, and lines of text for the command line.

    Raises:
        UserError: an unknown target, a network that the target cannot express, or a folder that is not empty.
    """
    check, write = _TARGETS[choose(to, _TARGETS, f"target of the tuned model {folder}")]
    target = out or default_folder(folder, to)
    check_empty_folder(target)
    source = _open(folder)
    planned = check(source)
    if dry_run:
        result = ExportResult(source=str(folder), to=to, files=planned, dry_run=True)
        return target, result, [f"would write {target}/{name}" for name in planned]
    with staged_folder(target) as stage:
        difference = write(source, stage)
    differences = {"outputs": difference}
    result = ExportResult(source=str(folder), to=to, files=list_files(target), differences=differences)
    return target, result, [f"largest difference of the outputs on {IMAGES} images: {difference:.3g}"]


def _open(folder: Path) -> _Source:
    # On the CPU, where the exports are run for the comparison.
    predictor = open_adapter(folder, device="cpu")
    assert predictor.network is not None, "opened from a folder"
    network = predictor.network
    is_adapter = (find_adapter_folder(folder) / CONFIG).is_file()
    adapted = network if is_adapter and isinstance(network, AdaptedModel) else None
    info = {"classes": list(predictor.classes), **predictor.answers.to_info()}
    if adapted is not None:
        info = {**adapted.info[adapted.active], **info}
    return _Source(folder, predictor, adapted, info)


def probe_images(preprocess: Preprocess) -> Tensor:
    """Return uint8 pixels [IMAGES, 3, S, S]: the shipped photographs, upright, mirrored and turned."""
    turns = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180)
    pictures = [
        picture if turn is None else picture.transpose(turn) for turn in turns for picture in photographs().values()
    ]
    return torch.stack(
        [
            render_image(preprocess, picture, place_image(preprocess, picture.size, View()))
            for picture in pictures[:IMAGES]
        ]
    )


def _check_difference(ours: Tensor, theirs: Tensor, what: str) -> float:
    # Broadcasting would silently compare the wrong values.
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = float((ours.double() - theirs.double()).abs().max())
    if not difference <= _MAX_DIFFERENCE * max(1.0, float(ours.abs().max())):
        raise UserError(f"{what}: the exported model has other outputs (largest difference {difference:.3g})")
    return difference


# ONNX: a graph from pixels to outputs, and a script that needs no torch.


class _OutputGraph(nn.Module):
    """Pixels uint8 [B, 3, S, S] to outputs, and to probabilities where the task has some."""

    def __init__(self, source: _Source) -> None:
        super().__init__()
        predictor = source.predictor
        assert predictor.network is not None, "opened from a folder"
        self.network, self.task = predictor.network, predictor.answers.task
        self.normalize = predictor.preprocess.normalize

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(self.normalize(pixels))
        if self.task == SINGLE_LABEL:
            return outputs, outputs.softmax(dim=1)
        return (outputs, outputs.sigmoid()) if self.task == "multi-label" else (outputs,)


def _check_onnx(source: _Source) -> list[str]:
    check_packages()
    # The script renders squares alone.
    _ = source.predictor.preprocess.side
    return [GRAPH, LABELS_FILE, PREPROCESS, SCRIPT, CARD]


@torch.inference_mode(False)
def _write_onnx(source: _Source, folder: Path) -> float:
    predictor, adapted = source.predictor, source.adapted
    pixels = probe_images(predictor.preprocess)
    with torch.no_grad():
        ours = _OutputGraph(source)(pixels)[0].float()
    if adapted is not None and not adapted.adapter().why_not_mergeable:
        # The graph of the network itself: no branch beside it costs time.
        adapted.merge()
    outputs = ["outputs"] + ["probabilities"] * (predictor.answers.task in (SINGLE_LABEL, "multi-label"))
    # Traced with two images and compared with more, so that no size of a batch is written into the graph.
    write_graph(_OutputGraph(source).eval(), (pixels[:2],), {"pixels": "batch"}, outputs, folder / GRAPH)
    difference = _check_difference(ours, run_graph(folder / GRAPH, pixels=pixels)[0], str(source.folder))
    info = {"classes": list(predictor.classes), "labels": {"task": SINGLE_LABEL}, **predictor.answers.to_info()}
    write_json_atomically(folder / LABELS_FILE, info)
    write_json_atomically(folder / PREPROCESS, predictor.preprocess.to_dict())
    script = _SCRIPT.replace("READ_PIXELS", read_pixels_script(predictor.preprocess))
    write_text_atomically(folder / SCRIPT, script)
    write_text_atomically(folder / CARD, _ONNX_CARD.format(card=_card(source, difference, "onnxruntime")))
    return difference


_ONNX_CARD = """{card}
`python predict.py photo.jpg` prints the answer for each image; it needs onnxruntime, numpy and Pillow alone. In Python:

```python
import runpy

predict = runpy.run_path("this folder/predict.py")["predict"]
outputs, probabilities = predict("photo.jpg")  # one row each; probabilities is None of values
```

`labels.json` names the classes in the order of the outputs, and says what these are. `preprocess.json` has the resizing
of images; the graph normalizes the pixels itself.
"""
_SCRIPT = '''"""Answer for images: `python predict.py photo.jpg` prints classes, labels or a value. Needs no torch."""
import json, math, sys
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
PREPROCESS = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
INFO = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
CLASSES, LABELS = INFO["classes"], INFO["labels"]
SESSION = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])

READ_PIXELS

def predict(path):  # outputs [T] and probabilities [K], None of values
    results = SESSION.run(None, {"pixels": read_pixels(path)})
    return results[0][0], results[1][0] if len(results) > 1 else None

def answer(path):  # text
    outputs, probabilities = predict(path)
    if LABELS["task"] == "multi-label":
        chosen = [f"{name} {p:.3f}" for name, p, cut in zip(CLASSES, probabilities, LABELS["thresholds"]) if p >= cut]
        return ", ".join(chosen) or "none"
    if LABELS["task"] == "regression":
        return f"{outputs[0]:.4g} {LABELS.get('unit', '')}".strip()
    if LABELS["task"] == "ordinal":
        return CLASSES[int(np.clip(np.rint(outputs[0]), 0, len(CLASSES) - 1))]
    return ", ".join(f"{CLASSES[k]} {probabilities[k]:.3f}" for k in np.argsort(-probabilities, kind="stable")[:5])

if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(f"{path}: {answer(path)}")
'''


def _card(source: _Source, difference: float, library: str) -> str:
    answers, adapted = source.predictor.answers, source.adapted
    how = "" if adapted is None else f", tuned with {adapted.adapter().settings.method}"
    names = ", ".join(source.predictor.classes[:20]) or f"a value{f' in {answers.unit}' if answers.unit else ''}"
    more = f" and {len(source.predictor.classes) - 20} more" if len(source.predictor.classes) > 20 else ""
    return f"""# A tuned model

Labels: {answers.task}: {names}{more}{how}, by Foveate. Loaded with {library} and compared on {IMAGES} images
(photographs, mirrored and turned): the largest absolute difference of the outputs is {difference:.3g}.
"""


# timm: the merged network with its head.


def _check_timm(source: _Source) -> list[str]:
    adapted = _find_mergeable(source, "timm")
    name = (getattr(adapted.model, "pretrained_cfg", None) or {}).get("architecture")
    if adapted.backbone.family not in ("timm", "cnn") or not name:
        raise UserError(
            f"{source.folder}: a {type(adapted.model).__name__} is no architecture of timm; use --to onnx"
            + (" or --to transformers" if adapted.backbone.family == "transformers" else "")
        )
    return [CARD, "config.json", "model.safetensors"]


def _write_timm(source: _Source, folder: Path) -> float:
    import timm

    adapted, preprocess = source.adapted, source.predictor.preprocess
    assert adapted is not None, "checked"
    pixels = preprocess.normalize(probe_images(preprocess))
    with torch.no_grad():
        ours = adapted(pixels).float()
        export_merged(adapted, folder, model_args=_model_args(source))
        theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixels)
    difference = _check_difference(ours, theirs.float(), str(source.folder))
    write_text_atomically(folder / CARD, _TIMM_CARD.format(card=_card(source, difference, "timm")))
    return difference


_TIMM_CARD = """{card}
```python
import timm

model = timm.create_model("local-dir:this folder", pretrained=True).eval()  # or hf_hub:OWNER/NAME after an upload
```

`config.json` has the names of the classes (`label_names`) and the size, mean and deviation of its images
(`pretrained_cfg`, as `timm.data.resolve_model_data_config` reads them).
"""


def _model_args(source: _Source) -> dict[str, Any]:
    return dict(source.info.get("model_args") or {})


def _find_mergeable(source: _Source, target: str) -> AdaptedModel:
    """Return the adapted model, which `target` takes only merged."""
    if source.adapted is None:
        raise UserError(
            f"{source.folder}: is a classifier folder already; --to {target} takes the run folder of `adapt train`, or "
            "its adapter folder"
        )
    adapter = source.adapted.adapter()
    if adapter.why_not_mergeable:
        raise UserError(
            f"method '{adapter.settings.method}' cannot be merged: {adapter.why_not_mergeable}; use --to onnx, whose "
            "graph holds its branches"
        )
    return source.adapted


# transformers: the same weights under the library's own classification class, with id2label.


def _check_transformers(source: _Source) -> list[str]:
    adapted = _find_mergeable(source, "transformers")
    if not _is_of_transformers(adapted.model):
        raise UserError(
            f"{source.folder}: a {type(adapted.model).__name__} is no network of transformers; use --to onnx"
            + (" or --to timm" if adapted.backbone.family in ("timm", "cnn") else "")
        )
    if not isinstance(adapted.head, nn.Linear):
        raise UserError(f"{source.folder}: transformers takes a linear head (got {type(adapted.head).__name__})")
    _build_classifier(source, copy.deepcopy(adapted.model.config))
    return [CARD, "config.json", "model.safetensors", "preprocessor_config.json"]


def _is_of_transformers(model: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


_PROBLEM_TYPES = {
    SINGLE_LABEL: "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
    "ordinal": "regression",
}


def _build_classifier(source: _Source, config: Any) -> nn.Module:
    """Build the library's classification class for a network, with random weights."""
    from transformers import AutoModelForImageClassification

    answers = source.predictor.answers
    assert source.adapted is not None, "checked"
    # A value has one output; transformers names it, too.
    names = list(source.predictor.classes) if answers.task in (SINGLE_LABEL, "multi-label") else ["value"]
    config.id2label, config.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    config.num_labels, config.problem_type = len(names), _PROBLEM_TYPES[answers.task]
    try:
        return AutoModelForImageClassification.from_config(config)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{source.folder}: transformers has no classification class for a {type(source.adapted.model).__name__}; "
            "use --to onnx"
        ) from error


def _write_transformers(source: _Source, folder: Path) -> float:
    from transformers import AutoModelForImageClassification

    from foveate.core.hub import quiet

    adapted, predictor = source.adapted, source.predictor
    assert adapted is not None, "checked"
    assert isinstance(adapted.head, nn.Linear), "checked"
    pixels = predictor.preprocess.normalize(probe_images(predictor.preprocess))
    with torch.no_grad(), quiet():
        ours = adapted(pixels).float()
        weights = adapted.merged_weights()
        network: Any = adapted.model
        model: Any = _build_classifier(source, copy.deepcopy(network.config))
        _fill(model, weights, adapted.head, network)
        model.eval().save_pretrained(folder)
        reloaded: Any = AutoModelForImageClassification.from_pretrained(folder).eval()
        theirs = reloaded(pixels).logits.float()
    try:
        difference = _check_difference(ours, theirs, str(source.folder))
    except UserError as problem:
        kind, theirs_kind = type(network).__name__, type(model).__name__
        raise UserError(
            f"{source.folder}: the head was trained on other features of a {kind} than a {theirs_kind} of transformers "
            "gives its head, so that the answers would differ; use --to onnx"
        ) from problem
    config = processor_config(predictor.preprocess.to_dict(), network.config.model_type)
    write_json_atomically(folder / "preprocessor_config.json", config)
    write_labels(source.info, folder)
    write_text_atomically(folder / CARD, _TRANSFORMERS_CARD.format(card=_card(source, difference, "transformers")))
    return difference


def _fill(model: nn.Module, weights: dict[str, Tensor], head: nn.Linear, network: nn.Module) -> None:
    """Copy a network's weights and a head into a classification class of the same library.

    Raises:
        UserError: a tensor of the network is not in the class.
    """
    named: Any = model
    prefix, classifier = f"{named.base_model_prefix}.", _find_classifier(model)
    state = model.state_dict()
    if isinstance(network, type(model)):
        own = {f"{classifier}.weight", f"{classifier}.bias"}
        renamed = {name: value for name, value in weights.items() if name not in own}
    else:
        # Towers without a head have the names of the class's inner model; poolers that it lacks are not read.
        renamed = {prefix + name: value for name, value in weights.items()}
    missing = [name for name in state if name not in renamed and not name.startswith(f"{classifier}.")]
    if missing:
        raise UserError(f"{type(model).__name__} of transformers needs a tensor '{missing[0]}'; use --to onnx")
    model.load_state_dict({name: renamed.get(name, value) for name, value in state.items()})
    layer = model.get_submodule(classifier)
    if not isinstance(layer, nn.Linear) or layer.bias is None or layer.in_features < head.in_features:
        raise UserError(
            f"{type(model).__name__} of transformers has another head ({layer}) than the {head.in_features} features "
            "that this one reads; use --to onnx"
        )
    layer.weight.zero_()
    # DINOv2's class reads the mean of the patches behind the class token; weights of 0 leave it out.
    layer.weight[:, : head.in_features] = head.weight
    layer.bias.copy_(head.bias)


def _find_classifier(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return next((name for name in names if name == "classifier"), names[-1])


_TRANSFORMERS_CARD = """{card}
```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("this folder")
processor = AutoImageProcessor.from_pretrained("this folder")
```

`model.config.id2label` names the classes.
"""

_TARGETS: dict[str, tuple[Callable[[_Source], list[str]], Callable[[_Source, Path], float]]] = {
    "onnx": (_check_onnx, _write_onnx),
    "timm": (_check_timm, _write_timm),
    "transformers": (_check_transformers, _write_transformers),
}
