"""Model folder of kind "species": classes by name and taxon, the link model, and its folded linear head.

Places are supervision, so a folder needs none of them to answer: the network of places, their table and the names of
cameras are left out unless asked for. Poachers read published coordinates, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.core.files import read_json
from foveate.core.hub import find
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
from foveate.species.crops import CropSettings
from foveate.species.links import (
    PLACE_WIDTHS,
    ImageNetwork,
    LinearBaseline,
    LinearHead,
    LinkModel,
    SpeciesNetwork,
    build_concat,
    build_score,
    fold_head,
    scale_hours,
)
from foveate.species.model import SpeciesInfo, SpeciesModel
from foveate.species.recipe import METHODS, GraphSettings
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa
from foveate.vision.encoder import ImageEncoder
from foveate.vision.registry import build_image_encoder

KIND, FORMAT = "species", 1
TAXA = "taxa.json"
# Tensors that are no parameters of the network.
_HEAD, _DEGREES, _REFERENCE, _PLACES = "head.", "degrees", "reference", "places_NF"
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
        include_locations: also write the network of places and their coordinates, where the model has places.

    Raises:
        UserError: MLP-concat without `include_locations`: it cannot answer without its network of places.
    """
    check_locations(info.method, include_locations)
    tensors = dict(network.state_dict())
    # Without a context of places, or a survey without coordinates, there is nothing to include.
    num_places = len(info.places_P2) if include_locations else 0
    if num_places:
        tensors |= {_DEGREES: torch.from_numpy(info.places_P2), _REFERENCE: torch.from_numpy(info.reference_R2)}
        tensors |= {name: value for name, value in network.named_buffers() if name == _PLACES and value is not None}
    else:
        # The network of places goes, too: even without the table it could score any coordinates against an image.
        tensors = {name: value for name, value in tensors.items() if not name.startswith("places.")}
    head = _fold(network)
    if head is not None:
        tensors |= {f"{_HEAD}weight": head.weight_KF, f"{_HEAD}bias": head.bias_K}
    # A fingerprint names frozen weights that can be loaded again; a trained encoder has none, and its weights are
    # stored, with an architecture that builds it without a download.
    if not info.fingerprint and info.encoder is not None:
        encoder = network.image.encoder
        assert isinstance(encoder, ImageEncoder), "a trained encoder is part of the network"
        settings: Mapping[str, Any] | None = {**info.encoder, **encoder.architecture()}
    else:
        settings = info.encoder
    config = {
        "method": info.method,
        # Stored by label and taxon id, because the meaning of plain indices depends on the order of a table.
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
    files |= {CARD: _card(info, has_locations=num_places > 0)}
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


def _card(info: SpeciesInfo, *, has_locations: bool) -> str:
    animals = int(info.classes.animals_K.sum())
    locations = "It holds coordinates of cameras." if has_locations else "It holds no coordinates and no cameras."
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
    path = find("species", folder).folder
    config = read_config(path, kind=KIND, formats=[FORMAT], fields=_FIELDS)
    info = _read_info(path, config)
    # Compare shapes before anything takes memory: a config of a million classes is refused if its weights are smaller.
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
    # The folder may come from anywhere: JSON of any shape must end in an error message, not a traceback.
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
    # A damaged index would otherwise read the row of another taxon without an error.
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
        view=validate(CropSettings, config["view"], where=f"{where}: view"),
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
    # The linear layer of a baseline outputs the logits directly.
    image = ImageNetwork(features, num_classes if is_linear else graph.dim, encoder)
    if is_linear:
        return LinearBaseline(image)
    if info.method == "mlp_concat":
        return build_concat(image, graph, num_classes)
    # Only the shape matters here: the values are not in the state dict and come from the file (`open_species`).
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
