"""A network in PyTorch as one of the processes that `benchmarks.peers` starts.

It needs PyTorch and, for rin-pytorch, the packages of `peers.txt`; neither JAX nor rin_jax. The
training step is that of ours: noise, a first pass for the latents, a second one with its gradient,
the optimizer (a fused AdamW, which does less than LAMB), and an EMA.
"""

import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import turns


class Twin:
    """Our own export: `rin_torch.py` with random weights."""

    def __init__(self, options: dict[str, Any], device: str):
        import torch

        spec = importlib.util.spec_from_file_location("rin_torch", options["twin"])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        description, batch = options["description"], options["batch"]
        self.torch, self.scale = torch, options["input_scale"]
        self.model = module.RIN(description).to(device)
        classes, shape = self.model.net["num_classes"], (batch, *self.model.example_shape)
        self.images = torch.rand(shape, device=device) * 2 - 1
        self.labels = torch.arange(batch, device=device) % classes if classes else None
        self.network = self.model

    def loss(self) -> Any:
        """The loss of a batch with new noise, both passes."""
        torch, gamma = self.torch, self.torch.rand(len(self.images), device=self.images.device)
        eps, wide = torch.randn_like(self.images), gamma[:, None, None, None]
        xt = wide.sqrt() * self.scale * self.images + (1 - wide).sqrt() * eps
        with torch.no_grad():
            _, latents = self.model(xt, gamma, self.labels)
        prediction, _ = self.model(xt, gamma, self.labels, latents)
        return (prediction.float() - eps).square().mean()

    def sampler(self) -> Callable[[], None]:
        """One DDIM step that carries images and latents."""
        torch, now = self.torch, self.torch.tensor(0.5, device=self.images.device)
        after = now + 0.01
        carried = [torch.randn_like(self.images), self.model.first(len(self.images))]

        def step():
            xt, latents = carried
            prediction, latents = self.model(xt, now.expand(len(xt)), self.labels, latents)
            x0, eps = self.model.to_x0_eps(prediction, xt, now)
            carried[:] = after.sqrt() * x0 + (1 - after).sqrt() * eps, latents

        return step


class RinPytorch:
    """The package rin-pytorch, with the widths, depths and heads of ours.

    Its self-attention of the interface is off, which the paper does not have, and the time is a
    token among the latents. It has no classes.
    """

    def __init__(self, options: dict[str, Any], device: str):
        import torch

        if torch.version.cuda is None:  # torchvision's wheel does not fit the CPU build
            from tests.evaluation.peers import import_torchvision

            import_torchvision()
        from rin_pytorch import rin_pytorch as package

        net, scale = options["description"]["network"], options["input_scale"]
        side, _, channels = net["example_shape"]
        latent, interface = net["latent_dim"], net["interface_dim"]
        heads, routing, flash = net["num_heads"], net["routing_heads"], {"flash": True}
        model = package.RIN(
            dim=interface, image_size=side, patch_size=net["patch_size"], channels=channels,
            depth=net["num_blocks"], latent_self_attn_depth=net["depth"], dim_latent=latent,
            num_latents=net["num_latents"] - 1, latent_token_time_cond=True,
            patches_self_attn=False, heads=routing, dim_head=min(latent, interface) // routing,
            **flash,
        )  # fmt: skip
        for block in model.blocks:  # its constructor knows one width of a head, and MLPs of 4
            for layer in block.latent_self_attns:
                layer[0] = package.Attention(
                    latent, norm=True, heads=heads, dim_head=latent // heads, **flash
                )
                layer[1] = package.FeedForward(latent, net["latent_mlp_ratio"])
            block.latents_cross_attn_ff = package.FeedForward(latent, net["latent_mlp_ratio"])
            block.patches_cross_attn_ff = package.FeedForward(interface, net["interface_mlp_ratio"])
        self.torch, self.network = torch, model
        self.model = package.GaussianDiffusion(
            model, train_prob_self_cond=1.0, scale=scale
        ).to(device)
        shape = (options["batch"], channels, side, side)
        self.images = torch.rand(shape, device=device)

    def loss(self) -> Any:
        """The package's own loss, of images in [0, 1]."""
        return self.model(self.images)

    def sampler(self) -> Callable[[], None]:
        """One step of the package's DDIM, which has no function of its own there."""
        torch, batch = self.torch, len(self.images)
        alpha, sigma = (self.torch.tensor(0.5, device=self.images.device).sqrt() for _ in range(2))
        times = torch.full((batch,), 0.5, device=self.images.device)
        carried = [torch.randn_like(self.images), None, None]

        def step():
            image, x0, latents = carried
            given = self.model.maybe_normalize_img_variance(image)
            v, latents = self.network(given, times, x0, latents, return_latents=True)
            x0 = (alpha * image - sigma * v).clamp(-1, 1)
            noise = (image - alpha * x0) / sigma
            carried[:] = alpha * x0 + sigma * noise, x0, latents

        step()  # from here on there are latents and an x0
        return step


NETWORKS = {"twin": Twin, "rin-pytorch": RinPytorch}


def ceiling(torch: Any, device: str, dtype: Any, wait: Callable[[], None]) -> float:
    """GFLOP/s of PyTorch's square matrix product, the fastest of a few."""
    side = 1024 if device == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)

    def seconds() -> float:
        start = time.perf_counter()
        a @ a
        wait()
        return time.perf_counter() - start

    return 2e-9 * side**3 / min(seconds() for _ in range(8))


def main() -> None:
    """The process; its argument is the options as JSON."""
    options = json.loads(sys.argv[1])
    answers = turns.start(options["threads"])
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as in JAX
    peer = NETWORKS[options["peer"]](options, device)
    if options["compiled"]:
        peer.network.compile()
    parameters = list(peer.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    averages = [parameter.detach().clone() for parameter in parameters]
    bfloat16 = options["description"]["network"]["dtype"] == "bfloat16"
    autocast = torch.autocast(device, torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward_backward():
        optimizer.zero_grad()
        with autocast:
            loss = peer.loss()
        loss.backward()
        wait()

    def training_step():
        forward_backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1e-4)
        wait()

    def make(part: str) -> Callable[[], None]:
        if part != "sampler_step":
            return {"forward_backward": forward_backward, "training_step": training_step}[part]
        optimizer.zero_grad()
        step = peer.sampler()

        def sampler_step():
            with torch.no_grad(), autocast:
                step()
            wait()

        return sampler_step

    about = {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "versions": {"torch": torch.__version__},
        "ceiling_gflops_per_second": ceiling(
            torch, device, torch.bfloat16 if bfloat16 else torch.float32, wait
        ),
    }
    turns.serve(answers, about, make, torch.cuda.empty_cache if device == "cuda" else lambda: None)


if __name__ == "__main__":
    main()
