"""The job that turns a checkpoint of the authors' released code into the first one of a run.

The configuration must describe the network that was trained there (configs/cifar10.py and
configs/imagenet64.py say what the released files have). The moments of the optimizer are not
taken over: training goes on from the weights and their running average alone.
"""

import json

import jax
import ml_collections
from etils import epath

from rin_jax import ConfigError
from rin_jax.checkpointing import restore
from rin_jax.checkpointing.checkpoints import Checkpoints, folder
from rin_jax.configuration import stored
from rin_jax.experiment import Experiment, device_mesh, make_experiment
from rin_jax.interop import pix2seq
from rin_jax.runtime import console
from rin_jax.training.state import create_state, items_of, metadata_of


def import_pix2seq(config: ml_collections.ConfigDict, workdir: str, source: str) -> int:
    """Writes the checkpoint and WORKDIR/import.json, which accounts for every variable.

    Returns the checkpoint's step. ConfigError: no such checkpoint, variables that do not fit the
    network, or a run that has begun already.
    """
    experiment = make_experiment(config)
    begun, _ = restore.find(workdir)
    if begun:
        text = f"{workdir} has a checkpoint of step {begun[0].step} already"
        raise ConfigError(f"{text}; name another --workdir.")
    found = pix2seq.read(source)
    params = pix2seq.import_params(found.params or found.average, experiment.rin)
    average = pix2seq.import_params(found.average or found.params, experiment.rin)
    step = found.step or 0
    mesh = device_mesh(experiment)
    state = create_state(experiment, mesh, experiment.seed)
    imported = state.replace(
        step=state.step + step, params=params, emas=dict.fromkeys(state.emas, average)
    )
    state = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), imported, state)
    metadata = metadata_of(state, experiment, step * experiment.train.batch_size)
    with Checkpoints(folder(workdir)) as saver:
        saver.save(step, items_of(state), metadata)
    stored.store(experiment, workdir)
    report = account(found, experiment) | {"source": source, "step": step}
    path = epath.Path(workdir) / "import.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    console.say(_summary(report, found))
    console.say(f"checkpoint of step {step} in {workdir}; each variable is in {path}")
    return step


def account(found: pix2seq.Found, experiment: Experiment) -> dict:
    """{"used": {key in the file: our parameter}, "unused": {key: shape}}."""
    ours = {
        f"{pix2seq.PREFIX}{theirs}": name
        for name, stack in pix2seq.reference_names(experiment.rin).items()
        for theirs in stack.ravel()
    }
    averages = {True: "average of ", False: ""}
    used = {key: averages[average] + ours[name] for (name, average), key in found.keys.items()}
    unused = {key: list(shape) for key, shape in found.others.items()}
    return {"used": dict(sorted(used.items())), "unused": dict(sorted(unused.items()))}


def _summary(report: dict, found: pix2seq.Found) -> str:
    used = [f"  {key} -> {name}" for key, name in report["used"].items()]
    unused = [f"  {key} {shape}" for key, shape in report["unused"].items()]
    lines = [f"{len(used)} variables used:", *used, f"{len(unused)} not used:", *unused]
    if not (found.params and found.average):
        there = "weights" if found.params else "running average"
        lines.append(f"the checkpoint has the {there} alone, which stands for both")
    return "\n".join(lines)
