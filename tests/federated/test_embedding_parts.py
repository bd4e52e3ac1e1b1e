"""FedNE's parts: grids, fields, surrogates, mixing, networks, options."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from foveate.core.errors import UserError
from foveate.federated.embedding import grids
from foveate.federated.embedding.networks import (
    average_arrays,
    copy_weights,
    flatten_weights,
    load_flat,
    load_weights,
    perceptron,
)
from foveate.federated.embedding.options import EmbeddingOptions, draw_participants, is_refreshed, read_options
from foveate.federated.embedding.surrogates import (
    FieldQuality,
    FitSettings,
    SurrogateSum,
    compare_fields,
    fit_surrogate,
    r_squared,
)
from foveate.federated.embedding.training import (
    PassSettings,
    edges,
    estimate,
    exact_losses,
    mean_repulsion,
    neighborhood,
    sampled_losses,
    train_pass,
)
from naming import raises_naming

RANDOM = np.random.default_rng(0)


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def cloud(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn((rows, 2), generator=seeded(seed), dtype=torch.float64)


def test_the_first_axis_is_the_fastest() -> None:
    grid = grids.CoordinateGrid((np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0])))
    assert grid.points_Gd.tolist() == [[0, 5], [1, 5], [2, 5], [0, 6], [1, 6], [2, 6]]
    assert grid.centers_Gd.tolist() == [[0.5, 5.5], [1.5, 5.5]]


@settings(max_examples=50, deadline=None)
@given(scale=st.floats(1e-4, 1e4), clients=st.integers(1, 4), seed=st.integers(0, 1000))
def test_grids_hold_the_map_and_keep_their_bounds(scale: float, clients: int, seed: int) -> None:
    maps = [scale * np.random.default_rng([seed, one]).normal(size=(9, 2)) for one in range(clients)]
    union = grids.union_grid(np.stack([grids.bounding_box(one) for one in maps]))
    assert all(12 <= count <= 28 for count in union.shape)
    for one in maps:
        assert (one > union.box_2d[0]).all()
        assert (one < union.box_2d[1]).all()
        own = grids.own_grid(grids.bounding_box(one))
        assert math.prod(own.shape) <= 2000
        assert min(own.shape) >= 12
        assert (own.box_2d[0] <= one.min(axis=0)).all()
        assert (own.box_2d[1] >= one.max(axis=0)).all()


def test_interpolation_is_that_of_scipy_and_ends_at_the_edge() -> None:
    grid = grids.CoordinateGrid((np.linspace(-2, 3, 7), np.linspace(0, 1, 4)))
    field = torch.from_numpy(RANDOM.normal(size=28))
    oracle = RegularGridInterpolator(grid.axes[::-1], field.reshape(4, 7).numpy())
    z = torch.from_numpy(RANDOM.uniform([-2, 0], [3, 1], (50, 2))).requires_grad_()
    found = grids.interpolate(field, grid, z)
    assert found.detach().numpy() == pytest.approx(oracle(z.detach().numpy()[:, ::-1]))
    assert torch.autograd.gradcheck(lambda z: grids.interpolate(field, grid, z), z[:5].detach().requires_grad_())
    far = torch.tensor([[99.0, 0.5]], dtype=torch.float64, requires_grad=True)
    beyond = grids.interpolate(field, grid, far)
    assert beyond.item() == pytest.approx(float(oracle([0.5, 3.0])[0]))
    beyond.sum().backward()
    assert far.grad[0, 0] == 0


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(2, 6), min_size=1, max_size=4),
    width=st.floats(1e-2, 1e3),
    seed=st.integers(0, 1000),
)
def test_interpolation_in_any_dimensions_is_that_of_scipy(counts: list[int], width: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    starts = random.normal(size=len(counts))
    axes = [np.linspace(low, low + width, count) for count, low in zip(counts, starts, strict=True)]
    grid = grids.CoordinateGrid(tuple(axes))
    field = random.normal(size=math.prod(counts))
    # The first axis is the fastest here, the last one in SciPy's table.
    oracle = RegularGridInterpolator(grid.axes[::-1], field.reshape(counts[::-1]))
    low, high = grid.box_2d
    z = np.concatenate([random.uniform(low - width / 2, high + width / 2, (20, len(counts))), grid.points_Gd])
    found = grids.interpolate(torch.from_numpy(field), grid, torch.from_numpy(z))
    inside = np.clip(z, low, high)
    assert found.numpy() == pytest.approx(oracle(inside[:, ::-1]), abs=1e-8)
    # In the grid's points its values come back, in the order of the points.
    assert found[20:].numpy() == pytest.approx(field, abs=1e-8)


def test_gradients_in_three_dimensions_are_those_of_the_values() -> None:
    grid = grids.CoordinateGrid(tuple(np.linspace(-1, 2, n) for n in (3, 5, 4)))
    field = torch.from_numpy(RANDOM.normal(size=60))
    z = torch.from_numpy(RANDOM.uniform(-1, 2, (6, 3))).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: grids.interpolate(field, grid, z), z)


def test_targets_are_repulsions_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    local, asked = cloud(30), cloud(50, 1)
    found = grids.targets(asked, local)
    assert ((found > 0) & (found <= math.log(2))).all()
    assert grids.targets(local[:1], local[:1]).item() == pytest.approx(math.log(2))
    monkeypatch.setattr("foveate.metrics.neighbors._DISTANCES_PER_BLOCK", 100)
    torch.testing.assert_close(grids.targets(asked, local), found)


def test_a_surrogate_learns_a_field() -> None:
    local = cloud(60)
    grid = grids.union_grid(grids.bounding_box(local.numpy())[None])
    asked = torch.from_numpy(grid.points_Gd).float()
    field = grids.targets(asked, local.float())
    whole = fit_surrogate(asked, field, seeded(), settings=FitSettings(held_out=0.0))
    assert whole.r2 > 0.95
    assert whole.epochs == 40
    assert math.isnan(whole.r2_held_out)
    checked = fit_surrogate(asked, field, seeded())
    # Between the fitted queries it is worse: the highest frequency turns once in 0.8, the queries are 0.5 apart.
    assert 0.3 < checked.r2_held_out < checked.r2
    again = fit_surrogate(asked, field, seeded())
    assert all((again.weights[name] == one).all() for name, one in checked.weights.items())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("width", [10.0, 20.0])
def test_waves_in_units_of_the_box_are_resolved_where_those_of_a_fixed_length_alias(
    dimensions: int, width: float
) -> None:
    """A fit may be good on all of its queries and lead nowhere between them; what widens with the map does not."""
    local = torch.randn((200, dimensions), generator=seeded(), dtype=torch.float32)
    local = local * width / float(np.ptp(local.numpy(), axis=0).max())
    grid = grids.union_grid(grids.bounding_box(local.numpy())[None])
    random = np.random.default_rng(0)
    queries, between = grid.points_Gd, grid.centers_Gd
    if dimensions == 3:
        queries, between = (grids.scatter(grid.box_2d, count, random) for count in (2000, 500))
    asked = torch.from_numpy(queries).float()

    def truth(z: torch.Tensor) -> torch.Tensor:
        return grids.targets(z, local)

    def quality(box: np.ndarray | None) -> tuple[float, FieldQuality]:
        fit = fit_surrogate(asked, truth(asked), seeded(), box_2d=box)
        boxes = None if box is None else box[None]
        imitation = SurrogateSum([fit.weights], [1.0], boxes_M2d=boxes)
        return fit.r2, compare_fields(imitation, truth, torch.from_numpy(between).float(), points=len(local))

    fixed_r2, fixed = quality(None)
    widened_r2, widened = quality(grid.box_2d)
    print(f"fixed: R2 {fixed_r2:.3f}, {fixed}; widened: R2 {widened_r2:.3f}, {widened}")
    # R2 on all queries would let the surrogate of a map ten wide pass.
    assert width > 10 or fixed_r2 > 0.9
    assert fixed.gradient_cosine < 0.3
    assert fixed.gradient_ratio > 2
    assert widened.r2 > 0.98
    assert widened.gradient_cosine > 0.85
    assert 0.9 < widened.gradient_ratio < 1.1


def test_fields_are_compared_by_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    places = cloud(30)

    def field(z: torch.Tensor) -> torch.Tensor:
        return z[:, 0] ** 2 + z[:, 1]

    assert compare_fields(field, field, places) == pytest.approx(FieldQuality(1.0, 1.0, 1.0))
    against = compare_fields(lambda z: -3 * field(z), field, places)
    assert against.gradient_cosine == pytest.approx(-1)
    assert against.gradient_ratio == pytest.approx(3)
    # A constant added to the values spoils R2 alone; a field without a slope has no direction.
    assert compare_fields(lambda z: field(z) + 9, field, places).gradient_cosine == pytest.approx(1)
    assert compare_fields(lambda z: 0 * field(z), field, places).gradient_cosine == 0
    whole = compare_fields(lambda z: z.sin().sum(dim=1), field, places)
    monkeypatch.setattr("foveate.metrics.neighbors._DISTANCES_PER_BLOCK", 20)
    assert compare_fields(lambda z: z.sin().sum(dim=1), field, places) == pytest.approx(whole)


def test_a_surrogate_of_one_point_and_one_of_a_constant_are_finite() -> None:
    asked = torch.from_numpy(grids.own_grid(np.zeros((2, 2))).points_Gd).float()
    box = np.array([[-1.0, -1.0], [1.0, 1.0]])
    for field in (grids.targets(asked, torch.zeros(1, 2)), torch.full((len(asked),), 0.25)):
        fit = fit_surrogate(asked, field, seeded(), box_2d=box)
        assert all(np.isfinite(array).all() for array in fit.weights.values())
        # A box without width comes from a client that departs from the protocol.
        flat = SurrogateSum([fit.weights], [1.0], boxes_M2d=np.zeros((1, 2, 2)))
        assert torch.isfinite(flat(asked)).all()


def test_a_sum_of_surrogates_is_weighted_frozen_and_clamped_outside_its_box() -> None:
    local = cloud(40)
    grid = grids.own_grid(grids.bounding_box(local.numpy()))
    asked = torch.from_numpy(grid.points_Gd)
    few = FitSettings(epochs=3)
    boxes = np.stack([grid.box_2d, grid.box_2d + 0.5])
    fits = [fit_surrogate(asked, grids.targets(asked, local), seeded(n), settings=few, box_2d=boxes[n]) for n in (0, 1)]
    before = [{name: one.copy() for name, one in fit.weights.items()} for fit in fits]
    both = SurrogateSum([fit.weights for fit in fits], [0.2, 0.5], boxes_M2d=boxes, dtype=torch.float64)
    z = local.clone().requires_grad_()
    single = [
        SurrogateSum([fit.weights], [1.0], boxes_M2d=boxes[n : n + 1], dtype=torch.float64)(local)
        for n, fit in enumerate(fits)
    ]
    torch.testing.assert_close(both(z), 0.2 * single[0] + 0.5 * single[1])
    both(z).sum().backward()
    assert z.grad.abs().max() > 0
    for fit, kept in zip(fits, before, strict=True):
        assert all((fit.weights[name] == one).all() for name, one in kept.items())
    far = torch.full((1, 2), 1e4, dtype=torch.float64)
    assert 0 <= both(far).item() <= 0.7 * math.log(2) + 1e-12
    assert both.outside(torch.cat([local, far])) == 1


def test_r_squared_of_nothing_and_of_a_constant() -> None:
    assert math.isnan(r_squared(torch.ones(0), torch.ones(0)))
    assert r_squared(torch.ones(3), torch.ones(3)) == 1
    assert r_squared(torch.zeros(3), torch.ones(3)) == 0


def test_an_exact_field_of_the_others_is_the_pooled_repulsion() -> None:
    """rho of the own mean plus rho of the others' means is the mean over all points, gradient included."""
    own, other = cloud(12), cloud(20, 1)
    heads = torch.arange(12)
    tails = heads.roll(1)
    share = 12 / 32
    one = own.clone().requires_grad_()
    foreign = (20 / 32) * mean_repulsion(one[heads], other)
    losses = exact_losses(one, heads, tails, foreign_E=foreign)
    (share * losses.repulsion + losses.foreign).backward()
    two = own.clone().requires_grad_()
    pooled = mean_repulsion(two, torch.cat([two, other])).mean()
    pooled.backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_sampled_repulsion_is_the_exact_one_in_the_mean() -> None:
    z = cloud(15)
    heads = torch.arange(15).repeat_interleave(2000)
    drawn = torch.randint(0, 15, (len(heads), 5), generator=seeded())
    sampled = sampled_losses(z, heads, heads.roll(1), drawn)
    exact = exact_losses(z, heads, heads.roll(1))
    assert sampled.repulsion.item() == pytest.approx(exact.repulsion.item(), rel=0.01)


def test_the_cauchy_kernel() -> None:
    assert estimate(torch.tensor([0.0, 1.0]), kernel="cauchy").tolist() == [1.0, 0.5]


def test_a_copy_is_the_nearest_neighbor_of_its_point() -> None:
    points = RANDOM.normal(size=(20, 3))

    class AllOnes:
        def beta(self, a: float, b: float, size: int) -> np.ndarray:
            return np.ones(size)

        def integers(self, low: int, high: int, size: int) -> np.ndarray:
            return np.zeros(size, dtype=np.int64)

    around = neighborhood(points, 4, AllOnes())  # type: ignore[arg-type]
    np.testing.assert_array_equal(around.points_ND, np.concatenate([points, points]))
    first = around.tails_E.reshape(40, 4)[:, 0]
    assert first.tolist() == [*range(20, 40), *range(20)]


@pytest.mark.parametrize(("rows", "edges_"), [(1, 0), (2, 2), (5, 20), (9, 63)])
def test_fewer_points_than_neighbors_give_fewer_edges(rows: int, edges_: int) -> None:
    heads, tails = edges(RANDOM.normal(size=(rows, 3)), 7)
    assert len(heads) == len(tails) == edges_
    assert (heads != tails).all()


def test_networks_start_from_their_generator_alone() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one, two = perceptron((4, 8, 2), seeded(3)), perceptron((4, 8, 2), seeded(3))
    assert (torch.random.get_rng_state() == state).all()
    assert (flatten_weights(one) == flatten_weights(two)).all()
    load_flat(two, flatten_weights(perceptron((4, 8, 2), seeded(4))))
    assert not (flatten_weights(one) == flatten_weights(two)).all()


def test_weights_that_do_not_fit_are_refused() -> None:
    network = perceptron((4, 8, 2), seeded())
    with raises_naming(UserError, "[58]", "torch.float32"):
        load_flat(network, np.zeros(57, np.float32))
    with pytest.raises(UserError, match="0.bias"):
        load_weights(network, {})
    with raises_naming(UserError, "0.bias", "[8]", "torch.float64"):
        load_weights(network, {name: one.astype(np.float64) if name == "0.bias" else one
                               for name, one in copy_weights(network).items()})  # fmt: skip
    with raises_naming(UserError, "num_batches_tracked"):
        flatten_weights(torch.nn.Sequential(network, torch.nn.BatchNorm1d(2)))


def test_fedavg_of_equal_weights_is_the_identity_and_order_does_not_matter() -> None:
    vectors = [RANDOM.normal(size=50).astype(np.float32) for _ in range(4)]
    assert (average_arrays([vectors[0]] * 3, [1, 2, 5]) == vectors[0]).all()
    forth, back = average_arrays(vectors, [1, 2, 3, 4]), average_arrays(vectors[::-1], [4, 3, 2, 1])
    np.testing.assert_allclose(forth, back, atol=1e-6)
    assert forth.dtype == np.float32


def test_a_pass_trains_and_reports() -> None:
    points = RANDOM.normal(size=(60, 5)).astype(np.float32)
    around = neighborhood(points, 5, None)
    network = perceptron((5, 20, 2), seeded())
    first = train_pass(network, around, PassSettings(rate=1e-2, batch=64), np.random.default_rng(0))
    for _ in range(20):
        last = train_pass(network, around, PassSettings(rate=1e-2, batch=64), np.random.default_rng(0))
    assert last.attraction + 5 * last.repulsion < first.attraction + 5 * first.repulsion
    assert (first.steps, first.foreign) == (5, None)
    alone = neighborhood(points[:1], 5, None)
    before = flatten_weights(network)
    assert train_pass(network, alone, PassSettings(rate=1.0), np.random.default_rng(0)).steps == 0
    assert (flatten_weights(network) == before).all()


def test_a_held_encoder_moves_less() -> None:
    points = RANDOM.normal(size=(60, 5)).astype(np.float32)
    around = neighborhood(points, 5, None)
    moved = []
    for proximal in (0.0, 100.0):
        network = perceptron((5, 20, 2), seeded())
        before = flatten_weights(network)
        for _ in range(5):
            train_pass(network, around, PassSettings(rate=1e-2, batch=64, proximal=proximal), np.random.default_rng(0))
        moved.append(np.abs(flatten_weights(network) - before).mean())
    assert moved[1] < moved[0]


def test_schedule_of_refresh_and_participation() -> None:
    assert [is_refreshed(number, start=3, refresh=2) for number in range(7)] == [False] * 3 + [True, False, True, False]
    drawn = [draw_participants(range(10), 0.25, np.random.default_rng(n)) for n in range(3)]
    assert all(len(one) == 2 and one == sorted(one) for one in drawn)
    assert draw_participants(range(3), 0.01, np.random.default_rng(0)) != []
    assert draw_participants(range(3), 1.0, np.random.default_rng(0)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"method": "fedn"}, "field 'method'"),
        ({"roundes": 3}, "unknown field 'roundes'.*Did you mean 'rounds'"),
        ({"dimensions": 5}, "dimensions.*2 or 3 .*5"),
        ({"negatives": 0}, "negatives must be at least 1"),
        ({"decay_at": (2.0,)}, "decay_at must have shares from 0 to 1"),
        ({"surrogate": "grid", "grid": "own"}, "surrogate 'grid' needs grid 'union'"),
        ({"min_axis_points": 50}, "min_axis_points must be at most"),
        ({"hidden": (0,)}, "hidden must have widths"),
    ],
)
def test_options_that_cannot_be_are_refused(content: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_options(content)


def test_defaults_are_those_of_the_page() -> None:
    options = EmbeddingOptions()
    assert (options.neighbors, options.rounds, options.learning_rate, options.mixing) == (7, 150, 1e-3, False)
