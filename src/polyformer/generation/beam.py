"""Beam search and diverse beam search, all beams of all prompts in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from polyformer.core.encoder_decoder import SourceDecoder
from polyformer.core.transformer import DecoderOnly
from polyformer.errors import GenerationError
from polyformer.generation.decoding import Row, left_padded
from polyformer.generation.outputs import Generation
from polyformer.generation.requests import Request, last_logits, prefill
from polyformer.generation.sampling import RowProcessors, raise_for_bad_logits
from polyformer.generation.settings import GenerationSettings
from polyformer.generation.text import Tokenizer

IMPOSSIBLE = -1.0e9
"""Added to the score of a beam that must not be chosen (transformers' value, and so the same rounding)."""


@dataclass
class Finished:
    """The best finished texts of one group of beams.

    Args:
        size: how many are kept (the beams of the group).
        hypotheses: (score, token ids), best first.
        done: nothing more is added.
    """

    size: int
    hypotheses: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    @property
    def full(self) -> bool:
        return len(self.hypotheses) == self.size

    def add(self, score: float, tokens: list[int]) -> None:
        self.hypotheses.append((score, tokens))
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis[0])
        del self.hypotheses[self.size :]

    def update_done(self, best_running: float, length: int, limit: int, settings: GenerationSettings) -> None:
        """Decide whether to stop, when the best running beam of `length` new tokens has the sum `best_running`.

        The three rules are transformers' `early_stopping` values: True stops with enough finished texts; False and True
        stop when the best running beam at its present length scores below the worst finished text; "never" lets it
        count at its best possible length, which is the limit when longer is better.
        """
        if settings.early_stopping is True and self.full:
            self.done = True
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = limit
        worst_finished = self.hypotheses[-1][0] if self.full else IMPOSSIBLE
        if not best_running / length**settings.length_penalty > worst_finished:
            self.done = True


class BeamDecoder:
    """Beam search for requests with the same settings (Lowerre 1976; the stopping rules are transformers').

    A beam's score is the sum of the log-probabilities of its new tokens / length ** length_penalty; the ending token
    counts. Every step keeps, of all continuations of a group's beams, (1 + number of ending tokens) x beams candidates:
    those among the first `beams` that end become finished texts, the best that do not end run on.

    With `num_beam_groups` > 1 it is diverse beam search (Vijayakumar et al. 2018, algorithm 1): in each step the groups
    choose one after the other, and a token loses `diversity_penalty` for each beam of an earlier group that has just
    chosen it (Hamming diversity). The penalty stays in the beam's score. From the step after it is done, a group no
    longer counts. The n best texts are taken from all the groups together.

    Processors apply to log-probabilities, as in transformers. The prompt is read once; its beams share those columns of
    the cache, which are never copied. Prompts that are done leave the batch.

    Args:
        network: a decoder-only network, or a decoder with a source in place (a row for each request).
        requests: at least one, with equal settings; prompts of any lengths.
        tokenizer: for text and stop strings.
        prefill_chunk: columns of the prompts read at once.
        cache_kind: "dense" or "int8".
    """

    def __init__(
        self,
        network: DecoderOnly | SourceDecoder,
        requests: Sequence[Request],
        *,
        tokenizer: Tokenizer | None,
        prefill_chunk: int = 2048,
        cache_kind: str = "dense",
    ) -> None:
        self._network, self._tokenizer = network, tokenizer
        self._chunk, self._cache_kind = prefill_chunk, cache_kind
        self._requests = list(requests)
        self._settings = requests[0].settings
        self._groups = self._settings.num_beam_groups
        self._beams = self._settings.num_beams // self._groups
        self._endings = sorted(requests[0].endings)
        self._finished = [[Finished(self._beams) for _ in range(self._groups)] for _ in requests]
        self._active = list(range(len(requests)))

    @torch.inference_mode()
    def run(self) -> list[list[Generation]]:
        """The n best texts of every request, best first (fewer where so many different texts do not exist)."""
        logits = self._start()
        while True:
            self._step(logits)
            self._drop_done()
            if not self._active:
                return [self._results(index) for index in range(len(self._requests))]
            logits = last_logits(
                self._network(self._tokens[..., -1].reshape(-1, 1), cache=self._cache, logits_to_keep=1)
            )

    @property
    def _rows_per_prompt(self) -> int:
        return self._groups * self._beams

    def _start(self) -> Tensor:
        read = prefill(
            self._network, [each.prompt for each in self._requests], chunk=self._chunk, cache_kind=self._cache_kind
        )
        self._cache, self._columns, device = read.cache, read.columns, read.logits.device
        prompts = len(self._requests)
        rows = torch.arange(prompts, device=device).repeat_interleave(self._rows_per_prompt)
        self._cache.select(rows)
        self._prompts = left_padded([each.prompt for each in self._requests], device)
        self._limits = torch.tensor([each.limit for each in self._requests], device=device)
        self._tokens = torch.empty(prompts, self._groups, self._beams, 0, dtype=torch.long, device=device)
        # Only the first beam of each group may be continued at first: the others are copies of it.
        self._scores = torch.full(self._tokens.shape[:3], IMPOSSIBLE, dtype=read.logits.dtype, device=device)
        self._scores[..., 0] = 0
        self._ending_ids = torch.tensor(self._endings, dtype=torch.long, device=device)
        self._make_processors(read.logits)
        return read.logits[rows]

    def _make_processors(self, like: Tensor) -> None:
        rows = len(self._active) * self._rows_per_prompt
        self._processors = RowProcessors(
            [self._settings] * rows,
            [frozenset(self._endings)] * rows,
            [self._requests[index].limit for index in self._active for _ in range(self._rows_per_prompt)],
            vocab_size=like.shape[-1],
            dtype=like.dtype,
            device=like.device,
        )

    def _step(self, logits: Tensor) -> None:
        """Choose one more token for every beam, and note the texts that end with it."""
        log_probabilities = self._log_probabilities(logits)
        prompts, vocab_size = len(self._active), logits.shape[-1]
        by_group = log_probabilities.view(prompts, self._groups, self._beams, vocab_size)
        if self._groups == 1:
            parent, token = self._advance_group(0, by_group[:, 0])
            self._follow(parent[:, None], token[:, None])
            return
        chosen_before = logits.new_zeros(prompts, vocab_size)
        parents, tokens = [], []
        for group in range(self._groups):
            counts = self._running_groups(group).to(logits)[:, None]
            penalty = self._settings.diversity_penalty * chosen_before[:, None]
            parent, token = self._advance_group(group, by_group[:, group] - penalty)
            chosen_before.scatter_add_(-1, token, counts.expand_as(token))
            parents.append(parent + group * self._beams)
            tokens.append(token)
        self._follow(torch.stack(parents, dim=1), torch.stack(tokens, dim=1))

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        log_probabilities = functional.log_softmax(logits, dim=-1)
        if bool(torch.isnan(log_probabilities[:, 0]).any()):
            raise_for_bad_logits(logits)
        length, history = self._tokens.shape[-1], None
        if self._processors.needs_history:
            prompts = self._prompts.repeat_interleave(self._rows_per_prompt, dim=0)
            history = torch.cat([prompts, self._tokens.view(len(prompts), length)], dim=-1)
        return self._processors(log_probabilities, history, generated=length)

    def _advance_group(self, group: int, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Continue the beams of one group.

        Args:
            log_probabilities: [prompts, beams, vocab] of the next token.

        Returns:
            The beam that each new beam continues, and its new token, both [prompts, beams].
        """
        scores, parents, tokens = self._candidates(group, log_probabilities)
        ends = self._ends(group, parents, tokens)
        self._note_finished(group, scores, parents, tokens, ends)
        running = scores + ends.to(scores.dtype) * IMPOSSIBLE
        best = torch.topk(running, self._beams).indices
        self._scores[:, group] = running.gather(-1, best)
        self._update_done(group, ends)
        return parents.gather(-1, best), tokens.gather(-1, best)

    def _candidates(self, group: int, log_probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of a group: scores, beams and tokens, each [prompts, candidates], best first."""
        prompts, beams, vocab_size = log_probabilities.shape
        wanted = max(2, 1 + len(self._endings)) * beams
        # The best of all beams are among the best of each: short lists first, as they are found row by row in parallel.
        best, token = torch.topk(log_probabilities.reshape(prompts * beams, vocab_size), min(wanted, vocab_size))
        totals = best.view(prompts, beams, -1) + self._scores[:, group, :, None]
        scores, place = torch.topk(totals.flatten(1), min(wanted, totals.shape[1] * totals.shape[2]))
        return scores, place // best.shape[-1], token.view(prompts, -1).gather(-1, place)

    def _ends(self, group: int, parents: Tensor, tokens: Tensor) -> Tensor:
        """Which candidates are complete texts: bool [prompts, candidates]."""
        length = self._tokens.shape[-1] + 1
        ends = torch.isin(tokens, self._ending_ids) | (length >= self._limits)[:, None]
        if self._settings.stop:
            for prompt, candidate in (~ends).nonzero().tolist():
                beam = self._tokens[prompt, group, parents[prompt, candidate]].tolist()
                ends[prompt, candidate] = self._has_stop(prompt, [*beam, int(tokens[prompt, candidate])])
        return ends

    def _has_stop(self, prompt: int, tokens: list[int]) -> bool:
        """Whether a stop string ends the text of these tokens."""
        settings = self._settings
        text = self._tokenizer.decode(tokens, skip_special_tokens=settings.skip_special_tokens)  # type: ignore[union-attr]
        if not any(stop in text for stop in settings.stop):
            return False
        return self._complete(self._requests[self._active[prompt]], tokens) is not None

    def _complete(self, request: Request, tokens: list[int]) -> Generation | None:
        """The generation of these tokens, or None when they do not end."""
        row = Row(request, 0, self._tokenizer, follow_text=False)
        for token in tokens:
            generation = row.accept(token).generation
        return generation

    def _note_finished(self, group: int, scores: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor) -> None:
        """Put the complete texts among the first `beams` candidates on the list of their group."""
        # A score near IMPOSSIBLE belongs to a copy or to a forbidden token.
        complete = ends[:, : self._beams] & (scores[:, : self._beams] > IMPOSSIBLE / 2)
        if not bool(complete.any()):
            return
        length = self._tokens.shape[-1] + 1
        final = scores / length**self._settings.length_penalty
        for prompt, candidate in complete.nonzero().tolist():
            finished = self._finished[self._active[prompt]][group]
            if not finished.done:
                beam = self._tokens[prompt, group, parents[prompt, candidate]].tolist()
                finished.add(float(final[prompt, candidate]), [*beam, int(tokens[prompt, candidate])])

    def _update_done(self, group: int, ends: Tensor) -> None:
        length = self._tokens.shape[-1] + 1
        all_end = ends.all(dim=-1).tolist()
        best_running = self._scores[:, group, 0].tolist()
        for place, index in enumerate(self._active):
            finished = self._finished[index][group]
            finished.update_done(best_running[place], length, self._requests[index].limit, self._settings)
            finished.done |= all_end[place]

    def _running_groups(self, group: int) -> Tensor:
        """For each active prompt, whether the group still runs: bool [prompts]."""
        return torch.tensor([not self._finished[index][group].done for index in self._active])

    def _follow(self, parents: Tensor, tokens: Tensor) -> None:
        """Let the beams and their cache rows become the continuations of `parents` [prompts, groups, beams]."""
        prompts, per_prompt = len(self._active), self._rows_per_prompt
        flat = parents.view(prompts, per_prompt)
        offsets = torch.arange(prompts, device=flat.device)[:, None] * per_prompt
        rows = (flat + offsets).flatten()
        before = self._tokens.view(prompts * per_prompt, -1)[rows].view(*tokens.shape, -1)
        self._tokens = torch.cat([before, tokens[..., None]], dim=-1)
        # In the first step all beams of a prompt are copies, and later a step often keeps every beam in its place.
        if before.shape[-1] and not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            self._cache.reorder(rows, first_column=self._columns)

    def _drop_done(self) -> None:
        """Take the prompts whose groups are all done out of the batch."""
        done = [all(group.done for group in self._finished[index]) for index in self._active]
        if not any(done):
            return
        keep = [place for place, is_done in enumerate(done) if not is_done]
        self._active = [self._active[place] for place in keep]
        if not keep:
            self._cache = None
            return
        places = torch.tensor(keep, device=self._tokens.device)
        self._tokens, self._scores = self._tokens[places], self._scores[places]
        self._limits, self._prompts = self._limits[places], self._prompts[places]
        per_prompt = self._rows_per_prompt
        within = torch.arange(per_prompt, device=places.device)
        rows = (places[:, None] * per_prompt + within).flatten()
        self._cache.select(rows)
        self._processors = self._processors.select(rows.tolist())

    def _results(self, index: int) -> list[Generation]:
        request = self._requests[index]
        together = [hypothesis for group in self._finished[index] for hypothesis in group.hypotheses]
        together.sort(key=lambda hypothesis: -hypothesis[0])
        if not together:
            raise GenerationError(f"no text is possible for prompt {index}; loosen bad_words_ids or logit_bias")
        results = []
        for score, tokens in together[: self._settings.n]:
            generation = self._complete(request, tokens)
            assert generation is not None, "a finished beam ends"
            results.append(replace(generation, score=score))
        return results
