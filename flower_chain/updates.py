"""Arrays as canonical bytes, their digest and format, and the arithmetic of updates.

The bytes are a safetensors file of which there is exactly one for given arrays, whatever the
order in which they come. It can be reproduced, and its SHA-256 checked, without this package::

    8 bytes       n, the length of the header; unsigned, little-endian; a multiple of 8
    n bytes       the header: JSON in UTF-8, filled up with spaces (0x20) to a multiple of 8
    the rest      the arrays without a gap, each in C order and little-endian

The header has no white space outside its strings and escapes only what JSON must: ``"``, ``\\``
and U+0000 to U+001F, as ``\\b \\t \\n \\f \\r`` where those exist and as ``\\u001f`` (lower case)
otherwise. Its first member is ``"__metadata__":{"format":"flower-chain/1"}``. Then follow the
arrays, the widest items first and those of one width by key (in the order of Unicode code points,
which is that of the UTF-8 bytes), each as ``"key":{"dtype":"F32","shape":[2,3],
"data_offsets":[0,24]}``, the offsets counted from the end of the header. The data lie in the same
order, so that each array starts at a multiple of its item size. A bool is a byte, 0 or 1.

The header is written here, not by the safetensors package: that orders equally wide dtypes by an
internal enumeration that it does not promise to keep. Where no two dtypes are equally wide its
bytes are the same as these, and it reads these bytes in any case.
"""

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_chain.errors import FormatError

Arrays = Mapping[str, NDArray[Any]]
"""A model's arrays, or an update's, by key, in the model's own order."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA_KEY = "__metadata__"
_OPENING = '{"__metadata__":{"format":"flower-chain/1"}'
_MEMBER = re.compile(
    r',("(?:[^"\\]|\\.)*+"):\{"dtype":"(\w+)",'
    r'"shape":\[((?:\d{1,19}(?:,\d{1,19})*+)?)\],"data_offsets":\[\d+,\d+\]\}',
    re.ASCII,
)
_MAX_HEADER_BYTES = 2**20
_MAX_DIMENSIONS = 32
_BLOCK_ITEMS = 2**16
_INT64 = np.iinfo(np.int64)
_to_int = np.frompyfunc(int, 1, 1)


@dataclass(frozen=True)
class ArraySpec:
    """What one array looks like.

    Parameters
    ----------
    key : str
        The array's name in the model.
    dtype : str
        Safetensors' name of the item type, such as ``"F32"``.
    shape : tuple of int
        Empty for a single number.

    Raises
    ------
    FormatError
        If the canonical bytes can't hold such an array.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_key(self.key)
        if self.dtype not in _DTYPES:
            raise FormatError(
                f"{self.key!r} has dtype {self.dtype!r}, which can't be packed: "
                f"use one of {', '.join(_DTYPES)}"
            )
        _check_shape(self.key, self.shape, _DTYPES[self.dtype].itemsize)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The item type, little-endian."""
        return _DTYPES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def nbytes(self) -> int:
        """Bytes of the array's data."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def _place(self) -> tuple[int, str]:
        return -self.numpy_dtype.itemsize, self.key

    def _member(self, start: int, stop: int) -> str:
        key = json.dumps(self.key, ensure_ascii=False)
        shape = ",".join(map(str, self.shape))
        offsets = f"{start},{stop}"
        return f',{key}:{{"dtype":"{self.dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}'


@dataclass(frozen=True)
class Format:
    """What the arrays of a model look like: keys, item types and shapes.

    Two models of the same format compare equal, whatever the order of their keys.

    Parameters
    ----------
    specs : tuple of ArraySpec
        In canonical order: the widest items first, then by key.

    Raises
    ------
    FormatError
        If a key comes twice, or the order is another.
    """

    specs: tuple[ArraySpec, ...]

    def __post_init__(self) -> None:
        keys = [spec.key for spec in self.specs]
        if len(set(keys)) < len(keys):
            raise FormatError(f"the key {Counter(keys).most_common(1)[0][0]!r} comes twice")
        if list(self.specs) != sorted(self.specs, key=lambda spec: spec._place):
            raise FormatError(f"not in canonical order (widest items first, then by key): {keys}")

    @classmethod
    def of(cls, arrays: Arrays) -> "Format":
        """The format of `arrays`.

        Raises
        ------
        FormatError
            If an array's item type is not a float of 16 to 64 bits, an integer or bool.
        """
        specs = (ArraySpec(key, _name_of(a.dtype), a.shape) for key, a in arrays.items())
        return cls(tuple(sorted(specs, key=lambda spec: spec._place)))

    @classmethod
    def from_json(cls, text: str) -> "Format":
        """Read what :meth:`to_json` wrote, to the letter.

        Raises
        ------
        FormatError
            If the text is anything else.
        """
        found = cls(tuple(_specs_in(text)))
        if found.to_json() != text:
            raise FormatError(f"not a canonical header: {_shortened(text)}")
        return found

    def differences(self, other: "Format") -> list[tuple[str, object, object]]:
        """The arrays in which two formats differ: name, here, there."""
        here, there = ({spec.key: spec for spec in f.specs} for f in (self, other))
        keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        return [(f"model: {key!r}", here.get(key), there.get(key)) for key in keys]

    def to_json(self) -> str:
        """The header of the packed arrays, without the spaces that fill it up."""
        members = []
        start = 0
        for spec in self.specs:
            stop = start + spec.nbytes
            members.append(spec._member(start, stop))
            start = stop
        return _OPENING + "".join(members) + "}"

    @cached_property
    def preamble(self) -> bytes:
        """All that precedes the data: the header, its length before it.

        Raises
        ------
        FormatError
            If the header is longer than 1 MiB.
        """
        text = self.to_json().encode()
        length = math.ceil(len(text) / 8) * 8
        if length > _MAX_HEADER_BYTES:
            raise FormatError(
                f"a header of {length} bytes; at most {_MAX_HEADER_BYTES}: use fewer arrays"
            )
        return length.to_bytes(8, "little") + text.ljust(length)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed arrays: all arrays of one format pack to the same size."""
        return len(self.preamble) + sum(spec.nbytes for spec in self.specs)

    @property
    def whole(self) -> list[ArraySpec]:
        """Those of arrays that hold no floats: numbers that can't be clipped or averaged."""
        return [spec for spec in self.specs if spec.numpy_dtype.kind != "f"]

    def of_update(self) -> "Format":
        """The format of an update to such a model; see :func:`difference`."""
        specs = (
            spec if spec.numpy_dtype.kind == "f" else ArraySpec(spec.key, "I64", spec.shape)
            for spec in self.specs
        )
        return Format(tuple(sorted(specs, key=lambda spec: spec._place)))

    def check(self, arrays: Arrays) -> None:
        """Refuse arrays of another format.

        Raises
        ------
        FormatError
            Naming the first key that is missing, has another item type or shape, or is too many.
        """
        for spec in self.specs:
            if spec.key not in arrays:
                raise FormatError(f"{spec.key!r} is missing: expected {_described(spec)}")
            found = ArraySpec(spec.key, _name_of(arrays[spec.key].dtype), arrays[spec.key].shape)
            if found != spec:
                raise FormatError(
                    f"{spec.key!r} is {_described(found)}; expected {_described(spec)}"
                )
        if unexpected := sorted(set(arrays) - {spec.key for spec in self.specs}):
            raise FormatError(f"{unexpected[0]!r} is not among the model's arrays")


def pack(arrays: Arrays) -> bytes:
    """The canonical bytes of `arrays`: the same for any order of the keys.

    Raises
    ------
    FormatError
        If an item type or a key can't be packed, or the header is longer than 1 MiB.
    """
    layout = Format.of(arrays)
    return b"".join([layout.preamble, *_data(layout, arrays)])


def digest_of(arrays: Arrays) -> bytes:
    """SHA-256 of what :func:`pack` makes of `arrays`, without making it.

    Raises
    ------
    FormatError
        As :func:`pack`.
    """
    layout = Format.of(arrays)
    hashed = hashlib.sha256(layout.preamble)
    for part in _data(layout, arrays):
        hashed.update(part)
    return hashed.digest()


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays in canonical bytes, in canonical order.

    They are read-only views of `data`; copy one before writing to it.

    Raises
    ------
    FormatError
        If `data` are not exactly the bytes that :func:`pack` makes of these arrays.
    """
    layout = _layout_of(data)
    if len(data) != layout.nbytes:
        raise FormatError(f"{len(data)} bytes where the header tells of {layout.nbytes}")
    arrays = {}
    start = len(layout.preamble)
    for spec in layout.specs:
        arrays[spec.key] = _view(data, start, spec)
        start += spec.nbytes
    return arrays


def digest(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def check_finite(arrays: Arrays) -> None:
    """Refuse NaN and infinity.

    Raises
    ------
    FormatError
        Naming the first key that holds one.
    """
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = array.size - int(np.isfinite(array).sum())
            raise FormatError(f"{key!r} holds {count} of {array.size} values that are not finite")


def check_stays_finite(received: Arrays, update: Arrays) -> None:
    """As :func:`check_finite` of :func:`apply`, which is left out where it can't but pass.

    Raises
    ------
    FormatError
        As those two.
    """
    Format.of(received).of_update().check(update)
    if not all(_is_far_from_overflow(base, update[key]) for key, base in received.items()):
        check_finite(apply(received, update))


def difference(trained: Arrays, received: Arrays) -> dict[str, NDArray[Any]]:
    """The update ``trained - received`` (papers/1, section II.A).

    Floats keep their item type; a difference too large for it is infinite, which
    :func:`check_finite` refuses. Integers and bools, such as BatchNorm's ``num_batches_tracked``,
    become int64, which holds a negative difference of unsigned numbers too: nothing wraps around.

    Raises
    ------
    FormatError
        If the two differ in format, or a difference of 64-bit integers does not fit int64.
    """
    Format.of(received).check(trained)
    return {key: _subtracted(key, trained[key], base) for key, base in received.items()}


def apply(received: Arrays, update: Arrays, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    """The model ``received + scale * update``, in the model's item types.

    With the `scale` of 1 the inverse of :func:`difference`: exact for integers, and up to the
    rounding of the item type for floats. Computed and rounded as :func:`mean` says.

    Raises
    ------
    FormatError
        If `update` is not in the format of an update to `received`.
    """
    Format.of(received).of_update().check(update)
    return {
        key: _moved(base, update[key] if scale == 1 else scale * update[key].astype(np.float64))
        for key, base in received.items()
    }


def mean(received: Arrays, updates: Sequence[Arrays], eta: float) -> dict[str, NDArray[Any]]:
    """The next model ``T + eta * (sum(updates) / b)`` (papers/1, section II.B).

    Computed in float64, entry by entry, the sum from 0 in the order given, and then rounded to the
    model's item type, to nearest and half to even: anyone who has the same bytes gets the same
    bytes. Of integers only the step is rounded; where the sum leaves the range of the item type it
    stays at the end of it. A float too large for its type is infinite: :func:`check_finite`.

    Parameters
    ----------
    received : Arrays
        The model ``T`` that the updates are to.
    updates : sequence of Arrays
        At least one, sorted by account; what :func:`difference` gave.
    eta : float
        The owner's learning rate; 1 replaces the model with the mean of the trained ones.

    Raises
    ------
    FormatError
        If an update is not in the format of an update to `received`.
    ValueError
        If there is no update.
    """
    if not updates:
        raise ValueError("the mean of no updates: keep the model as it is instead")
    layout = Format.of(received).of_update()
    for update in updates:
        layout.check(update)
    return {
        key: _moved_by_mean(base, [update[key] for update in updates], eta)
        for key, base in received.items()
    }


def weighted_mean(models: Sequence[Arrays], weights: Sequence[int]) -> dict[str, NDArray[Any]]:
    """The model ``sum(p_k w_k) / sum(p_k)`` (papers/3, algorithm 2 without its slip).

    Computed in float64, entry by entry, the sum from 0 in the order given, and then rounded to the
    models' item types as :func:`mean` says: anyone who has the same bytes gets the same bytes.

    Parameters
    ----------
    models : sequence of Arrays
        w_k, of one format, sorted by account.
    weights : sequence of int
        p_k, not negative, not all zero.

    Raises
    ------
    FormatError
        If the models differ in format.
    ValueError
        If the weights are not that.
    """
    if len(weights) != len(models) or min(weights, default=0) < 0 or not any(weights):
        raise ValueError(f"weights {list(weights)} of {len(models)} models: not all may be zero")
    layout = Format.of(models[0])
    for model in models:
        layout.check(model)
    return {
        key: _weighted(base, [model[key] for model in models], weights)
        for key, base in models[0].items()
    }


def _check_key(key: str) -> None:
    if key == _METADATA_KEY:
        raise FormatError(f"{key!r} is safetensors' own key: rename the array")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{key!r} is not Unicode text: rename the array") from error


def _check_shape(key: str, shape: tuple[int, ...], itemsize: int) -> None:
    if len(shape) > _MAX_DIMENSIONS:
        raise FormatError(f"{key!r} has {len(shape)} dimensions; at most {_MAX_DIMENSIONS}")
    if any(length < 0 for length in shape):
        raise FormatError(f"{key!r} has shape {list(shape)}: no length is negative")
    # numpy leaves lengths of 0 out when it asks whether an array is too big for the machine.
    if math.prod(length or 1 for length in shape) * itemsize > sys.maxsize:
        raise FormatError(f"{key!r} has a shape too large for any machine")


def _name_of(dtype: np.dtype[Any]) -> str:
    return _NAMES.get(dtype.newbyteorder("<"), str(dtype))


def _described(spec: ArraySpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")


def _specs_in(text: str) -> Iterator[ArraySpec]:
    # Not by json.loads: on deeply nested text from a stranger it can overflow the C stack.
    place = len(_OPENING)
    while member := _MEMBER.match(text, place):
        key, dtype, shape = member.groups()
        yield ArraySpec(_unescaped(key), dtype, tuple(map(int, shape.split(",") if shape else ())))
        place = member.end()


def _unescaped(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError as error:
        raise FormatError(f"{_shortened(literal)} is no key in JSON: {error}") from error


def _layout_of(data: bytes) -> Format:
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise FormatError(
            f"a header of {length} bytes in {len(data)} bytes; at most {_MAX_HEADER_BYTES}"
        )
    try:
        text = data[8 : 8 + length].decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"the header is not UTF-8: {error}") from error
    layout = Format.from_json(text.rstrip(" "))
    if layout.preamble != data[: 8 + length]:
        raise FormatError(f"the header is filled up to {length} bytes, not to a multiple of 8")
    return layout


def _data(layout: Format, arrays: Arrays) -> Iterator[memoryview]:
    """The bytes of the arrays, in order; not copied where they are canonical already."""
    for spec in layout.specs:
        yield _canonical(arrays[spec.key], spec.numpy_dtype).reshape(-1).view(np.uint8).data


def _canonical(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "b":
        # numpy takes any byte but 0 for True, and keeps it.
        array = array.view(np.uint8) != 0
    return np.ascontiguousarray(array, dtype)


def _view(data: bytes, start: int, spec: ArraySpec) -> NDArray[Any]:
    array = np.frombuffer(data, spec.numpy_dtype, math.prod(spec.shape), start)
    if spec.dtype == "BOOL" and (array.view(np.uint8) > 1).any():
        raise FormatError(f"{spec.key!r} holds a bool that is neither 0 nor 1")
    return array.reshape(spec.shape)


def _is_far_from_overflow(base: NDArray[Any], step: NDArray[Any]) -> bool:
    if base.dtype.kind != "f" or not base.size:
        return True
    return _largest(base) + _largest(step) <= float(np.finfo(base.dtype).max)


def _largest(array: NDArray[Any]) -> float:
    """The largest absolute value; NaN if there is one."""
    return max(abs(float(array.min())), abs(float(array.max())))


def _subtracted(key: str, trained: NDArray[Any], base: NDArray[Any]) -> NDArray[Any]:
    if base.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(trained - base)
    delta = _widened(trained)
    delta -= _widened(base)
    if delta.size and not _INT64.min <= delta.min() <= delta.max() <= _INT64.max:
        raise FormatError(f"{key!r} changed by more than int64 holds")
    return delta.astype(np.int64)


def _moved_by_mean(base: NDArray[Any], updates: Sequence[NDArray[Any]], eta: float) -> NDArray[Any]:
    """Block by block, so that what is computed in float64 stays in the processor's cache."""
    moved = np.empty(base.shape, base.dtype)
    target, source, rows = moved.reshape(-1), base.reshape(-1), [u.reshape(-1) for u in updates]
    for start in range(0, base.size, _BLOCK_ITEMS):
        block = slice(start, start + _BLOCK_ITEMS)
        target[block] = _moved(source[block], _scaled_mean([row[block] for row in rows], eta))
    return moved


def _weighted(
    like: NDArray[Any], arrays: Sequence[NDArray[Any]], weights: Sequence[int]
) -> NDArray[Any]:
    total = np.zeros(like.shape, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for array, weight in zip(arrays, weights, strict=True):
            total += weight * array.astype(np.float64)
        return _moved(np.zeros_like(like), np.asarray(total / sum(weights)))


def _scaled_mean(updates: Sequence[NDArray[Any]], eta: float) -> NDArray[np.float64]:
    total = np.zeros(updates[0].shape, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for update in updates:
            total += update
        return np.asarray(eta * (total / len(updates)))


def _moved(base: NDArray[Any], step: NDArray[Any]) -> NDArray[Any]:
    if base.dtype.kind != "f":
        return _moved_integers(base, step)
    # In float64 if the step is. The sum of two floats of a narrower type is the same either way:
    # rounded to 53 bits and then to 24 or 11 it is what it is if rounded once.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(base + step).astype(base.dtype, copy=False)


def _moved_integers(base: NDArray[Any], step: NDArray[Any]) -> NDArray[Any]:
    low, high = _range_of(base.dtype)
    total = _widened(base)
    total += _whole(step, total.dtype)
    return np.asarray(np.clip(total, low, high)).astype(base.dtype)


def _whole(step: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    # Cut where it leads out of any item's range for sure, and the sum can't wrap around yet.
    if step.dtype.kind == "f":
        step = np.clip(np.rint(step), -(2.0**65), 2.0**65)
    if dtype.kind == "O":
        return np.asarray(_to_int(step), object)
    return np.asarray(np.clip(step, -(2**33), 2**33)).astype(np.int64)


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    # 65 bits hold any sum of 64-bit integers: those are left to Python's own.
    return array.astype(object if array.dtype.itemsize == 8 else np.int64)


def _range_of(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
