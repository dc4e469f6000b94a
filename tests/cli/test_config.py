import json
from pathlib import Path

from cli.conftest import Shell


def test_show_tells_every_value_and_where_it_comes_from(shell: Shell, home: Path) -> None:
    (home / "runtime.yaml").write_text("http:\n  port: 9000\n")
    shown = shell("config", "show", "--origin", "--json", "--set", "admission.max_n=3")
    rows = {row["key"]: row for row in json.loads(shown.stdout)}
    assert (rows["http.port"]["value"], rows["http.port"]["origin"]) == (
        "9000",
        f"file {home / 'runtime.yaml'}:2",
    )
    assert rows["admission.max_n"]["value"] == "3"
    assert rows["models.default"]["origin"] == "default"


def test_the_table_names_origins_only_when_asked(shell: Shell) -> None:
    assert "origin" not in shell("config", "show").stdout
    assert "flag" in shell("config", "show", "--origin", "--set", "http.port=1").stdout


def test_all_problems_come_at_once(shell: Shell) -> None:
    refused = shell("config", "show", "--set", "http.prt=1", "--set", "http.port=many")
    assert refused.exit_code == 78
    assert "did you mean http.port" in refused.stderr
    assert "http.port" in refused.stderr
    assert "many" in refused.stderr


def test_an_assignment_without_an_equals_sign_is_refused(shell: Shell) -> None:
    refused = shell("config", "show", "--set", "http.port")
    assert refused.exit_code == 2
    assert "SECTION.KEY=VALUE" in refused.stderr


def test_a_valid_file_is_said_to_be_valid(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("http: {port: 9000}\n")
    assert shell("config", "validate", str(file)).exit_code == 0


def test_an_invalid_file_is_refused_with_its_line(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("http:\n  port: nine\n")
    refused = shell("config", "validate", str(file))
    assert refused.exit_code == 78
    assert f"{file}:2" in refused.stderr


def test_a_missing_file_is_refused_by_name(shell: Shell, tmp_path: Path) -> None:
    refused = shell("config", "validate", str(tmp_path / "none.yaml"))
    assert refused.exit_code == 78
    assert "none.yaml" in refused.stderr


def test_the_path_is_that_of_the_home_folder(shell: Shell, home: Path) -> None:
    assert shell("config", "path").stdout.strip() == str(home / "runtime.yaml")


def test_init_writes_a_private_file_that_is_valid_and_changes_nothing(shell: Shell, home: Path) -> None:
    before = json.loads(shell("config", "show", "--json").stdout)
    assert shell("config", "init").exit_code == 0
    assert (home / "runtime.yaml").stat().st_mode & 0o777 == 0o600
    after = json.loads(shell("config", "show", "--json").stdout)
    assert after == before


def test_what_is_uncommented_in_the_file_of_init_counts_and_profiles_still_do(shell: Shell, home: Path) -> None:
    assert shell("config", "init").exit_code == 0
    file = home / "runtime.yaml"
    file.write_text(file.read_text().replace("  # port: 8080", "  port: 9000"))
    shown = json.loads(shell("config", "show", "--json", "--profile", "low-memory").stdout)
    origins = {row["key"]: row["origin"].split()[0] for row in shown}
    assert origins.pop("http.port") == "file"
    assert set(origins.values()) == {"default", "profile"}


def test_init_replaces_a_file_only_when_told_to(shell: Shell, home: Path) -> None:
    (home / "runtime.yaml").write_text("http: {port: 9000}\n")
    refused = shell("config", "init")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert (home / "runtime.yaml").read_text() == "http: {port: 9000}\n"
    assert shell("config", "init", "--force").exit_code == 0
    assert [path.name for path in home.glob("*.yaml")] == ["runtime.yaml"]
