"""Contrastive search: probable tokens whose representation does not repeat the text so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from polyformer.core.encoder_decoder import SourceDecoder
from polyformer.core.transformer import DecoderOnly
from polyformer.generation.decoding import Row, TokenHistory, token_logprobs
from polyformer.generation.outputs import StreamEvent
from polyformer.generation.requests import Request, last_logits, prefill
from polyformer.generation.sampling import RowProcessors, raise_for_bad_logits
from polyformer.generation.text import Tokenizer


class ContrastiveDecoder:
    """Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation", equation 2).

    Of the `top_k` most likely tokens v it takes the one with the greatest

        (1 - alpha) x p(v | text) - alpha x max over the text's tokens j of cosine(h_v, h_j)

    where h are last hidden states (after the final norm), h_v read with v appended. All candidates of all prompts are
    evaluated as one batch; the rows of a prompt share their cache up to the newest column, so that only it is copied.

    Call `step` until `running` is False, as with `SampleDecoder`.

    Args:
        network: a decoder-only network, or a decoder with a source in place (a row for each request).
        requests: at least one, with equal `top_k`; prompts of any lengths.
        tokenizer: for text and stop strings.
        follow_text: put text into every event.
        prefill_chunk: columns of the prompts read at once.
        cache_kind: "dense" or "int8".
    """

    def __init__(
        self,
        network: DecoderOnly | SourceDecoder,
        requests: Sequence[Request],
        *,
        tokenizer: Tokenizer | None,
        follow_text: bool = False,
        prefill_chunk: int = 2048,
        cache_kind: str = "dense",
    ) -> None:
        self._network = network
        self._chunk, self._cache_kind = prefill_chunk, cache_kind
        self.rows = [Row(request, 0, tokenizer, follow_text) for request in requests]
        self._candidates = min(requests[0].settings.top_k, network.config.vocab_size)
        self._steps = 0
        self._started = False

    @property
    def running(self) -> bool:
        return bool(self.rows)

    @torch.inference_mode()
    def step(self) -> list[StreamEvent]:
        """Choose one token for every running row; one event for each."""
        if not self._started:
            self._start()
        raw = self._logits
        history = None if self._history is None else self._history.tokens
        scores = self._processors(raw, history, generated=self._steps)
        tokens = self._choose(scores)
        chosen = tokens.tolist()
        self._steps += 1
        if self._history is not None:
            self._history.append(tokens)
        events = []
        for index, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            count = row.request.settings.logprobs
            if count is not None:
                distributions = functional.log_softmax(torch.stack([raw[index], scores[index]]), dim=-1)
                row.logprobs.append(token_logprobs(token, count, distributions[0], distributions[1]))
            events.append(row.accept(token))
        if any(event.generation is not None for event in events):
            self._drop([place for place, event in enumerate(events) if event.generation is None])
        return events

    def _start(self) -> None:
        self._started = True
        requests = [row.request for row in self.rows]
        prompts = [request.prompt for request in requests]
        read = prefill(self._network, prompts, chunk=self._chunk, cache_kind=self._cache_kind, keep_hidden=True)
        self._cache, self._logits, device = read.cache, read.logits, read.logits.device
        self._cache.select(torch.arange(len(prompts), device=device).repeat_interleave(self._candidates))
        assert read.hidden is not None
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        padding = torch.arange(read.columns, device=device) < (read.columns - lengths)[:, None]
        self._directions = _directions(read.hidden)
        self._padding = padding  # [prompts, columns of the prompts]
        self._length = read.columns
        self._alpha = torch.tensor(
            [request.settings.penalty_alpha for request in requests], dtype=read.logits.dtype, device=device
        )[:, None]
        self._processors = RowProcessors(
            [request.settings for request in requests],
            [request.endings for request in requests],
            [request.limit for request in requests],
            vocab_size=read.logits.shape[-1],
            dtype=read.logits.dtype,
            device=device,
        )
        self._history = TokenHistory(prompts, device) if self._processors.needs_history else None

    def _choose(self, scores: Tensor) -> Tensor:
        """The next token of each prompt [prompts]; cache, hidden states and logits move on to it."""
        prompts = len(self.rows)
        probabilities, candidates = torch.topk(functional.softmax(scores, dim=-1), self._candidates)
        if not bool(torch.isfinite(probabilities).all()):
            raise_for_bad_logits(scores)
        output = self._network(candidates.reshape(-1, 1), cache=self._cache, logits_to_keep=1)
        directions = _directions(output.last_hidden_state).view(prompts, self._candidates, -1)
        similarity = directions @ self._directions[:, : self._length].transpose(1, 2)
        similarity[:, :, : self._padding.shape[1]].masked_fill_(self._padding[:, None], -2)
        penalty = similarity.amax(dim=-1).to(scores.dtype)
        values = (1 - self._alpha) * probabilities - self._alpha * penalty
        # A forbidden token can be among the candidates where few are left; it is never the best.
        best = values.masked_fill(probabilities == 0, float("-inf")).argmax(dim=-1)
        every = torch.arange(prompts, device=best.device)
        self._remember(directions[every, best])
        self._logits = last_logits(output).view(prompts, self._candidates, -1)[every, best]
        rows = (every * self._candidates + best).repeat_interleave(self._candidates)
        self._cache.reorder(rows, first_column=self._cache.length - 1)
        return candidates[every, best]

    def _remember(self, directions: Tensor) -> None:
        """Add the newest directions [prompts, hidden_size]; room grows by doubling."""
        if self._length == self._directions.shape[1]:
            self._directions = functional.pad(self._directions, (0, 0, 0, max(64, self._length)))
        self._directions[:, self._length] = directions
        self._length += 1

    def _drop(self, keep: list[int]) -> None:
        self.rows = [self.rows[place] for place in keep]
        if not keep:
            self._cache = None
            return
        kept = torch.tensor(keep, device=self._logits.device)
        within = torch.arange(self._candidates, device=kept.device)
        self._cache.select((kept[:, None] * self._candidates + within).flatten())
        self._logits, self._directions = self._logits[kept], self._directions[kept]
        self._padding, self._alpha = self._padding[kept], self._alpha[kept]
        self._processors = self._processors.select(keep)
        if self._history is not None:
            self._history.select(kept)


def _directions(hidden: Tensor) -> Tensor:
    """Hidden states at length 1, in float32 (float64 stays): their products are cosines."""
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    return functional.normalize(hidden, dim=-1)
