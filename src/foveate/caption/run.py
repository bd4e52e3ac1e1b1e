"""The pipeline behind `foveate caption`: pending requests -> executor -> rows in parts.

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
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.caption.captioner import Backend, Captioner, find_backend
from foveate.caption.execution import CaptionJob, find_executor
from foveate.caption.lengths import OtherTokenizer
from foveate.caption.pending_requests import CaptionSettings, PendingRequests, RequestConfig, estimate, list_pending
from foveate.caption.requests import ERROR, SKIPPED, CaptionResult, caption_row, error_row
from foveate.caption.response_parser import OK, REPAIRED
from foveate.caption.results import CaptionRunResult, Cost, RequestTally
from foveate.caption.summary import collect_examples, save_example_images, summarize_captions
from foveate.core.errors import UserError
from foveate.core.progress import Meter
from foveate.core.recipes import Settings
from foveate.core.runs import RunFolder
from foveate.records import tables
from foveate.records.annotate import PartWriter, Row
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.images import is_passing
from foveate.records.labeling import Stopping, execute, find_failure
from foveate.records.quarantine import Quarantine
from foveate.records.tables import Provenance

_USAGE = ("attempts", "tokens_in", "tokens_out")
_DONE = "done"  # skipped, as an earlier run wrote the caption


@dataclass(slots=True)
class _FormatCounts:
    """Counts of the results of one format, while a run goes on; `usage` by the names of `RequestTally`."""

    usage: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)

    def add(self, result: CaptionResult) -> None:
        if result.status == SKIPPED:
            self.skipped[f"image: {result.error}"] += 1
            return
        self.usage.update(requested=1, **{name: result.details[name] for name in _USAGE})
        self.flags.update(result.flags)
        if model := result.details["answered_by"]:
            self.answered_by[model] += 1
        if result.status == ERROR:
            self.errors[result.error] += 1
        else:
            self.usage[result.status] += 1

    def tally(self, total: int, *, stopped: bool) -> RequestTally:
        """Add up the counts of a format; requests that a stop left count as skipped."""
        num_results = self.usage[OK] + self.usage[REPAIRED] + self.errors.total() + self.skipped.total()
        # Only after a stop: otherwise missing results are a bug, which the assertion below must catch.
        skipped = self.skipped + Counter({"stopped before": total - num_results if stopped else 0})
        tally = RequestTally(
            total=total,
            errors=dict(sorted(self.errors.items())),
            skipped=dict(sorted(skipped.items())),
            flags=dict(sorted(self.flags.items())),
            answered_by=dict(sorted(self.answered_by.items())),
            **{name: self.usage[name] for name in (OK, REPAIRED, "requested", *_USAGE)},
        )
        assert tally.balanced, f"{total} requests, {num_results} accounted for"
        return tally


@dataclass(frozen=True, slots=True)
class CaptionRun:
    """A finished run.

    Attributes:
        result: for result.json.
        stopped: a signal stopped it before its end.
        failure: why it had to end early, if it had to; else set if no caption was written, or if images could not be
            reached.
    """

    result: CaptionRunResult
    stopped: bool
    failure: UserError | None = None


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
) -> CaptionRun:
    """Caption the images of a collection.

    Args:
        backend, backend_settings: the captioner, see `foveate.caption.captioner`.
        run: gets result.json, usage.jsonl and images for the page.
        executor: see `foveate.caption.execution.Executor`.
        workers: threads that prepare images.
        processes: worker processes of the executor `ray`.
        tokenizer: a tokenizer.json whose counts are stored beside those of CLIP.

    Raises:
        UserError: another process writes the collection, no image is selected, or no request could succeed from the
            start.
    """
    began = time.monotonic()
    executor_kind, backend_kind = find_executor(executor), find_backend(backend)
    if tokenizer is not None:
        OtherTokenizer(tokenizer)  # fail early: validate the tokenizer before any request
    # The writer's lock comes before any request: two runs at once would pay twice for the same captions.
    with AnnotationAppender(collection, purpose="captioning") as appender, Collection.open(collection) as opened:
        captioner, config = _open_captioner(backend_kind, opened, settings, backend, backend_settings)
        pending = list_pending(opened, config)
        plain_settings = backend_settings.model_dump(mode="json")
        job = CaptionJob(opened.path, config, plain_settings, uuid.uuid4().hex[:12], tokenizer, workers, processes)
        writer = _RunWriter(appender, run, pending, source=f"captioner {backend}", name=opened.name)
        # The page's thumbnails are made while responses are waited for.
        thumbnails = ThreadPoolExecutor(1, thread_name_prefix="page")
        with thumbnails, Meter("captions", pending.pending) as meter:
            images = thumbnails.submit(save_example_images, opened, pending, run.path)

            async def request(stopping: Stopping) -> AsyncGenerator[list[CaptionResult], None]:
                try:
                    async with contextlib.aclosing(executor_kind.run(job, pending, captioner, stopping)) as stream:
                        async for results in stream:
                            writer.count(results, meter)
                            # Empty lists too: they tell the writer that time has passed, which ends a part.
                            yield results
                finally:
                    # In the same event loop: a captioner's connections belong to it.
                    await captioner.close()

            ending = execute(request, writer.parts)
        # Read back from the tables: rows of earlier sessions belong to the result, too.
        num_requests = sum(counts.total for counts in pending.counts.values())
        captions = summarize_captions(opened.path, captioner.model, settings.formats, num_rows=num_requests)
        examples = collect_examples(opened.path, pending, images.result())
    result = CaptionRunResult(
        collection=opened.name,
        backend=backend,
        only_scenes=backend_kind.only_scenes,
        model=captioner.model,
        revision=captioner.revision,
        settings=settings.model_dump(mode="json"),
        backend_settings=plain_settings,
        executor=executor,
        run_id=job.run_id,
        images=pending.images,
        formats=writer.tallies(stopped=ending.stopped or ending.failure is not None),
        cost=writer.cost(),
        captions=captions,
        examples=examples,
        seconds=round(time.monotonic() - began, 3),
        stopped=ending.stopped,
        failure="" if ending.failure is None else str(ending.failure),
    )
    return CaptionRun(result, ending.stopped, ending.failure or _find_failure(result, writer.unreachable))


def _find_failure(result: CaptionRunResult, unreachable: Mapping[str, str]) -> UserError | None:
    """Return an error if no request gave a caption or images could not be reached.

    Args:
        unreachable: key -> why its file could not be read for now.
    """
    tallies = result.formats.values()
    errors = sum((Counter(tally.errors) for tally in tallies), Counter[str]())
    succeeded = any(tally.ok + tally.repaired for tally in tallies)
    # Captions of earlier runs count only if images are away: a server that answers nothing now is a failure.
    if unreachable:
        succeeded = succeeded or any(tally.skipped.get(_DONE, 0) for tally in tallies)
    return find_failure(
        result.images,
        succeeded=succeeded,
        failed=dict(errors.most_common()),
        unreachable=len(unreachable),
        first_error=next(iter(unreachable.values()), ""),
        stopped=result.stopped,
        subject=result.model,
        items="requests",
        hint="no caption was written",
    )


def plan(
    collection: Path, settings: CaptionSettings, *, backend: str, backend_settings: Settings
) -> tuple[PendingRequests, dict[str, Any]]:
    """List and estimate what `caption` would request; nothing is sent or written."""
    with Collection.open(collection) as opened:
        captioner, config = _open_captioner(find_backend(backend), opened, settings, backend, backend_settings)
        # Opened only for its model and revision, which are part of the request keys.
        asyncio.run(captioner.close())
        pending = list_pending(opened, config)
    return pending, estimate(pending)


def _open_captioner(
    kind: Backend, collection: Collection, settings: CaptionSettings, backend: str, backend_settings: Settings
) -> tuple[Captioner, RequestConfig]:
    captioner = kind.open(backend_settings, collection)
    return captioner, RequestConfig(settings, backend, captioner.model, captioner.revision)


class _RunWriter:
    """Writes the rows of a run in parts, counts its results by format and reports progress."""

    def __init__(
        self, appender: AnnotationAppender, run: RunFolder, pending: PendingRequests, *, source: str, name: str
    ) -> None:
        self._collection, self._name, self._run, self._pending = appender.path, name, run, pending
        self._settings = pending.config.settings
        self._source = source
        self.parts = PartWriter(
            appender,
            Provenance(source=source, model=pending.config.model),
            _split_rows,
            max_results=self._settings.rows_per_part,
            max_seconds=self._settings.seconds_per_part,
            on_part=self._finish_part,
        )
        # Key -> why its file could not be read for now.
        self.unreachable: dict[str, str] = {}
        self._counts = {kind: _FormatCounts() for kind in self._settings.formats}
        for kind, counts in pending.counts.items():
            # Skipped from the start, so that the counts add up to all requests of the format.
            self._counts[kind].skipped.update({_DONE: counts.completed, "final error earlier": counts.final_errors})

    def count(self, results: Sequence[CaptionResult], meter: Meter) -> None:
        """Count results of the executor, which are not written yet."""
        for result in results:
            self._counts[result.kind].add(result)
            if result.status == SKIPPED and is_passing(result.error):
                self.unreachable[result.key] = result.raw
        if results:
            meter.advance(len(results), note=self._progress_note())

    def _progress_note(self) -> str:
        errors = sum(counts.errors.total() for counts in self._counts.values())
        refused = sum(counts.errors["refused"] for counts in self._counts.values())
        note = f"{errors} errors, {refused} of them refusals"
        priced = self._settings.price_in or self._settings.price_out
        return f"{note}, cost {self.cost().total:.4f}" if priced else note

    def _finish_part(self, results: Sequence[CaptionResult], seconds: float) -> None:
        """Quarantine the images of a part that cannot be read, and add its line to usage.jsonl."""
        # After the rows: a kill in between repeats the images, and the quarantine stores each finding once.
        unreadable = [result for result in results if result.status == SKIPPED]
        if unreadable:
            quarantine = Quarantine(self._collection)
            for result in unreadable:
                quarantine.add(
                    result.key,
                    result.error,
                    result.raw,
                    source=self._source,
                    subject="image",
                    position=-1,
                    created=tables.now(),
                )
            quarantine.save()
        requested = [result for result in results if result.status != SKIPPED]
        usage = {
            "time": tables.now(),
            "collection": self._name,
            "model": self._pending.config.model,
            "seconds": round(seconds, 3),
            "requests": len(requested),
            "errors": sum(result.status == ERROR for result in requested),
            **{name: sum(result.details[name] for result in requested) for name in _USAGE},
        }
        # Appended: a folder holds the sessions of all runs into it, maybe of several collections and models.
        with (self._run.path / "usage.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(usage) + "\n")

    def tallies(self, *, stopped: bool) -> dict[str, RequestTally]:
        """Add up the counts of each format."""
        return {
            kind: counts.tally(self._pending.counts[kind].total, stopped=stopped)
            for kind, counts in self._counts.items()
        }

    def cost(self) -> Cost:
        """Price the tokens of all responses so far."""
        usage = sum((counts.usage for counts in self._counts.values()), Counter[str]())
        # Prices are those of a million tokens, as providers list them.
        tokens_in = usage["tokens_in"] * self._settings.price_in / 1e6
        tokens_out = usage["tokens_out"] * self._settings.price_out / 1e6
        return Cost(tokens_in=tokens_in, tokens_out=tokens_out, total=tokens_in + tokens_out)


def _split_rows(results: Sequence[CaptionResult]) -> dict[str, list[Row]]:
    captions, errors = list[Row](), list[Row]()
    for result in results:
        details = json.dumps(result.details, ensure_ascii=False, separators=(",", ":"))
        if result.status == ERROR:
            errors.append(error_row(result, details))
        elif result.status != SKIPPED:
            captions.append(caption_row(result, details))
    return {"captions": captions, "caption_errors": errors}
