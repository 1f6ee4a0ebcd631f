# SPDX-License-Identifier: Apache-2.0
"""The state of all slots on the device, and the step that adds a token to some of them.

Tokens and lengths are kept by slot, so a batch is only a list of slots: a request that
joins or leaves changes that list and nothing else. Everything a step reads and writes
has a fixed address, K and V too, so on CUDA a step is captured once for each batch size
and replayed while slots grow, join and leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.attention.features import Feature
from pyvattn.errors import UnsupportedError
from pyvattn.integrations.transformers.base import ContiguousCache
from pyvattn.integrations.transformers.compat import cache_argument, kinds_and_windows
from pyvattn.integrations.transformers.compiled_layers import CompiledLayers
from pyvattn.integrations.transformers.forward import ForwardPass
from pyvattn.integrations.transformers.fused_projections import FusedProjections
from pyvattn.integrations.transformers.graphs import Recorder, decode_kernels
from pyvattn.integrations.transformers.parts import Calls, Chunk, Part, known, upload
from pyvattn.integrations.transformers.sampling import choose_by
from pyvattn.integrations.transformers.slot_states import SlotStates
from pyvattn.logs import logger_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pyvattn.cache import KVCache, Slot
    from pyvattn.integrations.transformers.ranks import Ranks
    from pyvattn.integrations.transformers.sampling import Sampler

_log = logger_of(__name__)


class DeviceBatch:
    """Runs a model over the slots of a cache; the host reads no value.

    ``scratch`` is a slot of one backed token that fills up captured batches: with it
    steps are captured as CUDA graphs, without it they run as they are. Where the model cannot be
    captured they do so too, unless it is to ``insist``. With ``compile`` the model's layers are
    compiled, and with ``fuse_projections`` they multiply together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache,
        common: Sampler,
        scratch: Slot | None,
        insist: bool,
        compile: bool,
        fuse_projections: bool,
        ranks: Ranks,
    ) -> None:
        slots = cache.spec.max_slots
        self._model = model
        self._layers = CompiledLayers(model).in_place if compile else nullcontext
        self._fused = FusedProjections(model).in_place if fuse_projections else nullcontext
        self._common = common
        self._ranks = ranks
        self._scratch = None if scratch is None else int(scratch)
        self._insist = insist
        self._view = _View(cache, model.config.get_text_config(decoder=True))
        self._cache_argument = cache_argument(model)
        self._tokens = torch.zeros(slots, dtype=torch.long, device=model.device)
        self._lengths = torch.ones(slots, dtype=torch.long, device=model.device)
        self._new = torch.zeros(slots, dtype=torch.long, device=model.device)
        self._calls = calls_for(model, cache)
        self._record = Recorder(model.device).record
        # By the number of rows, and whether the logits are kept.
        self._captured: dict[tuple[int, bool], _Captured] = {}
        #: How many tokens of prompts it was given so far.
        self.prefilled = 0

    @property
    def graphs(self) -> bool:
        """Whether steps are captured."""
        return self._scratch is not None

    @property
    def captures(self) -> int:
        """How many steps were captured so far."""
        return len(self._captured)

    def prefill(
        self,
        chunks: Sequence[Chunk],
        tokens: Sequence[int],
        samplers: Sequence[Sampler | None],
    ) -> Tensor:
        """Run the tokens of ``chunks``, ``tokens`` in turn, in one packed batch.

        Of one chunk where layers keep states: the library's code for these takes a packed batch for
        one sequence.

        Returns ``[chunks]``: the token that follows each chunk, which is the slot's next one
        where the chunk ends its prompt. ``samplers`` choose it, the common one where it is None.
        """
        device = self._model.device
        self.prefilled += len(tokens)
        logits = self._packed(chunks, tokens)
        lengths = [chunk.end for chunk in chunks]
        new = self._common.choose(logits, lengths[0])
        choose_by(samplers, logits, lengths, new)
        self._ranks.follow(new)
        slots = upload([chunk.slot for chunk in chunks], device)
        self._tokens[slots] = new
        self._lengths[slots] = upload(lengths, device)
        return new

    def _packed(self, chunks: Sequence[Chunk], tokens: Sequence[int]) -> Tensor:
        """Run chunks in one pass; returns the logits after each, ``[chunks, vocabulary]``."""
        device = self._model.device
        step = ForwardPass.of_chunks(self._view.kv, chunks, device, self._calls)
        if self._view.states is not None:
            (chunk,) = chunks
            self._view.states.begin([chunk.slot], device, fresh=chunk.first == 0)
        last = list(accumulate((chunk.count for chunk in chunks), initial=-1))[1:]
        inputs = upload(tokens, device)[None]
        return self._forward(step, inputs, step.positions, upload(last, device))[0]

    def decode(
        self, slots: Sequence[int], lengths: Sequence[int], samplers: Sequence[Sampler | None]
    ) -> Tensor:
        """Add a token to each of ``slots``, which then hold ``lengths``; returns ``[slots]``.

        ``samplers`` choose the next one, the common one where it is None. The result is
        overwritten by the next call.
        """
        own = any(sampler is not None for sampler in samplers)
        size = self._size_for(len(slots), own)
        if size is not None:
            rows, logits = self._replay(tuple(slots), size, own)
        else:
            device = self._model.device
            part = Part(known(slots, device), known(lengths, device))
            rows = upload(slots, device)
            if self._view.states is not None:
                self._view.states.begin(slots, device, fresh=False)
            logits = self._decode(rows, upload(lengths, device), part)
        new = self._new[: len(slots)]
        if own:
            assert logits is not None
            choose_by(samplers, logits[: len(slots)], lengths, new)
        if own or self._ranks.count > 1:
            self._ranks.follow(new)
            self._tokens[rows[: len(slots)]] = new
        return new

    def capture_to(self, most: int) -> None:
        """Capture every batch size to ``most`` that is not yet, the largest first."""
        sizes = {batch_size(rows, self._new.shape[0]) for rows in range(1, most + 1)}
        # Graphs share memory; a smaller one fits in what a larger one left.
        for size in sorted(sizes, reverse=True):
            if (size, False) not in self._captured and not self._capture(size, keep=False):
                break

    def _capture(self, size: int, keep: bool) -> bool:
        """Capture the step of ``size`` rows, all scratch: it touches no request.

        With ``keep`` the logits stay there after a replay, in memory of their own. ``False`` where
        the model cannot be captured, from when on nothing is; it raises
        :class:`~pyvattn.errors.UnsupportedError` where it is to insist.
        """
        if self._scratch is None:
            return False
        rows = torch.full((size,), self._scratch, dtype=torch.long, device=self._model.device)
        kept: list[Tensor] = []

        def work() -> None:
            logits = self._decode_captured(rows)
            if keep:
                kept[:] = [logits]

        try:
            replay = self._record(work)
        except UnsupportedError as error:
            if self._insist:
                raise
            _log.warning("no step is captured any more: %s", error)
            self._scratch = None
            self._captured.clear()
            return False
        self._captured[size, keep] = _Captured(replay, rows, kept)
        return True

    def _replay(
        self, slots: tuple[int, ...], size: int, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Replay a step of ``size`` for ``slots``; returns its rows, and its logits to ``keep``."""
        captured = self._captured[size, keep]
        if slots != captured.slots:
            assert self._scratch is not None
            filled = [*slots, *[self._scratch] * (size - len(slots))]
            captured.rows.copy_(upload(filled, captured.rows.device))
            captured.slots = slots
        captured.replay()
        return captured.rows, captured.kept[0] if keep else None

    def _size_for(self, rows: int, keep: bool) -> int | None:
        """Return a captured size for ``rows``; where none is near, capture a power of two.

        ``None`` where steps are not captured. Filler rows read the same weights as the others and
        one token of K and V, so a size that is some times too large costs less than another
        capture.
        """
        sizes = [size for size, kept in self._captured if kept == keep]
        if near := [size for size in sizes if rows <= size <= 4 * rows]:
            return min(near)
        size = min(1 << (rows - 1).bit_length(), self._new.shape[0])
        return size if self._capture(size, keep) else None

    def _decode_captured(self, rows: Tensor) -> Tensor:
        """Add a token to each of ``rows``, by lengths that the device counts itself."""
        lengths = self._lengths[rows] + (rows != self._scratch)
        self._lengths[rows] = lengths
        if self._view.states is not None:
            self._view.states.begin_step(rows)
        return self._decode(rows, lengths, Part(rows.to(torch.int32), lengths.to(torch.int32)))

    def _decode(self, rows: Tensor, lengths: Tensor, part: Part) -> Tensor:
        """Add a token to each of ``rows`` and choose the next; returns the logits."""
        step = ForwardPass.of_step(self._view.kv, rows, lengths, part)
        logits = self._forward(step, self._tokens[rows][:, None], step.positions, 1)[:, -1]
        new = self._common.choose(logits, 0)
        self._tokens[rows] = new
        self._new[: rows.shape[0]] = new
        return logits

    def _forward(
        self, step: ForwardPass, inputs: Tensor, positions: Tensor, keep: int | Tensor
    ) -> Tensor:
        """Return the logits ``[batch, kept, vocabulary]`` of ``[batch, tokens]``."""
        self._view.hold(step)
        with self._fused(), self._layers():
            outputs = self._model(
                input_ids=inputs,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=keep,
                **{self._cache_argument: self._view},
            )
        if self._view.states is not None:
            self._view.states.put_back()
        layers = self._view.kv.spec.kept_layers
        if step.layer != layers - 1:
            raise UnsupportedError(
                f"{type(self._model).__name__} cached {step.layer + 1} of its {layers} layers, so "
                "it does not use the cache that it is given: use the library's DynamicCache"
            )
        logits: Tensor = outputs.logits
        return logits


@dataclass
class _Captured:
    """A captured step: what replays it, its slots with their filler, and logits it keeps."""

    replay: Callable[[], None]
    rows: Tensor
    kept: list[Tensor]
    slots: tuple[int, ...] = ()


class _View(ContiguousCache):
    """The library's view of whichever slots a forward pass is for."""

    def __init__(self, kv: KVCache, config: PreTrainedConfig) -> None:
        super().__init__(kv)
        self.states: SlotStates | None = None
        if kv.spec.states:
            self.states = SlotStates(kv, config, kinds_and_windows(config)[0])
            self._hold_states(self.states)

    def hold(self, step: ForwardPass) -> None:
        """Have the next forward pass be ``step``."""
        self._pass = step

    def begin(self, batch_size: int, queries: int, padding_mask: Tensor | None) -> ForwardPass:
        """Return the pass that was handed over."""
        assert self._pass is not None
        return self._pass

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given, and lengths differ by row and lie on the device."""
        return 0


def calls_for(model: PreTrainedModel, cache: KVCache) -> Calls:
    """Return how chunks of prompts attend: together where the attention kernels can do that."""
    kernels = decode_kernels(model, cache)
    # A kernel that reads slots on the device takes many rows at once.
    if not all(kernel.capturable for kernel in kernels):
        return Calls.ALONE
    latent = any(part.latent_dim for part in cache.spec.parts)
    if latent or not all(Feature.PACKED in kernel.features for kernel in kernels):
        return Calls.GROUPED
    return Calls.PACKED


def batch_size(rows: int, most: int) -> int:
    """Return the size that :meth:`DeviceBatch.capture_to` has for ``rows``, at most ``most``.

    The sizes are 1, 2, 4, 8, 10, 12, 14, 16, 20, …: four or less to each power of two, so few are
    captured, and no more than a fifth of a batch from 8 rows on is filler.
    """
    step = max(1, 1 << max(0, rows.bit_length() - 3))
    size = 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // step) * step
    return min(size, most)
