"""What is checked before a model is opened: names, keys, who may reach the server; and the verb without its server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import pytest

from foveate.cli.verbs.serve import command
from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.serve.adapters import name_folders, read_key
from foveate.serve.settings import ServeSettings
from naming import raises_naming


def test_names_are_those_of_folders() -> None:
    folders = ["runs/a/model", "mini/", "runs/a/index"]
    assert name_folders(folders, ServeSettings()) == ["a", "mini", "index"]
    assert name_folders(["a/model", "b/model"], ServeSettings(name=("a", "b"))) == ["a", "b"]
    with raises_naming(UserError, "x/a/model", "y/a", "--name"):
        name_folders(["x/a/model", "b/model", "y/a"], ServeSettings())
    with raises_naming(UserError, "--name", 2, 1):
        name_folders(["a", "b"], ServeSettings(name=("a",)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_others_need_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_naming(UserError, host, "--api-key-env", "--without-key"):
        read_key(ServeSettings(host=host))
    assert read_key(ServeSettings(host=host, without_key=True)) == ""
    monkeypatch.setenv("A_KEY", "secret")
    assert read_key(ServeSettings(host=host, api_key_env="A_KEY")) == "secret"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert read_key(ServeSettings(host=host)) == ""


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " secret", "a\nb"):
        monkeypatch.setenv("A_KEY", value)
        with raises_naming(UserError, "A_KEY"):
            read_key(ServeSettings(api_key_env="A_KEY"))


@pytest.mark.parametrize("origin", ["*", "example.org", "https://a.example/", "file://x"])
def test_an_origin_is_exact(origin: str) -> None:
    with raises_naming(UserError, "allow_origin", origin):
        validate(ServeSettings, {"allow_origin": [origin]}, where="serve")


def run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(command, [*arguments])


def test_a_dry_run_opens_nothing(tmp_path: Path) -> None:
    result = run("mini", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    (model,) = json.loads(result.output)["models"]
    assert (model["name"], model["kind"]) == ("mini", "multimodal")
    assert model["bytes"] > 1e6
    problem = run(str(tmp_path), "--dry-run").exception
    assert isinstance(problem, UserError)
    assert str(tmp_path) in str(problem)
    problem = run("mini", "--port-file", str(tmp_path / "none" / "port")).exception
    assert isinstance(problem, UserError)
    assert "--port-file" in str(problem)
    assert run("mini", "--port", "70000").exit_code == 2


def test_what_is_opened_is_printed_before_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("opened")

    monkeypatch.setattr("foveate.serve.adapters.open_adapters", fail)
    assert "opening mini" in run("mini").output
    assert run("mini", "--json").output == ""


@pytest.mark.slow
def test_a_model_from_the_command_line(tmp_path: Path) -> None:
    import openai

    port_file = tmp_path / "port"
    arguments = ["-c", "from foveate.cli.main import main; main()", "serve", "mini", "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, *arguments, "--port-file", str(port_file), "--max-tokens", "8"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        started: dict[str, Any] = json.loads(process.stdout.readline())
        assert started["port"] == int(port_file.read_text())
        client = openai.OpenAI(base_url=f"{started['address']}/v1", api_key="none")
        messages: Any = [{"role": "user", "content": "What is a boat?"}]
        text = client.chat.completions.create(model="mini", messages=messages).choices[0].message.content
        stream = client.chat.completions.create(model="mini", messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
        second = subprocess.run(
            [sys.executable, *arguments[:4], "--port", str(started["port"])], capture_output=True, text=True
        )
        assert second.returncode == 1
        assert str(started["port"]) in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        process.terminate()
    assert process.wait(60) == 0
    assert not port_file.exists()
