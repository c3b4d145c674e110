"""The page of an export in Chromium draws what rin_jax draws; that of digits: test_digits.py."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.diffusion import schedules
from rin_jax.interop import formulas, page
from tests.interop import browser, exports

pytestmark = pytest.mark.usefixtures("one_device")
# all that the page does beside plain DDIM, on a network that is given frames
VIDEO = exports.VIDEO | {
    "diffusion__prediction_type": "x0", "diffusion__loss_type": "x0",
    "diffusion__input_scale": 0.5, "diffusion__normalize_input": True,
    "sampler__num_steps": 4, "sampler__guidance_scale": 1.5,
    "sampler__guidance_interval": (0.1, 0.9), "sampler__guidance_latents": "own",
}  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory, one_device, page_runtime):
    model = exports.model(**VIDEO)
    return model, exports.write(tmp_path_factory.mktemp("to"), model, page=True)


def test_videos_with_all_that_guidance_has(videos):
    model, folder = videos
    noise, labels = exports.noise(model, 6), np.arange(6)[::-1]
    code = f"""
        const settings = {{ noise: {json.dumps(noise.ravel().tolist())},
                            labels: {labels.tolist()}, steps: 4, guidance: 1.5,
                            frames: page.rin.state.given }};
        return Array.from(await page.rin.sample(settings));
    """
    answer, _ = browser.ask(folder, code)
    frames = model.clips["frames"]
    ours = np.asarray(model.sample_from(noise, labels, frames=frames))
    np.testing.assert_allclose(np.reshape(answer, noise.shape), ours, atol=1e-4)
    plain = model.with_sampler(guidance_latents="shared", guidance_interval=(0.0, 1.0))
    assert np.abs(plain.sample_from(noise, labels, frames=frames) - ours).max() > 0.01


def test_noise_and_schedules(videos):
    """Normal noise, independent from sample to sample and seed to seed; gamma(t) of each family."""
    times = np.linspace(0, 1, 41)
    given = {
        name: family.defaults for name, family in schedules.SCHEDULES.items() if family.formula
    }
    codes = {name: formulas.javascript(name, **values) for name, values in given.items()}
    code = f"""
        const codes = {json.dumps(codes)}, times = {times.tolist()};
        const gammas = {{}};
        for (const [name, code] of Object.entries(codes)) {{
          gammas[name] = times.map(new Function(code + "return (t) => gammaOf(t);")());
        }}
        return {{ gammas, noise: [0, 1, 4294967295].map(
          (seed) => Array.from(page.rin.noise(seed, 3, 5000))) }};
    """
    answer, _ = browser.ask(videos[1], code)
    for name, values in given.items():
        ours = schedules.make_schedule(name, **values)(jnp.float32(times))
        np.testing.assert_allclose(answer["gammas"][name], ours, atol=2e-6, err_msg=name)
    noise = np.reshape(answer["noise"], (9, 5000))
    correlations = np.corrcoef(noise)
    assert np.abs(correlations - np.eye(9)).max() < 0.06  # 4 standard deviations
    every = noise.ravel()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert abs((every**power).mean() - moment) < 0.2 * power, power
    within = [np.corrcoef(row[:-lag], row[lag:])[0, 1] for row in noise for lag in (1, 2, 8)]
    assert np.abs(within).max() < 0.06


def test_mistakes_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "MODULES", Path("node_modules", "onnxruntime-web", "dist"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"--page needs onnxruntime-web .* from npm: .* no npm"):
        page.find_runtime(tmp_path / "to")
    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "npm error\n404")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ConfigError, match=r"npm said: npm error 404"):
        page.find_runtime(tmp_path / "to")
    page.MODULES.mkdir(parents=True)
    for name in page.LIBRARY:
        (page.MODULES / name).write_text("of another version")
    with pytest.raises(ConfigError, match=r"is not that of onnxruntime-web .*; run: npm install"):
        page.find_runtime(tmp_path / "to")
    bare = dataclasses.replace(exports.model(**VIDEO), clips=None)
    with pytest.raises(ConfigError, match=r"--page: the network is given 2 frames, but there are"):
        page.check(bare.experiment.rin.cond_frames, bare.clips is not None)
