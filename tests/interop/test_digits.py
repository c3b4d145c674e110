"""The committed digits through every runtime: the same noise gives the same images.

They are exported, and drawn by DDIM in 50 steps on the demo's grid: by rin_jax, in fresh processes
that lack rin_jax and what it is made of, and by the page in Chromium.
"""

import json

import numpy as np
import pytest

import rin_jax
from rin_jax.interop import page
from rin_jax.jobs import export
from tests.interop import browser, exports

BATCH = 20
GRID = {"name": "logsnr", "start": 6.0, "end": -9.0}  # begins at a gamma of 1e-4


@pytest.fixture(scope="module")
def case(tmp_path_factory, one_device, root):
    """(model, folder of its export, images that rin_jax draws from the noise in in.npz)."""
    source, folder = root / "models" / "digits", tmp_path_factory.mktemp("to") / "<digits>"
    model = rin_jax.load(str(source)).with_sampler(num_steps=50)
    assert model.config.sampler.schedule.to_dict() == GRID
    export.export(model.config, None, str(folder), None, with_grid=False, with_onnx=True,
                  push=None, source=str(source))  # fmt: skip
    noise, labels = exports.noise(model, BATCH), np.arange(BATCH, dtype=np.int32) % 10
    np.savez(folder / "in.npz", noise=noise, labels=labels)
    ours = np.asarray(model.sample_from(noise, labels))
    assert 0.9 < np.abs(ours).max() < 1.1
    return model, folder, ours


@pytest.fixture(scope="module")
def paged(case, page_runtime):
    """(model, folder of its export, to which a page is added)."""
    model, folder, _ = case
    page.write(str(folder), folder.name, json.loads((folder / "config.json").read_text()), None)
    return model, folder


def compare(case, file: str) -> None:
    _, folder, ours = case
    assert np.abs(np.load(folder / file) - ours).max() < 1e-4


def test_stablehlo_without_rin_jax(case):
    code = exports.readme_code(case[1], "sampler.stablehlo")
    head, tail = code.split("random = ")
    tail = tail[tail.index("weights = ") :]
    code = f"""{head}
given = np.load("in.npz")
noise, labels, keys = given["noise"], given["labels"], np.zeros((len(given["noise"]), 2), np.uint32)
{tail}
np.save("hlo.npy", samples)
"""
    absent = ("rin_jax", "flax", "optax", "ml_collections", "chex", "etils")
    exports.run_without(absent, code, case[1])
    compare(case, "hlo.npy")


def test_pytorch_without_jax(case):
    """Nor with numpy, for what draws the images."""
    folder = case[1]
    given = np.load(folder / "in.npz")
    (folder / "in.json").write_text(json.dumps({name: given[name].tolist() for name in given}))
    code = """
import json, torch, rin_torch
given = json.load(open("in.json"))
model = rin_torch.load(".")
images = model.sample(torch.tensor(given["noise"]), torch.tensor(given["labels"]))
json.dump(images.tolist(), open("torch.json", "w"))
"""
    absent = ("rin_jax", "jax", "flax", "numpy", "safetensors", "etils", "ml_collections")
    exports.run_without(absent, code, folder)
    np.save(folder / "torch.npy", np.float32(json.loads((folder / "torch.json").read_text())))
    compare(case, "torch.npy")


def test_onnxruntime_without_jax(case):
    code = exports.readme_code(case[1], "onnxruntime")
    first, rest = code.split("noise = ", 1)
    rest = rest[rest.index("labels, steps, guidance") :]
    labels, rest = rest.split("\n", 1)
    steps = labels.split("), ", 1)[1].removeprefix("np.int32), ")
    code = f"""{first}
given = np.load("in.npz")
noise, labels = given["noise"], given["labels"]
steps, guidance = {steps}
{rest}
np.save("onnx.npy", samples)
"""
    exports.run_without(("rin_jax", "jax", "flax", "torch", "safetensors"), code, case[1])
    compare(case, "onnx.npy")


def test_page(paged):
    model, folder = paged
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


def test_the_form_and_what_it_draws(paged):
    """The samples of the form are those of its noise, and the canvases show them."""
    model, folder = paged
    code = """
        const fields = { class: 3, number: 2, seed: 11, steps: 5, guidance: 0.5 };
        for (const [id, value] of Object.entries(fields)) {
          page.document.getElementById(id).value = value;
        }
        page.document.querySelector("button").click();
        const status = page.document.getElementById("status");
        const done = () => status.textContent.startsWith("Step 5 of 5,");
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
