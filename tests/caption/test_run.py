"""The pipeline: every request is accounted for, none is sent twice, and keys change with what decides a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from captioned import ALL, ask, image_bytes, make, rows, texts

from chat_server import ChatServer, Say, fails, good, image_of, kind_of, prompt_of, says
from foveate.caption import prompts
from foveate.caption.captioner import prepare_image
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.pending_requests import CaptionSettings, RequestConfig, list_pending
from foveate.core.errors import NothingSucceededError, UserError
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate.report.blocks import print_lines
from foveate.report.pages.captions import build_caption
from naming import raises_naming


def balanced(formats: dict[str, Any]) -> None:
    for tally in formats.values():
        parts = tally["ok"] + tally["repaired"] + sum(tally["errors"].values()) + sum(tally["skipped"].values())
        assert tally["in"] == parts


def test_every_image_gets_every_format_with_its_provenance(tmp_path: Path) -> None:
    collection = make(tmp_path / "c")
    with ChatServer() as server:
        done = ask(collection, server.url, http_revision="r1", price_in=1.0, price_out=2.0)
    assert not done.stopped
    balanced(done.result.to_json()["formats"])
    assert {kind: tally["ok"] for kind, tally in done.result.to_json()["formats"].items()} == dict.fromkeys(ALL, 12)
    stored = rows(collection)
    assert {(row["key"], row["kind"]) for row in stored} == {(f"p{n}", kind) for n in range(12) for kind in ALL}
    for row in stored:
        details = row["details"]
        assert (row["model"], row["source"], row["status"]) == ("m", "captioner http", "ok")
        assert len(row["request"]) == 64
        assert (details["backend"], details["revision"], details["attempts"]) == ("http", "r1", 1)
        assert details["prompt_hash"] == prompts.Prompt(details["prompt_id"], "English").sha256
        assert details["n_clip"] == count_clip_tokens(row["text"])
        assert details["n_words"] == len(row["text"].split())
        assert (details["tokens_in"], details["tokens_out"]) == (100, 20)
        assert details["latency_ms"] > 0
        assert details["answered_by"] == "m"
        assert details["run_id"] == done.result.to_json()["run_id"]
        assert bool(details["alt_hash"]) == (row["kind"] == "afc")
    alts = [row["text"] for row in Collection.open(collection).table("captions").to_pylist() if not row["request"]]
    assert alts == [f"Boat {n} in Kiel" if n % 3 else f"IMG_{n}.jpg" for n in range(12)]
    assert done.result.to_json()["cost"]["total"] == pytest.approx((48 * 100 + 2 * 48 * 20) / 1e6)
    usage = [json.loads(line) for line in (tmp_path / "run" / "usage.jsonl").read_text().splitlines()]
    assert sum(entry["tokens_in"] for entry in usage) == 4800


def test_another_model_that_answers_is_named(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 3)
    with ChatServer() as server:
        done = ask(collection, server.url, formats=("ssc", "dsc"), http_model="large")
    assert {row["details"]["answered_by"] for row in rows(collection)} == {"m"}
    assert {row["model"] for row in rows(collection)} == {"large"}
    result = done.result.to_json()
    assert [tally["answered_by"] for tally in result["formats"].values()] == [{"m": 3}, {"m": 3}]
    answered = " ".join("\n".join(print_lines(build_caption(result, tmp_path / "run"))).split())
    assert "Answered by: m (6)" in answered
    same = "\n".join(print_lines(build_caption({**result, "model": "m"}, tmp_path / "run")))
    assert "Answered by" not in same


def test_usage_names_collection_and_model(tmp_path: Path) -> None:
    """Several runs may share a folder, the default one most of all."""
    collection = make(tmp_path / "c", 4)
    with ChatServer() as server:
        for model in ("small", "large"):
            ask(collection, server.url, formats=("ssc",), http_model=model)
    usage = [json.loads(line) for line in (tmp_path / "run" / "usage.jsonl").read_text().splitlines()]
    assert [(entry["collection"], entry["model"]) for entry in usage] == [("boats", "small"), ("boats", "large")]


def test_only_afc_prompts_contain_the_alt_text_and_only_a_usable_one(tmp_path: Path) -> None:
    collection = make(tmp_path / "c")
    with ChatServer() as server:
        done = ask(collection, server.url)
    with_alt = [prompt_of(body) for body in server.requests if "Kiel" in prompt_of(body)]
    assert len(with_alt) == 8
    assert all('The text: "Boat ' in prompt for prompt in with_alt)
    assert not any("IMG_" in prompt_of(body) for body in server.requests)
    assert done.result.to_json()["formats"]["afc"]["flags"] == {"alt_unusable": 4}
    for row in rows(collection):
        fallback = row["kind"] == "afc" and int(row["key"][1:]) % 3 == 0
        assert ("alt_unusable" in row["flags"]) == fallback
        assert row["details"]["prompt_id"] == ("dsc-1" if fallback else f"{row['kind']}-1")


def test_a_finished_run_asks_for_nothing(tmp_path: Path) -> None:
    collection = make(tmp_path / "c")
    with ChatServer() as server:
        ask(collection, server.url)
        before, num_requests = texts(collection), len(server.requests)
        done = ask(collection, server.url)
        assert len(server.requests) == num_requests
        assert texts(collection) == before
        assert all(tally["skipped"] == {"done": 12} for tally in done.result.to_json()["formats"].values())
        balanced(done.result.to_json()["formats"])
        ask(collection, server.url, http_model="other")
        assert len(server.requests) == 2 * num_requests


def test_more_formats_and_images_are_added_to_what_is_there(tmp_path: Path) -> None:
    collection = make(tmp_path / "c")
    with ChatServer() as server:
        ask(collection, server.url, formats=("ssc",), split="test")
        assert len(server.requests) == 3
        ask(collection, server.url, formats=("ssc", "dsc+"), limit=5)
        ask(collection, server.url)
    assert len(texts(collection)) == 48
    assert len(server.requests) == 48


def test_a_limit_draws_the_same_images_again(tmp_path: Path) -> None:
    collection = make(tmp_path / "c")
    with ChatServer() as server:
        for _ in range(2):
            ask(collection, server.url, formats=("ssc",), limit=5, seed=1)
        assert len(server.requests) == 5
        ask(collection, server.url, formats=("ssc",), limit=5, seed=2)
    assert 5 < len({row["key"] for row in rows(collection)}) <= 10


def keys_of(collection: Path, **given: Any) -> dict[tuple[str, str], str]:
    opened = Collection.open(collection)
    chosen = {"model": "m", "revision": ""} | {name: given.pop(name) for name in ("model", "revision") if name in given}
    config = RequestConfig(CaptionSettings(**{"formats": ALL, **given}), "http", **chosen)
    return {
        (pending.key, kind): config.request_key(pending.key, pending.sha256, kind, pending.alt)
        for pending in list_pending(opened, config)
        for kind in pending.kinds
    }


def test_keys_change_with_a_letter_of_their_prompt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = make(tmp_path / "c")
    before = keys_of(collection)
    assert len(set(before.values())) == 48
    changed = {**prompts._TEXTS, "ssc-1": prompts._TEXTS["ssc-1"] + "."}
    monkeypatch.setattr(prompts, "_TEXTS", changed)
    after = keys_of(collection)
    assert all((after[key] != before[key]) == (key[1] == "ssc") for key in before)


def test_keys_change_with_alt_texts_for_afc_alone(tmp_path: Path) -> None:
    before = keys_of(make(tmp_path / "c"))
    after = keys_of(make(tmp_path / "d", alts={1: "Boat 1 in Oslo", 3: "IMG_4.jpg", 4: ""}))
    different = {key for key in before if before[key] != after[key]}
    assert different == {("p1", "afc"), ("p3", "afc"), ("p4", "afc")}


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "n"},
        {"revision": "2"},
        {"temperature": 0.9},
        {"seed": 1},
        {"longest_side": 99},
        {"language": "French"},
    ],
)
def test_keys_change_with_everything_that_decides_a_response(tmp_path: Path, changed: dict[str, Any]) -> None:
    collection = make(tmp_path / "c", 2)
    before, after = keys_of(collection), keys_of(collection, **changed)
    assert not set(before.values()) & set(after.values())


def test_keys_do_not_depend_on_the_other_requests_of_a_run(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 4)
    before, after = keys_of(collection), keys_of(collection, formats=("dsc",), split="test", rows_per_part=3)
    assert after == {key: value for key, value in before.items() if key in {("p0", "dsc")}}


def test_a_caption_that_is_too_long_is_requested_once_more(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 1)
    long = " ".join(["A dog runs over wet grass in a park."] * 12)

    def behave(number: int, body: dict[str, Any]) -> Say:
        return says(json.dumps({"caption": long}) if kind_of(body) in ("ssc", "dsc") else good(body))

    with ChatServer(behave) as server:
        ask(collection, server.url, formats=("ssc", "dsc"))
    assert [kind_of(body) for body in server.requests].count("shorten") == 2
    again = next(prompt_of(body) for body in server.requests if kind_of(body) == "shorten")
    assert json.dumps(long) in again
    by_kind = {row["kind"]: row for row in rows(collection)}
    assert len(by_kind["ssc"]["text"].split()) == 10
    assert by_kind["ssc"]["flags"] == ""
    assert by_kind["ssc"]["details"]["retry"] == "shorten"
    assert by_kind["ssc"]["details"]["attempts"] == 2
    assert by_kind["dsc"]["flags"] == "too_short"  # the server shortens to one sentence


def test_a_descriptive_caption_that_stays_too_long_is_cut_and_fits(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 1)
    long = " ".join(["A dog runs over wet grass in a park."] * 12)
    with ChatServer(lambda number, body: says(json.dumps({"caption": long}))) as server:
        done = ask(collection, server.url)
    stored = {row["kind"]: row for row in rows(collection)}
    for kind in ("dsc", "afc"):
        assert count_clip_tokens(stored[kind]["text"]) <= 75
        assert "cut_at_sentence" in stored[kind]["flags"]
    assert "too_long" in stored["ssc"]["flags"]
    assert len(server.requests) == 4 + 3
    balanced(done.result.to_json()["formats"])


def test_a_failed_retry_stores_the_first_caption(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 1)
    short = json.dumps({"caption": "A dog on grass in a park."})
    with ChatServer(lambda number, body: fails(400) if kind_of(body) == "lengthen" else says(short)) as server:
        ask(collection, server.url, formats=("dsc_plus",), http_structured="never")
    (row,) = rows(collection)
    assert (row["text"], row["flags"]) == ("A dog on grass in a park.", "too_short")


BAD = {
    "I'm sorry, but I can't help.": "refused",
    '{"caption": "A red car is par': "truncated",
    '{"text": "x"}': "schema",
    " ": "empty",
    '{"caption": "\\u0001\\u0002"}': "empty",
    '{"caption": "\\ud800"}': "schema",
    "{'a'}": "unparseable",
    json.dumps({"caption": " ".join(f"word{number}" for number in range(300))}): "too_long",
    json.dumps({"caption": "word " * 300}): "repeated",
}


@pytest.mark.parametrize("raw", BAD)
def test_a_response_without_caption_is_an_error_row_and_is_not_retried(tmp_path: Path, raw: str) -> None:
    collection = make(tmp_path / "c", 2)
    with ChatServer(lambda number, body: says(raw)) as server:
        done = ask(collection, server.url, formats=("dsc",))
        num_requests = len(server.requests)
        assert done.result.to_json()["formats"]["dsc"]["errors"] == {BAD[raw]: 2}
        balanced(done.result.to_json()["formats"])
        assert not rows(collection)
        errors = rows(collection, "caption_errors")
        assert [(row["error"], row["final"], row["model"]) for row in errors] == [(BAD[raw], True, "m")] * 2
        assert all(row["raw"] == "" if not raw.strip() else row["raw"] for row in errors)
        again = ask(collection, server.url, formats=("dsc",))
        assert len(server.requests) == num_requests
        assert again.result.to_json()["formats"]["dsc"]["skipped"] == {"final error earlier": 2}
        server.behave = lambda number, body: says(good(body))
        retried = ask(collection, server.url, formats=("dsc",), retry_errors=True)
        assert retried.result.to_json()["formats"]["dsc"]["ok"] == 2
        assert ask(collection, server.url, formats=("dsc",)).result.to_json()["formats"]["dsc"]["skipped"] == {
            "done": 2
        }


def test_long_raw_responses_are_stored_in_part(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 1)
    with ChatServer(lambda number, body: says("{" + "ü" * 5000)) as server:
        ask(collection, server.url, formats=("ssc",))
    (row,) = rows(collection, "caption_errors")
    assert len(row["raw"].encode()) in (1999, 2000)


def test_captions_in_another_language_are_flagged(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 1)
    german = json.dumps({"caption": "Ein Hund steht auf einer Wiese vor dem Haus."}, ensure_ascii=False)
    with ChatServer(lambda number, body: says(german)) as server:
        done = ask(collection, server.url, formats=("ssc",))
        assert done.result.to_json()["formats"]["ssc"]["flags"] == {"non_english": 1}
        done = ask(collection, server.url, formats=("ssc",), language="German")
        assert done.result.to_json()["formats"]["ssc"]["flags"] == {}
    assert "Write German." in prompt_of(server.requests[-1])


def test_images_that_cannot_be_read_are_quarantined_and_counted(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 6)
    tar = collection / "images" / "00000.tar"
    data = bytearray(tar.read_bytes())
    offset = Collection.open(collection).index["offset"][2]
    data[offset + 200] ^= 255
    tar.write_bytes(bytes(data))
    with ChatServer() as server:
        done = ask(collection, server.url)
        balanced(done.result.to_json()["formats"])
        assert done.result.to_json()["formats"]["ssc"]["skipped"] == {"image: damaged shard": 1}
        assert len(rows(collection)) == 20
        again = ask(collection, server.url)
        balanced(again.result.to_json()["formats"])
    stored = Collection.open(collection).quarantine().to_pylist()
    assert [(row["key"], row["reason"], row["source"]) for row in stored] == [("p2", "damaged shard", "captioner http")]


def test_images_that_are_away_end_with_an_error_and_are_asked_about_again(tmp_path: Path) -> None:
    collection = make(tmp_path / "c")
    (collection / "images").rename(tmp_path / "away")
    with ChatServer() as server:
        away = ask(collection, server.url, formats=("ssc",))
        assert isinstance(away.failure, NothingSucceededError)
        assert "12 of 12 images could not be reached" in str(away.failure)
        (tmp_path / "away").rename(collection / "images")
        assert ask(collection, server.url, formats=("ssc",)).failure is None
        (collection / "images").rename(tmp_path / "away")
        # Captions are there: what is left is more to do, not a total failure.
        partly = ask(collection, server.url, formats=("ssc", "dsc"))
        assert type(partly.failure) is UserError


def test_parts_are_written_every_so_many_rows(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 12)
    with ChatServer(lambda number, body: says(good(body), seconds=0.05)) as server:
        ask(collection, server.url, formats=("ssc",), rows_per_part=2, http_concurrency=1)
    assert 4 <= len(list((collection / "annotations" / "captions").glob("added-*"))) <= 6


def test_images_are_sent_as_they_are_or_shrunk(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("small", image_bytes(1))
        writer.add("large", image_bytes(2, width=400, height=100))
    with ChatServer() as server:
        ask(tmp_path / "c", server.url, formats=("ssc",), longest_side=64)
    import base64

    sent = sorted((base64.b64decode(image_of(body).partition(",")[2]) for body in server.requests), key=len)
    assert image_bytes(1) in sent
    assert image_bytes(2, width=400, height=100) not in sent
    assert max(prepare_image(entry, longest_side=8192).width for entry in sent) == 64


def test_a_split_without_images_is_an_error(tmp_path: Path) -> None:
    collection = make(tmp_path / "c", 2)
    with raises_naming(UserError, "boats", "tset", "test"):
        ask(collection, "http://127.0.0.1:9", split="tset")
    with CollectionWriter(tmp_path / "empty"):
        pass
    with raises_naming(UserError, "empty"):
        ask(tmp_path / "empty", "http://127.0.0.1:9")


def test_the_last_kind_of_alt_text_counts_where_the_first_is_absent(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("a", image_bytes(1), captions=[Caption("Old tower", "title"), Caption("Tower in Oslo", "alt")])
        writer.add("b", image_bytes(2), captions=[Caption("boat, sea", "keywords")])
        writer.add("c", image_bytes(3))
    pending_requests = list_pending(
        Collection.open(tmp_path / "c"), RequestConfig(CaptionSettings(formats=("afc",)), "http", "m", "")
    )
    assert [pending.alt for pending in pending_requests] == ["Tower in Oslo", "boat, sea", ""]
    chosen = CaptionSettings(formats=("afc",), alt_kinds=("title",))
    pending_requests = list_pending(Collection.open(tmp_path / "c"), RequestConfig(chosen, "http", "m", ""))
    assert [pending.alt for pending in pending_requests] == ["Old tower", "", ""]


def test_prepared_images() -> None:
    from PIL import Image

    def encoded(image: Image.Image, format: str, **options: object) -> bytes:
        import io

        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    plain = Image.new("RGB", (60, 30), (200, 10, 10))
    for format, unchanged in (
        ("JPEG", True),
        ("PNG", True),
        ("WEBP", False),
        ("BMP", False),
        ("GIF", False),
        ("TIFF", False),
    ):
        data = encoded(plain, format)
        prepared = prepare_image(data, longest_side=60)
        assert (prepared.data == data) == unchanged, format
        assert (prepared.width, prepared.height) == (60, 30)
        assert prepared.media_type == (f"image/{format.lower()}" if unchanged else "image/jpeg")
        assert prepare_image(data, longest_side=30).width == 30
    turned = Image.Exif()
    turned[0x0112] = 6
    prepared = prepare_image(encoded(plain, "JPEG", exif=turned), longest_side=60)
    assert (prepared.width, prepared.height) == (30, 60)
    clear = encoded(Image.new("RGBA", (10, 10), (0, 0, 0, 0)), "PNG")
    assert prepare_image(clear, longest_side=60).media_type == "image/jpeg"
    with pytest.raises(BadImage):
        prepare_image(b"<html>", longest_side=60)
    with pytest.raises(BadImage):
        prepare_image(encoded(plain, "BMP")[:100], longest_side=60)
