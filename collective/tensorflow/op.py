"""A TensorFlow operation that calls Python, registered through TensorFlow's C API: nothing is compiled.

Unlike ``tf.numpy_function`` it reads its inputs where they lie, fails with the status that belongs to the exception,
and need not hold one of TensorFlow's threads while it waits for other ranks. So any number of them may wait at once,
and in another order on each rank, as the operations of a TF1 session do.
"""

from __future__ import annotations

import ctypes
import functools
import math
import queue
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_library
from tensorflow.python.framework.func_graph import FuncGraph

from collective.engine.engine import idle_threads
from collective.errors import ArgumentError
from collective.tensorflow.statuses import code_of
from collective.tensorflow.threads import SPARE_THREAD

Run = Callable[..., Sequence[np.ndarray]]

NAME = "CollectiveCall"
# What operations call, by number, and whether TensorFlow runs it in program order. Kept for good, as numpy_function
# does: a graph may run long after Python's is gone.
CALLS: list[tuple[Run, bool]] = []
# The symbol says that callbacks are those of libstdc++, which `Done` knows how to keep.
KNOWN_CALLBACKS = "_ZN10tensorflow6Device12ComputeAsyncEPNS_13AsyncOpKernelEPNS_15OpKernelContextESt8functionIFvvEE"


def apply(run: Run, tensors: Sequence[tf.Tensor], dtypes: Sequence[tf.DType], name: str) -> list[tf.Tensor]:
    """Put a call of ``run`` into the graph under construction.

    Args:
        run: Takes arrays, which it must not change, and returns arrays of ``dtypes``.
        tensors: What it takes.
        dtypes: What it returns, one at least.
        name: The operation's name in the graph, as far as that is free.

    Returns:
        The tensors it returns, their shapes unknown.
    """
    CALLS.append((run, isinstance(tf.compat.v1.get_default_graph(), FuncGraph)))
    number = len(CALLS) - 1
    return list(op_def_library.apply_op(NAME, inputs=list(tensors), Tout=list(dtypes), number=number, name=name))


def _declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


def _library(name: str) -> ctypes.CDLL:
    folder = Path(tf.sysconfig.get_lib())
    (found,) = [path for path in folder.glob(f"{name}.*") if path.suffix in (".2", ".dylib")][:1]
    return ctypes.CDLL(str(found))


LIBRARY, FRAMEWORK = _library("libtensorflow_cc"), _library("libtensorflow_framework")
COMPUTE = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
COMPUTE_ASYNC = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
CREATE = ctypes.CFUNCTYPE(c_void_p, c_void_p)

new_status = _declare(LIBRARY, "TF_NewStatus", c_void_p)
delete_status = _declare(LIBRARY, "TF_DeleteStatus", None, c_void_p)
set_status = _declare(LIBRARY, "TF_SetStatus", None, c_void_p, c_int, c_char_p)
get_code = _declare(LIBRARY, "TF_GetCode", c_int, c_void_p)
get_message = _declare(LIBRARY, "TF_Message", c_char_p, c_void_p)
get_number = _declare(
    LIBRARY, "TF_OpKernelConstruction_GetAttrInt64", None, c_void_p, c_char_p, POINTER(c_int64), c_void_p
)
count_inputs = _declare(LIBRARY, "TF_NumInputs", c_int, c_void_p)
get_input = _declare(LIBRARY, "TF_GetInput", None, c_void_p, c_int, POINTER(c_void_p), c_void_p)
output_dtype = _declare(LIBRARY, "TF_ExpectedOutputDataType", c_int, c_void_p, c_int)
allocate_output = _declare(
    LIBRARY, "TF_AllocateOutput", c_void_p, c_void_p, c_int, c_int, POINTER(c_int64), c_int, c_size_t, c_void_p
)
fail = _declare(LIBRARY, "TF_OpKernelContext_Failure", None, c_void_p, c_void_p)
delete_tensor = _declare(LIBRARY, "TF_DeleteTensor", None, c_void_p)
tensor_dtype = _declare(LIBRARY, "TF_TensorType", c_int, c_void_p)
tensor_dimensions = _declare(LIBRARY, "TF_NumDims", c_int, c_void_p)
tensor_length = _declare(LIBRARY, "TF_Dim", c_int64, c_void_p, c_int)
tensor_data = _declare(LIBRARY, "TF_TensorData", c_void_p, c_void_p)
new_tensor = _declare(
    LIBRARY, "TF_NewTensor", c_void_p, c_int, POINTER(c_int64), c_int, c_void_p, c_size_t, c_void_p, c_void_p
)
set_output = _declare(LIBRARY, "TF_SetOutput", None, c_void_p, c_int, c_void_p, c_void_p)
run_done = _declare(LIBRARY, "TF_RunAsyncOpKernelDoneCallback", None, c_void_p)


# Larger results are lent to TensorFlow, smaller ones are copied.
LEAST_LENT_BYTES = 4096


def _lending() -> tuple[int | None, Callable[[], None]]:
    """TensorFlow's own way to let go of a NumPy array from any thread, also when Python has ended.

    A function that notes it down, None where this version of TensorFlow has it elsewhere; and one that releases what is
    noted.
    """
    for path in Path(tf.__file__).parent.glob("python/*pywrap_tensorflow_*.*"):
        library = ctypes.PyDLL(str(path))
        try:
            note = library._ZN10tensorflow18DelayedNumpyDecrefEPvmS0_
            return ctypes.cast(note, c_void_p).value, library._ZN10tensorflow16ClearDecrefCacheEv
        except AttributeError:
            continue
    return None, lambda: None


RELEASE, release_noted = _lending()


class Done(ctypes.Structure):
    """A copy of the ``std::function`` that tells TensorFlow an operation is done.

    TensorFlow destroys its own when the kernel returns. In libstdc++ it is two words of state, a function that manages
    the state, and one that calls it; to move it is to copy the words and to forget the manager in the original.
    """

    _fields_ = (("state", c_void_p * 2), ("manager", c_void_p), ("invoker", c_void_p))
    MANAGER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
    DESTROY = 3

    @classmethod
    def taken(cls, pointer: int) -> Done:
        """Take it over from TensorFlow, which destroys an empty one then."""
        original = cls.from_address(pointer)
        done = cls.from_buffer_copy(original)
        original.manager = None
        return done

    def __call__(self) -> None:
        """Tell TensorFlow, and destroy it; once."""
        run_done(byref(self))
        if self.manager:
            self.MANAGER(self.manager)(ctypes.addressof(self), ctypes.addressof(self), self.DESTROY)


class Threads:
    """Threads that carry out work at once, however much of it waits already; those that are idle are used again.

    Attributes:
        idle: How many have nothing to do.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.idle = 0

    def start(self, work: Callable[[], None]) -> None:
        """Have a thread carry it out."""
        with self._lock:
            is_there = self.idle > 0
            self.idle -= is_there
        if not is_there:
            # Daemons: a rank that ends must not wait for one that waits for another rank.
            threading.Thread(target=self._serve, name="collective-op", daemon=True).start()
        self._work.put(work)

    def _serve(self) -> None:
        while True:
            self._work.get()()
            with self._lock:
                self.idle += 1


THREADS = Threads()
# An operation that no rank can match any more is found out by all threads waiting, and these don't.
idle_threads.append(lambda: THREADS.idle)
INLINE = threading.Lock()


class Status:
    """A TensorFlow status for calls of the C API.

    Attributes:
        pointer: What the calls get.
    """

    def __init__(self) -> None:
        self.pointer: int = new_status()

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *_: Any) -> None:
        delete_status(self.pointer)

    def check(self) -> None:
        """Raise what the last call failed with."""
        if get_code(self.pointer):
            raise RuntimeError(f"TensorFlow: {get_message(self.pointer).decode(errors='replace')}")


def _carry_out(number: int, context: int) -> None:
    """Call what the operation calls, with its inputs, and set its outputs or its status."""
    release_noted()
    with Status() as status:
        try:
            arrays = [_input(context, place, status) for place in range(count_inputs(context))]
            for place, result in enumerate(CALLS[number][0](*arrays)):
                _set_output(context, place, result, status)
        except BaseException as error:  # there is no caller to raise it to
            code = code_of(error)
            message = f"{type(error).__name__}: {error}" if code == tf.errors.UNKNOWN else str(error)
            set_status(status.pointer, code, message.encode())
            fail(context, status.pointer)


class _Lent:
    """Memory of an input, which TensorFlow has back when this, and the last array over it, is gone.

    Attributes:
        dtype: That of the input.
    """

    __slots__ = ("__array_interface__", "_tensor", "dtype")

    def __init__(self, tensor: int) -> None:
        self._tensor = tensor
        self.dtype = _numpy_dtype(tensor_dtype(tensor))
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple([tensor_length(tensor, axis) for axis in range(tensor_dimensions(tensor))]),
            "typestr": f"|V{self.dtype.itemsize}",  # the interface has no names for bfloat16 and the like
            "data": (tensor_data(tensor) or 0, True),
        }

    def __del__(self) -> None:
        if delete_tensor:  # Python forgets it when it ends
            delete_tensor(self._tensor)


def _input(context: int, place: int, status: Status) -> np.ndarray:
    """An input as a read-only array over TensorFlow's memory."""
    pointer = c_void_p()
    get_input(context, place, byref(pointer), status.pointer)
    tensor = pointer.value
    if not tensor:
        status.check()
        raise RuntimeError(f"TensorFlow: input {place} is none")
    lent = _Lent(tensor)
    return np.asarray(lent).view(lent.dtype)


def _set_output(context: int, place: int, result: np.ndarray, status: Status) -> None:
    number = output_dtype(context, place)
    result = np.asarray(result, _numpy_dtype(number), order="C")
    shape = (c_int64 * result.ndim)(*result.shape)
    # What can't be written may be an input: TensorFlow's own memory, which it takes back.
    if RELEASE is None or result.nbytes < LEAST_LENT_BYTES or not result.flags.writeable:
        tensor = allocate_output(context, place, number, shape, result.ndim, result.nbytes, status.pointer)
        status.check()
        _memory(tensor_data(tensor), result.shape, result.dtype)[...] = result
    else:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(result))
        address = result.__array_interface__["data"][0]
        tensor = new_tensor(number, shape, result.ndim, address, result.nbytes, RELEASE, id(result))
        set_output(context, place, tensor, status.pointer)
    delete_tensor(tensor)
    status.check()


@functools.cache
def _numpy_dtype(number: int) -> np.dtype:
    dtype = tf.as_dtype(number)
    if not (dtype.is_bool or dtype.is_integer or dtype.is_floating or dtype.is_complex):
        raise ArgumentError("tensors are of numbers or bool", received=f"dtype={dtype.name}")
    return np.dtype(dtype.as_numpy_dtype)


def _memory(address: int | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    if not address or not size:
        return np.empty(shape, dtype)
    memory: Any = (c_char * size).from_address(address)
    return np.ndarray(shape, dtype, memory)


def _create(construction: int) -> int:
    """The kernel of an operation is the number of what it calls; one more, as 0 is none."""
    number = c_int64()
    with Status() as status:
        get_number(construction, b"number", byref(number), status.pointer)
    return number.value + 1


def _compute_async(kernel: int, context: int, callback: int) -> None:
    done = Done.taken(callback)
    number = kernel - 1

    def work() -> None:
        _carry_out(number, context)
        done()

    # A change of threads takes longer than a small operation. One at a time may do without it: where operations have
    # an order, and TensorFlow has another thread.
    if not (CALLS[number][1] and SPARE_THREAD and INLINE.acquire(blocking=False)):
        THREADS.start(work)
        return
    try:
        work()
    finally:
        INLINE.release()


def _compute(kernel: int, context: int) -> None:
    _carry_out(kernel - 1, context)


# TensorFlow calls them as long as the process lives.
CALLBACKS = CREATE(_create), COMPUTE_ASYNC(_compute_async), COMPUTE(_compute)


def _register() -> None:
    new_builder = _declare(LIBRARY, "TF_NewOpDefinitionBuilder", c_void_p, c_char_p)
    builder = new_builder(NAME.encode())
    for kind, what in (
        ("Input", b"inputs: Tin"),
        ("Output", b"outputs: Tout"),
        ("Attr", b"number: int"),
        ("Attr", b"Tin: list(type) >= 0"),
        ("Attr", b"Tout: list(type) >= 1"),
    ):
        _declare(LIBRARY, f"TF_OpDefinitionBuilderAdd{kind}", None, c_void_p, c_char_p)(builder, what)
    # Stateful: not run twice, not folded, not left out, and by tf.function in program order.
    _declare(LIBRARY, "TF_OpDefinitionBuilderSetIsStateful", None, c_void_p, ctypes.c_bool)(builder, True)
    unknown_shape = _declare(LIBRARY, "TF_ShapeInferenceContextSetUnknownShape", None, c_void_p, c_void_p)
    _declare(LIBRARY, "TF_OpDefinitionBuilderSetShapeInferenceFunction", None, c_void_p, c_void_p)(
        builder, ctypes.cast(unknown_shape, c_void_p)
    )
    with Status() as status:
        _declare(LIBRARY, "TF_RegisterOpDefinition", None, c_void_p, c_void_p)(builder, status.pointer)
        status.check()
    asynchronous = hasattr(FRAMEWORK, KNOWN_CALLBACKS)
    new_kernel = _declare(
        LIBRARY,
        "TF_NewAsyncKernelBuilder" if asynchronous else "TF_NewKernelBuilder",
        c_void_p,
        c_char_p,
        c_char_p,
        CREATE,
        COMPUTE_ASYNC if asynchronous else COMPUTE,
        c_void_p,
    )
    kernel = new_kernel(NAME.encode(), b"CPU", CALLBACKS[0], CALLBACKS[1 if asynchronous else 2], None)
    with Status() as status:
        _declare(LIBRARY, "TF_RegisterKernelBuilder", None, c_char_p, c_void_p, c_void_p)(
            NAME.encode(), kernel, status.pointer
        )
        status.check()


_register()
