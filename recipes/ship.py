"""Puts a trained model into the package, so that it has a name on every machine: weights in 16 bits, its recipe, its
card, and a line in the catalogue.

    python recipes/ship.py runs/austen austen-8m --card card.md --licence "CC0-1.0" \\
        --licence-url https://creativecommons.org/publicdomain/zero/1.0/ --description "..."

The card is a Markdown file: what the model is, what it learned from, how good it is, what it is not for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import polyformer
from polyformer.checkpoints.disk import write_whole
from polyformer.checkpoints.entries import PACKAGED

LIMIT = 20_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="in the catalogue")
    parser.add_argument("--card", type=Path, required=True)
    for option in ("description", "licence", "licence-url"):
        parser.add_argument(f"--{option}", required=True)
    options = parser.parse_args()
    folder = PACKAGED / options.name
    shutil.rmtree(folder, ignore_errors=True)
    model = polyformer.load(options.run / "model", dtype="float16", device="cpu")
    model.save(folder)
    shutil.copy(options.run / "recipe.yaml", folder / "recipe.yaml")
    shutil.copy(options.card, folder / "README.md")
    files = [
        {"name": path.name, "nbytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    ]
    total = sum(file["nbytes"] for file in files)
    if total > LIMIT:
        parser.exit(1, f"{folder} takes {total:,} bytes, more than {LIMIT:,}: too large to ship\n")
    listing = PACKAGED / "models.json"
    entry = {
        "name": options.name,
        "description": options.description,
        "parameters": model.num_parameters,
        "licence": options.licence,
        "licence_url": options.licence_url,
        "files": files,
    }
    others = [one for one in json.loads(listing.read_text()) if one["name"] != options.name]
    listed = sorted([*others, entry], key=lambda one: str(one["name"]))
    write_whole(listing, json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    print(f"{options.name}: {model.num_parameters:,} parameters, {total:,} bytes in {folder}")


if __name__ == "__main__":
    main()
