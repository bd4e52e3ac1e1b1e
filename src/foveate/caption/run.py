"""The pipeline behind `foveate caption`: worklist -> executor -> parts of rows, with counts that add up.

For every format: in = ok + repaired + errors + skipped. Rows are written in parts, every so many rows or seconds; a
kill loses at most the part that was not written, and the repeated command asks for just that.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
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
from foveate.records.appending import AnnotationAppender
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
        writer = _Writer(appender, run, settings, listed, source=f"captioner {backend}")
        # The page's thumbnails are made while answers are waited for.
        aside = ThreadPoolExecutor(1, thread_name_prefix="page")
        with aside, StopRequest() as stop, Meter("captions", listed.todo) as meter:
            images = aside.submit(example_images, opened, listed, run.path)
            writer.meter = meter
            failure = asyncio.run(_drive(chosen.run, job, listed, captioner, writer, lambda: bool(stop.signal_name)))
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


def plan(
    collection: Path, settings: CaptionSettings, *, backend: str, backend_settings: Settings
) -> tuple[Worklist, dict[str, Any]]:
    """What `caption` would ask, counted and estimated; nothing is asked or written."""
    with Collection.open(collection) as opened:
        captioner, asking = _opened(find_backend(backend), opened, settings, backend, backend_settings)
        asyncio.run(captioner.close())
        listed = worklist(opened, asking)
    return listed, estimate(listed)


def _opened(
    found: Backend, collection: Collection, settings: CaptionSettings, backend: str, backend_settings: Settings
) -> tuple[Captioner, Asking]:
    captioner = found.open(backend_settings, collection)
    return captioner, Asking(settings, backend, captioner.model, captioner.revision)


async def _drive(
    run: Callable[..., Any],
    job: Job,
    listed: Worklist,
    captioner: Captioner,
    writer: _Writer,
    stopping: Callable[[], bool],
) -> Exception | None:
    """Run the executor and write what comes; returns the UserError that ended it early, if one did.

    What came in is written whatever happens, a full disk excepted.
    """
    failure: Exception | None = None
    try:
        stream = run(job, listed, captioner, stopping)
        try:
            async for outcomes in stream:
                writer.take(outcomes)
                if writer.due:
                    await asyncio.to_thread(writer.flush)
        except UserError as error:
            failure = error
        finally:
            await stream.aclose()
        await asyncio.to_thread(writer.flush)
    finally:
        await captioner.close()
    return failure


class _Writer:
    """Rows that wait for their part, and the counts of those that came."""

    def __init__(
        self, appender: AnnotationAppender, run: RunFolder, settings: CaptionSettings, listed: Worklist, *, source: str
    ) -> None:
        self._appender, self._run, self._settings, self._listed = appender, run, settings, listed
        self._provenance = Provenance(source=source, model=listed.asking.model)
        self._waiting: list[Outcome] = []
        self._flushed = time.monotonic()
        self.tallies = {kind: Tally() for kind in settings.formats}
        for kind, counts in listed.counts.items():
            self.tallies[kind].skipped.update({"done": counts.done, "final error earlier": counts.final_errors})
        self.meter: Meter | None = None

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Remember outcomes until the next part."""
        self._waiting += outcomes
        for outcome in outcomes:
            self.tallies[outcome.kind].add(outcome)
        if self.meter is not None and outcomes:
            self.meter.advance(len(outcomes), note=self._note())

    def _note(self) -> str:
        errors = sum(tally.errors.total() for tally in self.tallies.values())
        refused = sum(tally.errors["refused"] for tally in self.tallies.values())
        note = f"{errors} errors, {refused} of them refusals"
        return (
            f"{note}, cost {self.cost()['total']:.4f}" if self._settings.price_in or self._settings.price_out else note
        )

    @property
    def due(self) -> bool:
        """Whether it is time for a part."""
        late = time.monotonic() - self._flushed >= self._settings.seconds_per_part
        return len(self._waiting) >= self._settings.rows_per_part or (late and bool(self._waiting))

    def flush(self) -> None:
        """Write what waits: captions, then errors, then the quarantine, each whole or not at all."""
        waiting, self._waiting = self._waiting, []
        seconds, self._flushed = time.monotonic() - self._flushed, time.monotonic()
        if not waiting:
            return
        captions, errors = list[dict[str, object]](), list[dict[str, object]]()
        quarantine = None
        for outcome in waiting:
            details = json.dumps(outcome.details, ensure_ascii=False, separators=(",", ":"))
            if outcome.status == ERROR:
                errors.append(error_row(outcome, details))
            elif outcome.status == SKIPPED:
                quarantine = quarantine or Quarantine(self._appender.path)
                quarantine.add(
                    outcome.key,
                    outcome.error,
                    outcome.raw,
                    source=self._provenance.source,
                    subject="image",
                    position=-1,
                    created=tables.now(),
                )
            else:
                captions.append(caption_row(outcome, details))
        self._appender.append("captions", captions, self._provenance) if captions else None
        self._appender.append("caption_errors", errors, self._provenance) if errors else None
        quarantine.save() if quarantine is not None else None
        self._log(waiting, seconds)

    def _log(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        """One line of usage.jsonl per part."""
        asked = [outcome for outcome in outcomes if outcome.status != SKIPPED]
        row = {
            "time": tables.now(),
            "seconds": round(seconds, 3),
            "requests": len(asked),
            "errors": sum(outcome.status == ERROR for outcome in asked),
            **{name: sum(o.details[name] for o in asked) for name in ("attempts", "tokens_in", "tokens_out")},
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
