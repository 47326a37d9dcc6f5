"""Compiles loop kernels for the tests of the emitter and of vecmath.

`Loop` turns a rule over an `Emitter` into a native function over NumPy arrays, for the host's
features or a subset of them, without the runtime above `compile/`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import llvmlite.binding as llvm
import numpy as np

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.emitter import Emitter
from gossamer.core.dtype import DType

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

_HOST = llvm.get_host_cpu_features()


def features(level: str) -> str:
    """LLVM's feature list: `host`, or `avx2`: the host's without any AVX-512 and AMX."""
    names = {k: v and not (level == "avx2" and k.startswith(("avx512", "amx", "avx10", "evex")))
             for k, v in _HOST.items()}
    return ",".join(("+" if v else "-") + k for k, v in sorted(names.items()))


WIDEST = 16 if _HOST.get("avx512f") else 8  # lanes of float32 in the host's widest register


def builder(level: str) -> FunctionBuilder:
    """The function `k` of a loop kernel, for the features `level`."""
    return FunctionBuilder("void @k(ptr %args, i64 %n)",
                           avx512=level == "host" and bool(_HOST.get("avx512f")))


LEVELS = ["host"] + (["avx2"] if _HOST.get("avx512f") else [])

Rule = Callable[..., str]


class Loop:
    """`out[i] = rule(e, x0[i], x1[i], ...)` for i in [0, n), n a multiple of width.

    Args:
        rule: takes an Emitter of the first input's dtype and one value for each input.
        inputs: dtypes of the inputs.
        output: dtype of the result.
        width: lanes.
        level: see `features`.
    """

    def __init__(self, rule: Rule, inputs: Sequence[DType], output: DType, width: int,
                 level: str = "host") -> None:
        b = builder(level)
        e = Emitter(b, inputs[0], width)
        pointers = [b.load("ptr", b.gep("%args", str(i), "ptr")) for i in range(len(inputs) + 1)]
        with b.loop("0", "%n", max(width, 1)) as i:
            values = [e.of(d).load(b.gep(p, i, d.llvm))
                      for d, p in zip(inputs, pointers[:-1], strict=True)]
            e.of(output).store(rule(e, *values), b.gep(pointers[-1], i, output.llvm))
        self._compile(b, inputs, output, width, level)

    @classmethod
    def raw(cls, rule: Callable[[Emitter, str, str, str], None], dtype: DType, width: int,
            level: str, moving: bool = True) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """A function (x, out) -> out from a rule (e, pointer into x, i, pointer into out) that does
        its own loads and stores; the first pointer stays at x's start unless `moving`."""
        loop = cls.__new__(cls)
        b = builder(level)
        e = Emitter(b, dtype, width)
        x, y = (b.load("ptr", b.gep("%args", str(i), "ptr")) for i in range(2))
        with b.loop("0", "%n", max(width, 1)) as i:
            rule(e, b.gep(x, i, dtype.llvm) if moving else x, i, b.gep(y, i, dtype.llvm))
        loop._compile(b, [dtype], dtype, width, level)

        def call(source: np.ndarray, out: np.ndarray) -> np.ndarray:
            loop.bind(source, out)()
            return out

        return call

    def _compile(self, b: FunctionBuilder, inputs: Sequence[DType], output: DType, width: int,
                 level: str) -> None:
        self.inputs, self.output, self.width = inputs, output, max(width, 1)
        self.text = b.finish() + "\n".join(dict.fromkeys(b.declares.values()))
        self.text += f'\nattributes #0 = {{ nounwind "target-features"="{features(level)}" ' \
                     f'"prefer-vector-width"="512" }}\n'
        module = llvm.parse_assembly(self.text)
        module.verify()
        module.triple = llvm.get_process_triple()
        self.machine = llvm.Target.from_triple(module.triple).create_target_machine(
            features=features(level), opt=2, jit=True)
        module.data_layout = str(self.machine.target_data)
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        builder = llvm.create_pass_builder(self.machine, options)
        builder.getModulePassManager().run(module, builder)
        self.module = module
        self.engine = llvm.create_mcjit_compiler(module, self.machine)
        self.engine.finalize_object()
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(
            self.engine.get_function_address("k"))

    def assembly(self) -> str:
        return self.machine.emit_assembly(self.module)

    def bind(self, *arrays: np.ndarray) -> Callable[[], None]:
        """A call on fixed arrays (inputs, then the output), for timings."""
        words = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
        return lambda: self.call(words, arrays[-1].size)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Run on arrays in their storage type (uint16 for bfloat16); any length."""
        n = arrays[0].size
        padded = -(-n // self.width) * self.width
        full = []
        for a, d in zip(arrays, self.inputs, strict=True):
            p = np.ones(padded, d.storage)
            p[:n] = np.ravel(a).astype(d.storage, copy=False)
            full.append(p)
        out = np.empty(padded, self.output.storage)
        self.bind(*full, out)()
        return out[:n]
