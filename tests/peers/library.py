# SPDX-License-Identifier: Apache-2.0
"""Loads the library's tests, and puts our cache in the place of its DynamicCache."""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from unittest import mock

from tiny_models import torch, transformers

from pyvattn import KVCache
from pyvattn.integrations.transformers import ATTENTION, VAttentionCache, spec_for

PACKAGE = "library_tests"
# Modules that test_modeling_common imports and the source distribution does not carry.
MISSING = {
    "exporters.test_export": "ExportTesterMixin",
    "generation.test_utils": "GenerationTesterMixin",
}


def load(folder, packages):
    """Return test_modeling_common of ``folder``; what it needs beyond ours is in ``packages``."""
    sys.path.append(str(packages))
    sys.modules[PACKAGE] = _package(PACKAGE, [str(folder)])
    for name, mixin in MISSING.items():
        parent = f"{PACKAGE}.{name.partition('.')[0]}"
        sys.modules[parent] = _package(parent, [])
        module = sys.modules[f"{PACKAGE}.{name}"] = ModuleType(f"{PACKAGE}.{name}")
        setattr(module, mixin, type(mixin, (), {}))
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


def _package(name, path):
    package = ModuleType(name)
    package.__path__ = path
    return package


@contextmanager
def our_cache(*model_classes):
    """Have ``model_classes`` make our caches for themselves; yields those that were made."""
    made = []
    theirs = transformers.DynamicCache
    correct = transformers.PreTrainedModel.get_correct_attn_implementation

    def make(*args, config=None, **options):
        if args or config is None or config._attn_implementation != ATTENTION:
            return theirs(*args, config=config, **options)
        like = SimpleNamespace(config=config, dtype=config.dtype or torch.float32)
        spec = spec_for(like, max_slots=16, max_tokens=64)
        made.append(VAttentionCache(KVCache(spec, device="cpu", memory="64MiB")))
        return made[-1]

    def prefer_ours(model, asked, *args, **options):
        return correct(model, ATTENTION if asked is None else asked, *args, **options)

    patches = [
        mock.patch.object(sys.modules[each.__module__], "DynamicCache", make)
        for each in model_classes
    ]
    patches.append(
        mock.patch.object(
            transformers.PreTrainedModel, "get_correct_attn_implementation", prefer_ours
        )
    )
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        try:
            yield made
        finally:
            for cache in made:
                cache.kv.close()
