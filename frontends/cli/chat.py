"""`mlx-serving chat`: a conversation on the terminal. Lines come from stdin, answers stream to stdout."""

from __future__ import annotations

import sys

import attrs
import rich_click as click

from mlx_serving.actors.errors import ServingError
from mlx_serving.actors.messages.values import ChatMessage
from mlx_serving.frontends.cli.console import awaited, note, out
from mlx_serving.frontends.cli.door import any_door
from mlx_serving.frontends.cli.failure import report
from mlx_serving.frontends.cli.figures import print_stats
from mlx_serving.frontends.cli.sampling import Drawing, sampled
from mlx_serving.frontends.cli.session import Session
from mlx_serving.frontends.cli.sources import Sources, configured
from mlx_serving.frontends.cli.telling import Telling

HELP = """/reset         forget the conversation
/system TEXT   set the system message (without TEXT: none) and start again
/stats         show or hide token counts and timings
/help          this list
/exit          leave (Ctrl-D too); Ctrl-C stops the running answer"""

_PROMPT = "\001\033[1;36m\002> \001\033[0m\002"
"""Bold cyan; the bytes 1 and 2 tell the line editor what takes no room."""


@click.command(cls=click.RichCommand)
@sampled
@click.option("--system", default="", help="System message put before the conversation.")
@click.option("--stats", is_flag=True, help="Print token counts and timings after each answer.")
@configured
def chat(drawing: Drawing, system: str, stats: bool, sources: Sources) -> None:
    """Talk with a model.

    Asks the running server, or starts the model for this conversation. Type /help for its commands;
    Ctrl-C stops an answer and keeps the conversation.
    """
    with any_door(sources, drawing.model) as session:
        talk = Conversation(session, drawing, system, stats)
        if sys.stdin.isatty():
            note("/help lists the commands, Ctrl-D leaves")
        while (line := _line()) is not None and talk.take(line):
            pass


def _line() -> str | None:
    """The next line; None at the end of input. At a terminal with a prompt, line editing and history."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    import readline  # noqa: F401  (gives `input` its editing)

    try:
        return input(_PROMPT if out.color_system and not out.no_color else "> ")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        note("Ctrl-D or /exit leaves")
        return ""


@attrs.define
class Conversation:
    """The turns so far. A turn that failed leaves no trace; one that was stopped keeps what had been said."""

    _session: Session
    _drawing: Drawing
    _system: str
    _stats: bool
    _turns: list[ChatMessage] = attrs.field(factory=list)

    def take(self, line: str) -> bool:
        """One line of the user; False when it ends the conversation."""
        text = line.strip()
        if text in ("/exit", "/quit"):
            return False
        if text.startswith("/"):
            self._command(*text[1:].split(maxsplit=1))
        elif text:
            self._say(text)
        return True

    def _command(self, name: str = "", argument: str = "") -> None:
        if name == "reset":
            self._turns.clear()
            note("forgotten")
        elif name == "system":
            self._system = argument
            self._turns.clear()
            note("system message set" if argument else "no system message")
        elif name == "stats":
            self._stats = not self._stats
            note("token counts and timings from now on" if self._stats else "no token counts and timings")
        elif name == "help":
            note(HELP)
        else:
            note(f"there is no command /{name}; /help lists them")

    def _say(self, text: str) -> None:
        said = ChatMessage("user", text)
        before = [ChatMessage("system", self._system)] if self._system else []
        try:
            answer = self._answer((*before, *self._turns, said))
        except ServingError as error:
            report(error)
            return
        if answer:
            self._turns += [said, ChatMessage("assistant", answer)]

    def _answer(self, messages: tuple[ChatMessage, ...]) -> str:
        """Stream the answer to the terminal; its text, or what had come of it when Ctrl-C stopped it."""
        telling = Telling()
        try:
            with self._session.answer(self._drawing.request(messages=messages)) as answer:
                for deltas in awaited(answer, "reading"):
                    telling.tell(deltas)
                result = answer.result
        except KeyboardInterrupt:
            print()
            note("stopped")
            return "".join(telling.texts)
        print()
        if self._stats:
            print_stats(result)
        return "".join(telling.texts)
