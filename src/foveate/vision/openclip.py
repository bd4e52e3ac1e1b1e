"""Image and text towers of open_clip: any ViT architecture by name, with or without trained weights.

Names are open_clip's own: an architecture ("ViT-B-16") with an optional pretrained tag or file, `local-dir:FOLDER` or
`hf-hub:OWNER/NAME`. `open_clip` is imported when a tower is built.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from foveate.settings.errors import UserError, nearest
from foveate.vision.encoder import ImageEncoder, ImageTokens, TextEncoder
from foveate.vision.pixels import Preprocess

# The tower that is not wanted, built without trained weights, is made as small as open_clip allows.
_NO_VISION = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}
_NO_TEXT = {"layers": 1, "width": 64, "heads": 1, "context_length": 8}


def create_open_clip(
    model: str,
    *,
    pretrained: str | None = None,
    embed_dim: int | None = None,
    image_size: int | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """An open_clip model in float32 on the CPU, and its configuration.

    Args:
        model: architecture name, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        pretrained: tag or file of an architecture's weights.
        embed_dim: E. Trained weights have their own, which must agree.
        image_size: side of the input in pixels; position embeddings of trained weights are interpolated.
        vision, text: changes to the architecture's `vision_cfg` and `text_cfg`, for models without trained weights.
        cache_dir: where downloads are kept.
        config: a complete open_clip `model_cfg`; then `model` is only a label and no weights are fetched.

    Raises:
        UserError: for an unknown name, a folder or a hub out of reach, or changes that trained weights cannot follow.
    """
    import open_clip
    from open_clip.factory import parse_model_name

    if config is not None:
        return _from_config(config), dict(config)
    scheme = parse_model_name(model)[0] if ":" in model else None
    if ":" in model and scheme is None:
        raise UserError(f"open_clip model '{model}': allowed are a name, 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'")
    names = open_clip.list_models()
    if scheme is None and model not in names:
        raise UserError(
            f"open_clip has no architecture '{model}'{nearest(model, names)}; "
            "`python -c 'import open_clip; print(open_clip.list_models())'` shows all"
        )
    trained = pretrained is not None or scheme is not None
    changes: dict[str, Any] = {}
    if trained and (vision or text):
        raise UserError(f"'{model}' has trained weights: vision and text settings can only change untrained towers")
    if not trained:
        config = _config_of(model)
        sizes = {} if image_size is None else {"image_size": image_size}
        changes["vision_cfg"] = {**config["vision_cfg"], **(vision or {}), **sizes}
        changes["text_cfg"] = {**config["text_cfg"], **(text or {})}
        changes["embed_dim"] = config["embed_dim"] if embed_dim is None else embed_dim
    try:
        with _quiet():
            built = open_clip.create_model(
                model,
                pretrained=pretrained,
                force_image_size=image_size,
                force_patch_dropout=0.0,
                require_pretrained=trained,
                pretrained_text=False,
                cache_dir=cache_dir,
                device=torch.get_default_device(),
                **deepcopy(changes),
            )
            config = {**_config_of(model), **changes}
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"open_clip model '{model}'{_tag(pretrained)}: {_advice(scheme, pretrained, error)}") from error
    if embed_dim is not None and config["embed_dim"] != embed_dim:
        raise UserError(f"embed_dim {embed_dim}: the trained weights of '{model}' have {config['embed_dim']}")
    if trained and image_size is not None:
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": image_size}
    return built, config


def _config_of(model: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(model)
    assert config is not None, model
    return config


def _from_config(config: Mapping[str, Any]) -> Any:
    """An untrained model of a complete configuration: an architecture at hand with everything replaced."""
    import open_clip

    parts = deepcopy(dict(config))
    custom_text = parts.pop("custom_text", False) or "hf_model_name" in parts["text_cfg"]
    parts["vision_cfg"] = {**parts["vision_cfg"], "patch_dropout": 0.0, "timm_model_pretrained": False}
    if "hf_model_name" in parts["text_cfg"]:
        parts["text_cfg"]["hf_model_pretrained"] = False
    with _quiet():
        return open_clip.create_model(
            "ViT-B-32", force_custom_text=custom_text, device=torch.get_default_device(), **parts
        )


def _tag(pretrained: str | None) -> str:
    return f" with pretrained '{pretrained}'" if pretrained is not None else ""


def _advice(scheme: str | None, pretrained: str | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if scheme == "local-dir":
        return f"the folder needs open_clip_config.json and a weights file ({reason})"
    if scheme == "hf-hub" or pretrained is not None:
        return (
            "its files are neither cached nor within reach; download them on a machine with a network, copy the "
            f"folder here and name it as 'local-dir:FOLDER' ({reason})"
        )
    return f"these settings make no model ({reason})"


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns through the root logger that untrained weights are untrained, and installs a handler for it."""
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers


class OpenClipImageEncoder(ImageEncoder):
    """The image tower: patch tokens after the final norm, and exactly open_clip's own embedding.

    ViTs of open_clip (pooling by class token or mean) and of timm (class token, mean or attention "map").

    Args:
        model, pretrained, embed_dim, image_size, vision, cache_dir: see `create_open_clip`.
        geometry: how pictures are fitted, see `Preprocess`; "center_crop" is what open_clip's weights were trained on.
        config, preprocess: of `architecture()`, to build a saved tower again without its first weights.
    """

    def __init__(
        self,
        *,
        model: str = "ViT-B-16",
        pretrained: str | None = None,
        embed_dim: int | None = None,
        image_size: int | None = None,
        vision: Mapping[str, Any] | None = None,
        geometry: str = "letterbox",
        cache_dir: str | None = None,
        config: Mapping[str, Any] | None = None,
        preprocess: Mapping[str, Any] | None = None,
    ) -> None:
        trained = pretrained is not None or ":" in model
        built, model_config = create_open_clip(
            model,
            pretrained=pretrained,
            embed_dim=embed_dim,
            image_size=image_size,
            vision=vision,
            text=None if trained else _NO_TEXT,
            cache_dir=cache_dir,
            config=None if config is None else {**config, "text_cfg": _NO_TEXT, "custom_text": True},
        )
        if config is not None:
            model_config = dict(config)
        visual = built.visual
        grid, width = _geometry_of(visual, built, model)
        super().__init__(
            width=width,
            embed_dim=model_config["embed_dim"],
            grid=grid,
            preprocess=Preprocess.from_dict(dict(preprocess))
            if preprocess
            else _preprocess_of(visual, model, geometry),
        )
        self.model_config = model_config
        self.visual: Any = visual

    def architecture(self) -> dict[str, Any]:
        """The configuration and preprocessing, instead of names of trained weights."""
        return {
            "config": self.model_config,
            "preprocess": self.preprocess.to_dict(),
            **dict.fromkeys(("pretrained", "image_size", "vision")),
        }

    def forward(self, features: Tensor) -> ImageTokens:
        """Pixels [B, 3, S, S] (uint8 or normalised) to tokens."""
        pixels = self.normalised(features)
        visual = self.visual
        if hasattr(visual, "trunk"):
            trunk = visual.trunk
            x_BLD = trunk.forward_features(pixels)
            embedding_BE = visual.head(trunk.forward_head(x_BLD))
            tokens_BLD = trunk.fc_norm(x_BLD[:, trunk.num_prefix_tokens :])
        else:
            x_BLD = visual.transformer(visual._embeds(pixels))
            pooled_BD, _ = visual._pool(x_BLD)
            embedding_BE = pooled_BD @ visual.proj
            tokens_BLD = visual.ln_post(x_BLD[:, 1:])
        return ImageTokens(tokens_BLD, self.grid, embedding_BE)

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Pooled tokens [R, D] to [R, E], as if they were all the picture had."""
        if not hasattr(self.visual, "trunk"):
            return pooled_RD @ self.visual.proj
        trunk = self.visual.trunk
        if trunk.attn_pool is not None:
            pooled_RD = trunk.attn_pool(pooled_RD.unsqueeze(1))
        return self.visual.head(trunk.head(pooled_RD))


def _geometry_of(visual: Any, built: Any, model: str) -> tuple[tuple[int, int], int]:
    """Grid and width of a supported image tower."""
    from open_clip import CoCa
    from open_clip.transformer import VisionTransformer
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    if not isinstance(built, CoCa):
        if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
            return tuple(visual.grid_size), visual.conv1.out_channels
        trunk = getattr(visual, "trunk", None)
        own_pool = "pool" in dict(visual.head.named_children()) if trunk is not None else True
        if isinstance(trunk, TimmVisionTransformer) and trunk.global_pool and not own_pool:
            return tuple(trunk.patch_embed.grid_size), trunk.embed_dim
    kind = type(built if isinstance(built, CoCa) else getattr(visual, "trunk", visual)).__name__
    raise UserError(
        f"open_clip model '{model}' has an image tower of type {kind}: allowed are plain ViTs that pool their class "
        "token, their mean or by attention, since regions need one token per patch after the final norm"
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _preprocess_of(visual: Any, model: str, geometry: str) -> Preprocess:
    config = visual.preprocess_cfg
    height, width = visual.image_size if isinstance(visual.image_size, Sequence) else (visual.image_size,) * 2
    if height != width:
        raise UserError(f"open_clip model '{model}' takes {width} x {height} px: allowed are square inputs")
    interpolation = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    return Preprocess(
        size=height,
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        interpolation=interpolation,
        geometry=geometry,
    )


class OpenClipTextEncoder(TextEncoder):
    """The text tower with its tokenizer: exactly open_clip's own embedding in evaluation.

    In training, token ids are cut behind the last end token of the batch where the mask is causal: the same embedding
    up to rounding, at an eighth of the work for the short phrases of regions.

    Args:
        model, pretrained, embed_dim, text, cache_dir: see `create_open_clip`.
        config: of `architecture()`; `model` still names the tokenizer.
    """

    def __init__(
        self,
        *,
        model: str = "ViT-B-16",
        pretrained: str | None = None,
        embed_dim: int | None = None,
        text: Mapping[str, Any] | None = None,
        cache_dir: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        trained = pretrained is not None or ":" in model
        built, model_config = create_open_clip(
            model,
            pretrained=pretrained,
            embed_dim=embed_dim,
            vision=None if trained else _NO_VISION,
            text=text,
            cache_dir=cache_dir,
            config=None if config is None else {**config, "vision_cfg": _NO_VISION},
        )
        if config is not None:
            model_config = dict(config)
        length = int(built.context_length)
        super().__init__(embed_dim=model_config["embed_dim"], feature_shape=(length,), feature_dtype=torch.int32)
        self.model_name = model
        self.model_config = model_config
        self._cache_dir = cache_dir
        self._tokenizer: Any = None
        for part in ("visual", "logit_scale", "logit_bias"):
            if hasattr(built, part):
                delattr(built, part)
        self.text_model: Any = built

    def architecture(self) -> dict[str, Any]:
        """The configuration, instead of names of trained weights."""
        return {"config": self.model_config, "pretrained": None, "text": None}

    @property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer of this model, loaded when it is first used."""
        if self._tokenizer is None:
            import open_clip

            try:
                with _quiet():
                    self._tokenizer = open_clip.get_tokenizer(
                        self.model_name, context_length=self.feature_shape[0], cache_dir=self._cache_dir
                    )
            except (RuntimeError, OSError, ValueError) as error:
                scheme = "local-dir" if self.model_name.startswith("local-dir:") else "hf-hub"
                reason = _advice(scheme, None, error)
                raise UserError(f"the tokenizer of open_clip model '{self.model_name}': {reason}") from error
        return self._tokenizer

    def frozen_features(self, texts: Sequence[str]) -> Tensor:
        """Token ids [B, context length], int32."""
        if not texts:
            return torch.zeros(0, *self.feature_shape, dtype=self.feature_dtype)
        return self.tokenizer(list(texts)).to(self.feature_dtype)

    def forward(self, features: Tensor) -> Tensor:
        """Token ids [B, context length] to joint embeddings [B, E], not normalised."""
        ids_BL = features.long()
        tower = self.text_model
        if not self.training or not len(ids_BL) or not _is_causal_clip(tower):
            return tower.encode_text(ids_BL)
        from open_clip.transformer import text_global_pool

        length = int(ids_BL.argmax(dim=-1).max()) + 1
        ids_BL = ids_BL[:, :length]
        x_BLD = tower.token_embedding(ids_BL) + tower.positional_embedding[:length]
        x_BLD = tower.ln_final(tower.transformer(x_BLD, attn_mask=tower.attn_mask[:length, :length]))
        pooled_BD = text_global_pool(x_BLD, ids_BL, tower.text_pool_type)
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            return projection(pooled_BD)
        return pooled_BD if projection is None else pooled_BD @ projection


def _is_causal_clip(tower: Any) -> bool:
    """Whether the embedding is read at the end token, whose id is the highest, and sees only what is before it."""
    return getattr(tower, "text_pool_type", None) == "argmax" and getattr(tower, "attn_mask", None) is not None


IMAGE_ENCODER = OpenClipImageEncoder
TEXT_ENCODER = OpenClipTextEncoder
