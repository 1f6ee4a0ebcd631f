# SPDX-License-Identifier: Apache-2.0
"""Calibration: what is measured, what a file may say, and when it is used."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from pyvattn import CacheSpec, KVCache, _native
from pyvattn.calibrate import Options, describe, kernels, measure_driver, write_calibration
from pyvattn.calibrate.driver import _line
from pyvattn.cli.app import cli
from pyvattn.errors import CalibrationError, ConfigError, DriverUnavailable, Error
from pyvattn.machine import MadeOn, identify
from pyvattn.planner import default_costs, plan, read_calibration, use_calibration
from pyvattn.planner.calibration import VARIABLE, default_path

K, M = 1 << 10, 1 << 20
LLAMA3_8B = CacheSpec(32, 8, 128)
SMALL = CacheSpec(2, 1, 64, max_slots=4, max_tokens=4096)
H200 = MadeOn(cpu="Xeon", gpu="NVIDIA H200", release="580.159.04")


@pytest.fixture(autouse=True)
def _no_file_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(VARIABLE, raising=False)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def file_of(driver="host", made_on=None, **entry):
    found = {"source": "my machine", "drivers": {driver: entry}}
    return found if made_on is None else {**found, "made_on": vars(made_on)}


class TestFile:
    def test_it_replaces_the_constants_that_it_names(self, tmp_path):
        path = write(
            tmp_path / "c.json",
            file_of(
                "cumem",
                map_us={"2097152": 10},
                unmap_us={"2097152": 4},
                zero_gb_per_s=2000,
                losses={"token": 0.5, "token_32": 0.5},
            ),
        )
        found = read_calibration(path)
        costs = found.costs("cumem")
        assert (costs.call_us(2 * M), costs.source) == (10, "my machine")
        assert costs.unmap_cost_us(1, 6 * M, 2 * M) == 12
        assert costs.read_gb_per_s == default_costs("cumem").read_gb_per_s
        assert (costs.losses.token, costs.losses.layer_small) == (0.5, 0.01)
        assert found.costs("host") == default_costs("host")
        # 256 requests grow by 128 KiB each: 32 MiB at 2,000 GB/s.
        choice = plan(LLAMA3_8B, driver="cumem", costs=costs).choice
        assert choice.zero_us_per_step == pytest.approx(256 * 128 * K / 2000e3)
        # With more layers side by side kernels would lose half of their time.
        assert choice.layers_per_arena == 1

    def test_more_tokens_in_an_entry_cost_no_more_than_fewer(self, tmp_path):
        """A file that was made before the two were told apart names the first."""
        path = write(tmp_path / "c.json", file_of("cumem", losses={"token": 0.005}))
        assert read_calibration(path).costs("cumem").losses.token_32 == 0.005
        path = write(tmp_path / "c.json", file_of("cumem", losses={"token": 0.5}))
        assert read_calibration(path).costs("cumem").losses.token_32 == 0.01

    def test_a_byte_order_mark_is_skipped(self, tmp_path):
        path = tmp_path / "c.json"
        path.write_text(json.dumps(file_of(map_us={"65536": 5})), encoding="utf-8-sig")
        assert read_calibration(path).costs("host").call_us(K) == 5

    def test_a_calibration_of_an_estimate_is_a_measurement(self, tmp_path):
        path = write(tmp_path / "c.json", file_of("patched", map_us={"65536": 5}))
        assert not default_costs("patched").measured
        assert read_calibration(path).costs("patched").measured

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "[]",
            {"drivers": {"host": {}}},
            {"version": 2, **file_of()},
            file_of("gpu0"),
            {**file_of(), "made_on": {"board": "x"}},
            file_of(map_us={}),
            file_of(map_us={"65536": -1}),
            file_of(map_us={"65536": float("nan")}),
            file_of(map_us=7),
            file_of(read_gb_per_s=0),
            file_of(losses={"token": -1}),
            file_of(losses={"tokens": 0.1}),
            file_of(map_ms={"65536": 1}),
        ],
        ids=str,
    )
    def test_an_unusable_file_is_refused_by_name(self, tmp_path, content):
        with pytest.raises(CalibrationError, match=r"mine\.json.*pyvattn calibrate"):
            read_calibration(write(tmp_path / "mine.json", content))

    def test_a_missing_file_is_refused_by_name(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none\.json"):
            read_calibration(tmp_path / "none.json")

    def test_a_number_with_more_digits_than_python_writes_is_no_path(self):
        with pytest.raises(Error, match="pass a path"):
            read_calibration(10**5000)


class TestWhichFileIsUsed:
    def test_without_one_the_defaults_are(self):
        assert use_calibration("host") == default_costs("host")

    def test_a_path_goes_before_the_variable_and_the_variable_before_the_users_own(
        self, tmp_path, monkeypatch
    ):
        for us, path in enumerate((default_path(), tmp_path / "b.json", tmp_path / "c.json"), 1):
            write(path, file_of(map_us={"65536": us}))
        assert use_calibration("host").call_us(64 * K) == 1
        monkeypatch.setenv(VARIABLE, str(tmp_path / "b.json"))
        found = use_calibration("host")
        assert found.call_us(64 * K) == 2
        assert "b.json" in found.source
        assert use_calibration("host", path=tmp_path / "c.json").call_us(64 * K) == 3
        monkeypatch.setenv(VARIABLE, "off")
        assert use_calibration("host") == default_costs("host")

    @pytest.mark.parametrize("content", ["{", file_of("host", H200, map_us={"65536": 1})])
    def test_one_that_does_not_fit_is_refused_if_named_and_else_left_out_with_the_reason(
        self, tmp_path, monkeypatch, content
    ):
        here = MadeOn(cpu="another")
        named = write(tmp_path / "named.json", content)
        with pytest.raises(CalibrationError, match=r"named\.json"):
            use_calibration("host", here, named)
        monkeypatch.setenv(VARIABLE, str(named))
        with pytest.raises(CalibrationError, match=r"named\.json"):
            use_calibration("host", here)
        monkeypatch.delenv(VARIABLE)
        write(default_path(), content)
        found = use_calibration("host", here)
        assert found.map_us == default_costs("host").map_us
        said = plan(LLAMA3_8B, driver="host", costs=found).explanation
        assert "A calibration was not used" in said
        assert str(default_path()) in said

    @pytest.mark.parametrize(
        ("driver", "here", "reason"),
        [
            ("stock-uvm", MadeOn(gpu="NVIDIA H200", release="590.1"), "release 580.159.04.*590.1"),
            ("stock-uvm", MadeOn(gpu="NVIDIA A100", release="580.159.04"), "H200.*A100"),
            ("stock-uvm", MadeOn(cpu="another"), None),
            ("stock-uvm", H200, None),
            ("host", MadeOn(cpu="another", gpu="NVIDIA H200"), "CPU Xeon.*another"),
            ("cumem", MadeOn(gpu="NVIDIA A100"), None),
        ],
    )
    def test_what_a_driver_depends_on(self, tmp_path, driver, here, reason):
        """The file names stock-uvm and host; a machine without a GPU plans for one that has."""
        content = {"source": "x", "made_on": vars(H200), "drivers": {"stock-uvm": {}, "host": {}}}
        path = write(tmp_path / "c.json", content)
        if reason is None:
            use_calibration(driver, here, path)
            return
        with pytest.raises(CalibrationError, match=reason):
            use_calibration(driver, here, path)

    def test_a_cache_plans_with_it(self, monkeypatch, tmp_path):
        def opened(**entry):
            monkeypatch.setenv(VARIABLE, str(write(tmp_path / "c.json", file_of(**entry))))
            with KVCache(SMALL, device="cpu", layout="layer", memory="64MiB") as cache:
                return cache.page_size

        slow = {"map_us": {str(64 * K): 1e5, str(1 * M): 1e5, str(2 * M): 1.0}}
        assert opened(map_us={str(64 * K): 1e-3}) < opened(**slow) == 2 * M


class TestMeasuring:
    @pytest.mark.parametrize(
        ("driver", "sizes"),
        [
            ("host", [64 * K, 128 * K, 256 * K, 512 * K, 2 * M, 8 * M, 16 * M, 64 * M]),
            ("stock-uvm-emulated", [64 * K, 128 * K, 256 * K, 512 * K, 2 * M, 8 * M, 16 * M,
                                    64 * M]),
            ("cumem-emulated", [2 * M]),
        ],
    )  # fmt: skip
    def test_every_driver_gives_every_constant_and_all_memory_back(self, driver, sizes):
        found = measure_driver(driver, Options(rounds=3))
        assert sorted(found.map_us) == sorted(found.unmap_us) == sizes
        assert all(us > 0 for us in (*found.map_us.values(), *found.unmap_us.values()))
        assert found.zero_gb_per_s > 0
        assert found.read_gb_per_s > 0
        if driver.endswith("emulated"):
            held = _native.emulated_cuda.holdings()
            assert (held.reservations, held.mappings) == (0, 0)

    def test_a_driver_that_is_not_here_says_why(self):
        with pytest.raises(DriverUnavailable):
            measure_driver("stock-uvm", Options(rounds=3, device=63))

    def test_the_line_through_the_times_is_the_line(self):
        fixed, slope = _line({size: 7 + 3e-6 * size for size in (64 * K, M, 9 * M)})
        assert (fixed, slope) == (pytest.approx(7), pytest.approx(3e-6))
        assert _line({2 * M: 50.0}) == (50.0, 0.0)
        assert _line({64 * K: 8.0, 2 * M: 7.0}) == (7.5, 0.0)

    def test_what_is_written_is_read_as_it_was_measured(self, tmp_path):
        found = measure_driver("host", Options(rounds=3))
        path = write_calibration(describe([found]), tmp_path / "new" / "c.json")
        costs = use_calibration("host", identify(), path)
        assert dict(costs.map_us) == found.map_us
        assert dict(costs.unmap_us) == found.unmap_us
        assert costs.read_gb_per_s == found.read_gb_per_s
        assert [one.name for one in path.parent.iterdir()] == ["c.json"]


class TestKernels:
    @pytest.fixture
    def kernels(self, monkeypatch):
        pytest.importorskip("torch")
        from pyvattn.calibrate import kernels

        monkeypatch.setattr(kernels, "_SPEC", CacheSpec(2, 8, 64, "float32", max_tokens=48))
        monkeypatch.setattr(kernels, "_CONTEXT", 40)
        monkeypatch.setattr(kernels, "in_graphs", lambda steps: None)
        return kernels

    @pytest.mark.parametrize(
        ("layout", "page_size", "group"), [("layer", "64K", None), ("token", "2M", 1)]
    )
    def test_a_loss_is_the_time_on_our_memory_over_that_on_plain_memory(
        self, kernels, monkeypatch, layout, page_size, group
    ):
        import torch

        def times(steps, *, rounds):
            for step in steps.values():
                step()  # it attends, on the CPU
            return {"ours": [3.0, 6.0, 9.0], "plain": [2.0, 5.0, 6.0]}

        monkeypatch.setattr(kernels, "interleave_on_gpu", times)
        with kernels._open("cpu", "host", layout, page_size, group, rows=3) as cache:
            assert kernels._loss(torch, cache, rows=3, rounds=3) == pytest.approx(0.5)

    def test_noise_is_no_gain(self, kernels, monkeypatch):
        import torch

        monkeypatch.setattr(
            kernels, "interleave_on_gpu", lambda _, rounds: {"ours": [1.0], "plain": [2.0]}
        )
        with kernels._open("cpu", "host", "layer", "64K", None, rows=1) as cache:
            assert kernels._loss(torch, cache, rows=1, rounds=3) == 0

    def test_a_full_device_is_refused_and_a_small_one_gets_fewer_rows(self, kernels):
        class Torch:
            class cuda:
                mem_get_info = staticmethod(lambda _device: (free, 1 << 40))

        free = 3 * kernels._SPEC.row_bytes * 5 + 1
        assert kernels._rows_that_fit(Torch, 0) == 5
        free = 1 << 50
        assert kernels._rows_that_fit(Torch, 0) == kernels._MOST_ROWS
        free = 1000
        with pytest.raises(DriverUnavailable, match="1000 B are free"):
            kernels._rows_that_fit(Torch, 0)


class TestIdentity:
    def test_the_gpu_and_the_release_are_read_from_text_files(self, tmp_path):
        driver = tmp_path / "proc/driver/nvidia"
        for bus in ("0000:1a:00.0", "0000:1b:00.0"):
            write(driver / "gpus" / bus / "information", "Model: \t\t NVIDIA H200\nIRQ: 1\n")
        write(driver / "version", "NVRM version: NVIDIA UNIX Open Kernel Module  580.159.04  R\n")
        found = identify(tmp_path)
        assert (found.gpu, found.release) == ("NVIDIA H200", "580.159.04")
        write(driver / "gpus/0000:1c:00.0/information", "Model: \t\t NVIDIA L4\n")
        assert identify(tmp_path).gpu is None


class TestCommand:
    def call(self, *args):
        return CliRunner().invoke(cli, args, catch_exceptions=False)

    def test_the_users_own_file_is_written_and_plans_use_it(self):
        result = self.call("calibrate", "--driver", "host", "--rounds", "3")
        assert result.exit_code == 0, result.output
        assert default_path().exists()
        shape = ("--layers", "2", "--kv-heads", "1", "--head-dim", "64")
        said = self.call("plan", *shape, "--driver", "host").output
        assert "pyvattn calibrate" in " ".join(said.split())

    def test_info_names_the_constants_that_plans_use(self):
        def plans():
            return json.loads(self.call("info", "--json").stdout)["plans"]["cpu"]

        assert plans() == default_costs("host").source
        write(default_path(), file_of(map_us={"65536": 1}))
        assert plans().startswith("my machine")
        write(default_path(), "{")
        assert "is not usable" in plans()

    def test_json_is_the_file_and_its_path(self, tmp_path):
        path = tmp_path / "c.json"
        args = ("calibrate", "--driver", "host", "--rounds", "3", "--out", str(path), "--json")
        found = json.loads(self.call(*args).stdout)
        assert found.pop("path") == str(path)
        assert found == json.loads(path.read_text())

    def test_what_is_shared_is_a_calibration_that_names_no_folder(self, tmp_path):
        path = tmp_path / "c.json"
        result = self.call(
            "calibrate", "--driver", "host", "--rounds", "3", "--out", str(path), "--share"
        )
        shared, written = json.loads(result.stdout), json.loads(path.read_text())
        assert "Send the JSON" in result.stderr
        assert str(tmp_path) not in result.stdout
        assert "command" in written["run"]
        assert "command" not in shared["run"]
        assert {name: written[name] for name in ("version", "source", "made_on", "drivers")} == {
            name: value for name, value in shared.items() if name != "run"
        }
        # It is a file that plans can use.
        write(default_path(), result.stdout)
        found = json.loads(self.call("info", "--json").stdout)["plans"]["cpu"]
        assert found.startswith(shared["source"])

    def test_a_driver_that_is_named_must_be_there(self):
        with pytest.raises(DriverUnavailable):
            self.call("calibrate", "--driver", "stock-uvm", "--device", "63", "--rounds", "3")
        assert not default_path().exists()


def test_measuring_losses_leaves_no_slot_behind(monkeypatch):
    """Nor a warning of one, and the loss is what the slower memory takes longer."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(kernels, "_SPEC", SMALL)
    monkeypatch.setattr(kernels, "_Q_HEADS", 2)
    monkeypatch.setattr(kernels, "in_graphs", lambda _steps: None)

    def timed(steps, rounds):
        for step in steps.values():
            step()
        return {"ours": [3.0] * rounds, "plain": [2.0] * rounds}

    monkeypatch.setattr(kernels, "interleave_on_gpu", timed)
    with KVCache(SMALL, device="cpu", layout="layer", memory="64MiB") as cache:
        assert kernels._loss(torch, cache, rows=2, rounds=3) == 0.5
        assert not cache.live_slots()
