"""Token batches: size, padding, every sample once, ranks, resuming, mixtures, samples that cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.training.loader import BadSample, Loader, MixtureLoader, Source
from foveate.training.order import batch_rows
from foveate.training.token_batches import TokenBatching, cut_batches, padding_waste
from naming import raises_naming

# Answers of MLLMs: most are short, some are long.
LENGTHS = np.random.default_rng(3).lognormal(4, 0.8, 3000).astype(np.int64).clip(5, 900)


class Rows:
    """Samples that are their name, row and epoch; rows in `bad` cannot be read."""

    def __init__(self, name: str = "", bad: frozenset[int] = frozenset()) -> None:
        self.name, self.bad = name, bad

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        if row in self.bad:
            raise BadSample(str(row), "cut off")
        return {"name": self.name, "row": row, "epoch": epoch}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"samples": [(sample["name"], sample["row"], sample["epoch"]) for sample in samples]}


def loader_of(lengths: np.ndarray = LENGTHS, **options: Any) -> Loader:
    tokens = {"max_tokens": 4000} | {
        name: options.pop(name) for name in ("max_tokens", "multiple", "pool") & options.keys()
    }
    fields = {"batch_size": 64, "seed": 1, "workers": 0, "dataset": Rows(), "rows": np.arange(len(lengths))} | options
    return Loader(**fields, lengths=lengths, tokens=TokenBatching(**tokens))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=80),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 300),
)
def test_cut_batches_are_as_large_as_can_be(
    lengths: list[int], multiple: int, max_samples: int, max_tokens: int
) -> None:
    lengths = sorted(lengths)[: len(lengths) // multiple * multiple]
    if not lengths or max_samples < multiple:
        return
    array = np.array(lengths)
    if lengths[-1] * multiple > max_tokens:
        with raises_naming(UserError, "max_tokens", f"{lengths[-1]:,}"):
            cut_batches(array, max_tokens=max_tokens, max_samples=max_samples, multiple=multiple)
        return
    bounds = cut_batches(array, max_tokens=max_tokens, max_samples=max_samples, multiple=multiple)
    assert bounds[0] == 0
    assert bounds[-1] == len(lengths)
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        assert (stop - start) % multiple == 0
        assert 0 < stop - start <= max_samples
        assert (stop - start) * lengths[stop - 1] <= max_tokens
        if stop < len(lengths):
            grown = stop + multiple - start
            assert grown > max_samples or grown * lengths[stop + multiple - 1] > max_tokens


def test_padding_falls_and_no_batch_overflows() -> None:
    loader = loader_of()
    steps = loader.token_batches.count_steps()
    batches = [LENGTHS[[row for _, row, _ in batch["samples"]]] for batch in loader.batches(0, steps)]
    assert all(len(batch) <= 64 and len(batch) * batch.max() <= 4000 for batch in batches)
    plain = [
        LENGTHS[batch_rows(step, rows=np.arange(3000), batch_size=len(LENGTHS) // steps, seed=1)[:, 0]]
        for step in range(steps)
    ]
    assert padding_waste(plain) > 0.5
    assert padding_waste(batches) < 0.05
    assert loader.mean_batch_size() == pytest.approx(np.mean([len(batch) for batch in batches]))
    assert loader.mean_batch_size() < 64
    assert Loader(Rows(), rows=np.arange(9), batch_size=4, seed=1).mean_batch_size() == 4


@pytest.mark.parametrize(("pool", "multiple"), [(4096, 1), (1000, 1), (750, 2), (700, 8)])
def test_every_sample_comes_once_an_epoch(pool: int, multiple: int) -> None:
    loader = loader_of(pool=pool, multiple=multiple, max_tokens=16_000)
    steps = loader.token_batches.count_steps(3)
    samples = [sample[1:] for batch in loader.batches(0, steps) for sample in batch["samples"]]
    assert len(set(samples)) == len(samples)
    assert set(samples) >= {(row, epoch) for row in range(3000) for epoch in range(3)}
    if 3000 % loader.token_batches.pool_size == 0:
        assert len(samples) == 9000


def test_lengths_are_mixed_over_the_steps_and_epochs_differ() -> None:
    loader = loader_of()
    steps = loader.token_batches.count_steps()
    longest = [LENGTHS[[row for _, row, _ in batch["samples"]]].max() for batch in loader.batches(0, 2 * steps)]
    first, second = longest[: steps // 2], longest[steps // 2 : steps]
    assert abs(np.mean(first) - np.mean(second)) < 0.3 * np.mean(longest)
    assert longest[:steps] != longest[steps:]
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.3


def test_order_is_a_function_of_seed_step_and_rank() -> None:
    whole = [batch["samples"] for batch in loader_of(multiple=4, max_tokens=8000).batches(0, 200)]
    # A resumed run counts the pools before it again; threads change nothing.
    resumed = loader_of(multiple=4, max_tokens=8000, workers=3)
    assert [batch["samples"] for batch in resumed.batches(150, 200)] == whole[150:]
    halves = [loader_of(multiple=4, max_tokens=8000, rank=rank, world_size=2).batches(0, 20) for rank in range(2)]
    for batch, left, right in zip(whole, *halves, strict=False):
        assert left["samples"] + right["samples"] == batch
        assert len(left["samples"]) == len(right["samples"])
    assert [batch["samples"] for batch in loader_of(multiple=4, max_tokens=8000, seed=2).batches(0, 20)] != whole[:20]


def test_what_cannot_be_batched_is_named() -> None:
    with raises_naming(UserError, "max_tokens", "800", "900"):
        loader_of(max_tokens=800)
    with raises_naming(UserError, "multiple", "3", "2 processes"):
        loader_of(multiple=3, max_tokens=8000, world_size=2)
    with raises_naming(UserError, "batch_size", "4", "8"):
        loader_of(multiple=8, batch_size=4)
    with raises_naming(UserError, "no rows"):
        loader_of(rows=np.arange(0))


def test_a_bad_sample_is_replaced_by_one_that_is_no_longer() -> None:
    bad = frozenset(range(0, 3000, 20))
    batches = list(loader_of(dataset=Rows(bad=bad)).batches(0, 60))
    for batch in batches:
        lengths = LENGTHS[[row for _, row, _ in batch["samples"]]]
        assert len(lengths) * lengths.max() <= 4000
        assert not bad & {row for _, row, _ in batch["samples"]}


def test_mixtures_hold_their_shares() -> None:
    def sources(shift: int = 0) -> list[Source]:
        return [
            Source("short", Rows("short"), np.arange(2000), 1.0, LENGTHS[:2000].clip(max=60) + shift),
            Source("long", Rows("long"), np.arange(500), 3.0, LENGTHS[2000:2500]),
        ]

    def loader(draw: Any = "even", shift: int = 0) -> MixtureLoader:
        return MixtureLoader(
            sources(shift), batch_size=32, seed=0, workers=0, draw=draw, tokens=TokenBatching(max_tokens=4000)
        )

    pool = loader().token_batches.pool_size
    steps = len(loader().token_batches._pool(0))
    names = [name for batch in loader().batches(0, steps) for name, _, _ in batch["samples"]]
    assert len(names) == pool
    assert names.count("long") == pytest.approx(0.75 * pool, abs=2)
    assert loader().describe() != loader(shift=1).describe()
    with raises_naming(UserError, "fixed"):
        loader("fixed")
