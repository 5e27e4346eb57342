"""What a compiled program moves: its collectives and its traffic with memory, read from the text of its HLO.

Computations call each other: a loop's body runs as often as its trip count says, so each instruction counts

    times = product of the trip counts of the loops around it

A trip count is what XLA noted (known_trip_count), else the constant that the loop's condition compares with; a loop
whose count is known only at run time takes the next of `dynamic` (outermost first). Bytes are those of one device.
A collective's payload is the whole buffer of its group: what an all-gather yields, what a reduce-scatter or an
all-reduce adds up; by rings one device of n sends (Chan et al. 2007, doi 10.1002/cpe.1206)

    all-gather, reduce-scatter, all-to-all  (n - 1)/n * payload       all-reduce  2 (n - 1)/n * payload

Traffic with memory is what instructions read and write between fusions; what a compiler keeps on chip (memory space 1
of a TPU) is not counted, nor is any cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

__all__ = ["COLLECTIVES", "Collective", "Counts", "count_hlo", "parse_groups"]

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
"""Bits of an element, where the digits in the type's name do not say it."""
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call",
                  "conditional", "partition-id", "replica-id", "iota", "opt-barrier"})  # fmt: skip
"""Instructions that move nothing themselves."""


@dataclass(frozen=True)
class Collective:
    """One collective instruction: bytes of its payload, how often it runs, and one of its groups of devices."""

    kind: str
    payload_bytes: float
    times: int
    group: tuple[int, ...]

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends in all its runs."""
        n = len(self.group)
        share = {"collective-permute": 1.0, "all-reduce": 2 * (n - 1) / n}.get(self.kind, (n - 1) / n)
        return self.times * share * self.payload_bytes


@dataclass(frozen=True)
class Counts:
    """What one device does in a program."""

    collectives: tuple[Collective, ...]
    memory_bytes: float
    """Read from and written to its main memory."""
    operations: int
    """Instructions that it runs, fusions counting once."""
    trips: tuple[int, ...]
    """Trip counts of the loops, in the order met."""


@dataclass
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str

    def called(self, key: str) -> str:
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def bytes(self) -> float:
        return sum(array_bytes(self.shape))

    @property
    def memory_bytes(self) -> float:
        """Those outside of the chip's own memory."""
        return sum(array_bytes(self.shape, off_chip=True))


@dataclass
class _Computation:
    name: str
    instructions: dict[str, _Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def users(self) -> dict[str, list[_Instruction]]:
        found: dict[str, list[_Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                found.setdefault(operand, []).append(instruction)
        return found


def array_bytes(shape: str, *, off_chip: bool = False) -> Iterator[float]:
    """Bytes of every array in a shape.

    >>> list(array_bytes("(f32[2,3]{1,0}, bf16[8]{0:T(256)S(1)}, pred[])"))
    [24.0, 16.0, 1.0]
    """
    for kind, sizes, layout in ARRAY.findall(shape):
        if kind in ("token", "opaque") or (off_chip and "S(1)" in layout):
            continue
        digits = re.search(r"\d+", kind)
        bits = BITS.get(kind) or (int(digits.group()) if digits else 8)
        yield prod(int(size) for size in sizes.split(",") if size) * bits / 8


def count_hlo(text: str, dynamic: Sequence[int] = ()) -> Counts:
    """Collectives and memory traffic of one run of a compiled module (`Compiled.as_text()`).

    `dynamic`: trip counts of the loops whose count is not in the program, outermost first; 1 beyond its end.
    """
    computations, entry = _parse(text)
    walk = _Walk(computations, tuple(dynamic))
    walk.run(computations[entry], 1, 0)
    return Counts(tuple(walk.collectives), walk.memory_bytes, walk.operations, tuple(walk.trips))


class _Walk:
    """Sums over a module, a computation at a time."""

    def __init__(self, computations: dict[str, _Computation], dynamic: tuple[int, ...]) -> None:
        self.computations, self.dynamic = computations, dynamic
        self.collectives: list[Collective] = []
        self.memory_bytes = 0.0
        self.operations = 0
        self.trips: list[int] = []
        self.channels: set[tuple[str, str]] = set()

    def run(self, computation: _Computation, times: int, depth: int) -> None:
        """Count a computation that runs `times`, inside `depth` loops of unknown count."""
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                trips, unknown = self._count_trips(instruction, computation, depth)
                self.trips.append(trips)
                self.run(self.computations[instruction.called("body")], times * trips, depth + unknown)
                continue
            for name in self._called(instruction):
                self.run(self.computations[name], times, depth)
            self._add_collective(instruction, computation, times, merged=False)
            if instruction.opcode == "fusion":
                self._enter_fusion(self.computations[instruction.called("calls")], times, computation.name)
            self.operations += times * _is_run(instruction.opcode)
            self.memory_bytes += times * self._moved(instruction, computation)

    def _called(self, instruction: _Instruction) -> list[str]:
        if instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names = branches.group(1).replace("%", "").split(", ") if branches else []
            return names or [instruction.called(f"{which}_computation") for which in ("true", "false")]
        key = {"call": "to_apply", "async-start": "calls"}.get(instruction.opcode)
        name = instruction.called(key) if key else ""
        return [name] if name else []

    def _count_trips(self, loop: _Instruction, around: _Computation, depth: int) -> tuple[int, bool]:
        """(trip count, whether it is known only at run time)."""
        noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted.group(1)), False
        bound = self._read_bound(loop, around)
        if bound is not None:
            return -(-bound // self._read_stride(loop)), False
        return (self.dynamic[depth] if depth < len(self.dynamic) else 1), True

    def _read_bound(self, loop: _Instruction, around: _Computation) -> int | None:
        """The constant that the loop's counter, which begins at 0, is compared with."""
        condition = self.computations[loop.called("condition")]
        root = condition.instructions[condition.root]
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        limit = condition.instructions[root.operands[1]]
        if limit.opcode == "get-tuple-element":  # a constant that entered with the loop's state
            index = re.search(r"index=(\d+)", limit.attributes)
            state = around.instructions.get(loop.operands[0])
            if index is None or state is None or state.opcode != "tuple":
                return None
            limit = around.instructions[state.operands[int(index.group(1))]]
        if limit.opcode != "constant":
            return None
        value = re.match(r"\d+$", limit.operands[0]) if limit.operands else None
        return int(value.group()) if value else None

    def _read_stride(self, loop: _Instruction) -> int:
        """What the loop's body adds to its counter: more than 1 where the compiler unrolled it."""
        condition, body = (self.computations[loop.called(key)] for key in ("condition", "body"))
        counter = condition.instructions[condition.instructions[condition.root].operands[0]]
        index = re.search(r"index=(\d+)", counter.attributes)
        place = int(index.group(1)) if index else 0
        root, total = body.instructions[body.root], 0
        if root.opcode != "tuple" or place >= len(root.operands):
            return 1
        value = body.instructions.get(root.operands[place])
        while value is not None and value.opcode in ("add", "copy"):
            step = body.instructions.get(value.operands[-1])
            if value.opcode == "add":
                if step is None or step.opcode != "constant" or not step.operands[0].isdigit():
                    return 1
                total += int(step.operands[0])
            value = body.instructions.get(value.operands[0])
        return max(1, total)

    def _enter_fusion(self, fused: _Computation, times: int, around: str) -> None:
        """Collectives inside a fusion: a TPU's all-reduce of which each device keeps a slice is a reduce-scatter.

        One that a TPU makes beside other work appears in several fusions (start, work, done) under one channel.
        """
        sliced = any(i.opcode == "dynamic-slice" for i in fused.instructions.values())
        for instruction in fused.instructions.values():
            channel = (around, (re.findall(r"channel_id=\d+", instruction.attributes) or [instruction.name])[0])
            if channel not in self.channels:
                self._add_collective(instruction, fused, times, merged=sliced)
            if instruction.opcode.removesuffix("-start") in COLLECTIVES:
                self.channels.add(channel)
            if instruction.opcode == "fusion":
                self._enter_fusion(self.computations[instruction.called("calls")], times, around)

    def _add_collective(self, instruction: _Instruction, around: _Computation, times: int, *, merged: bool) -> None:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return
        group = parse_groups(instruction.attributes)
        given = sum(around.instructions[name].bytes for name in instruction.operands if name in around.instructions)
        payload = given * len(group) if kind == "all-gather" else given
        if kind == "all-reduce" and merged:
            kind = "reduce-scatter"
        if len(group) > 1 and payload:
            self.collectives.append(Collective(kind, payload, times, group))

    def _moved(self, instruction: _Instruction, around: _Computation) -> float:
        """Bytes that one run of an instruction reads from and writes to memory."""
        opcode = instruction.opcode
        if not _is_run(opcode):
            return 0.0
        operands = [around.instructions.get(name) for name in instruction.operands]
        sizes = [operand.memory_bytes if operand else 0.0 for operand in operands]
        written = instruction.memory_bytes
        if opcode.endswith("-start"):  # its shape repeats the operands
            whole = sum(operand.bytes for operand in operands if operand)
            return max(0.0, instruction.bytes - whole) + max(0.0, written - sum(sizes))
        if opcode in ("dynamic-slice", "gather", "slice"):
            return instruction.bytes + written
        if opcode == "dynamic-update-slice":
            return 2 * sizes[1]
        if opcode == "fusion":
            fused = self.computations[instruction.called("calls")]
            return sum(self._read(fused, i, size) for i, size in enumerate(sizes)) + self._written(fused, written)
        return sum(sizes) + written

    def _read(self, fused: _Computation, index: int, size: float) -> float:
        """Bytes that a fusion reads of its operand: only the slices where it takes slices, none where it is updated."""
        parameter = next((i for i in fused.instructions.values()
                          if i.opcode == "parameter" and i.operands == [str(index)]), None)  # fmt: skip
        return size if parameter is None else min(size, self._touched(fused, parameter.name, size))

    def _touched(self, fused: _Computation, name: str, size: float) -> float:
        total = 0.0
        for use in fused.users.get(name, []):
            first = use.operands[0] == name
            if first and use.opcode in ("dynamic-slice", "gather", "slice"):
                total += use.bytes
            elif first and use.opcode == "dynamic-update-slice":
                continue  # written in place
            elif use.opcode in VIEWS:
                total += self._touched(fused, use.name, size)
            elif use.opcode == "fusion":
                inner = self.computations[use.called("calls")]
                total += sum(self._read(inner, i, size) for i, other in enumerate(use.operands) if other == name)
            elif use.opcode != "tuple":
                return size
        return total

    def _written(self, fused: _Computation, size: float) -> float:
        """Bytes that a fusion writes: only the slices where it updates arrays in place."""
        root = fused.instructions[fused.root]
        outputs = [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return min(size, sum(self._stored(fused, output) for output in outputs))

    def _stored(self, fused: _Computation, output: _Instruction) -> float:
        while output.opcode in VIEWS and output.operands[0] in fused.instructions:
            output = fused.instructions[output.operands[0]]
        if output.opcode == "dynamic-update-slice":
            return fused.instructions[output.operands[1]].bytes
        if output.opcode == "fusion":
            return self._written(self.computations[output.called("calls")], output.bytes)
        return output.memory_bytes


def _is_run(opcode: str) -> bool:
    """Whether an instruction is work of its own: not the bookkeeping around it, nor the end of what began before."""
    return opcode not in FREE and not opcode.endswith("-done") and opcode not in ("async-start", "async-update")


VIEWS = ("bitcast", "convert", "copy", "reshape", "transpose")
"""Operations inside a fusion that make no more of an array than they get."""
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Computations by name, and the entry's name."""
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = HEADER.match(line)
            if header:
                current = computations[header.group(2)] = _Computation(header.group(2))
                entry = header.group(2) if header.group(1) else entry
        elif line == "}":
            current = None
        else:
            found = _parse_instruction(line.strip())
            if found is not None:
                current.instructions[found.name] = found
                if line.lstrip().startswith("ROOT "):
                    current.root = found.name
    return computations, entry


def _parse_instruction(line: str) -> _Instruction | None:
    """`%name = shape opcode(operands), attributes`."""
    left, equals, right = line.removeprefix("ROOT ").partition(" = ")
    if not equals or not left.startswith("%"):
        return None
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    inside = re.sub(r"/\*.*?\*/", "", rest[opened + 1 : closed])
    names = re.findall(r"%([\w.\-]+)", inside) or ([inside.strip()] if inside.strip() else [])
    return _Instruction(left[1:], shape, rest[:opened], names, rest[closed + 1 :])


def _closing(text: str, start: int) -> int:
    """Place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1


def parse_groups(attributes: str) -> tuple[int, ...]:
    """The first group of devices of a collective, in any of XLA's three notations, or one pair of a permute.

    >>> parse_groups("replica_groups={{0,2},{1,3}}, dimensions={0}")
    (0, 2)
    >>> parse_groups("replica_groups=[2,4]<=[4,2]T(1,0)")  # iota 0..7 as [4,2], transposed, as 2 groups of 4
    (0, 2, 4, 6)
    >>> parse_groups("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}")
    (0, 1, 2, 3)
    """
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", attributes)
    if pairs:
        moves = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", pairs.group(1))]
        return next((move for move in moves if move[0] != move[1]), ())
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return tuple(map(int, listed.group(1).split(",")))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims, order = (_numbers(part) for part in iota.groups())
        return tuple(_iota(dims, order)[: shape[1]])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}",
                     attributes)  # fmt: skip
    return _mesh_group(*mesh.groups()) if mesh else ()


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in text.split(",")] if text else []


def _iota(dims: list[int], order: list[int]) -> list[int]:
    """0 .. prod(dims), as an array of these dimensions, its axes reordered, flat."""
    strides = [prod(dims[i + 1 :]) for i in range(len(dims))]
    flat = [0]
    for axis in order or range(len(dims)):
        flat = [base + step * strides[axis] for base in flat for step in range(dims[axis])]
    return flat


def _mesh_group(axes: str, dims: str | None, order: str | None, used: str) -> tuple[int, ...]:
    """The group of device 0 over the named axes of a mesh; `'x':(2)4` is the part of size 4 inside of 2 of x."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = _iota(_numbers(dims), _numbers(order)) if dims else list(range(prod(sizes.values())))
    names, places = list(sizes), [0]
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used):
        stride = prod(sizes[other] for other in names[names.index(name) + 1 :])
        if part:
            stride *= sizes[name] // (int(before) * int(part))
        count = int(part) if part else sizes[name]
        places = [place + step * stride for place in places for step in range(count)]
    return tuple(ids[place] for place in places)
