"""The API reference: every public name has an example, every example runs, and the page is the code's own."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foveate
import tiny
import tiny_mllm
from foveate.records.collection import Collection

ROOT = Path(__file__).resolve().parents[1]
# Public are the names of the doors: of `foveate`, and of each room that has an `__all__`.
ROOMS = sorted(
    room.name
    for room in pkgutil.iter_modules(foveate.__path__)
    if room.ispkg and hasattr(importlib.import_module(f"foveate.{room.name}"), "__all__")
)
NAMES = sorted(name for name in foveate.__all__ if not name.startswith("_"))
PUBLIC = [f"foveate.{name}" for name in NAMES] + [
    f"foveate.{room}.{name}"
    for room in ROOMS
    for name in importlib.import_module(f"foveate.{room}").__all__
    if name not in NAMES
]


@pytest.fixture(scope="module")
def names(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples may use without importing it: the public names, and files of a tiny world."""
    from adapt.towers import tower
    from foveate.adapt.load_backbone import load_backbone, parse_backbone
    from foveate.core.recipes import dump
    from foveate.federated.deep.job import fit_clients
    from foveate.federated.deep.job import save_model as save_deep_clustering
    from foveate.federated.deep.options import DeepOptions
    from foveate.mllm import export_mllm
    from foveate.pretrain import build_model
    from foveate.search.index import build_index
    from foveate.vision.localizer.folder import save_model
    from mllm import export_models
    from vision.foreign import save_clip

    folder = tmp_path_factory.mktemp("reference")
    save_model(build_model(tiny.recipe()).eval(), folder / "model")
    network = load_backbone(parse_backbone(str(folder / "model")))
    adapted = foveate.adapt(network.model, "bitfit", classes=3)
    adapted.info["default"] = {"classes": ["a", "b", "c"], "backbone": network.settings}
    foveate.save_adapter(adapted, folder / "run" / "adapter")
    build_index(folder / "model", tiny_collection, folder / "index")
    survey_of = runpy.run_path(str(ROOT / "tests" / "species" / "training_survey.py"))
    survey_of["write_features"](folder / "features.npz", survey_of["build_survey"](folder / "survey"))
    save_species_model(folder / "species")
    with Collection.open(tiny_collection) as collection:
        (folder / "image.png").write_bytes(collection.image_bytes(0))
    (folder / "cards" / "oak").mkdir(parents=True)
    shutil.copy(folder / "image.png", folder / "cards" / "oak")
    (folder / "cards" / "deployments.csv").write_text("deploymentID,folder,latitude,longitude\noak-1,oak,51.12,4.5\n")
    classifier = foveate.adapt(tower("timm"), "lora", classes=3, seed=0)
    classifier.info["default"] = {"classes": ["disc", "square", "triangle"]}
    foveate.adapt.export_merged(classifier, folder / "classifier")
    clip = {**export_models.CLIP, "source": str(save_clip(folder / "clip"))}
    export_models.save(export_models.build(clip, "mlp"), folder / "mllm")
    export_mllm(str(folder / "mllm"), to="llava", out=folder / "llava")
    points = np.random.default_rng(0).normal(size=(2, 12, 4))
    deep = fit_clients(list(points), DeepOptions(clusters=2, rounds=1, width=8, batch_size=4))
    save_deep_clustering(deep, folder / "deep", clients=2)
    (folder / "mllm.yaml").write_text(dump(tiny_mllm.make_recipe()))
    return {name: getattr(foveate, name) for name in NAMES} | {
        "collection_folder": tiny_collection,
        "model_folder": folder / "model",
        "adapter_run": folder / "run",
        "index_folder": folder / "index",
        "species_folder": folder / "species",
        "survey_folder": folder / "survey",
        "cards_folder": folder / "cards",
        "asked_folder": tiny_mllm.make_asked_collection(folder / "asked"),
        "recipe_file": tiny.write_recipe(folder / "recipe.yaml"),
        "mllm_recipe_file": folder / "mllm.yaml",
        "mllm_folder": folder / "mllm",
        "llava_folder": folder / "llava",
        "deep_folder": folder / "deep",
        "classifier_folder": folder / "classifier",
        "features_file": folder / "features.npz",
        "adapted_model": adapted,
        "tuned_tower": foveate.adapt(tower("timm"), "lora", classes=3, seed=0),
        "image_file": folder / "image.png",
    }


def save_species_model(folder: Path) -> None:
    """Write an untrained model of two species on features of width 4."""
    from foveate.species.fit import build_link_model
    from foveate.species.folder import save_species
    from foveate.species.link_data import link_arrays
    from foveate.species.links import ImageNetwork
    from foveate.species.model import SpeciesInfo
    from foveate.species.recipe import SpeciesRecipe

    data, recipe = link_arrays(["deer", "fox"]), SpeciesRecipe()
    network = build_link_model(data, recipe.graph, lambda: ImageNetwork(4, recipe.graph.dim), seed=0)
    info = SpeciesInfo(
        method="cosmo",
        classes=data.classes,
        taxa=data.taxa,
        entity_taxa=data.entity_taxa,
        targets_K=data.targets_K,
        graph=recipe.graph,
        view=recipe.view,
        encoder=None,
        fingerprint="",
        preprocess=None,
        images_K=data.count_images(),
        hours=np.zeros(0),
        places_P2=np.zeros((0, 2)),
        reference_R2=np.zeros((0, 2)),
        provenance={},
    )
    save_species(folder, network, info)


@pytest.mark.parametrize("path", PUBLIC)
def test_every_public_name_has_an_example_that_runs(path: str, names: dict[str, Any], tmp_path: Path) -> None:
    door, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(door), name)
    if inspect.ismodule(value):  # a package that can be called
        value = value.called
    module = sys.modules[value.__module__]
    # An example may use the other names of its room. What it writes into is a copy.
    room = importlib.import_module(door)
    globs = {**vars(module), **{public: getattr(room, public) for public in room.__all__}, **names}
    globs["new_folder"] = tmp_path / "new"
    for copied in ("collection", "survey"):
        if f"{copied}_copy" in (inspect.getdoc(value) or ""):
            globs[f"{copied}_copy"] = shutil.copytree(names[f"{copied}_folder"], tmp_path / copied)
    tests = [test for test in doctest.DocTestFinder().find(value, name, module=module, globs=globs) if test.examples]
    assert tests, f"{path} has no example"
    for test in tests:
        failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed
        assert not failed, f"an example of {test.name} fails"


def test_names_of_foveate_are_names_of_rooms() -> None:
    """What `foveate` offers is the very object that a room's door offers."""
    for room in ROOMS:
        door = importlib.import_module(f"foveate.{room}")
        assert all(getattr(door, name) is getattr(foveate, name) for name in door.__all__ if name in NAMES)
    offered = {name for room in ROOMS for name in importlib.import_module(f"foveate.{room}").__all__}
    # The two packages that can be called.
    assert set(NAMES) - offered == {"adapt", "search"}
    assert {page.stem for page in (ROOT / "docs" / "reference").glob("*.md")} == {"index", *ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_of_a_room_hides_a_public_name(room: str) -> None:
    """Importing a module `audit` sets the attribute `audit` of its package, in the place of a function of that name."""
    door = importlib.import_module(f"foveate.{room}")
    for name in {module.name for module in pkgutil.iter_modules(door.__path__)} & set(door.__all__):
        importlib.import_module(f"foveate.{room}.{name}")
        assert not inspect.ismodule(getattr(door, name)), name


def test_pages_that_repeat_the_code_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "write_docs.py"), "--check"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"run python tools/write_docs.py: {ended.stdout}{ended.stderr}"
