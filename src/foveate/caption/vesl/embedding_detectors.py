"""Detectors that compare embeddings of boxes with those of phrases: a trained CLOC, and NanoDet-g's boxes.

`cloc` labels by a model of our own. Each phrase gets one box: of the grounding head, or the candidate box whose
embedding is nearest to the phrase's. The score is the cosine of that box's embedding with the phrase, 0 where it is
negative.

`nanodet` works offline on photographs. It knows COCO's 80 classes, and its boxes are good beyond them
(docs/methods/vesl.md), so with a model its class names are not used. A box's phrase is the one of the caption whose
embedding is nearest to the box's. What a caption does not name gets one of its phrases all the same: `min_similarity`
drops such boxes. Without a model the shipped encoder embeds them; with `names` the phrase is the one whose sentence
vector is nearest to the class name's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.core.recipes import Settings
from foveate.records.boxes import Box
from foveate.records.geometry import Placement, View
from foveate.vision.detectors import CLASS_NAMES, MIN_SIDE_PX, NanoDetProposer, Proposals, ProposalSettings
from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.folder import WEIGHTS
from foveate.vision.localizer.inference import embed_phrases, find
from foveate.vision.localizer.sources import find_model
from foveate.vision.minilm import PACKAGE_SHA256, SentenceEncoder
from foveate.vision.preprocess import move_boxes, place_image, render_image

Comparison = Callable[[int, Proposals, Sequence[str]], NDArray[np.float64]]
# Not the default encoder: the detector knows photographs alone, and the cosine below was measured with this one.
_CHOOSER = "bridge"
# What `model` says for the names of the detector's own classes.
CLASS_NAMES_ALONE = "names"
# Minimum cosine of a phrase with the sentence vector of a class name, or with a box's vector by `bridge`, which lies in
# the same space; see docs/methods/vesl.md. Cosines of other models are lower.
MIN_SIMILARITIES = {CLASS_NAMES_ALONE: 0.5, "bridge": 0.5}
# Embeddings that are cached; 16,384 of 512 floats are 32 MB.
_MAX_CACHED_PHRASES = 16_384


class RegionScorer:
    """A model that compares boxes with phrases: CLOC, Foveate's CLIP by RoI-pooled tokens, a pretrained CLIP by crops.

    Raises:
        UserError: there is no such model, see `foveate.vision.localizer.sources.find_model`.
    """

    def __init__(self, name: str, device: str | None) -> None:
        source = find_model(name)
        self.network = source.load(device=device)
        # Patch tokens of a CLIP that was trained on whole images say little of where they lie.
        self._crops = source.settings is not None
        weights = None if source.folder is None or self._crops else source.folder / WEIGHTS
        self.version = (source.fingerprint() if weights is None else sha256_file(weights))[:12]
        self.input_px = self.network.image_encoder.preprocess.side
        self._images: Sequence[DetectorInput] = ()
        self._cache: dict[str, Tensor] = {}

    def encode_images(self, images: Sequence[DetectorInput]) -> tuple[ImageFeatures, list[Placement]]:
        """Encode images in one pass; return their tokens, and how each lies in the model input."""
        preprocess = self.network.image_encoder.preprocess
        self._images = images
        placements = [place_image(preprocess, image.pixels.size, View()) for image in images]
        pixels = [
            render_image(preprocess, image.pixels, placement)
            for image, placement in zip(images, placements, strict=True)
        ]
        return self.network.encode_image_tokens(torch.stack(pixels)), placements

    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Embed phrases; return [Q, E], not normalized, on the model's device. Recent phrases are cached."""
        new = sorted({phrase for phrase in phrases if phrase not in self._cache})
        if len(self._cache) + len(new) > _MAX_CACHED_PHRASES:
            # Emptied as a whole: phrases of a collection follow Zipf's law, so the frequent ones are back at once.
            self._cache, new = {}, sorted(set(phrases))
        self._cache.update(zip(new, embed_phrases(self.network, new), strict=True))
        return torch.stack([self._cache[phrase] for phrase in phrases]).to(self.network.device)

    def cosines(
        self, tokens: ImageFeatures, placement: Placement, index: int, boxes_K4: NDArray[np.float64], texts_QE: Tensor
    ) -> NDArray[np.float64]:
        """Compute cosines [K, Q] of boxes with phrases; -1 for boxes that lie outside of what the model sees.

        Args:
            index: of the image in the pass that gave `tokens`.
            boxes_K4: in [0, 1] of the image.
            texts_QE: of `embed`.
        """
        # No cosine is smaller, so an unseen box loses every comparison.
        result_KQ = np.full((len(boxes_K4), len(texts_QE)), -1.0)
        if self._crops:
            for row, box_4 in enumerate(boxes_K4):
                z_1E = self._embed_crop(self._images[index].pixels, box_4)
                if z_1E is not None:
                    result_KQ[row] = (z_1E @ F.normalize(texts_QE.float(), dim=-1).T).double().cpu().numpy()[0]
            return result_KQ
        inside_J4, visible_K = move_boxes(placement, boxes_K4, min_visible=0)
        if len(inside_J4):
            index_J = torch.full((len(inside_J4),), index, device=self.network.device)
            z_JE = self.network.encode_regions(tokens, torch.from_numpy(inside_J4).to(self.network.device), index_J)
            unit_QE = F.normalize(texts_QE.float(), dim=-1)
            result_KQ[visible_K] = (F.normalize(z_JE.float(), dim=-1) @ unit_QE.T).double().cpu().numpy()
        return result_KQ

    def _embed_crop(self, image: Image.Image, box_4: NDArray[np.float64]) -> Tensor | None:
        """Embed a box as an image of its own [1, E]; None where it is too thin to show anything."""
        preprocess = self.network.image_encoder.preprocess
        try:
            placement = place_image(preprocess, image.size, View(crop=Box.from_array(box_4, clipped=True)))
        except UserError:
            return None
        return self.network.encode_image(render_image(preprocess, image, placement)[None])


class ClocSettings(Settings):
    """Model folder, rule, and minimum cosine."""

    model: str = Field(description="model folder of `foveate pretrain`")
    rule: Literal["auto", "head", "candidates"] = Field(
        "auto", description="auto = the better one on the model's validation split"
    )
    threshold: float = Field(0.0, ge=0, lt=1, description="minimum cosine of the box with its phrase, strict")


class ClocDetector(Detector):
    """Locates each phrase with a model folder of `foveate pretrain`.

    Raises:
        UserError: rule "head" with a model that has no Prompter.
    """

    name = "cloc"

    def __init__(self, settings: ClocSettings, device: str | None) -> None:
        self.settings, self.model = settings, settings.model
        self._scorer = RegionScorer(settings.model, device)
        network = self._scorer.network
        self.rule = network.locate_rule if settings.rule == "auto" else settings.rule
        if self.rule == "head" and network.prompter is None:
            raise UserError(
                f"field 'rule': 'head' needs a grounding head, which '{settings.model}' lacks (regions.method "
                f"'{network.recipe.regions.method}'); expected candidates"
            )
        # The rule decides which box a phrase gets, so it belongs to the version of the labels.
        self.version = f"{self._scorer.version} {self.rule}"
        self.input_px = self._scorer.input_px

    @torch.inference_mode()
    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        scorer = self._scorer
        tokens, placements = scorer.encode_images(images)
        texts = [scorer.embed(queries) for queries in phrases]
        owners = [index for index, queries in enumerate(phrases) for _ in queries]
        owner_R = torch.tensor(owners, device=scorer.network.device)
        inside_R4 = find(scorer.network, tokens, placements, torch.cat(texts), owner_R, rule=self.rule)
        results, start = [], 0
        # One row per phrase, images one after another: as the texts were concatenated.
        for index, (image, queries) in enumerate(zip(images, phrases, strict=True)):
            boxes_Q4 = placements[index].to_original(inside_R4[start : start + len(queries)])
            start += len(queries)
            wide_Q = ((boxes_Q4[:, 2:] - boxes_Q4[:, :2]) * (image.width, image.height) >= MIN_SIDE_PX).all(axis=1)
            boxes_K4, phrase_K = boxes_Q4[wide_Q], np.flatnonzero(wide_Q)
            # The box comes from the grounding head, the score from the region embedding: the head gives none.
            cosine_KQ = scorer.cosines(tokens, placements[index], index, boxes_K4, texts[index])
            cosine_K = cosine_KQ[np.arange(len(phrase_K)), phrase_K]
            keep_K = cosine_K > self.settings.threshold
            # Rounding may put a cosine just above 1, which no score may be.
            results.append(
                Detections(
                    boxes_K4[keep_K],
                    cosine_K[keep_K].clip(0, 1),
                    phrase_K[keep_K],
                    similarity_K=cosine_K[keep_K],
                    thin=int((~wide_Q).sum()),
                )
            )
        return results


CLOC = DetectorKind(
    settings=ClocSettings,
    open=lambda settings, _, device: ClocDetector(settings, device),
    note="self-labeling by a model of our own",
)


class NanoDetSettings(ProposalSettings):
    """Limits of the boxes, and the model that selects their phrases."""

    model: str = Field(
        _CHOOSER,
        description="model whose embeddings of boxes choose the phrase: bridge, which ships, a model folder, "
        "OWNER/NAME or open_clip:ARCH/PRETRAINED; names: the names of the detector's 80 classes do",
    )
    min_similarity: float = Field(
        -1.0, ge=-1, le=1, description="minimum cosine of a box with its phrase; with bridge and names at least 0.5"
    )


class NanoDetDetector(Detector):
    """NanoDet-g's boxes with phrases of a caption.

    Raises:
        UserError: the shipped weights are damaged, or `model` is no model folder.
    """

    name, input_px = "nanodet", NanoDetProposer.input_px

    def __init__(self, settings: NanoDetSettings, device: str | None) -> None:
        self.settings = settings
        by_names = settings.model == CLASS_NAMES_ALONE
        self.model = f"nanodet-g, phrases by {'class names' if by_names else settings.model}"
        self._scorer = None if by_names else RegionScorer(settings.model, device)
        self._names: SentenceEncoder | None = SentenceEncoder() if self._scorer is None else None
        # A thing that no phrase names would get the nearest one all the same.
        self._min_similarity = max(MIN_SIMILARITIES.get(settings.model, -1.0), settings.min_similarity)
        self._proposer = NanoDetProposer(settings, device)
        chooser = PACKAGE_SHA256[:12] if self._scorer is None else self._scorer.version
        self.version = f"{self._proposer.version} {chooser}"

    @torch.inference_mode()
    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        proposals = self._proposer.propose(
            [self._proposer.to_square(image.pixels) for image in images],
            [(image.width, image.height) for image in images],
        )
        results = []
        scores = self._compare_names if self._scorer is None else self._compare_boxes(self._scorer, images)
        for index, (boxes, queries) in enumerate(zip(proposals, phrases, strict=True)):
            cosine_JQ = scores(index, boxes, queries)
            phrase_J = cosine_JQ.argmax(axis=1)
            cosine_J = cosine_JQ.max(axis=1)
            keep_J = cosine_J >= self._min_similarity
            results.append(
                Detections(
                    boxes.boxes_K4[keep_J], boxes.scores_K[keep_J], phrase_J[keep_J], cosine_J[keep_J], boxes.thin
                )
            )
        return results

    def _compare_boxes(self, scorer: RegionScorer, images: Sequence[DetectorInput]) -> Comparison:
        """Return a function that compares the boxes of an image with phrases by the model's embeddings."""
        tokens, placements = scorer.encode_images(images)
        return lambda index, boxes, phrases: scorer.cosines(
            tokens, placements[index], index, boxes.boxes_K4, scorer.embed(phrases)
        )

    def _compare_names(self, index: int, boxes: Proposals, phrases: Sequence[str]) -> NDArray[np.float64]:
        """Return cosines [K, Q] of the sentence vectors of the boxes' class names and of phrases."""
        assert self._names is not None
        names = [CLASS_NAMES[number] for number in boxes.classes_K]
        vectors = self._names([*names, *phrases]).double().numpy()
        return np.asarray(vectors[: len(names)] @ vectors[len(names) :].T)


NANODET = DetectorKind(
    settings=NanoDetSettings,
    open=lambda settings, _, device: NanoDetDetector(settings, device),
    note="offline, for photographs: class-agnostic boxes of NanoDet-g",
    without_model=f"the shipped NanoDet-g finds boxes, and the shipped encoder {_CHOOSER} chooses their "
    "phrases; --model open_clip:ARCH/PRETRAINED or a model folder chooses by another",
)
