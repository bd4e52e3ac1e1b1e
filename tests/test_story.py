"""The page docs/how-to/end-to-end.md: its commands, one after the other, on fewer photographs and with fewer steps."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from foveate import open_mllm
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.collection import Collection

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "end-to-end.md"
# All that the test changes in the page's files and commands, and how often it stands there.
SMALLER = {
    "train=240, test=80": ("train=120, test=40", 1),
    # All test photographs: with fewer, a subject is missing, and the classes of both folders must be equal.
    "train=120, test=80": ("train=60, test=80", 1),
    "--steps 120": ("--steps 80", 2),
    "steps: 120, batch": ("steps: 60, batch", 1),
}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\n")

pytestmark = pytest.mark.slow


def read_blocks() -> list[tuple[str, str]]:
    """The page's fenced blocks with their languages, made smaller."""
    blocks = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    code = "\0".join(content for language, content in blocks if language != "text")
    for part, (_, count) in SMALLER.items():
        assert code.count(part) == count, part
    for part, (smaller, _) in SMALLER.items():
        blocks = [(language, content.replace(part, smaller)) for language, content in blocks]
    return blocks


def run(words: list[str]) -> str:
    """Run a line of the page in this process, which imports everything once; return what it printed."""
    if words[0] == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runpy.run_path(words[1], run_name="__main__")
        return printed.getvalue()
    assert words[0] == "foveate", words
    result = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output[-3000:]}"
    return result.output


@contextlib.contextmanager
def start(words: list[str]) -> Iterator[None]:
    """Run a line that ends in & until the page ends it."""
    assert words[0] == "foveate", words
    server = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        assert server.wait(60) in (0, 130, 143, -15)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the whole page in a new folder, which stays the working directory; what each line printed."""
    outputs: dict[str, str] = {}
    with contextlib.chdir(tmp_path_factory.mktemp("story")), contextlib.ExitStack() as background:
        for language, content in read_blocks():
            if name := FILE.match(content):
                Path(name[1]).write_text(content, encoding="utf-8")
            elif language == "bash":
                for line in content.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words[-1] == "&":
                        background.enter_context(start(words[:-1]))
                    elif words[0] == "kill":
                        background.close()
                    else:
                        outputs[" ".join(words)] = run(words)
        yield outputs


def output_of(printed: dict[str, str], start: str) -> str:
    return next(text for command, text in printed.items() if command.startswith(start))


def value(run_name: str, question: str, column: str, data: str | None = None) -> float:
    """A value of the table of a run's result."""
    result = json.loads(Path("runs", run_name, "result.json").read_text(encoding="utf-8"))
    rows = [row for row in result["table"] if row["question"].startswith(question) and data in (None, row["data"])]
    return float(rows[0]["values"][column]["value"])


def test_the_folder_and_its_truth(printed: dict[str, str]) -> None:
    assert "160 images imported" in output_of(printed, "foveate collect photos")
    with Collection.open("my-images") as collection:
        for record in collection:
            # The answer key is of test photographs alone: nothing is trained on it.
            known = [region for region in record.regions if region.source == "scenes"]
            assert bool(known) == (record.split == "test")


def test_every_photograph_has_captions_that_depend_on_it(printed: dict[str, str]) -> None:
    with Collection.open("my-images") as collection:
        kinds = [{caption.kind for caption in record.captions} for record in collection]
    assert sum("alt" in kind for kind in kinds) == 112
    assert all({"ssc", "dsc"} <= kind for kind in kinds)
    true = value("audit", "Assertions that hold (of all)", "dsc")
    assert true > value("audit", "Control", "dsc") + 0.1
    assert value("audit", "Assertions per caption", "dsc") > 3


def test_regions_lie_on_what_they_name(printed: dict[str, str]) -> None:
    right, control = (float(share) for share in re.findall(r": (0\.\d+) of", output_of(printed, "python boxes.py")))
    assert right > 0.3
    assert control < 0.1


def test_the_mixture_gives_every_photograph_a_text(printed: dict[str, str]) -> None:
    assert "120 images of split train, 120 with a text to draw" in output_of(printed, "foveate mix")


def test_the_mixture_teaches_more_than_alt_texts(printed: dict[str, str]) -> None:
    question = "which text belongs to this image: R@10"
    mixture = value("cloc-evaluated", question, "model")
    assert mixture > 0.25  # chance is 10 of 40
    assert mixture > value("cloc-alt-evaluated", question, "model")


def test_the_model_names_regions_with_the_tower_of_the_encoder(printed: dict[str, str]) -> None:
    model = open_mllm("runs/mllm/model")
    assert model.loaded.provenance["tower"]["source"] == str(Path("runs/cloc/model").resolve())  # type: ignore[union-attr]
    result = json.loads(Path("runs", "mllm-evaluated", "result.json").read_text(encoding="utf-8"))
    assert result["table"]
    for command, output in printed.items():
        if command.startswith("foveate ask"):
            assert output.startswith("1. "), command


def test_the_server_answers_as_the_model(printed: dict[str, str]) -> None:
    asked = next(text for command, text in printed.items() if command.startswith("foveate ask"))
    # So short a training may not have taught the end of an answer; then the server's, which may be longer, goes on.
    assert asked.startswith("1. ")
    assert printed["python client.py"].startswith(asked.removesuffix("\n"))


def test_the_classifier_is_calibrated(printed: dict[str, str]) -> None:
    output = output_of(printed, "foveate calibrate")
    assert "fine-tuned" in output
    assert Path("runs/calibrate/result.json").is_file()


def test_exports_open_in_other_libraries(printed: dict[str, str]) -> None:
    output = printed["python elsewhere.py"]
    assert "160 photographs" in output
    assert "(1, 192)" in output


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("export runs/cloc/model --to open_clip --dry-run", "lite0"),
        ("export runs/cloc/model --to transformers --dry-run", "lite0"),
        ("mllm export runs/mllm/model --to llava", "connector.kind"),
        ("mllm export runs/mllm/model --to peft", "LoRA"),
    ],
)
def test_exports_that_the_page_calls_impossible_are_refused(printed: dict[str, str], command: str, name: str) -> None:
    with pytest.raises(UserError, match=name):
        CliRunner().invoke(cli, command.split(), catch_exceptions=False, standalone_mode=False)
