"""Speed of speculative decoding beside plain decoding: drafted, looked up, and where neither pays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Sampling, pack_ids
from mlx_serving.config.schema import Speculation
from tools.bench.compare import judge
from tools.bench.inside.models import PREFIX, Subject, random_pair, subject
from tools.bench.inside.sizes import InsideSize
from tools.bench.inside.stage import GREEDY, Stage, Stream

_CODE = (
    "Write a Python class for a bank account with deposit, withdraw and transfer, with docstrings.",
    "Write a JavaScript function that parses a CSV line with quoted fields. Explain nothing.",
    "Write a Python function that merges overlapping intervals, and five unit tests for it.",
    "Write an SQL schema for a library with books, members and loans, then three queries.",
)
_FILE = Path(__file__).parents[1] / "quantiles.py"
_FREE = Sampling(temperature=1.0, seed=1)


@attrs.frozen
class Mode:
    """The setting `speculation.mode`, with the draft model that it needs."""

    kind: Literal["off", "lookup", "draft", "auto"]
    draft: Subject | None = None

    def engine(self, target: Subject) -> AbstractContextManager[MlxEngine]:
        """One that proposes so."""
        return target.engine(draft=self.draft, speculation=Speculation(mode=self.kind))


@attrs.frozen
class Task:
    """Prompts to answer in turn. `prediction`: what much of the answer may repeat."""

    prompts: list[list[int]]
    sampling: Sampling = GREEDY
    prediction: bytes = b""


def speculation(name: str, draft: str, size: InsideSize) -> dict[str, Any]:
    """`draft` is the folder of a draft model or empty; random models bring drafts of their own."""
    with ExitStack() as stack:
        target, modes, tasks = stack.enter_context(_contest(name, draft, size))
        engines = {mode: stack.enter_context(each.engine(target)) for mode, each in modes.items()}
        return {"draft": Path(draft).name, "tasks": {name: _run(engines, each, size) for name, each in tasks.items()}}


@contextmanager
def _contest(name: str, draft: str, size: InsideSize) -> Iterator[tuple[Subject, dict[str, Mode], dict[str, Task]]]:
    """The target, ways to propose, and what to answer."""
    modes = {"off": Mode("off"), "lookup": Mode("lookup")}
    if name.startswith(PREFIX):
        with random_pair(name) as (target, similar, stranger):
            drafted = {"draft": Mode("draft", similar), "a draft that is never right": Mode("draft", stranger)}
            yield target, {**modes, **drafted}, _random_tasks(target, size)
        return
    with ExitStack() as stack:
        target = stack.enter_context(subject(name))
        if draft:
            smaller = stack.enter_context(subject(draft))
            modes = {**modes, "draft": Mode("draft", smaller), "auto": Mode("auto", smaller)}
        yield target, modes, _tasks(target, size)


def _random_tasks(target: Subject, size: InsideSize) -> dict[str, Task]:
    """The prediction is what the model says, with every sixteenth token wrong."""
    prompt = target.ids(size.prompt_tokens, 1)
    with target.engine() as engine:
        (stream,) = _answers(Stage(engine), Task([prompt]), size.speculated_tokens)
    predicted = [1 if place % 16 == 15 else token for place, token in enumerate(stream.ids)]
    task = Task([prompt])
    return {"random text": task, "random text, with prediction": attrs.evolve(task, prediction=pack_ids(predicted))}


def _tasks(target: Subject, size: InsideSize) -> dict[str, Task]:
    text = _FILE.read_text()
    edit = f"Rename the function `quantile` to `share_below` in this file. Answer with the whole file.\n```\n{text}```"
    code = [_chat(target, prompt) for prompt in _CODE[: 1 + size.repetitions]]
    changed = target.tokenizer.encode(text.replace("quantile(", "share_below("))[: size.speculated_tokens]
    return {
        "code": Task(code),
        "edit a file": Task([_chat(target, edit) + target.tokenizer.encode("```\n")]),
        "edit a file, with prediction": Task(
            [_chat(target, edit) + target.tokenizer.encode("```\n")], prediction=pack_ids(changed)
        ),
        "code, at temperature 1": Task(code[:2], _FREE),
    }


def _chat(target: Subject, content: str) -> list[int]:
    """In the markup that the models of these benchmarks were trained on."""
    return target.tokenizer.encode(f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")


def _run(engines: Mapping[str, MlxEngine], task: Task, size: InsideSize) -> dict[str, Any]:
    rates: dict[str, list[float]] = defaultdict(list)
    drafts = {mode: [0, 0] for mode in engines}
    for repetition in range(size.repetitions + 1):
        for mode, engine in engines.items():
            streams = _answers(Stage(engine), task, size.speculated_tokens)
            if repetition:
                rates[mode].append(_rate(streams))
                for end in (stream.end for stream in streams):
                    if end is not None:
                        drafts[mode][0] += end.drafts.accepted
                        drafts[mode][1] += end.drafts.rejected
    counts = {mode: {"accepted": each[0], "rejected": each[1]} for mode, each in drafts.items()}
    ratios = {
        mode: judge({mode: rates[mode], "off": rates["off"]}, mode)["off"]["ratio"] for mode in rates if mode != "off"
    }
    return {"rates": dict(rates), "ratios": ratios, "drafts": counts}


def _answers(stage: Stage, task: Task, tokens: int) -> list[Stream]:
    """One after the other."""
    streams = []
    for prompt in task.prompts:
        streams.append(stage.submit(prompt, tokens, task.sampling, prediction_ids=task.prediction))
        stage.run()
    return streams


def _rate(streams: Sequence[Stream]) -> float:
    """Tokens a second after the first of each answer."""
    seconds = sum(stream.times[-1] - stream.times[0] for stream in streams)
    return sum(len(stream.times) - 1 for stream in streams) / seconds
