"""Mistakes on the command line and in a configuration: each is named and costs nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rin_jax import ConfigError, main
from rin_jax.configuration import command as command_line
from rin_jax.configuration import words
from rin_jax.configuration.fields import all_fields
from rin_jax.experiment import check_devices, device_mesh, make_experiment
from rin_jax.runtime import sharding
from tests import tiny, xla

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments: str, workdir) -> subprocess.CompletedProcess:
    """python -m rin_jax.main on one device."""
    return subprocess.run(
        [sys.executable, "-m", "rin_jax.main", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla.FAST},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--confg=digits"], "--config=FILE is missing, .*; --confg is not a flag"),
        (["--config=configs/digits.py", "--steps=100", "--mode=sample"],
         "--steps is not a flag; here it is --config.sampler.num_steps=STEPS."),
        (["--config=configs/digts.py"],
         "there is no file configs/digts.py; did you mean configs/digits.py?"),
        (["--config=digts"], "there is no file digts; did you mean digits?"),
        (["--config=configs/digts.py", "--config.seed=1"], "did you mean configs/digits.py?"),
        (["--config=configs/digits.py", "--config.model.dpeth=2"],
         "--config.model.dpeth: the configuration has no field 'dpeth'; did you mean depth?"),
        (["--config=configs/digits.py", "--config.modl.depth=2"],
         "--config.modl.depth: the configuration has no field 'modl'; did you mean model?"),
        (["--config=configs/digits.py", "--config.data.clip.frames=3"],
         "--config.data.clip is not set; set it whole"),
        (["--config=configs/digits.py", "--config.diffusion.schedule=cosine",
          "--config.diffusion.schedule.tau=0.5"], "--config.diffusion.schedule given by a name has "
         "no field 'tau'; set it whole"),
        (["--config=configs/digits.py", "--config.model.depth=two"],
         "--config.model.depth=two: it must be a whole number."),
        (["--config=configs/digits.py:small"], "no variant 'small'; choose 'tiny' or none"),
        (["--config=configs/digits.py", "--mode=trian"], "import_pix2seq; did you mean train?"),
        (["--config=configs/digits.py", "--num=many"], "--num=many"),
        (["--config=configs/digits.py", "--onnxx"], "'onnxx'. Did you mean: onnx"),
        (["--config=configs/digits.py", "sample"], "'sample' is not a flag"),
        (["--config=configs/digits.py", "--config.model.patch_size=3"], "model.patch_size 3 does "
         "not divide the image size 8 x 8"),
        (["--config=configs/digits.py", "--config.data.name=digts"], "nearest names: digits"),
        (["--config=configs/digits.py", "--config.mesh.fsdp=3"], "mesh.fsdp 3"),
        (["--config=configs/digits.py", "--mode=export"], "--mode=export needs --to=DIR"),
        (["--config=configs/digits.py", "--page"], "--page is for --mode=export; the mode is"),
        (["--config=configs/digits.py", "--mode=import_pix2seq"],
         "--mode=import_pix2seq needs --source=DIR"),
        (["--config=configs/digits.py", "--config.sampler.schedule=eddm"],
         "no schedule 'eddm'; choose one of offset_cosine"),
        (["--config=configs/digits.py", "--config.sampler.schedule=[3]"], "it must be a name, as"),
        (["--config=tests"], "--config is tests, but there is no tests/config.json"),
        (["--config=configs/digits.py", "--onnx"], "--onnx is for --mode=export"),
        (["--config=configs/digits.py", "--mode=sample", "--workdir=a", "--rollout_latents=carry"],
         "--rollout_latents is of the windows of --rollout=NUM; give both."),
        (["--config=configs/digits.py", "--config.train.init_from=s3://bucket/run"],
         "train.init_from is s3://bucket/run"),
        (["--config=configs/digits.py", "--export=a"], "--export is for --mode=sample"),
        (["--config=configs/digits.py", "--mode=sample", "--export=a", "--checkpoint=3"],
         "--checkpoint is of a run, but --export=a has one average of one step"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(tmp_path, arguments, words):
    """One sentence, and the exit code after which no launcher tries again."""
    result = command(*arguments, workdir=tmp_path / "run")
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"error: .*\n", result.stderr), result.stderr
    assert re.search(words if ".*" in words else re.escape(words), result.stderr)
    assert not (tmp_path / "run").exists()


def test_a_mistake_inside_a_configuration_file(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(arg=''):\n    return unknown\n")
    result = command(f"--config={tmp_path / 'broken.py'}", workdir=tmp_path / "run")
    assert result.returncode == 2
    words = f"error: {tmp_path / 'broken.py'} cannot be used: NameError: name 'unknown'"
    assert result.stderr.startswith(words)


def test_the_name_of_an_experiment_may_follow_a_space():
    path = str(main.CONFIGS / "digits.py")
    for given in (
        ["--config=digits:tiny"], ["--config", "digits:tiny"], ["-config=digits:tiny"],
    ):
        (found,) = map(main.packaged, command_line.joined(given))
        assert found == f"--config={path}:tiny"


def test_every_word_is_one_of_a_flag_or_a_field():
    """What --help says of other tools' words names flags and fields that are there."""
    known = {f"config.{name}" for name in all_fields()} | {"config", "mode"}
    known |= {flag.name for flags in main.READS.values() for flag in flags}
    for mode, known_there in words.WORDS.items():
        for ours in known_there.values():
            for name in re.findall(r"--([\w.]+)", ours):
                assert name in known, (mode, ours)
    assert words.here("batch-gpu", "train").startswith("--config.train.accumulation_steps")
    assert words.here("batch", "sample").startswith("--config.sampler.images_per_device")
    assert words.here("batch", "export").startswith("--config.train.batch_size")
    assert words.here("depth", "train") is None


def test_help_is_no_mistake(tmp_path):
    result = command("--help", workdir=tmp_path / "run")
    assert result.returncode == 0
    assert "--mode:" in result.stdout
    words = result.stdout.partition("Words of EDM2 and of diffusers")[2]
    sample = words.partition("--mode=sample")[2].partition("--mode=evaluate")[0]
    for word in ("seeds", "num_inference_steps", "guidance_scale", "class_labels", "strength"):
        assert word in sample


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__patch_size": 3}, r"model.patch_size 3 does not divide the image size 8 x 8"),
        ({"model__num_heads": 3}, r"model.num_heads 3 does not divide latent_dim 16"),
        ({"model__routing_heads": 3}, r"model.routing_heads 3 does not divide .* 8"),
        ({"model__num_latents": 2**31}, r"num_latents is 2147483648; it must be between"),
        ({"model__num_latents": 2}, r"model.num_latents is 2, but 2 of the latents"),
        ({"data__num_classes": 2**31}, r"num_classes is 2147483648; labels are int32"),
        ({"model__dtype": "float16"}, r"model.dtype is 'float16'; choose one of float32"),
        ({"train__accumulation_steps": 3}, r"train.batch_size 16 is not divisible by .* 3"),
        ({"train__batch_size": 0}, r"train.batch_size is 0"),
        ({"diffusion__prediction_type": "epsilon"}, r"prediction_type is 'epsilon'; choose"),
        ({"diffusion__self_cond_rate": 1.5}, r"diffusion.self_cond_rate is 1.5"),
        ({"diffusion__schedule": {"name": "sigmod"}}, r"diffusion.schedule: .*Did you mean"),
        ({"diffusion__schedule": {"name": "sigmoid", "tau": 1.0}}, r"diffusion.schedule: .*start"),
        ({"sampler__name": "ddpm"}, r"sampler.name is 'ddpm'; choose one of ddim"),
        ({"sampler__name": "heun", "sampler__eta": 1.0}, r"sampler.eta is 1.0, .* 'heun'"),
        ({"sampler__images_per_device": 0}, r"sampler.images_per_device is 0"),
        ({"sampler__guidance_interval": (0.5, 0.2)}, r"sampler.guidance_interval is \(0.5, 0.2\)"),
        ({"sampler__guide": "a"}, r"sampler.guide is 'a', but sampler.guidance_scale is 0"),
        ({"sampler__guide_checkpoint": 3}, r"guide_checkpoint is 3, but sampler.guide is not set"),
        ({"sampler__num_steps": 0}, r"sampler.num_steps is 0"),
        ({"sampler__guidance_scale": -1.0}, r"sampler.guidance_scale is -1.0"),
        ({"data__num_classes": 0, "sampler__guidance_scale": 1.0}, r"has no classes"),
        ({"diffusion__cond_dropout": 0.0, "sampler__guidance_scale": 1.0}, r"cond_dropout is 0"),
        ({"optimizer__name": "adam"}, r"optimizer.name is 'adam'; choose one of lamb, adamw"),
        ({"optimizer__learning_rate": -1.0}, r"optimizer.learning_rate is -1.0; it must be pos"),
        ({"optimizer__b2": 1.0}, r"optimizer.b2 is 1.0; it must be in \[0, 1\)"),
        ({"optimizer__warmup_steps": -1}, r"optimizer.warmup_steps is -1; it must not be neg"),
        ({"train__num_steps": -5}, r"train.num_steps is -5; it must be at least 1"),
        ({"seed": -1}, r"seed is -1; it must be in 0\.\."),
        ({"optimizer__warmup_steps": 6}, r"optimizer.warmup_steps 6 .* train.num_steps 6"),
        ({"train__bach_size": 8}, r"unknown field train.bach_size; did you mean train.batch_size"),
        ({"mesh__pipeline": 2}, r"unknown field mesh.pipeline"),
        ({"optimizer__decay": {"name": "cosine", "rat": 1.0}}, r"optimizer.decay: 'cosine'.*rat"),
        ({"model__dpeth": 2}, r"unknown field model.dpeth; did you mean model.depth"),
        ({"data__num_classes": None, "data__name": "digist"}, r"data.name.*digits"),
        ({"data__num_classes": 5, "data__channels": None}, r"data.num_classes is 5, but 'digits'"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_configuration(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_experiment(tiny.config(**changes))


@pytest.mark.parametrize(
    ("section", "field"),
    [("model", "num_latents"), ("ema", "decays"), ("sampler", "guidance_scale"),
     ("sampler", "schedule"), ("diffusion", "schedule"), ("diffusion", "input_scale")],
)  # fmt: skip
def test_a_missing_field_is_named(section, field):
    config = tiny.config()
    del config[section][field]
    with pytest.raises(ConfigError, match=rf"section {section}: .*{field}"):
        make_experiment(config)


def test_a_batch_that_does_not_split_over_the_devices():
    experiment = make_experiment(tiny.config(train__accumulation_steps=4))
    check_devices(experiment, sharding.make_mesh(2, 2, 2))  # tensor does not split the batch
    with pytest.raises(ConfigError, match=r"16 / train.accumulation_steps 4 = 4 .* divisible by 8"):
        check_devices(experiment, sharding.make_mesh(2, 4, 1))


def test_a_mesh_that_does_not_fit():
    for sizes in ((3, 1, 1), (-1, -1, 1), (-1, 3, 1), (4, 0, -1), (-2, -4, 1), (16, 1, 1)):
        data, fsdp, tensor = sizes
        words = rf"mesh.data {data} x mesh.fsdp {fsdp} x mesh.tensor {tensor} does not cover 8"
        with pytest.raises(ValueError, match=words):
            sharding.make_mesh(*sizes)
    for sizes, shape in (
        ((-1, 4, 1), (2, 4, 1)), ((2, -1, 2), (2, 2, 2)), ((2, 1, -1), (2, 1, 4)),
    ):  # fmt: skip
        assert sharding.make_mesh(*sizes).devices.shape == shape


def test_tensor_parallelism_that_does_not_split_the_heads():
    experiment = make_experiment(tiny.config(mesh={"data": 2, "fsdp": 1, "tensor": 4}))
    with pytest.raises(ConfigError, match=r"mesh.tensor 4 does not divide model.num_heads 2"):
        device_mesh(experiment)


def test_unset_data_fields_follow_the_data_set():
    unset = {"data__image_size": None, "data__channels": None, "data__num_classes": None}
    data = make_experiment(tiny.config(**unset)).config.data
    assert (data.image_size, data.channels, data.num_classes) == (8, 1, 10)
    data = make_experiment(tiny.config(**unset, data__name="fashion_mnist")).config.data
    assert (data.image_size, data.channels, data.num_classes) == (28, 1, 10)
    with pytest.raises(ConfigError, match="set --config.data.image_size"):
        make_experiment(tiny.config(**unset, data__name="imagenet2012"))
