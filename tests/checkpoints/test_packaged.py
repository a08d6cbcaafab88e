"""Models that come with the package: whole, described, and good for what they are named for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import polyformer
from polyformer.checkpoints.catalogue import resolve
from polyformer.checkpoints.entries import ENTRIES, PACKAGED, CatalogueEntry
from polyformer.checkpoints.pull import find_cached, list_models, pull
from polyformer.errors import DownloadError
from polyformer.training.recipe import read_recipe

ALL = [entry for entry in ENTRIES.values() if entry.packaged]


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_files_are_those_of_the_catalogue(entry: CatalogueEntry) -> None:
    folder = PACKAGED / entry.name
    assert {file.name for file in entry.files} == {path.name for path in folder.iterdir()}
    for file in entry.files:
        data = (folder / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.nbytes, file.sha256)
    assert entry.nbytes < 20_000_000
    assert read_recipe(folder / "recipe.yaml").name


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_each_has_a_card(entry: CatalogueEntry) -> None:
    card = (PACKAGED / entry.name / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {entry.name}\n")
    for heading in ("## What it learned from", "## How good it is", "## What it is not for"):
        assert heading in card
    assert entry.licence in card


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_each_loads_by_name_without_a_download(
    entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path))
    model = polyformer.load(entry.name, device="cpu")
    assert model.num_parameters == entry.parameters and str(model.dtype) == "torch.float32"
    assert str(polyformer.load(entry.name, dtype="float16", device="cpu").dtype) == "torch.float16"
    assert pull(entry.name) == PACKAGED / entry.name
    assert not list_models()  # it is in no cache
    assert not list(tmp_path.rglob("*.safetensors"))
    assert json.loads((PACKAGED / "models.json").read_text())


def test_a_broken_installation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ALL[0].name
    monkeypatch.setattr("polyformer.checkpoints.pull.PACKAGED", tmp_path)
    assert find_cached(ENTRIES[name]) is None
    with pytest.raises(
        DownloadError, match=f"{name} comes with this package, but its files .* install polyformer again"
    ):
        resolve(name)
