"""`foveate samples`: the printed commands are those of the listed files, and they run."""

from __future__ import annotations

import shlex

from command_line import Run


def test_samples_are_listed_with_commands_that_run(foveate: Run) -> None:
    made = foveate("samples", "samples", "--json")
    assert made.code == 0, made.err
    samples = {sample["path"]: sample for sample in made.json["samples"]}
    assert set(samples) >= {"samples/photographs", "samples/clip.webp", "samples/card", "samples/hospital-a.csv"}
    printed = foveate("samples", "samples")
    assert all(f"{path}" in printed.out and sample["command"] in printed.out for path, sample in samples.items())
    # The imports, which load no torch; tests of the README run the others.
    for path in ("samples/alt-texts.csv", "samples/labeled", "samples/card"):
        ended = foveate(*shlex.split(samples[path]["command"])[1:], "--json", "--quiet")
        assert ended.code == 0, ended.err
    assert foveate("samples", "samples").sentence.startswith("foveate: DIR: samples has other files")
