"""Effects of the fitted priors at unseen cameras of generated surveys, and in the control world where place is nothing.

Decisions of the survey without its images: the classifier is simulated, the same in both worlds.
"""

from __future__ import annotations

import numpy as np
import pytest

from foveate.species.priors import histogram, learned
from foveate.species.stages.prior import weigh_by_prior
from foveate.species.taxonomy import Classes
from foveate_labs.worlds.traps.kinds import KINDS
from foveate_labs.worlds.traps.world import TrapSettings, World

CLASSES = Classes(tuple(kind.taxon_id for kind in KINDS), np.full(len(KINDS), -1))
SEEDS = range(5)
pytestmark = pytest.mark.slow


def draw_events(world: World, split: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw label, place and hour of events with an animal, as many at each camera."""
    cameras = world.cameras[split]
    events = [world.draw_event(cameras[n % len(cameras)], n // len(cameras)) for n in range(count)]
    rows = [(KINDS.index(e.kind), e.camera.latitude, e.camera.longitude, e.time.hour) for e in events if e.kind]
    table = np.array(rows, dtype=np.float64)
    return table[:, 0].astype(np.int64), table[:, 1:3], table[:, 3]


def measure_gains(*, by_place: bool, by_hour: bool, seed: int) -> dict[str, float]:
    """Return the gain of accuracy at unseen cameras by each prior."""
    world = World(TrapSettings(by_place=by_place, by_hour=by_hour), seed)
    labels, places, hours = draw_events(world, "train", 3000)
    counts = histogram.fit_prior(labels, CLASSES, places=places, hours=hours)
    settings = learned.LearnedSettings(width=64, epochs=15, learning_rate=2e-3, batch_size=256)
    network = learned.fit_prior(labels, CLASSES, places=places, settings=settings)
    truth, test_places, test_hours = draw_events(world, "test", 1500)
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(0, 1.0, (len(truth), len(CLASSES)))) * np.bincount(labels, minlength=len(CLASSES))
    weights[np.arange(len(truth)), truth] *= 12
    p = weights / weights.sum(axis=1, keepdims=True)
    unknown = np.full(len(truth), np.nan)
    factors = {
        "place": counts.factors(test_places, unknown, unknown),
        "hour": counts.factors(np.full_like(test_places, np.nan), test_hours, unknown),
        "learned": network.factors(test_places, unknown, unknown),
    }
    plain = (p.argmax(axis=1) == truth).mean()
    everything = np.ones(len(CLASSES), dtype=bool)
    return {
        name: float((weigh_by_prior(p, f, everything, strength=1, floor=0.01).argmax(axis=1) == truth).mean() - plain)
        for name, f in factors.items()
    }


def test_place_priors_gain_in_every_world_and_not_in_the_control() -> None:
    gains = [measure_gains(by_place=True, by_hour=True, seed=seed) for seed in SEEDS]
    control = [measure_gains(by_place=False, by_hour=False, seed=seed) for seed in SEEDS]
    print([{name: round(gain, 3) for name, gain in row.items()} for row in (*gains, *control)])
    for name in ("place", "learned"):
        assert min(row[name] for row in gains) > 0.03, name
        assert max(row[name] for row in control) < 0.01, name
        # A prior that knows nothing must cost little.
        assert min(row[name] for row in control) > -0.03, name
    assert np.mean([row["hour"] for row in gains]) > np.mean([row["hour"] for row in control])
