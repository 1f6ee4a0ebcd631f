# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the memory that engines share: ``pip install 'pyvattn[metrics]'``.

What is exported is what the ledgers say at the moment of a scrape, for every member: one
process of a machine is enough. ``docs/grafana.json`` is a board for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from pyvattn.arguments import check_type
from pyvattn.errors import ConfigError, LedgerError, MissingDependency
from pyvattn.shared import Ledger, Member, read_ledgers
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

__all__ = ["LedgerMetrics", "register_metrics", "serve_metrics"]

_LEDGER: dict[str, tuple[str, Callable[[Ledger], int]]] = {
    "pyvattn_ledger_budget_bytes": ("What all members share.", lambda it: it.budget),
    "pyvattn_ledger_free_bytes": ("Leased by no member.", lambda it: it.free),
    "pyvattn_ledger_cooling_bytes": ("Of members that died a moment ago.", lambda it: it.cooling),
    "pyvattn_ledger_unaccounted_bytes": ("Known to be no member's.", lambda it: it.unknown),
}
_MEMBER: dict[str, tuple[str, Callable[[Member], float | None]]] = {
    "pyvattn_member_used_bytes": ("Allocated on the device.", lambda it: it.used),
    "pyvattn_member_lease_bytes": ("What it may allocate.", lambda it: it.lease),
    "pyvattn_member_target_bytes": ("Its part of what all want.", lambda it: it.target),
    "pyvattn_member_wanted_bytes": ("Asked for beyond its lease.", lambda it: it.wanted),
    "pyvattn_member_demand_bytes": ("What its requests need in all.", lambda it: it.demand),
    "pyvattn_member_guarantee_bytes": ("Always its own.", lambda it: it.guarantee),
    "pyvattn_member_limit_bytes": ("Set by `pyvattn limit`.", lambda it: it.limit),
    "pyvattn_member_weight": ("Share of what is divided.", lambda it: it.weight),
}


class LedgerMetrics:
    """A collector of prometheus-client: reads every ledger of this user, joining none.

    ``pyvattn_ledgers_readable`` is 0 where one is damaged; then nothing else is exported.
    """

    def __init__(self) -> None:
        self._core = _client("core")

    def collect(self) -> Iterator[Any]:
        """Yield a gauge for each number that ``pyvattn top`` shows."""
        try:
            ledgers = read_ledgers()
            readable = 1
        except LedgerError:
            ledgers, readable = [], 0
        make = self._core.GaugeMetricFamily
        yield make("pyvattn_ledgers_readable", "Whether all ledgers can be read.", value=readable)
        for name, (text, of_ledger) in _LEDGER.items():
            gauge = make(name, text, labels=["device"])
            for ledger in ledgers:
                gauge.add_metric([ledger.device], of_ledger(ledger))
            yield gauge
        for name, (text, of_member) in _MEMBER.items():
            gauge = make(name, text, labels=["device", "member", "pid"])
            for ledger in ledgers:
                for member in ledger.members:
                    value = of_member(member)
                    if value is not None:
                        gauge.add_metric([ledger.device, member.name, str(member.pid)], value)
            yield gauge


def register_metrics(registry: Any = None) -> LedgerMetrics:
    """Export the metrics with what the process itself exports; return the collector.

    ``registry``: a ``prometheus_client.CollectorRegistry``, by default the client's own. Raises
    :class:`~pyvattn.errors.MissingDependency`, :class:`~pyvattn.errors.ArgumentError` for what is
    no registry and :class:`~pyvattn.errors.ConfigError` for one that has these metrics already.
    """
    client = _client("registry")
    if registry is None:
        registry = client.REGISTRY
    check_type("registry", registry, client.CollectorRegistry)
    metrics = LedgerMetrics()
    try:
        registry.register(metrics)
    except ValueError as error:
        raise ConfigError(
            f"the registry exports metrics of these names already: register once ({error})"
        ) from error
    return metrics


def serve_metrics(port: int, address: str = "127.0.0.1") -> tuple[Any, Any]:
    """Serve nothing but these metrics over HTTP; return the server and its thread.

    ``port`` 0 takes one that is free: ``server.server_port``. Raises
    :class:`~pyvattn.errors.ConfigError` where it cannot listen there.
    """
    number = whole_number(port)
    if number is None or not 0 <= number < 1 << 16:
        raise ConfigError(f"port {shown(port)}: use a whole number from 0 to 65535")
    check_type("address", address, str)
    registry = _client("registry").CollectorRegistry()
    register_metrics(registry)
    start = _client("exposition").start_http_server
    try:
        server, thread = start(number, addr=address, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"address {address}, port {number}: {error.strerror or error}: use another"
        ) from error
    return server, thread


def _client(module: str) -> Any:
    try:
        return import_module(f"prometheus_client.{module}")
    except ImportError as error:
        raise MissingDependency(
            "metrics need prometheus-client: pip install 'pyvattn[metrics]'"
        ) from error
