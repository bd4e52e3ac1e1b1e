"""Save the region module as sidecar files next to an exported model, since no other library has a place for it.

`prompter.safetensors` and `prompter.json` hold the Prompter with its box head, or the RoI module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.prompter import BoxHead, Prompter
from foveate.vision.regions.roi import RoiPooler

WEIGHTS, CONFIG = "prompter.safetensors", "prompter.json"
KIND = "foveate-regions"


@dataclass(frozen=True)
class Regions:
    """The region module of an export: `prompter` and `box_head`, or `roi`; `config` is prompter.json."""

    config: dict[str, Any]
    prompter: Prompter | None = None
    box_head: BoxHead | None = None
    roi: RoiPooler | None = None


def write_regions(model: LocalizingModel, folder: Path) -> list[str]:
    """Write both files; return their names, none for a model without a region module."""
    recipe = model.recipe
    if recipe.regions.method == "none":
        return []
    parts = {"prompter": model.prompter, "box_head": model.box_head, "roi": model.roi}
    # Contiguous, because safetensors rejects all other tensors.
    state = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, part in parts.items()
        if part is not None
        for key, value in part.state_dict().items()
    }
    write_bytes_atomically(folder / WEIGHTS, save(state))
    config = {
        "kind": KIND,
        "format": 1,
        "method": recipe.regions.method,
        "width": model.image_encoder.width,
        "embed_dim": recipe.embed_dim,
        "grid": list(model.image_encoder.grid),
        "prompter": recipe.regions.prompter.model_dump(mode="json") if model.prompter is not None else None,
        "region_logit_scale": float(model.region_logit_scale()),
        "region_logit_bias": float(model.region_logit_bias()) if recipe.regions.loss == "sigmoid" else None,
        "locate_rule": model.locate_rule,
        "preprocess": model.image_encoder.preprocess.to_dict(),
    }
    write_json_atomically(folder / CONFIG, config)
    return [WEIGHTS, CONFIG]


def read_regions(folder: str | Path) -> Regions:
    """Load the region module of an exported folder, strictly, in evaluation mode and without gradient.

    Raises:
        UserError: when the files are missing, damaged or of another kind.

    Example:
        >>> folder, _, _ = export_model(model_folder, to="open_clip", out=new_folder)
        >>> read_regions(folder).config["method"]
        'prompter'
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("kind") != KIND or config.get("format") != 1:
        raise UserError(f"{folder / CONFIG}: expected kind '{KIND}' and format 1")
    sizes = {"width": config["width"], "embed_dim": config["embed_dim"]}
    parts: dict[str, nn.Module]
    if config["method"] == "prompter":
        parts = {"prompter": Prompter(**sizes, **config["prompter"]), "box_head": BoxHead(**sizes)}
    else:
        parts = {"roi": RoiPooler(**sizes)}
    try:
        state = load_file(folder / WEIGHTS)
        nn.ModuleDict(parts).load_state_dict(state)
    except FileNotFoundError as error:
        raise UserError(f"{folder / WEIGHTS}: no such file") from error
    # `load_state_dict` raises RuntimeError for missing, unexpected and wrongly shaped tensors.
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS}: damaged ({str(error).splitlines()[0]})") from error
    # As loaded models are: no dropout, no gradient.
    for part in parts.values():
        part.eval().requires_grad_(False)
    return Regions(config, **parts)  # type: ignore[arg-type]


def section(model: LocalizingModel, *, tokens: str) -> str:
    """Write the section of an export's README on these files; `tokens` are lines of Python that set `tokens_BLD`."""
    if model.recipe.regions.method == "none":
        return ""
    rows, columns = model.image_encoder.grid
    if model.prompter is not None:
        use = f"""prepared = regions.prompter.prepare(tokens_BLD, ({rows}, {columns}))
z_RE = regions.prompter.boxes(prepared, boxes_R4, image_R).embedding_RE  # compare with text embeddings"""
        more = """
Boxes of phrases, from text embeddings before normalization, one for each phrase:

```python
located_R4 = regions.box_head.locate(regions.prompter.phrases(prepared, texts_RE, image_R))
```
"""
    else:
        use = f"z_RE = regions.roi(tokens_BLD, ({rows}, {columns}), boxes_R4, image_R)"
        more = ""
    return f"""## Regions

This format has no place for the module that embeds boxes: it is in the files `{WEIGHTS}` and
`{CONFIG}`, and is used through Foveate:

```python
import torch
{tokens.strip()}
regions = read_regions("this folder")
boxes_R4 = torch.tensor([[0.1, 0.2, 0.5, 0.9]])  # corners in [0, 1] of the square input
image_R = torch.tensor([0])  # which image each box belongs to
{use}
```
{more}"""
