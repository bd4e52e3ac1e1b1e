"""A folder for `LlavaNextForConditionalGeneration`: LLaVA's parts, and tiles that this model was not trained on."""

from __future__ import annotations

import torch

from foveate.mllm.export import ExportReport, Job, image_processor, measure_views, write_export
from foveate.mllm.exporting.llava import LOADING, processor_options, read_parts, read_weights

# Grids of LLaVA-1.6 as rows and columns of views.
_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_NOTE = (
    "LlavaNextProcessor always shows an overview and its tiles, joined row by row, with a vector (here zero) behind "
    "each row: each view's visual tokens are this model's, answers about an image are not, as it was trained on one "
    "view; tune it further or use --to llava."
)


def export(job: Job) -> ExportReport:
    """Write the folder, load it with transformers and compare."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    loaded = job.loaded
    # Its processor stretches the overview.
    fields, trunk = read_parts(loaded, target="LlavaNextForConditionalGeneration", geometries=("stretch",))
    side = loaded.model.tower.preprocess.side
    pinpoints = [[rows * side, columns * side] for rows, columns in _GRIDS]
    sizes = {
        "size": {"height": side, "width": side},
        "crop_size": {"height": side, "width": side},
        "image_grid_pinpoints": pinpoints,
    }
    images = image_processor(loaded, LlavaNextImageProcessor, sizes)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(**fields, image_grid_pinpoints=pinpoints)).eval()
    width = loaded.model.width
    model.load_state_dict(read_weights(loaded, trunk) | {"model.image_newline": torch.zeros(width)})
    theirs, reopened = write_export(job, model, LlavaNextProcessor(images, **processor_options(loaded, fields)))
    # Twice as wide as high, so that there are tiles behind the overview.
    noise = torch.randint(0, 256, (3, side, 2 * side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = reopened.image_processor(noise, return_tensors="pt")
    with torch.no_grad():
        (tokens_LE,) = theirs.get_image_features(**inputs).pooler_output
    count = loaded.model.connector.num_tokens
    # The overview comes first; the rest is the tiles' rows.
    overview = measure_views(loaded.model, inputs["pixel_values"][0, :1], tokens_LE[None, :count])
    return ExportReport(LOADING, {"visual tokens of the overview": overview}, [_NOTE])
