"""Tiny random networks of the libraries that people have, by name: what builds each, and the side of its images."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from adapt.towers import shaken
from foveate.vision.registry import seeded

CLASSES = 4


def _transformers(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return build


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return build


def _timm_class(
    architecture: str, module: str, kind: str, build: Callable[[Any], dict[str, Any]]
) -> Callable[[], nn.Module]:
    """Build a class whose architectures take no other sizes; `build` returns its arguments, given timm's module."""

    def construct() -> nn.Module:
        import timm

        source: Any = importlib.import_module(f"timm.models.{module}")
        model = getattr(source, kind)(num_classes=CLASSES, **build(source))
        # Which module is the classifier.
        model.pretrained_cfg = timm.get_pretrained_cfg(architecture).to_dict()  # type: ignore[union-attr]
        return model

    return construct


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(num_classes=CLASSES, **options)

    return build


def _torchvision_resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def _torchvision_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=CLASSES)


def _open_clip_resnet() -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=2, image_size=32, width=8)


class Attentive(nn.Module):
    """A network of one's own with `nn.MultiheadAttention`, batch first or not."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, norm_first=True, dropout=0.0)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.stem(pixels).flatten(2).transpose(1, 2)
        if self.batch_first:
            return self.out(self.norm(self.body(tokens)).mean(dim=1))
        return self.out(self.norm(self.body(tokens.transpose(0, 1))).mean(dim=0))


OWN_MODULES = {
    "attention": "body.layers.*.self_attn",
    "norm1": "body.layers.*.norm1",
    "norm2": "body.layers.*.norm2",
    "fc1": "body.layers.*.linear1",
    "fc2": "body.layers.*.linear2",
    "mlp_end": "body.layers.*.dropout2",
    "head": "out",
}

_VIT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 3,
}  # fmt: skip
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_WINDOWS = {"img_size": 32, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2), "window_size": 4}

# Those that the page names, each with the side of its images.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "transformers-vit": (_transformers("ViTModel", "ViTConfig", **_VIT), 32),
    "transformers-vit-classifier": (_transformers("ViTForImageClassification", "ViTConfig", **_VIT), 32),
    "transformers-deit": (_transformers("DeiTModel", "DeiTConfig", **_VIT), 32),
    "transformers-beit": (_transformers("BeitModel", "BeitConfig", **_VIT, use_relative_position_bias=True), 32),
    "transformers-data2vec": (
        _transformers("Data2VecVisionModel", "Data2VecVisionConfig", **_VIT, use_relative_position_bias=True),
        32,
    ),
    "transformers-ijepa": (_transformers("IJepaModel", "IJepaConfig", **_VIT), 32),
    "transformers-siglip": (_transformers("SiglipVisionModel", "SiglipVisionConfig", **_VIT), 32),
    "transformers-siglip-both": (
        _transformers("SiglipModel", "SiglipConfig", vision_config=_VIT, text_config={**_TEXT, "vocab_size": 50000}),
        32,
    ),
    "transformers-dinov2-classifier": (
        _transformers("Dinov2ForImageClassification", "Dinov2Config", **_VIT, mlp_ratio=2),
        32,
    ),
    "transformers-dinov3": (_transformers("DINOv3ViTModel", "DINOv3ViTConfig", **_VIT, num_register_tokens=2), 32),
    "transformers-swin": (_transformers("SwinModel", "SwinConfig", **_SWIN), 32),
    "transformers-swinv2": (_transformers("Swinv2Model", "Swinv2Config", **{**_SWIN, "window_size": 4}), 32),
    "transformers-convnext": (
        _transformers(
            "ConvNextForImageClassification", "ConvNextConfig", depths=[1, 1], hidden_sizes=[8, 16], num_stages=2
        ),
        32,
    ),
    "timm-vit": (_timm("vit_tiny_patch16_224", **_SMALL), 32),
    "timm-deit-distilled": (_timm("deit_tiny_distilled_patch16_224", **_SMALL), 32),
    "timm-beit": (_timm("beit_base_patch16_224", **_SMALL), 32),
    "timm-eva02": (_timm("eva02_tiny_patch14_224", **_SMALL), 32),
    "timm-eva02-base": (_timm("eva02_base_patch14_224", **_SMALL), 32),
    "timm-dinov3": (_timm("vit_small_patch16_dinov3", **_SMALL), 32),
    "timm-swin": (_timm("swin_tiny_patch4_window7_224", **_WINDOWS), 32),
    "timm-swinv2": (_timm("swinv2_tiny_window8_256", **_WINDOWS), 32),
    "timm-sam": (
        _timm("samvit_base_patch16", **_SMALL, window_size=3, global_attn_indexes=(1,), neck_chans=16),
        32,
    ),
    "timm-hiera": (_timm("hiera_tiny_224", img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1)), 64),
    "torchvision-vit": (
        _torchvision(
            "VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
        ),
        32,
    ),
    "torchvision-swin": (
        _torchvision(
            "SwinTransformer", patch_size=[4, 4], embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4]
        ),
        32,
    ),
    "torchvision-resnet": (_torchvision_resnet, 32),
    "torchvision-convnext": (_torchvision_convnext, 32),
    "open_clip-resnet": (_open_clip_resnet, 32),
    "own": (Attentive, 32),
    "own-sequence-first": (lambda: Attentive(batch_first=False), 32),
}


def _find(name: str) -> tuple[Callable[[], nn.Module], int]:
    return NETWORKS[name] if name in NETWORKS else ARCHITECTURES[name]


def network(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """One of `NETWORKS`, random and in evaluation mode, its norms and biases off their ones and zeros."""
    return deepcopy(_build(name)).to(dtype)


@cache
def _build(name: str) -> nn.Module:
    with seeded(7):
        return shaken(_find(name)[0]())


def modules(name: str) -> dict[str, str] | None:
    """The names that a network needs to be given."""
    return OWN_MODULES if name.startswith("own") else None


def images(name: str, dtype: torch.dtype = torch.float32, *, batch: int = 2) -> Tensor:
    """Images of noise of its size."""
    side = _find(name)[1]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


# Architectures of timm, one of each kind, as small as their arguments allow; each with the side of its images.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    name: (_timm(name, **options), side)
    for name, side, options in (
        ("vit_tiny_patch16_224", 32, _SMALL),
        ("deit_tiny_distilled_patch16_224", 32, _SMALL),
        ("vit_tiny_r_s16_p8_224", 64, {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}),
        ("test_vit_relpos", 160, {}),
        ("beit_base_patch16_224", 32, _SMALL),
        ("eva02_tiny_patch14_224", 32, _SMALL),
        ("vit_small_patch16_dinov3", 32, _SMALL),
        ("naflexvit_base_patch16_gap", 32, {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}),
        ("samvit_base_patch16", 32, {**_SMALL, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 16}),
        ("hiera_tiny_224", 64, {"img_size": (64, 64), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}),
        ("swin_tiny_patch4_window7_224", 32, _WINDOWS),
        ("swinv2_tiny_window8_256", 32, _WINDOWS),
        ("swinv2_cr_tiny_224", 32, _WINDOWS),
        ("cait_xxs24_224", 32, _SMALL),
        ("coat_lite_tiny", 64, {"img_size": 64, "embed_dims": (16,) * 4, "serial_depths": (1,) * 4, "num_heads": 2,
                                "crpe_window": {3: 2}, "mlp_ratios": (2,) * 4}),
        ("convit_tiny", 32, {**_SMALL, "embed_dim": 16, "local_up_to_layer": 1}),
        ("crossvit_tiny_240", 32, {"embed_dim": (16, 32), "depth": ((1, 1, 0),), "num_heads": (2, 2),
                                   "mlp_ratio": (2, 2, 1)}),
        ("davit_tiny", 64, {"depths": (1,) * 4, "embed_dims": (8, 16, 16, 16), "num_heads": (2,) * 4,
                            "window_size": 4}),
        ("edgenext_xx_small", 32, {"depths": (1,) * 4, "dims": (8, 16, 16, 16), "heads": (2,) * 4}),
        ("efficientformer_l1", 224, {"depths": (1, 1, 1, 2), "embed_dims": (8, 8, 8, 16), "num_vit": 1}),
        ("levit_128s", 64, {"img_size": 64, "embed_dim": (16,) * 3, "key_dim": 8, "num_heads": (2,) * 3,
                            "depth": (1,) * 3}),
        ("test_maxvit", 160, {}),
        ("test_coatnet", 160, {}),
        ("mobilevit_xxs", 32, {}),
        ("pit_ti_224", 64, {"img_size": 64, "base_dims": (8,) * 3, "depth": (1,) * 3, "heads": (2,) * 3}),
        ("pvt_v2_b0", 32, {"depths": (1,) * 4, "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}),
        ("tiny_vit_5m_224", 32, {"embed_dims": (8, 16, 16, 16), "depths": (1,) * 4, "num_heads": (1, 2, 2, 2),
                                 "window_sizes": (7, 7, 14, 7)}),
        ("tnt_s_patch16_224", 32, {**{key: value for key, value in _SMALL.items() if key != "num_heads"},
                                   "inner_dim": 8, "num_heads_inner": 2, "num_heads_outer": 2}),
        ("twins_svt_small", 64, {"img_size": 64, "embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2),
                                 "depths": (1, 1, 1, 2), "wss": (2,) * 4}),
        ("visformer_tiny", 64, {"img_size": 64, "embed_dim": 32, "depth": (1,) * 3, "num_heads": 2}),
        ("xcit_nano_12_p16_224", 64, {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2,
                                      "cls_attn_layers": 1}),
        ("fastvit_t8", 32, {"layers": (1,) * 4, "embed_dims": (8, 8, 16, 16)}),
        ("convnext_atto", 32, {"depths": (1,) * 4, "dims": (8, 8, 16, 16)}),
        ("test_resnet", 32, {}),
        ("test_efficientnet", 32, {}),
        ("test_nfnet", 32, {}),
        ("test_mambaout", 32, {}),
    )
}  # fmt: skip
ARCHITECTURES |= {
    "nest_tiny": (_timm_class("nest_tiny", "nest", "Nest", lambda _: {
        "img_size": 64, "embed_dims": (8, 16, 16), "num_heads": (2,) * 3, "depths": (1,) * 3}), 64),
    "gcvit_xxtiny": (_timm_class("gcvit_xxtiny", "gcvit", "GlobalContextVit", lambda _: {
        "img_size": 64, "depths": (2,) * 4, "embed_dim": 16, "num_heads": (2,) * 4}), 64),
    "sam2_hiera_tiny": (_timm_class("sam2_hiera_tiny", "hieradet_sam2", "HieraDet", lambda _: {
        "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)}), 64),
    "mvitv2_tiny": (_timm_class("mvitv2_tiny", "mvitv2", "MultiScaleVit", lambda source: {
        "img_size": (64, 64), "cfg": source.MultiScaleVitCfg(depths=(1,) * 4, embed_dim=16)}), 64),
    "caformer_s18": (_timm_class("poolformer_s12", "metaformer", "MetaFormer", lambda source: {
        "depths": (1,) * 4, "dims": (8, 16, 32, 32), "use_mlp_head": False,
        "token_mixers": [source.SepConv] * 2 + [source.Attention] * 2,
        "norm_layers": [source.LayerNorm2dNoBias] * 2 + [source.LayerNormNoBias] * 2}), 64),
    "volo_d1_224": (_timm_class("volo_d1_224", "volo", "VOLO", lambda _: {
        "layers": [1] * 4, "img_size": 64, "embed_dims": [16, 32, 32, 32], "num_heads": [2] * 4,
        "stem_hidden_dim": 8}), 64),
    "nextvit_small": (_timm_class("nextvit_small", "nextvit", "NextViT", lambda _: {
        "in_chans": 3, "stem_chs": (8,) * 3, "depths": (1, 1, 5, 1)}), 64),
}  # fmt: skip
