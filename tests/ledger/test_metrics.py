# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told, by the command and inside a process, and the board that shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pyvattn import ArgumentError, ConfigError, SharedMemory
from pyvattn.metrics import LedgerMetrics, register_metrics, serve_metrics
from pyvattn.shared import Ledger, Member, ledger_path, limit_member

prometheus = pytest.importorskip("prometheus_client", reason="pip install 'pyvattn[metrics]'")

MIB = 1 << 20
CPU = "CPU-00000000-0000-0000-0000-000000000000"
PATIENCE = 60.0
BOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"


@pytest.fixture
def registry():
    registry = prometheus.CollectorRegistry()
    register_metrics(registry)
    return registry


def of_ledger(registry, name):
    return registry.get_sample_value(f"pyvattn_ledger_{name}_bytes", {"device": CPU})


def of_member(registry, name, member):
    labels = {"device": CPU, "member": member, "pid": str(os.getpid())}
    return registry.get_sample_value(f"pyvattn_member_{name}", labels)


def scraped(url):
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.read().decode()


def test_every_member_is_exported_as_it_is_at_the_scrape(runtime, registry):
    assert registry.get_sample_value("pyvattn_ledgers_readable") == 1
    with (
        SharedMemory("cpu", budget="256MiB", guarantee="64MiB", name="chat", weight=2) as chat,
        SharedMemory("cpu", name="code"),
    ):
        assert chat.take(40 * MIB)
        assert of_ledger(registry, "budget") == 256 * MIB
        assert of_ledger(registry, "free") == 256 * MIB - chat.leased
        assert of_member(registry, "used_bytes", "chat") == 40 * MIB
        assert of_member(registry, "lease_bytes", "chat") == chat.leased
        assert of_member(registry, "guarantee_bytes", "chat") == 64 * MIB
        assert of_member(registry, "weight", "chat") == 2
        assert of_member(registry, "used_bytes", "code") == 0
        assert of_member(registry, "limit_bytes", "code") is None
        limit_member("code", "32MiB")
        assert of_member(registry, "limit_bytes", "code") == 32 * MIB
        chat.return_bytes(40 * MIB)
        assert of_member(registry, "used_bytes", "chat") == 0
    assert of_member(registry, "used_bytes", "chat") is None


def test_each_number_goes_under_its_own_name(registry, monkeypatch):
    member = Member(
        "chat", os.getpid(), "1", weight=1, guarantee=2, lease=3, used=4, demand=5, wanted=6,
        target=7, limit=8, readable=True,
    )  # fmt: skip
    ledger = Ledger("", CPU, chunk=9, budget=10, free=11, cooling=12, unknown=13, members=(member,))
    monkeypatch.setattr("pyvattn.metrics.read_ledgers", lambda: [ledger])
    names = ("guarantee", "lease", "used", "demand", "wanted", "target", "limit")
    assert [of_member(registry, f"{name}_bytes", "chat") for name in names] == list(range(2, 9))
    names = ("budget", "free", "cooling", "unaccounted")
    assert [of_ledger(registry, name) for name in names] == list(range(10, 14))


def test_a_damaged_ledger_is_told_and_ends_no_scrape(runtime, registry):
    with SharedMemory("cpu", budget="64MiB", name="chat"):
        pass
    ledger_path("cpu").write_bytes(b"\xff" * 64)
    assert registry.get_sample_value("pyvattn_ledgers_readable") == 0
    assert of_ledger(registry, "budget") is None


def test_top_serves_them(runtime):
    with SharedMemory("cpu", budget="64MiB", name="chat"):
        command = [sys.executable, "-u", "-m", "pyvattn", "top", "--serve", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
            try:
                assert 'member="chat"' in scraped(serving.stdout.readline().strip())
            finally:
                serving.kill()


def test_a_port_that_is_taken_is_named(runtime):
    server, thread = serve_metrics(0)
    try:
        with pytest.raises(ConfigError, match=f"port {server.server_port}: .*: use another"):
            serve_metrics(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(ConfigError, match="port 70000: use a whole number"):
        serve_metrics(70000)


def test_metrics_are_registered_once_and_with_a_registry(runtime):
    fresh = prometheus.CollectorRegistry(auto_describe=True)  # as the client's own is
    assert isinstance(register_metrics(fresh), LedgerMetrics)
    with pytest.raises(ConfigError, match="register once"):
        register_metrics(fresh)
    with pytest.raises(ArgumentError, match="registry=3"):
        register_metrics(3)


def test_the_board_shows_nothing_that_is_not_exported(runtime, registry):
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    exported = {metric.name for metric in registry.collect()}
    shown = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"pyvattn_\w+", target["expr"])
    }
    assert shown <= exported
    assert {"pyvattn_member_used_bytes", "pyvattn_ledger_free_bytes"} <= shown
