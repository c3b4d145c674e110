"""The cells of the ablations differ in what they say, cost what they say, and are kept."""

import json
from xml.etree import ElementTree

import pytest

from benchmarks import ablations
from benchmarks.ablations import CELLS, Cell, Runs, Table, make_config
from tests.test_configs import flat

BASE = CELLS[0]
LATENTS = next(cell for cell in CELLS if cell.group.startswith("latents, equal"))
RECORD = {"figures": {"classifier/frechet": 12.5, "classifier/agreement": 0.75}}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_a_cell_differs_from_the_base_in_what_it_says(cell):
    configs = [make_config("digits_modern", one, 0, 1000, 10) for one in (BASE, cell)]
    base, changed = (flat(config.to_dict()) for config in configs)
    steps = {"train.num_steps", "train.sample_every_steps", "checkpoint.every_steps"}
    different = {name for name in base if base[name] != changed[name]}
    assert different - (steps if cell.equal_flops else set()) <= set(cell.changes)
    assert cell.changes.items() <= changed.items()
    if cell.equal_flops:
        kinds = zip(configs, (False, cell.plain), strict=True)
        base, changed = (ablations.flops(*kind) for kind in kinds)
        steps = [config.train.num_steps for config in configs]
        assert changed * steps[1] == pytest.approx(base * steps[0], abs=changed / 2)


def test_keys_are_unique():
    assert len({cell.key for cell in CELLS}) == len(CELLS)


def test_what_was_measured_is_kept(tmp_path):
    table = Table(tmp_path / "ablations.json")
    for seed, distance in enumerate((10.0, 13.0, 16.0)):
        figures = {"distance": distance, "agreement": 90.0, "steps": 1000, "flops": 4e7}
        table.add(CELLS[2], seed, figures)
    again = Table(tmp_path / "ablations.json")
    assert [again.has(CELLS[2], seed) for seed in range(4)] == [True, True, True, False]
    assert not again.has(CELLS[1], 0)
    (row,) = again.markdown().splitlines()[2:]
    assert row.endswith("| 1,000 | 0.040 | 13.00 (10.00 to 16.00) | 90.00 (90.00 to 90.00) |")


def test_a_cell_that_only_samples_takes_the_network_of_the_base(tmp_path, monkeypatch):
    """Its sampler, and the statistics of the real images, which are made once, are told."""
    runs, commands = Runs(tmp_path, "digits_modern", 1000, 10), []

    def run(self, program, stored, workdir, *flags):
        assert program == "rin_jax.main"
        commands.append((json.loads(stored.read_text()), workdir.name, flags))
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        if "--mode=reference" in flags:
            (workdir / "evaluation" / "classifier-1.npz").write_bytes(b"learned")
        elif flags:
            assert (workdir / "evaluation" / "classifier-1.npz").read_bytes() == b"learned"
            (workdir / "evaluation" / "new.json").write_text(json.dumps(RECORD))

    monkeypatch.setattr(Runs, "_run", run)
    runs.prepare()
    cell = Cell("latents at sampling", "reset", sampling={"latents": "reset"}, ema="power_0.1")
    found = runs.measure(cell, 1)
    (_, real, _), (trained, workdir, _), (sampled, same, measure) = commands
    assert (real, workdir, same) == ("real", "base__as_the_configuration-1", workdir)
    assert (trained["sampler"]["latents"], sampled["sampler"]["latents"]) == ("carry", "reset")
    assert trained["seed"] == 1
    assert measure == ("--mode=evaluate", "--ema=power_0.1")
    assert sampled["evaluation"]["reference"] == str(tmp_path / "real" / "evaluation" / "reference")
    assert (found["distance"], found["agreement"]) == (12.5, 75.0)
    assert runs.measure(cell, 1) == found  # the record of before does not count twice


def test_rows_that_are_trained_alike_are_measured_from_one_training(tmp_path, monkeypatch):
    runs, trained = Runs(tmp_path, "digits_modern", 1000, 10), []

    def run(self, program, stored, workdir, *flags):
        if not flags:
            trained.append(workdir.name)
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        (workdir / "evaluation" / "new.json").write_text(json.dumps(RECORD))

    monkeypatch.setattr(Runs, "_run", run)
    alike = [cell for cell in CELLS if cell.changes == {"model.norm_context": False}]
    assert [cell.ema for cell in alike] == ["decay_0.998", "power_0.05"]
    for cell in alike:
        runs.measure(cell, 0)
    assert len(trained) == 2
    assert len(set(trained)) == 1  # the second time the command finds it done
    assert alike[0].training is alike[1].training is alike[0]
    assert LATENTS.training is LATENTS  # as many steps as its FLOPs allow


def test_a_plain_transformer_is_trained_and_measured_by_its_own_program(tmp_path, monkeypatch):
    runs, programs = Runs(tmp_path, "digits_modern", 1000, 10), []

    def run(self, program, stored, workdir, *flags):
        programs.append(program)
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        (workdir / "evaluation" / "new.json").write_text(json.dumps(RECORD))

    monkeypatch.setattr(Runs, "_run", run)
    cell = next(cell for cell in CELLS if cell.plain)
    assert runs.measure(cell, 0)["distance"] == 12.5
    assert programs == ["benchmarks.plain_transformer"] * 2


def test_the_plot_has_a_point_for_each_network_that_is_compared(tmp_path):
    table = Table(tmp_path / "ablations.json")
    for cell, distances in ((BASE, (10.0, 20.0)), (LATENTS, (5.0,)), (CELLS[1], (99.0,))):
        for seed, distance in enumerate(distances):
            figures = {"distance": distance, "agreement": 90.0, "steps": 1000, "flops": 4e7}
            table.add(cell, seed, figures)
    root = ElementTree.fromstring(table.cost_plot())
    circles = [float(x.get("cy")) for x in root.findall(".//{*}circle")]
    paths = [x.get("d") for x in root.findall(".//{*}path")]
    grid = [float(path.split()[1].partition("H")[0]) for path in paths if "H" in path]
    base, latents = (max(grid) - y for y in circles)
    assert base / latents == pytest.approx(15 / 5, rel=0.01)
