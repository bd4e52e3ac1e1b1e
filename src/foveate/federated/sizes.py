"""How large the data of clients elsewhere are, as they say, and which of them fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from foveate.core.errors import UserError
from foveate.federated.messages import Message
from foveate.federated.rounds import Exchange, TooFewClientsError


@dataclass(frozen=True)
class Sizes:
    """What clients said.

    Attributes:
        features: of most clients' points. points: by client of these, how many there are. others: by client why its data do
            not fit.
    """

    features: int
    points: dict[int, int]
    others: dict[int, str]


def sizes_of(exchange: Exchange, answers: Mapping[int, Message], *, at_least: int = 1) -> Sizes:
    """Compares answers with the numbers `points` and `features`.

    Raises:
        UserError: no number of features that most clients have.
        TooFewClientsError: fewer than `at_least` clients have as many features as most.
    """
    widths = {client: int(answer.number("features")) for client, answer in answers.items()}
    features, most = Counter(widths.values()).most_common(1)[0]
    if 2 * most <= len(widths) and len(widths) > 1:
        listed = ", ".join(f"{exchange.name(client)}: {width}" for client, width in widths.items())
        raise UserError(f"the clients' points have different numbers of features ({listed:.300})")
    others = {
        client: f"its data have {width} features; those of most clients have {features}"
        for client, width in widths.items()
        if width != features
    }
    points = {client: int(answer.number("points")) for client, answer in answers.items() if client not in others}
    if len(points) < at_least:
        raise TooFewClientsError(f"{len(points)} clients have {features} features; {at_least} are needed")
    return Sizes(features, points, others)
