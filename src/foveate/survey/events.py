"""Events: images of one deployment that follow each other closely, or that their source puts into one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Longest gap within a burst or one passing animal; statistical independence (30 to 60 minutes) is a later filter.
GAP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Events:
    """Events of N images.

    Args:
        event_N: number of each image's event, 0 to E-1, in the order of deployment and time.
        order_N: image rows sorted by event, and inside by time, frame number and file name.
        starts: (E + 1,) positions in `order_N` where events begin, and its end.
    """

    event_N: NDArray[np.int64]
    order_N: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, event: int) -> NDArray[np.int64]:
        """Return the image rows of an event, first image first."""
        return self.order_N[self.starts[event] : self.starts[event + 1]]


def group_events(
    deployment_N: NDArray[np.int64],
    instant_N: NDArray[np.float64],
    *,
    sequence_N: NDArray[np.int64],
    frame_N: NDArray[np.int64],
    files: pa.Array,
    gap_seconds: float = GAP_SECONDS,
) -> Events:
    """Group images into events.

    Images of one deployment and sequence are one event. Others are ordered by instant, then frame number, then file
    name, and a new event begins where the gap is strictly larger than `gap_seconds`. An image without a time is an
    event.

    Args:
        deployment_N: number of the deployment of each image; negative numbers are deployments, too.
        instant_N: seconds of one clock per deployment; NaN where unknown.
        sequence_N: number of the source's sequence; -1 for none.
        frame_N: -1 for none.
        files: texts, the last criterion: images of a burst may share a second and have no frame number.
    """
    columns = {"deployment": deployment_N, "instant": instant_N, "frame": frame_N, "file": files}
    keys = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    # from_pandas makes NaN null, and nulls sort last.
    options = pc.SortOptions([(name, "ascending") for name in columns])
    order = pc.call_function("sort_indices", [keys], options).to_numpy().astype(np.int64)
    in_sequence = sequence_N[order] >= 0
    label = np.empty(len(order), np.int64)
    # One number per (deployment, sequence); those without a sequence are numbered behind.
    pairs = np.stack([deployment_N[order][in_sequence], sequence_N[order][in_sequence]], axis=1)
    names, label_of_pair = np.unique(pairs, axis=0, return_inverse=True)
    label[in_sequence] = label_of_pair.ravel()
    single = order[~in_sequence]
    with np.errstate(invalid="ignore"):
        # A comparison with NaN is false: an unknown time always breaks.
        joined = np.diff(instant_N[single]) <= gap_seconds
    joined &= np.diff(deployment_N[single]) == 0
    label[~in_sequence] = len(names) + np.cumsum(np.concatenate([[0], ~joined]))[: len(single)]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    # Numbered by their first image.
    rank = np.argsort(np.argsort(first))
    event = rank[inverse.ravel()]
    event_N = np.empty(len(order), np.int64)
    event_N[order] = event
    starts = np.concatenate([[0], np.cumsum(np.bincount(event, minlength=len(first)))]).astype(np.int64)
    return Events(event_N, order[np.argsort(event, kind="stable")], starts)
