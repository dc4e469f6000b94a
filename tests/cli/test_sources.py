from pathlib import Path

import pytest

from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.frontends.cli.sources import DRAFT_MODEL, Sources, model_name


def test_an_assignment_takes_the_type_of_its_setting(home: Path) -> None:
    chosen = {"http.port": "9000", "models.preload": "a, b", "generation.blas": "false"}
    settings = Sources(assignments=chosen).load().settings
    assert (settings.http.port, settings.models.preload, settings.generation.blas) == (
        9000,
        ("a", "b"),
        False,
    )


def test_a_commands_own_flag_wins_over_an_assignment(home: Path) -> None:
    sources = Sources(assignments={"http.port": "9000"})
    assert sources.load({"http.port": 9001}).settings.http.port == 9001
    assert sources.load({"http.port": None}).settings.http.port == 9000


def test_wrong_assignments_are_reported_together(home: Path) -> None:
    sources = Sources(assignments={"http.port": "many", "no.such": "1"})
    with pytest.raises(ConfigurationInvalid) as caught:
        sources.load()
    assert "http.port (flag --set)" in caught.value.message
    assert "no.such (flag --set)" in caught.value.message


def test_the_environment_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SERVING__HTTP__PORT", "9002")
    assert Sources().load().settings.http.port == 9002


def test_a_folder_named_on_the_command_line_is_trusted(home: Path, tmp_path: Path) -> None:
    settings = Sources(assignments={"models.trusted_folders": "/srv"}).load_for(str(tmp_path)).settings
    assert settings.models.default == str(tmp_path)
    assert settings.models.trusted_folders == ("/srv", str(tmp_path))


def test_a_name_is_no_folder(home: Path) -> None:
    settings = Sources().load_for("org/model").settings
    assert (settings.models.default, settings.models.trusted_folders) == ("org/model", ())
    assert Sources().load_for(None).settings.models.default == "smollm2-135m"


@pytest.mark.parametrize("text", ["smollm2-135m", "org/model"])
def test_names_stay_as_they_are(text: str) -> None:
    assert model_name(text) == text


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_name("./here") == str(tmp_path.resolve() / "here")
    assert model_name("~").startswith("/")


def test_a_draft_model_in_a_folder_is_trusted_too(home: Path, tmp_path: Path) -> None:
    settings = Sources().load_for("a", {DRAFT_MODEL: str(tmp_path)}).settings
    assert settings.generation.speculation.draft_model == str(tmp_path)
    assert settings.models.trusted_folders == (str(tmp_path),)
