# SPDX-License-Identifier: Apache-2.0
"""The contiguous cache in Hugging Face transformers.

Importing this package registers the attention implementation ``"pyvattn"``
with the library. For ``generate``::

    from pyvattn.integrations.transformers import VAttentionCache

    options = {"max_batch": 8, "max_tokens": 4096, "memory": "4GiB"}
    with VAttentionCache.for_model(model, **options) as cache:
        model.generate(**inputs, past_key_values=cache)

and for many prompts by continuous batching::

    requests = generate_batch(model, prompts, max_new_tokens=128, memory="20GiB")

with :class:`Engine` beneath it for requests that come one by one.

Raises :class:`~pyvattn.errors.MissingDependency` where torch or transformers
is not installed.
"""

from __future__ import annotations

from pyvattn.errors import MissingDependency

try:
    import torch as _torch  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise MissingDependency(
        f"pyvattn.integrations.transformers needs {error.name}: pip install 'pyvattn[transformers]'"
    ) from error

from pyvattn.integrations.transformers.cache import VAttentionCache
from pyvattn.integrations.transformers.engine import Engine
from pyvattn.integrations.transformers.generate import generate_batch
from pyvattn.integrations.transformers.interface import ATTENTION, register_attention
from pyvattn.integrations.transformers.preemption import Preemptions
from pyvattn.integrations.transformers.request import Request
from pyvattn.integrations.transformers.spec import spec_for

__all__ = [
    "ATTENTION",
    "Engine",
    "Preemptions",
    "Request",
    "VAttentionCache",
    "generate_batch",
    "spec_for",
]

register_attention()
