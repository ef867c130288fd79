"""Vectors of eight float32 for numba: a type and the operations on it, each emitted as LLVM vector instructions.

numba has no vector type of its own, and what its optimizer makes of plain loops over two dozen pointers (checks for
overlap, sums added up one by one) is slow. LLVM splits these vectors where the CPU's registers are shorter.

All memory is addressed by plain integers, so that one compiled function serves any layout. Nothing here allocates,
raises, or needs Python's lock. Importing this module imports numba: only ``kernels_compiled`` does so, and that lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 8

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTEGERS = ir.VectorType(_INT32, LANES)
_QUARTET = ir.VectorType(_FLOAT, 4)

_LOG2_E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""Of Cephes' expf (S. Moshier), relative error below 2e-7."""


class Float32x8(types.Type):
    """numba's name for the vector."""

    def __init__(self) -> None:
        super().__init__(name="float32x8")


float32x8 = Float32x8()


@register_model(Float32x8)
class _Float32x8Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


def _operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make ``emit(builder, *values)`` an operation that compiled functions may call with ``arguments``' types."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emitted = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else emitted

        def typed(*_given: Any) -> Any:
            return result(*arguments), codegen

        return intrinsic(_with_parameters(typed, len(arguments)))

    return decorate


def _with_parameters(typed: Callable[..., Any], count: int) -> Any:
    """numba reads an intrinsic's parameters off its signature, so each count has its own form."""
    forms: dict[int, Any] = {
        1: lambda typingctx, a: typed(a),
        2: lambda typingctx, a, b: typed(a, b),
        3: lambda typingctx, a, b, c: typed(a, b, c),
        5: lambda typingctx, a, b, c, d, e: typed(a, b, c, d, e),
        10: lambda typingctx, a, b, c, d, e, f, g, h, i, j: typed(a, b, c, d, e, f, g, h, i, j),
    }
    return forms[count]


def _call(builder: Any, name: str, *values: Any) -> Any:
    signature = ir.FunctionType(_VECTOR, [_VECTOR] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"{name}.v{LANES}f32"), values)


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, value)] * LANES)


def _at(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


# ---- memory --------------------------------------------------------------------------------------------------------


@_operation(float32x8, types.int64)
def load(builder: Any, address: Any) -> Any:
    """The eight floats at an address."""
    return builder.load(_at(builder, address, _VECTOR), align=4)


@_operation(types.void, types.int64, float32x8)
def store(builder: Any, address: Any, vector: Any) -> None:
    """Write eight floats."""
    builder.store(vector, _at(builder, address, _VECTOR), align=4)


@_operation(types.float32, types.int64)
def load_float(builder: Any, address: Any) -> Any:
    return builder.load(_at(builder, address, _FLOAT), align=4)


@_operation(types.void, types.int64, types.float32)
def store_float(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, _at(builder, address, _FLOAT), align=4)


@_operation(types.int64, types.int64)
def load_int(builder: Any, address: Any) -> Any:
    return builder.load(_at(builder, address, _INT64), align=8)


@_operation(types.int64, types.int64)
def take_number(builder: Any, address: Any) -> Any:
    """Add one to the integer at an address, atomically; its value before that."""
    return builder.atomic_rmw("add", _at(builder, address, _INT64), ir.Constant(_INT64, 1), "seq_cst")


@_operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the line of memory at an address, which need not be valid."""
    pointer = _at(builder, address, ir.IntType(8))
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [pointer, *(ir.Constant(_INT32, value) for value in (0, 3, 1))])


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@_operation(float32x8, types.float32)
def splat(builder: Any, value: Any) -> Any:
    """The same float in all lanes."""
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(_INTEGERS, [0] * LANES))


@_operation(float32x8, float32x8, float32x8)
def multiply(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b)


@_operation(float32x8, float32x8, float32x8)
def subtract(builder: Any, a: Any, b: Any) -> Any:
    return builder.fsub(a, b)


@_operation(float32x8, float32x8, float32x8)
def add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


@_operation(float32x8, float32x8, float32x8)
def divide(builder: Any, a: Any, b: Any) -> Any:
    return builder.fdiv(a, b)


@_operation(float32x8, float32x8, float32x8)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_operation(float32x8, float32x8, float32x8, float32x8)
def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, in one instruction where the CPU has one."""
    return _call(builder, "llvm.fmuladd", a, b, c)


@_operation(float32x8, float32x8)
def exp(builder: Any, x: Any) -> Any:
    """e to the power of each lane, clamped to the normal numbers (inputs to -87.3 ... 88)."""
    x = builder.select(builder.fcmp_ordered(">", x, _constant(-87.3)), x, _constant(-87.3))
    x = builder.select(builder.fcmp_ordered("<", x, _constant(88.0)), x, _constant(88.0))
    power = _call(builder, "llvm.rint", builder.fmul(x, _constant(_LOG2_E)))
    rest = _call(builder, "llvm.fmuladd", power, _constant(-_LN2_HIGH), x)
    rest = _call(builder, "llvm.fmuladd", power, _constant(-_LN2_LOW), rest)
    sum_ = _constant(_EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        sum_ = _call(builder, "llvm.fmuladd", sum_, rest, _constant(coefficient))
    sum_ = _call(builder, "llvm.fmuladd", sum_, builder.fmul(rest, rest), rest)
    bits = builder.add(builder.fptosi(power, _INTEGERS), ir.Constant(_INTEGERS, [127] * LANES))
    bits = builder.shl(bits, ir.Constant(_INTEGERS, [23] * LANES))
    return builder.fmul(builder.fadd(sum_, _constant(1.0)), builder.bitcast(bits, _VECTOR))


# ---- across lanes --------------------------------------------------------------------------------------------------


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes))


def _fold(builder: Any, vector: Any) -> Any:
    """Eight lanes to four, upper half added to the lower one."""
    return builder.fadd(
        _shuffle(builder, vector, vector, [0, 1, 2, 3]), _shuffle(builder, vector, vector, [4, 5, 6, 7])
    )


def _add_neighbours(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(_shuffle(builder, a, b, [0, 2, 4, 6]), _shuffle(builder, a, b, [1, 3, 5, 7]))


@_operation(types.void, types.int64, float32x8, float32x8, float32x8, float32x8)
def store_sums(builder: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """Write the sums over the lanes of four vectors, as four floats."""
    first = _add_neighbours(builder, _fold(builder, a), _fold(builder, b))
    second = _add_neighbours(builder, _fold(builder, c), _fold(builder, d))
    builder.store(_add_neighbours(builder, first, second), _at(builder, address, _QUARTET), align=4)


def _add_pairs(builder: Any, a: Any, b: Any) -> Any:
    """Sums of neighbours within each half, those of the first vector before those of the second."""
    return builder.fadd(
        _shuffle(builder, a, b, [0, 2, 8, 10, 4, 6, 12, 14]), _shuffle(builder, a, b, [1, 3, 9, 11, 5, 7, 13, 15])
    )


@_operation(types.void, types.int64, types.int64, *(float32x8,) * 8)
def store_two_sums(builder: Any, first: Any, second: Any, *vectors: Any) -> None:
    """``store_sums`` of four vectors to one address and of four more to another, in half the instructions."""
    pairs = [_add_pairs(builder, vectors[at], vectors[at + 1]) for at in range(0, 8, 2)]
    left, right = (_add_pairs(builder, pairs[at], pairs[at + 1]) for at in (0, 2))
    low = _shuffle(builder, left, right, [0, 1, 2, 3, 8, 9, 10, 11])
    high = _shuffle(builder, left, right, [4, 5, 6, 7, 12, 13, 14, 15])
    sums = builder.fadd(low, high)
    for address, lanes in ((first, [0, 1, 2, 3]), (second, [4, 5, 6, 7])):
        builder.store(_shuffle(builder, sums, sums, lanes), _at(builder, address, _QUARTET), align=4)


@_operation(types.float32, float32x8)
def sum_of(builder: Any, vector: Any) -> Any:
    """The sum over the lanes."""
    four = _fold(builder, vector)
    two = _add_neighbours(builder, four, four)
    lane = [builder.extract_element(two, ir.Constant(_INT32, index)) for index in range(2)]
    return builder.fadd(lane[0], lane[1])


@_operation(types.float32, float32x8)
def max_of(builder: Any, vector: Any) -> Any:
    """The largest lane."""
    largest = builder.extract_element(vector, ir.Constant(_INT32, 0))
    for index in range(1, LANES):
        lane = builder.extract_element(vector, ir.Constant(_INT32, index))
        largest = builder.select(builder.fcmp_ordered(">", lane, largest), lane, largest)
    return largest
