"""The parts of transcription by themselves: rules on timestamps, windows, warping, words, files."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from polyformer.errors import GenerationError
from polyformer.tasks.transcription import FORMATS, LANGUAGES, Segment, Transcript, Word
from polyformer.tasks.transcription.alignment import _merge_punctuation, warp
from polyformer.tasks.transcription.decoding import Decoded, DecodingOptions, compression_ratio
from polyformer.tasks.transcription.languages import language_code
from polyformer.tasks.transcription.rules import FirstTokens, TimestampRules
from polyformer.tasks.transcription.transcribe import _share_out, _split

# A vocabulary of twelve words, the end (12), two special tokens, <|notimestamps|> (15), and 60 timestamps from 16 on.
END, NONE, FIRST, SIZE = 12, 15, 16, 76
RULES = TimestampRules(END, NONE, latest_first=50)


def allowed(written: list[int], logits: torch.Tensor | None = None) -> set[int]:
    scores = torch.zeros(1, SIZE) if logits is None else logits[None]
    made = RULES(scores, torch.tensor([written], dtype=torch.long).view(1, -1))
    return set((made[0] > -math.inf).nonzero()[:, 0].tolist())


def test_a_window_begins_with_a_timestamp_of_its_first_second() -> None:
    assert allowed([]) == set(range(FIRST, FIRST + 51))


def words_only() -> torch.Tensor:
    """Logits in which a word is likelier than all timestamps together."""
    logits = torch.zeros(SIZE)
    logits[3] = 20
    return logits


def test_timestamps_come_in_pairs() -> None:
    # After the opening one: text or the end, no timestamp.
    assert allowed([FIRST + 3], words_only()) == set(range(FIRST)) - {NONE}
    # After text: anything that does not go back.
    assert allowed([FIRST + 3, 5], words_only()) == set(range(FIRST)) - {NONE} | set(range(FIRST + 4, SIZE))
    # After the closing one: the same or a later one, or the end and what stands after it.
    sure = torch.zeros(SIZE)
    sure[END] = 20
    closed = allowed([FIRST + 3, 5, FIRST + 9], sure)
    assert not closed & set(range(END)) and END in closed
    assert min(token for token in closed if token >= FIRST) == FIRST + 9
    # A new pair: text again.
    assert allowed([FIRST + 3, 5, FIRST + 9, FIRST + 9], words_only()) == set(range(FIRST)) - {NONE}


def test_timestamps_win_together() -> None:
    """Many unlikely timestamps are likelier together than the best word."""
    logits = torch.zeros(SIZE)
    logits[3] = 2.0
    assert allowed([FIRST, 5], logits) == set(range(FIRST + 1, SIZE))
    logits[3] = 5.0
    assert 3 in allowed([FIRST, 5], logits)


def test_first_tokens() -> None:
    rule = FirstTokens((2, END))
    logits = torch.zeros(2, SIZE)
    assert set((rule(logits, torch.empty(2, 0)) == -math.inf).nonzero()[:, 1].tolist()) == {2, END}
    assert rule(logits, torch.ones(2, 1)) is logits


class Vocabulary:
    first_timestamp = FIRST


@pytest.mark.parametrize(
    ("tokens", "pieces", "used"),
    [
        # Two pairs, and text that is cut off: the next window begins at the last closed timestamp.
        ([16, 1, 2, 26, 26, 3, 36, 36, 4], [(0.0, 0.2, 4), (0.2, 0.4, 3)], 40),
        # The last timestamp alone: nothing follows in this window.
        ([16, 1, 2, 26, 26, 3, 36], [(0.0, 0.2, 4), (0.2, 0.4, 3)], 3000),
        ([18, 1, 2, 40], [(0.04, 0.48, 4)], 3000),
        ([1, 2], [(0.0, 30.0, 2)], 3000),
        ([16, 1, 2], [(0.0, 30.0, 3)], 3000),
    ],
)
def test_windows_are_split_at_timestamps(tokens: list[int], pieces: list[tuple[float, float, int]], used: int) -> None:
    made, frames = _split(Vocabulary(), tokens, 3000, 100)  # type: ignore[arg-type]
    assert [(round(start, 6), round(end, 6), len(part)) for start, end, part in made] == pieces
    assert frames == used


def test_warping_is_the_cheapest_path() -> None:
    def every_path(rows: int, columns: int) -> list[list[tuple[int, int]]]:
        if (rows, columns) == (1, 1):
            return [[(0, 0)]]
        before = [(rows - 1, columns - 1), (rows - 1, columns), (rows, columns - 1)]
        return [
            [*path, (rows - 1, columns - 1)]
            for height, width in before
            if height >= 1 and width >= 1
            for path in every_path(height, width)
        ]

    random = np.random.default_rng(0)
    for rows, columns in itertools.product(range(1, 5), range(1, 6)):
        costs = random.standard_normal((rows, columns))
        best = min(sum(costs[place] for place in path) for path in every_path(rows, columns))
        path = list(zip(*warp(costs), strict=True))
        assert path[0] == (0, 0) and path[-1] == (rows - 1, columns - 1)
        assert sum(costs[place] for place in path) == pytest.approx(best)


def test_punctuation_goes_to_its_word() -> None:
    words = [Word(text, number, number + 1, 1.0) for number, text in enumerate([" Hello", ",", ' "', "you", "!", '"'])]
    assert [word.text for word in _merge_punctuation(words)] == [" Hello,", ' "you!"']
    assert _merge_punctuation(words)[1].start == 2


def test_words_are_shared_out_by_their_letters() -> None:
    words = [Word(text, 0, 1, 1.0) for text in (" one", " two.", " three", " four")]
    shared = _share_out(words, [" one two.", " three four"])
    assert [[word.text for word in own] for own in shared] == [[" one", " two."], [" three", " four"]]


def test_what_is_tried_again() -> None:
    options = DecodingOptions()
    fine = Decoded((1,), "fine", 0.0, -0.3, 1.2, 0.1)
    assert not fine.is_wrong(options) and not fine.is_silence(options)
    assert Decoded((1,), "la la la", 0.0, -0.1, 3.0, 0.1).is_wrong(options)
    doubtful = Decoded((1,), "mumble", 0.0, -1.5, 1.2, 0.1)
    assert doubtful.is_wrong(options) and not doubtful.is_silence(options)
    silence = Decoded((1,), "Thank you.", 0.0, -1.5, 1.2, 0.9)
    assert silence.is_silence(options) and not silence.is_wrong(options)
    assert compression_ratio("la " * 100) > 10 and compression_ratio("") == 0


def test_languages() -> None:
    assert len(LANGUAGES) == 100 and list(LANGUAGES)[:3] == ["en", "zh", "de"]
    assert language_code("English") == "en" and language_code("haw") == "haw"
    with pytest.raises(GenerationError, match="no language 'englsh'; did you mean english"):
        language_code("englsh")


TRANSCRIPT = Transcript(
    "Hello there. Good --> bye.",
    "en",
    0.9,
    3725.5,
    (
        Segment(0.0, 1.25, " Hello there.", (1, 2), 0.0, -0.2, 1.0, 0.01),
        Segment(3723.0, 3725.5, " Good --> bye.", (3,), 0.2, -0.3, 1.1, 0.02, (Word(" Good", 3723.0, 3724.0, 0.5),)),
    ),
)


def test_files() -> None:
    assert FORMATS["txt"](TRANSCRIPT) == "Hello there.\nGood --> bye.\n"
    assert TRANSCRIPT.to("srt") == (
        "1\n00:00:00,000 --> 00:00:01,250\nHello there.\n\n2\n01:02:03,000 --> 01:02:05,500\nGood -> bye.\n"
    )
    assert TRANSCRIPT.to("vtt") == (
        "WEBVTT\n\n00:00.000 --> 00:01.250\nHello there.\n\n01:02:03.000 --> 01:02:05.500\nGood -> bye.\n"
    )
    assert TRANSCRIPT.to("tsv").splitlines()[1:] == ["0\t1250\tHello there.", "3723000\t3725500\tGood --> bye."]
    values = json.loads(TRANSCRIPT.to("json"))
    assert values["segments"][1]["words"][0]["probability"] == 0.5 and "words" not in values["segments"][0]
