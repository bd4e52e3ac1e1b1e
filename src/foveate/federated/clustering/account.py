"""Privacy account of a clustering: the guarantee of each kind of message, and their sum."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering import protocol
from foveate.federated.clustering.noise import request_cost
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.privacy import DELTA, cost_row
from foveate.federated.results import PrivacyCost

UNIT = "one point of any client"


def account(options: ClusteringOptions, *, evaluated: bool, delta: float = DELTA) -> list[PrivacyCost]:
    """List for each kind of message about the points the unit that noise hides and how well, or none.

    The unit is one point of a client, replaced by any other; the number of points and of features is sent as it is. A
    client that was left out answered fewer messages, so that the sum holds for it, too.

    Args:
        evaluated: clients were also asked how well the centers fit.
    """
    # The cost of a request does not depend on its centers, so any will do.
    centers = np.zeros((1, 1))
    sent = [
        ("centroids", protocol.centroids_request(options, 0), 1),
        ("sums and counts", protocol.lloyd_request(centers, options, 1), options.refine_rounds),
        ("fit", protocol.assign_request(centers, options, 1), int(evaluated)),
    ]
    rows, total = [], 0.0
    for name, request, messages in sent:
        if messages:
            rho = request_cost(request) * messages
            total += rho
            rows.append(cost_row(name, UNIT, rho or None, messages, delta))
    if total:
        rows.append(cost_row("together", UNIT, total, sum(row.messages for row in rows), delta))
    return rows
