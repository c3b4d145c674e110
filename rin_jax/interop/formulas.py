"""gamma(t) of a schedule as Python text: for the model card, and for the PyTorch file.

The formulas are those of diffusion/schedules.py; nothing here knows a schedule by name.
"""

import pathlib
from typing import Any

from rin_jax import ConfigError
from rin_jax.diffusion.schedules import FOREIGN_BETWEEN, SCHEDULES

TORCH_FILE = pathlib.Path(__file__).with_name("rin_torch.py")
EMPTY_TABLE = "SCHEDULES: dict = {}  # the export writes the formulas here\n"


def check(name: str) -> None:
    """Raises ConfigError if other runtimes cannot be told the sampler's schedule."""
    if SCHEDULES[name].formula is None:
        known = ", ".join(name for name, family in SCHEDULES.items() if family.formula)
        raise ConfigError(
            f"sampler.schedule is {name!r}, which has no formula for programs without JAX, so it "
            "cannot be exported; give it one in rin_jax/diffusion/schedules.py, or choose one of "
            f"{known}."
        )


def function(name: str, **parameters: Any) -> str:
    """`gamma_of(t)` of one schedule for NumPy, its parameters the defaults of the arguments."""
    family = SCHEDULES[name]
    values = {key: declared.default for key, declared in family.parameters.items()} | parameters
    arguments = ", ".join(["t", *(f"{key}={value!r}" for key, value in values.items())])
    text = f"def gamma_of({arguments}):\n    return np.float32({family.formula})\n"
    return f"{FOREIGN_BETWEEN}\n\n{text}" if "between(" in family.formula else text


def torch_file() -> str:
    """rin_torch.py with the formulas of all schedules in its table."""
    rows = ""
    for name, family in SCHEDULES.items():
        if family.formula:
            parameters = (str(p.replace(annotation=p.empty)) for p in family.parameters.values())
            arguments = ", ".join(["t", *parameters])
            rows += f'    "{name}": lambda {arguments}: (\n        {family.formula}\n    ),\n'
    table = f"{FOREIGN_BETWEEN}\n\nSCHEDULES: dict = {{\n{rows}}}\n"
    before, after = TORCH_FILE.read_text().split(EMPTY_TABLE)
    return f"{before}{table}{after}"
