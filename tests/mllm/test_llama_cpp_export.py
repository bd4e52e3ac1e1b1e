"""GGUF exports: the language model against transformers' reader, the tower against llama.cpp's graph, and llama.cpp."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from foveate.core.errors import UserError
from foveate.language.gguf import GGUFFile
from foveate.language.packing import pack_texts
from foveate.mllm.export import ExportJob, chat_template, copy_tokenizer, export_mllm
from foveate.mllm.exporting import llama_cpp
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.questions import ask_turns
from foveate.records.conversations import Conversation
from foveate.records.geometry import View
from foveate.vision.preprocess import Preprocess, place_image
from mllm.export_models import CLIP, SIGLIP, build, draw, save
from naming import raises_naming
from vision.foreign import SIZE, save_clip, save_siglip

HIDDEN = {"kind": "siglip", "layer": -2, "geometry": "stretch"}
QWEN = {
    "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 160,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("towers")
    return {"clip": str(save_clip(root / "clip")), "siglip": str(save_siglip(root / "siglip"))}


DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"language": QWEN},
}


@pytest.mark.parametrize("case", DECODERS)
def test_transformers_reads_the_language_model(case: str, sources: dict[str, str], tmp_path: Path) -> None:
    loaded = build({**CLIP, "source": sources["clip"]}, "mlp", **DECODERS[case])
    llama_cpp.export(ExportJob(loaded, tmp_path))
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        expected = loaded.model.language_model(input_ids=ids).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, expected, atol=1e-5, rtol=0)


def test_the_vocabulary_is_ours(sources: dict[str, str], tmp_path: Path) -> None:
    loaded = build({**CLIP, "source": sources["clip"]}, "mlp")
    loaded.tokenizer.backend.add_tokens([" red disc"])  # type: ignore[attr-defined]
    llama_cpp.export(ExportJob(loaded, tmp_path))
    fields = GGUFFile(tmp_path / "model.gguf").metadata
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"].tolist()
    special = loaded.tokenizer.special
    assert {tokens[id] for id, kind in enumerate(kinds) if kind == 3} == set(special)
    assert [tokens[id] for id, kind in enumerate(kinds) if kind == 4] == [" red disc"]
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == "<end>"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.suppress_tokens"].tolist() == sorted(
        id for name, id in special.items() if name not in ("<end>", "<region>")
    )
    vocabulary = set(tokens)
    assert all("".join(merge.split(" ")) in vocabulary for merge in fields["tokenizer.ggml.merges"])


def normalize(values: np.ndarray, file: GGUFFile, name: str, eps: float) -> np.ndarray:
    centered = values - values.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * file.read(f"{name}.weight") + file.read(
        f"{name}.bias"
    )


def project(values: np.ndarray, file: GGUFFile, name: str) -> np.ndarray:
    return values @ file.read(f"{name}.weight").T + file.read(f"{name}.bias")


def encode(file: GGUFFile, pixels_3HW: np.ndarray) -> np.ndarray:
    """The graph of tools/mtmd/models/llava.cpp in numpy, with the class token in front (issue 25814 of llama.cpp)."""
    fields = {name.removeprefix("clip.vision."): value for name, value in file.metadata.items()}
    patch, heads, eps = fields["patch_size"], fields["attention.head_count"], fields["attention.layer_norm_epsilon"]
    pixels = (pixels_3HW / 255 - fields["image_mean"][:, None, None]) / fields["image_std"][:, None, None]
    rows = fields["image_size"] // patch
    patches = pixels.reshape(3, rows, patch, rows, patch).transpose(1, 3, 0, 2, 4).reshape(rows * rows, -1)
    values = patches @ file.read("v.patch_embd.weight").reshape(fields["embedding_length"], -1).T
    if "v.patch_embd.bias" in file.tensors:
        values = values + file.read("v.patch_embd.bias")
    if "v.class_embd" in file.tensors:
        values = np.concatenate([file.read("v.class_embd")[None], values])
    values = values + file.read("v.position_embd.weight")
    if "v.pre_ln.weight" in file.tensors:
        values = normalize(values, file, "v.pre_ln", eps)
    assert fields["feature_layer"].tolist() == [fields["block_count"]]
    for index in range(fields["block_count"]):
        block = f"v.blk.{index}"
        inner = normalize(values, file, f"{block}.ln1", eps)
        query, key, value = (
            project(inner, file, f"{block}.attn_{name}").reshape(len(inner), heads, -1).swapaxes(0, 1) for name in "qkv"
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(values.shape)
        values = values + project(mixed, file, f"{block}.attn_out")
        inner = torch.from_numpy(project(normalize(values, file, f"{block}.ln2", eps), file, f"{block}.ffn_up"))
        gelu = file.metadata["clip.use_gelu"]
        active = torch.nn.functional.gelu(inner, approximate="tanh") if gelu else inner * torch.sigmoid(1.702 * inner)
        values = values + project(active.numpy(), file, f"{block}.ffn_down")
    values = project(values[-rows * rows :], file, "mm.0")
    return project(torch.nn.functional.gelu(torch.from_numpy(values)).numpy(), file, "mm.2")


TOWERS = {
    "clip": (CLIP, {}),
    "siglip": (HIDDEN, {}),
    "last layer, no bias": ({**CLIP, "layer": -1}, {"connector": {"kind": "mlp", "bias": False}}),
}


@pytest.mark.parametrize("case", TOWERS)
def test_the_tower_is_what_the_graph_of_llama_cpp_reads(case: str, sources: dict[str, str], tmp_path: Path) -> None:
    tower, changes = TOWERS[case]
    loaded = build({**tower, "source": sources[tower["kind"]]}, "mlp", **changes)
    llama_cpp.export(ExportJob(loaded, tmp_path))
    pixels = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        visual = loaded.model.see(pixels)
        expected = loaded.model.prefix(visual, torch.zeros(1, 1, dtype=torch.long))[0]
    tokens = encode(GGUFFile(tmp_path / "mmproj.gguf"), pixels[0].numpy())
    np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-4)


def test_a_tower_as_narrow_inside_is_written_with_the_names_that_are_swapped_back() -> None:
    assert llama_cpp.swap_names("v.blk.3.ffn_up.bias") == "v.blk.3.ffn_down.bias"
    assert llama_cpp.swap_names("v.blk.0.ffn_down.weight") == "v.blk.0.ffn_up.weight"
    assert llama_cpp.swap_names("v.blk.0.attn_q.weight") == "v.blk.0.attn_q.weight"


IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": " What  is in\nthe image? "}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": [TEXT]}],
    [{"role": "user", "content": [IMAGE, IMAGE, TEXT]}],
    [{"role": "user", "content": [TEXT, IMAGE, TEXT]}],
    [{"role": "user", "content": [IMAGE, TEXT, IMAGE]}],
    [
        {"role": "system", "content": " be  brief "},
        {"role": "user", "content": [IMAGE, TEXT]},
        {"role": "assistant", "content": " a  red disc\n"},
        {"role": "user", "content": [TEXT]},
    ],
    [
        {"role": "user", "content": [IMAGE, TEXT]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [IMAGE, TEXT]},
    ],
]


@pytest.mark.parametrize("marker", ["<__media__>", "<__media_vpApgoq__>"])
def test_the_template_moves_the_marks_of_images(marker: str, sources: dict[str, str]) -> None:
    loaded = build({**CLIP, "source": sources["clip"]}, "mlp")
    tokenizer = copy_tokenizer(loaded)

    def render(messages: list[dict[str, Any]], template: str) -> str:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )

    for messages in CONVERSATIONS:
        # llama.cpp hands over one string a message, with its mark for an image.
        joined = [
            {**message, "content": "".join(part.get("text", marker) for part in message["content"])}
            if isinstance(message["content"], list)
            else message
            for message in messages
        ]
        expected = render(messages, chat_template(loaded)).replace("<image>", marker)
        assert render(joined, llama_cpp.write_template(loaded)) == expected


def test_notes_name_what_llama_cpp_does_otherwise(sources: dict[str, str], tmp_path: Path) -> None:
    padded = {**CLIP, "source": sources["clip"]}
    folder, result, _ = export_mllm(str(save(build(padded, "mlp"), tmp_path / "model")), to="llama-cpp")
    assert folder.name == "model-llama-cpp"
    assert result["files"] == ["README.md", "mmproj.gguf", "model.gguf"]
    assert any("class token" in note for note in result["notes"])


def test_notes_are_those_of_the_preprocessing() -> None:
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3, interpolation="bicubic", fill=(122, 116, 104))
    assert not llama_cpp.list_notes(preprocess, class_token=False)
    (note,) = llama_cpp.list_notes(replace(preprocess, geometry="stretch"), class_token=False)
    assert "trained with stretch." in note
    (note,) = llama_cpp.list_notes(replace(preprocess, fill=(0, 0, 0)), class_token=False)
    assert "letterbox on (0, 0, 0)" in note
    (note,) = llama_cpp.list_notes(replace(preprocess, interpolation="bilinear"), class_token=False)
    assert "bilinear" in note
    assert "32 x 32" in note


def test_what_llama_cpp_does_not_compute_is_refused(sources: dict[str, str], tmp_path: Path) -> None:
    with raises_naming(UserError, "connector.kind", "pixel_shuffle", "mlp"):
        llama_cpp.export(ExportJob(build({**SIGLIP, "source": sources["siglip"]}, "pixel_shuffle"), tmp_path))
    loaded = build(
        {**CLIP, "source": sources["clip"]}, "mlp", language={**QWEN, "model_type": "llama", "attention_bias": True}
    )
    with raises_naming(UserError, "language", "q_proj.bias"):
        llama_cpp.export(ExportJob(loaded, tmp_path))
    loaded = build({**CLIP, "source": sources["clip"]}, "mlp", language={**QWEN, "hidden_act": "gelu"})
    with raises_naming(UserError, "language.hidden_act", "gelu", "silu"):
        llama_cpp.export(ExportJob(loaded, tmp_path))


def request(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(body).encode()
    sent = urllib.request.Request(address + path, data=content, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(sent) as answer:
        return json.load(answer)


def encode_png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def serve(folder: Path) -> Any:
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is tried where `pip install xllamacpp` was done")
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 160, 1, 1
    # Its cache is float16 otherwise.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(parameters)


def test_llama_cpp_computes_alike(sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LLAMA_MEDIA_MARKER", "<__media__>")
    loaded = build({**HIDDEN, "source": sources["siglip"]}, "mlp")
    llama_cpp.export(ExportJob(loaded, tmp_path))
    server = serve(tmp_path)
    for text in (" What is in the image?", " a  red disc\n é😀", "It's 12"):
        tokens = request(server.listening_address, "/tokenize", {"content": text})["tokens"]
        assert tokens == loaded.tokenizer.encode(text)
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encode_png(draw())}"}},
        {"type": "text", "text": "What  is in\nthe image?"},
    ]
    messages = [{"role": "user", "content": content}]
    prompt = request(server.listening_address, "/apply-template", {"messages": messages})["prompt"]
    assert prompt == "<__media__><user> What is in the image?<assistant>"
    ours, compared, equal = Mllm(loaded), 0, 0
    for seed in range(6):
        image = draw(seed=seed)
        data = {"prompt_string": prompt, "multimodal_data": [encode_png(image)]}
        asked = {"prompt": data, "temperature": 0, "cache_prompt": False}
        answer = request(server.listening_address, "/completion", {**asked, "n_predict": 1, "n_probs": 300})
        # A token that is part of a letter is not reported.
        if answer.get("completion_probabilities"):
            compared += 1
            expected = first_logs(loaded, image)
            for entry in answer["completion_probabilities"][0]["top_logprobs"]:
                # Its GELU is a table of float16.
                assert entry["logprob"] == pytest.approx(expected[entry["id"]], abs=0.02)
        wanted = {**asked, "n_predict": 8, "return_tokens": True}
        tokens = request(server.listening_address, "/completion", wanted)["tokens"]
        equal += loaded.tokenizer.decode(tokens).strip() == ours.ask(image, "What is in the image?", max_tokens=8).text
    assert compared >= 2
    # Of a random model, two tokens may be nearly as likely.
    assert equal >= 5


@torch.no_grad()
def first_logs(loaded: LoadedModel, image: Image.Image) -> list[float]:
    """Log-probabilities of the first token of an answer, nothing suppressed."""
    model = loaded.model
    turns = tuple(ask_turns("What is in the image?", (), images=1))
    placement = place_image(model.tower.preprocess, image.size, View())
    tokens = loaded.prompts.write_question(Conversation("a", ("image",), turns), [placement]).tokens
    visual = model.see(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    texts = pack_texts([[tokens]], pad=loaded.tokenizer.pad)
    states = model.hidden_states(visual, torch.zeros(1, 1, dtype=torch.long), texts)
    return model.logits(states)[0, -1].log_softmax(-1).tolist()
