"""The README of an export: what is known of the model, and how each of its files is used.

What nobody told or measured is said to be so, never guessed. The code blocks run as they are in
the export's folder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rin_jax.interop import formulas

UNKNOWN = "not measured"
# the one value of a sampler's field that rin_torch.py and the loop in numpy compute
PLAIN = {"eta": 0.0, "latents": "carry", "refresh": 0}
DDIM_STEPS = 50  # where the sampler's own rule is another one
IN_TORCH = ("ddim", "dpmpp_2m", "ddpm_large", "ddpm_small")  # the rules of rin_torch.py
FRAMES_OF_ONNX = ('"frames": frames', '"frames": np.zeros_like(frames)')  # given, and null
X0 = {  # the card's expression of x0, by what the network predicts
    "eps": "(xt - np.sqrt(1 - gamma) * prediction) / np.sqrt(gamma)",
    "x0": "prediction",
    "v": "np.sqrt(gamma) * xt - np.sqrt(1 - gamma) * prediction",
}

CARD = """---
library_name: rin_jax
pipeline_tag: {task}
license: unknown  # stated by whoever publishes the weights
tags: [diffusion, rin, jax, pytorch]
---

# {title}

A Recurrent Interface Network (arXiv 2212.11972) in pixel space, exported by rin_jax.

{samples}

## What it is

|  |  |
| --- | --- |
| {noun} | {size} |
| classes | {classes} |
| data | {data[name]}, split {data[split]} |
| training steps | {step:,} of {train[num_steps]:,} |
| batch | {train[batch_size]:,} {noun} |
| weights | running average {ema} |
| sampler | {sampler} |
| compute dtype | {network[dtype]} |

## Measured

{measured}

## Intended use

Research on generative models: drawing {noun} like those of the data set named above, and training \
on from here. It knows nothing else. What it draws may resemble training {noun} and carries over \
their biases; neither was examined. Whoever publishes the weights states the licence at the top of \
this file; the licence of the data is that of its owners.

## Use

Labels count from 0, -1 is no class. {layout}; `config.json` has \
the network, the process, the sampler and the class names.{frames_note}

**rin_jax**, on CPU, GPU or TPU:

```python
{numpy}import rin_jax

{frames}model = rin_jax.load(".")
samples = model.sample(4{keyword}{keyword_frames})  # uint8 {shape}
```

**PyTorch**, with `rin_torch.py` from this folder and no other package{read_by}.{torch_note}

```python
{numpy}import torch
import rin_torch

{frames}model = rin_torch.load(".")
noise = torch.randn(4, *model.example_shape)
samples = model.sample(noise{tensor}{tensor_frames}{torch_changes})  # in [-1, 1]
```

**JAX without rin_jax** (`pip install jax flatbuffers safetensors`): `sampler.stablehlo` holds the \
sampler named above. `denoiser.stablehlo` is one pass: (weights, xt, gamma [B], labels, latents) \
-> (prediction, latents), with zeros as the first latents, {latents}.{denoiser_frames} DDIM does \
not read `keys`.

```python
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

with open("sampler.stablehlo", "rb") as file:
    sampler = jax.jit(export.deserialize(file.read()).call)
random = np.random.default_rng(0)
noise = random.standard_normal({shape}, np.float32)
labels, keys = np.array({labels}, np.int32), random.integers(0, 2**32, (4, 2), np.uint32)
{frames}weights = load_file("model.safetensors")
samples = sampler(weights, noise, labels, keys{keyword_frames})  # in [-1, 1]
```
"""

ONNX = """
**ONNX Runtime** (`pip install onnxruntime`), with DDIM as a loop in numpy.{onnx_note}

```python
import numpy as np
import onnxruntime
from numpy import cos, exp, log, pi

denoiser = onnxruntime.InferenceSession("denoiser.onnx")
noise = np.random.default_rng(0).standard_normal({shape}, np.float32)
labels, steps, guidance = np.array({labels}, np.int32), {ddim_steps}, {guidance}
{onnx_frames}cond, null = {{{cond}}}, {{{null}}}


{gamma_of}

def denoise(xt, gamma, cond, latents):
    inputs = dict(zip(carried, latents), xt=xt, gamma=np.full(len(xt), gamma), **cond)
    prediction, *latents, _ = denoiser.run(None, inputs)  # the last is what was read
    return prediction, latents


carried = [i.name for i in denoiser.get_inputs() if i.name.startswith("previous_")]
sizes = {{i.name: i.shape[1:] for i in denoiser.get_inputs()}}
latents = {others}[np.zeros((len(noise), *sizes[name]), np.float32) for name in carried]
xt = noise
for i in range(steps):
    gamma, gamma_next = (gamma_of(1 - np.float32(j) / steps) for j in (i, i + 1))
    prediction, carry = denoise(xt, gamma, cond, latents)
    if {guided}:
        without, {second} = denoise(xt, gamma, null, {start})
        prediction = (1 + guidance) * prediction - guidance * without
    latents = carry
    x0 = np.clip({x0}, -{bound}, {bound})
    eps = (xt - np.sqrt(gamma) * x0) / np.sqrt(max(1 - gamma, np.float32(1e-9)))
    xt = np.sqrt(gamma_next) * x0 + np.sqrt(1 - gamma_next) * eps
samples = x0 / {bound}  # in [-1, 1]
```
"""


def card(
    title: str, description: Mapping[str, Any], records: Sequence[Mapping[str, Any]],
    picture: bool, onnx: bool, clips: bool,
) -> str:  # fmt: skip
    """The text of README.md, from config.json and the evaluations of these weights' checkpoint.

    `picture`, `onnx` and `clips` tell whether samples.png, denoiser.onnx and frames.npz are there.
    """
    config, network = description["config"], description["network"]
    sampler, known = config["sampler"], network["num_classes"]
    labels = [i % known if known else -1 for i in range(4)]
    changes, torch_note = _allowed(sampler, IN_TORCH)
    _, onnx_note = _allowed(sampler, ("ddim",))
    bound = float(config["diffusion"]["input_scale"])
    samples = "![Samples](samples.png)" if picture else "No sample grid was drawn at the export."
    labelled = ('"labels": labels', '"labels": np.full_like(labels, -1)')
    pairs = [labelled] * bool(known) + [FRAMES_OF_ONNX] * bool(network["cond_frames"])
    values = _examples(network) | _frames(network, clips, bound) | {
        "title": title, "samples": samples, "measured": _measured(records), "network": network,
        "data": config["data"], "train": config["train"], "sampler": _sampler(sampler),
        "step": description["step"], "ema": description["ema"],
        "classes": _classes(known, description["class_names"]),
        "labels": labels, "keyword": f", labels={labels}" if known else "",
        "tensor": f", torch.tensor({labels})" if known else "",
        "latents": _latents(network),
        "torch_changes": "".join(f", {k}={v!r}" for k, v in changes.items()),
        "torch_note": torch_note, "onnx_note": onnx_note,
        "ddim_steps": sampler["num_steps"] if sampler["name"] == "ddim" else DDIM_STEPS,
        "guidance": float(sampler["guidance_scale"]), **_guided(sampler),
        "gamma_of": formulas.function(**sampler["schedule"]),
        "x0": X0[config["diffusion"]["prediction_type"]],
        "bound": bound,
        "cond": ", ".join(given for given, _ in pairs),
        "null": ", ".join(nothing for _, nothing in pairs),
    }  # fmt: skip
    return (CARD + ONNX if onnx else CARD).format(**values)


def _examples(network: Mapping[str, Any]) -> dict[str, str]:
    """What the card says of the examples of a network: images or videos."""
    *frames, height, width, channels = network["example_shape"]
    size = f"{height} x {width} x {channels}"
    shape = f"[4, {', '.join(map(str, network['example_shape']))}]"
    if not frames:
        return {
            "noun": "images", "size": size, "shape": shape,
            "layout": "Images are [batch, height, width, channel]",
            "task": "unconditional-image-generation",
        }  # fmt: skip
    given = network["cond_frames"]
    follow = f", which follow {given} that are given" if given else ""
    return {
        "noun": "videos", "size": f"{frames[0]} frames of {size}{follow}", "shape": shape,
        "layout": "Videos are [batch, frame, height, width, channel]",
        "task": "video-to-video" if given else "other",
    }  # fmt: skip


def _frames(network: Mapping[str, Any], clips: bool, bound: float) -> dict[str, str]:
    """The parts of the card and its code that are about given frames; empty without."""
    number, (_, *shape) = network["cond_frames"], network["example_shape"]
    names = ("numpy", "frames", "frames_note", "keyword_frames", "tensor_frames",
             "denoiser_frames", "onnx_frames", "read_by")  # fmt: skip
    if not number:
        return dict.fromkeys(names, "")
    sizes = ", ".join(map(str, (number, *shape)))
    source = f"np.zeros((4, {sizes}), np.uint8)  # put the first frames of your videos here"
    note = f" The network is given the first {number} frames, uint8 [batch, {sizes}]"
    if clips:
        source = 'np.load("frames.npz")["frames"][:4]'
        note += "; `frames.npz` has those of some real videos, with their labels"
    values = (
        "import numpy as np\n", f"frames = {source}\n", f"{note}.", ", frames=frames",
        ", frames=torch.tensor(frames)",
        " It takes `frames=` too, float32 in the range of xt without noise.",
        f"frames = {source}\nframes = np.float32((frames / 127.5 - 1) * {bound})\n",
        " (numpy is for the frames)",
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


def _classes(num_classes: int, names: Sequence[str] | None) -> str:
    if not num_classes:
        return "none: unconditional"
    if names and len(names) <= 20:
        return f"{num_classes} ({', '.join(names)})"
    return f"{num_classes}, names in config.json" if names else f"{num_classes}, names not known"


def _sampler(sampler: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in sampler.items() if k not in ("name", "schedule", "num_steps")}
    schedule = dict(sampler["schedule"])
    name = schedule.pop("name")
    numbers = f" ({', '.join(f'{k} {v}' for k, v in schedule.items())})" if schedule else ""
    parts = [sampler["name"], f"{sampler['num_steps']} steps", f"schedule {name}{numbers}"]
    return ", ".join([*parts, *(f"{key} {value}" for key, value in rest.items() if value)])


def _measured(records: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        known = [key for key in ("num_samples", "ema", "seed", "labels") if key in record]
        source = [f"{key} {record[key]}" for key in known]
        source += [_sampler(record["sampler"])] if "sampler" in record else []
        figures = record.get("figures", {}).items()
        rows += [(name, f"{value:.4f}", "; ".join(source)) for name, value in figures]
    if not rows:
        return f"FID, Inception Score and all else: {UNKNOWN} for these weights."
    table = [("figure", "value", "of"), ["---"] * 3, *rows, ("all else", UNKNOWN, "")]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _allowed(sampler: Mapping[str, Any], rules: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What to change of a sampler where there are these rules, and a sentence that says so."""
    changes = {field: value for field, value in PLAIN.items() if sampler[field] != value}
    if sampler["name"] not in rules:
        steps = {} if sampler["num_steps"] == DDIM_STEPS else {"num_steps": DDIM_STEPS}
        changes = {"name": "ddim", **steps, **changes}
    changed = [field for field in changes if field != "num_steps"]
    has = ", ".join(f"{field} {sampler[field]}" for field in changed)
    rule = changes.get("name", sampler["name"])
    note = f" It draws with plain {rule} here, not with the sampler above, which has {has}."
    return changes, note if changed else ""


def _guided(sampler: Mapping[str, Any]) -> dict[str, str]:
    """The parts of the loop in numpy that depend on where guidance acts and starts from."""
    low, high = sampler["guidance_interval"]
    where = "guidance" if (low, high) == (0, 1) else f"guidance and {low} <= gamma <= {high}"
    if sampler["guidance_latents"] == "shared":
        return {"guided": where, "others": "", "second": "_", "start": "latents"}
    return {"guided": where, "others": "others = ", "second": "others", "start": "others"}


def _latents(network: Mapping[str, Any]) -> str:
    latents = f"[B, {network['num_latents']}, {network['latent_dim']}]"
    if not network["interface_self_cond"]:
        return latents
    *frames, height, width, _ = network["example_shape"]
    tokens = height * width // network["patch_size"] ** 2
    if frames:
        tokens *= -(-frames[0] // network["video"]["patch_frames"])
    return f'{{"latents": {latents}, "interface": [B, {tokens}, {network["interface_dim"]}]}}'
