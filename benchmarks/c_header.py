"""Binary size and time of both LeNets as C headers: dense, pruned, on 31 levels, and with Huffman codes.

    python benchmarks/c_header.py --json FILE

Weights are drawn, not trained: sizes depend on how many stay and where. Times are of the processor, the best
of 20 turns. Needs gcc and `size`.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

from prunekit.export import export_c
from prunekit.export.c_header import FLAGS
from prunekit.models import create

MAIN = """#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>
#include "net.h"
static float input[net_INPUTS], output[net_OUTPUTS];
int main(void) {
  struct timespec from, to;
  double best = 1e9;
  for (int i = 0; i < net_INPUTS; i++) input[i] = (float)(i % 7) / 7.0f;
  for (int turn = 0; turn < 20; turn++) {
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    for (int run = 0; run < 10; run++) net_forward(input, output);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    const double took = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    if (took < best) best = took;
  }
  printf("%g", best / 10);
  return 0;
}
"""


def sections(path):
    """Bytes of .text and .rodata, by `size -A`."""
    lines = subprocess.run(
        ["size", "-A", path], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = [line.split() for line in lines]
    return sum(int(words[1]) for words in found if words and words[0].startswith((".text", ".rodata")))


def measured(model, huffman):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        done = export_c(model, folder / "net.h", torch.randn(20, 1, 28, 28), name="net", huffman=huffman)
        (folder / "main.c").write_text(MAIN)
        (folder / "net.c").write_text('#include "net.h"\n')
        subprocess.run(["gcc", *FLAGS, "-c", "net.c", "-o", "net.o"], cwd=folder, check=True)
        subprocess.run(["gcc", *FLAGS, "main.c", "-o", "main", "-lm"], cwd=folder, check=True)
        took = subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout
        return {
            "text_rodata_bytes": sections(folder / "net.o"),
            "table_bytes": done.table_bytes,
            "buffer_bytes": done.buffer_bytes,
            "microseconds": round(1e6 * float(took), 1),
            "deviation": done.deviation,
            "forms": done.forms,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    rows = []
    options = parser.parse_args()
    for name, share in (("lenet_300_100", 0.08), ("lenet5", 0.05)):
        for kept, levels, huffman in (
            (1.0, None, False),
            (share, None, False),
            (share, 30, False),
            (share, 30, True),
        ):
            torch.manual_seed(0)
            model = create(name, (1, 28, 28), 10, seed=0)
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.dim() > 1:
                        weight.mul_(torch.rand_like(weight) < kept)
                        if levels:
                            step = 2 * weight.abs().max() / levels
                            weight.copy_((weight / step).round() * step)
            setting = {"model": name, "kept": kept, "levels": levels and levels + 1, "huffman": huffman}
            rows.append({**setting, **measured(model, huffman)})
            print({key: value for key, value in rows[-1].items() if key != "forms"}, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
