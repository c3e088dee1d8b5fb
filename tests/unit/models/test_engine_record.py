"""What a preparation found, and which engine is taken by it."""

from typing import Any

from models.engine_record import EngineMeasurement, fastest


def test_the_fastest_engine_that_may_serve_is_chosen() -> None:
    def engine(name: Any, times: float, refusal: str | None = None, device: str = "cpu") -> Any:
        return EngineMeasurement(
            name=name, device=device, median_ms=1.0, times_faster=times, refusal=refusal
        )

    reference = engine("torch-fp32", 1.0)
    quick, quickest = engine("openvino-bf16", 4.0), engine("openvino-int8", 8.0, "a flip")
    assert fastest((reference, quick, quickest), "cpu") == "openvino-bf16"
    assert fastest((reference, quickest, engine("onnxruntime-fp32", 0.9)), "cpu") == "torch-fp32"
    assert fastest((engine("torch-fp32", 1.0, device="cuda"), quick), "cuda") == "torch-fp32"
