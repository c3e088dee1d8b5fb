"""Engines: what runs a frozen network on padded pixels and answers with probabilities.

Every engine takes the camera's own numbers and standardizes them itself, so that bytes cross to the
device and not floats, and ends with the sigmoid in float32. Which engine serves a model is measured
and gated, see `models.engine_record` and ``docs/serving-engines.md``.
"""

import importlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.cuda_graphs import CapturedForward, CaptureUnderWay, exact_convolutions, to_host
from models.defects import BLOCK_PX
from models.errors import EngineError
from models.preprocessing import Pixels, Preprocessing

EngineName = Literal[
    "torch-fp32",
    "torch-bf16",
    "torch-fp16",
    "onnxruntime-fp32",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-int8",
    "openvino-int8-mixed",
]
# What is served until another one has proven that its verdicts are the same.
REFERENCE_ENGINE: EngineName = "torch-fp32"
INPUT_NAME, OUTPUT_NAME = "pixels", "probabilities"
# A camera delivers one size; frames of a smaller one may come several at a time.  A shape takes its
# input and its answer, the rest is shared.
_CAPTURED_SHAPES = 8
_Shape = tuple[tuple[int, ...], torch.dtype]
TORCH_DTYPES: dict[EngineName, torch.dtype] = {
    "torch-fp32": torch.float32,
    "torch-bf16": torch.bfloat16,
    "torch-fp16": torch.float16,
}


class Engine(Protocol):
    """Runs one network on one device; not safe for several threads at once.

    Attributes:
        name: What answers call it.
        device: Where it runs.
    """

    name: EngineName
    device: torch.device

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the probability of each class at each pixel.

        Args:
            pixels: (N, H, W, C) in the depth and channels of the model's camera; H and W are
                multiples of the network's stride.

        Returns:
            (N, K, H, W) float32, which nobody else writes to.

        Raises:
            EngineError: The engine failed.
        """


class PixelNetwork(nn.Module):
    """A network from the camera's numbers (N, H, W, C) to probabilities (N, K, H, W) float32.

    Standardization and sigmoid are computed in float32 whatever the network computes in.

    Args:
        network: Maps standardized (N, C, H, W) to logits (N, K, H, W).
        preprocessing: Mean and deviation are its.
        dtype: What the network computes in.
        device: Where the network is.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities (N, K, H, W) float32 for pixels (N, H, W, C)."""
        # Seen as (N, C, H, W) the camera's layout is channels_last: nothing is transposed.
        standardized = (pixels.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        logits: Tensor = self.network(standardized.to(self._dtype))
        return logits.to(torch.float32).sigmoid()


class TorchEngine:
    """The network itself, in eager mode; on a GPU in half precision as captured CUDA graphs.

    A shape is captured when it comes twice in a row: a line's frames are, tiles and batches that
    happen once are not worth it.  On a GPU the reference computes in float32 as its name says, and
    not in TF32, which is torch's own default for convolutions there.

    Args:
        network: In eval mode, on the device, in the precision of the name; nothing of it is
            changed, since it may be one that is being trained.
        preprocessing: The model's.
        device: Where it runs.
        name: Says the precision.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        name: EngineName = REFERENCE_ENGINE,
    ) -> None:
        self.name = name
        self.device = device
        self._graph = PixelNetwork(network, preprocessing, TORCH_DTYPES[name], device)
        # The reference stays eager: it is what all else is compared with.
        self._captures = device.type == "cuda" and name != REFERENCE_ENGINE
        self._captured: OrderedDict[_Shape, CapturedForward] = OrderedDict()
        self._last_shape: _Shape | None = None

    @property
    def captured_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes (N, H, W, C) of pixels that are replayed, the one asked for longest ago first."""
        return tuple(shape for shape, _ in self._captured)

    @property
    def is_warm(self) -> bool:
        """Whether frames of the last one's size are answered as fast as they will ever be."""
        return not self._captures or self._last_shape in self._captured

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """See `Engine.probabilities`."""
        return self.probabilities_and_peaks(pixels)[0]

    @torch.inference_mode()
    def probabilities_and_peaks(
        self, pixels: Pixels
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return `Engine.probabilities`, and on a GPU the highest of each block as well.

        Returns:
            Probabilities, and (N, K, H // `BLOCK_PX`, W // `BLOCK_PX`) of whole blocks; None on a
            processor, where whoever wants them finds them as quickly.
        """
        # Torch warns of arrays that it must not write to, such as those of a decoded cache.
        batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        try:
            if self.device.type != "cuda":
                return self._graph(batch.to(self.device)).contiguous().numpy(), None
            with exact_convolutions(), torch.cuda.device(self.device):
                probabilities, peaks = self._on_gpu(batch)
        except RuntimeError as error:
            if self.name == REFERENCE_ENGINE:
                # There is none to fall back to; whoever trains or serves knows what this means.
                raise
            raise _failed(self.name, error) from error
        return probabilities.numpy(), peaks.numpy()

    def _on_gpu(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        if self._captures:
            shape = (tuple(batch.shape), batch.dtype)
            captured = self._captured_for(shape, batch)
            self._last_shape = shape
            if captured is not None:
                probabilities, peaks = captured(batch)
                return probabilities, peaks
        probabilities, peaks = to_host(self._forward(batch.to(self.device)))
        return probabilities, peaks

    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self._graph(pixels).contiguous()
        if min(probabilities.shape[-2:]) < BLOCK_PX:
            return probabilities, probabilities[:, :, :0, :0].contiguous()
        return probabilities, F.max_pool2d(probabilities, BLOCK_PX)

    def _captured_for(self, shape: _Shape, batch: Tensor) -> CapturedForward | None:
        """Return the recorded pass of a shape; None if this frame goes without."""
        captured = self._captured.get(shape)
        if captured is not None:
            self._captured.move_to_end(shape)
            return captured
        if shape != self._last_shape:
            return None
        try:
            captured = CapturedForward(self._forward, batch, self.device)
        except CaptureUnderWay:
            return None
        self._captured[shape] = captured
        while len(self._captured) > _CAPTURED_SHAPES:
            self._captured.popitem(last=False)
        return captured


class OnnxRuntimeEngine:
    """An exported ``model.onnx`` under ONNX Runtime, float32, on the processor.

    Raises:
        EngineError: The file can't be loaded, or ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        onnxruntime = optional_library("onnxruntime")
        self.name: EngineName = "onnxruntime-fp32"
        self.device = torch.device("cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would spin between frames, for cores that decode the next one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # The runtime's own exceptions share no base below Exception.
            raise unusable_file(path, error) from error

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """See `Engine.probabilities`."""
        inputs = {INPUT_NAME: np.ascontiguousarray(pixels)}
        try:
            (answer,) = self._session.run([OUTPUT_NAME], inputs)
        except Exception as error:
            raise _failed(self.name, error) from error
        array: NDArray[np.float32] = answer
        return array


class OpenVinoEngine:
    """An exported ``.xml`` with its ``.bin`` under OpenVINO, on the processor.

    Args:
        path: The ``.xml``, or a ``.onnx``.
        name: Decides the precision that is asked for: OpenVINO's own default is bfloat16 wherever
            the processor has it, which is no longer the network that was judged.

    Raises:
        EngineError: The files can't be loaded, or OpenVINO is not installed.
    """

    def __init__(self, path: Path, name: EngineName = "openvino-fp32") -> None:
        openvino = optional_library("openvino")
        self.name = name
        self.device = torch.device("cpu")
        self._tensor = openvino.Tensor
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if name == "openvino-fp32" else _bf16_if_native(),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            self._class_count = model.output(0).partial_shape[1].get_length()
            self._request: Any = core.compile_model(model, "CPU", config).create_infer_request()
        except RuntimeError as error:
            raise unusable_file(path, error) from error

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """See `Engine.probabilities`."""
        count, height, width, _ = pixels.shape
        # The engine writes into memory that is ours from the start: nothing is copied, and nothing
        # is overwritten by the next frame.
        answer = np.empty((count, self._class_count, height, width), np.float32)
        batch = np.require(pixels, requirements=["C", "W"])
        try:
            self._request.set_input_tensor(self._tensor(batch, shared_memory=True))
            self._request.set_output_tensor(self._tensor(answer, shared_memory=True))
            self._request.infer()
        except RuntimeError as error:
            raise _failed(self.name, error) from error
        return answer


def processor_has_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor instead of imitating it.

    Raises:
        EngineError: OpenVINO is not installed.
    """
    openvino = optional_library("openvino")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def processor_multiplies_bytes() -> bool:
    """Return whether sums of products of bytes have 32 bits on this processor; older ones have 16.

    On one that is not an x86 this says no, and nothing is lost but a bit of a weight's precision.
    """
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _bf16_if_native() -> str:
    return "bf16" if processor_has_bf16() else "f32"


def optional_library(name: str) -> Any:
    """Import what a GPU's engines do without, and a box that serves on one may lack.

    Raises:
        EngineError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(
            "library_missing",
            f"{name} is not installed",
            hint=f"pip install {name}, and prepare the model's engines again",
        ) from error


def unusable_file(path: Path, error: Exception) -> EngineError:
    """Return the error that an exported file can't be loaded."""
    return EngineError(
        "export_unusable",
        f"{path.name} can't be loaded: {str(error).strip().splitlines()[-1] if str(error) else ''}",
        file=path.name,
        hint="prepare the model's engines again",
    )


def _failed(name: EngineName, error: Exception) -> EngineError:
    return EngineError(
        "engine_failed",
        f"{name} failed at a frame: {error}",
        hint="look into the service's log; prepare the model's engines again",
    )
