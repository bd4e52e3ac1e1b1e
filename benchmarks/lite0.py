"""Features of EfficientNet-Lite0 on a processor, against onnxruntime with the same folded weights.

    python -m benchmarks.lite0 --out DIR

Both take uint8 pixels and give both maps, in float32 on one thread: `ours` is the whole of `Lite0Encoder.
frozen_features`, packing included; `onnxruntime` normalizes and runs the exported network. `plain` is the network
without `Lite0.fuse`, `bfloat16` ours in the precision that "auto" takes on processors with instructions for it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch

from benchmarks.common import compare, publish, ratio
from foveate.vision.lite0 import Lite0Encoder, load_lite0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (options.images, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    ours, half, plain = Lite0Encoder(precision="float32"), Lite0Encoder(precision="bfloat16"), load_lite0()
    session = open_session()

    @torch.inference_mode()
    def run_plain() -> None:
        for block in pixels.split(8):
            plain(ours.normalized(block).to(memory_format=torch.channels_last))

    candidates = {
        "ours": lambda: ours.frozen_features(pixels),
        "onnxruntime": lambda: session.run(None, {"pixels": ours.normalized(pixels).numpy()}),
        "plain": run_plain,
        "bfloat16": lambda: half.frozen_features(pixels),
    }
    timings = compare(candidates, repeats=options.repeats)
    ratios = {f"{name} / ours": ratio(timings, "ours", name, processor=True) for name in candidates if name != "ours"}
    publish("lite0", timings, out=options.out, ratios=ratios, items=len(pixels), unit="images")


def open_session() -> onnxruntime.InferenceSession:
    """Export the folded network and open it for one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/lite0.onnx"
        # The older exporter: the newer one takes half a minute for the same graph.
        torch.onnx.export(
            load_lite0(),
            (torch.zeros(1, 3, 224, 224),),
            path,
            dynamo=False,
            input_names=["pixels"],
            output_names=["stride_16", "stride_32"],
            dynamic_axes={"pixels": {0: "batch"}},
        )
        return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
