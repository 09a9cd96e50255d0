"""What results/ computes: intervals over seeds and problems, tables put in their place."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "results")]
import report  # noqa: E402


def test_an_interval_over_seeds_and_problems():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 400, 2)) * [1.0, 3.0] + [0.0, 5.0]
    mean, low, high = report.interval(values)
    assert np.allclose(mean, values[0].mean(0))
    assert np.allclose(
        (high - low) / 2, 1.96 * values[0].std(0) / 20, rtol=0.1
    )  # of one seed: that of a mean over problems
    alike = np.repeat(values, 3, axis=0)
    assert np.allclose(
        report.interval(alike)[:, 0], [mean[0], low[0], high[0]], atol=0.02
    )  # equal seeds add nothing
    apart = (
        np.zeros((3, 50, 1)) + np.array([0.0, 1.0, 2.0])[:, None, None]
    )  # problems add nothing: of three seeds drawn anew
    assert report.interval(apart)[:, 0].tolist() == pytest.approx(
        [1, 0, 2]
    )  # all three are the lowest in 1 of 27


def test_pass_at_n_of_seeds_side_by_side(tmp_path):
    for seed, rewards in enumerate(([1, 0, 0, 0], [1, 1, 0, 0])):
        rows = [
            {
                "id": name,
                "reward": reward if name == "a" else 0,
                "completion": f"{k}",
                "finish_reason": "stop",
            }
            for name in "ab"
            for k, reward in enumerate(rewards)
        ]
        (tmp_path / f"{seed}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = report.passes([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])
    # 1 - C(4 - c, N) / C(4, N) for c = 1, 2 and N = 1, 2, 4
    assert np.allclose(values[:, 0], [[1 / 4, 1 / 2, 1], [1 / 2, 5 / 6, 1]]) and not values[:, 1].any()


def test_numbers_of_the_training_are_of_all_seeds(tmp_path):
    for seed, values in enumerate(([1, None, 3], [None, 4, 8])):
        (tmp_path / f"{seed}").mkdir()
        (tmp_path / f"{seed}/metrics.jsonl").write_text(
            "".join(json.dumps({"step": 0, "kl": value}) + "\n" for value in values)
        )
    runs = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert report.metric(runs, "kl", slice(None), np.mean, 1) == [4, 2, 6]  # (1 + 3) / 2 and (4 + 8) / 2
    assert report.metric(runs, "kl", slice(None), np.sum, 10) == [80, 40, 120]
    assert report.metric(runs, "kl", slice(-1, None), np.mean, 1) == [5.5, 3, 8]


def test_a_table_by_hand():
    lines = {
        "a": ([1, 2], np.array([[0.5, 0.25], [0.4, 0.2], [0.6, 0.3]])),
        "a - b": ([1], np.array([[0.1], [0.0], [0.2]])),
    }
    assert report.table(report.Panel("t", "%", lines, log=True)).split("\n") == [
        "| %     |               N = 1 |             N = 2 |",
        "| ----- | ------------------: | ----------------: |",
        "| a     |   50.0 [40.0, 60.0] | 25.0 [20.0, 30.0] |",
        "| a - b | +10.0 [+0.0, +20.0] |                 - |",
    ]
    many = {"a": (report.NS, np.arange(27.0).reshape(3, 9))}
    head = report.table(report.Panel("t", "%", many, log=True)).split("\n")[0]
    assert [cell.strip() for cell in head.split("|")[2:-1]] == [f"N = {N}" for N in (1, 4, 16, 64, 256)]


def samples(path, correct, n=4):
    """A verified file: so many correct of n samples of each problem, all alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        dict(
            id=name,
            statement=f"theorem {name} : True := by",
            sample=k,
            reward=float(k < c),
            completion=f"\n  exact h{k}",
            prompt_ids=[1, 158],
            completion_ids=[4, 33 + k, 2],
            finish_reason="stop",
            model="toy/base",
        )
        for name, c in correct.items()
        for k in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_n_has_its_own_best_temperature(tmp_path):
    tuning = {0.8: dict(a=4, b=0), 1.0: dict(a=1, b=1), 1.25: dict(a=0, b=1), 1.5: dict(a=0, b=0)}
    held_out = {0.8: dict(c=1), 1.0: dict(c=2), 1.25: dict(c=4), 1.5: dict(c=4)}
    for T in tuning:
        samples(tmp_path / f"base/tune-{T}/verified.jsonl", tuning[T])
        samples(tmp_path / f"base/val-{T}/verified.jsonl", held_out[T])
    values, which = report.at_best_temperature(str(tmp_path), "base")
    # tuning at N = 1, 2, 4: 0.8 gives 1/2, 1/2, 1/2 and 1.0 gives 1/4, 1/2, 1; the lower one of equals
    assert which == [0.8, 0.8, 1.0]
    assert values[0, 0].tolist() == [1 / 4, 1 / 2, 1]  # c: 1 of 4, 1 of 4, 2 of 4


def test_a_full_disk_is_a_sentence(tmp_path, capsys):
    samples(tmp_path / "base/val/verified.jsonl", dict(a=1))
    page = tmp_path / "README.md"
    page.symlink_to("/dev/full")
    for write in (
        lambda: report.write_counts("/dev/full", [str(tmp_path / "base")]),
        lambda: report.fill(str(page), {}),
    ):
        with mock.patch.object(report.Path, "read_text", lambda self, encoding: "words"):
            with pytest.raises(SystemExit, match="2"):
                write()
        assert re.fullmatch(r"error: cannot write .*; make room and .*\n", capsys.readouterr().err)


def test_the_report_of_a_small_folder(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs"
    samples(folder / "base/val/verified.jsonl", dict(p=1, q=0))
    samples(folder / "base-train/verified.jsonl", dict(t=3, u=2))
    for k, name in enumerate([*report.SETTINGS, "beta-0.1", "beta-0.5", "beta-1", "token-mean", "new"]):
        run = folder / f"{name}-seed0"
        (run / "checkpoints").mkdir(parents=True)
        (folder / f"{name}-seed0.log").write_text("")
        for step in (1, 2):
            (run / f"checkpoints/step_{step:05d}").symlink_to(f"{ROOT}/toy/base")
        samples(run / "short/verified.jsonl", dict(p=1, q=1))
        if name in report.SETTINGS or name == "new":
            samples(run / "val/verified.jsonl", dict(p=2, q=k % 3))
        rows = [
            dict(
                step=s,
                reward=0.5,
                unique=0.75,
                kl=0.002,
                clip_fraction=0.0,
                updates=2,
                solved=1,
                unique_proofs=7,
            )
            for s in range(2)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for run in ("base", "default-seed0"):
        for T in report.TEMPERATURES:
            for part in ("tune", "val"):
                samples(folder / f"{run}/{part}-{T}/verified.jsonl", dict(p=1, q=3))
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("<!-- to-base -->\n<!-- end -->\n<!-- training -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder), "--out", str(out)])
    report.main()
    told, page = capsys.readouterr().out, (out / "README.md").read_text()
    assert (
        "epochs-2 - high-kl" in told
        and "0.8 to 1.0" in told
        and "| new " in told
        and "temperature-chosen" in told
    )
    lines = {
        line.split("|")[1].strip(): [cell.split()[0] for cell in line.split("|")[2:-1]]
        for line in page.split("\n")
        if line.startswith("|")
    }
    assert lines["base, %"][0] == "12.5"  # 1 of 8; after training 2 + 0, 1 or 2 of 8
    gains = [lines[f"{name} - base"][0] for name in (*report.SETTINGS, "new")]
    assert gains == ["+12.5", "+25.0", "+37.5"] * 2 + ["+25.0"]
    assert lines["default"] == [
        "4.0",
        "1.0",
        "7.0",
        "7.0",
        "75.0",
        "2.0",
        "0.0",
    ]  # of the training, in TRAINING's order
    numbers = (out / "tables.csv").read_text()
    assert (
        "to-base,high-kl - base,1,0.25," in numbers
        and "ablation,beta-1 - base,1,0.125," in numbers
        and "temperature-best,default - base,1,0,0,0" in numbers
        and "matched,new - unlikeliness-2,1,-0.125," in numbers
    )
    counts = [row.split(",")[:4] for row in (out / "counts.csv").read_text().splitlines()]
    assert counts[0] == ["id", "base of 4", "default-seed0 of 4", "high-kl-seed0 of 4"]
    assert counts[1:] == [["p", "1", "2", "2"], ["q", "0", "0", "1"]]
    for name in ("pass_at_n", "uplift", "curves", "temperature"):
        assert (out / f"{name}.png").stat().st_size > 5000 and (out / f"{name}.csv").stat().st_size > 200


@pytest.mark.parametrize("page", ["nat"])
def test_the_tables_follow_from_the_counts(page):
    """pass@N of every run whose counts are kept, by another formula: 1 - (1 - c/n) (1 - c/(n-1)) ..."""
    with open(f"{ROOT}/results/{page}/counts.csv", encoding="utf-8") as file:
        (_, *runs), *rows = csv.reader(file)
    with open(f"{ROOT}/results/{page}/tables.csv", encoding="utf-8") as file:
        table = {
            (row["panel"], row["label"], row["x"]): float(row["value"] or "nan")
            for row in csv.DictReader(file)
        }
    with open(f"{ROOT}/{page}/val.jsonl", encoding="utf-8") as file:
        assert [row[0] for row in rows] == [json.loads(line)["id"] for line in file]
    found = {}
    for run, *correct in zip(runs, *(row[1:] for row in rows)):
        name, _, n = run.partition(" of ")
        for N in report.NS:
            missed = [math.prod(max(0, 1 - int(c) / (int(n) - k)) for k in range(N)) for c in correct]
            found.setdefault((name.partition("-seed")[0], N), []).append(1 - sum(missed) / len(rows))
    assert len(found) > len(report.NS)
    for (name, N), seeds in found.items():
        value = sum(seeds) / len(seeds)
        assert table["passes", name, f"{N}"] == pytest.approx(value, abs=1e-6)
        if name != "base":
            above = value - found["base", N][0]
            assert table["to-base", f"{name} - base", f"{N}"] == pytest.approx(above, abs=1e-6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run.sh that came to its end: one setting with two seeds, the ablation, temperatures."""
    folder = tmp_path_factory.mktemp("finished")
    places = ["base/val", "base-train", *(f"{name}-seed1/short" for name in report.ABLATION)]
    places += [f"{name}-seed{seed}/val" for name in ("epochs-2", "unlikeliness-2") for seed in (0, 1)]
    for T in report.TEMPERATURES:
        places += [
            f"{run}/{part}-{T}" for run in ("base", "unlikeliness-2-seed0") for part in ("tune", "val")
        ]
    for place in places:
        samples(folder / place / "verified.jsonl", dict(p=1, q=0))
        if "seed" in place:
            (folder / place / "../checkpoints/step_00001").mkdir(parents=True, exist_ok=True)
            (folder / place / "../metrics.jsonl").write_text("")
    return folder


UNFINISHED = """base base/val base-train/verified.jsonl epochs-2-seed1 epochs-2-seed0/val epochs-2-seed1/metrics.jsonl
    unlikeliness-2-seed0/checkpoints beta-1-seed1/short token-mean-seed1/metrics.jsonl epochs-2-seed1/short
    unlikeliness-2-seed0/tune-0.8 unlikeliness-2-seed0/tune-1.5 base/tune-1.0 base/val-1.25""".split()


@pytest.mark.parametrize("lost", UNFINISHED)
def test_an_unfinished_folder_is_told_of_in_one_sentence(tmp_path, monkeypatch, capsys, finished, lost):
    folder = tmp_path / "runs"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder), "--out", str(tmp_path)])
    monkeypatch.setattr(report, "sampled", lambda *names: pytest.fail("read before the check"))
    (folder / lost).rename(tmp_path / "lost")
    with pytest.raises(SystemExit) as ended:
        report.main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out
    assert re.fullmatch(rf"error: there is no {folder}/{lost}.* yet; let results/run.sh finish\n", said.err)


def test_a_folder_without_a_trained_model_is_told_of(tmp_path, capsys, finished):
    folder = tmp_path / "runs"
    for place in ("base", "base-train"):
        shutil.copytree(finished / place, folder / place)
    for settings, words in (
        ([], "no run of a setting beside"),
        (["default"], "setting at other temperatures"),
    ):
        with pytest.raises(SystemExit):
            report.check_complete(str(folder), settings, [])
        assert words in capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, f"{ROOT}/results/report.py", tmp_path / "none"], capture_output=True, text=True
    )
    assert done.returncode == 2 and re.fullmatch("error: there is no .*/none/base/.*\n", done.stderr)


def test_the_report_of_a_lone_setting(tmp_path, monkeypatch, capsys, finished):
    folder = tmp_path / "runs"
    for place in ("base/val", "base-train", "epochs-2-seed0"):
        shutil.copytree(finished / place, folder / place)
    row = dict(step=0, reward=1, unique=1, kl=0, clip_fraction=0, updates=1, solved=1, unique_proofs=1)
    (folder / "epochs-2-seed0/metrics.jsonl").write_text(json.dumps(row))
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder), "--out", str(tmp_path / "new")])
    monkeypatch.setattr(report, "score", lambda path, rows, args: [0.0] * len(rows))
    report.main()
    said = capsys.readouterr().out
    assert "| epochs-2 - base " in said and "to-default" not in said and "matched" not in said
    assert (tmp_path / "new" / "tables.csv").exists()


def test_a_bad_folder_for_the_figures_costs_no_work(tmp_path, monkeypatch, capsys, finished):
    monkeypatch.setattr(sys, "argv", ["report.py", str(finished), "--out", "/proc/none"])
    monkeypatch.setattr(report, "check_complete", lambda *names: pytest.fail("read before the check"))
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2 and "cannot write /proc/none" in capsys.readouterr().err


def test_a_table_takes_the_place_of_the_one_before_and_of_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(
        "above\n<!-- one -->\nold\nlines\n<!-- end -->\nbetween\n<!-- two -->\n<!-- end -->\nbelow\n"
    )
    report.fill(path, {"one": "| 1 |\n| \\1 |", "two": "| 2 |", "three": "| 3 |"})
    assert (
        path.read_text()
        == "above\n<!-- one -->\n| 1 |\n| \\1 |\n<!-- end -->\nbetween\n<!-- two -->\n| 2 |\n<!-- end -->\nbelow\n"
    )
