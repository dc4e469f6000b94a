"""Layers, origins and refusals, through real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.config.fields import fields, flatten, sections
from mlx_serving.config.load import DEFAULT, Loaded, load_settings, profile_names, variable_of
from mlx_serving.config.schema import Settings
from mlx_serving.config.show import to_yaml
from mlx_serving.config.values import WrongValue, check


def refusal(**layers: Any) -> str:
    with pytest.raises(ConfigurationInvalid) as caught:
        load_settings(**layers)
    return caught.value.message


def in_file(home: Path, text: str) -> str:
    (home / "runtime.yaml").write_text(text, encoding="utf-8")
    return refusal(home=home)


def load_file(home: Path, text: str) -> Loaded:
    (home / "runtime.yaml").write_text(text, encoding="utf-8")
    return load_settings(home=home)


def test_without_any_layer_everything_is_the_default(tmp_path: Path) -> None:
    loaded = load_settings(home=tmp_path)
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {DEFAULT}
    assert loaded.origins.keys() == fields().keys()


def test_a_home_that_is_not_there_yet_has_no_file(tmp_path: Path) -> None:
    assert load_settings(home=tmp_path / "none").settings == Settings()


def test_each_value_tells_its_origin(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yaml").write_text("http: {host: '::1'}\n", encoding="utf-8")
    (tmp_path / "runtime.yaml").write_text("http:\n  port: 9000\n", encoding="utf-8")
    loaded = load_settings(
        home=tmp_path,
        profile="mine",
        env={"MLX_SERVING__QOS__SLO__QUEUE_P95": "2.5", "MLX_SERVING_HOME": "/elsewhere"},
        overrides={"telemetry.log_level": "debug", "http.heartbeat_seconds": None},
    )
    origins = {key: str(origin) for key, origin in loaded.origins.items() if origin != DEFAULT}
    assert origins == {
        "http.host": "profile mine",
        "http.port": f"file {tmp_path / 'runtime.yaml'}:2",
        "qos.slo.queue_p95": "env MLX_SERVING__QOS__SLO__QUEUE_P95",
        "telemetry.log_level": "flag --log-level",
    }
    assert loaded.settings.http.host == "::1"
    assert loaded.settings.qos.slo.queue_p95 == 2.5


SAMPLES = {
    bool: (True, False),
    int: (70_000_000, 64),
    float: (0.5, 1.0),
    str: ("a", "b c"),
    tuple: (("x",), ()),
}


def values_of(key: str) -> st.SearchStrategy[object]:
    field = fields()[key]
    kind = getattr(field.kind, "__origin__", field.kind)
    candidates = SAMPLES.get(kind, getattr(field.kind, "__args__", ()))
    return st.sampled_from([value for value in candidates if _fits(key, value)] or [field.default])


def _fits(key: str, value: object) -> bool:
    try:
        return check(fields()[key], value) == value
    except WrongValue:
        return False


@st.composite
def layer(draw: st.DrawFn) -> dict[str, object]:
    keys = draw(st.lists(st.sampled_from(sorted(fields())), unique=True, max_size=8))
    return {key: draw(values_of(key)) for key in keys}


def as_yaml(values: dict[str, object]) -> str:
    """Nested flow mappings."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[name] = to_yaml(value)

    def render(node: Any) -> str:
        if isinstance(node, str):
            return node
        return "{" + ", ".join(f"{name}: {render(inner)}" for name, inner in node.items()) + "}"

    return render(tree)


def as_environment(values: dict[str, object]) -> dict[str, str]:
    def text(value: object) -> str:
        if isinstance(value, tuple):
            return ",".join(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    return {variable_of(key): text(value) for key, value in values.items()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(profile=layer(), file=layer(), env=layer(), flags=layer())
def test_the_last_layer_that_names_a_key_decides_its_value_and_origin(
    tmp_path: Path,
    profile: dict[str, object],
    file: dict[str, object],
    env: dict[str, object],
    flags: dict[str, object],
) -> None:
    (tmp_path / "profiles").mkdir(exist_ok=True)
    (tmp_path / "profiles" / "p.yaml").write_text(as_yaml(profile), encoding="utf-8")
    (tmp_path / "runtime.yaml").write_text(as_yaml(file), encoding="utf-8")
    loaded = load_settings(home=tmp_path, profile="p", env=as_environment(env), overrides=flags)
    layers = {"profile": profile, "file": file, "env": env, "flag": flags}
    values = flatten(loaded.settings)
    for key, field in fields().items():
        naming = [kind for kind, values_of_layer in layers.items() if key in values_of_layer]
        assert loaded.origins[key].kind == (naming[-1] if naming else "default")
        assert values[key] == (layers[naming[-1]][key] if naming else field.default)


def test_everything_wrong_in_every_layer_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text('http:\n  port: "8080"\n  prot: 1\n', encoding="utf-8")
    message = refusal(
        home=tmp_path,
        file=file,
        env={"MLX_SERVING__HTTP__PORT": "70000", "MLX_SERVING__STDIO": "1"},
        overrides={"http.host": 3},
    )
    assert message.splitlines() == [
        "Configuration: 5 problems",
        f"  http.port (file {file}:2): must be an integer from 0 to 65535, got the text '8080'",
        f"  http.prot (file {file}:3): is not a setting; did you mean http.port?",
        "  http.port (env MLX_SERVING__HTTP__PORT): must be an integer from 0 to 65535, got 70000",
        "  stdio (env MLX_SERVING__STDIO): is a group of settings, not a setting",
        "  http.host (flag --host): must be a text, got 3",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http: {port: true}", "got true"),
        ("http: {port: 80.0}", "must be an integer from 0 to 65535, got 80.0"),
        ("http: {port: -1}", "got -1"),
        ("http: {port: 0x50}", "got the text '0x50'"),
        ("http: {port: 65_535}", "got the text '65_535'"),
        ("http: {port: }", "got nothing"),
        ("http: {port: {a: 1}}", "got a mapping"),
        ("http: {port: [1]}", "got the list [1]"),
        ("http: {host: 127}", "must be a text, got 127"),
        ("generation: {blas: yes}", "must be true or false, got the text 'yes'"),
        ("generation: {blas: 1}", "must be true or false, got 1"),
        ("generation: {engine: mxl}", "must be one of mlx, scripted, got the text 'mxl'"),
        ("generation: {memory_fraction: .nan}", "must be a number from 0.05 to 0.95"),
        ("generation: {memory_fraction: 1e999}", "must be a number from 0.05 to 0.95"),
        ("generation: {memory_fraction: 0.96}", "got 0.96"),
        ("models: {preload: a}", "must be a list of texts, got the text 'a'"),
        ("models: {preload: [a, 1]}", "got the list ['a', 1]"),
        ("models: {preload: [a, [b]]}", "must be a list of texts"),
        ("models: {default: !!python/name:os.system x}", "must be a text"),
        ("http: !!python/object:os.PathLike {port: 1}", "http (file"),
        ("http: 8080", "must be a mapping of settings"),
        ("[1, 2]", "must be a mapping of settings"),
        ("just text", "must be a mapping of settings"),
        ("http: {port: 1, port: 2}", "http.port (file"),
        ("http: {port: 1}\nhttp: {port: 2}", "yaml:2): stands here a second time"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("http: {port: 1", "is not YAML"),
        ("http: *nowhere", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: \x01", "is not YAML"),
        ("1: 2", "1 (file"),
        ("[a]: 2", "is not a setting"),
        ("<<: {http: {port: 1}}", "<< (file"),
        ("port: 1", "did you mean http.port?"),
        ("qos: {slo: {quue_p95: 1}}", "did you mean qos.slo.queue_p95?"),
        ("#" * 1_100_000, "must be at most 1048576 characters"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in in_file(tmp_path, text)


def test_a_loop_of_aliases_is_refused(tmp_path: Path) -> None:
    assert "http.http" in in_file(tmp_path, "http: &loop {http: *loop}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "http:\n", "http: ~\nqos:\n  slo:\n", "{}"])
def test_empty_files_and_sections_change_nothing(tmp_path: Path, text: str) -> None:
    assert load_file(tmp_path, text).settings == Settings()


def test_plain_scalars_mean_what_they_say(tmp_path: Path) -> None:
    text = "http: {host: no, heartbeat_seconds: 1e1}\nmodels: {default: 1:30, preload: [on, off]}"
    settings = load_file(tmp_path, text).settings
    assert settings.http.host == "no"
    assert settings.http.heartbeat_seconds == 10.0
    assert type(settings.http.heartbeat_seconds) is float
    assert settings.models.default == "1:30"
    assert settings.models.preload == ("on", "off")


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(home=tmp_path, file=tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runtime.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(home=tmp_path)


@pytest.mark.parametrize("name", ["laptp", "../laptop", "", "/etc/passwd", "laptop.yaml"])
def test_an_unknown_profile_is_refused_with_the_names_there_are(tmp_path: Path, name: str) -> None:
    assert "there are laptop, low-memory, server" in refusal(home=tmp_path, profile=name)


def test_a_wrong_value_in_a_profile_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "laptop.yaml").write_text("http:\n  port: x\n", encoding="utf-8")
    assert "http.port (profile laptop, line 2): must be" in refusal(home=tmp_path, profile="laptop")


def test_every_packaged_profile_is_valid_and_changes_something(tmp_path: Path) -> None:
    names = profile_names(tmp_path)
    assert names == ["laptop", "low-memory", "server"]
    for name in names:
        assert load_settings(home=tmp_path, profile=name).settings != Settings()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("MLX_SERVING__HTTP__PORT", "80x", "must be an integer"),
        ("MLX_SERVING__HTTP__PORT", " 80", "must be an integer"),
        ("MLX_SERVING__HTTP__PORT", "", "must be an integer"),
        ("MLX_SERVING__HTTP__PORT", "٨", "must be an integer"),
        ("MLX_SERVING__HTTP__PORT", "9" * 5000, "must be an integer"),
        ("MLX_SERVING__GENERATION__BLAS", "True", "must be true or false"),
        ("MLX_SERVING__GENERATION__ENGINE", "MLX", "must be one of"),
        ("MLX_SERVING__GENERATION__MEMORY_FRACTION", "nan", "must be a number"),
        ("MLX_SERVING__HTTP__PROT", "1", "did you mean http.port?"),
        ("MLX_SERVING__http__port", "1", "must be written MLX_SERVING__HTTP__PORT"),
        ("MLX_SERVING__", "1", "is a group of settings"),
    ],
)
def test_a_bad_variable_is_refused_with_its_name(tmp_path: Path, variable: str, value: str, expected: str) -> None:
    message = refusal(home=tmp_path, env={variable: value})
    assert expected in message
    assert variable in message


def test_a_list_in_the_environment_is_separated_by_commas(tmp_path: Path) -> None:
    loaded = load_settings(
        home=tmp_path,
        env={"MLX_SERVING__MODELS__PRELOAD": "a, b", "MLX_SERVING__MODELS__TRUSTED_FOLDERS": ""},
    )
    assert loaded.settings.models.preload == ("a", "b")
    assert loaded.settings.models.trusted_folders == ()


def test_a_secret_never_stands_in_a_refusal(tmp_path: Path) -> None:
    message = in_file(tmp_path, "http: {api_key: [hunter2]}")
    assert "http.api_key" in message
    assert "hunter2" not in message


def test_one_problem_names_its_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        load_settings(home=tmp_path, overrides={"http.port": -1})
    assert caught.value.field == "http.port"


def test_every_setting_is_documented_and_its_default_is_valid() -> None:
    for field in fields().values():
        assert field.doc.endswith("."), field.key
        assert check(field, field.default) == field.default
    assert all(section.doc for section in sections().values())
