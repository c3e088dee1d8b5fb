import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from norm.optimizer_steps import OptimizerStepCounter, fingerprint


@given(st.integers(0, 29), st.integers(0, 31))
def test_one_flipped_bit_anywhere_changes_the_fingerprint(place: int, bit: int) -> None:
    weight = torch.linspace(-1, 1, 30)
    before = fingerprint([weight])
    weight.view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert fingerprint([weight]) != before


def test_fingerprint_does_not_depend_on_the_memory_format() -> None:
    weight = torch.randn(4, 3, 3, 3)
    formatted = weight.to(memory_format=torch.channels_last)
    assert fingerprint([weight]) == fingerprint([formatted])


def test_order_of_the_tensors_matters() -> None:
    a, b = torch.randn(3), torch.randn(3)
    assert fingerprint([a, b]) != fingerprint([b, a])


def test_micro_batches_of_one_step_count_once() -> None:
    counter, weight = OptimizerStepCounter(), nn.Parameter(torch.randn(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    counts: list[int] = []
    for _ in range(3):
        counts += [int(counter.observe([weight, None])) for _ in range(2)]
        weight.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert counts == [0, 0, 1, 1, 2, 2]


def test_loading_the_same_weights_again_is_no_step() -> None:
    counter, layer = OptimizerStepCounter(), nn.Linear(2, 2)
    counter.observe(list(layer.parameters()))
    layer.load_state_dict(layer.state_dict())
    assert counter.observe(list(layer.parameters())) == 0


def test_every_forward_pass_counts_where_nothing_is_trainable() -> None:
    counter, weight = OptimizerStepCounter(), torch.randn(3)
    assert [int(counter.observe([weight])) for _ in range(3)] == [0, 1, 2]
