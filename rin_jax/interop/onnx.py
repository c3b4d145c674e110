"""The denoiser as ONNX: our PyTorch module through PyTorch's own exporter.

The batch is symbolic; the weights lie beside the graph in `denoiser.onnx.data`. Inputs and outputs
are those of `rin_torch.RIN.forward`, and the last output is `reads` [B, blocks, *grid], as in
`network/attention_maps.py`; labels are int32. Needs the extra `onnx`.
"""

import importlib.util
import logging
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from rin_jax import ConfigError

DENOISER = "denoiser.onnx"
FILES = (DENOISER, f"{DENOISER}.data")  # the graph, and the weights that it refers to
OPSET = 20  # the first with Gelu
NEEDED = ("torch", "onnx", "onnxscript")


def check() -> None:
    """Raises ConfigError if a package that `write` needs is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'--onnx needs {", ".join(missing)}: pip install "rin-jax[onnx]" (on Linux install a '
            "CPU build of PyTorch first: the usual one brings gigabytes of CUDA libraries)"
        )


def write(folder: str, description: Mapping[str, Any]) -> None:
    """Writes the denoiser into a local folder with model.safetensors; description: config.json."""
    import torch

    from rin_jax.interop import rin_torch

    model = rin_torch.RIN(description).eval()
    rin_torch.load_weights(model, folder, description["sha256"])
    tell_reads(model)
    batch, rows = 2, {0: torch.export.Dim("batch")}
    previous, xt = model.first(batch), torch.zeros(batch, *model.example_shape)
    xt[:, 0] = 1.0  # its standard deviation may divide it
    inputs = {"xt": xt, "gamma": torch.full((batch,), 0.5)}
    if model.net["num_classes"]:
        inputs["labels"] = torch.zeros(batch, dtype=torch.int32)
    inputs["previous"] = previous
    if model.net["cond_frames"]:
        inputs["frames"] = torch.zeros(batch, *model.frame_shape)
    shapes = dict.fromkeys(inputs, rows) | {"previous": dict.fromkeys(previous, rows)}
    for library in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            model, kwargs=inputs, dynamic_shapes=shapes, opset_version=OPSET,
            output_names=["prediction", *previous, "reads"], dynamo=True, verbose=False,
        )  # fmt: skip
    for node in program.model.graph:
        node.metadata_props.clear()  # source lines of this machine
    program.save(str(pathlib.Path(folder, DENOISER)), external_data=True)


def tell_reads(model: Any) -> None:
    """Lets a pass of a `rin_torch.RIN` return what its blocks read, as a third output."""
    import torch

    reads = []

    def read(attention, inputs, _):
        queries, keys = (
            part(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for part, x in zip((attention.query, attention.key), inputs, strict=True)
        )
        scores = queries @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5
        reads.append(scores.softmax(-1).mean((1, 2))[:, : model.num_tokens])

    def with_reads(_, __, outputs):
        shares = torch.stack(reads, 1).unflatten(-1, model.readout.grid)
        reads.clear()
        return *outputs, shares

    for block in model.blocks:
        block.read.attention.register_forward_hook(read)
    model.register_forward_hook(with_reads)
