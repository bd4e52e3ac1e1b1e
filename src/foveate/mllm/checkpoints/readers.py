"""Read models from elsewhere as the parts of a model of ours: LLaVA, LLaVA-NeXT, Ferret and Ferret-UI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.core.hub import Checkpoint, check_loaded, fetch, loading
from foveate.core.model_folder import read_tensors
from foveate.core.recipes import validate
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.referring import RegionPrompts, place_points
from foveate.multimodal.settings import MultimodalSettings
from foveate.records.geometry import View
from foveate.records.shapes import Shape
from foveate.vision.anyres_map import order_tokens
from foveate.vision.connectors import build_connector
from foveate.vision.hf.processors import processor_settings
from foveate.vision.hf.towers import KIND_OF_TYPE
from foveate.vision.hidden_layer import build_tower
from foveate.vision.regions import build_region_encoder
from foveate.vision.tiling import preset_options

MODEL_TYPES = ("llava", "llava_next")
IMAGE_ID = -200
"""Stands once in a prompt for the tokens of its image, as in LLaVA's code."""
REGION_TOKEN = "<region_fea>"
_PROJECTORS = {
    "linear": ("linear", {"weight": "linear.weight", "bias": "linear.bias"}),
    "mlp2x_gelu": (
        "mlp",
        {f"{number}.{kind}": f"linear_{1 + number // 2}.{kind}" for number in (0, 2) for kind in ("weight", "bias")},
    ),
}
_PARTS = ("mm_projector", "region_geo_sampler", "region_fea_adapter", "vision_tower", "image_newline")
_DECODERS = {"llama": "LlamaForCausalLM", "gemma": "GemmaForCausalLM"}


@dataclass(frozen=True)
class ImportedParts:
    """Parts of a model from elsewhere.

    Attributes:
        settings: of the model, but for its language model.
        decoder: a causal language model of transformers.
        tower, connector, regions: weights under our names, tower and connector without prefix.
    """

    settings: dict[str, Any]
    decoder: Any
    tower: Mapping[str, Tensor]
    connector: Mapping[str, Tensor]
    regions: Mapping[str, Tensor] = field(default_factory=dict)


def load_part(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the weights of a part; raise UserError for the first that is missing, surplus or of another shape."""
    # Compared here, because the error of `load_state_dict` lists all names of a part without naming its file.
    expected = module.state_dict()
    for name in sorted({*expected, *tensors}):
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape:
            got = tuple(tensors[name].shape) if name in tensors else "none"
            shape = tuple(expected[name].shape) if name in expected else "no such tensor"
            raise UserError(f"{where}.{name}: does not fit its config (got {got}); expected {shape}")
    module.load_state_dict(dict(tensors))


def read_llava(checkpoint: Checkpoint) -> ImportedParts:
    """Read a folder of LLaVA or LLaVA-NeXT in the format of transformers.

    LLaVA was trained on images padded to a square, but its processor in transformers crops the center; here they are
    padded. LLaVA-NeXT's vector behind each row of its merged tiles, and its removal of padding, have no counterpart:
    the tokens of the tiles, padding included, follow row by row.

    Raises:
        UserError: it has parts that no model of ours has.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    checkpoint.weights()  # refuses pickles, before transformers looks for weights
    folder = str(checkpoint.folder)
    with loading(checkpoint.name):
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vision, layer = config.vision_config, config.vision_feature_layer
    kind = KIND_OF_TYPE.get(vision.model_type)
    strategy = {"clip": "default", "siglip": "full"}.get(str(kind))
    for name, value, expected in (
        ("vision_config.model_type", kind if strategy else vision.model_type, kind if strategy else "clip, siglip"),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, strategy),
        ("vision_feature_layer", layer, layer if isinstance(layer, int) and layer < 0 else "a layer from the end: -2"),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
    ):
        if value != expected:
            raise UserError(f"{checkpoint.name}: field {name}: not supported (got {value}); expected {expected}")
    with loading(checkpoint.name):
        theirs, report = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype="auto", trust_remote_code=False, output_loading_info=True,
            # `check_loaded` names the tensor, transformers' error does not.
            ignore_mismatched_sizes=True,
        )  # fmt: skip
        check_loaded(report, name=checkpoint.name)
    processor = processor_settings(checkpoint)
    next_ = config.model_type == "llava_next"
    # LLaVA pads with the processor's mean, truncated to whole levels; LLaVA-NeXT's "stretch" leaves nothing to fill.
    fill = [0, 0, 0] if next_ else [int(255 * value) for value in processor["mean"]]
    settings: dict[str, Any] = {
        "tower": {
            "kind": kind,
            "config": json.loads(vision.to_json_string(use_diff=False)),
            "preprocess": {**processor, "fill": fill, "geometry": "stretch" if next_ else "letterbox"},
            "layer": layer,
            "projection": "new",
            "embed_dim": 1,
        },
        "connector": {"kind": "mlp", "bias": bool(config.multimodal_projector_bias)},
        "visual_positions": False,
    }
    if kind == "siglip":
        del settings["tower"]["projection"], settings["tower"]["embed_dim"]
    side = int(vision.image_size)
    if next_:
        grids = tuple(f"{height // side}x{width // side}" for height, width in config.image_grid_pinpoints)
        settings["assembly"] = {
            "tiling": preset_options("llava-next", tile=side, grids=grids).model_dump(mode="json"),
            "indicator": "none",
            "tokens_per_view": (side // vision.patch_size) ** 2,
            "token_order": "rows",
            "max_split_images": 1,
        }
    return ImportedParts(
        settings,
        decoder=_take_decoder(theirs, config.text_config),
        tower=dict(theirs.model.vision_tower.state_dict()),
        connector=dict(theirs.model.multi_modal_projector.state_dict()),
    )


def _take_decoder(theirs: Any, config: Any) -> Any:
    """Return the language model without tower and connector, on the same tensors."""
    from transformers import AutoModelForCausalLM

    state = {f"model.{name}": value for name, value in theirs.model.language_model.state_dict().items()}
    # Built without memory and filled with the very tensors, so that gigabytes of weights are not held twice.
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config, dtype=theirs.dtype)
    decoder.load_state_dict({**state, "lm_head.weight": theirs.lm_head.weight}, assign=True)
    return decoder


@dataclass(frozen=True)
class FerretCheckpoint:
    """A released model.

    Attributes:
        model: tower, projector, decoder and region encoder, in evaluation mode.
        unpad: leave out padding of the merged tiles; newline_E then stands behind each of their rows.
    """

    model: MultimodalModel
    newline_E: Tensor | None = None
    unpad: bool = False

    @torch.no_grad()
    def embed(
        self, pixels_V3HW: Tensor, ids: Sequence[int], *, size: tuple[int, int], regions: Sequence[Shape] = ()
    ) -> Tensor:
        """Embed a prompt about one image [L, E].

        Args:
            pixels_V3HW: views of `MultimodalModel.plan(size)`, the overview first.
            ids: of the prompt, with `IMAGE_ID` once and the region token once for each region.
            size: height and width of the image in pixels. regions: in its pixels.

        Raises:
            UserError: there are more or fewer places than images and regions.
        """
        model, before = self.model, list(ids).index(IMAGE_ID) if IMAGE_ID in ids else 0
        for name, id, count in (("images", IMAGE_ID, 1), ("regions", model.region_id, len(regions))):
            if list(ids).count(id) != count:
                raise UserError(f"prompt: token {id} stands {list(ids).count(id)} times (got {count} {name})")
        visual = model.see(pixels_V3HW)
        placement = View().fit(size[1], size[0], model.tower.preprocess.side, stretch=True)
        assert model.region_reader is not None
        points = [place_points(shape, placement, model.region_reader.encoder.num_points) for shape in regions]
        # The sampler reads points; boxes are only their bounds.
        boxes = [(0, [*each.points_N2.min(axis=0), *each.points_N2.max(axis=0)]) for each in points]
        text_ids = torch.tensor([id for id in ids if id != IMAGE_ID], device=pixels_V3HW.device)
        views_1K = torch.arange(len(pixels_V3HW), device=pixels_V3HW.device)[None]
        row_R = torch.zeros(len(points), dtype=torch.long, device=pixels_V3HW.device)
        text_TE = model.language_model.get_input_embeddings()(text_ids)
        if points:
            prompts = RegionPrompts.create(boxes, points).to(pixels_V3HW.device)
            # views_1K * 0: all views are of image 0, and all regions of row 0.
            vectors_RE = model.region_reader.read_prompts(visual.tower_VLD, views_1K, views_1K * 0, row_R, prompts)
            # A region's vector replaces the embedding of its token, as in the official code; it is not added to it.
            text_TE[text_ids == model.region_id] = vectors_RE.to(text_TE.dtype)
        image_TE = visual.tokens_VTE[0]
        if model.settings.assembly is not None:
            plan = model.plan(size).images[0]
            image_TE = order_tokens(visual.tokens_VTE, plan, model.grid, newline_E=self.newline_E, unpad=self.unpad)
        return torch.cat([text_TE[:before], image_TE.to(text_TE.dtype), text_TE[before:]])


def read_ferret(
    source: str | Path, *, tower: str | Path | None = None, region_id: int | None = None
) -> FerretCheckpoint:
    """Read a folder or hub repository in the layout of apple/ml-ferret.

    Ferret has one view and a linear projector, Ferret-UI any resolution and an MLP. The folder holds a decoder with the
    names of transformers, `mm_projector`, `region_geo_sampler` or `region_fea_adapter`, and where it was saved with it
    `vision_tower`; the config names the folder or hub id of its tower. Released weights read features at the transposed
    location (docs/methods/ferret.md), and so does the model that is returned.

    Args:
        source: with safetensors; pickles are refused, and deltas are not added.
        tower: folder or hub id of the image tower; by default the one in the config.
        region_id: of `<region_fea>`; by default the tokenizer's.

    Raises:
        UserError: the folder is not of this layout, or its sampler has another width.
    """
    checkpoint = fetch(str(source), field="model")
    config = checkpoint.config()
    tensors: dict[str, Tensor] = {}
    for path in checkpoint.weights():
        tensors |= read_tensors(path)
    # Parts are removed from `tensors`: what is left must be the decoder's, or loading the decoder refuses it.
    parts = {part: _take(tensors, f"model.{part}") for part in _PARTS}
    if not parts["mm_projector"] or not (parts["region_geo_sampler"] or parts["region_fea_adapter"]):
        raise UserError(
            f"{source}: not a folder of ml-ferret: model.mm_projector or model.region_geo_sampler is missing"
        )
    projector, names = _PROJECTORS[
        choose(str(config.get("mm_projector_type", "linear")), _PROJECTORS, f"{source}: field mm_projector_type")
    ]
    merge = str(config.get("mm_patch_merge_type", "flat"))
    settings = _read_settings(config, projector, source, tower=tower or config.get("mm_vision_tower"))
    built_tower = build_tower(settings.tower)
    if parts["vision_tower"]:
        trunk: Any = built_tower
        # LLaVA's code wraps the tower, so CLIP's names are prefixed with `vision_tower.vision_model.`.
        stored = {name.split("vision_model.")[-1]: value for name, value in parts["vision_tower"].items()}
        load_part(trunk.encoder.trunk, stored, f"{source}: model.vision_tower")
    language_model = _build_decoder(config, tensors, source)
    out = int(language_model.config.hidden_size)
    connector = build_connector(projector, {}, in_width=built_tower.width, out_width=out, grid=built_tower.grid)
    renamed = {names.get(name, name): value for name, value in parts["mm_projector"].items()}
    load_part(connector, renamed, f"{source}: model.mm_projector")
    options = dict(settings.region_encoder or {})
    kind = options.pop("kind")
    encoder = build_region_encoder(kind, options, width=built_tower.width, out=out)
    weights = parts["region_geo_sampler"] or {f"adapter.{k}": v for k, v in parts["region_fea_adapter"].items()}
    load_part(
        encoder, weights, f"{source}: {'model.region_geo_sampler' if kind == 'sampler' else 'model.region_fea_adapter'}"
    )
    model = MultimodalModel(
        settings,
        tower=built_tower,
        connector=connector,
        language_model=language_model,
        region_id=_find_region_id(checkpoint) if region_id is None else region_id,
        region_encoder=encoder,
    )
    # The parts that our own models scale and shift stay as they were released.
    model.visual_gain.data.fill_(1)
    unpad = "unpad" in merge
    newline_E = parts["image_newline"].get("") if unpad else None
    return FerretCheckpoint(model.eval().requires_grad_(False), newline_E, unpad)


def read_ferret_parts(source: str | Path, *, tower: str | Path | None = None) -> ImportedParts:
    """Read a folder of apple/ml-ferret as the parts of a model of ours; see `read_ferret`.

    Raises:
        UserError: see `read_ferret`; or it has a vector behind the rows of its tiles, which no model of ours has.
    """
    ferret = read_ferret(source, tower=tower)
    if ferret.unpad:
        raise UserError(
            f"{source}: field mm_patch_merge_type: rows end with a vector and padding is left out (got spatial_unpad); "
            "expected flat or spatial"
        )
    model, built_tower = ferret.model, cast(Any, ferret.model.tower)
    assert model.region_reader is not None
    settings = model.settings.model_dump(mode="json", exclude={"language"})
    # Without the folder or hub id of the tower, whose weights are in the model folder.
    settings["tower"] |= {**built_tower.architecture(), "source": None, "revision": None}
    return ImportedParts(
        settings,
        decoder=model.language_model,
        tower=built_tower.encoder.trunk.state_dict(),
        connector=model.connector.state_dict(),
        regions=model.region_reader.encoder.state_dict(),
    )


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors of a part out; names lose the prefix."""
    names = [name for name in tensors if name == prefix or name.startswith(f"{prefix}.")]
    # Releases are in 16 bits; our parts are built in float32, and loading is strict.
    return {name[len(prefix) + 1 :]: tensors.pop(name).float() for name in names}


def _read_settings(
    config: Mapping[str, Any], projector: str, source: str | Path, *, tower: str | Path | None
) -> MultimodalSettings:
    if not tower:
        raise UserError(f"{source}: field mm_vision_tower: missing; set tower: folder or hub id of its image tower")
    content: dict[str, Any] = {
        "tower": {
            "kind": "clip", "source": str(tower), "layer": config.get("mm_vision_select_layer", -2),
            "geometry": "stretch", "projection": "new", "embed_dim": 1,
        },
        "connector": {"kind": projector},
        "language": {"source": str(source), "tuning": "frozen"},
        "regions": "hybrid",
        "region_encoder": {"kind": "mean", "official_xy_swap": True},
        "region_norm": False,
        "visual_positions": False,
        "max_images": 1,
    }  # fmt: skip
    if config.get("region_geo_sampler"):
        pool = config.get("sampler_pooler_mode", "max")
        content["region_encoder"] = {"kind": "sampler", "pool": pool, "official_xy_swap": True}
    if str(config.get("mm_patch_merge_type", "flat")).startswith("spatial"):
        side = build_tower(content["tower"]).preprocess.side
        grid = build_tower(content["tower"]).grid
        # ml-ferret lists the width before the height, LLaVA-NeXT of transformers the other way round.
        pairs = _read_pinpoints(config.get("image_grid_pinpoints", ()), side, source)
        content["assembly"] = {
            "tiling": preset_options(
                "ferret-v2", tile=side, grids=tuple((height // side, width // side) for width, height in pairs)
            ).model_dump(),
            "indicator": "none",
            "tokens_per_view": grid[0] * grid[1],
            "token_order": "rows",
            "max_split_images": 1,
        }
    return validate(MultimodalSettings, content, where=f"{source}: config.json")


def _read_pinpoints(value: object, side: int, source: str | Path) -> list[tuple[int, int]]:
    """Read (width, height) of the canvases, a list or, as in released configs, the text of one."""
    try:
        # The text has the parentheses of Python's tuples, which JSON does not know.
        pairs = json.loads(value.replace("(", "[").replace(")", "]")) if isinstance(value, str) else value
        sizes = [(int(width), int(height)) for width, height in pairs]  # type: ignore[union-attr]
        if sizes and all(size >= side and size % side == 0 for pair in sizes for size in pair):
            return sizes
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"{source}: field image_grid_pinpoints: not pairs of multiples of {side} pixels (got {str(value)[:80]}); "
        f"expected such as [[{side}, {2 * side}], [{2 * side}, {side}]]"
    )


def _build_decoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str | Path) -> Any:
    import transformers

    names = " ".join(config.get("architectures") or [str(config.get("model_type"))]).lower()
    family = next((family for family in _DECODERS if family in names), None)
    if family is None:
        raise UserError(
            f"{source}: field architectures: no decoder that is read (got {names}); expected llama or gemma"
        )
    # Released configs have the fields of transformers 4, which version 5 reads and stores as rope_parameters.
    known = {*transformers.AutoConfig.for_model(family).to_dict(), "rope_theta", "rope_scaling"}
    fields = {name: value for name, value in config.items() if name in known and name not in ("model_type", "dtype")}
    with loading(str(source)):
        decoder = getattr(transformers, _DECODERS[family])(transformers.AutoConfig.for_model(family, **fields))
    # Older checkpoints store the rotary frequencies, which transformers computes from the config.
    stored = {name: value.float() for name, value in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if decoder.config.tie_word_embeddings:
        if "model.embed_tokens.weight" not in stored:
            raise UserError(f"{source}: tensor model.embed_tokens.weight: missing")
        # `load_part` expects every tensor, but a tied output layer is not stored.
        stored.setdefault("lm_head.weight", stored["model.embed_tokens.weight"])
    load_part(decoder, stored, str(source))
    return decoder


def _find_region_id(checkpoint: Checkpoint) -> int:
    from transformers import AutoTokenizer

    with loading(checkpoint.name):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    if REGION_TOKEN not in tokenizer.get_vocab():
        raise UserError(f"{checkpoint.name}: its tokenizer has no {REGION_TOKEN}; pass region_id")
    return int(tokenizer.convert_tokens_to_ids(REGION_TOKEN))
