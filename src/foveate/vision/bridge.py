"""Image encoder `bridge`: what an ImageNet classifier and a COCO detector know, as vectors of a sentence encoder.

The probabilities of an image's classes weigh the sentence vectors of the classes' names, so that an image and a text
are compared in the space of MiniLM, and nothing has to be trained (ConSE: Norouzi et al., arXiv 1312.5650). The same is
done at each location of the last map, which is linear behind the pooling (class activation maps: Zhou et al., arXiv
1512.04150), and for each box that NanoDet-g proposes (propose, crop, classify). What was tried and measured is in
docs/methods/bridge.md; the vectors of the names are made by tools/build_bridge.py.
"""

from __future__ import annotations

import copy
import threading
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.devices import PRECISIONS, fast_precision, precision_of
from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator
from foveate.vision import detectors, lite0
from foveate.vision.encoder import BoxProposals, ImageEncoder, ImageFeatures
from foveate.vision.preprocess import Preprocess
from foveate.vision.regions.roi import roi_pool

# All of these were chosen on half of the queries of two folders of images, see docs/methods/bridge.md.
VIEW, MAP = 224, 448  # sides in pixels: what the classifier was trained on, and for the map of locations
NUM_CLASSES = 10  # T: classes of an image that count, the most probable ones
DETECTOR_WEIGHT = 0.6  # of the squared score of a detected class
# Rows and columns of a window of the map, .57 of its sides, and where windows start; one more lies in the center.
_WINDOW, _STARTS, _MIDDLE = 8, (0, 6), 3
_GRID = MAP // 32
IMAGES_AT_ONCE = (
    2  # of a block: a map has four times the pixels of a view, and its first layers need most of the memory
)
_LOADING = threading.Lock()  # several threads may ask for the first features

MIN_DETECTED = 0.05  # a lower score of the detector is none

# Proposals: the detector's boxes at a low threshold, since many things are none of its classes. All of these were
# chosen on one half of benchmarks/composites.py.
PROPOSAL_THRESHOLD, PROPOSAL_OVERLAP, MAX_PROPOSALS = 0.1, 0.6, 30
CROP_CLASSES = 20  # T of a crop
# Weights of the similarity with the map under the box, with the box's class name, and of the detector's score, beside
# the similarity with the crop.
MAP_WEIGHT, NAME_WEIGHT, SCORE_WEIGHT = 0.5, 0.3, 0.2
# A phrase that is near to many classes scores more by chance. So its floor is `factor` times what it scores on average
# as the best of `size` random mixtures of classes, plus `margin`; chosen so that one in ten right boxes, and right
# first hits of a search, is refused.
# The best of all boxes of all images is high by chance: one of the grid must exceed .1 more than a whole image.
_FLOORS = {
    "proposals": (2.0, 15, -0.108),
    "image": (1.0, 300, 0.02),
    "region": (1.0, 300, 0.12),
}  # factor, size, margin
_DRAWS = 64
_SHARES = (1.0, 0.6, 0.4, 0.3)


class DetectedBoxes(NamedTuple):
    """Boxes of one image, best first: corners in [0, 1] of the input, score and number of the best class of each."""

    boxes_K4: Tensor
    score_K: Tensor
    class_K: Tensor


class BridgeEncoder(ImageEncoder):
    """Frozen EfficientNet-Lite0 with its classes, NanoDet-g with its own, and a sentence vector for each name.

    The networks are no submodules: they are loaded at first use, are not trained, saved or sharded, and their checksums
    are part of `fingerprint()`. An image is stretched to a square, whose parts are shown at several scales.

    Args:
        embed_dim: E, width of the sentence vectors.
        image_size: side of the input in pixels, of which crops are cut.
        precision: of Lite0: "auto" (bfloat16 where the hardware has it), "bfloat16" or "float32".
    """

    class_vectors_CE: Tensor
    detector_vectors_NE: Tensor

    def __init__(self, *, embed_dim: int = 384, image_size: int = 672, precision: str = "auto") -> None:
        if image_size < MAP:
            raise UserError(f"image_size of 'bridge': too small (got {image_size}); expected at least {MAP}")
        half = (0.5, 0.5, 0.5)  # pixels in [-1, 1], as Lite0 was trained on
        super().__init__(
            width=lite0.HEAD_CHANNELS,
            embed_dim=embed_dim,
            grid=(_GRID, _GRID),
            preprocess=Preprocess(image_size, half, half, interpolation="bicubic", geometry="stretch"),
        )
        self.precision = choose(precision, PRECISIONS, "precision of 'bridge'")
        # The map, the view of the whole image, and the score of each detected class.
        self.feature_shape = ((_GRID**2 + 1) * self.width + detectors.CLASSES,)
        self.feature_dtype = torch.float16
        self.register_buffer("class_vectors_CE", torch.zeros(lite0.CLASSES, embed_dim))
        self.register_buffer("detector_vectors_NE", torch.zeros(detectors.CLASSES, embed_dim))
        self._networks: list[tuple[lite0.Lite0, lite0.ClassHead, detectors.NanoDet]] = []  # hidden from nn.Module

    def fingerprint(self) -> str:
        """Name weights, input size and precision of cached features."""
        dtype = str(precision_of(self.precision, torch.device("cpu"))).removeprefix("torch.")
        return f"bridge-{lite0.WEIGHTS_SHA256[:8]}-{detectors.SHA256[:8]}-{self.preprocess.size_name}-{dtype}"

    def open_networks(self, device: torch.device) -> tuple[lite0.Lite0, lite0.ClassHead, detectors.NanoDet]:
        """Return the networks on a device, loaded at first use."""
        with _LOADING:
            if not self._networks or next(self._networks[0][0].parameters()).device != device:
                dtype = precision_of(self.precision, device)
                network = lite0.load_lite0().to(device=device, dtype=dtype)
                # The fused kernels belong to oneDNN, which refuses bfloat16 on processors with AVX2 alone.
                if device.type == "cpu" and dtype in (torch.float32, fast_precision(device)):
                    network = network.fuse()
                # A copy, because the loaded detector is shared by all that use it; laid out as Lite0 is, it is faster.
                detector = copy.deepcopy(detectors.load_nanodet()).to(device)
                for module in detector.modules():
                    if isinstance(module, nn.Conv2d):
                        module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
                self._networks[:] = [(network, lite0.load_class_head().to(device), detector)]
            return self._networks[0]

    def read_strides(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's maps at strides 16 and 32 of pixels in 0 to 255 (float)."""
        network = self.open_networks(pixels_B3HW.device)[0]
        dtype = next(network.parameters()).dtype
        parts = [
            network((block / 127.5 - 1).to(dtype=dtype, memory_format=torch.channels_last))
            for block in pixels_B3HW.split(lite0.split_size(pixels_B3HW, dtype))
        ]
        fine, coarse = zip(*parts, strict=True)
        return torch.cat(fine), torch.cat(coarse)

    def _maps(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the classifier's features [B, 1280, h, w] of pixels in 0 to 255 (float)."""
        head = self.open_networks(pixels_B3HW.device)[1]
        return head.features(self.read_strides(pixels_B3HW)[1].float())

    @torch.no_grad()
    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Compute packed features [B, F] in float16 of pixels (uint8, or normalized to [-1, 1])."""
        if not len(pixels_B3HW):
            return pixels_B3HW.new_zeros((0, *self.feature_shape), dtype=torch.float16)
        # In blocks, because an image has half a million pixels at each of three sizes.
        return torch.cat([self.read(block)[0] for block in pixels_B3HW.split(IMAGES_AT_ONCE)])

    @torch.no_grad()
    def read(self, pixels_B3HW: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the packed features [B, F] of a few images, and the maps of the whole image at strides 16 and 32.

        The maps are by-products of its view at 224 pixels, for a model that reads them, too.
        """
        with torch.autocast(device_type=pixels_B3HW.device.type, enabled=False):
            x = _to_bytes(pixels_B3HW)
            head = self.open_networks(x.device)[1]
            map_BDHW, view = self._maps(_resize(x, MAP)), self.read_strides(_resize(x, VIEW))
            view_BD = head.features(view[1].float()).mean(dim=(2, 3))
            parts = (map_BDHW.flatten(2).transpose(1, 2).flatten(1), view_BD, self._detect(x))
            return torch.cat(parts, dim=1).to(torch.float16), view

    def _detect(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the highest score of each of the detector's classes [B, 80], of those that are a box's best class."""
        network, _, detector = self.open_networks(pixels_B3HW.device)
        dtype = next(network.parameters()).dtype
        x = _resize(pixels_B3HW, detectors.SIDE).contiguous(memory_format=torch.channels_last)
        # The scores alone are wanted: boxes would be inexact in half precision.
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores_BAN, _ = detector(x)
        best_BA, class_BA = scores_BAN.float().max(dim=-1)
        best_BA = torch.where(best_BA > MIN_DETECTED, best_BA, 0.0)
        zeros_BN = best_BA.new_zeros(len(best_BA), detectors.CLASSES)
        return zeros_BN.scatter_reduce(1, class_BA, best_BA, "amax")

    def forward(self, features: Tensor) -> ImageFeatures:
        """Embed packed features [B, F], or pixels [B, 3, H, W], for which the frozen part runs first."""
        if features.dim() == 4:
            features = self.frozen_features(features)
        map_BLD, view_BD, detected_BN = self.unpack(features)
        return ImageFeatures(map_BLD, self.grid, self.embed(self.classify(map_BLD, view_BD), detected_BN))

    def unpack(self, features_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split packed features into the map [B, L, 1280], the view [B, 1280], and scores of detected classes."""
        cells = _GRID**2 * self.width
        map_BLD = features_BF[:, :cells].float().unflatten(1, (_GRID**2, self.width))
        view_BD, detected_BN = features_BF[:, cells:].float().split((self.width, detectors.CLASSES), dim=1)
        return map_BLD, view_BD, detected_BN

    def classify(self, map_BLD: Tensor, view_BD: Tensor) -> Tensor:
        """Return the mean probabilities [B, 1000] of the whole image at two sizes and of windows of its map."""
        head = self.open_networks(map_BLD.device)[1]
        map_BHWD = map_BLD.unflatten(1, self.grid)
        corners = [(top, left) for top in _STARTS for left in _STARTS] + [(_MIDDLE, _MIDDLE)]
        windows_WBD = torch.stack([map_BHWD[:, y : y + _WINDOW, x : x + _WINDOW].mean(dim=(1, 2)) for y, x in corners])
        # The whole image at the size of its training counts as much as all windows together.
        return (2 * head(view_BD) + head(map_BLD.mean(dim=1)) + 2 * head(windows_WBD).mean(dim=0)) / 5

    def embed(
        self, probabilities_RC: Tensor, detected_RN: Tensor | None = None, *, num_classes: int = NUM_CLASSES
    ) -> Tensor:
        """Return sentence vectors [R, E] of what is probable: ConSE's sum, with roots in place of probabilities.

        A root lets the second and third class say more; what a classifier takes for one of two breeds is a dog anyway.

        Args:
            detected_RN: scores of the detector's classes, where it has seen the image.
            num_classes: T, classes that count, the most probable ones.
        """
        top_RT, class_RT = probabilities_RC.topk(num_classes, dim=-1)
        vectors_RE = torch.einsum("rt,rte->re", top_RT.sqrt(), self.class_vectors_CE[class_RT])
        if detected_RN is not None:
            vectors_RE = vectors_RE + DETECTOR_WEIGHT * detected_RN.square() @ self.detector_vectors_NE
        return vectors_RE

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Embed pooled features [R, 1280], of a box for example, as [R, E]."""
        return self.embed(self.open_networks(pooled_RD.device)[1](pooled_RD))

    def classify_crops(self, pixels_13HW: Tensor, boxes_K4: Tensor) -> Tensor:
        """Return the probabilities [K, 1000] of boxes of one image, each enlarged to the size of the training.

        Args:
            pixels_13HW: uint8. boxes_K4: corners in [0, 1] of the input.
        """
        height, width = pixels_13HW.shape[2:]
        views = []
        for x1, y1, x2, y2 in boxes_K4.tolist():
            # At least a pixel: a thin box must not give an empty image.
            left, top = min(round(x1 * width), width - 1), min(round(y1 * height), height - 1)
            right, bottom = max(round(x2 * width), left + 1), max(round(y2 * height), top + 1)
            views.append(_resize(pixels_13HW[..., top:bottom, left:right], VIEW))
        features_KD = self._maps(torch.cat(views)).mean(dim=(2, 3))
        return self.open_networks(features_KD.device)[1](features_KD)

    @torch.inference_mode()
    def detect(self, pixels_3HW: Tensor) -> DetectedBoxes:
        """Return the detector's boxes at a low threshold; there is always one, the likeliest."""
        x = _to_bytes(pixels_3HW[None])
        scores_AN, boxes_A4 = (part[0] for part in self.open_networks(x.device)[2](_resize(x, detectors.SIDE)))
        score_A, class_A = scores_AN.max(dim=-1)
        confident_A = score_A > PROPOSAL_THRESHOLD
        if not confident_A.any():
            confident_A = score_A == score_A.max()
        boxes_K4, score_K, class_K = boxes_A4[confident_A], score_A[confident_A], class_A[confident_A]
        best = detectors.suppress_overlaps(boxes_K4, score_K, PROPOSAL_OVERLAP)[:MAX_PROPOSALS]
        return DetectedBoxes((boxes_K4[best] / detectors.SIDE).clamp(0, 1), score_K[best], class_K[best])

    @torch.inference_mode()
    def propose(self, pixels_3HW: Tensor, tokens_LD: Tensor) -> BoxProposals:
        """Propose the detector's boxes, embedded by their crops, by the map under them and by their class names."""
        detected = self.detect(pixels_3HW)
        return self.build_proposals(
            detected, self.classify_crops(_to_bytes(pixels_3HW[None]), detected.boxes_K4), tokens_LD
        )

    @torch.inference_mode()
    def build_proposals(self, detected: DetectedBoxes, crops_KC: Tensor, tokens_LD: Tensor) -> BoxProposals:
        """Return detected boxes as proposals: see `propose`.

        Args:
            crops_KC: their probabilities, see `classify_crops`. tokens_LD: map of the image.
        """
        owner_K = torch.zeros(len(detected.boxes_K4), dtype=torch.int64, device=tokens_LD.device)
        pooled_KD = roi_pool(tokens_LD[None].float(), self.grid, detected.boxes_K4, owner_K)
        vectors_KE = (
            F.normalize(self.embed(crops_KC, num_classes=CROP_CLASSES), dim=-1)
            + MAP_WEIGHT * F.normalize(self.project(pooled_KD), dim=-1)
            + NAME_WEIGHT * self.detector_vectors_NE[detected.class_K]
        )
        return BoxProposals(detected.boxes_K4, vectors_KE, SCORE_WEIGHT * detected.score_K)

    @torch.inference_mode()
    def measure_floors(self, texts_TE: Tensor, of: str) -> Tensor:
        """Return the score [T] that the best of some boxes or images must exceed to show a phrase."""
        factor, size, margin = _FLOORS[of]
        rng = generator("bridge floor", size)
        shares_S = self.class_vectors_CE.new_tensor(_SHARES)
        texts_TE = F.normalize(texts_TE.to(self.class_vectors_CE), dim=-1)
        best_T = texts_TE.new_zeros(len(texts_TE))
        for _ in range(_DRAWS):
            class_KS = torch.from_numpy(rng.integers(lite0.CLASSES, size=(size, len(_SHARES)))).to(texts_TE.device)
            mixed_KE = F.normalize(torch.einsum("kse,s->ke", self.class_vectors_CE[class_KS], shares_S), dim=-1)
            best_T += (texts_TE @ mixed_KE.T).amax(dim=1)
        return factor * best_T / _DRAWS + margin


def _to_bytes(pixels_B3HW: Tensor) -> Tensor:
    """Return pixels as uint8, also those that `Preprocess.normalize` has brought to [-1, 1]."""
    if pixels_B3HW.dtype == torch.uint8:
        return pixels_B3HW
    # Normalized pixels were whole numbers: both ways give the same bits.
    return ((pixels_B3HW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _resize(pixels_B3HW: Tensor, side: int) -> Tensor:
    """Resize uint8 pixels to a square of floats in 0 to 255."""
    size = (side, side)
    if pixels_B3HW.shape[2:] == size:
        return pixels_B3HW.float()
    # Bytes on a processor, where they take a fifth of the time; other devices resize only floats.
    x = pixels_B3HW if pixels_B3HW.device.type == "cpu" else pixels_B3HW.float()
    return F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).float().clamp(0, 255)


IMAGE_ENCODER = BridgeEncoder
