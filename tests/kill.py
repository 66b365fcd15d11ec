"""A study that is killed again and again ends like one undisturbed: ``python tests/kill.py --number 200 --seed 0``.

All stages of a study, on tiny models, in a process that SIGKILL ends: at a random moment, or at a random one of its
operations on files (as the next file is to be opened, renamed or removed), by turns. It is started again until it ends
by itself. Then everything that it leaves, timings apart, must have the bytes of an undisturbed run, without a temporary
file; and a further run must find everything done. Then a new folder is begun, until there were enough kills.
"""

import argparse
import contextlib
import functools
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import processes

TIMED = ("log.jsonl", "result.json", "state.json", ".state")  # files that say how long things took
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def study(at: Path, folder: Path, small: bool, note: Path | None = None, deadly: int | None = None) -> None:
    """Every stage. ``note`` gets the number of operations on files; the one of number ``deadly`` does not happen."""
    import torch

    from sr4g_utils.dataset import prompt_sets, prompts, world
    from sr4g_utils.dataset import triplets as dataset_triplets
    from sr4g_utils.evaluation import detect, generate, quality, tables, verdicts
    from sr4g_utils.evaluation import scores as evaluation_scores
    from sr4g_utils.evaluation.detections import read_detections
    from sr4g_utils.finetuning import latents
    from sr4g_utils.finetuning.stage import finetune
    from sr4g_utils.store.run import Run

    torch.set_num_threads(1)
    detect.GROUP, latents.SHARD, done = 4, 16, [0]

    def count(event: str, _: object) -> None:
        if event in OPERATIONS:
            done[0] += 1
            if done[0] == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    run = Run(folder, "kill")
    table = run.stage("world/train.json", world.write_annotations, split="train", images=30 if small else 60)[0]
    photos = run.stage("world/train", world.write_photos, {"annotations": table}, split="train")[0]
    triplets = run.stage("triplets.parquet", dataset_triplets.build, {"annotations": table}, split="train")[0]
    options = {"held_out": [], "seed": 0, "test_per_relation": 3, "validation_per_relation": 2}
    every = run.stage("prompts.parquet", prompts.write_study_prompts, {"triplets": triplets}, **options)[0]
    asked = run.stage("asked.parquet", prompts.write_test_prompts, {"prompts": every}, per_relation=1, seed=0)[0]
    sampling = {"images": 1, "steps": 1, "batch": 4, "group": 4}
    source, detector = {"model": str(at / "sd")}, {"detector": str(at / "owlvit")}
    if not small:
        choices = {"steps": 6, "batch": 4, "warmup": 2, "ema": 0.5, "precision": "float32", "checkpoint_every": 2}
        choices |= {"validate_every": 3, "validation_prompts": 14, "sampling": sampling, "log_every": 1}
        files = {"annotations": table, "photos": photos, "prompts": every}
        tuned = run.stage("finetune", finetune, files, heavy=True, **source, **detector, **choices)[0]
        source["unet"] = str(tuned / "last")
    source["sampling"] = sampling
    images = run.stage("images/a", generate.write_images, {"prompts": asked}, heavy=True, **source)[0]
    given = {"images": images, "prompts": asked}
    boxes = run.stage("boxes/a.parquet", detect.write_detections, given, heavy=True, **detector)[0]
    real = {"annotations": table, "photos": photos}
    run.stage("ceiling", detect.ceiling, real, split="train", n_per_relation=1, **detector)
    run.stage("features", quality.write_image_features, given, space=detector)
    assert run.stage("verdicts.parquet", tables.write_verdicts, {**given, "detections": boxes})[0].is_file()
    scores = evaluation_scores.scores(verdicts.verdicts(prompt_sets.read_prompts(asked), read_detections(boxes), 1))
    run.table(run.result(scores, "scores", seed=0), "scores", "Scores")
    if note:
        note.write_text(str(done[0]))


def left(folder: Path) -> dict[str, bytes]:
    """What a study leaves, timings apart."""
    return {name: content for name, content in processes.tree(folder, *TIMED).items() if not name.endswith(".lock")}


def kill_until_done(at: Path, folder: Path, small: bool, took: tuple[float, int], rng: random.Random) -> int:
    """How often the study was killed before it ended by itself.

    Raises:
        RuntimeError: it failed.
    """
    for kills in range(10_000):
        by_time = rng.random() < 0.5
        deadly = None if by_time else rng.randint(1, took[1])
        log = folder.with_suffix(".log")
        process = processes.fork(functools.partial(study, at, folder, small, deadly=deadly), log)
        if by_time:
            time.sleep(rng.uniform(0, took[0]))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if (status := processes.wait(process)) == 0:
            return kills
        if status != -signal.SIGKILL:
            raise RuntimeError(f"after {kills} kills the study fails:\n{log.read_text()[-2000:]}")
    raise RuntimeError("the study does not come to its end")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200, help="kills, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="without fine-tuning")
    args = parser.parse_args(argv)
    processes.prepare("evaluation.detect", "evaluation.generate", "evaluation.quality", "finetuning.stage")
    rng, kills, rounds = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        run = functools.partial(processes.fork, log=at / "log")
        for work in (lambda: processes.models(at), lambda: study(at, at / "whole", args.small, at / "n")):
            began = time.monotonic()
            if processes.wait(run(work)):
                raise RuntimeError((at / "log").read_text())
        took, whole = (time.monotonic() - began, int((at / "n").read_text())), left(at / "whole")
        while kills < args.number:
            folder = at / f"{rounds}"
            kills += kill_until_done(at, folder, args.small, took, rng)
            found = left(folder)
            if odd := sorted(name for name in {*whole, *found} if whole.get(name) != found.get(name)):
                print(f"after {kills} kills, in round {rounds}: other bytes than undisturbed in {', '.join(odd)}")
                return 1
            before = {path: path.stat().st_mtime_ns for path in (folder / "artifacts").rglob("*") if path.is_file()}
            processes.wait(run(functools.partial(study, at, folder, args.small)))
            again = [str(path) for path, changed in before.items() if path.stat().st_mtime_ns != changed]
            if again := [name for name in again if "/results/" not in name]:
                print(f"after {kills} kills, in round {rounds}: made again though done: {', '.join(again)}")
                return 1
            rounds += 1
            print(f"{kills} kills, {rounds} studies: the same bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
