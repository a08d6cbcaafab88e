"""`polyformer tokenizer`: train tokenizers, measure them, show what they make of a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli.progress import download_bar
from polyformer.cli.reading import InputError, read_text

if TYPE_CHECKING:
    from polyformer.tokenizers.report import TokenizerReport
    from polyformer.tokenizers.text import TextTokenizer

HELP = """Train tokenizers, measure them, show what they make of a text.

\b
[bold]Examples[/bold]
polyformer tokenizer train austen --kind bpe --vocab-size 4096 -o novels-bpe
polyformer tokenizer train texts/ --kind wordpiece --vocab-size 8192 --purpose encoder --lowercase -o bert-like
polyformer tokenizer report novels-bpe austen
polyformer tokenizer show novels-bpe "It is a truth universally acknowledged"
"""

TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="tokenizer", help=HELP.split("\n")[0])


Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...", help="Files, folders, or names of sample sets (polyformer data list).", show_default=False
    ),
]
Fields = Annotated[
    list[str] | None, typer.Option("--field", help="A field of the documents that holds text; repeat. Default: text.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Read at most this many documents.", min=1)]
Named = Annotated[
    str,
    typer.Argument(metavar="TOKENIZER", help="A folder with a tokenizer, or a model that has one.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("train")
def train(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder to write.", show_default=False)],
    kind: Annotated[str, typer.Option("--kind", help="bpe, wordpiece, unigram, byte or character.")] = "bpe",
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", help="Entries in all. Bytes and characters need none.")
    ] = None,
    purpose: Annotated[
        str,
        typer.Option(
            "--purpose", help="decoder, code, chat, encoder, encoder-decoder, denoising or translation: the tokens."
        ),
    ] = "decoder",
    fields: Fields = None,
    split: Annotated[str, typer.Option("--split", help="Of data in parts, this one; all for everything.")] = "train",
    limit: Limit = None,
    min_frequency: Annotated[
        int | None,
        typer.Option("--min-frequency", help="What occurs less often is no entry. Default: 2, characters 1."),
    ] = None,
    limit_alphabet: Annotated[
        int | None, typer.Option("--limit-alphabet", help="Know only so many characters, the most frequent ones.")
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Take upper case as lower case.")] = False,
    split_digits: Annotated[bool, typer.Option("--split-digits", help="Each digit is a token of its own.")] = False,
    normalization: Annotated[
        str | None,
        typer.Option("--normalization", help="none, nfc, nfkc or nmt_nfkc (SentencePiece's, the default of unigram)."),
    ] = None,
    around: Annotated[
        str | None,
        typer.Option("--around", help="nothing, cls-sep, eos, bos or bos-eos around a text. Default: by purpose."),
    ] = None,
    sentinels: Annotated[
        int | None, typer.Option("--sentinels", help="How many <extra_id_N>. Default: by purpose.")
    ] = None,
    special_tokens: Annotated[
        list[str] | None,
        typer.Option("--special-token", metavar="ROLE=TOKEN", help="For example eos=<end>; repeat."),
    ] = None,
    additional: Annotated[
        list[str] | None, typer.Option("--additional-token", metavar="TOKEN", help="A further control token; repeat.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", help="chatml, or a file with a Jinja template.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer and write it into a folder that transformers and Polyformer load."""
    from polyformer.tokenizers.training import train_tokenizer

    _require_free(output)
    options: dict[str, Any] = {
        "purpose": purpose,
        "special_tokens": dict(map(_role_and_token, special_tokens or ())),
        "additional_special_tokens": tuple(additional or ()),
        "sentinels": sentinels,
        "around": around,
        "min_frequency": min_frequency,
        "limit_alphabet": limit_alphabet,
        "lowercase": lowercase,
        "split_digits": split_digits,
        "normalization": normalization,
        "chat_template": _template(chat_template),
    }
    texts = _Texts(data, fields, limit, lambda part: split == "all" or part in (None, split), f"the part {split!r}")
    with _bar() as progress:
        made = train_tokenizer(texts, kind, vocab_size, **options, progress=progress)
    made.save(output)
    if as_json:
        facts = {"vocab_size": made.vocab_size, "documents": texts.documents, "characters": texts.characters}
        inputs.print_json(tokenizer=str(output), kind=kind, **facts, fingerprint=made.fingerprint)
        return
    print(
        f"{output}: {kind}, {made.vocab_size:,} tokens, from {texts.documents:,} "
        f"document{'' if texts.documents == 1 else 's'} of {texts.characters:,} characters"
    )
    if vocab_size is not None and made.vocab_size < vocab_size:
        print(f"note: the data gave {made.vocab_size:,} of the {vocab_size:,} tokens asked for", file=sys.stderr)


@app.command("report")
def report(
    tokenizer: Named,
    data: Data,
    fields: Fields = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Of data in parts, this one; all for everything. Default: all but train."),
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Measure a tokenizer on data: compression, fertility, unknown text, unused entries, decoding.

    Data in parts (train, validation, test) is read without the part to train on.
    """
    from polyformer.tokenizers.report import report as measure

    opened = _open(tokenizer)

    def wanted(part: str | None) -> bool:
        return part != "train" if split is None else split == "all" or part in (None, split)

    what = "a part beside train (--split all reads all)" if split is None else f"the part {split!r}"
    with _bar() as progress:
        measured = measure(opened, _Texts(data, fields, limit, wanted, what), progress=progress)
    if as_json:
        print(json.dumps(measured.to_json(), ensure_ascii=False))
    else:
        _print_report(measured)


@app.command("show")
def show(
    tokenizer: Named,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="- is standard input.")],
    plain: Annotated[
        bool, typer.Option("--plain", help="Special tokens that the text spells out are text like any other.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the tokens of a text with their ids."""
    from polyformer.tokenizers.report import readable

    opened = _open(tokenizer)
    given = read_text(Path("-")) if text == "-" else text
    ids = opened.encode(given, parse_special=not plain)
    rows = [(number, str(opened.id_to_token(number)), readable(opened, number)) for number in ids]
    if as_json:
        tokens = [{"id": number, "token": token, "text": piece} for number, token, piece in rows]
        inputs.print_json(tokens=tokens, decoded=opened.decode(ids))
        return
    width = max((len(str(number)) for number in ids), default=1)
    for number, token, piece in rows:
        special = "  special" if number in opened.special_token_ids else ""
        print(f"{number:>{width}}  {token if special else json.dumps(piece, ensure_ascii=False)}{special}")
    print(f"{len(ids)} tokens, {len(given)} characters")


# --- what is read and written -----------------------------------------------------------------------------------------


class _Texts:
    """The texts of data, in order, with how many documents and characters there were."""

    def __init__(
        self,
        data: list[str],
        fields: list[str] | None,
        limit: int | None,
        wanted: Callable[[str | None], bool],
        what: str,
    ):
        self._data, self._fields, self._limit, self._wanted, self._what = data, fields or ["text"], limit, wanted, what
        self.documents = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        from polyformer.training.data.reading import read_documents

        found = False
        for document in read_documents(self._data, fields=self._fields):
            found = True
            if not self._wanted(document.get("split")):
                continue
            self.documents += 1
            for field in self._fields:
                text = document[field]
                if not isinstance(text, str):
                    raise InputError(f"the field {field!r} of document {self.documents} holds no text: choose another")
                self.characters += len(text)
                yield text
            if self.documents == self._limit:
                return
        if found and not self.documents:
            raise InputError(f"{' '.join(self._data)}: the data has no document in {self._what}")


def _open(name: str) -> TextTokenizer:
    """The tokenizer of a folder or of a model, without its weights."""
    from polyformer.checkpoints.catalogue import resolve
    from polyformer.tokenizers.loading import load_tokenizer

    with download_bar() as progress:
        path = resolve(name, progress=progress).path
    if path.suffix == ".gguf":
        from polyformer.checkpoints.gguf import GGUFFile
        from polyformer.tokenizers.gguf import tokenizer_from_gguf

        file = GGUFFile(path)
        found = tokenizer_from_gguf(file.metadata) if "tokenizer.ggml.model" in file.metadata else None
        file.close()
    else:
        found = load_tokenizer(path if path.is_dir() else path.parent)
    if found is None:
        raise InputError(f"{name} has no tokenizer: name a folder with a tokenizer.json, or a model that has one")
    return found


def _require_free(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: name a folder to write")
    others = [path.name for path in output.iterdir() if path.name not in TOKENIZER_FILES] if output.is_dir() else []
    if others:
        raise InputError(f"{output} holds other files ({min(others)}): name a new folder")


def _role_and_token(given: str) -> tuple[str, str]:
    role, equals, token = given.partition("=")
    if not equals:
        raise InputError(f"--special-token {given!r}: write ROLE=TOKEN, for example eos=<end>")
    return role, token


def _template(given: str | None) -> str | None:
    return given if given in (None, "chatml") else read_text(Path(given))


# --- what is shown ----------------------------------------------------------------------------------------------------


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int | None], None] | None]:
    """A line on a terminal that says what is being done and how much of it is."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:

        def told(what: str, done: int, total: int | None) -> None:
            status.update(f"{what}: {done:,} characters" if total is None else f"{what}: {done} of about {total}")

        yield told


def _print_report(measured: TokenizerReport) -> None:
    print(f"documents                {measured.documents:,}")
    print(f"characters               {measured.characters:,} ({measured.bytes:,} bytes, {measured.words:,} words)")
    print(f"tokens                   {measured.tokens:,}")
    print(f"characters per token     {measured.characters_per_token:.3f}")
    print(f"bytes per token          {measured.bytes_per_token:.3f}")
    print(f"tokens per word          {measured.fertility:.3f}")
    print(f"unknown                  {measured.unknown:,} ({measured.unknown_share:.4%})")
    print(f"entries                  {measured.vocab_size:,}")
    share = measured.unused / measured.vocab_size
    print(f"never used               {measured.unused:,} ({share:.1%})")
    print(f"documents decoded right  {measured.exact:,} of {measured.documents:,}")
    different = measured.first_difference
    if different is not None:
        print(
            f"  first difference: document {different.document + 1}, character {different.character}: "
            f"{_quoted(different.text)} became {_quoted(different.decoded)}"
        )
    print("most frequent            " + " ".join(_quoted(one.text) for one in measured.most_frequent))
    print("longest                  " + " ".join(_quoted(one.text) for one in measured.longest))
    if measured.unused:
        print("never used, for example  " + " ".join(_quoted(one.text) for one in measured.unused_examples))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
