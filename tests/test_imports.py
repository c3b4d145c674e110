"""The house's one-way imports: an edge that is not in this table fails."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "rin_jax"

# module or folder -> what it may import from rin_jax (folders cover what is below them)
ALLOWED = {
    "network.layers": set(),
    "network.tokenizer": {"network.layers"},
    "network.checks": set(),
    "network.rin": {"network.checks", "network.layers", "network.tokenizer"},
    "network.cost": {"network.rin"},
    "diffusion.schedules": set(),
    "diffusion.process": {"diffusion.schedules"},
    "diffusion.objective": {"diffusion.process", "diffusion.schedules"},
    "diffusion.guidance": set(),
    "diffusion.samplers": {"diffusion.schedules", "diffusion.process", "diffusion.guidance"},
    "data": {"data"},
    "evaluation": {"evaluation"},
    "interop": {"network"},
    "sharding": set(),
    "optimizer": set(),
    "reports": set(),
    "ema": set(),
    "digests": set(),
    "lease": set(),
    "hub": set(),
    "meeting": {"hub"},
    "processes": {"hub", "meeting"},
    "preemption": {"hub", "processes"},
    "chips": set(),
    "hlo": set(),
    "state": {"sharding"},
    "checkpoints": {"digests", "processes", "state"},
    "experiment": {"network", "diffusion", "data", "ema", "optimizer", "sharding"},
    "restore": {"checkpoints", "experiment", "reports", "sharding", "state"},
    "sample": {
        "network", "diffusion", "experiment", "sharding", "state", "reports", "restore",
    },
    "train_step": {
        "network", "diffusion", "ema", "experiment", "optimizer", "sharding", "state",
    },
    "window": {"reports"},
    "loop": {
        "network", "chips", "checkpoints", "experiment", "preemption", "processes", "reports",
        "sample", "sharding", "state", "window",
    },
    "train": {
        "network", "data", "chips", "checkpoints", "digests", "experiment", "lease", "loop",
        "preemption", "processes", "reports", "restore", "sharding", "state", "train_step",
        "window",
    },
    "reconstruct": {"checkpoints", "ema", "experiment", "reports", "state"},
    "plan": {
        "network", "chips", "experiment", "hlo", "reports", "sample", "sharding", "state",
        "train_step",
    },
    "evaluate": {"data", "evaluation", "experiment", "reports", "restore", "sample"},
    "prepare": {"data", "experiment", "reports", "train_step"},
    "main": {
        "experiment", "plan", "preemption", "processes", "train", "sample", "evaluate", "prepare",
        "reconstruct",
    },
}  # fmt: skip

# what a tower may not import from outside
FOREIGN = {"diffusion": {"flax", "optax"}, "network": {"optax"}, "data": {"jax", "flax"}}


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix("__init__").rstrip("."), path


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def violations(name: str, names: set[str]) -> list[str]:
    rule = next((rule for rule in ALLOWED if within(name, {rule})), None)
    allowed = ALLOWED.get(rule, set())
    if rule is None and name not in ("", *{module.split(".")[0] for module in ALLOWED}):
        return [f"{name} is not in the table"]
    own = sorted(n.removeprefix("rin_jax.") for n in names if n.startswith("rin_jax"))
    wrong = [f"{name} imports {n}" for n in own if not within(n, allowed | {name})]
    foreign = FOREIGN.get(name.split(".")[0], set())
    return wrong + [f"{name} imports {n}" for n in names if n.split(".")[0] in foreign]


def test_every_import_runs_downwards():
    found = [edge for name, path in modules() for edge in violations(name, imported(path))]
    assert not found, "\n".join(found)


def test_the_table_has_no_stale_rows():
    names = [name for name, _ in modules()]
    assert [rule for rule in ALLOWED if not any(within(name, {rule}) for name in names)] == []


def test_a_forbidden_edge_would_be_seen():
    assert violations("diffusion.process", {"rin_jax.network.rin.RIN"})
    assert violations("network.layers", {"optax"})
    assert violations("somewhere", set())
    assert not violations("train", {"rin_jax.data.pipeline", "jax"})


def test_files_and_functions_stay_small():
    for name, path in modules():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, f"{name} is too long: split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 100, f"{name}.{node.name} is too long"
