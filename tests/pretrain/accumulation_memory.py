"""Run as a script: by how many MB a process grows in one step of CLOC, its batch worked on in parts.

python accumulation_memory.py PARTS
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from batches import build_task, make_batch

from foveate.training.accumulation import forward_and_backward

IMAGES = 64


def peak_kb() -> int:
    """The most memory of this process in KiB. Not ru_maxrss, which begins with that of the process that made it."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])


def main() -> None:
    vision = {"layers": 4, "width": 256, "head_width": 64, "patch_size": 8, "image_size": 64}
    task = build_task(image_encoder={"vision": vision}, regions={"prompter": {"pool": "all"}})
    forward_and_backward(task, task, make_batch(task.model, (2, 2)), parts=1, precision=None)
    task.zero_grad(set_to_none=True)
    batch = make_batch(task.model, (2,) * IMAGES)
    before = peak_kb()
    forward_and_backward(task, task, batch, parts=int(sys.argv[1]), precision=None)
    print((peak_kb() - before) / 1024)


if __name__ == "__main__":
    main()
