"""`foveate remove` as a user meets it, and what the command line says of disks that refuse."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from foveate.cli.main import main
from foveate.core.errors import explain_os_error
from foveate.records.captions import remove_captions
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as ended:
            code = int(str(ended.code or 0))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def collection(tmp_path: Path, run: Run) -> Path:
    for number in range(6):
        place = tmp_path / "mine" / f"p{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.effect_noise((40, 30), 20 + 30 * number).save(place)
        place.with_suffix(".json").write_text(json.dumps({"labels": {"site": "A" if number < 2 else "B"}}))
    code, _, err = run("collect", tmp_path / "mine", "--out", tmp_path / "c", "--quiet")
    assert code == 0, err
    return tmp_path / "c"


def test_keys_a_list_and_a_condition(run: Run, collection: Path, tmp_path: Path) -> None:
    code, out, _ = run("remove", collection, "p5", "--reason", "asked for")
    assert (code, out.splitlines()[0]) == (0, "1 image removed, and kept out by key and by SHA-256")
    assert "not reached: exports, trained models" in out
    (tmp_path / "keys.txt").write_text("p4\n\n")
    code, out, _ = run("remove", collection, "--from", tmp_path / "keys.txt", "--json")
    assert json.loads(out)["removed"] == ["p4"]
    code, out, _ = run("remove", collection, "--where", "site=A", "--keep-bytes")
    assert "2 images removed" in out
    assert "stay in the folder" in out
    assert Collection.open(collection).keys == ["p2", "p3"]
    code, out, _ = run("collect", tmp_path / "mine", "--out", collection, "--quiet")
    assert "4 images skipped, because they were removed earlier" in out


def test_a_dry_run_does_nothing(run: Run, collection: Path) -> None:
    code, out, _ = run("remove", collection, "p0", "--dry-run")
    assert code == 0
    assert "1 image would be removed" in out
    assert len(Collection.open(collection)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no images selected"),
        (("pp1",), "no image 'pp1' in the collection 'c'. Did you mean"),
        (("--where", "sight=A"), "Did you mean 'site'"),
        (("--where", "site"), "write it as field=value"),
        (("p0", "--where", "site=A"), "--where"),
        (("p0", "--purge", "--keep-bytes"), "choose one"),
        (("--from", "nowhere.txt"), "nowhere.txt: no such file"),
    ],
)
def test_mistakes_get_one_sentence(run: Run, collection: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run("remove", collection, *arguments)
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1
    assert len(Collection.open(collection)) == 6


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_a_disk_that_refuses_gets_one_sentence(
    run: Run, collection: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    place = collection / "removed.parquet"

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, "system's words", str(place))

    monkeypatch.setattr("foveate.records.removal.remove_images", refuse)
    code, _, err = run("remove", collection, "p0")
    assert code == 1
    assert err.startswith(f"foveate: {place}: ")
    assert words in err
    assert ("MB free of" in err) == (number == errno.ENOSPC)
    assert len(err.splitlines()) == 1


def test_an_error_of_the_program_is_no_sentence() -> None:
    assert explain_os_error(OSError(errno.EBADF, "bad descriptor")) is None
    assert explain_os_error(OSError("words only")) is None
    assert explain_os_error(OSError(errno.ENOSPC, "x", "/no/such/place/at all")) is not None


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_captions_of_a_model_are_taken_out_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "c"
    with CollectionWriter(target) as writer:
        for number in range(3):
            writer.add(str(number), _png(number), captions=[Caption("by a person")])
        writer.commit()
        for model in ("good", "bad"):
            rows = [{"key": str(n), "kind": "ssc", "text": f"{model} {n}", "request": f"{model}{n}"} for n in range(2)]
            writer.annotate("captions", rows, Provenance(model=model))
        writer.annotate("caption_errors", [{"key": "2", "request": "x", "kind": "ssc"}], Provenance(model="bad"))
    assert "would be deleted: rows of captions 2" in remove_captions(target, "bad", dry_run=True).lines()[0]
    for dry_run in (["--dry-run"], []):
        main(["remove", str(target), "--captions-of", "bad", "--json", "--quiet", *dry_run])
        result = json.loads(capsys.readouterr().out)
        assert (result["rows"], result["images"]) == ({"captions": 2, "caption_errors": 1}, 2)
    with Collection.open(target) as collection:
        texts = collection.table("captions")["text"].to_pylist()
        assert texts == ["by a person"] * 3 + ["good 0", "good 1"]
        assert collection.table("caption_errors").num_rows == 0
    for arguments, names in (
        (["--captions-of", "godo"], ["godo", "good"]),
        (["--captions-of", "good", "--copies"], ["--copies"]),
        (["--captions-of", "good", "0"], ["KEY"]),
    ):
        with pytest.raises(SystemExit):
            main(["remove", str(target), *arguments, "--quiet"])
        error = capsys.readouterr().err
        assert all(name in error for name in names), error
