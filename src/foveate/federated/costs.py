"""Noise of a client's answers and what it costs: what is charged to the account is what is added.

| kind | noise | rho |
|---|---|---|
| `query.centroids`, `query.lloyd`, `query.assign` | the request's own | see `clustering.noise` |
| `query.box`, `query.field`, `query.surrogate`, `query.embedded` | `noise_multiplier` z | 1 / (2 z^2) |
| `train`, `train.prototypes` | the same, or half of a larger `update_noise` | 1 / (2 z^2) |
| `query.points`, `query.size`, `query.moments` | none | counted, not charged |

A handler takes the multiplier z of its noise from here: sigma = z D, where D is the most that one row, replaced by any
other, can change the answer (Euclidean norm). An answer of several releases shares its cost among them: each of S has
noise of z sqrt(S) D. A handler may add more, where the server's options ask for it: then the charge is an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.federated.clustering.noise import request_cost
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.deep.options import EMBEDDED
from foveate.federated.deep.options import TRAIN as FEATURES_TRAIN
from foveate.federated.embedding import options as maps
from foveate.federated.limits import EMBED, FEATURES, ClientLimits
from foveate.federated.messages import Message
from foveate.federated.privacy import gaussian_cost
from foveate.federated.scaling import MOMENTS

TRAINED = (maps.TRAIN, FEATURES_TRAIN)
"""Kinds whose answers are weights."""
PROTECTED = (maps.BOX, maps.FIELD, maps.SURROGATE, EMBEDDED, *TRAINED)
"""Kinds whose answers get the client's own noise."""

MEASURED_EPSILON = 9.2
"""Largest epsilon of a run at which what noise does to maps and encoders was measured."""
MEASURED = {
    EMBED: "measured on digits: up to epsilon 9.2 a map is little better than one without any training",
    FEATURES: "measured on digits: up to epsilon 9.2 groups are worse than by an encoder without any training",
}
"""What noise leaves of a job (docs/methods/federated-privacy.md), for its owner before data are spent on it."""


@dataclass(frozen=True)
class Cost:
    """Noise of one answer and its cost.

    Attributes:
        noise_multiplier: z; the noise has standard deviation z D. 0 = none.
        rho: cost of the answer (zero-concentrated differential privacy); 0 = counted instead of charged.
    """

    noise_multiplier: float = 0.0
    rho: float = 0.0


def answer_cost(request: Message, limits: ClientLimits | None) -> Cost:
    """Return the noise that the answer to a request gets, and its cost.

    Args:
        limits: the client's own; None = in one process, where only the server's options ask for noise.

    Raises:
        MessageError: the request has no options where its kind needs some.
    """
    if request.kind in HANDLERS:
        # Sums over all points have no noise, whatever else the request says.
        rho = 0.0 if request.kind == MOMENTS else request_cost(request)
        # The multiplier of one release of the same cost, for whoever lists noises of several kinds.
        return Cost((2 * rho) ** -0.5 if rho else 0.0, rho)
    if request.kind not in PROTECTED:
        return Cost()
    own = 0.0 if limits is None else limits.noise_multiplier
    noise = own
    if request.kind == maps.TRAIN:
        options = maps.request_options(request)
        # The server's unit is the clip C; a replaced row turns an update of norm C into any other, which is 2 C away.
        noise = max(own, options.update_noise / 2 if options.hides_training else 0.0)
    # Whoever sets 0 trusts the server: then its noise is its own affair, and the answers are counted.
    return Cost(noise, gaussian_cost(1.0, noise) if own else 0.0)
