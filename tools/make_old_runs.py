"""Makes the stopped run folders of tests/old_runs with the code of an older checkout.

Usage, with OLD a checkout of the older commit and this repository's environment:

  PYTHONPATH=OLD/src python -P tools/make_old_runs.py OLD OUT [KIND ...]

Each kind of work runs in a process of its own, in a folder that has its data too, and dies right after it wrote one
file. `OUT/KIND.zip` has that folder: data, `run`, and in `command.json` the words of the command.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

SHAPES = ("--collection", "shapes", "--run", "run", "--device", "cpu")
QUICK_FEDERATED = ("--client", "hospital", "--label", "species", "--rounds", "3", "--run", "run", "--device", "cpu")
PRETRAIN = {
    "image_encoder": {
        "kind": "open_clip",
        "model": "ViT-B-32",
        "vision": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    },
    "embed_dim": 8,
    "training": {"steps": 6, "batch_size": 8, "workers": 0, "ema_decay": 0.9},
}


@dataclass(frozen=True)
class Kind:
    """One kind of work.

    Attributes:
        prepare: writes data into the current folder.
        stop: glob on the path of the file or folder whose renaming ends the process, and at which time.
        command: words of the command line; or `work` does it.
    """

    prepare: Callable[[], None]
    stop: tuple[str, int]
    command: tuple[str, ...] = ()
    work: Callable[[], Any] | None = None


def old(module: str) -> Any:
    """Import a module of the older checkout, or of its tests."""
    return importlib.import_module(module)


def shapes() -> Any:
    """Write the tiny collection `shapes`, without the noise, which no archive would compress."""
    tiny = old("tiny")
    draw = tiny.draw

    def draw_without_noise(*arguments: Any, **options: Any) -> Any:
        return draw(*arguments, **options).point(lambda value: value if value >= 40 else 0)

    tiny.draw = draw_without_noise
    tiny.make_collection(Path("shapes"))
    return tiny


def pretrain_tiny() -> Any:
    """Write the tiny collection; return the module whose recipe has small encoders, which the change cannot merge."""
    tiny = shapes()
    tiny.RECIPE["text_encoder"] = {"kind": "minilm", "projection": "linear"}
    return tiny


def prepare_pretrain() -> None:
    pretrain_tiny().write_recipe(Path("recipe.yaml"), **PRETRAIN)


def prepare_mllm() -> None:
    import yaml

    shapes()
    tiny_mllm = old("tiny_mllm")
    collection = old("foveate.records.collection").Collection
    with collection.open("shapes") as opened:
        conversations = tiny_mllm.make_questions(opened)
    old("foveate.records.conversations").add_conversations(Path("shapes"), conversations)
    content = json.loads(tiny_mllm.make_recipe(vocabulary=400).model_dump_json())
    content["model"]["tower"] |= {"width": 16}
    content["model"]["language"] |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    content["model"] |= {"box_head": False, "phrase_maps": False, "regions": "text"}
    content["model"]["language"] |= {"max_position_embeddings": 384}
    for stage in content["stages"]:
        stage |= {"box_weight": 0.0, "alignment_weight": 0.0, "texts": True}
    Path("recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def prepare_adapt() -> None:
    import timm
    import torch
    from timm.models._hub import save_for_hf

    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 0}
    torch.manual_seed(7)
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    save_for_hf(model, "vit", model_args=arguments, safe_serialization=True)
    compared = old("adapt.compared")
    compared.stripes(Path("noisy.npz"))
    _quantize(Path("noisy.npz"), Path("stripes.npz"))


def _quantize(source: Path, target: Path) -> None:
    """Store the images in few shades and compressed."""
    import numpy as np

    with np.load(source) as arrays:
        np.savez_compressed(target, **{**arrays, "images": arrays["images"] // 60 * 60})
    source.unlink()


def prepare_species() -> None:
    from PIL import Image

    training_survey = old("training_survey")

    class OneColor:
        """Of a generated image its first pixel everywhere, as noise would fill the archive."""

        @staticmethod
        def fromarray(pixels: Any) -> Image.Image:
            return Image.fromarray(pixels[:1, :1].repeat(pixels.shape[0], 0).repeat(pixels.shape[1], 1))

    training_survey.Image = OneColor
    survey = training_survey.build_survey(Path("survey"), images=32)
    training_survey.write_features(Path("features.npz"), survey)


def prepare_cards() -> None:
    traps = old("foveate.records.traps")
    settings = traps.TrapSettings(
        width=160, height=120, train_cameras=3, validation_cameras=1, test_cameras=1, regions=2, tail=0.3
    )
    traps.build_traps(Path("survey"), train=36, validation=3, test=2, seed=3, settings=settings)
    traps.write_cards(Path("cards"), count=6, seed=3, settings=settings)
    model = ("graph.dim=8", "training.epochs=1", "encoder.kind=lite0", "encoder.image_size=64")
    command_line("species", "train", "survey", "--run", "trained", "--device", "cpu", *model)
    shutil.copytree("trained/model", "model")
    shutil.rmtree("trained")
    shutil.rmtree("survey")


def work_predict() -> None:
    old("foveate.species.predict")._IMAGES_PER_PART = 2
    command_line(*KINDS["species-predict"].command)


def prepare_boxes() -> None:
    import numpy as np
    from PIL import Image

    writer = old("foveate.records.writer").CollectionWriter
    species_boxes = old("test_species_boxes")
    data = old("skimage.data")
    small = np.asarray(Image.fromarray(data.chelsea()).resize((113, 75)))
    with writer(Path("cards"), license="CC0-1.0", source="cards") as cards:
        for number in range(4):
            cards.add(f"p{number}", species_boxes.encode(np.roll(small, 9 * number, axis=1)))


def work_boxes() -> None:
    boxes = old("foveate.species.boxes")
    boxes._IMAGES_PER_PART = 2
    command_line("species", "boxes", "cards", "--device", "cpu", "--workers", "1")


def prepare_caption() -> None:
    old("captioned").make(Path("c"), 6)


def work_caption() -> None:
    with old("chat_server").ChatServer() as server:
        old("captioned").ask(Path("c"), server.url, rows_per_part=9, seconds_per_part=60.0)


def work_regions() -> None:
    old("regions_to_kill").label("shapes")


def work_label() -> None:
    old("labels_to_kill").label("shapes", "regions")


def work_video() -> None:
    video = old("video_to_kill")

    class Dying(video.HashModel):
        def ask_all(self, *arguments: Any, **options: Any) -> Any:
            if len(self.batches) == 5:
                os._exit(9)
            return super().ask_all(*arguments, **options)

    video.run_evaluation(".", "run", model=Dying())


def prepare_video() -> None:
    old("video_to_kill").write_questions(Path(), count=40, clips=6)


def prepare_evaluate() -> None:
    shapes()
    suites = old("test_suites")
    suites.add(
        Path("shapes"),
        *[
            suites.conversation(f"q{number}", f"What {number}?", "x", images=(f"test-0{number}",))
            for number in range(8)
        ],
    )


def work_evaluate() -> None:
    suites = old("test_suites")

    class Dying(suites.Table):
        def ask_all(self, *arguments: Any, **options: Any) -> Any:
            if len(self.requests) >= 9:
                os._exit(9)
            return super().ask_all(*arguments, **options)

    model = Dying(lambda sizes, text, regions: "x" if sizes and int(text[5]) % 2 else "y")
    suites.evaluate(model, "vqa", Path("shapes"), run="run", settings=suites.SuiteSettings(batch_size=3))


def prepare_points() -> None:
    import numpy as np

    random = np.random.default_rng(0)
    points = random.normal(size=(60, 5)) + 4 * random.normal(size=(3, 5))[np.arange(60) % 3]
    labels = np.array(["owl", "fox", "elk"])[np.arange(60) % 3]
    hospital = np.where(np.arange(60) < 35, "north", "south")
    np.savez("patients.npz", points=points.round(2), species=labels, hospital=hospital)


def prepare_index() -> None:
    tiny = pretrain_tiny()
    build_model = old("foveate.pretrain.train").build_model
    folder = old("foveate.vision.localizer.folder")
    folder.save_model(build_model(tiny.recipe(**PRETRAIN)).eval(), Path("model"))


def _federated(verb: str, *more: str) -> tuple[str, ...]:
    return ("federated", verb, "patients.npz", *QUICK_FEDERATED, *more)


BACKBONE = ("--backbone", "vit", "--device", "cpu", "--run", "run")
KINDS = {
    "pretrain": Kind(prepare_pretrain, ("*/step-*", 2), ("pretrain", "recipe.yaml", *SHAPES)),
    "mllm-train": Kind(prepare_mllm, ("*/stage-1*/checkpoints/step-*", 1), ("mllm", "train", "recipe.yaml", *SHAPES)),
    "adapt-train": Kind(
        prepare_adapt,
        ("*/checkpoints/step-*", 2),
        ("adapt", "train", "--data", "stripes.npz", "--method", "lora", "--epochs", "6", *BACKBONE, "rank=2")
        + (
            "training.batch_size=9",
            "training.log_every=1",
            "training.checkpoint_every=2",
            "training.workers=0",
            "training.head_solver=steps",
        ),
    ),
    "adapt-compare": Kind(
        prepare_adapt,
        ("*/cells/stripes-*.json", 2),
        ("adapt", "compare", "--tasks", "drawn/stripes=stripes.npz", "--methods", "linear", "--methods", "layernorm")
        + ("--epochs", "2", *BACKBONE, "training.batch_size=9"),
    ),
    "species-train": Kind(
        prepare_species,
        ("*/checkpoints/step-*", 2),
        ("species", "train", "survey", "--view", "whole", "--features", "features.npz", "--epochs", "2", "--run", "run")
        + (
            "--device",
            "cpu",
            "graph.dim=16",
            "training.log_every=1",
            "training.batch_size=4",
            "training.checkpoint_every=2",
        ),
    ),
    "species-predict": Kind(
        prepare_cards,
        ("*/results/scores/*.safetensors", 1),
        ("species", "predict", "model", "cards", "--deployments", "cards/deployments.csv", "--out", "results")
        + ("--device", "cpu", "--workers", "1"),
        work_predict,
    ),
    "species-boxes": Kind(
        prepare_boxes,
        ("*regions*.parquet", 1),
        ("species", "boxes", "cards", "--device", "cpu", "--workers", "1"),
        work_boxes,
    ),
    "caption": Kind(prepare_caption, ("*captions*.parquet", 1), work=work_caption),
    "regions": Kind(lambda: shapes() and None, ("*regions*.parquet", 2), work=work_regions),
    "mllm-label": Kind(lambda: shapes() and None, ("*regions*.parquet", 2), work=work_label),
    "mllm-evaluate": Kind(prepare_evaluate, ("", 1), work=work_evaluate),
    "video-evaluate": Kind(prepare_video, ("", 1), work=work_video),
    "federated-cluster": Kind(
        prepare_points,
        ("*/answers/*", 3),
        ("federated", "cluster", "patients.npz", "--client", "hospital", "--clusters", "3", "--run", "run")
        + ("--set", "refine_rounds=2"),
    ),
    "federated-embed": Kind(
        prepare_points, ("*/states/*", 2), _federated("embed", "--set", "hidden=[8]", "--set", "surrogate=grid")
    ),
    "federated-features": Kind(
        prepare_points, ("*/states/*", 2), _federated("features", "--set", "width=8", "--set", "hidden=16")
    ),
    "index": Kind(
        prepare_index, ("*/embeddings/*", 1), ("index", "model", "shapes", "--out", "my-index", "--workers", "1")
    ),
}


def command_line(*words: str) -> None:
    """Run a command in this process."""
    sys.argv = ["foveate", *words]
    old("foveate.cli.main").cli(list(words), standalone_mode=False)


def die_after(pattern: str, count: int) -> None:
    """End the process once it has renamed something onto `pattern` for the n-th time."""
    replace = os.replace
    left = count

    def deadly(source: Any, target: Any, **options: Any) -> None:
        nonlocal left
        replace(source, target, **options)
        if os.environ.get("OLD_RUNS_SHOW"):
            print("wrote", target)
        left -= fnmatch.fnmatch(str(Path(target).absolute()), pattern)
        if not left:
            os._exit(9)

    mock.patch.object(os, "replace", deadly).start()


def work(name: str) -> None:
    """Prepare and run one kind in the current folder; ends the process in its middle."""
    kind = KINDS[name]
    import torch

    torch.set_num_threads(1)
    kind.prepare()
    if kind.command:
        Path("command.json").write_text(json.dumps(kind.command), encoding="utf-8")
    die_after(*kind.stop)
    if kind.work:
        kind.work()
    else:
        command_line(*kind.command)
    raise SystemExit(f"{name}: the work ended before it was stopped")


def pack(folder: Path, target: Path) -> None:
    """Write the files of a folder into a zip file that depends on nothing but their names and bytes."""
    for checkpoints in folder.rglob("checkpoints"):
        # The last one of each training suffices; a stage that has ended needs none.
        ended = (checkpoints.parent / "stage.json").exists()
        for earlier in sorted(checkpoints.glob("step-*"))[: None if ended else -1]:
            shutil.rmtree(earlier)
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.endswith(".lock") and not path.is_relative_to(folder / "shapes/cache"):
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2020, 1, 1, 0, 0, 0))
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def main() -> None:
    checkout, out, *names = sys.argv[1:]
    if names[:1] == ["--work"]:
        work(names[1])
    tests = Path(checkout).resolve() / "tests"
    folders = [tests, *tests.glob("*/"), *tests.glob("*/*/"), tests.parent / "src"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}
    for name in names or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-P", str(Path(__file__).resolve()), checkout, out, "--work", name]
            done = subprocess.run(command, cwd=folder, env=environment, check=False)
            if done.returncode != 9:
                raise SystemExit(f"{name}: ended with {done.returncode}")
            pack(Path(folder), Path(out) / f"{name}.zip")
            print(name, (Path(out) / f"{name}.zip").stat().st_size, flush=True)


if __name__ == "__main__":
    main()
