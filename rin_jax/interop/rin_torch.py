"""A Recurrent Interface Network (arXiv 2212.11972) in PyTorch, for an export of rin_jax.

    import rin_torch
    model = rin_torch.load(".")                      # the folder with config.json
    images = model.sample(torch.randn(4, *model.image_shape), labels=torch.arange(4))

This file needs PyTorch and nothing else. Images are [B, H, W, C], x0 in [-1, 1] times
`input_scale`; gamma [B] is the signal power. All is float32, whatever the network was trained in.

Parameters are named as in model.safetensors, with stacks of layers taken apart and matrices
transposed: `blocks_0.compute.ffn.out.kernel`[b, l].T is `blocks.b.compute.l.ffn.out.weight`.
"""

import functools
import hashlib
import itertools
import json
import math
import pathlib
import struct

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu

FORMAT, NO_LABEL = 2, -1  # of config.json; the label of an example without a class
TINY = 1e-9  # the least divisor
SAMPLERS = {  # what this file can do of the sampler's fields
    "name": ("ddim", "ddpm_large", "ddpm_small"), "eta": (0.0,), "latents": ("carry",),
    "refresh": (0,), "guidance_interval": ([0.0, 1.0],), "guidance_latents": ("shared",),
}  # fmt: skip
norm = functools.partial(nn.LayerNorm, eps=1e-6)


class FeedForward(nn.Module):
    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(gelu(self.hidden(x)))


class MLP(nn.Module):
    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.norm, self.ffn = norm(width), FeedForward(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm(x))


class Attention(nn.Module):
    """Queries [B, Q, W] to context [B, S, V]; the inner width is the smaller of W and V."""

    def __init__(self, num_heads: int, width: int, context_width: int):
        super().__init__()
        self.num_heads, inner = num_heads, min(width, context_width)
        self.query, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.key, self.value = (nn.Linear(context_width, inner) for _ in range(2))

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        def heads(x):
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        q, k, v = self.query(queries), self.key(context), self.value(context)
        mixed = scaled_dot_product_attention(heads(q), heads(k), heads(v))
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Routing: x attends to context, then passes its own MLP (none if the ratio is 0)."""

    def __init__(self, heads: int, width: int, context_width: int, ratio: int, norm_context: bool):
        super().__init__()
        self.norm = norm(width)
        self.context_norm = norm(context_width) if norm_context else nn.Identity()
        self.attention = Attention(heads, width, context_width)
        self.mlp = MLP(width, ratio) if ratio else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.mlp(x + self.attention(self.norm(x), self.context_norm(context)))


class SelfAttentionLayer(nn.Module):
    def __init__(self, heads: int, width: int, ratio: int):
        super().__init__()
        self.attention_norm, self.ffn_norm = norm(width), norm(width)
        self.attention, self.ffn = Attention(heads, width, width), FeedForward(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.ffn(self.ffn_norm(x))


class Block(nn.Module):
    """Read, compute layers, write; without compute layers it only reads."""

    def __init__(self, net: dict, depth: int):
        super().__init__()
        latent, interface, heads = net["latent_dim"], net["interface_dim"], net["routing_heads"]
        ratio, norm_context = net["latent_mlp_ratio"], net["norm_context"]
        on_latents = net["time_on_latents"] and (net["label_on_latents"] or not net["num_classes"])
        if net["cond_route"] == "decoupled" and not on_latents:
            width = net["cond_dim"] or interface
            self.read_cond = CrossAttention(heads, latent, width, ratio, norm_context)
        self.read = CrossAttention(heads, latent, interface, ratio, norm_context)
        self.compute = nn.ModuleList(
            SelfAttentionLayer(net["num_heads"], latent, ratio) for _ in range(depth)
        )
        if depth:
            ratio = net["interface_mlp_ratio"]
            self.write = CrossAttention(heads, interface, latent, ratio, norm_context)

    def forward(self, latents: Tensor, interface: Tensor, cond: Tensor | None):
        context = interface
        if cond is not None and hasattr(self, "read_cond"):
            latents = self.read_cond(latents, cond)
        elif cond is not None:
            context = torch.cat([interface, cond], 1)
        latents = self.read(latents, context)
        for layer in self.compute:
            latents = layer(latents)
        return latents, self.write(interface, latents) if self.compute else interface


def sinusoids(coords: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of coords [...] at width / 2 frequencies: [..., width]."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = coords[..., None] * rates.float().to(coords.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Positions(nn.Module):
    """Codes [tokens, width] of a line or grid: a learned table, fixed sinusoids, or their sum."""

    def __init__(self, shape: tuple[int, ...], width: int, kind: str, span: float):
        super().__init__()
        codes = torch.zeros(math.prod(shape), width)
        if kind != "learned":
            axes = (math.prod(shape),) if 1 in shape else shape
            lines = (torch.arange(n).float() / max(n - 1, 1) * span for n in axes)
            parts = [sinusoids(line, width // len(axes)) for line in lines]
            if len(parts) == 2:
                rows, cols = (part.shape[0] for part in parts)
                parts = [parts[0].repeat_interleave(cols, 0), parts[1].repeat(rows, 1)]
            codes = torch.cat(parts, -1)
        self.register_buffer("codes", codes, persistent=False)
        self.table = None if kind == "sin_cos" else nn.Parameter(torch.zeros_like(codes))

    def forward(self) -> Tensor:
        return self.codes if self.table is None else self.codes + self.table


class Stem(nn.Linear):
    """Images to interface tokens: linear patches, LayerNorm, positions."""

    def __init__(self, net: dict):
        height, width, channels = net["example_shape"]
        side, dim = net["patch_size"], net["interface_dim"]
        super().__init__(side**2 * channels, dim)
        self.side, self.norm, grid = side, norm(dim), (height // side, width // side)
        self.positions = Positions(grid, dim, net["interface_positions"], net["time_scale"])

    def forward(self, images: Tensor) -> Tensor:
        grid = images.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))
        patches = grid.transpose(2, 3).flatten(3).flatten(1, 2)  # [B, N, P P C]
        return self.norm(super().forward(patches)) + self.positions()


class Readout(nn.Module):
    """Interface tokens to images: LayerNorm, linear, patches put together."""

    def __init__(self, net: dict):
        super().__init__()
        self.shape, self.side, width = net["example_shape"], net["patch_size"], net["interface_dim"]
        self.norm, self.out = norm(width), nn.Linear(width, self.side**2 * self.shape[2])

    def forward(self, tokens: Tensor) -> Tensor:
        height, width, channels = self.shape
        grid = (height // self.side, width // self.side, self.side, self.side, channels)
        patches = self.out(self.norm(tokens)).unflatten(2, grid[2:]).unflatten(1, grid[:2])
        return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class ScalarEmbedding(nn.Module):
    """gamma [B] to a token [B, 1, width]."""

    def __init__(self, width: int, scale: float):
        super().__init__()
        self.scale, self.width = scale, width
        self.hidden, self.out = nn.Linear(width // 4, width), nn.Linear(width, width)

    def forward(self, gamma: Tensor) -> Tensor:
        codes = sinusoids(gamma * self.scale, self.width // 4)
        codes = layer_norm(codes, codes.shape[-1:], eps=0.0)
        return self.out(silu(self.hidden(codes)))[:, None]


class RIN(nn.Module):
    """Network, process and sampler of an export; `description` is the content of config.json."""

    def __init__(self, description: dict):
        super().__init__()
        net, config = description["network"], description["config"]
        self.net, self.diffusion, self.sampler = net, config["diffusion"], config["sampler"]
        self.image_shape, self.class_names = tuple(net["example_shape"]), description["class_names"]
        latent, interface = net["latent_dim"], net["interface_dim"]
        self.stem = Stem(net)
        labelled = net["label_on_latents"] and net["num_classes"] > 0
        bank, scale = net["num_latents"] - net["time_on_latents"] - labelled, net["time_scale"]
        self.latents = Positions((bank,), latent, net["latent_positions"], scale)
        width = {True: latent, False: net["cond_dim"] or interface}
        self.time = ScalarEmbedding(width[net["time_on_latents"]], scale)
        if net["num_classes"]:
            self.label = nn.Linear(net["num_classes"], width[net["label_on_latents"]])
        if net["latent_self_cond"]:
            self.prev_latent_mlp = MLP(latent, net["latent_mlp_ratio"])
            self.prev_latent_norm = norm(latent)
        if net["interface_self_cond"]:
            self.prev_interface_mlp = MLP(interface, net["interface_mlp_ratio"])
            self.prev_interface_norm = norm(interface)
        depth = net["depth"]
        depths = [depth] * net["num_blocks"] if isinstance(depth, int) else depth
        self.blocks = nn.ModuleList(Block(net, depth) for depth in depths)
        self.readout = Readout(net)

    def first(self, batch: int) -> dict[str, Tensor]:
        """The latents before the first of a series of passes: zeros."""
        shapes = {"latents": (self.net["num_latents"], self.net["latent_dim"])}
        if self.net["interface_self_cond"]:
            shapes["interface"] = tuple(self.stem.positions.codes.shape)
        return {k: self.readout.out.weight.new_zeros(batch, *v) for k, v in shapes.items()}

    def forward(self, xt: Tensor, gamma: Tensor, labels=None, previous=None):
        """One pass: (prediction [B, H, W, C], {"latents": [B, M, E]}).

        labels [B] in 0..num_classes-1 or NO_LABEL (None: no class); `previous` is the latents of
        the pass before (None: none). With interface_self_cond they have "interface" [B, N, D] too.
        """
        net, batch = self.net, xt.shape[0]
        previous = self.first(batch) if previous is None else previous
        if self.diffusion["normalize_input"]:
            xt = xt / xt.std((1, 2, 3), correction=0, keepdim=True)
        interface = self.stem(xt)
        if net["interface_self_cond"]:
            carried = self.prev_interface_mlp(previous["interface"])
            interface = interface + self.prev_interface_norm(carried)
        latents, cond = [self.latents().expand(batch, -1, -1)], []
        (latents if net["time_on_latents"] else cond).append(self.time(gamma))
        if net["num_classes"]:
            classes = torch.arange(net["num_classes"], device=xt.device)
            labels = torch.full_like(gamma, NO_LABEL) if labels is None else labels
            token = self.label((labels[:, None] == classes).to(xt.dtype))[:, None]
            (latents if net["label_on_latents"] else cond).append(token)
        latents = torch.cat(latents, 1)
        if net["latent_self_cond"]:
            latents = latents + self.prev_latent_norm(self.prev_latent_mlp(previous["latents"]))
        tokens, cond = interface.shape[1], torch.cat(cond, 1) if cond else None
        if cond is not None and net["cond_route"] == "write":
            interface, cond = torch.cat([interface, cond], 1), None
        for block in self.blocks:
            latents, interface = block(latents, interface, cond)
        interface = interface[:, :tokens]
        carried = {"latents": latents, "interface": interface}
        return self.readout(interface), {name: carried[name] for name in previous}

    def to_x0_eps(self, prediction: Tensor, xt: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """x0 clipped to its range, and the eps that belongs to it; gamma is a scalar."""
        signal, noise, bound = gamma.sqrt(), (1 - gamma).sqrt(), self.diffusion["input_scale"]
        x0 = {
            "eps": (xt - noise * prediction) / signal, "x0": prediction,
            "v": signal * xt - noise * prediction,
        }[self.diffusion["prediction_type"]].clamp(-bound, bound)  # fmt: skip
        return x0, (xt - signal * x0) / (1 - gamma).clamp(min=TINY).sqrt()

    @torch.no_grad()
    def sample(self, noise: Tensor, labels: Tensor | None = None, fresh=None, **changes) -> Tensor:
        """Images in [-1, 1], not clipped, from standard normal noise [B, H, W, C].

        `fresh(i)` is the noise of step i of DDPM (default: torch.randn); `changes` replace fields
        of the export's sampler: name="ddim", num_steps=50, guidance_scale=1.0.
        """
        if unknown := set(changes) - set(self.sampler):
            raise TypeError(f"unknown fields of the sampler: {', '.join(unknown)}.")
        fields = self.sampler | changes
        for field, allowed in SAMPLERS.items():
            if (value := fields.get(field, allowed[0])) not in allowed:
                raise ValueError(f"sampler {field} {value!r} is not in this file; use {allowed}.")
        name, num_steps, decay = fields["name"], fields["num_steps"], fields["latent_decay"]
        xt, latents, w = noise, self.first(noise.shape[0]), fields["guidance_scale"]
        for i in range(num_steps):
            ahead = i + 1.0 + fields["time_difference"]
            times = (1 - torch.tensor([float(i), ahead]) / num_steps).clamp(min=0)
            gammas = [signal_power(t, **fields["schedule"]) for t in times]
            gamma, gamma_next = torch.tensor(gammas, device=xt.device)
            prediction, new = self(xt, gamma.expand(len(xt)), labels, latents)
            if w:  # the pass without a class starts from the same latents
                without, _ = self(xt, gamma.expand(len(xt)), previous=latents)
                prediction = (1 + w) * prediction - w * without
            latents = {k: decay * latents[k] + (1 - decay) * new[k] for k in new}
            x0, eps = self.to_x0_eps(prediction, xt, gamma)
            if name == "ddim":
                xt = gamma_next.sqrt() * x0 + (1 - gamma_next).sqrt() * eps
            else:
                z = torch.randn_like(xt) if fresh is None else fresh(i)
                xt = ancestral(xt, eps, z, gamma, gamma_next, name == "ddpm_small")
        return x0 / self.diffusion["input_scale"]


def ancestral(xt: Tensor, eps: Tensor, fresh: Tensor, gamma, gamma_next, small: bool) -> Tensor:
    """One DDPM step, arXiv 2006.11239 section 3.2; `small`: with the smaller variance."""
    alpha = (gamma / gamma_next).clamp(0, 1)
    beta, left = 1 - alpha, (1 - gamma).clamp(min=TINY)
    variance = beta * (1 - gamma_next) / left if small else beta
    return (xt - beta / left.sqrt() * eps) / alpha.sqrt() + variance.sqrt() * fresh


cos, exp, log, pi = torch.cos, torch.exp, torch.log, math.pi  # what the formulas are made of
# schedule -> gamma(t, **parameters) at a scalar t
SCHEDULES: dict = {}  # the export writes the formulas here


def signal_power(t: Tensor, name: str, **parameters) -> float:
    """gamma(t) of a schedule; t is 0 at data and 1 at noise."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is not in this file; use one of {list(SCHEDULES)}.")
    return float(SCHEDULES[name](t, **parameters))


def load(folder: str, device: str = "cpu") -> RIN:
    """The model of an export; ValueError, naming it, at a file or tensor that does not fit."""
    description = json.loads(pathlib.Path(folder, "config.json").read_text())
    if (version := description.get("format")) != FORMAT:
        raise ValueError(f"config.json has format {version}; this file reads {FORMAT}.")
    return load_weights(RIN(description).eval(), folder, description["sha256"]).to(device)


def load_weights(model: RIN, folder: str, sha256: str) -> RIN:
    """The model with the tensors of model.safetensors, read one by one."""
    layers_of, digest = file_names(model), hashlib.sha256()
    path = pathlib.Path(folder, "model.safetensors")
    with path.open("rb") as file, torch.no_grad():
        while chunk := file.read(2**24):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{path} was cut off or changed since its export; copy it again.")
        file.seek(0)
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        header.pop("__metadata__", None)
        if wrong := sorted(set(header) ^ set(layers_of)):
            raise ValueError(f"{path}: missing or unknown tensors: {', '.join(wrong)}.")
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, dtype, layers = entry["shape"], entry["dtype"], layers_of[name]
            stack, sizes = math.prod(shape[: len(layers[0][0])]), {p.numel() for _, p in layers}
            fits = stack == len(layers) and {math.prod(shape) // stack} == sizes
            if not fits or dtype != "F32":
                raise ValueError(f"{path}: {name}, {dtype} of shape {shape}, does not fit.")
            data = bytearray(file.read(4 * math.prod(shape)))
            tensor = torch.frombuffer(data, dtype=torch.float32).reshape(shape)
            for index, parameter in layers:
                target = parameter.T if name.endswith("kernel") else parameter
                target.copy_(tensor[index].reshape(target.shape))
    return model


def file_names(model: RIN) -> dict[str, list[tuple[tuple[int, ...], Tensor]]]:
    """Tensor in model.safetensors -> [(index of the layer in it, our parameter)]."""
    depths = [len(block.compute) for block in model.blocks]
    groups = enumerate(itertools.groupby(depths))  # a group: successive blocks of equal depth
    where = [(group, place) for group, (_, same) in groups for place, _ in enumerate(same)]
    names: dict[str, list] = {}
    for name, parameter in model.named_parameters():
        *parts, last = name.split(".")
        module, index = model.get_submodule(".".join(parts)), ()
        if parts[0] == "blocks":
            group, place = where[int(parts[1])]
            parts[:2], index = [f"blocks_{group}"], (place,)
            if parts[1] == "compute":
                index = (place, int(parts.pop(2)))
        if last == "weight":
            last = "scale" if isinstance(module, nn.LayerNorm) else "kernel"
        names.setdefault(".".join([*parts, last]), []).append((index, parameter))
    return names
