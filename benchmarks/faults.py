"""Faults on purpose: after each, does the same command reach the same metrics, or refuse with a remedy that works?

    python -m benchmarks.faults --folder=DIR

Runs of 30 steps, with validation and a checkpoint at every step, on digits. They are killed with -9 at moments spread
over a start, its compilations and its steps, and before each change that a save makes on the disk; asked to end by
SIGTERM; given a disk that fills and is then enlarged (for root: it is a tmpfs); started twice at once; and files of
theirs are garbled, cut and removed. A killed run is started again until it is done, so that one takes many faults.

One line a fault goes to DIR/faults.jsonl; the same command goes on after the last of them, and prints the counts.
Each run is a fork of a process that has imported everything, which is most of the time of a start.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import tyro

from benchmarks.killable_runs import OPTIONS, Run, Runs, metrics


@dataclasses.dataclass(frozen=True)
class Options:
    """How many faults of each kind."""

    folder: pathlib.Path
    """Where runs and results go."""
    steps: int = 30
    """Of a run."""
    kills: int = 150
    """At moments of the clock."""
    kills_in_saves: int = 50
    """Before the n-th change on the disk."""
    sigterms: int = 20
    """Requests to end."""
    fills: int = 10
    """Disks that fill."""
    damages: int = 50
    """Files garbled, cut or removed."""
    pairs: int = 3
    """Two starts at once."""
    kills_in_compilation: int = 0
    """While programs are compiled and kept; each takes a compilation from nothing."""
    damaged_programs: int = 0
    """Compiled programs cut or garbled, a tenth of all at a time."""
    val_archs: int = 1
    """Architectures that validate each checkpoint."""
    seed: int = 0
    """Of moments and places."""
    networks: Literal["published", "small", "made_up"] = "published"
    """What runs train: networks as published, small ones, or none, which costs least and is all that saves need."""


# -- faults: each yields lines (kind, detail, outcome), outcome "same", "refused" or what went wrong ----------------

Line = tuple[str, str, str]


@dataclasses.dataclass
class Bench:
    """What every fault needs."""

    runs: Runs
    folder: pathlib.Path
    random: random.Random
    expected: list[dict[str, Any]]
    seconds: float

    def finish(self, workdir: pathlib.Path, *more: str) -> str:
        """Starts the same command until the end; the outcome."""
        run = self.runs.start(workdir, *more)
        code = run.end()
        if "Traceback" in run.printed():
            return f"traceback: {run.printed()[-300:]}"
        if code:
            return f"exit code {code}: {run.printed()[-300:]}"
        return "same" if metrics(workdir) == self.expected else "other metrics"

    def interrupted(
        self,
        name: str,
        count: int,
        start: Callable[[pathlib.Path], tuple[Run, str]],
        codes: tuple[int, ...] = (-signal.SIGKILL,),
        more: tuple[str, ...] = (),
    ) -> Iterator[Line]:
        """Interrupts runs by `start`, which must end with one of `codes`, each again and again until it is done."""
        done = number = 0
        while done < count:
            workdir = self.folder / f"{name}{number}"
            shutil.rmtree(workdir, ignore_errors=True)
            number += 1
            details = []
            outcome = "same"
            while done < count and outcome == "same":
                run, detail = start(workdir)
                ended = run.end()
                if "Traceback" in run.printed():
                    outcome = f"traceback: {run.printed()[-300:]}"
                elif ended in codes:
                    details.append(detail)
                    done += 1
                elif ended == 0:
                    break
                else:
                    outcome = f"exit code {ended}: {run.printed()[-300:]}"
            outcome = self.finish(workdir, *more) if outcome == "same" else outcome
            done += outcome != "same"
            for detail in details or ["none"] * (outcome != "same"):
                yield name, detail, outcome
            if outcome == "same":
                shutil.rmtree(workdir)

    def kills(self, count: int) -> Iterator[Line]:
        """-9 after a time, most often within a start and the first steps after it."""

        def start(workdir: pathlib.Path) -> tuple[Run, str]:
            moment = self.random.uniform(0, self.seconds / 6)
            run = self.runs.start(workdir)
            time.sleep(moment)
            run.signal(signal.SIGKILL)
            return run, f"{moment:.2f} s"

        return self.interrupted("kill", count, start)

    def kills_in_saves(self, count: int) -> Iterator[Line]:
        """-9 before a change on the disk."""

        def start(workdir: pathlib.Path) -> tuple[Run, str]:
            change = self.random.randint(1, 120)
            return self.runs.start(workdir, kill_at=change), f"change {change}"

        return self.interrupted("kill in save", count, start)

    def kills_in_compilation(self, count: int) -> Iterator[Line]:
        """-9 while programs are compiled; what was kept of them so far is there at the next start."""
        shutil.rmtree(self.folder / "programs", ignore_errors=True)
        cache = f"--compilation_cache={self.folder / 'programs'}"

        def start(workdir: pathlib.Path) -> tuple[Run, str]:
            moment = self.random.uniform(0, self.seconds)
            run = self.runs.start(workdir, cache)
            time.sleep(moment)
            run.signal(signal.SIGKILL)
            return run, f"{moment:.2f} s, {len(list((self.folder / 'programs').glob('*-cache')))} programs"

        return self.interrupted("kill in compilation", count, start, more=(cache,))

    def damaged_programs(self, count: int) -> Iterator[Line]:
        """A tenth of all compiled programs is damaged: they are compiled again, once."""
        programs = self.folder / "programs"
        cache = f"--compilation_cache={programs}"
        if not programs.exists():
            self.finish(self.folder / "compiles", cache)
        for _ in range(count):
            workdir = self.folder / "recompiles"
            files = self.random.sample(found := sorted(programs.glob("*-cache")), len(found) // 10 + 1)
            for path in files:
                damage(path, self.random)
            shutil.rmtree(workdir, ignore_errors=True)
            outcome = self.finish(workdir, cache)
            again = self.runs.start(workdir, cache)
            replaced = again.end() == 0 and "damaged" not in again.printed()
            replaced &= all(path.exists() for path in files)
            yield (
                "damaged programs",
                f"{len(files)} of {len(found)}",
                outcome if replaced else "not replaced",
            )

    def sigterms(self, count: int) -> Iterator[Line]:
        """SIGTERM: the step is saved, so no step is taken twice."""

        def start(workdir: pathlib.Path) -> tuple[Run, str]:
            run = self.runs.start(workdir)
            time.sleep(self.random.uniform(0, self.seconds / 6))
            run.signal(signal.SIGTERM)
            run.process.join()
            line = next(
                (line for line in run.printed().splitlines() if "saved after" in line), "at the start"
            )
            if run.process.exitcode == 143 and "saved after" in line:
                step = int(line.split("step ")[1].split(";")[0])
                assert metrics(workdir)[-1]["step"] == step, line
                assert (workdir / "checkpoints" / str(step)).is_dir(), line
            return run, line

        codes = (143, -signal.SIGTERM)  # which ends a process that has not come to the command yet
        return self.interrupted("SIGTERM", count, start, codes)

    def fills(self, count: int) -> Iterator[Line]:
        """A disk that is full at some size is an error, and enlarged it is none."""
        if os.geteuid() != 0:
            yield "full disk", "only root can mount one", "left out"
            return
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        reference = self.folder / "reference"
        needed = sum(path.stat().st_size + 8192 for path in reference.rglob("*"))  # in whole pages
        for _ in range(count):
            size = self.random.randint(64, needed // 1024)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
            subprocess.run(mount, check=True)
            try:
                run = self.runs.start(disk / "run")
                code = run.end()
                outcome = "same"
                if code not in (0, 2) or "Traceback" in run.printed():
                    outcome = f"exit code {code}: {run.printed()[-300:]}"
                else:
                    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
                    outcome = self.finish(disk / "run")
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            yield "full disk", f"{size} KiB, exit code {code}", outcome

    def damages(self, count: int) -> Iterator[Line]:
        """A file of a run that is not done is garbled, cut or removed."""
        begun = self.folder / "begun"
        if not begun.exists():
            self.runs.start(begun, f"--steps={max(line['step'] for line in self.expected) * 4 // 5}").end()
        files = sorted(path.relative_to(begun) for path in begun.rglob("*") if path.is_file())
        for number in range(count):
            workdir = self.folder / "damaged"
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.copytree(begun, workdir)
            path = workdir / files[number % len(files)]
            how = damage(path, self.random)
            run = self.runs.start(workdir)
            code = run.end()
            if code == 2 and "move it away" in run.printed():
                (workdir / "metrics.jsonl").unlink()
                run = self.runs.start(workdir)
                code = run.end()
                rest = metrics(workdir) if code == 0 else []
                outcome = "refused" if rest and rest == self.expected[-len(rest) :] else "the remedy fails"
            elif code or "Traceback" in run.printed():
                outcome = f"exit code {code}: {run.printed()[-300:]}"
            else:
                got = metrics(workdir)
                whole = got == self.expected or (path.name == "metrics.jsonl" and how == "removed")
                outcome = "same" if whole and got == self.expected[-len(got) :] else "other metrics"
            yield "damaged file", f"{path.relative_to(workdir)} {how}", outcome

    def pairs(self, count: int) -> Iterator[Line]:
        """Two starts in the same directory at once: one is refused, and the other one as ever."""
        for _ in range(count):
            workdir, other = self.folder / "pair", self.folder / "pair-other"
            shutil.rmtree(workdir, ignore_errors=True)
            first = self.runs.start(workdir)
            second = self.runs.start(workdir)
            codes = sorted((first.end(), second.end()))
            same = codes == [0, 2] and metrics(workdir) == self.expected
            yield "two at once", f"exit codes {codes}", "same" if same else "other metrics"
            shutil.rmtree(other, ignore_errors=True)


def damage(path: pathlib.Path, source: random.Random) -> str:
    """Garbles, cuts or removes a file; says which."""
    data = bytearray(path.read_bytes())
    how = source.choice(("garbled", "cut", "removed")) if data else "removed"
    place = source.randrange(len(data)) if data else 0
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:place])
    else:
        data[place] ^= 1 << source.randrange(8)
        path.write_bytes(data)
    return how


def inject(options: Options, runs: Runs) -> collections.Counter[tuple[str, str]]:
    """All faults that are not in the file of results yet; the counts of (kind, outcome) in the end."""
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    shutil.rmtree(folder / "reference", ignore_errors=True)
    assert runs.start(folder / "reference").end() == 0, (folder / "reference.log").read_text()
    bench = Bench(
        runs,
        folder,
        random.Random(options.seed),
        metrics(folder / "reference"),
        time.monotonic() - begun,
    )
    results = folder / "faults.jsonl"
    before = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    counts = collections.Counter((line["kind"], line["outcome"]) for line in before)
    kinds = {
        "kill": (bench.kills, options.kills),
        "kill in save": (bench.kills_in_saves, options.kills_in_saves),
        "SIGTERM": (bench.sigterms, options.sigterms),
        "full disk": (bench.fills, options.fills),
        "damaged file": (bench.damages, options.damages),
        "two at once": (bench.pairs, options.pairs),
        "kill in compilation": (bench.kills_in_compilation, options.kills_in_compilation),
        "damaged programs": (bench.damaged_programs, options.damaged_programs),
    }
    with results.open("a") as file:
        for name, (fault, count) in kinds.items():
            missing = count - sum(n for (kind, _), n in counts.items() if kind == name)
            bench.random = random.Random(f"{options.seed} {name} {missing}")
            for kind, detail, outcome in fault(missing) if missing > 0 else ():
                counts[kind, outcome] += 1
                file.write(json.dumps({"kind": kind, "detail": detail, "outcome": outcome}) + "\n")
                file.flush()
                print(f"{kind:>19}  {outcome:<10}  {detail}", flush=True)
    return counts


def main(options: Options) -> None:
    """Injects the faults and prints the counts."""
    runs = Runs((*OPTIONS, f"--steps={options.steps}", f"--val_archs={options.val_archs}"), options.networks)
    for (kind, outcome), number in sorted(inject(options, runs).items()):
        print(f"{kind}: {outcome} {number}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,)))
