"""Folders of models of transformers that are damaged or do harm: each ends in a sentence, and its code never runs."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_models
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from foveate.core.errors import UserError
from foveate.multimodal.opening import open_mllm
from foveate.video.networks import open_network
from foveate.video.watching import watch
from naming import raises_naming

Edit = Callable[[Path], object]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_models.save("llava", tmp_path_factory.mktemp("hostile") / "llava")


def _text(name: str, content: str) -> Edit:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def _json(name: str, **fields: Any) -> Edit:
    """Set fields of a JSON file; "a__b" is the field b of a, and the value ... removes one."""

    def edit(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for field, value in fields.items():
            *parents, last = field.split("__")
            inner = content
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner.pop(last, None) if value is ... else inner.update({last: value})
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit


def _remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def _header(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change the header of the weights, whose bytes stay."""

    def edit(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        written = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])

    return edit


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in header.items() if name != "__metadata__")


def _bytes(change: Callable[[bytes], bytes]) -> Edit:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def _tensors(change: Callable[[dict[str, Any]], None]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def _widest(tensors: dict[str, Any]) -> str:
    return max(tensors, key=lambda name: tensors[name].numel())


class _Marks:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (Path("ran"),)


def _pickle(name: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(_Marks()))

    return edit


def _index(target: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        index = {"metadata": {}, "weight_map": {"lm_head.weight": target}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


def _remote(folder: Path) -> None:
    (folder / "code.py").write_text("open('ran', 'w').close()\nclass A: pass\n")
    _json(CONFIG, model_type="mine", auto_map={"AutoConfig": "code.A", "AutoModelForImageTextToText": "code.A"})(folder)


def _remote_processor(folder: Path) -> None:
    (folder / "code.py").write_text("open('ran', 'w').close()\nclass A: pass\n")
    for name in ("processor_config.json", "tokenizer_config.json"):
        _json(name, auto_map={"AutoProcessor": "code.A", "AutoTokenizer": ["code.A", "code.A"]}, processor_class="A")(
            folder
        )


def _loop(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(folder / CONFIG)


def _template(text: str) -> Edit:
    return _text("chat_template.jinja", text)


REFUSED: dict[str, Edit] = {
    "config: empty": _text(CONFIG, ""),
    "config: no JSON": _text(CONFIG, "{'a': 1"),
    "config: a list": _text(CONFIG, "[]"),
    "config: a number": _text(CONFIG, "3"),
    "config: nested": _text(CONFIG, '{"a":' * 100_000 + "1" + "}" * 100_000),
    "config: missing": _remove(CONFIG),
    "config: links to itself": _loop,
    "config: binary": lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\x00" * 50),
    "config: no type": _json(CONFIG, model_type=...),
    "config: type is a number": _json(CONFIG, model_type=3),
    "config: type of texts": _json(CONFIG, model_type="llama"),
    "config: unknown type": _json(CONFIG, model_type="nothing"),
    "config: code of a repository": _remote,
    "config: text_config is text": _json(CONFIG, text_config="wide"),
    "config: vision_config is a list": _json(CONFIG, vision_config=[1]),
    "config: width as text": _json(CONFIG, text_config__hidden_size="wide"),
    "config: width 0": _json(CONFIG, text_config__hidden_size=0),
    "config: width -1": _json(CONFIG, text_config__hidden_size=-1),
    "config: width 10**9": _json(CONFIG, text_config__hidden_size=10**9),
    "config: width other than stored": _json(CONFIG, text_config__hidden_size=64),
    "config: heads 0": _json(CONFIG, text_config__num_attention_heads=0),
    "config: layers 10**6": _json(CONFIG, text_config__num_hidden_layers=10**6),
    "config: layers -1": _json(CONFIG, text_config__num_hidden_layers=-1),
    "config: a layer more than stored": _json(CONFIG, text_config__num_hidden_layers=3),
    "config: vocabulary 10**12": _json(CONFIG, text_config__vocab_size=10**12),
    "config: vocabulary 1": _json(CONFIG, text_config__vocab_size=1),
    "config: unknown activation": _json(CONFIG, text_config__hidden_act="os.system"),
    "config: patch 0": _json(CONFIG, vision_config__patch_size=0),
    "config: tower of another size": _json(CONFIG, vision_config__image_size=10**6),
    "config: layer of features": _json(CONFIG, vision_feature_layer=10**6),
    "config: strategy of features": _json(CONFIG, vision_feature_select_strategy="rm -rf"),
    "config: token of images beyond the vocabulary": _json(CONFIG, image_token_index=10**9, image_token_id=10**9),
    "weights: missing": _remove(WEIGHTS),
    "weights: empty": _bytes(lambda data: b""),
    "weights: eight bytes": _bytes(lambda data: data[:8]),
    "weights: half": _bytes(lambda data: data[: len(data) // 2]),
    "weights: one byte less": _bytes(lambda data: data[:-1]),
    "weights: header of 2**60 bytes": _bytes(lambda data: struct.pack("<Q", 2**60) + data[8:]),
    "weights: header is no JSON": _bytes(lambda data: data[:8] + b"x" * (len(data) - 8)),
    "weights: a folder": lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()),
    "weights: zeros": _bytes(lambda data: bytes(len(data))),
    "weights: a page of HTML": _text(WEIGHTS, "<!DOCTYPE html><html>404</html>"),
    "weights: a pointer of Git LFS": _text(
        WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    ),
    "weights: offsets beyond the file": _header(lambda header: _first(header).update(data_offsets=[0, 2**50])),
    "weights: negative offsets": _header(lambda header: _first(header).update(data_offsets=[-8, 0])),
    "weights: shape of 2**60": _header(lambda header: _first(header).update(shape=[2**60])),
    "weights: unknown dtype": _header(lambda header: _first(header).update(dtype="F31")),
    "weights: tensor of another shape": _tensors(lambda t: t.update({_widest(t): t[_widest(t)][:-1].clone()})),
    "weights: tensor missing": _tensors(lambda t: t.pop(_widest(t))),
    "weights: all tensors missing": _tensors(dict.clear),
    "weights: a pickle": _pickle("pytorch_model.bin"),
    "weights: a pickle named safetensors": lambda folder: (folder / WEIGHTS).write_bytes(pickle.dumps(_Marks())),
    "weights: an index that leaves the folder": _index("../../secret.safetensors"),
    "weights: an index to /etc": _index("/etc/passwd"),
    "weights: an index to nothing": _index("none.safetensors"),
    "weights: an index that is a list": lambda folder: (
        (folder / WEIGHTS).unlink(),
        (folder / "model.safetensors.index.json").write_text("[]"),
    ),
    "tokenizer: no JSON": _text("tokenizer.json", "{"),
    "tokenizer: empty": _text("tokenizer.json", "{}"),
    "tokenizer: missing": _remove("tokenizer.json"),
    "processor: code of a repository": _remote_processor,
    "processor: no JSON": _text("processor_config.json", "{"),
    "processor: size 0": _json("processor_config.json", image_processor__size={"shortest_edge": 0}),
    "processor: size is text": _json("processor_config.json", image_processor__size="big"),
    "processor: crop of 10**8": _json(
        "processor_config.json", image_processor__crop_size={"height": 10**8, "width": 10**8}
    ),
    "processor: patch 0": _json("processor_config.json", patch_size=0),
    "template: missing": _remove("chat_template.jinja"),
    "template: a syntax error": _template("{% for %}"),
    "template: loops": _template("{% for i in range(10**9) %}{% for j in range(10**9) %}a{% endfor %}{% endfor %}"),
    "template: a huge text": _template("{{ 'a' * 10**16 }}"),
    "template: a number to a power": _template("{{ 9 ** 9 ** 9 }}"),
    "template: reaches into Python": _template("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
    "template: without an image": _template("what"),
    "template: raises": _template("{{ raise_exception('boo') }}"),
    "template: calls itself": _template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
    "template: unknown filter": _template("{{ messages | nothing }}"),
    "template: reads files": _template("{% include '/etc/passwd' %}"),
}


@pytest.mark.parametrize("edit", REFUSED.values(), ids=REFUSED)
def test_a_hostile_folder_ends_in_a_sentence(
    edit: Edit, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _check_refused(edit, folder, tmp_path)


FAMILIES = ["internvl", "paligemma", "qwen2_vl", "smolvlm"]
# Cases that every family reads by code of its own: config of its parts, weights, tokenizer, processor.
OF_FAMILIES = [
    "config: layers 10**6",
    "config: width other than stored",
    "weights: zeros",
    "weights: tensor of another shape",
    "weights: tensor missing",
    "weights: unknown dtype",
    "weights: a pickle",
    "tokenizer: empty",
    "tokenizer: missing",
    "processor: no JSON",
    "processor: size is text",
    "processor: code of a repository",
    "template: loops",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: foreign_models.save(family, root / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", OF_FAMILIES)
def test_a_hostile_folder_of_any_family_ends_in_a_sentence(
    case: str, family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _check_refused(REFUSED[case], folders[family], tmp_path)


@pytest.mark.parametrize("family", ["llava", *FAMILIES])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    family: str, folders: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    edited = shutil.copytree(folders.get(family, folder), tmp_path / "model")
    weights = load_file(edited / WEIGHTS)
    name = _widest(weights)
    rows, *others = weights[name].shape
    save_file(weights | {name: weights[name][:-1].clone()}, edited / WEIGHTS, metadata={"format": "pt"})
    # Some releases of transformers name a tensor otherwise in the file than in the model.
    with raises_naming(UserError, name.rpartition(".")[0].rpartition(".")[2], [rows - 1, *others], [rows, *others]):
        open_mllm(edited)


# Family and what is wrong with its folder, where code of the family itself fails on an image or a frame.
OF_IMAGES: dict[str, tuple[str, Edit]] = {
    "merged by 0": ("qwen2_vl", _json("processor_config.json", image_processor__merge_size=0)),
    "merged by 3": ("qwen2_vl", _json("processor_config.json", image_processor__merge_size=3)),
    "patches of 4000": ("qwen2_vl", _json("processor_config.json", image_processor__patch_size=4000)),
    "another image token": ("qwen2_vl", _json("config.json", image_token_id=9999)),
    "an unknown attribute": ("qwen2_vl", _template("{{ messages[0].nothing.nothing }}")),
    "another number of tokens": ("internvl", _json("processor_config.json", image_seq_length=5)),
    "no square": ("paligemma", _json("processor_config.json", image_processor__size={"height": 16, "width": 48})),
}


@pytest.mark.parametrize(("family", "edit"), OF_IMAGES.values(), ids=OF_IMAGES)
def test_a_hostile_folder_is_refused_for_clips_as_for_images(
    family: str, edit: Edit, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _check_refused(edit, folders[family], tmp_path)
    with pytest.raises(UserError) as refused:
        open_network(tmp_path / "model", device="cpu")
    assert str(tmp_path / "model") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_layer_that_the_tower_lacks_is_refused_with_the_first_frame(folder: Path, tmp_path: Path) -> None:
    edited = shutil.copytree(folder, tmp_path / "model")
    _json("config.json", vision_feature_layer=77)(edited)
    with raises_naming(UserError, edited, "frames"):
        watch(open_network(edited, device="cpu"), [Image.new("RGB", (40, 40))], fit=True)


def _check_refused(edit: Edit, folder: Path, tmp_path: Path) -> None:
    """Check that a folder, once edited, ends in one line."""
    edited = shutil.copytree(folder, tmp_path / "model")
    edit(edited)
    image = Image.fromarray(np.zeros((40, 48, 3), np.uint8))
    with pytest.raises(UserError) as refused:
        open_mllm(edited).ask(image, "what is in the image", max_tokens=3)
    assert str(refused.value).strip()
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
