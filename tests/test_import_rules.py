"""Who may import what, read from the sources: the layers of our packages and the one home of each library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("actors", "config", "frontends", "native")
ENGINE = "actors.generation.mlx_engine"
KERNELS = "native.kernels"

HOMES = {
    "zmq": ("actors.transport",),
    "msgpack": ("actors.codec",),
    "cattrs": ("actors.codec", "config"),
    "typed_settings": ("config",),
    "mlx": (ENGINE, "actors.models.gguf", KERNELS),
    "mlx_lm": (ENGINE, "actors.models.gguf", KERNELS),
    "mlx_vlm": (ENGINE,),
    "transformers": (ENGINE,),
    "prometheus_client": ("actors.telemetry.exporters",),
    "opentelemetry": ("actors.telemetry.exporters",),
    "starlette": ("frontends.http",),
    "uvicorn": ("frontends.http",),
    "click": ("frontends.cli",),
    "rich": ("frontends.cli",),
    "rich_click": ("frontends.cli",),
    "textual": ("frontends.cli",),
    "torch": (),
    "pickle": (),
}
"""Only modules whose names begin with one of these may import the library."""

BASIS = ("actors.errors", "actors.messages", "actors.clock")
LAYERS = {
    "config": ("config", "actors.errors"),
    "native": ("native",),
    "actors.errors": (),
    "actors.clock": (),
    "actors.messages": (*BASIS, "config", "native"),
    "actors": ("actors", "config", "native"),
    "frontends.http": ("frontends.http", "frontends.client", "frontends.tool_calls", *BASIS, "config", "native"),
    "frontends.stdio": ("frontends.stdio", "frontends.client", "frontends.tool_calls", *BASIS, "config", "native"),
    "frontends": ("frontends", "actors", "config", "native"),
}
"""Which of our modules a module may import; the longest name that fits the importing module decides."""

ACTORS = ("admission", "batching", "generation", "qos", "telemetry")
WIRING = ("actors.system", "actors.supervisor")

DECISIONS = ("aggregate", "policy", "prefixes", "queue", "scheduler", "slo")
"""Modules of these names decide: state and a clock reading in, decision out."""
EFFECTS = (
    "zmq",
    "msgpack",
    "mlx",
    "logging",
    "structlog",
    "socket",
    "threading",
    "time",
    "asyncio",
    "subprocess",
)
SHELLS = ("actors.base", "actors.transport", "actors.codec")


@attrs.frozen
class Import:
    importer: str
    imported: str
    line: int
    at_load: bool
    """False inside a function or under TYPE_CHECKING: nothing happens when the module is loaded."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def within(module: str, *prefixes: str) -> bool:
    return any(module == prefix or module.startswith((f"{prefix}.", f"{prefix}_")) for prefix in prefixes)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def walk(node: ast.AST, at_load: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_load
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        )
        yield from walk(child, at_load and not lazy)


def names(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """`from package import name` gives `package.name` where that is a module, `package` otherwise."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    origin = statement.module or ""
    inner = [f"{origin}.{alias.name}" for alias in statement.names]
    return [name if name.removeprefix("mlx_serving.") in modules() else origin for name in inner]


@cache
def imports() -> tuple[Import, ...]:
    return tuple(
        Import(module, name, statement.lineno, at_load)
        for module, path in modules().items()
        for statement, at_load in walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in names(statement)
    )


def own_imports() -> Iterator[tuple[Import, str]]:
    """Imports of our own modules, with the imported name as in the folders."""
    for one in imports():
        if one.imported.startswith("mlx_serving."):
            yield one, one.imported.removeprefix("mlx_serving.")


def none(violations: list[Import]) -> None:
    assert not violations, "\n".join(map(str, violations))


def test_every_name_in_these_rules_is_that_of_a_module() -> None:
    """A rule about nothing holds whatever is imported."""
    named = {*BASIS, *LAYERS, *WIRING, *SHELLS, ENGINE, KERNELS, *(f"actors.{actor}" for actor in ACTORS)}
    for others in (*HOMES.values(), *LAYERS.values()):
        named.update(others)
    assert not [name for name in sorted(named) if not any(within(module, name) for module in modules())]
    assert not [name for name in DECISIONS if not any(module.endswith(f".{name}") for module in modules())]


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_only_at_its_home(library: str) -> None:
    users = [one for one in imports() if one.imported.split(".")[0] == library]
    none([one for one in users if not within(one.importer, *HOMES[library])])


def test_our_modules_import_only_what_their_layer_may() -> None:
    def allowed(importer: str) -> tuple[str, ...]:
        return LAYERS[max((layer for layer in LAYERS if within(importer, layer)), key=len)]

    none([one for one, name in own_imports() if not within(name, *allowed(one.importer))])


def test_actors_know_each_others_messages_but_never_each_other() -> None:
    def owner(module: str) -> str | None:
        return next((actor for actor in ACTORS if within(module, f"actors.{actor}")), None)

    none(
        [
            one
            for one, name in own_imports()
            if (ours := owner(one.importer)) and (theirs := owner(name)) and ours != theirs
        ]
    )


def test_only_the_wiring_and_the_frontends_command_line_import_an_actors_shell() -> None:
    none(
        [
            one
            for one, name in own_imports()
            if name.startswith("actors.")
            and name.endswith(".actor")
            and not within(one.importer, *WIRING, "frontends.cli", name.rpartition(".")[0])
        ]
    )


def test_modules_that_decide_touch_no_io_clock_thread_or_log() -> None:
    deciding = [
        one for one in imports() if within(one.importer, "actors") and one.importer.endswith(DECISIONS) and one.at_load
    ]
    none(
        [
            one
            for one in deciding
            if one.imported.split(".")[0] in EFFECTS or within(one.imported.removeprefix("mlx_serving."), *SHELLS)
        ]
    )


def test_mlx_is_loaded_only_with_the_engine() -> None:
    own = (f"mlx_serving.{ENGINE}", f"mlx_serving.{KERNELS}")
    heavy = ("mlx", "mlx_lm", "mlx_vlm", "transformers")
    none(
        [
            one
            for one in imports()
            if one.at_load
            and not within(one.importer, ENGINE, KERNELS)
            and (one.imported.split(".")[0] in heavy or one.imported.startswith(own))
        ]
    )


def test_importing_everything_but_the_engine_loads_neither_mlx_nor_transformers() -> None:
    wanted = [f"mlx_serving.{name}" for name in modules() if not within(name, ENGINE, KERNELS)]
    script = (
        "import importlib, sys\n"
        f"for name in {wanted!r}: importlib.import_module(name)\n"
        "print(sorted({'mlx', 'mlx_lm', 'transformers', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
