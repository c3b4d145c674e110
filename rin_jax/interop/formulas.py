"""gamma(t) of a schedule as text: Python for the model card and the PyTorch file, JavaScript.

The formulas are those of diffusion/schedules.py; nothing here knows a schedule by name.
"""

import ast
import json
import pathlib
from typing import Any

from rin_jax import ConfigError
from rin_jax.diffusion.schedules import FOREIGN_BETWEEN, SCHEDULES

TORCH_FILE = pathlib.Path(__file__).with_name("rin_torch.py")
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
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
    values = _defaults(name) | parameters
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


def javascript(name: str, **parameters: Any) -> str:
    """`gammaOf(t)` of one schedule in JavaScript, translated from the formula in Python."""
    values = {"t": None} | _defaults(name) | parameters
    arguments = ", ".join(
        key if value is None else f"{key} = {json.dumps(value)}" for key, value in values.items()
    )
    (between,) = ast.parse(FOREIGN_BETWEEN).body
    formula = ast.parse(SCHEDULES[name].formula, mode="eval").body
    return (
        "const { cos, exp, log, max, min, PI: pi } = Math;\n"
        f"const between = ({', '.join(arg.arg for arg in between.args.args)}) =>\n"
        f"  {_translated(between.body[0].value)};\n"
        f"const gammaOf = ({arguments}) => {_translated(formula)};\n"
    )


def _defaults(name: str) -> dict[str, Any]:
    """The parameters of a schedule that its signature gives a value."""
    parameters = SCHEDULES[name].parameters.items()
    return {key: p.default for key, p in parameters if p.default is not p.empty}


def _translated(node: ast.expr) -> str:
    """An expression of a formula in JavaScript; TypeError at what no formula has yet."""
    match node:
        case ast.Name(name):
            return name
        case ast.Constant(value):
            return json.dumps(value)
        case ast.BinOp(left, operator, right):
            return f"({_translated(left)} {OPERATORS[type(operator)]} {_translated(right)})"
        case ast.UnaryOp(ast.USub(), operand):
            return f"(-{_translated(operand)})"
        case ast.IfExp(test, body, orelse):
            return f"({_translated(test)} ? {_translated(body)} : {_translated(orelse)})"
        case ast.Lambda(arguments, body):
            names = ", ".join(argument.arg for argument in arguments.args)
            return f"(({names}) => {_translated(body)})"
        case ast.Tuple(elements):
            return f"[{', '.join(map(_translated, elements))}]"
        case ast.Starred(value):
            return f"...{_translated(value)}"
        case ast.Call(function, arguments):
            return f"{_translated(function)}({', '.join(map(_translated, arguments))})"
    raise TypeError(f"no JavaScript for {ast.unparse(node)}")
