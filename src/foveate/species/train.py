"""`foveate species train`: a survey, its taxonomy and an encoder in; a model folder and result.json out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import sha256_file, sha256_folder
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.records.collection import Collection
from foveate.species.fit import build_task, fit_validation_temperature, measure, order_passes
from foveate.species.folder import check_locations, open_species, save_species
from foveate.species.graph import SpeciesGraph, is_graph, open_collection
from foveate.species.link_data import LinkData, link_graph
from foveate.species.links import Relation, SpeciesNetwork, summarize_reference
from foveate.species.model import SpeciesInfo, SpeciesModel
from foveate.species.passes import chance_loss
from foveate.species.priors import PRIOR, fit_survey_prior
from foveate.species.recipe import SpeciesRecipe
from foveate.species.results import ClassResult, PassResult, SpeciesTrainResult
from foveate.species.sources import Sources, build_network, drop_unreadable, open_sources, solve_network
from foveate.species.taxonomy import open_taxa
from foveate.survey.survey import Survey
from foveate.training.loop import TrainingOutcome
from foveate.training.run import Run

_LOGGED = 5  # rows of the log that a pass's last loss is the mean of
MODEL = "model"


@dataclass(frozen=True)
class SpeciesRun:
    """Outcome of `train_species`; `model` is None where the run was stopped."""

    run: RunFolder
    result: SpeciesTrainResult
    model: SpeciesModel | None


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

    Example:
        >>> recipe = SpeciesRecipe(
        ...     graph={"dim": 8}, data={"features": str(features_file)}, view={"view": "whole"}, training={"epochs": 1}
        ... )
        >>> train_species(survey_folder, new_folder, recipe, device="cpu").result.status
        'finished'
    """
    # Before the collection is opened: a refusal after hours of training would lose them.
    check_locations(recipe.method, include_locations)
    for name, reason in recipe.idle_fields().items():
        say(f"{name} has no effect with {reason}")
    run = Run(recipe, run_path, device=device, command=command, older={"graph.json": ""})
    with open_source(source) as collection, run:
        graph, data = read_links(recipe, source, collection, taxonomy)
        # Hashed before unreadable images are taken out: hashes describe the survey, not what this machine can decode.
        run.open(identify_data(data, recipe.data.features))
        sources = open_sources(recipe, collection, data, run_path, run.here.device)
        data = drop_unreadable(data, sources.unreadable, collection.keys)
        if include_locations and not _reads_places(recipe, data):
            say("--include-locations has no effect: no place is trained on")
        network, sources = build_network(recipe, data, sources, collection.keys)
        if recipe.method == "linear_probe":
            outcome = solve_network(network, data, sources, recipe)
        else:
            rate = recipe.image_learning_rate
            outcome = run.train(*build_task(network, data, sources.inputs, recipe.training, image_learning_rate=rate))
        network.to(run.here.device).eval()
        finished = outcome.status == "finished"
        metrics = dict(measure(network, data, sources.inputs)) if finished and len(data.validation_rows) else {}
        result = _describe(run, outcome, recipe, data, collection, graph, sources, network, metrics)
        model = None
        if finished:
            info = _inform(recipe, data, sources, result)
            # What predictions divide logits by, unless --temperature says otherwise.
            temperature = fit_validation_temperature(network, data, sources.inputs) if metrics else None
            if temperature is not None:
                say(f"temperature of the validation images: {temperature:g}")
                metrics["temperature"] = temperature
            folder = save_species(run.path / MODEL, network, info, include_locations=include_locations, metrics=metrics)
            model = open_species(folder)
            if recipe.prior != "none":
                # Beside the model and not in it: a model that is passed on must not carry where its cameras stood.
                if fit_survey_prior(run.path / PRIOR, recipe.prior, data, Survey.open(collection)) is None:
                    say(f"no prior: no training image has what the {recipe.prior} prior reads (place, hour or day)")
        run.write_result(result)
    return SpeciesRun(run.folder, result, model)


def open_source(source: Path) -> Collection:
    """Open the collection of a graph, or the collection itself."""
    return open_collection(source) if is_graph(source) else Collection.open(source)


def read_links(
    recipe: SpeciesRecipe, source: Path, collection: Collection, taxonomy: Path | None
) -> tuple[SpeciesGraph, LinkData]:
    """Return the graph of a source and the links of it that a recipe trains on; arguments as in `train_species`."""
    if is_graph(source):
        if taxonomy is not None:
            raise UserError(f"taxonomy {taxonomy} has no effect: {source} is a graph, which has its taxa")
        graph = SpeciesGraph.open(source, train=recipe.data.train)
    else:
        graph = SpeciesGraph.from_collection(collection, open_taxa(collection, taxonomy), train=recipe.data.train)
    data = link_graph(
        graph,
        collection,
        train=recipe.data.train,
        validation=recipe.data.validation,
        contexts=recipe.graph.contexts if recipe.method == "cosmo" else (),
        all_candidates=recipe.graph.candidates == "all",
    )
    return graph, data


def identify_data(data: LinkData, features: str | None) -> dict[str, str]:
    """Return hashes of the graph and of the file of features: what data.json holds.

    Raises:
        UserError: the file of features does not exist.
    """
    identity = data.describe()
    # Compared by content, because a file may be rewritten under the same name.
    if features is not None:
        source = Path(features)
        if not source.exists():
            raise UserError(f"data.features: {features}: no such file; expected npz or Parquet")
        identity["features"] = sha256_folder(source) if source.is_dir() else sha256_file(source)
    return identity


def _describe(
    run: Run,
    outcome: TrainingOutcome,
    recipe: SpeciesRecipe,
    data: LinkData,
    collection: Collection,
    graph: SpeciesGraph,
    sources: Sources,
    network: SpeciesNetwork,
    metrics: Mapping[str, float],
) -> SpeciesTrainResult:
    images_K = data.count_images()
    passes, epoch = [], None
    if recipe.method != "linear_probe":
        order = order_passes(network, data, recipe.training)
        steps = order.count_steps()
        rows = run.folder.read_metrics()
        passes = [_describe_pass(Relation[name.upper()], count, data, rows) for name, count in steps.items()]
        # The model is that of the best evaluation, where there was one, and not of the last step.
        step = outcome.best.step or outcome.step
        epoch = step // order.steps_per_epoch
    fields = run.describe(outcome)
    fields["bad_samples"] = {**sources.unreadable, **outcome.bad_samples}
    return SpeciesTrainResult(
        **fields,
        title=f"{recipe.method} on {collection.name}",
        method=recipe.method,
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
        curves="metrics.jsonl" if outcome.step else "",
        selection=dict(metrics),
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


def _inform(recipe: SpeciesRecipe, data: LinkData, sources: Sources, result: SpeciesTrainResult) -> SpeciesInfo:
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
