"""A client that goes away frees its place, and its frame is not inspected."""

import socket
import threading
import time
from collections.abc import Callable

import httpx
import numpy as np

GIVE_UP_S = 60.0
SIDE_PX = 900


def frame(side_px: int) -> tuple[bytes, dict[str, str]]:
    pixels = np.random.default_rng(0).integers(0, 256, (side_px, side_px), dtype=np.uint8)
    return pixels.tobytes(), {
        "Content-Type": "application/octet-stream",
        "X-Width": str(side_px),
        "X-Height": str(side_px),
        "X-Pixel-Format": "Mono8",
    }


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def wait_until(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + GIVE_UP_S
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def test_who_leaves_while_waiting_is_not_inspected(
    port: int, add_model: Callable[..., str]
) -> None:
    base = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=base, timeout=GIVE_UP_S) as client:
        client.put("/deployments/default", json={"model": add_model("a")})
        content, headers = frame(SIDE_PX)
        # The first of its size takes longest, and nobody knows yet how long.
        busy = threading.Thread(
            target=lambda: httpx.post(
                f"{base}/predict", content=content, headers=headers, timeout=GIVE_UP_S
            )
        )
        busy.start()
        wait_until(lambda: metric(client, "hairline_frames_waiting") == 1)

        body, layout = frame(32)
        head = "".join(f"{name}: {value}\r\n" for name, value in layout.items())
        leaving = socket.create_connection(("127.0.0.1", port))
        leaving.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\n"
            + f"Content-Length: {len(body)}\r\n{head}\r\n".encode()
            + body
        )
        wait_until(lambda: metric(client, "hairline_frames_waiting") == 2)
        leaving.close()
        wait_until(lambda: metric(client, "hairline_predictions_cancelled_total") == 1)

        busy.join(GIVE_UP_S)
        again = client.post("/predict", content=body, headers=layout)
        assert again.status_code == 200
        entries = client.get("/ledger/entries").json()["items"]
        assert sum(entry["kind"] == "prediction" for entry in entries) == 2
        assert metric(client, "hairline_frames_waiting") == 0
