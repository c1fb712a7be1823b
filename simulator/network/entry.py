"""The way from Python into the compiled loops: one address, in the place of two dozen arrays, so a call costs 0.4 us.

A block of integers has the addresses and lengths of all arrays; it is written when an array is made or grown, and the
arrays are kept alive by who owns the block.
"""

from typing import TYPE_CHECKING, Any, cast

import numba
import numpy as np
from numba.extending import intrinsic

from simulator.network.flow_arrays import FLOW, LINK, Starts, State
from simulator.network.heaps import stamped
from simulator.network.kernels import advance, set_capacity

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS = len(State._fields) + len(Starts._fields) + 2
CURSOR = 2 * ARRAYS
ENDED = CURSOR + 1
"""Places of what a call returns beside the next finish: the flows begun, the names written."""


def _as_pointer(context: Any, address: Any) -> Any:
    """Return an address as a pointer."""
    del context

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        del signature
        return builder.inttoptr(values[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(address), code


_pointer: Any = intrinsic(_as_pointer)


def block_of(state: State, starts: Starts, ended: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """Return the block for arrays: a state, starts to read, and rows for the names and times of what ends."""
    arrays = (*state, *starts, ended[0], ended[1])
    block = np.zeros(2 * ARRAYS + 2, np.int64)
    block[0 : 2 * ARRAYS : 2] = [array.ctypes.data for array in arrays]
    block[1 : 2 * ARRAYS : 2] = [len(array) for array in arrays]
    return block


_view: Any = getattr(numba, "carray")  # noqa: B009


def _arrays(b: Any) -> Any:
    """Return the state and the starts of a block."""
    state = State(
        _view(_pointer(b[0]), b[1], FLOW),
        _view(_pointer(b[2]), b[3], LINK),
        _view(_pointer(b[4]), b[5], np.float64),
        _view(_pointer(b[6]), b[7], np.int32),
        _view(_pointer(b[8]), b[9], np.int32),
        _view(_pointer(b[10]), b[11], np.float64),
        _view(_pointer(b[12]), b[13], np.int32),
        _view(_pointer(b[14]), b[15], np.int32),
        _view(_pointer(b[16]), b[17], np.float64),
        _view(_pointer(b[18]), b[19], np.int32),
        _view(_pointer(b[20]), b[21], np.float64),
        _view(_pointer(b[22]), b[23], np.int32),
        _view(_pointer(b[24]), b[25], np.int32),
        _view(_pointer(b[26]), b[27], np.int32),
        _view(_pointer(b[28]), b[29], np.int32),
        _view(_pointer(b[30]), b[31], np.int32),
        _view(_pointer(b[32]), b[33], np.int32),
        _view(_pointer(b[34]), b[35], np.float64),
        _view(_pointer(b[36]), b[37], np.int64),
    )
    starts = Starts(
        _view(_pointer(b[38]), b[39], np.int64),
        _view(_pointer(b[40]), b[41], np.int64),
        _view(_pointer(b[42]), b[43], np.float64),
        _view(_pointer(b[44]), b[45], np.float64),
        _view(_pointer(b[46]), b[47], np.int64),
        _view(_pointer(b[48]), b[49], np.int64),
        _view(_pointer(b[50]), b[51], np.int64),
        _view(_pointer(b[52]), b[53], np.int32),
        _view(_pointer(b[54]), b[55], np.float64),
    )
    return state, starts


_bound: Any = stamped(numba.njit(cache=True, error_model="numpy", forceinline=True)(_arrays))


def _enter(address: int, cursor: int, count: int, until_ns: int) -> int:
    """Do as `kernels.advance` does on the arrays of the block at `address`; return the next finish."""
    b = _view(_pointer(address), 2 * ARRAYS + 2, np.int64)
    state, starts = _bound(b)
    names = _view(_pointer(b[56]), b[57], np.int64)
    times_ns = _view(_pointer(b[58]), b[59], np.int64)
    cursor, ended, next_ns = advance(state, starts, cursor, count, until_ns, names, times_ns)
    b[CURSOR] = cursor
    b[ENDED] = ended
    return next_ns


def _set_capacity(address: int, count: int, now_ns: int) -> int:
    """Do as `kernels.set_capacity` does on the arrays of the block at `address`."""
    state, starts = _bound(_view(_pointer(address), 2 * ARRAYS + 2, np.int64))
    return int(set_capacity(state, starts, count, now_ns))


enter = cast("Any", stamped(numba.njit(cache=True, error_model="numpy")(_enter)))
recapacitate = cast("Any", stamped(numba.njit(cache=True, error_model="numpy")(_set_capacity)))
