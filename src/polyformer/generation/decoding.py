"""The decode loop of greedy search and sampling: many requests in one batch, one token for each row and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional
from torch import Tensor

from polyformer.core.encoder_decoder import SourceDecoder
from polyformer.core.transformer import DecoderOnly
from polyformer.generation.guidance import guide
from polyformer.generation.outputs import FinishReason, Generation, StreamEvent, TokenLogprobs
from polyformer.generation.processors import PADDING
from polyformer.generation.requests import ReadText, Request, last_logits, prefill
from polyformer.generation.sampling import RandomStream, RowProcessors, Sampler
from polyformer.generation.text import TextFollower, Tokenizer


@dataclass
class Row:
    """One generation in the making.

    Args:
        request: what was asked.
        sample: which of the request's `n`.
        tokenizer: decodes the text; None leaves the text out.
        follow_text: decode token by token (to stream); otherwise only where stop strings need it.
    """

    request: Request
    sample: int
    tokenizer: Tokenizer | None
    follow_text: bool
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.request.settings
        self._follower = None
        if self.tokenizer is not None and (self.follow_text or settings.stop):
            self._follower = TextFollower(self.tokenizer, settings)

    def accept(self, token: int) -> StreamEvent:
        """Take the next token; the event holds the finished generation when it is the last one."""
        request = self.request
        self.tokens.append(token)
        if token in request.endings:
            reason: FinishReason = "eos" if token in request.eos_ids else "stop"
            return self._event(token, "", self._finished(reason, token))
        piece = None
        if self._follower is not None:
            piece = self._follower.push(token)
            if self._follower.stopped_by is not None:
                return self._event(token, piece, self._finished("stop", self._follower.stopped_by))
        if len(self.tokens) >= request.limit:
            return self._event(token, piece, self._finished("length", None))
        return self._event(token, piece, None)

    def _finished(self, reason: FinishReason, stopped_by: str | int | None) -> tuple[str, Generation]:
        """The text still held back, and the generation."""
        rest, text = "", None
        if self._follower is not None:
            rest = self._follower.finish()
            text = self._follower.text
            if reason == "length" and self._follower.stopped_by is not None:
                reason, stopped_by = "stop", self._follower.stopped_by
        elif self.tokenizer is not None:
            ids = self.tokens if reason == "length" else self.tokens[:-1]
            text = self.tokenizer.decode(ids, skip_special_tokens=self.request.settings.skip_special_tokens)
        logprobs = self.logprobs if self.request.settings.logprobs is not None else None
        return rest, Generation(self.tokens, text, reason, stopped_by, logprobs)

    def _event(self, token: int, piece: str | None, end: tuple[str, Generation] | None) -> StreamEvent:
        rest, generation = end or ("", None)
        text = None if self._follower is None else (piece or "") + rest
        return StreamEvent(self.request.index, self.sample, token, text, generation)


class TokenHistory:
    """The tokens of every row in one tensor, for the processors that look back.

    Args:
        prompts: of each row.
        device: where the logits are.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self._tokens = left_padded(prompts, device)
        self._length = self._tokens.shape[1]

    @property
    def tokens(self) -> Tensor:
        """[rows, length], `PADDING` on the left."""
        return self._tokens[:, : self._length]

    def append(self, tokens: Tensor) -> None:
        """One new token [rows] for each row. Room grows by doubling, so that appending costs no copy on average."""
        if self._length == self._tokens.shape[1]:
            self._tokens = functional.pad(self._tokens, (0, max(64, self._length)), value=PADDING)
        self._tokens[:, self._length] = tokens
        self._length += 1

    def select(self, rows: Tensor) -> None:
        self._tokens = self._tokens[rows]


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids [prompts, longest], shorter ones with `PADDING` on the left."""
    columns = max(map(len, prompts))
    return torch.tensor([[PADDING] * (columns - len(prompt)) + list(prompt) for prompt in prompts], device=device)


class SampleDecoder:
    """Greedy search and sampling for a batch of requests.

    Call `step` until `running` is False. A request with guidance has a second row in the cache that reads its negative
    prompt and the same new tokens; those rows come after all the others. Rows that finish leave the cache, so that they
    cost nothing. The prompts are read by the first step.

    Args:
        network: a decoder-only network, or a decoder with a source in place (a row for each request).
        requests: at least one, of any lengths and settings (no beams, no contrastive search).
        tokenizer: for text and stop strings; None gives ids only.
        follow_text: put text into every event.
        prefill_chunk: columns of the prompts read at once.
        cache_kind: "dense" or "int8".
        read_text: what was read before, and goes on growing here; for one request with one sample and no guidance.
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
        read_text: ReadText | None = None,
    ) -> None:
        self._network = network
        self._read_text = read_text
        self._requests = list(requests)
        self._chunk, self._cache_kind = prefill_chunk, cache_kind
        self.rows = [
            Row(request, sample, tokenizer, follow_text) for request in requests for sample in range(request.settings.n)
        ]
        streams = [RandomStream(row.request.settings.seed, row.sample) for row in self.rows]
        self._sampler = Sampler([row.request.settings for row in self.rows], streams)
        self._steps = 0
        self._newest: Tensor | None = None

    @property
    def running(self) -> bool:
        return bool(self.rows)

    @torch.inference_mode()
    def step(self) -> list[StreamEvent]:
        """Choose one token for every running row; one event for each."""
        logits = self._start() if self._newest is None else self._forward(self._newest)
        logits, negative = logits[: len(self.rows)], logits[len(self.rows) :]
        scores = logits
        if self._guided:
            scores = logits.clone()
            scores[self._guided] = guide(logits[self._guided], negative, self._guidance_scales)
        history = None if self._history is None else self._history.tokens
        scores = self._processors(scores, history, generated=self._steps)
        tokens = self._sampler.choose(scores)
        chosen = tokens.tolist()
        self._record_logprobs(chosen, logits, scores)
        self._steps += 1
        if self._history is not None:
            self._history.append(tokens)
        events = [row.accept(token) for row, token in zip(self.rows, chosen, strict=True)]
        self._newest = tokens
        if any(event.generation is not None for event in events):
            self._drop([row for row, event in enumerate(events) if event.generation is None])
        return events

    def _start(self) -> Tensor:
        """Read every prompt once, then give each of the `n` samples its rows."""
        guided = [request for request in self._requests if request.negative_prompt is not None]
        prompts = [request.prompt for request in self._requests]
        prompts += [request.negative_prompt for request in guided]  # type: ignore[misc]
        if self._read_text is None:
            network = self._network
            if guided and isinstance(network, SourceDecoder):
                again = [index for index, request in enumerate(self._requests) if request.negative_prompt is not None]
                network = network.select(torch.tensor([*range(len(self._requests)), *again], device=network.device))
            read = prefill(network, prompts, chunk=self._chunk, cache_kind=self._cache_kind)
        else:
            read = self._read_text.read(self._network, prompts[0], chunk=self._chunk)
        self._cache, logits = read.cache, read.logits
        source = [index for index, request in enumerate(self._requests) for _ in range(request.settings.n)]
        for index, request in enumerate(guided, start=len(self._requests)):
            source += [index] * request.settings.n
        if len(source) > len(prompts):
            rows = torch.tensor(source, device=logits.device)
            self._cache.select(rows)
            logits = logits[rows]
        self._find_guided(logits)
        self._processors = RowProcessors(
            [row.request.settings for row in self.rows],
            [row.request.endings for row in self.rows],
            [row.request.limit for row in self.rows],
            vocab_size=logits.shape[-1],
            dtype=logits.dtype,
            device=logits.device,
        )
        self._history = None
        if self._processors.needs_history:
            self._history = TokenHistory([row.request.prompt for row in self.rows], logits.device)
        return logits

    def _forward(self, tokens: Tensor) -> Tensor:
        if self._guided:
            tokens = torch.cat([tokens, tokens[self._guided]])
        output = self._network(tokens[:, None], cache=self._cache, logits_to_keep=1)
        if self._read_text is not None:
            self._read_text.tokens += tokens.tolist()
        return last_logits(output)

    def _find_guided(self, like: Tensor) -> None:
        self._guided = [index for index, row in enumerate(self.rows) if row.request.negative_prompt is not None]
        scales = [self.rows[index].request.settings.guidance_scale for index in self._guided]
        self._guidance_scales = torch.tensor(scales, dtype=like.dtype, device=like.device)[:, None]

    def _drop(self, keep: list[int]) -> None:
        """Forget every row that is not in `keep`."""
        guide_row = {row: len(self.rows) + place for place, row in enumerate(self._guided)}
        cache_rows = keep + [guide_row[row] for row in keep if row in guide_row]
        self.rows = [self.rows[row] for row in keep]
        if not keep:
            self._cache = None
            return
        device = self._network.device
        kept = torch.tensor(keep, device=device)
        self._cache.select(torch.tensor(cache_rows, device=device))
        self._newest = self._newest[kept]  # type: ignore[index]
        self._find_guided(self._guidance_scales)
        self._sampler = self._sampler.select(keep)
        self._processors = self._processors.select(keep)
        if self._history is not None:
            self._history.select(kept)

    def _record_logprobs(self, chosen: Sequence[int], logits: Tensor, scores: Tensor) -> None:
        for index, row in enumerate(self.rows):
            count = row.request.settings.logprobs
            if count is not None:
                raw = functional.log_softmax(logits[index], dim=-1)
                processed = self._sampler.log_probabilities(index, scores)
                row.logprobs.append(token_logprobs(chosen[index], count, raw, processed))


def token_logprobs(token: int, count: int, raw: Tensor, processed: Tensor) -> TokenLogprobs:
    """The record of one chosen token from two distributions [vocab], with `count` alternatives."""
    return TokenLogprobs(
        token_id=token,
        raw=float(raw[token]),
        processed=float(processed[token]),
        top_raw=_most_likely(raw, count),
        top_processed=_most_likely(processed, count),
    )


def _most_likely(log_probabilities: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    values, ids = torch.topk(log_probabilities, min(count, log_probabilities.shape[-1]))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple((token, value) for token, value in pairs if value > float("-inf"))
