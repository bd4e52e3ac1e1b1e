"""A whole clustering over any `Exchange`: ask for centroids, merge them, refine, and say how it went."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveate.federated.clustering import protocol
from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.distances import Floats
from foveate.federated.clustering.lloyd import unit
from foveate.federated.clustering.pool import Pool
from foveate.federated.clustering.settings import Settings, method
from foveate.federated.clustering.suspects import odd_sums, suspects
from foveate.federated.messages import Message
from foveate.federated.rounds import Exchange, TooFewSitesError
from foveate.federated.sites import stream
from foveate.settings.errors import UserError


@dataclass(frozen=True)
class Clustered:
    """What a clustering found.

    Attributes:
        centres: [K, D]. settings: as resolved. title: the method in words; 'one shot' only without refinement.
        clients: by site what it sent: centres, counts, kept, radius. server: the server step's report.
        excluded: by site why it was left out, with the question at which. suspects: by site what is odd about it.
        inertia: by site (points, summed squared distance) where sites were asked (`evaluate`).
    """

    centres: Floats
    settings: Settings
    clients: dict[int, dict[str, Any]]
    server: dict[str, Any]
    excluded: dict[int, str]
    suspects: dict[int, str]
    inertia: dict[int, tuple[int, float]]

    @property
    def title(self) -> str:
        return self.settings.title


def cluster(exchange: Exchange, settings: Settings, *, at_least: int = 1, evaluate: bool = False) -> Clustered:
    """Runs all rounds.

    Args:
        at_least: sites that must answer in every round.
        evaluate: also asks each site how well the centres fit, one more exchange of two numbers up.

    Raises:
        TooFewSitesError: fewer sites answered. TooFewGroupsError: fewer groups than clusters.
        UserError: a method that is not federated.
    """
    chosen = method(settings.method)
    if not chosen.federated:
        raise UserError(f"the method '{settings.method}' pools raw points; no site sends them")
    excluded: dict[int, str] = {}
    answers = _centroids(exchange, settings, at_least, excluded)
    pool, radii = pool_of(answers)
    odd = suspects(pool)
    if odd and settings.suspects == "exclude":
        trusted = pool.take(~np.isin(pool.client, list(odd)))
        _few_enough(odd, len(answers))
        pool, radii = trusted, {site: one for site, one in radii.items() if site not in odd}
        excluded |= {site: f"suspected: {reason}" for site, reason in odd.items()}
    rng = stream(settings.seed, round=0, site=-1, purpose="server")
    settings = _fewer(settings, pool)
    merged = chosen.merge(pool, settings, rng, radii)
    if len(merged.centres) < settings.clusters:
        _warn_few(len(merged.centres), settings.clusters)
    centres = unit(merged.centres) if settings.spherical else merged.centres
    for round in range(1, settings.refine_rounds + 1):
        sites = [site for site in answers if site not in excluded]
        points = points_of({site: answers[site] for site in sites}, settings)
        centres = _refine(exchange, settings, centres, round, sites, at_least, excluded, odd, points)
    inertia: dict[int, tuple[int, float]] = {}
    if evaluate:
        request = protocol.assign_request(centres, settings, settings.refine_rounds + 1)
        sites = [site for site in answers if site not in excluded]
        found = exchange.ask(dict.fromkeys(sites, request), protocol.ASSIGN_RULE, at_least=at_least)
        excluded |= _at(request, found.excluded)
        inertia = {site: (int(one.number("points")), one.number("inertia")) for site, one in found.answers.items()}
    clients = {site: {**answer.arrays, **answer.values} for site, answer in answers.items()}
    return Clustered(centres, settings, clients, merged.report, excluded, odd, inertia)


def _few_enough(odd: dict[int, str], sites: int) -> None:
    if len(odd) * 2 >= sites:
        raise UserError(f"{len(odd)} of {sites} sites are suspected: too many to leave out")


def _at(request: Message, reasons: dict[int, str]) -> dict[int, str]:
    return {site: f"{request.kind}, round {request.round}: {reason}" for site, reason in reasons.items()}


def _centroids(exchange: Exchange, settings: Settings, at_least: int, excluded: dict[int, str]) -> dict[int, Message]:
    """The first round; sites of another width than most are left out."""
    requests = {site: protocol.centroids_request(settings, site) for site in exchange.sites}
    found = exchange.ask(
        requests,
        protocol.centroids_rule(settings),
        at_least=at_least,
        check=lambda site, answer: protocol.check_centroids(settings, site, answer),
    )
    excluded |= _at(next(iter(requests.values())), found.excluded) if requests else {}
    answers = found.answers
    if not answers:
        raise TooFewSitesError("no site answered")
    widths = Counter(answer.array("centres").shape[1] for answer in answers.values())
    usual = widths.most_common(1)[0][0]
    for site in [site for site, answer in answers.items() if answer.array("centres").shape[1] != usual]:
        width = answers.pop(site).array("centres").shape[1]
        excluded[site] = f"its data have {width} features; those of most sites have {usual}"
    if len(answers) < at_least:
        raise TooFewSitesError(f"{len(answers)} sites have {usual} features; {at_least} are needed")
    return answers


def points_of(answers: dict[int, Message], settings: Settings) -> dict[int, float]:
    """By site how many points it says that it has; empty where none is asked, or doubted groups' are left out."""
    if settings.eliminate == "drop" or not protocol.sends(settings)["counts"]:
        return {}
    return {site: answer.number("points") for site, answer in answers.items()}


def pool_of(answers: dict[int, Message]) -> tuple[Pool, dict[int, float]]:
    """All centroids in one table, and the radius of each client that sent one."""
    centres = [answer.array("centres") for answer in answers.values()]
    sizes = [len(one) for one in centres]
    counted = all("counts" in answer.arrays for answer in answers.values())
    ones = [np.ones(size) for size in sizes]
    pool = Pool(
        centres=np.concatenate(centres),
        counts=np.concatenate([answer.array("counts") for answer in answers.values()] if counted else ones),
        kept=np.concatenate(
            [
                answer.arrays.get("kept", np.ones(size, dtype=bool))
                for answer, size in zip(answers.values(), sizes, strict=True)
            ]
        ),
        client=np.repeat(np.array(list(answers), dtype=np.int64), sizes),
        counted=counted,
    )
    radii = {site: float(one.array("radius")[0]) for site, one in answers.items() if "radius" in one.arrays}
    return pool, radii


def _fewer(settings: Settings, pool: Pool) -> Settings:
    """Settings with as many clusters as there are different centroids, where fewer may be returned."""
    if settings.on_few_groups != "return" or pool.distinct() >= settings.clusters:
        return settings
    _warn_few(pool.distinct(), settings.clusters)
    return replace(settings, clusters=pool.distinct())


def _warn_few(found: int, wanted: int) -> None:
    warnings.warn(f"only {found} of {wanted} clusters were found", UserWarning, stacklevel=3)


def _refine(
    exchange: Exchange,
    settings: Settings,
    centres_KD: Floats,
    round: int,
    sites: list[int],
    at_least: int,
    excluded: dict[int, str],
    odd: dict[int, str],
    points: dict[int, float],
) -> Floats:
    """One federated step of Lloyd; an empty centre stays where it is.

    Args:
        odd: what is odd about sites; more is added. points: by site how many it said before (`points_of`).
    """
    request = protocol.lloyd_request(centres_KD, settings, round)
    found = exchange.ask(
        dict.fromkeys(sites, request),
        protocol.lloyd_rule(centres_KD),
        at_least=at_least,
        check=lambda site, answer: protocol.check_lloyd(settings, centres_KD, points.get(site), answer),
    )
    excluded |= _at(request, found.excluded)
    answers = found.answers
    strange = odd_sums(centres_KD, answers, sized=bool(points))
    odd |= {site: reason for site, reason in strange.items() if site not in odd}
    if strange and settings.suspects == "exclude":
        _few_enough(strange, len(answers))
        excluded |= {site: f"suspected: {reason}" for site, reason in strange.items()}
        answers = {site: answer for site, answer in answers.items() if site not in strange}
    total_KD = np.zeros_like(centres_KD)
    count_K = np.zeros(len(centres_KD))
    for answer in answers.values():
        total_KD += answer.array("sums")
        count_K += answer.array("counts")
    centres = centres_KD.copy()
    centres[count_K > 0] = total_KD[count_K > 0] / count_K[count_K > 0, None]
    return unit(centres) if settings.spherical else centres


def pooled(points_ND: Floats, settings: Settings) -> Merged:
    """The centres of a method that is not federated, from all points in one place."""
    everything = Pool(
        points_ND,
        np.ones(len(points_ND)),
        np.ones(len(points_ND), dtype=bool),
        np.zeros(len(points_ND), dtype=np.int64),
    )
    rng = stream(settings.seed, round=0, site=-1, purpose="server")
    return method(settings.method).merge(everything, settings, rng, {})
