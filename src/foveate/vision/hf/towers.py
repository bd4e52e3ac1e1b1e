"""Base of the towers of transformers: turns a loaded network into an encoder, and records where it came from.

Not a kind of encoder itself: `clip`, `siglip` and `dinov2` define which network they load, which part of it
is the tower, and how an image or a text runs through it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.vision.backbones import BackboneImageEncoder, BackboneTextEncoder, choose_projection, keep_no_activations
from foveate.vision.encoder import check_layer
from foveate.vision.hf.loading import Loaded, provenance, tokenizer_folder, trained_scale
from foveate.vision.hf.processors import preprocess_of
from foveate.vision.tower_options import FreezableImageOptions, FreezableTextOptions


class TransformersImageEncoder(BackboneImageEncoder):
    """An image tower of transformers.

    Args:
        loaded: the network. trunk: the part of it that is the tower.
        projection: the checkpoint's, of the pooled vector; None for a new one to `embed_dim`. projection_width: of its
            output.

    Attributes:
        prefix_tokens: class and register tokens in front of the patches. final_norm: attribute of the trunk.
        interpolates_on_request: whether position embeddings fit other sizes only when the call says so.
        trained_geometry: how the library brings whole images into the input.
    """

    prefix_tokens: int = 0
    trained_geometry: ClassVar[str] = "center_crop"
    final_norm: ClassVar[str] = "post_layernorm"
    interpolates_on_request: ClassVar[bool] = True

    @staticmethod
    def read_joint_width(folder: str) -> int | None:
        """Return the width of a folder's joint embedding; None for a model without one."""
        return None

    def __init__(
        self,
        loaded: Loaded,
        options: FreezableImageOptions,
        *,
        kind: str,
        trunk: Any,
        projection: nn.Module | None,
        projection_width: int | None,
    ) -> None:
        width, patch = loaded.model.config.hidden_size, loaded.model.config.patch_size
        preprocess = preprocess_of(loaded.checkpoint, options, patch=patch, kind=kind)
        super().__init__(
            trunk=trunk,
            proj=choose_projection(
                projection,
                inputs=width,
                embed_dim=options.embed_dim,
                projection_width=projection_width,
                name=loaded.source or kind,
            ),
            width=width,
            pooled_width=width,
            embed_dim=_joint_width(projection, projection_width, options.embed_dim),
            patch=patch,
            preprocess=preprocess,
            frozen=options.frozen,
            precision=options.precision,
            kind=kind,
        )
        self._loaded = loaded.without_model()
        _note(self, loaded, has_projection=projection is not None, checkpointing=options.checkpointing)

    def run_to_layer(
        self, pixels_B3HW: Tensor, layer: int, *, norm: bool, grid: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int], int]:
        """See `BackboneImageEncoder.run_to_layer`."""
        options = {"interpolate_pos_encoding": True} if self.interpolates_on_request else {}
        states = self.trunk(pixel_values=pixels_B3HW, output_hidden_states=True, **options).hidden_states
        # The first state is the embedding, in front of all layers.
        tokens_BLD = states[1 + check_layer(layer, len(states) - 1, kind=self.kind)]
        final_norm = getattr(self.trunk, self.final_norm)
        return final_norm(tokens_BLD) if norm else tokens_BLD, grid, self.prefix_tokens

    def architecture(self) -> dict[str, Any]:
        """Return configuration, preprocessing and commit, instead of weights to fetch."""
        return {**provenance(self._loaded), "preprocess": self.preprocess.to_dict(), "image_size": None}


class TransformersTextEncoder(BackboneTextEncoder):
    """A text tower of transformers with its tokenizer.

    Args:
        pooled_width: of the pooled vector. others: see `TransformersImageEncoder`.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: FreezableTextOptions,
        *,
        kind: str,
        trunk: Any,
        projection: nn.Module | None,
        projection_width: int,
        pooled_width: int,
    ) -> None:
        super().__init__(
            trunk=trunk,
            proj=choose_projection(
                projection,
                inputs=pooled_width,
                embed_dim=options.embed_dim,
                projection_width=projection_width,
                name=loaded.source or kind,
            ),
            pooled_width=pooled_width,
            embed_dim=_joint_width(projection, projection_width, options.embed_dim),
            length=loaded.model.config.max_position_embeddings,
            tokenizer=tokenizer_folder(loaded, options.tokenizer),
            frozen=options.frozen,
            precision=options.precision,
            kind=kind,
        )
        self._loaded = loaded.without_model()
        _note(self, loaded, has_projection=projection is not None, checkpointing=options.checkpointing)

    def architecture(self) -> dict[str, Any]:
        """Return configuration and commit, instead of weights to fetch."""
        return {**provenance(self._loaded), "tokenizer": None}


def _joint_width(projection: nn.Module | None, projection_width: int | None, embed_dim: int | None) -> int:
    return int((embed_dim if projection is None else projection_width) or 0)


def _note(
    encoder: TransformersImageEncoder | TransformersTextEncoder,
    loaded: Loaded,
    *,
    has_projection: bool,
    checkpointing: bool,
) -> None:
    """Record what is untrained and the temperature trained with the weights; turn on activation checkpointing."""
    encoder.fresh_parts = () if has_projection else ("proj",)
    # A temperature belongs to the projection that it was trained with.
    if has_projection:
        encoder.trained_scale, encoder.trained_bias = trained_scale(loaded.checkpoint)
    if checkpointing:
        keep_no_activations(encoder.trunk)
