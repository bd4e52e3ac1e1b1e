"""Check and answer requests of DeepFeCA over a network, where a client does not trust its server.

| kind | down | up |
|---|---|---|
| `query.size` | | number of points and of features |
| `query.embedded` | as in one process, and `options` | as in one process; with noise `trusted` is true everywhere |
| `train.prototypes` | as in one process, and `options` | as in one process; with noise no loss |

A client's own limits decide about noise (`foveate.federated.deep.noise`). Without any, units of a head on features that
act on few points do not train.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from foveate.federated.clustering.local import half_smallest_distance
from foveate.federated.deep import noise
from foveate.federated.deep.checks import (
    check_layers,
    check_prototypes,
    check_variances,
    find_narrow_units,
    restore_units,
)
from foveate.federated.deep.encoder import Embedder, build_network, flatten_weights, prepare_samples, set_weights
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import EMBEDDED, REMOTE_KINDS, SIZE, TRAIN, DeepOptions, request_options
from foveate.federated.deep.protocol import (
    Training,
    embed,
    embedded_request,
    find_augment,
    handlers,
    pseudo_labels,
    train,
    train_request,
)
from foveate.federated.incoming import IncomingWeights
from foveate.federated.job import MAX_TRAINED
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule
from foveate.federated.privacy import NormalSource, send_change
from foveate.federated.rounds import stream
from foveate.federated.scaling import need_points, take_scale
from foveate.metrics.neighbors import as_points


def answer_remote(
    points_ND: NDArray[np.floating],
    request: Message,
    client: int,
    limits: ClientLimits | None = None,
    source: NormalSource | None = None,
) -> Message:
    """Answer a server elsewhere, with a network built from the options that come with the request.

    Args:
        points_ND: the client's data.
        limits: the client's own, which decide about noise; None = answers as in one process.
        source: of the noise on weights, by default the operating system's.

    Raises:
        MessageError: a kind that is not answered over a network, options or arrays that do not fit one another, or more
            than the client's own limits allow.
        UserError: data that are not points, hold NaN, or are fewer than the client's own `min_count`.
    """
    if request.kind not in REMOTE_KINDS:
        raise MessageError(f"'{request.kind}' is not answered over a network")
    client_limits = limits or ClientLimits()
    points = as_points(points_ND, what="the data")
    # Check this before any answer, sizes included: with fewer points than its own limit a client sends nothing at all.
    client_limits.need_points(len(points))
    multiplier = 0.0 if limits is None else limits.noise_multiplier
    # A question with noise clips what a scale makes too large: an error would say that something is.
    points, request = take_scale(points, request, clip=multiplier > 0)
    # A request for sizes needs no options and no network.
    if request.kind == SIZE:
        return request.answer(points=len(points), features=points.shape[1])
    # The server is not trusted: options are parsed within their bounds before anything is computed from the request.
    options = request_options(request)
    client_limits.allow(options.min_count, options.clusters)
    checked = _rebuild(request, options, client)
    # Before the network is built: a request must not make a client reserve any amount of memory.
    _check_size(len(checked.array("weights")), options, points.shape[1])
    if multiplier:
        # Values that float32 cannot hold would be an error, too.
        points = np.clip(points, -MAX_TRAINED, MAX_TRAINED)
    network, samples = build_network(options, points.shape[1]), prepare_samples(points, options)
    if limits is None:
        return handlers(network)[request.kind](samples, checked, client)
    if request.kind == TRAIN:
        return _train(network, samples, checked, client, limits, source)
    if multiplier:
        return _describe_with_noise(network, samples, checked, client, limits)
    return handlers(network)[EMBEDDED](samples, checked, client)


def check_weights(request: Message, features: int, limits: ClientLimits, folder: Path, account: str) -> None:
    """Raise Refusal for weights or prototypes that no honest server sends; the data are not touched.

    Args:
        features: values of a point.
        limits: the client's own.
        folder: where the last weights of each run are kept.
        account: name of the data that the answers count for.

    Raises:
        MessageError, UserError: a request that no honest server sends.
    """
    if request.kind == SIZE:
        return
    options = request_options(request)
    arrays = {name: array for name, array in request.arrays.items() if name not in ("offset", "scale")}
    checked = _rebuild(replace(request, arrays=arrays), options, 0)
    weights_P = checked.array("weights")
    _check_size(len(weights_P), options, features)
    if request.kind == TRAIN:
        check_prototypes(checked.array("centers"), options.clusters)
    network, start = build_network(options, features), build_network(options, features)
    set_weights(network, weights_P)
    # Rows of noise are parallel, or near zero, by chance: the check would end honest runs, and the noise hides more.
    if not limits.noise_multiplier:
        check_layers(network, start)
    check_variances(network)
    IncomingWeights(folder, account).check(
        weights_P,
        request.round,
        run=f"features {features} {options.model_dump_json()}",
        # One more: the last weights are asked about once, and not trained.
        rounds=DeepJob(options).num_rounds + 1,
        start=lambda: flatten_weights(start),
        # Noise does not make an answer longer, so that it needs no room here.
        clip=limits.update_clip,
    )


def _describe_with_noise(
    network: Embedder, samples: Tensor, request: Message, client: int, limits: ClientLimits
) -> Message:
    """Answer with noise about the groups of a client's embeddings."""
    set_weights(network, request.array("weights"))
    seed, min_count = int(request.number("seed")), int(request.number("min_count"))
    need_points(samples.flatten(1).numpy(), min_count)
    centers_KD, count_K = noise.noisy_centroids(
        noise.clean_vectors(embed(network, samples)),
        int(request.number("clusters")),
        stream(seed, round=request.round, client=client, purpose="local k-means"),
        multiplier=limits.noise_multiplier,
        min_count=min_count,
    )
    arrays: dict[str, ArrayLike] = {"centers": centers_KD}
    totals: dict[str, int] = {}
    if request.values["send_counts"]:
        arrays["counts"] = count_K
        totals["points"] = len(samples)
    if request.values["send_trusted"]:
        # Which centroids a client doubts depends on single points, and has no noise: it doubts none.
        arrays["trusted"] = np.ones(len(count_K), dtype=bool)
    if request.values["send_radius"]:
        arrays["radius"] = [half_smallest_distance(centers_KD)]
    return request.answer(arrays=arrays, **totals)


def _train(
    network: Embedder,
    samples: Tensor,
    request: Message,
    client: int,
    limits: ClientLimits,
    source: NormalSource | None,
) -> Message:
    """Answer with weights after a training, whose change is bounded by the client's clip and hidden by its noise."""
    before_P, centers_KD = request.array("weights"), request.array("centers")
    training, clip, multiplier = Training.from_request(request), limits.update_clip, limits.noise_multiplier
    set_weights(network, before_P)
    if multiplier and not network.has_encoder:
        prototypes_KD = torch.from_numpy(np.array(centers_KD)).float()
        noise.train_with_noise(
            network,
            samples,
            prototypes_KD,
            pseudo_labels(torch.from_numpy(embed(network, samples)).float(), prototypes_KD),
            steps=training.epochs,
            learning_rate=training.learning_rate,
            temperature=training.temperature,
            multiplier=multiplier,
            source=source,
        )
        sent_P = send_change(before_P, flatten_weights(network), clip=clip)
        return request.answer(arrays={"weights": sent_P}, points=len(samples))
    narrow_H = find_narrow_units(network, samples, limits.smallest_group)
    random = stream(int(request.number("seed")), round=request.round, client=client, purpose="training")
    loss = train(network, samples, centers_KD, training, find_augment(training.augment, {}), random)
    if multiplier:
        sigma = noise.SENSITIVITY * clip * multiplier
        sent_P = send_change(before_P, flatten_weights(network), clip=clip, sigma=sigma, source=source)
        sent_P = noise.keep_variances(network, before_P, sent_P)
        return request.answer(arrays={"weights": sent_P}, points=len(samples))
    if not network.has_encoder:
        restore_units(network, before_P, narrow_H)
    sent_P = send_change(before_P, flatten_weights(network), clip=clip)
    return request.answer(arrays={"weights": sent_P}, points=len(samples), loss=loss)


def _rebuild(request: Message, options: DeepOptions, client: int) -> Message:
    """Build the request anew from its options, so that the options' bounds hold for everything that it asks.

    Raises:
        MessageError: the request differs from the one that its options produce.
    """
    weights = request.array("weights")
    rules = {"weights": ArrayRule("float32", (None,))}
    rounds = DeepJob(options).rounds
    if request.kind == EMBEDDED:
        rebuilt = embedded_request(weights, rounds.clustering, client, request.round)
    else:
        centers = request.array("centers")
        rules["centers"] = ArrayRule("float64", (None, options.width))
        rebuilt = train_request(weights, centers, rounds.training, options.seed, request.round)
        if not 1 <= len(centers) <= options.clusters:
            raise MessageError(f"has {len(centers)} centers; its options allow 1 to {options.clusters}")
    values = {**rebuilt.values, "options": request.values["options"]}
    # Types first: a comparison of values below would take True for 1.
    MessageRule(request.kind, rules, {name: type(value) for name, value in values.items()}).check(request)
    for name, value in values.items():
        # Equal to what the options imply, or refused: no value can ask for more than the options admit.
        if request.values[name] != value:
            raise MessageError(f"asks with {name} {request.values[name]}; its options say {value}")
    return rebuilt


def _check_size(num_weights: int, options: DeepOptions, features: int) -> None:
    """Raise MessageError if a network of these options has more weights than the request.

    A lower bound is enough: it can be computed without building a network whose size the server's options decide.
    """
    # Weights of the head, without its first layer's weights on the encoder's output, whose width is not known yet.
    head = options.hidden + options.width * (options.hidden + 1)
    min_weights = head if options.reads_images else head + options.hidden * features
    if num_weights < min_weights:
        raise MessageError(
            f"array 'weights' has {num_weights:,} values; a network of its options has at least {min_weights:,}"
        )
