"""mlx_lm used in process, as the thing to compare with: one process, one model, one question at a time.

Questions and answers are JSON lines. The process that asks imports nothing of mlx.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import orjson

_PRODUCTS = 5


@attrs.define(eq=False)
class Worker:
    """The asking end; use it as a context manager. `blas`: with OpenBLAS ahead of MLX's, as this server
    runs."""

    folder: Path
    blas: bool = True
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        command = [sys.executable, str(Path(__file__).parent), "worker", str(self.folder)]
        environment = {**os.environ, "MLX_SERVING_BLAS": "1" if self.blas else "0"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Answer of the process; RuntimeError when it ended. Waits as long as the model needs."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps(question) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the mlx_lm process ended with status {self._process.wait()}")
        answer: dict[str, Any] = orjson.loads(line)
        return answer

    def generate(self, messages: list[dict[str, str]], max_tokens: int, margins: bool = False) -> dict[str, Any]:
        """Greedy answer to a chat: ids, token strings, text, finish_reason, prompt_tokens, `first` (seconds
        to the first token), `decode` (seconds from the first to the last). With `margins`, for each token how
        far the best log-probability stood above the second; that costs time."""
        return self.ask(do="generate", messages=messages, max_tokens=max_tokens, margins=margins)

    def product(self) -> float:
        """GFLOP/s of a float32 product of 512 x 576 by 576 x 1536."""
        return float(self.ask(do="product")["gflops"])


def serve_worker(folder: Path) -> None:
    """The answering end, until standard input ends."""
    from mlx_serving.native import blas

    blas.install()
    from mlx_lm import load

    model, tokenizer, *_ = load(str(folder))
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)  # what libraries print must not look like an answer
        for line in sys.stdin.buffer:
            question = orjson.loads(line)
            do = question.pop("do")
            answer = _generate(model, tokenizer, **question) if do == "generate" else _product()
            output.write(orjson.dumps(answer) + b"\n")
            output.flush()


def _generate(
    model: Any, tokenizer: Any, messages: list[dict[str, str]], max_tokens: int, margins: bool
) -> dict[str, Any]:
    from mlx_lm import stream_generate

    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    parts, moments, gaps = [], [], []
    started = time.monotonic()
    for part in stream_generate(model, tokenizer, prompt, max_tokens=max_tokens):
        moments.append(time.monotonic())
        parts.append((int(part.token), part.text))
        if margins:
            gaps.append(_margin(part.logprobs))
        reason = part.finish_reason
    return {
        "ids": [token for token, _ in parts],
        "tokens": [tokenizer.decode([token]) for token, _ in parts],
        "text": "".join(text for _, text in parts),
        "margins": gaps,
        "finish_reason": reason,
        "prompt_tokens": len(prompt),
        "first": moments[0] - started,
        "decode": moments[-1] - moments[0],
    }


def _margin(logprobs: Any) -> float:
    import mlx.core as mx

    two: Any = mx.topk(logprobs.reshape(-1), 2)
    return float((two.max() - two.min()).item())


def _product() -> dict[str, float]:
    import mlx.core as mx

    left, right = mx.random.normal((512, 576)), mx.random.normal((576, 1536))
    mx.eval(left @ right)
    times = []
    for _ in range(_PRODUCTS):
        started = time.monotonic()
        mx.eval(left @ right)
        times.append(time.monotonic() - started)
    return {"gflops": 2 * 512 * 576 * 1536 / statistics.median(times) / 1e9}
