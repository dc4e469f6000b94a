"""Compiles what answers are held to, beside the engine's thread, once for all rows that ask for the same.

The compiler is native code that cannot be interrupted, but it works on fuel and the sources are bounded, so that it
always ends; whoever asked is answered at the time limit even so. It works without the GIL and may recurse deeply:
its threads have a stack for that (of virtual memory, touched only when used).
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from mlx_serving.actors.errors import ActorUnavailable, GuidanceInvalid, Overloaded, ServingError
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.matchers import Matchers
from mlx_serving.actors.messages.values import Guidance

if TYPE_CHECKING:
    import llguidance

_THREADS = 2
_STACK_BYTES = 256 << 20
_MOST_WAITING = 256
_JOIN_SECONDS = 2.0
_stack_size = threading.Lock()


@attrs.define(eq=False)
class _Compilation:
    """One source on its way, and who waits for it."""

    guidance: Guidance
    timer: threading.Timer
    waiting: list[Future[Guide]]
    is_started: bool = False


class GuideCompiler:
    """`start` may be called on any thread. Nothing is imported or started before the first call.

    `seconds` bounds one compilation once the vocabulary is read, `cached` the number of compiled sources kept.
    """

    def __init__(self, matchers: Matchers, seconds: float = 5.0, cached: int = 64) -> None:
        self._matchers = matchers
        self._seconds = seconds
        self._cached = cached
        self._lock = threading.Lock()
        self._ready: OrderedDict[Guidance, llguidance.LLMatcher] = OrderedDict()
        self._under_way: dict[Guidance, _Compilation] = {}
        self._jobs: queue.SimpleQueue[_Compilation | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_loaded = False

    def start(self, guidance: Guidance) -> Future[Guide]:
        """A guide at the beginning of an answer; or GuidanceInvalid, or Overloaded if too much is being compiled."""
        future: Future[Guide] = Future()
        with self._lock:
            ready = self._ready.get(guidance)
            job = self._under_way.get(guidance)
            if ready is not None:
                self._ready.move_to_end(guidance)
                future.set_result(Guide(ready.deep_copy(), guidance.field))
            elif job is not None:
                job.waiting.append(future)
            elif len(self._under_way) >= _MOST_WAITING:
                future.set_exception(Overloaded("too many grammars are being compiled", retry_after=1.0))
            else:
                self._begin(guidance, future)
        return future

    def load(self) -> None:
        """Do now what the first compilation would wait for. It holds the GIL for most of a second."""
        self._matchers.load()
        with self._lock:
            if not self._is_loaded:
                self._is_loaded = True
                for job in self._under_way.values():
                    job.timer.start()

    def close(self) -> None:
        """Answer who waits, and end the threads."""
        with self._lock:
            jobs, self._under_way = list(self._under_way.values()), {}
            threads, self._threads = self._threads, []
            self._ready.clear()
        for job in jobs:
            job.timer.cancel()
            _fail(job, ActorUnavailable("the model is being unloaded"))
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(_JOIN_SECONDS)

    def _begin(self, guidance: Guidance, future: Future[Guide]) -> None:
        timer = threading.Timer(self._seconds, self._time_out, (guidance,))
        timer.daemon = True
        job = self._under_way[guidance] = _Compilation(guidance, timer, [future])
        if self._is_loaded:
            timer.start()
        if not self._threads:
            self._threads = _started(self._work, _THREADS)
        self._jobs.put(job)

    def _work(self) -> None:
        with suppress(Exception):  # `make` will tell
            self.load()
        while (job := self._jobs.get()) is not None:
            job.is_started = True
            if job.waiting:
                self._compile(job)

    def _compile(self, job: _Compilation) -> None:
        matcher: llguidance.LLMatcher | None = None
        failure: BaseException | None = None
        try:
            matcher = self._matchers.make(job.guidance)
        except BaseException as error:  # a panic of the library is no Exception
            failure = error
        self._finish(job, matcher)
        if matcher is None:
            known = isinstance(failure, ServingError)
            _fail(job, failure if known else ServingError(f"compiling failed: {failure!r}"))  # type: ignore[arg-type]
            return
        for future in job.waiting:
            _settle(future, Guide(matcher.deep_copy(), job.guidance.field))

    def _finish(self, job: _Compilation, matcher: llguidance.LLMatcher | None) -> None:
        job.timer.cancel()
        with self._lock:
            if self._under_way.get(job.guidance) is job:
                del self._under_way[job.guidance]
            if matcher is not None:
                self._ready[job.guidance] = matcher
                while len(self._ready) > self._cached:
                    self._ready.popitem(last=False)

    def _time_out(self, guidance: Guidance) -> None:
        """What is being compiled goes on, but nobody waits for it any more."""
        with self._lock:
            job = self._under_way.pop(guidance, None)
        if job is None:
            return
        field = guidance.field
        if job.is_started:
            text = f"{field}: not compiled within {self._seconds:g} s; ask for less"
            _fail(job, GuidanceInvalid(text, field=field))
        else:
            _fail(job, Overloaded(f"{field}: others are being compiled", field=field, retry_after=1.0))


def _started(work: Callable[[], None], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, name=f"grammars-{number}", daemon=True) for number in range(count)]
    with _stack_size:
        before = threading.stack_size(_STACK_BYTES)
        try:
            for thread in threads:
                thread.start()
        finally:
            threading.stack_size(before)
    return threads


def _fail(job: _Compilation, error: ServingError) -> None:
    for future in job.waiting:
        _settle(future, error)


def _settle(future: Future[Guide], outcome: Guide | ServingError) -> None:
    """Whoever gave up waiting has settled it already."""
    try:
        if isinstance(outcome, Guide):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
    except InvalidStateError:
        pass
