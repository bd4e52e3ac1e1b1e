"""Train a captioner: recipe and collection in; targets of both stages, curves and a model folder out.

Stage 0 (words) warms up the prefix, stage 1 follows formats, stage 2 is aligned with human descriptions. Each has a
folder with checkpoints; a finished stage leaves a model folder from which the next one starts, so that the same command
resumes wherever it was stopped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate.caption.chat_format import length_class
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.small.folder import load_weights, save_captioner
from foveate.caption.small.model import CaptionerModel
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.results import CaptionerResult, TrainingStage
from foveate.caption.small.samples import WORD_STAGE, CaptionSamples, cached_features, nothing_for, telling_words
from foveate.caption.small.task import CaptionerTask
from foveate.caption.small.tokens import CaptionTokens
from foveate.caption.targets.material import read_material
from foveate.caption.targets.rewriting import open_rewriter
from foveate.caption.targets.rows import ALIGN_STAGE, FORMAT_STAGE, Row, rows_of_table, write_rows
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically, write_text_atomically
from foveate.core.model_folder import CONFIG, WEIGHTS
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
    """A training run; `model_folder` is None if it was stopped before its end, and on other ranks."""

    run: RunFolder
    status: str
    result: CaptionerResult
    model_folder: Path | None
    is_main: bool = True


def build_model(recipe: CaptionerRecipe) -> CaptionerModel:
    """Build the model of a recipe with a vocabulary of the recipe's size, untrained."""
    return CaptionerModel(recipe, vocabulary=recipe.vocabulary)


def train_captioner(
    recipe: CaptionerRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
) -> Trained:
    """Train a captioner on a collection; the same call again resumes.

    Raises:
        UserError: the recipe does not fit the collection, or the run folder holds another run.
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
        status = stages.run_all()
        result = CaptionerResult(
            status=status,
            recipe=recipe.model_dump(mode="json"),
            command=command or "",
            collection=collection.name,
            data=read_json(run.path / "data" / _SUMMARY),
            stages=stages.reports,
            seconds=round(sum(stage.seconds for stage in stages.reports.values()), 1),
            model="model/",
        )
        folder = None
        if status == "finished" and here.is_main:
            folder = stages.finish()
        if here.is_main:
            run.write_result(result.to_json())
    return Trained(run, status, result, folder, here.is_main)


def _prepare(recipe: CaptionerRecipe, collection: Collection, run: RunFolder) -> None:
    """Write the targets of both stages and the tokenizer, unless an earlier session did."""
    folder = run.path / "data"
    if (folder / _SUMMARY).is_file():
        return
    folder.mkdir(exist_ok=True)
    selected = collection.rows(recipe.data.split)
    max_images, seed = recipe.data.images, recipe.training.seed
    if max_images is not None and max_images < len(selected):
        selected = np.sort(seeds.generator("pictures", seed).choice(selected, max_images, replace=False))
    materials, sources = read_material(collection, selected, recipe.data, seed=seed)
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
        if steps and not any(row.stage == stage for row in rows.rows):  # fail before an earlier stage is trained
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
    """Collect the phrases of all regions that are used."""
    rows = [*known, *_extra_rows(recipe, collection, set(known))] if recipe.word_training.regions else []
    return [region.phrase for row in rows for region in collection.read_regions(row)]


def _extra_rows(recipe: CaptionerRecipe, collection: Collection, known: set[int]) -> list[int]:
    """Find rows of the split without targets whose regions stage 0 uses."""
    if not (recipe.word_training.steps and recipe.word_training.regions and recipe.word_training.all_images):
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
        self.reports: dict[str, TrainingStage] = {}
        known = {row.row for row in rows}
        self.used = sorted({*known, *(extra := _extra_rows(recipe, collection, known))})
        self.last: Path | None = None
        self._features: FeatureCache | None = None
        model = self._model()
        self.words, self.places = telling_words(
            rows,
            tokens,
            collection,
            further=extra,
            common=recipe.word_training.common,
            regions=recipe.word_training.regions,
            side=round(model.prefix_length**0.5),
            preprocess=model.image_encoder.preprocess,
        )

    def run_all(self) -> str:
        """Run the stages that are left; return "finished", or "stopped" by a signal."""
        steps_of = {WORD_STAGE: self.recipe.word_training.steps, FORMAT_STAGE: self.recipe.training.steps}
        steps_of[ALIGN_STAGE] = self.recipe.alignment.steps
        for stage, steps in steps_of.items():
            if steps and self._run(stage) == "stopped":
                return "stopped"
        return "finished"

    def _run(self, stage: int) -> str:
        folder = self.run.path / f"stage-{stage}"
        report = folder / "stage.json"
        if not report.is_file():
            trained = self._train(stage, folder)
            if trained.status == "stopped":
                self.reports[STAGES[stage]] = trained
                return "stopped"
            if self.here.is_main:
                write_json_atomically(report, trained.to_json())
            barrier()  # other ranks read what the main one wrote
        self.reports[STAGES[stage]] = TrainingStage.model_validate(read_json(report))
        self.last = folder / "model"
        return "finished"

    def _model(self) -> CaptionerModel:
        model = CaptionerModel(
            self.recipe, vocabulary=len(self.tokens), names=len(self.tokens.names), definite=self.tokens.definite
        )
        if self.last is not None:
            load_weights(model, self.last / WEIGHTS)
        return model

    def _train(self, stage: int, folder: Path) -> TrainingStage:
        recipe, settings = self.recipe, self.recipe.stage_settings(stage)
        folder.mkdir(exist_ok=True)
        model = self._model()
        samples = CaptionSamples(
            self.rows,
            self.tokens,
            self._cached(model),
            stage=stage,
            replay=recipe.alignment.replay if stage == ALIGN_STAGE else 0.0,
            max_alt_tokens=recipe.max_alt_tokens,
            places=self.places,
            captioned=recipe.word_training.captioned,
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
            word_weight=1.0 if stage == WORD_STAGE else recipe.word_training.loss_weight,
            captions=stage != WORD_STAGE,
            seeing_rate=recipe.word_training.seeing_rate,
        )
        say(f"stage {stage}, {STAGES[stage]}: {len(samples.rows)} images, {settings.steps} steps")
        outcome = train(task, loader, settings, RunFolder(folder))
        gathered = checkpoint.gather_weights(task, ema=outcome.ema)
        weights = {name.removeprefix("model."): value for name, value in gathered.items()}
        if outcome.status == "finished" and self.here.is_main:
            self._save(folder / "model", weights)
        return TrainingStage(
            status=outcome.status,
            steps=outcome.step,
            seconds=round(outcome.seconds, 1),
            images=len(samples.rows),
            bad_samples=outcome.bad_samples,
            curves=f"{folder.name}/metrics.jsonl",
        )

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
        """Return the default length class of each format: that of the median target of the last stage."""
        last = ALIGN_STAGE if any(row.stage == ALIGN_STAGE for row in self.rows) else FORMAT_STAGE
        classes = {}
        for kind in CAPTION_KINDS:
            tokens = [row.tokens for row in self.rows if row.kind == kind and row.stage == last]
            classes[kind] = length_class(int(np.median(tokens))) if tokens else length_class(0)
        return classes

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
        """Copy the model folder of the last stage to the run's `model`."""
        assert self.last is not None
        target = self.run.path / "model"
        target.mkdir(exist_ok=True)
        # The config last: a folder without one is not a model yet.
        files = sorted(self.last.iterdir(), key=lambda path: path.name == CONFIG)
        for path in files:
            (target / path.name).write_bytes(path.read_bytes())
        return target
