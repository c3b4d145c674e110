"""The house's one-way imports: an edge that is not in this table fails."""

import ast
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "rin_jax"
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_ROOMS = 300, 100, 11
ONE_FILE_BY_DESIGN = {"interop.rin_torch"}  # an export has a copy of it, which needs PyTorch alone

# A room -> the rooms that it may import. `training` has two rows: what an experiment is made of
# lies below it, what uses an experiment above.
RECIPE = "training.ema", "training.optimizer", "training.settings"
ROOMS = {
    "network": set(),
    "diffusion": set(),
    "data": {"runtime"},
    "evaluation": set(),
    "runtime": set(),
    "checkpointing": {"runtime"},
    RECIPE: {"network"},
    "experiment": {"network", "diffusion", "data", "evaluation", "runtime", "checkpointing",
                   RECIPE},
    "configuration": {"experiment", "network", "diffusion", "runtime"},
    "sampling": {"configuration", "experiment", "network", "diffusion", "data", "evaluation",
                 "runtime", "checkpointing"},
    "training": {"sampling", "configuration", "experiment", "network", "diffusion", "data",
                 "evaluation", "runtime", "checkpointing", RECIPE},
    "interop": {"sampling", "configuration", "experiment", "network", "diffusion", "runtime"},
    "jobs": {"interop", "training", "sampling", "configuration", "experiment", "checkpointing",
             "network", "data", "evaluation", "runtime", RECIPE},
    "main": {"jobs", "configuration", "interop", "runtime", "training"},
    "__init__": {"interop"},
}  # fmt: skip

# what a room may not import from outside
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
    """(name, path) of every file of the package: "network.rin", "main", "__init__"."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:1] if len(parts) > 1 and parts[-1] == "__init__" else parts), path


def row(name: str):
    """The row of the table that a module, or a name in it, belongs to; None if there is none."""
    if any(name == file or name.startswith(f"{file}.") for file in RECIPE):
        return RECIPE
    room = name.split(".")[0]
    return room if room in ROOMS else None


def ours(names: set[str]) -> set[str]:
    """Of imported names those of files of the package, without "rin_jax."."""
    inside = {name.removeprefix("rin_jax.") for name in names if name.startswith("rin_jax.")}
    return {name for name in inside if (PACKAGE / name.split(".")[0]).is_dir()
            or (PACKAGE / f"{name.split('.')[0]}.py").exists()}  # fmt: skip


def violations(name: str, names: set[str]) -> list[str]:
    if row(name) is None:
        return [f"{name} is in no room of the table"]
    allowed = ROOMS[row(name)] | {row(name)}
    found = [f"{name} imports {n}" for n in sorted(ours(names)) if row(n) not in allowed]
    found += [
        f"{name} imports {n}, another job" for n in ours(names)
        if row(name) == row(n) == "jobs" and not n.startswith(name)
    ]  # fmt: skip
    foreign = FOREIGN.get(name.split(".")[0], set())
    return found + [f"{name} imports {n}" for n in names if n.split(".")[0] in foreign]


def test_every_import_is_in_the_table():
    found = [edge for name, path in modules() for edge in violations(name, imported(path))]
    assert not found, "\n".join(found)


def test_the_table_and_the_files_of_each_room_have_no_cycle():
    graphlib.TopologicalSorter(ROOMS).prepare()
    files = {name for name, _ in modules()}

    def file_of(name):
        return next((f for f in (name, name.rpartition(".")[0]) if f in files), None)

    graph = {name: {file_of(n) for n in ours(imported(path))} - {None, name}
             for name, path in modules()}  # fmt: skip
    graphlib.TopologicalSorter(graph).prepare()


def test_the_table_has_no_stale_rows():
    used = {(row(name), row(n)) for name, path in modules() for n in ours(imported(path))}
    stale = [(r, room) for r, rooms in ROOMS.items() for room in rooms if (r, room) not in used]
    assert not stale


def test_a_forbidden_edge_would_be_seen():
    assert violations("diffusion.process", {"rin_jax.network.rin.RIN"})
    assert violations("training.optimizer", {"rin_jax.experiment.Experiment"})
    assert violations("jobs.sample", {"rin_jax.jobs.train.train"})
    assert violations("network.layers", {"optax"})
    assert violations("somewhere", set())
    assert not violations("jobs.train", {"rin_jax.data.pipeline", "rin_jax.ConfigError", "jax"})


def test_rooms_and_files():
    files = [path.stem for name, path in modules() if path.name != "__init__.py"]
    assert sorted(set(files)) == sorted(files), "two files share a name"
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "main.py", "experiment.py"}
    assert len([p for p in PACKAGE.iterdir() if (p / "__init__.py").exists()]) <= MOST_ROOMS


def test_files_and_functions_stay_small():
    for name, path in modules():
        text = path.read_text()
        long = len(text.splitlines()) > MOST_LINES
        assert long == (name in ONE_FILE_BY_DESIGN), f"{name} is too long: split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno
                assert lines <= MOST_LINES_OF_A_FUNCTION, f"{name}.{node.name} is too long"
