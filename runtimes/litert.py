"""LiteRT, or the TensorFlow Lite interpreter of older devices."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import MissingDependencyError, OptionError
from csr_deploy.runtimes.base import Runtime

# Import name → distribution, the first that is installed is used.
_PACKAGES = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}


class LitertRuntime(Runtime):
    """Runs .tflite files: optimized kernels with XNNPACK, or the reference kernels."""

    name = "litert"
    suffixes = (".tflite",)
    available_kernels = ("optimized", "reference")

    def _found(self) -> str:
        for module in _PACKAGES:
            if importlib.util.find_spec(module) is not None:
                return module
        raise MissingDependencyError("ai-edge-litert", "pi", "Running a .tflite file")

    def _package(self) -> str:
        return _PACKAGES[self._found()]

    def _import(self) -> None:
        found = self._found()
        try:
            self._module: ModuleType = importlib.import_module(f"{found}.interpreter")
        except ImportError as error:
            raise MissingDependencyError(
                _PACKAGES[found], "pi", "Running a .tflite file", cause=error
            ) from error

    def _open(self) -> None:
        options: dict[str, Any] = {"num_threads": self.options.threads}
        if self.kernels == "reference":
            resolvers = getattr(self._module, "OpResolverType", None)
            if resolvers is None:
                raise OptionError(
                    f"{self.version} has no reference kernels",
                    fix="Install ai-edge-litert, or tflite-runtime 2.8.",
                )
            options["experimental_op_resolver_type"] = resolvers.BUILTIN_REF
        try:
            interpreter = self._module.Interpreter(model_path=str(self.subject.model_file), **options)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise self._refused(str(error)) from error
        (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
        for spec, tensor in ((self.subject.input, source), (self.subject.output, result)):
            self._check_tensor(spec, [int(n) for n in tensor["shape"]], np.dtype(tensor["dtype"]))
        self._interpreter = interpreter
        self._input, self._output = int(source["index"]), int(result["index"])

    def _run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self._interpreter.set_tensor(self._input, inputs)
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._output))

    def _close(self) -> None:
        self._interpreter = None
