"""Precision of the hints of `foveate species check --model`: planted clocks and cards in another camera's folder.

    python -m benchmarks.species_hints --out DIR

In each generated world a model with all contexts is trained with its places. At unseen cameras a quarter of the clocks
is set 1, 3 or 12 hours off; of the training cameras a quarter of the deployments, with images that were not trained
on, is filed under another of them. Everything is planted in the table of deployments, as a user would have it wrong,
and the hints come from the call that the command makes. Precision at k is the share of planted deployments among the
first k, with k the number that was planted: 0.25 is chance. Its interval is over worlds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.files import write_json_atomically
from foveate.core.recipes import validate
from foveate.core.seeds import generator
from foveate.records.removal import remove_images
from foveate.records.writer import CollectionWriter
from foveate.species.explain import hint_survey
from foveate.species.folder import open_species
from foveate.species.model import SpeciesModel
from foveate.species.recipe import SpeciesRecipe
from foveate.species.train import train_species
from foveate.survey.store import write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment
from foveate_labs.worlds.traps import TrapSettings, build_traps
from foveate_labs.worlds.traps.survey_collection import make_trap_key

CLOCKS = (1, 3, 12)
_SHARE = 0.25
_DRAWS = 5  # of the deployments that get a fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    parser.add_argument("--train", type=int, default=400, help="training images; as many others of their cameras")
    parser.add_argument("--test", type=int, default=320, help="images of unseen cameras")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    worlds = []
    for seed in range(options.seed, options.seed + options.worlds):
        with tempfile.TemporaryDirectory() as folder:
            worlds.append(measure_world(Path(folder), seed, options.train, options.test, options.epochs))
        print(seed, json.dumps(worlds[-1]), flush=True)
    summary = {name: summarize([world[name] for world in worlds]) for name in worlds[0]}
    for name, row in summary.items():
        print(f"{name}: {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f}, {row['n']} worlds)")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {**vars(options), "out": str(options.out)}
    write_json_atomically(options.out / "species_hints.json", {"settings": settings, "mean": summary, "worlds": worlds})


def measure_world(folder: Path, seed: int, train: int, test: int, epochs: int) -> dict[str, float]:
    """Return precision at k of each fault in one world."""
    settings = TrapSettings()
    build_traps(folder / "survey", train=train, validation=train // 6, test=0, seed=seed, settings=settings)
    recipe = validate(SpeciesRecipe, {"training": {"epochs": epochs}, "prior": "none"}, where="benchmark")
    train_species(folder / "survey", folder / "run", recipe, include_locations=True, device="cpu")
    model = open_species(folder / "run/model")
    build_traps(folder / "unseen", train=0, validation=0, test=test, seed=seed, settings=settings)
    build_traps(folder / "held-out", train=2 * train, validation=0, test=0, seed=seed, settings=settings)
    trained_on = [make_trap_key(seed=seed, split="train", index=index) for index in range(train)]
    remove_images(folder / "held-out", trained_on)
    values = {f"clock {hours} h": plant_clocks(model, folder / "unseen", hours, seed) for hours in CLOCKS}
    return {**values, "folder": plant_folders(model, folder / "held-out", seed)}


def plant_clocks(model: SpeciesModel, path: Path, hours: int, seed: int) -> float:
    """Return the mean precision of clock hints over draws of the deployments whose clock is set off."""
    original = Survey.open(path).deployments
    ranked = [hint.deployment for hint in hint_survey(model, path, device="cpu")[0]]
    values = []
    for draw in range(_DRAWS):
        planted = draw_names(ranked, f"clock {hours}", seed, draw)
        write_deployments(
            path, [replace(row, clock_shift=3600 * hours) if row.id in planted else row for row in original]
        )
        clocks, _ = hint_survey(model, path, device="cpu")
        values.append(precision_at(len(planted), [hint.deployment for hint in clocks], planted))
    write_deployments(path, original)
    return float(np.mean(values))


def plant_folders(model: SpeciesModel, path: Path, seed: int) -> float:
    """Return the same of place hints, where the planted deployments have each other's places."""
    original = Survey.open(path).deployments
    ranked = [hint.deployment for hint in hint_survey(model, path, device="cpu")[1]]
    by_id = {row.id: row for row in original}
    values = []
    for draw in range(_DRAWS):
        planted = draw_names(ranked, "folder", seed, draw)
        others = dict(zip(planted, [*planted[1:], planted[0]], strict=True))

        def move(row: Deployment, others: dict[str, str] = others) -> Deployment:
            other = by_id[others.get(row.id, row.id)]
            return replace(row, location=other.location, latitude=other.latitude, longitude=other.longitude)

        write_deployments(path, list(map(move, original)))
        _, places = hint_survey(model, path, device="cpu")
        values.append(precision_at(len(planted), [hint.deployment for hint in places], planted))
    write_deployments(path, original)
    return float(np.mean(values))


def draw_names(names: list[str], fault: str, seed: int, draw: int) -> list[str]:
    """Draw a quarter of the deployments that have a hint."""
    order = generator("species hints", fault, seed, draw).permutation(sorted(names))
    return order[: max(2, round(_SHARE * len(names)))].tolist()


def write_deployments(path: Path, rows: Sequence[Deployment]) -> None:
    """Replace the table of deployments, as a repeated `foveate collect` does."""
    with CollectionWriter(path) as writer:
        write_survey(writer, deployments=rows)


def precision_at(k: int, ranked: list[str], planted: list[str]) -> float:
    """Return the share of planted names among the first k."""
    return len(set(ranked[:k]) & set(planted)) / k


def summarize(values: list[float]) -> dict[str, Any]:
    """Return the mean with its 95 % t-interval over worlds."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


if __name__ == "__main__":
    main()
