"""Operations that index: parts of arrays, rows by number, elements along an axis, one column of each row."""

from collections.abc import Sequence
from typing import Any

from propeller.tensors.operations.flat import offsets_of, spread, strides_of
from propeller.tensors.operations.operation import Kernel, Operation, OperationCall, Record
from propeller.tensors.shapes import (
    Spec,
    TensorError,
    axis_of,
    broadcast,
    elements,
    floating,
    is_floating,
    shape_of,
    sum_dtype,
)

PICKED = "columns (of a loss: as many classes)"
"""What ``pick`` chooses among, for the error about an index that is outside of them."""

# What they yield --------------------------------------------------------------------------------------------


def _part(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    dtype, shape = specs[0]
    if not isinstance(params, list | tuple) or len(params) > len(shape):
        raise TensorError(f"{name}: too many indices for {len(shape)} dimensions")
    left = []
    for axis, (part, size) in enumerate(zip(params, shape, strict=False)):
        if type(part) is int:
            if not 0 <= part < size:
                raise TensorError(f"index {part} is outside axis {axis} of size {size}")
            continue
        if type(part) not in {list, tuple} or len(part) != 3 or not all(type(n) is int for n in part):
            raise TensorError(f"{name}: {part!r:.80} is not a slice")
        start, count, step = part
        if step == 0 or count < 0:
            raise TensorError(f"{name}: {part!r} is not a slice")
        last = start + (count - 1) * step
        if count and not (0 <= start < size and 0 <= last < size):
            raise TensorError(f"{name}: {part!r} is outside axis {axis} of size {size}")
        left.append(count)
    return dtype, (*left, *shape[len(params) :])


def _with_part(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    _check_value(name, specs[1], specs[0], _part(name, specs[:1], params)[1])
    return specs[0]


def _rows(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (dtype, shape), indices = specs
    _check_indices(name, indices)
    if not shape:
        raise TensorError("a number has no rows to take")
    return dtype, indices[1] + shape[1:]


def _with_rows(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    _check_value(name, specs[2], specs[0], _rows(name, specs[:2], None)[1])
    return specs[0]


def _sums_of_rows(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    indices, (dtype, shape) = specs
    _check_indices(name, indices)
    ahead = len(indices[1])
    if shape[:ahead] != indices[1]:
        raise TensorError(
            f"{name}: values of shape {list(shape)} are not one for each index of {list(indices[1])}"
        )
    return sum_dtype(dtype), shape_of(name, [params]) + shape[ahead:]


def _along_axis(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    (dtype, shape), indices = specs
    _check_indices(name, indices)
    axis = axis_of(name, params, len(shape))
    found = indices[1]
    if len(found) != len(shape) or found[:axis] + found[axis + 1 :] != shape[:axis] + shape[axis + 1 :]:
        raise TensorError(
            f"{name}: indices of shape {list(found)} do not lie along axis {axis} of {list(shape)}"
        )
    return dtype, found


def _positions(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    if specs[0][0] != "bool":
        raise TensorError(f"{name} takes an array of bool, got {specs[0][0]}")
    return "int64", shape_of(name, [params])


def _columns(name: str, specs: Sequence[Spec], _params: Any) -> Spec:
    (dtype, shape), indices = specs
    _check_indices(name, indices)
    if len(shape) != 2 or indices[1] != shape[:1]:
        raise TensorError(
            f"pick takes a matrix and one column for each of its rows, got {list(shape)} and {list(indices[1])}"
        )
    return dtype, indices[1]


def _picked(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    columns, (dtype, shape) = specs
    _check_indices(name, columns)
    if len(shape) != 1 or columns[1] != shape:
        raise TensorError(
            f"{name} takes a column and a value for each row, got {list(columns[1])} and {list(shape)}"
        )
    return floating(dtype), (*shape, *shape_of(name, [params]))


def _classes(name: str, specs: Sequence[Spec], params: Any) -> Spec:
    _check_indices(name, specs[0])
    return "float32", (*specs[0][1], *shape_of(name, [params]))


def check_labels(name: str, labels: Spec, shape: tuple[int, ...]) -> None:
    """Refuse labels that are not integers, one for each element of ``shape``.

    Raises:
        TensorError: They are not.
    """
    if labels[0] not in {"int64", "uint8"}:
        raise TensorError(f"{name}: labels are integers, got {labels[0]}; use astype('int64')")
    if labels[1] != shape:
        raise TensorError(f"{name}: labels of shape {list(labels[1])} are not one for each of {list(shape)}")


def _check_value(name: str, value: Spec, target: Spec, place: tuple[int, ...]) -> None:
    if broadcast(name, value[1], place) != place:
        raise TensorError(f"a value of shape {list(value[1])} does not fit into {list(place)}")
    # Fractions are not dropped in silence.
    if is_floating(value[0]) and not is_floating(target[0]):
        raise TensorError(
            f"{name}: a value of {value[0]} does not go into an array of {target[0]}; use astype"
        )


def _check_indices(name: str, spec: Spec) -> None:
    if spec[0] == "bool":
        raise TensorError(
            f"{name}: an array of bool is no index here; use where(mask, x, 0), or weigh with mask * x"
        )
    if spec[0] not in {"int64", "uint8"}:
        raise TensorError(f"{name}: indices are integers, got {spec[0]}; use astype('int64')")


# Gradients --------------------------------------------------------------------------------------------------


def _cut_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x = call.operands[0]
    return [record("put", record("full", params=[x.dtype, list(x.shape), 0]), up, params=call.params)]


def _put_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    return [record("put", up, 0.0, params=call.params), record("cut", up, params=call.params)]


def _put_rows_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x, rows, _ = call.operands
    order = record("arange", params=rows.size).reshape(rows.shape)
    nowhere = record("full", params=["int64", [x.shape[0]], 0])
    # Of equal indices the last counts.
    counts = record("take", record("put_rows", nowhere, rows, order), rows) == order
    part = record("take", up, rows) * counts.reshape(*rows.shape, *[1] * (x.ndim - 1))
    return [record("put_rows", up, rows, 0.0), None, part]


def _gather_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    """An element may be taken several times, so their gradients are added up, in one dimension."""
    x, indices = call.operands
    axis = call.params % x.ndim
    before, size, after = elements(x.shape[:axis]), x.shape[axis], elements(x.shape[axis + 1 :])
    places = _from_start(indices, size, record).reshape(before, indices.shape[axis], after)
    if before > 1:
        places = places + record("arange", params=before).reshape(before, 1, 1) * size
    if after > 1:
        places = places * after + record("arange", params=after)
    added = record("add_rows", places.reshape(up.size), up.reshape(up.size), params=x.size)
    return [added.reshape(x.shape), None]


def _pick_gradient(up: Any, call: OperationCall, record: Record) -> Sequence[Any]:
    x, columns = call.operands
    return [record("put_picked", columns, up, params=x.shape[1]), None]


def _from_start(indices: Any, size: int, record: Record) -> Any:
    """Indices that count from the end, counted from the start."""
    return record("where", indices < 0, indices + size, indices)


# Kernels in plain Python ------------------------------------------------------------------------------------


def _part_offsets(shape: tuple[int, ...], params: Any) -> list[int]:
    strides = strides_of(shape)
    start, sizes, steps = 0, [], []
    for axis, stride in enumerate(strides):
        part = params[axis] if axis < len(params) else [0, shape[axis], 1]
        if isinstance(part, int):
            start += part * stride
        else:
            start += part[0] * stride
            sizes.append(part[1])
            steps.append(part[2] * stride)
    return offsets_of(sizes, steps, start)


def _row_offsets(shape: tuple[int, ...], indices: list[Any]) -> list[int]:
    count, width = shape[0], elements(shape[1:])
    _check_range(indices, count)
    places: list[int] = []
    for index in indices:
        places.extend(range(index % count * width, index % count * width + width))
    return places


def _check_range(indices: list[Any], count: int, what: str = "rows") -> None:
    for index in indices:
        if not -count <= index < count:
            raise IndexError(f"index {index} is outside {count} {what}, 0 to {count - 1}")


def _assigned(x: list[Any], places: list[int], values: list[Any]) -> list[Any]:
    changed = list(x)
    for at, value in zip(places, values, strict=True):
        changed[at] = value
    return changed


def _cut(specs: Sequence[Spec], params: Any, _out: Spec) -> Kernel:
    offsets = _part_offsets(specs[0][1], params)
    return lambda x: [x[at] for at in offsets]


def _put(specs: Sequence[Spec], params: Any, _out: Spec) -> Kernel:
    places = _part_offsets(specs[0][1], params)
    sizes = tuple(part[1] for part in params if not isinstance(part, int)) + specs[0][1][len(params) :]
    return lambda x, value: _assigned(x, places, spread(value, specs[1][1], sizes))


def _take(specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    shape = specs[0][1]
    return lambda x, indices: [x[at] for at in _row_offsets(shape, indices)]


def _put_rows(specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    shape, where, value_shape = specs[0][1], specs[1][1], specs[2][1]

    def kernel(x: list[Any], indices: list[Any], value: list[Any]) -> list[Any]:
        return _assigned(x, _row_offsets(shape, indices), spread(value, value_shape, where + shape[1:]))

    return kernel


def _add_rows(_specs: Sequence[Spec], count: Any, out: Spec) -> Kernel:
    width = elements(out[1][1:])

    def kernel(indices: list[Any], values: list[Any]) -> list[Any]:
        total: list[Any] = [0.0 if is_floating(out[0]) else 0] * (count * width)
        for at, value in zip(_row_offsets(out[1], indices), values, strict=True):
            total[at] += value
        return total

    return kernel


def _nonzero(_specs: Sequence[Spec], count: Any, _out: Spec) -> Kernel:
    def kernel(x: list[Any]) -> list[Any]:
        found = [at for at, value in enumerate(x) if value]
        if len(found) != count:
            raise ValueError(f"{len(found)} elements are true, not {count}")
        return found

    return kernel


def _gather(specs: Sequence[Spec], axis: Any, _out: Spec) -> Kernel:
    shape, chosen = specs[0][1], specs[1][1]
    strides, size = strides_of(shape), shape[axis]
    # Where each result's line begins, and how far its element is along it.
    lines = offsets_of(chosen, [0 if at == axis % len(shape) else step for at, step in enumerate(strides)])
    stride = strides[axis]

    def kernel(x: list[Any], indices: list[Any]) -> list[Any]:
        _check_range(indices, size)
        return [x[line + index % size * stride] for line, index in zip(lines, indices, strict=True)]

    return kernel


def _pick(specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    columns = specs[0][1][1]

    def kernel(x: list[Any], indices: list[Any]) -> list[Any]:
        _check_range(indices, columns, PICKED)
        return [x[row * columns + index % columns] for row, index in enumerate(indices)]

    return kernel


def _put_picked(_specs: Sequence[Spec], count: Any, out: Spec) -> Kernel:
    def kernel(columns: list[Any], values: list[Any]) -> list[Any]:
        _check_range(columns, count)
        made = [0.0] * elements(out[1])
        for row, (column, value) in enumerate(zip(columns, values, strict=True)):
            made[row * count + column % count] = float(value)
        return made

    return kernel


def _one_hot(_specs: Sequence[Spec], classes: Any, _out: Spec) -> Kernel:
    def kernel(labels: list[Any]) -> list[Any]:
        if not all(0 <= label < classes for label in labels):
            raise IndexError(f"a label is outside {classes} classes")
        return [1.0 if column == label else 0.0 for label in labels for column in range(classes)]

    return kernel


# The operations ---------------------------------------------------------------------------------------------

OPERATIONS = (
    Operation(
        name="cut",
        operands=1,
        params="for each leading axis a position or `[start, count, step]`",
        doc="that part; a position's axis goes",
        infer=_part,
        gradient=_cut_gradient,
        kernel=_cut,
        view=True,
        moves=True,
    ),
    Operation(
        name="put",
        operands=2,
        params="as of `cut`",
        doc="the first, with the second there",
        infer=_with_part,
        gradient=_put_gradient,
        kernel=_put,
    ),
    Operation(
        name="take",
        operands=2,
        doc="rows by indices, which may count from the end",
        infer=_rows,
        gradient=lambda up, call, record: [
            record("add_rows", call.operands[1], up, params=call.operands[0].shape[0])
        ],
        kernel=_take,
        moves=True,
    ),
    Operation(
        name="put_rows",
        operands=3,
        doc="of an array, indices and values: the array with these rows; of equal indices the last counts",
        infer=_with_rows,
        gradient=_put_rows_gradient,
        kernel=_put_rows,
    ),
    Operation(
        name="add_rows",
        operands=2,
        params="count",
        doc="of indices and a value for each: this many rows of zeros with the values added at the indices, in the dtype of `sum`",
        infer=_sums_of_rows,
        gradient=lambda up, call, record: [None, record("take", up, call.operands[0])],
        kernel=_add_rows,
    ),
    Operation(
        name="gather",
        operands=2,
        params="axis",
        doc="elements along the axis by indices, in the shape of these, which only differs there",
        infer=_along_axis,
        gradient=_gather_gradient,
        kernel=_gather,
        moves=True,
    ),
    Operation(
        name="nonzero",
        operands=1,
        params="count",
        doc="where the elements of a `bool` that are true are, of which there are this many: their positions in C order, `int64`",
        infer=_positions,
        gradient=None,
        kernel=_nonzero,
    ),
    Operation(
        name="pick",
        operands=2,
        doc="of a matrix, one column of each row",
        infer=_columns,
        gradient=_pick_gradient,
        kernel=_pick,
        moves=True,
    ),
    Operation(
        name="put_picked",
        operands=2,
        params="count",
        doc="of a column and a value for each row: rows of this many zeros with the value in the column",
        infer=_picked,
        gradient=lambda up, call, record: [None, record("pick", up, call.operands[0])],
        kernel=_put_picked,
    ),
    Operation(
        name="one_hot",
        operands=1,
        params="classes",
        doc="`float32`, with a last axis of zeros and a one at each label",
        infer=_classes,
        gradient=None,
        kernel=_one_hot,
    ),
)
