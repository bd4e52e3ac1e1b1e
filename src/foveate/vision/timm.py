"""ViTs of timm: an architecture by name, with the weights of a folder, a file, or a hub repository.

The pooled vector is what the model hands to its classifier (class token, mean, or attention pooling), the joint
embedding a trained projection of it: timm's models have no text tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from foveate.core.errors import UserError, nearest
from foveate.core.hub import Checkpoint, fetch
from foveate.vision.backbones import BackboneImageEncoder, choose_projection, on_meta
from foveate.vision.encoder import check_layer
from foveate.vision.hf.processors import given_preprocess, preprocess_for, three
from foveate.vision.tower_options import FreezableImageOptions, read_options

KIND = "timm"


class TimmOptions(FreezableImageOptions):
    """Options of networks of timm."""

    model: str | None = Field(
        default=None, description="architecture; needed without `source`, or with a bare file of weights"
    )
    source: str | None = Field(
        default=None,
        description="folder in timm's hub format, a safetensors file (with `model`), OWNER/NAME on the hub, or a name "
        "with its tag",
    )
    embed_dim: int = Field(ge=1, description="width of the new bias-free projection")


class TimmImageEncoder(BackboneImageEncoder):
    """A `VisionTransformer` of timm without its classifier; class and register tokens are not among the tokens.

    Position embeddings are resampled by timm (bicubic, antialiased).

    Args:
        fields: see `Options`. Without `source` the network is untrained.
    """

    Options = TimmOptions

    def __init__(self, **fields: Any) -> None:
        options = read_options(TimmOptions, fields, kind=KIND)
        embed_dim, image_size, geometry = options.embed_dim, options.image_size, options.geometry
        commit = options.revision
        if options.config is not None:
            name, arguments = str(options.config["architecture"]), dict(options.config["model_args"])
            trunk = _create(name, arguments)
        else:
            trunk, name, arguments, commit = _from_source(options)
        patch, convolutional = _patch_of(trunk, name)
        settings = trunk.pretrained_cfg
        if options.preprocess is not None:
            preprocess = given_preprocess(options.preprocess, image_size=image_size, geometry=geometry)
        else:
            preprocess = preprocess_for(
                {
                    "size": _size_of(trunk, settings),
                    "mean": three(settings.get("mean") or (0.5, 0.5, 0.5)),
                    "std": three(settings.get("std") or (0.5, 0.5, 0.5)),
                    "interpolation": settings.get("interpolation") or "bicubic",
                },
                image_size=image_size,
                patch=patch,
                geometry=geometry,
                kind=KIND,
            )
        # MobileNetV3 and others widen the vector after pooling, so it can be wider than a cell of the map.
        pooled = trunk.head_hidden_size if convolutional else trunk.num_features
        super().__init__(
            trunk=trunk,
            proj=choose_projection(None, inputs=pooled, embed_dim=embed_dim, projection_width=None, name=name),
            width=trunk.num_features if convolutional else trunk.embed_dim,
            pooled_width=pooled,
            embed_dim=embed_dim,
            patch=patch,
            preprocess=preprocess,
            frozen=options.frozen,
            precision=options.precision,
            kind=KIND,
        )
        self.convolutional = convolutional
        self._config = {"architecture": name, "model_args": arguments}
        self._commit = commit
        # timm models have no joint space: the projection is untrained even if the network is not.
        self.fresh_parts = None if options.source is None else ("proj",)
        if options.checkpointing:
            self.trunk.set_grad_checkpointing(True)

    def architecture(self) -> dict[str, Any]:
        """Return architecture with its arguments, preprocessing and commit, instead of weights to fetch."""
        return {
            "config": self._config,
            "preprocess": self.preprocess.to_dict(),
            "revision": self._commit,
            "image_size": None,
        }

    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackboneImageEncoder.run`; a norm that timm puts behind the pooling is applied to the tokens too."""
        if self.convolutional:
            map_BCHW = self.trunk.forward_features(pixels_B3HW)
            return map_BCHW.flatten(2).transpose(1, 2), self.trunk.forward_head(map_BCHW, pre_logits=True)
        x_BLD = self.trunk.forward_features(pixels_B3HW)
        tokens_BLD = self.trunk.fc_norm(x_BLD[:, self.trunk.num_prefix_tokens :])
        return tokens_BLD, self.trunk.forward_head(x_BLD, pre_logits=True)

    def run_to_layer(
        self, pixels_B3HW: Tensor, layer: int, *, norm: bool, grid: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int], int]:
        """See `BackboneImageEncoder.run_to_layer`; layers of a convolutional network are its stages."""
        layers = len(self.trunk.feature_info) if self.convolutional else len(self.trunk.blocks)
        options: dict[str, Any] = {"indices": [check_layer(layer, layers, kind=KIND)], "intermediates_only": True}
        if self.convolutional:
            if norm:
                raise UserError(f"'{KIND}': norm needs a transformer, this is a convolutional network; leave it out")
            map_BCHW = self.trunk.forward_intermediates(pixels_B3HW, **options)[0]
            return map_BCHW.flatten(2).transpose(1, 2), (map_BCHW.shape[2], map_BCHW.shape[3]), 0
        extra = self.trunk.num_prefix_tokens
        options |= {"norm": norm, "output_fmt": "NLC", "return_prefix_tokens": True}
        # A layer gives its patches, with the prefix beside them where there is one.
        output = self.trunk.forward_intermediates(pixels_B3HW, **options)[0]
        tokens_BLD = torch.cat([output[1], output[0]], dim=1) if extra else output
        return self.trunk.fc_norm(tokens_BLD) if norm else tokens_BLD, grid, extra

    def pool_regions(self, pooled_RD: Tensor) -> Tensor:
        """Apply the attention pooling to one token, where the model has one."""
        if self.convolutional:
            # A map of one cell: heads that convolve behind the pooling (MobileNet's) do so here too.
            return self.trunk.forward_head(pooled_RD[:, :, None, None], pre_logits=True)
        pool = self.trunk.attn_pool
        return pooled_RD if pool is None else pool(pooled_RD[:, None])


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    """Build an untrained network that takes images of any size in whole patches."""
    import timm

    options: dict[str, Any] = {**arguments, "num_classes": 0}
    # A merged folder names it already; twice, it would read as refused, and the size as the architecture's own.
    options.pop("dynamic_img_size", None)
    try:
        try:
            return timm.create_model(name, pretrained=False, **options, dynamic_img_size=True)
        except TypeError as error:
            # Convolutional networks take any size and know no such option; whatever else refuses it fails again, or
            # is found out by `_patch_of`.
            if "dynamic_img_size" not in str(error):
                raise
            options.pop("img_size", None)
            return timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        known = timm.list_models("*vit*")
        raise UserError(f"timm model '{name}': {reason}{nearest(name, known)}") from error


def _from_source(options: TimmOptions) -> tuple[Any, str, dict[str, Any], str | None]:
    """Build the network; return it with the architecture's name, its arguments and the commit."""
    model, source = options.model, options.source
    if source is None:
        if model is None:
            raise UserError(
                "'timm': source is missing; expected a folder, a file or a hub id, or model for an untrained network"
            )
        return _create(model, {}), model, {}, None
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"source of 'timm': not a safetensors file (got '{source}'); pickles are not read")
        if model is None:
            raise UserError(
                f"source of 'timm': a bare file names no architecture (got '{source}'); set the field model"
            )
        trunk = _create(model, {})
        if not on_meta():
            _fill(trunk, [path], name=source)
        return trunk, model, {}, None
    checkpoint = fetch(hub_id(source), revision=options.revision, offline=options.offline, field="source of 'timm'")
    raw_config = checkpoint.config()
    name = raw_config.get("architecture")
    if not isinstance(name, str):
        raise UserError(f"{source}: not a model of timm: config.json names no architecture")
    if model is not None and model != name:
        raise UserError(f"model of 'timm': {source} is a '{name}' (got '{model}')")
    arguments = dict(raw_config.get("model_args") or {})
    if raw_config.get("global_pool"):
        arguments["global_pool"] = raw_config["global_pool"]
    published = raw_config.get("pretrained_cfg") or {}
    if published.get("input_size"):
        # Weights of one architecture are published for several sizes; its own default may be another one.
        arguments.setdefault("img_size", published["input_size"][-1])
    trunk = _create(name, arguments)
    trunk.pretrained_cfg = {**trunk.pretrained_cfg, **published}
    if not on_meta():
        _fill(trunk, _weights(checkpoint), name=source)
    return trunk, name, arguments, checkpoint.commit


def hub_id(source: str) -> str:
    """Look up the hub repository of a name with its tag, such as `vit_base_patch16_224.augreg_in21k`, in timm's table.

    Raises:
        UserError: timm has no weights of this name.
    """
    if "/" in source or Path(source).exists():
        return source
    import timm

    published = timm.get_pretrained_cfg(source) if source in timm.list_pretrained() else None
    if published is None or not published.hf_hub_id:
        raise UserError(
            f"source of 'timm' '{source}': no such folder, and timm has no weights of this name"
            f"{nearest(source, timm.list_pretrained())}"
        )
    return str(published.hf_hub_id)


def _weights(checkpoint: Checkpoint) -> list[Path]:
    paths = checkpoint.weights()
    return [path for path in paths if path.name == "model.safetensors"] or paths[:1]


def _fill(trunk: Any, paths: list[Path], *, name: str) -> None:
    """Load all tensors of the network; only the classifier's may be left over."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        state: dict[str, Tensor] = {}
        for path in paths:
            state |= load_file(path)
        # timm's own filter: renames tensors of other sources and resamples position embeddings.
        state = checkpoint_filter_fn(state, trunk)
        missing, unexpected = trunk.load_state_dict(
            {key: value for key, value in state.items() if not key.startswith(_classifier_names(trunk))}, strict=False
        )
    except (SafetensorError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: the weights do not fit the architecture ({reason})") from error
    if missing or unexpected:
        raise UserError(
            f"{name}: tensors missing: {sorted(missing)[:3] or 'none'}, unexpected: {sorted(unexpected)[:3] or 'none'}"
        )


def _classifier_names(trunk: Any) -> tuple[str, ...]:
    """Return prefixes of the tensors of a classifier, which the trunk was built without."""
    named = trunk.pretrained_cfg.get("classifier") or "head"
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))


def _size_of(trunk: Any, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the input that the weights were trained on."""
    patches = getattr(trunk, "patch_embed", None)
    height, width = patches.img_size if patches is not None else settings["input_size"][-2:]
    return int(height), int(width)


def _patch_of(trunk: Any, name: str) -> tuple[int, bool]:
    """Return the side in pixels of a patch, or of a cell of the last map, and whether the network is convolutional.

    Raises:
        UserError: for an architecture that does not give one token per cell.
    """
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(trunk, VisionTransformer) and trunk.global_pool in ("token", "avg", "map"):
        height, width = trunk.patch_embed.patch_size
        if height != width:
            raise UserError(f"timm model '{name}': patches are not square (got {width} x {height} px)")
        return int(height), False
    info = getattr(trunk, "feature_info", None)
    has_stages = hasattr(trunk, "forward_intermediates") and not hasattr(trunk, "patch_embed")
    last = info[-1] if has_stages and isinstance(info, list) and info else {}
    # EfficientNets widen the map after their last stage, so no stage returns the map that they pool.
    if last.get("num_chs") == trunk.num_features:
        return int(last["reduction"]), True
    raise UserError(
        f"timm model '{name}': unsupported network (got {type(trunk).__name__}); expected plain ViTs that pool their "
        "class token, their mean or by attention, or convolutional networks that pool their last map, since regions "
        "need one token per cell"
    )


IMAGE_ENCODER = TimmImageEncoder
