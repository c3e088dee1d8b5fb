"""The endpoint that most teams write: FastAPI, cv2, eager torch, connected components.

``python -m benchmarks.serve.plain_endpoint BUNDLE DEVICE`` serves a bundle's network with its
thresholds on a free port, which it prints.  It takes picture files as a form's part and does
nothing beside inspecting: no queue, no deadline, no record, no check of the frame's depth.
``/nothing`` takes any body and answers at once: what is left then is the way there and back.
"""

import json
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import uvicorn
from fastapi import FastAPI, File, Request

from models import load_bundle


def plain_app(bundle_path: Path, device: str) -> FastAPI:
    """Return the application, its network on ``cpu`` or ``cuda``."""
    bundle = load_bundle(bundle_path)
    info = bundle.info
    network = bundle.network.eval().to(device)
    mean = torch.tensor(info.preprocessing.mean, device=device)[:, None, None]
    std = torch.tensor(info.preprocessing.std, device=device)[:, None, None]
    stride = info.preprocessing.stride_px
    flags = cv2.IMREAD_COLOR_RGB if info.preprocessing.in_channels == 3 else cv2.IMREAD_GRAYSCALE
    app = FastAPI()

    @app.post("/predict")
    def predict(file: Annotated[bytes, File()]) -> dict[str, Any]:
        begin = time.perf_counter()
        frame = np.atleast_3d(np.asarray(cv2.imdecode(np.frombuffer(file, np.uint8), flags)))
        decoded = time.perf_counter()
        with torch.no_grad():
            image = torch.from_numpy(frame).to(device).permute(2, 0, 1).float()
            image = ((image - mean) / std)[None]
            height, width = image.shape[-2:]
            padded = F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")
            scores = network(padded)[0, :, :height, :width].sigmoid().cpu().numpy()
        modelled = time.perf_counter()
        defects = []
        for name, score in zip(info.classes, scores, strict=True):
            point = info.operating_point.classes[name]
            mask = (score >= point.threshold).astype(np.uint8)
            count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            for index in range(1, count):
                x, y, w, h, area = (int(value) for value in stats[index])
                if area >= point.min_area_px:
                    inside = labels[y : y + h, x : x + w] == index
                    peak = float(score[y : y + h, x : x + w][inside].max())
                    defects.append({"class": name, "score": peak, "box": [x, y, w, h]})
        done = time.perf_counter()
        seconds = {"decode": decoded - begin, "model": modelled - decoded, "rest": done - modelled}
        timings_ms = {name: 1000 * value for name, value in seconds.items()}
        verdict = "NG" if defects else "OK"
        return {"verdict": verdict, "defects": defects, "timings_ms": timings_ms}

    @app.post("/nothing")
    async def nothing(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    return app


def main() -> None:
    """Serve until the process is ended."""
    config = uvicorn.Config(plain_app(Path(sys.argv[1]), sys.argv[2]), log_level="warning")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
