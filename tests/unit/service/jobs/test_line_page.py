"""The examples of docs/line.md, taken from the page, compiled and run against the API."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from models import ClassThreshold, OperatingPoint, load_bundle, write_bundle
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "line.md"
WIDTH, HEIGHT = 96, 64
# A machine that runs other tests beside this one may be slow; the examples' own limits follow it.
DEADLINE_MS = "20000"

Program = Callable[[str, str, Path], "subprocess.CompletedProcess[str]"]


def example(language: str) -> str:
    """The page's first block in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def needed(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed here")


def run_curl(folder: Path) -> Program:
    needed("curl")

    def run(url: str, deadline_ms: str, buffer: Path) -> "subprocess.CompletedProcess[str]":
        script = example("sh").replace("2500", str(WIDTH)).replace("2000", str(HEIGHT))
        script = script.replace("deadline_ms=900", f"deadline_ms={deadline_ms}")
        script = script.replace("--max-time 1.2", "--max-time 30").replace(
            "buffer.raw", buffer.name
        )
        return subprocess.run(
            ["sh", "-c", script],
            cwd=buffer.parent,
            env={**os.environ, "HAIRLINE": url},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def compiled(command: list[str], program: list[str]) -> Program:
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    def run(url: str, deadline_ms: str, buffer: Path) -> "subprocess.CompletedProcess[str]":
        arguments = [url, deadline_ms, str(WIDTH), str(HEIGHT), str(buffer)]
        return subprocess.run(
            [*program, *arguments], capture_output=True, text=True, check=False, timeout=60
        )

    return run


def build_csharp(folder: Path) -> Program:
    needed("mcs", "mono")
    source, target = folder / "LineClient.cs", folder / "LineClient.exe"
    source.write_text(example("csharp"))
    libraries = ["-r:System.Net.Http.dll", "-r:System.Runtime.Serialization.dll"]
    warnings = ["-warnaserror"]
    return compiled(
        ["mcs", *libraries, *warnings, f"-out:{target}", str(source)], ["mono", str(target)]
    )


def build_c(folder: Path) -> Program:
    needed("cc")
    header = subprocess.run(
        ["cc", "-E", "-x", "c", "-"],
        input="#include <curl/curl.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if header.returncode != 0:
        pytest.skip("the header of libcurl is not installed here")
    source, target = folder / "line_client.c", folder / "line_client"
    source.write_text(example("c"))
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
    return compiled(["cc", *flags, "-o", str(target), str(source), "-lcurl"], [str(target)])


@pytest.mark.parametrize("build", [run_curl, build_csharp, build_c])
def test_the_examples_pass_a_part_for_an_explicit_ok_alone(
    build: Callable[[Path], Program],
    port: int,
    add_model: Callable[..., str],
    bundle: Path,
    tmp_path: Path,
) -> None:
    program = build(tmp_path)
    whole = load_bundle(bundle)
    never = OperatingPoint(
        classes=dict.fromkeys(whole.info.classes, ClassThreshold(threshold=0.9999))
    )
    info = whole.info.model_copy(update={"operating_point": never})
    write_bundle(tmp_path / "content", info, whole.network.state_dict())
    models = {"OK": add_model("content", tmp_path / "content"), "NG": add_model("strict")}
    url = f"http://127.0.0.1:{port}"
    buffer = tmp_path / "frame.raw"
    buffer.write_bytes(
        np.random.default_rng(3).integers(0, 256, WIDTH * HEIGHT, np.uint8).tobytes()
    )
    for verdict, model in models.items():
        served = httpx.put(f"{url}/deployments/line-1", json={"model": model}, timeout=60)
        assert served.is_success
        result = program(url, DEADLINE_MS, buffer)
        assert (result.returncode == 0) == (verdict == "OK"), result
    assert served.json()["previous_model"] == models["OK"]
    httpx.post(f"{url}/deployments/line-1:rollback", timeout=60)
    assert program(url, DEADLINE_MS, buffer).returncode == 0
    # From here on each inspection of this model would be an OK.
    assert program(url, "0.001", buffer).returncode != 0, "the deadline passed"
    cut = tmp_path / "cut.raw"
    cut.write_bytes(buffer.read_bytes()[:-1])
    assert program(url, DEADLINE_MS, cut).returncode != 0, "the buffer is too short"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert program(nobody, DEADLINE_MS, buffer).returncode != 0, "nobody listens"
