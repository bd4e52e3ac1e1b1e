"""How large the data of sites elsewhere are, as they say, and which of them fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from foveate.federated.messages import Message
from foveate.federated.rounds import Exchange, TooFewSitesError
from foveate.settings.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """What sites said.

    Attributes:
        features: of most sites' points. points: by site of these, how many there are. others: by site why its data do
            not fit.
    """

    features: int
    points: dict[int, int]
    others: dict[int, str]


def sizes_of(exchange: Exchange, answers: Mapping[int, Message], *, at_least: int = 1) -> Sizes:
    """Compares answers with the numbers `points` and `features`.

    Raises:
        UserError: no number of features that most sites have.
        TooFewSitesError: fewer than `at_least` sites have as many features as most.
    """
    widths = {site: int(answer.number("features")) for site, answer in answers.items()}
    features, most = Counter(widths.values()).most_common(1)[0]
    if 2 * most <= len(widths) and len(widths) > 1:
        listed = ", ".join(f"{exchange.name(site)}: {width}" for site, width in widths.items())
        raise UserError(f"the sites' points have different numbers of features ({listed:.300})")
    others = {
        site: f"its data have {width} features; those of most sites have {features}"
        for site, width in widths.items()
        if width != features
    }
    points = {site: int(answer.number("points")) for site, answer in answers.items() if site not in others}
    if len(points) < at_least:
        raise TooFewSitesError(f"{len(points)} sites have {features} features; {at_least} are needed")
    return Sizes(features, points, others)
