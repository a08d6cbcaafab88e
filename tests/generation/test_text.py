"""Stop strings: the answer does not depend on how the text is cut, and nothing of a stop string gets out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polyformer.generation.settings import GenerationSettings
from polyformer.generation.text import StopFinder, TextFollower
from polyformer.tokenizers.text import TextTokenizer

letters = st.text(alphabet="ab", max_size=14)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: read letter by letter; the first end of a stop string decides, the longest if several."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@given(letters, stop_lists, st.lists(st.integers(1, 5)))
def test_any_cutting_gives_the_definition(text: str, stops: list[str], sizes: list[int]) -> None:
    finder = StopFinder(stops)
    shown, found, rest = "", None, text
    sizes = [*sizes, 1] * 20
    for size in sizes:
        piece, rest = rest[:size], rest[size:]
        certain, found = finder.feed(piece)
        shown += certain
        expected, _stop = first_stop(text, stops)
        assert expected.startswith(shown), "more was shown than the text before the stop string"
        if found is not None or not rest:
            break
    if found is None:
        shown += finder.finish()
    assert (shown, found) == first_stop(text, stops)


@given(letters, stop_lists)
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    for end in range(1, len(text) + 1):
        _certain, found = finder.feed(text[end - 1])
        if found is not None:
            return
        held = finder._held
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_unarmed_stop_strings_pass() -> None:
    finder = StopFinder(["ab"])
    assert finder.feed("xaba", armed=False) == ("xab", None)
    assert finder.feed("b") == ("", "ab")


def test_follower_joins_characters_from_tokens(tokenizer: TextTokenizer) -> None:
    text = "abcd héllo → 🙂 the end"
    ids = tokenizer.encode(text, add_special_tokens=False)
    follower = TextFollower(tokenizer, GenerationSettings(stop=("🙂 t",)))
    shown = []
    for token in ids:
        shown.append(follower.push(token))
        if follower.stopped_by is not None:
            break
    assert follower.stopped_by == "🙂 t"
    assert "".join(shown) == follower.text == "abcd héllo → "
    assert follower.finish() == ""
    whole = TextFollower(tokenizer, GenerationSettings(stop=("end of story",)))
    assert "".join(whole.push(token) for token in ids) == text[:-3], "the last word may begin the stop string"
    assert whole.finish() == "end" and whole.text == text


def test_follower_gives_the_rest_of_an_unfinished_character(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False)[:2]
    follower = TextFollower(tokenizer, GenerationSettings())
    assert [follower.push(token) for token in ids] == ["", ""]
    assert follower.finish() == tokenizer.decode(ids) == follower.text


def test_stop_strings_count_from_the_minimum_on(tokenizer: TextTokenizer) -> None:
    """The token that reaches `min_new_tokens` may complete a stop string, the one before may not."""
    ids = tokenizer.encode("xyz", add_special_tokens=False)
    for minimum, stop in ((3, "z"), (2, "y"), (3, "yz")):
        follower = TextFollower(tokenizer, GenerationSettings(min_new_tokens=minimum, stop=(stop,)))
        for token in ids[:minimum]:
            assert follower.stopped_by is None
            follower.push(token)
        assert follower.stopped_by == stop
    early = TextFollower(tokenizer, GenerationSettings(min_new_tokens=3, stop=("y",)))
    assert [early.push(token) for token in ids] == ["x", "y", "z"] and early.stopped_by is None
