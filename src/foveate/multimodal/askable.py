"""What every model that answers questions about images can do, whoever built it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from foveate.records.boxes import PixelBox
from foveate.records.shapes import Shape

Request = tuple[Sequence[bytes], str, Sequence[Shape]]
"""Encoded images, a question, and the regions of its `<region>` placeholders in pixels."""


class ModelAnswer(Protocol):
    """Answer of a model: its text, the boxes in it in pixels of the original image, and whether it came to an end."""

    @property
    def text(self) -> str: ...

    @property
    def boxes(self) -> Sequence[PixelBox]: ...

    @property
    def finished(self) -> bool: ...


class AskableModel(Protocol):
    """Model that a suite asks."""

    def ask_all(self, questions: Sequence[Request], *, max_tokens: int) -> Sequence[ModelAnswer]:
        """Answer questions in their order."""
        ...

    def choose_all(self, questions: Sequence[Request], options: Sequence[Sequence[str]]) -> Sequence[Sequence[float]]:
        """Return the probability of each of the options of each question."""
        ...


@runtime_checkable
class WordLimitedModel(AskableModel, Protocol):
    """Model that keeps words which were invented for its training out of its answers."""

    @property
    def training_words(self) -> Sequence[str]: ...

    def allow_training_words(self) -> AskableModel:
        """Return the same model whose answers may have these words."""
        ...
