"""Write the constructors of the federated estimators from the fields of their options.

    python tools/write_signatures.py            # rewrites what is out of date
    python tools/write_signatures.py --check    # exit 1 and name the modules that are out of date

scikit-learn reads an estimator's parameters from the signature of `__init__`, editors and type checkers from its
source. Bounds, defaults and meanings are declared once, in the options, so the source is made from these: the lines
between `# <signature>` and `# </signature>`, and the section `Parameters:` of the class's docstring. `write_docs.py`
does so, too, before it writes the pages. No estimator is imported here, so that a broken signature can be mended.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from foveate.federated.clustering.methods import METHOD_OPTIONS, METHODS
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.deep.options import DeepOptions
from foveate.federated.embedding.options import ESTIMATOR_NAMES, EmbeddingOptions
from foveate.federated.run_options import ClusterRun, FeaturesRun

ROOT = Path(__file__).resolve().parents[1]
_WIDTH = 120
_BLOCK = re.compile(r"^    # <signature>.*?^    # </signature>\n", re.DOTALL | re.MULTILINE)
_SECTION = re.compile(r"^    Parameters:\n.*?(?=^    Attributes:\n)|(?=^    Attributes:\n)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor.

    Attributes:
        type: as it is written in the source. text: its meaning, for the docstring.
    """

    type: str
    default: Any
    text: str


def field_parameters(
    settings: type[BaseModel], fields: Iterable[str], *, names: Mapping[str, str] | None = None
) -> dict[str, Parameter]:
    """Return the parameters that set these fields, by name.

    Args:
        names: parameters by field, where they have names of their own, such as those that scikit-learn has for a field.
    """
    parameters = {}
    for field in fields:
        info = settings.model_fields[field]
        default = info.get_default(call_default_factory=True)
        name = (names or {}).get(field, field)
        parameters[name] = Parameter(describe_type(info.annotation), default, info.description or "")
    return parameters


def without_default(parameter: Parameter, meaning: str) -> Parameter:
    """Return a parameter whose default depends on other parameters: None, with a sentence that says what None means."""
    is_optional = "None" in parameter.type.split(" | ")
    text = f"{parameter.text}. None: {meaning}"
    return replace(parameter, default=None, type=parameter.type + " | None" * (not is_optional), text=text)


def describe_type(annotation: Any) -> str:
    """Return a type as the source has it, without validators."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe_type(inner[0])
    if origin in (Union, types.UnionType):
        return " | ".join(describe_type(part) for part in inner)
    if annotation is type(None):
        return "None"
    if origin is tuple and inner[-1] is Ellipsis:
        # A list is as good; the options make a tuple of it.
        return f"Sequence[{describe_type(inner[0])}]"
    if origin is Literal:
        return f"Literal[{', '.join(map(_write, inner))}]"
    assert origin is None, f"no way to write the type {annotation}"
    return annotation.__name__


def _write(value: Any) -> str:
    """Return a value as the formatter writes it: texts in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def constructor(parameters: Mapping[str, Parameter]) -> str:
    """Return the source of a constructor, whose first parameter may be passed by position.

    It stores the parameters as they are passed, because scikit-learn's `clone` compares them by identity.
    """
    listed = [f"{name}: {parameter.type} = {_write(parameter.default)}," for name, parameter in parameters.items()]
    lines = [
        "# <signature>: made from the options by tools/write_signatures.py",
        "def __init__(",
        "    self,",
        f"    {listed[0]}",
        "    *,",
    ]
    lines += [f"    {line}" for line in listed[1:]]
    lines += [") -> None:", *(f"    self.{name} = {name}" for name in parameters), "", "# </signature>"]
    source = textwrap.indent("\n".join(lines) + "\n", "    ")
    assert all(len(line) <= _WIDTH for line in source.splitlines()), "a line of the constructor is too long"
    return source


def section(parameters: Mapping[str, Parameter]) -> str:
    """Return the section of the parameters in the docstring of a class."""
    lines = ["    Parameters:"]
    for name, parameter in parameters.items():
        lines += textwrap.wrap(
            f"{name}: {parameter.text}.",
            _WIDTH,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines) + "\n\n"


def fill(source: str, parameters: Mapping[str, Parameter]) -> str:
    """Return the source of a module with one marked constructor, written anew."""
    made, count = _BLOCK.subn(lambda match: constructor(parameters), source)
    assert count == 1, "expected one constructor between `# <signature>` and `# </signature>`"
    made, count = _SECTION.subn(lambda match: section(parameters), made, count=1)
    assert count == 1, "expected a section `Attributes:` in the class's docstring"
    return made


def describe_defaults(field: str) -> str:
    """Return what None means for an option of a clustering whose default depends on the method.

    >>> describe_defaults("restarts")
    '20 with weighted_kmeans; else 10'
    """
    methods: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        if field in method.defaults:
            methods.setdefault(str(method.defaults[field]), []).append(name)
    cases = [f"{value} with {_join_or(names)}" for value, names in methods.items()]
    return "; ".join([*cases, f"else {ClusteringOptions.model_fields[field].default}"])


def _join_or(names: list[str]) -> str:
    """Return "a", "a or b" or "a, b or c"."""
    return " or ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


_RANDOM_STATE = Parameter("int | np.random.RandomState | None", None, "as in scikit-learn")


def clustering_parameters() -> dict[str, Parameter]:
    """Return the parameters of `FederatedKMeans`: all options, some under the names that scikit-learn has for them."""
    special = ("clusters", "method", "seed", "on_few_groups", "suspects", "changed")
    plain = [name for name in ClusteringOptions.model_fields if name not in special]
    options = field_parameters(ClusteringOptions, plain)
    for name in options:
        if name in METHOD_OPTIONS:
            noise = "; none with noise" if name == "eliminate" else ""
            options[name] = without_default(options[name], describe_defaults(name) + noise)
    return {
        "n_clusters": Parameter("int", 8, str(ClusteringOptions.model_fields["clusters"].description)),
        **field_parameters(ClusteringOptions, ["method"]),
        **options,
        **field_parameters(ClusteringOptions, ["on_few_groups", "suspects"]),
        **field_parameters(ClusterRun, ["min_clients", "timeout"]),
        "answers_folder": Parameter(
            "str | Path | None", None, "stores the answers, so that a fit of the same data that was killed resumes"
        ),
        "random_state": _RANDOM_STATE,
    }


def embedding_parameters() -> dict[str, Parameter]:
    """Return the parameters of `FederatedNeighborEmbedding`."""
    first = ("dimensions", "neighbors", "method", "rounds", "learning_rate", "hidden")
    last = ("surrogate_start", "refresh", "mixing", "participation", "precision")
    surrogate = Parameter(
        describe_type(EmbeddingOptions.model_fields["surrogate"].annotation),
        None,
        "what a client sends of its repulsion: a table of values, or a network",
    )
    return {
        **field_parameters(EmbeddingOptions, first, names=ESTIMATOR_NAMES),
        "encoder": Parameter("nn.Module | None", None, "a torch module to use instead; it is copied"),
        "surrogate": without_default(surrogate, "grid; network with another `grid` in `options` than union"),
        **field_parameters(EmbeddingOptions, last, names=ESTIMATOR_NAMES),
        "device": Parameter("str", "cpu", "device of PyTorch"),
        "options": Parameter(
            "Mapping[str, Any] | None",
            None,
            "any other option of `foveate federated embed`, by the name of its field",
        ),
        "checkpoint": Parameter(
            "str | Path | None",
            None,
            "a file that stores the state after every round; the same call with the same data resumes from it",
        ),
        "random_state": _RANDOM_STATE,
    }


def deep_parameters() -> dict[str, Parameter]:
    """Return the parameters of `FederatedDeepClustering`."""
    fields = ("rounds", "width", "local_epochs", "batch_size", "learning_rate", "temperature")
    return {
        "n_clusters": Parameter("int", 8, str(DeepOptions.model_fields["clusters"].description)),
        "encoder": Parameter(
            "nn.Module | None",
            None,
            "a torch module from a batch to [B, inner]; it is copied. None: the data are features and only a head is "
            "trained. `foveate.federated.small_resnet` is one for small images",
        ),
        **field_parameters(DeepOptions, fields, names={"rounds": "n_rounds"}),
        "augment": Parameter(
            'Literal["none", "noise", "shift"] | Augment',
            "none",
            'augmentation: "none", "noise" (features), "shift" (images), or a function of (batch, torch.Generator)',
        ),
        **field_parameters(DeepOptions, ["clustering"], names={"clustering": "method"}),
        "n_init": Parameter("int", 5, "runs of a client's k-means; the best one counts"),
        **field_parameters(DeepOptions, ["min_count", "eliminate"]),
        **field_parameters(FeaturesRun, ["min_clients"]),
        "answers_folder": Parameter(
            "str | Path | None",
            None,
            "stores the answers, so that a fit that was killed resumes with the same data and options. Of an `augment` "
            "that is a function the name is compared, of `encoder` its layers and initial weights",
        ),
        "random_state": _RANDOM_STATE,
    }


def modules() -> dict[Path, str]:
    """Return the modules of the estimators with their sources, written anew."""
    folder = ROOT / "src" / "foveate" / "federated"
    parameters = {
        folder / "estimators.py": clustering_parameters(),
        folder / "embedding" / "estimator.py": embedding_parameters(),
        folder / "deep" / "estimator.py": deep_parameters(),
    }
    return {path: fill(path.read_text(encoding="utf-8"), listed) for path, listed in parameters.items()}


def write_stale(files: Mapping[Path, str], *, check: bool) -> list[Path]:
    """Return the files whose content is another one than here; write them unless `check`."""
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
    return stale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a module is out of date")
    check = parser.parse_args().check
    sys.exit(1 if write_stale(modules(), check=check) and check else 0)


if __name__ == "__main__":
    main()
