# SPDX-License-Identifier: Apache-2.0
"""vLLM on contiguous rows: a worker class, found through vLLM's own entry points.

``pyvattn.vllm`` has the names that vLLM is told. vLLM calls :func:`register` in every
process it starts; that tells vLLM names and changes nothing for an engine that does not ask
for them.
"""

from __future__ import annotations


def register() -> None:
    """Entry point ``vllm.general_plugins``: nothing to do before an engine asks for a name."""
