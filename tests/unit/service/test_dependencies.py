"""What endpoints ask for is there without a detour."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.dependencies.utils import get_dependant

from service.api.open_inference import infer
from service.api.parts import predict_part
from service.api.predict import predict


@pytest.mark.parametrize("endpoint", [predict, predict_part, infer])
def test_a_call_for_a_verdict_waits_for_no_thread_before_its_frame_is_read(
    endpoint: Callable[..., Any],
) -> None:
    # FastAPI hands each dependency that is no coroutine to a thread, and waits for each.
    dependencies = get_dependant(path="/", call=endpoint).dependencies
    assert dependencies
    for dependency in dependencies:
        assert inspect.iscoroutinefunction(dependency.call), dependency.call
