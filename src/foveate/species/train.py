"""`foveate species train`: a survey, its taxonomy and an encoder in; a model folder and result.json out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.files import sha256_file, sha256_folder
from foveate.core.progress import say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.records.collection import Collection
from foveate.species.baselines import LinearBaseline, SpeciesNetwork, build_concat, concat_inputs
from foveate.species.crops import Views
from foveate.species.feature_files import read_features
from foveate.species.fit import (
    FeatureInputs,
    Inputs,
    PixelInputs,
    build_link_model,
    fit_links,
    measure,
    order_passes,
)
from foveate.species.folder import check_locations, open_species, save_species
from foveate.species.graph import SpeciesGraph, is_graph, open_collection
from foveate.species.link_data import LinkData, check_classes, link_graph
from foveate.species.links import ImageNetwork, Relation
from foveate.species.model import SpeciesInfo, SpeciesModel
from foveate.species.numeric import summarize_reference
from foveate.species.priors import PRIOR, fit_survey_prior
from foveate.species.recipe import SpeciesRecipe
from foveate.species.results import ClassResult, PassResult, SpeciesTrainResult
from foveate.species.task import chance_loss
from foveate.species.taxonomy import open_taxa
from foveate.survey.survey import Survey
from foveate.training.distributed import start
from foveate.training.linear_probe import solve_head
from foveate.training.loop import TrainingOutcome
from foveate.vision.encoder import ImageEncoder
from foveate.vision.feature_cache import FeatureCache, VectorEncoder, choose_cache_folder
from foveate.vision.preprocess import read_image
from foveate.vision.registry import build_image_encoder, seeded

# Fields that a resumed run may change: they decide nothing about the result.
_FREE = ("training.log_every", "training.checkpoint_every", "training.workers")
_NEVER = -1e4  # score of a class whose probability is 0 in single precision
_LOGGED = 5  # rows of the log that a pass's last loss is the mean of
MODEL = "model"
_DATA = "graph.json"  # hashes of what a run was begun with


@dataclass(frozen=True)
class SpeciesRun:
    """Outcome of `train_species`; `model` is None where the run was stopped."""

    run: RunFolder
    result: SpeciesTrainResult
    model: SpeciesModel | None


@dataclass(frozen=True)
class _Sources:
    """Where the inputs of images come from, and what was seen of them."""

    inputs: Inputs
    width: int
    encoder: ImageEncoder | None
    fingerprint: str
    cropped: int
    strips: str
    unreadable: Mapping[str, str]


def train_species(
    source: Path,
    run_path: Path,
    recipe: SpeciesRecipe,
    *,
    taxonomy: Path | None = None,
    include_locations: bool = False,
    device: str | None = None,
    command: list[str] | None = None,
) -> SpeciesRun:
    """Train a model on a survey; the same call again resumes a stopped run, bit for bit on a processor.

    Args:
        source: folder of a graph, or a collection with a camera-trap survey.
        run_path: run folder; the model is in its folder `model`, its prior of place, hour and season in `prior`.
        taxonomy: of a collection: table with columns taxon and parent; that of the survey, or the shipped one, by
            default.
        include_locations: write coordinates of cameras into the model folder; without effect where no place is trained
            on.
        command: command line, for the page.

    Raises:
        UserError: recipe, survey and taxonomy do not fit, or the run folder holds another run.
    """
    # Before the collection is opened: a refusal after hours of training would lose them.
    check_locations(recipe.method, include_locations)
    for name, reason in recipe.idle_fields().items():
        say(f"{name} has no effect with {reason}")
    with _open_source(source) as collection, start(device or "auto") as here:
        if is_graph(source):
            if taxonomy is not None:
                raise UserError(f"taxonomy {taxonomy} has no effect: {source} is a graph, which has its taxa")
            graph = SpeciesGraph.open(source, train=recipe.data.train)
        else:
            taxa = open_taxa(collection, taxonomy)
            graph = SpeciesGraph.from_collection(collection, taxa, train=recipe.data.train)
        data = link_graph(
            graph,
            collection,
            train=recipe.data.train,
            validation=recipe.data.validation,
            contexts=recipe.graph.contexts if recipe.method == "cosmo" else (),
            all_candidates=recipe.graph.candidates == "all",
        )
        run = RunFolder.create(run_path, command=command, recipe=dump(recipe), free=_FREE)
        # Hashed before unreadable images are taken out: hashes describe the survey, not what this machine can decode.
        identity = _check_data(run, data, recipe.data.features)
        sources = _open_inputs(recipe, collection, data, run, here.device)
        data = _without(data, sources.unreadable, collection.keys)
        if include_locations and not _reads_places(recipe, data):
            say("--include-locations has no effect: no place is trained on")
        network, sources = _build(recipe, data, sources, collection.keys)
        # Not before: a first attempt with a wrong file must not block the corrected one.
        run.write_result(identity, _DATA)
        if recipe.method == "linear_probe":
            outcome = _solve(network, data, sources, recipe)
        else:
            outcome = fit_links(
                network, data, sources.inputs, recipe.training, run, image_learning_rate=recipe.image_learning_rate
            )
        network.to(here.device).eval()
        finished = outcome.status == "finished"
        metrics = dict(measure(network, data, sources.inputs)) if finished and len(data.validation_rows) else {}
        result = _describe(recipe, data, collection, graph, sources, network, outcome, run, metrics, command)
        model = None
        if finished:
            info = _inform(recipe, data, sources, result)
            folder = save_species(run.path / MODEL, network, info, include_locations=include_locations, metrics=metrics)
            model = open_species(folder)
            if recipe.prior != "none":
                # Beside the model and not in it: a model that is passed on must not carry where its cameras stood.
                if fit_survey_prior(run.path / PRIOR, recipe.prior, data, Survey.open(collection)) is None:
                    say(f"no prior: no training image has what the {recipe.prior} prior reads (place, hour or day)")
        # Written last: a run with a result always has its model and its prior.
        run.write_result(result.to_json())
    return SpeciesRun(run, result, model)


def _open_source(source: Path) -> Collection:
    return open_collection(source) if is_graph(source) else Collection.open(source)


def _check_data(run: RunFolder, data: LinkData, features: str | None) -> dict[str, str]:
    """Return hashes of the graph and of the file of features.

    Raises:
        UserError: the run folder was begun with others; its checkpoints number other classes, or read other vectors.
    """
    path, identity = run.path / _DATA, data.describe()
    # Compared by content, because a file may be rewritten under the same name.
    if features is not None:
        source = Path(features)
        if not source.exists():
            raise UserError(f"data.features: {features}: no such file; expected npz or Parquet")
        identity["features"] = sha256_folder(source) if source.is_dir() else sha256_file(source)
    if path.exists() and (saved := json.loads(path.read_text(encoding="utf-8"))) != identity:
        fields = [name for name in identity if saved.get(name) != identity[name]]
        raise UserError(
            f"{run.path}: begun with other data ({', '.join(fields)} differ); choose another folder with --run"
        )
    return identity


def _open_inputs(
    recipe: SpeciesRecipe, collection: Collection, data: LinkData, run: RunFolder, device: torch.device
) -> _Sources:
    rows = np.sort(np.concatenate([data.train_rows, data.validation_rows]))
    if recipe.data.features is not None:
        features_NF, missing = read_features(Path(recipe.data.features), collection.keys, rows)
        reasons = dict.fromkeys((collection.keys[row] for row in missing.tolist()), "no features in the file")
        return _Sources(FeatureInputs(features_NF), features_NF.shape[1], None, "", 0, "keep", reasons)
    encoder = build_image_encoder(recipe.encoder, seed=recipe.training.seed)
    views = Views(collection, rows, recipe.view)
    num_found = sum(strips.top > 0 or strips.bottom > 0 for strips in views.strips.values())
    strips = recipe.view.strips if not views.strips else f"crop, found on {num_found} of {len(views.strips)} cameras"
    if recipe.view.strips == "crop" and recipe.view.strip_px:
        strips = f"crop, {recipe.view.strip_px} pixels"
    if recipe.train_encoder:
        if encoder.fingerprint():
            raise UserError(
                f"encoder '{recipe.encoder.get('kind')}': its network is frozen, so it cannot be trained (got "
                "train_encoder: true); set frozen: false or choose another kind, such as timm"
            )

        def load(row: int) -> Tensor:
            return read_image(collection, row, encoder.preprocess, views[row])[0]

        inputs: Inputs = PixelInputs(load, collection.keys)
        return _Sources(inputs, encoder.vector_width, encoder, "", views.cropped, strips, {})
    # A frozen encoder sees each image once; later epochs and trainings read the cache.
    frozen = VectorEncoder(encoder).to(device)
    cache = FeatureCache(
        frozen,
        collection,
        rows,
        folder=choose_cache_folder(collection, run.path),
        views=1,
        view_of=views.view_of,
        device=device,
    )
    cache.fill()
    # By row of the collection, as links name images; rows without a link are never read.
    features_NF = torch.zeros(len(collection), frozen.vector_width)
    for row in rows.tolist():
        features_NF[row] = cache.features(row, 0)
    unreadable = {collection.keys[row]: reason for row, reason in cache.bad.items()}
    fingerprint = frozen.fingerprint()
    return _Sources(
        FeatureInputs(features_NF), frozen.vector_width, encoder, fingerprint, views.cropped, strips, unreadable
    )


def _without(data: LinkData, unreadable: Mapping[str, str], keys: Sequence[str]) -> LinkData:
    """Leave out images that have no input."""
    if not unreadable:
        return data
    key, reason = next(iter(unreadable.items()))
    say(f"{len(unreadable)} images are left out, for example {key}: {reason}")
    # Drops the label, not the row, because links refer to images by their rows in the collection.
    labels_N = data.labels_N.copy()
    labels_N[[row for row, key in enumerate(keys) if key in unreadable]] = -1
    data = replace(data, labels_N=labels_N)
    check_classes(data, "images that can be read")
    return data


def _build(
    recipe: SpeciesRecipe, data: LinkData, sources: _Sources, keys: Sequence[str]
) -> tuple[SpeciesNetwork, _Sources]:
    """Build the untrained network of the recipe's method, and the inputs that it takes."""
    encoder = sources.encoder if recipe.train_encoder else None
    num_classes, seed = len(data.classes), recipe.training.seed
    if recipe.method == "cosmo":
        dim = recipe.graph.dim
        return build_link_model(
            data, recipe.graph, lambda: ImageNetwork(sources.width, dim, encoder), seed=seed
        ), sources
    if recipe.method in ("erm", "linear_probe"):
        # The solver has no gradients that could train an encoder.
        if recipe.method == "linear_probe" and recipe.train_encoder:
            raise UserError("method 'linear_probe' is solved on features (got train_encoder: true); set it to false")
        with seeded(seed):
            return LinearBaseline(ImageNetwork(sources.width, num_classes, encoder)), sources
    if recipe.train_encoder:
        raise UserError("method 'mlp_concat' trains on features here (got train_encoder: true); set it to false")
    assert isinstance(sources.inputs, FeatureInputs), "features are in memory"
    # Checked for the images in use: one without a label may lack place or hour.
    rows = np.concatenate([data.train_rows, data.validation_rows])
    lacking = rows[np.isnan(data.places_N2[rows]).any(axis=1) | np.isnan(data.hours_N[rows])]
    if len(lacking):
        raise UserError(
            f"method 'mlp_concat' reads place and hour of every image; {len(lacking)} of {len(rows)} lack one, first "
            f"'{keys[lacking[0]]}'"
        )
    reference = summarize_reference(data.places_N2[data.train_rows])
    inputs = concat_inputs(
        sources.inputs.features_NF[rows], recipe.graph, data.places_N2[rows], data.hours_N[rows], reference=reference
    )
    # By row of the collection, as links name images.
    joined = torch.zeros(len(data.labels_N), inputs.shape[1])
    joined[rows] = inputs
    with seeded(seed):
        network = build_concat(ImageNetwork(sources.width, recipe.graph.dim), recipe.graph, num_classes)
    return network, replace(sources, inputs=FeatureInputs(joined))


def _solve(network: SpeciesNetwork, data: LinkData, sources: _Sources, recipe: SpeciesRecipe) -> TrainingOutcome:
    assert isinstance(sources.inputs, FeatureInputs), "features are in memory"
    features = sources.inputs.features_NF[data.train_rows].numpy()
    present, labels_N = np.unique(data.labels_N[data.train_rows], return_inverse=True)
    solved, fc = nn.Linear(features.shape[1], len(present)), network.image.fc
    solve_head(features, labels_N, num_classes=len(present), seed=recipe.training.seed).copy_to(solved)
    with torch.no_grad():
        # A class of the test images alone is no answer of a solved head; training would push its score down as well.
        fc.weight.zero_()
        fc.bias.fill_(_NEVER)
        fc.weight[present], fc.bias[present] = solved.weight, solved.bias
    return TrainingOutcome("finished", 0, 0.0, model=network, ema=None)


def _describe(
    recipe: SpeciesRecipe,
    data: LinkData,
    collection: Collection,
    graph: SpeciesGraph,
    sources: _Sources,
    network: SpeciesNetwork,
    outcome: TrainingOutcome,
    run: RunFolder,
    metrics: Mapping[str, float],
    command: list[str] | None,
) -> SpeciesTrainResult:
    images_K = data.count_images()
    passes, epoch = [], None
    if recipe.method != "linear_probe":
        order = order_passes(network, data, recipe.training)
        steps = order.count_steps()
        rows = run.read_metrics()
        passes = [_describe_pass(Relation[name.upper()], count, data, rows) for name, count in steps.items()]
        # The model is that of the best evaluation, where there was one, and not of the last step.
        step = outcome.best.step or outcome.step
        epoch = step // order.steps_per_epoch
    return SpeciesTrainResult(
        title=f"{recipe.method} on {collection.name}",
        status=outcome.status,
        method=recipe.method,
        recipe=recipe.model_dump(mode="json"),
        command=command or "",
        data=collection.name,
        contexts=list(data.present_contexts),
        classes=[
            ClassResult(label=label, taxon=data.taxa.names[taxon] if taxon >= 0 else "", images=int(count))
            for label, taxon, count in zip(data.classes.labels, data.classes.taxa_K.tolist(), images_K, strict=True)
        ],
        images=len(data.train_rows),
        validation_images=len(data.validation_rows),
        cameras=len(set(Survey.open(collection).camera_N[data.train_rows].tolist())),
        left_out=dict(graph.left_out),
        passes=passes,
        cropped=sources.cropped,
        strips=sources.strips,
        epoch=epoch,
        steps=outcome.step,
        seconds=round(outcome.seconds, 1),
        curves="metrics.jsonl" if outcome.step else "",
        selection=dict(metrics),
        bad_samples={**sources.unreadable, **outcome.bad_samples},
        revision=code_revision(),
        model=f"{MODEL}/" if outcome.status == "finished" else "",
    )


def _describe_pass(relation: Relation, steps: int, data: LinkData, rows: Sequence[Mapping[str, Any]]) -> PassResult:
    name = relation.name.lower()
    # Averaged over the last rows of the log: a single one is too noisy to compare with chance.
    losses = [row[f"loss_{name}"] for row in rows if row.get(f"loss_{name}") is not None][-_LOGGED:]
    candidates = {
        Relation.TIME: len(data.candidate_hours_H),
        Relation.LOCATION: len(data.candidate_places_P2),
        Relation.PARENT: len(data.entity_taxa),
        Relation.SPECIES: len(data.classes),
    }[relation]
    is_binary = relation in (Relation.TIME, Relation.LOCATION)
    return PassResult(
        relation=name,
        links=len(data.links(relation).heads_N),
        candidates=candidates,
        steps=steps,
        loss=float(np.mean(losses)) if losses else None,
        chance=chance_loss(candidates) if is_binary else None,
    )


def _inform(recipe: SpeciesRecipe, data: LinkData, sources: _Sources, result: SpeciesTrainResult) -> SpeciesInfo:
    has_places, has_hours = _reads_places(recipe, data), "time" in data.present_contexts
    return SpeciesInfo(
        method=recipe.method,
        classes=data.classes,
        taxa=data.taxa,
        entity_taxa=data.entity_taxa,
        targets_K=data.targets_K,
        graph=recipe.graph,
        view=recipe.view,
        encoder=None if sources.encoder is None else recipe.encoder,
        fingerprint=sources.fingerprint,
        preprocess=None if sources.encoder is None else sources.encoder.preprocess.to_dict(),
        images_K=data.count_images(),
        hours=data.candidate_hours_H if has_hours else np.zeros(0),
        places_P2=data.candidate_places_P2 if has_places else np.zeros((0, 2)),
        reference_R2=_reference(recipe, data) if has_places else np.zeros((0, 2)),
        provenance={
            "data": result.data,
            "images": result.images,
            # `predict` reads it: a model that never saw a crop needs no boxes from a detector.
            "cropped": result.cropped,
            "contexts": result.contexts,
            "steps": result.steps,
            "seed": recipe.training.seed,
            "revision": result.revision,
        },
    )


def _reads_places(recipe: SpeciesRecipe, data: LinkData) -> bool:
    return recipe.method == "mlp_concat" or "place" in data.present_contexts


def _reference(recipe: SpeciesRecipe, data: LinkData) -> NDArray[np.float64]:
    rows = data.train_rows if recipe.method == "mlp_concat" else data.links_of_places()
    # Stores only mean and spread, enough to scale places as in training without the place of any camera.
    return summarize_reference(data.places_N2[rows])
