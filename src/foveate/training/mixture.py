"""Mixture of text sources: one text per image and epoch (Lai et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.records.caption_formats import ALT, CAPTION_FORMATS

FORMATS = (ALT, *CAPTION_FORMATS)
Missing = Literal["renormalize", "alt", "skip", "error"]
# Way to treat missing texts -> fate of the weight of a source that no record has.
LOST_WEIGHT: Mapping[Missing, str] = MappingProxyType(
    {
        "renormalize": "its weight goes to the others",
        "alt": "its weight goes to alt, or to the others of an image without alt",
        "skip": "draws of it leave an image out",
        "error": "such draws fail",
    }
)

# Alt-texts (alt), short (ssc), descriptive (dsc, dsc_plus) and alt-fused (afc) captions: Lai et al. 2024,
# "Revisit Large-Scale Image-Caption Data in Pre-training Multimodal Foundation Models"; the shares that did
# best for each use.
PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "clip": MappingProxyType({"alt": 1 / 2, "ssc": 1 / 2}),
        "mllm_pretrain": MappingProxyType({"dsc": 2 / 3, "alt": 1 / 3}),
        "mllm_sft": MappingProxyType({"dsc_plus": 1.0}),
        "mllm_sft_mixed": MappingProxyType({"alt": 1 / 2, "dsc_plus": 1 / 2}),
        "diffusion": MappingProxyType({"alt": 1 / 2, "dsc": 1 / 2}),
    }
)


class MixtureSampler:
    """Draw the source of the one text that an image is trained with in an epoch.

    The probability of source k is its weight over the sum of the weights of the sources that the record has.
    The draw is a pure function of (seed, epoch, key): it walks the cumulative probabilities in the order of
    `sources` with a number made by a hash, so that a small change of the weights moves few samples and
    sources of weight 0 change nothing.

    Args:
        weights: source -> non-negative number with a positive sum; they need not sum to 1.
        sources: the known sources in canonical order.
        missing: what becomes of the weight of sources that a record lacks: "renormalize" spreads it over the
            others, "alt" gives it to alt (spread over the others when alt is lacking as well), "skip" leaves
            the record out as often as a lacking source is drawn, "error" refuses such a record.

    Raises:
        UserError: for an unknown source, a weight that is negative or no finite number, or a sum of 0.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        sources: Sequence[str] = FORMATS,
        missing: Missing = "renormalize",
    ) -> None:
        choose(missing, get_args(Missing), "way to treat missing texts")
        for source, weight in weights.items():
            choose(source, sources, "text source")
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise UserError(
                    f"weight of text source '{source}': not a weight (got {weight!r}); expected a number >= 0"
                )
        if not sum(weights.values()) > 0:
            raise UserError("weights of text sources: all are 0; expected at least one above 0")
        if missing == "alt" and "alt" not in sources:
            raise UserError(f"missing 'alt': there is no source 'alt' to fall back on (got {', '.join(sources)})")
        self.weights = {source: float(weights.get(source, 0.0)) for source in sources}
        self.missing = missing

    @classmethod
    def preset(cls, name: str, *, missing: Missing = "renormalize") -> MixtureSampler:
        """Return the sampler of a named use: clip, mllm_pretrain, mllm_sft, mllm_sft_mixed or diffusion."""
        return cls(PRESETS[choose(name, PRESETS, "mixture preset")], missing=missing)

    def probabilities(self, available: Collection[str]) -> dict[str, float]:
        """Compute source -> probability for a record that has the `available` sources.

        Only sources that can be drawn are listed. The sum is 1, less with missing="skip"; the dict is empty
        when no text can be drawn: the caller leaves the record out and counts it.

        Raises:
            UserError: with missing="error", when a source with a weight is not available.
        """
        weighted = {source: weight for source, weight in self.weights.items() if weight > 0}
        present = {source: weight for source, weight in weighted.items() if source in available}
        if self.missing == "error" and len(present) < len(weighted):
            lacking = ", ".join(source for source in weighted if source not in available)
            raise UserError(f"a record has no text of source {lacking}, which has a weight in the mixture")
        total = sum(weighted.values())
        if self.missing == "alt" and "alt" in available and len(present) < len(weighted):
            lost = total - sum(present.values())
            # Iterates over `self.weights` to keep its order, which `draw` relies on, even if alt has no weight.
            present = {
                source: present.get(source, 0.0) + (lost if source == "alt" else 0.0)
                for source in self.weights
                if source in present or source == "alt"
            }
        elif self.missing != "skip":
            total = sum(present.values())
        return {source: weight / total for source, weight in present.items()}

    def draw(self, available: Collection[str], *, seed: int, epoch: int, key: str) -> str | None:
        """Draw the source of a record in an epoch; None: skip the record and count it."""
        # The same number whatever texts the record has: a text that is added moves only draws that fall into its share.
        point = seeds.uniform(seed, epoch, key)
        cumulative = 0.0
        source = None
        if self.missing == "skip":
            return self._draw_or_skip(available, point)
        for source, probability in self.probabilities(available).items():
            cumulative += probability
            if point < cumulative:
                return source
        return source  # the probabilities add up to 1 only within rounding

    def _draw_or_skip(self, available: Collection[str], point: float) -> str | None:
        total = sum(self.weights.values())
        cumulative = 0.0
        for source, weight in self.weights.items():
            cumulative += weight / total
            if weight > 0 and point < cumulative:
                return source if source in available else None
        return None
