"""Names of the modules of known networks: a table, read by `foveate.adapt.module_map`.

Keys are LIBRARY.CLASS. A row names the blocks by a pattern (`*` is one part of a name) and, within a block, the modules
by role; what a network of the class lacks is left out of its map. `a|b` takes the first that exists. A new family of
networks is a new row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Family:
    """Where one class of networks has what methods change.

    Attributes:
        modules: role -> name; see `foveate.adapt.module_map.ROLES`.
        tokens, norms: see `Backbone`.
        one_input: q, k and v read the same tensor.
        ordered: rows of a fused projection are all of q, then all of k, then all of v; not head by head.
        pooled: what of the outputs of transformers a classifier reads: "pooler" or "cls".
        positions: parameter of the position embedding that is added right behind the patch convolution, its axis of
            positions, and the first row of the patches.
        unused: parameters that only pre-training uses.
    """

    modules: Mapping[str, str]
    tokens: Literal["sequence", "rotary", "map"] = "map"
    norms: Literal["pre", "post", "other"] = "pre"
    one_input: bool = True
    ordered: bool = True
    pooled: Literal["pooler", "cls"] = "pooler"
    positions: tuple[str, int, int] | None = None
    unused: tuple[str, ...] = field(default=())


# timm names nearly all its transformers alike.
_TIMM = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "q": "attn.q_proj|attn.q",
    "k": "attn.k_proj|attn.k",
    "v": "attn.v_proj|attn.v",
    "qk": "attn.qk",
    "kv": "attn.kv",
    "proj": "attn.proj",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "attention": "attn",
    "mlp": "mlp",
    "attention_end": "drop_path1",
    "mlp_end": "drop_path2",
    "scale1": "ls1|gamma_1|gamma1",
    "scale2": "ls2|gamma_2|gamma2",
    "final_norm": "norm|fc_norm|head.norm",
    "patch": "patch_embed.proj",
}


def _timm(block: str, **other: str) -> dict[str, str]:
    """Return timm's names for blocks under a pattern; "" takes a role out."""
    return {role: name for role, name in {"block": block, **_TIMM, **other}.items() if name}


# One DropPath for both sublayers of a block: what is added passes it together with the sublayer.
_SHARED_DROP_PATH = {"attention_end": "attn", "mlp_end": "mlp", "scale1": "", "scale2": ""}

_TRANSFORMERS = {
    "norm1": "layernorm_before",
    "q": "attention.q_proj|attention.attention.query",
    "k": "attention.k_proj|attention.attention.key",
    "v": "attention.v_proj|attention.attention.value",
    "proj": "attention.o_proj|attention.output.dense",
    "norm2": "layernorm_after",
    "fc1": "mlp.fc1|intermediate.dense",
    "fc2": "mlp.fc2|output.dense",
    "attention": "attention",
    "mlp": "mlp|output",
    "final_norm": "layernorm",
    "patch": "embeddings.patch_embeddings.projection",
}
_DINO = {
    **_TRANSFORMERS,
    "norm1": "norm1",
    "norm2": "norm2",
    "attention_end": "layer_scale1",
    "mlp_end": "layer_scale2",
}
_SIGLIP = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "attention": "self_attn",
    "mlp": "mlp",
    "final_norm": "post_layernorm",
    "patch": "embeddings.patch_embedding",
}
# Towers whose sizes are read from their own attributes (`foveate.adapt.backbones`). CLIP has no module between sublayer
# and addition, so the sublayer itself is its end; in open_clip it is LayerScale, an identity where a tower has none.
CLIP_TOWER = {"block": "encoder.layers.*", **_SIGLIP}
OPEN_CLIP_TOWER = {
    "block": "transformer.resblocks.*",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "attention": "attn",
    "mlp": "mlp",
    "attention_end": "ls_1",
    "mlp_end": "ls_2",
}
_LAYERS, _ENCODER_LAYERS, _ENCODER_LAYER = "layers.*", "encoder.layers.*", "encoder.layer.*"
_VIT = {"block": f"{_LAYERS}|{_ENCODER_LAYER}", **_TRANSFORMERS}

# Classifiers read the class token itself, not what the pooler makes of it.
_UNUSED = ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")

_BEIT = Family({**_VIT, "final_norm": "pooler.layernorm|layernorm"}, tokens="rotary", unused=("embeddings.mask_token",))
_DINOV2 = Family(
    {"block": _ENCODER_LAYER, **_DINO},
    tokens="sequence",
    pooled="cls",
    positions=("embeddings.position_embeddings", 1, 1),
    unused=("embeddings.mask_token",),
)

FAMILIES: dict[str, Family] = {
    # timm
    "timm.Beit": Family(_timm("blocks.*"), tokens="rotary"),
    "timm.Cait": Family(
        _timm("blocks.*", **{**_SHARED_DROP_PATH, "final_norm": ""}),
    ),
    "timm.CoaT": Family(
        _timm(
            "serial_blocks*.*",
            qkv="factoratt_crpe.qkv",
            proj="factoratt_crpe.proj",
            attention="factoratt_crpe",
            attention_end="factoratt_crpe",
            mlp_end="mlp",
            final_norm="",
            patch="",
        )
    ),
    "timm.ConVit": Family(_timm("blocks.*", **_SHARED_DROP_PATH)),
    "timm.CrossVit": Family(_timm("blocks.*.blocks.*.*", final_norm="", patch="")),
    "timm.DaVit": Family(_timm("stages.*.blocks.*.*", patch="", final_norm=""), norms="other"),
    "timm.EdgeNeXt": Family(
        _timm(
            "stages.*.blocks.*",
            norm1="norm_xca",
            qkv="xca.qkv",
            proj="xca.proj",
            norm2="norm",
            attention="xca",
            attention_end="",
            mlp_end="",
            patch="",
            final_norm="",
        ),
        norms="other",
    ),
    # The rows of qkv are grouped by head; they are not all of q, then all of k, then all of v.
    "timm.EfficientFormer": Family(
        _timm("stages.*.blocks.*", qkv="token_mixer.qkv", proj="token_mixer.proj", attention="token_mixer", patch=""),
        ordered=False,
    ),
    "timm.Eva": Family(_timm("blocks.*", scale1="gamma_1", scale2="gamma_2"), tokens="rotary"),
    "timm.GlobalContextVit": Family(_timm("stages.*.blocks.*", patch="", final_norm="")),
    # Where the width grows, norm1 also feeds the projection of the shortcut.
    "timm.Hiera": Family(_timm("blocks.*", final_norm="head.norm"), norms="other"),
    "timm.HieraDet": Family(_timm("blocks.*", final_norm="head.norm"), norms="other"),
    # As in EfficientFormer, the rows of qkv are grouped by head (timm's `head_first`).
    "timm.MaxxVit": Family(
        _timm(
            "stages.*.blocks.*.attn_block|stages.*.blocks.*.attn_grid|stages.*.blocks.*",
            patch="",
            final_norm="",
        ),
        ordered=False,
    ),
    "timm.MetaFormer": Family(
        _timm(
            "stages.*.blocks.*",
            qkv="token_mixer.qkv",
            proj="token_mixer.proj",
            attention="token_mixer",
            patch="",
            final_norm="",
        ),
        norms="other",
    ),
    "timm.ByobNet": Family(_timm("stages.*.*.transformer.*", patch="", final_norm="")),
    # As in Hiera, but norm2 may feed the projection of a shortcut, too (`shortcut_proj_mlp`).
    "timm.MultiScaleVit": Family(_timm("stages.*.blocks.*"), norms="other"),
    "timm.NaFlexVit": Family(_timm("blocks.*", patch=""), tokens="rotary"),
    "timm.Nest": Family(_timm("levels.*.transformer_encoder.*")),
    "timm.NextViT": Family(
        _timm(
            "stages.*.blocks.*",
            q="e_mhsa.q",
            k="e_mhsa.k",
            v="e_mhsa.v",
            proj="e_mhsa.proj",
            attention="e_mhsa",
            attention_end="e_mhsa",
            # Its MLP is of convolutions on maps [B, C, H, W].
            mlp="",
            mlp_end="",
            patch="",
            final_norm="",
        ),
        norms="other",
        one_input=False,
    ),
    "timm.PoolingVisionTransformer": Family(_timm("transformers.*.blocks.*", patch="patch_embed.conv")),
    "timm.PyramidVisionTransformerV2": Family(
        _timm("stages.*.blocks.*", final_norm=""), norms="other", one_input=False
    ),
    "timm.SwinTransformer": Family(_timm("layers.*.blocks.*")),
    "timm.SwinTransformerV2": Family(_timm("layers.*.blocks.*"), norms="post"),
    "timm.SwinTransformerV2Cr": Family(_timm("stages.*.blocks.*", final_norm=""), norms="post"),
    "timm.TinyVit": Family(
        _timm("stages.*.blocks.*", norm1="attn.norm", norm2="mlp.norm", patch="", final_norm=""),
        norms="other",
        ordered=False,
    ),
    "timm.TNT": Family(
        _timm(
            "blocks.*",
            norm1="norm_out",
            qk="attn_out.qk",
            v="attn_out.v",
            proj="attn_out.proj",
            norm2="norm_mlp",
            attention="attn_out",
            attention_end="attn_out",
            mlp_end="mlp",
            patch="",
        )
    ),
    "timm.Twins": Family(_timm("blocks.*.*", patch=""), norms="other", one_input=False),
    "timm.VisionTransformer": Family(_timm("blocks.*"), tokens="rotary", norms="other"),
    "timm.VisionTransformerRelPos": Family(_timm("blocks.*"), tokens="rotary"),
    "timm.VisionTransformerSAM": Family(_timm("blocks.*", final_norm="")),
    "timm.VOLO": Family(_timm("network.*.*", patch=""), norms="other", one_input=False),
    "timm.Xcit": Family(_timm("blocks.*", patch=""), norms="other"),
    # transformers
    "transformers.BeitModel": _BEIT,
    "transformers.Data2VecVisionModel": _BEIT,
    "transformers.DeiTModel": Family(_VIT, tokens="sequence", pooled="cls", unused=_UNUSED),
    "transformers.Dinov2Model": _DINOV2,
    "transformers.Dinov2WithRegistersModel": _DINOV2,
    "transformers.DINOv3ViTModel": Family(
        {
            "block": "model.layer.*|layer.*",
            **_DINO,
            "fc1": "mlp.up_proj",
            "fc2": "mlp.down_proj",
            "final_norm": "norm",
            "patch": "embeddings.patch_embeddings",
        },
        tokens="rotary",
        unused=("embeddings.mask_token",),
    ),
    "transformers.IJepaModel": Family(_VIT, tokens="sequence", pooled="cls"),
    "transformers.SiglipVisionModel": Family(
        {"block": _ENCODER_LAYERS, **_SIGLIP},
        tokens="sequence",
        positions=("embeddings.position_embedding.weight", 0, 0),
    ),
    "transformers.SwinModel": Family({"block": "encoder.layers.*.blocks.*", **_TRANSFORMERS}),
    # Post-norm with the names of Swin v1: "layernorm_before" comes after the attention, so the sublayer ends there.
    "transformers.Swinv2Model": Family(
        {
            "block": "encoder.layers.*.blocks.*",
            **_TRANSFORMERS,
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "attention_end": "layernorm_before",
            "mlp_end": "layernorm_after",
        },
        norms="post",
    ),
    "transformers.ViTModel": Family(_VIT, tokens="sequence", pooled="cls", unused=_UNUSED),
    # torchvision
    "torchvision.SwinTransformer": Family(
        # Its attention reads the weights of qkv and proj directly, so that no hook on them would run.
        {
            "block": "features.*.*",
            "norm1": "norm1",
            "norm2": "norm2",
            "fc1": "mlp.0",
            "fc2": "mlp.3",
            "attention": "attn",
            "mlp": "mlp",
            "final_norm": "norm",
        },
    ),
    "torchvision.VisionTransformer": Family(
        {
            "block": _ENCODER_LAYERS,
            "norm1": "ln_1",
            "norm2": "ln_2",
            "fc1": "mlp.0|mlp.linear_1",
            "fc2": "mlp.3|mlp.linear_2",
            "attention": "self_attention",
            "mlp": "mlp",
            "final_norm": "encoder.ln",
            "patch": "conv_proj",
        },
        tokens="sequence",
        positions=("encoder.pos_embedding", 1, 1),
    ),
}
