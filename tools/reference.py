"""Writes the pages that are made from the sources: settings, metrics and messages.

python tools/reference.py            write them
python tools/reference.py --check    say which are out of date, and fail if one is
"""

from __future__ import annotations

import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import attrs

from mlx_serving.actors import errors
from mlx_serving.actors.errors import ERRORS, ServingError
from mlx_serving.actors.messages import (
    admission,
    batching,
    envelope,
    frontend,
    generation,
    qos,
    supervision,
    telemetry,
    values,
)
from mlx_serving.actors.telemetry.metrics import METRICS, Metric
from mlx_serving.actors.telemetry.series import MAX_SERIES
from mlx_serving.config.fields import Field, fields, sections
from mlx_serving.config.load import profile_names, variable_of
from mlx_serving.config.show import to_yaml
from mlx_serving.config.values import expected

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
NOTICE = "Made by tools/reference.py from the sources; edit those."
MODULES = (envelope, admission, batching, generation, frontend, telemetry, qos, supervision, values)


def main(arguments: list[str]) -> int:
    """0 when every page is written or up to date."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = [path for path, page in PAGES.items() if _is_stale(path, page())]
    for path in stale:
        if arguments:
            print(f"{path} is out of date: run tools/reference.py", file=sys.stderr)
        else:
            (ROOT / path).write_text(PAGES[path](), encoding="utf-8")
            print(f"wrote {path}")
    return 1 if arguments and stale else 0


def _is_stale(path: str, page: str) -> bool:
    file = ROOT / path
    return not file.exists() or file.read_text(encoding="utf-8") != page


# --- settings -------------------------------------------------------------------------------------


HEADER = (
    "Every setting with its default. Write what you change, and only that, into runtime.yaml of the home "
    "folder (MLX_SERVING_HOME, by default ~/.mlx-serving). docs/configuration.md tells what lies over it."
)


def runtime_yaml() -> str:
    lines = _comment(f"{HEADER} {NOTICE}")
    for key in list(sections())[1:]:
        lines += _yaml_section(key)
    return "\n".join(lines) + "\n"


def _yaml_section(key: str) -> Iterator[str]:
    depth = key.count(".")
    indent = "  " * depth
    yield ""
    yield from _comment(_line(sections()[key].doc), indent)
    yield f"{indent}{key.rpartition('.')[2]}:"
    for field in _fields_of(key):
        yield from _comment(f"{field.doc} {_takes(field)}", indent + "  ")
        yield f"{indent}  {field.key.rpartition('.')[2]}: {to_yaml(field.default)}"


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _fields_of(section: str) -> list[Field]:
    return [field for field in fields().values() if field.key.rpartition(".")[0] == section]


def _takes(field: Field) -> str:
    words = expected(field)
    return f"{words[0].upper()}{words[1:]}{', live' if field.live else ''}."


CONFIGURATION = """# Configuration

Settings come in layers, and a later one wins, setting by setting:

1. the defaults, as listed here and in `config/runtime.yaml`
2. a profile: `--profile NAME`, from `profiles/NAME.yaml` of the home folder or one of ours ({profiles})
3. `runtime.yaml` of the home folder, or the file that `--config` names
4. the environment: `{example}=9000` sets `http.port`; lists are separated by commas
5. flags of the command

Everything that is wrong in any layer is refused at once, with its place and what would be right: unknown
keys, keys that stand twice, values out of bounds or of another type (nothing is converted: `"8080"` is no
port).
`mlx-serving config show --origin` tells where each value came from.

Durations are seconds, sizes bytes. A setting marked *live* is taken over by a running server when its file
changes; other changes are logged as waiting for a restart. A file that has become invalid changes nothing.
"""


def configuration() -> str:
    profiles = ", ".join(f"`{name}`" for name in profile_names(ROOT / "no-home"))
    parts = [CONFIGURATION.format(profiles=profiles, example=variable_of("http.port"))]
    for key in list(sections())[1:]:
        parts.append(f"## {key}\n\n{_line(sections()[key].doc)}\n")
        rows = [
            (
                f"`{field.key}`",
                expected(field),
                f"`{to_yaml(field.default)}`",
                "live" if field.live else "",
                field.doc,
            )
            for field in _fields_of(key)
        ]
        parts.append(_table(("setting", "takes", "default", "", "meaning"), rows))
    return "\n".join([*parts, f"{NOTICE}\n"])


# --- metrics --------------------------------------------------------------------------------------


METRICS_INTRO = """# Metrics

`GET /metrics` answers with these in Prometheus' text format. Counters count since the telemetry actor
started. A metric has at most {series} series; what comes later is counted with the label value `other`.
"""


def metrics() -> str:
    rows = [(f"`{m.name}`", m.kind, ", ".join(m.labels), m.help) for m in METRICS]
    table = _table(("name", "kind", "labels", "meaning"), rows)
    buckets = "".join(_buckets(metric) for metric in METRICS if metric.buckets)
    return f"{METRICS_INTRO.format(series=MAX_SERIES)}\n{table}\n## Buckets\n\n{buckets}\n{NOTICE}\n"


def _buckets(metric: Metric) -> str:
    return f"- `{metric.name}`: {', '.join(f'{bound:g}' for bound in metric.buckets)}\n"


# --- messages -------------------------------------------------------------------------------------


MESSAGES_INTRO = """# Messages

Every message that crosses the bus, by receiver; [protocol.md](protocol.md) tells how they are framed. A field
with a default may be left out, except in the two messages that carry tokens. An unknown field, a missing one
or one of another type makes the frame a protocol error.
"""


def messages() -> str:
    parts = [MESSAGES_INTRO]
    for module in MODULES:
        parts.append(f"## {_noun(module)}\n\n{_paragraphs(module.__doc__)}\n")
        parts += [f"`{name}` is {' or '.join(choices)}.\n" for name, choices in _choices(module)]
        parts += [_message(kind) for kind in _classes(module)]
    parts.append(f"## errors\n\n{_paragraphs(errors.__doc__)}\n")
    parts.append(_message(errors.ErrorInfo))
    parts.append(_table(("code", "HTTP", "JSON-RPC", "exit", "meaning"), [_error(each) for each in ERRORS.values()]))
    return "\n".join([*parts, f"{NOTICE}\n"])


def _noun(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _classes(module: ModuleType) -> list[type[Any]]:
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    return [kind for kind in own if attrs.has(kind)]


def _choices(module: ModuleType) -> list[tuple[str, tuple[str, ...]]]:
    if module is not values:
        return []
    literals = [(name, value) for name, value in vars(module).items() if typing.get_origin(value) is Literal]
    return [(name, typing.get_args(value)) for name, value in literals]


def _message(kind: type[Any]) -> str:
    rows = [(f"`{field.name}`", f"`{field.type}`", _default(field)) for field in attrs.fields(kind)]
    table = _table(("field", "type", "default"), rows) if rows else ""
    return f"### {kind.__name__}\n\n{_paragraphs(kind.__doc__)}\n" + (f"\n{table}" if rows else "")


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return ""
    default: Any = field.default
    made = default.factory() if hasattr(default, "factory") else default
    return f"`{type(made).__name__}()`" if attrs.has(type(made)) else f"`{made!r}`"


def _error(kind: type[ServingError]) -> tuple[str, ...]:
    return (
        f"`{kind.code}`",
        str(kind.http_status),
        str(kind.rpc_code),
        str(kind.exit_status),
        _line(kind.__doc__),
    )


# --- Markdown -------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _paragraphs(doc: str | None) -> str:
    return inspect.cleandoc(doc or "")


def _line(doc: str | None) -> str:
    return " ".join((doc or "").split())


PAGES: dict[str, Callable[[], str]] = {
    "config/runtime.yaml": runtime_yaml,
    "docs/configuration.md": configuration,
    "docs/metrics.md": metrics,
    "docs/messages.md": messages,
}
"""What is written, by its path in the repository."""

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
