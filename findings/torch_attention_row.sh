#!/usr/bin/env bash
# torch 2.13.0, CPU: scaled_dot_product_attention gives a row of a batch other last bits in another
# place of the batch, although all rows are equal; whether it does depends on the number of keys.
#
# Where: nothing in torch's page on reproducibility promises otherwise, and nothing warns. The kernel
#   is aten/src/ATen/native/cpu/FlashAttentionKernel.cpp: every thread has a slice of one scratch
#   buffer (scores, maximum, sum, output: for one query `keys + 2 + head size` floats), so where that
#   is no multiple of 4 floats the threads' slices are aligned differently. One thread: no difference.
# Why it matters: a sampled answer depends on which requests it was batched with, and greedy decoding
#   with equal weights can part at a near tie. Whoever compares two checkpoints on a CPU, or wants a
#   resumed run to have the same bits, must keep key lengths at 2 modulo 4 (head size a multiple of 4)
#   or use one thread.
# Seen (Linux x86-64, AMD EPYC, 2 threads):
#   torch 2.13.0, 8 equal rows, 4 heads of size 16, one query each
#   keys  rows that differ from row 0: 1 thread | 2 threads
#     61  []                                     | [4, 5, 6, 7]
#     62  []                                     | []
#     63  []                                     | [4, 5, 6, 7]
#     64  []                                     | [4, 5, 6, 7]
#     65  []                                     | [4, 5, 6, 7]
#     66  []                                     | []
#   largest difference 1.0e-07
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PY'
import torch

torch.manual_seed(0)
ROWS, HEADS, SIZE = 8, 4, 16
largest = 0.0


def equal_rows(length):
    return torch.randn(1, HEADS, length, SIZE).expand(ROWS, -1, -1, -1).contiguous()


def differing_rows(query, key, value, threads):
    global largest
    torch.set_num_threads(threads)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    largest = max(largest, (out - out[:1]).abs().max().item())
    return [row for row in range(ROWS) if not torch.equal(out[row], out[0])]


print(f"torch {torch.__version__.split('+')[0]}, {ROWS} equal rows, {HEADS} heads of size {SIZE}, one query each")
print("keys  rows that differ from row 0: 1 thread | 2 threads")
for keys in range(61, 67):
    inputs = equal_rows(1), equal_rows(keys), equal_rows(keys)
    one, two = differing_rows(*inputs, 1), differing_rows(*inputs, 2)
    print(f"  {keys}  {one!s:38} | {two}")
    assert one == [], f"changed: on one thread, {keys} keys, rows differ"
    if keys % 4 == 2:
        assert two == [], f"changed: with {keys} keys, 2 modulo 4, rows differ"
    else:
        assert two != [], f"changed: with {keys} keys equal rows have equal bits on two threads"
print(f"largest difference {largest:.1e}")
PY
