"""Page of `foveate mllm preview`: samples as the model gets them, token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from foveate.core.results import parse_result
from foveate.mllm.results import PreviewConversation, PreviewResult, PreviewSample, PreviewToken, PreviewView
from foveate.report import numbers
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a preview's result.json (`PreviewResult`)."""
    r = parse_result(PreviewResult, result)
    positions = [length + visual for length, visual in zip(r.lengths, r.visual, strict=True)]
    facts = [
        ("Stage", r.stage),
        ("Step", numbers.count(r.step)),
        ("Samples", f"{numbers.count(r.batch)} of {numbers.count(r.sets)}"),
        ("Conversations", numbers.count(r.conversations)),
        ("Positions of a sample", _spread(positions) + f", at most {numbers.count(r.max_positions)} fit"),
        ("Text tokens of a sample", _spread(r.lengths)),
        ("Padding", numbers.percent(r.padding_share)),
        ("Learned tokens", numbers.percent(r.learned_share)),
        ("Named regions", numbers.count(r.names)),
    ]
    context = {
        "facts": facts,
        "left_out": r.left_out,
        "collection": r.collection,
        "split": r.split,
        "samples": [_sample_card(sample) for sample in r.samples],
        "command": command_text(r.command),
    }
    return Page("mllm_preview.html.j2", r.title, context)


def _spread(values: list[int]) -> str:
    """Format the smallest, the median and the largest value."""
    # One number where all samples agree: a range would look like three measurements.
    if not values or min(values) == max(values):
        return numbers.count(values[0] if values else 0)
    return f"{numbers.count(min(values))} to {numbers.count(max(values))}, median {numbers.count(median(values))}"


def _sample_card(sample: PreviewSample) -> dict[str, Any]:
    length = sum(len(conversation.tokens) for conversation in sample.conversations)
    return {
        "views": [_view_card(sample, view) for view in sample.views],
        "conversations": [_conversation_card(conversation, sample.visual) for conversation in sample.conversations],
        "mask": sample.mask,
        "facts": [
            ("Visual tokens", numbers.count(sample.visual)),
            ("Text tokens", numbers.count(length)),
            ("Learned", numbers.count(sum(t.learned for c in sample.conversations for t in c.tokens))),
            ("Padding", numbers.count(sample.padding)),
        ],
    }


def _view_card(sample: PreviewSample, view: PreviewView) -> dict[str, Any]:
    # With region tokens each image is one view. A box that several conversations mean is drawn once, with all numbers.
    regions: dict[tuple[float, float, float, float], list[int]] = defaultdict(list)
    for index, region in enumerate(sample.regions, 1):
        if region.image == view.image:
            regions[region.box].append(index)
    # Boxes of tokens over those of names: where both are, the numbered one counts.
    overlays = [Overlay(region.box, "region") for region in view.names]
    overlays += [Overlay(box, "default") for box in regions]
    return {"view": view, "overlays": overlays, "regions": list(regions.items())}


def _conversation_card(conversation: PreviewConversation, visual: int) -> dict[str, Any]:
    read = f"{conversation.reads_images} of {visual} visual tokens"
    if conversation.reads_images == visual:
        read = f"all {visual} visual tokens"
    return {
        "id": conversation.id,
        "group": conversation.group,
        "tokens": [_token(token) for token in conversation.tokens],
        "reads": f"Reads {read}, up to {conversation.reads_itself} of its own, "
        f"and {conversation.reads_others or 'none'} of other conversations.",
    }


def _token(token: PreviewToken) -> dict[str, Any]:
    # Blanks at the edges decide what a token is: drawn, they can be seen.
    text = token.text.replace("\n", "↵")
    body = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if body else len(text)
    return {
        "text": "·" * left + body + "·" * (len(text.rstrip(" ")) < len(text) and bool(body)),
        "learned": token.learned,
        "region": token.region,
        "special": token.text.startswith("<") and token.text.endswith(">") and len(token.text) > 2,
    }
