"""Push a model folder or an index to the Hugging Face hub: the files that an opener reads, and a card, in one commit.

Nothing else leaves the machine: no pickle, checkpoint or log, and of an index no path. The card is the README.md of the
folder; what the hub reads of it (library, task, base model, scores as `model-index`) is added where it is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field

from foveate.core.errors import UserError, shorten_reason
from foveate.core.files import read_json
from foveate.core.hub import (
    FILE_PATTERNS,
    HUB_ID,
    INDEX_FILE,
    INDEX_PATTERNS,
    INNER,
    KINDS,
    is_reachable,
    is_tuned,
    quiet_hub,
)
from foveate.core.recipes import Settings

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TARGET = "hub"
_CARD, _CONFIG, _METRICS, _RESULT = "README.md", "config.json", "metrics.json", "result.json"
_NOTICES = ("LICENSE*", "NOTICE*")
_ADAPTER, _PEFT = "adapter.json", "adapter_config.json"
# Kind of a folder -> the hub's name of its task, and what opens it. Folders of other libraries have no kind, and their
# cards stay as they are.
_KINDS: Mapping[str, tuple[str, str]] = {
    "localizing-encoder": ("zero-shot-image-classification", "open_model"),
    "multimodal": ("image-text-to-text", "open_mllm"),
    "species": ("image-classification", "open_species"),
    "classifier": ("image-classification", "open_adapter"),
    "adapter": ("image-classification", "open_adapter"),
    "index": ("image-feature-extraction", "open_index"),
}
_SCORES = 30  # most that a card lists: a results table may have hundreds of rows
_MESSAGE = "Upload with Foveate"


class PushSettings(Settings):
    """Settings of `foveate export --to hub`."""

    private: bool | None = Field(
        None, description="a repository that only you see; by default as the hub makes one, or as it is"
    )
    branch: str | None = Field(None, min_length=1, description="branch of the repository; main by default")


@dataclass(frozen=True)
class Upload:
    """What would be uploaded.

    Attributes:
        folder: of the files. kind: of what they are, "" for another library's. files: relative names.
        contents: name -> bytes of files that differ from those in the folder, or are not there.
        notes: sentences for the user.
    """

    folder: Path
    kind: str
    files: tuple[str, ...]
    contents: Mapping[str, bytes]
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file."""
        return {
            name: len(self.contents[name]) if name in self.contents else (self.folder / name).stat().st_size
            for name in self.files
        }


def plan_upload(source: Path, repository: str) -> Upload:
    """Find the model or index of a folder or a run, and write its card; nothing is sent.

    Raises:
        UserError: the name is not OWNER/NAME, the folder holds nothing that an opener reads, or an index was made with
            a model that is on this machine alone.
    """
    if not HUB_ID.fullmatch(repository):
        raise UserError(f"repository: expected OWNER/NAME (got '{repository}')")
    folder = _find_folder(source)
    is_index = (folder / INDEX_FILE).is_file()
    patterns = INDEX_PATTERNS if is_index else (*FILE_PATTERNS, *_NOTICES)
    names = {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}
    files = {name for name in names if (folder / name).is_file()}
    config = _read(folder / INDEX_FILE) if is_index else _read(folder / _CONFIG) or _read(folder / _ADAPTER)
    kind = _find_kind(folder, config)
    contents, notes = {}, []
    if is_index:
        # Half-written parts of a stopped run are in these folders, too: only what index.json lists is valid.
        files = {INDEX_FILE, *_list_index(config)} & files
        contents[INDEX_FILE] = json.dumps(_without_paths(config, folder), indent=1).encode()
    elif not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{folder}: no weights: expected a .safetensors file; pickles are not uploaded")
    base, local = _find_base(folder, config)
    if local:
        notes.append(f"its backbone is a folder of this machine ({local}): who opens it gives another with --backbone")
    scores = list(_list_scores(_read(folder / _METRICS), _read(source / _RESULT)))
    card = folder / _CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else _write_card(kind, repository)
    contents[_CARD] = _add_metadata(text, kind, repository, base, scores).encode()
    return Upload(folder, kind, tuple(sorted(files | {_CARD})), contents, tuple(notes))


def push(
    upload: Upload,
    repository: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    token: str | bool | None = None,
    message: str = _MESSAGE,
) -> str:
    """Create a repository where there is none, and upload in one commit; return the commit's address.

    Args:
        private: whether only the owner sees it. branch: created where it is missing; main by default.
        token: of the hub; by default that of `hf auth login` or HF_TOKEN.

    Raises:
        UserError: the hub is out of reach or refuses, or the repository exists and is public where `private` was asked
            for, or private where it was ruled out.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

    if constants.is_offline_mode():
        raise UserError(f"{repository}: offline mode is on (HF_HUB_OFFLINE): nothing can be uploaded")
    if not is_reachable(constants.ENDPOINT):
        raise UserError(f"{repository}: {constants.ENDPOINT} is out of reach; try again where there is a network")
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    operations = [
        CommitOperationAdd(name, upload.contents[name] if name in upload.contents else str(upload.folder / name))
        for name in upload.files
    ]
    try:
        with quiet_hub():
            api.create_repo(repository, private=private, exist_ok=True)
            # The hub keeps the visibility of a repository that exists: it must not publish what was to be private.
            if private is not None and bool(api.model_info(repository).private) != private:
                is_now, asked = ("public", "private") if private else ("private", "public")
                raise UserError(
                    f"{repository}: exists and is {is_now}; make it {asked} in its settings on {constants.ENDPOINT}"
                )
            if branch is not None and branch != constants.DEFAULT_REVISION:
                api.create_branch(repository, branch=branch, exist_ok=True)
            commit = api.create_commit(repository, operations, commit_message=message, revision=branch)
    # RuntimeError: an upload that breaks off in a thread; ValueError: a card or an answer that the client refuses.
    except (errors.HTTPError, errors.HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{repository}: {_why(error, repository, constants.ENDPOINT)}") from error
    return str(commit.commit_url)


def _why(error: Exception, repository: str, hub: str) -> str:
    """Explain why the hub took no upload, and what to do about it."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status == 401:
        return f"{hub} knows no token of yours: run `hf auth login`, or set HF_TOKEN to one that may write"
    if status == 403:
        return f"your token may not write there: expected a token with write access to {repository.partition('/')[0]}"
    if status is not None:
        return f"{hub} answers with an error ({status}): {shorten_reason(error)}"
    return f"the upload broke off ({shorten_reason(error)}); the same command sends what is missing"


def _find_folder(source: Path) -> Path:
    """Return the folder that an opener reads: the one given, or the model, adapter or index in a run."""

    def holds(folder: Path) -> bool:
        marks = (_CONFIG, _ADAPTER, _PEFT, INDEX_FILE, *KINDS["localizer"].files)
        return any((folder / name).is_file() for name in marks)

    found = next((folder for folder in (source, *(source / name for name in INNER)) if holds(folder)), None)
    if found is None:
        problem = "no such folder" if not source.is_dir() else "holds no model and no index"
        raise UserError(
            f"{source}: {problem}; expected a model folder, an adapter, an index, or a run folder with one of them"
        )
    return found


def _find_kind(folder: Path, config: Mapping[str, Any]) -> str:
    kind = str(config.get("kind") or "").removeprefix("foveate-")
    return kind or ("classifier" if is_tuned(folder) else "")


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _list_index(config: Mapping[str, Any]) -> Iterator[str]:
    for segment in config.get("segments") or []:
        yield f"embeddings/{segment['name']}.npy"
        yield f"rows/{segment['name']}.parquet"
    yield str(config.get("texts"))
    yield from INDEX_PATTERNS


def _without_paths(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of index.json without paths of this machine.

    Raises:
        UserError: the index was made with a model of a folder, which nobody else has.
    """
    if not config.get("source"):
        raise UserError(
            f"{folder}: was made with a model of this machine ({config.get('model', {}).get('path')}): upload the "
            "model first, and index again with its OWNER/NAME"
        )
    nowhere = {"path": "", "relative": ""}
    model = {"path": config["source"], "relative": ""}
    return {**config, "model": model, "collection": nowhere}


def _find_base(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the hub's name of the network that an adapter belongs to, and its path if it is one of this machine."""
    of_adapter = (config.get("info") or {}).get("backbone") or {}
    name = str(of_adapter.get("source") or _read(folder / _PEFT).get("base_model_name_or_path") or "")
    name = name.partition("@")[0]
    if not name:
        return "", ""
    is_hub = bool(HUB_ID.fullmatch(name)) and not Path(name).exists()
    return (name, "") if is_hub else ("", name)


def _list_scores(metrics: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """List data, measure and value of the rows of a results table, of the model alone: not those of its controls."""
    rows = [row for content in metrics.values() if isinstance(content, list) for row in content]
    rows += (result.get("evaluation") or {}).get("table") or []
    for row in rows:
        if isinstance(row, Mapping) and "question" in row and isinstance(row.get("values"), Mapping):
            value = next(iter(row["values"].values()), None)
            if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
                yield str(row["question"]), str(row.get("data") or "score"), float(value["value"])
    for name, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield "its own validation data", name, float(value)


def _write_card(kind: str, repository: str) -> str:
    title = (
        f"# {repository.partition('/')[2]}\n\nMade with Foveate; nothing was written about its data and its limits.\n"
    )
    if kind not in _KINDS:
        return title
    return f'{title}\n```python\nimport foveate\n\nmodel = foveate.{_KINDS[kind][1]}("{repository}")\n```\n'


def _add_metadata(text: str, kind: str, repository: str, base: str, scores: list[tuple[str, str, float]]) -> str:
    """Add what the hub reads to a card; what its author wrote stays."""
    from huggingface_hub import ModelCard

    card = ModelCard(text)
    data: Any = card.data
    task = _KINDS[kind][0] if kind in _KINDS else ""
    # A folder of another library is opened by that one.
    added = {"library_name": "foveate" if kind else "", "pipeline_tag": task, "base_model": base}
    for name, value in added.items():
        if value and not getattr(data, name, None):
            setattr(data, name, value)
    if kind:
        data.tags = list(dict.fromkeys([*(data.tags or []), "foveate", kind]))
    if scores and not data.eval_results:
        data.model_name = data.model_name or repository.partition("/")[2]
        data.eval_results = [_describe_score(task, *score) for score in scores[:_SCORES]]
    return str(card)


def _describe_score(task: str, data: str, measure: str, value: float) -> EvalResult:
    from huggingface_hub import EvalResult

    # The hub asks for a data set by an id of its own; these have none, so it is their name.
    return EvalResult(
        task_type=task or "other", dataset_type="other", dataset_name=data, metric_type=measure, metric_value=value
    )


T = TypeVar("T", bound="HubMixin")


class HubMixin:
    """`from_pretrained` and `push_to_hub`, as `huggingface_hub.ModelHubMixin` names them, of what an opener returns.

    Its attribute `folder` is what it was opened from; None where that is no folder (`open_clip:ARCH/PRETRAINED`).
    """

    _opener: ClassVar[str] = ""  # "module:function", which takes the name of a model first

    @classmethod
    def from_pretrained(
        cls: type[T], pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **options: Any
    ) -> T:
        """Open a folder, or OWNER/NAME of the hub.

        Args:
            revision: branch, tag or commit of the hub. options: those of the opener.

        Raises:
            UserError: see the opener.
        """
        import importlib

        module, _, name = cls._opener.partition(":")
        opener: Callable[..., T] = getattr(importlib.import_module(module), name)
        at = "" if revision is None else f"@{revision}"
        return opener(f"{pretrained_model_name_or_path}{at}", **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = _MESSAGE,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
    ) -> str:
        """Upload the folder that it was opened from; return the commit's address. See `plan_upload` and `push`.

        Raises:
            UserError: it was opened from no folder, or see there.
        """
        folder: Path | None = getattr(self, "folder", None)
        if folder is None:
            raise UserError(f"{self!r}: was opened from no folder; expected a model folder, an adapter or an index")
        upload = plan_upload(folder, repo_id)
        return push(upload, repo_id, private=private, branch=branch, token=token, message=commit_message)
