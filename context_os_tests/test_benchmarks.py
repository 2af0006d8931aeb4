"""The benchmarks run: each tells how it is used, and the cheap ones measure a tiny repository from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import git, make_repository, write

from context_os.weaviate_server import WeaviateServer

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("[a-z]*.py"))

sys.path.insert(0, str(BENCHMARKS))


def run(script: str, *arguments: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "shop")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_a_script_measures(script: str) -> None:
    told = run(script, "--help")
    assert told.startswith(f"usage: {script}")
    assert "--" in told.partition("options:")[2]


def test_the_readme_knows_every_script() -> None:
    told = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [name for name in SCRIPTS if f"`{name}`" not in told] == []


class TestNumbers:
    def test_a_percentile_is_one_of_the_values(self) -> None:
        import _bench

        values = [float(value) for value in range(1, 101)]
        assert _bench.percentile(values, 0.5) == 50
        assert _bench.percentile(values, 0.95) == 95
        assert _bench.percentile([7.0], 0.95) == 7

    def test_a_spread_shows_median_and_range(self) -> None:
        import _bench

        assert _bench.spread([3.0, 1.0, 2.0], " s", 1) == "2.0 (1.0-3.0) s"
        assert _bench.spread([2.5], " s", 1) == "2.5 s"

    def test_ndcg_counts_what_comes_first_more(self) -> None:
        import question_to_code

        assert question_to_code.ndcg([1], 1) == 1
        assert question_to_code.ndcg([2], 1) == pytest.approx(0.6309, abs=1e-4)
        assert question_to_code.ndcg([1, 2], 2) == 1
        assert question_to_code.ndcg([11], 1) == 0

    def test_memory_of_children_counts(self) -> None:
        import _bench

        child = "import time; held = bytearray(80_000_000); time.sleep(0.5)"
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        assert _bench.run([sys.executable, "-c", code]).peak > 80


class TestCases:
    def test_what_is_there_is_not_measured_again(self, tmp_path: Path) -> None:
        import _bench

        _bench.Cases(tmp_path / "out.jsonl").add({"case": "one", "value": 1})
        again = _bench.Cases(tmp_path / "out.jsonl")
        assert "one" in again
        assert "two" not in again

    def test_a_line_that_was_cut_off_is_measured_again(self, tmp_path: Path) -> None:
        import _bench

        file = tmp_path / "out.jsonl"
        file.write_text('{"case": "one"}\n{"case": "tw', encoding="utf-8")
        again = _bench.Cases(file)
        assert "two" not in again
        again.add({"case": "two"})
        assert [row["case"] for row in rows(file)] == ["one", "two"]


class TestHiddenFile:
    @pytest.fixture
    def repositories(self, repository: Path) -> Path:
        """One more squashed pull request, over two files that changed together before."""
        for number, word in ((3, "held"), (4, "kept")):
            for path in ("shop/app.py", "shop/pool.py"):
                text = (repository / path).read_text(encoding="utf-8")
                write(repository, path, f"{text}\n\ndef {word}(session):\n    return session\n")
            git(repository, "commit", "-qam", f"Sessions are {word} (#{number})")
        file = repository.parent / "repos.json"
        file.write_text(json.dumps({"ada/shop": "shop"}), encoding="utf-8")
        return file

    def test_cases_leave_out_a_file_of_the_base(self, repositories: Path, repository: Path) -> None:
        import hidden_file

        from context_os.git import Git

        cases = hidden_file.mine("ada/shop", Git(repository), 5)
        assert [git(repository, "log", "-1", "--format=%s", case.head) for case in cases] == [
            "Sessions are held (#3)",
            "Sessions are kept (#4)",
        ]
        for case in cases:
            diff = hidden_file.diff_without(Git(repository), case)
            assert {case.hidden, *case.files} == {"shop/app.py", "shop/pool.py"}
            assert f"b/{case.files[0]}" in diff
            assert case.hidden not in diff
            assert case.base == git(repository, "rev-parse", f"{case.head}~1")

    def test_baselines_know_only_what_was_before(self, repositories: Path, repository: Path) -> None:
        import hidden_file

        from context_os.git import Git

        at = Git(repository)
        files = hidden_file.sources(at, "HEAD")
        assert hidden_file.cochanged(at, "HEAD", ["shop/app.py"], files)[0] == "shop/pool.py"
        assert hidden_file.cochanged(at, "HEAD~4", ["tests/test_app.py"], files) == []
        assert hidden_file.FileWords(at).bm25(["release", "locked"], files)[0] == "shop/pool.py"

    @pytest.mark.slow
    def test_from_end_to_end_and_resumed(self, repositories: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.jsonl"
        command = ("--repos", repositories, "--cases", tmp_path / "cases.jsonl", "--out", out)
        told = run("hidden_file.py", *command)
        measured = rows(out)
        assert {row["hidden"] for row in measured} <= {"shop/app.py", "shop/pool.py"}
        assert all(set(row["ranks"]) == {"context-os", "bm25", "cochange"} for row in measured)
        assert measured[-1]["ranks"]["cochange"] == 1
        assert "all (n=2)" in told
        run("hidden_file.py", *command)
        assert rows(out) == measured


class TestLearning:
    @pytest.fixture
    def repositories(self, repository: Path) -> Path:
        """Four squashed pull requests over the same two files: what the first two needed the last two need again."""
        for number in range(3, 7):
            for path in ("shop/app.py", "shop/pool.py"):
                text = (repository / path).read_text(encoding="utf-8")
                write(repository, path, f"{text}\n\ndef step_{number}(session):\n    return session\n")
            git(repository, "commit", "-qam", f"Step {number} (#{number})")
        file = repository.parent / "repos.json"
        file.write_text(json.dumps({"ada/shop": "shop"}), encoding="utf-8")
        return file

    @pytest.mark.slow
    def test_both_homes_see_the_same_cases_and_one_of_them_learned(self, repositories: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.jsonl"
        told = run("learning.py", "--repos", repositories, "--out", out, "--per-repository", "4")
        measured = rows(out)
        assert len(measured) == 2
        assert all(row["untaught"]["gold"] == row["taught"]["gold"] > 0 for row in measured)
        assert all(row["untaught"]["lessons"] == 0 for row in measured)
        work = out.with_suffix(".work") / "ada+shop"
        assert [len(row["votes"]) > 0 for row in rows(work / "traces.jsonl")] == [True, True]
        assert "became worse" in told
        run("learning.py", "--repos", repositories, "--out", out, "--per-repository", "4")
        assert rows(out) == measured


@pytest.mark.slow
def test_question_to_code(repository: Path, tmp_path: Path) -> None:
    question = {"repo": "shop", "revision": "HEAD", "query": "give a socket back to the pool", "language": "python"}
    targets = [{"path": "shop/pool.py", "start_line": 4, "end_line": 5}]
    gone = {**question, "query": "what nobody can find", "relevant": [{"path": "gone.py"}]}
    (tmp_path / "questions.jsonl").write_text(
        json.dumps({**question, "relevant": targets}) + "\n" + json.dumps(gone) + "\n", encoding="utf-8"
    )
    (tmp_path / "repos.json").write_text(json.dumps({"shop": str(repository)}), encoding="utf-8")
    out = tmp_path / "out.jsonl"
    given = ("--questions", tmp_path / "questions.jsonl", "--repos", tmp_path / "repos.json")
    told = run("question_to_code.py", *given, "--out", out)
    [row] = rows(out)
    assert 0 < row["scores"]["context-os"]["files"] <= 1
    assert row["scores"]["context-os"]["recall"]["4000"] == 1
    assert "python (n=1)" in told


@pytest.mark.slow
def test_cold_ingest(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ("--repository", repository, "--connector", "symbols", "--rounds", "1", "--out", out)
    told = run("cold_ingest.py", *command)
    [row] = rows(out)
    assert 0 < row["reported"] < row["ingest"] < row["first_pack"]
    assert row["items"] > 5
    assert row["parser_one"] > 0
    assert "ingest / parser on all cores" in told


@pytest.mark.slow
def test_incremental_sees_an_edit_that_keeps_size_and_time(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    only = ("--without", "context-os", "--rounds", "1")
    told = run("incremental.py", "--repository", repository, *only, "--out", out)
    arms = {row["arm"]: row["steps"] for row in rows(out)}
    assert set(arms) == {"context-os, in process"}
    assert [step for steps in arms.values() for step in steps if not steps[step]["seen"]] == []
    assert "missed" not in told


@pytest.mark.slow
def test_query_latency(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("query_latency.py", "--repository", repository, "--rounds", "1", "--callers", "4", "--out", out)
    assert {row["callers"] for row in rows(out)} == {1, 4}
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows(out))


@pytest.mark.slow
def test_growth_writes_the_same_files_each_time_and_a_plot(tmp_path: Path) -> None:
    import growth

    for name in ("one", "two"):
        assert growth.Monorepo().write(tmp_path / name, 60) == 5
    written = [sorted((tmp_path / name).rglob("*.py")) for name in ("one", "two")]
    assert [[file.read_text() for file in files] for files in written][0] == [file.read_text() for file in written[1]]
    plot = tmp_path / "growth.svg"
    run("growth.py", "--sizes", "60", "--queries", "3", "--out", tmp_path / "out.jsonl", "--plot", plot)
    assert [row["items"] for row in rows(tmp_path / "out.jsonl")] == [60]
    assert plot.read_text(encoding="utf-8").count("<polyline") == 4


@pytest.mark.slow
@pytest.mark.weaviate
def test_store_overhead(repository: Path, tmp_path: Path, weaviate_server: WeaviateServer) -> None:
    at = weaviate_server.connection()
    env = {
        "CONTEXT_OS_STORE__URL": at.url,
        "CONTEXT_OS_STORE__GRPC_PORT": str(at.grpc_port),
        "CONTEXT_OS_STORE__API_KEY": at.api_key.get_secret_value(),
    }
    out = tmp_path / "out.jsonl"
    sizes = ("--sizes", "300", "--rounds", "1", "--queries", "5")
    run("store_overhead.py", "--repository", repository, *sizes, "--out", out, env=env)
    writes, queries = rows(out)
    assert set(writes["rates"]) == {"context-os", "made, sent", "sent"}
    assert {name: len(seconds) for name, seconds in queries["seconds"].items()} == {
        f"{mode} {side}": 5 for mode in ("hybrid", "keyword") for side in ("context-os", "bare", "bare, where")
    }
