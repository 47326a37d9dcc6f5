"""Conversions without hardware are NumPy's, bit for bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from gossamer.compile.calls import KernelSource
from gossamer.core.dtype import round_to_bfloat16
from gossamer.runtime import jit
from gossamer.runtime.softfloat import SOFTFLOAT
from tests.runtime.kernels import python

EDGES = [0.0, 1.0, 65504.0, 65519.99, 65520.0, 65536.0, 1e300, 2.0**-14, 2.0**-24, 2.0**-25,
         2.0**-25 * (1 + 2**-20), 3 * 2.0**-25, 2.0**-26, 1e-300, 5e-324, 1 + 2.0**-11,
         1 + 3 * 2.0**-11, 2.0**-14 * (1 - 2.0**-11), 2.0**-14 * (1 - 2.0**-12), np.inf, np.nan,
         3.39e38, 3.4e38, 1e-40]


def values(rng: np.random.Generator) -> np.ndarray:
    """Edges, and random numbers of all magnitudes that float16 and bfloat16 tell apart."""
    spread = rng.standard_normal(20_000) * 2.0 ** rng.integers(-30, 20, 20_000)
    far = rng.standard_normal(5_000) * 2.0 ** rng.integers(-150, 130, 5_000)
    x = np.concatenate([np.array(EDGES), spread, far])
    return np.concatenate([x, -x])


def convert(name: str, x: np.ndarray) -> np.ndarray:
    """Bits that softfloat's function `name` makes of each element of `x`."""
    source = SOFTFLOAT[name]
    wide, narrow = {"d": "double", "s": "float"}[name[7]], "half" if "hf" in name else "bfloat"
    loop = KernelSource("convert", f"""define void @convert(ptr %out, ptr %in, i64 %n) #0 {{
entry:
  br label %body
body:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %p = getelementptr {wide}, ptr %in, i64 %i
  %x = load {wide}, ptr %p
  %y = call {narrow} @{name}({wide} %x)
  %q = getelementptr {narrow}, ptr %out, i64 %i
  store {narrow} %y, ptr %q
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %body, label %done
done:
  ret void
}}
{source.text}""")
    out = np.zeros(len(x), np.uint16)
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, ctypes.c_int64)(jit.addresses([loop])[0])(
        out.ctypes.data, x.ctypes.data, len(x))
    return out


@pytest.mark.parametrize(("name", "dtype"), [("__truncdfhf2", np.float64),
                                             ("__truncsfhf2", np.float32)])
def test_float16(name: str, dtype: type, rng: np.random.Generator) -> None:
    with np.errstate(all="ignore"):
        x = values(rng).astype(dtype)
        expected = x.astype(np.float16)
    found = convert(name, x).view(np.float16)
    assert (np.isnan(found) == np.isnan(expected)).all()
    same = found.view(np.uint16) == expected.view(np.uint16)
    assert same[~np.isnan(expected)].all(), x[~same & ~np.isnan(expected)][:5]


def test_bfloat16(rng: np.random.Generator) -> None:
    with np.errstate(all="ignore"):
        x = values(rng).astype(np.float32)
    expected = (round_to_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)
    numbers = ~np.isnan(x)
    assert (convert("__truncsfbf2", x)[numbers] == expected[numbers]).all()
    # From float64 there is one rounding: no detour through float32.
    near_a_tie = np.array([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40])
    assert convert("__truncdfbf2", near_a_tie).tolist() == [0x3F80, 0x3F81]
    wide = x.astype(np.float64)
    assert (convert("__truncdfbf2", wide)[numbers] == expected[numbers]).all()


WITHOUT_F16C = """
import ctypes
import numpy as np
from gossamer.compile.calls import KernelSource
from gossamer.runtime import device, jit
assert not device.host().has("f16c")
loop = KernelSource("k", '''define void @k(ptr %out, ptr %in, ptr %back) #0 {
entry:
  br label %body
body:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %p = getelementptr half, ptr %in, i64 %i
  %x = load half, ptr %p
  %y = fpext half %x to float
  %q = getelementptr float, ptr %out, i64 %i
  store float %y, ptr %q
  %z = fptrunc float %y to half
  %r = getelementptr half, ptr %back, i64 %i
  store half %z, ptr %r
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, 65536
  br i1 %more, label %body, label %done
done:
  ret void
}''')
x = np.arange(65536, dtype=np.uint16).view(np.float16)
out, back = np.zeros(65536, np.float32), np.zeros(65536, np.float16)
ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(jit.addresses([loop])[0])(
    out.ctypes.data, x.ctypes.data, back.ctypes.data)
good = ~np.isnan(x)
assert (out[good].view(np.uint32) == x[good].astype(np.float32).view(np.uint32)).all()
assert np.isnan(out[~good]).all() and np.isnan(back[~good]).all()
assert (back[good].view(np.uint16) == x[good].view(np.uint16)).all()
print("done")
"""


def test_kernels_find_them_when_the_processor_has_no_such_instruction() -> None:
    done = python(WITHOUT_F16C, GOSSAMER_CPU_FEATURES="-avx -f16c -avx512f")
    assert done.stdout.split() == ["done"], done.stderr
