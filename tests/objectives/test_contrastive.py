"""What belongs together: against CLIP's, SigLIP's and sentence-transformers' losses, on one process and on two."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from proof import saved
from proof_objectives import assert_same, built, decoder, encoder, gradients_of, texts
from torch.nn import functional

from polyformer import core
from polyformer.checkpoints.loading import open_checkpoint
from polyformer.errors import ConfigError, DataError
from polyformer.objectives import ContrastiveImages, ContrastivePairs, PairEncoder


def pooler(method: str = "mean") -> Any:
    return encoder(pooling=core.Pooling.Config(method))


def looker() -> Any:
    """An encoder of pictures."""
    patches = core.PatchEmbedding.Config(16, (4, 4), (8, 8))
    return core.EncoderOnly.Config(core.Encoder.Config(patches, pooler().encoder.stack))


def pairs(*, negatives: bool = False) -> list[dict[str, Any]]:
    columns = {"first_ids": texts(5, 9, 3, 7, 6), "second_ids": texts(4, 4, 8, 6, 2, seed=1)}
    if negatives:
        columns["negative_ids"] = texts(5, 3, 9, 4, 7, seed=2)
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def alone(network: Any, ids: Any) -> torch.Tensor:
    """The vector of each text, unpadded, at length 1."""
    vectors = [network(torch.tensor(row)[None]).pooler_output[0] for row in ids]
    return functional.normalize(torch.stack(vectors), dim=-1)


# ---------------------------------------------------------------------------------------------------------------
# Pairs of texts


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [False, True])
def test_the_loss_of_sentence_transformers(negatives: bool, symmetric: bool) -> None:
    from sentence_transformers import util
    from sentence_transformers.losses import MultipleNegativesRankingLoss, MultipleNegativesSymmetricRankingLoss

    network = built(pooler())
    given = pairs(negatives=negatives)
    objective = ContrastivePairs(temperature=0.1, symmetric=symmetric)
    objective.check(network.config)
    ours = objective(network, objective.collate(given))
    gradients = gradients_of(network, ours.total / ours.count)
    embedded = [alone(network, [example[name] for example in given]) for name in given[0]]
    kind = MultipleNegativesSymmetricRankingLoss if symmetric else MultipleNegativesRankingLoss
    theirs = kind(model=torch.nn.Identity(), scale=10.0, similarity_fct=util.cos_sim).compute_loss_from_embeddings(
        embedded, None
    )
    assert ours.count == 5
    assert_same(ours.total / ours.count, theirs)
    for name, gradient in gradients_of(network, theirs).items():
        assert_same(gradients[name], gradient)
    right = ((embedded[0] @ torch.cat(embedded[1:]).T).argmax(-1) == torch.arange(5)).sum()
    assert ours.metrics == {"accuracy": (right, 5), "scale": (50.0, 5)}


def test_a_learned_temperature() -> None:
    objective, inner = ContrastivePairs(temperature=None), built(pooler())
    objective.check(inner.config)
    network = objective.begun(inner)
    objective.check(network.config)
    assert isinstance(network, PairEncoder) and objective.begun(network) is network
    assert objective.finished(network, "family") == (inner, "family")
    network.double()
    batch = objective.collate(pairs())
    ours = objective(network, batch)
    fixed = ContrastivePairs(temperature=0.05)(inner, batch)
    assert_same(ours.total, fixed.total, 1e-6)  # it starts from the same, rounded to 32 bits
    ours.total.backward()
    with torch.no_grad():
        raised, lowered = (
            ContrastivePairs(temperature=1 / math.exp(network.logit_scale.item() + step))(inner, batch).total
            for step in (1e-5, -1e-5)
        )
    assert_same(network.logit_scale.grad.item(), ((raised - lowered) / 2e-5).item(), 1e-6)
    with torch.no_grad():
        network.logit_scale.fill_(9.0)
    assert objective(network.eval(), batch).metrics["scale"][0] == pytest.approx(5 * math.exp(9.0))
    assert objective(network.train(), batch).metrics["scale"][0] == pytest.approx(500.0)
    assert network.logit_scale.item() == pytest.approx(math.log(100))


def test_pairs_depend_on_the_batch() -> None:
    assert ContrastivePairs.depends_on_batch and ContrastiveImages.depends_on_batch
    with pytest.raises(DataError, match="has no negative_ids, but others of its batch have"):
        ContrastivePairs().collate([*pairs(negatives=True), *pairs()])


# ---------------------------------------------------------------------------------------------------------------
# Pictures

TEXT: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}


def pictures(*lengths: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {"pixel_values": random.normal(size=(3, 8, 8)), "input_ids": np.append(row, 36)}
        for row in texts(*lengths, last=36)
    ]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_losses_of_clip_and_siglip(kind: str, tmp_path: Path) -> None:
    if kind == "clip":
        ends = {"bos_token_id": 0, "eos_token_id": 36}
        config = transformers.CLIPConfig(text_config={**TEXT, **ends}, vision_config=IMAGE, projection_dim=12)
        hf = saved(transformers.CLIPModel, config, tmp_path).train()
    else:
        config = transformers.SiglipConfig(text_config=TEXT, vision_config=IMAGE)
        hf = saved(transformers.SiglipModel, config, tmp_path).train()
    with open_checkpoint(tmp_path) as checkpoint:
        network: Any = checkpoint.load().train()
    objective = ContrastiveImages()
    objective.check(network.config)
    batch = {
        name: value.double() if value.is_floating_point() else value
        for name, value in objective.collate(pictures(6, 6, 6, 6)).items()
    }
    ours = objective(network, batch)
    theirs = hf(batch["input_ids"], batch["pixel_values"], return_loss=True)
    assert ours.count == 4
    assert_same(ours.total / ours.count, theirs.loss, 1e-6)
    (ours.total / ours.count).backward()
    theirs.loss.backward()
    assert_same(network.logit_scale.grad, hf.logit_scale.grad.view(()), 1e-6)
    assert_same(
        network.text.encoder.embedding.tokens.weight.grad, hf.text_model.embeddings.token_embedding.weight.grad, 1e-6
    )
    assert_same(
        network.image.encoder.embedding.weight.grad, hf.vision_model.embeddings.patch_embedding.weight.grad, 1e-6
    )
    if kind == "siglip":
        assert_same(network.logit_bias.grad, hf.logit_bias.grad.view(()), 1e-6)
    right = (theirs.logits_per_image.argmax(-1) == torch.arange(4)).sum()
    assert ours.metrics["accuracy"] == (right, 4)


def test_captions_of_any_length() -> None:
    """Padding changes nothing, and each caption is compared with each picture."""
    tower = core.Tower.Config(pooler("first").encoder, core.Pooling.Config("mean"))
    patches = core.PatchEmbedding.Config(16, (4, 4), (8, 8))
    image = core.Tower.Config(core.Encoder.Config(patches, pooler().encoder.stack), core.Pooling.Config("first"))
    network = built(core.DualEncoder.Config(tower, image, logit_scale=1.0)).float()
    objective = ContrastiveImages()
    given = pictures(2, 7, 4)
    ours = objective(network, objective.collate(given))
    seen = torch.cat(
        [network(pixel_values=torch.tensor(each["pixel_values"]).float()[None]).image_embeds for each in given]
    )
    read = torch.cat([network(torch.tensor(each["input_ids"])[None]).text_embeds for each in given])
    scores = seen @ read.T * network.logit_scale.exp()
    target = torch.arange(3)
    expected = (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2
    assert_same(ours.total / 3, expected, 1e-5)
    with pytest.raises(DataError, match="has no input_ids"):
        objective.collate([{"pixel_values": given[0]["pixel_values"]}])
    with pytest.raises(ConfigError, match="but this network is DualEncoder with one tower"):
        objective.check(core.DualEncoder.Config(tower))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastivePairs(temperature=0.0), r"temperature is 0\.0, but it must be above 0"),
        (lambda: ContrastivePairs(pooling="max"), "pooling is 'max', but it must be mean, class, last"),
        (lambda: ContrastivePairs().check(decoder()), "but this network is DecoderOnly"),
        (lambda: ContrastivePairs().check(looker()), "with a vocabulary.* but this network is EncoderOnly without one"),
        (lambda: ContrastivePairs().check(PairEncoder.Config(pooler())), "a fixed temperature, but this PairEncoder"),
        (lambda: ContrastiveImages().check(pooler()), "text and a picture tower .* but this network is EncoderOnly"),
    ],
)
def test_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# ---------------------------------------------------------------------------------------------------------------
# Several processes

WORKER = """
import sys
import torch
from torch import distributed
sys.path[:0] = sys.argv[4:]
from proof_objectives import built, gradients_of
from test_contrastive import pairs, pooler
from polyformer.objectives import ContrastivePairs

rank, folder, symmetric = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
network, objective = built(pooler()), ContrastivePairs(temperature=0.1, symmetric=symmetric)
rows = pairs(negatives=True)[:3] if rank == 0 else pairs(negatives=True)[3:]
loss = objective(network, objective.collate(rows))
gradients = gradients_of(network, loss.total)
with torch.no_grad():
    lonely = objective(network, objective.collate(rows)).total
torch.save((loss.total.detach(), loss.count, loss.metrics, gradients, lonely), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
def test_two_processes_are_one(symmetric: bool, tmp_path: Path) -> None:
    """Three pairs here and two there: losses, counts and gradients add up to those of all five on one process."""
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path), str(symmetric), *places])
        for rank in range(2)
    ]
    assert [worker.wait(240) for worker in workers] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    network, objective = built(pooler()), ContrastivePairs(temperature=0.1, symmetric=symmetric)
    whole = objective(network, objective.collate(pairs(negatives=True)))
    assert_same(sum(part[0] for part in parts), whole.total.detach())
    assert sum(part[1] for part in parts) == whole.count
    assert sum(part[2]["accuracy"][0] for part in parts) == whole.metrics["accuracy"][0]
    for name, gradient in gradients_of(network, whole.total).items():
        assert_same(sum(part[3][name] for part in parts), gradient)
    few = objective(network, objective.collate(pairs(negatives=True)[:3]))
    assert_same(parts[0][4], few.total.detach())  # without gradients each is by itself
