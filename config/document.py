"""A YAML settings file as flat entries with their line numbers.

Only what settings need is understood: mappings, lists and plain scalars by the core rules of YAML 1.2. Tags,
and so objects, are refused; so are duplicate keys, which YAML libraries let pass silently.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import attrs
import yaml

from mlx_serving.config.values import plain_scalar

MAX_CHARACTERS = 1 << 20
"""Longest settings text that is read."""

_TAG = "tag:yaml.org,2002:"
_NULLS = ("", "~", "null")


class _Loader(yaml.SafeLoader):
    """PyYAML's parser without its resolvers: what a plain scalar means is decided here."""


_Loader.yaml_implicit_resolvers = {}


@attrs.frozen
class Entry:
    """The value that stands at a dotted key; lines count from 1."""

    key: str
    value: object
    line: int


@attrs.frozen
class Flaw:
    """Something that is wrong with the text itself. `key` is "" when it concerns the whole file."""

    key: str
    message: str
    line: int | None = None


def read_document(text: str, sections: Container[str]) -> Iterator[Entry | Flaw]:
    """The entries of a settings file; keys in `sections` are looked into, everything else is a value."""
    if len(text) > MAX_CHARACTERS:
        yield Flaw("", f"must be at most {MAX_CHARACTERS} characters, got {len(text)}")
        return
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield Flaw("", f"is not YAML: {error.problem}", None if mark is None else mark.line + 1)
    except (yaml.YAMLError, RecursionError) as error:
        yield Flaw("", f"is not YAML: {getattr(error, 'reason', 'nested too deeply')}")
    else:
        yield from _entries("", root, sections)


def _entries(key: str, node: yaml.Node | None, sections: Container[str]) -> Iterator[Entry | Flaw]:
    if node is None or _is_null(node):
        return
    if not isinstance(node, yaml.MappingNode) or node.tag != _TAG + "map":
        yield Flaw(key, "must be a mapping of settings", _line(node))
        return
    seen: set[str] = set()
    for name_node, value_node in node.value:
        line = _line(name_node)
        name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "(not a text)"
        dotted = f"{key}.{name}" if key else name
        if name in seen:
            yield Flaw(dotted, "stands here a second time", line)
        elif dotted in sections:
            yield from _entries(dotted, value_node, sections)
        else:
            yield Entry(dotted, _value(value_node), line)
        seen.add(name)


def _value(node: yaml.Node) -> object:
    """A scalar or a list of them. What no setting takes (deeper nesting, tags) is an empty mapping."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_scalar(item) if isinstance(item, yaml.ScalarNode) else {} for item in node.value]
    return {}


def _scalar(node: yaml.ScalarNode) -> object:
    if node.tag != _TAG + "str":
        return {}
    if node.style is not None:
        return str(node.value)
    return None if _is_null(node) else plain_scalar(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
