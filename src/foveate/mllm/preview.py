"""Preview training samples: one batch exactly as a stage would load it, token by token, before anything is trained."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.core.results import Region
from foveate.core.runs import RunFolder
from foveate.language.packing import SLOT, PackedTexts, attention_and_positions
from foveate.language.tokenizer import Tokenizer
from foveate.mllm.recipe import MllmRecipe, StageSettings
from foveate.mllm.results import (
    LeftOut,
    PreviewConversation,
    PreviewRegion,
    PreviewResult,
    PreviewSample,
    PreviewToken,
    PreviewView,
)
from foveate.mllm.settings import PreviewSettings
from foveate.mllm.train import MllmTraining, prepare_training
from foveate.multimodal.views import ViewLayout
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE
from foveate.records.images import decode, save_thumbnail
from foveate.training.distributed import start
from foveate.training.loader import BadSample
from foveate.vision.canvas import render_input
from foveate.vision.preprocess import read_image
from foveate.vision.tiling import OVERVIEW

# Colors of the drawn attention mask: masked, visual tokens, the token's own conversation.
_MASK_COLORS = np.array([(226, 223, 217), (75, 85, 99), (194, 65, 12)], dtype=np.uint8)
_MASK_SIDE = 480


def preview_recipe(
    recipe: MllmRecipe,
    collection: Collection,
    run_path: Path,
    settings: PreviewSettings,
    *,
    device: str | None = None,
    command: Sequence[str] = (),
) -> PreviewResult:
    """Load a batch of a stage as `train_mllm` does, and describe its samples; images go into the run folder.

    Only the images of this batch are encoded. Samples that cannot be used are listed; training draws others instead.

    Raises:
        UserError: the recipe does not fit the collection, or no sample of the batch can be used.
    """
    stage = _choose_stage(recipe, settings.stage)
    run = RunFolder.create(run_path)
    # The tokenizer is trained on all texts of the collection, as in a training, but no training is left behind.
    with tempfile.TemporaryDirectory() as scratch, start(device or "auto"):
        training = prepare_training(recipe, collection, Path(scratch) / "run")
        batch = load_batch(training, stage, step=settings.step)
        rows = range(min(settings.samples, len(batch.samples)))
        samples = [_describe_sample(training, batch, row, run.path) for row in rows]
    texts = batch.texts
    lengths_B = (texts.text_BT > 0).sum(dim=1)
    num_tokens = int(lengths_B.sum())
    result = PreviewResult(
        title=f"Samples of stage {stage.name}",
        command=list(command),
        collection=collection.name,
        split=recipe.split,
        stage=stage.name,
        step=settings.step,
        batch=len(batch.samples),
        sets=batch.num_sets,
        conversations=sum(len(sample["tokens"]) for sample in batch.samples),
        lengths=lengths_B.tolist(),
        visual=batch.visual,
        max_positions=training.model.max_positions,
        padding_share=1 - num_tokens / texts.ids_BT.numel() if texts.ids_BT.numel() else 0.0,
        learned_share=int(texts.learned_BT.sum()) / num_tokens if num_tokens else 0.0,
        names=len(batch.collated["name_N"]),
        left_out=_list_left_out(training, stage, batch),
        samples=samples,
    )
    run.write_result(result.to_json())
    return result


class StageBatch(NamedTuple):
    """A batch of a stage.

    Attributes:
        samples: of `MllmSamples.sample`. collated: of `MllmSamples.collate`. texts: its packed texts.
        visual: visual tokens and indicators of tiles in front of each row.
        bad: key -> reason, of samples and conversations that cannot be used.
        waiting: conversations of the drawn sets that other epochs draw.
        num_sets: samples of the stage in an epoch.
    """

    samples: list[dict[str, Any]]
    collated: dict[str, Any]
    texts: PackedTexts
    visual: list[int]
    bad: dict[str, str]
    waiting: int
    num_sets: int


def load_batch(training: MllmTraining, stage: StageSettings, *, step: int) -> StageBatch:
    """Load the batch of a step (from 1) on one process, as the stage's loader draws it.

    Raises:
        UserError: none of its samples can be used.
    """
    seed, dataset = training.loader_seed(stage), training.samples(stage, features=False)
    sets, loader = dataset.sets, training.loader(stage, dataset)
    # Draws of a mixture have the index of their source before row and epoch.
    draws = loader.draws(step - 1)[:, -2:].tolist()
    dataset.features = training.cache_features([sets[row] for row in sorted({row for row, _ in draws})])
    samples, bad, waiting = [], {}, 0
    for row, epoch in draws:
        try:
            samples.append(dataset.sample(row, epoch, seed))
            left_out = samples[-1].pop("left_out")
            bad |= {problem.key: problem.reason for problem in left_out}
            waiting += len(sets[row].conversations) - len(samples[-1]["tokens"]) - len(left_out)
        except BadSample as problem:
            bad[problem.key] = problem.reason
    if not samples:
        key, reason = next(iter(bad.items()))
        raise UserError(f"stage '{stage.name}', step {step}: no sample can be used, for example '{key}': {reason}")
    collated = dataset.collate(samples)
    texts = PackedTexts(*(collated[name] for name in PackedTexts._fields))
    layout = ViewLayout(*(collated[name] for name in ViewLayout._fields))
    visual = training.model.prefix_lengths(collated["views_BK"], layout).tolist()
    return StageBatch(samples, collated, texts, visual, bad, waiting, len(loader.rows))


def read_counts(texts: PackedTexts, row: int, *, visual: int) -> tuple[Tensor, NDArray[np.uint8]]:
    """Return the positions that a row's conversations may read, from the mask that the model uses.

    Args:
        visual: visual tokens in front of the row.

    Returns:
        For each conversation the most tokens that one of its tokens reads of: images, itself, other conversations
        [N, 3]; and the mask [L, L]: 0 not read, 1 a visual token, 2 text.
    """
    alone = texts.select(torch.tensor([row]))
    mask_LL = attention_and_positions(alone, torch.tensor([visual]), visual)[0][0]
    # Texts are numbered from 1. 0 marks visual tokens, and the padding, which nothing reads.
    text_L = torch.cat([torch.zeros(visual, dtype=torch.long), alone.text_BT[0]])
    counts = []
    for number in range(1, int(text_L.max()) + 1 if len(text_L) else 1):
        reads_TL = mask_LL[text_L == number]
        kinds = (text_L == 0, text_L == number, (text_L > 0) & (text_L != number))
        counts.append([int(reads_TL[:, of_kind].sum(dim=1).max()) if of_kind.any() else 0 for of_kind in kinds])
    kind_LL = mask_LL.to(torch.uint8) * (1 + (text_L > 0)).to(torch.uint8)
    return torch.tensor(counts, dtype=torch.long).view(-1, 3), kind_LL.numpy()


def _choose_stage(recipe: MllmRecipe, name: str | None) -> StageSettings:
    stages = {stage.name: stage for stage in recipe.stages}
    if name is not None:
        return stages[choose(name, tuple(stages), "stage")]
    # A stage that only aligns has no tokens to preview.
    return next((stage for stage in recipe.stages if stage.texts), recipe.stages[0])


def _list_left_out(training: MllmTraining, stage: StageSettings, batch: StageBatch) -> list[LeftOut]:
    """Count the conversations and samples that are not in the batch, by reason."""
    of_split = [talk.group for images in training.sets for talk in images.conversations]
    left_out = [
        LeftOut(
            what="conversations of the split",
            count=sum(not stage.trains(group) for group in of_split) if stage.texts else 0,
            reason="a group that the stage does not train",
        ),
        LeftOut(
            what="conversations of the samples of this batch",
            count=batch.waiting,
            reason=f"max_conversations is {stage.max_conversations}; other epochs draw them"
            if stage.texts
            else "the stage trains without conversations",
        ),
    ]
    reasons = Counter(batch.bad.values())
    example = {reason: key for key, reason in batch.bad.items()}
    left_out += [
        LeftOut(what="samples or conversations of this batch", count=count, reason=f"{reason} ({example[reason]})")
        for reason, count in reasons.items()
    ]
    return [entry for entry in left_out if entry.count]


def _describe_sample(training: MllmTraining, batch: StageBatch, row: int, folder: Path) -> PreviewSample:
    sample, texts = batch.samples[row], batch.texts
    visual = batch.visual[row]
    counts_N3, kind_LL = read_counts(texts, row, visual=visual)
    # Tokens of regions follow the order of the sample's regions, over all of its conversations.
    region_id, region_numbers = training.prompts.region_id, iter(range(1, len(sample["regions"]) + 1))
    conversations = []
    for number, conversation in enumerate(sample["conversations"], 1):
        of_text = texts.text_BT[row] == number
        ids, learned = texts.ids_BT[row][of_text].tolist(), texts.learned_BT[row][of_text].tolist()
        tokens = [
            PreviewToken(
                text=token_text(training.prompts.tokenizer, id),
                learned=is_learned,
                region=next(region_numbers, 0) if id == region_id else 0,
            )
            for id, is_learned in zip(ids, learned, strict=True)
        ]
        to_images, to_itself, to_others = counts_N3[number - 1].tolist()
        conversations.append(
            PreviewConversation(
                id=conversation.id,
                group=conversation.group,
                tokens=tokens,
                reads_images=to_images,
                reads_itself=to_itself,
                reads_others=to_others,
            )
        )
    mask = ""
    if conversations:
        mask = f"images/mask-{row:03d}.png"
        (folder / "images").mkdir(exist_ok=True)
        # A whole number and nearest neighbors, so that every token is as wide as the others.
        scale = max(1, round(_MASK_SIDE / len(kind_LL)))
        drawn = Image.fromarray(_MASK_COLORS[kind_LL])
        drawn.resize((len(kind_LL) * scale,) * 2, Image.Resampling.NEAREST).save(folder / mask)
    return PreviewSample(
        views=_describe_views(training, sample, folder, row),
        regions=[PreviewRegion(image=image, box=tuple(box.tolist())) for image, box in sample["regions"]],
        conversations=conversations,
        visual=visual,
        padding=int((texts.text_BT[row] == 0).sum()),
        mask=mask,
    )


def _describe_views(training: MllmTraining, sample: dict[str, Any], folder: Path, number: int) -> list[PreviewView]:
    """Write the views as the tower gets them, rendered by the functions that fill the feature cache."""
    phrases, tokenizer, keys = list(training.names.index), training.prompts.tokenizer, training.collection.keys
    (folder / "images").mkdir(exist_ok=True)
    views = []
    rendered = _render_views(training, sample["rows"])
    for index, (pixels_3HW, label) in enumerate(rendered):
        image, before = sample["layout"][index]
        path = f"images/{number:03d}-{index}.webp"
        save_thumbnail(Image.fromarray(pixels_3HW.permute(1, 2, 0).numpy()), folder / path)
        boxes_R4, names = sample["names"][index]
        views.append(
            PreviewView(
                file=path,
                image=image,
                key=keys[sample["rows"][image]],
                size=(int(pixels_3HW.shape[1]), int(pixels_3HW.shape[2])),
                label=label,
                before="".join(token_text(tokenizer, id) for id in before),
                names=[
                    Region(box=(x1, y1, x2, y2), phrase=phrases[name])
                    for (x1, y1, x2, y2), name in zip(boxes_R4.tolist(), names, strict=True)
                ],
            )
        )
    return views


def _render_views(training: MllmTraining, rows: Sequence[int]) -> Iterator[tuple[Tensor, str]]:
    """Render each view of a sample [3, H, W], with the tile that it is."""
    # Rendered again, since the cache holds features, not pixels.
    collection, preprocess = training.collection, training.model.tower.preprocess
    if training.model.settings.assembly is None:
        for row in rows:
            yield read_image(collection, row, preprocess)[0], ""
        return
    index = collection.index
    plan = training.model.plan(*((int(index["height"][row]), int(index["width"][row])) for row in rows))
    for row, of_image in zip(rows, plan.images, strict=True):
        pixels_V3HW = render_input(preprocess, decode(collection.image_bytes(row)), of_image)
        for pixels_3HW, view in zip(pixels_V3HW, of_image.views, strict=True):
            yield pixels_3HW, "overview" if view == OVERVIEW else f"row {view[0]}, column {view[1]}"


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """Return the text of one token, special ones by their names."""
    special = {number: text for text, number in tokenizer.special.items()} | {SLOT: IMAGE}
    return special.get(id) or tokenizer.decode([id])
