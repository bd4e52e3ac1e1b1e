"""Privacy account of a FedNE run: the guarantee of each kind of message."""

from __future__ import annotations

import math

from foveate.federated.embedding.grids import max_change
from foveate.federated.embedding.options import FEDNE, EmbeddingOptions, first_surrogate_round, is_refreshed
from foveate.federated.embedding.state import MapState
from foveate.federated.privacy import DELTA, cost_row, gaussian_cost
from foveate.federated.results import PrivacyCost


def account(options: EmbeddingOptions, state: MapState, *, delta: float = DELTA) -> list[PrivacyCost]:
    """List for each kind of message that reveals points the unit that noise hides and how well, or none.

    encoder: the unit is a whole client. All that a client has may be replaced; the change it sends has at most the norm
    C, so its answer moves by at most 2 C; the noise is `update_noise` C. Counted over the rounds in which it trained.

    field, surrogate: the unit is one point of a client. One of n points moves each of G values by at most R / n, all
    together by sqrt(G) R / n, where R is log 2 (kernel "shifted") or 9.21 ("cauchy"), and n is without dropped points
    (`max_change`); the client with the largest change counts. It holds for the encoder and the box as they were sent;
    these are accounted for separately, and the box of a map is sent without any noise.
    """
    # A server that was stopped within a round asks it again, and clients answer with fresh noise: two noisy answers to
    # one question. So every restart counts as one more message of each kind.
    rounds = state.resumed + max(
        (sum(client in entry["clients"] for entry in state.history) for client in state.sizes), default=0
    )
    # 2 C: replacing a client may turn a change of norm C into the opposite one.
    rho = rounds * gaussian_cost(2.0, options.update_noise) if options.update_noise else None
    rows = [cost_row("encoder", "a whole client", rho, rounds, delta)]
    # The baselines exchange nothing but the encoder.
    if options.method != FEDNE:
        return rows
    start = first_surrogate_round(options.rounds, options.surrogate_start)
    refreshed = sum(is_refreshed(entry["round"], start=start, refresh=options.refresh) for entry in state.history)
    # Without a request for fields, or with a single client, no field reaches anyone: there is nothing to account for.
    if not refreshed or len(state.sizes) < 2:
        return rows
    # A restart requests them again, like the encoder above.
    refreshed += state.resumed
    name = "field" if options.surrogate == "grid" else "surrogate"
    rho = None
    if options.target_noise:
        # The largest grid that the options allow, because the number of values of each round is not recorded.
        queries = options.max_axis_points**2 if options.dimensions == 2 else options.max_points
        changes = (max_change(size, drop=options.drop, kernel=options.kernel) for size in state.sizes.values())
        rho = refreshed * gaussian_cost(math.sqrt(queries) * max(changes), options.target_noise)
    rows.append(cost_row(name, "one point of any client", rho, refreshed, delta))
    # Boxes go without noise whatever the options, so the account must name them.
    if options.grid == "union":
        rows.append(cost_row("box", "nothing", None, refreshed, delta))
    return rows
