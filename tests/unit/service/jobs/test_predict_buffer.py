"""A camera's buffer is inspected as the picture in it would be."""

from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

WIDTH, HEIGHT = 96, 64
LAYOUT = {
    "Content-Type": "application/octet-stream",
    "X-Width": str(WIDTH),
    "X-Height": str(HEIGHT),
    "X-Pixel-Format": "Mono8",
}


@pytest.fixture
def pixels() -> Any:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def test_a_buffer_gets_the_verdict_of_the_same_picture(
    client: TestClient, served: str, pixels: Any
) -> None:
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    file = client.post("/predict", content=bytes(encoded), headers={"Content-Type": "image/png"})
    padded = np.pad(pixels, ((0, 0), (0, 4))).tobytes()
    headers = {**LAYOUT, "X-Stride": str(WIDTH + 4)}

    whole = client.post("/predict", content=pixels.tobytes(), headers=LAYOUT).json()
    strided = client.post("/predict", content=padded, headers=headers).json()

    assert file.json()["defects"]
    assert whole["defects"] == strided["defects"] == file.json()["defects"]
    assert whole["image"]["width"] == WIDTH
    assert whole["warnings"] == []


@pytest.mark.parametrize(
    ("headers", "code", "where"),
    [
        ({"X-Width": None}, "buffer_layout_missing", "header/X-Width"),
        ({"X-Pixel-Format": None}, "buffer_layout_missing", "header/X-Pixel-Format"),
        ({"X-Width": "wide"}, "header_invalid", "header/X-Width"),
        ({"X-Width": "-96"}, "header_invalid", "header/X-Width"),
        ({"X-Height": "0"}, "header_invalid", "header/X-Height"),
        ({"X-Height": "9" * 5000}, "header_invalid", "header/X-Height"),
        ({"X-Stride": "1.5"}, "header_invalid", "header/X-Stride"),
        ({"X-Height": "65"}, "buffer_size_mismatch", "whole file"),
        ({"X-Width": "999999999"}, "image_too_large", None),
        ({"X-Pixel-Format": "Mono12Packed"}, "pixel_format_unknown", "header/X-Pixel-Format"),
    ],
)
def test_a_buffer_that_is_not_as_its_headers_say_is_refused_with_the_header(
    client: TestClient,
    served: str,
    pixels: Any,
    headers: dict[str, str | None],
    code: str,
    where: str | None,
) -> None:
    sent = {name: value for name, value in (LAYOUT | headers).items() if value is not None}

    answer = client.post("/predict", content=pixels.tobytes(), headers=sent)

    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["code"], problem.get("where")) == (code, where)
    assert problem["hint"]
