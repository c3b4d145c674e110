"""The network's forward pass a second time: numpy, float64, the reference's variable names.

Written from the equations alone, one example and one layer after another, for every kind of
example and condition and for every place where the cond tokens can go. It is held against the
reference tensors where there are any, and our network against it where there are none.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


def sinusoids(coord, width):
    """Sines, then cosines, of one coordinate."""
    angles = coord * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)])


def swish(x):
    return x / (1 + np.exp(-x))


def corners(size, patch):
    """Where the patches of an example begin, those that are padded before it below zero."""
    starts = []
    for n, p in zip(size, patch, strict=True):
        count = math.ceil(n / p)
        missing = count * p - n
        starts.append([i * p - missing // 2 for i in range(count)])
    return [np.array(start) for start in np.stack(np.meshgrid(*starts, indexing="ij"), -1)
            .reshape(-1, len(size))]  # fmt: skip


class Oracle:
    """Forward passes with weights `tape/...` under a reference configuration."""

    def __init__(self, weights: dict[str, np.ndarray], config: dict):
        self.w = {name: np.float64(value) for name, value in weights.items()}
        self.c = config
        kernel = self.w["tape/stem/kernel"]
        # A token of a sequence is a patch of one value along its only axis.
        self.kernel = kernel[None] if kernel.ndim == 2 else kernel
        self.patch = self.kernel.shape[:-2]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * self.w[f"tape/{name}/gamma"] + self.w[f"tape/{name}/beta"]

    def dense(self, name, x):
        return x @ self.w[f"tape/{name}/kernel"] + self.w[f"tape/{name}/bias"]

    def ffn(self, name, x):
        hidden = self.dense(f"{name}/dense1", x)
        return self.dense(f"{name}/dense2", hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))))

    def mlp(self, name, x):
        return x + self.ffn(f"{name}/ffn", self.norm(f"{name}/ffn/ln", x))

    def attend(self, name, x, context):
        def project(part, tokens):
            kernel, bias = (self.w[f"tape/{name}/{part}/{leaf}"] for leaf in ("kernel", "bias"))
            return [tokens @ kernel[:, head] + bias[head] for head in range(kernel.shape[1])]

        out = self.w[f"tape/{name}/attention_output/bias"]
        parts = (("query", x), ("key", context), ("value", context))
        heads = zip(*(project(part, tokens) for part, tokens in parts), strict=True)
        for head, (q, k, v) in enumerate(heads):
            scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
            values = scores / scores.sum(-1, keepdims=True) @ v
            out = out + values @ self.w[f"tape/{name}/attention_output/kernel"][head]
        return out

    def cross(self, unit, x, context, ratio=1):
        name = f"{unit}/transformer_decoder_layer"
        if self.c["xattn_enc_ln"]:
            context = self.norm(f"{name}/cross_mha/enc_ln", context)
        queries = self.norm(f"{name}/cross_mha/ln", x)
        x = x + self.attend(f"{name}/cross_mha", queries, context)
        return self.mlp(f"{name}/mlp", x) if ratio else x

    def layer(self, name, x):
        normed = self.norm(f"{name}/mha/ln", x)
        x = x + self.attend(f"{name}/mha", normed, normed)
        return x + self.ffn(f"{name}/mlp/ffn", self.norm(f"{name}/mlp/ffn/ln", x))

    def time(self, gamma, beside):
        quarter = self.w["tape/time_emb/dense0/kernel"].shape[0]
        codes = sinusoids(np.float64(np.float32(gamma)) * self.c["time_scaling"], quarter)
        codes = (codes - codes.mean()) / codes.std()
        hidden = swish(self.dense("time_emb/dense0", codes))
        return self.dense("time_emb/dense1", np.concatenate([hidden, beside]))[None]

    def conv(self, name, tokens):
        """tokens [n, d] as a square image + pointwise(swish(group norm(depthwise)))."""
        side, (count, width) = math.isqrt(len(tokens)), tokens.shape
        kernel = self.w[f"tape/{name}/depthwise_conv/depthwise_kernel"][..., 0]
        before = (len(kernel) - 1) // 2  # zeros before the image; the others are after it
        hidden = np.tile(self.w[f"tape/{name}/depthwise_conv/bias"], (count, 1))
        for y, x, dy, dx in np.ndindex(side, side, *kernel.shape[:2]):
            row, col = y + dy - before, x + dx - before
            if 0 <= row < side and 0 <= col < side:
                hidden[y * side + x] += kernel[dy, dx] * tokens[row * side + col]
        for group in np.split(np.arange(width), min(width // 4, 32)):
            part = hidden[:, group]
            hidden[:, group] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
        hidden = hidden * self.w[f"tape/{name}/gn/gamma"] + self.w[f"tape/{name}/gn/beta"]
        pointwise = self.w[f"tape/{name}/pointwise_conv/kernel"][0, 0]
        return tokens + swish(hidden) @ pointwise + self.w[f"tape/{name}/pointwise_conv/bias"]

    def stem(self, x):
        """Normalised patches [n, d] of x [..., C], zero outside of it."""
        tokens = []
        for corner in corners(x.shape[:-1], self.patch):
            token = self.w["tape/stem/bias"]
            for offset in np.ndindex(self.patch):
                at = tuple(corner + offset)
                if all(0 <= i < n for i, n in zip(at, x.shape, strict=False)):
                    token = token + x[at] @ self.kernel[offset]
            tokens.append(token)
        return self.norm("stem_ln", np.stack(tokens))

    def codes(self, name, kind, count, rows, cols):
        """Position codes of `count` tokens on a grid, or on as many grids as that needs."""
        if kind == "learned":
            return self.w[f"tape/{name}/kernel/vis_pos_embedding"]
        width, span = self.c["tape_dim"], self.c["time_scaling"]
        if name == "latent_pos_emb":
            width = self.c["latent_dim"]

        def axis(n, features):
            return [sinusoids(i / (n - 1) * span, features) for i in range(n)]

        if 1 in (rows, cols):
            grid = axis(rows * cols, width)
        else:
            down, right = axis(rows, width // 2), axis(cols, width // 2)
            grid = [np.concatenate([y, x]) for y in down for x in right]
        times = count // len(grid)
        if kind == "sin_cos":  # as released: of a video in the order (row, column, time)
            return np.stack([code for code in grid for _ in range(times)])
        return np.stack(grid * times) + self.w[f"tape/{name}_res/kernel"]

    def forward(self, x, gamma, cond=None, latent_prev=None, tape_prev=None, beside=(), frames=()):
        """(prediction, latents, tape) of one example.

        `cond` is a one-hot class or embedded tokens, `beside` a class that joins gamma, `frames`
        those that come before x.
        """
        kind, size = self.c["tape_pos_encoding"], x.shape[:-1]
        tape, clean = self.stem(x), [self.stem(np.asarray(frames))] if len(frames) else []
        count = len(tape) + sum(map(len, clean))
        side = math.isqrt(count)
        rows, cols = (side, side) if len(size) == 1 else np.array(size[-2:]) // self.patch[-2:]
        codes = self.codes("tape_pos_emb", kind, count, int(rows), int(cols))
        tape, own = tape + codes[: len(tape)], len(tape)
        clean = [tokens + codes[own:] for tokens in clean]

        size = self.c["latent_slots"] - self.c["time_on_latent"] - self.c["cond_on_latent_n"]
        kind = self.c["latent_pos_encoding"]
        latents, others = [self.codes("latent_pos_emb", kind, size, size, 1)], []
        (latents if self.c["time_on_latent"] else others).append(self.time(gamma, beside))
        if cond is not None:
            tokens = self.dense("cond_proj", cond) if self.c["cond_proj"] else cond
            tokens = np.reshape(tokens, (-1, tokens.shape[-1]))
            (latents if self.c["cond_on_latent_n"] else others).append(tokens)
        z = np.concatenate(latents)
        if "latent" in self.c["self_cond"]:
            z = z + self.norm("latent_prev_ln", self.mlp("latent_prev_proj", latent_prev))
        if "tape" in self.c["self_cond"]:
            tape = tape + self.norm("tape_prev_ln", self.mlp("tape_prev_proj", tape_prev))
        tape = np.concatenate([tape, *clean])
        if self.c["cond_tape_writable"]:
            tape, others = np.concatenate([tape, *others]), []

        for block, depth in enumerate(int(d) for d in self.c["num_layers"].split(",")):
            if self.c["cond_decoupled_read"]:
                z, seen = self.cross(f"read_cond_unit_{block}", z, np.concatenate(others)), tape
            else:
                seen = np.concatenate([tape, *others])
            z = self.cross(f"read_unit_{block}", z, seen)
            for number in range(depth):
                suffix = f"_{number}" if number else ""
                z = self.layer(f"latent_processing_unit{block}/transformer_encoder{suffix}", z)
            if depth:
                tape = self.cross(f"write_unit_{block}", tape, z, self.c["tape_mlp_ratio"])
                if self.c.get("conv_kernel_size"):
                    first = self.conv(f"conv_units_{block}", tape[:count])
                    tape = np.concatenate([first, tape[count:]])
        return self.readout(tape[:own], x.shape), z, tape[:own]

    def readout(self, tape, shape):
        """Patches of values, the first of them at the beginning, cut to the shape."""
        values = self.dense("output_linear", self.norm("output_ln", tape))
        out, first = np.empty(shape), corners(shape[:-1], self.patch)
        for corner, token in zip(first, values, strict=True):
            pieces = token.reshape(*self.patch, shape[-1])
            for offset in np.ndindex(self.patch):
                at = tuple(corner - first[0] + offset)
                if at[0] < shape[0]:
                    out[at] = pieces[offset]
        return out
