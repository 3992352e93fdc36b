"""The pickle inside of a PyTorch file, read without running what it asks to run.

A pickle is a program that may call anything. Here it may only name storages, place
tensors in them, and build dictionaries; a file that names anything else is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Storage(NamedTuple):
    """Numbers in one row, in an entry of the file.

    Attributes:
        key: name of the entry.
        dtype: type of the numbers, in NumPy's words.
        size: how many.
    """

    key: str
    dtype: str
    size: int


class View(NamedTuple):
    """A tensor: numbers of a storage, at strides.

    Attributes:
        storage: where they are.
        offset: the first of them.
        shape: shape of the tensor.
        strides: distance of neighbours along each axis, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def span(self) -> int:
        """How many numbers lie from the first to the last one used."""
        if 0 in self.shape:
            return 0
        return 1 + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )


def read_pickle(data: bytes, origin: str) -> Any:
    """Dictionaries, lists, numbers, text and ``View``s of a pickle.

    Args:
        data: the pickle.
        origin: the file, for messages.

    Raises:
        ValueError: if it asks to run anything but what makes tensors and dictionaries,
            or is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(data), origin).load()
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(
            f"{origin}: its table of tensors (data.pkl) is damaged ({error}); fetch "
            f"or write the file again."
        ) from error


class _Refused(Exception):
    """The file asks for more than tensors."""


# Whatever a pickle can name or build has a ``__setstate__`` or no attributes to set, so
# that its BUILD instruction cannot alter anything.


class _Mapping(dict):
    """An ``OrderedDict``: dictionaries keep their order anyway."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drop attributes (``_metadata``, the versions of a model's modules)."""


class Inert:
    """Stands for an object of which nothing is needed."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drop its attributes."""


class _Function:
    """A function that the file may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("the file asks to alter a function; it is none of torch.save.")


class _StorageType(NamedTuple):
    dtype: str


def _view(storage, offset, shape, strides, *details) -> View:
    """``torch._utils._rebuild_tensor(_v2)``."""
    metadata = details[2] if len(details) > 2 else None
    shape, strides = tuple(shape), tuple(strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    if metadata:
        raise _Refused(
            f"the file holds a tensor with pending operations ({metadata}); apply them "
            f"(resolve_conj, resolve_neg) before saving."
        )
    return View(storage, offset, shape, strides)


def _parameter(data, *details) -> Any:
    """``torch._utils._rebuild_parameter`` and ``..._with_state``."""
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function(_Mapping),
    ("torch._utils", "_rebuild_tensor"): _Function(_view),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_view),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("argparse", "Namespace"): Inert,
} | {("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, origin: str):
        super().__init__(file)
        self._origin = origin

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(
                f"{self._origin}: the file asks to run {module}.{name}, which this "
                f"reader does not do: only tensors in dictionaries are read. If you "
                f"trust the file, load it with torch and save its state dict alone: "
                f"torch.save(model.state_dict(), path)."
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, size = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise ValueError(f"a reference to {kind!r}")
        if not isinstance(key, str) or not isinstance(size, int) or size < 0:
            raise ValueError(f"a storage of {size!r} numbers")
        return Storage(key, storage.dtype, size)
