"""Adapters for models of transformers: answers alone are learned, runs resume, PEFT opens what is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

import tiny
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.recipes import load
from foveate.core.runs import RunFolder
from foveate.mllm.evaluate import evaluate
from foveate.mllm.settings import SuiteSettings
from foveate.mllm.tuning.network import load_network, open_base
from foveate.mllm.tuning.recipe import TuningRecipe
from foveate.mllm.tuning.samples import NO_UNIT, TuningRow, encode_conversation
from foveate.mllm.tuning.train import Tuning, TuningTask, measure, plan_tuning, stack_rows, tune
from foveate.multimodal.foreign import BATCHED, ForeignMllm, open_foreign
from foveate.multimodal.opening import hash_source, open_mllm
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Turn, add_conversations
from foveate.training.distributed import World
from multimodal.foreign_matrix import MATRIX
from multimodal.foreign_models import BUILDERS, save
from multimodal.test_foreign import draw
from naming import raises_naming

QUESTION = "what is in the image"
TALK = (
    Turn("user", f"<image>\n{QUESTION}"), Turn("assistant", "a red disc"),
    Turn("user", "is the disc big"), Turn("assistant", "yes"),
)  # fmt: skip
FAMILIES = tuple(sorted(BUILDERS))
# Families of single questions.
SINGLE = ("kosmos-2", "paligemma")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("foreign")
    return {family: save(family, root / family) for family in BUILDERS}


def make_own_collection(path: Path) -> Path:
    """The tiny collection with questions in the words of the tiny models, and where its first region is."""
    tiny.make_collection(path)
    with Collection.open(path) as collection:
        talks = []
        for row, key in enumerate(collection.keys):
            region, record = collection.read_regions(row)[0], collection.record(row)
            answer = f"a {'red' if region.phrase.startswith('red') else 'blue'} disc"
            ask = Turn("user", f"<image>\n{QUESTION}"), Turn("assistant", answer)
            talks.append(Conversation(f"what/{key}", (key,), ask))
            box = region.box.to_pixels(record.width, record.height)
            where = Turn("user", "<image>\nwhere is the disc"), Turn("assistant", "<region>", (box,))
            talks.append(Conversation(f"where/{key}", (key,), where, "refer-ground"))
    add_conversations(path, talks)
    return path


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_own_collection(tmp_path_factory.mktemp("own") / "shapes")


def make_recipe(base: Path, *changes: str) -> TuningRecipe:
    """The shipped recipe, as short as a test needs it."""
    short = [
        f"base={base}", "training.steps=4", "training.batch_size=4", "training.accumulate=2", "training.workers=0",
        "training.evaluate_every=2", "training.checkpoint_every=1", "training.warmup_steps=0", "training.log_every=1",
        "training.learning_rate=0.01", "training.precision=fp32", "validation_conversations=4",
    ]  # fmt: skip
    return load(TuningRecipe, "own-vlm", [*short, *changes])


def encode(model: ForeignMllm, *turns: Turn, images: int = 1) -> TuningRow:
    keys = tuple(map(str, range(images)))
    return encode_conversation(
        model, [draw(50, 40, seed=seed) for seed in range(images)], Conversation("1", keys, turns)
    )


def read_learned(model: ForeignMllm, row: TuningRow) -> list[str]:
    ids_T = row.inputs["input_ids"][0]
    return model.processor.tokenizer.convert_ids_to_tokens(ids_T[row.learned_T].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_alone_are_learned(family: str, folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders[family]))
    turns = TALK[:2] if family in SINGLE else TALK
    row = encode(model, *turns)
    # The templates of the tests write no end; without one a model would never learn to stop.
    assert read_learned(model, row) == ["a", "red", "disc", *(["yes"] if len(turns) > 2 else []), "</s>"]
    # What stands in front of the last answer is what the model reads when it is asked.
    asked = model._inputs([draw(50, 40)], [(turn.role, turn.text) for turn in turns[:-1]])["input_ids"][0]
    last = int(row.learned_T.nonzero()[-1 - len(turns[-1].text.split())])
    assert torch.equal(row.inputs["input_ids"][0, :last], asked)


def test_images_of_later_turns_keep_their_places(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["qwen2_5_vl"]))
    later = (*TALK[:2], Turn("user", "<image> is the disc small"), Turn("assistant", "no"))
    assert read_learned(model, encode(model, *later, images=2)) == ["a", "red", "disc", "no", "</s>"]


def test_boxes_are_written_in_the_unit_of_the_family(folders: dict[str, Path]) -> None:
    where = Turn("user", "<image>\nwhere is the disc"), Turn("assistant", "<region>", (PixelBox(5, 10, 25, 30),))
    written = {}
    for family, unit in (("qwen2_vl", None), ("llava", "0-1"), ("paligemma", None)):
        model = open_foreign(str(folders[family]), unit=unit)
        written[family] = model.write_turns([draw(50, 40)], where, numbered=())[-1][1]
    assert written == {
        "qwen2_vl": "<|box_start|>(100,250),(500,750)<|box_end|>", "llava": "[0.10, 0.25, 0.50, 0.75]",
        "paligemma": "<loc0256><loc0102><loc0768><loc0512>",
    }  # fmt: skip
    row = encode(open_foreign(str(folders["qwen2_vl"])), *where)
    assert int(row.learned_T.sum()) > 4


def test_templates_that_mark_answers_are_checked(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["llava"]))
    plain = model.processor.chat_template
    turn = "{% if message['role'] == 'assistant' %}{% generation %}X</s>\n{% endgeneration %}{% else %}X{% endif %}"
    text = "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} "
    text += "{% endif %}{% endfor %}"
    begin = "{% for message in messages %}{{ message['role'] }} : "
    end = "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    model.processor.chat_template = begin + turn.replace("X", text) + end
    # Each answer ends with the template's own mark, and not with the line end behind it.
    assert read_learned(model, encode(model, *TALK)) == ["a", "red", "disc", "</s>", "yes", "</s>"]
    model.processor.chat_template = begin + turn.replace("X", text).replace("'assistant'", "'user'") + end
    with raises_naming(UserError, folders["llava"], "chat template", "generated"):
        encode(model, *TALK)
    # Thoughts of earlier turns are left out by models that think.
    last = "{{ part['text'] if message == messages[-1] or message['role'] == 'user' else 'no' }}"
    model.processor.chat_template = plain.replace("{{ part['text'] }}", last)
    with raises_naming(UserError, "chat template", "earlier turns"):
        encode(model, *TALK)
    model.processor.chat_template = plain + "{% if add_generation_prompt %}thought{% endif %}"
    with raises_naming(UserError, "chat template", "behind the prompt"):
        encode(model, *TALK)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_has_the_losses_of_its_rows(family: str, folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders[family]))
    rows = [encode(model, *TALK[:2]), encode(model, TALK[2], TALK[3], images=0 if family == "none" else 1)]
    stacked = stack_rows(rows)
    assert stacked is not None
    network: Any = model.model
    network.get_base_model = lambda: network
    task = TuningTask(network)
    assert task._is_batched == (family in BATCHED)
    together = task.score(rows)
    alone = [task.score([row])[0] for row in rows]
    for (loss_N, right_N), (expected_N, expected_right_N) in zip(together, alone, strict=True):
        torch.testing.assert_close(loss_N, expected_N, rtol=1e-4, atol=1e-4)
        assert right_N.shape == expected_right_N.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_trained_and_asked(
    family: str, folders: dict[str, Path], collection: Path, tmp_path: Path
) -> None:
    with Collection.open(collection) as opened:
        recipe = make_recipe(folders[family])
        tuned = tune(recipe, opened, tmp_path / "run", device="cpu")
        result = tuned.result
        assert tuned.adapter is not None
        assert result.status == "finished"
        assert result.trained == open_base(recipe).trained
        has_unit = MATRIX[family].no.get("boxes") is None
        assert result.left_out == ({} if has_unit else {NO_UNIT: sum(result.conversations.values())})
        assert result.after["own image"]["loss"] < result.before["own image"]["loss"]
        assert {*result.after} == {"own image", "another image"}
    model = open_mllm(tuned.adapter, device="cpu")
    assert isinstance(model, ForeignMllm)
    assert model.ask(draw(40, 40), QUESTION, max_tokens=3).tokens <= 3
    state = load_file(tuned.adapter / "adapter_model.safetensors")
    assert not any("vision" in name or "visual" in name for name in state)
    assert any(float(value.abs().max()) for name, value in state.items() if ".lora_B." in name)


def stop_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the process get SIGTERM in the so many-th computation of losses."""
    count, losses = 0, TuningTask.losses

    def compute(self: TuningTask, batch: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, batch)

    monkeypatch.setattr(TuningTask, "losses", compute)


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_stopped_run_ends_with_the_same_weights(
    method: str, folders: dict[str, Path], collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(folders["qwen2_5_vl"], f"adapter.method={method}", "adapter.dropout=0.2")
    with Collection.open(collection) as opened:
        whole = tune(recipe, opened, tmp_path / "whole", device="cpu")
        with monkeypatch.context() as patched:
            stop_after(patched, 4)
            stopped = tune(recipe, opened, tmp_path / "stopped", device="cpu")
        assert (stopped.result.status, stopped.adapter) == ("stopped", None)
        resumed = tune(recipe, opened, tmp_path / "stopped", device="cpu")
        with raises_naming(UserError, tmp_path / "stopped", "another recipe"):
            tune(make_recipe(folders["llava"]), opened, tmp_path / "stopped", device="cpu")
    assert whole.adapter is not None
    assert resumed.adapter is not None
    first, second = (load_file(path / "adapter_model.safetensors") for path in (whole.adapter, resumed.adapter))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert whole.result.before == resumed.result.before
    assert whole.result.after == resumed.result.after


WITHOUT_FOVEATE = """
import sys, torch
from safetensors.torch import load_file, save_file
from peft import PeftModel
from transformers import AutoModelForImageTextToText
base, adapter, inputs, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    logits = model(**load_file(inputs)).logits
assert not any(name.startswith("foveate") for name in sys.modules)
save_file({"logits": logits.contiguous()}, out)
"""


def test_peft_opens_the_adapter_in_a_process_without_foveate(
    folders: dict[str, Path], collection: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    with Collection.open(collection) as opened:
        tuned = tune(make_recipe(folders["llava"]), opened, tmp_path / "run", device="cpu")
    assert tuned.adapter is not None
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in tuned.adapter.iterdir()}
    model = open_foreign(str(tuned.adapter))
    inputs = model._inputs([draw(50, 40)], [("user", QUESTION)])
    save_file({name: value.contiguous() for name, value in inputs.items()}, tmp_path / "inputs.safetensors")
    arguments = [folders["llava"], tuned.adapter, tmp_path / "inputs.safetensors", tmp_path / "out.safetensors"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_FOVEATE, *map(str, arguments)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    with torch.no_grad():
        expected = model.model(**inputs).logits
        base = open_foreign(str(folders["llava"])).model(**inputs).logits
    logits = load_file(tmp_path / "out.safetensors")["logits"]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, base, rtol=1e-3, atol=1e-3)


def logits_of(network: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return network.eval()(**inputs).logits


@pytest.mark.parametrize("method", ["dora", "rslora", "pissa"])
def test_every_method_is_opened_as_it_was_trained(
    method: str, folders: dict[str, Path], collection: Path, tmp_path: Path
) -> None:
    with Collection.open(collection) as opened:
        tuning = Tuning(make_recipe(folders["llava"], f"adapter.method={method}"), opened, torch.device("cpu"))
        task = tuning.load()
        inputs = tuning.samples.encode(0).inputs
        base = logits_of(open_foreign(str(folders["llava"])).model, inputs)
        # Each starts as its base: PiSSA takes out of the weights what it adds beside them.
        torch.testing.assert_close(logits_of(task.model, inputs), base, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            for name, weight in task.model.named_parameters():
                if weight.requires_grad:
                    weight.add_(torch.full_like(weight, 0.02 if "lora" in name else 0.0))
        trained = logits_of(task.model, inputs)
        assert not torch.allclose(trained, base, rtol=1e-2, atol=1e-2)
        folder = tuning.save(tmp_path / "adapter", {})
    torch.testing.assert_close(logits_of(open_foreign(str(folder)).model, inputs), trained, rtol=1e-3, atol=1e-3)


def test_recomputed_activations_change_no_gradient(folders: dict[str, Path], collection: Path) -> None:
    gradients = []
    with Collection.open(collection) as opened:
        for recompute in ("false", "true"):
            recipe = make_recipe(folders["qwen2_5_vl"], f"recompute={recompute}")
            tuning = Tuning(recipe, opened, torch.device("cpu"))
            task = tuning.load().train()
            task.losses({"rows": [tuning.samples.encode(0)]})[0]["loss"].backward()
            gradients.append([weight.grad for weight in task.parameters() if weight.requires_grad])
    assert any(gradient is not None and float(gradient.abs().max()) for gradient in gradients[0])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_a_training_stops_when_the_validation_gets_worse(
    folders: dict[str, Path], collection: Path, tmp_path: Path
) -> None:
    changes = ("training.steps=20", "training.evaluate_every=1", "training.patience=2", "training.learning_rate=3")
    with Collection.open(collection) as opened:
        tuned = tune(make_recipe(folders["llava"], *changes), opened, tmp_path / "run", device="cpu")
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert tuned.result.status == "finished"
    assert tuned.result.stages[0].steps == len(rows) < 20
    # The weights are those of the best evaluation.
    best = min(row["eval_loss"] for row in rows)
    assert tuned.result.after["own image"]["loss"] == pytest.approx(best, rel=1e-4)


def test_the_command_line_prices_trains_and_asks(folders: dict[str, Path], collection: Path, tmp_path: Path) -> None:
    runner, recipe = CliRunner(), tmp_path / "short.yaml"
    from foveate.core.recipes import dump

    recipe.write_text(dump(make_recipe(folders["llava"], "unit_of_boxes=none")))
    line = ["mllm", "train", str(recipe), "--collection", str(collection), "--device", "cpu", "--quiet"]
    priced = runner.invoke(cli, [*line, "--dry-run", "--json", "--method", "dora"], catch_exceptions=False)
    plan = json.loads(priced.stdout)
    assert plan["trained"] > plan["targets"] > 0
    assert plan["seconds_per_step"] > 0
    assert plan["memory_bytes"]["total"] > 4 * plan["parameters"]
    assert plan["left_out"] == {NO_UNIT: plan["conversations"]}
    run = tmp_path / "run"
    trained = runner.invoke(cli, [*line, "--out", str(run), "--json", "--unit-of-boxes", "0-1000"])
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["left_out"] == {}
    image = tmp_path / "image.png"
    draw(40, 40).save(image)
    adapter, base = str(run / "adapter"), str(folders["llava"])
    question = [str(image), QUESTION, "--device", "cpu", "--max-tokens", "3"]
    texts = [
        runner.invoke(cli, ["ask", *question, *more], catch_exceptions=False).stdout
        for more in (["--adapter", adapter], ["--model", base, "--adapter", adapter], ["--model", adapter])
    ]
    assert texts[0] == texts[1] == texts[2]
    # Boxes are written, and read, in the unit of the training.
    assert open_foreign(adapter).unit == "0-1000"
    assert hash_source(adapter) != hash_source(str(folders["llava"]))


def test_the_base_is_opened_as_it_is_when_it_is_asked(
    folders: dict[str, Path], collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folders["llava"]
    runner, line = CliRunner(), ["mllm", "train", "own-vlm", "--collection", str(collection), "--base", str(base)]
    plans = [
        json.loads(runner.invoke(cli, [*line, "--dry-run", "--json", "--quiet", *more], catch_exceptions=False).stdout)
        for more in ([], ["--dtype", "bfloat16", "--device-map", "auto"])
    ]
    first, second = (plan["memory_bytes"] for plan in plans)
    assert (first["base"], first["adapter"]) == (2 * second["base"], second["adapter"])
    for more, words in (
        (["--dtype", "bf16"], ("dtype", "bfloat16")),
        (["--device-map", "auto", "--device", "cpu"], ("--device", "device map")),
        (["--quantization", "4bit", "--device", "cpu"], ("quantization", "4bit", "GPU")),
    ):
        refused = runner.invoke(cli, [*line, "--dry-run", "--quiet", *more])
        said = f"{refused.output} {refused.exception}"
        assert refused.exit_code
        assert all(word in said for word in words), said
    with Collection.open(collection) as opened:
        recipe = make_recipe(base, "dtype=bfloat16", "device_map=auto")
        tuning = Tuning(recipe, opened, torch.device("cpu"))
        task = tuning.load()
        dtypes = {weight.requires_grad: weight.dtype for weight in task.parameters()}
        assert dtypes == {True: torch.float32, False: torch.bfloat16}
        # As accelerate notes it where there are GPUs: parts on several devices are left where they are.
        placed: Any = task.model
        placed.get_base_model().hf_device_map = {"model.vision_tower": 0, "model.language_model": 1}
        assert task.to("meta") is task
        assert next(task.parameters()).device.type == "cpu"
        tuned = tune(recipe, opened, tmp_path / "run", device="cpu")
        assert tuned.result.after["own image"]["loss"] < tuned.result.before["own image"]["loss"]
        assert tuned.adapter is not None
        monkeypatch.setattr("foveate.mllm.tuning.network.world", lambda: World(0, 2, torch.device("cpu")))
        with raises_naming(UserError, "device_map", "auto", "torchrun"):
            Tuning(recipe, opened, torch.device("cpu"))
    state = load_file(tuned.adapter / "adapter_model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
    loaded = open_foreign(str(base)).model
    loaded.hf_device_map = {"model.vision_tower": 0, "model.language_model": "cpu"}
    monkeypatch.setattr("foveate.mllm.tuning.network.load_foreign", lambda *_, **__: loaded)
    with raises_naming(UserError, "device_map", base, "cpu", "4bit"):
        load_network(open_base(recipe), recipe, torch.device("cpu"))


def test_an_adapter_is_evaluated_with_its_controls(folders: dict[str, Path], collection: Path, tmp_path: Path) -> None:
    with Collection.open(collection) as opened:
        tuned = tune(make_recipe(folders["llava"]), opened, tmp_path / "run", device="cpu")
    assert tuned.adapter is not None
    result = evaluate(
        open_mllm(tuned.adapter, device="cpu"), "conversations", collection, run=tmp_path / "evaluation",
        settings=SuiteSettings(limit=4),
    )  # fmt: skip
    assert result.questions == 4
    assert len(result.columns) == 3


def test_unusable_bases_and_collections_are_named(
    folders: dict[str, Path], collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for base, words in (
        ("", ("base", "OWNER/NAME")),
        (str(text), ("base", text, "llama", "image-text-to-text")),
        ("mini", ("base", "mini", "mllm-own")),
        (str(tmp_path / "none"), (tmp_path / "none",)),
    ):
        with raises_naming(UserError, *words):
            open_base(make_recipe(Path("x"), f"base={json.dumps(base)}"))
    cpu = torch.device("cpu")
    with raises_naming(UserError, "quantization", "4bit", "cpu"), Collection.open(collection) as opened:
        Tuning(make_recipe(folders["llava"], "quantization=4bit"), opened, cpu)
    # On a GPU the weights are quantized where all other commands quantize them.
    base = open_base(make_recipe(folders["llava"], "quantization=4bit"))
    with raises_naming(UserError, "quantize", "4bit", "cpu"):
        load_network(base, make_recipe(folders["llava"], "quantization=4bit"), cpu)
    empty = tiny.make_collection(tmp_path / "empty")
    with raises_naming(UserError, empty, "train", "no conversations"), Collection.open(empty) as opened:
        Tuning(make_recipe(folders["llava"]), opened, cpu)
    turns = Turn("user", "<image>\nwhat is <region>", (PixelBox(1, 1, 9, 9),)), Turn("assistant", "disc")
    add_conversations(empty, [Conversation("1", ("train-00",), turns)])
    with raises_naming(UserError, "1", "llava", "--unit-of-boxes"), Collection.open(empty) as opened:
        Tuning(make_recipe(folders["llava"], "unit_of_boxes=none"), opened, cpu)
    with Collection.open(collection) as opened:
        tuning = Tuning(make_recipe(folders["llava"]), opened, cpu)
        monkeypatch.setattr("foveate.mllm.tuning.network.available_memory", lambda: 1000)
        with raises_naming(UserError, "memory", "base", "activations", "0.0 GB free", "recompute"):
            tuning.check()
        tuning.samples.max_positions = 3
        with raises_naming(UserError, "conversations can be learned", "tokens", 3):
            tuning.check()


def test_adapters_of_other_models_are_refused(folders: dict[str, Path], collection: Path, tmp_path: Path) -> None:
    with Collection.open(collection) as opened:
        recipe = make_recipe(folders["llava"])
        folder = Tuning(recipe, opened, torch.device("cpu"))
        folder.load()
        adapter = folder.save(tmp_path / "adapter", {})
    with pytest.warns(UserWarning, match="llava"), raises_naming(UserError, adapter, folders["smolvlm"]):
        open_foreign(str(folders["smolvlm"]), adapter=adapter)
    with raises_naming(UserError, adapter, "mini", "transformers"):
        open_mllm("mini", adapter=adapter)
    with raises_naming(UserError, "base", "is an adapter"):
        open_base(make_recipe(adapter))
    state = load_file(adapter / "adapter_model.safetensors")
    from safetensors.torch import save_file

    name = next(iter(state))
    save_file({**state, name: state[name][:, :5].contiguous()}, adapter / "adapter_model.safetensors")
    with raises_naming(UserError, adapter, name, "[16, 5]"):
        open_foreign(str(adapter))
    save_file({key: value for key, value in state.items() if key != name}, adapter / "adapter_model.safetensors")
    with raises_naming(UserError, adapter, name, "none"):
        open_foreign(str(adapter))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with raises_naming(UserError, adapter, "adapter_model.safetensors", "pickles"):
        open_foreign(str(adapter))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with raises_naming(UserError, adapter, "--model"):
        open_foreign(str(adapter))
    with raises_naming(UserError, tmp_path / "other", "adapter_config.json"):
        open_foreign(str(folders["llava"]), adapter=tmp_path / "other")


def test_permuted_answers_are_a_control(folders: dict[str, Path], collection: Path) -> None:
    with Collection.open(collection) as opened:
        tuning = Tuning(make_recipe(folders["qwen2_vl"]), opened, torch.device("cpu"))
        task, samples = tuning.load().eval(), tuning.validation
        assert samples is not None
        own, other = measure(task, samples), measure(task, samples, other_images=True)
        assert own["loss"] != other["loss"]
        plan, lines = plan_tuning(make_recipe(folders["qwen2_vl"]), opened, device="cpu")
    assert plan["left_out"] == {}
    assert any("0-1000" in line for line in lines)


def train_in_fork(base: Path, collection: Path, run: Path, *, kill_after: int | None) -> bool:
    """Train in a forked process, killed once so many checkpoints are there; return whether it ended by itself."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Collection.open(collection) as opened:
                tune(make_recipe(base, "training.steps=12", "adapter.dropout=0.1"), opened, run, device="cpu")
            status = 0
        finally:
            os._exit(status)
    before = set(run.glob("checkpoints/step-*"))
    seen: set[Path] = set()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        seen |= set(run.glob("checkpoints/step-*")) - before
        if kill_after is not None and len(seen) >= kill_after:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.002)


def run_kills(base: Path, collection: Path, root: Path) -> None:
    """Compare the adapter of a run that is killed again and again with that of one that was left alone."""
    torch.set_num_threads(1)
    assert train_in_fork(base, collection, root / "whole", kill_after=None)
    kills = 0
    for checkpoints in (1, 2, 3, 0, 1, 4):
        kills += not train_in_fork(base, collection, root / "killed", kill_after=checkpoints)
    assert train_in_fork(base, collection, root / "killed", kill_after=None)
    first, second = (load_file(root / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    print(f"{kills} kills")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_kills_change_no_weight(family: str, folders: dict[str, Path], collection: Path, tmp_path: Path) -> None:
    # A process of its own: forking one with threads of other tests could hang.
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (tests.parent / "src", tests, tests / "mllm", tests / "training")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(folders[family]), str(collection), str(tmp_path)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.strip() == "6 kills"
    shutil.rmtree(tmp_path / "killed")


if __name__ == "__main__":
    run_kills(*map(Path, sys.argv[1:]))
