"""Who gets in, and the reasons why not."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.admission.catalogue import Catalogue
from mlx_serving.actors.admission.policy import Gate, admit, cache_salt, sequences
from mlx_serving.actors.admission.prompt import Prompt
from mlx_serving.actors.errors import (
    ActorUnavailable,
    CallerError,
    ContextOverflow,
    InvalidParameter,
    ModelNotFound,
    ModelNotLoaded,
    Overloaded,
)
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.values import ModelInfo, Sampling, Stopping, pack_ids
from mlx_serving.config.schema import Admission

LIMITS = Admission()
MODEL = ModelInfo("m", "/m", "llama", 1, "float16", context_length=100, vocab_size=50, kv_bytes_per_token=10)


def asked(**changes: object) -> GenerationRequested:
    return attrs.evolve(GenerationRequested(1, prompt="hi"), **changes)  # type: ignore[arg-type]


def test_a_plain_request_comes_in() -> None:
    admit(asked(), Gate(), LIMITS)


def test_shed_classes_are_refused_with_retry_after_and_the_others_come_in() -> None:
    gate = Gate(shed=("low",), shed_retry_after=3.0, shed_reason="queue time")
    with pytest.raises(Overloaded, match="queue time") as refused:
        admit(asked(priority="low"), gate, LIMITS)
    assert refused.value.retry_after == 3.0
    admit(asked(priority="normal"), gate, LIMITS)


def test_a_full_queue_is_overload_and_says_when_to_come_back() -> None:
    with pytest.raises(Overloaded) as refused:
        admit(asked(), Gate(waiting=LIMITS.max_waiting), LIMITS)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1


def test_a_draining_server_takes_nothing() -> None:
    with pytest.raises(ActorUnavailable, match="shutting down"):
        admit(asked(), Gate(draining=True), LIMITS)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asked(prompt_ids=b""), "prompt"),
        (asked(n=0), "n"),
        (asked(n=LIMITS.max_n + 1), "n"),
        (asked(sampling=Sampling(temperature=-1)), "temperature"),
        (asked(sampling=Sampling(temperature=float("nan"))), "temperature"),
        (asked(sampling=Sampling(top_p=0)), "top_p"),
        (asked(sampling=Sampling(top_k=-1)), "top_k"),
        (asked(sampling=Sampling(min_p=2)), "min_p"),
        (asked(sampling=Sampling(seed=2**63)), "seed"),
        (asked(sampling=Sampling(repetition_penalty=0)), "repetition_penalty"),
        (asked(sampling=Sampling(repetition_penalty=1e-40)), "repetition_penalty"),
        (asked(sampling=Sampling(presence_penalty=3)), "presence_penalty"),
        (asked(sampling=Sampling(frequency_penalty=-3)), "frequency_penalty"),
        (asked(sampling=Sampling(logit_bias={1: 101.0})), "logit_bias"),
        (asked(sampling=Sampling(top_logprobs=21)), "top_logprobs"),
        (asked(stopping=Stopping(max_tokens=0)), "max_tokens"),
        (asked(stopping=Stopping(stop=("",))), "stop"),
        (asked(timeout=0.0), "timeout"),
    ],
)
def test_a_parameter_out_of_range_is_named(request_: GenerationRequested, field: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        admit(request_, Gate(), LIMITS)
    assert refused.value.field == field


def test_the_answer_is_bounded_by_the_context() -> None:
    (sequence,) = sequences(asked(), Prompt([1] * 90), MODEL, 10**6, LIMITS, 0.0, 9.0)
    assert sequence.stopping.max_tokens == 10
    assert sequence.kv_bytes == 1000
    assert sequence.prompt_ids == pack_ids([1] * 90)


def test_a_row_counts_with_the_room_it_is_given() -> None:
    model = attrs.evolve(MODEL, capacities=(32, 64, 128))
    request_ = asked(stopping=Stopping(max_tokens=10))
    made = [sequences(request_, Prompt([1] * count), model, 650, LIMITS, 0.0, 9.0) for count in (22, 23, 54, 55)]
    # The last one has room for more than the budget: it runs alone.
    assert [sequence.kv_bytes for (sequence,) in made] == [320, 640, 640, 1280]


def test_a_prediction_goes_with_every_choice_as_far_as_an_answer_can_reach() -> None:
    made = sequences(asked(n=2, speculation=False), Prompt([1], prediction=[7] * 200), MODEL, 10**6, LIMITS, 0.0, 9.0)
    assert [sequence.prediction_ids for sequence in made] == [pack_ids([7] * 100)] * 2
    assert not any(sequence.speculation for sequence in made)


def test_every_choice_becomes_a_sequence_with_its_index() -> None:
    made = sequences(asked(n=3), Prompt([1, 2]), MODEL, 10**6, LIMITS, 0.0, 9.0)
    assert [sequence.index for sequence in made] == [0, 1, 2]


@pytest.mark.parametrize(
    ("ids", "budget", "error"),
    [
        ([], 10**6, InvalidParameter),
        ([1] * 100, 10**6, ContextOverflow),
        ([1] * 50, 500, ContextOverflow),
        ([50], 10**6, InvalidParameter),
    ],
)
def test_a_prompt_that_cannot_run_is_refused(ids: list[int], budget: int, error: type[CallerError]) -> None:
    with pytest.raises(error):
        sequences(asked(prompt=None, prompt_ids=pack_ids(ids)), Prompt(ids), MODEL, budget, LIMITS, 0.0, 9.0)


def test_an_unknown_model_is_refused_with_near_names_and_a_stored_one_with_what_to_do() -> None:
    catalogue = Catalogue()
    with pytest.raises(ModelNotFound, match="near names: smollm2-135m"):
        catalogue.route("smollm-135m", ["smollm2-135m"])
    with pytest.raises(ModelNotFound, match="there is smollm2-135m"):
        catalogue.route("zzz", ["smollm2-135m"])
    with pytest.raises(ModelNotLoaded, match="models load qwen"):
        catalogue.route("qwen", ["qwen"])
    with pytest.raises(ActorUnavailable, match="loading"):
        catalogue.route(None, [])


@given(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.booleans(), st.booleans())
def test_no_tenant_and_salt_share_prefixes_with_another_pair(
    tenant: str, salt: str, other_tenant: str, other_salt: str, apart: bool, other_apart: bool
) -> None:
    one = cache_salt(asked(tenant=tenant, cache_salt=salt), attrs.evolve(LIMITS, cache_per_tenant=apart))
    other = cache_salt(
        asked(tenant=other_tenant, cache_salt=other_salt), attrs.evolve(LIMITS, cache_per_tenant=other_apart)
    )
    same = apart == other_apart and salt == other_salt and (not apart or tenant == other_tenant)
    assert (one == other) == same
