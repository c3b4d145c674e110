"""Reads a compiled program's text: what its devices send each other and move to and from memory.

A loop's body counts as often as it runs. Bytes are those of one device in one run of the program,
arrays at their logical size. With g devices in a group, ring algorithms send

    all-gather           (g - 1) x the operand (a shard)
    all-reduce           2 (g - 1) / g x the operand
    reduce-scatter       (g - 1) / g x the operand (the whole)
    all-to-all           (g - 1) / g x the operand
    collective-permute   the operand

Between TPU slices a device hands an operand to its host, which takes part in the collective that
the instruction names, over the slices.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # other types carry theirs in the name
ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
# instructions that move nothing
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "while", "conditional", "call", "opt-barrier",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    arguments: str


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: one of KINDS.
      runs: how often it runs.
      sent: bytes that a device sends in one run.
      group: devices that take part together.
      crosses: whether a group has devices of more than one slice.
      source: the operation that it belongs to, in the words of the traced program.
    """

    kind: str
    runs: int
    sent: float
    group: int
    crosses: bool
    source: str

    @property
    def bytes(self) -> float:
        """Bytes that a device sends in one run of the program."""
        return self.runs * self.sent


class Program:
    """The parsed text of a compiled program over `num_devices`, `num_slices` of equal size."""

    def __init__(self, text: str, num_devices: int, num_slices: int = 1):
        self._devices, self._slices = num_devices, num_slices
        self._computations, self._entry = parse(text)
        self.unknown_loops: list[str] = []  # loops that count once, as their bound was not found

    def collectives(self) -> list[Collective]:
        """All collectives, the largest first; those that move nothing are left out."""
        found = {}
        for context, runs, name, instruction in self._visit(self._entry, 1, (), fused=True):
            kind = instruction.opcode.removesuffix("-start")
            between = re.search(r'megascale_transfer_type="(\w+)"', instruction.attributes)
            if kind not in KINDS and not (kind == "send" and between):
                continue
            # the parts of an asynchronous one share a channel
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = (context, kind, channel.group(1) if channel else (name, instruction.name))
            found.setdefault(key, self._collective(kind, runs, name, instruction))
        return sorted((c for c in found.values() if c.bytes), key=lambda c: -c.bytes)

    def memory_traffic(self) -> float:
        """Bytes read from and written to the device's main memory, each fusion as one pass."""
        total = 0.0
        for _, runs, name, instruction in self._visit(self._entry, 1, (), fused=False):
            if instruction.opcode not in FREE and not instruction.opcode.endswith("-done"):
                total += runs * self._traffic(self._computations[name], instruction)
        return total

    def _visit(
        self, name: str, runs: int, context: tuple, fused: bool
    ) -> Iterator[tuple[tuple, int, str, Instruction]]:
        """(loop context, runs, computation, instruction) of all that a computation runs."""
        for instruction in self._computations[name].values():
            yield context, runs, name, instruction
            for called, times in self._called(name, instruction, fused):
                inner = (*context, instruction.name) if instruction.opcode == "while" else context
                yield from self._visit(called, runs * times, inner, fused)

    def _called(self, name: str, instruction: Instruction, fused: bool) -> list[tuple[str, int]]:
        """Computations that an instruction runs, and how often."""
        attributes = instruction.attributes
        if instruction.opcode == "while":
            body = re.search(r"body=%([\w.\-]+)", attributes).group(1)
            return [(body, self._trips(name, instruction, body))]
        if instruction.opcode == "call":
            return [(re.search(r"to_apply=%([\w.\-]+)", attributes).group(1), 1)]
        if instruction.opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
            pairs = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", attributes)
            return [(n, 1) for n in (NAME.findall(listed.group(1)) if listed else pairs)]
        calls = re.search(r"calls=%([\w.\-]+)", attributes)
        inside = instruction.opcode == "async-start" or (fused and instruction.opcode == "fusion")
        return [(calls.group(1), 1)] if calls and inside else []

    def _trips(self, name: str, loop: Instruction, body: str) -> int:
        """How often a loop runs: as the compiler noted, or from its counter and bound."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes).group(1)
        counter = counted(self._computations, condition)
        if counter is None:
            self.unknown_loops.append(loop.name)
            return 1
        index, bound = counter
        start = tuple_constant(self._computations[name], loop.operands[0], index)
        return max(0, math.ceil((bound - (start or 0)) / step_of(self._computations[body], index)))

    def _collective(self, kind: str, runs: int, name: str, instruction: Instruction) -> Collective:
        computation = self._computations[name]
        size = sum(bytes_of(computation[o].type) for o in instruction.operands)
        groups = device_groups(instruction.attributes, self._devices)
        slices = groups // (self._devices // self._slices)
        group, crosses = groups.shape[1], bool((slices != slices[:, :1]).any())
        if kind == "send":
            named = re.search(r'megascale_transfer_type="(\w+)"', instruction.attributes).group(1)
            kind, group, crosses = named.lower().replace("_", "-"), self._slices, True
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a TPU fusion: all that follows is the device's own slice
        factor = {
            "all-gather": group - 1,
            "all-reduce": 2 * (group - 1) / group,
            "collective-permute": 1,
            "collective-broadcast": 1,
        }.get(kind, (group - 1) / group)
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        return Collective(
            kind=kind,
            runs=runs,
            sent=factor * size,
            group=group,
            crosses=crosses,
            source=source.group(1) if source else "",
        )

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        types = [computation[o].type for o in instruction.operands if o in computation]
        if instruction.opcode.endswith("-start"):  # its type lists source, target and a context
            if instruction.opcode.removesuffix("-start") in KINDS:
                return main_memory(instruction.type)
            ends = [end for end in arrays(instruction.type) if end[0] > 8]
            return min((size for size, _ in ends), default=0.0) * sum(
                "S(" not in layout for _, layout in ends
            )
        if instruction.opcode == "dynamic-slice":
            return 2 * main_memory(instruction.type)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * main_memory(types[1])
        result = main_memory(instruction.type)
        called = re.search(r"calls=%([\w.\-]+)", instruction.attributes)
        if instruction.opcode != "fusion" or not called:
            return result + sum(map(main_memory, types))
        inside = self._computations[called.group(1)]
        parameters = {int(i.arguments): i for i in inside.values() if i.opcode == "parameter"}
        read = 0.0
        for position, type_ in enumerate(types):
            if main_memory(type_):
                part, in_place = sliced(inside, parameters[position])
                read += bytes_of(type_) if part is None else part
                result -= in_place
        return read + max(result, 0.0)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the entry's name) of a program's text."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if header:
                current = computations.setdefault(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = parse_line(line)
            if instruction:
                current[instruction.name] = instruction
    return computations, entry


def parse_line(line: str) -> Instruction | None:
    """An instruction, or None for a line that is none."""
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = balanced(rest) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = balanced("(" + rest) - 2
    arguments, attributes = rest[:end], rest[end + 1 :]
    operands = tuple(NAME.findall(arguments))
    return Instruction(
        match.group(2), type_, opcode, operands, attributes, bool(match.group(1)), arguments
    )


def balanced(text: str) -> int:
    """The position after the parenthesis that closes the one at the start."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position + 1
    raise ValueError(f"no closing parenthesis: {text[:80]}")


@functools.cache
def bytes_of(type_: str) -> float:
    """Bytes of an array or of all arrays of a tuple."""
    return sum(size for size, _ in arrays(type_))


@functools.cache
def main_memory(type_: str) -> float:
    """Bytes of the arrays that lie in main memory (S(n) in a layout is another memory)."""
    return sum(size for size, layout in arrays(type_) if "S(" not in layout)


def arrays(type_: str) -> list[tuple[float, str]]:
    """(bytes, layout) of each array of a type."""
    found = []
    for kind, shape, layout in ARRAY.findall(type_):
        digits = re.match(r"[a-z]+(\d+)", kind)
        bits = BITS.get(kind, int(digits.group(1)) if digits else 0)
        sizes = (int(size.strip("<=")) for size in shape.split(",") if size)
        found.append((math.prod(sizes) * bits / 8, layout))
    return found


def constant(computation: Computation, name: str) -> int | None:
    """The value of an integer constant, seen through copies; None if it is none."""
    instruction = computation.get(name)
    while instruction and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    value = instruction.arguments
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def tuple_constant(computation: Computation, name: str, index: int) -> int | None:
    """The constant at a position of a tuple, or None."""
    made = computation.get(name)
    if made is None or made.opcode != "tuple":
        return None
    return constant(computation, made.operands[index])


def counted(computations: dict[str, Computation], condition: str) -> tuple[int, int] | None:
    """(position of the counter in the loop's tuple, bound) of a condition `counter < bound`."""
    computation = computations[condition]
    root = next(i for i in computation.values() if i.is_root)
    operands, direction = list(root.operands), re.search(r"direction=(\w+)", root.attributes)
    called = re.search(r"calls=%([\w.\-]+)", root.attributes)
    if root.opcode == "fusion" and called:
        inside = computations[called.group(1)]
        compare = next(i for i in inside.values() if i.is_root)
        if compare.opcode != "compare":
            return None
        direction = re.search(r"direction=(\w+)", compare.attributes)
        positions = [int(inside[o].arguments) for o in compare.operands
                     if inside[o].opcode == "parameter"]  # fmt: skip
        if len(positions) != 2:
            return None
        operands = [operands[position] for position in positions]
    elif root.opcode != "compare":
        return None
    counter, bound = computation.get(operands[0]), constant(computation, operands[1])
    if direction is None or direction.group(1) not in ("LT", "LE") or bound is None:
        return None
    if counter is None or counter.opcode != "get-tuple-element":
        return None
    index = int(re.search(r"index=(\d+)", counter.attributes).group(1))
    return index, bound + (direction.group(1) == "LE")


def step_of(body: Computation, index: int) -> int:
    """What a loop's body adds to its counter; 1 where that is not seen."""
    root = next(i for i in body.values() if i.is_root)
    if root.opcode != "tuple" or index >= len(root.operands):
        return 1
    add = body.get(root.operands[index])
    if add is None or add.opcode != "add":
        return 1
    steps = [value for o in add.operands if (value := constant(body, o)) is not None]
    return steps[0] if steps and steps[0] > 0 else 1


def sliced(inside: Computation, parameter: Instruction) -> tuple[float | None, float]:
    """What a fusion reads of an operand of which it takes slices, or writes in place.

    Returns (bytes read, or None for all of it; bytes of the result that are not written).
    """
    users = collections.deque(i for i in inside.values() if parameter.name in i.operands)
    read, in_place = 0.0, 0.0
    while users:
        user = users.popleft()
        if user.opcode == "bitcast":
            users.extend(i for i in inside.values() if user.name in i.operands)
        elif user.opcode == "dynamic-slice":
            read += bytes_of(user.type)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            update = bytes_of(inside[user.operands[1]].type)
            in_place += bytes_of(user.type) - update
        else:
            return None, 0.0
    return read, in_place


def device_groups(attributes: str, num_devices: int) -> np.ndarray:
    """The groups of devices that communicate, as rows."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", attributes)
    if listed:
        return np.array(
            [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed.group(1))]
        )
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, sizes, order = (list(map(int, (g or "").split(","))) if g else None
                               for g in iota.groups())  # fmt: skip
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        return (ids.transpose(order) if order else ids).reshape(shape)
    mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
    if mesh:
        return mesh_groups(*mesh.groups())
    return np.arange(num_devices)[None]


def mesh_groups(axes: str, over: str) -> np.ndarray:
    """Groups over the axes `over` of a mesh: "'data'=2,'fsdp'=8" and "'fsdp'" or "'fsdp':(2)4"."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    part_of = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)
    chosen = {
        name: (int(before or 1), int(size) if size else None) for name, before, size in part_of
    }
    dims, inner = [], []
    for name, size in sizes.items():
        before, part = chosen.get(name, (1, 1))
        part = size if part is None else part
        inner += [len(dims) + 1] if name in chosen else []
        dims += [before, part, size // before // part]
    ids = np.arange(math.prod(dims)).reshape(dims)
    outer = [axis for axis in range(len(dims)) if axis not in inner]
    return ids.transpose(outer + inner).reshape(-1, math.prod(dims[axis] for axis in inner))
