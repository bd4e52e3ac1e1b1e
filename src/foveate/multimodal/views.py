"""The views of a batch: what the connector makes of them, which images they show, and the indicators between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.language.packing import SLOT
from foveate.multimodal.assemble import SamplePlan


class Visual(NamedTuple):
    """What the connector makes of V views.

    Attributes:
        full_VLE: every patch in the space of the language model; the same as `tokens_VTE` unless it pools last.
        tokens_VTE: what the language model reads.
        tower_VLD: what a region encoder reads: tokens of the tower, or `full_VLE`, and with `region_mean` `full_VLE`
            behind them; empty where there is none.
    """

    full_VLE: Tensor
    tokens_VTE: Tensor
    tower_VLD: Tensor

    def select(self, views: Tensor) -> Visual:
        """Select views by number."""
        return Visual(*(column[views] for column in self))


class ViewLayout(NamedTuple):
    """The images that the views of B rows show, and the indicators between them.

    Attributes:
        image_BK: number of each view's image in its row.
        before_BKI: ids of the tokens in front of each view, -1 behind the last.
        in_text_BK: views that stand within the text of their row, in order at its `SLOT`s, with their indicators.
    """

    image_BK: Tensor
    before_BKI: Tensor
    in_text_BK: Tensor

    @classmethod
    def create(
        cls, rows: Sequence[Sequence[tuple[int, Sequence[int]]]], *, in_text: Sequence[bool] | None = None
    ) -> ViewLayout:
        """Lay out rows of views, each with the number of its image and the ids in front of it.

        Args:
            in_text: rows whose images stand within their text; none by default.
        """
        columns = max(map(len, rows), default=0)
        longest = max((len(before) for row in rows for _, before in row), default=0)
        image_BK = torch.zeros(len(rows), columns, dtype=torch.long)
        before_BKI = torch.full((len(rows), columns, longest), -1)
        in_text_B1 = torch.tensor(in_text or [False] * len(rows), dtype=torch.bool)[:, None]
        for index, row in enumerate(rows):
            for column, (image, before) in enumerate(row):
                image_BK[index, column] = image
                # Within a text indicators are among its ids; see `prompts.image_slots`.
                if not in_text_B1[index]:
                    before_BKI[index, column, : len(before)] = torch.tensor(before, dtype=torch.long)
        return cls(image_BK, before_BKI, in_text_B1.repeat(1, columns))

    def select(self, rows: Tensor, count: int) -> ViewLayout:
        """Select rows, and of each the first `count` views."""
        return ViewLayout(*(column[rows, :count] for column in self))

    def to(self, device: torch.device) -> ViewLayout:
        """Return the layout on a device."""
        return ViewLayout(*(column.to(device) for column in self))


def list_views(sample: SamplePlan, encode: Callable[[str], list[int]]) -> list[tuple[int, list[int]]]:
    """List the views of a sample for `ViewLayout.create`, their indicators tokenized."""
    return [
        (image, encode(text) if text else [])
        for image in range(len(sample.images))
        for text in sample.list_indicators(image)
    ]


def find_images_before(ids_BT: Tensor, views_BK: Tensor, layout: ViewLayout | None, *, tokens_per_view: int) -> Tensor:
    """Return which images [B, K, T] stand in front of each token: a map of a later one would tell what comes.

    Args:
        ids_BT: token ids. views_BK: numbers of the views of each row, -1 behind the last.
        layout: of the views; None where each is an image of its own, in front of the text.
    """
    visible_BKT = (views_BK >= 0)[..., None].expand(*views_BK.shape, ids_BT.shape[1])
    if layout is None:
        return visible_BKT
    # A view within the text counts once all of its slots have been read.
    complete_BT = (ids_BT == SLOT).cumsum(dim=1) // tokens_per_view
    number_BK = layout.in_text_BK.cumsum(dim=1)
    # A view in the text is visible once all of its slots have been read, any other from the start.
    return visible_BKT & (~layout.in_text_BK[..., None] | (complete_BT[:, None] >= number_BK[..., None]))
