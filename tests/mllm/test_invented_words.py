"""A training notes the invented words that its generated questions have, and those of the model it began with."""

from __future__ import annotations

from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.mllm.data import ImageSet, list_training_words
from foveate.records.conversations import Conversation, Turn


def make_set(*talks: tuple[str, str]) -> ImageSet:
    """Conversations by their source and answer."""
    conversations = [
        Conversation(str(number), (), (Turn("user", "What is this?"), Turn("assistant", answer)), source=source)
        for number, (source, answer) in enumerate(talks)
    ]
    return ImageSet((), tuple(conversations))


def test_words_of_generated_answers_are_listed() -> None:
    sets = [
        make_set(("image-sets: episode", "zup"), ("image-sets: compare", "yes"), ("study mllm", "wug")),
        # In data of another kind, such a word belongs to a language.
        make_set(("my questions", "toma"), ("image-sets: episode", "zup")),
    ]
    assert list_training_words(sets, None) == ["wug", "zup"]
    assert list_training_words(sets[1:], "mini") == sorted(INVENTED_WORDS)
    assert list_training_words([make_set(("my questions", "toma"))], None) == []
