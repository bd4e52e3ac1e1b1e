"""A server that departs from the protocol: its attacks on a client, by name.

An attack sees a `Victim` only: what it answers, and that its owner replaces its table now and then. It returns a
`Reading`, which the caller compares with the rows. Every attack works against a client without limits.
"""

from __future__ import annotations

from attacked_client import (
    ASSIGN,
    BOX,
    CENTROIDS,
    EMBEDDED,
    FIELD,
    LLOYD,
    MOMENTS,
    POINTS,
    SIZE,
    SURROGATE,
    TRAIN_FEATURES,
    TRAIN_MAP,
    Attack,
)
from clustering_attacks import (
    assign_question,
    average_noise,
    centroids_question,
    collude,
    compare_near_copies,
    count_far_points,
    lloyd_question,
    read_counts,
    read_ordinary_runs,
    read_single_rows,
    repeat_on_near_copy,
    replay,
    scan_fit,
    scan_half_spaces,
    scan_winsorized_moments,
    search_by_scale,
    subtract_moments,
    subtract_moments_of_near_copies,
)
from network_attacks import (
    invert_features_training,
    invert_map_training,
    read_boxes,
    read_field,
    read_single_embeddings,
    scan_thresholds,
    search_by_overflow,
)

from foveate.federated import node

STANDARD = {"scale": "standard"}
ATTACKS: dict[str, Attack] = {
    # Clusterings: as the issue has them.
    "a cluster per row": Attack((CENTROIDS,), read_single_rows, rows=170),
    "differences of twenty ordinary runs": Attack((CENTROIDS,), read_ordinary_runs, rows=5),
    "how well centers fit": Attack((ASSIGN,), scan_fit, rows=15),
    "sums with two winsorize values": Attack((MOMENTS,), scan_winsorized_moments, cells=60, own=STANDARD),
    "a failure that a scale decides, one shot": Attack(
        (CENTROIDS,), search_by_scale(centroids_question), cells=6, own=STANDARD
    ),
    "a failure that a scale decides, a round": Attack((LLOYD,), search_by_scale(lloyd_question), cells=6, own=STANDARD),
    "a failure that a scale decides, the fit": Attack(
        (ASSIGN,), search_by_scale(assign_question), cells=6, own=STANDARD
    ),
    "sums with winsorize and without, by two jobs": Attack(
        (MOMENTS,), subtract_moments, cells=1, outlier=1e4, own=STANDARD
    ),
    # Of our own.
    "sums for a scale of near copies": Attack((MOMENTS,), subtract_moments_of_near_copies, rows=1, own=STANDARD),
    "a plane that moves by small steps": Attack((LLOYD,), scan_half_spaces, rows=100),
    "runs in stretched scales": Attack(
        (CENTROIDS,), lambda victim: read_ordinary_runs(victim, scaled=True), rows=3, own=STANDARD
    ),
    "exact counts of far points": Attack((ASSIGN,), count_far_points, cells=40),
    "exact counts of near copies": Attack((POINTS, SIZE, node.HELLO), read_counts),
    "the same question once a row has gone": Attack((LLOYD,), repeat_on_near_copy, rows=1),
    "replays under other rounds and values": Attack((LLOYD,), replay, rows=4),
    "two colluding clients": Attack((LLOYD,), collude, rows=5),
    "averages of noise until the budget is spent": Attack((LLOYD,), average_noise(15.0, 12), within=1e-3),
    "noise that is none": Attack((LLOYD,), average_noise(1e-9, 1), rows=2, within=1e-3),
    **{
        f"near copies: {name}": Attack((LLOYD,), lambda victim, name=name: compare_near_copies(victim, name), rows=1)
        for name in (
            "one row less",
            "one row more",
            "another row",
            "shuffled",
            "columns reversed",
            "a unit changed",
            "one column more",
            "rounded",
        )
    },
    "near copies: a few rows less every day": Attack(
        (LLOYD,), lambda victim: compare_near_copies(victim, *(f"day {day}" for day in range(1, 9))), rows=3
    ),
    # Maps.
    "a field of a stretched map": Attack((FIELD,), read_field, rows=14, step=12),
    "a box of a map that is constant but for a row": Attack((BOX,), read_boxes(BOX), rows=10),
    "a surrogate's box of such a map": Attack((SURROGATE,), read_boxes(SURROGATE, 2), rows=2, step=3),
    "gradients of a map's units that single out rows": Attack((TRAIN_MAP,), invert_map_training, rows=150),
    "a box that overflows beyond a threshold": Attack((BOX,), search_by_overflow(BOX), cells=2),
    "a field that does": Attack((FIELD,), search_by_overflow(FIELD), cells=2),
    "a map's training that does": Attack((TRAIN_MAP,), search_by_overflow(TRAIN_MAP), cells=2, step=3),
    # Encoders.
    "gradients of an encoder's units that single out rows": Attack(
        (TRAIN_FEATURES,), invert_features_training, rows=150, within=1e-3
    ),
    "a cluster of embeddings per row": Attack((EMBEDDED,), read_single_embeddings, rows=170, within=1e-3),
    "thresholds in the means of embeddings": Attack((EMBEDDED,), scan_thresholds, cells=400, within=1e-3),
    "embeddings that overflow beyond a threshold": Attack((EMBEDDED,), search_by_overflow(EMBEDDED), cells=2),
    "an encoder's training that does": Attack((TRAIN_FEATURES,), search_by_overflow(TRAIN_FEATURES), cells=2),
}
