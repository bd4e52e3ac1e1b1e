"""The study `cosmo_encoder`: contexts of COSMO where they can shape the encoder, whose last stages are trained.

The study `cosmo` freezes the encoder, so contexts shape one linear layer there. Here the last two stages of
EfficientNet-Lite0 learn from every pass over the images as well, in the worlds of that study.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.experiment_grid import Cell
from foveate_labs.studies.cosmo import CONTEXT_MEASURES, CONTEXT_PAPER_CLAIMS, SETTINGS, TRAPS, claims_of_contexts
from foveate_labs.studies.cosmo_measures import ARMS, TRAINED_RATE, measure_arm
from foveate_labs.studies.cosmo_worlds import ENCODER, EXACT, TrapImages, TrapWorld, open_world
from foveate_labs.studies.study import Claim, Condition, Design, GridStudy, Row

FROZEN = "frozen"
CONTEXTS = ("taxonomy", "place", "time", "all")
TRAINED = ("none", *(f"{name}{suffix}" for name in CONTEXTS for suffix in ("", "-shuffled")))
CONDITIONS = (
    Condition(TRAPS, "Traps", "48 species, 4 regions that share few of them, 40 training and 16 unseen cameras"),
)
MEASURES = CONTEXT_MEASURES
ROWS = (
    Row("none", "image only", "the graph without contexts, last stages trained", "none", role="reference"),
    Row(FROZEN, "image only, frozen encoder", "no part of the encoder is trained", FROZEN, role="baseline"),
    *(
        Row(key, ARMS[key].title, f"{ARMS[key].what}, last stages trained", key,
            role="control" if key.endswith("shuffled") else "variant")
        for key in TRAINED[1:]
    ),
)  # fmt: skip
CLAIMS = (
    Claim("Trained last stages raise accuracy at unseen cameras", TRAPS, "accuracy", "none", FROZEN),
    Claim("Trained last stages raise accuracy at training cameras", TRAPS, "held_out", "none", FROZEN),
    Claim("Places are learned: their loss lies below chance", TRAPS, "place_chance", "place", "place",
          worse_measure="place_loss"),
    Claim("Control: shuffled places are not", TRAPS, "place_loss", "place-shuffled", "place-shuffled", -0.001,
          worse_measure="place_chance", asserted=True),
    Claim("Hours are learned: their loss lies below chance", TRAPS, "time_chance", "time", "time",
          worse_measure="time_loss"),
    Claim("Control: shuffled hours are not", TRAPS, "time_loss", "time-shuffled", "time-shuffled", -0.001,
          worse_measure="time_chance", asserted=True),
    *claims_of_contexts(),
    Claim("The taxonomy lowers the LCA height of errors", TRAPS, "lca", "none", "taxonomy"),
    Claim("Control: the taxonomy lowers it below a shuffled one", TRAPS, "lca", "taxonomy-shuffled", "taxonomy"),
)  # fmt: skip
DESIGN = Design(
    name="cosmo_encoder",
    title="COSMO: contexts as supervision of the encoder's last stages",
    question="What do contexts bring where they can shape the encoder, whose last two stages are trained?",
    reference="none",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=CLAIMS,
    paper_claims=[replace(claim, text=f"{claim.text}, last stages trained") for claim in CONTEXT_PAPER_CLAIMS],
    headline=[(TRAPS, name) for name in ("accuracy", "macro_f1", "accuracy_unseen", "held_out", "lca", "place_loss")],
    limits=(
        "Animals are drawn: 48 species with two to four drawings each; accuracies say nothing of real images.",
        "5 of the 16 blocks of EfficientNet-Lite0 are trained, with folded batch norms and without augmentation; the "
        "paper trains a whole ResNet-50.",
        "160 training images and 12 passes over them, where the study cosmo has 400 and 36: a step costs a hundred "
        "times as much.",
        "Nothing is corrected for the number of comparisons.",
    ),
)


@dataclass(frozen=True)
class EncoderScale:
    """Size of the study; see `foveate_labs.studies.cosmo.CosmoScale`."""

    train: int
    held_out: int
    test: int
    dim: int
    passes: int
    seeds: int


# Fewer training images and passes than `cosmo`, because a step on maps costs a hundred times as much.
FULL = EncoderScale(train=160, held_out=80, test=200, dim=128, passes=12, seeds=5)
QUICK = EncoderScale(train=240, held_out=80, test=80, dim=32, passes=3, seeds=2)


class CosmoEncoderStudy(GridStudy):
    """Train on a world with right and shuffled contexts, the encoder's last stages included."""

    design, full, quick = DESIGN, FULL, QUICK
    variants = (FROZEN, *TRAINED)

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return {"world": SETTINGS[TRAPS].model_dump(mode="json"), "encoder": ENCODER, "rate": TRAINED_RATE}

    def measure(self, cell: Cell) -> dict[str, float]:
        sizes = {"train": self.scale.train, "held_out": self.scale.held_out, "test": self.scale.test}
        folder = self.folder / "worlds" / f"{cell.condition}-{cell.seed}"
        world = open_world(folder, SETTINGS[cell.condition], cell.seed, views=[EXACT], train_last_stages=True, **sizes)
        arm = ARMS["none" if cell.variant == FROZEN else cell.variant]
        if cell.variant == FROZEN:
            world = freeze(world)
        return measure_arm(world, arm, dim=self.scale.dim, passes=self.scale.passes, seed=cell.seed)


def freeze(world: TrapWorld) -> TrapWorld:
    """Return a world whose features are the vectors of its encoder as it is."""
    encoder = world.encoder
    assert encoder is not None, "the world has maps"

    @torch.no_grad()
    def encode(maps_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        assert encoder is not None, "checked above"
        return torch.cat([encoder.image_vectors(part) for part in torch.from_numpy(maps_NF).split(64)]).numpy()

    def encode_images(images: TrapImages) -> TrapImages:
        return replace(images, features_VNF=np.stack([encode(maps_NF) for maps_NF in images.features_VNF]))

    train, held_out, test = map(encode_images, (world.train, world.held_out, world.test))
    return replace(world, train=train, held_out=held_out, test=test, encoder=None)


STUDY = CosmoEncoderStudy
