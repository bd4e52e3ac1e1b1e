"""The captioner's tokens: a byte-level BPE trained on the targets, and the special tokens that say what is asked.

The file is tokenizers' own `tokenizer.json`, which transformers opens as PreTrainedTokenizerFast. A sequence is
`<kind> <length> [<alt> AltText </alt>] <caption> target <end>`, after the picture's prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from foveate.caption.prompts import CAPTION_KINDS
from foveate.settings.errors import UserError, choose

PAD, CAPTION, END, ALT, ALT_END = "<pad>", "<caption>", "<end>", "<alt>", "</alt>"
# Edges of the length classes in CLIP tokens without specials; class i is [EDGES[i - 1], EDGES[i]).
EDGES = (8, 12, 18, 26, 38, 54, 76, 100, 130, 170)
_SPECIALS = (
    PAD,
    CAPTION,
    END,
    ALT,
    ALT_END,
    *(f"<{kind}>" for kind in CAPTION_KINDS),
    *(f"<length_{number}>" for number in range(len(EDGES) + 1)),
)


def length_class(clip_tokens: int) -> int:
    """The class of a length in CLIP tokens.

    >>> length_class(5), length_class(8), length_class(500)
    (0, 1, 10)
    """
    return int(np.searchsorted(EDGES, clip_tokens, side="right"))


class CaptionTokens:
    """A tokenizer of the real `tokenizer.json` format with the captioner's special tokens.

    Raises:
        UserError: when a special token is missing: the file belongs to something else.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        missing = [token for token in _SPECIALS if tokenizer.token_to_id(token) is None]
        if missing:
            raise UserError(f"tokenizer.json has no token {missing[0]!r}: it was not made for a captioner")
        self.pad, self.caption, self.end = (tokenizer.token_to_id(token) for token in (PAD, CAPTION, END))

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int) -> CaptionTokens:
        """A byte-level BPE of at most `vocabulary` tokens; any text can be written with it, without loss."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(_SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, content: str) -> CaptionTokens:
        """The tokenizer of the content of a tokenizer.json."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(content))
        except BaseException as error:
            if type(error) is not Exception:  # the library raises the bare class, and nothing else is meant
                raise
            raise UserError(f"tokenizer.json is not one ({' '.join(str(error).split())[:200]})") from error

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self.tokenizer.to_str(pretty=False)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts; what looks like a special token in a text is spelt in letters."""
        self.tokenizer.encode_special_tokens = True
        return [found.ids for found in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def prompt(self, kind: str, *, length: int, alt: Sequence[int] | None = None) -> list[int]:
        """The ids that ask for a caption.

        Args:
            kind: of CAPTION_KINDS. length: its length class. alt: ids of the AltText; None where none is shown.
        """
        choose(kind, CAPTION_KINDS, "caption format")
        asked = [self._id(f"<{kind}>"), self._id(f"<length_{length}>")]
        shown = [] if alt is None else [self._id(ALT), *alt, self._id(ALT_END)]
        return [*asked, *shown, self.caption]

    def _id(self, token: str) -> int:
        return self.tokenizer.token_to_id(token)
