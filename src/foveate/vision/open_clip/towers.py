"""Image and text towers of open_clip: any ViT architecture by name, with or without trained weights.

Names are open_clip's own: an architecture ("ViT-B-16") with an optional pretrained tag or file, `local-dir:FOLDER` or
`hf-hub:OWNER/NAME`; or `source`, a folder or OWNER/NAME, which is pinned to a commit. `open_clip` is imported when a
tower is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.backbones import files_of, given_folder, on_meta
from foveate.vision.encoder import ImageEncoder, ImageFeatures, TextEncoder, check_layer
from foveate.vision.hf.processors import given_preprocess, three
from foveate.vision.open_clip.build import (
    NO_TEXT,
    NO_VISION,
    NO_WORDS,
    advice,
    create_open_clip,
    named,
    quiet,
    scale_of,
    tokenizer_of,
)
from foveate.vision.preprocess import Preprocess
from foveate.vision.tower_options import ImageTowerOptions, TextTowerOptions, TowerOptions, read_options

KIND = "open_clip"


class OpenClipOptions(TowerOptions):
    """Options of both towers."""

    model: str = Field(
        default="ViT-B-16", description="architecture, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, by open_clip's names"
    )
    pretrained: str | None = Field(default=None, description="tag or file of an architecture's weights")
    source: str | None = Field(
        default=None,
        description="folder with open_clip_config.json and safetensors weights, or OWNER/NAME on the hub; it replaces "
        "`model` and `pretrained`",
    )
    cache_dir: str | None = Field(default=None, description="where downloads are kept; unset = open_clip's")


class OpenClipImageOptions(ImageTowerOptions, OpenClipOptions):
    """Options of the image tower."""

    vision: dict[str, Any] | None = Field(
        default=None, description="changes to the architecture's `vision_cfg`, without trained weights only"
    )


class OpenClipTextOptions(TextTowerOptions, OpenClipOptions):
    """Options of the text tower."""

    text: dict[str, Any] | None = Field(
        default=None, description="changes to the architecture's `text_cfg`, without trained weights only"
    )


class OpenClipImageEncoder(ImageEncoder):
    """Image tower: patch tokens after the final norm, and exactly open_clip's embedding.

    ViTs of open_clip (pooling by class token or mean) and of timm (class token, mean or attention "map"), and CLIP's
    ResNets, whose tokens are the cells of their last map.

    Args:
        fields: see `Options`.

    Example:
        >>> sizes = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}
        >>> encoder = OpenClipImageEncoder(model="ViT-B-32", embed_dim=32, vision=sizes)
        >>> encoder(torch.zeros(1, 3, 64, 64)).tokens.shape
        torch.Size([1, 16, 64])
    """

    Options = OpenClipImageOptions

    def __init__(self, **fields: Any) -> None:
        options = read_options(OpenClipImageOptions, fields, kind=KIND)
        config, preprocess, image_size = options.config, options.preprocess, options.image_size
        model, self._commit = named(
            options.model,
            options.source,
            options.pretrained,
            revision=options.revision,
            offline=options.offline,
            built=config is not None,
            cache_dir=options.cache_dir,
        )
        trained = options.pretrained is not None or ":" in model
        built, model_config = create_open_clip(
            model,
            pretrained=options.pretrained,
            embed_dim=options.embed_dim,
            image_size=image_size,
            vision=options.vision,
            # Trained weights fill both towers at once; without them the other tower is a small stand-in.
            text=None if trained else NO_TEXT,
            cache_dir=options.cache_dir,
            config=None if config is None else {**config, "text_cfg": NO_TEXT | NO_WORDS, "custom_text": True},
        )
        if config is not None:
            model_config = dict(config)
        visual = built.visual
        grid, width = _geometry_of(visual, built, model)
        super().__init__(
            width=width,
            embed_dim=model_config["embed_dim"],
            grid=grid,
            preprocess=_preprocess_of(visual, options.geometry)
            if preprocess is None
            else given_preprocess(preprocess, image_size=image_size, geometry=options.geometry),
        )
        sides = visual.image_size if isinstance(visual.image_size, Sequence) else (visual.image_size,) * 2
        if preprocess is not None and tuple(sides) != (self.preprocess.height, self.preprocess.width):
            raise UserError(
                f"image_size: the tower's positions are for {visual.image_size} px (got {self.preprocess.size})"
            )
        self.model_config = model_config
        self.convolutional = hasattr(visual, "attnpool")
        self.visual: Any = visual
        if trained and config is None:
            self.trained_scale, self.trained_bias = scale_of(built)
            self.fresh_parts = ()
        if options.checkpointing:
            visual.set_grad_checkpointing()

    def architecture(self) -> dict[str, Any]:
        """Return configuration and preprocessing, instead of names of trained weights; `source` stays as a record."""
        return {
            "config": self.model_config,
            "preprocess": self.preprocess.to_dict(),
            "revision": self._commit,
            **dict.fromkeys(("pretrained", "image_size", "vision")),
        }

    def forward(self, features: Tensor) -> ImageFeatures:
        """Encode pixels [B, 3, H, W] (uint8 or normalized)."""
        pixels = self.normalized(features)
        visual = self.visual
        if self.convolutional:
            map_BCHW = self._stages(pixels)[-1]
            return dataclasses.replace(ImageFeatures.from_map(map_BCHW), pooled=visual.attnpool(map_BCHW))
        if hasattr(visual, "trunk"):
            trunk = visual.trunk
            x_BLD = trunk.forward_features(pixels)
            embedding_BE = visual.head(trunk.forward_head(x_BLD))
            # timm trunks with average pooling have their final norm after it (`fc_norm`); in others it is an identity.
            tokens_BLD = trunk.fc_norm(x_BLD[:, trunk.num_prefix_tokens :])
        else:
            # `forward` of open_clip pools first; its two halves give the tokens as well, at no further cost.
            x_BLD = visual.transformer(visual._embeds(pixels))
            pooled_BD, _ = visual._pool(x_BLD)
            embedding_BE = pooled_BD @ visual.proj
            # The first token is the class token.
            tokens_BLD = visual.ln_post(x_BLD[:, 1:])
        return ImageFeatures(tokens_BLD, self.grid, embedding_BE)

    def hidden_features(
        self, pixels_B3HW: Tensor, *, layer: int = -2, norm: bool = False, prefix: bool = False
    ) -> ImageFeatures:
        """See `ImageEncoder.hidden_features`; layers of a ResNet are its stages."""
        visual, pixels = self.visual, self.normalized(pixels_B3HW)
        trunk = getattr(visual, "trunk", None)
        if self.convolutional:
            if norm or prefix:
                raise UserError("'open_clip': norm and prefix need a transformer, this is a ResNet; leave them out")
            return ImageFeatures.from_map(self._stages(pixels)[check_layer(layer, 4, kind="open_clip")])
        blocks = visual.transformer.resblocks if trunk is None else trunk.blocks
        index = check_layer(layer, len(blocks), kind="open_clip")
        extra = 1 if trunk is None else trunk.num_prefix_tokens
        if trunk is None:
            named = visual.forward_intermediates(
                pixels, indices=[index], normalize_intermediates=norm, intermediates_only=True, output_fmt="NLC",
                output_extra_tokens=True, stop_early=True,
            )  # fmt: skip
            patches, special = named["image_intermediates"][0], named["image_intermediates_prefix"][0]
        else:
            output = trunk.forward_intermediates(
                pixels, indices=[index], norm=norm, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
            )[0]
            patches, special = output if extra else (output, None)
            patches = trunk.fc_norm(patches) if norm else patches
        if not prefix:
            return ImageFeatures(patches, self.grid)
        if special is None:
            raise UserError("'open_clip': this tower has no class or register tokens; leave prefix out")
        return ImageFeatures(torch.cat([special, patches], dim=1), self.grid, prefix=extra)

    def _stages(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Return the maps [B, C, H, W] behind the four stages of a ResNet."""
        visual = self.visual
        maps = [visual.layer1(visual.stem(pixels_B3HW))]
        for stage in (visual.layer2, visual.layer3, visual.layer4):
            maps.append(stage(maps[-1]))
        return maps

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Project pooled tokens [R, D] to [R, E], as if they were the whole image's."""
        if self.convolutional:
            # Attention over equal tokens is the value itself, whatever query and key are (MaskCLIP, arXiv 2112.01071).
            return self.visual.attnpool.c_proj(self.visual.attnpool.v_proj(pooled_RD))
        if not hasattr(self.visual, "trunk"):
            return pooled_RD @ self.visual.proj
        trunk = self.visual.trunk
        # A set of one token: attention has nothing to weigh, as over an image of equal tokens.
        if trunk.attn_pool is not None:
            pooled_RD = trunk.attn_pool(pooled_RD.unsqueeze(1))
        return self.visual.head(trunk.head(pooled_RD))


def _geometry_of(visual: Any, built: Any, model: str) -> tuple[tuple[int, int], int]:
    """Return grid and width of a supported image tower."""
    from open_clip import CoCa
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    if isinstance(visual, ModifiedResNet):
        sides = visual.image_size if isinstance(visual.image_size, Sequence) else (visual.image_size,) * 2
        # Stride 32: 4 from the stem, and 2 from each of the last three stages.
        return (sides[0] // 32, sides[1] // 32), visual.attnpool.v_proj.in_features
    if not isinstance(built, CoCa):
        if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
            return tuple(visual.grid_size), visual.conv1.out_channels
        trunk = getattr(visual, "trunk", None)
        # open_clip's own heads for timm trunks ("abs_attn", "rot_attn") pool a map instead of the trunk's tokens.
        own_pool = "pool" in dict(visual.head.named_children()) if trunk is not None else True
        if isinstance(trunk, TimmVisionTransformer) and trunk.global_pool and not own_pool:
            return tuple(trunk.patch_embed.grid_size), trunk.embed_dim
    kind = type(built if isinstance(built, CoCa) else getattr(visual, "trunk", visual)).__name__
    raise UserError(
        f"open_clip model '{model}': unsupported image tower (got {kind}); expected plain ViTs that pool their class "
        "token, their mean or by attention, or CLIP's ResNets, since regions need one token per cell"
    )


def _preprocess_of(visual: Any, geometry: str) -> Preprocess:
    config = visual.preprocess_cfg
    height, width = visual.image_size if isinstance(visual.image_size, Sequence) else (visual.image_size,) * 2
    # open_clip's third value, "random", affects only training: evaluation then resizes bicubically.
    interpolation = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    return Preprocess(
        size=(height, width),
        mean=three(config["mean"]),
        std=three(config["std"]),
        interpolation=interpolation,
        fill=(int(config.get("fill_color") or 0),) * 3,
        geometry=geometry,
    )


class OpenClipTextEncoder(TextEncoder):
    """Text tower with its tokenizer: exactly open_clip's embedding in evaluation.

    In training, token ids are cut behind the last end token of the batch where the mask is causal: the same embedding
    up to rounding, at an eighth of the work for the short phrases of regions.

    Args:
        fields: see `Options`. With a `config`, `model` still names the tokenizer where it is not one of open_clip's
            own.
    """

    Options = OpenClipTextOptions

    def __init__(self, **fields: Any) -> None:
        options = read_options(OpenClipTextOptions, fields, kind=KIND)
        config, tokenizer = options.config, options.tokenizer
        model, self._commit = named(
            options.model,
            options.source,
            options.pretrained,
            revision=options.revision,
            offline=options.offline,
            built=config is not None,
            cache_dir=options.cache_dir,
        )
        trained = options.pretrained is not None or ":" in model
        built, model_config = create_open_clip(
            model,
            pretrained=options.pretrained,
            embed_dim=options.embed_dim,
            vision=None if trained else NO_VISION,
            text=options.text,
            cache_dir=options.cache_dir,
            config=None if config is None else {**config, "vision_cfg": NO_VISION},
        )
        if config is not None:
            model_config = dict(config)
        length = int(built.context_length)
        super().__init__(embed_dim=model_config["embed_dim"], feature_shape=(length,), feature_dtype=torch.int32)
        self.context_length = length
        self.model_name = model
        self.model_config = model_config
        self._cache_dir = options.cache_dir
        self._tokenizer_folder: Path | None = None if tokenizer is None else given_folder(tokenizer)
        self._tokenizer: Any = None
        if not on_meta() and (tokenizer is not None or (trained and config is None)):
            # At once, while the files are there: the model folder takes them over.
            self._tokenizer = self._load_tokenizer()
        if trained and config is None:
            self.trained_scale, self.trained_bias = scale_of(built)
            self.fresh_parts = ()
        if options.checkpointing:
            built.set_grad_checkpointing()
        # The whole model was built; the small stand-in of the other tower must not be saved or counted.
        for part in ("visual", "logit_scale", "logit_bias"):
            if hasattr(built, part):
                delattr(built, part)
        self.text_model: Any = built

    def architecture(self) -> dict[str, Any]:
        """Return the configuration, instead of names of trained weights."""
        return {
            "config": self.model_config,
            "revision": self._commit,
            **dict.fromkeys(("pretrained", "text", "tokenizer")),
        }

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of this model, loaded at first use."""
        if self._tokenizer is None:
            with quiet():  # the loader's threads come here at once: the first one loads it for all
                if self._tokenizer is None:
                    self._tokenizer = self._load_tokenizer()
        return self._tokenizer

    def _load_tokenizer(self) -> Any:
        options = {"length": self.feature_shape[0], "cache_dir": self._cache_dir, "folder": self._tokenizer_folder}
        try:
            with quiet():
                return tokenizer_of(self.model_name, self.model_config["text_cfg"], **options)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            if self._tokenizer_folder is not None:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"{self._tokenizer_folder}: the tokenizer cannot be read ({reason})") from error
            scheme = "local-dir" if self.model_name.startswith("local-dir:") else "hf-hub"
            reason = advice(scheme, None, error)
            raise UserError(f"the tokenizer of open_clip model '{self.model_name}': {reason}") from error

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `TextEncoder`; open_clip's own byte pairs are part of its package and have none."""
        return files_of(self.tokenizer) if hasattr(self.tokenizer, "save_pretrained") else {}

    def frozen_features(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, context length], int32."""
        if not texts:
            return torch.zeros(0, *self.feature_shape, dtype=self.feature_dtype)
        return self.tokenizer(list(texts)).to(self.feature_dtype)

    def forward(self, features: Tensor) -> Tensor:
        """Encode token ids [B, context length] as joint embeddings [B, E], not normalized."""
        ids_BL = features.long()
        tower = self.text_model
        if not self.training or not len(ids_BL) or not _is_causal_clip(tower):
            return tower.encode_text(ids_BL)
        from open_clip.transformer import text_global_pool

        # The end token has the highest id, so argmax finds it.
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
    """Tell whether the embedding is read at the end token, whose id is the highest, and sees only what is before."""
    return getattr(tower, "text_pool_type", None) == "argmax" and getattr(tower, "attn_mask", None) is not None


IMAGE_ENCODER = OpenClipImageEncoder
TEXT_ENCODER = OpenClipTextEncoder
