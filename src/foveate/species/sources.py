"""Open what a species model reads of each image, features or pixels, and build the untrained network for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.arrow_tables import read_parquet
from foveate.core.errors import UserError, choose, nearest
from foveate.core.npz_files import read_npz
from foveate.core.progress import say
from foveate.records.collection import Collection
from foveate.species.crops import Views
from foveate.species.fit import FeatureInputs, Inputs, PixelInputs, build_link_model
from foveate.species.link_data import LinkData, check_classes
from foveate.species.links import (
    ImageNetwork,
    LinearBaseline,
    SpeciesNetwork,
    build_concat,
    concat_inputs,
    summarize_reference,
)
from foveate.species.recipe import SpeciesRecipe
from foveate.training.linear_probe import solve_head
from foveate.training.loop import TrainingOutcome
from foveate.vision.encoder import ImageEncoder
from foveate.vision.feature_cache import FeatureCache, VectorEncoder, choose_cache_folder
from foveate.vision.preprocess import read_image
from foveate.vision.registry import build_image_encoder, seeded

# Features that were computed elsewhere: vectors by image key in an npz file or a Parquet table.


def read_features(path: Path, keys: Sequence[str], rows: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
    """Read vectors by key from an npz file or a Parquet table with `key` and `vector`.

    Returns:
        Features [N, F] in the order of `keys`, zeros where there are none, and those of `rows` that have none.

    Raises:
        UserError: the file is no such table, a key comes twice, vectors differ in length or are not finite, or no image
            has one.
    """
    names, vectors = _read_npz(path) if path.suffix.lower() == ".npz" else _read_parquet(path)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: key {repeated[0]!r} comes more than once; expected one vector for each image")
    if not vectors.shape[1]:
        raise UserError(f"{path}: the vectors have length 0; expected at least one number for each image")
    # One NaN would spread to all weights of the linear layer in the first step.
    wrong_M = ~np.isfinite(vectors).all(axis=1)
    if wrong_M.any():
        raise UserError(f"{path}: the vector of key {names[int(np.flatnonzero(wrong_M)[0])]!r} is not finite")
    positions = {name: position for position, name in enumerate(names)}
    # Matched by key: the file may have other images, or the same ones in another order.
    index_N = np.array([positions.get(key, -1) for key in keys], dtype=np.int64)
    missing = rows[index_N[rows] < 0]
    # Some images may lack features and are reported; if all do, the file belongs to another collection.
    if len(missing) == len(rows):
        raise UserError(
            f"{path}: no key is an image of the collection (got {names[:1]}); expected keys such as "
            f"{keys[int(rows[0])]!r}{nearest(names[0], keys) if names else ''}"
        )
    features = np.zeros((len(keys), vectors.shape[1]), dtype=np.float32)
    features[index_N >= 0] = vectors[index_N[index_N >= 0]]
    return torch.from_numpy(features), missing


def _read_npz(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    arrays = read_npz(path, ("key", "vector"))
    for name in ("key", "vector"):
        if name not in arrays:
            raise UserError(f"{path}: array '{name}' is missing; expected key [N] and vector [N, F]")
    keys, vectors = arrays["key"], arrays["vector"]
    if keys.ndim != 1:
        raise UserError(f"{path}: array 'key' is {list(keys.shape)}; expected [N]")
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or len(vectors) != len(keys):
        raise UserError(
            f"{path}: array 'vector' is {vectors.dtype} {list(vectors.shape)}; expected numbers [{len(keys)}, F]"
        )
    return keys.astype(str).tolist(), vectors.astype(np.float32)


def _read_parquet(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    table = read_parquet(path)
    for name in ("key", "vector"):
        choose(name, table.column_names, f"{path}: column")
    # Check the schema before any value: a column of text would end in a NumPy error that names no file.
    kind = table.schema.field("vector").type
    value = getattr(kind, "value_type", None)
    if value is None or not (pa.types.is_floating(value) or pa.types.is_integer(value)):
        raise UserError(f"{path}: column 'vector' is {kind}; expected lists of numbers")
    names = [str(value) for value in table["key"].to_pylist()]
    lists = table["vector"].to_pylist()
    # A null is a row without a vector; -1 distinguishes it from an empty list.
    widths = {len(value) if isinstance(value, list) else -1 for value in lists}
    if len(widths) != 1 or widths == {-1}:
        raise UserError(f"{path}: column 'vector' has lists of different lengths (got {sorted(widths)}); expected one")
    return names, np.array(lists, dtype=np.float32)


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
    if recipe.train_encoder and encoder.fingerprint():
        if not encoder.partly_trained:
            raise UserError(
                f"encoder '{recipe.encoder.get('kind')}': its network is frozen, so it cannot be trained (got "
                "train_encoder: true); set frozen: false (train_last_stages: true of lite0) or choose another kind, "
                "such as timm"
            )
        return _cache_inputs(encoder, encoder, "", collection, rows, views, strips, run_path, device)
    if recipe.train_encoder:

        def load(row: int) -> Tensor:
            return read_image(collection, row, encoder.preprocess, views[row])[0]

        inputs: Inputs = PixelInputs(load, collection.keys)
        return Sources(inputs, encoder.vector_width, encoder, "", views.cropped, strips, {})
    frozen = VectorEncoder(encoder)
    return _cache_inputs(frozen, encoder, frozen.fingerprint(), collection, rows, views, strips, run_path, device)


def _cache_inputs(
    frozen: ImageEncoder,
    encoder: ImageEncoder,
    fingerprint: str,
    collection: Collection,
    rows: NDArray[np.int64],
    views: Views,
    strips: str,
    run_path: Path,
    device: torch.device,
) -> Sources:
    """Return the features of an encoder's frozen part, which sees each image once; later epochs read the cache.

    Args:
        frozen: computes what is cached: vectors, or what the trained layers of `encoder` read.
        fingerprint: of `Sources`.
    """
    cache = fill_cache(frozen.to(device), collection, rows, views, run_path, device)
    # By row of the collection, as links name images; rows without a link are never read.
    features_NF = torch.zeros(len(collection), *frozen.feature_shape, dtype=frozen.feature_dtype)
    for row in rows.tolist():
        features_NF[row] = cache.features(row, 0)
    unreadable = {collection.keys[row]: reason for row, reason in cache.bad.items()}
    return Sources(
        FeatureInputs(features_NF), encoder.vector_width, encoder, fingerprint, views.cropped, strips, unreadable
    )


def fill_cache(
    encoder: ImageEncoder,
    collection: Collection,
    rows: NDArray[np.int64],
    views: Views,
    folder: Path,
    device: torch.device,
) -> FeatureCache:
    """Return the cache of the features of a frozen encoder, with those of `rows`.

    Args:
        folder: for the cache of a collection that cannot be written.
    """
    where = choose_cache_folder(collection, folder)
    cache = FeatureCache(encoder, collection, rows, folder=where, views=1, view_of=views.view_of, device=device)
    cache.fill()
    return cache


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
