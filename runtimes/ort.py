"""ONNX Runtime, on the CPU only."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import MissingDependencyError
from csr_deploy.runtimes.base import Runtime

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}
# Warnings about graphics cards that are not there are of no use to a CPU session.
_ERRORS_ONLY = 3


class OrtRuntime(Runtime):
    """Runs .onnx files with the CPU provider, operators one after another."""

    name = "ort"
    suffixes = (".onnx",)

    def _package(self) -> str:
        return "onnxruntime"

    def _import(self) -> None:
        # It reports its import before it can be told not to.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError("onnxruntime", "pi", "Running an .onnx file") from error
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
        onnxruntime.disable_telemetry_events()
        self._module: ModuleType = onnxruntime

    def _open(self) -> None:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        options = self._module.SessionOptions()
        options.intra_op_num_threads = self.options.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._module.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        try:
            session = self._module.InferenceSession(
                str(self.subject.model_file), sess_options=options, providers=[_PROVIDER]
            )
        except (
            state.Fail,
            state.InvalidArgument,
            state.InvalidGraph,
            state.InvalidProtobuf,
            state.NoSuchFile,
            state.NotImplemented,
            state.RuntimeException,
        ) as error:
            raise self._refused(str(error)) from error
        for spec, tensors in (
            (self.subject.input, session.get_inputs()),
            (self.subject.output, session.get_outputs()),
        ):
            tensor = next((t for t in tensors if t.name == spec.name), tensors[0])
            self._check_tensor(spec, tensor.shape, _DTYPES.get(tensor.type, tensor.type))
        self._session = session
        self._outputs = [self.subject.output.name]
        self._input = self.subject.input.name

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self._session.run(self._outputs, {self._input: inputs})[0])

    def _close(self) -> None:
        self._session = None
