import pytest
import torch

from models.cuda_graphs import exact_convolutions


def test_convolutions_round_as_float32_within_and_go_on_as_they_were() -> None:
    before = torch.backends.cudnn.allow_tf32

    def fails() -> None:
        with exact_convolutions(), exact_convolutions():
            assert not torch.backends.cudnn.allow_tf32
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.backends.cudnn.allow_tf32 == before
