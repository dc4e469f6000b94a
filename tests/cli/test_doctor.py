import json
import socket
from pathlib import Path

import pytest
from cli.conftest import Shell

from mlx_serving.config.schema import Http, Settings
from mlx_serving.frontends.cli import machine, mlx_probe
from mlx_serving.frontends.cli.finding import Finding
from mlx_serving.frontends.cli.mlx_probe import ProbeFailed, mlx_findings, probe
from mlx_serving.native import kernel_choice

SOUND = {
    "version": "1",
    "device": "cpu",
    "metal": False,
    "cuda": False,
    "right": True,
    "blas": "openblas",
    "blas_reason": "loaded",
    "blas_threads": 2,
    "blas_products": 1,
    "compile": "",
}


def found(monkeypatch: pytest.MonkeyPatch, **changes: object) -> dict[str, Finding]:
    monkeypatch.setattr(mlx_probe, "probe", lambda blas: {**SOUND, **changes})
    return {row.subject: row for row in mlx_findings(True)}


def test_this_machine_runs_mlx_and_the_doctor_says_what_it_is(shell: Shell) -> None:
    shown = shell("doctor", "--json")
    rows = {row["subject"]: row for row in json.loads(shown.stdout)}
    assert shown.exit_code == 0
    assert rows["MLX"]["state"] == "ok"
    assert "back end" in rows["MLX"]["fact"]
    assert {
        "configuration",
        "BLAS",
        "native code",
        "CPU kernels",
        "memory",
        "disk",
        "home folder",
        "port",
    } <= rows.keys()
    assert all(row["advice"] for row in rows.values() if row["state"] != "ok")


def test_an_invalid_configuration_is_a_finding_and_the_rest_is_still_looked_at(
    shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_probe, "probe", lambda blas: SOUND)
    (home / "runtime.yaml").write_text("htp: {}\n")
    shown = shell("doctor")
    assert shown.exit_code == 1
    assert "htp" in shown.stdout
    assert "disk" in shown.stdout


def test_a_crash_of_mlx_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ProbeFailed, match="signal 9"):
        probe(True, crash)

    def crashed(blas: bool) -> None:
        raise ProbeFailed("crashes with signal 9")

    monkeypatch.setattr(mlx_probe, "probe", crashed)
    assert [(row.subject, row.state) for row in mlx_findings(True)] == [("MLX", "fail")]


def test_an_import_error_of_mlx_is_quoted() -> None:
    with pytest.raises(ProbeFailed, match="No module named 'nowhere'"):
        probe(True, "import nowhere")


def test_the_reference_blas_on_a_cpu_is_a_warning_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    row = found(monkeypatch, blas="reference", blas_reason="switched off by configuration")["BLAS"]
    assert (row.state, row.fact) == ("warn", "reference: switched off by configuration (threads: 2)")


def test_the_reference_blas_beside_metal_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, blas="reference", metal=True)["BLAS"].state == "ok"


def test_a_fast_blas_that_mlx_does_not_call_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, blas_products=0)["BLAS"].state == "warn"


def test_wrong_products_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, right=False)["MLX"].state == "fail"


def test_a_compiler_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    row = found(monkeypatch, compile="g++ not found")["mx.compile"]
    assert (row.state, row.fact) == ("warn", "fails: g++ not found")
    assert row.advice


def test_without_a_compiler_compilation_counts_as_off_where_mlx_would_need_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found(monkeypatch)["mx.compile"].fact.startswith("off: no g++ on the path")
    assert found(monkeypatch, metal=True)["mx.compile"].fact == "works"


@pytest.mark.parametrize(("built_for", "advice"), [("1.2.3", "mlx==1.2.3"), (None, "install a C++ compiler")])
def test_kernels_that_cannot_run_come_with_what_would_make_them_run(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, advice: str
) -> None:
    monkeypatch.delenv("MLX_SERVING_NATIVE", raising=False)
    monkeypatch.setattr(kernel_choice, "built_for_mlx", lambda: built_for)
    row = machine.kernel_finding(True)
    assert (row.state, row.fact.split(":")[0]) == ("warn", "pure")
    assert advice in (row.advice or "")


def test_a_home_that_others_can_read_is_a_warning_with_the_remedy(home: Path) -> None:
    home.chmod(0o755)
    row = machine.home_folder(home)
    assert (row.state, row.advice) == ("warn", f"run: chmod 700 {home}")


def test_a_taken_port_names_who_holds_it(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        row = machine.http_port(Settings(http=Http(port=taken.getsockname()[1])), home)
    assert row.state == "warn"
    assert "pid" in row.fact
    assert "--port" in row.advice
