"""ONNX Runtime, on the CPU only."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import MissingDependencyError
from csr_deploy.runtimes.base import OpTime, Runtime

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}
# Warnings about graphics cards that are not there are of no use to a CPU session.
_ERRORS_ONLY = 3
_KERNEL = "_kernel_time"


class OrtRuntime(Runtime):
    """Runs .onnx files with the CPU provider, operators one after another."""

    name = "ort"
    suffixes = (".onnx",)
    has_profiler = True

    def _package(self) -> str:
        return "onnxruntime"

    def _import(self) -> None:
        # It reports its import before it can be told not to.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError("onnxruntime", "pi", "Running an .onnx file", cause=error) from error
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
        onnxruntime.disable_telemetry_events()
        self._module: ModuleType = onnxruntime

    def _open(self) -> None:
        session = self._new_session(self._session_options())
        for spec, tensors in (
            (self.subject.input, session.get_inputs()),
            (self.subject.output, session.get_outputs()),
        ):
            tensor = next((t for t in tensors if t.name == spec.name), tensors[0])
            self._check_tensor(spec, tensor.shape, _DTYPES.get(tensor.type, tensor.type))
        self._session = session
        self._outputs = [self.subject.output.name]
        self._input = self.subject.input.name

    def _session_options(self) -> Any:
        options = self._module.SessionOptions()
        options.intra_op_num_threads = self.options.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._module.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        # As on arm64: elsewhere operations on int8 activations would be left to real numbers.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        return options

    def _new_session(self, options: Any) -> Any:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        try:
            return self._module.InferenceSession(
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

    def profile(self, inputs: Sequence[NDArray[Any]]) -> list[OpTime] | None:
        with tempfile.TemporaryDirectory(prefix="csr-ort-") as folder:
            options = self._session_options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._new_session(options)
            for batch in (inputs[0], *inputs):
                session.run(self._outputs, {self._input: batch})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        return _op_times(events, len(inputs))

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self._session.run(self._outputs, {self._input: inputs})[0])

    def _close(self) -> None:
        self._session = None


def _op_times(events: Sequence[Mapping[str, Any]], runs: int) -> list[OpTime]:
    """Means of a profile in Chrome's trace format, whose first inference is a warm-up.

    Durations are whole microseconds, cut off: an operator may take up to one more than is said.
    """
    durations: dict[tuple[str, str], list[int]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        key = str(event["args"]["op_name"]), name.removesuffix(_KERNEL)
        durations.setdefault(key, []).append(int(event["dur"]))
    # A node that runs several times an inference, in a loop say, counts with all of its times.
    return [
        OpTime(op, name, 1000 * sum(times[len(times) // (runs + 1) :]) / runs)
        for (op, name), times in durations.items()
    ]
