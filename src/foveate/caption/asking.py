"""One request from question to row: asked, read, gated, asked once more if need be, flagged.

Every backend and every executor goes through here, so that rows do not depend on who called.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from foveate.caption import gates
from foveate.caption.answers import OK, REPAIRED, Parsed, parse_caption
from foveate.caption.captioner import Captioner, CaptionRequest, CaptionResponse
from foveate.caption.images import Prepared
from foveate.caption.lengths import OtherTokenizer, measure
from foveate.caption.prompts import Prompt
from foveate.caption.work import Asking, Todo, alt_hash
from foveate.core.version import __version__
from foveate.records.images import BadImage
from foveate.records.rows import clean_text, storable

ERROR, SKIPPED = "error", "skipped"
_RAW_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    `status` is "ok", "repaired", "error" or "skipped" (the image could not be read; `error` is the reason then, `raw`
    a sentence). `details` is the provenance that has no column of its own.
    """

    key: str
    kind: str
    request: str
    status: str
    text: str = ""
    flags: tuple[str, ...] = ()
    score: float | None = None
    error: str = ""
    final: bool = False
    raw: str = ""
    recipe_hash: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Spent:
    """What the answers of one request took together."""

    attempts: int = 0
    latency_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, answer: CaptionResponse) -> None:
        self.attempts += answer.attempts
        self.latency_ms += answer.latency_ms
        self.tokens_in += answer.tokens_in
        self.tokens_out += answer.tokens_out


async def ask(
    captioner: Captioner,
    asking: Asking,
    todo: Todo,
    kind: str,
    image: Prepared,
    *,
    run_id: str,
    other: OtherTokenizer | None = None,
) -> Outcome:
    """Ask for one format of one image. Errors of the backend become an outcome; only UserError is passed on, which
    says that no request of this run can succeed."""
    prompt, shown = asking.prompt(kind, todo.alt)
    parameters = asking.parameters(kind)
    request = CaptionRequest(
        key=todo.key,
        kind=kind,
        prompt_id=prompt.id,
        prompt=prompt.fill(alt=shown) if shown else prompt.fill(),
        image=image.data,
        media_type=image.media_type,
        alt=shown,
        max_tokens=int(parameters["max_tokens"]),
        temperature=float(parameters["temperature"]),
        seed=asking.draw_seed(todo.key, kind),
    )
    spent = _Spent()
    answer = await captioner.caption(request)
    spent.add(answer)
    details = {
        "backend": asking.backend,
        "revision": asking.revision,
        "prompt_id": prompt.id,
        "prompt_hash": prompt.sha256,
        "params": parameters,
        "seed": request.seed,
        "alt_hash": alt_hash(todo.alt) if kind == "afc" else "",
        "language": asking.settings.language,
    }
    made = Outcome(
        todo.key,
        kind,
        asking.request(todo.key, todo.sha256, kind, todo.alt),
        ERROR,
        recipe_hash=asking.recipe_hash(kind, prompt),
        details=details,
    )
    try:
        if answer.error:
            return replace(made, error=answer.error, final=answer.final, raw=_cut(answer.text))
        parsed = _parse(answer.text)
        if parsed.caption is None:
            return replace(made, error=parsed.error, final=True, raw=_cut(answer.text))
        wish = gates.retry(kind, parsed.caption)
        if wish:
            details["retry"] = wish
            again = await captioner.caption(_again(request, asking.prompts[wish], kind, parsed.caption))
            spent.add(again)
            second = Parsed("error:backend") if again.error else _parse(again.text)
            if second.caption is not None and gates.better(kind, parsed.caption, second.caption) == second.caption:
                parsed, answer = second, again
        assert parsed.caption is not None
        gated = gates.gate(kind, parsed.caption)
        if gated.error:
            return replace(made, error=gated.error, final=True, raw=_cut(answer.text))
        said = gates.content_flags(
            gated.caption, prompt=prompt.text, alt=todo.alt, english=asking.settings.language == "English"
        )
        unusable = ("alt_unusable",) if kind == "afc" and not shown else ()
        lengths = measure(gated.caption, other)
        details |= {"n_words": lengths.words, "n_clip": lengths.clip, "n_other": lengths.other}
        return replace(
            made,
            status=REPAIRED if parsed.status == REPAIRED else OK,
            text=gated.caption,
            flags=tuple(dict.fromkeys((*parsed.flags, *gated.flags, *said, *unusable))),
            score=answer.score,
        )
    finally:
        details |= {
            "attempts": spent.attempts,
            "latency_ms": round(spent.latency_ms, 1),
            "tokens_in": spent.tokens_in,
            "tokens_out": spent.tokens_out,
            "run_id": run_id,
            "code_version": __version__,
        }


def unreadable(asking: Asking, todo: Todo, kind: str, problem: BadImage) -> Outcome:
    """The outcome for an image that cannot be read."""
    request = asking.request(todo.key, todo.sha256, kind, todo.alt)
    return Outcome(todo.key, kind, request, SKIPPED, error=problem.reason, raw=str(problem))


def caption_row(outcome: Outcome, details: str) -> dict[str, object]:
    """The row of the table `captions`; `details` is the outcome's as JSON."""
    return {
        "key": outcome.key,
        "kind": outcome.kind,
        "text": outcome.text,
        "request": outcome.request,
        "status": outcome.status,
        "flags": " ".join(outcome.flags),
        "score": outcome.score,
        "details": details,
        "recipe_hash": outcome.recipe_hash,
    }


def error_row(outcome: Outcome, details: str) -> dict[str, object]:
    """The row of the table `caption_errors`."""
    return {
        "key": outcome.key,
        "request": outcome.request,
        "kind": outcome.kind,
        "error": outcome.error,
        "final": outcome.final,
        "raw": outcome.raw,
        "attempts": outcome.details.get("attempts", 0),
        "details": details,
        "recipe_hash": outcome.recipe_hash,
    }


def _again(request: CaptionRequest, prompt: Prompt, kind: str, caption: str) -> CaptionRequest:
    sentences = "one sentence" if kind == "ssc" else "complete sentences"
    values = {"caption": caption, "words": gates.RETRY_WORDS[kind]}
    filled = prompt.fill(**values, sentences=sentences) if prompt.id.startswith("shorten") else prompt.fill(**values)
    return replace(request, prompt_id=prompt.id, prompt=filled)


def _parse(text: str) -> Parsed:
    """What `parse_caption` reads, without control characters, which no table stores."""
    parsed = parse_caption(text)
    if parsed.caption is None:
        return parsed
    cleaned = " ".join(clean_text(parsed.caption).split())
    return replace(parsed, caption=cleaned) if cleaned else Parsed("error:empty")


def _cut(text: str) -> str:
    """The first 2 kB of an answer, as text that can be stored."""
    return storable(text).encode()[:_RAW_BYTES].decode("utf-8", "ignore")
