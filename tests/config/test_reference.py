"""The generated pages against the sources they are made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlx_serving.config.fields import fields
from mlx_serving.config.load import load_settings
from mlx_serving.config.schema import Settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ROOT / "config" / "runtime.yaml"


def test_the_packaged_file_names_every_setting_with_its_default(tmp_path: Path) -> None:
    loaded = load_settings(home=tmp_path, file=PACKAGED)
    assert loaded.settings == Settings()
    assert {origin.kind for origin in loaded.origins.values()} == {"file"}
    assert loaded.origins.keys() == fields().keys()


def test_the_generated_pages_are_up_to_date() -> None:
    script = ROOT / "tools" / "reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
