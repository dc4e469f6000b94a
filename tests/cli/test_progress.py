import pytest
from rich.console import Console

from mlx_serving.frontends.cli import progress


def test_without_a_terminal_each_phase_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.watched("tiny") as report:
        for done in range(3):
            report("download", done, 3)
        report("verify", 0, None)
    assert capfd.readouterr().err.splitlines() == ["tiny: download", "tiny: verify"]


def test_at_a_terminal_a_bar_moves_and_is_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "err", Console(stderr=True, force_terminal=True, width=100))
    with progress.watched("tiny") as report:
        report("download", 512, 2048)
        report("convert", 0, None)
        report("convert", 2048, 2048)
    shown = capsys.readouterr()
    assert "tiny: convert" in shown.err
    assert shown.out == ""
