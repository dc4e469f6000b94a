"""The live commands against a real server, whose engine is scripted: answers are words of known number."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.conftest import Run
from support.server import Server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(serving_home: Path) -> Iterator[Server]:
    with Server(serving_home, generation__engine="scripted") as started:
        yield started


@pytest.fixture
def live(run: Run, server: Server, serving_home: Path) -> Run:
    """Runs a command on the server's home."""

    def start(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return run(*arguments, stdin=stdin, home=serving_home)

    return start


def words(text: str) -> list[str]:
    return [word for word in text.split() if word.startswith("w")]


def test_status_shows_actors_models_and_addresses(live: Run, server: Server) -> None:
    shown = live("status")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("admission", "batching", "replica", "smollm2-135m"))
    assert server.url in shown.stdout
    assert "\033[" not in shown.stdout


def test_status_as_json_is_the_whole_report(live: Run, server: Server) -> None:
    report = json.loads(live("status", "--json").stdout)
    assert report["ready"] is True
    assert report["addresses"] == [server.url]
    assert report["models"][0]["info"]["name"] == "smollm2-135m"
    assert report["queue"]["running"] == 0


def test_generate_streams_the_answer_to_stdout_alone(live: Run) -> None:
    done = live("generate", "Hello", "there", "-n", "7")
    assert (done.returncode, len(words(done.stdout)), done.stderr) == (0, 7, "")


def test_the_prompt_may_come_from_stdin_and_the_same_seed_says_the_same(live: Run) -> None:
    options = ("generate", "-n", "5", "--seed", "3")
    first, second = live(*options, stdin="Hello there"), live(*options, "-", stdin="Hello there")
    assert first.stdout == second.stdout
    assert len(words(first.stdout)) == 5


def test_generate_as_json_has_text_reason_usage_and_timings(live: Run) -> None:
    answer = json.loads(live("generate", "Hello", "-n", "4", "--raw", "--json").stdout)
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == len(words(answer["text"])) == 4
    assert answer["timings"]["total"] > 0


def test_stats_go_to_stderr(live: Run) -> None:
    done = live("generate", "Hello", "-n", "4", "--stats")
    assert "answer 4 tokens" in done.stderr
    assert "tokens" not in done.stdout


def test_an_empty_prompt_is_refused_before_anything_is_asked(live: Run) -> None:
    refused = live("generate", stdin=" \n")
    assert refused.returncode == 2
    assert "prompt is empty" in refused.stderr


@pytest.mark.parametrize(
    "option", ["--seed=9999999999999999999", "--temperature=nan", "--top-k=-1", "--max-tokens=0", "--top-p=2"]
)
def test_a_value_out_of_bounds_is_refused_by_its_name(live: Run, option: str) -> None:
    refused = live("generate", "Hello", option)
    assert (refused.returncode, refused.stdout) == (2, "")
    name = option.partition("=")[0].removeprefix("--")
    assert name in refused.stderr.replace("_", "-")
    assert "Traceback" not in refused.stderr


def test_a_model_that_is_not_here_is_refused_with_near_names(live: Run) -> None:
    refused = live("generate", "Hello", "-m", "smollm2-135")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "smollm2-135m" in refused.stderr


def test_tokenize_says_the_same_with_a_server_and_without(live: Run, run: Run, serving_home: Path, home: Path) -> None:
    (home / "models").mkdir()
    (home / "models" / "smollm2-135m").symlink_to((serving_home / "models" / "smollm2-135m").resolve())
    text = ("tokenize", "Grüße, world", "--json")
    asked, read = json.loads(live(*text).stdout), json.loads(run(*text).stdout)
    assert asked == read
    assert asked["count"] == len(asked["tokens"]) == len(asked["token_strings"]) > 2
    assert run("tokenize", "Grüße, world", "--ids").stdout.split() == [str(id_) for id_ in asked["tokens"]]


def test_bench_counts_every_token(live: Run) -> None:
    done = live("bench", "-c", "3", "-r", "7", "-n", "16", "--json")
    report = json.loads(done.stdout)
    assert (report["requests"], report["errors"]) == (7, {})
    assert report["completion_tokens"] == 7 * 16
    assert report["first_token"]["count"] == 7
    assert report["native"]["choice"] in ("native", "pure")


def test_bench_as_a_table(live: Run) -> None:
    done = live("bench", "-c", "2", "-r", "3", "-n", "8")
    assert done.returncode == 0
    assert "inter-token" in done.stdout
    assert "tokens/s" in done.stdout


def test_caches_are_shown_cleared_and_warmed(live: Run) -> None:
    shown = live("cache", "stats")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(word in shown.stdout for word in ("smollm2-135m", "replica-", "off"))
    (cache,) = json.loads(live("cache", "stats", "--json", "-m", "smollm2-135m").stdout)
    assert (cache["model"], cache["stats"]["enabled"]) == ("smollm2-135m", False)
    cleared = live("cache", "clear", "--tier", "memory")
    assert (cleared.returncode, cleared.stdout) == (0, "")
    assert "keeps no prefixes" in cleared.stderr
    assert [each["model"] for each in json.loads(live("cache", "clear", "--json").stdout)] == ["smollm2-135m"]
    assert json.loads(live("cache", "warm", "--json").stdout) == []
    assert "models.warm_prompts" in live("cache", "warm").stderr


def test_what_the_caches_do_not_know_is_refused(live: Run) -> None:
    assert live("cache", "clear", "--tier", "tape").returncode == 2
    for arguments in (("cache", "warm", "nobody"), ("cache", "stats", "-m", "nobody")):
        refused = live(*arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "nobody" in refused.stderr


def test_a_model_is_unloaded_and_loaded_again(live: Run) -> None:
    assert live("models", "unload", "smollm2-135m").returncode == 0
    states = [one["state"] for one in json.loads(live("models", "list", "--json").stdout)]
    assert states == [None]
    loaded = json.loads(live("models", "load", "smollm2-135m", "--json").stdout)
    assert (loaded["info"]["name"], loaded["state"]) == ("smollm2-135m", "ready")
    assert "ready" in live("models", "list").stdout


def test_chat_keeps_the_conversation_and_its_commands_work(live: Run) -> None:
    script = "Hello\nAnd now?\n/stats\nMore\n/reset\n/what\n/help\n/exit\nnever asked\n"
    done = live("chat", "-n", "3", stdin=script)
    assert done.returncode == 0
    assert [len(words(line)) for line in done.stdout.splitlines()] == [3, 3, 3], done.stderr
    assert "answer 3 tokens" in done.stderr
    assert "forgotten" in done.stderr
    assert "there is no command /what" in done.stderr


def test_a_chat_ends_with_its_input(live: Run) -> None:
    assert live("chat", "-n", "2", stdin="Hello").returncode == 0
