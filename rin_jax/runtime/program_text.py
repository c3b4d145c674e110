"""The text of a compiled XLA program as computations of instructions, and what single lines say.

Owns the syntax: types and their bytes, groups of devices, the counter of a loop. What a whole
program sends and moves is counted in `compiled_programs.py`.
"""

import dataclasses
import functools
import math
import re

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0}  # other types carry theirs in the name
ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(arguments), attributes`; operands: names in the arguments."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(NAME.findall(self.arguments))

    @property
    def op_name(self) -> str:
        """Where in the traced code it comes from, "jit(f)/while/add"; "" if that is unknown."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def attribute(self, name: str) -> str | None:
        """The word of `name=word`, without the % of a computation's name or quotes."""
        found = re.search(rf'\b{name}="?%?([\w.\-]+)', self.attributes)
        return found and found.group(1)


Computation = dict[str, Instruction]


def number(instruction: Instruction, name: str) -> int:
    """What a `"name":"number"` in the attributes says; 0 without one."""
    found = re.search(rf'"{name}":"(\d+)"', instruction.attributes)
    return int(found.group(1)) if found else 0


def branches(conditional: Instruction) -> list[str]:
    """The computations that a conditional chooses from."""
    if listed := re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes):
        return NAME.findall(listed.group(1))
    return [conditional.attribute(f"{which}_computation") for which in ("true", "false")]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the entry's name) of a program's text."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = computations.setdefault(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
        elif re.match(r"\}(, execution_thread=.*)?$", line):
            current = None
        else:  # the metadata of a Mosaic kernel has line ends: its other lines are no instructions
            if instruction := parse_line(line):
                current[instruction.name] = instruction
    return computations, entry


def parse_line(line: str) -> Instruction | None:
    """An instruction, or None for a line that is not one."""
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = balanced(rest) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = balanced("(" + rest) - 2
    root, name = match.groups()
    return Instruction(name, type_, opcode, rest[:end], rest[end + 1 :], is_root=bool(root))


def balanced(text: str) -> int:
    """The position after the parenthesis that closes the one at the start."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position + 1
    raise ValueError(f"no closing parenthesis: {text[:80]}")


@functools.cache
def arrays(type_: str) -> tuple[tuple[float, str], ...]:
    """(bytes, layout) of each array of a type."""
    found = []
    for kind, shape, layout in ARRAY.findall(type_):
        digits = re.match(r"[a-z]+(\d+)", kind)
        bits = BITS.get(kind, int(digits.group(1)) if digits else 0)
        sizes = (int(size.strip("<=")) for size in shape.split(",") if size)
        found.append((math.prod(sizes) * bits / 8, layout))
    return tuple(found)


def bytes_of(type_: str) -> float:
    """Bytes of an array or of all arrays of a tuple."""
    return sum(size for size, _ in arrays(type_))


def main_memory(type_: str) -> float:
    """Bytes of the arrays that lie in main memory (S(n) in a layout is another memory)."""
    return sum(size for size, layout in arrays(type_) if "S(" not in layout)


def root_of(computation: Computation) -> Instruction | None:
    """The instruction whose value a computation returns; None if its text has none."""
    return next((i for i in computation.values() if i.is_root), None)


def results_of(computation: Computation) -> set[str]:
    """Names of what a computation returns: its root, or what is in that tuple, before bitcasts."""
    root, found = root_of(computation), set()
    names = [root.name] if root else []
    while names:
        instruction = computation[names.pop()]
        found.add(instruction.name)
        if instruction.opcode in ("tuple", "bitcast"):
            names.extend(instruction.operands)
    return found


def constant(computation: Computation, name: str) -> int | None:
    """The value of an integer constant, seen through copies; None if it is not one."""
    instruction = computation.get(name)
    while instruction and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    value = instruction.arguments
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def trip_count(computations: dict[str, Computation], caller: str, loop: Instruction) -> int | None:
    """How often a `while` in the computation `caller` runs; None if its text does not tell.

    It tells by the compiler's note, or by a counter that is compared with a constant.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known.group(1))
    counter = counter_of(computations, loop.attribute("condition"))
    if counter is None:
        return None
    index, bound = counter
    made, start = computations[caller].get(loop.operands[0]), 0
    if made is not None and made.opcode == "tuple":
        start = constant(computations[caller], made.operands[index]) or 0
    step = step_of(computations[loop.attribute("body")], index)
    return max(0, math.ceil((bound - start) / step))


def counter_of(computations: dict[str, Computation], condition: str) -> tuple[int, int] | None:
    """(position of the counter in the loop's tuple, bound) of a condition `counter < bound`."""
    computation = computations[condition]
    root = root_of(computation)
    if root is None:
        return None
    compare, operands = root, root.operands
    if root.opcode == "fusion":
        inside = computations[root.attribute("calls")]
        compare = root_of(inside)
        if compare is None or compare.opcode != "compare":
            return None
        positions = [inside[o].arguments for o in compare.operands
                     if inside[o].opcode == "parameter"]  # fmt: skip
        if len(positions) != 2:
            return None
        operands = tuple(root.operands[int(position)] for position in positions)
    if compare.opcode != "compare" or compare.attribute("direction") not in ("LT", "LE"):
        return None
    counter, bound = computation.get(operands[0]), constant(computation, operands[1])
    if bound is None or counter is None or counter.opcode != "get-tuple-element":
        return None
    return int(counter.attribute("index")), bound + (compare.attribute("direction") == "LE")


def step_of(body: Computation, index: int) -> int:
    """What a loop's body adds to its counter; 1 where that is not seen."""
    root = root_of(body)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
        return 1
    add = body.get(root.operands[index])
    if add is None or add.opcode != "add":
        return 1
    steps = [value for o in add.operands if (value := constant(body, o)) is not None]
    return steps[0] if steps and steps[0] > 0 else 1


def device_groups(attributes: str, num_devices: int) -> np.ndarray:
    """The groups of devices that communicate, as rows."""

    def numbers(text: str) -> list[int]:
        return list(map(int, text.split(",")))

    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", attributes):
        return np.array([numbers(g) for g in re.findall(r"\{([\d,]+)\}", listed.group(1))])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, sizes, order = (g and numbers(g) for g in iota.groups())
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        return mesh_groups(*mesh.groups())
    return np.arange(num_devices)[None]


def mesh_groups(axes: str, over: str) -> np.ndarray:
    """Groups over the axes `over` of a mesh: "'data'=2,'fsdp'=8" and "'fsdp'" or "'fsdp':(2)4"."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    part_of = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)
    chosen = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in part_of}
    dims, inner = [], []
    for name, size in sizes.items():
        before, part = chosen.get(name, (1, 1))
        inner += [len(dims) + 1] if name in chosen else []
        dims += [before, part, size // before // part]
    ids = np.arange(math.prod(dims)).reshape(dims)
    outer = [axis for axis in range(len(dims)) if axis not in inner]
    return ids.transpose(outer + inner).reshape(-1, math.prod(dims[axis] for axis in inner))
