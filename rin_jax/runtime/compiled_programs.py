"""What the devices of a compiled program send each other and move to and from their memory.

A loop's body counts as often as it runs, each branch of a conditional once. Bytes are those of one
device in one run of the program, arrays at their logical size. With g devices in a group, ring
algorithms send

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
from collections.abc import Iterator

import numpy as np

from rin_jax.runtime import matrix_products, program_text
from rin_jax.runtime.program_text import Computation, Instruction, bytes_of, main_memory, trip_count

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# instructions that move nothing
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "while", "conditional", "call", "opt-barrier",
}  # fmt: skip
KERNEL = "tpu_custom_call"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program."""

    kind: str  # one of KINDS
    runs: int  # how often it runs
    sent: float  # bytes that a device sends in one run
    group: int  # devices that take part together
    crosses: bool  # whether a group has devices of more than one slice

    @property
    def bytes(self) -> float:
        """Bytes that a device sends in one run of the program."""
        return self.runs * self.sent


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a TPU compiler says of the time of one run of a program."""

    cycles: float = 0.0  # of all instructions but kernels, one after the other
    kernels: int = 0  # runs of kernels, which have a schedule of their own
    kernel_flops: float = 0.0  # floating-point operations that those state


@dataclasses.dataclass(frozen=True)
class Part:
    """What the instructions of one name cost in one run of the program."""

    bytes: float = 0.0  # to and from main memory
    cycles: float = 0.0  # by the compiler, without kernels

    def __add__(self, other: "Part") -> "Part":
        return Part(self.bytes + other.bytes, self.cycles + other.cycles)


class Program:
    """The text of a program that was compiled for `num_devices` in `num_slices` of equal size."""

    def __init__(self, text: str, num_devices: int, num_slices: int = 1):
        self._devices, self._slices = num_devices, num_slices
        self._computations, self._entry = program_text.parse(text)

    def collectives(self) -> list[Collective]:
        """All collectives, the largest first; those that move nothing are left out."""
        found = {}
        for loops, runs, name, instruction in self._visit(fused=True):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS and not (kind == "send" and between_slices(instruction)):
                continue
            # the parts of an asynchronous one share a channel
            channel = instruction.attribute("channel_id") or (name, instruction.name)
            collective = self._collective(kind, runs, name, instruction)
            found.setdefault((loops, kind, channel), collective)
        return sorted((c for c in found.values() if c.bytes), key=lambda c: -c.bytes)

    def memory_traffic(self) -> float:
        """Bytes read from and written to the device's main memory, each fusion as one pass."""
        return sum(part.bytes for part in self.parts().values())

    def parts(self) -> dict[str, Part]:
        """Costs by the names that the traced code gives (`op_name`), "" for what has none."""
        found: collections.defaultdict[str, Part] = collections.defaultdict(Part)
        for _, runs, name, instruction in self._visit(fused=False):
            moved = 0.0
            if instruction.opcode not in FREE and not instruction.opcode.endswith("-done"):
                moved = runs * self._traffic(self._computations[name], instruction)
            cycles = runs * program_text.number(instruction, "estimated_cycles")
            if moved or cycles:
                found[instruction.op_name] += Part(moved, cycles)
        return dict(found)

    def products(self, side: int) -> tuple[float, float]:
        """Floating-point operations of matrix products, and the same as a matrix unit pads them.

        Those of kernels are not counted.
        """
        total = np.zeros(2)
        for _, runs, name, instruction in self._visit(fused=True):
            one = matrix_products.flops(self._computations[name], instruction, side)
            total += runs * np.array(one)
        return total[0], total[1]

    def schedule(self) -> Schedule:
        """The compiler's cycles, and the kernels that are not in them."""
        cycles, kernels, flops = 0.0, 0, 0.0
        for _, runs, _, instruction in self._visit(fused=False):
            if instruction.attribute("custom_call_target") == KERNEL:
                kernels += runs
                flops += runs * program_text.number(instruction, "flops")
            cycles += runs * program_text.number(instruction, "estimated_cycles")
        return Schedule(cycles, kernels, flops)

    def unknown_loops(self) -> list[str]:
        """Loops that count as one run since the text does not tell how often they run."""
        all_ = ((name, i) for _, _, name, i in self._visit(fused=False) if i.opcode == "while")
        unknown = (i for name, i in all_ if trip_count(self._computations, name, i) is None)
        return sorted({loop.name for loop in unknown})

    def _visit(
        self, fused: bool, name: str = "", runs: int = 1, loops: tuple = ()
    ) -> Iterator[tuple[tuple, int, str, Instruction]]:
        """(loops around it, runs, computation, instruction) of all that a computation runs."""
        name = name or self._entry
        for instruction in self._computations[name].values():
            yield loops, runs, name, instruction
            for called, times in self._called(name, instruction, fused):
                inner = (*loops, instruction.name) if instruction.opcode == "while" else loops
                yield from self._visit(fused, called, runs * times, inner)

    def _called(self, name: str, instruction: Instruction, fused: bool) -> list[tuple[str, int]]:
        """Computations that an instruction runs, and how often."""
        if instruction.opcode == "while":
            trips = trip_count(self._computations, name, instruction)
            return [(instruction.attribute("body"), 1 if trips is None else trips)]
        if instruction.opcode == "call":
            return [(instruction.attribute("to_apply"), 1)]
        if instruction.opcode == "conditional":
            return [(branch, 1) for branch in program_text.branches(instruction)]
        calls = instruction.attribute("calls")
        inside = instruction.opcode == "async-start" or (fused and instruction.opcode == "fusion")
        return [(calls, 1)] if calls and inside else []

    def _collective(self, kind: str, runs: int, name: str, instruction: Instruction) -> Collective:
        computation = self._computations[name]
        size = sum(bytes_of(computation[o].type) for o in instruction.operands)
        groups = program_text.device_groups(instruction.attributes, self._devices)
        slices = groups // (self._devices // self._slices)
        group, crosses = groups.shape[1], bool((slices != slices[:, :1]).any())
        if kind == "send":
            kind = between_slices(instruction).lower().replace("_", "-")
            group, crosses = self._slices, True
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a TPU fusion: all that follows is the device's own slice
        others = {"all-gather": group - 1, "all-reduce": 2 * (group - 1) / group,
                  "collective-permute": 1, "collective-broadcast": 1}  # fmt: skip
        sent = others.get(kind, (group - 1) / group) * size
        return Collective(kind, runs, sent, group, crosses)

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        types = [computation[o].type for o in instruction.operands if o in computation]
        if instruction.opcode.endswith("-start"):  # its type lists source, target and a context
            if instruction.opcode.removesuffix("-start") in KINDS:
                return main_memory(instruction.type)
            return moved(instruction.type)
        if instruction.opcode == "dynamic-slice":
            return 2 * main_memory(instruction.type)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * main_memory(types[1])
        result = main_memory(instruction.type)
        if instruction.opcode != "fusion":
            return result + sum(map(main_memory, types))
        inside = self._computations[instruction.attribute("calls")]
        parameters = {int(i.arguments): i for i in inside.values() if i.opcode == "parameter"}
        read = 0.0
        for position, type_ in enumerate(types):
            if main_memory(type_):
                part, in_place = sliced(inside, parameters[position])
                read += bytes_of(type_) if part is None else part
                result -= in_place
        return read + result


def between_slices(instruction: Instruction) -> str | None:
    """The collective over TPU slices that a `send` to the host belongs to, as ALL_REDUCE."""
    return instruction.attribute("_xla_megascale_transfer_type")


def moved(type_: str) -> float:
    """Bytes that an asynchronous copy moves in main memory, by its (source, target, context).

    A slice reads no more than it writes; an end in another memory counts nothing.
    """
    ends = [end for end in program_text.arrays(type_) if end[0] > 8]  # the context is a number
    size = min((size for size, _ in ends), default=0.0)
    return size * sum("S(" not in layout for _, layout in ends)


def sliced(inside: Computation, parameter: Instruction) -> tuple[float | None, float]:
    """(bytes read, bytes of the result that are not written) of a fusion's operand.

    A fusion may slice it or update it in place; None: it reads all of it.
    """
    names, read, in_place = [parameter.name], 0.0, 0.0
    results = program_text.results_of(inside)
    while names:
        name = names.pop()
        for user in (i for i in inside.values() if name in i.operands):
            opcode, is_target = user.opcode, user.operands[0] == name
            if opcode == "bitcast":
                names.append(user.name)
            elif opcode == "dynamic-slice" and is_target:
                read += bytes_of(user.type)
            elif opcode == "dynamic-update-slice" and is_target and user.name in results:
                in_place += bytes_of(user.type) - bytes_of(inside[user.operands[1]].type)
            else:
                return None, 0.0
    return read, in_place
