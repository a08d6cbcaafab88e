"""Arguments and options that several commands share, in the words of the Python interface."""

from __future__ import annotations

from typing import Annotated, Any

import typer

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name from `polyformer models`, a folder, a .gguf file, or a hub id (owner/name).",
        show_default=False,
    ),
]

_SAMPLING = "Sampling"
_PENALTIES = "Penalties and constraints"
_ENDING = "When to stop"
_LOADING = "Loading"
_SEARCH = "Search and guidance"

# Loading
DataType = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32, bfloat16, float16 or float64. Default: the file's.", rich_help_panel=_LOADING
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, … Default: cuda if there is one.", rich_help_panel=_LOADING),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.", rich_help_panel=_LOADING)
]

# Sampling
Temperature = Annotated[
    float | None,
    typer.Option(help="0 always takes the likeliest token; higher is more varied.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="Sample among the k likeliest tokens.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", help="Sample among the fewest tokens that hold this probability.", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", help="Drop tokens below this fraction of the likeliest one.", rich_help_panel=_SAMPLING),
]
TypicalP = Annotated[
    float | None,
    typer.Option("--typical-p", help="Keep the most typical tokens up to this probability.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None, typer.Option(help="The same seed gives the same text, alone and in a batch.", rich_help_panel=_SAMPLING)
]

# Penalties and constraints
RepetitionPenalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="Above 1 discourages what was said.", rich_help_panel=_PENALTIES),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty", help="Subtracted once from tokens that were written.", rich_help_panel=_PENALTIES
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option("--frequency-penalty", help="Subtracted for every time it was written.", rich_help_panel=_PENALTIES),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias", metavar="ID=VALUE", help="Added to a token's logit; repeatable.", rich_help_panel=_PENALTIES
    ),
]
BannedWord = Annotated[
    list[str] | None,
    typer.Option("--banned-word", metavar="TEXT", help="Never write this; repeatable.", rich_help_panel=_PENALTIES),
]

# When to stop
MaxNewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", "-m", help="Write at most this many tokens.", rich_help_panel=_ENDING),
]
MinNewTokens = Annotated[
    int | None,
    typer.Option("--min-new-tokens", help="Do not end before this many tokens.", rich_help_panel=_ENDING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text; repeatable.", rich_help_panel=_ENDING),
]
StopTokenId = Annotated[
    list[int] | None,
    typer.Option("--stop-token-id", metavar="ID", help="End at this token; repeatable.", rich_help_panel=_ENDING),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Write on past the model's own end token.", rich_help_panel=_ENDING)
]

# Search and guidance
Samples = Annotated[int | None, typer.Option("-n", help="Texts for each prompt.", rich_help_panel=_SEARCH)]
Logprobs = Annotated[
    int | None,
    typer.Option(metavar="K", help="With --json: log-probabilities, and the K likeliest.", rich_help_panel=_SEARCH),
]
NumBeams = Annotated[int | None, typer.Option("--num-beams", help="Beam search this wide.", rich_help_panel=_SEARCH)]
LengthPenalty = Annotated[
    float | None,
    typer.Option("--length-penalty", help="Beams: above 0 favours long texts.", rich_help_panel=_SEARCH),
]
SuffixFirst = Annotated[
    bool,
    typer.Option("--suffix-first", help="Filling in: ask with what follows the gap first. Small models do better so."),
]
EarlyStopping = Annotated[
    bool, typer.Option("--early-stopping", help="Beams: end with enough finished ones.", rich_help_panel=_SEARCH)
]
NumBeamGroups = Annotated[
    int | None,
    typer.Option("--num-beam-groups", help="Beams: groups that must differ.", rich_help_panel=_SEARCH),
]
DiversityPenalty = Annotated[
    float | None,
    typer.Option("--diversity-penalty", help="Beams: how much groups must differ.", rich_help_panel=_SEARCH),
]
PenaltyAlpha = Annotated[
    float | None,
    typer.Option("--penalty-alpha", help="Contrastive search, with --top-k: 0.6 is usual.", rich_help_panel=_SEARCH),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="Above 1: classifier-free guidance.", rich_help_panel=_SEARCH),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt", metavar="TEXT", help="Guidance: what to lead away from.", rich_help_panel=_SEARCH
    ),
]


def given(**values: Any) -> dict[str, Any]:
    """The options that a person gave: those left out keep the model's own defaults."""
    return {name: value for name, value in values.items() if value is not None and value is not False and value != []}
