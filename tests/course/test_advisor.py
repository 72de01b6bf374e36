"""The advisor: what does not fit comes last with its reason, and every figure it quotes is on record."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from compresslab.cli import main
from compresslab.course.advisor import CHOICES, advise, advisor, advisor_widget, explain_advice, techniques
from compresslab.course.progress import LESSONS

RESULTS = json.loads((Path(__file__).parents[2] / "benchmarks/results.json").read_text(encoding="utf-8"))


def quoted():
    return [(known["name"], each) for known in techniques() for each in known["evidence"]]


@pytest.mark.parametrize(("name", "each"), quoted(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_figure_is_on_record(name, each):
    (row,) = [row for row in RESULTS[each["benchmark"]] if row["work"] == each["work"]]
    assert (each["ours"], each["against"]) == (row["ours"], row["against"]), (
        f"{name}: copy the new row to techniques.json"
    )


def test_the_table_is_sound():
    assert len({known["name"] for known in techniques()}) == len(techniques()) >= 12
    for known in techniques():
        assert known["lesson"] in LESSONS
        assert set(known["faster_on"]) <= set(CHOICES["hardware"])
        assert set(known["architectures"]) <= set(CHOICES["architecture"])
        assert known["data"] in CHOICES["data"] and known["time"] in CHOICES["time"] and known["size"] > 1
        assert len(known["not"].split()) > 8


def test_order():
    for hardware, data, time, architecture in product(*CHOICES.values()):
        found = advise(smaller=4, faster=2, hardware=hardware, data=data, time=time, architecture=architecture)
        assert [each.fits for each in found] == sorted((each.fits for each in found), reverse=True)
        reaching = [each.reaches for each in found]
        assert reaching == sorted(reaching, reverse=True)
        for each in found:
            assert each.reaches == (not each.reasons)


def test_more_data_and_time_bar_nothing_that_was_open():
    few = {each.technique for each in advise(data="few", time="minutes") if each.fits}
    assert few < {each.technique for each in advise(data="all", time="days") if each.fits}


def test_known_cases():
    assert advise(smaller=20, data="all")[0].technique.startswith("Deep Compression")
    assert not advise(smaller=20, faster=2, data="all")[0].reaches
    assert advise(smaller=1, faster=2, architecture="llm", hardware="gpu")[0].technique.startswith("half precision")
    dynamic = next(each for each in advise(architecture="cnn") if each.technique.startswith("dynamic"))
    assert dynamic.reasons == ("made for transformer, rnn",)


def test_in_words():
    text = explain_advice(smaller=4, faster=2, time="minutes")
    assert text.startswith("1. static 8-bit quantization (weights and activations) (lesson 02): reaches it\n")
    assert "but: " in text and "not here:\n" in text and "measured: " in text
    assert "No single one reaches it" in explain_advice(smaller=100, data="all", time="days")
    assert explain_advice(architecture="moe", data="none", time="minutes").startswith("1. half precision")


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"hardware": "abacus"}, "hardware='abacus' must be one of cpu, gpu, npu, microcontroller"),
        ({"smaller": 0.5}, r"smaller=0\.5 and faster=1\.0 must be at least 1"),
    ],
)
def test_what_it_refuses(constraints, words):
    with pytest.raises(ValueError, match=words):
        advise(**constraints)


def test_the_widget_reacts():
    box = advisor_widget(faster=2.0, time="minutes")
    fields = {field.description: field for field in box.children[0].children}
    assert "1. static 8-bit" in box.children[1].value
    fields["architecture"].value = "llm"
    assert "1. half precision" in box.children[1].value


def test_the_output_carries_the_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    advisor(smaller=8.0)
    assert shown[0]["text/plain"] == explain_advice(smaller=8.0)


def test_the_command(capsys):
    assert main(["advise", "--smaller", "4", "--faster", "2", "--time", "minutes"]) == 0
    assert capsys.readouterr().out.startswith("1. static 8-bit")
    assert main(["advise", "--hardware", "abacus"]) == 1
    assert "hardware='abacus' must be one of" in capsys.readouterr().err
