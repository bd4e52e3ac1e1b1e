"""The parts of a model as graphs for ONNX, its tokenizer as a file, and a script that embeds without torch.

The graphs are modules without data-dependent control flow, as a graph exporter needs them. They use the model's own
layers and give the same outputs. `RegionGraph` and `PhraseGraph` build one sequence [prompt ; image tokens] for each
prompt, where `Prompter` shares work between the prompts of an image.

`text.onnx` takes token ids and mask to embeddings. `tokenizer.json` is for the library `tokenizers`, with padding and
cut. `embed.py` needs only onnxruntime, numpy, Pillow and tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from foveate.vision.backbones import BackboneTextEncoder
from foveate.vision.encoder import ImageEncoder, TextEncoder
from foveate.vision.layers import encode_points, patch_centers
from foveate.vision.lite0 import Lite0Encoder, load_lite0
from foveate.vision.minilm import MiniLMEncoder, mean_of_real_tokens
from foveate.vision.onnx_graphs import read_pixels_script
from foveate.vision.open_clip.towers import OpenClipTextEncoder
from foveate.vision.preprocess import Preprocess
from foveate.vision.prompter import BoxHead, Prompted, Prompter


class ImageGraph(nn.Module):
    """uint8 pixels [B, 3, S, S] to unit-length embeddings [B, E] and tokens [B, L, D]."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        # lite0 keeps its frozen network outside of the module, so that checkpoints do not store it.
        self.frozen = load_lite0().float() if isinstance(encoder, Lite0Encoder) else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder.normalized(pixels)
        if self.frozen is not None:
            features = cast(Lite0Encoder, self.encoder).pack_features(self.frozen, features)
        tokens = self.encoder(features)
        return F.normalize(tokens.pooled, dim=-1), tokens.tokens


class _PromptLayer(nn.Module):
    """The Prompter's layer over [prompt ; image tokens] of each prompt: [R, P, D] to pooled [R, D]."""

    def __init__(self, prompter: Prompter, grid: tuple[int, int]) -> None:
        super().__init__()
        self.prompter = prompter
        positions_LD = torch.zeros(grid[0] * grid[1], prompter.width)
        if prompter.image_pos == "sincos":
            positions_LD = encode_sinusoid(prompter, patch_centers(grid))
        self.register_buffer("positions_LD", positions_LD, persistent=False)

    def forward(self, prompts_RPD: Tensor, tokens_BLD: Tensor, image_R: Tensor) -> Tensor:
        prompter, pre = self.prompter, self.prompter.norm == "pre"
        image_RLD = (tokens_BLD + cast(Tensor, self.positions_LD))[image_R]
        x_RSD = torch.cat((prompts_RPD, image_RLD), dim=1)
        normed_RSD = prompter.ln1(x_RSD) if pre else x_RSD
        if prompter.pool == "prompt":
            # Only prompts are pooled, so image tokens need no queries.
            x_RSD, queries_RQD = prompts_RPD, normed_RSD[:, : prompts_RPD.shape[1]]
        else:
            queries_RQD = normed_RSD
        # The Prompter has a single head (section 3.2), so the scale is that of the whole width.
        scores = prompter.q(queries_RQD) @ prompter.k(normed_RSD).transpose(1, 2) / math.sqrt(prompter.width)
        x_RSD = x_RSD + prompter.o(scores.softmax(dim=-1) @ prompter.v(normed_RSD))
        if pre:
            x_RSD = x_RSD + prompter.fc2(F.gelu(prompter.fc1(prompter.ln2(x_RSD))))
        else:
            x_RSD = prompter.ln1(x_RSD)
            x_RSD = prompter.ln2(x_RSD + prompter.fc2(F.gelu(prompter.fc1(x_RSD))))
        return prompter.final_ln(x_RSD).mean(dim=1)


def encode_sinusoid(prompter: Prompter, points: Tensor) -> Tensor:
    """Encode points in [0, 1] as the Prompter does."""
    return encode_points(
        points,
        width=prompter.width,
        coordinate_scale=prompter.coordinate_scale,
        temperature=prompter.temperature,
        layout=prompter.layout,
    )


class RegionGraph(nn.Module):
    """Tokens [B, L, D], boxes [R, 4] in [0, 1] and their images [R] to unit-length region embeddings [R, E]."""

    def __init__(self, prompter: Prompter, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layer = _PromptLayer(prompter, grid)

    def forward(self, tokens: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        prompter = self.layer.prompter
        prompts_RPD = encode_sinusoid(prompter, boxes.unflatten(-1, (2, 2)))
        if prompter.corner_embedding is not None:
            prompts_RPD = prompts_RPD + prompter.corner_embedding
        return F.normalize(prompter.proj(self.layer(prompts_RPD, tokens, image)), dim=-1)


class PhraseGraph(nn.Module):
    """Tokens [B, L, D], text embeddings [R, E] before normalization and their images [R] to boxes [R, 4].

    Boxes are in [0, 1] of the square input, corners in order.
    """

    def __init__(self, prompter: Prompter, head: BoxHead, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.head = _PromptLayer(prompter, grid), head

    def forward(self, tokens: Tensor, texts: Tensor, image: Tensor) -> Tensor:
        prompter = self.layer.prompter
        texts_RE = F.normalize(texts, dim=-1) if prompter.text_prompt_normalized else texts
        pooled_RD = self.layer(prompter.text_in(texts_RE).unsqueeze(1), tokens, image)
        return self.head.locate(Prompted(prompter.proj(pooled_RD), pooled_RD))


TEXT, TOKENIZER, SCRIPT = "text.onnx", "tokenizer.json", "embed.py"


class TextGraph(nn.Module):
    """Token ids [T, L] and mask [T, L] to unit-length embeddings [T, E] and the same before normalization.

    Towers whose embedding stands at the end token do not read the mask.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        # minilm keeps its frozen network outside of the module, so that checkpoints do not store it.
        self.frozen = encoder.sentence_encoder().model.float() if isinstance(encoder, MiniLMEncoder) else None

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.encoder
        if self.frozen is not None:
            output = self.frozen(input_ids=ids, attention_mask=mask)
            hidden_TLW = output if isinstance(output, Tensor) else output.last_hidden_state
            texts = encoder(mean_of_real_tokens(hidden_TLW, mask))
        elif isinstance(encoder, BackboneTextEncoder):
            texts = encoder.proj(encoder.run(ids))
        else:
            texts = encoder(ids)
        return F.normalize(texts, dim=-1), texts


def find_tokenizer(encoder: TextEncoder) -> Tokenizer | None:
    """Convert the tokenizer of a text encoder, with its padding and cut; None where `tokenizers` cannot express it."""
    if isinstance(encoder, MiniLMEncoder):
        source = encoder.sentence_encoder().tokenizer
        if isinstance(source, Tokenizer):
            return Tokenizer.from_str(source.to_str())
        tokenizer = _copy(source)
        if tokenizer is not None:
            tokenizer.enable_truncation(encoder.max_tokens)
            # No fixed length: texts are padded to the longest of a call, and the mean over real tokens ignores padding.
            _pad(tokenizer, source, length=None)
        return tokenizer
    length = encoder.context_length
    if isinstance(encoder, OpenClipTextEncoder):
        from open_clip.tokenizer import SimpleTokenizer

        if type(encoder.tokenizer) is not SimpleTokenizer or length is None:
            return None
        from foveate.vision.open_clip.export import clip_tokenizer

        tokenizer = _copy(clip_tokenizer(length))
        if tokenizer is not None:
            tokenizer.enable_truncation(length)
            # open_clip pads with 0 after the end token; CLIP's tokenizer in transformers would repeat the end token.
            tokenizer.enable_padding(length=length, pad_id=0)
        return tokenizer
    if isinstance(encoder, BackboneTextEncoder) and length is not None:
        tokenizer = _copy(encoder.tokenizer)
        if tokenizer is not None:
            tokenizer.enable_truncation(length)
            _pad(tokenizer, encoder.tokenizer, length=length)
        return tokenizer
    return None


def _copy(tokenizer: Any) -> Tokenizer | None:
    """Copy the fast tokenizer inside one of transformers, so that the encoder's keeps its own settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else Tokenizer.from_str(backend.to_str())


def _pad(tokenizer: Tokenizer, source: Any, *, length: int | None) -> None:
    side = source.padding_side
    tokenizer.enable_padding(length=length, pad_id=source.pad_token_id or 0, pad_token=source.pad_token, direction=side)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask [T, L], int64, as the script does."""
    rows = tokenizer.encode_batch(list(texts))
    return torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows])


def write_script(path: Path, preprocess: Preprocess) -> None:
    """Write the script for the geometry of a model input."""
    path.write_text(_SCRIPT.replace("READ_PIXELS", read_pixels_script(preprocess)), encoding="utf-8")


_SCRIPT = '''"""Embed images and texts: `python embed.py photo.jpg "a red boat"` prints the cosine of each text.

Needs onnxruntime, numpy, Pillow and tokenizers; gives the vectors of Foveate.
"""
import json, math, sys
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
PREPROCESS = json.loads((HERE / "preprocess.json").read_text())

def run(graph, **inputs):
    session = onnxruntime.InferenceSession(str(HERE / graph), providers=["CPUExecutionProvider"])
    return session.run(None, {node.name: inputs[node.name] for node in session.get_inputs()})

READ_PIXELS

def embed_image(path):  # unit vector [1, E]
    return run("image.onnx", pixels=read_pixels(path))[0]

def embed_texts(texts):  # unit vectors [T, E]
    rows = Tokenizer.from_file(str(HERE / "tokenizer.json")).encode_batch(list(texts))
    ids, mask = [row.ids for row in rows], [row.attention_mask for row in rows]
    return run("text.onnx", ids=np.array(ids, np.int64), mask=np.array(mask, np.int64))[0]

if __name__ == "__main__":
    for text, cosine in zip(sys.argv[2:], embed_texts(sys.argv[2:]) @ embed_image(sys.argv[1])[0]):
        print(f"{cosine:+.3f} {text}")
'''
