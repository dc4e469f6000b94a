"""Pooled outputs say what new ones say, for as long as they are to be read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from support.scripted import RECORD, scripted

from mlx_serving.actors import codec
from mlx_serving.actors.base import Node
from mlx_serving.actors.generation.actor import GenerationActor
from mlx_serving.actors.generation.answer import Piece, output_of
from mlx_serving.actors.generation.mlx_engine.outputs import Outputs
from mlx_serving.actors.generation.pooling import OutputPool
from mlx_serving.actors.generation.scripted import ScriptedEngine
from mlx_serving.actors.messages.admission import TokensGenerated
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.generation import SequenceAssigned
from mlx_serving.actors.messages.values import Sampling, SequenceEnd, Stopping, TokenLogprob, ToolCallPart, pack_ids
from mlx_serving.config.schema import Generation, Models

PIECES = st.builds(
    Piece,
    st.text(max_size=3),
    st.lists(st.integers(0, 9), max_size=2).map(tuple),
    reasoning=st.text(max_size=2),
    tool_calls=st.sampled_from([(), (ToolCallPart(0, "{"),)]),
)
SAID = st.tuples(
    st.integers(0, 3),
    PIECES,
    st.sampled_from([(), (TokenLogprob(1, "a", -0.5),)]),
    st.sampled_from([None, SequenceEnd("stop", 1, 2)]),
)


@given(st.lists(st.lists(SAID, max_size=4), max_size=4))
def test_the_outputs_of_each_step_are_those_that_new_ones_would_be(steps: list[list[Any]]) -> None:
    pool = OutputPool(True)
    for step in steps:
        pool.begin()
        assert [pool.output(*said) for said in step] == [output_of(*said) for said in step]


@given(st.lists(st.lists(SAID, max_size=4), max_size=4))
def test_tokens_of_one_sequence_in_one_step_add_up_as_without_a_pool(steps: list[list[Any]]) -> None:
    pooled, plain = (Outputs(cast(Any, None), is_on) for is_on in (True, False))
    for step in steps:
        for outputs in (pooled, plain):
            outputs.begin()
            for said in step:
                outputs.say(*said)
        assert pooled.all() == plain.all()


def test_a_step_fills_the_objects_of_the_last_one() -> None:
    pool, made = OutputPool(True), OutputPool(False)
    seen = []
    for text in ("a", "b"):
        pool.begin()
        made.begin()
        seen.append((pool.output(1, Piece(text, (1,))), made.output(1, Piece(text, (1,)))))
    (first, new_first), (second, new_second) = seen
    assert first is second
    assert (second.text, new_first.text, new_second.text) == ("b", "a", "b")


def test_an_engine_says_the_same_with_and_without() -> None:
    said = []
    for is_on in (True, False):
        driver = scripted(Generation(object_pooling=is_on))
        for each in range(4):
            driver.submit([1, 2, each], stopping=Stopping(max_tokens=3 + each))
        driver.run()
        said.append([(each.text, each.ids, each.outputs) for each in driver.sequences.values()])
    assert said[0] == said[1]


class _Admission:
    """Takes a frame only when it is `ready`; notes what it could read in each."""

    def __init__(self) -> None:
        self.ready = True
        self.frames: list[TokensGenerated] = []

    def tell(self, actor: str, message: Any, **_: Any) -> bool:
        if actor != "admission":
            return True
        if self.ready:
            self.frames.append(codec.decode(codec.encode(Envelope(message, "test"))).message)
        return self.ready


def test_what_admission_did_not_take_is_told_unchanged_later() -> None:
    admission = _Admission()
    node = SimpleNamespace(
        settings=SimpleNamespace(models=Models()),
        clock=lambda: 1.0,
        tell=admission.tell,
        emit=lambda event: None,
        poller=SimpleNamespace(wait=lambda seconds: None),
    )
    actor = GenerationActor("replica", lambda: ScriptedEngine(RECORD, Generation(object_pooling=True)))
    actor.set_up(cast(Node, node))
    stopping = Stopping(max_tokens=6, ignore_eos=True)
    actor.handle(
        Envelope(SequenceAssigned(SequenceQueued(7, "tiny", pack_ids([1, 2]), Sampling(), stopping, 0, 1.0), 1.0), "")
    )
    for turn in range(12):
        admission.ready = turn not in (2, 3)
        actor.work()
    outputs = [output for frame in admission.frames for output in frame.outputs]
    driver = scripted()
    driver.submit([1, 2], Sampling(), stopping)
    driver.run()
    assert [token for output in outputs for token in output.token_ids] == driver.sequences[0].ids
    assert "".join(output.text for output in outputs) == driver.sequences[0].text
    assert outputs[-1].end is not None
