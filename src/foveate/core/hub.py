"""Find a model by name: one that ships with the package, a local folder, or a repository of the Hugging Face hub.

Whatever the name, the result is a folder on this machine: the libraries then read files only. Pickles are not read.
All openers resolve names here, in this order and with these errors.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from foveate.core.errors import UserError, nearest, shorten_reason
from foveate.core.files import read_json
from foveate.core.paths import DATA
from foveate.core.progress import say

# The encoder of a search, an index or a localization that names none: it ships, and needs no hub.
DEFAULT_ENCODER = "small"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Configuration, weights, tokenizer files and chat templates of the repository's top folder.
FILE_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
# An index is the one kind with folders in it.
INDEX_FILE = "index.json"
INDEX_PATTERNS = (INDEX_FILE, "embeddings/*.npy", "rows/*.parquet", "texts-*.parquet", "random-*.npy")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BLOCK = 1 << 22
# Seconds to wait for a connection: the hub's own client tries again for a minute, during which nothing is said.
_REACH_SECONDS = 3.0


@dataclass(frozen=True)
class Checkpoint:
    """A folder with weights.

    Attributes:
        name: as the user gave it. folder: where its files are.
        commit: of a hub repository, 40 hexadecimal digits; None for a local folder.
    """

    name: str
    folder: Path
    commit: str | None = None

    def config(self) -> dict[str, Any]:
        """Read config.json.

        Raises:
            UserError: when it is missing or not a JSON object.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise UserError(f"{self.folder}: not a model folder of transformers: config.json is missing")
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: not a JSON object")
        return content

    def weights(self) -> list[Path]:
        """List the safetensors files.

        Raises:
            UserError: there are none; the error names pickles, which are never read.
        """
        # Sorted, because `digest` hashes them one after another.
        paths = sorted(self.folder.glob("*.safetensors"))
        if paths:
            return paths
        file_names = [path.name for path in self.folder.iterdir()] if self.commit is None else self._on_the_hub()
        pickles = sorted(name for name in file_names if name.endswith(_PICKLES))
        if pickles:
            raise UserError(
                f"{self.name}: its weights are a pickle ({pickles[0]}), which may run code and is not read: use a "
                "revision with model.safetensors, or convert it with `safetensors.torch.save_file` where you trust it"
            )
        raise UserError(
            f"{self.folder if self.commit is None else self.name}: no weights: model.safetensors is missing; pickles "
            "are not read"
        )

    def _on_the_hub(self) -> list[str]:
        """List all files of the repository, also those not downloaded; none where the hub does not answer."""
        from huggingface_hub import errors, list_repo_files

        try:
            # Needed only to name a pickle in the error; without an answer, `weights` raises a more general one.
            return [name for name in list_repo_files(self.name, revision=self.commit) if "/" not in name]
        except (errors.HTTPError, OSError):
            return []

    def digest(self) -> str:
        """Hash the weights' bytes to 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for path in self.weights():
            with path.open("rb") as handle:
                while block := handle.read(_BLOCK):
                    digest.update(block)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ModelKind:
    """The names that an opener takes.

    Attributes:
        field: what the errors call a name. folder: what they call its folder. noun: what a folder without files is not.
        shipped: names of models that come with the package.
        files: one of them is in every folder of the kind; empty where the opener looks itself.
        on_hub: whether a name may be OWNER/NAME or OWNER/NAME@REVISION.
        of_runs: runs make its folders, so that `runs/model` beside a folder `runs` is a path with a mistake, whatever
            the hub may have of this name; `runs/model@main` is the hub's.
    """

    field: str = "model"
    folder: str = "a model folder"
    noun: str = "a model folder"
    shipped: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    on_hub: bool = True
    of_runs: bool = False


_CONFIG, _OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
_MULTIMODAL = ModelKind(shipped=("mini", "mini-ferret", "smollm2-mini"), files=(_CONFIG,))
_LOCALIZER = ModelKind(shipped=("small", "bridge"), files=(_CONFIG, _OPEN_CLIP_CONFIG))
KINDS = {
    "multimodal": _MULTIMODAL,
    "localizer": _LOCALIZER,
    "language": ModelKind("language model", shipped=("smollm2",), files=(_CONFIG,)),
    "species": ModelKind(folder="a model folder of `species train`", files=(_CONFIG,), of_runs=True),
    "classifier": ModelKind(
        "classifier", "a folder with config.json and model.safetensors", files=(_CONFIG,), of_runs=True
    ),
    "adapter": ModelKind(
        "adapter",
        "a run folder of `adapt train`, an adapter folder, or a classifier folder with config.json and "
        "model.safetensors",
        files=("adapter.json", "adapter/adapter.json", _CONFIG),
        of_runs=True,
    ),
    "index": ModelKind("index", "a folder of `foveate index`", noun="an index", files=(INDEX_FILE,), of_runs=True),
    "backbone": ModelKind("backbone", files=(_CONFIG, _OPEN_CLIP_CONFIG), on_hub=False),
    "served": ModelKind(
        folder="a folder of a model or an index",
        shipped=(*_MULTIMODAL.shipped, *_LOCALIZER.shipped),
        of_runs=True,
    ),
}
# Folders that hold the model of a run: the run folder is easily mistaken for it.
INNER = ("model", "adapter", "index")


def is_tuned(folder: Path) -> bool:
    """Whether a folder holds a tuned model: a run of `adapt train`, its adapter, or a classifier with its head."""
    if any((folder / file).is_file() for file in KINDS["adapter"].files if file != _CONFIG):
        return True
    if not (folder / _CONFIG).is_file():
        return False
    config = read_json(folder / _CONFIG)
    if not isinstance(config, dict):
        return False
    # The marks of Foveate's, timm's and transformers' configurations.
    classes = config.get("architectures") or []
    is_timm = "architecture" in config and "num_classes" in config
    return (
        config.get("kind") == "classifier" or is_timm or any("ForImageClassification" in str(name) for name in classes)
    )


def find(kind: str, name: str | Path, *, names: Sequence[str] = (), **options: Any) -> Checkpoint:
    """Return the folder of a model by its name; see `locate` for the order, and `fetch` for `options` and errors."""
    folder = locate(kind, name, names=names)
    if folder is None or options.get("revision") is not None:
        checkpoint = fetch(str(name), field=KINDS[kind].field, **options)
        if (checkpoint.folder / INDEX_FILE).is_file():
            options["patterns"] = INDEX_PATTERNS
            checkpoint = fetch(str(name), field=KINDS[kind].field, **options)
        check_folder(checkpoint.folder, KINDS[kind], name=str(name))
        return checkpoint
    return Checkpoint(str(name), folder)


def locate(kind: str | ModelKind, name: str | Path, *, names: Sequence[str] = ()) -> Path | None:
    """Return the folder of a model by its name, without the hub; None for the name of a repository.

    A shipped name comes first (`./mini` is a folder of that name), then a folder, then the hub.

    Args:
        kind: key of `KINDS`.
        names: further ones that the opener takes, for the error.

    Raises:
        UserError: there is no such folder, or it is none of the kind. The error names a run's model and a shipped
            model whose name is near.
    """
    rule, text = KINDS[kind] if isinstance(kind, str) else kind, str(name)
    if text in rule.shipped:
        return DATA / text
    path = Path(name).expanduser()
    # A local folder takes precedence: a relative path may look like OWNER/NAME.
    if text and path.is_dir():
        check_folder(path, rule)
        return path
    is_local = path.exists() or (rule.of_runs and "@" not in text and path.parent.is_dir())
    if rule.on_hub and not is_local and HUB_ID.fullmatch(text.partition("@")[0]):
        return None
    expected = [*rule.shipped, *names, rule.folder, *(["OWNER/NAME on the hub"] if rule.on_hub else [])]
    choices = " or ".join([", ".join(expected[:-1]), expected[-1]] if len(expected) > 1 else expected)
    owners = [other for other, of_kind in KINDS.items() if text in of_kind.shipped]
    problem = "no such folder"
    if owners:
        problem = f"the name of a {owners[0]} model that ships with Foveate"
    elif path.exists() and text:
        problem = "a file, not a folder"
    word, owned = text.partition(":")[0], [each.partition(":")[0] for each in (*rule.shipped, *names)]
    # A name of another kind may be what was meant: `locate` takes models of two kinds.
    shipped = {each for of_kind in KINDS.values() for each in of_kind.shipped}
    near = (nearest(word, owned) or nearest(word, sorted(shipped - set(owned)))) if text and not owners else ""
    raise UserError(f"{rule.field}: {problem} (got '{text}'); expected {choices}{near}")


def check_folder(path: Path, rule: ModelKind, *, name: str = "") -> None:
    """Raise UserError unless a folder exists and has one of the files of its kind; the error names an inner folder.

    Args:
        name: of the repository that the folder was downloaded from.
    """

    def holds(folder: Path) -> bool:
        return not rule.files or any((folder / file).is_file() for file in rule.files)

    if holds(path):
        return
    # A repository without any file that is read leaves no folder.
    if not path.is_dir() and not name:
        raise UserError(f"{rule.field}: no such folder (got '{path}'); expected {rule.folder}")
    inner = [path / each for each in INNER if (path / each).is_dir() and holds(path / each)]
    near = f". Did you mean '{inner[0]}'?" if inner else f"; expected {rule.folder}"
    names = " or ".join(name for name in rule.files if "/" not in name)
    raise UserError(f"{rule.field} '{name or path}': not {rule.noun}: it has no {names}{near}")


def fetch(
    source: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    field: str = "source",
    cache_dir: str | None = None,
    patterns: Sequence[str] = FILE_PATTERNS,
) -> Checkpoint:
    """Return the folder of `source`, downloaded into the hub's cache if need be.

    Args:
        source: a local folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub.
        revision: of a hub repository: a commit (the only one that never changes), tag or branch.
        offline: look into the cache only, as with HF_HUB_OFFLINE=1.
        field: what the errors call the source.
        cache_dir: the hub's cache; its default otherwise.
        patterns: of the files to download; without "*.safetensors" a config is read without its weights.

    Raises:
        UserError: a folder does not exist, or a repository is neither cached nor within reach; the error says which. A
            partial download is not kept.
    """
    path = locate(ModelKind(field, folder="a folder"), source)
    if path is not None:
        if revision is not None:
            raise UserError(
                f"{field}: a folder has no revisions (got '{source}', revision '{revision}'); leave revision out"
            )
        return Checkpoint(source, path)
    repository, at, tag = source.partition("@")
    if at:
        if revision is not None:
            raise UserError(f"{field}: two revisions (got '{source}', revision '{revision}'); expected one")
        if _COMMIT.fullmatch(tag) and not offline:
            # A commit never changes: where its weights are cached, the hub has nothing to add.
            with contextlib.suppress(UserError):
                checkpoint = fetch(
                    repository, revision=tag, offline=True, field=field, cache_dir=cache_dir, patterns=patterns
                )
                if any(checkpoint.folder.glob("*.safetensors")):
                    return checkpoint
        source, revision = repository, tag
    from huggingface_hub import constants, errors, snapshot_download

    only_local = offline or constants.is_offline_mode()
    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": list(patterns),
        # Exports to other formats lie in folders, often several gigabytes, and a pattern "*.json" takes those in them.
        "ignore_patterns": [] if any("/" in pattern for pattern in patterns) else ["*/*"],
        "cache_dir": cache_dir,
    }
    with quiet_hub():
        try:
            # Looked up first, so that a cached model neither says that it is fetched nor needs the hub.
            if not only_local and not _is_cached(source, options):
                if not is_reachable(constants.ENDPOINT):
                    raise UserError(f"{field} '{source}': {_out_of_reach(source, revision)}")
                say(f"fetching {source} from {constants.ENDPOINT}")
            folder = Path(snapshot_download(source, **options, local_files_only=only_local))
        # Some errors of the transport are no OSError, such as a connection that breaks off.
        except (errors.HFValidationError, errors.RevisionResolutionError, errors.HTTPError, OSError) as error:
            where = "" if revision is None else f" at revision {revision!r}"
            why = _why(error, source, revision=revision, offline=only_local)
            raise UserError(f"{field} '{source}'{where}: {why}") from error
    # Snapshots lie in a folder named after their commit: a branch is pinned from here on.
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return Checkpoint(source, folder, commit)


def say_lookup(source: str, *, cache_dir: str | None = None) -> None:
    """Say which repository another library is about to look for, unless it is cached or offline mode is on.

    Raises:
        UserError: the hub is out of reach: its client would try again for a minute or two, and say nothing meanwhile.
    """
    from huggingface_hub import constants

    if not constants.is_offline_mode() and not _is_cached(source, {"cache_dir": cache_dir}):
        if not is_reachable(constants.ENDPOINT):
            raise UserError(f"model '{source}': {_out_of_reach(source, None)}")
        say(f"looking for {source} on {constants.ENDPOINT.removeprefix('https://')}")


def is_reachable(endpoint: str, *, seconds: float = _REACH_SECONDS) -> bool:
    """Tell whether a connection to the hub, or to the proxy that leads to it, opens within some seconds."""
    address = urlsplit(endpoint)
    proxy = None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
    if proxy:
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    target = (address.hostname or "", address.port or (443 if address.scheme == "https" else 80))
    opened = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection(target, timeout=seconds):
            opened.set()
        ended.set()

    # In a thread of its own, since no timeout applies to the look-up of a name.
    ended = threading.Event()
    threading.Thread(target=connect, daemon=True).start()
    ended.wait(seconds)
    return opened.is_set()


def _out_of_reach(source: str, revision: str | None) -> str:
    """Say that the hub cannot be reached, and what to do about it."""
    from huggingface_hub import constants

    return f"not in the cache, and {constants.ENDPOINT} is out of reach; {_name_elsewhere(source, revision)}"


def _name_elsewhere(source: str, revision: str | None) -> str:
    repository = source if revision is None else f"{source} --revision {revision}"
    return (
        f"give the path of a folder instead: `hf download {repository} --local-dir FOLDER` makes it on a machine with "
        f"a network. Without one, '{DEFAULT_ENCODER}' embeds images and '{_MULTIMODAL.shipped[0]}' answers questions"
    )


def _is_cached(source: str, options: Mapping[str, Any]) -> bool:
    from huggingface_hub import errors, snapshot_download

    try:
        snapshot_download(source, **options, local_files_only=True)
    except (errors.HFValidationError, OSError):
        return False
    return True


def _why(error: Exception, source: str, *, revision: str | None, offline: bool) -> str:
    """Explain why a download failed, and what to do about it."""
    from huggingface_hub import constants, errors

    elsewhere = _name_elsewhere(source, revision)
    # Checked before RepositoryNotFoundError, its base class.
    if isinstance(error, errors.GatedRepoError):
        return (
            "the repository is gated: accept its terms on its page, then run `hf auth login`, or give the path of a "
            "folder that has it"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{constants.ENDPOINT} has no repository of this name; check OWNER/NAME, run `hf auth login` if it is a "
            "private one, or give the path of a folder"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; give a branch, tag or commit that its page lists"
    # Checked before the errors below, which the client raises both in offline mode and without a connection.
    if offline:
        return f"not in the cache, and offline mode is on; {elsewhere}"
    hub = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            return f"{hub} answers with an error ({cause.response.status_code}); try again later, or {elsewhere}"
        return _out_of_reach(source, revision)
    if isinstance(error, OSError) and error.errno is not None:
        return f"its files cannot be kept in {constants.HF_HUB_CACHE} ({error.strerror}); HF_HOME names another place"
    return (
        f"the download from {hub} broke off ({shorten_reason(error)}); run the same command to fetch the files that "
        f"are missing, or {elsewhere}"
    )


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the progress bars and warnings of the hub's client, some of which are a page long."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

    bars, verbosity = not are_progress_bars_disabled(), get_verbosity()
    disable_progress_bars()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def check_loaded(report: dict[str, Any], *, name: str) -> None:
    """Raise UserError if a tensor of the model was missing or had another shape: it would stay random.

    Args:
        report: loading info of transformers' `from_pretrained(..., output_loading_info=True)`.

    Raises:
        UserError: naming the first tensors.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{name}: {len(missing)} tensors of the model are missing in the weights ({', '.join(missing[:3])}): "
            "they would stay random"
        )
    if report.get("mismatched_keys"):
        key, stored, needed = min(report["mismatched_keys"], key=str)
        raise UserError(
            f"{name}: tensor '{key}' has the shape {list(stored)} in the weights; expected {list(needed)}, "
            "as config.json has it"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, which lists unused tensors of the other tower and draws progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading(source: object, *, kind: str = "it") -> Iterator[None]:
    """Silence transformers while it loads `source`, and turn its errors into a UserError that names the source.

    Args:
        kind: what it is loaded as, for the error.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    with quiet():
        try:
            yield
        # ImportError: a tokenizer may need a package that is not there; AttributeError: a config of another model;
        # ArithmeticError: a size of 0 in a config.
        except (
            OSError, RuntimeError, LookupError, TypeError, ValueError, ImportError, AttributeError, ArithmeticError,
            MemoryError, SafetensorError, StrictDataclassError,
        ) as error:  # fmt: skip
            # UserError is a ValueError; its text is ours already.
            if isinstance(error, UserError):
                raise
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(f"{source}: transformers cannot load {kind} ({reason})") from error
