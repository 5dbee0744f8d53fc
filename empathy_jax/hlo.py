"""What a compiled program does, read from its optimized HLO text: products, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs: a loop's count is its `known_trip_count`, or the constant that its condition compares its counter
with; where it is neither, the caller's number is taken and the loop is reported as guessed.

All figures are of one device. FLOPs are those of matrix products and convolutions, two for each
multiplication with its addition. Bytes are what instructions read from and write to main memory:
buffers in a TPU's on-chip memory (space `S(1)`) cost nothing, and of a buffer that is sliced, or updated
in place, the slice counts.
"""

import dataclasses
import functools
import itertools
import math
import re

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that move nothing themselves.
FREE = {
    "after-all",
    "async-done",
    "async-update",
    "bitcast",
    "constant",
    "copy-done",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
# Instructions that touch a part of their first operand, as large as their result.
SLICING = {"dynamic-slice", "gather", "slice"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, each time it runs.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: of its operands or of its results on one device, the larger.
      group: the first of its groups of devices, by their place in the mesh; empty: all.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Sums over a program.

    Attributes:
      flops, bytes: see the module.
      collectives: how often each runs.
      guessed: loops whose count was guessed.
      kernels: calls of kernels, whose products `flops` lacks.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[Collective, int] = dataclasses.field(default_factory=dict)
    guessed: int = 0
    kernels: int = 0

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """This, and `times` the other."""
        collectives = dict(self.collectives)
        for collective, count in other.collectives.items():
            collectives[collective] = collectives.get(collective, 0) + times * count
        return Cost(
            self.flops + times * other.flops,
            self.bytes + times * other.bytes,
            collectives,
            self.guessed + other.guessed,
            self.kernels + times * other.kernels,
        )


def cost(text: str, loops: int = 1) -> Cost:
    """The cost of a program.

    Args:
      text: of `compiled.as_text()`.
      loops: taken as the count of a loop that does not tell its own.

    Raises:
      ValueError: for a text that is no HLO module.
    """
    computations, entry = parse(text)

    @functools.cache
    def of_computation(name: str) -> Cost:
        computation = computations[name]
        total = Cost()
        for instruction in computation.values():
            total = total.plus(of_instruction(instruction, computation))
        return total

    def of_instruction(instruction: Instruction, computation: Computation) -> Cost:
        opcode = instruction.opcode
        if opcode == "while":
            condition = instruction.called("condition")
            count = _trip_count(instruction, computation, computations)
            once = of_computation(instruction.called("body")).plus(of_computation(condition))
            if count is None:
                once, count = dataclasses.replace(once, guessed=once.guessed + 1), loops
            return Cost().plus(once, count)
        if opcode == "conditional":
            branches = [of_computation(name) for name in instruction.branches()]
            return max(branches, key=lambda branch: (branch.flops, branch.bytes))
        if opcode == "call":
            return of_computation(instruction.called("to_apply"))
        if opcode == "async-start":
            return of_computation(instruction.called("calls"))
        if opcode == "fusion":
            name = instruction.called("calls")
            inside = dataclasses.replace(of_computation(name), bytes=0.0)
            return inside.plus(Cost(bytes=_fusion_bytes(instruction, computation, computations)))
        moved = _bytes_moved(instruction, computation)
        if (kind := _collective_kind(instruction, computation)) is not None:
            return Cost(bytes=moved, collectives={_collective(kind, instruction, computation): 1})
        if opcode == "convolution":
            return Cost(_convolution_flops(instruction, computation), moved)
        if opcode == "dot":
            return Cost(_dot_flops(instruction, computation), moved)
        is_kernel = opcode == "custom-call" and '"tpu_custom_call"' in instruction.rest
        return Cost(bytes=moved, kernels=int(is_kernel))

    return of_computation(entry)


# --- text to computations ---


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, shape, opcode: as written.
      operands: names.
      rest: what stands after the operands.
      is_root: whether it is the computation's result.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self, role: str) -> str:
        """The computation that this calls as its `role`, such as "body"."""
        return re.search(rf"\b{role}=%?([\w.\-]+)", self.rest)[1]

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if listed:
            return re.findall(r"%?([\w.\-]+)", listed[1])
        return [self.called("true_computation"), self.called("false_computation")]


Computation = dict[str, Instruction]

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_END = re.compile(r"^\}( //.*)?$")  # a kernel's attributes may hold lines that begin with a brace
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}])([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of the one that runs first."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = ""
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif _END.match(line):
            current = None
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(*found.groups())
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text is no HLO module: no computation is marked ENTRY")
    return computations, entry


def _instruction(root: str | None, name: str, written: str) -> Instruction:
    written = _COMMENT.sub("", written)
    # A tuple's shape stands in parentheses of its own.
    start = _closing(written, 0) + 1 if written.startswith("(") else written.index(" ")
    found = _OPCODE.search(written, start)
    end = _closing(written, found.end() - 1)
    listed = written[found.end() : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", listed))
    if found[1] in ("constant", "parameter"):
        operands = (listed,)
    return Instruction(
        name, written[: found.start(1)].strip(), found[1], operands, written[end + 1 :], bool(root)
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"unbalanced parentheses in {text[:100]!r}")


def _dimensions(shape: str) -> list[int]:
    """Sizes of the first array of a shape."""
    return [int(size) for size in _ARRAY.search(shape)[2].split(",") if size]


def _bytes(shape: str, on_chip: bool = False) -> int:
    """Bytes of all arrays of a shape; those in on-chip memory count only if `on_chip`."""
    total = 0
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if on_chip or not re.search(r"S\([1-9]", layout):
            count = math.prod(int(size) for size in sizes.split(",") if size)
            total += count * _bits(dtype) // 8
    return total


def _bits(dtype: str) -> int:
    """Bits of an element: f32 has 32, f8e4m3fn 8, pred 8; tokens have none."""
    if dtype in ("token", "opaque"):
        return 0
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


# --- loops ---


def _trip_count(
    loop: Instruction, computation: Computation, computations: dict[str, Computation]
) -> int | None:
    """How often the body of a loop runs, where the program says so.

    Its condition is `counter < constant`; where it begins and how far it steps is looked for, and taken
    to be 0 and 1 where it is not found.
    """
    if known := re.search(r"known_trip_count\D*(\d+)", loop.rest):
        return int(known[1])
    condition, body = (computations[loop.called(role)] for role in ("condition", "body"))
    root = _root(condition)
    if root.opcode != "compare" or "direction=LT" not in root.rest:
        return None
    counter, bound = (condition[name] for name in root.operands)
    if bound.opcode != "constant" or counter.opcode != "get-tuple-element":
        return None
    place = int(re.search(r"index=(\d+)", counter.rest)[1])
    begin = _constant(_element(computation[loop.operands[0]], place, computation))
    step = _increment(_element(_root(body), place, body), body, computations)
    return max(-(-(int(bound.operands[0]) - begin) // step), 0)


def _root(computation: Computation) -> Instruction:
    return next(i for i in computation.values() if i.is_root)


def _element(made: Instruction, place: int, computation: Computation) -> Instruction | None:
    """What a tuple holds in a place, where it is put together here."""
    while made.opcode == "copy" or made.opcode == "bitcast":
        made = computation[made.operands[0]]
    found = computation[made.operands[place]] if made.opcode == "tuple" else None
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = computation[found.operands[0]]
    return found


def _constant(value: Instruction | None) -> int:
    """An integer constant; 0 for anything else."""
    is_number = value is not None and value.opcode == "constant"
    return int(value.operands[0]) if is_number and value.operands[0].isdigit() else 0


def _increment(
    value: Instruction | None, computation: Computation, computations: dict[str, Computation]
) -> int:
    """The constant that a counter is increased by; 1 for anything else."""
    if value is not None and value.opcode == "fusion":
        computation = computations[value.called("calls")]
        value = _root(computation)
    if value is None or value.opcode != "add":
        return 1
    return max(max(_constant(computation.get(name)) for name in value.operands), 1)


# --- memory traffic ---


def _bytes_moved(instruction: Instruction, computation: Computation) -> float:
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return 0
    if opcode == "custom-call" and "AllocateBuffer" in instruction.rest:
        return 0
    if opcode in SLICING:
        return 2 * _bytes(instruction.shape)
    if opcode == "slice-start":  # its result holds the source, then the slice
        sliced = instruction.shape[_closing(instruction.shape, 1) :]
        return _bytes(sliced, on_chip=True) + _bytes(sliced)
    shapes = [computation[name].shape for name in instruction.operands if name in computation]
    if opcode == "dynamic-update-slice":
        return 2 * _bytes(shapes[1])
    if opcode == "scatter":
        return 2 * _bytes(shapes[-1])
    written = _bytes(instruction.shape)
    if opcode == "copy-start":  # its result holds the source once more
        return written
    return written + sum(map(_bytes, shapes))


def _fusion_bytes(
    fusion: Instruction, computation: Computation, computations: dict[str, Computation]
) -> float:
    """What a fusion reads and writes: of operands that it only slices, the slices."""
    inside = computations[fusion.called("calls")]
    users: dict[str, list[Instruction]] = {name: [] for name in inside}
    for instruction in inside.values():
        for operand in instruction.operands:
            if operand in users:
                users[operand].append(instruction)
    total = 0.0
    for parameter in (i for i in inside.values() if i.opcode == "parameter"):
        operand = computation[fusion.operands[int(parameter.operands[0])]]
        whole = _bytes(operand.shape)
        total += min(whole, _read(parameter, users)) if whole else 0
    root = _root(inside)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    written = sum(_written(inside[name], inside) for name in results)
    return total + min(written, _bytes(fusion.shape))


def _read(value: Instruction, users: dict[str, list[Instruction]]) -> float:
    """Bytes of a fused computation's parameter that are read."""
    total = 0.0
    for user in users[value.name]:
        if user.opcode in SLICING and user.operands[0] == value.name:
            total += _bytes(user.shape, on_chip=True)
        elif user.opcode == "bitcast":
            total += _read(user, users)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != value.name:
            return math.inf
    return total


def _written(result: Instruction, inside: Computation) -> float:
    while result.opcode == "bitcast":
        result = inside[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return _bytes(inside[result.operands[1]].shape, on_chip=True)
    return _bytes(result.shape, on_chip=True)


# --- products ---


def _dot_flops(dot: Instruction, computation: Computation) -> float:
    sizes = _dimensions(computation[dot.operands[0]].shape)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)[1]
    inner = math.prod(sizes[int(axis)] for axis in contracted.split(",") if axis)
    return 2.0 * math.prod(_dimensions(dot.shape)) * inner


def _convolution_flops(convolution: Instruction, computation: Computation) -> float:
    """A TPU's matrix products are convolutions: batch axes are windows with at most one valid place."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.rest).groups()
    sizes = [_dimensions(computation[name].shape) for name in convolution.operands[:2]]
    lhs, rhs = (
        dict(zip(labels, s, strict=True)) for labels, s in zip((left, right), sizes, strict=True)
    )
    result = dict(zip(out, _dimensions(convolution.shape), strict=True))
    window = re.search(r"window=\{([^}]*)\}", convolution.rest)
    window = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    places = 1
    for axis in sorted(label for label in out if label.isdigit()):
        place = int(axis)

        def setting(name: str, default: str, place: int = place) -> str:
            return window[name].split("x")[place] if name in window else default

        places *= _valid_places(
            lhs[axis],
            rhs[axis],
            result[axis],
            int(setting("stride", "1")),
            int(setting("pad", "0_0").split("_")[0]),
            int(setting("lhs_dilate", "1")),
            int(setting("rhs_dilate", "1")),
        )
    return 2.0 * result["b"] * result["f"] * rhs["i"] * places


@functools.cache
def _valid_places(
    size: int, kernel: int, results: int, stride: int, pad: int, dilation: int, kernel_dilation: int
) -> int:
    """Pairs of a result and a kernel place that meet an input, not padding, along one axis."""
    if kernel == 1 and dilation == 1 and pad == 0:
        return results
    span = (size - 1) * dilation + 1
    places = (
        result * stride - pad + at * kernel_dilation
        for result, at in itertools.product(range(results), range(kernel))
    )
    return sum(0 <= place < span and place % dilation == 0 for place in places)


# --- collectives ---


def _collective_kind(instruction: Instruction, computation: Computation) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in COLLECTIVES:
        return None
    # A TPU's reduce-scatter is an all-reduce, fused with the slice that a device keeps of it.
    if opcode == "all-reduce":
        for user in computation.values():
            if (
                user.is_root
                and user.opcode == "dynamic-slice"
                and user.operands[0] == instruction.name
            ):
                return "reduce-scatter"
    return opcode


def _collective(kind: str, instruction: Instruction, computation: Computation) -> Collective:
    given = sum(_bytes(computation[name].shape, on_chip=True) for name in instruction.operands)
    made = _bytes(instruction.shape, on_chip=True)
    if instruction.opcode.endswith("-start") and instruction.shape.startswith("("):
        made -= given  # its result holds the operands once more
    return Collective(kind, max(given, made), _group(instruction.rest))


def _group(rest: str) -> tuple[int, ...]:
    """The first group of devices of a collective, in any of the three ways to write it."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        numbered = [tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)", pairs[0])]
        return next((pair for pair in numbered if pair[0] != pair[1]), numbered[0])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return tuple(int(device) for device in listed[1].split(",") if device)
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        groups, sizes = ([int(n) for n in tiled[i].split(",")] for i in (1, 2))
        order = [int(n) for n in tiled[3].split(",")] if tiled[3] else list(range(len(sizes)))
        steps = _steps(sizes)
        moved = itertools.product(*(range(sizes[axis]) for axis in order))
        devices = (
            sum(i * steps[axis] for i, axis in zip(index, order, strict=True)) for index in moved
        )
        return tuple(itertools.islice(devices, math.prod(groups[1:])))
    if named := re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        chosen = re.findall(r"'([^']+)'", named[2])
        steps = dict(zip(sizes, _steps(list(sizes.values())), strict=True))
        moved = itertools.product(*(range(sizes[name]) for name in chosen))
        return tuple(
            sum(i * steps[name] for i, name in zip(index, chosen, strict=True)) for index in moved
        )
    return ()


def _steps(sizes: list[int]) -> list[int]:
    """How far apart neighbours along each axis of an array are, rows last."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
