from __future__ import annotations

from pathlib import Path

from mlx_serving.config.fields import fields
from mlx_serving.config.load import load_settings
from mlx_serving.config.show import show_rows


def test_rows_tell_value_and_origin_and_hide_secrets(tmp_path: Path) -> None:
    overrides = {"http.api_key": "hunter2", "models.preload": ["a"]}
    rows = {row.key: row for row in show_rows(load_settings(home=tmp_path, overrides=overrides))}
    assert list(rows) == list(fields())
    assert (rows["http.api_key"].value, rows["http.api_key"].origin) == ("********", "flag --api-key")
    assert (rows["http.port"].value, rows["http.port"].origin) == ("8080", "default")
    assert rows["models.preload"].value == '["a"]'
    assert rows["generation.blas"].value == "true"
    assert not any("hunter2" in str(row) for row in rows.values())


def test_a_secret_that_is_not_set_shows_as_empty(tmp_path: Path) -> None:
    rows = {row.key: row.value for row in show_rows(load_settings(home=tmp_path))}
    assert rows["http.api_key"] == '""'
