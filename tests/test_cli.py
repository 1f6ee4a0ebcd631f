# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, what it exits with, and what it does not import."""

import json
import subprocess
import sys
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

import pyvattn
from pyvattn.bench import core, registry
from pyvattn.bench.report import Measure
from pyvattn.cli import exits
from pyvattn.cli.app import COMMANDS, cli, run
from pyvattn.cli.commands import bench as bench_commands

LLAMA = {
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
SMALL = ["--layers", "2", "--kv-heads", "1", "--head-dim", "64"]


def call(*args):
    return CliRunner().invoke(cli, args, catch_exceptions=False)


def call_json(*args):
    result = call(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def exit_status(monkeypatch, capsys, *args):
    """Run as the installed command does; return the exit code and what stderr got."""
    monkeypatch.setattr(sys, "argv", ["pyvattn", *args])
    with pytest.raises(SystemExit) as stop:
        run()
    return stop.value.code, capsys.readouterr().err


class TestHelp:
    @pytest.mark.parametrize("args", [["--help"], ["--version"]])
    def test_it_answers_without_importing_anything_heavy(self, args):
        code = (
            "import sys, pyvattn.cli\n"
            f"sys.argv = ['pyvattn', *{args}]\n"
            "try: pyvattn.cli.main()\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'numpy', 'rich', 'transformers', 'matplotlib', 'pyvattn._native',"
            " 'pyvattn.cache', 'pyvattn.planner', 'ctypes'}\n"
            "sys.exit(str(sorted(heavy & set(sys.modules))))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert result.stderr.strip() == "[]"
        assert "pyvattn" in result.stdout

    def test_it_lists_every_command_and_every_exit_code(self):
        output = call("--help").output
        for name, entry in COMMANDS.items():
            assert name in output
            assert entry.help in output
        for code in exits.Exit:
            assert exits.MEANINGS[code].split()[0] in output

    # The installer takes the place of the process that calls it: not of this one.
    @pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"driver"}))
    def test_every_command_has_help_of_its_own(self, name):
        # In a process of its own: `driver` hands its process over to the installer.
        done = subprocess.run(
            [sys.executable, "-m", "pyvattn", name, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) > 5

    def test_help_shows_the_defaults_of_what_the_options_fill(self, monkeypatch):
        @dataclass(frozen=True)
        class Options:
            trace: str | None = None
            rounds: int = 47

        assert "Rounds of each timing [31]." in call("bench", "core", "--help").output
        monkeypatch.setattr(core, "Options", Options)
        assert "Rounds of each timing [47]." in call("bench", "core", "--help").output

    def test_what_is_not_given_is_left_to_the_options(self, monkeypatch):
        seen = []
        monkeypatch.setattr(core, "measure", lambda options: seen.append(options) or ())
        call("bench", "core", "--json")
        call("bench", "core", "--json", "--rounds", "7")
        assert seen == [core.Options(), core.Options(rounds=7)]

    def test_every_bench_has_a_command(self):
        for name in registry.BENCHES:
            assert isinstance(getattr(bench_commands, name), click.Command)
            assert call("bench", name, "--help").exit_code == 0


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (pyvattn.SpecError("x"), 2),
            (pyvattn.ConfigError("x"), 2),
            (pyvattn.TraceError("x"), 2),
            (FileNotFoundError("x"), 2),
            (pyvattn.DriverUnavailable("x"), 3),
            (pyvattn.errors.MissingDependency("x"), 3),
            (pyvattn.errors.MismatchError("x"), 1),
            (pyvattn.OutOfMemory("x"), 4),
            (pyvattn.DriverError("x"), 4),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_of_errors(self, error, code):
        assert exits.exit_code(error) == code

    def test_bad_input_is_2_and_named_without_a_traceback(self, monkeypatch, capsys):
        code, err = exit_status(monkeypatch, capsys, "plan", "/no/such/config.json")
        assert code == 2
        assert err.startswith("Error: no model config at /no/such/config.json")
        assert "Traceback" not in err

    @pytest.mark.parametrize(
        "args",
        [
            ["nonesuch"],
            ["plan"],
            ["plan", "--layers", "2"],
            ["plan", "--layers", "2", "--latent-dim", "8", "--head-dim", "8"],
            ["plan", *SMALL, "--page-size", "65"],
            ["plan", *SMALL, "--driver", "cumem", "--page-size", "64K"],
            ["plan", *SMALL, "--tp", "0"],
            ["replay", "--page-sizes", "3K"],
            ["replay", "--layouts", "rows"],
            ["replay", "--memory", "1M"],
            ["replay", "--step-ms", "0"],
            ["bench", "core", "--trace", "/no/such/file"],
        ],
        ids=" ".join,
    )
    def test_bad_usage_is_2(self, monkeypatch, capsys, args):
        assert exit_status(monkeypatch, capsys, *args)[0] == 2

    def test_success_is_0(self, monkeypatch, capsys):
        assert exit_status(monkeypatch, capsys, "plan", *SMALL)[0] == 0


class TestPlan:
    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(LLAMA))
        return str(path)

    def test_a_config_gives_a_choice_for_every_driver(self, config):
        output = call("plan", config).output
        for driver in ("patched", "stock-uvm", "cumem", "host"):
            assert f"{driver}: layout" in output

    def test_one_driver_gives_every_candidate(self, config):
        table = call("plan", config, "--driver", "cumem").output.split("Candidates")[1]
        rows = [line.split() for line in table.splitlines() if " 2M " in line]
        assert {row[1] for row in rows} == {"token", "layer"}
        assert "chosen" in rows[0]

    def test_json_holds_the_candidates_and_the_reason(self, config):
        found = call_json("plan", config, "--driver", "stock-uvm", "--memory", "40GiB")
        assert found["spec"]["layers"] == 32
        (made,) = found["plans"]
        assert made["choice"] in made["candidates"]
        assert made["choice"]["fits"] > 100
        assert "TLB" in made["explanation"]

    def test_a_shape_by_hand_is_that_of_the_config(self, config):
        by_hand = ["--layers", "32", "--kv-heads", "8", "--head-dim", "128"]
        rest = ["--max-tokens", "8192", "--driver", "cumem"]
        read, given = (call_json("plan", *shape, *rest) for shape in ([config], by_hand))
        # Of a model without a name nobody knows what the transformers integration does with it.
        assert read.pop("remarks") != given.pop("remarks") == []
        assert read == given

    def test_mla_and_tensor_parallel(self):
        found = call_json("plan", "--layers", "61", "--latent-dim", "512", "--rope-dim", "64")
        assert found["spec"]["kind"] == "mla"
        found = call_json("plan", *SMALL[:2], "--kv-heads", "8", "--head-dim", "64", "--tp", "8")
        assert found["spec"]["kv_heads"] == 1

    def test_what_the_rules_dislike_is_kept_with_a_warning(self, config):
        args = ["--driver", "stock-uvm", "--layout", "token", "--page-size", "64K"]
        assert "Warning" in call("plan", config, *args).output

    def test_weights_beside_the_config_count(self, config, tmp_path):
        index = {"metadata": {"total_size": 16 << 30}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        (made,) = call_json("plan", config, "--driver", "host")["plans"]
        assert made["workload"]["weight_bytes"] == 16 << 30

    def test_a_page_size_leaves_out_the_drivers_without_it(self, config):
        found = call_json("plan", config, "--page-size", "128K")
        assert [made["costs"]["driver"] for made in found["plans"]] == [
            "patched",
            "stock-uvm",
            "host",
        ]
        assert {made["choice"]["page_size"] for made in found["plans"]} == {128 << 10}


class TestInfo:
    def test_json_reports_every_driver(self):
        found = call_json("info")
        assert {driver["name"] for driver in found["drivers"]} == {
            "patched",
            "stock-uvm",
            "cumem",
            "host",
        }
        assert found["auto"]["cpu"]["driver"] == "host"
        assert found["auto"]["cuda"]["reason"]
        assert found["patch"]["reason"]
        assert found["cuda"]["devices"] or found["cuda"]["reason"]
        assert found["versions"]["python"].startswith("3.")

    def test_the_probe_covers_every_page_size_of_host(self):
        found = call_json("info", "--probe")
        (host,) = (driver for driver in found["drivers"] if driver["name"] == "host")
        probed = [p["page_size"] for p in found["probes"] if p["driver"] == "host" and p["ok"]]
        assert probed == host["page_sizes"]

    def test_a_failing_probe_is_1(self, monkeypatch):
        from pyvattn import probe

        monkeypatch.setattr(probe, "_probe_host", lambda *_: "lost a byte")
        result = call("info", "--probe")
        assert result.exit_code == 1
        assert "lost a byte" in result.output

    @pytest.mark.parametrize(
        ("torch", "devices", "reason"),
        [
            ("2.13.0", [(0, (9, 0))], None),
            ("2.13.0", [(0, (9, 0)), (1, (7, 5))], None),
            ("2.13.0", [(0, (7, 5))], "the device has 7.5"),
            ("2.13.0", [], "its device is not known (no cuda-python): --probe asks torch"),
            ("2.13.0+cpu", [(0, (9, 0))], "torch sees none"),
        ],
    )
    def test_kernels_are_judged_by_the_device_and_the_build_of_torch(
        self, monkeypatch, torch, devices, reason
    ):
        pytest.importorskip("torch")
        from pyvattn.cli.commands import info
        from pyvattn.detect import Machine
        from pyvattn.detect.devices import CudaReport, DeviceReport

        monkeypatch.setattr(info, "_version", lambda _package: torch)
        gpus = tuple(DeviceReport(n, "a GPU", "", of, None, 1, None) for n, of in devices)
        machine = Machine(release="580.1", gpus=("/dev/nvidia0",), control_node=True)
        kernels = info._kernels(CudaReport(None, gpus, "no cuda-python"), machine, 0, False)
        (varlen,) = (kernel for kernel in kernels if kernel.name == "torch-varlen")
        assert varlen.unavailable == reason or reason in varlen.unavailable

    def test_the_table_says_why(self):
        output = call("info").output
        assert "host" in output
        assert "memfd" in output


class TestReplay:
    ARGS = ("replay", *SMALL, "--max-tokens", "15000", "--memory", "64M", "--limit", "40")

    def test_a_synthetic_trace_is_never_shown_as_a_real_one(self):
        assert "SYNTHETIC" in call(*self.ARGS).output
        found = call_json(*self.ARGS)
        assert found["trace"]["synthetic"] is True
        assert found["trace"]["name"].startswith("SYNTHETIC")

    def test_a_missing_file_is_a_usage_error(self):
        result = call(*self.ARGS, "/no/such/trace.csv")
        assert result.exit_code == 2
        assert "'/no/such/trace.csv' does not exist" in result.stderr
        assert "SYNTHETIC" not in result.output

    def test_json_lines_are_read(self, tmp_path):
        path = tmp_path / "mooncake.jsonl"
        path.write_text('{"timestamp": 5, "input_length": 100, "output_length": 5}\n' * 3)
        found = call_json(*self.ARGS, str(path))
        assert (found["trace"]["requests"], found["trace"]["arrivals"]) == (3, "as recorded")

    def test_a_file_is_read(self, tmp_path):
        path = tmp_path / "mine.csv"
        path.write_text("num_prefill_tokens,num_decode_tokens\n100,5\n200,7\n")
        found = call_json(*self.ARGS, str(path))
        assert found["trace"] | {"arrivals": ""} == {
            "name": "mine.csv",
            "synthetic": False,
            "arrivals": "",
            "requests": 2,
        }
        assert [result["requests"] for result in found["results"]] == [2] * 6

    def test_every_allocation_is_in_the_table(self):
        output = call(*self.ARGS, "--page-sizes", "64K,128K", "--layouts", "token").output
        for label in ("token, 64K", "token, 128K", "static", "paged, 16"):
            assert label in output

    def test_a_plot_is_a_png(self, tmp_path):
        pytest.importorskip("matplotlib")
        path = tmp_path / "memory.png"
        assert call(*self.ARGS, "--plot", str(path)).exit_code == 0
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_without_matplotlib_a_plot_is_3(self, monkeypatch, capsys, tmp_path):
        for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
            monkeypatch.setitem(sys.modules, name, None)
        path = tmp_path / "memory.png"
        code, err = exit_status(monkeypatch, capsys, *self.ARGS, "--plot", str(path))
        assert code == 3
        assert "pyvattn[plot]" in err


class TestBench:
    @pytest.fixture
    def measured(self, monkeypatch):
        """Replace what ``bench core`` measures; a list to put measures in."""
        from pyvattn.bench import core

        found = []
        monkeypatch.setattr(core, "measure", lambda _options: iter(found))
        return found

    def test_a_missed_target_is_1(self, measured):
        measured.append(Measure("fine", 3.0, "times", at_least=2.0))
        assert call("bench", "core").exit_code == 0
        measured.append(Measure("slow", 1.0, "times", at_least=2.0))
        result = call("bench", "core")
        assert result.exit_code == 1
        assert "MISSED" in result.output

    def test_the_result_file_says_how_to_repeat_it(self, measured, tmp_path):
        measured.append(Measure("fine", 3.0, "times", at_least=2.0))
        assert call("bench", "core", "--out", str(tmp_path)).exit_code == 0
        found = json.loads((tmp_path / "core.json").read_text())
        assert found["bench"] == "core"
        assert found["command"]
        assert found["date"]
        assert {"cpu", "cores", "kernel", "python", "packages"} <= set(found["machine"])
        assert found["measures"][0]["ok"] is True
