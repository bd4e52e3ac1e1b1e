"""List the files that a walk through the house enters: four trainings up to their first step, and six other ways.

    python tools/entered.py             # the trainings: counts by room, and how many files are common to all four
    python tools/entered.py --walks     # import, index, search, question, site and request as well
    python tools/entered.py --files     # every file in the order in which it is entered

Counted is a file of which a function runs; importing it alone does not count. The data are those of the tests: a tiny
recipe, a folder of images, the shipped `mini`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "foveate"
# The tiny recipes and data are those of the tests.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "species")]
_IS_FUNCTION = 0x1  # CO_OPTIMIZED, which the bodies of modules and classes lack


class FirstStep(BaseException):
    """The first optimizer step is about to be made; not an Exception, which trainings may catch."""


@contextmanager
def stop_at_first_step() -> Iterator[None]:
    """Raise `FirstStep` where any optimizer is about to step."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def stop(*_: Any) -> None:
        raise FirstStep

    handle = register_optimizer_step_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def list_entered(walk: Callable[[], object]) -> list[str]:
    """Return the files below src/foveate of which a function runs, in order; a training ends before its first step."""
    entered: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_flags & _IS_FUNCTION:
            entered.setdefault(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with stop_at_first_step():
            walk()
    except FirstStep:
        pass
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return [Path(name).relative_to(SOURCE).as_posix() for name in entered if Path(name).is_relative_to(SOURCE)]


def make_trainings(folder: Path) -> dict[str, Callable[[], object]]:
    """Make the data of the four trainings in `folder`; return them by name, ready to run."""
    import numpy as np
    from timm.models._hub import save_for_hf

    from foveate.adapt.load_backbone import parse_backbone
    from foveate.adapt.recipe import build_recipe
    from foveate.adapt.train import train_adapter
    from foveate.core.recipes import validate
    from foveate.mllm.train import train_mllm
    from foveate.pretrain.train import pretrain
    from foveate.records.collection import Collection
    from foveate.species.recipe import SpeciesRecipe
    from foveate.species.train import train_species

    # By name, since type checkers do not look into tests.
    tiny, tiny_mllm, survey_of, towers = map(import_module, ("tiny", "tiny_mllm", "training_survey", "adapt.towers"))
    plain, asked = tiny.make_collection(folder / "plain"), tiny_mllm.make_asked_collection(folder / "asked")
    survey = survey_of.build_survey(folder / "survey")
    survey_of.write_features(folder / "features.npz", survey)
    random = np.random.default_rng(0)
    split = np.array(["train"] * 12 + ["test"] * 6)
    images = random.integers(0, 255, (18, 32, 32, 3)).astype(np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(18) % 3, split=split)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    save_for_hf(towers.tower("timm"), str(folder / "network"), model_args=sizes, safe_serialization=True)
    network = parse_backbone(str(folder / "network"))
    species = {"view": {"view": "whole"}, "data": {"features": str(folder / "features.npz")}}
    return {
        "pretrain": lambda: pretrain(tiny.recipe(), Collection.open(plain), folder / "run-pretrain", device="cpu"),
        "mllm train": lambda: train_mllm(
            tiny_mllm.make_recipe(), Collection.open(asked), folder / "run-mllm", device="cpu"
        ),
        "adapt train": lambda: train_adapter(
            build_recipe(network, "lora", []),
            folder / "images.npz",
            folder / "run-adapt",
            device="cpu",
        ),
        "species train": lambda: train_species(
            folder / "survey",
            folder / "run-species",
            validate(SpeciesRecipe, species, where="tools/entered.py"),
            device="cpu",
        ),
    }


def make_walks(folder: Path) -> dict[str, Callable[[], object]]:
    """Make what the other walks need in `folder`; return them by name, ready to run one after the other."""
    import numpy as np
    from PIL import Image
    from starlette.testclient import TestClient

    from foveate.cli.main import cli
    from foveate.serve import app

    tiny = import_module("tiny")
    photos, image = folder / "photos", folder / "photos" / "0.png"
    photos.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3)).astype(np.uint8)):
        Image.fromarray(pixels).save(photos / f"{number}.png")
    sites = ("--split", "even", "--clients", 2)
    made = tiny.make_index(folder, tiny.make_collection(folder / "shapes"))

    def run(*arguments: object) -> Callable[[], object]:
        return lambda: cli.main([*map(str, arguments), "--quiet"], standalone_mode=False)

    def request() -> None:
        with TestClient(app(["mini"], allow_host=["testserver"])) as client:
            message = {"role": "user", "content": "Is there a boat?"}
            body = {"model": "mini", "messages": [message], "max_tokens": 4}
            client.post("/v1/chat/completions", json=body).raise_for_status()

    return {
        "folder -> collection": run("collect", photos, "--out", folder / "mine"),
        "collection -> index": run("index", made / "model", made / "my-images", "--out", folder / "index"),
        "words -> hits": run("search", made / "my-index", "a red disc", "--out", folder / "hits"),
        "question -> answer": run("ask", image, "Is there a boat?", "--out", folder / "asked"),
        "sites -> report": run("federated", "cluster", "digits", *sites, "--out", folder / "fed"),
        "request -> model": request,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walks", action="store_true", help="walk the six other ways as well")
    parser.add_argument("--files", action="store_true", help="list every file in the order in which it is entered")
    parser.add_argument("--json", action="store_true", help="print {walk: files}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained = {name: list_entered(walk) for name, walk in make_trainings(Path(folder)).items()}
        walked = (
            {name: list_entered(walk) for name, walk in make_walks(Path(folder)).items()} if arguments.walks else {}
        )
    if arguments.json:
        print(json.dumps(trained | walked, indent=2))
        return
    for name, files in (trained | walked).items():
        rooms = Counter(file.split("/")[0] for file in files)
        print(f"{name}: {len(files)} files, {', '.join(f'{room} {count}' for room, count in rooms.most_common())}")
        if arguments.files:
            print("  " + "\n  ".join(files))
    print(f"common to the four trainings: {len(set.intersection(*map(set, trained.values())))}")


if __name__ == "__main__":
    main()
