"""Export adapted models for other libraries: PEFT's adapter folder, or merged weights in the backbone's own format.

Each export is loaded again with the library that it is for, and compared on images of noise; the largest difference
is returned and written into the export's card.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from foveate.adapt.adapter import list_matches
from foveate.adapt.backbones import map_backbone
from foveate.adapt.folder import find_adapter_folder, load_adapter, read_adapter_config, save_adapter
from foveate.adapt.heads import describe_head, num_classes
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone, parse_backbone
from foveate.adapt.model import AdaptedModel
from foveate.adapt.peft_format import add_peft, export_peft, has_head
from foveate.adapt.results import ImportResult, MergeResult, TrainedParameters
from foveate.adapt.tasks import Answers, single_label_only
from foveate.core.errors import UserError
from foveate.core.export_folder import staged_folder
from foveate.core.files import write_bytes_atomically, write_json_atomically, write_text_atomically
from foveate.core.peft_folder import CONFIG, is_peft
from foveate.vision.classifier import LABELS_FILE

_MAX_DIFFERENCE = 1e-3  # relative to the largest output; merging in float32 stays below 1e-5
IMAGES = 4
_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def export_merged(
    adapted: AdaptedModel, folder: str | Path, *, model_args: dict[str, Any] | None = None
) -> tuple[Path, float]:
    """Write the merged model in its backbone's own format; return the folder and the largest difference of outputs.

    timm: a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`, with the head. transformers: a folder
    for `from_pretrained`, the head next to it in head.safetensors. A localizing model of Foveate: a model folder.
    Others: model.safetensors with the backbone's names, the head next to it.

    Args:
        folder: new or empty; nothing is written there if the export is refused or killed.
        model_args: further arguments that the timm network was built with.

    Raises:
        UserError: the method cannot be merged (the message says why), the reloaded model has other outputs, or the
            folder is not empty.

    Example:
        >>> folder, difference = export_merged(adapted_model, new_folder)
        >>> difference < 1e-4
        True
    """
    path = Path(folder)
    check_empty(path)
    was_merged, was_training = adapted.is_merged, adapted.training
    with staged_folder(path) as stage:
        # Dropout and DropPath off: otherwise two passes over the same weights would differ.
        adapted.eval()
        pixels = _noise(adapted)
        with torch.no_grad():
            before = adapted(pixels).float()
        if not was_merged:
            adapted.merge()
        try:
            with torch.no_grad():
                after = _write(adapted, stage, pixels, model_args or {})
        finally:
            if not was_merged:
                adapted.unmerge()
            adapted.train(was_training)
        # In float32, against the outputs before merging: it covers merging, writing, and loading by the other library.
        difference = float((after.float() - before).abs().max())
        if not difference <= _MAX_DIFFERENCE * max(1.0, float(before.abs().max())):
            raise UserError(f"{path}: the exported model has other outputs (largest difference {difference:.3g})")
        write_text_atomically(stage / "README.md", _card(adapted, difference))
        write_labels(adapted.info[adapted.active], stage)
    return path, difference


def _noise(adapted: AdaptedModel) -> Tensor:
    """Return images of noise of the size that the backbone takes."""
    backbone = adapted.backbone
    rows, columns = backbone.grid
    patch = backbone.patch_size
    if not rows:  # the size that it was tuned at, else what most networks take
        rows, columns = 1, 1
        patch = int(adapted.info[adapted.active].get("preprocess", {}).get("size") or 224)
    generator = torch.Generator().manual_seed(0)
    like = next(iter(backbone.tower_parameters().values()))
    shape = (IMAGES, backbone.channels, rows * patch, columns * patch)
    # A generator of its own: an export must not move the caller's random numbers.
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def _write(adapted: AdaptedModel, path: Path, pixels: Tensor, model_args: dict[str, Any]) -> Tensor:
    """Write the merged model and return the outputs of the reloaded one."""
    from foveate.vision.localizer.model import LocalizingModel

    model: Any = adapted.model
    if adapted.backbone.family in ("timm", "cnn"):
        return _timm(adapted, path, pixels, model_args)
    head = {key: value.detach().cpu().contiguous() for key, value in adapted.head.state_dict().items()}
    write_bytes_atomically(path / "head.safetensors", save(head))
    names = list(adapted.info[adapted.active].get("classes", ()))
    write_json_atomically(path / "head.json", {**describe_head(adapted.head), "names": names})
    if adapted.backbone.family == "transformers":
        from foveate.core.hub import quiet

        with quiet():
            model.save_pretrained(path)
            reloaded = type(model).from_pretrained(path, dtype=pixels.dtype).eval()
        preprocess = adapted.info[adapted.active].get("preprocess")
        if preprocess is not None:
            config = processor_config(preprocess, model.config.model_type)
            write_json_atomically(path / "preprocessor_config.json", config)
    elif isinstance(model, LocalizingModel):
        from foveate.vision.localizer.folder import load_model, save_model

        save_model(model, path, provenance={"adapted_with": adapted.adapter().settings.model_dump(mode="json")})
        reloaded = load_model(path, device="cpu")
    else:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        write_bytes_atomically(path / "model.safetensors", save(state))
        # No library opens this folder, so there is nothing to reload.
        return adapted.head(adapted.backbone.features(pixels))
    return adapted.head(map_backbone(reloaded.to(pixels.device)).features(pixels))


def processor_config(preprocess: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a preprocessing as an image processor of transformers declares it."""
    # It has no padding: a letterbox becomes the center crop that comes nearest (the card says so).
    size = preprocess["size"]
    return {
        "image_processor_type": "BitImageProcessor" if kind.startswith("dinov2") else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _RESAMPLING[preprocess["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
        "do_convert_rgb": True,
    }


def _timm(adapted: AdaptedModel, path: Path, pixels: Tensor, model_args: dict[str, Any]) -> Tensor:
    import timm
    from timm.models._hub import save_for_hf

    head = adapted.head
    if not isinstance(head, nn.Linear):
        raise UserError(f"a timm model takes a linear head (got {type(head).__name__}): export its weights separately")
    model: Any = copy.deepcopy(adapted.model)
    vars(model).pop("_foveate_adapted", None)  # the mark of AdaptedModel, which a copy inherits
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name:
        raise UserError("this timm network was not built by timm.create_model: it has no architecture name to save")
    # timm's own way to set the classes: it also writes them into the configuration that is saved.
    model.reset_classifier(head.out_features)
    named = model.pretrained_cfg.get("classifier") or "head"
    # By name: `get_classifier` of some returns the module around it. Distilled networks answer with the mean of two
    # classifiers, and features here are the mean of what these read.
    for classifier in named if isinstance(named, list | tuple) else (named,):
        model.get_submodule(classifier).load_state_dict(head.state_dict())
    arguments = {key: value for key, value in model_args.items() if key != "num_classes"}
    info, about = adapted.info[adapted.active], dict[str, Any](num_classes=head.out_features)
    if len(info.get("classes", ())) == head.out_features:
        about["label_names"] = info["classes"]
    size = info.get("preprocess", {}).get("size")
    channels = adapted.backbone.channels
    if channels != 3:
        arguments.setdefault("in_chans", channels)
        # Without its name: timm would turn the weights of a first convolution of three channels into ones of others.
        height, width = model.pretrained_cfg["input_size"][1:]
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (channels, height, width), "first_conv": None}
    if size is not None:
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (channels, size, size)}
    sides = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if adapted.backbone.blocks and sides is not None:
        arguments.setdefault("img_size", int(sides[0]))
        if size not in (None, int(sides[0])) and hasattr(model, "dynamic_img_size"):
            arguments["dynamic_img_size"] = True  # as it was tuned: positions are resampled
    save_for_hf(model, str(path), model_config=about, model_args=arguments, safe_serialization=True)
    # Reloaded from disk as a user of timm would: the files are compared, not the model in memory.
    reloaded = timm.create_model(f"local-dir:{path}", pretrained=True).to(pixels).eval()
    return reloaded(pixels)


def _card(adapted: AdaptedModel, difference: float) -> str:
    settings = adapted.adapter().settings
    fields = settings.model_dump(mode="json", exclude_none=True, exclude={"method"})
    options = ", ".join(f"{key} {value}" for key, value in fields.items())
    return f"""# Merged model

A {type(adapted.model).__name__} adapted with {settings.method}{f" ({options})" if options else ""} by Foveate.
The adapter is part of its weights. Loaded again and compared on {IMAGES} images of noise: the largest absolute
difference of the outputs is {difference:.3g}.
{_describe_images(adapted.info[adapted.active].get("preprocess"))}"""


def _describe_images(preprocess: dict[str, Any] | None) -> str:
    """Return how the images of its training were resized, for the card."""
    if preprocess is None:
        return ""
    text = f"It was tuned on {preprocess['size']} x {preprocess['size']} pixels"
    if preprocess["geometry"] == "center_crop":
        return f"\n{text} from the center of each image.\n"
    return f"""
{text} with whole images and bars at the sides. timm and transformers take the center of
each image instead: where yours are not square, answers may differ.
"""


def open_adapted(path: Path, *, backbone: str | None = None) -> tuple[AdaptedModel, LoadedBackbone, dict[str, Any]]:
    """Open a saved adapter on its backbone, loaded as for training; return what is saved with it, too.

    Args:
        path: adapter folder, or the run folder of `adapt train`.
        backbone: where the backbone is now, if it moved.

    Raises:
        UserError: the adapter does not say where its backbone is, or it is another one.
    """
    folder = find_adapter_folder(path)
    info = read_adapter_config(folder)["info"]
    if backbone is None and "backbone" not in info:
        raise UserError(f"{folder} does not say where its backbone is; give --backbone")
    network = load_backbone(info["backbone"] if backbone is None else parse_backbone(backbone))
    return load_adapter(network.model, folder), network, info


def import_peft(
    folder: Path, to: Path, *, backbone: str, classes: Sequence[str] = (), modules: Sequence[str] = ()
) -> ImportResult:
    """Write PEFT's folder of a LoRA adapter as an adapter folder, which the verbs of `foveate adapt` open.

    Args:
        folder: of PEFT.
        to: folder, new or empty.
        backbone: see `parse_backbone`; PEFT does not say how images become pixels, this network's folder does.
        classes: names of the head's classes, where the folder has none.
        modules: see `parse_backbone`.

    Raises:
        UserError: `to` is not empty, there is no head, names are missing, repeated or of another number than its
            classes, or see `add_peft`.
    """
    if not is_peft(folder):
        raise UserError(f"{folder}: no {CONFIG}; expected a folder that PEFT wrote")
    check_empty(to)
    network = load_backbone(parse_backbone(backbone, modules))
    adapted = AdaptedModel(network.model, network.modules or None)
    if not has_head(folder) and not adapted.backbone.classifier:
        # A new head would be random, and its answers noise that looks like answers.
        raise UserError(
            f"{folder} has no head (modules_to_save), and the backbone none either; in Python, "
            "load_adapter(network, folder, classes=N) gives a new one, to be trained"
        )
    add_peft(adapted, folder)
    name = adapted.active
    names = list(classes) or adapted.info.get(name, {}).get("classes", [])
    expected = num_classes(adapted.head)
    if not names:
        raise UserError(f"{folder} has a head of {expected} classes without names; give them with --classes")
    repeated = next((label for label, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise UserError(f"--classes: '{repeated}' comes more than once; expected {expected} different names")
    if len(names) != expected:
        raise UserError(f"--classes: {len(names)} names; the head has {expected} classes")
    adapted.info[name] = {
        "classes": names,
        "backbone": network.settings,
        "model_args": network.model_args,
        "preprocess": network.preprocess.to_dict(),
        "imported_from": "peft",
    }
    # The folder appears at once: a killed import leaves nothing that looks like an adapter.
    with staged_folder(to) as stage:
        save_adapter(adapted, stage)
    counts = adapted.count_parameters()
    return ImportResult(
        method=adapted.adapter().settings.method,
        backbone=network.settings,
        matched=list_matches(adapted.adapter(), adapted.backbone),
        classes=names,
        parameters=TrainedParameters(backbone=counts.backbone, trained=counts.trained, head=counts.head),
    )


def write_labels(info: dict[str, Any], folder: Path) -> None:
    """Write what the outputs of a model are beside its weights, unless they are logits of one class per image."""
    labels = Answers.from_info(info).to_info()
    if labels:
        write_json_atomically(folder / LABELS_FILE, {"classes": list(info.get("classes", ())), **labels})


def check_empty(to: Path) -> None:
    """Raise UserError for a folder that holds something."""
    if to.exists() and any(to.iterdir() if to.is_dir() else [to]):
        raise UserError(f"{to} exists and is not empty; give another folder")


def merge_adapter(path: Path, to: Path, *, format: str, backbone: str | None = None) -> MergeResult:
    """Write an adapter's merged model ("merged") or PEFT's folder ("peft").

    Args:
        path: adapter folder, or the run folder of `adapt train`.
        to: folder, new or empty.
        format: "merged" or "peft".
        backbone: where the backbone is now, if it moved.

    Raises:
        UserError: `to` is not empty, or see `export_merged` and `export_peft`.
    """
    check_empty(to)
    adapted, network, info = open_adapted(path, backbone=backbone)
    difference = None
    if format == "peft":
        # PEFT's folder has no place for thresholds and units, and its readers take logits for those of classes.
        single_label_only(Answers.from_info(info).task, "--format peft")
        with staged_folder(to) as stage:
            export_peft(adapted, stage, backbone=network.settings)
    else:
        _, difference = export_merged(adapted, to, model_args=network.model_args)
    method = adapted.adapter().settings.method
    return MergeResult(method=method, backbone=network.settings, format=format, difference=difference)
