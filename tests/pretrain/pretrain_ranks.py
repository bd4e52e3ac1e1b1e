"""Run as a script by each process, as `torchrun` would: pretrain the tiny recipe.

python pretrain_ranks.py COLLECTION RUN PARALLEL
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny
from foveate.pretrain.train import pretrain
from foveate.records.collection import Collection


def main() -> None:
    collection, run, parallel = sys.argv[1:]
    recipe = tiny.recipe(training={"parallel": parallel, "ema_decay": 0.9, "learning_rate": 2e-4, "evaluate_every": 3})
    done = pretrain(recipe, Collection.open(collection), Path(run), device="cpu")
    assert done.status == "finished"
    assert (done.model_folder is not None) == done.is_main


if __name__ == "__main__":
    main()
