"""Trajectories and reads: what is drawn is what happened."""

import numpy as np
import pytest
from PIL import Image

from rin_jax.network.conditioning import of_labels
from rin_jax.sampling import trace
from rin_jax.sampling.generate import make_generate
from tests import tiny
from tests.sampling.test_generate import mesh_of, save, weights

SAMPLER = {"sampler__num_steps": 3, "sampler__images_per_device": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler__guidance_scale": 1.0, "sampler__guidance_latents": "own"},
        {"sampler__name": "heun"},
        {"data__num_classes": 0},
    ],
)
def test_a_trajectory_ends_in_the_sample(changes):
    experiment, mesh = tiny.experiment(**SAMPLER, **changes), mesh_of(1)
    params, few = weights(experiment, mesh), np.arange(3)
    cond = of_labels(np.int32([4, 7, 4]), experiment.rin.num_classes)
    images = make_generate(experiment, mesh, seed=5)(params, few, cond)
    trajectory = trace.trace(experiment, mesh, params, 5, few, cond)
    assert trajectory.x0.shape == (3, *images.shape)
    assert np.abs(trajectory.x0[-1].astype(int) - images).max() <= 1
    assert np.abs(trajectory.x0[0].astype(int) - images).max() > 1
    assert trajectory.reads.shape == (3, 3, 2, 2, 2)  # steps, images, blocks, patches
    np.testing.assert_allclose(trajectory.reads.sum((-2, -1)), 1, rtol=1e-5)
    assert trajectory.reads.min() > 0


def test_a_guide_is_traced_too(tmp_path):
    save(tmp_path / "smaller", tiny.config(model__num_latents=5))
    save(tmp_path / "twin", tiny.config())
    mesh, few, cond = mesh_of(1), np.arange(2), {"label": np.int32([1, 2])}
    for latents, guide in (("own", "smaller"), ("shared", "twin")):
        experiment = tiny.experiment(
            **SAMPLER, sampler__guide=str(tmp_path / guide), sampler__guidance_scale=1.0,
            sampler__guidance_latents=latents,
        )  # fmt: skip
        params = weights(experiment, mesh)
        images = make_generate(experiment, mesh, seed=5)(params, few, cond)
        trajectory = trace.trace(experiment, mesh, params, 5, few, cond)
        assert np.abs(trajectory.x0[-1].astype(int) - images).max() <= 1


def test_heat_is_where_the_share_is():
    image = np.full((4, 4, 3), 100, np.uint8)
    shares = np.array([[0.6, 0.3], [0.0, 0.1]])
    panel = trace.heat(image, shares)
    assert panel.shape == (4, 4, 3)
    np.testing.assert_array_equal(panel[2:, :2], 100)  # nothing read, nothing drawn
    redness = panel[..., 0].astype(int) - panel[..., 2]
    assert redness[0, 0] > redness[0, 2] > redness[2, 2] > redness[2, 0] == 0
    np.testing.assert_array_equal(panel[:2, :2], np.broadcast_to(panel[0, 0], (2, 2, 3)))


def test_files_show_the_chosen_steps(tmp_path):
    rng = np.random.default_rng(0)
    x0 = rng.integers(0, 256, (70, 2, 8, 8, 1), dtype=np.uint8)
    trace.write(tmp_path / "few", trace.Trajectory(x0, rng.random((70, 2, 3, 2, 2))))
    strip = np.asarray(Image.open(tmp_path / "few-trajectory.png"))
    side = 50  # 8 pixels enlarged to 48, and a gap
    assert strip.shape == (2 * side + 2, 10 * side + 2)
    for row, column, step in ((0, 0, 0), (1, 9, 69), (0, 9, 69)):
        top, left = row * side + 2, column * side + 2
        np.testing.assert_array_equal(
            strip[top : top + 48 : 6, left : left + 48 : 6], x0[step, row, :, :, 0]
        )
    moving = Image.open(tmp_path / "few-trajectory.gif")
    assert moving.n_frames == 60
    moving.seek(59)
    frame = np.asarray(moving.convert("L"))
    np.testing.assert_array_equal(frame[2:50:6, 2:50:6], x0[69, 0, :, :, 0])
    reads = np.asarray(Image.open(tmp_path / "few-reads.png"))
    assert reads.shape == (8 * side + 2, 10 * side + 2, 3)  # an image and three blocks, twice


def test_reads_of_a_video_are_those_of_its_frames():
    """At two thirds of the steps, over the largest share in the clip; a patch has 2 frames."""
    x0 = np.random.default_rng(0).integers(0, 256, (7, 1, 4, 8, 8, 1), dtype=np.uint8)
    reads = np.full((7, 1, 3, 2, 2, 2), 1e-9)
    reads[4, 0, 1, 1, 0, 1] = 0.4  # block 1, frames 2 and 3, on the upper right
    reads[4, 0, 1, 0, 1, 0] = 0.2  # frames 0 and 1, lower left, half as much
    images, shares = trace.panels_of(trace.Trajectory(x0, reads), 0)
    np.testing.assert_array_equal(images, x0[4, 0])
    assert shares.shape == (3, 4, 2, 2)
    np.testing.assert_allclose(shares[1, :, 0, 1], [0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(shares[1, :, 1, 0], [0.5, 0.5, 0, 0], atol=1e-6)
    picture = trace.reads_picture(trace.Trajectory(x0, reads))
    assert picture.shape == (4 * 50 + 2, 4 * 50 + 2, 3)  # frames and three blocks, four frames each


def test_files_of_a_video_show_its_middle_frame(tmp_path):
    x0 = np.random.default_rng(0).integers(0, 256, (5, 2, 4, 8, 8, 1), dtype=np.uint8)
    trace.write(tmp_path / "few", trace.Trajectory(x0, np.ones((5, 2, 1, 2, 2, 2))))
    strip = np.asarray(Image.open(tmp_path / "few-trajectory.png"))
    np.testing.assert_array_equal(strip[52:100:6, 2:50:6], x0[0, 1, 2, :, :, 0])
    moving = Image.open(tmp_path / "few-trajectory.gif")
    assert moving.n_frames == 5
