# SPDX-License-Identifier: Apache-2.0
"""The processes that run one model together, each with a part of its heads.

Each rank has an engine and a cache of its own and is asked for the same requests in the same order.
What they decide by their own memory and clock is decided once, for all of them: there is room where
every rank has it, and tokens are those of the first rank. Decisions of the host travel over gloo,
so that no rank waits for its GPU to learn of one; tokens go where the model's own sums go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyvattn.errors import Error, OutOfMemory, RankError, SpecError, UnsupportedError
from pyvattn.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def ranks_of(model: PreTrainedModel) -> int:
    """Return over how many ranks the library spread the heads of ``model``; 1 where it did not.

    Raises :class:`~pyvattn.errors.UnsupportedError` where its plan leaves K and V whole, and
    :class:`~pyvattn.errors.SpecError` for KV heads that do not divide.
    """
    count = getattr(model, "tp_size", None) or 1
    if count == 1:
        return 1
    plan = model.tp_plan
    for name in ("k_proj", "v_proj"):
        if not any(key.endswith(f"self_attn.{name}") and plan[key] == "colwise" for key in plan):
            raise UnsupportedError(
                f"the tensor parallel plan of {type(model).__name__} does not divide {name} by "
                "heads: load the model without tp_plan"
            )
    heads = model.config.get_text_config(decoder=True).num_key_value_heads
    if heads % count:
        raise SpecError(
            f"{heads} KV heads cannot be divided over {count} ranks: use a divisor of {heads}"
        )
    return count


class Ranks:
    """What the ranks of a model tell each other; nothing where there is one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.count = ranks_of(model)
        self._device = model.device
        self._failed = False
        if self.count > 1:
            mesh: Any = model._device_mesh
            self._group = (mesh["tp"] if mesh.ndim > 1 else mesh).get_group()
            self._deciding = self._host_group()

    def refuse_several(self) -> None:
        """Refuse what several ranks do not do yet."""
        if self.count > 1:
            raise UnsupportedError(
                "compile=True, fuse_projections=True and a cache with memory='shared' are for a "
                "model on one rank: leave them out, or load the model without tp_plan"
            )

    def all(self, ok: bool) -> bool:
        """Whether it is so on every rank."""
        return self.range(int(ok))[0] == 1

    def any(self, ok: bool) -> bool:
        """Whether it is so on any rank."""
        return self.range(int(ok))[1] == 1

    def range(self, number: int) -> tuple[int, int]:
        """Return the least and the most of what the ranks have."""
        if self.count == 1:
            return number, number
        both = torch.tensor([number, -number], device="cpu")
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MIN, self._deciding)
        least, most = both.tolist()
        return least, -most

    def follow(self, tokens: Tensor) -> None:
        """Make the tokens those of the first rank: draws, and sums that round otherwise, differ."""
        if self.count > 1:
            torch.distributed.broadcast(tokens, group=self._group, group_src=0)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Run a step of every rank; raises :class:`~pyvattn.errors.RankError` where one is lost.

        A step that failed on one rank alone leaves them out of step: there is no other after it.
        """
        if self.count == 1:
            yield
            return
        if self._failed:
            raise RankError("a step failed before, and the ranks are out of step: start all anew")
        try:
            yield
        except OutOfMemory:  # on every rank alike
            raise
        except BaseException as error:
            self._failed = True
            if isinstance(error, RuntimeError) and not isinstance(error, Error):
                raise RankError(
                    f"a step of {self.count} ranks failed, and another rank may be gone: "
                    f"{' '.join(printable(str(error)).split())[:200]}: start all anew"
                ) from error
            raise

    def _host_group(self) -> Any:
        """Return a group whose messages the host sends and reads by itself."""
        if torch.distributed.get_backend(self._group) == "gloo":
            return self._group
        members = torch.distributed.get_process_group_ranks(self._group)
        return torch.distributed.new_group(members, backend="gloo", use_local_synchronization=True)
