"""The methods that start and end streams."""

from __future__ import annotations

from typing import Any

from mlx_serving.frontends.stdio import requests
from mlx_serving.frontends.stdio.batches import each
from mlx_serving.frontends.stdio.calls import Call
from mlx_serving.frontends.stdio.parameters import read
from mlx_serving.frontends.stdio.session import Session
from mlx_serving.frontends.stdio.streams import Opened


async def generate(session: Session, values: dict[str, Any], call: Call) -> Any:
    """`generate` and `chat`: answered once the runtime has accepted; the stream follows.

    With a progress token the answer comes at the end instead, and has everything.
    """
    opened = await _open(session, values)
    streaming = values.get("streaming", True)
    token = requests.progress_token(values)
    if token is not None:
        return await session.streams.progress(opened, token, streaming)
    call.after_answer(lambda: session.streams.begin(opened, streaming))
    return opened.started()


async def batch_generate(session: Session, values: dict[str, Any], call: Call) -> Any:
    """Start several streams; those that were accepted follow after the answer."""
    begun: list[tuple[Opened, bool]] = []

    async def one(request: Any, path: str) -> Any:
        item = read(request, requests.PROMPT, path)
        opened = await _open(session, item)
        begun.append((opened, item.get("streaming", True)))
        return opened.started()

    def begin() -> None:
        for opened, streaming in begun:
            session.streams.begin(opened, streaming)

    try:
        answer = await each(values["requests"], one, session.wire.line_limit)
    except BaseException:
        for opened, _ in begun:
            session.streams.drop(opened.stream_id)
        raise
    call.after_answer(begin)
    return answer


async def cancel(session: Session, values: dict[str, Any], call: Call) -> Any:
    """End a stream by its id; `success` false if there is none, it may just have ended."""
    return {"success": session.streams.cancel(values["stream_id"])}


async def _open(session: Session, values: dict[str, Any]) -> Opened:
    model = session.served_name(values["model_id"])
    request = requests.generation(values, model, session.settings.admission.stream_window)
    return await session.streams.open(request, values.get("stream_id"))
