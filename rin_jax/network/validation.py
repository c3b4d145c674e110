"""What the attributes of a RIN must agree on, before any array exists."""

import math

from flax import linen as nn

from rin_jax import ConfigError, one_of
from rin_jax.network.blocks import REMAT_POLICIES, conv_groups

# Where cond tokens go that are not among the latents.
COND_ROUTES = (
    "read",  # read together with the interface, never written
    "write",  # join the interface: read and written
    "decoupled",  # read first, by a unit of their own
)
INT32_LIMIT = 2**31
MOST_VALUES = 2**31  # of a kind on one device: 8 GiB in float32
MOST_LAYERS = 1024  # blocks, and compute layers of a block


def check(rin: nn.Module) -> None:
    """Raises ConfigError, naming fields and values, if those of a RIN disagree."""
    names = (
        "patch_size", "num_blocks", "num_latents", "latent_dim", "interface_dim", "num_heads",
        "routing_heads", "latent_mlp_ratio",
    )  # fmt: skip
    sizes = {f"model.{name}": getattr(rin, name) for name in names}
    sizes |= {f"a side of an example {rin.example_shape}": min(rin.example_shape)}
    sizes |= {} if rin.cond_dim is None else {"model.cond_dim": rin.cond_dim}
    for name, value in sizes.items():
        if not 1 <= value < INT32_LIMIT:
            raise ConfigError(f"{name} is {value}; it must be between 1 and {INT32_LIMIT - 1}.")
    if not 0 <= rin.num_classes < INT32_LIMIT:
        raise ConfigError(
            f"data.num_classes is {rin.num_classes}; labels are int32, so it must be between 0 "
            f"(unconditional) and {INT32_LIMIT - 1}."
        )
    if rin.interface_mlp_ratio < (1 if rin.interface_self_cond else 0):
        raise ConfigError(
            f"model.interface_mlp_ratio is {rin.interface_mlp_ratio}; it must not be negative, and "
            "at least 1 if interface_self_cond is True."
        )
    layers = rin.depth if isinstance(rin.depth, list | tuple) else (rin.depth,)
    if max((rin.num_blocks, *layers)) > MOST_LAYERS:
        raise ConfigError(
            f"model.num_blocks is {rin.num_blocks} and model.depth {rin.depth}; there are at most "
            f"{MOST_LAYERS} blocks, and so many compute layers in each."
        )
    check_example(rin)
    if rin.num_latents <= rin.num_cond_latents:
        raise ConfigError(
            f"model.num_latents is {rin.num_latents}, but {rin.num_cond_latents} of the latents "
            f"are cond tokens ({', '.join(rin.cond_tokens)}); it must be larger."
        )
    check_cond_widths(rin)
    if not isinstance(rin.depth, int) and len(rin.depth) != rin.num_blocks:
        raise ConfigError(
            f"model.depth lists {len(rin.depth)} blocks, but model.num_blocks is {rin.num_blocks}."
        )
    if min(rin.depths) < 0:
        raise ConfigError(f"model.depth is {rin.depth}; it cannot be negative.")
    for name in ("dropout", "attention_dropout", "drop_path", "conv_dropout"):
        if not 0 <= (rate := getattr(rin, name)) < 1:
            raise ConfigError(f"model.{name} is {rate}; it must be in [0, 1).")
    kinds = ("learned", "sin_cos", "sin_cos_plus_learned")
    one_of("model.latent_positions", rin.latent_positions, kinds)
    one_of("model.interface_positions", rin.interface_positions, kinds)
    one_of("model.remat", rin.remat, ("none", *REMAT_POLICIES))
    one_of("model.cond_route", rin.cond_route, COND_ROUTES)
    one_of("model.dtype", rin.dtype, ("float32", "bfloat16"))
    if rin.interface_positions != "learned" and rin.interface_dim % 4:
        raise ConfigError(
            f"model.interface_dim is {rin.interface_dim}; sin_cos positions need a multiple of 4."
        )


def check_heads(rin: nn.Module) -> None:
    """Raises ConfigError if heads would leave a part of a width unused, as the reference's may."""
    routed = min(rin.latent_dim, rin.interface_dim)
    for field, heads, name, width in (
        ("num_heads", rin.num_heads, "latent_dim", rin.latent_dim),
        ("routing_heads", rin.routing_heads, "min(latent_dim, interface_dim)", routed),
    ):
        if width % heads:
            raise ConfigError(
                f"model.{field} {heads} does not divide {name} {width}; choose a divisor."
            )


def check_memory(rin: nn.Module, images: int) -> None:
    """Raises ConfigError if `images` that are drawn at once cannot lie in a device's memory."""
    time, *size = rin.example_shape
    for what, each in {
        "values": (time + rin.cond_frames) * math.prod(size),
        "features of interface tokens": (rin.num_tokens + rin.num_frame_tokens) * rin.interface_dim,
        "features of cond tokens": rin.num_cond_tokens * rin.outer_width,
        "features of latents": rin.num_latents * rin.latent_dim,
    }.items():
        if images * each > MOST_VALUES:
            raise ConfigError(
                f"sampler.images_per_device is {images}, and an example of shape "
                f"{rin.example_shape} has {each} {what}: more than {MOST_VALUES} in all on one "
                "device; choose fewer images, or smaller ones."
            )


def check_example(rin: nn.Module) -> None:
    """The same for the shape of an example and how it is cut."""
    *size, _ = rin.example_shape
    if (len(size) == 3) != (rin.video is not None):
        wanted = "is not set, but they are videos" if len(size) == 3 else "is set, but they are not"
        raise ConfigError(
            f"model.video {wanted} (examples have shape {rin.example_shape}); set it for videos "
            "and for nothing else."
        )
    if rin.cond_frames < 0 or (rin.cond_frames and rin.video is None):
        raise ConfigError(
            f"cond_frames is {rin.cond_frames}; it cannot be negative, and only videos (examples "
            f"have shape {rin.example_shape}) have more than 0."
        )
    if any(side % rin.patch_size for side in size[-2:]) and len(size) > 1:
        raise ConfigError(
            f"model.patch_size {rin.patch_size} does not divide the image size "
            f"{size[-2]} x {size[-1]}; choose a divisor, or another data.image_size."
        )
    if len(size) == 1 and rin.interface_positions != "learned" and not is_square(rin.num_tokens):
        raise ConfigError(
            f"model.interface_positions is {rin.interface_positions!r}, a code of a square grid, "
            f"but there are {rin.num_tokens} tokens; set 'learned'."
        )
    if rin.conv_size < 0 or (rin.conv_size and not is_square(rin.num_written)):
        raise ConfigError(
            f"model.conv_size is {rin.conv_size} and {rin.num_written} interface tokens are "
            "written; the convolution takes them as a square image, so that must be a square; "
            "else set 0."
        )
    groups = conv_groups(rin.interface_dim)
    if rin.conv_size and (rin.interface_dim < 4 or rin.interface_dim % groups):
        raise ConfigError(
            f"model.interface_dim is {rin.interface_dim}; with conv_size it must be at least 4 and "
            f"a multiple of its {groups} groups; choose such a width, or set conv_size 0."
        )


def is_square(number: int) -> bool:
    """Whether a whole number is one times itself."""
    return math.isqrt(number) ** 2 == number


def check_cond_widths(rin: nn.Module) -> None:
    """The same for the widths of cond tokens."""

    def width(on_latents: bool) -> tuple[str, int]:
        outer = "interface_dim" if rin.cond_dim is None else "cond_dim"
        return ("latent_dim", rin.latent_dim) if on_latents else (outer, rin.outer_width)

    joined = rin.num_cond_tokens > 0 and rin.cond_route != "decoupled"
    if joined and rin.cond_dim not in (None, rin.interface_dim):
        raise ConfigError(
            f"model.cond_dim is {rin.cond_dim} and interface_dim {rin.interface_dim}, but with "
            f"cond_route {rin.cond_route!r} they must be equal; leave cond_dim unset."
        )
    if rin.cond_route == "decoupled" and rin.num_read_only and width(False)[1] != rin.interface_dim:
        raise ConfigError(
            f"model.cond_dim is {rin.cond_dim} and interface_dim {rin.interface_dim}, but tokens "
            "of conditioning frames that are not written are read with the cond tokens; leave "
            "cond_dim unset, or set model.video.written."
        )
    if rin.cond_route == "decoupled" and width(False)[1] < rin.routing_heads:
        raise ConfigError(
            f"model.{width(False)[0]} is {width(False)[1]} and routing_heads {rin.routing_heads}; "
            "with cond_route 'decoupled' a head needs at least one feature; choose fewer heads."
        )
    name, value = width(rin.time_on_latents)
    if value % 8:
        raise ConfigError(f"model.{name} is {value}; the embedding of gamma needs a multiple of 8.")
    if rin.sequence and not rin.sequence.projected:
        name, value = width(rin.sequence.on_latents)
        alone = rin.num_cond_tokens == rin.sequence.tokens and not rin.num_read_only
        free = rin.cond_route == "decoupled" and not rin.sequence.on_latents and alone
        if rin.sequence.width != value and not free:
            raise ConfigError(
                f"model.sequence.width is {rin.sequence.width} and model.{name} {value}; they must "
                "be equal, or set model.sequence.projected."
            )
