"""The parts of transcription by themselves: rules on timestamps, windows, warping, words, files."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from polyformer.core import EncoderDecoder
from polyformer.errors import GenerationError
from polyformer.families import whisper
from polyformer.families.base import ConfigReader
from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.transcription import FORMATS, LANGUAGES, Segment, Transcript, Word
from polyformer.tasks.transcription.alignment import _merge_punctuation, warp
from polyformer.tasks.transcription.decoding import Decoded, DecodingOptions, Heard, _chosen, compression_ratio
from polyformer.tasks.transcription.languages import language_code
from polyformer.tasks.transcription.rules import FirstTokens, PlainScores, TimestampRules
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


def test_rules_of_many_rows_are_those_of_each() -> None:
    texts = [[FIRST, 5, 7], [FIRST + 3, 5, FIRST + 9], [FIRST + 3, FIRST + 3, 4], [FIRST, 5, FIRST + 9], [1, 2, FIRST]]
    logits = torch.randn(len(texts), SIZE, generator=torch.Generator().manual_seed(0))
    together = RULES(logits, torch.tensor(texts))
    for row, written in enumerate(texts):
        assert torch.equal(together[row : row + 1], RULES(logits[row : row + 1], torch.tensor([written])))
    # A text without any timestamp may get every one of them.
    assert torch.isfinite(RULES(torch.zeros(1, SIZE), torch.tensor([[1, 2]]))[0, FIRST:]).all()


def test_first_tokens() -> None:
    rule = FirstTokens((2, END))
    logits = torch.zeros(2, SIZE)
    assert set((rule(logits, torch.empty(2, 0)) == -math.inf).nonzero()[:, 1].tolist()) == {2, END}
    assert rule(logits, torch.ones(2, 1)) is logits


@pytest.fixture(scope="module")
def network() -> EncoderDecoder:
    """A random one, whose logits are far enough apart that a temperature matters."""
    values = {"vocab_size": 31, "num_mel_bins": 5, "d_model": 24, "encoder_layers": 1, "decoder_layers": 2}
    values |= {"encoder_attention_heads": 2, "decoder_attention_heads": 3, "decoder_start_token_id": 3}
    values |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 12, "max_target_positions": 30}
    torch.manual_seed(3)
    made = whisper.read(ConfigReader(values, "the test")).build().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def test_texts_are_judged_without_the_temperature(network: EncoderDecoder) -> None:
    prompt, states = [3, 4], torch.randn(1, 12, 24)
    plain = PlainScores(0.4)
    settings = GenerationSettings(
        temperature=0.4, n=4, seed=1, logprobs=0, max_new_tokens=9, logit_bias={5: -math.inf}, processors=[plain]
    )
    reader = network.with_source(states)
    made = generate(reader, [prompt], settings, eos_token_ids=[2])[0]
    assert len({tuple(one.token_ids) for one in made}) > 1
    for one in made:
        with torch.no_grad():
            logits = reader(torch.tensor([prompt + one.token_ids])).logits[0, len(prompt) - 1 : -1]
        logits[:, 5] = -math.inf
        expected = logits.log_softmax(-1).gather(1, torch.tensor(one.token_ids)[:, None]).sum()
        assert plain.total(one) == pytest.approx(float(expected), abs=1e-4)
        heated = sum(each.processed for each in one.logprobs or ())
        assert abs(heated - plain.total(one)) > 0.1


def test_windows_are_looked_at_once(network: EncoderDecoder) -> None:
    """Every try has the keys and values of the first look, whatever became of the rows in another try."""
    states = torch.randn(3, 12, 24)
    reader = network.with_source(states)
    with torch.inference_mode():
        cache = reader.new_cache()
        reader(torch.tensor([[3], [3], [3]]), cache=cache)
        heard = Heard(network, reader.source, cache)
        assert heard.select(torch.arange(3)) is heard
        for rows in (torch.arange(3), torch.tensor([2]), torch.tensor([0, 2])):
            chosen = heard.select(rows)
            mine = chosen.new_cache()
            ids = torch.tensor([[3, 4]] * len(rows))
            expected = network.with_source(states[rows])(ids).logits
            torch.testing.assert_close(chosen(ids, cache=mine).logits, expected, atol=1e-5, rtol=1e-5)
            mine.select(torch.tensor([0, 0]))
    for settings in (
        GenerationSettings(temperature=0, max_new_tokens=8),
        GenerationSettings(temperature=1, n=3, seed=0, max_new_tokens=8),
        GenerationSettings(temperature=0, num_beams=3, max_new_tokens=8),
    ):
        theirs = generate(reader, [[3], [3, 7], [3]], settings, eos_token_ids=[2])
        ours = generate(heard, [[3], [3, 7], [3]], settings, eos_token_ids=[2])
        assert [[one.token_ids for one in row] for row in ours] == [[one.token_ids for one in row] for row in theirs]


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
    # Repeated words over silence are silence.
    assert not Decoded((1,), "la la la", 0.0, -1.5, 3.0, 0.9).is_wrong(options)
    assert compression_ratio("la " * 100) > 10 and compression_ratio("") == 0


def test_what_is_chosen_among_tries() -> None:
    options = DecodingOptions()
    repeated = Decoded((1,), "la la la", 0.0, -0.1, 3.0, 0.1)
    doubtful = Decoded((2,), "mumble", 0.2, -1.5, 1.2, 0.1)
    random = Decoded((3,), "xylophone", 1.0, -4.0, 1.2, 0.1)
    fine = Decoded((4,), "fine", 0.4, -0.9, 1.2, 0.1)
    assert _chosen([repeated, doubtful, fine], options) is fine
    assert _chosen([repeated, doubtful, random], options) is doubtful
    assert _chosen([Decoded((5,), "la la la la", 0.2, -0.3, 4.0, 0.1), repeated], options) is repeated
    assert _chosen([doubtful], options) is doubtful


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
