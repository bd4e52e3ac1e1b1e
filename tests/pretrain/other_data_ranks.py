"""Run as a script by each process, as `torchrun` would: the run in RUN was trained on other data than COLLECTION.

python other_data_ranks.py COLLECTION RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.train import pretrain
from foveate.records.collection import Collection
from naming import raises_naming


def main() -> None:
    collection, run = sys.argv[1:]
    recipe = tiny.recipe(training={"steps": 1, "workers": 0})
    with raises_naming(UserError, "was trained on other data"):
        pretrain(recipe, Collection.open(collection), Path(run), device="cpu", evaluate_split=None)


if __name__ == "__main__":
    main()
