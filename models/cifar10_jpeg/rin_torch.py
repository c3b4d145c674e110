"""A Recurrent Interface Network (arXiv 2212.11972) in PyTorch, for an export of rin_jax.

    import rin_torch
    model = rin_torch.load(".")                      # the folder with config.json
    samples = model.sample(torch.randn(4, *model.example_shape), labels=torch.arange(4))

This file needs PyTorch and nothing else. Examples are images [B, H, W, C], videos [B, T, H, W, C]
or sequences [B, N, C], x0 in [-1, 1] times `input_scale`; gamma [B] is the signal power. All is
float32, whatever the network was trained in.

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
from torch.nn.functional import gelu, layer_norm, pad, scaled_dot_product_attention, silu

FORMAT, NO_LABEL = 2, -1  # of config.json; the label of an example without a class
TINY = 1e-9  # the least divisor
SAMPLERS = {  # what this file can do of the sampler's fields
    "name": ("ddim", "dpmpp_2m", "ddpm_large", "ddpm_small"), "eta": (0.0,), "latents": ("carry",),
    "refresh": (0,),
}  # fmt: skip
OLDER = {  # fields of the network that older exports lack
    "cond_frames": 0, "video": None, "sequence": None, "label_in_time": False, "conv_size": 0,
    "qk_norm": False,
}  # fmt: skip
norm = functools.partial(nn.LayerNorm, eps=1e-6)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


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
    """Queries [B, Q, W] to context [B, S, V]; the inner width is the smaller of W and `other`."""

    def __init__(self, net: dict, num_heads: int, width: int, context_width: int, other: int):
        super().__init__()
        self.num_heads, inner = num_heads, min(width, other) // num_heads * num_heads
        if net["qk_norm"]:
            self.query_norm, self.key_norm = (
                nn.RMSNorm(inner // num_heads, eps=1e-6) for _ in range(2)
            )
        else:
            self.query_norm = self.key_norm = nn.Identity()
        self.query, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.key, self.value = (nn.Linear(context_width, inner) for _ in range(2))

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        def heads(x):
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        q, k, v = (heads(x) for x in (self.query(queries), self.key(context), self.value(context)))
        mixed = scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Routing: x attends to context, then passes its own MLP (none if the ratio is 0)."""

    def __init__(self, net: dict, width: int, context_width: int, ratio: int, other: int = 0):
        super().__init__()
        self.norm = norm(width)
        self.context_norm = norm(context_width) if net["norm_context"] else nn.Identity()
        heads = net["routing_heads"]
        self.attention = Attention(net, heads, width, context_width, other or context_width)
        self.mlp = MLP(width, ratio) if ratio else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.mlp(x + self.attention(self.norm(x), self.context_norm(context)))


class SelfAttentionLayer(nn.Module):
    def __init__(self, net: dict, width: int, ratio: int):
        super().__init__()
        self.attention_norm, self.ffn_norm = norm(width), norm(width)
        self.attention = Attention(net, net["num_heads"], *3 * [width])
        self.ffn = FeedForward(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.ffn(self.ffn_norm(x))


class Convolution(nn.Module):
    """What is added to tokens [B, N, D], taken as a square image."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, size, padding="same", groups=width)
        self.norm = nn.GroupNorm(min(width // 4, 32), width)
        self.pointwise = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        image = self.depthwise(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return tokens + self.pointwise(silu(self.norm(image)).flatten(2).transpose(1, 2))


class Block(nn.Module):
    """Read, compute layers, write and perhaps a convolution; without compute layers a read alone.

    `cond_width`: of cond tokens that are read apart; 0: none.
    """

    def __init__(self, net: dict, depth: int, cond_width: int):
        super().__init__()
        latent, interface, ratio = net["latent_dim"], net["interface_dim"], net["latent_mlp_ratio"]
        if cond_width:
            other = net["cond_dim"] or interface
            self.read_cond = CrossAttention(net, latent, cond_width, ratio, other)
        self.read = CrossAttention(net, latent, interface, ratio)
        self.compute = nn.ModuleList(
            SelfAttentionLayer(net, latent, ratio) for _ in range(depth)
        )
        if depth:
            self.write = CrossAttention(net, interface, latent, net["interface_mlp_ratio"])
        if depth and net["conv_size"]:
            self.conv = Convolution(interface, net["conv_size"])

    def forward(self, latents: Tensor, interface: Tensor, cond: Tensor | None, num_tokens: int):
        """`cond` is read only; the first `num_tokens` of the interface pass the convolution."""
        context = interface
        if cond is not None and hasattr(self, "read_cond"):
            latents = self.read_cond(latents, cond)
        elif cond is not None:
            context = torch.cat([interface, cond], 1)
        latents = self.read(latents, context)
        for layer in self.compute:
            latents = layer(latents)
        interface = self.write(interface, latents) if self.compute else interface
        if hasattr(self, "conv"):
            own, others = interface[:, :num_tokens], interface[:, num_tokens:]
            interface = torch.cat([self.conv(own), others], 1)
        return latents, interface


def sinusoids(coords: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of coords [...] at width / 2 frequencies: [..., width]."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = coords[..., None] * rates.float().to(coords.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Positions(nn.Module):
    """Codes [tokens, width] of a line or grid: a learned table, fixed sinusoids, or their sum.

    The sinusoids of (times, rows, columns) do not code time.
    """

    def __init__(self, shape: tuple[int, ...], width: int, kind: str, span: float):
        super().__init__()
        codes = torch.zeros(math.prod(shape), width)
        if kind != "learned":
            axes = shape[-2:]
            axes = (math.prod(axes),) if 1 in axes else axes
            lines = (torch.arange(n).float() / max(n - 1, 1) * span for n in axes)
            parts = [sinusoids(line, width // len(axes)) for line in lines]
            if len(parts) == 2:
                rows, cols = (part.shape[0] for part in parts)
                parts = [parts[0].repeat_interleave(cols, 0), parts[1].repeat(rows, 1)]
            fixed = torch.cat(parts, -1)
            codes = fixed.repeat(len(codes) // len(fixed), 1)
        self.register_buffer("codes", codes, persistent=False)
        self.table = None if kind == "sin_cos" else nn.Parameter(torch.zeros_like(codes))

    def forward(self) -> Tensor:
        return self.codes if self.table is None else self.codes + self.table


class Stem(nn.Linear):
    """Examples to interface tokens: linear patches, LayerNorm, positions."""

    def __init__(self, net: dict, patch: tuple[int, ...], grid: tuple[int, ...]):
        dim, kind, clean = net["interface_dim"], net["interface_positions"], net["cond_frames"]
        super().__init__(math.prod(patch) * net["example_shape"][-1], dim)
        self.patch, self.norm, clean = patch, norm(dim), -(-clean // patch[0])
        self.frames_first = clean and net["video"]["positions"] == "before"
        shape = (grid[0] + clean, *grid[1:])
        if len(grid) == 1 and kind != "learned":
            shape = (math.isqrt(grid[0]),) * 2  # a sequence is coded as a square
        self.positions = Positions(shape, dim, kind, net["time_scale"])

    def embed(self, x: Tensor) -> Tensor:
        """Examples without positions; frames that a patch lacks are zeros."""
        last = len(self.patch)
        missing = -x.shape[1] % self.patch[0]
        x = pad(x, (0, 0) * last + (missing // 2, missing - missing // 2))
        for axis in range(last, 0, -1):
            x = x.unflatten(axis, (-1, self.patch[axis - 1]))
        x = x.permute(0, *range(1, 2 * last, 2), *range(2, 2 * last + 1, 2), 2 * last + 1)
        return self.norm(super().forward(x.flatten(last + 1).flatten(1, last)))

    def forward(self, x: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The tokens of x and of the conditioning frames, which have rows of the same table."""
        tokens, codes = self.embed(x), self.positions()
        if frames is None:
            return tokens + codes, None
        frames = self.embed(frames)
        if self.frames_first:
            own, others = codes[frames.shape[1] :], codes[: frames.shape[1]]
        else:
            own, others = codes[: tokens.shape[1]], codes[tokens.shape[1] :]
        return tokens + own, frames + others


class Readout(nn.Module):
    """Interface tokens to examples: LayerNorm, linear, patches put together."""

    def __init__(self, net: dict, patch: tuple[int, ...], grid: tuple[int, ...]):
        super().__init__()
        self.length, *_, channels = net["example_shape"]
        self.patch, self.grid, width = (*patch, channels), grid, net["interface_dim"]
        self.norm, self.out = norm(width), nn.Linear(width, math.prod(self.patch))

    def forward(self, tokens: Tensor) -> Tensor:
        last, x = len(self.grid), self.out(self.norm(tokens))
        x = x.unflatten(2, self.patch).unflatten(1, self.grid)
        pairs = [axis for i in range(1, last + 1) for axis in (i, last + i)]
        x = x.permute(0, *pairs, 2 * last + 1)
        for axis in range(1, last + 1):
            x = x.flatten(axis, axis + 1)
        return x[:, : self.length]


class ScalarEmbedding(nn.Module):
    """gamma [B], and perhaps a class [B, classes] beside it, to a token [B, 1, width]."""

    def __init__(self, width: int, scale: float, classes: int):
        super().__init__()
        self.scale, self.width = scale, width
        self.hidden, self.out = nn.Linear(width // 4, width), nn.Linear(width + classes, width)

    def forward(self, gamma: Tensor, *beside: Tensor) -> Tensor:
        codes = sinusoids(gamma * self.scale, self.width // 4)
        codes = layer_norm(codes, codes.shape[-1:], eps=0.0)
        return self.out(torch.cat([silu(self.hidden(codes)), *beside], -1))[:, None]


class RIN(nn.Module):
    """Network, process and sampler of an export; `description` is the content of config.json."""

    def __init__(self, description: dict):
        super().__init__()
        net, config = OLDER | description["network"], description["config"]
        self.net, self.diffusion, self.sampler = net, config["diffusion"], config["sampler"]
        self.class_names, shape = description["class_names"], tuple(net["example_shape"])
        self.example_shape, self.frame_shape = shape, (net["cond_frames"], *shape[1:])
        latent, interface, scale = net["latent_dim"], net["interface_dim"], net["time_scale"]
        classes, sequence, video = net["num_classes"], net["sequence"], net["video"]
        patch = (net["patch_size"],) * 2 if len(shape) > 2 else (1,)
        patch = (video["patch_frames"], *patch) if video else patch
        grid = tuple(-(-n // side) for n, side in zip(shape[:-1], patch, strict=True))
        self.stem, self.readout = Stem(net, patch, grid), Readout(net, patch, grid)
        self.num_tokens = math.prod(grid)

        self.on_latents = {"time": net["time_on_latents"]}  # kinds of cond tokens
        if classes and not net["label_in_time"]:
            self.on_latents["label"] = net["label_on_latents"]
        if sequence:
            self.on_latents["sequence"] = sequence["on_latents"]
        number = {"time": 1, "label": 1, "sequence": sequence and sequence["tokens"]}
        bank = net["num_latents"] - sum(number[k] for k, on in self.on_latents.items() if on)
        self.latents = Positions((bank,), latent, net["latent_positions"], scale)
        outer = net["cond_dim"] or interface
        width = {kind: latent if on else outer for kind, on in self.on_latents.items()}
        self.time = ScalarEmbedding(width["time"], scale, classes * net["label_in_time"])
        if "label" in width:
            self.label = nn.Linear(classes, width["label"])
        if sequence:
            projected, given = sequence["projected"], sequence["width"]
            self.sequence = nn.Linear(given, width["sequence"]) if projected else nn.Identity()
            outer = outer if projected or sequence["on_latents"] else given

        if net["latent_self_cond"]:
            self.prev_latent_mlp = MLP(latent, net["latent_mlp_ratio"])
            self.prev_latent_norm = norm(latent)
        if net["interface_self_cond"]:
            self.prev_interface_mlp = MLP(interface, net["interface_mlp_ratio"])
            self.prev_interface_norm = norm(interface)
        read_only = net["cond_frames"] > 0 and not video["written"]
        read_only |= not all(self.on_latents.values())
        apart = read_only and net["cond_route"] == "decoupled"
        depth = net["depth"]
        depths = [depth] * net["num_blocks"] if isinstance(depth, int) else depth
        self.blocks = nn.ModuleList(Block(net, depth, outer * apart) for depth in depths)

    def first(self, batch: int) -> dict[str, Tensor]:
        """The latents before the first of a series of passes: zeros."""
        shapes = {"latents": (self.net["num_latents"], self.net["latent_dim"])}
        if self.net["interface_self_cond"]:
            shapes["interface"] = (self.num_tokens, self.net["interface_dim"])
        return {k: self.readout.out.weight.new_zeros(batch, *v) for k, v in shapes.items()}

    def forward(
        self, xt: Tensor, gamma: Tensor, labels=None, previous=None, frames=None, sequence=None
    ):
        """One pass: (prediction, of the shape of xt, {"latents": [B, M, E]}).

        labels [B] in 0..num_classes-1 or NO_LABEL (None: no class); `previous` is the latents of
        the pass before (None: none). With interface_self_cond they have "interface" [B, N, D] too.
        Where the network is given frames [B, c, H, W, C], scaled as x0 is, or a sequence [B, n, d]:
        None says nothing.
        """
        net, batch = self.net, xt.shape[0]
        previous = self.first(batch) if previous is None else previous
        if net["cond_frames"] and frames is None:
            frames = xt.new_zeros(batch, *self.frame_shape)
        if net["sequence"] and sequence is None:
            sequence = xt.new_zeros(batch, net["sequence"]["tokens"], net["sequence"]["width"])
        if self.diffusion["normalize_input"]:
            xt = xt / xt.std(tuple(range(1, xt.ndim)), correction=0, keepdim=True)
        interface, clean = self.stem(xt, frames)
        if net["interface_self_cond"]:
            carried = self.prev_interface_mlp(previous["interface"])
            interface = interface + self.prev_interface_norm(carried)

        labels = torch.full_like(gamma, NO_LABEL) if labels is None else labels
        classes = torch.arange(net["num_classes"], device=xt.device)
        one_hot = (labels[:, None] == classes).to(xt.dtype)
        tokens = {"time": self.time(gamma, *([one_hot] if net["label_in_time"] else []))}
        if "label" in self.on_latents:
            tokens["label"] = self.label(one_hot)[:, None]
        if net["sequence"]:
            tokens["sequence"] = self.sequence(sequence)
        among = [token for kind, token in tokens.items() if self.on_latents[kind]]
        latents = torch.cat([self.latents().expand(batch, -1, -1), *among], 1)
        if net["latent_self_cond"]:
            latents = latents + self.prev_latent_norm(self.prev_latent_mlp(previous["latents"]))

        written, read_only = [interface], []
        if clean is not None:
            (written if net["video"]["written"] else read_only).append(clean)
        num_written = sum(part.shape[1] for part in written)
        others = [token for kind, token in tokens.items() if not self.on_latents[kind]]
        (written if net["cond_route"] == "write" else read_only).extend(others)
        interface, cond = torch.cat(written, 1), torch.cat(read_only, 1) if read_only else None
        for block in self.blocks:
            latents, interface = block(latents, interface, cond, num_written)
        interface = interface[:, : self.num_tokens]
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
    def sample(
        self, noise: Tensor, labels: Tensor | None = None, fresh=None, frames: Tensor | None = None,
        sequence: Tensor | None = None, **changes,
    ) -> Tensor:  # fmt: skip
        """Examples in [-1, 1], not clipped, from standard normal noise of their shape.

        `fresh(i)` is the noise of step i of DDPM (default: torch.randn); `frames`, where the
        network is given some, are uint8 [B, c, H, W, C]; `changes` replace fields of the export's
        sampler: name="ddim", num_steps=50, guidance_scale=1.0.
        """
        found = None if frames is None else (*frames.shape, frames.dtype)
        wanted = (len(noise), *self.frame_shape, torch.uint8) if self.frame_shape[0] else None
        if found != wanted:
            raise ValueError(f"frames are {found} instead of {wanted}.")
        if frames is not None:
            frames = (frames / 127.5 - 1) * self.diffusion["input_scale"]
        if unknown := set(changes) - set(self.sampler):
            raise TypeError(f"unknown fields of the sampler: {', '.join(unknown)}.")
        fields = self.sampler | changes
        for field, allowed in SAMPLERS.items():
            if (value := fields.get(field, allowed[0])) not in allowed:
                raise ValueError(f"sampler {field} {value!r} is not in this file; use {allowed}.")
        name, num_steps, decay = fields["name"], fields["num_steps"], fields["latent_decay"]
        w, (low, high) = fields["guidance_scale"], fields["guidance_interval"]
        xt, latents, before = noise, self.first(noise.shape[0]), None
        others = latents  # of the passes without a condition, where they have their own
        for i in range(num_steps):
            ahead = i + 1.0 + fields["time_difference"]
            times = (1 - torch.tensor([float(i), ahead]) / num_steps).clamp(min=0)
            gammas = [signal_power(t, **fields["schedule"]) for t in times]
            gamma, gamma_next = torch.tensor(gammas, device=xt.device)
            prediction, new = self(xt, gamma.expand(len(xt)), labels, latents, frames, sequence)
            if w and low <= gamma <= high:
                start = latents if fields["guidance_latents"] == "shared" else others
                without, second = self(xt, gamma.expand(len(xt)), previous=start)
                prediction = (1 + w) * prediction - w * without
                others = mean(others, second, decay)
            latents = mean(latents, new, decay)
            x0, eps = self.to_x0_eps(prediction, xt, gamma)
            better = x0
            if name == "dpmpp_2m":
                better, before = extrapolated(x0, gamma, gamma_next, before), (x0, gamma)
                eps = (xt - gamma.sqrt() * better) / (1 - gamma).clamp(min=TINY).sqrt()
            if name in ("ddim", "dpmpp_2m"):
                xt = gamma_next.sqrt() * better + (1 - gamma_next).sqrt() * eps
            else:
                z = torch.randn_like(xt) if fresh is None else fresh(i)
                xt = ancestral(xt, eps, z, gamma, gamma_next, name == "ddpm_small")
        return x0 / self.diffusion["input_scale"]


def mean(old: dict[str, Tensor], new: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
    """Latents to start the next pass from; without decay the new ones."""
    return {name: decay * old[name] + (1 - decay) * new[name] for name in new}


def logsnr(gamma: Tensor) -> Tensor:
    """log(gamma / (1 - gamma)), finite at both ends."""
    gamma = gamma.clamp(1e-9, 1 - 2.0**-24)
    return gamma.log() - (-gamma).log1p()


def extrapolated(
    x0: Tensor, gamma: Tensor, gamma_next: Tensor, before: tuple[Tensor, Tensor] | None
) -> Tensor:
    """x0 of DPM-Solver++(2M), arXiv 2211.01095 section 4; `before`: x0 and gamma a step ago."""
    if before is None or (last := logsnr(gamma) - logsnr(before[1])) == 0:
        return x0
    return x0 + (logsnr(gamma_next) - logsnr(gamma)) / (2 * last) * (x0 - before[0])


def ancestral(xt: Tensor, eps: Tensor, fresh: Tensor, gamma, gamma_next, small: bool) -> Tensor:
    """One DDPM step, arXiv 2006.11239 section 3.2; `small`: with the smaller variance."""
    alpha = (gamma / gamma_next).clamp(0, 1)
    beta, left = 1 - alpha, (1 - gamma).clamp(min=TINY)
    variance = beta * (1 - gamma_next) / left if small else beta
    return (xt - beta / left.sqrt() * eps) / alpha.sqrt() + variance.sqrt() * fresh


cos, exp, log, pi = torch.cos, torch.exp, torch.log, math.pi  # what the formulas are made of
# schedule -> gamma(t, **parameters) at a scalar t
def between(f, t, start, end):  # 0 * t: numbers of the kind of t
    return min(max(
        (f(start + (end - start) * t) - f(end + 0 * t)) / (f(start + 0 * t) - f(end + 0 * t)),
        1e-09,
    ), 1.0)


SCHEDULES: dict = {
    "offset_cosine": lambda t, small=0.0002, stretch=0.00025: (
        cos((t + small) / (1 + stretch) * pi / 2) ** 2
    ),
    "cosine": lambda t, start, end, tau: (
        between(lambda u: max(cos(u * pi / 2), 0.0) ** (2 * tau), t, start, end)
    ),
    "sigmoid": lambda t, start, end, tau: (
        between(lambda u: 1 / (1 + exp(u / tau)), t, start, end)
    ),
    "linear": lambda t: (
        max(1.0 - t, 1e-09)
    ),
    "logarithmic": lambda t, start, end, reverse: (
        between(log, t, *((end, start) if reverse else (start, end)))
    ),
    "logsnr": lambda t, start, end: (
        1 / (1 + exp((start - end) * t - start))
    ),
    "edm": lambda t, sigma_min, sigma_max, rho: (
        1 / (1 + (sigma_min ** (1 / rho) * (1 - t) + sigma_max ** (1 / rho) * t) ** (2 * rho))
    ),
}


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
                target = parameter
                if name.endswith("kernel"):
                    target = parameter.permute(2, 3, 0, 1) if parameter.ndim == 4 else parameter.T
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
            last = "scale" if isinstance(module, NORMS) else "kernel"
        names.setdefault(".".join([*parts, last]), []).append((index, parameter))
    return names
