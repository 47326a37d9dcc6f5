"""Small kernels, written by hand, for the tests of the runtime; and how to start a fresh Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gossamer.compile.calls import KernelSource

ROOT = Path(__file__).resolve().parents[2]


def kernel(body: str, declares: str = "", symbol: str = "k") -> KernelSource:
    """A kernel that runs `body` for every i in [lo, hi); %w0 .. %w3 are its first four words."""
    words = "".join(f"  %q{j} = getelementptr i64, ptr %args, i64 {j}\n"
                    f"  %w{j} = load i64, ptr %q{j}\n" for j in range(4))
    signature = f"void @{symbol}(ptr %args, i64 %lo, i64 %hi, i64 %tid)"
    return KernelSource(symbol, f"""define {signature} #0 {{
entry:
{words}  br label %head
head:
  %i = phi i64 [ %lo, %entry ], [ %next, %tail ]
  %more = icmp slt i64 %i, %hi
  br i1 %more, label %body, label %done
body:
{body}
  br label %tail
tail:
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}}
{declares}
""")


# out[i] = a[i] + b[i], i64; words: out, a, b (and one unused)
ADD = kernel("""  %po = inttoptr i64 %w0 to ptr
  %pa = inttoptr i64 %w1 to ptr
  %pb = inttoptr i64 %w2 to ptr
  %oi = getelementptr i64, ptr %po, i64 %i
  %ai = getelementptr i64, ptr %pa, i64 %i
  %bi = getelementptr i64, ptr %pb, i64 %i
  %a = load i64, ptr %ai
  %b = load i64, ptr %bi
  %s = add i64 %a, %b
  store i64 %s, ptr %oi""")

# out[i] = value; words: out, value
FILL = kernel("""  %po = inttoptr i64 %w0 to ptr
  %oi = getelementptr i64, ptr %po, i64 %i
  store i64 %w1, ptr %oi""")

# out[i] = 3 i + 1, slowly enough that several workers take part; counts[tid] += 1
# words: out, counts (one cache line per worker), turns of a delay loop
SLOW = kernel("""  %po = inttoptr i64 %w0 to ptr
  %pc = inttoptr i64 %w1 to ptr
  %line = mul i64 %tid, 8
  %ci = getelementptr i64, ptr %pc, i64 %line
  %c = load i64, ptr %ci
  %c1 = add i64 %c, 1
  store i64 %c1, ptr %ci
  br label %spin
spin:
  %j = phi i64 [ 0, %body ], [ %j1, %spin ]
  %v = load volatile i64, ptr %ci
  %j1 = add i64 %j, 1
  %again = icmp slt i64 %j1, %w2
  br i1 %again, label %spin, label %write
write:
  %t = mul i64 %i, 3
  %t1 = add i64 %t, 1
  %oi = getelementptr i64, ptr %po, i64 %i
  store i64 %t1, ptr %oi""")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter with our package and the given variables."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src") + os.pathsep + str(ROOT),
                **environment}
    # Python 3.12 warns of any fork of a process with threads; ours are made for it.
    flags = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True,
                          env=settings, timeout=120, check=False)
