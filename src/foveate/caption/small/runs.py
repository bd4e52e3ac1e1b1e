"""What the verbs `foveate captioner train` and `evaluate` call: a run folder with a result that the page renders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from foveate.caption.small.evaluate import evaluate
from foveate.caption.small.folder import CARD, METRICS, card, load_captioner
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.train import Trained, train_captioner
from foveate.core.files import write_json_atomically, write_text_atomically
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.records.collection import Collection

_HELD_OUT = ("test", "validation")


def train_and_evaluate(
    recipe: CaptionerRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    split: str | None = None,
    limit: int | None = 200,
    with_evaluation: bool = True,
) -> Trained:
    """`train_captioner`, then `evaluate` on held-out images where there are any; both in result.json and the card."""
    done = train_captioner(recipe, collection, run_path, device=device, command=command)
    if done.model_folder is None or not with_evaluation:
        return done
    chosen = split or next((name for name in _HELD_OUT if name in set(collection.splits.tolist())), None)
    if chosen is None:
        say(f"collection {collection.path} has neither a split test nor validation: not evaluated (give --split)")
        return done
    opened = load_captioner(done.model_folder, device=device)
    found = evaluate(
        opened,
        collection,
        split=chosen,
        run=run_path,
        cache=cache_of(collection, run_path),
        limit=limit,
        seed=recipe.training.seed,
    )
    shown = {name: value for name, value in found.items() if name != "samples"}
    write_json_atomically(done.model_folder / METRICS, shown)
    parameters = sum(value.numel() for value in opened.model.parameters())
    write_text_atomically(done.model_folder / CARD, card(recipe, parameters, found, opened.provenance))
    done.result["evaluation"] = found
    done.run.write_result(done.result)
    return done


def evaluate_folder(
    model: Path,
    collection: Collection,
    run_path: Path,
    *,
    split: str,
    limit: int | None,
    seed: int,
    device: str | None,
    command: list[str] | None,
    shuffled: bool = False,
) -> dict[str, Any]:
    """`evaluate` of a model folder, in a run folder of its own.

    Raises:
        UserError: when the folder is no captioner's, or the split is empty.
    """
    opened = load_captioner(model, device=device)
    run = RunFolder.create(run_path, command=command)
    found = evaluate(
        opened,
        collection,
        split=split,
        run=run_path,
        cache=cache_of(collection, run_path),
        limit=limit,
        seed=seed,
        shuffled=shuffled,
    )
    result = {
        "kind": "captioner",
        "title": f"A captioner on {collection.name}" + (", images shuffled: a control" if shuffled else ""),
        "model": str(model),
        "revision": opened.revision,
        "collection": collection.name,
        "command": command,
        "evaluation": found,
    }
    run.write_result(result)
    return result


def cache_of(collection: Collection, run_path: Path) -> Path:
    """Where frozen features are kept: beside the images, or in the run folder where the collection is read-only."""
    return (collection.path if os.access(collection.path, os.W_OK) else run_path) / "cache"
