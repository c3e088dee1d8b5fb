"""The conversion table accounts for every normalization layer of real networks."""

import argparse
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.norm import conversions
from benchmarks.norm.conversions import Row, Subject, convert, table
from norm import convert_batchnorm, restore_batchnorm


def subject(name: str) -> Subject:
    subjects = [*conversions.segmentation_subjects(), *conversions.detection_subjects()]
    return next(candidate for candidate in subjects if candidate.name == name)


def test_a_head_shared_by_five_maps_is_left_with_its_reason() -> None:
    row = convert(subject("retinanet_resnet50_fpn, BatchNorm2d in its head"))
    assert row.converted == 53, "the backbone's"
    assert row.reasons == Counter({("BatchNorm2d", "it runs 5 times a forward pass"): 8})


def test_frozen_and_group_normalizations_are_counted_and_explained() -> None:
    row = convert(subject("fcos_resnet50_fpn, frozen backbone"))
    assert row.normalizations == Counter({"FrozenBatchNorm2d": 53, "GroupNorm": 8})
    assert row.converted == 0
    assert row.left == 61
    assert {kind for kind, _ in row.reasons} == {"FrozenBatchNorm2d", "GroupNorm"}
    assert not any(conversions.UNREPORTED in reason for _, reason in row.reasons)


def test_deeplab_converts_whole_trains_and_evaluates_alike_when_restored() -> None:
    chosen = subject("DeepLabV3Plus, resnet18")
    torch.manual_seed(0)
    plain = chosen.build()
    batch_norms = sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    model, report = convert_batchnorm(plain, chosen.example_input, kind="cbn")
    assert len(report.converted) == batch_norms == convert(chosen).converted
    assert not report.left
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = model.train()(torch.randn(2, 3, 64, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    x = torch.randn(1, 3, 64, 64)
    converted_output = model.eval()(x)
    restored = restore_batchnorm(model)
    assert {type(m) for m in restored.modules() if isinstance(m, nn.BatchNorm2d)} == {
        nn.BatchNorm2d
    }
    # In eval mode both run the same kernel on the same numbers.
    assert torch.equal(restored(x), converted_output)


def test_reasons_that_differ_in_a_name_alone_are_counted_together() -> None:
    twice = nn.Sequential(*(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)) for _ in range(2)))
    row = convert(Subject("two of a kind", lambda: twice, torch.zeros(1, 3, 8, 8)))
    assert row.reasons == Counter(
        {("BatchNorm2d", "its input is the output of ReLU '…', not of a Conv2d"): 2}
    )


def test_a_network_that_the_library_refuses_is_a_row_that_says_so() -> None:
    def refuse() -> nn.Module:
        raise ValueError("no such\nencoder")

    row = convert(Subject("Unet, nothing", refuse, None))
    assert not row.failed
    assert "| Unet, nothing |  | | the library refuses: no such encoder |" in table([row])


def test_a_network_that_norm_cannot_run_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Subject("conv on a vector", lambda: nn.Conv2d(1, 1, 3), torch.zeros(3))
    monkeypatch.setattr(conversions, "segmentation_subjects", lambda: iter(()))
    monkeypatch.setattr(conversions, "detection_subjects", lambda: iter((wrong,)))
    out = tmp_path / "page.md"
    assert conversions.run(argparse.Namespace(out=out)) == 1
    assert "could not be run on the example input" in out.read_text()
    assert "norm failed" in capsys.readouterr().err


def test_the_page_says_so_where_the_segmentation_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules is how Python marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, conversions.SEGMENTATION_LIBRARY, None)
    monkeypatch.setattr(conversions, "detection_subjects", lambda: iter(()))
    out = tmp_path / "page.md"
    assert conversions.run(argparse.Namespace(out=out)) == 0
    assert "Left out: segmentation_models_pytorch is not installed." in out.read_text()


def test_the_table_numbers_each_reason_once() -> None:
    row = Row(
        "x", Counter(A=3, B=1), converted=1, reasons=Counter({("A", "why"): 2, ("B", "why"): 1})
    )
    assert row.left == 3
    other = Row("y", Counter(A=1), reasons=Counter({("A", "because"): 1}))
    assert table([row, other]).splitlines()[2:] == [
        "| x | 3 A, 1 B | 1 | 2 A (1), 1 B (1) |",
        "| y | 1 A | 0 | 1 A (2) |",
        "",
        "1. why",
        "2. because",
    ]
