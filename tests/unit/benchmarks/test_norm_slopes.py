"""The benchmark that compares forms of slope by what they predict."""

import torch
from torch import nn

from benchmarks.norm.slopes import (
    COLUMNS,
    FORMS,
    Past,
    Probe,
    predicted_and_true,
    relative_errors,
    render,
)


def convolution_and_past(change: float) -> tuple[nn.Conv2d, Past]:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 32, 3, padding=1, bias=False)
    past = Past(torch.randn(1, 6, 16, 16), convolution.weight.detach().clone())
    with torch.no_grad():
        convolution.weight.add_(change * torch.randn_like(convolution.weight))
    return convolution, past


def test_every_form_predicts_the_measured_variance_for_an_unchanged_weight() -> None:
    convolution, past = convolution_and_past(0.0)
    for name, make_window in FORMS.items():
        errors = relative_errors(*predicted_and_true(convolution, past, make_window))
        assert len(errors) == 32, name
        assert float(errors.max()) < 1e-5, name


def test_the_truth_is_what_the_weight_of_today_makes_of_the_past_input() -> None:
    convolution, past = convolution_and_past(0.01)
    _, true = predicted_and_true(convolution, past, FORMS["exact slope"])
    expected = convolution(past.x).detach().var((0, 2, 3), correction=0)
    torch.testing.assert_close(true, expected)


def test_the_exact_slope_is_ahead_of_samples_and_they_get_better_with_their_rank() -> None:
    convolution, past = convolution_and_past(0.002)
    medians = {
        name: float(relative_errors(*predicted_and_true(convolution, past, form)).median())
        for name, form in FORMS.items()
    }
    assert medians["exact slope"] < medians["rank 32"] < medians["rank 4"]
    assert medians["exact slope"] < 0.2 * medians["no step"]


def test_a_channel_without_variance_has_no_relative_error() -> None:
    errors = relative_errors(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]))
    assert errors.tolist() == [0.5]


def test_a_probe_compares_every_form_once_its_window_is_full() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 4, 3)
    probe = Probe(every=20)
    probe.watch(convolution)
    for passes in range(1, 41):
        convolution(torch.randn(1, 2, 8, 8))
        assert bool(probe.errors) == (passes == 40), "the first passes are skipped"
    assert set(probe.errors) == {(column, form) for column in COLUMNS for form in FORMS}
    found = {key: torch.cat(errors) for key, errors in probe.errors.items()}
    page = render({"some_patches": found}, every=20)
    assert "4 comparisons a figure" in page
    assert all(f"| {form} |" in page for form in FORMS)
