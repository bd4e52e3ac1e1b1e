"""Federated clustering over any `Transport`: request centroids, merge them, refine, report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from foveate.core.errors import UserError
from foveate.federated.anomaly import OTHER_UNIT, note_suspect, warn_of_suspects
from foveate.federated.clustering import protocol
from foveate.federated.clustering.distances import Floats
from foveate.federated.clustering.grouping import CentroidPool
from foveate.federated.clustering.lloyd import unit
from foveate.federated.clustering.methods import Merged, describe_method, load_method
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.clustering.suspects import (
    MAX_SCALE,
    find_scales,
    find_suspects,
    find_suspicious_sums,
    find_unit_errors,
    find_wide_groups,
)
from foveate.federated.messages import Message
from foveate.federated.rounds import TooFewClientsError, Transport, find_other_widths, stream
from foveate.federated.scaling import Scaling, ask_scaling
from foveate.federated.secure_sums import refuse_individual


@dataclass(frozen=True)
class Clustered:
    """Result of a clustering.

    Attributes:
        centers: [K, D].
        options: as resolved.
        client_reports: the answer of each client: centers, counts, trusted, radius.
        server: report of the server step.
        excluded: for each excluded client the reason and the request at which it was left out.
        suspects: for each suspicious client the anomaly.
        inertia: by client (points, summed squared distance) where clients were asked (`evaluate`).
        scaling: common scale in which `centers` and distances are; None where points are taken as they are.
    """

    centers: Floats
    options: ClusteringOptions
    client_reports: dict[int, dict[str, Any]]
    server: dict[str, Any]
    excluded: dict[int, str]
    suspects: dict[int, str]
    inertia: dict[int, tuple[int, float]]
    scaling: Scaling | None = None

    def prepare(self, points_ND: ArrayLike) -> Floats:
        """Points as they are compared with the centers: in the common scale, and of length 1 if spherical.

        Raises:
            UserError: data that are no points, or a row of zeros without a direction.
        """
        points = protocol.as_points(points_ND)
        scaled = points if self.scaling is None else self.scaling.apply(points)
        return protocol.unit_rows(scaled) if self.options.spherical else scaled

    @property
    def original_centers(self) -> Floats:
        """Centers in the units of the data, [K, D]."""
        return self.centers if self.scaling is None else self.scaling.undo(self.centers)

    @property
    def title(self) -> str:
        return describe_method(self.options)

    @property
    def in_other_units(self) -> dict[int, str]:
        """Why clients are left out whose columns are certainly in another unit."""
        return {client: reason for client, reason in self.excluded.items() if reason.startswith(OTHER_UNIT)}

    def warnings(self, name: Callable[[int], str], clients: int, *, remedy: str, keep: str) -> list[str]:
        """Sentences about clients in another unit, which were left out, and about anomalous ones in the result.

        Args:
            remedy: how to leave an anomalous client out. keep: how to keep one that was left out.
        """
        included = {client: reason for client, reason in self.suspects.items() if client not in self.excluded}
        notes = [note_suspect(name(client), reason) for client, reason in included.items()]
        left_out = [
            f"{name(client)} was left out: {reason}; correct its unit and run again; {keep}"
            for client, reason in self.in_other_units.items()
        ]
        return left_out + warn_of_suspects(notes, clients, remedy=remedy)


def cluster(
    transport: Transport, options: ClusteringOptions, *, min_clients: int = 1, evaluate: bool = False
) -> Clustered:
    """Run all rounds of a clustering.

    Args:
        min_clients: clients that must answer in every round.
        evaluate: also ask each client how well the centers fit, one more round with two numbers up; a client that
            does not answer it has no fit.

    Raises:
        TooFewClientsError: fewer clients answered.
        TooFewGroupsError: fewer groups than clusters.
        UserError: a method that is not federated.
    """
    method = load_method(options.method)
    if not method.federated:
        raise UserError(f"the method '{options.method}' pools raw points; no client sends them")
    if transport.is_secure:
        refuse_individual(suspects=options.suspects)
    excluded: dict[int, str] = {}
    scaling = None
    if options.scale == "standard":
        scaling = ask_scaling(
            transport,
            min_count=options.min_count,
            winsorize=options.winsorize,
            min_clients=min_clients,
            excluded=excluded,
        )
    answers = _ask_centroids(transport, options, min_clients, excluded, scaling)
    pool, radii = make_pool(answers)
    # This runs before the server step: once a poisoned centroid is merged, it cannot be recognized.
    suspects = _check_scales(transport, answers, options, excluded)
    if any(client in excluded for client in answers):
        answers = {client: answer for client, answer in answers.items() if client not in excluded}
        if len(answers) < min_clients:
            raise TooFewClientsError(f"{len(answers)} clients have usable magnitudes; {min_clients} are needed")
        pool, radii = make_pool(answers)
    for client, reason in find_suspects(pool).items():
        suspects[client] = f"{suspects[client]}; {reason}" if client in suspects else reason
    if suspects and options.suspects == "exclude":
        _check_majority(suspects, len(answers))
        pool = pool.take(~np.isin(pool.client, list(suspects)))
        radii = {client: radius for client, radius in radii.items() if client not in suspects}
        excluded |= {client: f"suspected: {reason}" for client, reason in suspects.items()}
    # The server's random numbers are a stream of its own: they do not depend on how many clients there are.
    rng = stream(options.seed, round=0, client=-1, purpose="server")
    options = _reduce_clusters(options, pool)
    merged = method.merge(pool, options, rng, radii)
    if len(merged.centers) < options.clusters:
        _warn_few(len(merged.centers), options.clusters)
    centers = unit(merged.centers) if options.spherical else merged.centers
    for round in range(1, options.refine_rounds + 1):
        clients = [client for client in answers if client not in excluded]
        points = count_points({client: answers[client] for client in clients}, options)
        centers = _refine(transport, options, centers, round, clients, min_clients, excluded, suspects, points, scaling)
    inertia: dict[int, tuple[int, float]] = {}
    if evaluate:
        request = _scaled(protocol.assign_request(centers, options, options.refine_rounds + 1), scaling)
        clients = [client for client in answers if client not in excluded]
        # The centers are found: clients that do not say how well these fit do not take them back.
        result = transport.ask(dict.fromkeys(clients, request), protocol.ASSIGN_RULE, min_clients=0)
        excluded |= _name_request(request, result.excluded)
        inertia = {
            client: (int(answer.number("points")), answer.number("inertia"))
            for client, answer in result.answers.items()
        }
    reports = {client: {**answer.arrays, **answer.values} for client, answer in answers.items()}
    return Clustered(centers, options, reports, merged.report, excluded, suspects, inertia, scaling)


def _scaled(request: Message, scaling: Scaling | None) -> Message:
    return request if scaling is None else scaling.add_to(request)


def _check_scales(
    transport: Transport, answers: dict[int, Message], options: ClusteringOptions, excluded: dict[int, str]
) -> dict[int, str]:
    """Reasons of clients with columns of another magnitude or absurdly wide groups.

    Clients whose magnitudes no unit explains are left out, and with suspects "auto" those that are certainly in
    another unit.

    Raises:
        UserError: a client is to be left out, and no majority of clients shows which one is wrong.
    """
    # Directions have no unit.
    scales = {} if options.spherical else find_scales(answers)
    absurd = {client: reason for client, (ratio, reason) in scales.items() if ratio >= MAX_SCALE}
    if absurd:
        if 2 * len(absurd) >= len(answers):
            listed = "; ".join(f"{transport.name(client)}: {reason}" for client, reason in absurd.items())
            raise UserError(f"columns: the clients' magnitudes are too far apart to be clustered together ({listed})")
        excluded |= {client: f"absurd: {reason}" for client, reason in absurd.items()}
    usual = {client: answer for client, answer in answers.items() if client not in absurd}
    reasons = {client: reason for client, (_, reason) in scales.items() if client not in absurd}
    # The threshold was measured with centroids without noise, in the units of the data.
    if options.suspects == "auto" and not options.spherical and not options.noise:
        errors = find_unit_errors(usual)
        if errors and 2 * len(errors) >= len(usual):
            listed = "; ".join(f"{transport.name(client)}: {reason}" for client, reason in errors.items())
            raise UserError(
                f"columns: another unit ({listed}), and of {len(usual)} clients nothing says which is wrong: "
                "correct it, or set suspects=report to cluster them as they are"
            )
        excluded |= {client: f"{OTHER_UNIT}{reason})" for client, reason in errors.items()}
        reasons |= errors
        usual = {client: answer for client, answer in usual.items() if client not in errors}
    for client, reason in find_wide_groups(usual).items():
        reasons[client] = f"{reasons[client]}; {reason}" if client in reasons else reason
    return reasons


def _check_majority(suspects: dict[int, str], clients: int) -> None:
    # Signs are taken against the median: with half of the clients suspected, it may be the honest ones that stand out.
    if len(suspects) * 2 >= clients:
        raise UserError(f"{len(suspects)} of {clients} clients are suspected: too many to leave out")


def _name_request(request: Message, reasons: dict[int, str]) -> dict[int, str]:
    return {client: f"{request.kind}, round {request.round}: {reason}" for client, reason in reasons.items()}


def _ask_centroids(
    transport: Transport,
    options: ClusteringOptions,
    min_clients: int,
    excluded: dict[int, str],
    scaling: Scaling | None,
) -> dict[int, Message]:
    """Run the first round; clients with another number of features than most are left out."""
    clients = [client for client in transport.clients if client not in excluded]
    requests = {client: _scaled(protocol.centroids_request(options, client), scaling) for client in clients}
    result = transport.ask(
        requests,
        protocol.centroids_rule(options),
        min_clients=min_clients,
        check=lambda client, answer: protocol.check_centroids(options, client, answer),
    )
    excluded |= _name_request(next(iter(requests.values())), result.excluded) if requests else {}
    answers = result.answers
    if not answers:
        raise TooFewClientsError("no client answered")
    widths = {client: answer.array("centers").shape[1] for client, answer in answers.items()}
    usual, _, others = find_other_widths(widths)
    excluded |= others
    answers = {client: answer for client, answer in answers.items() if client not in others}
    if len(answers) < min_clients:
        raise TooFewClientsError(f"{len(answers)} clients have {usual} features; {min_clients} are needed")
    return answers


def count_points(answers: dict[int, Message], options: ClusteringOptions) -> dict[int, float]:
    """Return the points that each client reported; empty where counts are not sent, or leave out doubted groups.

    They bound what a client may report in the refinement: more points there would be weight that it does not have.
    """
    # With "drop" the counts are those of trusted groups only; a refinement over all points rightly exceeds them.
    if options.eliminate == "drop" or not protocol.optional_parts(options)["counts"]:
        return {}
    return {client: answer.number("points") for client, answer in answers.items()}


def make_pool(answers: dict[int, Message]) -> tuple[CentroidPool, dict[int, float]]:
    """Stack all centroids into one table; return it with the radius of each client that sent one."""
    centers = [answer.array("centers") for answer in answers.values()]
    # All or none: centroids weighted by points and centroids weighted by 1 cannot be mixed.
    sizes = [len(part) for part in centers]
    counted = all("counts" in answer.arrays for answer in answers.values())
    ones = [np.ones(size) for size in sizes]
    pool = CentroidPool(
        centers=np.concatenate(centers),
        counts=np.concatenate([answer.array("counts") for answer in answers.values()] if counted else ones),
        trusted=np.concatenate(
            [
                answer.arrays.get("trusted", np.ones(size, dtype=bool))
                for answer, size in zip(answers.values(), sizes, strict=True)
            ]
        ),
        client=np.repeat(np.array(list(answers), dtype=np.int64), sizes),
        counted=counted,
    )
    radii = {
        client: float(answer.array("radius")[0]) for client, answer in answers.items() if "radius" in answer.arrays
    }
    return pool, radii


def _reduce_clusters(options: ClusteringOptions, pool: CentroidPool) -> ClusteringOptions:
    """Options with no more clusters than there are distinct centroids, where fewer may be returned."""
    # Check this before the server step: most methods refuse a K above the number of distinct centroids.
    if options.on_few_groups != "return" or pool.distinct() >= options.clusters:
        return options
    _warn_few(pool.distinct(), options.clusters)
    return options.model_copy(update={"clusters": pool.distinct()})


def _warn_few(groups: int, clusters: int) -> None:
    warnings.warn(f"found only {groups} of {clusters} clusters", UserWarning, stacklevel=3)


def _refine(
    transport: Transport,
    options: ClusteringOptions,
    centers_KD: Floats,
    round: int,
    clients: list[int],
    min_clients: int,
    excluded: dict[int, str],
    suspects: dict[int, str],
    points: dict[int, float],
    scaling: Scaling | None,
) -> Floats:
    """Run one federated step of Lloyd; an empty center stays where it is.

    Args:
        suspects: the anomalies of suspicious clients so far; new ones are added.
        points: by client the number of points reported before (`count_points`).
    """
    request = _scaled(protocol.lloyd_request(centers_KD, options, round), scaling)
    if transport.is_secure:
        requests = dict.fromkeys(clients, request)
        shapes = {"sums": centers_KD.shape, "counts": centers_KD.shape[:1]}
        total = transport.ask_sum(requests, protocol.LLOYD_SUMS, shapes, min_clients=min_clients)
        excluded |= _name_request(request, total.excluded)
        # A total has to fit the same rules as a part of it; beyond them nothing is known of single clients.
        reported = sum(points[client] for client in total.clients) if points else None
        protocol.check_lloyd(options, centers_KD, reported, Message(request.kind, round, total.arrays))
        return _divide(centers_KD, total.arrays["sums"], total.arrays["counts"], options)
    result = transport.ask(
        dict.fromkeys(clients, request),
        protocol.lloyd_rule(centers_KD),
        min_clients=min_clients,
        check=lambda client, answer: protocol.check_lloyd(options, centers_KD, points.get(client), answer),
    )
    excluded |= _name_request(request, result.excluded)
    answers = result.answers
    strange = find_suspicious_sums(centers_KD, answers, sized=bool(points))
    suspects |= {client: reason for client, reason in strange.items() if client not in suspects}
    if strange and options.suspects == "exclude":
        _check_majority(strange, len(answers))
        excluded |= {client: f"suspected: {reason}" for client, reason in strange.items()}
        # Only this round is left out here; `excluded` keeps the client out of the following ones.
        answers = {client: answer for client, answer in answers.items() if client not in strange}
    total_KD = np.zeros_like(centers_KD)
    count_K = np.zeros(len(centers_KD))
    # Add over clients before dividing, so that the step equals one of Lloyd on all reported points together.
    for answer in answers.values():
        total_KD += answer.array("sums")
        count_K += answer.array("counts")
    return _divide(centers_KD, total_KD, count_K, options)


def _divide(centers_KD: Floats, total_KD: Floats, count_K: Floats, options: ClusteringOptions) -> Floats:
    """Centers as means of sums over all clients; an empty center stays where it is."""
    centers = centers_KD.copy()
    centers[count_K > 0] = total_KD[count_K > 0] / count_K[count_K > 0, None]
    return unit(centers) if options.spherical else centers


def cluster_pooled(points_ND: Floats, options: ClusteringOptions) -> Clustered:
    """Run a method that is not federated on all points in one place.

    Args:
        points_ND: as the clients have them; they are scaled here where the options say so.
    """
    scaling = Scaling.of_points(points_ND) if options.scale == "standard" else None
    empty = Clustered(np.zeros((0, points_ND.shape[1])), options, {}, {}, {}, {}, {}, scaling)
    merged = merge_pooled(empty.prepare(points_ND), options)
    return replace(empty, centers=merged.centers, server=merged.report)


def merge_pooled(points_ND: Floats, options: ClusteringOptions) -> Merged:
    """Return centers by a method that is not federated, from all points in one place."""
    everything = CentroidPool(
        points_ND,
        np.ones(len(points_ND)),
        np.ones(len(points_ND), dtype=bool),
        np.zeros(len(points_ND), dtype=np.int64),
    )
    rng = stream(options.seed, round=0, client=-1, purpose="server")
    return load_method(options.method).merge(everything, options, rng, {})
