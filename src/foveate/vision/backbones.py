"""Base classes of encoders over other libraries' networks: cached or trained through, projected, self-contained.

`trunk` is the foreign network, `proj` maps its pooled vector to the joint space. Both are part of the state, so that a
model folder needs nothing else. Of a frozen trunk only `proj` is trained, and the trunk's results are cached on disk in
16 bits: all tokens and the pooled vector of an image, or the pooled vector of a text.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.devices import PRECISIONS, precision_of
from foveate.core.errors import UserError, choose
from foveate.vision.encoder import ImageEncoder, ImageFeatures, TextEncoder
from foveate.vision.layers import as_computed
from foveate.vision.preprocess import Preprocess

PROJECTIONS = ("own", "new")
_BATCH = 64


def check_precision(precision: str, *, frozen: bool, kind: str) -> str:
    """Return a known `precision`; warn where it has no effect because nothing is frozen."""
    choose(precision, PRECISIONS, f"precision of '{kind}'")
    if precision != "float32" and not frozen:
        warnings.warn(f"precision of '{kind}' has no effect without frozen; use training.precision", stacklevel=3)
    return precision


def on_meta() -> bool:
    """Tell whether modules are being built without memory, to count them: then no weights are read."""
    return torch.get_default_device().type == "meta"


def keep_no_activations(trunk: Any) -> None:
    """Turn on activation checkpointing in a model of transformers: layers are computed again in the backward pass."""
    # The older name is deprecated, the newer one not in all releases from 5.
    enable = getattr(trunk, "activation_checkpointing_enable", None) or trunk.gradient_checkpointing_enable
    # The reentrant kind gives no gradient where no input needs one, and pixels need none.
    enable({"use_reentrant": False})


def choose_projection(
    projection: nn.Module | None, *, inputs: int, embed_dim: int | None, projection_width: int | None, name: str
) -> nn.Module:
    """Return the checkpoint's projection, or a new bias-free one where it has none or another was requested.

    Args:
        projection: the checkpoint's; None for a new one. projection_width: of its output.

    Raises:
        UserError: the checkpoint's width is not `embed_dim`: a new projection would silently be random.
    """
    if projection is None:
        if embed_dim is None:
            raise UserError(f"{name}: embed_dim is missing; an untrained projection needs it")
        return nn.Linear(inputs, embed_dim, bias=False)
    if embed_dim is not None and projection_width != embed_dim:
        raise UserError(
            f"embed_dim: the trained weights of '{name}' have {projection_width} (got {embed_dim}); set "
            f"embed_dim={projection_width}, or projection: new for an untrained projection"
        )
    return projection


class _Frozen:
    """Digest of a frozen trunk's weights, computed once until other weights are loaded."""

    trunk: Any
    frozen: bool
    precision: str
    training: bool

    def _start_frozen(self, module: nn.Module) -> None:
        self._digest: str | None = None
        module.register_load_state_dict_post_hook(_forget_digest)
        if self.frozen:
            # Evaluation mode: dropout and batch statistics would make each cached result another one.
            self.trunk.eval().requires_grad_(False)

    def computed_from(self) -> dict[str, Any]:
        """Return what cached results depend on beside weights, input size and precision, as JSON values."""
        return {"network": type(self.trunk).__name__, "config": self.architecture()["config"]}

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """See `foveate.vision.encoder`; with the network's whole configuration as `config`."""

    def _frozen_digest(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256(json.dumps(self.computed_from(), sort_keys=True).encode())
            for name, value in self.trunk.state_dict().items():
                digest.update(name.encode() + b"\0")
                # As bytes, because NumPy has no bfloat16.
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._digest = digest.hexdigest()[:16]
        return self._digest

    def _autocast(self, device: torch.device) -> Any:
        dtype = precision_of(self.precision, device)
        # float32 means float32, also when the caller is under autocast.
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    def _dtype_name(self) -> str:
        # On an accelerator "auto" may mean another precision: `FeatureCache` adds the device to the name there.
        return str(precision_of(self.precision, torch.device("cpu"))).removeprefix("torch.")


def _forget_digest(module: Any, _: object) -> None:
    module._digest = None


class BackboneImageEncoder(_Frozen, ImageEncoder):
    """An image encoder around a ViT of another library; subclasses fill in `run` and, if need be, `pool_regions`.

    Args:
        trunk: the network. proj: pooled vector to joint space.
        width: D of its tokens. pooled_width: of its pooled vector. patch: side of a patch in pixels.
        frozen: the trunk is not trained and its results are kept on disk.
        precision: of a frozen trunk: "float32", "bfloat16" or "auto".
    """

    def __init__(
        self,
        *,
        trunk: nn.Module,
        proj: nn.Module,
        width: int,
        pooled_width: int,
        embed_dim: int,
        patch: int,
        preprocess: Preprocess,
        frozen: bool,
        precision: str,
        kind: str,
    ) -> None:
        if preprocess.height % patch or preprocess.width % patch:
            raise UserError(
                f"image_size of '{kind}': not a multiple of its patch of {patch} px (got {preprocess.size})"
            )
        grid = (preprocess.height // patch, preprocess.width // patch)
        super().__init__(width=width, embed_dim=embed_dim, grid=grid, preprocess=preprocess)
        self.kind, self.patch, self.pooled_width = kind, patch, pooled_width
        self.frozen = frozen
        self.precision = check_precision(precision, frozen=frozen, kind=kind)
        self.trunk: Any = trunk
        self.proj = proj
        self._start_frozen(self)
        if frozen:
            # Tokens and pooled vector in one flat row, because a cache holds one tensor per image.
            self.feature_shape = (grid[0] * grid[1] * width + pooled_width,)
            self.feature_dtype = torch.float16

    @abstractmethod
    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Turn normalized pixels into patch tokens after the final norm [B, L, D] and the pooled vector [B, P]."""

    def pool_regions(self, pooled_RD: Tensor) -> Tensor:
        """Turn averaged patch tokens [R, D] into the vectors that `proj` takes, [R, P]."""
        return pooled_RD

    def train(self, mode: bool = True) -> BackboneImageEncoder:
        """Set training mode; a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def fingerprint(self) -> str:
        """Name weights, configuration, input size and precision of cached features; empty if the trunk is trained."""
        if not self.frozen:
            return ""
        return f"{self.kind}-{self._frozen_digest()}-{self.preprocess.size_name}-{self._dtype_name()}"

    @torch.no_grad()
    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Return pixels as they are where the trunk is trained; else tokens and pooled vector in one float16 row."""
        if not self.frozen:
            return pixels_B3HW
        # An empty block first: without images `cat` would have nothing to join.
        rows = [pixels_B3HW.new_zeros((0, *self.feature_shape), dtype=torch.float16)]
        for block in pixels_B3HW.split(_BATCH) if len(pixels_B3HW) else ():
            with self._autocast(block.device):
                tokens_BLD, pooled_BP = self.run(self.normalized(block))
            rows.append(torch.cat([tokens_BLD.flatten(1), pooled_BP], dim=1).to(torch.float16))
        return torch.cat(rows)

    def forward(self, features: Tensor) -> ImageFeatures:
        """Encode pixels [B, 3, H, W] (uint8 or normalized; sides of whole patches), or rows of `frozen_features`."""
        if features.dim() == 2:
            return self._of_rows(features)
        grid = self._grid_of(features)
        if not self.frozen:
            tokens_BLD, pooled_BP = self.run(self.normalized(features))
        elif grid == self.grid:
            # Through the cache's 16 bits, too: an image gives the same numbers whether or not it was cached.
            return self._of_rows(self.frozen_features(features))
        else:
            # Cached rows have the length of the encoder's own grid, so other image sizes bypass the cache.
            with torch.no_grad(), self._autocast(features.device):
                tokens_BLD, pooled_BP = self.run(self.normalized(features))
        return ImageFeatures(tokens_BLD, grid, self.proj(pooled_BP))

    @property
    def _has_new_projection(self) -> bool:
        return self.fresh_parts is None or "proj" in self.fresh_parts

    @property
    def vector_width(self) -> int:
        """Width of the network's own pooled vector, or of the joint embedding where that was trained with it."""
        return self.pooled_width if self._has_new_projection else self.embed_dim

    def unnamed_weights(self) -> Mapping[str, Tensor]:
        """Return those of a trained projection: a frozen trunk's fingerprint leaves them out."""
        return {} if self._has_new_projection else self.proj.state_dict()

    def image_vectors(self, features: Tensor) -> Tensor:
        """See `ImageEncoder.image_vectors`."""
        if not self._has_new_projection:
            return super().image_vectors(features)
        if features.dim() == 4 and not self.frozen:
            return self.run(self.normalized(features))[1]
        # A row ends with the pooled vector, so no untrained projection is involved.
        rows_BF = features if features.dim() == 2 else self.frozen_features(features)
        return as_computed(rows_BF[:, -self.pooled_width :]).float()

    def _grid_of(self, pixels_B3HW: Tensor) -> tuple[int, int]:
        height, width = pixels_B3HW.shape[-2:]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"'{self.kind}': the image is not made of whole patches of {self.patch} px (got {width} x {height})"
            )
        return height // self.patch, width // self.patch

    def hidden_features(
        self, pixels_B3HW: Tensor, *, layer: int = -2, norm: bool = False, prefix: bool = False
    ) -> ImageFeatures:
        """See `ImageEncoder.hidden_features`."""
        grid = self._grid_of(pixels_B3HW)
        if not self.frozen:
            tokens_BLD, grid, extra = self.run_to_layer(self.normalized(pixels_B3HW), layer, norm=norm, grid=grid)
        else:
            with torch.no_grad(), self._autocast(pixels_B3HW.device):
                tokens_BLD, grid, extra = self.run_to_layer(self.normalized(pixels_B3HW), layer, norm=norm, grid=grid)
        if prefix and not extra:
            raise UserError(f"'{self.kind}' has no class or register tokens; leave prefix out")
        return ImageFeatures(tokens_BLD, grid, prefix=extra) if prefix else ImageFeatures(tokens_BLD[:, extra:], grid)

    def run_to_layer(
        self, pixels_B3HW: Tensor, layer: int, *, norm: bool, grid: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int], int]:
        """Return the tokens behind a layer [B, L, D], their grid, and how many prefix tokens stand in front."""
        raise UserError(f"'{self.kind}' has no hidden layers to read")

    def _of_rows(self, rows_BF: Tensor) -> ImageFeatures:
        rows, columns = self.grid
        count = rows * columns * self.width
        if rows_BF.shape[1] != count + self.pooled_width:
            raise UserError(
                f"features: they do not fit the grid {rows} x {columns} of '{self.kind}' (got length "
                f"{rows_BF.shape[1]}); expected the same image size as when they were computed"
            )
        # Cached in 16 bits, but the projection is trained in the precision of the weights around it.
        rows_BF = as_computed(rows_BF)
        if not torch.is_autocast_enabled(rows_BF.device.type):
            rows_BF = rows_BF.float()
        # F = L D + P: the tokens one after another, then the pooled vector, as `frozen_features` joined them.
        tokens_BLD = rows_BF[:, :count].reshape(len(rows_BF), rows * columns, self.width)
        return ImageFeatures(tokens_BLD, self.grid, self.proj(rows_BF[:, count:]))

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Project pooled tokens [R, D] to [R, E], as if they were the whole image's."""
        return self.proj(self.pool_regions(pooled_RD))


class BackboneTextEncoder(_Frozen, TextEncoder):
    """A text encoder around a network of another library; subclasses fill in `run`.

    Args:
        trunk, proj, frozen, precision: see `BackboneImageEncoder`.
        pooled_width: of the network's pooled vector. length: tokens of a text, padded or cut.
        tokenizer: folder with the tokenizer's files; None while the model is only being counted.
    """

    def __init__(
        self,
        *,
        trunk: nn.Module,
        proj: nn.Module,
        pooled_width: int,
        embed_dim: int,
        length: int,
        tokenizer: Path | None,
        frozen: bool,
        precision: str,
        kind: str,
    ) -> None:
        # A text is one short vector, so it need not be reduced to 16 bits as an image's tokens are.
        shape, dtype = ((pooled_width,), torch.float32) if frozen else ((length,), torch.int32)
        super().__init__(embed_dim=embed_dim, feature_shape=shape, feature_dtype=dtype)
        self.kind, self.length = kind, length
        self.context_length = length
        self.frozen = frozen
        self.precision = check_precision(precision, frozen=frozen, kind=kind)
        self.trunk: Any = trunk
        self.proj = proj
        self._tokenizer: Any = None if tokenizer is None else load_tokenizer(tokenizer)
        self._start_frozen(self)

    @abstractmethod
    def run(self, ids_BL: Tensor) -> Tensor:
        """Turn token ids into the network's pooled vector [B, P]."""

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of transformers that belongs to the weights.

        Raises:
            UserError: this encoder was built without its files.
        """
        if self._tokenizer is None:
            raise UserError(
                f"text encoder '{self.kind}': the tokenizer's files are missing; set the field tokenizer: FOLDER"
            )
        return self._tokenizer

    def computed_from(self) -> dict[str, Any]:
        """See `_Frozen.computed_from`; ids depend on the vocabulary too."""
        return {**super().computed_from(), "vocabulary": self.tokenizer.get_vocab()}

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return name and content of the files from which `tokenizer: FOLDER` builds the same tokenizer."""
        return files_of(self.tokenizer)

    def train(self, mode: bool = True) -> BackboneTextEncoder:
        """Set training mode; a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, length], int32, padded or cut to `length`."""
        if not texts:
            return torch.zeros(0, self.length, dtype=torch.int32)
        ids = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )["input_ids"]
        # Half the bytes of the tokenizer's int64, in caches and on the way to the device.
        return ids.to(torch.int32)

    def fingerprint(self) -> str:
        """Name weights, configuration, vocabulary and precision of cached vectors; empty if the trunk is trained."""
        return f"{self.kind}-{self._frozen_digest()}-{self.length}-{self._dtype_name()}" if self.frozen else ""

    @torch.no_grad()
    def frozen_features(self, texts: Sequence[str]) -> Tensor:
        """Return token ids where the trunk is trained, else its pooled vectors in float32; on the CPU."""
        ids_BL = self.token_ids(texts)
        if not self.frozen:
            return ids_BL
        device = next(self.trunk.parameters()).device
        rows = [torch.zeros(0, *self.feature_shape)]
        for block in ids_BL.split(_BATCH) if len(ids_BL) else ():
            with self._autocast(device):
                rows.append(self.run(block.to(device).long()).float().cpu())
        return torch.cat(rows)

    def forward(self, features: Tensor) -> Tensor:
        """Turn token ids or pooled vectors into joint embeddings [B, E], not normalized."""
        if self.frozen:
            return self.proj(features)
        if not len(features):
            # One row that is thrown away: a process without texts still joins the others in every layer (FSDP).
            return self.proj(self.run(features.new_zeros(1, self.length, dtype=torch.long))[:0])
        return self.proj(self.run(features.long()))


def given_folder(tokenizer: str) -> Path:
    """Return the folder that the field `tokenizer` names.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(tokenizer).expanduser()
    if not folder.is_dir():
        raise UserError(f"tokenizer: no such folder (got '{tokenizer}')")
    return folder


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of transformers in a folder.

    Raises:
        UserError: its files, or a library they need, are missing.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
        if (folder / "spiece.model").is_file():
            raise UserError(
                f"{folder}: a SentencePiece tokenizer needs sentencepiece: run `pip install 'foveate[siglip]'`"
            ) from error
        raise UserError(
            f"{folder}: transformers reads no tokenizer here; expected tokenizer.json and tokenizer_config.json, or "
            "the vocabulary files of its kind"
        ) from error


def files_of(tokenizer: Any) -> dict[str, bytes]:
    """Return the files that `save_pretrained` of a tokenizer writes: name -> content."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}
