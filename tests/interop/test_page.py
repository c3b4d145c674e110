"""The page of an export in Chromium: it draws what rin_jax draws from the same noise."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rin_jax
from rin_jax import ConfigError
from rin_jax.diffusion import schedules
from rin_jax.interop import formulas, page
from rin_jax.jobs import export
from tests.interop import browser, exports

pytestmark = [
    pytest.mark.usefixtures("one_device"),
    pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium (apt: chromium)"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm"),
]
# all that the page does beside plain DDIM, on a network that is given frames
VIDEO = exports.VIDEO | {
    "diffusion__prediction_type": "x0", "diffusion__loss_type": "x0",
    "diffusion__input_scale": 0.5, "diffusion__normalize_input": True,
    "sampler__num_steps": 4, "sampler__guidance_scale": 1.5,
    "sampler__guidance_interval": (0.1, 0.9), "sampler__guidance_latents": "own",
}  # fmt: skip


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The files of ONNX Runtime are fetched once."""
    folder = tmp_path_factory.mktemp("runtime")
    try:
        page.find_runtime(folder)
    except ConfigError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "MODULES", folder)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory, one_device, root, runtime):
    """(the committed model, its export with a page)"""
    source, to = root / "models" / "digits", tmp_path_factory.mktemp("to") / "<digits>"
    model = rin_jax.load(str(source))
    export.export(model.config, None, str(to), None, with_grid=False, with_onnx=False, push=None,
                  source=str(source), with_page=True)  # fmt: skip
    return model, to


@pytest.fixture(scope="module")
def videos(tmp_path_factory, one_device, runtime):
    model = exports.model(**VIDEO)
    return model, exports.write(tmp_path_factory.mktemp("to"), model, page=True)


def test_digits_from_the_same_noise(digits):
    model, folder = digits
    noise, labels = exports.noise(model, 3), [4, 9, -1]
    code = f"""
        const settings = {{ noise: {json.dumps(noise.ravel().tolist())}, labels: {labels},
                            steps: 25, guidance: 1 }};
        const x0 = await page.rin.sample(settings);
        return {{ x0: Array.from(x0), title: page.document.title,
                  fetched: page.performance.getEntriesByType("resource").map((x) => x.name) }};
    """
    answer, paths = browser.ask(folder, code)
    ours = model.with_sampler(num_steps=25).sample_from(noise, labels)
    np.testing.assert_allclose(np.reshape(answer["x0"], noise.shape), ours, atol=1e-4)
    assert answer["title"] == "<digits>"  # a name is not markup
    names = {path.lstrip("/").partition("?")[0] for path in paths}
    assert names <= {"asking.html", "favicon.ico", "denoiser.onnx", "denoiser.onnx.data",
                     *page.FILES}  # fmt: skip
    assert all(name.startswith("http://127.0.0.1:") for name in answer["fetched"])


def test_the_form_and_what_it_draws(digits):
    """The samples of the form are those of its noise, and the canvases show them."""
    model, folder = digits
    code = """
        const fields = { class: 3, number: 2, seed: 11, steps: 5, guidance: 0.5 };
        for (const [id, value] of Object.entries(fields)) {
          page.document.getElementById(id).value = value;
        }
        page.document.querySelector("button").click();
        const done = () => page.document.getElementById("status").textContent.startsWith("Step 5");
        while (!done()) await new Promise((resolve) => setTimeout(resolve, 20));
        const canvases = [...page.document.querySelectorAll("canvas")];
        const pixels = (at) => canvases.map((canvas) => Array.from(
          canvas.getContext("2d").getImageData(0, at, 8, 8).data));
        const [last, below] = [pixels(0), pixels(9)];
        const step = page.document.getElementById("step");
        step.value = 1;
        step.dispatchEvent(new page.Event("input"));
        return { noise: Array.from(page.rin.noise(11, 2, 64)), last, below, first: pixels(0),
                 captions: canvases.map((canvas) => canvas.nextSibling.textContent),
                 shape: [canvases[0].width, canvases[0].height] };
    """
    answer, _ = browser.ask(folder, code)
    noise = np.float32(answer["noise"]).reshape(2, 8, 8, 1)
    other = model.with_sampler(num_steps=5, guidance_scale=0.5)
    x0 = np.asarray(other.sample_from(noise, 3))
    drawn = np.reshape(answer["last"], (2, 8, 8, 4))
    levels = np.clip(np.round((x0 + 1) * 127.5), 0, 255)
    assert np.abs(drawn[..., :3] - levels).max() <= 1
    assert (drawn[..., 3] == 255).all()
    red, _, blue = np.moveaxis(np.reshape(answer["below"], (2, 8, 8, 4))[..., :3], -1, 0)
    assert (red >= blue).all()
    assert (red > blue + 50).any()
    assert (np.asarray(answer["first"]) != answer["last"]).any()
    assert answer["captions"] == ["3", "3"]
    assert answer["shape"] == [8, 3 * 9 - 1]  # x0, and the reads of two blocks


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


def test_noise_and_schedules(digits):
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
    answer, _ = browser.ask(digits[1], code)
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
