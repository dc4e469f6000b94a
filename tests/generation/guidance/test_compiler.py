"""Compiling beside the engine: once for all who ask, within its limits, whatever the source."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest
from support.guidance_sources import PERSON, chain, nested
from support.random_answers import Walker

from mlx_serving.actors.errors import ActorUnavailable, GuidanceInvalid, Overloaded, ServingError
from mlx_serving.actors.generation.guidance.compiler import GuideCompiler
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.matchers import Matchers
from mlx_serving.actors.messages.values import Guidance, GuidanceKind

Compile = Callable[..., Guide]
Refusal = Callable[..., str]
Takes = Callable[[Guide, str], bool]

LONGEST_SECONDS = 20.0
"""In which every source is compiled or refused, on a machine that does other things too."""


class SlowMatchers(Matchers):
    """Counts compilations, and holds them until `go`."""

    def __init__(self, inner: Matchers) -> None:
        self.inner = inner
        self.width = inner.width
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self.made: list[Guidance] = []

    def load(self) -> Any:
        return self.inner.load()

    def make(self, guidance: Guidance) -> Any:
        self.made.append(guidance)
        self.entered.release()
        assert self.go.wait(60)
        return self.inner.make(guidance)


@pytest.fixture
def slow(matchers: Matchers) -> SlowMatchers:
    return SlowMatchers(matchers)


def failure(future: Future[Guide]) -> ServingError:
    error = future.exception(60)
    assert isinstance(error, ServingError)
    return error


def test_equal_sources_are_compiled_once(slow: SlowMatchers) -> None:
    compiler = GuideCompiler(slow, seconds=60)
    together = [compiler.start(Guidance("regex", "[a-z]+")) for _ in range(5)]
    other = compiler.start(Guidance("regex", "[0-9]+"))
    slow.go.set()
    guides = [future.result(60) for future in (*together, other)]
    again = compiler.start(Guidance("regex", "[a-z]+"))
    assert again.done()
    assert len(slow.made) == 2
    assert len({id(guide.matcher) for guide in (*guides, again.result())}) == 7
    compiler.close()


def test_the_least_used_source_is_forgotten(slow: SlowMatchers) -> None:
    slow.go.set()
    compiler = GuideCompiler(slow, seconds=60, cached=2)
    for pattern in ("a", "b", "a", "c", "a", "b"):
        compiler.start(Guidance("regex", pattern)).result(60)
    assert [guidance.source for guidance in slow.made] == ["a", "b", "c", "b"]
    compiler.close()


def test_one_that_takes_too_long_is_refused_and_holds_nobody_up(slow: SlowMatchers) -> None:
    compiler = GuideCompiler(slow, seconds=0.1)
    error = failure(compiler.start(Guidance("regex", "a", "asked")))
    assert isinstance(error, GuidanceInvalid)
    assert "0.1 s" in error.message
    assert error.field == "asked"
    slow.go.set()
    compiler.close()


def test_with_every_thread_busy_the_next_is_told_to_come_again(slow: SlowMatchers) -> None:
    compiler = GuideCompiler(slow, seconds=0.3)
    for pattern in "ab":
        compiler.start(Guidance("regex", pattern))
    error = failure(compiler.start(Guidance("regex", "c")))
    assert isinstance(error, Overloaded)
    assert error.retry_after is not None
    slow.go.set()
    compiler.close()


def test_who_waits_at_the_end_is_answered(slow: SlowMatchers) -> None:
    compiler = GuideCompiler(slow, seconds=60)
    future = compiler.start(Guidance("regex", "a"))
    assert slow.entered.acquire(timeout=60)
    slow.go.set()
    compiler.close()
    error = future.exception(60)
    assert error is None or isinstance(error, ActorUnavailable)


def test_a_panic_of_the_library_is_an_error(matchers: Matchers) -> None:
    class Panicking(SlowMatchers):
        def make(self, guidance: Guidance) -> Any:
            raise BaseException("panic")

    compiler = GuideCompiler(Panicking(matchers), seconds=60)
    for _ in range(3):
        assert "panic" in failure(compiler.start(Guidance("regex", "a"))).message
    compiler.close()


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("json_object", "", '{"a": [1, {"b": null}]}', "[1]"),
        ("json_object", "", "{}", "{ }"),
        ("json_schema", json.dumps(PERSON), '{"name": "Bob", "age": 7}', '{"age": 7, "name": "Bob"}'),
        ("json_schema", json.dumps(PERSON), '{"name": "", "age": 0}', '{"name": "", "age": -1}'),
        ("json_schema", "true", "[1, 2.5e3]", "[1,2]"),
        ("json_schema", "{}", '"a"', "'a'"),
        ("json_schema", '{"type": "string", "format": "date"}', '"2024-02-29"', '"2023-02-29"'),
        ("json_schema", '{"format": "time"}', '"23:59:59Z"', '"23:59:60Z"'),
        ("json_schema", '{"format": "date-time"}', '"2000-02-29T00:00:00.5+01:00"', '"1900-02-29T00:00:00Z"'),
        ("json_schema", '{"uniqueItems": false, "items": {"type": "null"}}', "[null, null]", "[1]"),
        ("json_schema", '{"items": [{"const": 1}], "additionalItems": false}', "[1]", "[1, 1]"),
        ("json_schema", '{"$defs": {"A<B>": {"const": 1}}, "$ref": "#/$defs/A<B>"}', "1", "2"),
        ("regex", r"[a-c]{2}\d", "ab1", "ab"),
        ("regex", "^a|b$", "b", "ab"),
        ("choice", '["red", "dark red", "a\\"b\\\\", "\\n", "\\u00e9\\ud83c\\udf0d", "(", "a.b"]', "é🌍", "red "),
        ("choice", '["a.b", "a"]', "a.b", "axb"),
        ("grammar", 'start: "a" start? "b"', "aabb", "aab"),
        ("grammar", 'root ::= ("x" | "y") [0-9]+', "x12", "z1"),
    ],
)
def test_every_kind_lets_through_what_it_means(
    compiled: Compile, takes: Takes, kind: str, source: str, good: str, bad: str
) -> None:
    guide = compiled(kind, source)
    assert takes(guide, good)
    assert not takes(guide, bad)


ONE_OF = {"properties": {"b": {"oneOf": [{"type": "null"}, {"type": "string"}]}, "a": {"oneOf": [{}, {}]}}}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"a": {"items": {"uniqueItems": True}}}}, "uniqueItems at #/properties/a/items/uniqueItems"),
        (ONE_OF, "oneOf at #/properties/a/oneOf"),
        ({"items": {"minProperties": 1, "properties": {"a": {}}}}, "minProperties at #/items/minProperties"),
        ({"patternProperties": {"^a": {}, "b$": {}}}, "patternProperties at #/patternProperties"),
        ({"anyOf": [{"type": "number", "minimum": 1e300}]}, "minimum at #/anyOf/0/minimum"),
        ({"pattern": r"a\b"}, "pattern at #/pattern"),
        ({"pattern": "(a|b)*(ab)+.*x", "minLength": 5000}, "pattern at #/pattern"),
        ({"multipleOf": 1e-300}, "multipleOf at #/multipleOf"),
        ({"properties": {"a": {"type": "strin"}}}, "#/properties/a/type"),
        ({"minLength": "3"}, "#/minLength"),
        ({"$ref": "#"}, "no answer can satisfy"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "required property 'a'"),
        ({"enum": []}, "asked: "),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_place(refusal: Refusal, schema: Any, named: str) -> None:
    assert named in refusal("json_schema", json.dumps(schema))


@pytest.mark.parametrize(
    ("kind", "source", "named"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", "(?=a)b", "look-around"),
        ("grammar", "start: missing", "missing"),
        ("grammar", "nothing", "::="),
        ("grammar", "start: start", "no answer can satisfy"),
        ("choice", "[]", "list of strings"),
        ("choice", '["a", ""]', "list of strings"),
        ("choice", "{", "list of strings"),
    ],
)
def test_what_makes_no_sense_is_refused(refusal: Refusal, kind: str, source: str, named: str) -> None:
    assert named in refusal(kind, source)


EXPLOSIONS: dict[str, tuple[GuidanceKind, str]] = {
    "repetitions in repetitions": ("regex", "(a{1000}){1000}"),
    "repetitions to the fourth": ("regex", "((((a{30}){30}){30}){30})"),
    "words in a row": ("regex", r"(\w+\s?){1,500}"),
    "backtracking": ("regex", "(x+x+)+y"),
    "a thousand optionals": ("regex", "a?" * 2000),
    "a thousand stars": ("regex", "a*" * 2000),
    "exponentially many states": ("regex", ".*(a|b)*a(a|b){40}"),
    "parentheses": ("regex", "(" * 2000 + "a" + ")" * 2000),
    "too long": ("regex", "a" * 5000),
    "alternatives multiplied": (
        "json_schema",
        json.dumps(
            {"allOf": [{"anyOf": [{"required": [f"a{place}"]}, {"required": [f"b{place}"]}]} for place in range(20)]}
        ),
    ),
    "a chain of definitions": ("json_schema", json.dumps(chain(2000))),
    "a longer chain": ("json_schema", json.dumps(chain(20_000))),
    "deep nesting": ("json_schema", json.dumps(nested(300))),
    "deeper nesting": ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    "many properties": ("json_schema", json.dumps({"properties": {f"p{place}": {} for place in range(10_000)}})),
    "many alternatives": ("json_schema", json.dumps({"enum": [f"value {place}" for place in range(50_000)]})),
    "a large prime": ("json_schema", '{"type": "integer", "multipleOf": 999983}'),
    "long texts": ("json_schema", '{"type": "string", "minLength": 100000, "maxLength": 1000000000}'),
    "long lists": ("json_schema", '{"type": "array", "minItems": 1000000000}'),
    "objects without end": ("json_schema", '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}'),
    "an overlong source": ("json_schema", json.dumps({"description": "x" * (1 << 20)})),
    "a chain of rules": (
        "grammar",
        "start: r0\n" + "".join(f'r{place}: r{place + 1} "x"\n' for place in range(9900)) + 'r9900: "a"',
    ),
    "a longer chain of rules": (
        "grammar",
        "start: r0\n" + "".join(f"r{place}: r{place + 1}\n" for place in range(30_000)) + 'r30000: "a"',
    ),
    "a sequence of rules": ("grammar", "start: " + " ".join(f'"{place}"' for place in range(20_000))),
    "ambiguity": ("grammar", 'start: a a a a a a a a\na: a a | "x" |'),
    "a grammar in parentheses": ("grammar", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
    "ten thousand choices": ("choice", json.dumps([f"choice {place}" for place in range(10_000)])),
    "too many choices": ("choice", json.dumps([f"choice {place}" for place in range(10_001)])),
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_nothing_explodes(compiler: GuideCompiler, walker: Walker, name: str) -> None:
    """It is refused, or can be followed; either way soon."""
    kind, source = EXPLOSIONS[name]
    began = time.monotonic()
    future = compiler.start(Guidance(kind, source, "asked"))
    error = future.exception(120)
    if error is None:
        with suppress(GuidanceInvalid):
            walker.answer(future.result(), 1)
    else:
        assert isinstance(error, GuidanceInvalid)
        assert len(error.message) < 2000
    assert time.monotonic() - began < LONGEST_SECONDS
