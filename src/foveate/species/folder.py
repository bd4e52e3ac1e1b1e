"""Model folder of kind "species": classes by name and taxon, the link model, and its folded linear head.

Places are supervision, so a folder needs none of them to answer: the network of places, their table and the names of
cameras are left out unless asked for. Poachers read published coordinates, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError, choose
from foveate.core.files import read_json, sha256_file
from foveate.core.model_folder import (
    CARD,
    CONFIG,
    METRICS,
    PREPROCESS,
    WEIGHTS,
    check_tensors,
    read_config,
    read_shapes,
    read_tensors,
    write_model_folder,
)
from foveate.core.recipes import validate
from foveate.records.survey.taxa import Taxa
from foveate.species.baselines import ConcatBaseline, LinearBaseline, SpeciesNetwork
from foveate.species.classes import Classes
from foveate.species.crops import ViewSettings
from foveate.species.fold import LinearHead, fold_head
from foveate.species.links import RELATIONS, ImageNetwork, LinkModel, Relation, build_score
from foveate.species.numeric import HOUR_WIDTHS, PLACE_WIDTHS, scale_hours, scale_places
from foveate.species.recipe import METHODS, GraphSettings
from foveate.vision.encoder import ImageEncoder
from foveate.vision.image_vectors import VectorEncoder
from foveate.vision.registry import build_image_encoder

KIND, FORMAT = "species", 1
TAXA = "taxa.json"
# Tensors that are no parameters of the network.
_HEAD, _DEGREES, _REFERENCE, _PLACES = "head.", "degrees", "reference", "places_NF"
_BATCH = 4096
_FIELDS = {
    "method": str,
    "classes": list,
    "entities": list,
    "targets": list,
    "graph": dict,
    "view": dict,
    "features": int,
    "hours": list,
    "num_places": int,
    "images": list,
}


@dataclass(frozen=True)
class SpeciesInfo:
    """What a folder says about a model beside its weights.

    Attributes:
        encoder: settings that build the encoder again, None where features came from elsewhere.
        fingerprint: of the encoder that features were computed with; "" where its weights are in the folder.
        entity_taxa: taxon of each row of the entity table. targets_K: row of each class.
        images_K: training images of each class.
        hours: candidates of the relation "time". places_P2: of "place", in degrees; stored only if asked for.
        reference_R2: see `summarize_reference`; stored with them.
        provenance: JSON values about the training.
    """

    method: str
    classes: Classes
    taxa: Taxa
    entity_taxa: NDArray[np.int64]
    targets_K: NDArray[np.int64]
    graph: GraphSettings
    view: ViewSettings
    encoder: Mapping[str, Any] | None
    fingerprint: str
    preprocess: Mapping[str, Any] | None
    images_K: NDArray[np.int64]
    hours: NDArray[np.float64]
    places_P2: NDArray[np.float64]
    reference_R2: NDArray[np.float64]
    provenance: Mapping[str, Any]


def save_species(
    folder: Path,
    network: SpeciesNetwork,
    info: SpeciesInfo,
    *,
    include_locations: bool = False,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder; return it.

    Args:
        network: a `LinkModel` or a baseline.
        include_locations: also write the network of places and their coordinates.

    Raises:
        UserError: MLP-concat without `include_locations`: it cannot answer without its network of places.
    """
    check_locations(info.method, include_locations)
    tensors = dict(network.state_dict())
    num_places = 0
    if include_locations:
        num_places = len(info.places_P2)
        tensors |= {_DEGREES: torch.from_numpy(info.places_P2), _REFERENCE: torch.from_numpy(info.reference_R2)}
        tensors |= {name: value for name, value in network.named_buffers() if name == _PLACES and value is not None}
    else:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("places.")}
    head = _fold(network)
    if head is not None:
        tensors |= {f"{_HEAD}weight": head.weight_KF, f"{_HEAD}bias": head.bias_K}
    if not info.fingerprint and info.encoder is not None:
        encoder = network.image.encoder
        assert isinstance(encoder, ImageEncoder), "a trained encoder is part of the network"
        settings: Mapping[str, Any] | None = {**info.encoder, **encoder.architecture()}
    else:
        settings = info.encoder
    config = {
        "method": info.method,
        "classes": [
            {"label": label, "taxon": _taxon_id(info.taxa, taxon)}
            for label, taxon in zip(info.classes.labels, info.classes.taxa_K.tolist(), strict=True)
        ],
        "targets": info.targets_K.tolist(),
        "entities": [_taxon_id(info.taxa, taxon) for taxon in info.entity_taxa.tolist()],
        "graph": info.graph.model_dump(mode="json"),
        "view": info.view.model_dump(mode="json"),
        "features": network.image.fc.in_features,
        "encoder": settings,
        "fingerprint": info.fingerprint,
        "images": info.images_K.tolist(),
        "hours": info.hours.tolist(),
        "num_places": num_places,
        "provenance": dict(info.provenance),
    }
    files: dict[str, Any] = {TAXA: {"taxa": info.taxa.to_rows()}, METRICS: dict(metrics or {})}
    files |= {CARD: _card(info, include_locations)}
    if info.preprocess is not None:
        files[PREPROCESS] = dict(info.preprocess)
    return write_model_folder(folder, kind=KIND, format=FORMAT, config=config, tensors=tensors, files=files)


def check_locations(method: str, include_locations: bool) -> None:
    """Raise UserError for MLP-concat without its network of places; call it before any training."""
    if method == "mlp_concat" and not include_locations:
        raise UserError(
            "method 'mlp_concat' reads the place of an image when it predicts, so its folder holds them; add "
            "--include-locations"
        )


def _fold(network: SpeciesNetwork) -> LinearHead | None:
    return fold_head(network) if isinstance(network, LinkModel) and network.score.is_linear else None


def _taxon_id(taxa: Taxa, index: int) -> str:
    return taxa.ids[index] if index >= 0 else ""


def _card(info: SpeciesInfo, include_locations: bool) -> str:
    animals = int(info.classes.animals_K.sum())
    locations = "It holds coordinates of cameras." if include_locations else "It holds no coordinates and no cameras."
    return f"""# Species of camera-trap images ({info.method})

{animals} kinds of animals, {len(info.classes) - animals} other classes; {int(info.images_K.sum()):,} training images.
{locations}

```bash
foveate species predict THIS-FOLDER CARDS --out results
```

```python
from foveate import open_species

model = open_species("THIS-FOLDER")
probabilities = model.probabilities(features)
```
"""


class SpeciesModel:
    """A trained model, opened from its folder.

    Attributes:
        folder: it was read from. sha256: of its weights.
        info: classes, taxa, view and settings.
        network: the torch module; a `LinkModel`, or a baseline.
        head: the folded linear head, None where the model has none.
    """

    def __init__(self, folder: Path, info: SpeciesInfo, network: SpeciesNetwork, head: LinearHead | None) -> None:
        self.folder, self.info, self.head = folder, info, head
        self.network: SpeciesNetwork = network.eval().requires_grad_(False)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights."""
        return sha256_file(self.folder / WEIGHTS)

    @property
    def classes(self) -> Classes:
        """Labels in the order of the columns."""
        return self.info.classes

    @property
    def taxa(self) -> Taxa:
        """Taxonomy of the classes."""
        return self.info.taxa

    @property
    def view(self) -> ViewSettings:
        """The part of an image that the model was trained on."""
        return self.info.view

    @property
    def encoder_settings(self) -> Mapping[str, Any] | None:
        """Settings of the encoder; None where features came from elsewhere."""
        return self.info.encoder

    def load_encoder(self, device: torch.device | str = "cpu") -> ImageEncoder:
        """Build the encoder that turns pixels into features, in evaluation mode.

        Raises:
            UserError: features came from elsewhere, or the encoder is another one than the model was trained with.
        """
        if self.info.encoder is None:
            raise UserError(
                f"{self.folder}: trained on features that came from a file, so it reads no images; expected features "
                "of the same encoder"
            )
        if isinstance(encoder := self.network.image.encoder, ImageEncoder):
            return encoder.to(device)
        encoder = VectorEncoder(build_image_encoder(self.info.encoder))
        if comparable(encoder.fingerprint()) != comparable(self.info.fingerprint):
            raise UserError(
                f"{self.folder / CONFIG}: the encoder has other weights than the model was trained with (got "
                f"{encoder.fingerprint()}); expected {self.info.fingerprint}"
            )
        return encoder.inner.to(device)

    @torch.no_grad()
    def logits(
        self, features_ND: ArrayLike, *, places_N2: ArrayLike | None = None, hours_N: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Return species scores [N, K] of features.

        Args:
            features_ND: `image_vectors` of the encoder.
            places_N2, hours_N: for MLP-concat alone, every one known.

        Raises:
            UserError: features of another width or not finite, or places and hours that are missing or have no effect.
        """
        features = self._check_features(features_ND)
        reads_context = isinstance(self.network, ConcatBaseline)
        if reads_context != (places_N2 is not None) or reads_context != (hours_N is not None):
            what = "needs places and hours" if reads_context else "takes features alone"
            raise UserError(f"model of method '{self.info.method}' {what}")
        if reads_context:
            features = concat_inputs(features, self.info.graph, places_N2, hours_N, reference=self.info.reference_R2)
        if self.head is not None:
            return self.head.logits(features).numpy()
        parts = [self._score(part, Relation.SPECIES) for part in features.split(_BATCH)]
        return torch.cat(parts).numpy()

    def probabilities(
        self, features_ND: ArrayLike, *, places_N2: ArrayLike | None = None, hours_N: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities [N, K]; see `logits`."""
        scores = self.logits(features_ND, places_N2=places_N2, hours_N=hours_N)
        return torch.from_numpy(scores).softmax(dim=1).numpy()

    @torch.no_grad()
    def predict_links(self, features_ND: ArrayLike, relation: str) -> NDArray[np.float32]:
        """Return the scores of all candidates of a relation: "species", "time" (`hours`) or "place" (`places_P2`).

        Raises:
            UserError: an unknown relation, or one that the folder does not hold.
        """
        choose(relation, list(RELATIONS), "relation")
        if not isinstance(self.network, LinkModel):
            raise UserError(f"model of method '{self.info.method}' has no links; expected 'cosmo'")
        if relation == "place" and self.network.places is None and "place" in self.info.graph.contexts:
            raise UserError(f"{self.folder}: written without locations; train again with --include-locations")
        features = self._check_features(features_ND)
        return torch.cat([self._score(part, RELATIONS[relation]) for part in features.split(_BATCH)]).numpy()

    def _score(self, features: Tensor, relation: Relation) -> Tensor:
        if not isinstance(self.network, LinkModel):
            return self.network(features)
        return self.network.score_heads(self.network.image.fc(features), relation)

    def _check_features(self, features_ND: ArrayLike) -> Tensor:
        features = np.asarray(features_ND, dtype=np.float32)
        width = self.network.image.fc.in_features
        if features.ndim != 2 or features.shape[1] != width:
            raise UserError(f"features: wrong shape (got {list(features.shape)}); expected [N, {width}]")
        wrong_N = ~np.isfinite(features).all(axis=1)
        if wrong_N.any():
            raise UserError(f"features: row {int(np.flatnonzero(wrong_N)[0])} has NaN or infinite values")
        return torch.from_numpy(features)

    @property
    def hours(self) -> NDArray[np.float64]:
        """Hours that `predict_links` scores for the relation "time"."""
        return self.info.hours

    @property
    def places_P2(self) -> NDArray[np.float64]:
        """Degrees of the places that `predict_links` scores; none where the folder was written without them."""
        return self.info.places_P2

    @property
    def entity_vectors(self) -> NDArray[np.float32]:
        """The entity table [E, D]: class k is row `info.targets_K[k]`, the taxon of each row is in `info.entity_taxa`.

        Raises:
            UserError: the model is a baseline without entities.
        """
        if not isinstance(self.network, LinkModel):
            raise UserError(f"model of method '{self.info.method}' has no entities; expected 'cosmo'")
        return self.network.entities.weight.numpy()


def concat_inputs(
    features: Tensor,
    graph: GraphSettings,
    places_N2: ArrayLike | None,
    hours_N: ArrayLike | None,
    *,
    reference: NDArray[np.float64],
) -> Tensor:
    """Put features, scaled places and scaled hours side by side: inputs of `ConcatBaseline`.

    Raises:
        UserError: shapes differ, or a place or hour is unknown; nothing is imputed.
    """
    places, hours = np.asarray(places_N2, np.float64), np.asarray(hours_N, np.float64)
    if places.shape != (len(features), 2) or hours.shape != (len(features),):
        raise UserError(
            f"places and hours: wrong shapes (got {list(places.shape)} and {list(hours.shape)}); expected "
            f"[{len(features)}, 2] and [{len(features)}]"
        )
    missing_N = np.isnan(places).any(axis=1) | np.isnan(hours)
    if missing_N.any():
        row = int(np.flatnonzero(missing_N)[0])
        raise UserError(f"image {row} has no place or no hour; method 'mlp_concat' needs both of every image")
    scaled = scale_places(places, graph.place_input, reference_N2=reference)
    return torch.cat([features, scaled, scale_hours(hours, graph.hour_input)], dim=1)


def comparable(fingerprint: str) -> str:
    """Return a fingerprint of an encoder without its precision, which follows the machine."""
    return re.sub(r"-(float32|float16|bfloat16)\b", "", fingerprint)


def open_species(folder: str | Path) -> SpeciesModel:
    """Open a model folder, strictly: a missing, surplus or wrongly shaped tensor is an error.

    Raises:
        UserError: no such folder, another kind or format, or a damaged file.

    >>> model = open_species(species_folder)
    >>> model.classes.labels
    ('deer', 'fox')
    >>> model.probabilities([[0.0, 1.0, 2.0, 3.0]]).shape
    (1, 2)
    """
    path = Path(folder)
    config = read_config(path, kind=KIND, formats=[FORMAT], fields=_FIELDS)
    info = _read_info(path, config)
    # Before anything takes memory: a config that asks for a million classes is refused for what its weights are not.
    shapes = read_shapes(path / WEIGHTS)
    with torch.device("meta"):
        expected = _list_tensors(_build_network(info, config), info, config)
    check_tensors({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, expected, path / WEIGHTS)
    tensors = read_tensors(path / WEIGHTS)
    network = _build_network(info, config)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    if config["num_places"]:
        info = replace(info, places_P2=tensors[_DEGREES].numpy(), reference_R2=tensors[_REFERENCE].numpy())
        if isinstance(network, LinkModel):
            network.places_NF = tensors[_PLACES]
    head = None
    if isinstance(network, LinearBaseline):
        head = LinearHead(network.image.fc.weight.detach(), network.image.fc.bias.detach())
    elif f"{_HEAD}weight" in expected:
        head = LinearHead(tensors[f"{_HEAD}weight"], tensors[f"{_HEAD}bias"])
    return SpeciesModel(path, info, network, head)


def _read_info(path: Path, config: Mapping[str, Any]) -> SpeciesInfo:
    where = path / CONFIG
    choose(config["method"], METHODS, f"{where}: method")
    content = read_json(path / TAXA)
    rows = content.get("taxa") if isinstance(content, dict) else None
    try:
        taxa = Taxa.from_rows(rows or [])
        labels = tuple(str(entry["label"]) for entry in config["classes"])
        columns = {"classes": [entry["taxon"] for entry in config["classes"]], "entities": config["entities"]}
        indices = {
            name: np.array([taxa.index(taxon) if taxon else -1 for taxon in ids], dtype=np.int64)
            for name, ids in columns.items()
        }
        targets_K = np.array(config["targets"], dtype=np.int64)
        images_K = np.array(config["images"], dtype=np.int64)
        hours = np.array(config["hours"], dtype=np.float64)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: classes, entities, images or hours are damaged ({error})") from error
    is_entity = (targets_K >= 0) & (targets_K < len(indices["entities"]))
    if not len(labels) == len(targets_K) == len(images_K) or not is_entity.all():
        raise UserError(f"{where}: classes, targets and images do not fit each other (got {len(labels)} classes)")
    return SpeciesInfo(
        method=config["method"],
        classes=Classes(labels, indices["classes"]),
        taxa=taxa,
        entity_taxa=indices["entities"],
        targets_K=targets_K,
        graph=validate(GraphSettings, config["graph"], where=f"{where}: graph"),
        view=validate(ViewSettings, config["view"], where=f"{where}: view"),
        encoder=config.get("encoder"),
        fingerprint=str(config.get("fingerprint", "")),
        preprocess=None,
        images_K=images_K,
        hours=hours,
        places_P2=np.zeros((0, 2)),
        reference_R2=np.zeros((0, 2)),
        provenance=config.get("provenance", {}),
    )


def _build_network(info: SpeciesInfo, config: Mapping[str, Any]) -> SpeciesNetwork:
    """Build the network that a folder describes, untrained."""
    graph, features, num_classes = info.graph, config["features"], len(info.classes)
    is_linear = info.method in ("erm", "linear_probe")
    encoder = None
    if info.encoder is not None and not info.fingerprint:
        encoder = build_image_encoder(info.encoder)
    image = ImageNetwork(features, num_classes if is_linear else graph.dim, encoder)
    if is_linear:
        return LinearBaseline(image)
    if info.method == "mlp_concat":
        return build_concat(image, graph, num_classes)
    places_NF = torch.zeros(config["num_places"], PLACE_WIDTHS[graph.place_input])
    return LinkModel(
        image,
        num_entities=len(info.entity_taxa),
        targets=info.targets_K.tolist(),
        dim=graph.dim,
        score=build_score(graph.score, graph.dim, rows=graph.conve_rows),
        places_NF=places_NF,
        hours_NF=scale_hours(info.hours, graph.hour_input),
    )


def _list_tensors(network: SpeciesNetwork, info: SpeciesInfo, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every tensor that a folder must hold, with its shape."""
    tensors = dict(network.state_dict())
    if isinstance(network, LinkModel) and network.score.is_linear:
        num_classes = len(info.classes)
        tensors |= {f"{_HEAD}weight": torch.empty(num_classes, config["features"])}
        tensors |= {f"{_HEAD}bias": torch.empty(num_classes)}
    if config["num_places"]:
        tensors |= {_DEGREES: torch.empty(config["num_places"], 2), _REFERENCE: torch.empty(2, 2)}
        if isinstance(network, LinkModel):
            tensors[_PLACES] = network.places_NF
    return tensors


def build_concat(image: nn.Module, graph: GraphSettings, num_classes: int) -> ConcatBaseline:
    """Build MLP-concat with the widths of the graph's settings."""
    return ConcatBaseline(
        image,
        num_classes=num_classes,
        dim=graph.dim,
        place_width=PLACE_WIDTHS[graph.place_input],
        hour_width=HOUR_WIDTHS[graph.hour_input],
        start=graph.start,
    )


def summarize_reference(places_R2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return two points of the same mean and deviation as `places_R2`: enough to standardize by, and no place."""
    mean_2, deviation_2 = places_R2.mean(axis=0), places_R2.std(axis=0)
    return np.stack([mean_2 - deviation_2, mean_2 + deviation_2])
