"""Compare an exported model with its source on fixed inputs, and write the card of the export."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.pretrain.export import Job
from foveate.vision.localizer.folder import CARD, model_card, trained_weights
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder

# Several scripts, an apostrophe, digits, an empty text: where tokenizers of libraries differ.
TEXTS = ("a red boat", "Ein großer Hund läuft über die Straße", "красная лодка", "赤い船", "it's 42 km & 50%", "")
IMAGES = 2


def probe_pixels(job: Job) -> Tensor:
    """Return uint8 noise [IMAGES, 3, S, S], the same for every export."""
    # Noise uses all pixel values; a photograph would hide differences in dark or saturated areas.
    size = job.model.image_encoder.preprocess.side
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference of two tensors of the same shape."""
    # Broadcasting would silently compare the wrong values.
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0


def image_text_bias(model: LocalizingModel) -> float | None:
    """Return the bias of a sigmoid image-text loss; None for a softmax loss, even if the regions have a bias."""
    return float(model.logit_bias()) if model.recipe.loss == "sigmoid" else None


def open_clip_towers(job: Job, library: str) -> tuple[OpenClipImageEncoder, OpenClipTextEncoder]:
    """Return both encoders of a model of open_clip.

    Raises:
        UserError: for any other model, with the possible targets.
    """
    image, text = job.model.image_encoder, job.model.text_encoder
    if isinstance(image, OpenClipImageEncoder) and isinstance(text, OpenClipTextEncoder):
        return image, text
    kinds = [job.model.recipe.image_encoder["kind"], job.model.recipe.text_encoder["kind"]]
    also = "`--to transformers`, " if kinds == ["clip"] * 2 else ""
    raise UserError(
        f"{job.source}: encoders '{kinds[0]}' and '{kinds[1]}' are not an architecture of {library}; possible targets: "
        f"{also}`--to onnx` (both towers and regions, with a script that embeds images and texts without torch) and "
        "`--to embeddings`"
    )


def format_differences(differences: dict[str, float], *, texts: int = len(TEXTS)) -> str:
    """Write the card's section on what was compared while exporting, on how many texts."""
    data = f"{IMAGES} images of noise" + (f" and {texts} texts" if texts else "")
    rows = "".join(f"| {name} | {value:.3g} |\n" for name, value in differences.items())
    return f"""## Checked while exporting

Loaded with the target library and compared with Foveate on {data}, in float32 on the CPU:

| what | largest absolute difference |
|---|---|
{rows}"""


def write_card(job: Job, *, library: str, loading: str, notes: list[str]) -> None:
    """Write the README.md of an export: the model's card with the export's loading code and notes."""
    card = model_card(
        recipe=job.config["recipe"],
        parameters=sum(value.numel() for value in trained_weights(job.model).values()),
        metrics=job.metrics,
        provenance=job.config.get("provenance") or {},
        loading=loading,
        library=library,
        notes="\n".join(note.strip() + "\n" for note in notes if note.strip()),
    )
    write_text_atomically(job.folder / CARD, card)
