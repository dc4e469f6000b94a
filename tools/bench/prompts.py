"""Prompts for the benchmarks: of several lengths, most of them asking for long answers."""

from __future__ import annotations

_TASKS = (
    "Write a long story about a lighthouse keeper and a storm.",
    "Explain step by step how a bicycle is built, with every part.",
    "Describe the history of bread in as much detail as you can.",
    "List twenty animals and say one sentence about each of them.",
    "Write a letter to a friend about a long journey through the mountains.",
    "Explain how rain forms, in simple words, with many examples.",
    "Write a detailed guide to growing tomatoes, from seed to harvest.",
    "Tell the story of a robot that learns to paint.",
    "Describe a busy market in the morning: the people, the smells, the sounds.",
    "Explain the rules of chess to somebody who has never played.",
    "Write a dialogue between a teacher and a student about the stars.",
    "Describe how a letter travels from one country to another.",
    "Write a long description of a house by the sea.",
    "Explain what a computer does when it starts, step by step.",
    "Tell a story about two brothers who build a boat.",
    "Describe the four seasons in a village, one after the other.",
    "What is the capital of France?",
    "Name three colours.",
    "Write a Python function that returns the sum of a list of numbers.",
    "Say hello in five languages.",
)
_FILLER = "The harbour was quiet, and the boats lay side by side in the early light. "


def chat(index: int) -> list[dict[str, str]]:
    """The messages of prompt `index`; beyond the list they repeat with a number in front."""
    task = _TASKS[index % len(_TASKS)]
    return [{"role": "user", "content": task if index < len(_TASKS) else f"Task {index}. {task}"}]


def mixed(index: int) -> list[dict[str, str]]:
    """As `chat`, with 0, 6, 12 or 18 sentences of context first, so that prompt lengths differ widely."""
    content = chat(index)[0]["content"]
    return [{"role": "user", "content": _FILLER * (6 * (index % 4)) + content}]


COUNT = len(_TASKS)
