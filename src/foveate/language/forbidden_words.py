"""Words that answers must not have, as masks of the next token; without a model.

Models that learn new words from examples are trained on invented ones, such as "gorp", and then write them about any
image that they do not know. Banning the tokens of a word is not enough: a word can be spelled with other tokens, and
its tokens begin longer words ("toma", "tomato"). So the text of the word that is being written decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from foveate.language.tokenizer import Tokenizer

_LETTERS = re.compile(r"[^\W\d_]+")

# Names that no thing has, so that only the examples of a question say what they mean. A model that learned them writes
# them about any image that it does not know; `foveate.multimodal` keeps them out of answers.
INVENTED_WORDS = ("dax", "wug", "blick", "fep", "toma", "zup", "gorp", "kiv")


def split_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of texts in lower case: runs of letters."""
    return frozenset(word for text in texts for word in _LETTERS.findall(text.lower()))


class ForbiddenWords:
    """Words that a text must not have, and the tokens that would write them.

    A word counts wherever no letter stands beside it, in upper and lower case. A longer word that begins with one is
    possible where one token has more of it than the forbidden word, or it is one of `allowed`.

    Args:
        words: of letters only.
        texts: text of each token of the vocabulary, a blank in front included.
        special: tokens that are no text: the end mark, the mark of a region.
        allowed: other words that texts may have.
    """

    def __init__(
        self, words: Collection[str], texts: Sequence[str], *, special: Collection[int], allowed: Iterable[str] = ()
    ) -> None:
        self.words = frozenset(word.lower() for word in words)
        self._special = frozenset(special)
        self._texts = [text.lower() for text in texts]
        self._beginnings = frozenset(word[:length] for word in self.words for length in range(1, len(word) + 1))
        self._max_length = max(map(len, self.words), default=0)
        self._longer = [
            word
            for word in map(str.lower, allowed)
            if word not in self.words and any(word.startswith(forbidden) for forbidden in self.words)
        ]
        # Index the tokens that begin with letters which can complete a forbidden word.
        endings = {word[start:] for word in self.words for start in range(len(word))}
        self._by_letters: dict[str, list[int]] = {}
        for id, text in enumerate(self._texts):
            match = _LETTERS.match(text)
            if match is not None and match[0] in endings:
                self._by_letters.setdefault(match[0], []).append(id)
        self._banned: dict[tuple[str | None, bool], tuple[int, ...]] = {}

    @classmethod
    def create(
        cls, words: Collection[str], tokenizer: Tokenizer, *, size: int, allowed: Iterable[str] = ()
    ) -> ForbiddenWords:
        """Read the texts of the tokens of a vocabulary.

        Args:
            size: number of tokens, rows of a table without a token included.
        """
        special = frozenset(tokenizer.special.values())
        # Behind another token: some tokenizers drop the blank of the first one.
        before = tokenizer.encode("a")
        start = len(tokenizer.decode(before))
        texts = ["" if id in special else tokenizer.decode([*before, id])[start:] for id in range(size)]
        return cls(words, texts, special=special, allowed=allowed)

    def ban(self, ids: Sequence[int], room: int) -> tuple[int, ...]:
        """Return the tokens that must not come next.

        Args:
            ids: tokens written so far. room: how many more may be written, the next one included.
        """
        lists = [self._list_banned(word, may_go_on=room > 1) for word in self._find_words(ids)]
        return lists[0] if len(lists) == 1 else tuple(sorted(set().union(*lists)))

    def _list_banned(self, word: str | None, *, may_go_on: bool) -> tuple[int, ...]:
        """Return the tokens that must not come behind a beginning of a forbidden word, None for that of another word.

        Args:
            may_go_on: there is room for a token more, which a longer word needs.
        """
        key = (word, may_go_on)
        if key not in self._banned:
            every = range(len(self._texts))
            if word is None or word in self.words:
                ids = {id for id in every if self._is_banned(word, id, may_go_on=may_go_on)}
            else:
                # What a token holds behind its first letters does not depend on what is in front of it.
                ids = set(self._list_banned(None, may_go_on=may_go_on))
                for whole in (whole for whole in self.words if whole.startswith(word)):
                    completing = self._by_letters.get(whole[len(word) :], ())
                    ids |= {id for id in completing if self._is_banned(word, id, may_go_on=may_go_on)}
            self._banned[key] = tuple(sorted(ids))
        return self._banned[key]

    def _find_words(self, ids: Sequence[int]) -> set[str | None]:
        """Return the beginning of a forbidden word that a text ends with, None where it ends within another word.

        Two where a special token stands near the end: a region is a box in the text, or nothing where it has no image.
        """
        words, letters = set[str | None](), ""
        for id in reversed(ids):
            if id in self._special:
                words.add(self._match(letters))
                continue
            tail = self._texts[id][_count_before_last_word(self._texts[id]) :]
            letters = tail + letters
            if len(tail) < len(self._texts[id]) or len(letters) > self._max_length:
                break
        return words | {self._match(letters)}

    def _match(self, letters: str) -> str | None:
        return letters if not letters or letters in self._beginnings else None

    def _read(self, word: str | None, text: str) -> tuple[str | None, bool]:
        """Read a text behind a beginning of a word; return the one that it ends with, and if it has a forbidden one."""
        has_forbidden = False
        for letter in text:
            if not letter.isalpha():
                has_forbidden |= word in self.words
                word = ""
            elif word is not None:
                word = word + letter if word + letter in self._beginnings else None
        return word, has_forbidden

    def _is_banned(self, word: str | None, id: int, *, may_go_on: bool) -> bool:
        if word in self.words:
            return not self._goes_on(word, id)
        if id in self._special:
            return False
        last, has_forbidden = self._read(word, self._texts[id])
        if has_forbidden or last not in self.words:
            return has_forbidden
        # It would end with the word itself: only where an allowed word begins with it, and tokens go on with that.
        return not (may_go_on and self._longer and any(self._goes_on(last, more) for more in range(len(self._texts))))

    def _goes_on(self, word: str, id: int) -> bool:
        """Return whether a token behind a forbidden word makes an allowed one of it, or a longer beginning of one."""
        match = None if id in self._special else _LETTERS.match(self._texts[id])
        if match is None:
            return False
        longer = word + match[0]
        is_whole = match.end() < len(self._texts[id])
        last, has_forbidden = self._read(word, self._texts[id])
        return (
            any(longer == other if is_whole else other.startswith(longer) for other in self._longer)
            and not has_forbidden
            and last not in self.words
        )


def _count_before_last_word(text: str) -> int:
    """Count the characters in front of the letters that a text ends with."""
    length = len(text)
    while length and text[length - 1].isalpha():
        length -= 1
    return length


class WordFilter:
    """Keeps forbidden words out of the rows of one batch, and notes which rows would have had one.

    Attributes:
        avoided: row -> number of its first token in whose place the model would have written a forbidden word.
    """

    def __init__(self, forbidden: ForbiddenWords) -> None:
        self.forbidden = forbidden
        self.avoided: dict[int, int] = {}
