"""A client's answers: bounding box, surrogate, field, training. Only these leave it.

Over a network a client has limits of its own. With `noise_multiplier` z, every answer has a bounded Euclidean change D
when one of the client's points is replaced, and noise of standard deviation z D or what the server asks, if that is
more; nothing else in it depends on the points, and no answer fails because of them: values are clipped. With z = 0, a
server is trusted with the data; what is sent is then cut to places with enough points and to three digits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core import seeds
from foveate.federated.embedding import grids
from foveate.federated.embedding.networks import flatten_weights, frozen_rows, load_flat, perceptron
from foveate.federated.embedding.options import (
    BOX,
    FEDPROX,
    FIELD,
    LOCAL,
    POINTS,
    POOLED,
    POSITIONS,
    REMOTE_KINDS,
    SURROGATE,
    TRAIN,
    EmbeddingOptions,
    request_options,
)
from foveate.federated.embedding.surrogates import (
    ARCHITECTURES,
    FitSettings,
    SurrogateSum,
    compare_fields,
    fit_surrogate,
    r_squared,
    r_squared_of_noisy,
    unpack_surrogate,
)
from foveate.federated.embedding.training import (
    MAX_EXACT_POINTS,
    Foreign,
    PassReport,
    PassSettings,
    max_repulsion,
    mean_repulsion,
    neighborhood,
    train_pass,
)
from foveate.federated.incoming import IncomingWeights
from foveate.federated.job import MAX_TRAINED
from foveate.federated.limits import EMBED, ClientLimits
from foveate.federated.messages import Message, MessageError
from foveate.federated.privacy import NormalSource, add_noise, clip_norm, private_noise, send_change
from foveate.federated.rounds import Client, Handler, stream
from foveate.federated.scaling import take_scale
from foveate.metrics.neighbors import as_points, nearest

# Positions at which a surrogate in three dimensions is compared: enough to know a mean cosine to two hundredths.
_CHECKS = 500
DIGITS = 3
"""Digits of what is sent without noise over a network: enough for a map, too few to solve for single rows."""
_MAX_POSITION = 1e11
"""Largest coordinate of a map that is answered about; honest ones reach a few dozen."""


def torch_generator(seed: int, *, round: int, client: int, purpose: str) -> torch.Generator:
    """Return the generator that `stream` describes, for PyTorch."""
    return torch.Generator().manual_seed(seeds.integer("federated", purpose, seed, round, client))


def build_encoder(options: EmbeddingOptions, features: int) -> nn.Module:
    """Build the perceptron, by default features-100-100-100-2, with the initial weights of this seed."""
    # Drawn as client -1, the server: initial weights are the same wherever the network is built.
    generator = torch_generator(options.seed, round=0, client=-1, purpose="encoder")
    widths = (features, *options.hidden, options.dimensions)
    return perceptron(widths, generator, dtype=getattr(torch, options.precision))


@dataclass
class ClientData:
    """Points of a client, which stay here, and what is computed from them once.

    Attributes:
        points_ND: of the run's precision.
        template: an encoder of another architecture; None = the perceptron.
        device: where it trains.
        noise: source of the privacy noise, by default the operating system's; tests pass their own.
        min_count: nothing that is sent is about fewer points. 1 in one process.
        limits: the client's own over a network; None in one process.
    """

    points_ND: NDArray[np.floating] = field(repr=False)
    template: nn.Module | None = None
    device: str = "cpu"
    noise: NormalSource = field(default_factory=private_noise, repr=False)
    min_count: int = 1
    limits: ClientLimits | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def noise_multiplier(self) -> float:
        """Smallest noise on an answer, in units of the most that one point can change it; 0 = none."""
        return 0.0 if self.limits is None else self.limits.noise_multiplier

    @cached_property
    def tensor(self) -> Tensor:
        """The points on the device."""
        return torch.from_numpy(np.ascontiguousarray(self.points_ND)).to(self.device)

    def neighbors(self, k: int) -> NDArray[np.int64] | None:
        """Return the k nearest others of every point (fewer if there are not k); None for a single point."""
        # Neighbors among the original points, which never change: one search serves all rounds, edges and mixtures.
        k = min(k, len(self.points_ND) - 1)
        if k < 1:
            return None
        if ("neighbors", k) not in self._cache:
            self._cache["neighbors", k] = nearest(self.points_ND, k)
        return self._cache["neighbors", k]

    def encoder(self, options: EmbeddingOptions, weights_P: NDArray[Any]) -> nn.Module:
        """Return the encoder with these weights; one object serves all, as building one costs more than a step."""
        if "encoder" not in self._cache:
            network = copy.deepcopy(self.template) or build_encoder(options, self.points_ND.shape[1])
            self._cache["encoder"] = network.to(self.device)
        load_flat(self._cache["encoder"], weights_P)
        return self._cache["encoder"]


def _map_points(data: ClientData, request: Message) -> tuple[EmbeddingOptions, NDArray[np.floating], Tensor]:
    """Return the options, and the client's map positions under the common encoder as array and tensor [N, d]."""
    options = request_options(request)
    z_Nd = frozen_rows(data.encoder(options, request.array("encoder")), data.tensor)
    if data.limits is not None:
        # Weights may take a point out of all bounds; nothing that follows may fail because of where points are.
        z_Nd = z_Nd.nan_to_num(nan=_MAX_POSITION).clamp(-_MAX_POSITION, _MAX_POSITION)
    return options, z_Nd.cpu().numpy(), z_Nd


def answer_points(data: ClientData, request: Message, client: int) -> Message:
    """Answer with the number of points and of features."""
    return request.answer(points=len(data.points_ND), features=data.points_ND.shape[1])


def answer_box(data: ClientData, request: Message, client: int) -> Message:
    """Answer with the bounding box of the map positions, [2, d]."""
    return request.answer(arrays={"box": _released_box(data, _map_points(data, request)[1])})


def _released_box(data: ClientData, z_Nd: NDArray[np.floating], *, releases: int = 1) -> NDArray[np.float64]:
    """Bounding box as it may leave the client.

    Args:
        releases: of the same answer, which share its cost: two with sqrt(2) times the noise cost as much as one.
    """
    if data.limits is None:
        return grids.bounding_box(z_Nd, data.min_count)
    # Never the coordinates themselves: weights can be such that all outermost points but one lie in one place.
    sigma = math.sqrt(releases) * data.noise_multiplier * grids.box_change(z_Nd.shape[1])
    return grids.threshold_box(z_Nd, data.min_count, sigma=sigma)


def answer_positions(data: ClientData, request: Message, client: int) -> Message:
    """Answer with all map positions: only for `fedne_exact`, which is not a federated method."""
    return request.answer(arrays={"positions": _map_points(data, request)[1]})


def request_grid(request: Message) -> grids.CoordinateGrid:
    """Read the common grid that a request carries as `box` and `counts`.

    The box and two counts instead of all points: client and server compute the same grid from them.
    """
    box, counts = request.array("box"), request.array("counts")
    return grids.grid_between(box, counts)


def _query_grid(data: ClientData, request: Message, options: EmbeddingOptions, z_Nd: NDArray[Any]) -> tuple[Any, int]:
    """Grid of a surrogate's queries, and the number of releases in the answer: two where the grid is the client's."""
    if "box" in request.arrays:
        return request_grid(request), 1
    # Without a common grid the client queries around its own map, as in the public code.
    if options.grid == "official":
        if data.min_count > 1:
            raise MessageError(
                "grid 'official' sends the outermost map positions, whatever min_count says; use 'union'"
            )
        return grids.official_grid(z_Nd, step=options.grid_step), 1
    releases = 2 if data.noise_multiplier else 1
    grid = grids.own_grid(
        _released_box(data, z_Nd, releases=releases),
        step=options.grid_step,
        min_axis_points=options.min_axis_points,
        max_points=options.max_points,
    )
    return grid, releases


def answer_surrogate(data: ClientData, request: Message, client: int) -> Message:
    """Answer with a network that imitates the repulsion of the client's points, its box, and how well it fits."""
    options, z_np, z_Nd = _map_points(data, request)
    grid, releases = _query_grid(data, request, options, z_np)
    queries = grid.points_Gd
    # A grid in three dimensions has too many points; as many random ones as the options allow take its place.
    if options.dimensions > 2:
        count = min(len(queries), options.max_points)
        random = stream(options.seed, round=request.round, client=client, purpose="queries")
        queries = grids.scatter(grid.box_2d, count, random)
    queries_Gd = torch.from_numpy(queries).to(z_Nd)
    # Noise before the fit: what is computed from noisy values hides as much as they do, whatever is done with them.
    noisy_G, sigma = _released_targets(
        queries_Gd, z_Nd, options, data, grid=grid if options.dimensions == 2 else None, releases=releases
    )
    targets_G = _clip_targets(noisy_G, options, data)
    fit = fit_surrogate(
        # Fit on the CPU: the same generator and the same arithmetic give the same surrogate whatever device trains.
        queries_Gd.cpu(),
        targets_G.cpu(),
        torch_generator(options.seed, round=request.round, client=client, purpose="surrogate"),
        architecture=ARCHITECTURES[options.surrogate],
        # With noise nothing but noisy values tells how good a fit is, so some are always held out.
        settings=FitSettings(held_out=options.held_out or (0.1 if sigma else 0.0)),
        # The public code encodes positions as they are, which its grid of a fixed step can resolve.
        box_2d=None if options.grid == "official" else grid.box_2d,
    )
    vector = np.concatenate([array.ravel() for array in fit.weights.values()])
    # Messages refuse NaN, so an undefined value is left out instead.
    held_out = {} if math.isnan(fit.r2_held_out) else {"r2_held_out": fit.r2_held_out}
    if sigma:
        # The fit was measured on noisy targets; the noise's own variance is no error of the surrogate.
        missed = 1.0 - held_out.get("r2_held_out", fit.r2)
        error = max(missed * float(targets_G.double().var(correction=0)) - sigma**2, 0.0)
        # No gradients: those of the exact values are a secret, and differences of noisy values are mostly noise.
        quality = {"r2": r_squared_of_noisy(noisy_G, sigma, error)}
    elif data.limits is not None:
        # Over a network a surrogate is judged by the values that it was fitted to: no others may leave the client.
        quality = {"r2": held_out.get("r2_held_out", fit.r2)}
    else:
        random = stream(options.seed, round=request.round, client=client, purpose="checks")
        quality = _measure_surrogate(fit.weights, grid, random, options, z_Nd)
    return request.answer(
        arrays={"surrogate": vector, "box": grid.box_2d}, epochs=fit.epochs, queries=len(queries), **quality, **held_out
    )


def _measure_surrogate(
    weights: Mapping[str, NDArray[Any]],
    grid: grids.CoordinateGrid,
    random: np.random.Generator,
    options: EmbeddingOptions,
    z_Nd: Tensor,
) -> dict[str, float]:
    """Compare a surrogate with what it imitates, by values and gradients between its queries.

    In the middles of the cells, where a wave shows that the grid is too coarse for; such a wave can agree with the
    true values on all points of the grid, held out of the fit or not.
    """
    if options.dimensions == 2:
        between = grid.centers_Gd
    else:
        between = grids.scatter(grid.box_2d, min(_CHECKS, options.max_points), random)
    boxes = None if options.grid == "official" else grid.box_2d[None]
    levels = ARCHITECTURES[options.surrogate].levels
    quality = compare_fields(
        SurrogateSum(
            [weights],
            [1.0],
            levels=levels,
            boxes_M2d=boxes,
            kernel=options.kernel,
            dtype=z_Nd.dtype,
            device=z_Nd.device,
        ),
        lambda positions: grids.targets(positions, z_Nd, drop=options.drop, kernel=options.kernel),
        torch.from_numpy(between).to(z_Nd),
        points=len(z_Nd),
    )
    return asdict(quality)


def answer_field(data: ClientData, request: Message, client: int) -> Message:
    """Answer with the repulsion of the client's points on the common grid, and how well it interpolates between.

    With noise the R2 is estimated from the noisy values that are sent (a cell's middle is the mean of its corners): an
    R2 of the exact values, or their gradients, would reveal what the noise hides.
    """
    options, _, z_Nd = _map_points(data, request)
    grid = request_grid(request)
    queries = torch.from_numpy(grid.points_Gd).to(z_Nd)
    noisy_G, sigma = _released_targets(queries, z_Nd, options, data, grid=grid)
    sent_G = _clip_targets(noisy_G, options, data)
    # A cell's middle is the mean of its corners, two per axis, whose noise has so much less variance.
    if sigma:
        quality = {"r2": r_squared_of_noisy(noisy_G, sigma, sigma**2 / 2**options.dimensions)}
    elif data.limits is not None:
        quality = {"r2": _cut_field(z_Nd, options, data).fit(z_Nd, options)}
    else:
        quality = _measure_field(sent_G, grid, options, z_Nd)
    return request.answer(arrays={"field": sent_G.cpu().numpy()}, **quality)


def _measure_field(
    field_G: Tensor, grid: grids.CoordinateGrid, options: EmbeddingOptions, z_Nd: Tensor
) -> dict[str, float]:
    """Compare an interpolated field with the true one, by values and gradients in the middles of its cells."""
    quality = compare_fields(
        lambda positions: grids.interpolate(field_G, grid, positions),
        lambda positions: grids.targets(positions, z_Nd, drop=options.drop, kernel=options.kernel),
        torch.from_numpy(grid.centers_Gd).to(z_Nd),
        points=len(z_Nd),
    )
    return asdict(quality)


def _released_targets(
    queries_Gd: Tensor,
    z_Nd: Tensor,
    options: EmbeddingOptions,
    data: ClientData,
    *,
    grid: grids.CoordinateGrid | None,
    releases: int = 1,
) -> tuple[Tensor, float]:
    """Repulsion at the queries as it may leave the client, and the standard deviation of the noise on each value.

    Args:
        grid: whose points the queries are; None where they are none of a grid.
        releases: see `_released_box`.
    """
    if data.limits is not None and not data.noise_multiplier:
        # Random queries are on no grid that values could be read off.
        cut = None if grid is None else _cut_field(z_Nd, options, data)
        values_G = _cut_targets(queries_Gd, z_Nd, options, data)[0] if cut is None else cut.read(queries_Gd)
    elif data.noise_multiplier:
        # In float64: the last digits of sums in float32 depend on all rows, which no account of the noise covers.
        values_G = grids.targets(queries_Gd.double(), z_Nd.double(), drop=options.drop, kernel=options.kernel)
    else:
        values_G = grids.targets(queries_Gd, z_Nd, drop=options.drop, kernel=options.kernel)
    sigma = options.target_noise
    if data.noise_multiplier:
        change = math.sqrt(releases) * _target_change(len(queries_Gd), len(z_Nd), options, grid)
        sigma = max(sigma, data.noise_multiplier * change)
    if sigma:
        values_G = values_G.new_tensor(add_noise(values_G.cpu().numpy(), sigma, data.noise))
    return values_G.to(z_Nd), sigma


def _target_change(queries: int, points: int, options: EmbeddingOptions, grid: grids.CoordinateGrid | None) -> float:
    return grids.max_norm_change(queries, points, grid=grid, drop=options.drop, kernel=options.kernel)


def _clip_targets(values_G: Tensor, options: EmbeddingOptions, data: ClientData) -> Tensor:
    """Clip what a client over a network sends to what a repulsion can be: a server takes nothing else."""
    return values_G if data.limits is None else values_G.clamp(0.0, max_repulsion(options.kernel))


@dataclass(frozen=True)
class CutField:
    """Repulsion as it leaves a client without noise: on a grid around its own map, 0 where few of its points are near.

    Attributes:
        values_G: three digits each.
        is_sent_G: where they are more than a placeholder.
    """

    grid: grids.CoordinateGrid
    values_G: Tensor
    is_sent_G: Tensor

    def read(self, queries_Gd: Tensor) -> Tensor:
        """Read values at any queries, [G]; beyond the grid 0."""
        low, high = torch.from_numpy(self.grid.box_2d).to(queries_Gd)
        inside_G = ((queries_Gd >= low) & (queries_Gd <= high)).all(dim=1)
        values_G = grids.interpolate(self.values_G, self.grid, queries_Gd)
        return torch.where(inside_G, values_G, torch.zeros_like(values_G))

    def fit(self, z_Nd: Tensor, options: EmbeddingOptions) -> float:
        """R2 in the middles of the cells whose corners are all sent; 0 without any."""
        middles_Gd = torch.from_numpy(self.grid.centers_Gd).to(z_Nd)
        whole_G = grids.interpolate(self.is_sent_G.to(z_Nd), self.grid, middles_Gd) > 1 - 1e-3
        if not whole_G.any():
            return 0.0
        truth = grids.targets(middles_Gd[whole_G], z_Nd, drop=options.drop, kernel=options.kernel)
        return round(r_squared(self.read(middles_Gd[whole_G]), truth), DIGITS)


def _cut_targets(
    queries_Gd: Tensor, z_Nd: Tensor, options: EmbeddingOptions, data: ClientData
) -> tuple[Tensor, Tensor]:
    """Repulsion at each query to three digits, 0 where fewer than `min_count` points are near; and where there are."""
    values_G = grids.targets(queries_Gd, z_Nd, drop=options.drop, kernel=options.kernel)
    enough_G = grids.has_enough_points(queries_Gd, z_Nd, data.min_count)
    return torch.where(enough_G, values_G, torch.zeros_like(values_G)).round(decimals=DIGITS), enough_G


def _cut_field(z_Nd: Tensor, options: EmbeddingOptions, data: ClientData) -> CutField:
    """Repulsion on a grid of the client's own.

    A server learns no more of the field than the values of this one grid, however it shapes the one that it asks for.
    """
    assert data.limits is not None
    grid = grids.union_grid(
        _released_box(data, z_Nd.cpu().numpy())[None],
        step=options.grid_step,
        min_axis_points=options.min_axis_points,
        max_axis_points=min(options.max_axis_points, data.limits.max_axis_points),
    )
    return CutField(grid, *_cut_targets(torch.from_numpy(grid.points_Gd).to(z_Nd), z_Nd, options, data))


def update_protection(options: EmbeddingOptions, limits: ClientLimits | None) -> tuple[float | None, float]:
    """Norm to which a client clips its change of the weights, and the standard deviation of the noise on each value."""
    clip, multiplier = options.update_clip, options.update_noise / 2 if options.hides_training else 0.0
    if limits is not None:
        clip = limits.update_clip if clip is None else min(limits.update_clip, clip)
        multiplier = max(multiplier, limits.noise_multiplier)
    # Methods that send no weights hide nothing by noise; it would only spoil their training.
    elif clip is None or options.method in (LOCAL, POOLED):
        return None, 0.0
    # 2 C: another point may turn a change of norm C into the opposite one. `costs.answer_cost` charges this multiplier.
    return clip, multiplier * 2 * clip


def _private_weights(
    before_P: NDArray[Any], after_P: NDArray[Any], options: EmbeddingOptions, data: ClientData
) -> NDArray[Any]:
    """Weights whose change is clipped and hidden in noise, where the options or the client's limits ask for it."""
    clip, sigma = update_protection(options, data.limits)
    if clip is None:
        return after_P
    if data.limits is not None:
        return send_change(before_P, after_P, clip=clip, sigma=sigma, source=data.noise)
    # Clip first, then add noise: noise of a fixed size hides only a change of bounded size.
    change = clip_norm(after_P - before_P, clip)
    if sigma:
        change = add_noise(change, sigma, data.noise)
    return (before_P + change).astype(after_P.dtype)


def check_weights(request: Message, features: int, limits: ClientLimits, account: str) -> None:
    """Raise Refusal for an encoder that no honest server sends in this round (`foveate.federated.incoming`).

    Args:
        features: of the client's points.
        account: name of the data in the client's memory.
    """
    if "encoder" not in request.arrays:
        return
    options = request_options(request)
    clip, _ = update_protection(options, limits)
    assert clip is not None
    IncomingWeights(limits.state_folder / "weights", account).check(
        request.array("encoder"),
        request.round,
        run=f"{EMBED} {features} {options.model_dump_json()}",
        rounds=options.rounds,
        start=lambda: flatten_weights(build_encoder(options, features)),
        # Noise does not make an answer longer, so that it needs no room here.
        clip=clip,
    )


def _foreign(
    request: Message, options: EmbeddingOptions, device: str
) -> tuple[Foreign | None, Callable[[Tensor], int] | None]:
    """Return the others' repulsion as a function of positions [N, d] -> [N], and a count of those outside its box.

    Both are None if no other client repels this one; there is no count without a box.
    """
    dtype = getattr(torch, options.precision)
    if "surrogates" in request.arrays:
        architecture = ARCHITECTURES[options.surrogate]
        surrogates = SurrogateSum(
            [unpack_surrogate(vector_S, architecture, options.dimensions) for vector_S in request.array("surrogates")],
            request.array("shares").tolist(),
            levels=architecture.levels,
            # The public code never clamps.
            boxes_M2d=None if options.grid == "official" else request.array("boxes"),
            kernel=options.kernel,
            dtype=dtype,
            device=device,
        )
        return surrogates, surrogates.outside
    if "field" in request.arrays:
        grid = request_grid(request)
        # A copy: arrays of messages are read-only, which tensors cannot be.
        field_G = torch.from_numpy(np.array(request.array("field"))).to(device, dtype)
        return lambda z_Nd: grids.interpolate(field_G, grid, z_Nd), grid.outside
    if "positions" in request.arrays:
        positions = torch.from_numpy(np.array(request.array("positions"))).to(device, dtype)
        parts = positions.split(request.array("sizes").tolist())
        shares = request.array("shares").tolist()

        def exact(z_Nd: Tensor) -> Tensor:
            weighted = [
                share * mean_repulsion(z_Nd, part, kernel=options.kernel)
                for share, part in zip(shares, parts, strict=True)
            ]
            return torch.stack(weighted).sum(dim=0)

        return exact, None
    return None, None


def answer_train(data: ClientData, request: Message, client: int) -> Message:
    """Train for one round from the common encoder; send the weights, and the losses if the weights carry no noise."""
    options = request_options(request)
    network = data.encoder(options, request.array("encoder"))
    mixing = stream(options.seed, round=request.round, client=client, purpose="mixing") if options.mixing else None
    around = neighborhood(
        data.points_ND,
        options.neighbors,
        mixing,
        neighbors_Nk=data.neighbors(options.neighbors),
        beta=options.mixing_beta,
        keep_self_edges=options.keep_self_edges,
    )
    if options.negatives == "all" and len(around.points_ND) > MAX_EXACT_POINTS:
        raise MessageError(f"negatives 'all' with {len(around.points_ND)} points: at most {MAX_EXACT_POINTS}")
    foreign, count_outside = _foreign(request, options, data.device)
    settings = PassSettings(
        rate=request.number("rate"),
        # Edges, not points: with more neighbors a step has more edges, and an epoch as many steps.
        epochs=options.local_epochs,
        batch=options.batch_points * options.neighbors,
        # 0 means the exact mean in `PassSettings`.
        negatives=0 if options.negatives == "all" else int(options.negatives),
        kernel=options.kernel,
        clip=options.gradient_clip,
        share=request.number("share"),
        proximal=options.proximal if options.method == FEDPROX else 0.0,
    )
    random = stream(options.seed, round=request.round, client=client, purpose="training")
    report = train_pass(network, around, settings, random, foreign=foreign)
    sent = {"encoder": _private_weights(request.array("encoder"), flatten_weights(network), options, data)}
    # Losses are computed from the exact points, so they would reveal what the noise on the weights hides.
    if options.hides_training or data.noise_multiplier:
        return request.answer(arrays=sent)
    # After the training, with the weights that are sent: whether the map outgrew the boxes in this round.
    outside = 0 if count_outside is None else count_outside(frozen_rows(network, data.tensor))
    # A smaller count would tell of fewer points than a client may report on.
    outside = outside if outside >= data.min_count else 0
    return request.answer(arrays=sent, steps=report.steps, outside=outside, **_losses(report, data))


def _losses(report: PassReport, data: ClientData) -> dict[str, float]:
    """Losses of a training by name, without that of other clients where there is none."""
    losses = {"attraction": report.attraction, "repulsion": report.repulsion, "foreign": report.foreign}
    sent = {name: loss for name, loss in losses.items() if loss is not None}
    return sent if data.limits is None else {name: round(loss, DIGITS) for name, loss in sent.items()}


HANDLERS: Mapping[str, Handler] = {
    POINTS: answer_points,
    BOX: answer_box,
    SURROGATE: answer_surrogate,
    FIELD: answer_field,
    POSITIONS: answer_positions,
    TRAIN: answer_train,
}


def make_client(number: int, data: ClientData, name: str = "") -> Client:
    """Build a client of FedNE's rounds."""
    return Client(number, data, HANDLERS, name)


def answer_remote(
    points_ND: NDArray[np.floating], request: Message, client: int, limits: ClientLimits | None = None
) -> Message:
    """Answer a server elsewhere.

    Args:
        limits: the client's own, with its `min_count`, noise and clip. None protects nothing.

    Raises:
        MessageError: a kind that is not answered over a network, such as all map positions.
        UserError: data that are not points, or hold NaN.
    """
    if request.kind not in REMOTE_KINDS:
        raise MessageError(f"'{request.kind}' is not answered over a network")
    # A client over a network keeps nothing between requests: points are read and checked anew for each.
    points = as_points(points_ND, what="the data")
    is_noisy = limits is not None and limits.noise_multiplier > 0
    # A question with noise clips what a scale makes too large: an error would say that something is.
    points, request = take_scale(points, request, clip=is_noisy)
    if is_noisy:
        points = np.clip(points, -MAX_TRAINED, MAX_TRAINED)
    points = points.astype(request_options(request).precision)
    data = ClientData(points, min_count=1 if limits is None else limits.smallest_group, limits=limits)
    return HANDLERS[request.kind](data, request, client)
