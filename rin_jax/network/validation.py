"""What the attributes of a RIN must satisfy, checked before any array exists."""

from typing import Any

from rin_jax import ConfigError, one_of

INT32_LIMIT = 2**31


def check(rin: Any, remat: tuple[str, ...], cond_routes: tuple[str, ...]) -> None:
    """Raises ConfigError, naming fields and values, if the attributes of a RIN disagree.

    `remat` and `cond_routes` are the choices there are for its attributes of these names.
    """
    height, width, channels = rin.example_shape
    names = (
        "patch_size", "num_blocks", "num_latents", "latent_dim", "interface_dim", "num_heads",
        "routing_heads", "latent_mlp_ratio",
    )  # fmt: skip
    sizes = {name: getattr(rin, name) for name in names}
    sizes |= {"image size": min(height, width), "channels": channels}
    for name, value in sizes.items():
        if not 1 <= value < INT32_LIMIT:
            raise ConfigError(f"{name} is {value}; it must be between 1 and {INT32_LIMIT - 1}.")
    if not 0 <= rin.num_classes < INT32_LIMIT:
        raise ConfigError(
            f"num_classes is {rin.num_classes}; labels are int32, so it must be between 0 "
            f"(unconditional) and {INT32_LIMIT - 1}."
        )
    if rin.interface_mlp_ratio < (1 if rin.interface_self_cond else 0):
        raise ConfigError(
            f"model.interface_mlp_ratio is {rin.interface_mlp_ratio}; it must not be negative, and "
            "at least 1 if interface_self_cond is True."
        )
    if height % rin.patch_size or width % rin.patch_size:
        raise ConfigError(
            f"model.patch_size {rin.patch_size} does not divide the image size {height} x {width}; "
            "choose a divisor, or another data.image_size."
        )
    if rin.num_latents <= rin.num_cond_latents:
        raise ConfigError(
            f"model.num_latents is {rin.num_latents}, but {rin.num_cond_latents} of the latents "
            "are the time and class tokens; it must be larger."
        )
    routed = min(rin.latent_dim, rin.interface_dim)
    for field, heads, name, width in (
        ("num_heads", rin.num_heads, "latent_dim", rin.latent_dim),
        ("routing_heads", rin.routing_heads, "min(latent_dim, interface_dim)", routed),
    ):
        if width % heads:
            raise ConfigError(
                f"model.{field} {heads} does not divide {name} {width}; choose a divisor."
            )
    joined = rin.num_cond_tokens > 0 and rin.cond_route != "decoupled"
    if joined and rin.cond_dim not in (None, rin.interface_dim):
        raise ConfigError(
            f"model.cond_dim is {rin.cond_dim} and interface_dim {rin.interface_dim}, but with "
            f"cond_route {rin.cond_route!r} they must be equal; leave cond_dim unset."
        )
    time_width = ("latent_dim",) if rin.time_on_latents else ("cond_dim", "interface_dim")
    name, value = next((n, v) for n in time_width if (v := getattr(rin, n)) is not None)
    if value % 8:
        raise ConfigError(f"model.{name} is {value}; the embedding of gamma needs a multiple of 8.")
    if not isinstance(rin.depth, int) and len(rin.depth) != rin.num_blocks:
        raise ConfigError(
            f"model.depth lists {len(rin.depth)} blocks, but model.num_blocks is {rin.num_blocks}."
        )
    if min(rin.depths) < 0:
        raise ConfigError(f"model.depth is {rin.depth}; it cannot be negative.")
    for name, rate in (("dropout", rin.dropout), ("drop_path", rin.drop_path)):
        if not 0 <= rate < 1:
            raise ConfigError(f"model.{name} is {rate}; it must be in [0, 1).")
    kinds = ("learned", "sin_cos", "sin_cos_plus_learned")
    one_of("model.latent_positions", rin.latent_positions, kinds)
    one_of("model.interface_positions", rin.interface_positions, kinds)
    one_of("model.remat", rin.remat, remat)
    one_of("model.cond_route", rin.cond_route, cond_routes)
    one_of("model.dtype", rin.dtype, ("float32", "bfloat16"))
    if rin.interface_positions != "learned" and rin.interface_dim % 4:
        raise ConfigError(
            f"model.interface_dim is {rin.interface_dim}; sin_cos positions need a multiple of 4."
        )
