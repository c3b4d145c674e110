"""The network's forward pass a second time: numpy, float64, the reference's variable names.

Written from the equations alone, one image and one layer after another, for every place where
the time and class tokens can go. It is held against the reference tensors where there are any,
and our network against it where there are none.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


class Oracle:
    """Forward passes with weights `tape/...` under a reference configuration."""

    def __init__(self, weights: dict[str, np.ndarray], config: dict):
        self.w = {name: np.float64(value) for name, value in weights.items()}
        self.c = config

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

    def cross(self, unit, x, context):
        name = f"{unit}/transformer_decoder_layer"
        if self.c["xattn_enc_ln"]:
            context = self.norm(f"{name}/cross_mha/enc_ln", context)
        queries = self.norm(f"{name}/cross_mha/ln", x)
        x = x + self.attend(f"{name}/cross_mha", queries, context)
        return self.mlp(f"{name}/mlp", x)

    def layer(self, name, x):
        normed = self.norm(f"{name}/mha/ln", x)
        x = x + self.attend(f"{name}/mha", normed, normed)
        return x + self.ffn(f"{name}/mlp/ffn", self.norm(f"{name}/mlp/ffn/ln", x))

    def time(self, gamma):
        quarter = self.w["tape/time_emb/dense0/kernel"].shape[0]
        rates = 10000.0 ** (-np.arange(0, quarter, 2) / quarter)
        angles = np.float64(np.float32(gamma)) * self.c["time_scaling"] * rates
        codes = np.concatenate([np.sin(angles), np.cos(angles)])
        codes = (codes - codes.mean()) / codes.std()
        hidden = self.dense("time_emb/dense0", codes)
        return self.dense("time_emb/dense1", hidden / (1 + np.exp(-hidden)))[None]

    def image(self, x, gamma, one_hot, latent_prev):
        """(prediction [H, W, C], latents [M, E]) of one image [H, W, C]."""
        p, (height, width, channels) = self.c["patch_size"], x.shape
        tape = np.stack([
            np.einsum("yxc,yxcd->d", x[i : i + p, j : j + p], self.w["tape/stem/kernel"])
            for i in range(0, height, p) for j in range(0, width, p)
        ]) + self.w["tape/stem/bias"]  # fmt: skip
        tape = self.norm("stem_ln", tape) + self.w["tape/tape_pos_emb/kernel/vis_pos_embedding"]
        tokens = len(tape)
        latents, others = [self.w["tape/latent_pos_emb/kernel/vis_pos_embedding"]], []
        (latents if self.c["time_on_latent"] else others).append(self.time(gamma))
        label = self.dense("cond_proj", one_hot)[None]
        (latents if self.c["cond_on_latent_n"] else others).append(label)
        z = np.concatenate(latents)
        z = z + self.norm("latent_prev_ln", self.mlp("latent_prev_proj", latent_prev))
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
                tape = self.cross(f"write_unit_{block}", tape, z)
        pixels = self.dense("output_linear", self.norm("output_ln", tape[:tokens]))
        out = np.empty_like(x)
        for token, (i, j) in enumerate((i, j) for i in range(0, height, p)
                                       for j in range(0, width, p)):  # fmt: skip
            out[i : i + p, j : j + p] = pixels[token].reshape(p, p, channels)
        return out, z
