"""Trainings and measures of the study `cosmo`: contexts, views, rare species, decisions and hints."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from foveate.core import seeds
from foveate.metrics.classification import count_classes
from foveate.metrics.taxonomy import ClassTree
from foveate.species.classifier import LinkClassifier
from foveate.species.decisions import Decisions, Stages, decide, prepare_stages
from foveate.species.fit import build_link_model
from foveate.species.hints import find_clock_hints, match_places, normalized_ranks
from foveate.species.link_data import link_arrays
from foveate.species.links import ConcatBaseline, ImageNetwork, Relation, concat_inputs
from foveate.species.priors.histogram import fit_prior
from foveate.species.recipe import Context, GraphSettings
from foveate.species.stages.prior import scale_temperature
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa
from foveate.training.linear_probe import solve_head
from foveate.vision.registry import seeded
from foveate_labs.studies.cosmo_worlds import EXACT, TrapImages, TrapWorld
from foveate_labs.worlds.traps.kinds import KINDS

LABELS = np.array([kind.taxon_id for kind in KINDS])
RARE_COUNTS = (3, 10, 30)
NUM_RARE = 8
CLOCK_FAULTS = (1, 3, 12)  # hours
# At least 1: probabilities are only softened, since an overconfident model leaves a prior nothing to decide.
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LIST_SHARE = 0.002  # of a region's events: a person knows the species that pass
BATCH = 16
_BASELINE_RATE = 1e-3
TRAINED_RATE = 1e-4  # of an encoder's trained layers: at 1e-3 a few passes over places make all vectors alike
Method = Literal["graph", "erm", "probe", "concat"]


@dataclass(frozen=True)
class Arm:
    """A training.

    Args:
        contexts: of the graph. shuffled: those that are dealt out at random.
        passes: over the taxonomy in an epoch.
        official: start, inputs and order of passes of the released code.
        equal: as many steps of the image network as all others; else as many epochs as the graph of all contexts.
        balanced: logits adjusted by the counts of classes.
    """

    title: str
    what: str
    method: Method = "graph"
    contexts: tuple[Context, ...] = ()
    shuffled: tuple[Context, ...] = ()
    passes: int = 1
    official: bool = False
    equal: bool = True
    balanced: bool = False


_ALL: tuple[Context, ...] = ("taxonomy", "place", "time")
ARMS: dict[str, Arm] = {
    "none": Arm("image only", "the graph without contexts"),
    "erm": Arm("ERM", "a linear head, trained alike", "erm"),
    "probe": Arm("linear probe", "logistic regression, its penalty by cross-validation", "probe"),
    "concat": Arm("MLP-concat", "place and hour are inputs, at test time as well", "concat"),
    **{
        name: Arm(name, f"the graph with {name}", contexts=(name,))  # pyrefly: ignore[bad-argument-type]
        for name in _ALL
    },
    **{
        f"{name}-shuffled": Arm(
            f"{name}, shuffled",
            "species under each other's parents" if name == "taxonomy" else f"the {name}s of other images",
            contexts=(name,),  # pyrefly: ignore[bad-argument-type]
            shuffled=(name,),  # pyrefly: ignore[bad-argument-type]
        )
        for name in _ALL
    },
    "taxonomy-10": Arm("taxonomy, 10 passes", "10 passes an epoch", contexts=("taxonomy",), passes=10),
    "taxonomy-10-shuffled": Arm(
        "taxonomy, 10 passes, shuffled", "the same with a shuffled taxonomy", contexts=("taxonomy",),
        shuffled=("taxonomy",), passes=10,
    ),
    "all": Arm("all contexts", "taxonomy, place and time", contexts=_ALL),
    "all-shuffled": Arm("all contexts, shuffled", "each of them shuffled", contexts=_ALL, shuffled=_ALL),
    # In the released code a context adds steps as well as knowledge; this arm shows what steps alone are worth.
    "none-epochs": Arm("image only, fewer steps", "as many epochs as all contexts: a third of the steps", equal=False),
    "official": Arm(
        "all contexts, official start", "numbers start at U(0, 1) on raw degrees and hours", contexts=_ALL,
        official=True,
    ),
}  # fmt: skip
RARE_ARMS: dict[str, Arm] = {
    f"rare-{key}{'-balanced' if balanced else ''}": replace(
        arm, title=f"{arm.title}{', balanced' if balanced else ''}", balanced=balanced
    )
    for key, arm in {
        "none": ARMS["none"],
        **{
            f"taxonomy-{passes}{'-shuffled' if shuffled else ''}": Arm(
                f"taxonomy, {passes} passes{', shuffled' if shuffled else ''}",
                f"{passes} passes over the {'shuffled' if shuffled else 'right'} taxonomy an epoch",
                contexts=("taxonomy",),
                shuffled=("taxonomy",) if shuffled else (),
                passes=passes,
            )
            for passes in (1, 10, 50)
            for shuffled in (False, True)
        },
    }.items()
    for balanced in (False, True)
}
DECISIONS = {
    "plain": ("plain", "the most probable species of each image"),
    "prior-place": ("prior of place", "counts of training images near the camera"),
    "prior-hour": ("prior of hour", "counts of training images around the hour"),
    "prior-both": ("prior of place and hour", "both"),
    "list": ("species list", f"species of the region with at least {LIST_SHARE:.1%} of its events"),
    "burst": ("burst", "images of an event decide together"),
    "threshold": ("threshold .65", "no answer below"),
    "rollup": ("roll-up .65", "a higher taxon where no species is likely enough"),
}


def measure_contexts(world: TrapWorld, *, dim: int, passes: int, seed: int) -> dict[str, float]:
    """Train every arm on crops and test it at unseen cameras."""
    return {
        f"{key}/{name}": value
        for key, arm in ARMS.items()
        for name, value in measure_arm(world, arm, dim=dim, passes=passes, seed=seed).items()
    }


def measure_views(world: TrapWorld, *, dim: int, passes: int, seed: int) -> dict[str, float]:
    """Train on each view of the images, without contexts and with all; what places are learned from differs."""
    values = {}
    for view in world.views:
        for key in ("none", "all"):
            measured = measure_arm(world, ARMS[key], dim=dim, passes=passes, seed=seed, view=view)
            values |= {f"{view}-{key}/{name}": value for name, value in measured.items()}
    return values


def measure_rare(world: TrapWorld, *, dim: int, passes: int, seed: int) -> dict[str, float]:
    """Leave 3, 10 or 30 training images of some species, and train without, with and with a shuffled taxonomy."""
    counts_K = np.bincount(world.train.kinds_N, minlength=len(KINDS))
    # The most frequent species: these have images to take away, and enough to test on.
    rare = np.argsort(-counts_K, kind="stable")[:NUM_RARE]
    values = {}
    for count in RARE_COUNTS:
        rng = seeds.generator("study cosmo rare", seed, count)
        rows = rng.permutation(len(world.train))
        ranks_N = np.zeros(len(rows), np.int64)
        for kind in rare.tolist():
            members = rows[world.train.kinds_N[rows] == kind]
            ranks_N[members] = np.arange(len(members))
        train = world.train.select(~np.isin(world.train.kinds_N, rare) | (ranks_N < count))
        for key, arm in RARE_ARMS.items():
            trained = _fit(replace(world, train=train), arm, dim=dim, passes=passes, seed=seed)
            predicted_N = trained.predict(world.test)
            seen = ~world.test.unseen_N
            correct_N = predicted_N == world.test.kinds_N
            is_rare = np.isin(world.test.kinds_N, rare)
            # A small test may show none of them: no number then, as for any measure that a cell does not have.
            if (seen & is_rare).any():
                values[f"{key}/rare_{count}"] = float(correct_N[seen & is_rare].mean())
            values[f"{key}/all_{count}"] = float(correct_N[seen].mean())
            values |= _lca_height(world, predicted_N, f"{key}/lca_{count}")
    return values


def measure_decisions(world: TrapWorld, *, dim: int, passes: int, seed: int) -> dict[str, float]:
    """Decide by each stage on the probabilities of one model, the graph without contexts, as sure as it may be."""
    trained = _fit(world, ARMS["none"], dim=dim, passes=passes, seed=seed)
    test = world.test.select(~world.test.unseen_N)
    probabilities_NK = trained.probabilities(test)
    taxa_K = np.array([world.taxa.index(label) for label in LABELS])
    classes = Classes(tuple(LABELS.tolist()), taxa_K)
    train = world.train
    temperature = _fit_temperature(trained.probabilities(world.held_out), world.held_out.kinds_N)
    values = {"plain/temperature": temperature}

    def run(key: str, options: Mapping[str, Any], **inputs: Any) -> None:
        # Every stage is off but the one that a run measures.
        settings: dict[str, Any] = {"pooling": {"method": "none"}, "rollup": {"enabled": False}}
        settings |= {"threshold": {"threshold": 0}, "temperature": {"temperature": temperature}}
        stages = prepare_stages(Stages(**{**settings, **options}), classes, world.taxa)
        decisions = decide(probabilities_NK, classes, world.taxa, stages, **inputs)
        values.update({f"{key}/{name}": value for name, value in _score_decisions(decisions, test, taxa_K).items()})

    run("plain", {})
    run("burst", {"pooling": {"method": "mean_logprob"}}, events=test.events_N)
    run("threshold", {"threshold": {"threshold": 0.65}})
    run("rollup", {"rollup": {"enabled": True}, "threshold": {"threshold": 0.65}})
    with tempfile.TemporaryDirectory() as folder:
        # Every event once: the images of a burst are one visit.
        firsts = np.unique(train.events_N, return_index=True)[1]
        visits = train.select(firsts)
        prior = fit_prior(visits.kinds_N, classes, places=visits.places_N2, hours=visits.hours_N)
        prior_folder = prior.save(Path(folder) / "prior")
        for key, parts in (("place", ("place",)), ("hour", ("hour",)), ("both", ("place", "hour"))):
            options = {"source": prior_folder, **{f"by_{part}": True for part in parts}}
            run(f"prior-{key}", {"prior": options}, places=test.places_N2, hours=test.hours_N)
    values |= {f"list/{name}": value for name, value in _decide_by_lists(world, test, probabilities_NK).items()}
    return values


def measure_hints(world: TrapWorld, *, dim: int, passes: int, seed: int) -> dict[str, float]:
    """Plant wrong clocks at unseen cameras and wrong folders at training cameras, and rank them by the graph."""
    trained = _fit(world, ARMS["all"], dim=dim, passes=passes, seed=seed)
    classifier = trained.classifier
    test = world.test
    cameras_N = [f"camera {number}" for number in test.cameras_N]
    scores_NH = classifier.predict_links(world.features(test, EXACT), "time")

    def rank_clocks(hours_N: NDArray[np.float64]) -> dict[str, float]:
        return {
            hint.deployment: hint.rank for hint in find_clock_hints(scores_NH, classifier.hours_, hours_N, cameras_N)
        }

    right = rank_clocks(test.hours_N)
    # A constant as a measure: the other side of the claims about AUCs.
    values = {"hints/auc_chance": 0.5}
    for hours in CLOCK_FAULTS:
        wrong = rank_clocks((test.hours_N + hours) % 24)
        values |= _score_hints(right, wrong, f"{hours}h", seed)
    held_out = world.held_out
    scores_NP = classifier.predict_links(world.features(held_out, EXACT), "place")
    columns_N, _ = match_places(classifier.places_, held_out.places_N2, held_out.cameras_N.astype(object))
    rng = seeds.generator("study cosmo folders", seed)
    # No camera keeps its own folder, as some would under a plain permutation.
    others_P = _derange(len(classifier.places_), rng)
    right = _mean_ranks(scores_NP, columns_N, held_out.cameras_N)
    wrong = _mean_ranks(scores_NP, np.where(columns_N < 0, -1, others_P[columns_N]), held_out.cameras_N)
    values |= _score_hints(right, wrong, "folder", seed)
    return values


class _Trained:
    """A trained arm: species of images, and for graphs the classifier."""

    def __init__(self, world: TrapWorld, view: str, labels: NDArray[np.int64], scores: Any, classifier: Any) -> None:
        self.world, self.view, self._labels, self._scores, self._classifier = world, view, labels, scores, classifier

    @property
    def classifier(self) -> LinkClassifier:
        assert self._classifier is not None, "a baseline has no links"
        return self._classifier

    @property
    def is_graph(self) -> bool:
        return self._classifier is not None

    def probabilities(self, images: TrapImages) -> NDArray[np.float64]:
        """Return probabilities [N, kinds]; 0 for species without a training image."""
        scores_NC = torch.as_tensor(self._scores(images)).double()
        result = np.zeros((len(images), len(KINDS)))
        result[:, self._labels] = scores_NC.softmax(1).numpy()
        return result

    def predict(self, images: TrapImages) -> NDArray[np.int64]:
        return self.probabilities(images).argmax(1)


def _fit(world: TrapWorld, arm: Arm, *, dim: int, passes: int, seed: int, view: str = EXACT) -> _Trained:
    """Train an arm; `passes` over the images, of the image network."""
    train = world.train
    features_NF = world.features(train, view)
    labels, numbers_N = np.unique(train.kinds_N, return_inverse=True)
    if arm.method == "graph":
        classifier = _fit_graph(world, arm, features_NF, dim=dim, passes=passes, seed=seed)
        # Classes of the classifier are taxon ids in the order of their text.
        order = np.array([LABELS.tolist().index(label) for label in classifier.classes_])

        def score_graph(images: TrapImages) -> Any:
            with torch.no_grad():
                return classifier.model_(torch.from_numpy(world.features(images, view)), Relation.SPECIES)

        return _Trained(world, view, order, score_graph, classifier)
    if arm.method == "probe":
        head = solve_head(features_NF, numbers_N, num_classes=len(labels), seed=seed)
        return _Trained(
            world, view, labels, lambda images: world.features(images, view) @ head.weight_KD.T + head.bias_K, None
        )
    return _fit_baseline(world, arm, view, labels, numbers_N, dim=dim, passes=passes, seed=seed)


def _fit_graph(
    world: TrapWorld, arm: Arm, features_NF: NDArray[np.float32], *, dim: int, passes: int, seed: int
) -> LinkClassifier:
    train = world.train
    rng = seeds.generator("study cosmo shuffled", seed)
    orders = {name: rng.permutation(len(train)) if name in arm.shuffled else slice(None) for name in ("place", "time")}
    contexts_with_images = sum(name in arm.contexts for name in ("place", "time"))
    # An epoch has a pass over the images for the species and one for each context of images: fewer epochs, so that
    # every arm takes as many steps of the image network.
    divisor = 1 + contexts_with_images if arm.equal else 3
    inputs = {"start": "official", "place_input": "raw", "hour_input": "raw"} if arm.official else {}
    return LinkClassifier(
        contexts=arm.contexts,
        dim=dim,
        epochs=max(1, passes // divisor),
        batch_size=BATCH,
        taxonomy_passes=arm.passes,
        # Else arms with place and time would see the species more often than the others.
        extra_species_pass=False,
        balance="logit_adjustment" if arm.balanced else "none",
        # No early stopping: arms are compared at equal steps.
        patience=None,
        encoder=world.encoder,
        image_learning_rate=_BASELINE_RATE if world.encoder is None else TRAINED_RATE,
        random_state=seed,
        **inputs,  # pyrefly: ignore[bad-argument-type]
    ).fit(
        features_NF,
        LABELS[train.kinds_N],
        places=train.places_N2[orders["place"]],
        hours=train.hours_N[orders["time"]],
        taxa=world.shuffled_taxa if "taxonomy" in arm.shuffled else world.taxa,
    )


def _fit_baseline(
    world: TrapWorld,
    arm: Arm,
    view: str,
    labels: NDArray[np.int64],
    numbers_N: NDArray[np.int64],
    *,
    dim: int,
    passes: int,
    seed: int,
) -> _Trained:
    """Train a linear head or MLP-concat by Adam, with the batches and rates of the graph."""
    train, graph = world.train, GraphSettings(dim=dim)
    width = world.features(train, view).shape[1]
    reference = np.unique(train.places_N2, axis=0)

    def inputs(images: TrapImages) -> torch.Tensor:
        features = torch.from_numpy(world.features(images, view))
        if arm.method == "erm":
            return features
        return concat_inputs(features, graph, images.places_N2, images.hours_N, reference=reference)

    with seeded(seed):
        network: torch.nn.Module = torch.nn.Linear(width, len(labels))
        if arm.method == "concat":
            network = ConcatBaseline(
                ImageNetwork(width, dim), num_classes=len(labels), dim=dim, place_width=2, hour_width=1, start="sane"
            )
    inputs_NF, targets_N = inputs(train), torch.from_numpy(numbers_N)
    optimizer = torch.optim.Adam(network.parameters(), lr=_BASELINE_RATE)
    rng = seeds.generator("study cosmo baseline", seed)
    for _ in range(passes):
        for rows in torch.from_numpy(rng.permutation(len(train))).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs_NF[rows]), targets_N[rows]).backward()
            optimizer.step()
    network.eval()

    def score(images: TrapImages) -> Any:
        with torch.no_grad():
            return network(inputs(images))

    return _Trained(world, view, labels, score, None)


def measure_arm(world: TrapWorld, arm: Arm, *, dim: int, passes: int, seed: int, view: str = EXACT) -> dict[str, float]:
    """Train an arm on a view and measure it at unseen cameras, and what it learned of its contexts."""
    trained = _fit(world, arm, dim=dim, passes=passes, seed=seed, view=view)
    predicted_N = trained.predict(world.test)
    correct_N = predicted_N == world.test.kinds_N
    # Drawings that no training image shows are reported separately, as `accuracy_unseen`.
    seen = ~world.test.unseen_N
    counts = count_classes(predicted_N[seen], world.test.kinds_N[seen], len(KINDS))
    values = {
        "accuracy": float(correct_N[seen].mean()),
        "accuracy_unseen": float(correct_N[~seen].mean()),
        "macro_f1": counts.macro_f1("present"),
        "held_out": float((trained.predict(world.held_out) == world.held_out.kinds_N).mean()),
    }
    values |= _lca_height(world, predicted_N, "lca")
    if trained.is_graph:
        values |= _measure_links(world, trained.classifier, view)
        if "taxonomy" in arm.contexts:
            values["siblings"] = _sibling_cosine(trained.classifier, world.taxa)
        if "place" in arm.contexts and world.encoder is None:
            values |= _first_losses(world, arm, view, dim=dim, seed=seed)
    return values


def _measure_links(world: TrapWorld, classifier: LinkClassifier, view: str) -> dict[str, float]:
    """Return the binary cross-entropy of places and hours of held-out images, beside that of chance."""
    held_out = world.held_out
    candidates = {"place": (classifier.places_, held_out.places_N2), "time": (classifier.hours_, held_out.hours_N)}
    values = {}
    for name in classifier.contexts_:
        if name == "taxonomy":
            continue
        tails, recorded = candidates[name]
        # Rounded as in `species.triples` (PLACE_DIGITS): equal places must be equal numbers.
        tails_TF, recorded_NF = (
            np.round(np.asarray(part, float).reshape(len(part), -1), 7) for part in (tails, recorded)
        )
        target_NT = (recorded_NF[:, None] == tails_TF[None]).all(2)
        # A camera or hour without a training image is no candidate.
        known = target_NT.any(1)
        logits_NT = torch.from_numpy(classifier.predict_links(world.features(held_out, view)[known], name)).double()
        loss = F.binary_cross_entropy_with_logits(logits_NT, torch.from_numpy(target_NT[known]).double())
        # The least loss of a reader that knows nothing: the entropy of one right tail among all candidates.
        share = 1 / len(tails_TF)
        values[f"{name}_loss"] = float(loss)
        values[f"{name}_chance"] = float(-share * np.log(share) - (1 - share) * np.log1p(-share))
    return values


def _first_losses(world: TrapWorld, arm: Arm, view: str, *, dim: int, seed: int) -> dict[str, float]:
    """Return the loss of places before the first step, and what a start must stay below or exceed, as logarithms.

    The official start's losses differ by factors from world to world.
    """
    train = world.train
    labels = LABELS[train.kinds_N].tolist()
    data = link_arrays(
        labels, order=sorted(set(labels)), taxa=world.taxa, places=train.places_N2, hours=train.hours_N,
        contexts=arm.contexts, validation=None,
    )  # fmt: skip
    raw: dict[str, Any] = {"start": "official", "place_input": "raw", "hour_input": "raw"} if arm.official else {}
    features_NF = world.features(train, view)
    settings = GraphSettings(dim=dim, contexts=arm.contexts, **raw)
    model = build_link_model(data, settings, lambda: ImageNetwork(features_NF.shape[1], dim), seed=seed).eval()
    rows = np.arange(min(BATCH, len(train)))
    with torch.no_grad():
        logits_BP = model(torch.from_numpy(features_NF[rows]), Relation.LOCATION)
    target_BP = F.one_hot(torch.from_numpy(data.place_N[rows]), logits_BP.shape[1]).float()
    loss = float(F.binary_cross_entropy_with_logits(logits_BP, target_BP))
    return {"first_place_loss": float(np.log10(loss)), "first_low": 0.0, "first_high": 2.0}


def _sibling_cosine(classifier: LinkClassifier, taxa: Taxa) -> float:
    """Return the mean cosine of the vectors of species of one family."""
    vectors = classifier.entity_vectors_[: len(classifier.classes_)]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    families = np.array([taxa.at_rank(taxa.index(label), "family") for label in classifier.classes_])
    pairs = np.triu(families[:, None] == families[None], 1)
    return float((vectors @ vectors.T)[pairs].mean())


def _lca_height(world: TrapWorld, predicted_N: NDArray[np.int64], name: str) -> dict[str, float]:
    """Return the mean height of the lowest common ancestor of errors on seen drawings; nothing without errors."""
    tree = ClassTree([world.taxa.index(label) for label in LABELS], world.taxa.parents)
    seen = ~world.test.unseen_N
    height = tree.lca_heights_of_errors(predicted_N[seen], world.test.kinds_N[seen]).mean
    return {name: height} if np.isfinite(height) else {}


def _score_decisions(decisions: Decisions, images: TrapImages, taxa_K: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy of species, coverage, precision of any answer, and the share of answers that are species."""
    # By image, also where an event decided for all of its images.
    answers_N = decisions.answers_R[decisions.decisions_N]
    truth_N = taxa_K[images.kinds_N]
    answered = answers_N >= 0
    lineages = [set(decisions.taxa.lineage(int(taxon))) for taxon in truth_N]
    right = np.array([int(answer) in lineage for answer, lineage in zip(answers_N, lineages, strict=True)])
    is_species = np.isin(answers_N, taxa_K)
    values = {
        "accuracy": float((answers_N == truth_N).mean()),
        "coverage": float(answered.mean()),
        "species_share": float(is_species.mean()),
    }
    if answered.any():
        values["precision"] = float(right[answered].mean())
    return values


def _fit_temperature(probabilities_NK: NDArray[np.float64], truth_N: NDArray[np.int64]) -> float:
    """Return the temperature of least negative log-likelihood on held-out images.

    A model that is too sure leaves a prior nothing to decide.
    """
    # A species without a training image has probability 0 and an infinite loss at any temperature.
    known = probabilities_NK[np.arange(len(truth_N)), truth_N] > 0
    losses = []
    for temperature in TEMPERATURES:
        scaled = scale_temperature(probabilities_NK[known], temperature)
        losses.append(-np.log(scaled[np.arange(len(scaled)), truth_N[known]]).mean())
    return TEMPERATURES[int(np.argmin(losses))]


def _decide_by_lists(world: TrapWorld, test: TrapImages, probabilities_NK: NDArray[np.float64]) -> dict[str, float]:
    cameras = world.world.cameras["test"]
    regions_N = np.array([cameras[number].region for number in test.cameras_N])
    predicted_N = np.zeros(len(test), np.int64)
    for region in np.unique(regions_N):
        local = [world.world.shares_at(camera) for camera in cameras if camera.region == region]
        listed_K = np.mean(local, axis=0) >= LIST_SHARE
        rows = regions_N == region
        predicted_N[rows] = np.where(listed_K, probabilities_NK[rows], -1).argmax(1)
    return {"accuracy": float((predicted_N == test.kinds_N).mean()), "coverage": 1.0}


def _mean_ranks(
    scores_NP: NDArray[Any], columns_N: NDArray[np.int64], cameras_N: NDArray[np.int64]
) -> dict[str, float]:
    ranks_N = normalized_ranks(scores_NP, columns_N)
    # A mean over fewer images than 5 says little of a camera.
    cameras = [camera for camera in np.unique(cameras_N) if np.isfinite(ranks_N[cameras_N == camera]).sum() >= 5]
    return {f"camera {camera}": float(np.nanmean(ranks_N[cameras_N == camera])) for camera in cameras}


def _derange(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return another number for each of `count`, no two the same."""
    order = rng.permutation(count)
    result = np.empty(count, np.int64)
    result[order] = np.roll(order, 1)
    return result


def _score_hints(right: Mapping[str, float], wrong: Mapping[str, float], fault: str, seed: int) -> dict[str, float]:
    """Score mean ranks of cameras without a fault and with it: AUC, and how many of the first ranks are faults.

    For the second every fourth camera gets the fault, in 20 draws.
    """
    # A shifted hour that no training image has is not ranked; in a small world no camera may be.
    names = sorted(set(right) & set(wrong))
    if not names:
        return {}
    ranks = [*(wrong[name] for name in names), *(right[name] for name in names)]
    count = max(1, len(names) // 4)
    shares = []
    for draw in range(20):
        planted = set(seeds.generator("study cosmo planted", seed, draw).permutation(names)[:count].tolist())
        first = sorted(names, key=lambda name: -(wrong if name in planted else right)[name])[:count]
        shares.append(sum(name in planted for name in first) / count)
    auc = float(roc_auc_score([1] * len(names) + [0] * len(names), ranks))
    return {f"hints/auc_{fault}": auc, f"hints/precision_{fault}": fmean(shares)}
