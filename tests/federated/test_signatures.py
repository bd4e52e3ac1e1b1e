"""Constructors of the estimators, made from the options: what readers, type checkers and scikit-learn see."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field
from sklearn.base import BaseEstimator, clone

from foveate.core.recipes import Settings
from foveate.federated import FederatedKMeans, FederatedNeighborEmbedding
from foveate.federated.clustering.methods import METHOD_OPTIONS, method_names, resolve
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.embedding.options import EmbeddingOptions

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import write_signatures  # noqa: E402
from write_signatures import Parameter, constructor, field_parameters, section, without_default  # noqa: E402


class Options(Settings):
    """Options of a method."""

    steps: int = Field(5, ge=1, description="steps of a client")
    start: Literal["near", "far"] = Field("near", description="where it starts")
    widths: tuple[int, ...] = Field((3, 4), description="widths of layers")
    clip: float | None = Field(None, description="largest norm")


PARAMETERS = {
    "n_steps": field_parameters(Options, ["steps"], names={"steps": "n_steps"})["n_steps"],
    "start": without_default(field_parameters(Options, ["start"])["start"], "far with few steps; else near"),
    **field_parameters(Options, ["widths", "clip"]),
    "seed": Parameter("int | None", None, "as in scikit-learn"),
}


def make_model() -> Any:
    """Return a class with the constructor whose source is made of `PARAMETERS`."""
    source = f"class Model(BaseEstimator):\n{constructor(PARAMETERS)}"
    names = {"BaseEstimator": BaseEstimator, "Literal": Literal, "Sequence": Sequence}
    exec(source, names)  # the source is this test's own
    return names["Model"]


def test_source_and_docstring_come_from_the_fields() -> None:
    assert str(inspect.signature(make_model())).replace("'", "") == (
        '(n_steps: int = 5, *, start: "Literal[near, far] | None" = None, widths: Sequence[int] = (3, 4), '
        "clip: float | None = None, seed: int | None = None) -> None"
    )
    text = section(PARAMETERS)
    assert "Parameters:\n        n_steps: steps of a client.\n        start: where it starts. None: far with" in text
    assert text.endswith("seed: as in scikit-learn.\n\n")


def test_scikit_learn_clones_sets_and_prints_them() -> None:
    widths = [1, 2]
    model = make_model()(7, widths=widths)
    assert model.widths is widths
    assert clone(model).get_params() == {"n_steps": 7, "start": None, "widths": [1, 2], "clip": None, "seed": None}
    assert model.set_params(start="far").start == "far"
    assert repr(make_model()(7, seed=1)) == "Model(n_steps=7, seed=1)"


def test_unknown_and_positional_arguments_are_errors() -> None:
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'stepz'"):
        make_model()(stepz=3)
    with pytest.raises(TypeError, match="positional argument"):
        make_model()(3, "far")


def test_the_estimators_are_up_to_date() -> None:
    for path, source in write_signatures.modules().items():
        assert path.read_text(encoding="utf-8") == source, "run python tools/write_docs.py"


@pytest.mark.parametrize("estimator", [FederatedKMeans, FederatedNeighborEmbedding])
def test_a_default_of_none_says_what_it_means(estimator: type[BaseEstimator]) -> None:
    """None is a value of the option itself, or stands for what depends on other parameters, which the text says."""
    names, text = inspect.signature(estimator).parameters, str(inspect.getdoc(estimator))
    fields = ClusteringOptions.model_fields | EmbeddingOptions.model_fields
    for name, parameter in names.items():
        if parameter.default is None and name in fields and fields[name].default is not None:
            item = re.search(rf"^    {name}: .*?(?=^    \w+: |^Attributes:)", text, re.DOTALL | re.MULTILINE)
            assert item is not None
            assert "None: " in " ".join(item[0].split()), name
            assert name in METHOD_OPTIONS | {"surrogate"}
    assert not any(parameter.annotation in (inspect.Parameter.empty, "Any") for parameter in names.values())


@pytest.mark.parametrize("method", method_names())
def test_what_is_left_alone_is_the_methods_default(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FederatedKMeans(method=method, random_state=0)._options() == resolve(8, method=method)
        # None was the default of every option once, and still is that of the method.
        given: dict[str, Any] = dict.fromkeys(set(ClusteringOptions.model_fields) & set(FederatedKMeans().get_params()))
        given["method"] = method
        assert FederatedKMeans(random_state=0, **given)._options() == resolve(8, method=method)


def test_what_is_given_holds_also_where_it_is_another_methods_default() -> None:
    assert FederatedKMeans(method="kfed", n_init=5)._options().n_init == 5
    assert FederatedKMeans(method="paper_reconstruction", eliminate="flags")._options().eliminate == "flags"
    with pytest.warns(UserWarning, match="'restarts' has no effect"):
        FederatedKMeans(method="kfed", restarts=10)._options()
    assert FederatedKMeans(noise=1.0, clip=2.0)._options().eliminate == "none"


SNIPPET = """
from pathlib import Path

import numpy as np

from foveate import FederatedDeepClustering, FederatedNeighborEmbedding
from foveate.federated import FederatedKMeans

FederatedKMeans(3, n_init=2, radius="fused", local_clusters=[2, 3], answers_folder=Path("x"), random_state=0)
FederatedNeighborEmbedding(3, hidden_layer_sizes=[8, 8], options={"scale": "standard"})
FederatedDeepClustering(3, augment=lambda batch, generator: batch, random_state=np.random.RandomState(0))
FederatedKMeans("three")
FederatedKMeans(3, client_init="kmeanspp")
FederatedKMeans(3, n_clients=4)
FederatedNeighborEmbedding(3, n_rounds=None)
FederatedDeepClustering(3, augment="rotate")
"""


@pytest.mark.slow
def test_a_type_checker_reports_wrong_types_and_passes_right_ones(tmp_path: Path) -> None:
    pytest.importorskip("pyrefly")
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET, encoding="utf-8")
    command = [sys.executable, "-m", "pyrefly", "check", str(path), "--search-path", str(ROOT / "src")]
    ended = subprocess.run(
        [*command, "--python-interpreter-path", sys.executable, "--preset", "default", "--output-format", "min-text"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    lines = {int(number) for number in re.findall(r"snippet\.py:(\d+):", ended.stdout)}
    assert lines == {12, 13, 14, 15, 16}, ended.stdout + ended.stderr
