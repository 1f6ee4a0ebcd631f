# SPDX-License-Identifier: MIT OR GPL-2.0
"""Runs tests for whoever connects, each time in a fork that has pytest and pyvattn already.

    server.py SOCKET

Under emulation the imports take longer than the tests. A request is an expression for pytest's -k;
the answer is a line "process PID", what pytest says, and a line "status EXIT_STATUS". A line on
standard output says that it listens.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

import pyvattn  # noqa: F401

OPTIONS = (
    "-q",
    "-p",
    "no:cacheprovider",
    "-W",
    "error",
    "--tb=short",
    "test_drivers.py",
    "test_rows.py",
)


def run(selection: str) -> int:
    os.chdir(Path(__file__).parent)
    sys.path.insert(0, os.getcwd())
    print("process", os.getpid(), flush=True)
    return int(pytest.main([*OPTIONS, "-k", selection]))


def answer(connection: socket.socket) -> None:
    selection = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    for stream in (1, 2):
        os.dup2(connection.fileno(), stream)
    status = run(selection)
    print("\nstatus", status, flush=True)
    # Not through the interpreter's own end: that belongs to the process that was forked.
    os._exit(status)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        # What is imported is not garbage: gc.collect() after each test need not look at it.
        gc.freeze()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
            connection.close()


if __name__ == "__main__":
    main()
