"""Choose the slow frames of a clip by what they show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import UserError
from foveate.video.adapter import Network
from foveate.video.strategies import SlowStrategy, Strategy
from foveate.vision.video.choosing import choose_frames


class Selector(Protocol):
    """An encoder of images and texts in one space, by which frames are chosen."""

    def encode_images(self, images: Iterable[Image.Image]) -> NDArray[Any]:
        """Embed images: [T, D]."""
        ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[Any]:
        """Embed texts: [N, D]."""
        ...


def check_choice(how: Strategy, *, selector: Selector | None, query: str | None) -> bool:
    """Return whether slow frames are chosen by what they show, and not spread evenly.

    Raises:
        UserError: the rule needs a selector or a query that is missing, or has no use for it.
    """
    rule = how.choose if isinstance(how, SlowStrategy) else "even"
    if query and rule != "query":
        raise UserError(f"query: no effect with choose '{rule}'; expected choose 'query'")
    if rule == "query" and (selector is None or not query):
        raise UserError("choose: 'query' needs a selector with words and a query; expected --selector and a question")
    if selector is not None and rule == "even":
        raise UserError(
            "selector: no effect with frames that are spread evenly; expected choose cover, change or query"
        )
    return rule != "even"


def choose_slow(
    how: Strategy,
    frames: Iterable[Image.Image],
    *,
    network: Network | None = None,
    selector: Selector | None = None,
    query: str | None = None,
) -> list[int] | None:
    """Choose slow frames by what they show; None where they are spread evenly, or there are none.

    Args:
        network: its tokens stand for frames where there is no selector.

    Raises:
        UserError: as `check_choice`, or there is nothing by which frames are compared.
    """
    if not check_choice(how, selector=selector, query=query) or not isinstance(how, SlowStrategy):
        return None
    if selector is not None:
        vectors_TD = selector.encode_images(frames)
    elif network is not None:
        # Encoded once more when they are read: the tokens of all frames at once would fill memory.
        means = [tokens_BND.float().mean(dim=1).cpu() for tokens_BND in network.encode_images(frames)]
        vectors_TD = torch.cat(means).numpy()
    else:
        raise UserError(f"choose: '{how.choose}' compares frames by a model; expected --selector")
    query_D = selector.encode_text([query])[0] if how.choose == "query" and selector and query else None
    return choose_frames(vectors_TD, how.slow, how.choose, query_D=query_D)
