"""Load the samples of a stage: features of its images, and batches by its mixture."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest
from foveate.mllm.image_sets import ImageSet, plan_rows
from foveate.mllm.recipe import StageSettings
from foveate.mllm.samples import MllmSamples
from foveate.multimodal.model import MultimodalModel
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.training.distributed import World
from foveate.training.loader import Loader, MixtureLoader, Source
from foveate.training.mixture_groups import check_groups, multiply_rows, plan_groups, weigh_sources
from foveate.vision.feature_cache import FeatureCache, TileCache


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
        # The first conversation decides: if groups are counted, `image_sets.select_sets` gives each set only one group.
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
    model: MultimodalModel, collection: Collection, sets: Sequence[ImageSet], *, run_path: Path, here: World
) -> FeatureCache:
    """Compute the frozen features of the images of sets, as far as they are not cached yet, on the run's device.

    The image tower moves there before the rest of the model does, for that is where the cache sends its pixels.

    Args:
        run_path: where the cache lies if the collection cannot be written.
    """
    rows = np.asarray(sorted({row for images in sets for row in images.rows}), dtype=np.int64)
    # Beside the images, so that the next run with this tower computes nothing.
    folder = (collection.path if os.access(collection.path, os.W_OK) else run_path) / "cache"
    tower, device, share = model.tower.to(here.device), here.device, (here.rank, here.size)
    features: FeatureCache
    if model.settings.assembly is None:
        features = FeatureCache(
            tower,
            collection,
            rows,
            folder=folder,
            views=1,
            view_of=lambda row, view: View(),
            device=device,
            share=share,
        )
    else:
        plans = plan_rows(sets, collection, rows, model.settings.assembly)
        features = TileCache(tower, collection, rows, folder=folder, plans=plans, device=device, share=share)
    features.fill()
    return features
