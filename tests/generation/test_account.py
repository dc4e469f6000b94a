"""What a replica reports of its steps."""

from mlx_serving.actors.generation.account import StepAccount
from mlx_serving.actors.generation.engine import StepReport
from mlx_serving.actors.messages.telemetry import Counted
from mlx_serving.actors.messages.values import CacheStats


def test_steps_of_a_while_share_one_report_that_counts_every_row() -> None:
    account = StepAccount("r", "m")
    for number in range(3):
        account.add(StepReport(rows=4, tokens=4), number * 0.02, number * 0.02 + 0.01, goes_on=True)
    assert not account.due(0.05, goes_on=True)
    assert account.due(0.1, goes_on=True)
    report = account.take()
    assert report.seconds == (Counted(0.01, 3),)
    assert report.rows == (Counted(4, 3),)
    assert report.gaps == (Counted(0.02, 8),)
    assert report.tokens == 12
    assert not account.due(9.0, goes_on=True)


def test_idle_time_is_no_gap_between_tokens_and_ends_a_report() -> None:
    account = StepAccount("r", "m")
    account.add(StepReport(rows=1, tokens=1), 0.0, 0.01, goes_on=False)
    assert account.due(0.01, goes_on=False)
    account.add(StepReport(rows=1, tokens=1), 5.0, 5.01, goes_on=True)
    assert account.take().gaps == ()


def test_a_prefill_counts_as_a_step_and_lengthens_the_gap() -> None:
    account = StepAccount("r", "m")
    account.add(StepReport(rows=1, tokens=1), 0.0, 0.1, goes_on=True)
    account.add(StepReport(prefill_tokens=512), 0.1, 0.4, goes_on=True)
    account.add(StepReport(rows=1, tokens=1), 0.4, 0.5, goes_on=True)
    report = account.take()
    assert report.gaps == (Counted(0.4, 1),)
    assert report.prefill_tokens == 512


def test_the_report_has_the_prefix_cache_as_it_is_after_the_last_step() -> None:
    account = StepAccount("r", "m")
    for hits in (1, 2):
        report = StepReport(rows=1, tokens=1, prefixes=CacheStats(enabled=True, hits=hits))
        account.add(report, 0.0, 0.1, goes_on=True)
    assert account.take().prefixes == CacheStats(enabled=True, hits=2)
