"""A folder for `transformers.CLIPModel` and `CLIPProcessor`, with the region module as sidecar files."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F

from foveate.core.files import write_text_atomically
from foveate.core.hub import quiet
from foveate.pretrain import region_files
from foveate.pretrain.export import (
    TEXTS,
    ExportReport,
    Job,
    format_differences,
    image_text_bias,
    largest_difference,
    open_clip_towers,
    probe_pixels,
    write_card,
)
from foveate.vision.hf.clip import TransformersClipImageEncoder, TransformersClipTextEncoder, check_whole, whole_model
from foveate.vision.localizer.folder import CARD
from foveate.vision.open_clip.export import check_standard, clip_image_processor, clip_model, clip_tokenizer

_FILES = [
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
_BYTE_PAIRS = ["vocab.json", "merges.txt"]
_LOADING = """```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("this folder")
processor = CLIPProcessor.from_pretrained("this folder")
```"""
_TOKENS = """from foveate.pretrain import read_regions
from transformers import CLIPModel

model = CLIPModel.from_pretrained("this folder")
pixels = torch.zeros(1, 3, {size}, {size})  # of the processor
tokens = model.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
tokens_BLD = model.vision_model.post_layernorm(tokens)"""
_LETTERBOX = """## Images

The model was trained on whole images, padded with black to a square. `CLIPImageProcessor` has no such setting by
name; here it resizes the long side (`max_height`, `max_width`) and "crops" the square, which pads what is smaller. Do
not set `do_center_crop` to false. Resizing differs from Foveate's by at most one step of 255 at some pixels, and with
an odd padding the image may be shifted by one pixel.
"""
_BIAS = (
    "CLIPModel has no bias of the logits: that of the sigmoid loss, {bias:.4g}, is left out; cosines do not need it."
)
_TEXT = """## Texts

Token ids are those of training up to the end token, for texts that are clean Unicode. Training also repaired texts
(HTML entities, curly quotes, ligatures, full-width letters, a Greek final sigma in capitals), which `CLIPTokenizer`
does not; do it first where it matters: `html.unescape(html.unescape(ftfy.fix_text(text))).lower()`. Behind the end
token open_clip fills with 0, `CLIPTokenizer` with the end token; the embedding does not see it.
"""


def check(job: Job) -> list[str]:
    """List the files; refuse towers that `CLIPModel` cannot compute."""
    image, text = job.model.image_encoder, job.model.text_encoder
    regions = [] if job.model.recipe.regions.method == "none" else [region_files.WEIGHTS, region_files.CONFIG]
    # Called only for its error: preprocessing that the processor cannot express is refused before anything is written.
    clip_image_processor(image.preprocess)
    if isinstance(image, TransformersClipImageEncoder) and isinstance(text, TransformersClipTextEncoder):
        check_whole(image, text)
        return [*_FILES, *regions, CARD]
    check_standard(*open_clip_towers(job, "transformers CLIP"))
    return [*_FILES, *_BYTE_PAIRS, *regions, CARD]


def _parts(job: Job) -> tuple[Any, Any, bool]:
    """Return the model, its tokenizer, and whether the byte pairs are open_clip's."""
    image, text = job.model.image_encoder, job.model.text_encoder
    log_scale = float(job.model.logit_scale().log())
    if isinstance(image, TransformersClipImageEncoder) and isinstance(text, TransformersClipTextEncoder):
        return whole_model(image, text, log_scale=log_scale), text.tokenizer, False
    image, text = open_clip_towers(job, "transformers CLIP")
    return clip_model(image, text, log_scale=log_scale), clip_tokenizer(text.feature_shape[0]), True


@torch.inference_mode()
def export(job: Job) -> ExportReport:
    """Write the folder, load it with transformers and compare."""
    from transformers import CLIPModel, CLIPProcessor

    folder, ours = str(job.folder), job.model.cpu()
    with quiet():
        model, tokenizer, open_clip_pairs = _parts(job)
        model.save_pretrained(folder)
        images = clip_image_processor(ours.image_encoder.preprocess)
        CLIPProcessor(images, tokenizer).save_pretrained(folder)
        images.save_pretrained(folder)  # the file that releases before 5 read
        if open_clip_pairs:
            _write_byte_pairs(job)
        region_files.write_regions(ours, job.folder)
        theirs = CLIPModel.from_pretrained(folder).eval()
        processor: Any = CLIPProcessor.from_pretrained(folder)
    differences = _differences(job, theirs, processor, open_clip_pairs)
    bias = image_text_bias(ours)
    limits = [] if bias is None else [_BIAS.format(bias=bias)]
    notes = [
        *limits,
        _LETTERBOX if ours.image_encoder.preprocess.geometry == "letterbox" else "",
        _TEXT if open_clip_pairs else "",
        format_differences(differences),
        region_files.section(ours, tokens=_TOKENS.format(size=ours.image_encoder.preprocess.side)),
    ]
    write_card(job, library="transformers", loading=_LOADING, notes=notes)
    return ExportReport(differences, notes=limits)


def _differences(job: Job, theirs: Any, processor: Any, open_clip_pairs: bool) -> dict[str, float]:
    """Compare the loaded model and its processor with the model that was exported."""
    ours, texts = job.model, list(TEXTS)
    raw = probe_pixels(job)
    pixels = ours.image_encoder.normalized(raw)
    encoded = processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    image_BE, text_BE = ours.encode_image_tokens(raw).pooled, ours.embed_texts(texts)
    cosines = F.normalize(image_BE, dim=-1) @ F.normalize(text_BE, dim=-1).T
    output = theirs(pixel_values=pixels, **inputs)
    differences = {
        "image embeddings": largest_difference(image_BE, theirs.get_image_features(pixel_values=pixels).pooler_output),
        "text embeddings": largest_difference(text_BE, theirs.get_text_features(**inputs).pooler_output),
        "cosines": largest_difference(cosines, output.logits_per_image / theirs.logit_scale.exp()),
    }
    if open_clip_pairs:
        ids_BL = ours.text_encoder.frozen_features(texts)
        # The end token has the largest id; what fills the rest differs.
        until_end = ids_BL.argmax(dim=-1, keepdim=True) >= torch.arange(ids_BL.shape[1])
        name = "token ids up to the end token"
        differences[name] = largest_difference(ids_BL[until_end], encoded["input_ids"][until_end])
    return differences


def _write_byte_pairs(job: Job) -> None:
    """Write vocab.json and merges.txt, which releases before 5 and other programs read."""
    model = json.loads((job.folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_text_atomically(job.folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    # Some releases of `tokenizers` write a merge as a single string, others as a pair.
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    # Readers of merges.txt skip its first line, which names the version.
    write_text_atomically(job.folder / "merges.txt", "\n".join(["#version: 0.2", *lines, ""]))
