"""Train and join the shipped model `small`. Repeated with the same folder, each command resumes.

    python tools/build_small.py train runs/small
    python tools/build_small.py join runs/small

`train` writes the collection of emoji, clip art and scenes (their training parts alone are trained on) and runs
recipes/small.yaml; `join` takes its newest checkpoint, measures what the parts are joined with, and writes the model
folder into the package's data (docs/methods/small.md). Photographs are those that come with scikit-image and
scikit-learn.
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from manifest import note_files
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from foveate.core.files import write_text_atomically
from foveate.core.model_folder import CARD, WEIGHTS
from foveate.core.paths import DATA
from foveate.core.progress import track
from foveate.core.recipes import load
from foveate.core.seeds import generator
from foveate.core.version import code_revision
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_model, pretrain
from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.search.calibration import draw_texts
from foveate.training import checkpoint
from foveate.vision.bridge import VIEW, BridgeEncoder
from foveate.vision.lite0 import CLASSES, Lite0Encoder, pack_maps
from foveate.vision.localizer.folder import save_model
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings, RegionSettings
from foveate.vision.localizer.sources import open_localizer
from foveate.vision.small import SENTENCE_WIDTH, SmallEncoder, SmallTextEncoder
from foveate_labs.worlds.scenes.scene_collection import build_tour_collection

RECIPE = "small"
TRAIN_SCENES, VALIDATION_SCENES, TEST_SCENES = 16_000, 100, 400
# Photographs of scikit-image and scikit-learn (public domain, CC0 or their projects' own).
PHOTOGRAPHS = {
    "skimage": "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png "
    "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png retina.jpg rocket.jpg",
    "sklearn": "china.jpg flower.jpg",
}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
_CROPS = 30  # of each photograph
_DRAWINGS = {"emoji": 300, "clipart": 300, "scenes": 900}
# Inverse strength of the logistic regression, and what its logits are multiplied by and shifted by. Chosen on one half
# of the queries of docs/methods/small.md.
_STRENGTH, _SLOPE, _SHIFT = 1e-3, 2.0, 3.0
_MIXTURES, _SHARES = 2000, (1.0, 0.6, 0.4, 0.3)
_SIDE = (VIEW, VIEW)


def train(run: Path) -> None:
    """Build the collection, and train the recipe on it."""
    build_tour_collection(
        run / "collection",
        train_scenes=TRAIN_SCENES,
        validation_scenes=VALIDATION_SCENES,
        test_scenes=TEST_SCENES,
        workers=2,
    )
    pretrain(
        load(PretrainRecipe, RECIPE),
        Collection.open(run / "collection"),
        run / "cloc",
        device="cpu",
        command=sys.argv,
        evaluate_split=None,
    )


def crop_photographs() -> list[Image.Image]:
    """Return whole photographs and random crops of them, as views of the classifier."""
    views = []
    for package, names in PHOTOGRAPHS.items():
        folder = Path(str(importlib.resources.files(package))) / _FOLDERS[package]
        for name in names.split():
            image = Image.open(folder / name).convert("RGB")
            rng = generator("small photographs", name)
            views.append(image.resize(_SIDE, Image.Resampling.BICUBIC))
            for _ in range(_CROPS):
                share, aspect = rng.uniform(0.4, 1) ** 0.5, np.exp(rng.uniform(-0.2, 0.2))
                width, height = min(1.0, share * aspect), min(1.0, share / aspect)
                left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
                box = np.array([left, top, left + width, top + height]) * (image.size * 2)
                views.append(image.resize(_SIDE, Image.Resampling.BICUBIC, box=tuple(box)))
    return views


def draw_drawings(collection: Collection) -> list[Image.Image]:
    """Return training images of each source, as views of the classifier."""
    views = []
    for source, count in _DRAWINGS.items():
        rows = collection.rows("train", {"source": source})
        for row in np.sort(generator("small drawings", source).permutation(rows)[:count]):
            views.append(decode(collection.image_bytes(int(row))).resize(_SIDE, Image.Resampling.BICUBIC))
    return views


def read_views(encoder: SmallEncoder, views: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Return the classifier's pooled features [N, 1280] of views, and the packed maps that the trained part reads."""
    head = encoder.bridge.open_networks(torch.device("cpu"))[1]
    pooled, packed = [], []
    for start in track(range(0, len(views), 8), description="views"):
        pixels = np.stack([np.asarray(view) for view in views[start : start + 8]]).transpose(0, 3, 1, 2)
        fine, coarse = encoder.bridge.read_strides(torch.from_numpy(np.ascontiguousarray(pixels)).float())
        pooled.append(head.features(coarse.float()).mean(dim=(2, 3)))
        packed.append(pack_maps(fine, coarse))
    return torch.cat(pooled), torch.cat(packed)


def measure(cosines_TN: Tensor) -> Tensor:
    """Return the mean and the standard deviation of cosines with random texts."""
    return torch.stack([cosines_TN.mean(), cosines_TN.std()])


def load_trained(run: Path) -> tuple[LocalizingModel, int]:
    """Return the trained CLOC of the newest checkpoint, and its step."""
    newest = checkpoint.newest(run / "cloc" / "checkpoints")
    if newest is None:
        raise SystemExit(f"{run}: has no checkpoint; run `train` first")
    model = build_model(load(PretrainRecipe, RECIPE))
    weights = load_file(newest / "weights.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    return model.eval().requires_grad_(False), int(newest.name.removeprefix("step-"))


@torch.inference_mode()
def join(run: Path) -> Path:
    """Join `bridge` and the trained CLOC, and write the model folder; return where it is."""
    (trained, step), bridge = load_trained(run), open_localizer("bridge", device="cpu")
    # By itself, too, for `foveate evaluate`.
    save_model(trained, run / "trained")
    assert isinstance(trained.image_encoder, Lite0Encoder)
    assert isinstance(bridge.image_encoder, BridgeEncoder)
    embed_dim = SENTENCE_WIDTH + trained.recipe.embed_dim + 1
    settings = LocalizerSettings(
        image_encoder={"kind": "small", "width": trained.image_encoder.width},
        text_encoder={"kind": "small", "precision": "auto"},
        embed_dim=embed_dim,
        regions=RegionSettings(method="none"),
    )
    model = LocalizingModel(settings).eval()
    model.localizes = True
    encoder, text_encoder = model.image_encoder, model.text_encoder
    assert isinstance(encoder, SmallEncoder)
    assert isinstance(text_encoder, SmallTextEncoder)
    assert trained.prompter is not None
    assert trained.box_head is not None
    encoder.bridge.load_state_dict(bridge.image_encoder.state_dict())
    encoder.trained.load_state_dict(trained.image_encoder.state_dict())
    encoder.prompter.load_state_dict(trained.prompter.state_dict())
    encoder.box_head.load_state_dict(trained.box_head.state_dict())
    text_encoder.proj.load_state_dict(trained.text_encoder.get_submodule("proj").state_dict())

    photographs, _ = read_views(encoder, crop_photographs())
    drawings, packed = read_views(encoder, draw_drawings(Collection.open(run / "collection")))
    labels = [1] * len(photographs) + [0] * len(drawings)
    regression = LogisticRegression(C=_STRENGTH, max_iter=1000, class_weight="balanced")
    regression.fit(torch.cat([photographs, drawings]).numpy(), labels)
    encoder.gate_D.copy_(torch.from_numpy(_SLOPE * regression.coef_[0]))
    encoder.gate_bias.fill_(float(_SLOPE * regression.intercept_[0] + _SHIFT))

    # Random mixtures of classes, as for bridge's floors: photographs of anything are not at hand.
    rng = generator("small level")
    class_KS = torch.from_numpy(rng.integers(CLASSES, size=(_MIXTURES, len(_SHARES))))
    vectors_KSE = encoder.bridge.class_vectors_CE[class_KS]
    mixed_KE = F.normalize(torch.einsum("kse,s->ke", vectors_KSE, torch.tensor(_SHARES)), dim=-1)
    sentences_TE = F.normalize(embed_phrases(bridge, draw_texts()), dim=-1)
    encoder.bridge_level_2.copy_(measure(sentences_TE @ mixed_KE.T))
    texts_TE = F.normalize(embed_phrases(trained, draw_texts()), dim=-1)
    encoder.trained_level_2.copy_(measure(texts_TE @ F.normalize(encoder.trained(packed).pooled, dim=-1).T))
    text_encoder.scale_2.copy_(1 / torch.stack([encoder.bridge_level_2[1], encoder.trained_level_2[1]]))

    card = DATA / "small" / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    provenance = {"recipe": RECIPE, "steps": step, "command": ["python", "tools/build_small.py", "train"]}
    provenance["revision"] = code_revision()
    folder = save_model(model.half(), DATA / "small", provenance=provenance)
    # Written by hand, since it says more than the numbers of a training.
    write_text_atomically(card, text or card.read_text(encoding="utf-8"))
    weights = folder / WEIGHTS
    note_files("weights", weights)
    return folder


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]))
    else:
        print(join(Path(sys.argv[2])))
