"""The job --mode=reference: statistics of a data set's real images, to compare samples with.

    WORKDIR/evaluation/reference/NETWORK-HASH.npz    see evaluation/real_statistics.py

An evaluation makes what it needs by itself; this job makes it before, or for several runs at once:
name the folder as evaluation.reference.
"""

import ml_collections
from etils import epath

from rin_jax.data.source import open_source
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.runtime import console
from rin_jax.sampling import real_images
from rin_jax.sampling.conditions import source_of


def reference(config: ml_collections.ConfigDict, workdir: str) -> list[epath.Path]:
    """Computes the statistics of real images that are not there yet: those that samples need.

    ConfigError: a feature network lacks its weights, the data set its labels for the classifier.
    """
    with config.unlocked():
        config.evaluation.reference = None
    experiment = make_experiment(config)
    source, mesh = open_source(experiment.data), device_mesh(experiment)
    real = source_of(experiment, source)
    paths = []
    for name in experiment.evaluation.chosen:
        network = real_images.open_network(name, experiment, source, workdir)
        real_images.find(experiment, real, network, workdir, mesh)
        description = real_images.describe(experiment, real, network)
        paths.append(real_images.kept_path(description, workdir))
        what = f"{description['images']:,} real images of {experiment.data.name}"
        console.say(f"{what}: {paths[-1]}")
    return paths
