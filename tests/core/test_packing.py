from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor

from polyformer.core import (
    Attention,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    Linear,
    Stack,
    TokenEmbedding,
    packing,
)
from polyformer.core.network import Network
from polyformer.core.packing import can_pack
from polyformer.core.rotary import Rotary

needs_packing = pytest.mark.skipif(
    not can_pack(torch.empty(1, 1, dtype=torch.bfloat16)), reason="this CPU has no 16-bit instructions"
)


def build(dtype: torch.dtype = torch.bfloat16, *, tied: bool = True, gated: bool = True) -> DecoderOnly:
    torch.manual_seed(0)
    attention = Attention.Config(
        48, 4, 2, positions=Rotary.Config(12), bias=True, key_bias=False, query_key_norm=LayerNorm.Config(12)
    )
    layer = Layer.Config(attention, FeedForward.Config(48, 80, "silu", gated, bias=not gated), LayerNorm.Config(48))
    config = DecoderOnly.Config(
        TokenEmbedding.Config(101, 48), Stack.Config((layer, layer), layer.norm), Head.Config(48, 101, tied, bias=True)
    )
    network = config.build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.to(dtype).eval()


IDS = torch.randint(0, 101, (2, 23), generator=torch.Generator().manual_seed(1))


@needs_packing
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@torch.inference_mode()
def test_packed_network_gives_the_same_logits(tied: bool, gated: bool) -> None:
    network = build(tied=tied, gated=gated)
    plain = network(IDS).logits.double().log_softmax(-1)
    packed = network.pack()(IDS).logits.double().log_softmax(-1)
    assert network.stack.layers[0].attention.query.weight.is_meta, "packing must not take memory twice"
    # Joined matrices may be summed in another order: rounding of bfloat16, measured as KL divergence.
    divergence = (plain.exp() * (plain - packed)).sum(-1)
    assert float(divergence.max()) < 1e-3
    cache = network.new_cache()
    network(IDS[:, :10], cache=cache)
    stepped = network(IDS[:, 10:], cache=cache).logits.double().log_softmax(-1)
    assert float((packed[:, 10:].exp() * (packed[:, 10:] - stepped)).sum(-1).max()) < 1e-3


@needs_packing
def test_plain_weights_come_back_bit_for_bit() -> None:
    network = build(tied=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = dict(network.named_parameters())
    network.pack().unpack()
    assert dict(network.named_parameters()).keys() == parameters.keys()
    for name, parameter in network.named_parameters():
        assert parameter is parameters[name], "an optimizer must keep the parameters it was given"
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad


@needs_packing
@pytest.mark.parametrize("touch", ["state_dict", "train", "to", "gradient", "load"])
def test_whatever_needs_plain_weights_brings_them_back(touch: str) -> None:
    network = build()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():  # as generation does
        network.pack()(IDS)
    assert isinstance(network, Network) and network.packed
    if touch == "state_dict":
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    elif touch == "train":
        network.train()
    elif touch == "to":
        network.to(torch.float64)
        assert network(IDS).logits.dtype == torch.float64
    elif touch == "gradient":
        network(IDS).logits.sum().backward()
        assert network.stack.layers[0].attention.query.weight.grad is not None
    else:
        network.load_state_dict(before)
    assert not network.packed
    assert not any(parameter.is_meta for parameter in network.parameters())


@needs_packing
def test_copies_are_independent() -> None:
    network = build()
    network.pack()
    twin = copy.deepcopy(network)
    network.unpack()
    with torch.inference_mode():
        assert twin.packed
        twin(IDS)
    twin.unpack()
    with torch.no_grad():
        twin.stack.layers[0].attention.query.weight.zero_()
    assert network.stack.layers[0].attention.query.weight.abs().sum() > 0


@pytest.fixture
def mkl_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor of AMD's, whatever this one is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(packing, "mkl_is_slow", lambda: True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_float32_is_packed_where_mkl_is_slow(tied: bool, gated: bool, mkl_is_slow: None) -> None:
    network = build(torch.float32, tied=tied, gated=gated)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        plain = network(IDS).logits
        packed = network.pack()(IDS).logits
        assert network.stack.layers[0].attention.query.weight.is_meta, "packing must not take memory twice"
        torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
        cache = network.new_cache()
        network(IDS[:, :22], cache=cache)
        torch.testing.assert_close(network(IDS[:, 22:], cache=cache).logits, plain[:, 22:], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.unpack().state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_being_trained_stays_plain(tied: bool, mkl_is_slow: None) -> None:
    """A task between forward and backward, or between backward and the step, changes no gradient."""
    network = build(torch.float32, tied=tied).eval()
    network(IDS).logits.sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    loss = network(IDS).logits.sum()

    def task() -> None:
        with torch.inference_mode():
            network.pack()(IDS)
        assert not any(parameter.is_meta for parameter in network.parameters())

    task()
    loss.backward()
    network.unpack()
    task()
    network.unpack()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])
    del loss
    network.zero_grad()
    assert network.pack().stack.layers[0].attention.query.weight.is_meta


@pytest.mark.parametrize("name", sorted(packing.ACTIVATIONS_WITHIN))
@torch.inference_mode()
def test_activations_within_the_product(name: str, mkl_is_slow: None) -> None:
    torch.manual_seed(0)
    module = FeedForward.Config(48, 80, name, bias=True).build()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    inputs = torch.randn(3, 7, 48)
    expected = module.double()(inputs.double())
    module.float().up.pack()
    with mock.patch.object(module, "activation", side_effect=AssertionError("it is computed within the product")):
        result = module(inputs)
    torch.testing.assert_close(result.double(), expected, atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def test_a_gate_is_never_forgotten(mkl_is_slow: None) -> None:
    """Where gate and up are not joined, because one of them is no plain map, up alone may still be packed."""
    torch.manual_seed(0)
    module = FeedForward.Config(48, 80, "gelu", gated=True).build()
    inputs = torch.randn(7, 48)
    expected = module(inputs)
    module.up.pack()
    torch.testing.assert_close(module(inputs), expected, atol=1e-6, rtol=1e-5)


@pytest.fixture
def onednn_trains(mkl_is_slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wants_inputs", [False, True])
def test_gradients_of_the_product_by_onednn(bias: bool, wants_inputs: bool, onednn_trains: None) -> None:
    torch.manual_seed(0)
    linear = Linear.Config(24, 40, bias).build()
    inputs = torch.randn(3, 50, 24, requires_grad=wants_inputs)
    weights = torch.randn(3, 50, 40)
    wanted_of = [*([inputs] if wants_inputs else []), *linear.parameters()]
    expected = torch.nn.functional.linear(inputs, linear.weight, linear.bias)
    wanted = torch.autograd.grad((expected * weights).sum(), wanted_of)
    with mock.patch.object(torch.nn.functional, "linear", side_effect=AssertionError("this is MKL's")):
        result = linear(inputs)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((result * weights).sum(), wanted_of)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_when_onednn_trains(onednn_trains: None) -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4))
    many = torch.zeros(2, 40, 4)
    assert packing.can_learn(many, weight)
    assert not packing.can_learn(many[:, :20], weight), "few rows"
    assert not packing.can_learn(many.double(), torch.nn.Parameter(weight.double()))
    assert not packing.can_learn(many, weight.detach()), "no parameter of this process alone"
    with torch.no_grad():
        assert not packing.can_learn(many, weight)
    with torch.autocast("cpu", torch.float16):
        assert not packing.can_learn(many, weight)
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        assert not packing.can_learn(many, weight)


def test_bfloat16_is_trained_by_onednn_on_every_processor_that_it_multiplies_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "mkl_is_slow", lambda: False)
    weight = torch.nn.Parameter(torch.zeros(8, 4))
    many = torch.zeros(2, 40, 4)
    for supported in (True, False):
        monkeypatch.setattr(packing, "can_multiply", lambda dtype, supported=supported: supported)
        with torch.autocast("cpu", torch.bfloat16):
            assert packing.can_learn(many, weight) is supported
            assert packing.can_learn(many.bfloat16(), weight) is supported
            assert not packing.can_learn(many.double(), weight)
        assert not packing.can_learn(many, weight), "float32 where MKL is fast"


@pytest.mark.skipif(not packing.can_multiply(torch.bfloat16), reason="oneDNN does not multiply bfloat16 here")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_the_product_in_bfloat16(bias: bool, dtype: torch.dtype) -> None:
    """As exact as what autocast does without us, in the same dtypes."""
    torch.manual_seed(0)
    linear = Linear.Config(24, 40, bias).build()
    inputs = torch.randn(3, 50, 24, dtype=dtype, requires_grad=True)
    weights = torch.randn(3, 50, 40, dtype=torch.bfloat16)
    wanted_of = [inputs, *linear.parameters()]

    def answers(product: Callable[..., Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            result = product(inputs, linear.weight, linear.bias)
        return [result, *torch.autograd.grad((result * weights).sum(), wanted_of)]

    found, theirs = answers(packing.learned_product), answers(torch.nn.functional.linear)
    exact_inputs, exact_weight = inputs.double(), linear.weight.double()
    exact = torch.nn.functional.linear(
        exact_inputs, exact_weight, None if linear.bias is None else linear.bias.double()
    )
    wanted = [exact, *torch.autograd.grad((exact * weights).sum(), wanted_of)]
    for one, other, best in zip(found, theirs, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - best).norm() <= 1.1 * (other - best).norm() + 1e-6 * best.norm()
    with torch.autocast("cpu", torch.bfloat16), mock.patch.object(torch.nn.functional, "linear", side_effect=KeyError):
        assert torch.equal(linear(inputs), found[0])


def gradients_of_parts(make: Callable[[Tensor], list[Tensor]]) -> tuple[Tensor, Tensor]:
    """The gradient of a joint tensor whose parts get those that ``make`` cuts out of it, and where it lies."""
    joint = torch.zeros(2, 5, 12, requires_grad=True)
    parts = packing.learned_split(joint, [4, 6, 2])
    assert [part.shape[-1] for part in parts] == [4, 6, 2]
    given = make(torch.arange(2 * 5 * 12.0).view(2, 5, 12))
    (found,) = torch.autograd.grad(parts, joint, given)
    assert torch.equal(found, torch.cat(given, dim=-1))
    return found, given[0]


def test_gradients_side_by_side_are_taken_as_they_lie() -> None:
    found, first = gradients_of_parts(lambda whole: list(whole.split([4, 6, 2], dim=-1)))
    assert found.data_ptr() == first.data_ptr()
    wider, first = gradients_of_parts(lambda whole: list(torch.cat([whole, whole], -1).split([4, 6, 2, 12], -1)[:3]))
    assert wider.data_ptr() == first.data_ptr(), "rows may be further apart"


@pytest.mark.parametrize(
    "make",
    [
        lambda whole: [part.clone() for part in whole.split([4, 6, 2], dim=-1)],
        lambda whole: [whole[..., 8:], whole[..., 2:8], whole[..., :2]],  # in another order
        lambda whole: [whole[..., :4], whole[..., 5:11], whole[..., 10:]],  # with a gap
        lambda whole: [part.mT.contiguous().mT for part in whole.split([4, 6, 2], dim=-1)],
        lambda whole: [whole.new_ones(()).expand(2, 5, size) for size in (4, 6, 2)],
    ],
)
def test_gradients_elsewhere_are_joined(make: Callable[[Tensor], list[Tensor]]) -> None:
    found, first = gradients_of_parts(make)
    assert found.data_ptr() != first.data_ptr()


@needs_packing
def test_attention_writes_the_gradients_of_its_maps_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = Layer.Config(
        Attention.Config(48, 4, bias=True), FeedForward.Config(48, 80, "gelu_tanh", bias=True), LayerNorm.Config(48)
    )
    network = DecoderOnly.Config(
        TokenEmbedding.Config(101, 48), Stack.Config((layer,), layer.norm), Head.Config(48, 101)
    ).build()
    ids = torch.randint(0, 101, (2, 200))
    found: list[Tensor | None] = []
    side_by_side = packing._side_by_side

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(ids).logits.float().square().mean()
        return list(torch.autograd.grad(loss, list(network.parameters())))

    monkeypatch.setattr(packing, "_side_by_side", lambda parts: found.append(side_by_side(parts)) or found[-1])
    taken = gradients()
    assert len(found) == 1 and found[0] is not None
    monkeypatch.setattr(packing, "_side_by_side", lambda parts: None)
    assert all(torch.equal(one, other) for one, other in zip(taken, gradients(), strict=True))


@torch.inference_mode()
def test_other_dtypes_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "mkl_is_slow", lambda: False)
    network = build(torch.float32)
    plain = network(IDS).logits
    assert torch.equal(network.pack()(IDS).logits, plain)
    assert not any(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(("maker", "slow"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_whose_processor_it_is(maker: str, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(packing.Path, "read_text", lambda self: f"processor : 0\nvendor_id\t: {maker}\n")
    assert packing.mkl_is_slow.__wrapped__() is slow
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not packing.mkl_is_slow.__wrapped__()
