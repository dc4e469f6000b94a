"""The C++ core, built alone with AddressSanitizer and UndefinedBehaviorSanitizer, on random shapes."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "native/src/cpu"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
FLAGS = ["-std=c++20", "-O0", *WARNINGS, "-fno-strict-aliasing", "-fsanitize=address,undefined"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_random_shapes_find_nothing_under_the_sanitizers(tmp_path: Path) -> None:
    sources = [*sorted(CORE.glob("*.cpp")), ROOT / "tests/native/cpp/fuzz.cpp"]

    def compiled(source: Path) -> str:
        target = str(tmp_path / f"{source.stem}.o")
        command = ["g++", *FLAGS, "-fno-sanitize-recover=all", f"-I{CORE}", "-c", str(source), "-o", target]
        subprocess.run(command, check=True, timeout=900)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    program = tmp_path / "fuzz"
    subprocess.run(["g++", *FLAGS, *objects, "-pthread", "-o", str(program)], check=True, timeout=300)
    done = subprocess.run([program, "30"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "scalar: 30 turns" in done.stdout
