"""Training samples: the frozen features of a set of images, with several of its conversations in one sequence.

A sample is one of three: conversations that begin with the same images, packed behind one copy of them; a conversation
with images within its text; or conversations without images.

Labels come by construction: a row is put together from separately tokenized parts that carry their label, and nothing
is looked up in it afterwards. Visual tokens are never cut; a conversation that is too long is refused with its length.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.language.packing import Tokens, pack_texts
from foveate.mllm.data import ImageSet, find_usable_sets, plan_rows, point_at_regions, read_sizes
from foveate.mllm.recipe import StageSettings
from foveate.multimodal.assemble import plan_sample
from foveate.multimodal.frames import CoordinateFrame, move_regions
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.names import NameTable
from foveate.multimodal.prompts import PromptWriter, Written, image_slots
from foveate.multimodal.referring import RegionPoints, RegionPrompts
from foveate.multimodal.settings import MultimodalSettings
from foveate.multimodal.views import ViewLayout, list_views
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation
from foveate.records.geometry import View
from foveate.training.distributed import World
from foveate.training.loader import BadSample, Loader, MixtureLoader, Source
from foveate.training.mixture_groups import check_groups, multiply_rows, plan_groups, weigh_sources
from foveate.vision.canvas import boxes_in_view
from foveate.vision.feature_cache import CACHE, FeatureCache, TileCache
from foveate.vision.preprocess import Preprocess, place_image
from foveate.vision.tiling import OVERVIEW


class _Views(NamedTuple):
    """The views of a set of images.

    Attributes:
        features: of each view. layout: number of its image, and ids in front of it.
        cells: row and column of each view in its image, 0 and 0 of overviews.
        frames: of the coordinates of each image.
        named: boxes in each view and numbers of the names of the regions that it shows.
    """

    features: list[Tensor]
    layout: list[tuple[int, list[int]]]
    cells: list[tuple[int, int]]
    frames: list[CoordinateFrame]
    named: list[tuple[NDArray[np.float64], list[int]]]


class MllmSamples:
    """Samples of one stage; see `foveate.training.loader.Dataset`.

    Args:
        sets: of images, with their conversations.
        collection: of their images. preprocess: of the tower.
        prompts: tokenizes conversations.
        names: for alignment.
        max_conversations: of one sample; 0 = none, for a stage that only aligns.
        max_positions: longest sequence; the visual tokens count.
        tokens_of_view: visual tokens of a view.
        settings: of the model: how images become views, and the frame of coordinates.
        replay: share of the samples that take the other conversations of their set, where it has some.
        point_share, point_place: see `StageSettings`.

    Attributes:
        features: of all rows of the sets that are sampled; a `TileCache` where `settings` have tiles. Set it before the
            first sample.
    """

    features: FeatureCache

    def __init__(
        self,
        sets: Sequence[ImageSet],
        collection: Collection,
        prompts: PromptWriter,
        names: NameTable,
        *,
        preprocess: Preprocess,
        max_conversations: int,
        max_positions: int,
        tokens_of_view: int,
        settings: MultimodalSettings,
        replay: float = 0.0,
        point_share: float = 0.0,
        point_place: str = "center",
    ) -> None:
        self.replay, self.preprocess = replay, preprocess
        self.point_share, self.point_place = point_share, point_place
        self.sets, self.collection, self.prompts, self.names = sets, collection, prompts, names
        self.max_conversations, self.max_positions = max_conversations, max_positions
        self.tokens_of_view, self.settings = tokens_of_view, settings
        # Before any feature is computed: a stage without a usable set fails at once, not after hours of encoding.
        self.rows = find_usable_sets(sets, self.collection, texts=max_conversations > 0)

    def check(self) -> None:
        """Raise UserError if there is no usable set."""
        if not len(self.rows):
            missing = "conversation of the stage's groups" if self.max_conversations else "region that it could align"
            raise UserError(f"collection {self.collection.path}: no {missing} in this split; leave the stage out")

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Return rows, features, drawn conversations and named regions of set number `row`."""
        images, conversations, others, in_text = self.sets[row]
        # Drawn per set and epoch, and not once per set: every set is learned both ways in the course of a training.
        if others and seeds.uniform("replay", seed, epoch, row) < self.replay:
            conversations = others
        for image in images:
            if image in self.features.bad:
                raise BadSample(self.collection.keys[image], self.features.bad[image])
        views = self._whole_images(images) if self.settings.assembly is None else self._tiles(images)
        rng = seeds.generator("conversations", seed, epoch, row)
        drawn: list[Conversation] = []
        tokens: list[Tokens] = []
        regions: list[tuple[int, NDArray[np.float64]]] = []
        points: list[RegionPoints] = []
        left_out: list[BadSample] = []
        # Drawn anew in each epoch, without replacement: in the course of a training every conversation has its turn.
        for number in rng.permutation(len(conversations)):
            if len(drawn) == self.max_conversations:
                break
            pointed = point_at_regions(
                conversations[number], share=self.point_share, place=self.point_place, seed=seed, epoch=epoch
            )
            try:
                written = self._write(pointed, views.layout, views.frames, in_text=in_text)
            except UserError as problem:
                left_out.append(BadSample(conversations[number].id, str(problem), replaced=False))
                continue
            drawn.append(pointed)
            tokens.append(written.tokens)
            regions += written.regions
            points += written.points
        # A sample whose conversations all fail would train nothing; another one takes its place.
        if left_out and not drawn:
            raise BadSample(left_out[0].key, left_out[0].reason)
        return {
            "rows": images,
            "conversations": drawn,
            "features": views.features,
            "layout": views.layout,
            "in_text": in_text,
            "cells": views.cells,
            "tokens": tokens,
            "regions": regions,
            "points": points,
            "names": views.named,
            "left_out": left_out,
        }

    def _write(
        self,
        conversation: Conversation,
        layout: Sequence[tuple[int, list[int]]],
        frames: Sequence[CoordinateFrame],
        *,
        in_text: bool,
    ) -> Written:
        """Tokenize a conversation; raise UserError where it is too long or has a region that no view shows."""
        slots = image_slots(layout, self.tokens_of_view)
        placements = [frame.placement for frame in frames]
        moved = move_regions(conversation, frames)
        written = self.prompts.write_conversation(moved, placements, images=slots if in_text else None)
        length = len(written.tokens.ids) + (0 if in_text else sum(map(len, slots)))
        if length > self.max_positions:
            raise UserError(f"{length} positions, the model has {self.max_positions}")
        return written

    def measure_lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each set: images in front, and its longest conversations as many as a sample has."""
        lengths = np.zeros(len(self.sets), dtype=np.int64)
        for number in self.rows.tolist():
            images, conversations, others, in_text = self.sets[number]
            # The same frames as in `sample`, but from the index's sizes: no features exist yet.
            sizes = read_sizes(self.collection, images)
            if self.settings.assembly is None:
                layout = _lay_out_whole(len(images))
                frames = [
                    CoordinateFrame(place_image(self.preprocess, (size.width, size.height), View())) for size in sizes
                ]
            else:
                plan = plan_sample(sizes, self.settings.assembly)
                layout = list_views(plan, self.prompts.tokenizer.encode)
                frames = [CoordinateFrame.create(of_image, self.settings.frame) for of_image in plan.images]
            of_texts = []
            for conversation in (*conversations, *others):
                with contextlib.suppress(UserError):  # left out of samples
                    of_texts.append(len(self._write(conversation, layout, frames, in_text=in_text).tokens.ids))
            prefix = 0 if in_text else sum(map(len, image_slots(layout, self.tokens_of_view)))
            # The most that any epoch can draw: a batch planned for less could overflow the memory in a later one.
            lengths[number] = prefix + sum(
                sorted(of_texts)[-self.max_conversations :] if self.max_conversations else ()
            )
        return lengths

    def _whole_images(self, images: Sequence[int]) -> _Views:
        placements = [self.features.placement(image, 0) for image in images]
        return _Views(
            [self.features.features(image, 0) for image in images],
            _lay_out_whole(len(images)),
            [OVERVIEW] * len(images),
            [CoordinateFrame(placement) for placement in placements],
            [self._named(image, placement.to_input) for image, placement in zip(images, placements, strict=True)],
        )

    def _tiles(self, images: Sequence[int]) -> _Views:
        assert self.settings.assembly is not None
        assert isinstance(self.features, TileCache)
        sample = plan_sample(read_sizes(self.collection, images), self.settings.assembly)
        features, named = [], []
        for image, plan in zip(images, sample.images, strict=True):
            features += list(self.features.plan_features(image, plan))
            named += [self._named(image, partial(boxes_in_view, plan=plan, view=view)) for view in plan.views]
        frames = [CoordinateFrame.create(plan, self.settings.frame) for plan in sample.images]
        cells = [view for plan in sample.images for view in plan.views]
        return _Views(features, list_views(sample, self.prompts.tokenizer.encode), cells, frames, named)

    def _named(
        self, image: int, move: Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.bool_]]]
    ) -> tuple[NDArray[np.float64], list[int]]:
        """Return boxes in a view, to which `move` maps them, and indices of names, of an image's regions."""
        regions = [region for region in self.collection.read_regions(image) if region.phrase in self.names.index]
        if not regions:
            return np.zeros((0, 4)), []
        moved_K4, kept_R = move(np.stack([region.box.to_array() for region in regions]))
        indices = [self.names.index[region.phrase] for region in regions]
        return moved_K4, [indices[row] for row in np.flatnonzero(kept_R)]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Combine samples into a batch; see `MllmTask.losses` for its entries."""
        counts = [len(sample["features"]) for sample in samples]
        # -1 marks a view that a row does not have; rows differ in their numbers of views.
        views_BK = torch.full((len(samples), max(counts)), -1, dtype=torch.long)
        start = 0
        for index, count in enumerate(counts):
            views_BK[index, :count] = torch.arange(start, start + count)
            start += count
        views, encoder = [view for sample in samples for view in sample["features"]], self.features.encoder
        cells = [cell for sample in samples for cell in sample["cells"]]
        if not views:
            # A view of zeros that no row has: with sharded weights the tower must run in all processes, and gives a
            # gradient of zeros here. No views at all, and code of other libraries fails.
            views = [torch.zeros(encoder.feature_shape, dtype=encoder.feature_dtype)]
            cells = [OVERVIEW]
        texts = pack_texts([sample["tokens"] for sample in samples], pad=self.prompts.tokenizer.pad)
        regions, points = ([each for sample in samples for each in sample[name]] for name in ("regions", "points"))
        prompts = RegionPrompts.create(regions, points)
        named = [of_image for sample in samples for of_image in sample["names"]]
        view_N = np.repeat(np.arange(len(named)), [len(indices) for _, indices in named])
        return {
            "features": torch.stack(views),
            "cell_V2": torch.tensor(cells),
            "views_BK": views_BK,
            **ViewLayout.create(
                [sample["layout"] for sample in samples], in_text=[sample["in_text"] for sample in samples]
            )._asdict(),
            **texts._asdict(),
            **{f"region_{name}": column for name, column in prompts._asdict().items() if column is not None},
            "name_boxes_N4": _boxes([box for boxes, _ in named for box in boxes]),
            "name_view_N": torch.from_numpy(view_N),
            "name_N": torch.tensor([number for _, indices in named for number in indices], dtype=torch.long),
        }


def _lay_out_whole(images: int) -> list[tuple[int, list[int]]]:
    """Return the layout of images of one view each, without indicators."""
    return [(number, []) for number in range(images)]


def _boxes(boxes: Sequence[NDArray[np.float64]]) -> Tensor:
    return torch.from_numpy(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))


# The loader of a stage, and the features that its samples hold.


def open_loader(stage: StageSettings, samples: MllmSamples, *, seed: int, here: World) -> Loader:
    """Return the loader of a stage's samples: epochs, with multipliers if there are any, or shares of a mixture.

    Args:
        seed: of the order and the draws.

    Raises:
        UserError: the data cannot meet the mixture or a multiplier, or a sample is longer than a batch of tokens.
    """
    settings = stage.training
    parts = settings.accumulate * here.size
    if stage.tokens is not None and stage.tokens.multiple % parts:
        raise UserError(
            f"stage '{stage.name}', tokens.multiple: a batch has a part for each process and each of "
            f"training.accumulate (got {stage.tokens.multiple}); expected a multiple of {parts}"
        )
    # Only where batches are filled by tokens, since measuring lengths tokenizes every conversation.
    lengths = samples.measure_lengths() if stage.tokens else None
    options: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": seed,
        "workers": settings.workers,
        "rank": here.rank,
        "world_size": here.size,
        "tokens": stage.tokens,
    }
    if not stage.is_by_group:
        return Loader(samples, rows=samples.rows, lengths=lengths, **options)
    rows: dict[str, list[int]] = defaultdict(list)
    for row in samples.rows.tolist():
        # The first conversation decides: if groups are counted, `select_sets` gives each set only one group.
        rows[samples.sets[row].conversations[0].group].append(row)
    if stage.mixture is None:
        return Loader(samples, rows=_multiply(rows, stage, seed=seed), lengths=lengths, **options)
    sizes = {group: len(of_group) for group, of_group in rows.items()}
    check_groups(stage.mixture, sizes, batch_size=settings.batch_size)
    groups = {group: [Source(group, samples, of_group, lengths=lengths)] for group, of_group in rows.items()}
    loader = MixtureLoader(weigh_sources(groups, stage.mixture), draw=stage.mixture.draw, **options)
    # Behind the loader, which knows how many samples fit into a batch of tokens: warns of data that is repeated.
    num_samples = round(settings.steps * loader.mean_batch_size())
    plan_groups(stage.mixture, sizes, samples=num_samples, batch_size=settings.batch_size)
    return loader


def _multiply(rows: Mapping[str, Sequence[int]], stage: StageSettings, *, seed: int) -> NDArray[np.int64]:
    """Repeat the rows of each group by its multiplier."""
    unmet = [group for group, multiplier in stage.multipliers.items() if multiplier and not rows.get(group)]
    if unmet:
        raise UserError(
            f"stage '{stage.name}', multipliers: no samples of group '{unmet[0]}' (got {', '.join(rows) or 'none'})"
            f"{nearest(unmet[0], rows)}"
        )
    parts = [
        multiply_rows(of_group, stage.multipliers.get(group, 1), seed=seed, name=group)
        for group, of_group in rows.items()
    ]
    return np.concatenate(parts)


def cache_features(
    model: MultimodalModel,
    collection: Collection,
    sets: Sequence[ImageSet],
    *,
    run_path: Path,
    here: World,
    scratch: Path | None = None,
    only: NDArray[np.int64] | None = None,
) -> FeatureCache:
    """Compute the frozen features of the images of sets, as far as they are not cached yet, on the run's device.

    Args:
        run_path: where the cache lies if the collection cannot be written.
        scratch: folder of new features in a dry run, which reads those of the collection as well.
        only: rows, in a dry run; others that are not cached are zeros.
    """
    if scratch is not None:
        features = _open_cache(model, collection, sets, folder=scratch, here=here)
        features.store.link(collection.path / CACHE)
        features.fill(only=only)
        return features
    # Beside the images, so that the next run with this tower computes nothing.
    folder = (collection.path if os.access(collection.path, os.W_OK) else run_path) / CACHE
    features = _open_cache(model, collection, sets, folder=folder, here=here)
    features.fill()
    return features


def _open_cache(
    model: MultimodalModel, collection: Collection, sets: Sequence[ImageSet], *, folder: Path, here: World
) -> FeatureCache:
    """Return the cache of the images of sets, empty.

    The image tower moves to the run's device before the rest of the model does, for that is where the cache sends its
    pixels.
    """
    rows = np.asarray(sorted({row for images in sets for row in images.rows}), dtype=np.int64)
    tower, device, share = model.tower.to(here.device), here.device, (here.rank, here.size)
    if model.settings.assembly is None:
        return FeatureCache(
            tower,
            collection,
            rows,
            folder=folder,
            views=1,
            view_of=lambda row, view: View(),
            device=device,
            share=share,
        )
    plans = plan_rows(sets, collection, rows, model.settings.assembly)
    return TileCache(tower, collection, rows, folder=folder, plans=plans, device=device, share=share)
