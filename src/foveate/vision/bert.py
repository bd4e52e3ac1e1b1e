"""BERT's network and tokenizer from the files of a folder, as `transformers` computes it, whose import takes 2 s.

Post-norm transformer with learned positions: Devlin et al., BERT, arXiv 1810.04805.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.model_folder import read_tensors


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
                self.register_buffer(name.replace(".", "__"), tensor)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.buffers()).device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden state [B, L, width] of token ids [B, L]; the mask is 1 for real tokens."""
        tables = [self._weight(f"embeddings.{name}_embeddings.weight") for name in ("word", "token_type", "position")]
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
