"""`foveate captioner train`: a recipe and a collection in; rows of both stages, curves, a model folder out.

Stage 0 (words) warms the prefix, stage 1 follows formats, stage 2 is human-aligned. Each has a folder of its own with
checkpoints; a finished stage leaves its model folder, from which the next one starts, so that the same command goes on
wherever it was stopped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.small.folder import CONFIG, WEIGHTS, fill, save_captioner
from foveate.caption.small.model import CaptionerModel
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.samples import WORD_STAGE, CaptionSamples, cached_features, nothing_for, telling_words
from foveate.caption.small.task import CaptionerTask
from foveate.caption.small.tokens import CaptionTokens, length_class
from foveate.caption.targets.material import read_material
from foveate.caption.targets.rewriting import open_rewriter
from foveate.caption.targets.rows import ALIGN_STAGE, FORMAT_STAGE, Row, rows_of_table, write_rows
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically, write_text_atomically
from foveate.core.progress import say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.records import tables
from foveate.records.collection import Collection
from foveate.training import checkpoint
from foveate.training.distributed import World, barrier, start
from foveate.training.loader import Loader
from foveate.training.loop import WITHOUT_INFLUENCE, train
from foveate.vision.feature_cache import FeatureCache

STAGES = {WORD_STAGE: "words", FORMAT_STAGE: "format following", ALIGN_STAGE: "human alignment"}
_FREE = tuple(f"training.{name}" for name in WITHOUT_INFLUENCE)
_ROWS, _SUMMARY, _TOKENIZER = "rows.parquet", "summary.json", "tokenizer.json"


@dataclass
class Trained:
    """What training leaves; `model_folder` is None where it was stopped before its end, and on other ranks."""

    run: RunFolder
    status: str
    result: dict[str, Any]
    model_folder: Path | None
    is_main: bool = True


def build_model(recipe: CaptionerRecipe) -> CaptionerModel:
    """The model of a recipe before training, with a vocabulary of the recipe's size."""
    return CaptionerModel(recipe, vocabulary=recipe.vocabulary)


def train_captioner(
    recipe: CaptionerRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
) -> Trained:
    """Trains the recipe's captioner on a collection; the same call again goes on where it was stopped.

    Raises:
        UserError: when the recipe does not fit the collection, or the run folder holds another run.
    """
    with start(device or "auto") as here:
        run = RunFolder(run_path)
        if here.is_main:
            run = RunFolder.create(run_path, command=command, recipe=dump(recipe), free=_FREE)
            _prepare(recipe, collection, run)
        barrier()
        rows = rows_of_table(tables.read_table(run.path / "data" / _ROWS))
        tokens = CaptionTokens.from_json((run.path / "data" / _TOKENIZER).read_text(encoding="utf-8"))
        stages = _Stages(recipe, collection, run, rows, tokens, here, command)
        status = stages.all()
        result: dict[str, Any] = {
            "kind": "captioner",
            "status": status,
            "recipe": recipe.model_dump(mode="json"),
            "command": command,
            "collection": collection.name,
            "data": read_json(run.path / "data" / _SUMMARY),
            "stages": stages.reports,
            "seconds": round(sum(stage["seconds"] for stage in stages.reports.values()), 1),
            "model": "model/",
        }
        folder = None
        if status == "finished" and here.is_main:
            folder = stages.finish()
        if here.is_main:
            run.write_result(result)
    return Trained(run, status, result, folder, here.is_main)


def _prepare(recipe: CaptionerRecipe, collection: Collection, run: RunFolder) -> None:
    """Writes the rows of both stages and the tokenizer, unless an earlier session did."""
    folder = run.path / "data"
    if (folder / _SUMMARY).is_file():
        return
    folder.mkdir(exist_ok=True)
    chosen = collection.rows(recipe.data.split)
    most, seed = recipe.data.images, recipe.training.seed
    if most is not None and most < len(chosen):
        chosen = np.sort(seeds.generator("pictures", seed).choice(chosen, most, replace=False))
    materials, sources = read_material(collection, chosen, recipe.data, seed=seed)
    if not materials:
        kinds = sorted(set(collection.table("captions")["kind"].to_pylist()))
        raise UserError(
            f"collection {collection.path}: no image of split '{recipe.data.split}' has material; name the caption "
            "kinds that are short captions (data.short_kinds) and descriptions (data.description_kinds); it has "
            f"{', '.join(kinds) or 'no captions'}"
        )
    rewriter = open_rewriter(recipe.data, folder=folder)
    rows = write_rows(materials, recipe.data, rewriter, seed=seed)
    for stage, steps in ((FORMAT_STAGE, recipe.training.steps), (ALIGN_STAGE, recipe.alignment.steps)):
        if steps and not any(row.stage == stage for row in rows.rows):  # said before an earlier stage is trained
            raise UserError(nothing_for(stage))
    texts = [row.target for row in rows.rows] + [row.alt for row in rows.rows if row.alt]
    phrases = _phrases(recipe, collection, sorted({material.row for material in materials}))
    texts += [f" {phrase}" for phrase in phrases]
    tokens = CaptionTokens.train(texts, vocabulary=recipe.vocabulary, phrases=phrases)
    tables.write_table(folder / _ROWS, rows.to_table())
    write_text_atomically(folder / _TOKENIZER, tokens.to_json())
    summary = {"images": sources, "rewriter": rewriter.provenance, "vocabulary": len(tokens), **rows.summary()}
    write_json_atomically(folder / _SUMMARY, summary)
    dropped = sum(rows.dropped.values())
    say(f"{len(rows.rows)} targets of {len(materials)} images; {dropped} rewrites dropped (see {folder / _SUMMARY})")


def _phrases(recipe: CaptionerRecipe, collection: Collection, known: list[int]) -> list[str]:
    """The phrases of all regions that are used."""
    rows = [*known, *_further(recipe, collection, set(known))] if recipe.words.regions else []
    return [region.phrase for row in rows for region in collection.read_regions(row)]


def _further(recipe: CaptionerRecipe, collection: Collection, known: set[int]) -> list[int]:
    """Rows of the split without targets, whose regions the stage of words uses."""
    if not (recipe.words.steps and recipe.words.regions and recipe.words.all_images):
        return []
    try:
        bounds = collection.grouped("regions").bounds
    except UserError:  # nobody added regions
        return []
    rows = collection.rows(recipe.data.split).tolist()
    return [row for row in rows if row not in known and bounds(row)[0] < bounds(row)[1]]


class _Stages:
    """The stages of one run, one after the other."""

    def __init__(
        self,
        recipe: CaptionerRecipe,
        collection: Collection,
        run: RunFolder,
        rows: list[Row],
        tokens: CaptionTokens,
        here: World,
        command: list[str] | None,
    ) -> None:
        self.recipe, self.collection, self.run, self.rows = recipe, collection, run, rows
        self.tokens, self.here, self.command = tokens, here, command
        self.reports: dict[str, dict[str, Any]] = {}
        known = {row.row for row in rows}
        self.used = sorted({*known, *(further := _further(recipe, collection, known))})
        self.last: Path | None = None
        self._features: FeatureCache | None = None
        model = self._model()
        self.words, self.places = telling_words(
            rows,
            tokens,
            collection,
            further=further,
            common=recipe.words.common,
            regions=recipe.words.regions,
            side=round(model.prefix_length**0.5),
            preprocess=model.image_encoder.preprocess,
        )

    def all(self) -> str:
        """Runs what is left to do; "finished", or "stopped" by a signal."""
        wanted = {WORD_STAGE: self.recipe.words.steps, FORMAT_STAGE: self.recipe.training.steps}
        wanted[ALIGN_STAGE] = self.recipe.alignment.steps
        for stage, steps in wanted.items():
            if steps and self._run(stage) == "stopped":
                return "stopped"
        return "finished"

    def _run(self, stage: int) -> str:
        folder = self.run.path / f"stage-{stage}"
        report = folder / "stage.json"
        if not report.is_file():
            outcome = self._train(stage, folder)
            if outcome["status"] == "stopped":
                self.reports[STAGES[stage]] = outcome
                return "stopped"
            if self.here.is_main:
                write_json_atomically(report, outcome)
            barrier()
        self.reports[STAGES[stage]] = read_json(report)
        self.last = folder / "model"
        return "finished"

    def _model(self) -> CaptionerModel:
        model = CaptionerModel(
            self.recipe, vocabulary=len(self.tokens), names=len(self.tokens.names), definite=self.tokens.definite
        )
        if self.last is not None:
            fill(model, self.last / WEIGHTS)
        return model

    def _train(self, stage: int, folder: Path) -> dict[str, Any]:
        recipe, settings = self.recipe, self.recipe.stage_settings(stage)
        folder.mkdir(exist_ok=True)
        model = self._model()
        samples = CaptionSamples(
            self.rows,
            self.tokens,
            self._cached(model),
            stage=stage,
            replay=recipe.alignment.replay if stage == ALIGN_STAGE else 0.0,
            longest_alt=recipe.longest_alt,
            places=self.places,
            captioned=recipe.words.captioned,
        )
        loader = Loader(
            samples,
            rows=samples.rows,
            batch_size=settings.batch_size,
            seed=seeds.integer("stage", settings.seed, stage) % 2**31,
            workers=settings.workers,
            rank=self.here.rank,
            world_size=self.here.size,
        )
        task = CaptionerTask(
            model,
            words_W=torch.from_numpy(self.words),
            pad=self.tokens.pad,
            word_weight=1.0 if stage == WORD_STAGE else recipe.words.loss_weight,
            captions=stage != WORD_STAGE,
            seeing_rate=recipe.words.seeing_rate,
        )
        say(f"stage {stage}, {STAGES[stage]}: {len(samples.rows)} images, {settings.steps} updates")
        outcome = train(task, loader, settings, RunFolder(folder))
        gathered = checkpoint.gather_weights(task, ema=outcome.ema)
        weights = {name.removeprefix("model."): value for name, value in gathered.items()}
        if outcome.status == "finished" and self.here.is_main:
            self._save(folder / "model", weights)
        return {
            "status": outcome.status,
            "steps": outcome.step,
            "seconds": round(outcome.seconds, 1),
            "images": len(samples.rows),
            "bad_samples": outcome.bad_samples,
            "curves": f"{folder.name}/metrics.jsonl",
        }

    def _cached(self, model: CaptionerModel) -> FeatureCache:
        if self._features is None:
            rows = np.asarray(self.used, dtype=np.int64)
            writable = os.access(self.collection.path, os.W_OK)
            cache = (self.collection.path if writable else self.run.path) / "cache"
            share = (self.here.rank, self.here.size)
            device = self.here.device
            self._features = cached_features(
                self.collection, model.image_encoder, rows, cache=cache, device=device, share=share
            )
        return self._features

    def lengths(self) -> dict[str, int]:
        """The length class of each format that is asked for by default: of the median target of the last stage."""
        last = ALIGN_STAGE if any(row.stage == ALIGN_STAGE for row in self.rows) else FORMAT_STAGE
        found = {}
        for kind in CAPTION_KINDS:
            tokens = [row.tokens for row in self.rows if row.kind == kind and row.stage == last]
            found[kind] = length_class(int(np.median(tokens))) if tokens else length_class(0)
        return found

    def _save(self, folder: Path, weights: dict[str, Tensor]) -> Path:
        encoder = CaptionerModel(
            self.recipe, vocabulary=len(self.tokens), names=len(self.tokens.names), definite=self.tokens.definite
        ).image_encoder
        return save_captioner(
            folder,
            recipe=self.recipe,
            weights=weights,
            tokens=self.tokens,
            lengths=self.lengths(),
            preprocess=encoder.preprocess.to_dict(),
            provenance={
                "collection": self.collection.name,
                "license": self.collection.license,
                "split": self.recipe.data.split,
                "command": self.command,
                "revision": code_revision(),
            },
        )

    def finish(self) -> Path:
        """The folder of the last stage's model, as the run's."""
        assert self.last is not None
        target = self.run.path / "model"
        target.mkdir(exist_ok=True)
        files = sorted(self.last.iterdir(), key=lambda path: path.name == CONFIG)
        for path in files:
            (target / path.name).write_bytes(path.read_bytes())
        return target
