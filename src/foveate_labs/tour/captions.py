"""The tour's captions: the shipped model captions held-out scenes, regions are labeled, encoders trained with captions.

Encoders run on the frozen features that the tour has cached. The tour's collection is not changed: captions go into a
copy of its table in memory, because later parts of the tour read the collection without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.caption.backends.foveate import FoveateSettings, MllmCaptioner, open_captioner
from foveate.caption.captioner import Captioner
from foveate.caption.evaluate import caption_rows, is_looping
from foveate.caption.lengths import apply_length_filter, count_clip_tokens
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.splitter import split
from foveate.caption.vesl.detection import DetectorInput, find_detector
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import open_extractor
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.core.progress import say
from foveate.core.recipes import load
from foveate.core.runs import RunFolder
from foveate.metrics.captions import assertion_metrics
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import pretrain
from foveate.records.caption_formats import TITLES
from foveate.records.collection import Collection
from foveate.records.images import decode, save_thumbnail
from foveate.vision.feature_cache import CACHE
from foveate.vision.localizer.folder import load_model
from foveate_labs.captions.ground_truths.scenes import DEFINITION, judge_assertions
from foveate_labs.captions.scene_captions import render
from foveate_labs.captions.scene_truth import SceneTruths

ENCODER = "tour-clip"
NUM_EXAMPLES = 8
TRAINED_ON = 400  # images that get a short caption, and on which the two small encoders are trained
STEPS, BATCH = 60, 128
# Where writing stops: well above what each format allows, so that only captions that never end are cut.
MAX_TOKENS = {"ssc": 60, "dsc": 140, "dsc_plus": 400, "afc": 140}
VARIANTS = {"alt": "AltText only", "hybrid": "half AltText, half short captions"}


@dataclass(frozen=True)
class Sizes:
    """Numbers of captions, training images and steps, and the side of the images that both encoders read."""

    num_examples: int = NUM_EXAMPLES
    trained_on: int = TRAINED_ON
    steps: int = STEPS
    batch_size: int = BATCH
    image_size: int = 224


def sizes_of(train_scenes: int, steps: int | None, *, image_size: int = 224) -> Sizes:
    """Return sizes for a number of scenes; with `steps`, all trainings are at most that long."""
    trained_on = min(TRAINED_ON, train_scenes)
    if steps is None:
        return Sizes(trained_on=trained_on, batch_size=min(BATCH, trained_on), image_size=image_size)
    return Sizes(min(NUM_EXAMPLES, 4), trained_on, min(steps, STEPS), min(BATCH, trained_on), image_size)


class WithCaptions(Collection):
    """A collection with further captions and a smaller training split, in memory only."""

    more: pa.Table | None = None
    part: NDArray[np.int64] | None = None

    def table(self, kind: str) -> pa.Table:
        return self.more if kind == "captions" and self.more is not None else super().table(kind)

    def rows(self, split: str | None = None, where: Any = None) -> NDArray[np.int64]:
        rows_of_split = super().rows(split, where)
        return rows_of_split if split != "train" or self.part is None else np.intersect1d(rows_of_split, self.part)


def tour_captions(
    collection: Collection,
    run: RunFolder,
    *,
    locator: Path,
    seed: int,
    device: str | None = None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Caption held-out scenes with the shipped model, label regions, compare encoders with and without captions.

    Args:
        locator: model folder that finds phrases in images: the tour's own CLOC.
    """
    sizes = sizes or Sizes()
    captioner = open_captioner(FoveateSettings(device=device))
    assert isinstance(captioner, MllmCaptioner), "the shipped model is a folder of ours"
    rows = _scenes(collection, "test", sizes.num_examples, seed)
    examples, counts, assertions = _examples(captioner, collection, rows, run.path, locator, device)
    encoder = _encoders(captioner, collection, run, seed=seed, device=device, sizes=sizes)
    return {
        "model": captioner.model,
        "reads_requests": captioner.reads_requests,
        "definition": DEFINITION,
        "examples": examples,
        "formats": counts,
        "assertions": assertions,
        "encoder": encoder,
    }


def _scenes(collection: Collection, name: str, count: int, seed: int) -> NDArray[np.int64]:
    rows = collection.rows(name, {"source": "scenes"})
    # By a number of each key: a larger count has the scenes of a smaller one, and more.
    order = sorted(rows.tolist(), key=lambda row: seeds.uniform("tour captions", seed, collection.keys[row]))
    return np.sort(np.array(order[:count], dtype=np.int64))


def _write_captions(
    captioner: Captioner, collection: Collection, rows: NDArray[np.int64], kinds: Sequence[str]
) -> tuple[dict[int, dict[str, str]], dict[int, dict[str, str]]]:
    """Map row to format to caption: the usable ones, and those that never ended, break a rule or repeat themselves."""
    captions: dict[int, dict[str, str]] = {}
    unusable: dict[int, dict[str, str]] = {}
    for written in caption_rows(captioner, collection, rows, kinds=kinds, max_tokens=MAX_TOKENS):
        gated = apply_length_filter(written.kind, written.text)
        # Unusable texts are kept for the page: without them it would hide how often the model fails.
        if written.parses and not gated.error and gated.caption and not is_looping(gated.caption):
            captions.setdefault(written.row, {})[written.kind] = gated.caption
        else:
            unusable.setdefault(written.row, {})[written.kind] = written.text
    return captions, unusable


def _examples(
    captioner: Captioner,
    collection: Collection,
    rows: NDArray[np.int64],
    run: Path,
    locator: Path,
    device: str | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """Return images with all texts judged by the truth and pseudo-labeled regions, means per format, and totals.

    The totals are over the model's own captions, with their control: the same assertions judged by another scene.
    """
    captions, unusable = _write_captions(captioner, collection, rows, CAPTION_KINDS)
    labeled = _regions(
        collection, {row: captions_of_row.get("dsc", "") for row, captions_of_row in captions.items()}, locator, device
    )
    truths = SceneTruths(collection)
    examples, verdicts = [], {kind: list[list[str]]() for kind in ("alt", *CAPTION_KINDS)}
    lengths: dict[str, list[int]] = {kind: [] for kind in verdicts}
    totals = {"n": 0, "held": 0, "held_by_another_scene": 0}
    for number, row in enumerate(rows.tolist()):
        truth = truths.get(row)
        # The control: what also holds of the next scene was not read off this image.
        other_truth = truths.get(int(rows[(number + 1) % len(rows)])) if len(rows) > 1 else None
        alt = next((caption.text for caption in collection.read_captions(row) if caption.kind == "alt"), "")
        texts = {"alt": alt, **captions.get(row, {})}
        texts_of_image = []
        for kind in (kind for kind in verdicts if texts.get(kind)):
            assertions = split(texts[kind])
            judged = judge_assertions(assertions, truth) if truth else []
            verdicts[kind].append(judged)
            if kind != "alt" and truth and other_truth:
                totals["n"] += len(judged)
                totals["held"] += judged.count("supported")
                totals["held_by_another_scene"] += judge_assertions(assertions, other_truth).count("supported")
            lengths[kind].append(count_clip_tokens(texts[kind]))
            marked = [{"text": a, "verdict": v} for a, v in zip(assertions, judged, strict=True)]
            texts_of_image.append({"format": kind, "title": TITLES[kind], "text": texts[kind], "assertions": marked})
        image = collection.image_bytes(row)
        path = save_thumbnail(image, run / "images" / f"captions-{number:02d}.webp", longest_side=360)
        about = {"key": collection.keys[row], "captions": texts_of_image, "regions": labeled.get(row, [])}
        rejected = {TITLES[kind]: text for kind, text in unusable.get(row, {}).items()}
        examples.append({"image": str(path.relative_to(run)), **about, "unusable": rejected})
    counts = []
    for kind, judged in verdicts.items():
        # A format without a usable caption is a row as well: left out, it would look as if it had not been asked for.
        count: dict[str, Any] = {"format": kind, "title": TITLES[kind], "n": len(judged)}
        if judged:
            metrics = assertion_metrics(judged)
            count |= {"tokens": float(np.mean(lengths[kind])), "ana": metrics["ana"], "held": metrics["accuracy_micro"]}
        counts.append(count)
    return examples, counts, totals


def _regions(
    collection: Collection, captions: dict[int, str], locator: Path, device: str | None
) -> dict[int, list[dict[str, Any]]]:
    """Map row to the regions that VESL makes of its caption, with boxes of the tour's CLOC."""
    extractor, kind = open_extractor(PhraseSettings()), find_detector("cloc")
    phrases = {row: some for row, caption in captions.items() if (some := extractor(caption).phrases)}
    if not phrases:
        return {}
    detector = kind.open(kind.settings.model_validate({"model": str(locator)}), collection, device)
    inputs = []
    for row in phrases:
        # Decoded as in `foveate regions`: at most twice the side that the detector reads.
        image = decode(collection.image_bytes(row), longest_side=2 * detector.input_px)
        width, height = (int(collection.index[name][row]) for name in ("width", "height"))
        inputs.append(DetectorInput(row, collection.keys[row], image, width, height))
    return {
        row: [
            {"box": [float(edge) for edge in box], "phrase": phrases[row][int(number)]}
            for box, number in zip(detections.boxes_K4, detections.phrase_K, strict=True)
        ]
        for row, detections in zip(phrases, detector.detect(inputs, list(phrases.values())), strict=True)
    }


def _encoders(
    captioner: Captioner,
    collection: Collection,
    run: RunFolder,
    *,
    seed: int,
    device: str | None,
    sizes: Sizes,
) -> dict[str, Any]:
    """Train two small encoders, on AltTexts alone and with half short captions; compare their searches."""
    from foveate_labs.studies.captions_measures import retrieval

    part = _scenes(collection, "train", sizes.trained_on, seed)
    captions = caption_part(captioner, collection, part, run.path / "short-captions.json")
    opened = with_captions(collection, captions, part)
    tested = collection.rows("test", {"source": "scenes"})
    truths = SceneTruths(collection)
    known = {row: truth for row in tested.tolist() if (truth := truths.get(row)) and truth.things}
    rows = np.array(sorted(known), dtype=np.int64)
    # A fixed stream: every seed describes a scene in the same words.
    sentences = [render("ssc", known[row], alt="", rng=np.random.default_rng(0)).text for row in rows.tolist()]
    distinct = list(dict.fromkeys(sentences))
    recalls: dict[str, float] = {}
    from foveate.caption.judges import encode_images

    variants = {"alt": "{alt: 1}", "hybrid": "{alt: 0.5, ssc: 0.5}"}
    if not captions:
        say("captions: none of the short ones is whole; the encoder with them is left out")
        del variants["hybrid"]
    for name, weights in variants.items():
        changes = [
            f"data.captions={weights}",
            f"image_encoder.image_size={sizes.image_size}",
            f"training.steps={sizes.steps}",
            f"training.batch_size={sizes.batch_size}",
        ]
        changes += [f"training.seed={seed}", f"training.warmup_steps={min(10, sizes.steps // 2)}"]
        changes += [f"training.checkpoint_every={sizes.steps}"]
        done = pretrain(
            load(PretrainRecipe, ENCODER, changes),
            opened,
            run.path / f"captions-{name}",
            device=device,
            evaluate_split=None,
        )
        if done.model_folder is None:
            raise UserError(f"{run.path}: stopped; run the same command to resume")
        model = load_model(done.model_folder, device=device)
        encoded, _, image_NE = encode_images(model, collection, rows, cache=collection.path / CACHE)
        text_TE = model.encode_text(distinct).detach().cpu().numpy()
        row_sentences = [sentences[position] for position in np.searchsorted(rows, encoded).tolist()]
        recalls[name] = retrieval(image_NE, text_TE, row_sentences, distinct, best=10)
    return {
        "measure": "searches with short true sentences, both ways, R@10",
        "images": len(rows),
        "trained_on": len(part),
        "captioned": len(captions),
        "steps": sizes.steps,
        "values": [{"title": VARIANTS[name], "value": value} for name, value in recalls.items()],
    }


def caption_part(captioner: Captioner, collection: Collection, part: NDArray[np.int64], stored: Path) -> dict[int, str]:
    """Map the rows of `part` to short captions, if usable; those that `stored` has of the same images are read."""
    # Stored: on another device a caption may come out differently, and a training does not resume on other texts.
    keys = [collection.keys[row] for row in part.tolist()]
    texts: dict[str, str] = read_json(stored) if stored.is_file() else {}
    if list(texts) != keys:
        captions, _ = _write_captions(captioner, collection, part, ("ssc",))
        texts = {key: captions.get(row, {}).get("ssc", "") for row, key in zip(part.tolist(), keys, strict=True)}
        write_json_atomically(stored, texts)
    return {row: text for row, text in zip(part.tolist(), texts.values(), strict=True) if text}


def with_captions(collection: Collection, texts: dict[int, str], part: NDArray[np.int64]) -> Collection:
    """Open the collection with a short caption for some rows and with `part` of its training rows."""
    opened = WithCaptions.open(collection.path)
    assert isinstance(opened, WithCaptions)
    table = opened.table("captions")
    columns: dict[str, list[Any]] = {name: [None] * len(texts) for name in table.schema.names}
    columns |= {"key": [collection.keys[row] for row in texts], "kind": ["ssc"] * len(texts), "text": [*texts.values()]}
    for field in table.schema:
        if pa.types.is_string(field.type) and field.name not in ("key", "kind", "text"):
            columns[field.name] = [""] * len(texts)
    columns["request"] = [f"tour {row}" for row in texts]
    opened.more = pa.concat_tables([table, pa.table(columns, schema=table.schema)]).combine_chunks()
    opened.part = part
    return opened
