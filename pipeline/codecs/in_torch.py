"""The codecs in torch: rows are packed and read back on the device where the logits are.

The formulas, clamps and orders are those of the NumPy codecs, and so are the payload's bytes;
nothing here waits for the device but `refuse`. Shapes: P rows, C classes, k kept classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from softlabel.pipeline.codecs.codec import Codec
from softlabel.pipeline.codecs.dense import Dense, DenseU8
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.codecs.topk import LEAST_LOG_WEIGHT, TopK, prior_order

Tensors = Mapping[str, Tensor]
# Rows are taken in chunks of so many values: bounded memory, and indices within 31 bits.
CHUNK_VALUES = 2**26
LARGEST_HALF = 65504.0
NEAREST_BELOW_ZERO = -(2.0**-24)
LOW_BITS = 2**32 - 1


def encode(codec: Codec, logits: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
    """`shift` `[P]`, `top1` `[P]` and the codec's columns of logits `[P, C]`, on their device.

    features: `[P, d]`, for `factored`. A row that the codec cannot hold raises nothing, for that
    would wait for the device; `refuse` tells of it when the columns have been copied.
    """
    rows, classes = logits.shape
    size = max(1, CHUNK_VALUES // classes)
    columns: dict[str, Tensor] = {}
    for first in range(0, max(1, rows), size):
        part = slice(first, first + size)
        inputs = None if features is None else features[part].detach().float()
        chunk = _encode(codec, logits[part].detach().float(), inputs)
        if rows <= size:
            return chunk
        for name, values in chunk.items():
            if first == 0:
                columns[name] = values.new_empty((rows, *values.shape[1:]))
            columns[name][part] = values
    return columns


def decode(codec: Codec, columns: Tensors, T: float) -> Tensor:
    """Float32 `[P, C]` whose `softmax(. / T)` are the soft targets at T, on the columns' device.

    columns: those of `encode`, or stored ones with `top1`. Raises ValueError where T is below the
    temperatures that `topk` recorded.
    """
    classes = _num_classes(codec)
    rows = len(columns["top1"])
    size = max(1, CHUNK_VALUES // classes)
    if rows <= size:
        return _decode(codec, columns, T)
    full = torch.empty((rows, classes), device=columns["top1"].device)
    for first in range(0, rows, size):
        part = slice(first, first + size)
        full[part] = _decode(codec, {name: column[part] for name, column in columns.items()}, T)
    return full


def refuse(codec: Codec, columns: Tensors) -> None:
    """Raise ValueError, with the row's number in `args[1]`, for a row that was not to be packed.

    The reasons are those of the NumPy codecs, but for a mask that a factored set's head does not
    know: columns do not show it. Waits for the device where the columns are on one.
    """
    shift = columns["shift"]
    _refuse_rows(shift.isnan(), "logits hold NaN")
    _refuse_rows(shift.isposinf(), "logits hold +inf")
    _refuse_rows(shift.isneginf(), "logits hold nothing but -inf")
    match codec:
        case DenseU8():
            bad = ~columns["range"].isfinite()
            _refuse_rows(bad, "logits hold -inf, which dense-u8 cannot store")
        case TopK():
            bad = columns["tail_lse"].isnan().any(dim=1)
            _refuse_rows(bad, "logits hold -inf among classes that topk leaves out")
        case Factored():
            bad = ~columns["features"].isfinite().all(dim=1)
            _refuse_rows(bad, "features are beyond 65,504, the end of float16")


def _refuse_rows(bad: Tensor, reason: str) -> None:
    if bad.any():
        raise ValueError(reason, int(bad.int().argmax()))


def _encode(codec: Codec, logits: Tensor, features: Tensor | None) -> dict[str, Tensor]:
    shift = logits.amax(dim=1)
    top1 = logits.argmax(dim=1)
    d = logits - shift[:, None]
    # A finite logit whose distance overflowed is the smallest number, not a masked class.
    lost = d.isneginf() & ~logits.isneginf()
    d = torch.where(lost, torch.finfo(torch.float32).min, d)
    ids = torch.uint16 if logits.shape[1] <= 2**16 else torch.uint32
    columns = {"shift": shift, "top1": top1.to(ids)}
    match codec:
        case Dense():
            half = codec.columns[0].dtype == np.float16
            columns["logits"] = _to_half(d) if half else d
        case DenseU8():
            columns["range"] = d.amin(dim=1).abs()
            columns["logits"] = _to_steps(d, columns["range"], top1)
        case TopK():
            return columns | _topk_columns(codec, d, ids)
        case Factored():
            if features is None:
                raise ValueError("codec factored needs the features of the teacher's last layer")
            held = features.abs() <= LARGEST_HALF
            columns["features"] = torch.where(held, features, math.inf).half()
        case _:
            raise TypeError(f"no codec of torch is {type(codec).__name__}")
    return columns | {"lse": _log_sums(d, codec.temperatures)}


def _to_half(d: Tensor) -> Tensor:
    """Clamped at -65,504, -inf kept, and nothing but a maximum is 0."""
    half = d.clamp(min=-LARGEST_HALF).half()
    half = torch.where((half == 0) & (d < 0), NEAREST_BELOW_ZERO, half)
    return torch.where(d.isneginf(), -math.inf, half)


def _to_steps(d: Tensor, spread: Tensor, top1: Tensor) -> Tensor:
    """A byte a class: `max(1, rint(255 sqrt(-d / r)))`, 0 for the top-1 alone."""
    scale = torch.where(spread > 0, spread, 1.0)
    steps = (d / -scale[:, None]).sqrt().mul(255).round().clamp(min=1)
    return steps.scatter(1, top1[:, None], 0.0).to(torch.uint8)


def _topk_columns(codec: TopK, d: Tensor, id_type: torch.dtype) -> dict[str, Tensor]:
    ids = _largest(d, codec.k)
    kept = d.gather(1, ids)
    tail = d.scatter(1, ids, -math.inf)
    highest = tail.amax(dim=1)
    anchor = torch.where(highest.isneginf(), 0.0, highest)[:, None]
    sums = _log_sums(tail - anchor, codec.temperatures)
    sums = sums + torch.cat([anchor / temperature for temperature in codec.temperatures], dim=1)
    lost = d.isneginf().sum(dim=1) - kept.isneginf().sum(dim=1)
    refused = (lost > 0) & (lost < codec.num_classes - codec.k)
    return {
        "ids": ids.to(id_type),
        "logits": _to_half(kept),
        "tail_lse": torch.where(refused[:, None], math.nan, sums),
    }


def _largest(values: Tensor, k: int) -> Tensor:
    """Ids of the k largest of each row, value descending, id ascending among equals.

    torch.topk promises no order among equals, so it gets keys without any: a float's bits, made
    to sort like the float, above the id counted from the end.
    """
    bits = (values + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    classes = torch.arange(values.shape[1], device=values.device)
    keys = (ordered.to(torch.int64) << 32) | (LOW_BITS - classes)
    largest = keys.topk(k, dim=1, sorted=True).values
    return LOW_BITS - (largest & LOW_BITS)


def _log_sums(d: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    sums = [(d * (1 / temperature)).exp().sum(dim=1).log() for temperature in temperatures]
    return torch.stack(sums, dim=1)


def _decode(codec: Codec, columns: Tensors, T: float) -> Tensor:
    match codec:
        case Dense():
            return columns["logits"].float()
        case DenseU8():
            steps = torch.arange(256, device=columns["logits"].device) / 255
            return -columns["range"][:, None] * steps.square()[columns["logits"].int()]
        case TopK():
            return _decode_topk(codec, columns, T)
        case Factored():
            return _decode_factored(codec, columns)
    raise TypeError(f"no codec of torch is {type(codec).__name__}")


def _decode_topk(codec: TopK, columns: Tensors, T: float) -> Tensor:
    kept = columns["logits"].float()
    ids = columns["ids"].to(torch.int64)
    mass = _tail_lse(codec, columns["tail_lse"], T)
    ceiling = kept[:, -1].clamp(max=-(2.0**-24)).double()
    if codec.prior is None:
        level = T * (mass - math.log(codec.num_classes - codec.k))
        level = torch.minimum(level, ceiling).float()
        full = level[:, None].repeat(1, codec.num_classes)
    else:
        full = _spread(codec, ids, ceiling, mass, T)
    return full.scatter(1, ids, kept)


def _tail_lse(codec: TopK, recorded: Tensor, T: float) -> Tensor:
    upper, lower, weight = codec.interpolation(T)
    right = recorded[:, upper].double()
    if weight == 1:
        return right
    if lower is None:
        left = torch.full_like(right, math.log(codec.num_classes - codec.k))
    else:
        left = recorded[:, lower].double()
    return torch.where(right.isneginf(), right, (1 - weight) * left + weight * right)


def _spread(codec: TopK, ids: Tensor, ceiling: Tensor, mass: Tensor, T: float) -> Tensor:
    """The class prior's tail `[P, C]`; see the NumPy codec, which this follows step by step."""
    below, rank = _prior_on(codec, ids.device)
    log_weights = (below / T).clamp(min=LEAST_LOG_WEIGHT)
    offset = T * _offsets(log_weights.exp(), rank[ids], ceiling / T, mass)
    values = offset[:, None] + T * log_weights[rank]
    return torch.minimum(values, ceiling[:, None]).float()


def _offsets(weights: Tensor, places: Tensor, ceiling: Tensor, mass: Tensor) -> Tensor:
    classes, tail = len(weights), len(weights) - places.shape[1]
    sums = weights.flip(0).cumsum(dim=0).flip(0)
    kept = places.sort(dim=1).values
    before = kept - torch.arange(kept.shape[1], device=kept.device)
    kept_sums = weights[kept].flip(1).cumsum(dim=1).flip(1)
    kept_sums = torch.nn.functional.pad(kept_sums, (0, 1))
    lift = torch.where(mass.isneginf(), -math.inf, mass - ceiling)
    units = lift.clamp(max=-LEAST_LOG_WEIGHT).exp()

    def free(held: Tensor) -> tuple[Tensor, Tensor]:
        passed = (before <= held[:, None]).sum(dim=1)
        place = (held + passed).clamp(max=classes - 1)
        return place, sums[place] - kept_sums.gather(1, passed[:, None])[:, 0]

    held = torch.zeros_like(kept[:, 0])
    most = torch.full_like(held, tail)
    for _ in range(tail.bit_length()):
        middle = (held + most) // 2
        place, rest = free(middle)
        fits = ((units - middle) * weights[place] <= rest) | (held == most)
        held, most = torch.where(fits, held, middle + 1), torch.where(fits, middle, most)
    _, rest = free(held.clamp(max=tail - 1))
    left = (units - held).clamp(min=torch.finfo(torch.float64).tiny).log()
    offset = torch.where(held == 0, mass, ceiling + left) - rest.log()
    return torch.where(held == tail, math.inf, offset)


def _decode_factored(codec: Factored, columns: Tensors) -> Tensor:
    weight, bias = _head_on(codec, columns["features"].device)
    full = torch.addmm(bias, columns["features"].float(), weight.T)
    top1 = columns["top1"].to(torch.int64)
    highest = full.amax(dim=1)
    moved = full.argmax(dim=1) != top1
    raised = torch.nextafter(highest, torch.full_like(highest, math.inf))
    highest = torch.where(moved, raised, highest)
    return full.scatter(1, top1[:, None], highest[:, None]) - highest[:, None]


@functools.lru_cache(maxsize=4)
def _prior_on(codec: TopK, device: torch.device) -> tuple[Tensor, Tensor]:
    assert codec.prior is not None
    below, rank = prior_order(codec.prior)
    return torch.from_numpy(below).to(device), torch.from_numpy(rank).to(device)


@functools.lru_cache(maxsize=4)
def _head_on(codec: Factored, device: torch.device) -> tuple[Tensor, Tensor]:
    weight, bias = torch.tensor(codec.head.weight), torch.tensor(codec.head.bias)
    return weight.to(device), bias.to(device)


def _num_classes(codec: Codec) -> int:
    match codec:
        case TopK():
            return codec.num_classes
        case Factored():
            return len(codec.head.bias)
    return codec.columns[0].width or 1
