"""Clients of the S-sets that answer rightly but for some of their numbers."""

from __future__ import annotations

import numpy as np
from s_sets import s_set

from foveate.federated.clustering import protocol
from foveate.federated.messages import Message

TRUTH = s_set("s1")[2]


def changed(**arrays):
    """A client that answers rightly but for some arrays of its first answer."""

    def handler(data, request: Message, client: int) -> Message:
        good = protocol.answer_centroids(data, request, client)
        made = {name: make(good.array(name)) for name, make in arrays.items()}
        return request.answer(arrays={**good.arrays, **made}, **good.values)

    return handler


def claiming(good: Message, points: float) -> Message:
    """The same answer with so many points at the first centroid."""
    counts = np.r_[points, good.array("counts")[1:]]
    return good.answer(arrays={**good.arrays, "counts": counts}, points=int(counts.sum()))
