"""Read the media and observations of a survey for exporters, also those of images that are not there."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import UserError, nearest
from foveate.records.collection import Collection
from foveate.records.tables import positions
from foveate.survey.camtrap_schema import is_valid_time
from foveate.survey.detections import Decision
from foveate.survey.hours import Times, local_clock, parse_times, stated_offset
from foveate.survey.store import ANSWERED, FRAMES, REVIEW_SOURCE, list_deployments, select_current, select_last
from foveate.survey.taxa import Taxa
from foveate.survey.types import Deployment, Medium, Observation
from foveate.survey.videos import find_video, select_shown

_BATCH_ROWS = 10_000


class SurveyRows:
    """Rows of a survey, with those of images that are not in the collection.

    Args:
        without: keys of images that are left out with their observations; None leaves nothing out. Rows about people
            and events go, too, since images that show people are what it is for.
    """

    def __init__(self, collection: Collection, *, without: Set[str] | None = None) -> None:
        self.collection, self.without = collection, without
        self.deployments = {deployment.id: deployment for deployment in list_deployments(collection)}
        self.media = self._read_media()
        if not self.media.num_rows:
            raise UserError(f"collection {collection.name!r} has no camera-trap survey: no image has a row in 'media'")
        # Media may name deployments that no table describes.
        for name in self.media["deployment"].unique().to_pylist():
            self.deployments.setdefault(name, Deployment(name))

    def _read_media(self) -> pa.Table:
        columns = ["key", "deployment", "sequence", "frame_number", "time", "file", "extra"]
        newest = self._leave_out(select_last(self.collection.table("media").select(columns)))
        absent = self._leave_out(self.collection.dataset_table("media_without_image"))
        if not absent.num_rows:
            return newest.combine_chunks()
        # An image that was imported later has its row in `newest`, which takes the place of the one from before.
        gone = positions(absent["key"], among=newest["key"]) < 0
        return pa.concat_tables([newest, absent.filter(pa.array(gone)).select(columns)]).combine_chunks()

    def _leave_out(self, table: pa.Table) -> pa.Table:
        if not self.without or not table.num_rows:
            return table
        return table.filter(pa.array([key not in self.without for key in table["key"].to_pylist()], pa.bool_()))

    @cached_property
    def keys(self) -> dict[str, int]:
        """Row of each medium by its key."""
        return {key: row for row, key in enumerate(self.media["key"].to_pylist())}

    def find_row(self, key: str) -> int:
        """Return the row of a medium; raise UserError with the nearest if there is none."""
        if key not in self.keys:
            raise UserError(f"decision about {key!r}: no image of the survey has this key{nearest(key, self.keys)}")
        return self.keys[key]

    @cached_property
    def times(self) -> list[str]:
        """Time of each medium as ISO 8601, after the shift of its deployment's clock; "" where there is none.

        It has an offset where its text has one, or where the user states that of the deployment.
        """
        clocks, offsets = self.clock_N.tolist(), self.offset_N.tolist()
        texts = zip(self.media["time"].to_pylist(), self.media["deployment"].to_pylist(), clocks, offsets, strict=True)
        return [
            # A valid time is passed on as it is, so that a package comes out with its own offsets.
            text if is_valid_time(text) and not self.deployments[name].clock_shift else format_time(clock, offset)
            for text, name, clock, offset in texts
        ]

    @cached_property
    def local_times(self) -> list[str]:
        """Time of each medium as `times`, at the place: one in another offset than the stated one is converted."""
        clocks = zip(self.clock_N.tolist(), self.local_clock_N.tolist(), self._stated_offset_N.tolist(), strict=True)
        return [
            # NaN is a time that is not there.
            time if local == clock or np.isnan(local) else format_time(local, offset)
            for time, (clock, local, offset) in zip(self.times, clocks, strict=True)
        ]

    @cached_property
    def clock_N(self) -> np.ndarray:
        """Seconds of the clock of each medium after its shift; NaN where there is no time."""
        return self._parsed.wall_N + self._shift_N

    @cached_property
    def local_clock_N(self) -> np.ndarray:
        """Seconds of the clock at the place of each medium, shifted; NaN where there is no time."""
        # For tables whose times have no offset; Camtrap DP writes the clock with its own offset instead.
        return local_clock(self._parsed, shift_N=self._shift_N, place_offset_N=self._stated_offset_N)

    @cached_property
    def _shift_N(self) -> np.ndarray:
        shifts = {name: entry.clock_shift for name, entry in self.deployments.items()}
        return np.array([shifts[name] for name in self.media["deployment"].to_pylist()], np.int64)

    @cached_property
    def _parsed(self) -> Times:
        return parse_times(self.media["time"])

    @cached_property
    def _stated_offset_N(self) -> np.ndarray:
        stated = {name: stated_offset(entry) for name, entry in self.deployments.items()}
        return np.array([stated[name] for name in self.media["deployment"].to_pylist()], np.float64)

    @cached_property
    def offset_N(self) -> np.ndarray:
        """Seconds east of UTC of each medium, by its text or else its deployment; NaN where neither states one."""
        return np.where(np.isnan(self._parsed.offset_N), self._stated_offset_N, self._parsed.offset_N)

    def read_media(self) -> Iterator[tuple[int, Medium]]:
        """Yield each medium with its row."""
        row = 0
        for batch in self.media.to_batches(max_chunksize=_BATCH_ROWS):
            for entry in batch.to_pylist():
                yield row, Medium.from_row(entry)
                row += 1

    def read_observations(self) -> Iterator[Observation]:
        """Yield observations of images, also of absent ones, then those of events; without `event_answers`."""
        with_image = self._current
        absent = self.collection.dataset_table("observations_without_image")
        if absent.num_rows:
            # Rows of absent images that came later are in the first table, too.
            absent = absent.filter(pa.array(positions(absent["key"], among=self.collection.table("media")["key"]) < 0))
        for table in (with_image, absent, self.collection.dataset_table("event_observations")):
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                for observation in map(Observation.from_row, batch.to_pylist()):
                    if FRAMES in observation.extra:
                        continue
                    if self.without is None or (
                        observation.key not in self.without and (observation.key or observation.kind != "human")
                    ):
                        yield observation

    @cached_property
    def _current(self) -> pa.Table:
        return select_current(self.collection.table("observations"))

    @cached_property
    def event_answers(self) -> list[tuple[Observation, list[str]]]:
        """Answers of a review about events, with the keys of their images that are still there."""
        table = self._current.filter(pc.call_function("equal", [self._current["level"], pa.scalar("event")]))
        rows = [Observation.from_row(row) for row in table.to_pylist()]
        keys = [json.loads(row.extra.get(FRAMES, "[]")) for row in rows]
        shown = self.keys.keys() - (self.without or frozenset())
        pairs = [(row, [key for key in of_row if key in shown]) for row, of_row in zip(rows, keys, strict=True)]
        return [(row, of_row) for row, of_row in pairs if of_row]

    @cached_property
    def review_ids(self) -> set[tuple[str, str]]:
        """Key and id of each row that a person wrote in a review."""
        table = self.collection.table("observations").select(["key", "id", "source"])
        is_review = pc.call_function("starts_with", [table["source"]], pc.MatchSubstringOptions(REVIEW_SOURCE))
        return {(row["key"], row["id"]) for row in table.filter(is_review).to_pylist()}

    @cached_property
    def sequences(self) -> dict[tuple[str, str], list[str]]:
        """Keys of each sequence of the source by deployment and id: cameras may count from 1."""
        sequences: dict[tuple[str, str], list[str]] = defaultdict(list)
        columns = (self.media[name].to_pylist() for name in ("key", "deployment", "sequence"))
        for key, deployment, sequence in zip(*columns, strict=True):
            if sequence:
                sequences[deployment, sequence].append(key)
        return dict(sequences)


@dataclass(frozen=True, slots=True)
class EventAnswer:
    """What people say of an event: one kind or taxon.

    Args:
        keys: images that it is about. event_keys: all images of the event.
        is_new: whether `MergedObservations.read` lacks the row.
    """

    row: Observation
    keys: Sequence[str]
    event_keys: Sequence[str]
    is_new: bool


@dataclass
class MergedObservations:
    """A survey's observations, with those of a machine replaced by new decisions and answers of people about events.

    Rows of people, rows without a stated method and rows about setting up the camera are never changed. They are the
    answer about their event, in place of its decisions. A frame that a person called empty does not change the decision
    about the others. An answer of a review is about one decision: others of its event, such as a second species, stay.

    Args:
        decisions: None leaves everything as it is.
        events: keys of the images of each event that was pooled; by default the sequences whose id one deployment has.

    Attributes:
        reviewed: rows of people about each image that has a decision.
        answers: what people say of each decision; nothing where it stands.
        answered: whether people have answered each decision.
        labeled: images with rows that stay, after `read`.
        num_skipped: decisions that gave way to a person, after `new`.
    """

    rows: SurveyRows
    decisions: Sequence[Decision] | None
    events: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if self.events is None:
            # Cameras may count their sequences from 1, and an id that two of them use names no single event.
            deployments = Counter(sequence for _, sequence in self.rows.sequences)
            self.events = {
                sequence: keys for (_, sequence), keys in self.rows.sequences.items() if deployments[sequence] == 1
            }
        self.reviewed: dict[str, list[Observation]] = defaultdict(list)
        self._reviewed_events: dict[tuple[str, str], list[Observation]] = defaultdict(list)
        self.labeled: set[str] = set()
        self.num_skipped = 0
        decided = self.decisions or ()
        # Decisions about each image, and about each event.
        self._about: dict[str, list[int]] = defaultdict(list)
        self._about_event: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, decision in enumerate(decided):
            if decision.event and not self.events.get(decision.event):
                raise UserError(f"decision about event {decision.event!r}: the survey has no such event")
            for key in self.members(decision):
                # Called for its error about unknown images, before the first row is written.
                self.rows.find_row(key)
                self._about[key].append(index)
            if decision.event:
                self._about_event[self._event(decision)].append(index)
        self.decided_keys = set(self._about)
        self.decided_events = set(self._about_event)
        self._sequences = self.rows.media["sequence"].to_pylist()
        # Events of answers whose images have no decision here, as where a survey is exported without any.
        self._answer_events = {key: row.event for row, keys in self.rows.event_answers for key in keys}
        for observation in self.rows.read_observations() if decided or self._answer_events else ():
            if _is_reviewed(observation):
                if observation.key in self.decided_keys or observation.key in self._answer_events:
                    self.reviewed[observation.key].append(observation)
                elif (observation.deployment, observation.event) in self.decided_events and not observation.key:
                    self._reviewed_events[observation.deployment, observation.event].append(observation)
        self._match_event_answers()
        self.answers = [self._find_answers(index) for index in range(len(decided))]
        self.answered = [bool(answers) for answers in self.answers]

    def _match_event_answers(self) -> None:
        """Find the decisions that each answer about an event is about, by their images and then by their name."""
        self._event_answers: dict[int, list[Observation]] = defaultdict(list)
        self._loose_answers: list[tuple[Observation, list[str]]] = []
        # Rows of images that lie beside one about their event.
        self._beside = {(key, row.extra.get(ANSWERED)) for row, keys in self.rows.event_answers for key in keys}
        for row, keys in self.rows.event_answers:
            touched = dict.fromkeys(index for key in keys for index in self._about.get(key, ()))
            groups: dict[str, list[int]] = defaultdict(list)
            for index in touched:
                if event := self._decided[index].event:
                    groups[event].append(index)
            for group in groups.values():
                for index in self._select_named(group, row):
                    self._event_answers[index].append(row)
            if not groups:
                self._loose_answers.append((row, keys))

    def _select_named(self, indices: Sequence[int], row: Observation) -> Sequence[int]:
        """Return the decisions of an event or image that a row answers: that of its name, else all."""
        named = [index for index in indices if self._decided[index].label == row.extra.get(ANSWERED)]
        return named or indices

    @property
    def _decided(self) -> Sequence[Decision]:
        return self.decisions or ()

    def _event(self, decision: Decision) -> tuple[str, str]:
        """Return deployment and id of the event that a decision is about."""
        row = self.rows.find_row(self.members(decision)[0])
        return self.rows.media["deployment"][row].as_py(), decision.event

    def members(self, decision: Decision) -> Sequence[str]:
        """Return the keys of the images that a decision is about."""
        return decision.keys or ((self.events or {})[decision.event] if decision.event else (decision.key,))

    def name_event(self, key: str) -> str:
        """Return the id of the event of an image: of its decision, else of its source; "" for none."""
        about = self._about.get(key)
        event = self._decided[about[0]].event if about else self._answer_events.get(key, "")
        return event or self._sequences[self.rows.keys[key]]

    def _find_answers(self, index: int) -> list[Observation]:
        """Return what people say of a decision, one row for each kind; none where the decision stands."""
        decision = self._decided[index]
        if not decision.event:
            rows = self.reviewed.get(decision.key, ())
            return [row for row in rows if index in self._select_named(self._about[decision.key], row)]
        if not (self.reviewed or self._reviewed_events or self._event_answers):
            return []
        deployment, event = self._event(decision)
        if index in self._event_answers:
            return _join_answers(self._event_answers[index], deployment, event)
        if (deployment, event) in self._reviewed_events:
            return self._reviewed_events[deployment, event]
        members = self.members(decision)
        own = {key: self.list_own_rows(key) for key in members}
        rows = [row for of_image in own.values() for row in of_image]
        for kinds in (("animal", "human", "vehicle"), ("unknown",), ("blank",)):
            answers = [row for row in rows if row.kind in kinds]
            # An empty frame is no evidence about the others of its burst.
            if answers and (kinds != ("blank",) or all(own.values())):
                return _join_answers(answers, deployment, event)
        return []

    def list_own_rows(self, key: str) -> list[Observation]:
        """Return the rows of people about an image alone: they say all of it, in place of every decision about it."""
        return [row for row in self.reviewed.get(key, ()) if (key, row.extra.get(ANSWERED)) not in self._beside]

    def read(self) -> Iterator[Observation]:
        """Yield the observations of the survey that stay."""
        for observation in self.rows.read_observations():
            replaced = observation.key in self.decided_keys or (
                not observation.key and (observation.deployment, observation.event) in self.decided_events
            )
            if not replaced or _is_reviewed(observation):
                self.labeled.add(observation.key)
                yield observation

    def read_answers(self) -> Iterator[EventAnswer]:
        """Yield the answers about events, each kind and taxon of an event once.

        "blank" is left out where something else of the event stays: it says that one of several species is not there.
        """
        for event, indices in self._about_event.items():
            pairs: list[tuple[Observation, Sequence[str]]] = []
            lines: dict[int, tuple[Observation, list[str]]] = {}
            for index in indices:
                members = self.members(self._decided[index])
                # A row about several decisions is found at each of them, and is one row: its count is not added.
                for row in self._event_answers.get(index, ()):
                    lines.setdefault(id(row), (row, []))[1].extend(members)
                if index not in self._event_answers:
                    pairs += [(row, members) for row in self.answers[index]]
            pairs += [(about, keys) for row, keys in lines.values() for about in _join_answers([row], *event)]
            stays = {self._decided[index].kind for index in indices if not self.answered[index]}
            event_keys = (self.events or {})[event[1]]
            for row, keys in _join_lines(pairs, stays, is_line=bool(lines)):
                yield EventAnswer(row, keys, event_keys, event not in self._reviewed_events)
        loose: dict[tuple[str, str], list[tuple[Observation, Sequence[str]]]] = defaultdict(list)
        for row, keys in self._loose_answers:
            (about_event,) = _join_answers([row], row.deployment, row.event)
            loose[row.deployment, row.event].append((about_event, keys))
        for pairs in loose.values():
            event_keys = [*dict.fromkeys(key for _, keys in pairs for key in keys)]
            for row, keys in _join_lines(pairs, set(), is_line=True):
                # Images with decisions of their own are none of its images any more.
                yield EventAnswer(row, [key for key in keys if key not in self._about], event_keys, True)

    def image_answers(self) -> dict[str, list[Observation]]:
        """Return what people say of each image that has a decision: rows of its own, and those about its events.

        An image of which a person says no more than that one of its species is not there has no entry.
        """
        answers: dict[str, list[Observation]] = {
            key: [*rows] for key, rows in self.reviewed.items() if key in self._about
        }
        for answer in self.read_answers():
            for key in answer.keys:
                if key in self._about and self.says_more(answer, key):
                    answers.setdefault(key, []).append(answer.row)
        for key, rows in [*answers.items()]:
            shown = [row for row in rows if row.kind != "blank"]
            if shown or (self.open_decisions(key) and not self.list_own_rows(key)):
                answers[key] = shown
        return {key: rows for key, rows in answers.items() if rows}

    def open_decisions(self, key: str) -> list[int]:
        """Return the decisions about an image that nobody has answered and that show something."""
        return [
            index
            for index in self._about.get(key, ())
            if not self.answered[index] and self._decided[index].kind not in ("blank", "unclassified")
        ]

    def says_more(self, answer: EventAnswer, key: str) -> bool:
        """Whether an answer about an event says more of an image than the rows that a person wrote about it."""
        known = {(row.kind, row.taxon) for row in self.reviewed.get(key, ())}
        return (answer.row.kind, answer.row.taxon) not in known and not self.list_own_rows(key)

    def new(self) -> Iterator[Decision]:
        """Yield the decisions to write, then one "unclassified" for each image without any row; call after `read`."""
        self.num_skipped = sum(self.answered)
        yield from (decision for decision, done in zip(self._decided, self.answered, strict=True) if not done)
        if self.decisions is not None:
            done = self.labeled | self.decided_keys
            yield from (Decision(key=key, kind="unclassified") for key in self.rows.keys if key not in done)


def leave_out(
    decisions: Sequence[Decision], events: Mapping[str, Sequence[str]], keys: Set[str]
) -> tuple[list[Decision], dict[str, list[str]]]:
    """Return decisions and events without some images; a decision about none of the others goes."""
    remaining = []
    for decision in decisions:
        members = tuple(key for key in decision.keys if key not in keys)
        if decision.key in keys or (decision.keys and not members):
            continue
        remaining.append(replace(decision, keys=members))
    return remaining, {event: [key for key in members if key not in keys] for event, members in events.items()}


def _join_lines(
    pairs: Sequence[tuple[Observation, Sequence[str]]], stays: Set[str], *, is_line: bool
) -> Iterator[tuple[Observation, list[str]]]:
    """Yield the answers about one event, each kind and taxon once with its images; see `read_answers`.

    Args:
        pairs: rows about an event, and the images of the decision that each is about.
        stays: kinds of the decisions that nobody has answered.
        is_line: whether rows of one taxon are about animals side by side, whose counts are added.
    """
    joined: dict[tuple[str, str], list[tuple[Observation, Sequence[str]]]] = defaultdict(list)
    for row, keys in pairs:
        joined[row.kind, row.taxon].append((row, keys))
    is_empty = not (stays | {kind for kind, _ in joined}) - {"blank", "unclassified"}
    for (kind, _), of_taxon in joined.items():
        if kind == "blank" and not is_empty:
            continue
        row = of_taxon[0][0]
        counts = [entry.count for entry, _ in of_taxon if entry.count is not None]
        if len(counts) > 1 and is_line:
            row = replace(row, count=sum(counts))
        yield row, [*dict.fromkeys(key for _, keys in of_taxon for key in keys)]


def _join_answers(rows: Sequence[Observation], deployment: str, event: str) -> list[Observation]:
    """Return a row about an event for each kind and taxon among rows about its images, with the highest count."""
    joined: dict[tuple[str, ...], Observation] = {}
    for row in rows:
        setup = {name: value for name, value in row.extra.items() if name == "cameraSetupType"}
        name = (row.kind, row.taxon, *setup.values())
        counts = [count for count in (row.count, joined[name].count if name in joined else None) if count is not None]
        joined[name] = Observation(
            id="",
            deployment=deployment,
            event=event,
            level="event",
            kind=row.kind,
            taxon=row.taxon,
            taxon_id=row.taxon_id,
            # Frames of a burst show the same animals, so that a sum would count them again.
            count=max(counts, default=None),
            method=row.method,
            classifier=row.classifier,
            classified_at=row.classified_at,
            extra=setup,
        )
    return list(joined.values())


def _is_reviewed(observation: Observation) -> bool:
    if "cameraSetupType" in observation.extra:
        return True
    # A row that does not say who made it counts as a person's: replacing it could destroy work.
    return observation.method != "machine" and observation.kind != "unclassified"


def format_time(clock: float, offset: float) -> str:
    """Return seconds of a clock as ISO 8601, with the offset in seconds if it is a number; "" for NaN.

    >>> format_time(0.0, 7200.0)
    '1970-01-01T00:00:00+02:00'
    """
    if np.isnan(clock):
        return ""
    # UTC keeps Python from converting the written clock; fractions of a second are cut, since the standard has none.
    moment = datetime.fromtimestamp(int(clock), UTC)
    zone = None if np.isnan(offset) else timezone(timedelta(seconds=offset))
    return moment.replace(tzinfo=zone).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class ImageLabel:
    """One line of a flat table: the label of one image by a person or a machine.

    Args:
        row: of the medium in `SurveyRows.media`.
        sequence: event or burst; "" for none.
        source: effect of each stage, or "human", "machine" or "" for an imported row.
    """

    row: int
    sequence: str
    kind: str
    taxon: str
    taxon_id: str
    rank: str
    probability: float | None
    source: str
    classifier: str
    count: int | None


def list_image_labels(merged: MergedObservations, *, taxa: Taxa | None, classifier: str) -> Iterator[ImageLabel]:
    """Yield what is known of each image, in the order of the survey's rows and then of the decisions.

    A decision or answer about an event is one about each of its images that has no row of a person. Imported rows about
    events that have no decision are left out: an animal leaves some frames of its burst. A video has each of its labels
    once, behind those of all photos.

    Args:
        taxa: for the ranks of imported rows; by default the collection's.
        classifier: name and version of the model that decided.
    """
    keys = [*merged.rows.keys]
    of_videos: dict[str, dict[tuple[str, str], ImageLabel]] = {}
    for label in _list_labels(merged, taxa, classifier):
        if video := find_video(keys[label.row]):
            of_videos.setdefault(video, {}).setdefault((label.kind, label.taxon), label)
        else:
            yield label
    for labels in of_videos.values():
        for kind, taxon in select_shown(labels):
            yield labels[kind, taxon]


def _list_labels(merged: MergedObservations, taxa: Taxa | None, classifier: str) -> Iterator[ImageLabel]:
    rows = merged.rows
    known = taxa or Taxa.from_rows(rows.collection.dataset_table("taxa").to_pylist())

    def label(row: int, entry: Observation, event: str) -> ImageLabel:
        # Look up the id first: `find` returns nothing for a name that several taxa share.
        index = known.index(entry.taxon_id) if entry.taxon_id in known else known.find(entry.taxon)
        rank = known.ranks[index] if entry.taxon and index >= 0 else ""
        taxon = (entry.kind, entry.taxon, entry.taxon_id, rank)
        return ImageLabel(row, event, *taxon, entry.probability, entry.method, entry.classifier, entry.count)

    for entry in merged.read():
        row = rows.keys.get(entry.key, -1)
        if row >= 0:
            yield label(row, entry, entry.event or merged.name_event(entry.key))
    for answer in merged.read_answers():
        keys = [key for key in answer.keys if merged.says_more(answer, key)]
        yield from (label(rows.find_row(key), answer.row, answer.row.event) for key in keys)
    for decision in merged.new():
        processed = classifier if decision.kind != "unclassified" else ""
        for key in merged.members(decision):
            # Called empty by a person, in an event whose other frames show something.
            if merged.list_own_rows(key):
                continue
            row = rows.find_row(key)
            taxon = (decision.kind, decision.taxon, decision.taxon_id, decision.rank)
            source, event = ";".join(decision.source), decision.event or merged.name_event(key)
            yield ImageLabel(row, event, *taxon, decision.probability, source, processed, decision.count)
