"""The job that makes a power average of another length from a run's snapshots, after training.

Source: arXiv 2312.02696 section 3.2 (EDM2).
"""

import jax
import jax.numpy as jnp
import ml_collections

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.checkpointing.checkpoints import Checkpoints, DamagedError, describe_damage, folder
from rin_jax.configuration.stored import check_architecture, say_differences
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.runtime import console
from rin_jax.sampling.weights import abstract_params
from rin_jax.training import ema


def reconstruct(config: ml_collections.ConfigDict, workdir: str, length: float) -> str:
    """Writes WORKDIR/reconstructed/power_LENGTH/STEP and a table of coefficients beside it.

    STEP is that of the newest snapshot; `--ema=power_LENGTH` finds it. Returns the table.
    ConfigError: a length out of its range, or no snapshots of these parameters.
    """
    experiment = make_experiment(config)
    say_differences(experiment, workdir)
    ema.exponent(length, "--length is")
    found, damaged = checkpoints.find(folder(workdir, "snapshots"))
    for line in describe_damage(damaged):
        console.say(f"snapshots: {line}; it is left out")
    if not found:
        raise ConfigError(
            f"no snapshots in {workdir}; set ema.power_lengths, for instance (0.05, 0.1), and "
            "ema.snapshot_every_steps before training."
        )
    newest = found[0]
    check_architecture(experiment, newest.config, f"snapshot {newest.step} in {workdir}")
    mesh = device_mesh(experiment)
    abstract = abstract_params(experiment.rin, mesh)
    stored = [(saved, name) for saved in reversed(found) for name in saved.emas]
    profiles = [(saved.step, float(name.removeprefix("power_"))) for saved, name in stored]
    weights, error = ema.coefficients(profiles, newest.step, length)

    add = jax.jit(
        lambda total, params, weight: jax.tree.map(lambda t, p: t + weight * p, total, params),
        donate_argnums=0,
    )
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), abstract)
    progress = console.Progress(0, len(stored), 1)
    for number, ((saved, name), weight) in enumerate(zip(stored, weights, strict=True), start=1):
        try:
            params = checkpoints.load(saved, {f"ema_{name}": abstract})[f"ema_{name}"]
        except DamagedError as damage:
            text = f"{saved.path} is damaged: {damage}."
            raise ConfigError(f"{text} Move it away; the rest is enough.") from damage
        total = add(total, params, jnp.float32(weight))
        progress.update(number)
        console.say(progress.line("snapshot", "snapshots"))

    name = ema.power_name(length)
    path = folder(workdir, "reconstructed") / name
    metadata = {"config": experiment.config.to_dict(), "emas": [name]}
    checkpoints.remove(path / str(newest.step))
    with Checkpoints(path) as saver:
        saver.save(newest.step, {f"ema_{name}": total}, metadata)
    table = f"{name} at step {newest.step}; relative error of the profile {error:.2%}\n"
    table += f"{'snapshot':>10} {'average':>14} {'coefficient':>12}"
    for (saved, stored_name), weight in zip(stored, weights, strict=True):
        table += f"\n{saved.step:>10} {stored_name:>14} {weight:>12.5f}"
    if jax.process_index() == 0:
        (path / f"{newest.step}.txt").write_text(f"{table}\n")
    console.say(f"{table}\n--ema={name} uses it: {path / str(newest.step)}")
    return table
