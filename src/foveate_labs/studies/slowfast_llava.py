"""Second part of the study `slowfast`: a small LLaVA, trained on single images, that watches clips unchanged.

An image has one to four panels: tiles of 64 tokens one after another, or all in one tile, so that details smaller than
a patch are known. Panels are read in order; that a later panel may be later in time is never said.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image
from torch import Tensor

from foveate.core import seeds
from foveate.core.model_folder import CONFIG
from foveate.metrics.answers import evidence_recall
from foveate.video.networks import Network, open_network
from foveate.video.prompts import PLAIN
from foveate.video.splice import encode_prompt
from foveate.video.viewing import Viewing
from foveate.video.watching import ask_all, watch
from foveate.vision.registry import seeded
from foveate_labs.studies.slowfast_measures import BUSY, COUNTING, DIRECTION, ORDER, WATCHED, FrameKind
from foveate_labs.worlds.scenes.clip_questions import FORMS, ClipQuestion, ask_clip
from foveate_labs.worlds.scenes.clips import DIRECTIONS, SceneClip, draw_clip
from foveate_labs.worlds.scenes.language import NUMERALS
from foveate_labs.worlds.scenes.shapes import COLORS, load_shapes

WORLDS = (BUSY, ORDER, COUNTING, DIRECTION)
_TRAINED = (BUSY, ORDER, COUNTING)  # an image does not move
_MEASURES = {"text": "digit", "count": "count"}  # by kind of question, where they differ
_SIDE, _PATCH, _MAX_PANELS = 64, 8, 4
_TOKENS = (_SIDE // _PATCH) ** 2
_PAD, _BEGIN, _END, _UNKNOWN, _IMAGE = range(5)
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_BATCH, _RATE, _WARMUP = 16, 2e-3, 0.05
_SAMPLES_PER_STEP = 2  # drawn anew; each is seen in _BATCH / _SAMPLES_PER_STEP steps
_EASY = 0.3  # of the steps: one panel, colors of flashes
_COLLAGE = 0.3  # of the images with several panels: all in one tile
_TEST_SAMPLES = 400
_ANSWER_TOKENS = 4
_IGNORED = -100


class TileSample(NamedTuple):
    """An image in tiles [K, 64, 64, 3], with a question, its answer, and the measure that it counts for."""

    tiles: Sequence[Image.Image]
    question: str
    answer: str
    measure: str


def measure(work: Path, *, clips: int, steps: int, seed: int, device: str | None) -> dict[str, float]:
    """Train a model, or open the trained one in `work`, and let it watch clips; return "arm/measure"."""
    folder = work / "model"
    started, seconds = time.process_time(), {}
    if not (folder / CONFIG).is_file():
        train(folder, steps=steps, seed=seed, device=device)
        # Measure this session only: the time of an earlier one, which trained the model, is not known.
        seconds["processor_seconds"] = time.process_time() - started
    network = open_network(folder, device=device or "cpu")
    values = {**seconds, **score_images(network, seed)}
    scores: dict[str, dict[str, list[float]]] = {key: {} for key in WATCHED}
    for world, index in itertools.product(WORLDS, range(clips)):
        clip = draw_clip(world, seed=seed, split="test", index=index, things="shapes")
        rng = seeds.generator("study slowfast watched", world, seed, index)
        watch_clip(network, clip, ask_clip(clip, rng), rng, scores)
    return {
        f"{key}/{name}": value
        for key, of in scores.items()
        for name, value in {**values, **{name: fmean(each) for name, each in of.items()}}.items()
    }


def watch_clip(
    network: Network,
    clip: SceneClip,
    questions: Sequence[ClipQuestion],
    rng: np.random.Generator,
    scores: Mapping[str, dict[str, list[float]]],
) -> None:
    """Ask all questions about a clip by every strategy, and add what is right to the scores."""
    frames = [Image.fromarray(frame.pixels_HW3) for frame in clip]
    order = rng.permutation(len(frames)).tolist()
    for key, arm in WATCHED.items():
        viewing = watch(network, _arrange(frames, order, arm.frames), how=arm.how, prompt="plain")
        texts = ask_all([(viewing, item.question.prompt, ()) for item in questions], max_tokens=_ANSWER_TOKENS)
        right = {}
        for item, answer in zip(questions, texts, strict=True):
            # Average over questions of one kind.
            right.setdefault(name_measure(item), []).append(float(answer.text.lower() == item.question.short.lower()))
        for name, each in right.items():
            scores[key].setdefault(name, []).append(fmean(each))
        if "flash" in right:
            scores[key].setdefault("both", []).append(min(right["flash"] + right["digit"]))
        seen = set() if arm.frames == "blank" else list_seen(viewing, order if arm.frames == "shuffled" else None)
        recall = evidence_recall([item.evidence for item in questions], [seen] * len(questions))
        scores[key].setdefault("evidence", []).append(recall)


def name_measure(question: ClipQuestion) -> str:
    """Name the measure that a question counts for; "order" is what the first part measures, which of two."""
    if question.question.form == "order: next":
        return "order_next"
    return _MEASURES.get(question.question.kind, question.question.kind)


def _arrange(frames: Sequence[Image.Image], order: Sequence[int], kind: FrameKind) -> list[Image.Image]:
    if kind == "blank":
        return [Image.new("RGB", frames[0].size, (128, 128, 128))] * len(frames)
    return [frames[index] for index in order] if kind == "shuffled" else list(frames)


def list_seen(viewing: Viewing, order: Sequence[int] | None) -> set[int]:
    """Return the numbers of the clip's frames that a viewing read, in an order other than theirs where there is one."""
    layout = viewing.layout
    rows = {row for block in layout.blocks for image in block.images for row in layout.images[image].frames}
    indices = {viewing.clip.indices[row] for row in rows}
    return indices if order is None else {order[index] for index in indices}


def draw_sample(split: str, seed: int, index: int, *, easy: bool = False) -> TileSample:
    """Draw an image of one to four panels with a question about it; easy ones have one panel and a flash."""
    rng = seeds.generator("study slowfast image", split, seed, index)
    world = BUSY if easy else _TRAINED[rng.integers(len(_TRAINED))]
    clip = draw_clip(world, seed=seed, split=split, index=index, things="shapes")
    questions = [item for item in ask_clip(clip, rng) if len(item.evidence) <= _MAX_PANELS]
    question = questions[1 if easy else int(rng.integers(len(questions)))]
    frames = {int(rng.choice(group)) for group in question.evidence}
    evidence = {frame for group in question.evidence for frame in group}
    others = rng.permutation(len(clip)).tolist()
    # Further panels hold nothing of the answer, unless all frames do: how many there are must not tell it.
    others = [frame for frame in others if frame not in evidence] or others
    count = 1 if easy else int(rng.integers(len(frames), _MAX_PANELS + 1))
    panels = sorted({*frames, *others[: count - len(frames)]})
    images = [Image.fromarray(clip.frame(frame).pixels_HW3) for frame in panels]
    if len(images) > 1 and rng.random() < _COLLAGE:
        images = [_paste_panels(images)]
    return TileSample(images, question.question.prompt, question.question.short, name_measure(question))


def _paste_panels(images: Sequence[Image.Image]) -> Image.Image:
    """Paste panels into one tile of 2 x 2 cells."""
    whole = Image.new("RGB", (_SIDE, _SIDE), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, 2)
        small = image.resize((_SIDE // 2, _SIDE // 2), Image.Resampling.BOX)
        whole.paste(small, (column * _SIDE // 2, row * _SIDE // 2))
    return whole


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer with a token for each word of questions and answers about clips."""
    templates = [text for form in FORMS.values() for text in (*form.training, *form.held_out)]
    others = ["user: assistant: plate appears disappears first last before after", *map(str, range(10))]
    texts = [re.sub(r"{\w+}", " ", text) for text in templates] + others
    tokens = re.findall(r"\w+|[^\w\s]", " ".join([*texts, *COLORS, *load_shapes(), *NUMERALS, *DIRECTIONS]).lower())
    names = [*_SPECIAL, *dict.fromkeys(tokens)]
    model = tokenizers.models.WordLevel({name: id for id, name in enumerate(names)}, unk_token=_SPECIAL[_UNKNOWN])
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in _SPECIAL])
    pad, begin, end, unknown, _ = _SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token=end, pad_token=pad, unk_token=unknown
    )


def build_model(vocabulary: int, *, seed: int) -> transformers.LlavaForConditionalGeneration:
    """Build a LLaVA of 0.2 million parameters with random weights."""
    tower = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=_SIDE,
        patch_size=_PATCH,
    )  # fmt: skip
    language = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=vocabulary,
        max_position_embeddings=2048, bos_token_id=_BEGIN, eos_token_id=_END, pad_token_id=_PAD,
    )  # fmt: skip
    # The last layer: of two, the one before it would leave half of the tower unused.
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=language, image_token_index=_IMAGE, vision_feature_layer=-1,
        image_seq_length=_TOKENS,
    )  # fmt: skip
    with seeded(seed):
        model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = _END, _PAD
    return model


def train(folder: Path, *, steps: int, seed: int, device: str | None) -> None:
    """Train a model on images with questions, easy ones first, and save it as transformers does."""
    initial, unfinished = folder.with_name("initial"), folder.with_name("unfinished")
    tokenizer = build_tokenizer()
    build_model(len(tokenizer), seed=seed).save_pretrained(initial)
    tokenizer.save_pretrained(initial)
    # Opened as any other folder: prompts and pixels of the training are those of its use.
    network = open_network(initial, device=device or "cpu")
    model = network.language.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=_WARMUP)
    rng = seeds.generator("study slowfast training", seed)
    samples: list[tuple[list[int], list[int], Tensor]] = []
    for step in range(steps):
        for _ in range(_SAMPLES_PER_STEP):
            sample = draw_sample("train", seed, len(samples), easy=step < _EASY * steps)
            samples.append(encode_sample(network, sample))
        batch = [samples[index] for index in rng.integers(len(samples), size=_BATCH)]
        loss = model(**collate(batch, device=model.device)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    # Renamed last, so that a folder of the final name is always a finished training.
    unfinished.rename(folder)


def encode_sample(network: Network, sample: TileSample) -> tuple[list[int], list[int], Tensor]:
    """Return ids of the prompt and of the answer, and the pixels of the tiles."""
    before, after = encode_prompt(network, PLAIN.ask.fill(network.frame, sample.question))
    assert network.tokenizer is not None
    answer = [*network.tokenizer.encode(sample.answer), _END]
    pixels = network.preprocess.normalize(network.pixels(sample.tiles))
    return [*before, *[_IMAGE] * _TOKENS * len(sample.tiles), *after], answer, pixels


def collate(batch: Sequence[tuple[list[int], list[int], Tensor]], *, device: torch.device) -> dict[str, Tensor]:
    """Pad samples on the right; only answers have labels."""
    length = max(len(prompt) + len(answer) for prompt, answer, _ in batch)
    ids_BL = torch.full((len(batch), length), _PAD)
    labels_BL, mask_BL = torch.full_like(ids_BL, _IGNORED), torch.zeros_like(ids_BL)
    for row, (prompt, answer, _) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids_BL[row, :end] = torch.tensor([*prompt, *answer])
        labels_BL[row, len(prompt) : end] = ids_BL[row, len(prompt) : end]
        mask_BL[row, :end] = 1
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL}
    inputs["pixel_values"] = torch.cat([pixels for _, _, pixels in batch])
    return {name: values.to(device) for name, values in inputs.items()}


@torch.inference_mode()
def score_images(network: Network, seed: int) -> dict[str, float]:
    """Return the share of test images whose answer is right in every token: of all, and by measure.

    What the model cannot answer about one image says nothing about clips.
    """
    right: dict[str, list[bool]] = {}
    for start in range(0, _TEST_SAMPLES, _BATCH):
        samples = [draw_sample("test", seed, index) for index in range(start, min(start + _BATCH, _TEST_SAMPLES))]
        batch = collate([encode_sample(network, sample) for sample in samples], device=network.language.device)
        # A logit predicts the next token, so labels are shifted by one.
        labels_BL = batch["labels"][:, 1:]
        predicted_BL = network.language(**batch).logits[:, :-1].argmax(-1)
        correct_B = ((predicted_BL == labels_BL) | (labels_BL == _IGNORED)).all(1).tolist()
        for sample, correct in zip(samples, correct_B, strict=True):
            right.setdefault(f"still_{sample.measure}", []).append(correct)
    everything = [correct for each in right.values() for correct in each]
    return {"still_images": fmean(everything), **{name: fmean(each) for name, each in right.items()}}
