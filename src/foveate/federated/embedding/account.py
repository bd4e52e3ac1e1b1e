"""What the noise of a run hides, and how well: one line for each thing that is sent."""

from __future__ import annotations

import math
from typing import Any

from foveate.federated.embedding.grids import most_moved
from foveate.federated.embedding.options import FEDNE, EmbeddingOptions, first_surrogate_round, is_refreshed
from foveate.federated.embedding.server import State
from foveate.federated.privacy import DELTA, epsilon, gaussian_cost


def account(options: EmbeddingOptions, state: State, *, delta: float = DELTA) -> list[dict[str, Any]]:
    """For each kind of message that says something of the points: what is hidden, by how much, or that nothing is.

    encoder: the unit is a whole client. All that a client has may be replaced; the change it sends has at most the length
    C, so its answer moves by at most 2 C; noise is `update_noise` C. Counted over the rounds in which it trained.

    field, surrogate: the unit is one point of a client. One of n points moves each of G values by at most R / n, all
    together by sqrt(G) R / n, where R is log 2 (kernel "shifted") or 9.21 ("cauchy"), and n is without dropped points
    (`most_moved`); taken where it is most. It holds for the encoder and the box as they were sent; these are accounted
    for apart, and a box of a map is sent without any noise.

    A server that was stopped within a round asks it again, and clients answer with other noise: every time that a run
    went on counts as one message more of each kind.
    """
    rounds = state.again + max(
        (sum(client in entry["clients"] for entry in state.history) for client in state.sizes), default=0
    )
    lines = [_line("encoder", "a whole client", None, rounds, delta)]
    if options.update_noise:
        rho = rounds * gaussian_cost(2.0, options.update_noise)
        lines = [_line("encoder", "a whole client", rho, rounds, delta)]
    if options.method != FEDNE:
        return lines
    start = first_surrogate_round(options.rounds, options.surrogate_start)
    refreshed = sum(is_refreshed(entry["round"], start=start, refresh=options.refresh) for entry in state.history)
    if not refreshed or len(state.sizes) < 2:
        return lines
    refreshed += state.again
    name = "field" if options.surrogate == "grid" else "surrogate"
    rho_of_values = None
    if options.target_noise:
        queries = options.grid_most**2 if options.dimensions == 2 else options.max_points
        moved = (most_moved(size, drop=options.drop, kernel=options.kernel) for size in state.sizes.values())
        sensitivity = math.sqrt(queries) * max(moved)
        rho_of_values = refreshed * gaussian_cost(sensitivity, options.target_noise)
    lines.append(_line(name, "one point of any client", rho_of_values, refreshed, delta))
    if options.grid == "union":
        lines.append(_line("box", "nothing", None, refreshed, delta))
    return lines


def _line(what: str, unit: str, rho: float | None, rounds: int, delta: float) -> dict[str, Any]:
    hidden = {"rho": None, "epsilon": None} if rho is None else {"rho": rho, "epsilon": epsilon(rho, delta=delta)}
    return {"what": what, "unit": unit if rho is not None else "nothing", "messages": rounds, "delta": delta, **hidden}
