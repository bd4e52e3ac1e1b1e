"""A folder for `open_clip.create_model_from_pretrained("local-dir:FOLDER")`, with the region module as sidecars."""

from __future__ import annotations

from typing import Any

import torch

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
from foveate.vision.localizer.folder import CARD
from foveate.vision.open_clip.export import CONFIG_FILE, WEIGHTS_FILE, check_pair, export_open_clip

_LOADING = """```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:this folder")
tokenizer = open_clip.get_tokenizer("local-dir:this folder")
```"""
_TOKENS = """import open_clip
from foveate.pretrain import read_regions
from foveate.vision import OpenClipImageEncoder

model, preprocess = open_clip.create_model_from_pretrained("local-dir:this folder")
encoder = OpenClipImageEncoder(model="local-dir:this folder").eval()
pixels = torch.zeros(1, 3, {size}, {size})  # of `preprocess`
tokens_BLD = encoder(pixels).tokens"""
_PADDING = """## Images

The model was trained on whole images, padded to a square; `preprocess` does so too. An odd padding is
split differently: the image may be one pixel from where Foveate puts it.
"""


def check(job: Job) -> list[str]:
    """List the files; refuse models whose towers are not open_clip's."""
    image, text = open_clip_towers(job, "open_clip")
    check_pair(image, text)
    regions = [] if job.model.recipe.regions.method == "none" else [region_files.WEIGHTS, region_files.CONFIG]
    return [CONFIG_FILE, WEIGHTS_FILE, *regions, CARD]


@torch.inference_mode()
def export(job: Job) -> ExportReport:
    """Write the folder, load it with open_clip and compare."""
    import open_clip

    image, text = open_clip_towers(job, "open_clip")
    image, text = image.cpu(), text.cpu()
    model = job.model
    bias = image_text_bias(model)
    export_open_clip(image, text, log_scale=model.logit_scale().log().cpu(), logit_bias=bias, folder=job.folder)
    region_files.write_regions(model, job.folder)
    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{job.folder}")
    theirs = loaded[0].eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{job.folder}")
    # Both get the same pixels, because open_clip's `preprocess` may place a padded image one pixel off.
    pixels = image.normalized(probe_pixels(job))
    ids_BL = text.frozen_features(list(TEXTS))
    differences = {
        "image embeddings": largest_difference(image(pixels).pooled, theirs.encode_image(pixels)),
        "token ids": largest_difference(ids_BL, tokenizer(list(TEXTS))),
        "text embeddings": largest_difference(text(ids_BL), theirs.encode_text(tokenizer(list(TEXTS)))),
        "logit scale": largest_difference(model.logit_scale().cpu().view(()), theirs.logit_scale.exp()),
    }
    if bias is not None:
        differences["logit bias"] = abs(bias - float(theirs.logit_bias))
    notes = [
        _PADDING if image.preprocess.geometry == "letterbox" else "",
        format_differences(differences),
        region_files.section(job.model, tokens=_TOKENS.format(size=image.preprocess.side)),
    ]
    write_card(job, library="open_clip", loading=_LOADING, notes=notes)
    return ExportReport(differences)
