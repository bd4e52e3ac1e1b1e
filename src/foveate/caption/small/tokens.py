"""The captioner's tokens: a byte-level BPE trained on the targets, names of several words, and the special tokens that
say what is asked.

A name that regions have ("grinning face with smiling eyes") is one token: what a place shows is then
one decision, to be made by the eye, and copying a name from an AltText is copying one token. Other names are spelt.

The file is tokenizers' own `tokenizer.json`, which transformers opens as PreTrainedTokenizerFast. A sequence is
`<kind> <length> [<alt> AltText </alt>] <caption> target <end>`, after the image's prefix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from foveate.caption.chat_format import EDGES
from foveate.caption.prompts import CAPTION_KINDS
from foveate.core.errors import UserError, choose

PAD, CAPTION, END, ALT, ALT_END = "<pad>", "<caption>", "<end>", "<alt>", "</alt>"
_WORD = re.compile(r"\w+")
_MAX_NAMES = 0.5  # of the vocabulary
_SPECIALS = (
    PAD,
    CAPTION,
    END,
    ALT,
    ALT_END,
    *(f"<{kind}>" for kind in CAPTION_KINDS),
    *(f"<length_{number}>" for number in range(len(EDGES) + 1)),
)


def _beginnings(texts: Iterable[str]) -> set[str]:
    """All beginnings of the words in texts that are no word but for a plural's ending."""
    tokens = {word for text in texts for word in _WORD.findall(text)}
    return {word[:end] for word in tokens for end in range(1, len(word)) if word[end:] not in ("s", "es")}


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
        added = tokenizer.get_added_tokens_decoder().values()
        self.names = frozenset(token.content.strip() for token in added if not token.special)
        # After these a name is one that was said before.
        self.definite = tuple(ids[0] for ids in self.encode(["The", " The", " the"]) if len(ids) == 1)
        (self.stop,) = self.encode(["."])[0]
        self._longest_name = max((len(name.split()) for name in self.names), default=0)

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int, phrases: Iterable[str] = ()) -> CaptionTokens:
        """A byte-level BPE of at most `vocabulary` tokens; any text can be written with it, without loss.

        Args:
            phrases: of regions, each as often as it is there; those that are there twice become tokens, the most
                frequent ones first, up to half of the vocabulary. Those with which a longer word of the texts begins
                ("car", "cartoon") are spelt.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

        texts, known = list(texts), Counter(phrases)
        unclear = _beginnings(texts)
        usable = [phrase for phrase, uses in known.items() if uses >= 2 and phrase not in unclear]
        ordered = sorted(usable, key=lambda phrase: (-known[phrase], phrase))
        names = ordered[: int(_MAX_NAMES * vocabulary)]

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - len(names),
            special_tokens=list(_SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        # With the blank before them, as they stand within a sentence.
        tokenizer.add_tokens([AddedToken(f" {name}", normalized=False) for name in names])
        return cls(tokenizer)

    @classmethod
    def from_json(cls, content: str) -> CaptionTokens:
        """Load the content of a tokenizer.json."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(content)
            ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
            # Ids are rows of the embedding table: a gap, or an id of a billion, has none.
            if ids != list(range(len(ids))):
                raise UserError(
                    f"tokenizer.json: ids must be 0 to {len(ids) - 1:,} without gaps (the largest is {ids[-1]:,})"
                )
            return cls(tokenizer)
        except BaseException as error:
            if type(error) is not Exception:  # the library raises the bare class, and nothing else is meant
                raise
            raise UserError(f"tokenizer.json: damaged ({' '.join(str(error).split())[:200]})") from error

    def to_json(self) -> str:
        """Return the content of tokenizer.json."""
        return self.tokenizer.to_str(pretty=False)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts; text that looks like a special token is encoded as plain characters."""
        self.tokenizer.encode_special_tokens = True
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def normalize_alt(self, alt: str) -> str:
        """Normalize an AltText for the decoder: collapsed white space, a leading blank, and lower-case known names.

        Captions write names of the vocabulary in lower case, so that taking one over is copying one token. Other
        capitals stay: they are proper names, which captions keep.
        """
        tokens, index, normalized = alt.split(), 0, list[str]()
        while index < len(tokens):
            # Longest first: "fire engine" before "fire".
            for length in range(min(self._longest_name, len(tokens) - index), 0, -1):
                joined = " ".join(tokens[index : index + length])
                bare = joined.rstrip(".,;:!?")
                if bare.lower() in self.names:
                    normalized.append(bare.lower() + joined[len(bare) :])
                    index += length
                    break
            else:
                normalized.append(tokens[index])
                index += 1
        return "".join(f" {token}" for token in normalized)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def prompt(self, kind: str, *, length: int, alt: Sequence[int] | None = None) -> list[int]:
        """The ids that ask for a caption.

        Args:
            kind: of CAPTION_KINDS. length: its length class. alt: ids of the AltText; None where none is shown.
        """
        choose(kind, CAPTION_KINDS, "caption format")
        header = [self._id(f"<{kind}>"), self._id(f"<length_{length}>")]
        alt_part = [] if alt is None else [self._id(ALT), *alt, self._id(ALT_END)]
        return [*header, *alt_part, self.caption]

    def _id(self, token: str) -> int:
        return self.tokenizer.token_to_id(token)
