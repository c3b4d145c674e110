"""Videos with conditioning frames: what must hold whatever the parameters are."""

import jax
import numpy as np
import pytest

from rin_jax.network import conditioning
from tests.network.small import BATCH, SEQUENCE, VIDEO, distance, inputs, random_params, small

CLIP = {
    "example_shape": (3, 2, 4, 1), "cond_frames": 2, "video": VIDEO | {"patch_frames": 1},
    "interface_self_cond": False, "time_on_latents": False,
}  # fmt: skip


def program(**changes):
    """(forward(params, *inputs), params, inputs) of videos of two patches a frame."""
    rin = small(**(CLIP | changes))
    apply = jax.jit(rin.apply)
    return lambda params, *args: apply({"params": params}, *args), random_params(rin), inputs(rin)


@pytest.fixture(scope="module")
def network():
    """One for most tests: its classes join gamma."""
    return program(label_in_time=True)


@pytest.mark.parametrize("part", ["noisy", "given"])
def test_every_frame_reaches_every_frame_of_its_own_video_alone(network, part):
    forward, params, (x, gamma, cond, latents) = network
    before = forward(params, x, gamma, cond, latents)[0]
    for frame in range(3 if part == "noisy" else 2):
        frames = np.array(x if part == "noisy" else cond["frames"])
        frames[0, frame] += 1 + frames[0, frame] ** 2
        new = (frames, cond) if part == "noisy" else (x, cond | {"frames": frames})
        after = forward(params, new[0], gamma, new[1], latents)[0]
        assert distance(after[1:], before[1:]) < 1e-6
        for own in range(3):
            assert distance(after[0, own], before[0, own]) > 1e-4, (frame, own)


def test_each_entry_of_a_condition_is_dropped_for_some_examples(network):
    """Both go at once, as a null that every example shares; each of them matters."""
    forward, params, (x, gamma, cond, latents) = network
    null = conditioning.null(cond)
    keep = np.array([True, False, True])
    dropped = forward(params, x, gamma, conditioning.drop(cond, keep), latents)[0]
    whole, none = (forward(params, x, gamma, c, latents)[0] for c in (cond, null))
    assert distance(dropped[keep], whole[keep]) < 1e-6
    assert distance(dropped[~keep], none[~keep]) < 1e-6
    for name in ("label", "frames"):
        one = forward(params, x, gamma, cond | {name: null[name]}, latents)[0]
        for i in range(BATCH):
            assert distance(one[i], whole[i]) > 1e-3
            assert distance(one[i], none[i]) > 1e-3


def test_a_class_that_joins_gamma_is_a_row_of_a_kernel(network):
    forward, params, (x, gamma, cond, latents) = network
    assert "label" not in params
    bias, kernel = (params["time"]["out"][leaf] for leaf in ("bias", "kernel"))
    before = forward(params, x, gamma, cond, latents)[0]
    unlabelled = cond | {"label": conditioning.null(cond)["label"]}
    rows = kernel[-3:][cond["label"]]
    assert kernel.shape == (8 + 3, 8)
    for i in range(BATCH):
        out = {"kernel": kernel, "bias": bias + rows[i]}
        moved = params | {"time": params["time"] | {"out": out}}
        after = forward(moved, x, gamma, unlabelled, latents)
        assert distance(after[0][i], before[i]) < 1e-5


@pytest.mark.parametrize("blocks", [1, 2])
def test_frames_that_are_not_written_stay_what_they_were(blocks):
    """What the only block writes into them nobody reads; what the first of two writes, its second.

    So both kinds of network agree with one block, and do not with two.
    """
    forward, params, args = program(num_blocks=blocks)
    unwritten, *_ = program(num_blocks=blocks, video=CLIP["video"] | {"written": False})
    change = distance(forward(params, *args), unwritten(params, *args))
    assert (change < 1e-6) if blocks == 1 else (change > 1e-3)


def test_frames_that_are_read_apart():
    unwritten = CLIP["video"] | {"written": False}
    forward, params, (x, gamma, cond, latents) = program(cond_route="decoupled", video=unwritten)
    before = forward(params, x, gamma, cond, latents)[0]
    after = forward(params, x, gamma, cond | {"frames": -cond["frames"]}, latents)[0]
    assert distance(before, after) > 1e-3
    deaf = jax.tree.map(np.copy, params)
    for leaf in ("kernel", "bias"):
        deaf["blocks_0"]["read_cond"]["attention"]["value"][leaf][:] = 0
    before = forward(deaf, x, gamma, cond, latents)[0]
    after = forward(deaf, x, gamma, cond | {"frames": -cond["frames"]}, latents)[0]
    assert distance(before, after) < 1e-6


def test_conditions_have_the_shapes_that_a_network_tells():
    rin = small(**(CLIP | {"sequence": SEQUENCE}))
    shapes = {name: (s.shape, s.dtype.name) for name, s in rin.abstract_cond(7).items()}
    assert shapes == {
        "label": ((7,), "int32"),
        "frames": ((7, 2, 2, 4, 1), "float32"),
        "sequence": ((7, 2, 5), "float32"),
    }
    assert set(small(**(CLIP | {"cond_frames": 0, "num_classes": 0})).abstract_cond(1)) == set()
    assert conditioning.of_batch({"frames": 1, "sequence": 2, "video": 3}) == {
        "frames": 1, "sequence": 2,
    }  # fmt: skip
