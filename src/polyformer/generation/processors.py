"""Changing logits before a token is chosen: temperature, filters, penalties, bias and bans.

Every function takes logits [rows, vocab] in float32 or float64 and returns new logits of the same shape and dtype; the
input is never changed. A number may be given for all rows, or a tensor [rows, 1] with one for each row.

Token histories are integer tensors [rows, length], the newest token last. Rows shorter than the longest are filled with
`PADDING` (-1) on the left, which no function ever takes for a token.

The order in which generation applies them is written at `GenerationSettings`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

PADDING = -1
"""Stands for "no token" in a history."""


def temperature(logits: Tensor, value: float | Tensor) -> Tensor:
    """Logits / value (Ackley, Hinton & Sejnowski 1985): below 1 sharpens the distribution, above 1 flattens it."""
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row (Fan et al. 2018, "Hierarchical neural story generation", section 5.4).

    A token whose logit ties with the k-th is kept too. k above the vocabulary size keeps everything.
    """
    kth_largest = torch.topk(logits, min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth_largest, -math.inf)


def top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches p (Holtzman et al. 2020, section 3.1).

    The most likely token is always kept.
    """
    ascending, order = torch.sort(logits, dim=-1)
    too_unlikely = _outside_nucleus(ascending, p)
    return logits.masked_fill(torch.zeros_like(too_unlikely).scatter_(-1, order, too_unlikely), -math.inf)


def _outside_nucleus(ascending: Tensor, p: float | Tensor) -> Tensor:
    """Where ascending logits [rows, tokens] lie in the tail of mass 1 - p. The last column never does."""
    outside = functional.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - p
    outside[:, -1] = False
    return outside


def min_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Drop tokens less likely than p times the most likely one (Nguyen et al. 2024, "Turning up the heat")."""
    probabilities = functional.softmax(logits, dim=-1)
    unlikely = probabilities < p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(unlikely, -math.inf)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose information is nearest to the entropy, up to `mass` (Meister et al. 2023, equation 5).

    The token that crosses the mass is kept, and so is every token exactly as typical as it.
    """
    log_probabilities = functional.log_softmax(logits, dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).nansum(dim=-1, keepdim=True)
    distance = (-log_probabilities - entropy).abs()
    ascending, order = torch.sort(distance, dim=-1)
    reached = functional.softmax(logits.gather(-1, order), dim=-1).cumsum(dim=-1)
    crossing = (reached < mass).sum(dim=-1, keepdim=True).clamp_(max=logits.shape[-1] - 1)
    atypical = distance > ascending.gather(-1, crossing)
    return logits.masked_fill(atypical, -math.inf)


def repetition_penalty(logits: Tensor, token_ids: Tensor, penalty: float | Tensor) -> Tensor:
    """Divide positive logits of tokens seen before by the penalty, multiply negative ones (Keskar et al. 2019, 4.1).

    Args:
        token_ids: [rows, length], prompt and new text (as transformers counts); a token counts once.
        penalty: > 0, a number or [rows, 1].
    """
    widened, columns = _with_padding_column(logits, token_ids)
    seen = widened.gather(-1, columns)
    seen = torch.where(seen < 0, seen * penalty, seen / penalty)
    return widened.scatter(-1, columns, seen)[:, :-1]


def frequency_penalty(logits: Tensor, token_ids: Tensor, penalty: float | Tensor) -> Tensor:
    """Subtract penalty x count of the token (OpenAI API reference, "frequency and presence penalties").

    Args:
        token_ids: [rows, length], the new text only, as the OpenAI API counts.
        penalty: a number or [rows, 1].
    """
    return logits - penalty * _counts(logits, token_ids)


def presence_penalty(logits: Tensor, token_ids: Tensor, penalty: float | Tensor) -> Tensor:
    """Subtract the penalty once from every token that occurs (OpenAI API reference); arguments as frequency's."""
    return logits - penalty * (_counts(logits, token_ids) > 0).to(logits.dtype)


def _counts(logits: Tensor, token_ids: Tensor) -> Tensor:
    """How often each token of the vocabulary occurs in each history: [rows, vocab] in the logits' dtype."""
    rows, vocab_size = logits.shape
    counts = logits.new_zeros(rows, vocab_size + 1)
    columns = torch.where(token_ids < 0, vocab_size, token_ids)
    return counts.scatter_add_(-1, columns, logits.new_ones(columns.shape))[:, :-1]


def _with_padding_column(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with one spare column at the end, and the ids with padding sent to that column."""
    return functional.pad(logits, (0, 1)), torch.where(token_ids < 0, logits.shape[-1], token_ids)


def logit_bias(logits: Tensor, bias: Tensor) -> Tensor:
    """Add a bias, [vocab] or [rows, vocab] (OpenAI API reference, `logit_bias`)."""
    return logits + bias


def bias_vector(bias: Mapping[int, float], vocab_size: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The dense form [vocab] of a token id -> bias mapping."""
    vector = torch.zeros(vocab_size, dtype=dtype, device=device)
    if bias:
        vector[torch.tensor(list(bias), device=device)] = torch.tensor(list(bias.values()), dtype=dtype, device=device)
    return vector


def forbid(logits: Tensor, token_ids: Iterable[int]) -> Tensor:
    """Give some tokens the logit -inf in every row: how an end is held back until `min_new_tokens`."""
    banned = logits.clone()
    banned[:, list(token_ids)] = -math.inf
    return banned


def repeated_endings(tokens: Sequence[int], size: int) -> list[int]:
    """The tokens that would complete a sequence of `size` tokens a second time (Paulus et al. 2018, section 2.5).

    Args:
        tokens: the prompt and the new text; padding is no token.
    """
    text = [token for token in tokens if token != PADDING]
    if len(text) < size:
        return []
    beginning = text[len(text) - size + 1 :]
    starts = range(len(text) - size + 1)
    return [text[start + size - 1] for start in starts if text[start : start + size - 1] == beginning]


@dataclass(frozen=True)
class BannedWords:
    """Token sequences that must not appear: the last token of one is forbidden where its beginning stands.

    transformers calls it `bad_words_ids`. Where that leaves a ban of the end-of-text token out, this one keeps it.

    Args:
        words: non-empty sequences of token ids.
    """

    words: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        endings: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for word in self.words:
            endings[len(word) - 1][tuple(word[:-1])].append(word[-1])
        object.__setattr__(self, "_endings", {length: dict(table) for length, table in endings.items()})

    @property
    def longest_beginning(self) -> int:
        """How many of the newest tokens decide what is forbidden."""
        return max(self._endings, default=0)  # type: ignore[attr-defined]

    def forbidden(self, newest: Sequence[int]) -> list[int]:
        """The token ids that may not follow a text which ends with the tokens `newest` (padding is never a match)."""
        found: list[int] = []
        for length, table in self._endings.items():  # type: ignore[attr-defined]
            if length <= len(newest):
                found += table.get(tuple(newest[len(newest) - length :]), ())
        return found

    def __call__(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """Logits with the forbidden tokens at -inf. token_ids [rows, length] are the prompt and the new text."""
        banned = logits.clone()
        newest = token_ids[:, max(0, token_ids.shape[1] - self.longest_beginning) :].tolist()
        for row, tokens in enumerate(newest):
            banned[row, self.forbidden(tokens)] = -math.inf
        return banned
