"""Constructors that are made from the fields of settings: what scikit-learn, `inspect` and readers see of them."""

from __future__ import annotations

import inspect
from typing import Literal

import pytest
from pydantic import Field
from sklearn.base import BaseEstimator, clone

from foveate.core.parameters import FromParameters, Parameter, field_parameters
from foveate.core.recipes import Settings


class Options(Settings):
    """Options of a method."""

    steps: int = Field(5, ge=1, description="steps of a client")
    start: Literal["near", "far"] = Field("near", description="where it starts")
    widths: tuple[int, ...] = Field((3, 4), description="widths of layers")
    clip: float | None = Field(None, description="largest norm")


PARAMETERS = {
    "n_steps": field_parameters(Options, ["steps"], names={"steps": "n_steps"})["n_steps"],
    **field_parameters(Options, ["start"], optional=True),
    **field_parameters(Options, ["widths", "clip"]),
    "seed": Parameter("int | None", None, "as in scikit-learn"),
}


class Model(FromParameters, BaseEstimator, parameters=PARAMETERS):
    """A model.

    Attributes:
        result_: of the fit.
    """


def test_signature_and_docstring_come_from_the_fields() -> None:
    assert str(inspect.signature(Model)).replace("'", "") == (
        '(n_steps: int = 5, *, start: "Literal[near, far] | None" = None, widths: Sequence[int] = (3, 4), '
        "clip: float | None = None, seed: int | None = None) -> None"
    )
    assert "Parameters:\n        n_steps: steps of a client.\n        start: where it starts." in str(Model.__doc__)
    assert "seed: as in scikit-learn.\n\n    Attributes:" in str(Model.__doc__)


def test_scikit_learn_clones_sets_and_prints_them() -> None:
    widths = [1, 2]
    model = Model(7, widths=widths)
    assert model.widths is widths
    assert clone(model).get_params() == {"n_steps": 7, "start": None, "widths": [1, 2], "clip": None, "seed": None}
    assert model.set_params(start="far").start == "far"
    assert repr(Model(7, seed=1)) == "Model(n_steps=7, seed=1)"


def test_unknown_and_positional_arguments_are_errors() -> None:
    with pytest.raises(TypeError, match=r"Model.__init__\(\) got an unexpected keyword argument 'stepz'"):
        Model(stepz=3)
    with pytest.raises(TypeError, match="too many positional arguments"):
        Model(3, "far")
