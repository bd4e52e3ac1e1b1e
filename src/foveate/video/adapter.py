"""The adapter between an image model and video, and that of models of `foveate mllm train`."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.chat import ChatFrame, frame_of_chat
from foveate.language.forbidden_words import ForbiddenWords, WordFilter
from foveate.language.positions import find_context, find_rope_factor
from foveate.language.tokenizer import BackendTokenizer
from foveate.multimodal.answer_writer import MAX_REPEATS
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.picture_check import load_picture_check
from foveate.multimodal.settings import MultimodalSettings
from foveate.records.geometry import View
from foveate.video.layout import Layout
from foveate.vision.canvas import render_input
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.preprocess import Preprocess, place_image
from foveate.vision.tiling import ImageSize, plan_tiles

# Images of one pass of the tower; memory does not grow with the clip.
_TOWER_BATCH = 8


class VideoPlaces(NamedTuple):
    """Positions of a video's tokens [3, L], counted from its beginning, and that of the text behind it."""

    positions_3L: Tensor
    follow: int


class NativeVideo(NamedTuple):
    """A clip as the model's own video input writes it.

    Attributes:
        video_LD: its tokens, with the texts that the processor writes between frames. places: see `VideoPlaces`.
        cut: tokens of the prompt that it replaces: at the end of the text in front, at the start of that behind.
    """

    video_LD: Tensor
    places: VideoPlaces | None
    cut: tuple[int, int]


@dataclass(frozen=True)
class Network:
    """An image model that is to read video.

    Attributes:
        language: of transformers; generates from `inputs_embeds`.
        tower, projector: from pixels to tokens of the language model.
        preprocess: of a frame. grid: rows and columns of the tokens of a frame.
        encode: uint8 frames [T, 3, H, W] -> tokens [T, N, D], N = rows x columns, after the projector.
        render: a frame -> the image that the tower reads, of the size of its input.
        tokenizer: None where the folder has none; nothing can be asked then.
        frame: what stands around a question.
        stop: tokens that end an answer. suppress: tokens that are never written.
        forbidden: words that no answer may have.
        max_repeats: a few tokens this many times in a row end an answer; 0 = they do not, as in transformers.
        place: positions of the tokens of a layout, where they are not those of a text.
        first: position of the first token. reuses: what precedes a question is read once for all questions.
        watch: the model's own video input: frames and their seconds -> tokens; None where it has none.
        native_frame: what stands around a question about such a video.
    """

    name: str
    language: Any
    tower: Any
    projector: Any
    preprocess: Preprocess
    grid: tuple[int, int]
    encode: Callable[[Tensor], Tensor]
    render: Callable[[Image.Image], Image.Image]
    tokenizer: BackendTokenizer | None
    frame: ChatFrame
    stop: frozenset[int]
    suppress: frozenset[int] = frozenset()
    forbidden: ForbiddenWords | None = None
    max_repeats: int = 0
    place: Callable[[Layout], VideoPlaces] | None = None
    first: int = 0
    reuses: bool = True
    watch: Callable[[Sequence[Image.Image], Sequence[float]], NativeVideo] | None = None
    native_frame: ChatFrame | None = None

    @property
    def limit(self) -> int | None:
        """Positions that the language model can read, its answer included; None where it states none."""
        return find_context(self.language)

    @property
    def rope_factor(self) -> float:
        """Factor by which the positions of training are stretched; 1 = not."""
        return find_rope_factor(self.language.config.get_text_config())

    @property
    def width(self) -> int:
        """Width of the language model's embeddings."""
        return self.language.get_input_embeddings().weight.shape[1]

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one frame before any pooling."""
        return self.grid[0] * self.grid[1]

    def filter_words(self) -> WordFilter | None:
        """Return what keeps the forbidden words out of a batch of answers; None where there are none."""
        return None if self.forbidden is None else WordFilter(self.forbidden)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode generated ids, without special tokens."""
        assert self.tokenizer is not None, "answers are asked for in text"
        return self.tokenizer.decode(list(ids))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels [T, 3, H, W] of rendered frames, for `encode`."""
        return torch.stack([self.preprocess.pixels(image) for image in images])

    def encode_images(self, images: Iterable[Image.Image]) -> Iterator[Tensor]:
        """Yield the tokens [B, N, D] of images as they come, a few at a time."""
        # Lazy: frames come from the decoder while they are encoded, and are never all in memory.
        rendered = map(self.render, images)
        while batch := list(itertools.islice(rendered, _TOWER_BATCH)):
            yield self.encode(self.pixels(batch))

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embed token ids: [len(ids), D]."""
        table = self.language.get_input_embeddings()
        return table(torch.tensor(list(ids), dtype=torch.int64, device=table.weight.device))


def count_square(settings: MultimodalSettings, tokens: int, *, name: str) -> int:
    """Return the tokens of a frame; warn of what is left out.

    Raises:
        UserError: the tokens are no square.
    """
    if settings.phrase_maps or settings.box_head:
        warnings.warn(f"{name}: phrase maps and boxes are of single images; a video is read without them", stacklevel=4)
    if round(tokens**0.5) ** 2 != tokens:
        raise UserError(f"{name}: {tokens} tokens a frame; expected a square grid")
    return tokens


def wrap_native(loaded: LoadedModel, *, name: str, scenes_alone: bool = False) -> Network:
    """Wrap a model of `foveate mllm train`; each frame is one view, which stands in front of the text as in training.

    Phrase maps and box heads read single images: they are left out, with a warning.

    Args:
        scenes_alone: the model was trained on generated scenes alone: warn of frames that are none.
    """
    model, chat = loaded.model, loaded.prompts.chat
    preprocess, tokenizer = model.tower.preprocess, loaded.tokenizer
    if not isinstance(tokenizer, BackendTokenizer):
        raise UserError(f"{name}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json")
    side = round(count_square(model.settings, model.connector.num_tokens, name=name) ** 0.5)

    warned = False

    def warn_of_other_pictures(features: Tensor) -> None:
        nonlocal warned
        vectors_TD = model.tower.image_vectors(features)
        # One scene in a hundred looks unlike the others: a single frame says nothing of a clip.
        if not warned and bool(load_picture_check().are_unlike(vectors_TD).float().mean() > 0.5):
            warned = True
            warnings.warn(
                f"{name}: frames are unlike the generated scenes that it was trained on, and its answers are guesses; "
                "any question about videos: an image-text model OWNER/NAME",
                stacklevel=2,
            )

    @torch.inference_mode()
    def encode(pixels_T3HW: Tensor) -> Tensor:
        device = model.visual_gain.device
        cells_T2 = torch.zeros(len(pixels_T3HW), 2, dtype=torch.long, device=device)
        features = pixels_T3HW.to(device)
        if scenes_alone and isinstance(model.tower, Lite0Encoder):
            features = model.tower.frozen_features(features)
            warn_of_other_pictures(features)
        visual = model.see(features, cells_T2)
        # A row of its own for each frame: positions are those of the first image.
        return model.view_tokens(visual, torch.arange(len(pixels_T3HW), device=device)[:, None])[:, 0]

    def render(image: Image.Image) -> Image.Image:
        if model.settings.assembly is None:
            return render_frame(preprocess, image)
        plan = plan_tiles(ImageSize(image.height, image.width), model.assembly.tiling, split=False)
        return Image.fromarray(render_input(preprocess, image, plan)[0].permute(1, 2, 0).numpy())

    return Network(
        name=name,
        language=model.language_model,
        tower=model.tower,
        projector=model.connector,
        preprocess=preprocess,
        grid=(side, side),
        encode=encode,
        render=render,
        tokenizer=tokenizer,
        frame=frame_of_chat(chat),
        stop=frozenset({chat.end}),
        suppress=frozenset(set(tokenizer.special.values()) - {chat.end}),
        forbidden=loaded.forbidden_words,
        max_repeats=MAX_REPEATS,
    )


def render_frame(preprocess: Preprocess, image: Image.Image) -> Image.Image:
    """Render a frame by a rule of pixels, as the tower reads it."""
    resample = Image.Resampling[preprocess.interpolation.upper()]
    placement = place_image(preprocess, image.size, View())
    return placement.render(image, preprocess.fill, resample=resample)
