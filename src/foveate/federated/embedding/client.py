"""What a client does when the server asks: bounding box, surrogate, field, training. Only its answers leave it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core import seeds
from foveate.federated.clients import Client, Handler, stream
from foveate.federated.embedding import grids
from foveate.federated.embedding.graph import neighborhood
from foveate.federated.embedding.message_kinds import BOX, FIELD, POINTS, POSITIONS, SURROGATE, TRAIN
from foveate.federated.embedding.networks import flat_weights, frozen_rows, load_flat, perceptron
from foveate.federated.embedding.objective import mean_repulsion
from foveate.federated.embedding.options import FEDPROX, LOCAL, POOLED, EmbeddingOptions
from foveate.federated.embedding.surrogates import (
    ARCHITECTURES,
    FitSettings,
    SurrogateNetwork,
    SurrogateSum,
    fit_surrogate,
    r_squared,
    r_squared_of_hidden,
)
from foveate.federated.embedding.training import MOST_POINTS_EXACT, Foreign, PassSettings, train_pass
from foveate.federated.messages import Message, MessageError
from foveate.federated.privacy import clipped, noisy, private_noise
from foveate.metrics.neighbors import nearest


def torch_generator(seed: int, *, round: int, client: int, purpose: str) -> torch.Generator:
    """As `stream`, for PyTorch."""
    return torch.Generator().manual_seed(seeds.integer("federated", purpose, seed, round, client))


def build_encoder(options: EmbeddingOptions, features: int) -> nn.Module:
    """The perceptron features-100-100-100-2 (by default) with the start weights of this seed."""
    generator = torch_generator(options.seed, round=0, client=-1, purpose="encoder")
    widths = (features, *options.hidden, options.dimensions)
    return perceptron(widths, generator, dtype=getattr(torch, options.precision))


@dataclass
class ClientData:
    """The points of a client, which stay here, and what is computed from them once.

    Attributes:
        points_ND: of the run's precision. template: an encoder of another architecture; None = the perceptron.
        device: where it trains. noise: of differential privacy, from the operating system; tests give their own.
    """

    points_ND: NDArray[np.floating] = field(repr=False)
    template: nn.Module | None = None
    device: str = "cpu"
    noise: np.random.Generator = field(default_factory=private_noise, repr=False)
    _built: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def tensor(self) -> Tensor:
        """The points on the device."""
        return torch.from_numpy(np.ascontiguousarray(self.points_ND)).to(self.device)

    def neighbors(self, k: int) -> NDArray[np.int64] | None:
        """The k nearest others of every point (fewer where there are not k); None for a single point."""
        k = min(k, len(self.points_ND) - 1)
        if k < 1:
            return None
        if ("neighbors", k) not in self._built:
            self._built["neighbors", k] = nearest(self.points_ND, k)  # type: ignore[index]
        return self._built["neighbors", k]  # type: ignore[index]

    def encoder(self, options: EmbeddingOptions, weights_P: NDArray[Any]) -> nn.Module:
        """The encoder with these weights; the same object every time."""
        if "encoder" not in self._built:
            made = copy.deepcopy(self.template) or build_encoder(options, self.points_ND.shape[1])
            self._built["encoder"] = made.to(self.device)
        load_flat(self._built["encoder"], weights_P)
        return self._built["encoder"]


def options_in(request: Message) -> EmbeddingOptions:
    """The options that every request carries.

    Raises:
        MessageError: it carries none.
    """
    words = request.values.get("options")
    if not isinstance(words, str):
        raise MessageError(f"message '{request.kind}' has no 'options'")
    return EmbeddingOptions.model_validate_json(words)


def _placed(data: ClientData, request: Message) -> tuple[EmbeddingOptions, NDArray[np.floating], Tensor]:
    """Options, and where the global encoder puts the client's points."""
    options = options_in(request)
    z_Nd = frozen_rows(data.encoder(options, request.array("encoder")), data.tensor)
    return options, z_Nd.cpu().numpy(), z_Nd


def answer_points(data: ClientData, request: Message, client: int) -> Message:
    """How many points there are, and how many features they have."""
    return request.answer(points=len(data.points_ND), features=data.points_ND.shape[1])


def answer_box(data: ClientData, request: Message, client: int) -> Message:
    """The bounding box of the client's map positions, [2, d]."""
    return request.answer(arrays={"box": grids.box_of(_placed(data, request)[1])})


def answer_positions(data: ClientData, request: Message, client: int) -> Message:
    """All map positions: for `fedne_exact` alone, which is no federated method."""
    return request.answer(arrays={"positions": _placed(data, request)[1]})


def grid_in(request: Message) -> grids.Grid:
    """The common grid that a request carries as `box` and `counts`."""
    box, counts = request.array("box"), request.array("counts")
    return grids.between(box, counts)


def answer_surrogate(data: ClientData, request: Message, client: int) -> Message:
    """A network that imitates what the client's points do to a place, the box it was fitted in, and how well it fits."""
    options, z_np, z_Nd = _placed(data, request)
    if "box" not in request.arrays and options.grid == "official":
        grid = grids.official_grid(z_np, step=options.grid_step)
    elif "box" not in request.arrays:
        grid = grids.own_grid(z_np, step=options.grid_step, fewest=options.grid_fewest, max_points=options.max_points)
    else:
        grid = grid_in(request)
    queries = grid.points_Gd
    if options.dimensions > 2:
        count = min(len(queries), options.max_points)
        scatter = stream(options.seed, round=request.round, client=client, purpose="queries")
        queries = grids.scattered(grid.box_2d, count, scatter)
    queries_Gd = torch.from_numpy(queries).to(z_Nd)
    targets_G = _hidden(grids.targets(queries_Gd, z_Nd, drop=options.drop, kernel=options.kernel), options, data)
    fit = fit_surrogate(
        queries_Gd.cpu(),
        targets_G.cpu(),
        torch_generator(options.seed, round=request.round, client=client, purpose="surrogate"),
        architecture=ARCHITECTURES[options.surrogate],
        settings=FitSettings(held_out=options.held_out),
    )
    vector = np.concatenate([one.ravel() for one in fit.weights.values()])
    held_out = {} if math.isnan(fit.r2_held_out) else {"r2_held_out": fit.r2_held_out}
    r2 = fit.r2
    if sigma := options.target_noise:
        missed = 1.0 - held_out.get("r2_held_out", fit.r2)
        error = max(missed * float(targets_G.double().var(correction=0)) - sigma**2, 0.0)
        r2 = r_squared_of_hidden(targets_G, sigma, error)
    return request.answer(
        arrays={"surrogate": vector, "box": grid.box_2d}, r2=r2, epochs=fit.epochs, queries=len(queries), **held_out
    )


def answer_field(data: ClientData, request: Message, client: int) -> Message:
    """What the client's points do to every point of the common grid, and how well that interpolates between them.

    With noise the R2 is what the values that are sent say of it (a cell's middle is the mean of four of them): one of
    the exact values would tell of them what the noise hides.
    """
    options, _, z_Nd = _placed(data, request)
    grid = grid_in(request)
    asked = torch.from_numpy(grid.points_Gd).to(z_Nd)
    field_G = grids.targets(asked, z_Nd, drop=options.drop, kernel=options.kernel)
    sent_G = _hidden(field_G, options, data)
    if sigma := options.target_noise:
        r2 = r_squared_of_hidden(sent_G, sigma, sigma**2 / 4)
    else:
        between = torch.from_numpy(grid.centers_Gd).to(z_Nd)
        truth = grids.targets(between, z_Nd, drop=options.drop, kernel=options.kernel)
        r2 = r_squared(grids.interpolate(sent_G, grid, between), truth)
    return request.answer(arrays={"field": sent_G.cpu().numpy()}, r2=r2)


def _hidden(values_G: Tensor, options: EmbeddingOptions, data: ClientData) -> Tensor:
    """The values with noise, where it is asked for."""
    if not options.target_noise:
        return values_G
    return values_G.new_tensor(noisy(values_G.cpu().numpy(), options.target_noise, data.noise))


def _sent(before_P: NDArray[Any], after_P: NDArray[Any], options: EmbeddingOptions, data: ClientData) -> NDArray[Any]:
    """The weights with a change that is bounded and hidden in noise, where that is asked for."""
    if options.update_clip is None or options.method in (LOCAL, POOLED):
        return after_P
    change = clipped(after_P - before_P, options.update_clip)
    if options.update_noise:
        change = noisy(change, options.update_noise * options.update_clip, data.noise)
    return (before_P + change).astype(after_P.dtype)


def unpacked(vector_S: NDArray[Any], options: EmbeddingOptions) -> dict[str, NDArray[Any]]:
    """A surrogate's arrays by name from the vector that was sent.

    Raises:
        MessageError: for another length.
    """
    architecture = ARCHITECTURES[options.surrogate]
    with torch.device("meta"):
        network = SurrogateNetwork(architecture, options.dimensions, torch.Generator())
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    sizes = [math.prod(shape) for shape in shapes.values()]
    if vector_S.shape != (sum(sizes),):
        raise MessageError(f"a surrogate has {vector_S.size} numbers; {sum(sizes)} are wanted")
    parts = np.split(vector_S, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _foreign(request: Message, options: EmbeddingOptions, device: str) -> tuple[Foreign | None, SurrogateSum | None]:
    """What the request says of the others: a function of places, None where the client feels nobody."""
    dtype = getattr(torch, options.precision)
    if "surrogates" in request.arrays:
        found = SurrogateSum(
            [unpacked(one, options) for one in request.array("surrogates")],
            request.array("shares").tolist(),
            levels=ARCHITECTURES[options.surrogate].levels,
            boxes_M2d=None if options.grid == "official" else request.array("boxes"),
            kernel=options.kernel,
            dtype=dtype,
            device=device,
        )
        return found, found
    if "field" in request.arrays:
        grid = grid_in(request)
        field_G = torch.from_numpy(np.array(request.array("field"))).to(device, dtype)
        return lambda z_Nd: grids.interpolate(field_G, grid, z_Nd), None
    if "positions" in request.arrays:
        positions = torch.from_numpy(np.array(request.array("positions"))).to(device, dtype)
        parts = positions.split(request.array("sizes").tolist())
        shares = request.array("shares").tolist()

        def exact(z_Nd: Tensor) -> Tensor:
            felt = [s * mean_repulsion(z_Nd, one, kernel=options.kernel) for s, one in zip(shares, parts, strict=True)]
            return torch.stack(felt).sum(dim=0)

        return exact, None
    return None, None


def answer_train(data: ClientData, request: Message, client: int) -> Message:
    """One round of training from the common encoder: the weights after it; the losses, where these carry no noise."""
    options = options_in(request)
    network = data.encoder(options, request.array("encoder"))
    drawn = stream(options.seed, round=request.round, client=client, purpose="mixing") if options.mixing else None
    around = neighborhood(
        data.points_ND,
        options.neighbors,
        drawn,
        neighbors_Nk=data.neighbors(options.neighbors),
        beta=options.mixing_beta,
        keep_self_edges=options.keep_self_edges,
    )
    if options.negatives == "all" and len(around.points_ND) > MOST_POINTS_EXACT:
        raise MessageError(f"negatives 'all' with {len(around.points_ND)} points: at most {MOST_POINTS_EXACT}")
    foreign, surrogates = _foreign(request, options, data.device)
    settings = PassSettings(
        rate=request.number("rate"),
        epochs=options.local_epochs,
        batch=options.batch_points * options.neighbors,
        negatives=0 if options.negatives == "all" else int(options.negatives),
        kernel=options.kernel,
        clip=options.gradient_clip,
        share=request.number("share"),
        proximal=options.proximal if options.method == FEDPROX else 0.0,
    )
    random = stream(options.seed, round=request.round, client=client, purpose="training")
    report = train_pass(network, around, settings, random, foreign=foreign)
    sent = {"encoder": _sent(request.array("encoder"), flat_weights(network), options, data)}
    if options.hides_training:
        return request.answer(arrays=sent)
    outside = surrogates.outside(frozen_rows(network, data.tensor)) if surrogates is not None else 0
    felt: dict[str, float] = {} if report.foreign is None else {"foreign": report.foreign}
    return request.answer(
        arrays=sent,
        attraction=report.attraction,
        repulsion=report.repulsion,
        steps=report.steps,
        outside=outside,
        **felt,
    )


HANDLERS: Mapping[str, Handler] = {
    POINTS: answer_points,
    BOX: answer_box,
    SURROGATE: answer_surrogate,
    FIELD: answer_field,
    POSITIONS: answer_positions,
    TRAIN: answer_train,
}


def client_of(number: int, data: ClientData, name: str = "") -> Client:
    """A client of this wing's rounds."""
    return Client(number, data, HANDLERS, name)
