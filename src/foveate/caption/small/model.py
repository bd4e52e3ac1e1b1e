"""The captioner's networks: an image encoder with a frozen part, its tokens folded to a prefix, and a decoder.

The decoder is a causal language model of transformers (Llama, GPT-2, Qwen2, ...) without its head, small and trained
from scratch; the head is the table of token embeddings (tied). It reads embeddings: the prefix of an image, then those
of the prompt and of the caption so far. After ClipCap (Mokady et al. 2021) and Altogether (Xu et al. 2024), with a grid
of tokens instead of one vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.caption.small.recipe import CaptionerRecipe
from foveate.core.errors import UserError
from foveate.vision.encoder import ImageEncoder
from foveate.vision.registry import build_image_encoder, seeded

_PREFIX_GAIN, _WORD_SCALE, _COPYING, _READ_GAIN, _RARITY = 0.1, 10.0, 0.3, 3.0, 6.0
_UNUSABLE = (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError)


class Texts(NamedTuple):
    """Several texts of each of B images, one after the other (`small.samples.packed`).

    ids_BT: token ids. before_BT: of prompts the token before, elsewhere `pad`. text_BT: number of the text from 1, 0
    for padding. place_BT: position within the text. target_BT: which tokens are learnt.
    """

    ids_BT: Tensor
    before_BT: Tensor
    text_BT: Tensor
    place_BT: Tensor
    target_BT: Tensor
    pad: int


class CaptionerModel(nn.Module):
    """Images' frozen features and token ids to next-token states.

    Args:
        recipe: of the captioner. vocabulary: tokens of its tokenizer. names: how many of them, the last, are names.
        definite: tokens after which a name is one that was said before ("the").

    Raises:
        UserError: when encoder or decoder cannot be built, or the grid does not fold.
    """

    def __init__(
        self, recipe: CaptionerRecipe, *, vocabulary: int, names: int = 0, definite: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.recipe, self.first_name, self.names = recipe, vocabulary - names, names
        self.definite = tuple(definite)
        seed = recipe.training.seed
        self.image_encoder: ImageEncoder = build_image_encoder(recipe.image_encoder, seed=seed)
        rows, columns = self.image_encoder.grid
        if rows % recipe.pixel_shuffle or columns % recipe.pixel_shuffle:
            raise UserError(
                f"fold {recipe.pixel_shuffle}: the encoder's grid of {rows} x {columns} tokens does not divide by it"
            )
        self.prefix_length = rows * columns // recipe.pixel_shuffle**2
        with seeded(seed + 1):
            self.decoder = _build_decoder(recipe.decoder, vocabulary=vocabulary)
            _start_copying(self.decoder)
            width = self.decoder.get_input_embeddings().weight.shape[1]
            self.fold_in = nn.Linear(self.image_encoder.width * recipe.pixel_shuffle**2, width)
            self.prefix_ln = nn.LayerNorm(width)
            # Token embeddings start small; a prefix of their size is read like tokens, and copied like tokens.
            nn.init.constant_(self.prefix_ln.weight, _PREFIX_GAIN)
            self.word_scale = nn.Parameter(torch.full((1,), _WORD_SCALE))
            self.read_gain = nn.Parameter(torch.full((1,), _READ_GAIN))
            # Any one name is rare: the decoder's first updates need not go into unlearning proposals.
            self.rarity = nn.Parameter(torch.full((1,), _RARITY))
            self.before_in = nn.Linear(width, width, bias=False)
        self.width = width

    def prefix(self, features: Tensor) -> Tensor:
        """Frozen features (or pixels) of B images to their prefix embeddings [B, P, D]."""
        tokens_BLD = self.image_encoder(features).tokens
        rows, columns = self.image_encoder.grid
        fold, batch = self.recipe.pixel_shuffle, tokens_BLD.shape[0]
        cells = tokens_BLD.view(batch, rows // fold, fold, columns // fold, fold, -1)
        folded_BPF = cells.permute(0, 1, 3, 2, 4, 5).reshape(batch, self.prefix_length, -1)
        return self.prefix_ln(self.fold_in(folded_BPF))

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [..., D]."""
        return self.decoder.get_input_embeddings()(ids)

    def embed_prompt(self, ids: Tensor, before: Tensor, pad: int) -> Tensor:
        """Embeddings [..., D] of prompt tokens, each with what came before it (`pad`: nothing did).

        To go on copying an AltText, the decoder has to find the token whose predecessor it wrote last. With the
        predecessor in the embedding one layer can look it up; else one layer must first learn to bring it there, which
        small models take thousands of updates for. ("Smeared keys": Elhage et al. 2021, "A Mathematical Framework for
        Transformer Circuits"; Olsson et al. 2022, "In-context Learning and Induction Heads".)
        """
        known = (before != pad)[..., None]
        return self.embed(ids) + self.before_in(self.embed(before)) * known

    def states(
        self, embeddings_BTD: Tensor, *, seen_BTT: Tensor | None = None, place_BT: Tensor | None = None
    ) -> Tensor:
        """The decoder's last hidden states [B, T, D] of a whole sequence; what lies behind a position is not seen.

        Args:
            seen_BTT: which positions each position reads, where that is less than all before it.
            place_BT: position numbers, where they are not 0, 1, 2, ...
        """
        more = {} if seen_BTT is None else {"attention_mask": seen_BTT[:, None], "position_ids": place_BT}
        return self.decoder(inputs_embeds=embeddings_BTD, use_cache=False, **more).last_hidden_state

    def text_states(self, prefix_BPD: Tensor, texts: Texts) -> Tensor:
        """Hidden states [B, T, D] of several texts of each image in one sequence: each reads the prefix and itself,
        as if it stood alone behind the prefix."""
        batch, prefix = prefix_BPD.shape[:2]
        embedded = self.embed_prompt(texts.ids_BT, texts.before_BT, texts.pad).to(prefix_BPD.dtype)
        text_BL = F.pad(texts.text_BT, (prefix, 0))
        text_BL[:, prefix:].masked_fill_(texts.text_BT == 0, -1)
        place_BL = torch.cat(
            [torch.arange(prefix, device=text_BL.device).expand(batch, -1), prefix + texts.place_BT], dim=1
        )
        earlier_LL = torch.ones((text_BL.shape[1],) * 2, dtype=torch.bool, device=text_BL.device).tril()
        own_BLL = (text_BL[:, :, None] == text_BL[:, None]) | (text_BL[:, None] == 0)
        joined = self.states(torch.cat([prefix_BPD, embedded], dim=1), seen_BTT=own_BLL & earlier_LL, place_BT=place_BL)
        return joined[:, prefix:]

    def logits(self, states: Tensor) -> Tensor:
        """Scores of the next token [..., V]."""
        return F.linear(states, self.decoder.get_input_embeddings().weight)

    def word_scores(self, pooled_RD: Tensor, words_W: Tensor) -> Tensor:
        """How much each place, the mean of its prefix embeddings, shows each of the token ids `words_W` [R, W].

        It is compared with the words' own embeddings: a prefix that shows a word comes to lie where the word itself
        does, so that naming what is seen and copying what is read (AltText) are one and the same to the decoder.
        """
        return self.word_scale * (pooled_RD @ F.normalize(self.embed(words_W), dim=-1).T)

    def seen_names(self, prefix_BPD: Tensor) -> Tensor:
        """How much any one place of B images shows each name of the vocabulary [B, names], in scores of tokens."""
        names = torch.arange(self.first_name, self.first_name + self.names, device=prefix_BPD.device)
        return self.word_scores(prefix_BPD, names).amax(dim=1)

    @property
    def longest(self) -> int:
        """The most positions that the decoder has."""
        return int(getattr(self.decoder.config, "max_position_embeddings", 2**31))


def _build_decoder(settings: dict[str, Any], *, vocabulary: int) -> Any:
    from transformers import AutoModel

    try:
        return cast(Any, AutoModel.from_config(decoder_config(settings, vocabulary), attn_implementation="sdpa"))
    except _UNUSABLE as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"field decoder: transformers cannot build it with these options ({why})") from error


@torch.no_grad()
def _start_copying(decoder: Any) -> None:
    """Lets each attention layer begin by handing on what it reads: output times value projection is a multiple of one.

    What a cell shows, or what the AltText says, is then a proposal for the next token from the first update on; where
    to look is left to be learnt. After the mimetic initialization of Trockman & Kolter 2023 (arXiv 2305.09828).
    Decoders whose layers have no such square projections of their own start as transformers draws them.
    """
    for layer in decoder.modules():
        value, out = (getattr(getattr(layer, name, None), "weight", None) for name in ("v_proj", "o_proj"))
        if value is not None and out is not None and value.shape == out.shape and value.shape[0] == value.shape[1]:
            nn.init.orthogonal_(value, gain=_COPYING**0.5)
            out.copy_(value.T)


def decoder_config(settings: dict[str, Any], vocabulary: int) -> Any:
    """The configuration of the decoder as transformers has it."""
    from transformers import AutoConfig

    options = {name: value for name, value in settings.items() if name != "model_type"}
    config = AutoConfig.for_model(settings["model_type"], vocab_size=vocabulary, tie_word_embeddings=True, **options)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    return config
