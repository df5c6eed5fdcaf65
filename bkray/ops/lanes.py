"""SIMD lanes for numba: a vector of W neighbouring array elements that lives in registers.

The arithmetic operators work lane by lane. numba's own loops over a short inner axis keep their
state in memory between outer iterations; a scan written with lanes carries it in registers.
numba's disk cache does not watch this file: after a change here delete ``__pycache__/*.nb?``.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from numpy.polynomial import Chebyshev, Polynomial

CACHE_LINE = 64  # bytes
FUSE = ("contract",)  # a * b + c may round once; keeps NaN, infinities and signs


class Lanes(types.Type):  # type: ignore[misc]  # numba has no hints
    """The numba type of W floats of one dtype."""

    def __init__(self, dtype: types.Float, width: int) -> None:
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Lanes({dtype}, {width})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        element = ir.FloatType() if fe_type.dtype == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.width))


def _pointer(context: Any, builder: Any, signature: Any, args: Any, lanes: Lanes) -> Any:
    """Address of ``array[index]`` as a pointer to lanes; the last axis must have stride 1."""
    array_type, index_type = signature.args[:2]
    array = context.make_array(array_type)(context, builder, args[0])
    index = cgutils.unpack_tuple(builder, args[1], len(index_type))
    address = cgutils.get_item_pointer(context, builder, array_type, array, index)
    return builder.bitcast(address, context.get_value_type(lanes).as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typingctx: Any, array: Any, index: Any, width: Any) -> Any:
    """Lanes ``array[index]`` and its right neighbours; ``width`` is a tuple of that length."""
    lanes = Lanes(array.dtype, len(width))

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _pointer(context, builder, signature, args, lanes)
        return builder.load(address, align=lanes.dtype.bitwidth // 8)

    return lanes(array, index, width), emit


@intrinsic  # type: ignore[untyped-decorator]
def store(typingctx: Any, array: Any, index: Any, lanes: Any, past_cache: Any) -> Any:
    """Write the lanes to ``array[index]`` and its right neighbours.

    ``past_cache`` is None, or anything else to write straight to memory: for arrays larger than
    the cache it saves reading the old content. The address must then be a multiple of 64.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _pointer(context, builder, signature, args, lanes)
        if isinstance(past_cache, types.NoneType):
            builder.store(args[2], address, align=lanes.dtype.bitwidth // 8)
        else:
            written = builder.store(args[2], address, align=CACHE_LINE)
            one = ir.Constant(ir.IntType(32), 1)
            written.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    return types.void(array, index, lanes, past_cache), emit


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typingctx: Any, array: Any, index: Any, width: Any) -> Any:
    """Ask for the cache lines of ``load(array, index, width)``; any address will do."""
    lanes = Lanes(array.dtype, len(width))

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        declared = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        call = builder.module.declare_intrinsic("llvm.prefetch", [byte], declared)
        first = builder.bitcast(_pointer(context, builder, signature, args, lanes), byte)
        for offset in range(0, lanes.width * lanes.dtype.bitwidth // 8, CACHE_LINE):
            line = builder.gep(first, [flag(offset)], source_etype=ir.IntType(8))
            builder.call(call, [line, flag(0), flag(3), flag(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, index, width), emit


@intrinsic  # type: ignore[untyped-decorator]
def zero(typingctx: Any, array: Any, width: Any) -> Any:
    """Lanes of zeros, of the dtype of ``array``."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return Lanes(array.dtype, len(width))(array, width), emit


@intrinsic  # type: ignore[untyped-decorator]
def reciprocal(typingctx: Any, lanes: Any) -> Any:
    """1 / lanes, rounded once."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = ir.Constant(args[0].type, [1.0] * lanes.width)
        return builder.fdiv(one, args[0])

    return lanes(lanes), emit


@intrinsic  # type: ignore[untyped-decorator]
def spread(typingctx: Any, array: Any, index: Any, width: Any) -> Any:
    """Lanes that all hold ``array[index]``."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type, index_type = signature.args[:2]
        place = cgutils.unpack_tuple(builder, args[1], len(index_type))
        made = context.make_array(array_type)(context, builder, args[0])
        value = builder.load(cgutils.get_item_pointer(context, builder, array_type, made, place))
        vector = context.get_value_type(signature.return_type)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
        return builder.shuffle_vector(first, first, _mask(*[0] * vector.count))

    return Lanes(array.dtype, len(width))(array, index, width), emit


@intrinsic  # type: ignore[untyped-decorator]
def total(typingctx: Any, lanes: Any) -> Any:
    """Sum of the lanes, a power of two of them, halved and halved again."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (part,) = args
        while part.type.count > 1:
            half = part.type.count // 2
            low = builder.shuffle_vector(part, part, _mask(*range(half)))
            high = builder.shuffle_vector(part, part, _mask(*range(half, 2 * half)))
            part = builder.fadd(low, high)
        return builder.extract_element(part, ir.IntType(32)(0))

    return lanes.dtype(lanes), emit


def _mask(*lanes: int) -> Any:
    """Which lanes a shuffle takes."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))


@intrinsic  # type: ignore[untyped-decorator]
def exp2(typingctx: Any, lanes: Any) -> Any:
    """2 to the lanes, to the last place in float32, to 2e-15 in float64; a NaN stays one.

    Without denormals, which cost a hundred cycles each: 0 where the result would be below the
    least normal number, and infinity from 2^127.5 (float64: 2^1023.5) on.

    ``2^x = 2^n 2^r`` with ``n`` the nearest whole number. Adding ``1.5 2^23 + 127`` rounds and
    leaves the exponent of ``2^n`` in the low bits; those of 0 and infinity are where ``x`` is
    clipped. ``(2^r - 1) / r`` is a polynomial through Chebyshev's points.
    """
    mantissa, bias, degree = (23, 127, 5) if lanes.dtype == types.float32 else (52, 1023, 11)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,) = args
        bits = ir.VectorType(ir.IntType(lanes.dtype.bitwidth), lanes.width)

        def same(value: float) -> Any:
            return ir.Constant(x.type, [float(value)] * lanes.width)

        for relation, bound in (("<", same(-bias)), (">", same(bias + 1))):
            x = builder.select(builder.fcmp_ordered(relation, x, bound), bound, x)
        shift = same(1.5 * 2**mantissa + bias)
        shifted = builder.fadd(x, shift)
        r = builder.fsub(x, builder.fsub(shifted, shift))
        *rest, power = [same(c) for c in (1.0, *_slope_coefficients(degree))]
        for coefficient in reversed(rest):
            power = builder.fadd(builder.fmul(power, r, flags=FUSE), coefficient, flags=FUSE)
        exponent = ir.Constant(bits, [mantissa] * lanes.width)
        scale = builder.shl(builder.bitcast(shifted, bits), exponent)
        return builder.fmul(power, builder.bitcast(scale, x.type))

    return lanes(lanes), emit


def _slope_coefficients(degree: int) -> list[float]:
    """Coefficients of ``(2^r - 1) / r`` on [-1/2, 1/2]; ``degree`` is odd, so no point is 0."""
    fitted = Chebyshev.interpolate(lambda r: np.expm1(r * np.log(2)) / r, degree, [-0.5, 0.5])
    return [float(c) for c in fitted.convert(kind=Polynomial).coef]


def _arithmetic(operation: Callable[[Any, Any], Any], instruction: str) -> None:
    @intrinsic  # type: ignore[untyped-decorator]
    def lanewise(typingctx: Any, left: Any, right: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=FUSE)

        return left(left, right), emit

    @overload(operation, strict=False)  # type: ignore[untyped-decorator]
    def operate(left: Any, right: Any) -> Any:
        if isinstance(left, Lanes) and left == right:
            return lambda left, right: lanewise(left, right)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")


@intrinsic  # type: ignore[untyped-decorator]
def take_ticket(typingctx: Any, counter: Any) -> Any:
    """Return ``counter[0]`` and raise it by one, atomically: how threads share out tasks."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(counter)(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), emit
