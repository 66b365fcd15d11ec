"""Sixteen processes at once on one folder leave the bytes of one: ``python tests/together.py --times 40``.

Each time, sixteen shards, or sixteen processes without shards in every second round, start at the same moment to draw
images into a new folder, and then to find boxes in them. None may fail, none may leave a temporary file behind, and the
files must be those of a process that was alone.
"""

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path

import processes


def models_and_prompts(at: Path) -> None:
    from pretend import neighbours

    processes.models(at)
    neighbours(8).to_parquet(at / "prompts.parquet")


def work(at: Path, folder: Path, part: str, start: float, shard: int, shards: int) -> None:
    """Images, or the boxes in them, from a common moment on."""
    import torch

    from sr4g_utils.evaluation import detect, generate

    torch.set_num_threads(1)
    detect.GROUP = 2
    sampling = {"images": 2, "steps": 1, "batch": 4, "group": 1}
    images, boxes, share = folder / "images", folder / "boxes.parquet", {"shard": shard, "shards": shards}
    time.sleep(max(start - time.time(), 0))
    if part == "images":
        generate.write_images(images, at / "prompts.parquet", model=at / "sd", sampling=sampling, **share)
    else:
        detect.write_detections(boxes, images, detector=at / "owlvit", floor=0.0, **share)


def together(at: Path, folder: Path, number: int, shards: int) -> list[str]:
    """What went wrong when some processes did all at once; nothing, if all is well."""
    wrong = []
    folder.mkdir(parents=True)
    for part in ("images", "boxes"):
        start = time.time() + 0.3
        shard = [n if shards > 1 else 0 for n in range(number)]
        works = [functools.partial(work, at, folder, part, start, n, shards) for n in shard]
        each = [processes.fork(own, folder / f"{n}.log") for n, own in enumerate(works)]
        for n, process in enumerate(each):
            if status := processes.wait(process):
                last = (folder / f"{n}.log").read_text().strip().splitlines()[-1:]
                wrong.append(f"process {n} of {part} ended with {status}: {''.join(last)}")
    for log in folder.glob("*.log"):
        log.unlink()
    return wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--processes", type=int, default=16)
    args = parser.parse_args(argv)
    processes.prepare("evaluation.detect", "evaluation.generate", "models.diffusion")
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        if processes.wait(processes.fork(functools.partial(models_and_prompts, at), at / "log")):
            raise RuntimeError((at / "log").read_text())
        wrong = together(at, at / "alone", 1, 1)
        alone = processes.tree(at / "alone")
        for time_ in range(args.times):
            folder = at / f"{time_}"
            wrong += together(at, folder, args.processes, args.processes if time_ % 2 == 0 else 1)
            found = processes.tree(folder)
            odd = sorted(name for name in {*alone, *found} if alone.get(name) != found.get(name))
            wrong += [f"{name} differs from that of one alone" for name in odd]
            for line in wrong:
                print(f"time {time_}: {line}", flush=True)
            failures, wrong = failures + bool(wrong), []
    print(f"{args.processes} processes at once, {args.times} times: {failures} times something went wrong")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
