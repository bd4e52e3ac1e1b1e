"""The `scene_oracle` backend: captions from the truth of scenes, with faults on purpose.

It is no captioner. It stands in for one in tests and harness checks, where what the pipeline and the audit must find is
known exactly. It refuses real images, is never a default, and its model name begins with "scene-oracle", so that
every table that used it says so.
"""

from __future__ import annotations

import json

from pydantic import Field

from foveate.caption.captioner import Backend, CaptionRequest, CaptionResponse
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate_labs.captions.scene_captions import KINDS, render
from foveate_labs.captions.scene_truth import SceneTruths

# Part of the request keys: raised when the rendered captions change.
VERSION = "1"
_PADDING = "The picture was made for this collection and it has the same width and the same height."


class SceneOracleSettings(Settings):
    """Kinds of faults and their shares."""

    hallucinations: float = Field(0.0, ge=0, le=1, description="share of the claims replaced by false ones")
    refusals: float = Field(0.0, ge=0, le=1, description="share of the responses that refuse")
    broken: float = Field(0.0, ge=0, le=1, description="share of the responses that are broken JSON")
    too_long: float = Field(0.0, ge=0, le=1, description="share of the responses that are too long")


class SceneOracle:
    """Renders captions of scenes; a pure function of the request and the settings."""

    name = "scene_oracle"
    revision = VERSION
    concurrency = 1

    def __init__(self, settings: SceneOracleSettings, collection: Collection) -> None:
        self.settings, self.collection = settings, collection
        self.truths = SceneTruths(collection)
        if not len(self.truths):
            raise UserError(
                f"collection {collection.path} has no generated scenes; the backend scene_oracle captions nothing else"
            )
        faults = {name: value for name, value in settings.model_dump().items() if value}
        self.model = "-".join(["scene-oracle", *(f"{name}-{value:g}" for name, value in faults.items())])

    async def caption(self, request: CaptionRequest) -> CaptionResponse:
        """Render the caption of a scene; a final error for any other image."""
        truth = self.truths.get(self.collection.find_row(request.key))
        if truth is None:
            return CaptionResponse(error="no_scene", final=True)
        if request.kind not in KINDS:
            return CaptionResponse(error="unknown_format", final=True)
        settings = self.settings
        # With the prompt: a retry draws its faults anew, while the claims of the caption stay the same.
        draw = (request.seed, request.key, request.kind, request.prompt_id)
        if seeds.uniform("oracle refuses", *draw) < settings.refusals:
            return CaptionResponse(json.dumps({"caption": "", "refused": True, "refusal_reason": "injected"}))
        rng = seeds.generator("oracle", request.seed, request.key, request.kind)
        caption = render(request.kind, truth, alt=request.alt, rng=rng, hallucinations=settings.hallucinations)
        if not caption.text:
            return CaptionResponse(error="nothing_visible", final=True)
        text = caption.text
        if seeds.uniform("oracle goes on", *draw) < settings.too_long:
            text = " ".join([text, *[_PADDING] * (30 if request.kind == "dsc_plus" else 8)])
        content: dict[str, object] = {"caption": text}
        if request.kind == "afc":
            content["used_alt_facts"] = list(caption.alt_facts)
        raw = json.dumps(content)
        if seeds.uniform("oracle breaks", *draw) < settings.broken:
            # Cut off in the middle, as a response that ran out of tokens.
            raw = raw[: len(raw) * 2 // 3]
        return CaptionResponse(raw, tokens_out=len(text.split()))

    async def close(self) -> None:
        """Do nothing: no connection is open."""


BACKEND = Backend(
    settings=SceneOracleSettings,
    open=SceneOracle,
    only_scenes=True,
    note="the truth of generated scenes with faults on purpose; for tests and harness checks, refuses real images",
)
