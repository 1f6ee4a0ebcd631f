# SPDX-License-Identifier: Apache-2.0
"""Adapters that put the cache into inference libraries. Each imports its library itself."""
