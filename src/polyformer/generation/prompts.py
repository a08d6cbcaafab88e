"""Few-shot prompts: an instruction, worked examples, and the question, as one text or as chat messages."""

from __future__ import annotations

from collections.abc import Sequence

from polyformer.errors import GenerationError


def few_shot_prompt(
    instruction: str | None,
    examples: Sequence[tuple[str, str]],
    query: str,
    *,
    input_label: str = "Input:",
    output_label: str = "Output:",
    separator: str = "\n\n",
) -> str:
    """A prompt that shows the task before it asks (Brown et al. 2020, "Language models are few-shot learners", 2).

    The prompt ends right after the last output label, without a space: the network writes " answer" itself, which
    is how most tokenizers spell a word after a colon. `separator` serves as the stop string of the answer.

    Args:
        instruction: the task in words, put first; None or "" leaves it out.
        examples: (input, output) pairs, shown in order.
        query: the input to be answered.
        input_label: written before each input; "" leaves it out.
        output_label: written before each output; "" lets each output follow its input on a new line.
        separator: between the instruction, the examples and the query.

    Raises:
        GenerationError: when an example is not a pair of texts, or the separator is empty.
    """
    if not separator:
        raise GenerationError('separator is empty, so the examples would run together; use for example "\\n\\n"')
    blocks = [instruction] if instruction else []
    for question, answer in _checked(examples):
        blocks.append(f"{_labelled(input_label, question)}\n{_labelled(output_label, answer)}")
    blocks.append(f"{_labelled(input_label, query)}\n{output_label}")
    return separator.join(blocks)


def few_shot_messages(instruction: str | None, examples: Sequence[tuple[str, str]], query: str) -> list[dict[str, str]]:
    """The same as chat messages: a system message, a user and an assistant turn for each example, a user turn.

    Raises:
        GenerationError: when an example is not a pair of texts.
    """
    messages = [{"role": "system", "content": instruction}] if instruction else []
    for question, answer in _checked(examples):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": query})
    return messages


def _checked(examples: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    for number, example in enumerate(examples, start=1):
        is_pair = isinstance(example, (tuple, list)) and len(example) == 2
        if not is_pair or not all(isinstance(part, str) for part in example):
            raise GenerationError(f"example {number} must be a pair (input, output) of texts, not {example!r}")
    return [(question, answer) for question, answer in examples]


def _labelled(label: str, text: str) -> str:
    return f"{label} {text}" if label else text
