"""Trainings of the study `petl`: all methods on one draw of images, and the measures of their logits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.experiment_grid import Cell
from foveate.core.files import atomic_file, read_json, write_json_atomically
from foveate.core.seeds import generator, integer
from foveate.metrics.agreement import agreement, error_consistency
from foveate_labs.studies.petl_worlds import (
    EMOJI,
    GLYPHS,
    ROTATION,
    AdaptationWorld,
    open_emoji,
    open_glyph_world,
    open_rotation,
    prepare_emoji,
    prepare_glyph_world,
    prepare_rotation,
)
from foveate_labs.studies.study import GridStudy

# Measures of the study `petl`: disagreement of models, gain of ensembles, bootstrap intervals.


Logits = NDArray[np.float32]
_RESAMPLES = 1000


def accuracy(logits_NK: Logits, labels_N: NDArray[np.int64]) -> float:
    """Return the accuracy."""
    return float((logits_NK.argmax(axis=1) == labels_N).mean())


def alike(logits: Sequence[tuple[Logits, Logits]], labels_N: NDArray[np.int64]) -> dict[str, float]:
    """Average over pairs of models: disagreement, the minimum that accuracies force, error consistency.

    Two models that are right on shares a and b of the samples differ on at least |a - b| of them.
    """
    sums: dict[str, list[float]] = {"disagree": [], "forced": [], "kappa": []}
    for first, other in logits:
        both = np.stack([first, other])
        sums["disagree"].append(1 - float(agreement(both)[0, 1]))
        sums["forced"].append(abs(accuracy(first, labels_N) - accuracy(other, labels_N)))
        sums["kappa"].append(float(error_consistency(both, labels_N)[0, 1]))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def together(groups: Sequence[Sequence[Logits]], labels_N: NDArray[np.int64]) -> dict[str, float]:
    """Average over groups of models: accuracy of the mean logits, and its gain over the mean member."""
    accuracies, gain = [], []
    for group in groups:
        # Mean logits, because mean probabilities were up to a point worse in the reference measurement.
        accuracies.append(accuracy(np.mean(group, axis=0), labels_N))
        gain.append(accuracies[-1] - float(np.mean([accuracy(member, labels_N) for member in group])))
    return {"acc": float(np.mean(accuracies)), "gain": float(np.mean(gain))}


def all_pairs(logits: Mapping[str, Logits]) -> list[tuple[Logits, Logits]]:
    """List every pair of models once."""
    return [(logits[first], logits[other]) for first, other in combinations(logits, 2)]


def bootstrap(right_SN: Sequence[NDArray[np.bool_]], *, name: str) -> tuple[float, float, float]:
    """Return the mean accuracy with its 95 % bootstrap interval over seeds and images.

    Images are resampled together for all seeds, because all seeds are tested on the same ones.
    """
    right = np.stack(right_SN).astype(np.float64)
    random = generator("petl bootstrap", name)
    seeds, images = right.shape
    means = [
        right[random.integers(0, seeds, seeds)][:, random.integers(0, images, images)].mean() for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(right.mean()), float(low), float(high)


def read_logits(path: Path) -> Logits:
    """Read the logits of a training."""
    with np.load(path, allow_pickle=False) as file:
        return file["logits"]


# Options that are no default: bottlenecks that fit networks of width 64 and 96, and branches of scale 1.
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {},
    "full": {},
    "bitfit": {},
    "layernorm": {},
    "difffit": {},
    "ssf": {},
    "vpt-shallow": {},
    "vpt-deep": {},
    "lora": {"rank": 8},
    "adaptformer": {"rank": 8, "scale": 1.0},
    "pfeiffer": {"rank": 8, "scale": 1.0},
    "houlsby": {"rank": 8, "scale": 1.0},
    "convpass": {"rank": 8, "scale": 1.0},
    "repadapter": {"rank": 8},
    "fact-tt": {"rank": 8},
    "fact-tk": {"rank": 8},
}
THIRTEEN = tuple(name for name in OPTIONS if name not in ("linear", "full", "vpt-shallow"))
TWICE = ("bitfit", "ssf", "lora", "adaptformer")
LIGHT = ("bitfit", "lora", "adaptformer")
BETWEEN = ("full", *LIGHT)
SHUFFLED = ("full", "lora")
ALPHAS = tuple(number / 10 for number in range(11))
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
RATES_OF_FULL = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
CHOOSING_SEED = 1000  # of the draw by which rates are chosen; no result is from it
LIMIT = 0.03
ALL, FEATURES = "all", "features"  # trains every method; solves a head on the features of the untuned network


@dataclass(frozen=True)
class PetlScale:
    """Size of the study; part of the identity of its cells."""

    source_per_class: int
    pool_per_class: int
    shots: int
    rotation_shots: int
    glyph_pretraining_epochs: int
    distillation_epochs: int
    epochs: int
    seeds: int


class PetlTrainings(GridStudy):
    """Train all methods of one cell; every finished training is a file, so that a stopped cell resumes."""

    variants = (ALL, FEATURES)

    def prepare(self) -> None:
        """Make networks and images and choose a learning rate for every method; only what is missing."""
        scale = self.scale
        prepare_glyph_world(
            self.folder / GLYPHS,
            source_per_class=scale.source_per_class,
            pool_per_class=scale.pool_per_class,
            epochs=scale.glyph_pretraining_epochs,
        )
        prepare_emoji(self.folder / EMOJI, epochs=scale.distillation_epochs)
        prepare_rotation(self.folder / ROTATION)
        if self.selected and ALL not in self.selected:
            return  # a solved head has no learning rate
        for condition in (GLYPHS, EMOJI, ROTATION):
            _Cell(self, condition, CHOOSING_SEED, self.folder / condition / "choosing").choose_rates()

    def measure(self, cell: Cell) -> dict[str, float]:
        work = _Cell(self, cell.condition, cell.seed, cell_folder(self.folder, cell))
        return work.solve_probe() if cell.variant == FEATURES else work.measure()

    def world(self, condition: str) -> AdaptationWorld:
        """Open the world of a condition."""
        folder = self.folder / condition
        if condition == ROTATION:
            return open_rotation(folder, self.folder / GLYPHS / "before.safetensors")
        return (open_glyph_world if condition == GLYPHS else open_emoji)(folder)

    def shots(self, condition: str) -> int:
        """Return the number of training images per class."""
        return self.scale.rotation_shots if condition == ROTATION else self.scale.shots

    def rates(self, condition: str) -> dict[str, float]:
        """Read the chosen learning rate of each method; none where nothing was trained with one."""
        path = self.folder / condition / "rates.json"
        return read_json(path) if path.is_file() else {}


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Return the folder with the logits of a cell's trainings."""
    return folder / "cells" / "at-work" / cell.name / "fits"


class _Cell:
    """A draw of training images and all trainings on it."""

    def __init__(self, work: PetlTrainings, condition: str, seed: int, folder: Path) -> None:
        from foveate.adapt.compare.bench import Bench

        self.work, self.condition, self.seed, self.folder = work, condition, seed, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.world = work.world(condition)
        data = self.world.data
        pool = np.flatnonzero((data.splits == "pool") & (data.labels_N >= 0))
        self.learn = data.draw_shots(pool, work.shots(condition), seed=seed)
        # Learning rates are chosen on the rest of the pool, so that neither test set is used for them.
        self.held = np.setdiff1d(pool, self.learn)
        self.rows = {name: data.rows(name) for name in ("test", "shift")}
        self.labels = {name: data.labels_N[rows] for name, rows in self.rows.items()}
        self.bench = Bench(self.world.opened, device=work.device or "cpu")

    def fit(
        self,
        name: str,
        method: str,
        rate: float,
        *,
        measured: NDArray[np.int64],
        data: Any = None,
        seed: int | None = None,
        save: bool = False,
    ) -> Logits:
        """Train unless it is done; return the logits of the rows `measured`."""
        from foveate.adapt.recipe import AdaptTraining

        path = self.folder / f"{name}.npz"
        adapter = self.folder / f"{name}-adapter"
        if not path.is_file():
            # A stop between saving the adapter and the logits leaves an adapter of another run of the optimizer.
            shutil.rmtree(adapter, ignore_errors=True)
            training = AdaptTraining(
                epochs=self.work.scale.epochs,
                batch_size=32,
                learning_rate=rate,
                seed=integer("petl", self.seed, name) % 2**31 if seed is None else seed,
                # More steps than any of these trainings has: none writes a log or a checkpoint on the way.
                log_every=10_000,
                checkpoint_every=10_000,
                workers=0,
            )
            fit = self.bench.fit(
                data or self.world.data,
                self.learn,
                {"method": method, **OPTIONS[method]},
                training,
                folder=self.folder / f"{name}-training",
                test=measured,
                save=adapter if save else None,
                keep_head=True,
            )
            with atomic_file(path) as handle:
                np.savez(handle, logits=fit.logits)
        return read_logits(path)

    def start_from(self, name: str) -> None:
        """Put the head of a saved linear probe into the network; every later training starts from it."""
        from foveate.adapt.folder import load_adapter

        network: Any = self.world.opened.model
        adapted = load_adapter(network, self.folder / f"{name}-adapter")
        head = {key: value.detach().clone() for key, value in adapted.head.state_dict().items()}
        adapted.detach()
        network.head.load_state_dict(head)

    def choose_rates(self) -> None:
        """Choose the rate with the highest accuracy on the rest of the pool; of equal ones the highest."""
        path = self.folder.parent / "rates.json"
        if path.is_file():
            return
        labels, rates_by_method = self.world.data.labels_N[self.held], dict[str, float]()
        for method in OPTIONS:
            rates = RATES_OF_FULL if method == "full" else RATES
            accuracies = {}
            for number, rate in enumerate(rates):
                logits = self.fit(f"{method}-{number}", method, rate, measured=self.held, save=method == "linear")
                accuracies[rate] = accuracy(logits, labels)
            rates_by_method[method] = max(rates, key=lambda rate: (accuracies[rate], rate))
            # A random head would cost methods with few parameters most of their steps: all start from the probe's.
            if method == "linear" and not self.world.trained_head:
                self.start_from(f"linear-{rates.index(rates_by_method[method])}")
        write_json_atomically(path, rates_by_method)

    def solve_probe(self) -> dict[str, float]:
        """Solve a new head on the features of the untuned network and return its accuracies."""
        from foveate.adapt.recipe import AdaptTraining

        accuracies = {}
        for name, measure in (("test", "acc"), ("shift", "shift")):
            fit = self.bench.fit(
                self.world.data,
                self.learn,
                {"method": "linear"},
                AdaptTraining(seed=integer("petl", self.seed, FEATURES) % 2**31, workers=0),
                folder=self.folder / "probe",
                test=self.rows[name],
            )
            assert fit.steps == 0, "the head was trained by steps instead of solved"
            accuracies[measure] = fit.accuracy
        return accuracies

    def measure(self) -> dict[str, float]:
        """Train everything of the cell and return its measures."""
        rates = self.work.rates(self.condition)
        measured = np.concatenate([self.rows["test"], self.rows["shift"]])
        logits = {"linear": self.fit("linear", "linear", rates["linear"], measured=measured, save=True)}
        data, network = self.world.data, self.world.opened.model
        fresh = {name: value.clone() for name, value in network.state_dict().items()}
        if not self.world.trained_head:
            self.start_from("linear")
        logits["before"] = self._plain(measured)
        for method in OPTIONS:
            if method != "linear":
                save = method in BETWEEN
                logits[method] = self.fit(method, method, rates[method], measured=measured, save=save)
        for method in TWICE:
            logits[f"{method}-again"] = self.fit(f"{method}-again", method, rates[method], measured=measured)
        curves = {method: self._curve(method, measured) for method in BETWEEN}
        network.load_state_dict(fresh)
        # The probe's head has seen the true labels: the control must not start from it.
        torch.nn.init.zeros_(network.get_parameter("head.weight"))
        torch.nn.init.zeros_(network.get_parameter("head.bias"))
        labels = data.labels_N.copy()
        labels[self.learn] = generator("petl shuffled", self.seed).permutation(labels[self.learn])
        shuffled = replace(data, labels_N=labels)
        for method in SHUFFLED:
            name = f"{method}-shuffled"
            logits[name] = self.fit(name, method, rates[method], measured=measured, data=shuffled)
        return dict(self._values(logits, curves))

    @torch.no_grad()
    def _plain(self, measured: NDArray[np.int64]) -> Logits:
        """Return logits of the network with the head that tuning starts from."""
        return self._logits(self.world.opened.model, measured)

    def _logits(self, model: Any, measured: NDArray[np.int64]) -> Logits:
        from foveate.records.geometry import View

        parts = []
        with torch.no_grad():
            for part in np.array_split(measured, max(1, len(measured) // 256)):
                pixels = torch.stack([self.world.data.load(row, View()) for row in part.tolist()])
                parts.append(model(self.world.opened.normalize(pixels)).float().numpy())
        return np.concatenate(parts)

    def _curve(self, method: str, measured: NDArray[np.int64]) -> dict[float, Logits]:
        """Return logits at each alpha between the network and the tuned one."""
        from foveate.adapt.folder import load_adapter
        from foveate.adapt.wise import interpolated

        path = self.folder / f"{method}-curve.npz"
        if not path.is_file():
            adapted = load_adapter(self.world.opened.model, self.folder / f"{method}-adapter").eval()
            curve = []
            for alpha in ALPHAS:
                with interpolated(adapted, alpha) as model:
                    curve.append(self._logits(model, measured))
            adapted.detach()
            with atomic_file(path) as handle:
                np.savez(handle, logits=np.stack(curve))
        return dict(zip(ALPHAS, read_logits(path), strict=True))

    def _values(self, logits: dict[str, Logits], curves: dict[str, dict[float, Logits]]) -> Iterator[tuple[str, float]]:
        count = len(self.rows["test"])
        test = {name: member_accuracies[:count] for name, member_accuracies in logits.items()}
        shift = {name: member_accuracies[count:] for name, member_accuracies in logits.items()}
        test |= {f"{name}-half": curve[0.5][:count] for name, curve in curves.items()}
        shift |= {f"{name}-half": curve[0.5][count:] for name, curve in curves.items()}
        for name in test:
            # Second seeds are members of the controls, not rows of their own.
            if not name.endswith("-again"):
                yield f"{name}/acc", accuracy(test[name], self.labels["test"])
                yield f"{name}/shift", accuracy(shift[name], self.labels["shift"])
        labels = self.labels["test"]
        thirteen = {name: test[name] for name in THIRTEEN}
        member_accuracies = [accuracy(member, labels) for member in thirteen.values()]
        yield "thirteen/acc", float(np.mean(member_accuracies))
        yield "thirteen/shift", float(np.mean([accuracy(shift[name], self.labels["shift"]) for name in THIRTEEN]))
        yield "thirteen/spread", float(np.std(member_accuracies, ddof=1))
        # A constant as a measure, because a claim compares two measures.
        yield "thirteen/limit", LIMIT
        yield "best/acc", max(member_accuracies)
        twins = [(test[name], test[f"{name}-again"]) for name in TWICE]
        groups = {"thirteen": all_pairs(thirteen), "seeds": twins}
        for name, pairs in groups.items():
            yield from ((f"{name}/{key}", value) for key, value in alike(pairs, labels).items())
        ensembles = {
            "ensemble": [list(thirteen.values())],
            "pair-methods": all_pairs({name: test[name] for name in TWICE}),
            "pair-seeds": twins,
        }
        for name, members in ensembles.items():
            yield from ((f"{name}/{key}", value) for key, value in together(members, labels).items())
        for name in ("light", "light-half"):
            members = [f"{method}{name.removeprefix('light')}" for method in LIGHT]
            yield f"{name}/acc", float(np.mean([accuracy(test[member], labels) for member in members]))
            yield f"{name}/shift", float(np.mean([accuracy(shift[member], self.labels["shift"]) for member in members]))
        # Chance: a guess by the classes' frequencies in training.
        shares = np.bincount(self.world.data.labels_N[self.learn], minlength=len(self.world.data.classes))
        yield "chance/acc", float((shares / shares.sum())[labels].mean())
