"""Encoders `small`: `bridge` joined with a CLOC that was trained on drawings, over one pass of the same network.

`bridge` knows photographs by the classes of ImageNet and COCO, a CLOC that learned from emoji, clip art and scenes
knows drawings. Each image has a share w that says how much it looks like a photograph, and its vector is
[sqrt(w) bridge ; sqrt(1 - w) trained ; level]; a text's is [a bridge ; b trained ; 16]. So one dot product is the sum
of both scores, a and b bring them to one scale over random texts, and `level` subtracts what random texts score on
average. docs/methods/small.md has what was tried and measured; tools/build_small.py trains and joins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import UserError
from foveate.vision import detectors
from foveate.vision.bridge import IMAGES_AT_ONCE, MAP, VIEW, BridgeEncoder
from foveate.vision.encoder import BoxProposals, ImageEncoder, ImageFeatures
from foveate.vision.lite0 import Lite0Encoder, pack_maps
from foveate.vision.minilm import MiniLMEncoder
from foveate.vision.prompter import BoxHead, Prompter, sorted_boxes
from foveate.vision.regions.roi import roi_pool

SENTENCE_WIDTH = 384
_EXTRA = SENTENCE_WIDTH + 1  # numbers of a joined vector besides the trained part's: bridge's, and the level
# The last number of a text's vector. A large one keeps the level in an image's vector small, whose length then hardly
# differs between images.
LEVEL = 16.0
# In an image with a smaller share of bridge its floors do not hold: so are 5 % of the composites of one half of
# benchmarks/composites.py, and three quarters of generated scenes.
FLOOR_SHARE = 0.38
# a: weight of a drawing's z of the Prompter in the score of a proposal; chosen on one half of composites and scenes.
PROMPTER_WEIGHT = 0.1


class SmallEncoder(ImageEncoder):
    """`BridgeEncoder`, a trained `Lite0Encoder` with CLOC's Prompter and box head, and the weight of each.

    Args:
        embed_dim: E = 384 + 1 + the width of the trained joint space.
        width: D of the trained tokens.
        image_size: side of the input in pixels. precision: of Lite0; see `BridgeEncoder`.
    """

    has_box_head = True
    # Weights and bias of the linear classifier of photographs against drawings, whose sigmoid is the share.
    gate_D: Tensor
    gate_bias: Tensor
    # Mean and standard deviation of the cosines with random texts, of bridge and of the trained part.
    bridge_level_2: Tensor
    trained_level_2: Tensor

    def __init__(
        self, *, embed_dim: int = 577, width: int = 192, image_size: int = 672, precision: str = "auto"
    ) -> None:
        if embed_dim <= _EXTRA:
            raise UserError(f"embed_dim of 'small': too small (got {embed_dim}); expected more than {_EXTRA}")
        bridge = BridgeEncoder(embed_dim=SENTENCE_WIDTH, image_size=image_size, precision=precision)
        trained_dim = embed_dim - _EXTRA
        super().__init__(
            # The tokens of both parts, and the image's share.
            width=bridge.width + width + 1,
            embed_dim=embed_dim,
            grid=bridge.grid,
            preprocess=bridge.preprocess,
        )
        self.bridge = bridge
        self.trained = Lite0Encoder(
            width=width, embed_dim=trained_dim, image_size=VIEW, geometry="stretch", precision=precision
        )
        # One token of each part lies at each location.
        assert self.trained.grid == self.grid == (MAP // 32, MAP // 32)
        self.prompter = Prompter(width=width, embed_dim=trained_dim, pool="prompt", text_prompt_normalized=True)
        self.box_head = BoxHead(width=width, embed_dim=trained_dim)
        self._sizes = (bridge.feature_shape[0], self.trained.feature_shape[0])
        self.feature_shape = (sum(self._sizes),)
        self.feature_dtype = torch.float16
        self.register_buffer("gate_D", torch.zeros(bridge.width))
        self.register_buffer("gate_bias", torch.zeros(()))
        self.register_buffer("bridge_level_2", torch.tensor([0.0, 1.0]))
        self.register_buffer("trained_level_2", torch.tensor([0.0, 1.0]))

    def fingerprint(self) -> str:
        """Name the networks, input size and precision of cached features."""
        return f"small-{self.bridge.fingerprint()}-{self.trained.fingerprint()}"

    @torch.no_grad()
    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Compute packed features [B, F] of both parts in float16 of pixels (uint8, or normalized to [-1, 1])."""
        if not len(pixels_B3HW):
            return pixels_B3HW.new_zeros((0, *self.feature_shape), dtype=torch.float16)
        packed = []
        for block in pixels_B3HW.split(IMAGES_AT_ONCE):
            of_bridge, (fine, coarse) = self.bridge.read(block)
            packed.append(torch.cat([of_bridge, pack_maps(fine, coarse)], dim=1))
        return torch.cat(packed)

    def forward(self, features: Tensor) -> ImageFeatures:
        """Embed packed features [B, F], or pixels [B, 3, H, W], for which the frozen part runs first."""
        if features.dim() == 4:
            features = self.frozen_features(features)
        of_bridge, of_trained = features.split(self._sizes, dim=1)
        bridge, trained = self.bridge(of_bridge), self.trained(of_trained)
        # Behind the map lies the view of the whole image, in front of the detector's scores.
        view_BD = of_bridge[:, -(self.bridge.width + detectors.CLASSES) : -detectors.CLASSES].float()
        share_B = self.weigh(view_BD)
        share_BL1 = share_B[:, None, None].expand(-1, trained.tokens.shape[1], 1)
        tokens_BLD = torch.cat([bridge.tokens, trained.tokens.float(), share_BL1], dim=-1)
        return ImageFeatures(tokens_BLD, self.grid, self.join(bridge.pooled, trained.pooled, share_B))

    def weigh(self, view_BD: Tensor) -> Tensor:
        """Return the share [B] of bridge: near 0 for what looks like a drawing, near 1 for a photograph.

        Args:
            view_BD: the classifier's pooled features.
        """
        return (view_BD @ self.gate_D + self.gate_bias).sigmoid()

    def join(self, bridge_RE: Tensor, trained_RE: Tensor, share_R: Tensor) -> Tensor:
        """Join the vectors of both parts, of any length, to [R, E]."""
        of_bridge, of_trained = share_R[:, None].sqrt(), (1 - share_R[:, None]).sqrt()
        # What a random text scores is brought to 0, whatever the share.
        levels = [level[0] / level[1] for level in (self.bridge_level_2, self.trained_level_2)]
        level_R1 = of_bridge * levels[0] + of_trained * levels[1]
        parts = (of_bridge * F.normalize(bridge_RE, dim=-1), of_trained * F.normalize(trained_RE.float(), dim=-1))
        return torch.cat([*parts, -level_R1 / LEVEL], dim=-1)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split tokens, or their means, into those of bridge, those of the trained part, and the image's share."""
        of_bridge, of_trained, share = tokens.split((self.bridge.width, self.trained.width, 1), dim=-1)
        return of_bridge, of_trained, share

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Embed pooled tokens [R, D], of a box for example, as [R, E]."""
        of_bridge, of_trained, share_R1 = self.split(pooled_RD)
        return self.join(self.bridge.project(of_bridge), self.trained.project(of_trained), share_R1[:, 0])

    def embed_boxes(self, features: ImageFeatures, boxes_R4: Tensor, image_index_R: Tensor) -> Tensor:
        """Embed boxes by the map under them (bridge) and by the Prompter (trained)."""
        of_bridge, of_trained, share = self.split(features.tokens)
        pooled_RD = roi_pool(of_bridge.float(), self.grid, boxes_R4, image_index_R)
        prepared = self.prompter.prepare(of_trained, self.grid)
        prompted_RE = self.prompter.boxes(prepared, boxes_R4, image_index_R).embedding_RE
        return self.join(self.bridge.project(pooled_RD), prompted_RE, share[image_index_R, 0, 0])

    def ground(self, features: ImageFeatures, texts_RE: Tensor, image_index_R: Tensor) -> Tensor:
        """Return the box [R, 4] that the trained box head gives each phrase."""
        prepared = self.prompter.prepare(self.split(features.tokens)[1], self.grid)
        trained_RE = texts_RE[:, SENTENCE_WIDTH:-1].float()
        return sorted_boxes(self.box_head(self.prompter.phrases(prepared, trained_RE, image_index_R)))

    @torch.inference_mode()
    def propose(self, pixels_3HW: Tensor, tokens_LD: Tensor) -> BoxProposals:
        """Propose bridge's boxes; what it scores is joined with the Prompter's z, the more an image is a drawing."""
        of_bridge, of_trained, share_L1 = self.split(tokens_LD)
        share = share_L1[0, 0]
        proposals = self.bridge.propose(pixels_3HW, of_bridge)
        owner_K = torch.zeros(len(proposals.boxes_K4), dtype=torch.int64, device=tokens_LD.device)
        prepared = self.prompter.prepare(of_trained[None], self.grid)
        prompted_KE = self.prompter.boxes(prepared, proposals.boxes_K4, owner_K).embedding_RE
        mean, std = self.trained_level_2
        weight = PROMPTER_WEIGHT * (1 - share).sqrt() / self.bridge_level_2[1]
        own_KE, rest_KE = proposals.vectors_KE, F.normalize(prompted_KE.float(), dim=-1)
        # The mean of random texts is taken off by the last number, as in `join`.
        level_K1 = (-mean / std / LEVEL).expand(len(own_KE), 1)
        vectors_KE = torch.cat([own_KE, weight * rest_KE, weight * level_K1], dim=1)
        # A photograph's floors were measured on bridge's scores alone.
        judged_KE = F.pad(own_KE, (0, self.embed_dim - SENTENCE_WIDTH))
        has_floors = bool(share >= FLOOR_SHARE)
        scale = self._text_scale()
        return BoxProposals(
            proposals.boxes_K4,
            vectors_KE * scale,
            proposals.bias_K,
            judged_KE * scale if has_floors else None,
            has_floors,
        )

    @torch.inference_mode()
    def measure_floors(self, texts_TE: Tensor, of: str) -> Tensor:
        """Return the score [T] that the best of some boxes or images must exceed to show a phrase: bridge's floor."""
        floors_T = self.bridge.measure_floors(texts_TE[:, :SENTENCE_WIDTH], of)
        if of == "proposals":
            return floors_T
        # The same floor in the units of a photograph's joined cosine.
        mean, std = self.bridge_level_2
        length = (1 + (mean / std / LEVEL).square()).sqrt()
        return (floors_T - mean) / (self._text_scale() * length)

    def _text_scale(self) -> Tensor:
        """Return the length of a text's vector over that of its part for bridge."""
        bridge, trained = self.bridge_level_2[1], self.trained_level_2[1]
        return (1 + (bridge / trained).square() + (LEVEL * bridge).square()).sqrt()


class SmallTextEncoder(MiniLMEncoder):
    """A sentence vector for `bridge`, its trained projection, and a constant: see the module.

    Args:
        embed_dim: E, as that of `SmallEncoder`. precision: of MiniLM.
    """

    scale_2: Tensor

    def __init__(self, *, embed_dim: int = 577, precision: str = "float32") -> None:
        super().__init__(embed_dim=embed_dim - _EXTRA, precision=precision, sentence_width=SENTENCE_WIDTH)
        self.embed_dim = embed_dim
        # One over the standard deviations of the cosines with random texts.
        self.register_buffer("scale_2", torch.ones(2))

    def forward(self, features: Tensor) -> Tensor:
        """Return joint embeddings [B, E] of sentence vectors [B, 384], not normalized."""
        bridge, trained = self.scale_2
        parts = (bridge * F.normalize(features, dim=-1), trained * F.normalize(super().forward(features), dim=-1))
        return torch.cat([*parts, parts[0].new_full((len(features), 1), LEVEL)], dim=-1)


IMAGE_ENCODER = SmallEncoder
TEXT_ENCODER = SmallTextEncoder
