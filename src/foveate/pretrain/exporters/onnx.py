"""ONNX graphs: both towers, and with a Prompter embedding boxes and locating phrases, without torch.

`image.onnx`: pixels to embedding and tokens. `text.onnx`: token ids to embeddings. `regions.onnx`: tokens and boxes to
embeddings. `phrases.onnx`: tokens and text embeddings to boxes. The sizes of batches are free. `embed.py` embeds images
and texts with these files. Written with PyTorch's `torch.export`-based exporter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import write_json_atomically
from foveate.pretrain.export import (
    TEXTS,
    ExportReport,
    Job,
    format_differences,
    largest_difference,
    probe_pixels,
    write_card,
)
from foveate.pretrain.onnx_parts import (
    SCRIPT,
    TEXT,
    TOKENIZER,
    ImageGraph,
    PhraseGraph,
    RegionGraph,
    TextGraph,
    encode,
    find_tokenizer,
    write_script,
)
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.localizer.folder import CARD, PREPROCESS
from foveate.vision.minilm import MiniLMEncoder
from foveate.vision.onnx_graphs import check_packages, run_graph, write_graph

IMAGE, REGIONS, PHRASES = "image.onnx", "regions.onnx", "phrases.onnx"
_LOADING = """```python
import numpy as np
import onnxruntime

image = onnxruntime.InferenceSession("image.onnx")
pixels = np.zeros((1, 3, {size}, {size}), dtype=np.uint8)  # RGB, the long side {size} px, {fill} on both sides
embedding, tokens = image.run(None, {{"pixels": pixels}})
```

`embedding` has unit length. `preprocess.json` has the resizing and padding of images; the graph normalizes the pixels
itself."""
_REGIONS = """## Regions

```python
import onnxruntime

regions = onnxruntime.InferenceSession("regions.onnx")
boxes = np.array([[0.1, 0.2, 0.5, 0.9]], dtype=np.float32)  # corners in [0, 1] of the square input
image = np.array([0], dtype=np.int64)  # row of `tokens` that each box belongs to
z = regions.run(None, {"tokens": tokens, "boxes": boxes, "image": image})[0]  # unit length

phrases = onnxruntime.InferenceSession("phrases.onnx")
texts = np.zeros((1, EMBED), dtype=np.float32)  # before normalization
boxes = phrases.run(None, {"tokens": tokens, "texts": texts, "image": image})[0]
```

`phrases.onnx` takes the output `text` of `text.onnx`, which is what
`foveate.vision.localizer.folder.load_model(FOLDER).embed_texts(TEXTS)` gives, or, of a collection's texts, `embedding`
times `norm` in the tables of `foveate export MODEL --to embeddings`.
"""
_TEXTS = """## Images and texts

`python embed.py photo.jpg "a red boat"` prints the cosine of an image with each text; it needs onnxruntime, numpy,
Pillow and tokenizers alone. In Python:

```python
import runpy

embed = runpy.run_path("this folder/embed.py")
vectors = embed["embed_texts"](["a red boat"])  # unit vectors; embed["embed_image"](path) of an image
```

`text.onnx` also gives `text`, the embedding before normalization, which `phrases.onnx` takes.
"""
_NO_TEXTS = """## Texts

The text tower is not in these files: `tokenizers` cannot express its tokenizer. Texts are embedded by Foveate.
"""
_TEXT_PRECISION = """The frozen sentence encoder is in the graph in float32. Where Foveate runs it in bfloat16 ("auto",
on processors that have it), its embeddings differ from the graph's by at most {difference:.3g}, measured here.
"""
_NO_REGIONS = {
    "none": "",
    "roi": "## Regions\n\nThe RoI module is not in these files: only a Prompter is written as a graph.\n",
}
_FROZEN = """## Precision

The frozen EfficientNet-Lite0 is in the graph in float32. Where Foveate runs it in bfloat16 ("auto", on processors that
have it), its embeddings differ from the graph's by at most {difference:.3g}, measured here.
"""


def check(job: Job) -> list[str]:
    """List the files.

    Raises:
        UserError: when the libraries of the extra are missing, or the encoder cannot be a graph.
    """
    check_packages()
    encoder = job.model.image_encoder
    if encoder.fingerprint() and not isinstance(encoder, Lite0Encoder):
        raise UserError(
            f"{job.source}: the frozen part of the image encoder '{job.model.recipe.image_encoder['kind']}' has no "
            "graph; use `--to embeddings`"
        )
    regions = [REGIONS, PHRASES] if job.model.prompter is not None else []
    texts = [TEXT, TOKENIZER, SCRIPT] if find_tokenizer(job.model.text_encoder) is not None else []
    return [IMAGE, *texts, *regions, PREPROCESS, CARD]


@torch.inference_mode(False)
def export(job: Job) -> ExportReport:
    """Write the graphs, run them with onnxruntime and compare."""
    model = job.model.cpu()
    encoder = model.image_encoder
    pixels = probe_pixels(job)
    with torch.no_grad():
        # Encode as Foveate does, perhaps in bfloat16; the card reports how much the float32 graph differs.
        as_is_BE = model.encode_image(pixels)
        if isinstance(encoder, Lite0Encoder):
            encoder.precision = "float32"  # the graph's
        tokens = model.encode_image_tokens(pixels)
        embedding_BE, tokens_BLD = model.encode_image(tokens), tokens.tokens
    write_graph(ImageGraph(encoder).eval(), (pixels,), {"pixels": "batch"}, ["embedding", "tokens"], job.folder / IMAGE)
    theirs = run_graph(job.folder / IMAGE, pixels=_add_row(pixels))
    differences = {
        "image embeddings (unit length)": largest_difference(_add_row(embedding_BE), theirs[0]),
        "tokens": largest_difference(_add_row(tokens_BLD), theirs[1]),
    }
    notes: list[str] = []
    if isinstance(encoder, Lite0Encoder):
        notes.append(_FROZEN.format(difference=largest_difference(as_is_BE, embedding_BE)))
    text_differences, note = _texts(job)
    differences |= text_differences
    notes.append(note)
    if model.prompter is not None and model.box_head is not None:
        differences |= _regions(job, tokens_BLD)
        notes.append(_REGIONS.replace("EMBED", str(model.recipe.embed_dim)))
    else:
        notes.append(_NO_REGIONS[model.recipe.regions.method])
    write_json_atomically(job.folder / PREPROCESS, encoder.preprocess.to_dict())
    fill = "black" if not any(encoder.preprocess.fill) else f"the color {list(encoder.preprocess.fill)}"
    write_card(
        job,
        library="onnx",
        loading=_LOADING.format(size=encoder.preprocess.side, fill=fill),
        notes=[*notes, format_differences(differences, texts=len(TEXTS) if text_differences else 0)],
    )
    return ExportReport(differences)


def _texts(job: Job) -> tuple[dict[str, float], str]:
    """Write the text tower, its tokenizer and the script; return differences and the card's section."""
    model, encoder = job.model, job.model.text_encoder
    with torch.no_grad():
        as_is_TE = F.normalize(model.embed_texts(list(TEXTS)), dim=-1)
    if isinstance(encoder, MiniLMEncoder):
        encoder.set_precision("float32")  # the graph's
    tokenizer = find_tokenizer(encoder)
    if tokenizer is None:
        return {}, _NO_TEXTS
    with torch.no_grad():
        text_TE = model.embed_texts(list(TEXTS))
    embedding_TE = F.normalize(text_TE, dim=-1)
    ids_TL, mask_TL = encode(tokenizer, TEXTS)
    longest = encoder.max_tokens if isinstance(encoder, MiniLMEncoder) else None
    graph, axes = TextGraph(encoder).eval(), {"ids": "batch", "mask": "batch"}
    # Not "embedding", the name of a node inside: the exporter would write a graph with that name twice.
    write_graph(graph, (ids_TL, mask_TL), axes, ["text_embedding", "text"], job.folder / TEXT, max_length=longest)
    tokenizer.save(str(job.folder / TOKENIZER))
    write_script(job.folder / SCRIPT, model.image_encoder.preprocess)
    theirs = run_graph(job.folder / TEXT, ids=ids_TL, mask=mask_TL)
    # A single text has a different length and batch size than the graph was traced with.
    first_ids_1L, first_mask_1L = encode(tokenizer, TEXTS[:1])
    first = run_graph(job.folder / TEXT, ids=first_ids_1L, mask=first_mask_1L)
    differences = {
        "text embeddings (unit length)": max(
            largest_difference(embedding_TE, theirs[0]), largest_difference(embedding_TE[:1], first[0])
        ),
        "text embeddings before normalization": largest_difference(text_TE, theirs[1]),
    }
    note = _TEXTS
    if isinstance(encoder, MiniLMEncoder):
        note += "\n" + _TEXT_PRECISION.format(difference=largest_difference(as_is_TE, embedding_TE))
    return differences, note


def _regions(job: Job, tokens_BLD: Tensor) -> dict[str, float]:
    """Write both graphs of the Prompter and compare them with the Prompter itself."""
    model = job.model
    assert model.prompter is not None
    assert model.box_head is not None
    # Sort corners: the boxes must be valid for the comparison to mean anything.
    generator = torch.Generator().manual_seed(1)
    corners_R22 = torch.rand(7, 2, 2, generator=generator).sort(dim=1).values
    boxes_R4 = (0.9 * corners_R22 + torch.tensor([[0.0], [0.1]])).flatten(1)
    image_R = torch.arange(7) % len(tokens_BLD)
    texts_RE = torch.randn(7, model.recipe.embed_dim, generator=generator)
    grid = model.image_encoder.grid
    axes = {"tokens": "batch", "boxes": "regions", "image": "regions"}
    regions = RegionGraph(model.prompter, grid).eval()
    write_graph(regions, (tokens_BLD, boxes_R4, image_R), axes, ["embedding"], job.folder / REGIONS)
    axes = {"tokens": "batch", "texts": "regions", "image": "regions"}
    phrases = PhraseGraph(model.prompter, model.box_head, grid).eval()
    write_graph(phrases, (tokens_BLD, texts_RE, image_R), axes, ["boxes"], job.folder / PHRASES)
    with torch.no_grad():
        prepared = model.prompter.prepare(tokens_BLD, grid)
        z_RE = F.normalize(model.prompter.boxes(prepared, boxes_R4, image_R).embedding_RE, dim=-1)
        ours_R4 = model.box_head.locate(model.prompter.phrases(prepared, texts_RE, image_R))
    # Other numbers of images and of regions than the graphs were traced with.
    few = {"tokens": tokens_BLD[:1], "image": torch.zeros(3, dtype=torch.int64)}
    of_first = image_R == 0
    theirs_RE = run_graph(job.folder / REGIONS, tokens=tokens_BLD, boxes=boxes_R4, image=image_R)[0]
    theirs_R4 = run_graph(job.folder / PHRASES, tokens=tokens_BLD, texts=texts_RE, image=image_R)[0]
    first_RE = run_graph(job.folder / REGIONS, **few, boxes=boxes_R4[of_first][:3])[0]
    first_R4 = run_graph(job.folder / PHRASES, **few, texts=texts_RE[of_first][:3])[0]
    return {
        "region embeddings (unit length)": max(
            largest_difference(z_RE, theirs_RE), largest_difference(z_RE[of_first][:3], first_RE)
        ),
        "boxes of phrases": max(
            largest_difference(ours_R4, theirs_R4), largest_difference(ours_R4[of_first][:3], first_R4)
        ),
    }


def _add_row(rows: Tensor) -> Tensor:
    """Append the first row again: another batch size than the graph was traced with."""
    return torch.cat((rows, rows[:1]))
