"""A whole clustering over any `Transport`: ask for centroids, merge them, refine, and say how it went."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.federated.clients import stream
from foveate.federated.clustering import protocol
from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.distances import Floats
from foveate.federated.clustering.lloyd import unit
from foveate.federated.clustering.options import Settings, method
from foveate.federated.clustering.pool import Pool
from foveate.federated.clustering.suspects import odd_sums, suspects
from foveate.federated.messages import Message
from foveate.federated.rounds import TooFewClientsError, Transport


@dataclass(frozen=True)
class Clustered:
    """What a clustering found.

    Attributes:
        centers: [K, D]. settings: as resolved. title: the method in words; 'one shot' only without refinement.
        client_reports: by client what it sent: centers, counts, kept, radius. server: the server step's report.
        excluded: by client why it was left out, with the question at which. suspects: by client what is odd about it.
        inertia: by client (points, summed squared distance) where clients were asked (`evaluate`).
    """

    centers: Floats
    settings: Settings
    client_reports: dict[int, dict[str, Any]]
    server: dict[str, Any]
    excluded: dict[int, str]
    suspects: dict[int, str]
    inertia: dict[int, tuple[int, float]]

    @property
    def title(self) -> str:
        return self.settings.title


def cluster(exchange: Transport, settings: Settings, *, at_least: int = 1, evaluate: bool = False) -> Clustered:
    """Runs all rounds.

    Args:
        at_least: clients that must answer in every round.
        evaluate: also asks each client how well the centers fit, one more exchange of two numbers up.

    Raises:
        TooFewClientsError: fewer clients answered. TooFewGroupsError: fewer groups than clusters.
        UserError: a method that is not federated.
    """
    chosen = method(settings.method)
    if not chosen.federated:
        raise UserError(f"the method '{settings.method}' pools raw points; no client sends them")
    excluded: dict[int, str] = {}
    answers = _centroids(exchange, settings, at_least, excluded)
    pool, radii = pool_of(answers)
    odd = suspects(pool)
    if odd and settings.suspects == "exclude":
        trusted = pool.take(~np.isin(pool.client, list(odd)))
        _few_enough(odd, len(answers))
        pool, radii = trusted, {client: one for client, one in radii.items() if client not in odd}
        excluded |= {client: f"suspected: {reason}" for client, reason in odd.items()}
    rng = stream(settings.seed, round=0, client=-1, purpose="server")
    settings = _fewer(settings, pool)
    merged = chosen.merge(pool, settings, rng, radii)
    if len(merged.centers) < settings.clusters:
        _warn_few(len(merged.centers), settings.clusters)
    centers = unit(merged.centers) if settings.spherical else merged.centers
    for round in range(1, settings.refine_rounds + 1):
        clients = [client for client in answers if client not in excluded]
        points = points_of({client: answers[client] for client in clients}, settings)
        centers = _refine(exchange, settings, centers, round, clients, at_least, excluded, odd, points)
    inertia: dict[int, tuple[int, float]] = {}
    if evaluate:
        request = protocol.assign_request(centers, settings, settings.refine_rounds + 1)
        clients = [client for client in answers if client not in excluded]
        found = exchange.ask(dict.fromkeys(clients, request), protocol.ASSIGN_RULE, at_least=at_least)
        excluded |= _at(request, found.excluded)
        inertia = {client: (int(one.number("points")), one.number("inertia")) for client, one in found.answers.items()}
    reports = {client: {**answer.arrays, **answer.values} for client, answer in answers.items()}
    return Clustered(centers, settings, reports, merged.report, excluded, odd, inertia)


def _few_enough(odd: dict[int, str], clients: int) -> None:
    if len(odd) * 2 >= clients:
        raise UserError(f"{len(odd)} of {clients} clients are suspected: too many to leave out")


def _at(request: Message, reasons: dict[int, str]) -> dict[int, str]:
    return {client: f"{request.kind}, round {request.round}: {reason}" for client, reason in reasons.items()}


def _centroids(exchange: Transport, settings: Settings, at_least: int, excluded: dict[int, str]) -> dict[int, Message]:
    """The first round; clients of another width than most are left out."""
    requests = {client: protocol.centroids_request(settings, client) for client in exchange.clients}
    found = exchange.ask(
        requests,
        protocol.centroids_rule(settings),
        at_least=at_least,
        check=lambda client, answer: protocol.check_centroids(settings, client, answer),
    )
    excluded |= _at(next(iter(requests.values())), found.excluded) if requests else {}
    answers = found.answers
    if not answers:
        raise TooFewClientsError("no client answered")
    widths = Counter(answer.array("centers").shape[1] for answer in answers.values())
    usual = widths.most_common(1)[0][0]
    for client in [client for client, answer in answers.items() if answer.array("centers").shape[1] != usual]:
        width = answers.pop(client).array("centers").shape[1]
        excluded[client] = f"its data have {width} features; those of most clients have {usual}"
    if len(answers) < at_least:
        raise TooFewClientsError(f"{len(answers)} clients have {usual} features; {at_least} are needed")
    return answers


def points_of(answers: dict[int, Message], settings: Settings) -> dict[int, float]:
    """By client how many points it says that it has; empty where none is asked, or doubted groups' are left out."""
    if settings.eliminate == "drop" or not protocol.sends(settings)["counts"]:
        return {}
    return {client: answer.number("points") for client, answer in answers.items()}


def pool_of(answers: dict[int, Message]) -> tuple[Pool, dict[int, float]]:
    """All centroids in one table, and the radius of each client that sent one."""
    centers = [answer.array("centers") for answer in answers.values()]
    sizes = [len(one) for one in centers]
    counted = all("counts" in answer.arrays for answer in answers.values())
    ones = [np.ones(size) for size in sizes]
    pool = Pool(
        centers=np.concatenate(centers),
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
    radii = {client: float(one.array("radius")[0]) for client, one in answers.items() if "radius" in one.arrays}
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
    exchange: Transport,
    settings: Settings,
    centers_KD: Floats,
    round: int,
    clients: list[int],
    at_least: int,
    excluded: dict[int, str],
    odd: dict[int, str],
    points: dict[int, float],
) -> Floats:
    """One federated step of Lloyd; an empty center stays where it is.

    Args:
        odd: what is odd about clients; more is added. points: by client how many it said before (`points_of`).
    """
    request = protocol.lloyd_request(centers_KD, settings, round)
    found = exchange.ask(
        dict.fromkeys(clients, request),
        protocol.lloyd_rule(centers_KD),
        at_least=at_least,
        check=lambda client, answer: protocol.check_lloyd(settings, centers_KD, points.get(client), answer),
    )
    excluded |= _at(request, found.excluded)
    answers = found.answers
    strange = odd_sums(centers_KD, answers, sized=bool(points))
    odd |= {client: reason for client, reason in strange.items() if client not in odd}
    if strange and settings.suspects == "exclude":
        _few_enough(strange, len(answers))
        excluded |= {client: f"suspected: {reason}" for client, reason in strange.items()}
        answers = {client: answer for client, answer in answers.items() if client not in strange}
    total_KD = np.zeros_like(centers_KD)
    count_K = np.zeros(len(centers_KD))
    for answer in answers.values():
        total_KD += answer.array("sums")
        count_K += answer.array("counts")
    centers = centers_KD.copy()
    centers[count_K > 0] = total_KD[count_K > 0] / count_K[count_K > 0, None]
    return unit(centers) if settings.spherical else centers


def pooled(points_ND: Floats, settings: Settings) -> Merged:
    """The centers of a method that is not federated, from all points in one place."""
    everything = Pool(
        points_ND,
        np.ones(len(points_ND)),
        np.ones(len(points_ND), dtype=bool),
        np.zeros(len(points_ND), dtype=np.int64),
    )
    rng = stream(settings.seed, round=0, client=-1, purpose="server")
    return method(settings.method).merge(everything, settings, rng, {})
