"""Kills train.py at random moments, fills its disk, takes away its right to write: does --resume end with the same bits?

    python tests/crash_hunt.py --kills 50 --seed 0               # about 25 minutes on 2 cores
    python tests/crash_hunt.py --kills 5 --two 0 --disk 2        # the short form, see tests/test_crash.py

A short run of the embedded prover is the reference. Then the same run is killed (SIGKILL: all its processes, or train.py
alone, whose Lean has to go too) at moments drawn from the seed, now and again twice or three times in a row, resumed, and
compared file by file: weights, AdamW's moments, every JSONL but for times. `--two` kills are of runs of two processes
(torchrun). `--disk` runs have a disk that is full somewhere on the way, must say so in one sentence, and go on once
there is room; then come the read-only folder and the other stages. Exit code 1 at the first difference.
"""

import argparse
import contextlib
import fcntl
import glob
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RUN = (
    "--out run --eval-problems ../val.jsonl --steps 6 --save-every 2 --problems-per-step 4 --num-samples 8 --train-batch 24 --minibatch 16 "
    "--ppo-epochs 2 --unlikeliness 0.25 --kl 0.1 --eval-samples 2 --eval-every 3 --max-new-tokens 80 --workers 2"
).split()
STEPS = 6
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MOUNTS = "CRASH_HUNT_MOUNTS"  # set where this process has mounts of its own
STAGES = [
    "start",
    "sampling",
    "verifying",
    "advantages",
    "update",
    "between steps",
    "checkpoint",
    "evaluation",
    "figures",
]
KINDS = [
    "time",
    "start",
    "sampling",
    "verifying",
    "advantages",
    "update",
    "metrics",
    "evaluation",
    "checkpoint",
    "optimizer",
    "trainer.pt",
    "replace",
    "clean-up",
    "figures",
    "operation",
]


# ---- inside the process that is to fail: MOMENT says when ----


def inside(words, moment):
    """Runs a stage, as the command does. At the count-th change in the run folder that fits the pattern, just before it is made, it stops and says so
    by a file (the parent then kills it), or the disk is full; with a limit, files cannot grow longer."""
    seen = 0

    def hook(event, details):
        nonlocal seen
        if event not in (
            "open",
            "os.rename",
            "os.remove",
            "os.rmdir",
            "os.mkdir",
            "os.truncate",
        ) or not isinstance(details[0], (str, os.PathLike)):
            return
        if event == "open" and not (details[2] or 0) & WRITES:
            return
        path = os.fspath(details[0])
        if (
            event in ("os.remove", "os.rmdir", "os.mkdir") and details[-1] >= 0
        ):  # the name within an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{details[-1]}"), path)
        path = os.path.relpath(path)
        if path.startswith("run/") and re.search(moment["pattern"], f"{event} {path}"):
            seen += 1
            if seen == moment["count"] and "marker" in moment:
                open(moment["marker"], "w").close()
                os.kill(os.getpid(), signal.SIGSTOP)
            if seen >= moment["count"] and "full" in moment:
                raise OSError(28, "No space left on device", path)
            if "log" in moment:
                with open(moment["log"], "a") as file:
                    file.write(f"{event} {path}\n")

    if "limit" in moment:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (moment["limit"], resource.RLIM_INFINITY)
        )  # Python ignores SIGXFSZ
    if "pattern" in moment and os.environ.get("RANK", "0") == "0":
        sys.addaudithook(hook)
    sys.argv, sys.path[0] = words, ROOT
    runpy.run_path(words[0], run_name="__main__")


# ---- start, kill, compare ----


class Fork:
    """A stage in a fork of this process, which has imported torch and all else already: that saves half of a short run's time."""

    def __init__(self, place, env, words, moment):
        self.returncode, (self.said, said) = None, os.pipe()
        fcntl.fcntl(said, 1031, 1 << 20)  # F_SETPIPE_SZ: nobody reads before the end
        self.pid = os.fork()
        if self.pid:
            return os.close(said)
        code = 1
        try:
            os.setsid()
            os.chdir(place)
            for number, there in enumerate((os.open(os.devnull, os.O_RDONLY), said, said)):
                os.dup2(there, number)
            os.closerange(3, 1000)
            os.environ.update(env)
            tempfile.tempdir = None
            inside(words, moment)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                threading._shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def poll(self, how=os.WNOHANG):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def communicate(self, timeout=0):
        deadline = time.time() + timeout
        while self.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        os.set_blocking(self.said, False)
        with open(self.said, encoding="utf-8", errors="replace") as file:
            return file.read() or "", None


def start(place, words, moment=None, count=1, fork=True):
    """A stage as a process whose working folder is `place` and whose TMPDIR is place.tmp."""
    os.makedirs(f"{place}.tmp", exist_ok=True)
    env = dict(os.environ, OMP_NUM_THREADS="1", TMPDIR=f"{place}.tmp")
    words = [os.path.join(ROOT, words[0]), *words[1:]]
    if count == 1 and fork:
        return Fork(place, env, words, moment or {})
    if moment:
        env["MOMENT"], words = json.dumps(moment), [os.path.abspath(__file__), *words]
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    )
    return subprocess.Popen(
        [sys.executable, *launcher, *words],
        cwd=place,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def finish(*arguments, **keys):
    """(exit code, what it said) of a stage run to its end."""
    process = start(*arguments, **keys)
    try:
        said = process.communicate(timeout=600)[0]
        return process.returncode, said
    finally:
        kill([process.pid, *below(process.pid)])


def preload():
    """Imports what the stages do, starting no thread."""
    sys.path[0] = ROOT
    os.environ["OMP_NUM_THREADS"] = "1"
    import matplotlib
    import transformers.models.llama.modeling_llama  # noqa: F401

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: F401

    import train  # noqa: F401


def below(pid):
    """The process's children, theirs and so on."""
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            with open(path) as file:
                found += [int(child) for child in file.read().split()]
    return found + [one for child in found for one in below(child)]


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def changed(path, since):
    """Whether the file or folder is there and was changed after the moment `since` (time_ns)."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns >= since
    return False


def stage(run, since):
    """Where a run that was started at `since` stands, by what it changed last."""
    stamps = {}
    for folder, _, names in os.walk(run):
        for path in [*(os.path.join(folder, name) for name in names), *([folder] if folder != run else [])]:
            with contextlib.suppress(OSError):
                stamps[os.path.relpath(path, run)] = os.stat(path).st_mtime_ns
    new = {path: stamp for path, stamp in stamps.items() if stamp >= since}
    if set(new) <= {"args.json", "metrics.jsonl", "args.json.part", "metrics.jsonl.part"}:
        return "start"
    last = max(new, key=new.get)
    if last.startswith("step_"):
        folder = last[:10]
        if f"{folder}/advantages.jsonl" in new:
            return "update"
        return (
            "advantages"
            if f"{folder}/verified.jsonl" in stamps
            else "verifying"
            if f"{folder}/samples.jsonl" in stamps
            else "sampling"
        )
    return {"ev": "evaluation", "ch": "checkpoint", "fi": "figures"}.get(last[:2], "between steps")


def draw(rng, kind, done, whole, place):
    """A moment of that kind, as what kill_at waits for; done: steps that a checkpoint has; whole: how the reference run went."""
    left, soon = max(1, STEPS - done), rng.uniform(0, 0.12)
    step = rng.randrange(STEPS - left, STEPS)
    stop = {"marker": f"{place}.here", "count": 1}
    waits = {
        "time": {"appears": "args.json", "delay": rng.uniform(0, whole["seconds"] * left / STEPS)},
        "start": {"delay": rng.uniform(0, whole["start"])},
        "sampling": {"appears": f"step_{step:05d}/samples.jsonl.part", "delay": soon},
        "verifying": {"appears": f"step_{step:05d}/samples.jsonl", "delay": soon},
        "advantages": stop
        | {"pattern": f"{rng.choice(['open', 'rename'])} .*step_{step:05d}/advantages.jsonl.part"},
        "update": {"appears": f"step_{step:05d}/advantages.jsonl", "delay": soon},
        "metrics": stop
        | {
            "pattern": f"{rng.choice(['open', 'rename'])} .*/metrics.jsonl",
            "count": rng.randrange(1, left + 1),
        },
        "evaluation": {"appears": f"eval_{rng.choice([0, 3, 6]):05d}/samples.jsonl.part", "delay": 3 * soon},
        "checkpoint": {"appears": "checkpoints/part", "delay": soon / 2},
        "optimizer": {"appears": "checkpoints/part/optimizer", "delay": soon / 6},
        "trainer.pt": {"appears": "checkpoints/part/trainer.pt", "delay": soon / 40},
        "replace": stop
        | {"pattern": "rename .*checkpoints/part", "count": rng.randrange(1, max(2, left // 2 + 1))},
        "clean-up": stop | {"pattern": r"(remove|rmdir) .*checkpoints/step", "count": rng.randrange(1, 9)},
        "figures": stop | {"pattern": "open .*figures/", "count": rng.randrange(1, 3)},
        "operation": stop
        | {"pattern": "", "count": rng.randrange(1, len(whole["operations"]) * left // STEPS)},
    }
    return waits[kind]


def kill_at(place, words, moment, rng, count):
    """Starts the run, kills it at the moment, and says in which stage that was; None where it came to its end before."""
    since, came = time.time_ns(), None
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{place}.here")
    process = start(place, words, moment if "marker" in moment else None, count)
    awaited = moment.get("marker") or moment.get("appears") and f"{place}/run/{moment['appears']}"
    while process.poll() is None:
        if came is None and (not awaited or changed(awaited, since)):
            came = time.time()
        if came and time.time() >= came + moment.get("delay", 0):
            family = below(process.pid)
            kill(
                [process.pid] if rng.random() < 0.5 else [process.pid, *family]
            )  # the others have to go by themselves
            process.wait()
            where, deadline = stage(f"{place}/run", since), time.time() + 60
            while left := [pid for pid in family if alive(pid)]:
                if time.time() > deadline:
                    kill(left)
                    raise Difference(
                        f"{len(left)} processes are left 60 seconds after the kill (stage {where})"
                    )
                time.sleep(0.01)
            return where
        time.sleep(0.001)
    if process.returncode:
        raise Difference(f"the run failed by itself: {process.communicate()[0][-2000:]}")
    return None


class Difference(Exception):
    pass


def content(path, place):
    """What must be the same: JSONL without times, trainer.pt as values, a safetensors' header in any order and its bits, else the bytes."""
    if path.endswith("args.json"):
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
            return {
                key: value for key, value in record["settings"].items() if key not in ("resume", "verdicts")
            }, record["files"]
    if path.endswith(".jsonl"):
        with open(path, encoding="utf-8") as file:
            return [
                {key: value for key, value in json.loads(line).items() if not key.startswith("seconds")}
                for line in file
            ]
    if path.endswith("trainer.pt"):
        import torch

        saved = torch.load(path, weights_only=True)
        return (
            saved["steps"],
            saved["adam_steps"],
            [
                {key: value for key, value in row.items() if not key.startswith("seconds")}
                for row in saved["buffer"]
            ],
        )
    with open(path, "rb") as file:
        if path.endswith(".safetensors"):
            return json.loads(file.read(int.from_bytes(file.read(8), "little"))), file.read()
        return file.read()


def files(folder):
    return {
        os.path.relpath(os.path.join(path, name), folder)
        for path, _, names in os.walk(folder)
        for name in names
    }


def compare(place, reference, name="run"):
    """Raises Difference where the two folders have not the same files, or one of them other content. Nothing may be left in TMPDIR."""
    mine, theirs = files(f"{place}/{name}"), files(f"{reference}/{name}")
    if mine != theirs:
        raise Difference(f"left behind: {sorted(mine - theirs)}, missing: {sorted(theirs - mine)}")
    for path in sorted(mine):
        one, other = (content(f"{where}/{name}/{path}", where) for where in (place, reference))
        if one != other:
            where = (
                next((f", row {n}: {a} != {b}" for n, (a, b) in enumerate(zip(one, other)) if a != b), "")
                if isinstance(one, list)
                else ""
            )
            raise Difference(f"{path} is not the same{where[:600]}")
    if left := files(f"{place}.tmp"):
        raise Difference(f"left in the folder for temporary files: {sorted(left)[:5]}")


def whole_run(place, count):
    """The reference; returns how long it took from args.json on, how long to there, and the changes it made in its folder."""
    os.makedirs(place)
    began = time.time()
    code, said = finish(
        place,
        ["train.py", *RUN],
        {"pattern": "", "count": 0, "log": f"{place}.operations"},
        count=count,
        fork=False,
    )
    if code:
        raise Difference(f"the reference run failed: {said[-2000:]}")
    begun = os.stat(f"{place}/run/args.json").st_mtime
    with open(f"{place}.operations") as file:
        return {
            "seconds": time.time() - begun,
            "start": begun - began,
            "operations": file.read().splitlines(),
        }


def hunt(work, kills, count, rng, bar, done):
    """The kills; done: {"kills": by stage, "resumes": .., "runs": ..}."""
    reference = f"{work}/reference-{count}"
    whole, kinds, stages = whole_run(reference, count), [], done["kills"]
    while stages.total() < kills:
        done["runs"] += 1
        place, told = f"{work}/run-{count}-{done['runs']}", []
        os.makedirs(place)
        try:
            for number in range(min(rng.choice([1, 1, 1, 2, 2, 3]), kills - stages.total())):
                kinds = kinds or rng.sample(KINDS, len(KINDS))
                saved = max(
                    [int(path[-16:-11]) for path in glob.glob(f"{place}/run/checkpoints/step_*/trainer.pt")],
                    default=0,
                )
                kind = kinds.pop() if saved < STEPS else "start"
                moment = draw(rng, kind, saved, whole, place)
                told.append(moment)
                where = kill_at(place, ["train.py", *RUN, *["--resume"] * (number > 0)], moment, rng, count)
                done["resumes"] += number > 0
                if not where:
                    break
                stages[where] += 1
                bar.update()
            code, said = finish(place, ["train.py", *RUN, "--resume"], count=count)
            done["resumes"] += 1
            if code:
                raise Difference(f"the resumed run failed: {said[-2000:]}")
            compare(place, reference)
        except Difference as error:
            raise Difference(f"{place}, killed at {told}: {error}") from None
        shutil.rmtree(place)
        shutil.rmtree(f"{place}.tmp")


# ---- no room, no right ----


def sentence(code, said, words, count=1):
    """The one sentence that a stage has to end with; it names a file and what to do."""
    found = re.findall(r"error: .*", said)  # it may follow a progress bar
    if count == 1 and (code != 2 or len(found) != 1 or "Traceback" in said) or not code or not found:
        raise Difference(f"exit code {code}, {len(found)} sentences: {said[-3000:]}")
    if missing := [word for word in words if not re.search(word, found[0])]:
        raise Difference(f"no word of {missing} in: {found[0]}")
    return re.sub(r"\d{5}", "N", found[0])


def mounted(place, size):
    """A file system of that size in KiB at the folder, where this process may have one."""
    if os.environ.get(MOUNTS):
        option = "remount," if os.path.ismount(place) else ""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{option}size={size}k,nr_inodes=2000", "none", place], check=True
        )


def full_disks(work, cases, rng, bar):
    """Runs on a disk that is full: a small file system (or, where none can be mounted, files that may not grow), an operation
    that fails, figures that are /dev/full. Returns the sentences."""
    told, ways = Counter(), ["disk", "limit", "operation", "figures", "disk", "verdicts", "two", "disk"]
    whole = [
        line
        for line in open(f"{work}/reference-1.operations").read().splitlines()
        if not line.startswith(("os.remove", "os.rmdir"))
    ]
    for case in range(cases):
        way, count, words, limit, moment = ways[case % len(ways)], 1, ["train.py", *RUN], None, None
        place = f"{work}/disk-{case}"
        os.makedirs(place)
        kib = int(2 ** rng.uniform(3, 14.2))  # 8 KiB to 19 MiB
        if way == "two":
            if not os.path.isdir(f"{work}/reference-2"):
                way = "disk"
            else:
                count = 2
        if way in ("disk", "two") and os.environ.get(MOUNTS):
            mounted(place, kib)
            shutil.copy(f"{work}/val.jsonl", place)
        elif way in ("disk", "two", "limit"):
            limit = int(2 ** rng.uniform(8, 22.5))  # 256 B to 6 MB, below the longest file
            moment = {"limit": limit}
        elif way == "operation":
            moment = {
                "pattern": "^(open|os.rename|os.mkdir)",
                "count": rng.randrange(1, len(whole)),
                "full": True,
            }
        elif way == "verdicts":
            words += ["--verdicts", f"{place}.kept/verdicts.sqlite"]
            os.makedirs(f"{place}.kept")
            mounted(f"{place}.kept", rng.choice([16, 40, 60]))
        elif way == "figures":
            os.makedirs(f"{place}/run/figures")
            os.symlink("/dev/full", f"{place}/run/figures/{rng.choice(['story.png', 'story.csv'])}")
        try:
            code, said = finish(place, words, moment, count=count)
            if code:
                told[way, sentence(code, said, ["run/|verdicts", "room", "--resume|--verdicts"], count)] += 1
            if way in ("disk", "two", "verdicts"):
                mounted(place if way != "verdicts" else f"{place}.kept", 65536)
            for path in glob.glob(f"{place}/run/figures/*"):
                if os.path.islink(path):
                    os.remove(path)
            code, said = finish(place, [*words, "--resume"], count=count)
            if code:
                raise Difference(f"with room again it failed: {said[-2000:]}")
            compare(place, f"{work}/reference-{count}")
        except Difference as error:
            raise Difference(f"{place}, {way}, {kib} KiB, {moment}: {error}") from None
        bar.update()
        for one in (place, f"{place}.kept"):
            if os.path.ismount(one):
                subprocess.run(["umount", one], check=True)
    return told


def read_only(work):
    """A run folder that may not be written to, when it is new, and when the run is to be resumed. Returns the sentences."""
    told, place, words = Counter(), f"{work}/read-only", ["train.py", *RUN]
    os.makedirs(f"{place}/run")

    def may_write(yes):
        if os.environ.get(MOUNTS):
            if not os.path.ismount(place):
                mounted(place, 65536)
                os.makedirs(f"{place}/run")
            subprocess.run(["mount", "-o", f"remount,{'rw' if yes else 'ro'}", place], check=True)
        else:
            for folder in (
                [place, *glob.glob(f"{place}/**/", recursive=True)]
                if yes
                else [*glob.glob(f"{place}/**/", recursive=True)]
            ):
                os.chmod(folder, 0o755 if yes else 0o555)

    if not os.environ.get(MOUNTS) and os.geteuid() == 0:
        return Counter({("read-only", "not tried: root may write anywhere, and nothing can be mounted"): 1})
    try:
        may_write(False)
        told["read-only", sentence(*finish(place, words), ["run/|verdicts", "--out|--resume"])] += 1
        may_write(True)
        moment = {"appears": "step_00003/samples.jsonl", "delay": 0}
        kill_at(place, words, moment, random.Random(0), 1)
        may_write(False)
        told["read-only", sentence(*finish(place, [*words, "--resume"]), ["run/", "--out|--resume"])] += 1
        may_write(True)
        code, said = finish(place, [*words, "--resume"])
        if code:
            raise Difference(f"the run that may write again failed: {said[-2000:]}")
        compare(place, f"{work}/reference-1")
        os.makedirs(f"{place}/file")
        open(f"{place}/file/run", "w").close()  # a path through a regular file
        told[
            "through a file",
            sentence(
                *finish(
                    f"{place}/file",
                    ["train.py", *RUN, "--eval-problems", "../../val.jsonl", "--out", "run/run"],
                ),
                ["run/run", "--out"],
            ),
        ] += 1
        if os.environ.get(MOUNTS):
            subprocess.run(["umount", place], check=True)
    except Difference as error:
        raise Difference(f"{place}: {error}") from None
    return told


def full_stages(work, rng):
    """The other stages on a disk that is full: their sentence, and the same command again once there is room. Returns the sentences."""
    told, whole, place = Counter(), f"{work}/stages", f"{work}/stages-full"
    commands = {
        "sample.py": f"--model {ROOT}/toy/base --problems {work}/val.jsonl --num-samples 24 --max-new-tokens 80 --batch-tokens 4000 --out run/s.jsonl",
        "verify.py": f"{whole}/run/s.jsonl --out run/v.jsonl --verify-batch 8",
        "verify.py --verdicts": f"{whole}/run/s.jsonl --out run/v.jsonl --verdicts run/verdicts.sqlite",
        "advantage.py": f"{whole}/run/v.jsonl --out run/a.jsonl",
        "train.py": f"--advantages {whole}/run/a.jsonl --out run/one --kl 0",
        "evaluate.py": f"{whole}/run/v.jsonl --out run/figures",
        "evaluate.py curves": f"{work}/reference-1/run --out run/figures",
    }
    for name, words in commands.items():
        for out in (whole, place) if "verdicts" not in name else (place,):
            os.makedirs(f"{out}/run", exist_ok=True)
        command = [*name.replace(" --verdicts", "").split(), *words.split()]
        if "verdicts" not in name:
            code, said = finish(whole, command)
            if code:
                raise Difference(f"{name} failed: {said[-2000:]}")
        sizes = (
            [300, 20000]
            if name in ("sample.py", "verify.py", "verify.py --verdicts", "advantage.py")
            else [200, 300000]
            if name == "train.py"
            else [300]
        )
        try:
            for size in sizes:
                told[
                    name,
                    sentence(
                        *finish(place, command, {"limit": size}),
                        ["run/|TMPDIR", "room", "again|--verdicts|--out|--resume|TMPDIR"],
                    ),
                ] += 1
            code, said = finish(place, command)
            if code:
                raise Difference(f"with room again it failed: {said[-2000:]}")
            for path in sorted(files(f"{place}/run") - {"verdicts.sqlite", "args.json"}):
                if content(f"{place}/run/{path}", place) != content(f"{whole}/run/{path}", whole):
                    raise Difference(f"{path} is not the same")
        except Difference as error:
            raise Difference(f"{name}: {error}") from None
        shutil.rmtree(f"{place}/run")
    return told


def with_mounts():
    """Starts this program again with mounts of its own, where that is possible: they go with it, and nobody else sees them."""
    for prefix in (["unshare", "-m"], ["unshare", "-rm"]):
        tried = [*prefix, "mount", "-t", "tmpfs", "-o", "size=4k", "none", tempfile.gettempdir()]
        if (
            MOUNTS not in os.environ
            and shutil.which("unshare")
            and not subprocess.run(tried, capture_output=True).returncode
        ):
            os.environ[MOUNTS] = "1"
            os.execvp(prefix[0], [*prefix, sys.executable, *sys.argv])


def main():
    parser = argparse.ArgumentParser(
        description="Kills train.py at random moments and compares the resumed runs with one that was not killed."
    )
    parser.add_argument("--kills", type=int, default=50, help="kills of runs of one process")
    parser.add_argument("--two", type=int, default=12, help="kills of runs of two processes")
    parser.add_argument("--disk", type=int, default=24, help="runs on a disk that gets full")
    parser.add_argument(
        "--stages",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the other stages and the read-only folder too",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", help="folder to work in, which is left as it is (default: a temporary one)")
    args = parser.parse_args()
    with_mounts()
    preload()
    from tqdm import tqdm

    work = os.path.abspath(args.keep or tempfile.mkdtemp())
    os.makedirs(work, exist_ok=True)
    with (
        open(f"{ROOT}/toy/val.jsonl", encoding="utf-8") as file,
        open(f"{work}/val.jsonl", "w", encoding="utf-8") as out,
    ):
        out.writelines(file.readlines()[:6])
    begun, told = time.time(), Counter()
    table = {count: {"kills": Counter(), "resumes": 0, "runs": 0} for count in (1, 2)}
    try:
        with tqdm(total=args.kills + args.two + args.disk, unit="case", mininterval=5) as bar:
            for count, kills in ((1, args.kills), (2, args.two)):
                if kills or count == 1 and (args.disk or args.stages):
                    hunt(work, kills, count, random.Random(f"{args.seed} {count}"), bar, table[count])
            if args.disk:
                told += full_disks(work, args.disk, random.Random(f"{args.seed} disk"), bar)
            if args.stages:
                told += read_only(work) + full_stages(work, random.Random(args.seed))
        result = "all equal"
    except KeyboardInterrupt:
        result = "stopped; all equal so far"
    except Difference as error:
        result = f"first difference: {error}"
    print(
        f"\n| {'killed in':16} | {'1 process':>9} | {'2 processes':>11} |\n| {'-' * 16} | {'-' * 8}: | {'-' * 10}: |"
    )
    for name in STAGES:
        print(f"| {name:16} | {table[1]['kills'][name]:9} | {table[2]['kills'][name]:11} |")
    for name in ("kills", "resumes", "runs"):
        print(
            "| {:16} | {:9} | {:11} |".format(
                name, *(n.total() if isinstance(n := table[count][name], Counter) else n for count in (1, 2))
            )
        )
    for (way, words), count in sorted(told.items()):
        print(f"{count} x {way}: {words}")
    print(f"{time.time() - begun:.0f} seconds, seed {args.seed}: {result}")
    if not args.keep and result == "all equal":
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(result != "all equal")


if __name__ == "__main__":
    inside(sys.argv[1:], json.loads(os.environ.pop("MOMENT"))) if "MOMENT" in os.environ else main()
