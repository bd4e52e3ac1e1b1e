"""Explain one image: what each stage changed, and the nearest taxa and training images.

Nearness is no reason: the nearest images are those whose vectors point the same way, whatever the model looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.files import write_json_atomically
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.species.crops import Views
from foveate.species.decide_results import list_decisions
from foveate.species.evaluate import name_class
from foveate.species.hints import ClockHint, PlaceHint, find_clock_hints, find_place_hints, match_places
from foveate.species.predictions import Predictions
from foveate.species.results import NearImage, NearTaxon, SpeciesExplanation
from foveate.species.sources import fill_cache
from foveate.species.summary import format_step, name_label
from foveate.survey.survey import Survey
from foveate.vision.feature_cache import VectorEncoder
from foveate.vision.preprocess import read_image

if TYPE_CHECKING:
    from foveate.species.model import SpeciesModel

_NUM_CLASSES, _NUM_TAXA, _NUM_IMAGES = 6, 8, 8


def explain(
    predictions: Predictions,
    model: SpeciesModel,
    name: str,
    folder: Path,
    *,
    training: Path | None = None,
    device: str | None = None,
    command: Sequence[str] = (),
) -> SpeciesExplanation:
    """Write the explanation of an image as result.json, with thumbnails, into `folder`.

    Args:
        name: key or file of the image.
        training: collection that the model was trained on; without it no nearest images.

    Raises:
        UserError: no such image, or the model is not the one of the results.
    """
    # Vectors from other weights lie in another space: their neighbors would explain another model's answer.
    if model.sha256 != predictions.config["model"]["sha256"]:
        raise UserError(f"{model.folder}: other weights than those that made {predictions.folder}")
    index = predictions.find_image(name)
    key = predictions.collection_keys[index]
    decision, *further = list_decisions(predictions, key)
    probabilities_K = predictions.probabilities_NK[index].astype(np.float64)
    if np.isnan(probabilities_K).any():
        raise UserError(f"{key}: the image cannot be read ({predictions.images['failure'][index].as_py()})")
    # These are the model's own classes, before any stage; `steps` lists what the stages changed.
    order = np.argsort(-probabilities_K, kind="stable")[:_NUM_CLASSES].tolist()
    row = int(predictions.rows[index])
    folder.mkdir(parents=True, exist_ok=True)
    save_thumbnail(predictions.collection.image_bytes(row), folder / "image.webp", longest_side=900)
    target = choose_device(device or "auto")
    result = SpeciesExplanation(
        command=list(command),
        image="image.webp",
        file=predictions.images["file"][index].as_py(),
        camera=predictions.images["camera"][index].as_py(),
        time=predictions.images["time"][index].as_py(),
        event=decision["event"],
        num_images=len(decision["keys"]),
        box=predictions.used_boxes.get(key),
        answer=decision["name"],
        rank=decision["rank"],
        score=decision["score"],
        also=[f"{row['name']} {row['score']:.2f}" for row in further],
        classes=[(name_class(predictions, column), float(probabilities_K[column])) for column in order],
        steps=[format_step(step) for step in json.loads(decision["source"])],
        # Decisions are made per event: another frame may be the one that shows the animal.
        best_image=decision["file"] if decision["key"] != key else "",
        taxa=near_taxa(model, order[0]),
        images=near_images(predictions, model, row, training, folder, target) if training is not None else [],
    )
    write_json_atomically(folder / "result.json", result.to_json())
    return result


def near_taxa(model: SpeciesModel, column: int, *, count: int = _NUM_TAXA) -> list[NearTaxon]:
    """Return the taxa whose rows of the entity table point most like that of a class; none for a baseline.

    Only classes are compared: ancestors were never the answer to an image.
    """
    if model.info.method != "cosmo":
        return []
    vectors_KD = model.entity_vectors[model.info.targets_K].astype(np.float64)
    cosine_K = cosines(vectors_KD[column], vectors_KD)
    # The class is nearest to itself.
    cosine_K[column] = -np.inf
    taxa, taxon = model.taxa, int(model.classes.taxa_K[column])
    near = []
    for other in np.argsort(-cosine_K, kind="stable")[: min(count, len(cosine_K) - 1)].tolist():
        other_taxon = int(model.classes.taxa_K[other])
        shared = set(taxa.lineage(taxon)) if taxon >= 0 else set()
        # A lineage runs upwards: the first shared taxon is the lowest.
        common = next((t for t in taxa.lineage(other_taxon) if t in shared), -1) if other_taxon >= 0 else -1
        label = taxa.names[other_taxon] if other_taxon >= 0 else model.classes.labels[other]
        relation = f"same {taxa.ranks[common] or 'group'}: {taxa.names[common]}" if common >= 0 else ""
        near.append(NearTaxon(name=label, cosine=round(float(cosine_K[other]), 4), relation=relation))
    return near


def cosines(vector_D: NDArray[np.float64], others_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of a vector with each of others; 0 where either is 0."""
    lengths_N = np.linalg.norm(others_ND, axis=1) * np.linalg.norm(vector_D)
    return np.divide(others_ND @ vector_D, lengths_N, out=np.zeros(len(others_ND)), where=lengths_N > 0)


def near_images(
    predictions: Predictions, model: SpeciesModel, row: int, training: Path, folder: Path, device: torch.device
) -> list[NearImage]:
    """Return the nearest training images by the cosine of the encoder's vectors, with their cameras."""
    encoder = VectorEncoder(model.load_encoder(device))
    views = Views(predictions.collection, predictions.rows, model.view)
    pixels = read_image(predictions.collection, row, encoder.preprocess, views[row])[0]
    with torch.inference_mode():
        # Moved to the CPU before the conversion, because Apple GPUs (MPS) have no float64.
        vector_D = encoder.frozen_features(pixels[None].to(device))[0].float().cpu().double().numpy()
    with Collection.open(training) as collection:
        # A collection without splits was trained on as a whole.
        rows = collection.rows("train") if "train" in collection.splits else collection.rows()
        training_views = Views(collection, rows, model.view)
        readable, vectors_ND = cached_vectors(encoder, collection, rows, training_views, folder, device)
        cosine_N = cosines(vector_D, vectors_ND)
        survey = Survey.open(collection) if collection.has_survey else None
        labels = survey.labels() if survey is not None else np.full(len(collection), "", dtype=object)
        near = []
        for position in np.argsort(-cosine_N, kind="stable").tolist():
            other = readable[position]
            if predictions.collection.path.resolve() == collection.path.resolve() and other == row:
                continue  # skip the image itself, which is among its neighbors if the model was trained on it
            path = f"near-{len(near)}.webp"
            save_thumbnail(collection.image_bytes(other), folder / path)
            near.append(
                NearImage(
                    image=path,
                    key=collection.keys[other],
                    camera=survey.camera_N[other] if survey is not None else collection.groups[other],
                    label=name_label(predictions, labels[other]),
                    cosine=round(float(cosine_N[position]), 4),
                )
            )
            if len(near) == _NUM_IMAGES:
                break
    return near


def cached_vectors(
    encoder: VectorEncoder,
    collection: Collection,
    rows: NDArray[np.int64],
    views: Views,
    folder: Path,
    device: torch.device,
) -> tuple[list[int], NDArray[np.float64]]:
    """Return the readable rows and their vectors [n, F], from the cache that trainings fill; see `fill_cache`."""
    cache = fill_cache(encoder, collection, rows, views, folder, device)
    readable = [int(row) for row in rows if int(row) not in cache.bad]
    if not readable:
        raise UserError(f"{collection.path}: no image can be read")
    return readable, torch.stack([cache.features(row, 0) for row in readable]).double().numpy()


def hint_survey(
    model: SpeciesModel, path: Path, *, device: str | None = None
) -> tuple[list[ClockHint], list[PlaceHint]]:
    """Rank the recorded hours, and the places where the model knows them, of a survey by the graph.

    Raises:
        UserError: the collection is no survey, or the model has neither relation.
    """
    # Checked before the features of the whole survey are computed in vain.
    if not len(model.hours) and not len(model.places_P2):
        raise UserError(f"{model.folder}: trained without hours, and written without places; it gives no hints")
    target = choose_device(device or "auto")
    with Collection.open(path) as collection:
        survey = Survey.open(collection)
        rows = np.arange(len(collection))
        views = Views(collection, rows, model.view)
        readable, vectors_ND = cached_vectors(
            VectorEncoder(model.load_encoder(target)), collection, rows, views, path, target
        )
        deployments = [survey.deployments[index].id if index >= 0 else "" for index in survey.deployment_N[readable]]
        clocks, places = [], []
        if len(model.hours):
            scores_NH = model.predict_links(vectors_ND, "time")
            clocks = find_clock_hints(scores_NH, model.hours, survey.hour_N[readable], deployments)
        if len(model.places_P2):
            columns_N, cameras = match_places(model.places_P2, survey.places_N2, survey.camera_N)
            scores_NP = model.predict_links(vectors_ND, "place")
            places = find_place_hints(scores_NP, columns_N[readable], cameras, deployments)
    return clocks, places
