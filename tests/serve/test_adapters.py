"""Image-text models, classifiers and indexes behind the server: the numbers of the same calls in the process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import foveate
import foveate.records.images
import tiny
from foveate.cli.options import NOT_FOUND
from foveate.core.files import write_json_atomically
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.removal import remove_images
from foveate.search.index_folder import DESCRIPTION
from foveate.serve.adapters import count_bytes, find_kind, open_served
from foveate.serve.adapters.classifier import ClassifierAdapter
from foveate.serve.adapters.index import IndexAdapter
from foveate.serve.adapters.localizer import LocalizerAdapter
from foveate.serve.calls import (
    Adapter,
    Call,
    ClassifyCall,
    EmbeddingsCall,
    ImageSource,
    LocateCall,
    Refused,
    SearchCall,
    ServedImage,
)
from foveate.serve.media import ImageDecoder
from foveate.serve.replies import hits_body, located_body
from foveate.serve.work import ModelWorker
from naming import raises_naming

BOXES = (Box(0.1, 0.1, 0.6, 0.7), Box(0.0, 0.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def root(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, collection and index side by side."""
    return tiny.make_index(tmp_path_factory.mktemp("served"), tiny_collection)


@pytest.fixture(scope="module")
def images(root: Path) -> list[ServedImage]:
    with Collection.open(root / "my-images") as collection:
        sizes = zip(collection.index["width"], collection.index["height"], strict=True)
        return [
            ServedImage(collection.image_bytes(row), int(width), int(height))
            for row, (width, height) in enumerate(sizes)
        ][:3]


def test_networks_that_are_no_submodules_count() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("vectors", torch.zeros(1))

        def open_networks(self, device: torch.device) -> tuple[nn.Module, ...]:
            return (nn.Linear(3, 4, device=device),)

    assert count_bytes(nn.Sequential(nn.Linear(1, 1), Lazy())) == 4 * (2 + 16)


def test_embeddings_are_those_of_the_model(root: Path, images: list[ServedImage]) -> None:
    served, model = open_served(root / "model", device="cpu"), foveate.open_model(root / "model", device="cpu")
    assert isinstance(served, LocalizerAdapter)
    assert (served.kind, served.name) == ("localizer", root.name), "a folder `model` has the name of its run"
    assert served.num_bytes == sum(4 * parameter.numel() for parameter in model.network.parameters())
    texts = [EmbeddingsCall(texts=("a red disc", "a dog")), EmbeddingsCall(texts=("a blue square",))]
    pixels = [EmbeddingsCall(images=(images[0],)), EmbeddingsCall(images=tuple(images[1:]))]
    boxes = [EmbeddingsCall(images=(image,), boxes=BOXES) for image in images]
    assert len({served.group(calls[0]) for calls in (texts, pixels, boxes)}) == 3
    replies = [reply.vectors for calls in (texts, pixels, boxes) for reply in served.answer(calls)]
    expected = [
        *(model.encode_text(call.texts) for call in texts),
        *(model.encode_images([image.data for image in call.images]) for call in pixels),
        *(model.encode_regions(image.data, BOXES) for image in images),
    ]
    for vectors, others in zip(replies, expected, strict=True):
        np.testing.assert_allclose(vectors, others, atol=1e-6)


def test_the_only_image_of_a_request_is_decoded_once(
    root: Path, images: list[ServedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels are handed on; several images of a request are decoded again, which keeps them out of the queue."""
    served, model = open_served(root / "model", device="cpu"), foveate.open_model(root / "model", device="cpu")
    expected = model.encode_regions(images[0].data, BOXES)
    decoded, decode = list[bytes](), foveate.records.images._open_whole

    def count(data: bytes, **options: Any) -> Any:
        decoded.append(data)
        return decode(data, **options)

    monkeypatch.setattr("foveate.records.images._open_whole", count)
    decoder = ImageDecoder(max_pixels=10**6)
    urls = [f"data:image/png;base64,{base64.b64encode(image.data).decode()}" for image in images]
    (image,) = asyncio.run(decoder.read(urls[:1], param="images", longest_side=served.decode_side))
    assert (image, len(decoded)) == (images[0], 1)
    (vectors,) = served.answer([EmbeddingsCall(images=(image,), boxes=BOXES)])
    assert np.array_equal(vectors.vectors, expected)
    served.answer([EmbeddingsCall(images=(image,))])
    served.answer([LocateCall(image, ("a red disc",))])
    assert len(decoded) == 1
    several = asyncio.run(decoder.read(urls, param="images", longest_side=served.decode_side))
    decoder.close()
    assert [each.source for each in several] == [each.data for each in images]


def test_phrases_are_located_as_in_the_process(root: Path, images: list[ServedImage]) -> None:
    served, model = open_served(root / "model", device="cpu"), foveate.open_model(root / "model", device="cpu")
    (reply,) = served.answer([LocateCall(images[0], ("a red disc", "a dog"))])
    for located in reply:
        expected = model.locate(images[0].data, located.phrase)
        assert located.score == pytest.approx(expected.score, abs=1e-6)
        assert located.box is not None
        assert expected.box is not None
        np.testing.assert_allclose(located.box.to_array(), expected.box.to_array(), atol=1e-5)


VERDICT = ("has_match", "reason", "floor", "unknown_words")


def run_json(name: str, *arguments: object) -> tuple[dict[str, Any], bool]:
    """Run a command with --json; return what it prints, and whether its exit status is that of "not found"."""
    command = import_module(f"foveate.cli.verbs.{name}").command
    result = CliRunner().invoke(command, [*map(str, arguments), "--device", "cpu", "--json"])
    assert result.exit_code in (0, NOT_FOUND), result.output
    return json.loads(result.stdout), result.exit_code == NOT_FOUND


def test_verdicts_are_those_of_the_commands(root: Path, images: list[ServedImage], tmp_path: Path) -> None:
    served, file = open_served(root / "my-index", device="cpu"), tmp_path / "image.webp"
    file.write_bytes(images[0].data)
    verdicts = set()
    phrases = ("a red disc", "a wug asdfgh")
    (reply,) = served.answer([LocateCall(images[0], phrases)])
    for row in located_body("my-index", images[0], reply)["data"]:
        printed, not_found = run_json("locate", root / "model", file, row["phrase"], "--out", tmp_path / "run")
        assert {name: row[name] for name in VERDICT} == {
            **{name: printed[name] for name in VERDICT}, "floor": pytest.approx(printed["floor"], abs=1e-5),
            "unknown_words": tuple(printed["unknown_words"]),
        }  # fmt: skip
        assert row["score"] == row["scores"][printed["default"]]
        assert row["scores"] == pytest.approx(printed["scores"], abs=1e-5)
        assert row["has_match"] is not not_found
        verdicts.add(row["has_match"])
    for text, more in (("a wug", ()), ("a red disc", ("--negative", "a dog"))):
        (search,) = served.answer([SearchCall(text=text, negative=more[1] if more else None, count=3)])
        printed, not_found = run_json("search", root / "my-index", text, *more, "--count", 3, "--out", tmp_path / "run")
        body = json.loads(json.dumps(hits_body("my-index", search)))
        assert {name: body[name] for name in VERDICT} == {name: printed[name] for name in VERDICT}
        assert body["has_match"] is not not_found
        verdicts.add(body["has_match"])
    assert verdicts == {True, False}


def test_hits_are_those_of_a_search_and_removed_images_stay_removed(
    root: Path, images: list[ServedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, index = open_served(root / "my-index", device="cpu"), foveate.open_index(root / "my-index", device="cpu")
    assert isinstance(served, IndexAdapter)
    assert isinstance(served, ImageSource)
    calls = [
        SearchCall(text="a red disc", negative="a dog", count=3),
        SearchCall(image=images[1], box=BOXES[0], count=2, kind="regions"),
    ]
    replies = served.answer(calls)
    assert list(replies[0].hits) == index.search("a red disc", negative="a dog", count=3)
    assert list(replies[1].hits) == index.search(image=images[1].data, box=BOXES[0], count=2, kind="regions")
    (vectors,) = served.answer([EmbeddingsCall(texts=("a dog",))])
    np.testing.assert_allclose(vectors.vectors, index.model.encode_text(["a dog"]), atol=1e-6)
    (reply,) = served.answer([SearchCall(text="a wug", count=3)])
    assert reply.verdict == index.judge("a wug", index.search("a wug", count=3))
    key = replies[0].hits[0].key
    with Image.open(io.BytesIO(served.thumbnail(key))) as thumbnail:
        assert (thumbnail.format, max(thumbnail.size) <= 448) == ("WEBP", True)
    for other in ("../../etc/passwd", "", "train-99"):
        with monkeypatch.context() as patch:
            patch.delattr("foveate.records.collection.nearest")  # it takes seconds in large collections
            with pytest.raises(Refused) as refusal:
                served.thumbnail(other)
        assert refusal.value.status == 404
    remove_images(root / "my-images", [key])
    with pytest.raises(Refused):
        served.thumbnail(key)
    assert key not in {hit.key for hit in served.answer([SearchCall(text="a red disc", count=100)])[0].hits}


def refuse(served: Adapter, call: Call) -> Refused:
    """Return the error that a client gets."""

    async def answer() -> None:
        worker = ModelWorker(served)
        try:
            await worker.answer(call)
        finally:
            await worker.close()

    with pytest.raises(Refused) as refusal:
        asyncio.run(answer())
    return refusal.value


def test_texts_of_too_many_letters_are_refused(root: Path, images: list[ServedImage]) -> None:
    served, most = open_served(root / "my-index", device="cpu"), "a " * 5000
    allowed = [EmbeddingsCall(texts=(most, most)), LocateCall(images[0], (most,)), SearchCall(text=most)]
    for call in (*allowed, EmbeddingsCall(images=(images[0],))):
        served.check(call)
    refused = {
        "input": [EmbeddingsCall(texts=("a dog", most + "b"))],
        "phrases": [LocateCall(images[0], ("b", most))],
        "text": [SearchCall(text=most, negative="b")],
        "negative": [SearchCall(text="b", negative=most), SearchCall(image=images[0], negative=most + "b")],
    }
    for param, calls in refused.items():
        for error in [refuse(served, call) for call in calls]:
            assert (error.status, error.code, error.param) == (400, "context_length_exceeded", param)
            assert "10,001 letters" in str(error)


def test_an_index_of_another_model_is_not_searched(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "home"))
    opened = foveate.open_index(copy / "my-index", collection=copy / "my-images", device="cpu")
    served, call = IndexAdapter(opened, name="pets"), SearchCall(text="a red disc")
    before, description = served.answer([call]), (copy / "my-index" / DESCRIPTION).read_text()
    content = json.loads(description) | {"fingerprint": "other"}
    (copy / "my-index" / DESCRIPTION).write_text(json.dumps(content))
    for error in (refuse(served, call), refuse(served, call)):
        assert (error.status, error.code) == (503, "index_unreadable")
    assert "another model" in caplog.text
    (copy / "my-index" / DESCRIPTION).write_text(description)
    assert served.answer([call]) == before


def test_errors_of_an_index_name_no_folder(root: Path, images: list[ServedImage], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "home"))
    served = IndexAdapter(
        foveate.open_index(copy / "my-index", collection=copy / "my-images", device="cpu"), name="pets"
    )
    damaged = ServedImage(b"GIF89a", 8, 8)
    calls = [
        EmbeddingsCall(images=(damaged,)),
        EmbeddingsCall(images=(damaged,), boxes=BOXES),
        LocateCall(damaged, ("a dog",)),
        LocateCall(images[0], (" ",)),
        SearchCall(text=" "),
        SearchCall(image=damaged),
        SearchCall(image=damaged, box=BOXES[0]),
        SearchCall(text="a dog", negative="a dog"),
    ]
    errors = [refuse(served, call) for call in calls]
    with Collection.open(copy / "my-images") as collection:
        keys = list(collection.keys)
    remove_images(copy / "my-images", keys)
    empty = refuse(served, SearchCall(text="a dog"))
    assert str(empty).startswith("pets: ")
    (copy / "my-index" / DESCRIPTION).write_text("{}")
    changed = refuse(served, SearchCall(text="a dog"))
    with pytest.raises(Refused) as thumbnail:
        served.thumbnail(keys[0])
    assert [error.status for error in (*errors, empty, changed, thumbnail.value)] == [400] * 9 + [503] * 2
    assert not [text for text in map(str, (*errors, empty, changed, thumbnail.value)) if str(tmp_path) in text]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm
    from timm.models._hub import save_for_hf

    folder = tmp_path_factory.mktemp("served") / "classifier"
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 4}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    names = {"label_names": ["cat", "dog", "elk", "fox"]}
    save_for_hf(model, str(folder), model_args=arguments, model_config=names, safe_serialization=True)
    return folder


def test_classes_are_those_of_the_predictor(classifier: Path, images: list[ServedImage]) -> None:
    served, predictor = open_served(classifier, device="cpu"), foveate.open_adapter(classifier, device="cpu")
    assert isinstance(served, ClassifierAdapter)
    replies = served.answer([ClassifyCall(image, count) for image, count in zip(images, (5, 2, 4), strict=True)])
    answers = predictor.predict([image.data for image in images])
    assert [len(reply) for reply in replies] == [4, 2, 4]
    for row, reply in enumerate(replies):
        assert reply[0].name == answers.labels[row]
        assert all(each.calibrated is None for each in reply)
        probabilities = dict(zip(answers.classes, answers.probabilities[row], strict=True))
        for each in reply:
            assert each.probability == pytest.approx(probabilities[each.name], abs=1e-6)


def test_errors_of_a_classifier_name_no_folder(classifier: Path) -> None:
    error = refuse(open_served(classifier, device="cpu"), ClassifyCall(ServedImage(b"GIF89a", 8, 8)))
    assert (error.status, str(classifier.parent) in str(error)) == (400, False)


def test_a_calibrated_classifier_orders_by_what_it_is_calibrated_to(
    classifier: Path, images: list[ServedImage], tmp_path: Path
) -> None:
    shutil.copytree(classifier, tmp_path / "calibrated")
    write_json_atomically(tmp_path / "calibrated" / "calibration.json", {"gamma": 9.0, "absent": [2]})
    served = open_served(tmp_path / "calibrated", device="cpu")
    predictor = foveate.open_adapter(tmp_path / "calibrated", device="cpu")
    (reply,) = served.answer([ClassifyCall(images[0], 4)])
    expected = predictor.predict([images[0].data]).calibrated_probabilities
    assert expected is not None
    assert [each.calibrated for each in reply] == pytest.approx(sorted(expected[0], reverse=True), abs=1e-6)
    assert [each.probability for each in reply] != [each.calibrated for each in reply]


def test_a_folder_says_what_is_wrong_with_it(root: Path, classifier: Path, tmp_path: Path) -> None:
    assert [find_kind(path) for path in (root / "model", root / "my-index", classifier, "mini")] == [
        "localizer", "index", "classifier", "multimodal",
    ]  # fmt: skip
    with raises_naming(foveate.UserError, tmp_path / "nowhere", "no such folder"):
        open_served(tmp_path / "nowhere")
    with raises_naming(foveate.UserError, root, "model", root / "model"):
        open_served(root)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "initial"}))
    with raises_naming(foveate.UserError, tmp_path, "initial", "multimodal"):
        open_served(tmp_path)
