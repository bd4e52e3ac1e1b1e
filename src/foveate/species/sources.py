"""Open what a species model reads of each image, features or pixels, and build the untrained network for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.records.collection import Collection
from foveate.species.baselines import LinearBaseline, SpeciesNetwork, build_concat, concat_inputs
from foveate.species.crops import Views
from foveate.species.feature_files import read_features
from foveate.species.fit import FeatureInputs, Inputs, PixelInputs, build_link_model
from foveate.species.link_data import LinkData, check_classes
from foveate.species.links import ImageNetwork
from foveate.species.numeric import summarize_reference
from foveate.species.recipe import SpeciesRecipe
from foveate.training.linear_probe import solve_head
from foveate.training.loop import TrainingOutcome
from foveate.vision.encoder import ImageEncoder
from foveate.vision.feature_cache import FeatureCache, VectorEncoder, choose_cache_folder
from foveate.vision.preprocess import read_image
from foveate.vision.registry import build_image_encoder, seeded

_NEVER = -1e4  # score of a class whose probability is 0 in single precision


@dataclass(frozen=True)
class Sources:
    """Where the inputs of images come from, and what was seen of them."""

    inputs: Inputs
    width: int
    encoder: ImageEncoder | None
    fingerprint: str
    cropped: int
    strips: str
    unreadable: Mapping[str, str]


def open_sources(
    recipe: SpeciesRecipe, collection: Collection, data: LinkData, run_path: Path, device: torch.device
) -> Sources:
    """Open the file of features, or the encoder, whose frozen vectors are computed here and cached.

    Args:
        run_path: where vectors are cached if the collection cannot be written.

    Raises:
        UserError: the file lacks images or is no file of features, or a frozen network is to be trained.
    """
    rows = np.sort(np.concatenate([data.train_rows, data.validation_rows]))
    if recipe.data.features is not None:
        features_NF, missing = read_features(Path(recipe.data.features), collection.keys, rows)
        reasons = dict.fromkeys((collection.keys[row] for row in missing.tolist()), "no features in the file")
        return Sources(FeatureInputs(features_NF), features_NF.shape[1], None, "", 0, "keep", reasons)
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
        return Sources(inputs, encoder.vector_width, encoder, "", views.cropped, strips, {})
    # A frozen encoder sees each image once; later epochs and trainings read the cache.
    frozen = VectorEncoder(encoder).to(device)
    cache = FeatureCache(
        frozen,
        collection,
        rows,
        folder=choose_cache_folder(collection, run_path),
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
    return Sources(
        FeatureInputs(features_NF), frozen.vector_width, encoder, fingerprint, views.cropped, strips, unreadable
    )


def drop_unreadable(data: LinkData, unreadable: Mapping[str, str], keys: Sequence[str]) -> LinkData:
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


def build_network(
    recipe: SpeciesRecipe, data: LinkData, sources: Sources, keys: Sequence[str]
) -> tuple[SpeciesNetwork, Sources]:
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


def solve_network(network: SpeciesNetwork, data: LinkData, sources: Sources, recipe: SpeciesRecipe) -> TrainingOutcome:
    """Solve the head of a linear probe instead of training it."""
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
