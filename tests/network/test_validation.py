"""Attributes of a network that disagree are named, with their values and the remedy."""

import os
import subprocess
import sys

import pytest

from tests.network.small import SEQUENCE, VIDEO, small

CLIP = {"example_shape": (3, 4, 6, 2), "video": VIDEO}
LINE = {"patch_size": 1, "interface_self_cond": False}
OWN = SEQUENCE | {"projected": False}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 4}, ["patch_size 4", "4 x 6"]),
        ({"patch_size": 0}, ["patch_size is 0"]),
        ({"num_blocks": 0}, ["num_blocks is 0"]),
        ({"example_shape": (4, 6, 0)}, ["a side of an example (4, 6, 0) is 0"]),
        ({"example_shape": (0, 6, 1)}, ["a side of an example (0, 6, 1) is 0"]),
        ({"num_heads": 0}, ["num_heads is 0"]),
        ({"latent_dim": 12}, ["latent_dim is 12", "multiple of 8"]),
        ({"latent_mlp_ratio": 0}, ["latent_mlp_ratio is 0"]),
        ({"interface_mlp_ratio": -1}, ["interface_mlp_ratio is -1"]),
        (
            {"interface_mlp_ratio": 0, "interface_self_cond": True},
            ["interface_mlp_ratio is 0", "interface_self_cond"],
        ),
        ({"num_latents": 2}, ["num_latents is 2"]),
        ({"num_latents": 1, "num_classes": 0}, ["num_latents is 1"]),
        ({"num_classes": 2**31}, ["num_classes is 2147483648", "int32"]),
        ({"num_classes": -1}, ["num_classes is -1"]),
        ({"depth": (1, 2, 3)}, ["depth lists 3", "num_blocks is 2"]),
        ({"depth": (1, -1)}, ["depth is (1, -1)"]),
        ({"depth": -1}, ["depth is -1"]),
        ({"dropout": 1.0}, ["dropout is 1.0"]),
        ({"drop_path": -0.1}, ["drop_path is -0.1"]),
        ({"dtype": "float16"}, ["dtype is 'float16'", "bfloat16"]),
        ({"remat": "half"}, ["remat is 'half'", "none, full, dots"]),
        ({"latent_positions": "sine"}, ["latent_positions is 'sine'", "sin_cos_plus_learned"]),
        ({"interface_positions": "no"}, ["interface_positions is 'no'", "learned"]),
        (
            {"interface_positions": "sin_cos", "interface_dim": 6, "routing_heads": 1},
            ["interface_dim is 6", "multiple of 4"],
        ),
        # Examples and how they are cut.
        ({"video": VIDEO}, ["model.video is set", "(4, 6, 2)"]),
        ({"example_shape": (3, 4, 6, 2)}, ["model.video is not set", "(3, 4, 6, 2)"]),
        ({"cond_frames": 1}, ["cond_frames is 1", "only videos", "(4, 6, 2)"]),
        (CLIP | {"cond_frames": -1}, ["cond_frames is -1", "negative"]),
        (CLIP | {"patch_size": 4}, ["patch_size 4", "4 x 6"]),
        ({"video": {"patch_frames": 2, "written": True}}, ["model.video", "missing positions"]),
        ({"video": VIDEO | {"stride": 1}}, ["model.video", "unknown", "stride"]),
        (
            LINE | {"example_shape": (10, 2), "interface_positions": "sin_cos"},
            ["interface_positions is 'sin_cos'", "10 tokens", "set 'learned'"],
        ),
        # Convolutions.
        ({"conv_size": 3}, ["conv_size is 3", "6 interface tokens", "square", "set 0"]),
        ({"conv_size": -1}, ["conv_size is -1"]),
        ({"conv_dropout": 1.0}, ["conv_dropout is 1.0"]),
        ({"attention_dropout": 1.0}, ["attention_dropout is 1.0"]),
        (CLIP | {"conv_size": 3, "cond_frames": 1}, ["conv_size is 3", "18 interface tokens"]),
        (
            {"example_shape": (4, 4, 1), "conv_size": 3, "interface_dim": 2},
            ["interface_dim is 2", "at least 4", "set conv_size 0"],
        ),
        # Widths of cond tokens.
        ({"cond_dim": 0}, ["cond_dim is 0"]),
        ({"cond_dim": 16, "label_on_latents": False}, ["cond_dim is 16", "interface_dim 8"]),
        (
            {"cond_dim": 12, "cond_route": "decoupled", "time_on_latents": False},
            ["cond_dim is 12", "multiple of 8"],
        ),
        (
            {"cond_dim": 1, "cond_route": "decoupled", "sequence": SEQUENCE},
            ["cond_dim is 1", "routing_heads 2"],
        ),
        ({"sequence": SEQUENCE | {"width": 0}}, ["model.sequence.width"]),
        ({"sequence": SEQUENCE | {"projected": 1}}, ["model.sequence.projected is 1"]),
        ({"sequence": {"tokens": 2}}, ["model.sequence", "missing on_latents, projected, width"]),
        (
            {"sequence": SEQUENCE | {"on_latents": True, "tokens": 3}},
            ["num_latents is 5", "5 of the latents", "sequence"],
        ),
        ({"sequence": OWN}, ["sequence.width is 5", "interface_dim 8", "projected"]),
        ({"sequence": OWN | {"on_latents": True}}, ["sequence.width is 5", "latent_dim 16"]),
        (
            {"sequence": OWN, "cond_route": "decoupled", "label_on_latents": False},
            ["sequence.width is 5", "interface_dim 8"],  # the class token is read with it
        ),
        (
            CLIP | {"video": VIDEO | {"written": False}, "cond_frames": 1, "cond_dim": 16,
                    "cond_route": "decoupled", "label_on_latents": False},
            ["cond_dim is 16", "interface_dim 8", "model.video.written"],
        ),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_value(changes, words):
    with pytest.raises(ValueError, match="must|choose|cannot|lists|need|set|it (is|has)") as caught:
        small(**changes)
    for word in words:
        assert word in str(caught.value)


def test_of_several_wrong_fields_every_process_names_the_same():
    """The first in the order of the fields, whatever the hash seed of a process is."""
    code = (
        "from tests.network.small import small\n"
        "small(patch_size=0, num_blocks=0, num_latents=0, num_heads=0, routing_heads=0)"
    )
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert "patch_size is 0" in done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 2**31 - 1},
        {"num_latents": 3},
        {"interface_mlp_ratio": 0, "interface_self_cond": False},
        {"depth": (0, 3)},
        {"cond_dim": 12, "cond_route": "decoupled", "label_on_latents": False},
        {"sequence": OWN, "cond_route": "decoupled"},
        CLIP | {"cond_frames": 9},
        LINE | {"example_shape": (9, 2), "interface_positions": "sin_cos", "conv_size": 2},
    ],
)
def test_the_limits_themselves_are_allowed(changes):
    small(**changes)
