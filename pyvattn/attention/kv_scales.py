# SPDX-License-Identifier: Apache-2.0
"""What float8 K and V are multiplied with: a scale for each layer and KV head, beside the cache."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyvattn.arguments import check_path, check_type
from pyvattn.attention.problem import FLOAT8, TORCH_DTYPES, check_cache
from pyvattn.errors import CalibrationError, LayerError, TensorError, UnsupportedError
from pyvattn.files import read_text, write_whole
from pyvattn.text import printable, shown
from pyvattn.whole_numbers import whole_number

if TYPE_CHECKING:
    from pyvattn.cache import KVCache
    from pyvattn.rows import RowMap

#: How far past the largest value that was seen a calibrated scale reaches. A float keeps its
#: precision, so room costs nothing until values become subnormal.
MARGIN = 2.0

_FORMAT = "pyvattn-kv-scales-1"
_MOST_BYTES = 1 << 26


class LayerScales(NamedTuple):
    """The scales of one layer, each float32 ``[kv_heads]``: a value is its element times those."""

    k: Tensor
    v: Tensor


class KVScales:
    """The scales of a float8 cache: ``k[layer]`` and ``v[layer]`` are float32 ``[kv_heads]``.

    An element ``e`` of head ``h`` stands for ``e * scale[h]``. Hand them to the cache with
    :func:`set_scales`. The tensors stay where they are and may be captured in CUDA graphs.

    Raises :class:`~pyvattn.errors.TensorError` for tensors of another shape or dtype, on
    several devices, and for scales that are not positive and finite.
    """

    def __init__(self, k: Sequence[Tensor], v: Sequence[Tensor]) -> None:
        for name, tensors in (("k", k), ("v", v)):
            check_type(name, tensors, list, tuple)
        if len(k) != len(v) or not len(k):
            raise TensorError(
                f"scales of {len(k)} layers for K and {len(v)} for V: give both for every layer"
            )
        self.layers = tuple(LayerScales(*pair) for pair in zip(k, v, strict=True))
        for number, layer in enumerate(self.layers):
            _check_layer(number, layer)
        self._pending: set[int] = set()

    @classmethod
    def to_calibrate(cls, cache: KVCache | RowMap) -> KVScales:
        """Return scales for ``cache`` that :meth:`calibrate` is to find; they are 1 until then."""
        check_cache(cache)
        shapes = [cache.layer(layer)[0] for layer in range(cache.spec.layers)]
        made = [
            [torch.ones(k.shape[2], dtype=torch.float32, device=k.device) for k in shapes]
            for _ in "kv"
        ]
        scales = cls(*made)
        scales._pending = set(range(len(shapes))) - set(cache.spec.shared)
        return scales

    def is_pending(self, layer: int) -> bool:
        """Whether a layer waits for its first :meth:`calibrate`. Raises ``LayerError``."""
        return self._number(layer) in self._pending

    def calibrate(self, layer: int, k: Tensor, v: Tensor, dtype: torch.dtype) -> None:
        """Set a layer's scales by the largest of each head in ``k`` and ``v``.

        Both are ``[..., kv_heads, head_dim]``; ``dtype`` is that of the cache. There is room for
        values :data:`MARGIN` times as large, and larger ones become the largest. A head of zeros
        gets 1, what is not finite is passed over. No value is read on the host.
        """
        if not isinstance(dtype, torch.dtype) or dtype not in FLOAT8:
            raise TensorError(f"dtype {shown(dtype)}: use that of a float8 cache")
        number = self._number(layer)
        pair = zip(self.layers[number], (k, v), strict=True)
        found = [scale_of(_largest(values, scale), dtype, MARGIN) for scale, values in pair]
        for scale, value in zip(self.layers[number], found, strict=True):
            scale.copy_(value)
        self._pending.discard(number)

    def of(self, layer: int) -> LayerScales:
        """Return the scales of a layer; -1 is the last. Raises ``LayerError``."""
        return self.layers[self._number(layer)]

    def _number(self, layer: int) -> int:
        number, layers = whole_number(layer), len(self.layers)
        if number is None or not -layers <= number < layers:
            raise LayerError(f"layer {shown(layer)} is outside 0..{layers - 1}")
        return number % layers

    def save(self, path: str | Path) -> None:
        """Write the scales to a JSON file, which :meth:`load` reads. Waits for the device.

        The file is written whole or not at all. Raises
        :class:`~pyvattn.errors.CalibrationError` where it cannot be.
        """
        target = check_path("path", path)
        values = {
            name: [getattr(layer, name).tolist() for layer in self.layers] for name in ("k", "v")
        }
        try:
            write_whole(target, [json.dumps({"format": _FORMAT, **values}), "\n"])
        except OSError as error:
            raise CalibrationError(
                f"scales cannot be written to {printable(str(target))} "
                f"({error.strerror or error}): name another file"
            ) from error

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device) -> KVScales:
        """Read what :meth:`save` wrote. Raises :class:`~pyvattn.errors.CalibrationError`."""
        source = check_path("path", path)
        try:
            where = torch.device(device)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise TensorError(f"device {shown(device)}: use one of torch, such as 'cpu'") from error
        try:
            read = json.loads(read_text(source, _MOST_BYTES))
            if not isinstance(read, dict) or read.get("format") != _FORMAT:
                raise ValueError(f'it has no "format": "{_FORMAT}"')
            made = [
                [torch.tensor(heads, dtype=torch.float32, device=where) for heads in read[name]]
                for name in ("k", "v")
            ]
            return cls(*made)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise CalibrationError(
                f"scales cannot be read from {printable(str(source))} ({printable(why)[:120]}): "
                "write the file with KVScales.save()"
            ) from error


# Beside the cache: nothing of it is needed by who only moves bytes.
_of_cache: weakref.WeakKeyDictionary[object, KVScales] = weakref.WeakKeyDictionary()


def set_scales(cache: KVCache | RowMap, scales: KVScales) -> None:
    """Let :func:`append` and :func:`attend` quantise for ``cache`` with ``scales``.

    Set them before the first token: what lies in the cache is not converted.

    Raises :class:`~pyvattn.errors.UnsupportedError` for a cache that is not float8 or has no K
    and V heads, and :class:`~pyvattn.errors.TensorError` for scales that are not of its layers,
    its heads and its device.
    """
    check_cache(cache)
    if not isinstance(scales, KVScales):
        raise TensorError(f"scales={shown(scales)}: use a KVScales")
    spec = cache.spec
    if not spec.dtype.startswith("float8") or spec.kind != "kv":
        raise UnsupportedError(
            f"a cache of kind {spec.kind!r} in {spec.dtype} has no scales: open it with "
            "CacheSpec(dtype='float8_e4m3fn')"
        )
    if len(scales.layers) != spec.layers:
        raise TensorError(
            f"scales of {len(scales.layers)} layers for a cache of {spec.layers}: give a pair for "
            "each layer"
        )
    for number, layer in enumerate(scales.layers):
        k, _ = cache.layer(number)
        if layer.k.shape[0] != k.shape[2]:
            raise TensorError(
                f"layer {number} has {k.shape[2]} KV heads and scales of {layer.k.shape[0]}: give "
                "a scale for each head"
            )
        if layer.k.device != k.device:
            raise TensorError(
                f"scales on {layer.k.device} for a cache on {k.device}: move them there"
            )
    _of_cache[cache] = scales


def scales_of(cache: object) -> KVScales | None:
    """Return the scales that :func:`set_scales` gave ``cache``, or ``None``."""
    check_cache(cache)
    return _of_cache.get(cache)


def scale_of(largest: Tensor, dtype: torch.dtype, margin: float = 1.0) -> Tensor:
    """Return the scales with which values up to ``largest`` times ``margin`` fit in ``dtype``."""
    return torch.where(largest > 0, largest * (margin / torch.finfo(dtype).max), 1.0)


def largest_finite(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the largest magnitude over ``dims`` in float32, passing over what is not finite."""
    sizes = values.float().abs()
    return torch.where(sizes.isfinite(), sizes, 0.0).amax(dim=dims)


def _largest(values: Tensor, scale: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype not in TORCH_DTYPES:
        raise TensorError(f"values {shown(values)}: use a tensor of float32, float16 or bfloat16")
    if values.dim() < 2 or values.shape[-2] != scale.shape[0]:
        raise TensorError(
            f"values of {list(values.shape)} for {scale.shape[0]} KV heads: use [..., kv_heads, "
            "head_dim]"
        )
    if not values.numel():
        return torch.zeros_like(scale)
    return largest_finite(values, (*range(values.dim() - 2), values.dim() - 1))


def _check_layer(number: int, layer: LayerScales) -> None:
    for name, scale in layer._asdict().items():
        if not isinstance(scale, Tensor) or scale.dim() != 1:
            raise TensorError(
                f"the {name} scales of layer {number} are {shown(scale)}: use a "
                "tensor of [kv_heads]"
            )
        if scale.dtype != torch.float32:
            raise TensorError(
                f"the {name} scales of layer {number} are {scale.dtype}: use torch.float32"
            )
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise TensorError(
                f"the {name} scales of layer {number} are {shown(scale.tolist())}: use positive "
                "finite numbers"
            )
    if layer.k.shape != layer.v.shape or layer.k.device != layer.v.device:
        raise TensorError(
            f"layer {number} has {layer.k.shape[0]} scales for K on {layer.k.device} and "
            f"{layer.v.shape[0]} for V on {layer.v.device}: give one for each KV head, on one "
            "device"
        )
