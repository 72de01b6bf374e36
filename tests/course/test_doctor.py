"""The doctor: plain lines, advice beside every complaint, and an exit status that scripts can use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compresslab.course import doctor
from compresslab.course.doctor import Finding, examine, report


def test_this_machine_is_fit():
    findings = examine()
    topics = {finding.topic for finding in findings}
    assert {"python", "torch", "torchvision", "lab", "runtimes", "cpu", "gpu", "threads", "memory", "cache"} <= topics
    assert not [finding for finding in findings if finding.level == "FAIL"]
    assert all(finding.advice for finding in findings if finding.level != "OK")


def test_report_by_hand():
    findings = [Finding("OK", "a", "fine"), Finding("WARN", "b", "odd", "do this")]
    assert report(findings, brief=True) == "WARN  b            odd\n                   -> do this\n1 OK, 1 WARN, 0 FAIL"
    assert report(findings).startswith("OK    a            fine\n")


def found(topic: str, level: str) -> Finding:
    (finding,) = [one for one in examine() if one.topic == topic and one.level == level]
    return finding


def test_a_missing_package_fails_with_the_way_out(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("pandas", "onnxruntime") else real(name))
    assert found("pandas", "FAIL").advice == "pip install pandas"
    assert "[export]" in found("runtimes", "WARN").advice


def test_more_threads_than_processors_is_a_warning(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert "OMP_NUM_THREADS=1" in found("threads", "WARN").advice


def test_a_machine_without_instructions_is_told_what_to_expect(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True}, raising=False)
    texts = [finding.text for finding in examine() if finding.topic == "cpu"]
    assert "no instructions for int8, bfloat16, float16: expect smaller files there, not speed" in texts


def test_an_unwritable_cache_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "file" / "cache"))
    assert "COMPRESSLAB_CACHE" in found("cache", "FAIL").text


@pytest.mark.parametrize("command", ["doctor", "progress"])
def test_on_the_command_line(command, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "compresslab.cli", command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert ("OK    python" if command == "doctor" else "00  Measure first") in run.stdout


def test_a_failure_is_an_exit_status(monkeypatch, capsys):
    from compresslab import cli

    monkeypatch.setattr(doctor, "examine", lambda: [Finding("FAIL", "disk", "full", "make room")])
    assert cli.main(["doctor", "--brief"]) == 1
    assert "FAIL  disk" in capsys.readouterr().out


def test_an_error_is_one_line_not_a_traceback(monkeypatch, capsys):
    from compresslab import cli

    assert cli.main(["data", "no-such-data"]) == 1
    assert capsys.readouterr().err.startswith("compresslab: ")
