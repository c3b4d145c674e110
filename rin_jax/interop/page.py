"""A page that samples in the visitor's browser: static files beside denoiser.onnx.

    index.html      the form, with what the model's description says and gamma(t) in JavaScript
    page.js         noise, DDIM with guidance, pictures of x0 and of the reads
    onnxruntime/    what runs the network, from the npm package onnxruntime-web

Any file server shows it; the server computes nothing, and the browser asks no other one. The
runtime's files are those of one version, known by their SHA-256.
"""

import base64
import hashlib
import html
import json
import pathlib
import shutil
import string
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from rin_jax import ConfigError
from rin_jax.interop import formulas

INDEX, SCRIPT, RUNTIME = "index.html", "page.js", "onnxruntime"
HERE = pathlib.Path(__file__).parent
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# of its folder dist/ what runs a network with one thread on a CPU, with the SHA-256
LIBRARY = {
    "ort.wasm.bundle.min.mjs":
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm":
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MODULES = pathlib.Path("node_modules", PACKAGE, "dist")
FILES = (INDEX, SCRIPT, *(f"{RUNTIME}/{name}" for name in LIBRARY))
MOST_SHOWN = 10  # samples at first


def check(cond_frames: int, clips: bool) -> None:
    """Raises ConfigError at what would stop `write` later, but for the files of the runtime."""
    if cond_frames and not clips:
        raise ConfigError(
            f"--page: the network is given {cond_frames} frames, but there are no real clips here "
            "to take them from; make their data set (--mode=prepare), and leave --nogrid out."
        )


def find_runtime(folder: pathlib.Path) -> None:
    """Puts the runtime's files into a folder, from ./node_modules or else from npm.

    ConfigError: npm is not installed or does not find the package, or a file is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        source = MODULES if MODULES.exists() else _packed(pathlib.Path(temporary))
        for name, sha256 in LIBRARY.items():
            path = source / name
            found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
            if found != sha256:
                raise ConfigError(
                    f"{path} is not that of {PACKAGE} {VERSION}: its SHA-256 is {found} instead of "
                    f"{sha256}; run: npm install {PACKAGE}@{VERSION}"
                )
            shutil.copyfile(path, folder / name)


def _packed(folder: pathlib.Path) -> pathlib.Path:
    """The package's folder dist/, fetched by npm into a folder; ConfigError as `find_runtime`."""
    remedy = (
        f"--page needs {PACKAGE} {VERSION} from npm: install Node.js's npm, or put the package "
        f"into {MODULES.parent} of the current folder"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(f"{remedy}; there is no npm here.")
    command = [npm, "pack", "--silent", "--prefer-offline", f"{PACKAGE}@{VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ConfigError(f"{remedy}; npm said: {said or f'exit code {done.returncode}'}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as package:
        for name in LIBRARY:
            package.extract(f"package/dist/{name}", folder, filter="data")
    return folder / "package" / "dist"


def write(
    folder: str, title: str, description: Mapping[str, Any], clips: Mapping[str, np.ndarray] | None
) -> None:
    """Writes the page into a local folder that has denoiser.onnx; description: config.json.

    `clips` as `Model.clips`. ConfigError as `check` and `find_runtime`.
    """
    network, config = description["network"], description["config"]
    check(network["cond_frames"], clips is not None)
    path = pathlib.Path(folder)
    find_runtime(path / RUNTIME)
    shutil.copyfile(HERE / SCRIPT, path / SCRIPT)
    sampler, classes = config["sampler"], network["num_classes"]
    given = network["cond_frames"]
    text = string.Template((HERE / "page.html").read_text()).substitute(
        title=html.escape(title), about=html.escape(_about(description)),
        number=min(classes or 4, MOST_SHOWN), steps=sampler["num_steps"],
        guidance=float(sampler["guidance_scale"]),
        given_frames=f" The first {given} frames are given; the network predicts the others."
        if given else "",
        schedule=formulas.javascript(**sampler["schedule"]),
        # in a script "<" could end it
        model=json.dumps(_model(description, clips), indent=1).replace("<", "\\u003c"),
    )  # fmt: skip
    (path / INDEX).write_text(text)


def _about(description: Mapping[str, Any]) -> str:
    """What the visitor reads first."""
    data, shape = description["config"]["data"], description["network"]["example_shape"]
    return (
        f"A Recurrent Interface Network for {' x '.join(map(str, shape))} examples of "
        f"{data['name']}, after {description['step']:,} training steps. Your browser draws the "
        "samples by DDIM; nothing is sent anywhere."
    )


def _model(
    description: Mapping[str, Any], clips: Mapping[str, np.ndarray] | None
) -> dict[str, Any]:
    """What page.js reads of a model."""
    network, config = description["network"], description["config"]
    classes, shape, given = network["num_classes"], network["example_shape"], network["cond_frames"]
    known = list(description["class_names"] or ())
    return {
        "shape": shape, "classes": classes,
        "names": known + [str(label) for label in range(len(known), classes)],
        "givenShape": [given, *shape[1:]],
        "frames": base64.b64encode(clips["frames"].tobytes()).decode() if given else None,
        "patchFrames": network["video"]["patch_frames"] if network["video"] else 1,
        "predictionType": config["diffusion"]["prediction_type"],
        "inputScale": config["diffusion"]["input_scale"],
        "guidanceInterval": config["sampler"]["guidance_interval"],
        "guidanceLatents": config["sampler"]["guidance_latents"],
    }  # fmt: skip
