"""Generation: batches equal single requests, seeds decide, transformers' own `generate` says the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_captioner import recipe

from foveate.caption.backends.foveate import BACKEND, FoveateSettings, format_response, requested_length
from foveate.caption.captioner import CaptionRequest, backend_names
from foveate.caption.chat_format import EDGES, length_class
from foveate.caption.response_parser import parse_caption
from foveate.caption.small.evaluate import caption_rows, evaluate
from foveate.caption.small.folder import SmallCaptioner, load_captioner
from foveate.caption.small.generate import CaptionTask, GeneratedCaption, generate_captions
from foveate.caption.small.model import CaptionerModel, decoder_config
from foveate.caption.small.tokens import CaptionTokens
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from naming import raises_naming

KINDS = ("ssc", "dsc", "dsc_plus", "afc")


@pytest.fixture(scope="module")
def captioner(trained_folder: Path) -> SmallCaptioner:
    return load_captioner(trained_folder / "model", device="cpu")


@pytest.fixture(scope="module")
def prefixes(captioner: SmallCaptioner) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (12, *captioner.model.image_encoder.feature_shape)
    with torch.inference_mode():
        return captioner.model.prefix(torch.randn(shape, generator=generator).to(torch.float16))


def asks(temperature: float) -> list[CaptionTask]:
    return [
        CaptionTask(
            KINDS[number % 4],
            alt="a red apple, Port Ellery 1908 and more" * (number % 3) if number % 4 == 3 else "",
            max_tokens=24 + number,
            temperature=temperature,
            seed=number,
            name=f"k{number}",
        )
        for number in range(12)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_says_what_single_requests_say(
    captioner: SmallCaptioner, prefixes: torch.Tensor, temperature: float
) -> None:
    wanted = asks(temperature)
    together = generate_captions(captioner, prefixes, wanted, batch=12)
    singly = [generate_captions(captioner, prefixes[n : n + 1], [ask])[0] for n, ask in enumerate(wanted)]
    order = [5, 3, 11, 0, 7, 1, 2, 4, 6, 8, 9, 10]
    shuffled = generate_captions(captioner, prefixes[order], [wanted[n] for n in order], batch=5)
    assert [one.text for one in together] == [one.text for one in singly]
    assert [shuffled[order.index(n)].text for n in range(12)] == [one.text for one in singly]
    for one, other in zip(together, singly, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert (one.tokens_in, one.tokens_out, one.finished) == (other.tokens_in, other.tokens_out, other.finished)


def test_the_seed_decides_a_draw_and_nothing_else_does(captioner: SmallCaptioner, prefixes: torch.Tensor) -> None:
    ask = CaptionTask("dsc", max_tokens=20, temperature=1.0, seed=1, name="k")
    first, again = (generate_captions(captioner, prefixes[:1], [ask])[0].text for _ in range(2))
    other = generate_captions(
        captioner, prefixes[:1], [CaptionTask("dsc", max_tokens=20, temperature=1.0, seed=2, name="k")]
    )[0].text
    assert first == again != other


def test_it_stops_at_the_limit_and_says_so(captioner: SmallCaptioner, prefixes: torch.Tensor) -> None:
    one = generate_captions(captioner, prefixes[:1], [CaptionTask("ssc", max_tokens=3)])[0]
    assert one.tokens_out == 3
    assert not one.finished
    assert parse_caption(format_response(one)).error == "truncated"


def test_greedy_captions_are_those_of_transformers_generate(captioner: SmallCaptioner, prefixes: torch.Tensor) -> None:
    from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

    class UnsaidNames(LogitsProcessor):
        """The rule of `small.naming`, from the ids that were written so far."""

        def __init__(self, model: CaptionerModel, prefix: torch.Tensor) -> None:
            self.model, self.first, self.seen = model, model.first_name, model.seen_names(prefix)

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, self.first :] -= self.model.rarity
            for row, ids in enumerate(input_ids.tolist()):
                said = {token - self.first for token in ids if token >= self.first}
                after_the = bool(ids) and ids[-1] in self.model.definite
                for name in range(self.seen.shape[1]):
                    if after_the == (name in said):
                        scores[row, self.first + name] += self.seen[row, name] + after_the * self.model.read_gain[0]
            return scores

    model = captioner.model
    assert model.names > 2
    config = decoder_config(model.recipe.decoder, len(captioner.tokens))
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    peer.base_model.load_state_dict(model.decoder.state_dict())
    peer.tie_weights()
    prompt = captioner.tokens.prompt("dsc", length=captioner.lengths["dsc"])
    pad = captioner.tokens.pad
    embedded = model.embed_prompt(torch.tensor([prompt]), torch.tensor([[pad, *prompt[:-1]]]), pad).expand(4, -1, -1)
    joined = torch.cat([prefixes[:4], embedded], dim=1)
    with torch.inference_mode():
        found = peer.generate(
            inputs_embeds=joined,
            attention_mask=torch.ones(joined.shape[:2], dtype=torch.int64),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=captioner.tokens.end,
            pad_token_id=captioner.tokens.pad,
            logits_processor=LogitsProcessorList([UnsaidNames(model, prefixes[:4])]),
        )
    ours = generate_captions(captioner, prefixes[:4], [CaptionTask("dsc", max_tokens=16)] * 4)
    theirs = [
        captioner.tokens.decode([token for token in row if token != captioner.tokens.end]) for row in found.tolist()
    ]
    assert [one.text for one in ours] == theirs


def test_the_backend_answers_concurrent_calls(trained_folder: Path, scene_collection: Path) -> None:
    collection = Collection.open(scene_collection)
    assert "foveate" in backend_names()
    opened = BACKEND.open(FoveateSettings(model=trained_folder / "model", device="cpu", batch=4), collection)

    def request(row: int, kind: str, image: bytes) -> CaptionRequest:
        return CaptionRequest(
            key=collection.keys[row],
            kind=kind,
            prompt_id=f"{kind}-1",
            prompt="",
            image=image,
            media_type="image/jpeg",
            alt="a chair" if kind == "afc" else "",
            max_tokens=400,
            temperature=0.5,
            seed=7,
        )

    async def run(rows: list[int], kinds: tuple[str, ...]) -> list:
        asked = [request(row, kind, collection.image_bytes(row)) for row in rows for kind in kinds]
        return await asyncio.gather(*(opened.caption(one) for one in asked))

    async def all_of_it() -> None:
        together = await run([0, 1, 2], KINDS)
        alone = await run([1], ("dsc",))
        assert together[5].text == alone[0].text
        without_alt = await opened.caption(replace(request(1, "afc", collection.image_bytes(1)), alt=""))
        assert without_alt.text == alone[0].text, "no alt-text to fuse: as dsc"
        assert all(not answer.error and answer.tokens_out and answer.score is not None for answer in together)
        bad = await opened.caption(request(0, "ssc", b"<html>"))
        assert bad.error == "bad_image: not an image"
        assert bad.final
        unknown = await opened.caption(request(0, "poem", b""))
        assert (unknown.error, unknown.final) == ("unknown_format", True)
        await opened.close()

    asyncio.run(all_of_it())
    assert opened.revision
    assert opened.concurrency == 16


def test_asking_again_changes_the_length() -> None:
    assert requested_length(3, "dsc-1") == 3
    assert requested_length(3, "shorten-1") == 2
    assert requested_length(len(EDGES), "lengthen-1") == len(EDGES)


def test_evaluation_and_cached_features_agree_with_the_bytes(
    captioner: SmallCaptioner, scene_collection: Path, tmp_path: Path
) -> None:
    collection = Collection.open(scene_collection)
    rows = collection.rows("test")
    result = evaluate(
        captioner, collection, split="test", run=tmp_path, cache=scene_collection / "cache", limit=4
    ).to_json()
    assert result["images"] == 4
    assert {row["data"] for row in result["table"]} == {"scenes"}
    assert all(set(row["values"]) <= set(KINDS) for row in result["table"])
    assert not result["shuffled"]
    assert all(
        0 <= value["value"] <= 1
        for row in result["table"]
        if "AltText" in row["question"]
        for value in row["values"].values()
    )
    assert set(result["obedience"]) <= set(KINDS)
    for sample in result["samples"]:
        assert (tmp_path / sample["image"]).is_file()
    from foveate.caption.small import encode_image

    written = caption_rows(captioner, collection, rows[:1], cache=scene_collection / "cache", kinds=("ssc",))
    pixels = encode_image.pixels(collection.image_bytes(int(rows[0])), captioner.model.image_encoder.preprocess)
    features = encode_image.features([pixels], captioner.model.image_encoder, torch.device("cpu"))
    with torch.inference_mode():
        prefix = captioner.model.prefix(features)
    again = generate_captions(captioner, prefix, [CaptionTask("ssc", name=collection.keys[int(rows[0])])])[0]
    assert again.text == written[0][2].text
    with raises_naming(UserError, "split", "nothing"):
        evaluate(captioner, collection, split="nothing", run=tmp_path, cache=tmp_path)


def test_tokens_are_lossless_and_prompts_have_their_places() -> None:
    tokens = CaptionTokens.train(["A red apple.", "Zwei Äpfel, 12 %", "<end> is no token"] * 3, vocabulary=400)
    for text in ("A red apple.", "Ünïcödé ✓ 漢字 <end> <ssc>", 'quotes "and" \\'):
        ids = tokens.encode([text])[0]
        assert tokens.decode(ids) == text
        assert tokens.end not in ids
    again = CaptionTokens.from_json(tokens.to_json())
    assert again.encode(["A red apple."]) == tokens.encode(["A red apple."])
    assert len(tokens.prompt("ssc", length=0)) == 3
    assert len(tokens.prompt("afc", length=0, alt=[7, 8])) == 7
    with raises_naming(UserError, "dsc"):
        tokens.prompt("dscc", length=0)
    assert [length_class(edge) for edge in EDGES] == list(range(1, len(EDGES) + 1))


def test_names_of_regions_are_one_token_and_lossless() -> None:
    texts = ["A picture of a grinning face with smiling eyes on a ground.", "There is a red apple.", "a cartoon"] * 3
    phrases = ["grinning face", "grinning face with smiling eyes", "red apple", "car"] * 2 + ["a ground"]
    tokens = CaptionTokens.train(texts, vocabulary=400, phrases=phrases)
    assert tokens.names == {"grinning face", "grinning face with smiling eyes", "red apple"}, "cartoon begins with car"
    said = "A grinning face with smiling eyes, a grinning face and red apples. grinning face"
    ids = tokens.encode([said])[0]
    assert tokens.decode(ids) == said
    one, other = (tokens.encode([f" {name}"])[0] for name in ("grinning face with smiling eyes", "red apple"))
    assert len(one) == len(other) == 1
    assert one[0] in ids
    texts = ["The dog. The cat is above the dog. The end."] * 9
    the = CaptionTokens.train(texts, vocabulary=400)
    assert set(the.definite) >= {the.encode([text])[0][0] for text in ("The dog", " The dog", " the dog")}
    again = CaptionTokens.from_json(tokens.to_json())
    assert again.names == tokens.names
    assert again.encode([said])[0] == ids


def test_an_alt_text_is_read_with_the_names_that_captions_have() -> None:
    tokens = CaptionTokens.train(["a red apple"] * 3, vocabulary=400, phrases=["red apple"] * 2)
    assert tokens.normalize_alt("Red  Apple, Port Ellery 1908") == " red apple, Port Ellery 1908"
    assert tokens.normalize_alt("") == ""
    (name,) = tokens.encode([" red apple"])[0]
    assert name in tokens.encode([tokens.normalize_alt("Basket; RED APPLE")])[0]


def test_shuffled_images_are_captioned_from_another_ones_features(
    captioner: SmallCaptioner, scene_collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection.open(scene_collection)
    rows, prefixes = collection.rows("test"), []

    def record(
        captioner: SmallCaptioner, prefix: torch.Tensor, tasks: list[CaptionTask], **more: object
    ) -> list[GeneratedCaption]:
        prefixes.append(prefix)
        return [GeneratedCaption("A chair.", True, 1, 1, 0.0) for _ in tasks]

    monkeypatch.setattr("foveate.caption.small.evaluate.generate_captions", record)
    for shuffled in (False, True):
        caption_rows(
            captioner, collection, rows, cache=scene_collection / "cache", kinds=("ssc",), shuffled=shuffled
        )  # fmt: skip
    normal, shuffled_prefixes = prefixes
    assert not any(torch.equal(a, b) for a, b in zip(normal, shuffled_prefixes, strict=True))
    assert sorted(row.sum().item() for row in normal) == sorted(row.sum().item() for row in shuffled_prefixes)


def test_an_unfinished_answer_is_cut_json() -> None:
    assert format_response(GeneratedCaption('say "no"', True, 1, 2, 0.0)) == '{"caption": "say \\"no\\""}'
    assert format_response(GeneratedCaption("A dog", False, 1, 2, 0.0)) == '{"caption": "A dog'


def test_the_transformers_tokenizer_opens_the_file(trained_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    peer = PreTrainedTokenizerFast(tokenizer_file=str(trained_folder / "model" / "tokenizer.json"))
    ours = load_captioner(trained_folder / "model", device="cpu").tokens
    assert (
        peer.encode("A chair above a saxophone.", add_special_tokens=False)
        == ours.encode(["A chair above a saxophone."])[0]
    )
    assert recipe().vocabulary >= len(ours)
