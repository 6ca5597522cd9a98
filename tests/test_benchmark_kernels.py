"""The benchmark of the Triton kernels, as far as it can be tried without a GPU."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from doxastic.kernels.wkv7 import wkv7

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# Triton is installed on Linux alone.
pytest.importorskip("triton")
GIGA = 1e9
in_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="without TRITON_INTERPRET the kernels need a GPU's tensors"
)


@pytest.fixture(autouse=True)
def benchmark_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def module(name: str) -> ModuleType:
    """Return a module of the benchmarks; their folder is importable only while a test runs."""
    return importlib.import_module(name)


class FakeClock:
    """Makes every call once and tells 1 ms for a copy and 4 ms for everything else."""

    copy_bytes = 10**9

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def sample(self, call: Callable[[], object]) -> tuple[float, float]:
        if call not in self.calls:
            call()
            self.calls.append(call)
        return (1.0 if call == self.copy else 4.0), 0.5

    def peak(self, call: Callable[[], object]) -> int:
        assert call in self.calls
        return 1000

    def copy(self) -> None:
        pass


def quick_report(folder: Path) -> Any:
    harness, run = module("harness"), module("gpu.run")
    return run.new_report(harness.Options(quick=True, output=folder))


def made_up_arms(operation: str, is_forward: bool, floor: float) -> dict[str, Any]:
    """Return arms with times and memory in simple proportions."""
    times = {"doxastic": 2.5, "composed": 5.0}
    if operation == "wkv7":
        times = {"doxastic": 2.5, "doxastic, resets": 2.5, "fla chunk 64": 7.5}
        times |= {"fla chunk 16": 10.0}
        times |= {"fla recurrent": 40.0} if is_forward else {"fla chunk 64, stored": 6.25}
    return {
        name: {"ms_median": floor * x, "times_ours": x / 2.5, "peak_bytes": int(100 * x)}
        for name, x in times.items()
    }


def made_up_results() -> dict[str, Any]:
    """Return a file of results such as a GPU would give, of every case."""
    run, cases = module("gpu.run"), module("gpu.cases")
    entries = []
    for operation, (_, shapes, _) in run.OPERATIONS.items():
        for dtype in cases.DTYPES:
            for shape in shapes:
                floor = 14 * math.prod(shape) / 4e9
                passes = {
                    name: {
                        "least_bytes": 4e9 * floor,
                        "copy_gb_per_second": 4000.0,
                        "arms": made_up_arms(operation, name == cases.FORWARD, floor),
                    }
                    for name in cases.PASSES[: 1 if operation == "wkv7_step" else 2]
                }
                names = ("y", "state", "dr", "dw", "dk", "dv", "da", "db")
                entries.append({
                    "title": cases.title(operation, shape, dtype),
                    "operation": operation,
                    "shape": list(shape),
                    "dtype": cases.dtype_name(dtype),
                    "errors": {"doxastic": dict.fromkeys(names, 4e-6)},
                    "left_out": {},
                    "passes": passes,
                })  # fmt: skip
    first = {"title": "first call of doxastic", "arm": "doxastic", "seconds": 12.0}
    results = {"cases": entries, "first_calls": [first]}
    return {"device": "made-up GPU", "quick": False, "results": results}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_in_one_line_and_exits_with_2(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "kernels.py"), "--device", "cuda"]
    done = subprocess.run(
        [*command, "--quick", "--output", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no CUDA device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_few_rounds_and_the_interpreter_are_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, run = module("harness"), module("gpu.run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in run.obstacle(harness.Options())
    monkeypatch.delenv("TRITON_INTERPRET")
    assert run.obstacle(harness.Options()) == ""
    assert run.obstacle(harness.Options(quick=True)) == ""
    assert "at least 50" in run.obstacle(harness.Options(rounds=49))


def test_the_least_bytes_are_those_of_the_roofline() -> None:
    B, T, H, D = 8, 4096, 32, 64
    sequence = torch.empty(B, T, H, D, dtype=torch.bfloat16, device="meta")
    state = torch.empty(B, H, D, D, device="meta")
    reset = torch.empty(B, T, dtype=torch.bool, device="meta")
    inputs = [*(sequence for _ in "rwkvab"), reset]
    least = module("gpu.measures").least_bytes(inputs, (sequence, state), (sequence,))
    # Seven and twenty tensors of 134.2 MB, and the last state of 4.2 MB.
    assert least["forward"] / GIGA == pytest.approx(7 * 0.134218 + 0.004194, rel=1e-5)
    assert least["forward + backward"] / GIGA == pytest.approx(20 * 0.134218 + 0.004194, rel=1e-5)


def test_arms_rotate_and_a_ratio_is_paired_within_rounds() -> None:
    timing = module("gpu.timing")
    called: list[str] = []

    class Clock(FakeClock):
        def sample(self, call: Callable[[], object]) -> tuple[float, float]:
            call()
            return 4.0, 0.5

    arms = {name: lambda name=name: called.append(name) for name in "abc"}
    samples = timing.alternate(arms, 3, Clock())
    warm_up = "".join(name * timing.WARM_UP for name in "abc")
    assert "".join(called) == warm_up + "abc" + "bca" + "cab"
    assert samples["a"].device == [4.0] * 3 and samples["a"].host == [0.5] * 3
    slow, fast = timing.Samples([3.0, 30.0, 6.0], []), timing.Samples([1.0, 10.0, 2.0], [])
    assert timing.ratio(slow, fast) == 3.0


def test_statistics_are_those_of_all_samples() -> None:
    numbers = module("gpu.timing").Samples([4.0, 1.0, 3.0, 2.0, 5.0], [0.1, 0.3, 0.2]).to_json()
    assert (numbers["ms_median"], numbers["ms_min"]) == (3.0, 1.0)
    assert numbers["ms_quartiles"] == [1.5, 4.5]
    assert numbers["host_ms_median"] == 0.2
    assert numbers["ms"] == [4.0, 1.0, 3.0, 2.0, 5.0]


def test_bandwidth_is_a_share_of_the_copy_of_the_same_rounds() -> None:
    measured = module("gpu.measures").measure_pass(
        {"doxastic": lambda: None}, 10**9, rounds=2, clock=FakeClock()
    )
    assert measured["copy_gb_per_second"] == pytest.approx(1000.0)
    ours = measured["arms"]["doxastic"]
    assert ours["gb_per_second"] == pytest.approx(250.0)
    assert ours["share_of_copy"] == pytest.approx(0.25)
    assert ours["times_ours"] == 1.0 and ours["peak_bytes"] == 1000


@in_interpreter
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_quick_run_measures_every_case_and_writes_what_it_found(
    dtype: str, tmp_path: Path
) -> None:
    run, report = module("gpu.run"), quick_report(tmp_path)
    run.measure_all(report, FakeClock(), "cpu", only=dtype)
    data = json.loads((tmp_path / "kernels-cuda-quick.json").read_text(encoding="utf-8"))
    entries = data["results"]["cases"]
    assert [entry["operation"] for entry in entries] == list(run.OPERATIONS)
    for entry in entries:
        assert entry["dtype"] == dtype and entry["left_out"] == {}
        assert all(x["arms"]["doxastic"]["share_of_copy"] > 0 for x in entry["passes"].values())
    assert set(entries[0]["errors"]["doxastic"]) == {
        "y", "state", "dr", "dw", "dk", "dv", "da", "db",
    }  # fmt: skip
    targets = list(module("gpu.targets").targets(data["results"]))
    assert [target.what.split(":")[0] for target in targets] == [entries[0]["title"]]
    assert targets[0].value <= 1.0


@in_interpreter
def test_a_resumed_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    run, clock = module("gpu.run"), FakeClock()
    run.measure_all(quick_report(tmp_path), clock, "cpu", only="squared_relu")
    calls = len(clock.calls)
    assert calls > 0
    report = quick_report(tmp_path)
    run.take_up(report)
    run.measure_all(report, clock, "cpu", only="squared_relu")
    assert len(clock.calls) == calls
    assert len(report.data["results"]["cases"]) == 2


def test_results_of_another_device_are_not_resumed(tmp_path: Path) -> None:
    report = quick_report(tmp_path)
    report.data["device"] = "another GPU"
    report.write()
    with pytest.raises(SystemExit, match=r"--resume: .* has device another GPU"):
        module("gpu.run").take_up(quick_report(tmp_path))


@in_interpreter
def test_what_is_wrong_of_ours_is_not_timed(tmp_path: Path) -> None:
    cases, measures, clock = module("gpu.cases"), module("gpu.measures"), FakeClock()
    case = cases.wkv7_case((2, 9, 2, 16), torch.float32, "cpu")
    ours = case.contenders["doxastic"]

    def wrong(*x: Tensor) -> tuple[Tensor, Tensor]:
        y, state = ours.function(*x)
        return 1.02 * y, state

    case.contenders["doxastic"] = ours._replace(function=wrong)
    entry = measures.measure_case(quick_report(tmp_path), case, clock)
    assert "is wrong: relative error 2.0e-02" in entry["left_out"]["doxastic"]
    assert entry["passes"] == {} and clock.calls == []


@in_interpreter
def test_a_peer_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    cases, measures = module("gpu.cases"), module("gpu.measures")
    case = cases.wkv7_case((1, 9, 1, 16), torch.float32, "cpu")

    def broken(*_: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no such chunk\nand much more")

    case.contenders["fla chunk 64"] = cases.Contender(broken)
    entry = measures.measure_case(quick_report(tmp_path), case, FakeClock())
    assert entry["left_out"] == {"fla chunk 64": "RuntimeError: no such chunk"}
    assert set(entry["passes"]["forward"]["arms"]) == {"doxastic", "doxastic, resets"}


def test_corners_are_the_first_and_last_rows_and_heads() -> None:
    corners = module("gpu.cases").corners
    x = torch.arange(3 * 2 * 4).view(3, 2, 4, 1)
    assert corners("r", x)[:, 0, :, 0].tolist() == [[0, 3], [16, 19]]
    assert corners("state", x)[:, :, 0, 0].tolist() == [[0, 4], [16, 20]]
    assert corners("reset", x[:, :, 0, 0]).tolist() == [[0, 4], [16, 20]]
    assert corners("r", x[:1, :, :1]).shape == (1, 2, 1, 1)


def fake_fla(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Install a stand-in for fla that computes with our reference; return the settings it gets."""
    settings: list[dict[str, Any]] = []

    def chunk_rwkv7(*x: Tensor, scale: float = 1.0, **others: Any) -> tuple[Tensor, Tensor]:
        settings.append({"scale": scale, **others})
        y, state = wkv7(*x, backend="reference")
        return y, state.mT.contiguous()

    def fused_recurrent_rwkv7(*x: Tensor, scale: float, **others: Any) -> tuple[Tensor, Tensor]:
        if any(tensor.requires_grad for tensor in x):
            raise NotImplementedError
        return chunk_rwkv7(*x, scale=scale, **others)

    for name in ("fla", "fla.ops", "fla.ops.rwkv7"):
        stand_in = ModuleType(name)
        stand_in.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, stand_in)
    rwkv7 = sys.modules["fla.ops.rwkv7"]
    rwkv7.__dict__.update(
        chunk_rwkv7=chunk_rwkv7, fused_recurrent_rwkv7=fused_recurrent_rwkv7
    )  # fmt: skip
    return settings


@in_interpreter
def test_fla_is_called_with_its_best_settings_and_its_state_transposed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = fake_fla(monkeypatch)
    cases, measures = module("gpu.cases"), module("gpu.measures")
    case = cases.wkv7_case((1, 9, 1, 16), torch.float32, "cpu")
    entry = measures.measure_case(quick_report(tmp_path), case, FakeClock())
    assert entry["left_out"] == {}
    forward, both = (set(entry["passes"][name]["arms"]) for name in cases.PASSES)
    assert forward - both == {"fla recurrent"} and both - forward == {"fla chunk 64, stored"}
    wide = {"chunk_size": 64, "safe_gate": True, "lower_bound": -0.6065306597}
    expected = [wide, {**wide, "disable_recompute": True}, {"chunk_size": 16}, {}]
    shared = {"scale": 1.0, "output_final_state": True}
    for some in expected:
        assert {**shared, **some} in settings
    assert all(some in [{**shared, **x} for x in expected] for some in settings)


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("fla") is None, reason="flash-linear-attention is not installed")
def test_fla_computes_what_we_compute() -> None:
    cases, checks = module("gpu.cases"), module("gpu.checks")
    errors, left_out = checks.check(cases.wkv7_case((2, 200, 2, 64), torch.bfloat16))
    assert left_out == {} and {"fla chunk 64", "fla chunk 16", "fla recurrent"} <= set(errors)


def test_targets_compare_with_the_fastest_of_fla_in_bfloat16() -> None:
    results = made_up_results()["results"]
    found = {target.what: target for target in module("gpu.targets").targets(results)}
    assert len(found) == len(list(module("gpu.targets").targets(results)))
    first = "wkv7 (8, 4096, 32, 64) bfloat16"
    assert found[f"{first}, forward: ms"].most == 0.5
    assert found[f"{first}, forward + backward: ms"].most == 1.8
    assert found[f"{first}, forward: fla chunk 64 / ours"].value == 3.0
    assert found[f"{first}, forward + backward: fla chunk 64, stored / ours"].value == 2.5
    assert found[f"{first}, forward: peak memory / fla's least"].value == pytest.approx(250 / 750)
    assert sum(target.least == 2.0 for target in found.values()) == 10
    # 4e-6 of 5e-3 in bfloat16, of 5e-6 in float32.
    assert found[f"{first}: error of y / allowed"].value == pytest.approx(8e-4)
    single = "wkv7 (8, 4096, 32, 64) float32"
    assert found[f"{single}: error of y / allowed"].value == pytest.approx(0.8)
    assert [what for what in found if what.startswith(f"{single},")] == []
    assert found["first call, seconds"].most == 20.0


def test_the_figure_shows_every_case(tmp_path: Path) -> None:
    data = made_up_results()
    figure = module("draw_kernels").draw_kernels(data)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "Forward, bfloat16", "Forward, float32",
        "Forward + backward, bfloat16", "Forward + backward, float32",
        "PyTorch's operations / fused, bfloat16", "PyTorch's operations / fused, float32",
    ]  # fmt: skip
    left = figure.axes[0]
    assert [label.get_text() for label in left.get_yticklabels()][:2] == [
        "8, 4096, 32, 64", "1, 65536, 32, 64",
    ]  # fmt: skip
    assert "3.0x" in [text.get_text() for text in left.texts]
    assert "made-up GPU" in figure.get_suptitle()
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_the_figure_of_one_case_alone_has_one_panel_a_pass() -> None:
    data = made_up_results()
    data["results"]["cases"] = data["results"]["cases"][:1]
    assert len(module("draw_kernels").draw_kernels(data).axes) == 2
    data["results"]["cases"] = []
    with pytest.raises(ValueError, match="no measured case"):
        module("draw_kernels").draw_kernels(data)


@in_interpreter
@pytest.mark.slow
def test_the_first_call_is_timed_in_a_process_of_its_own() -> None:
    first_call = module("gpu.first_call").first_call
    assert 0.0 < first_call("doxastic", (1, 5, 1, 16), torch.float32, "cpu") < 60.0
