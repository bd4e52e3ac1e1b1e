"""The pipeline behind `foveate caption`: worklist -> executor -> parts of rows, with counts that add up.

For every format: in = ok + repaired + errors + skipped. Rows are written in parts, every so many rows or seconds; a
kill loses at most the part that was not written, and the repeated command asks for just that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.caption.asking import ERROR, SKIPPED, Outcome, caption_row, error_row
from foveate.caption.captioner import Backend, Captioner, find_backend
from foveate.caption.estimate import estimate
from foveate.caption.executing import Job, find_executor
from foveate.caption.lengths import OtherTokenizer
from foveate.caption.summary import example_images, examples, made_by
from foveate.caption.work import Asking, CaptionSettings, Worklist, worklist
from foveate.core.errors import UserError
from foveate.core.progress import Meter
from foveate.core.recipes import Settings
from foveate.core.runs import RunFolder
from foveate.records import tables
from foveate.records.annotate import PartWriter, write_stream
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.quarantine import Quarantine
from foveate.records.tables import Provenance
from foveate.training.stopping import StopRequest


@dataclass(slots=True)
class Tally:
    """What became of the requests of one format."""

    asked: int = 0
    ok: int = 0
    repaired: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    attempts: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.status == SKIPPED:
            self.skipped[f"image: {outcome.error}"] += 1
            return
        self.asked += 1
        self.flags.update(outcome.flags)
        self.tokens_in += outcome.details["tokens_in"]
        self.tokens_out += outcome.details["tokens_out"]
        self.attempts += outcome.details["attempts"]
        if outcome.status == ERROR:
            self.errors[outcome.error] += 1
        elif outcome.status == "ok":
            self.ok += 1
        else:
            self.repaired += 1

    def as_dict(self, total: int) -> dict[str, Any]:
        """For result.json; `total` are the requests of the format, and they add up."""
        found = self.ok + self.repaired + self.errors.total() + self.skipped.total()
        assert found == total, f"{total} requests, {found} accounted for"
        return {
            "in": total,
            "ok": self.ok,
            "repaired": self.repaired,
            "errors": dict(sorted(self.errors.items())),
            "skipped": dict(sorted(self.skipped.items())),
            "flags": dict(sorted(self.flags.items())),
            "asked": self.asked,
            "attempts": self.attempts,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
        }


@dataclass(frozen=True, slots=True)
class Done:
    """A run's result.json, whether a signal stopped it before its end, and why it had to end early (or "")."""

    result: dict[str, Any]
    stopped: bool
    failure: Exception | None = None


def caption(
    collection: Path,
    settings: CaptionSettings,
    *,
    backend: str,
    backend_settings: Settings,
    run: RunFolder,
    executor: str = "local",
    workers: int = 2,
    processes: int = 2,
    tokenizer: Path | None = None,
) -> Done:
    """Caption the images of a collection.

    Args:
        backend, backend_settings: who answers, see `foveate.caption.captioner`.
        run: gets result.json, usage.jsonl and images for the page.
        executor: see `foveate.caption.executing`. workers: threads that prepare images. processes: of `ray`.
        tokenizer: a tokenizer.json whose counts are kept beside those of CLIP.

    Raises:
        UserError: another process writes the collection, nothing is meant, or no request could succeed from the start.
    """
    began = time.monotonic()
    chosen, found = find_executor(executor), find_backend(backend)
    if tokenizer is not None:
        OtherTokenizer(tokenizer)  # said now rather than after the first answer
    with AnnotationAppender(collection, purpose="captioning") as appender, Collection.open(collection) as opened:
        captioner, asking = _opened(found, opened, settings, backend, backend_settings)
        listed = worklist(opened, asking)
        plain = backend_settings.model_dump(mode="json")
        job = Job(opened.path, asking, plain, uuid.uuid4().hex[:12], tokenizer, workers, processes)
        writer = _RunWriter(appender, run, settings, listed, source=f"captioner {backend}")
        # The page's thumbnails are made while answers are waited for.
        aside = ThreadPoolExecutor(1, thread_name_prefix="page")
        with aside, StopRequest() as stop, Meter("captions", listed.todo) as meter:
            images = aside.submit(example_images, opened, listed, run.path)
            writer.meter = meter
            stream = chosen.run(job, listed, captioner, lambda: bool(stop.signal_name))
            failure = asyncio.run(_write(stream, captioner, writer))
        stopped = stop.signal_name is not None
        total = sum(counts.total for counts in listed.counts.values())
        made = made_by(opened.path, captioner.model, settings.formats, total=total)
        shown = examples(opened.path, listed, images.result())
    result = {
        "kind": "caption",
        "collection": opened.name,
        "backend": backend,
        "only_scenes": found.only_scenes,
        "model": captioner.model,
        "revision": captioner.revision,
        "settings": settings.model_dump(mode="json"),
        "backend_settings": plain,
        "executor": executor,
        "run_id": job.run_id,
        "images": listed.images,
        "formats": writer.results(stopped=stopped or failure is not None),
        "cost": writer.cost(),
        "made": made,
        "examples": shown,
        "seconds": round(time.monotonic() - began, 3),
        "stopped": stopped,
        "failure": "" if failure is None else str(failure),
    }
    return Done(result, stopped, failure)


async def _write(
    stream: AsyncGenerator[list[Outcome], None], captioner: Captioner, writer: _RunWriter
) -> UserError | None:
    try:
        return await write_stream(writer.counted(stream), writer.parts)
    finally:
        await captioner.close()


def plan(
    collection: Path, settings: CaptionSettings, *, backend: str, backend_settings: Settings
) -> tuple[Worklist, dict[str, Any]]:
    """What `caption` would ask, counted and estimated; nothing is asked or written."""
    with Collection.open(collection) as opened:
        captioner, asking = _opened(find_backend(backend), opened, settings, backend, backend_settings)
        asyncio.run(captioner.close())
        listed = worklist(opened, asking)
    return listed, estimate(listed)


def _split_rows(outcomes: Sequence[Outcome]) -> dict[str, list[dict[str, object]]]:
    captions, errors = list[dict[str, object]](), list[dict[str, object]]()
    for outcome in outcomes:
        details = json.dumps(outcome.details, ensure_ascii=False, separators=(",", ":"))
        if outcome.status == ERROR:
            errors.append(error_row(outcome, details))
        elif outcome.status != SKIPPED:
            captions.append(caption_row(outcome, details))
    return {"captions": captions, "caption_errors": errors}


def _opened(
    found: Backend, collection: Collection, settings: CaptionSettings, backend: str, backend_settings: Settings
) -> tuple[Captioner, Asking]:
    captioner = found.open(backend_settings, collection)
    return captioner, Asking(settings, backend, captioner.model, captioner.revision)


class _RunWriter:
    """Writes the rows of a run in parts, counts its results by format and shows the progress."""

    def __init__(
        self, appender: AnnotationAppender, run: RunFolder, settings: CaptionSettings, listed: Worklist, *, source: str
    ) -> None:
        self._appender, self._run, self._settings, self._listed = appender, run, settings, listed
        self._provenance = Provenance(source=source, model=listed.asking.model)
        self.parts = PartWriter(
            appender,
            self._provenance,
            _split_rows,
            max_results=settings.rows_per_part,
            max_seconds=settings.seconds_per_part,
            on_part=self._finish_part,
        )
        self.tallies = {kind: Tally() for kind in settings.formats}
        for kind, counts in listed.counts.items():
            self.tallies[kind].skipped.update({"done": counts.done, "final error earlier": counts.final_errors})
        self.meter: Meter | None = None

    async def counted(self, stream: AsyncGenerator[list[Outcome], None]) -> AsyncGenerator[list[Outcome], None]:
        """Pass on what an executor yields, counted."""
        async with contextlib.aclosing(stream):
            async for outcomes in stream:
                for outcome in outcomes:
                    self.tallies[outcome.kind].add(outcome)
                if self.meter is not None and outcomes:
                    self.meter.advance(len(outcomes), note=self._note())
                yield outcomes

    def _note(self) -> str:
        errors = sum(tally.errors.total() for tally in self.tallies.values())
        refused = sum(tally.errors["refused"] for tally in self.tallies.values())
        note = f"{errors} errors, {refused} of them refusals"
        return (
            f"{note}, cost {self.cost()['total']:.4f}" if self._settings.price_in or self._settings.price_out else note
        )

    def _finish_part(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Quarantine the images of a part that cannot be read, and add its line to usage.jsonl."""
        unreadable = [outcome for outcome in outcomes if outcome.status == SKIPPED]
        if unreadable:
            quarantine = Quarantine(self._appender.path)
            for outcome in unreadable:
                quarantine.add(
                    outcome.key,
                    outcome.error,
                    outcome.raw,
                    source=self._provenance.source,
                    subject="image",
                    position=-1,
                    created=tables.now(),
                )
            quarantine.save()
        requested = [outcome for outcome in outcomes if outcome.status != SKIPPED]
        row = {
            "time": tables.now(),
            "seconds": round(seconds, 3),
            "requests": len(requested),
            "errors": sum(outcome.status == ERROR for outcome in requested),
            **{name: sum(o.details[name] for o in requested) for name in ("attempts", "tokens_in", "tokens_out")},
        }
        with (self._run.path / "usage.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def results(self, *, stopped: bool) -> dict[str, Any]:
        """By format; what a stop left unasked is skipped."""
        found = {}
        for kind, tally in self.tallies.items():
            total = self._listed.counts[kind].total
            accounted = tally.ok + tally.repaired + tally.errors.total() + tally.skipped.total()
            if stopped and accounted < total:
                tally.skipped["stopped before"] = total - accounted
            tally.skipped = +tally.skipped
            found[kind] = tally.as_dict(total)
        return found

    def cost(self) -> dict[str, float]:
        """What the tokens cost at the given prices."""
        spent_in = sum(tally.tokens_in for tally in self.tallies.values()) * self._settings.price_in / 1e6
        spent_out = sum(tally.tokens_out for tally in self.tallies.values()) * self._settings.price_out / 1e6
        return {"in": spent_in, "out": spent_out, "total": spent_in + spent_out}
