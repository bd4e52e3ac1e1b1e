"""Calls and answers of served models: checked values, without HTTP and without torch.

`parsing.py` turns a request's JSON, which `bodies.py` declares, into a call, and `replies.py` a reply into JSON; an
adapter turns calls into replies. Neither side knows the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from foveate.multimodal.answers import LANGUAGE_MODEL
from foveate.records.boxes import Box, PixelBox
from foveate.records.images import DecodedImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from foveate.search.search import Hit, Verdict
    from foveate.vision.video.sources import Source

Endpoint = Literal["chat", "embeddings", "locate", "search", "classify"]


# Not a `UserError`: those may name files of this server and are filtered before a client sees them.
class Refused(Exception):
    """A call that gets an error instead of a reply.

    Attributes:
        status: of HTTP. code, param: of OpenAI's error object. retry_after: seconds, with 429 and 503.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


@dataclass(frozen=True, slots=True)
class ServedImage:
    """One image of a call.

    Attributes:
        data: encoded bytes as the client sent them; they have been decoded once, within the limits of the server.
        width, height: in pixels, after the EXIF rotation.
        decoded: pixels at the adapter's `decode_side`, for the only image of a call; of several they would fill the
            memory.
    """

    data: bytes
    width: int
    height: int
    # Left out of comparisons, since equal bytes decode to equal pixels, and out of logs, where pixels take megabytes.
    decoded: DecodedImage | None = field(default=None, compare=False, repr=False)

    @property
    def source(self) -> bytes | DecodedImage:
        """The pixels where they are there, else the bytes."""
        return self.data if self.decoded is None else self.decoded


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """What one side said: text with `<image>` where each of its images stands, and clips.

    Attributes:
        clips: opened, their headers within the limits of the server; frames are decoded when they are answered.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[ServedImage, ...] = ()
    clips: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatCall:
    """One answer of a conversation.

    Attributes:
        max_tokens: None = the server's limit. stop: texts that end the answer and are not part of it.
        regions: boxes of `<1>`, `<2>` in the last turn, in pixels of its last image.
        caption: the request's own field `foveate` for captions: format, alt, length.
        is_json: the reply must be a JSON object. json_schema: that the reply follows, as text; "" for none.
        top_logprobs: likeliest tokens to return beside each token; None: no probabilities.
        frame_images: the reply has thumbnails of the frames of a clip.
    """

    turns: tuple[ChatTurn, ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    # In pixels, as the models read and write boxes; requests and replies use fractions.
    regions: tuple[PixelBox, ...] = ()
    caption: Mapping[str, Any] | None = None
    is_json: bool = False
    json_schema: str = ""
    top_logprobs: int | None = None
    frame_images: bool = False

    @property
    def has_clips(self) -> bool:
        """Whether a turn has a clip."""
        return any(turn.clips for turn in self.turns)


@dataclass(frozen=True, slots=True)
class ChatBox:
    """A box that an answer names: in pixels of its image, the number of that image, phrase and score."""

    box: PixelBox
    image: int
    phrase: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer as text, with its log-probability and the likeliest tokens in its place."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A whole answer; the pieces of its stream, joined, are `text`.

    Attributes:
        source: what answered, in the words of `foveate.multimodal.answers.Answer`.
        clip: the frames that it saw of a clip.
        logprobs: of its tokens, where the call asks for them.
    """

    text: str
    finished: bool
    num_prompt_tokens: int
    num_tokens: int
    boxes: tuple[ChatBox, ...] = ()
    source: str = LANGUAGE_MODEL
    clip: Mapping[str, Any] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """Texts, or images, or boxes of one image; exactly one of them is there."""

    texts: tuple[str, ...] = ()
    images: tuple[ServedImage, ...] = ()
    boxes: tuple[Box, ...] = ()


# Compared by identity, because comparing arrays gives no single truth value.
@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingsReply:
    """Vectors [N, E] of unit length, in the order of the call, and the tokens that were read."""

    vectors: NDArray[np.float32]
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LocateCall:
    """Phrases to find in one image."""

    image: ServedImage
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A phrase with its box in [0, 1], None where there is none, and the score of its best match.

    Attributes:
        verdict: whether the match is better than a meaningless one.
        scores: of every rule of a localizer, that of the verdict ("candidates") among them.
    """

    phrase: str
    box: Box | None
    score: float | None
    verdict: Verdict
    scores: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchCall:
    """A question to an index: words, an image, a box in it, words that hits should be unlike."""

    text: str | None = None
    image: ServedImage | None = None
    box: Box | None = None
    negative: str | None = None
    count: int = 20
    kind: Literal["both", "images", "regions"] = "both"


@dataclass(frozen=True, slots=True)
class SearchReply:
    """The hits of a question, best first, and whether they are better than those of texts without a meaning.

    Attributes:
        floor: the score that a hit must exceed, and what was measured of it; {} where there is none.
    """

    hits: tuple[Hit, ...]
    verdict: Verdict
    floor: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ClassifyCall:
    """One image to classify, with the number of classes to return."""

    image: ServedImage
    count: int = 5


@dataclass(frozen=True, slots=True)
class Classified:
    """A class with its probability and, where the model is calibrated, the probability after calibration."""

    name: str
    probability: float
    calibrated: float | None = None


Call = ChatCall | EmbeddingsCall | LocateCall | SearchCall | ClassifyCall
"""`ChatCall` -> `ChatReply`, `EmbeddingsCall` -> `EmbeddingsReply`, `LocateCall` -> tuple of `Located`, `SearchCall` ->
`SearchReply`, `ClassifyCall` -> tuple of `Classified`."""


class Listener(Protocol):
    """Who waits for the rows of a batch while they are written; called from the model's thread."""

    def is_streamed(self, row: int) -> bool:
        """Return whether the row's pieces are read; its reply is in any case."""
        ...

    def push(self, row: int, piece: str) -> None:
        """Take the next piece of a row's text."""
        ...

    def end(self, row: int, reply: ChatReply | Exception) -> None:
        """Take a row's reply as soon as the row ends, before its batch does."""
        ...

    def is_gone(self, row: int) -> bool:
        """Return whether nobody waits for the row any more, so that it stops at the next token."""
        ...


class Adapter(Protocol):
    """A model or an index behind the server; used by one thread at a time.

    Attributes:
        name: under which it is served. kind: multimodal, localizer, classifier or index.
        endpoints: what it answers.
        num_bytes: of its weights in memory.
        decode_side: longest side in pixels at which images are decoded for it; None where it decodes them itself.
    """

    name: str
    kind: str
    endpoints: frozenset[Endpoint]
    num_bytes: int
    decode_side: int | None

    # Called in the event loop before a call is queued, so it must not run the model or decode anything.
    def check(self, call: Call) -> None:
        """Raise `Refused` for a call that this model can never answer, such as one with too many images."""
        ...

    def group(self, call: Call) -> Hashable:
        """Return what is equal in calls that may share a batch."""
        ...

    def answer(self, calls: Sequence[Call]) -> list[Any]:
        """Answer a batch of one group, no `ChatCall` among them: replies, or the exception of a call alone."""
        ...


@runtime_checkable
class ChatAdapter(Adapter, Protocol):
    """An adapter that also chats; `answers_clips` says whether about clips, too."""

    answers_clips: bool

    def compile(self, call: ChatCall) -> None:
        """Raise `Refused` for JSON that the answer cannot follow; called from any thread, before the call is queued."""
        ...

    def write(self, calls: Sequence[ChatCall], listener: Listener) -> None:
        """Write the answers of a batch of one group; each row ends once, with a reply or an exception."""
        ...


@runtime_checkable
class ImageSource(Protocol):
    """What an adapter of an index can do besides: give thumbnails of its images."""

    def thumbnail(self, key: str) -> bytes:
        """Return an image as WebP, encoded again; raise `Refused` (404) for a key that is not in the index or removed.

        Called from any thread.
        """
        ...
