from __future__ import annotations

import pandas as pd

from compresslab.measure.tables import markdown, readable

ROW = {
    "size_bytes": 44_700_123, "compression": 3.456, "parameters": 11_689_512, "macs": 1.814e9, "latency_s": 0.0123,
    "latency_p90_s": 0.0151, "speedup": 1.234, "speedup_low": 1.1, "speedup_high": 1.3, "throughput": 81.4,
    "accuracy": 0.832, "accuracy_low": 0.82, "accuracy_high": 0.843, "difference": -0.0123, "difference_low": -0.02,
    "difference_high": 0.001, "p_value": 0.0412, "agreement": 0.976,
}  # fmt: skip


def test_the_readable_table_by_hand():
    words = readable(pd.DataFrame([ROW], index=["int8"]), "accuracy")
    assert words.loc["int8"].to_dict() == {
        "size": "44.7 MB",
        "compression": "3.46x",
        "parameters": "11,689,512",
        "MACs": "1,814,000,000",
        "latency, median": "12.3 ms",
        "latency, p90": "15.1 ms",
        "speed-up": "1.23x [1.10, 1.30]",
        "samples/s": "81",
        "accuracy": "83.2 % [82.0, 84.3]",
        "difference": "-1.2 points [-2.0, +0.1]",
        "p-value": "0.041",
        "agreement": "97.6 %",
    }


def test_perplexity_has_no_percent_sign():
    row = {key.replace("accuracy", "perplexity"): value for key, value in ROW.items()} | {"perplexity": 5.128}
    words = readable(pd.DataFrame([row], index=["gpt"]), "perplexity").loc["gpt"]
    assert words["perplexity"] == "5.13 [0.82, 0.84]"
    assert words["difference"] == "-0.01 [-0.02, 0.00]"


def test_markdown_holds_no_time_and_marks_what_rounding_may_move():
    text = markdown(pd.DataFrame([ROW | {"parameters": None}], index=["a|b"]), "accuracy")
    assert text.splitlines() == [
        "| name | size (bytes) | compression | parameters | MACs | accuracy | agreement |",
        "|---|---|---|---|---|---|---|",
        "| a\\|b | 44,700,123 | 3.46x | not known | 1,814,000,000 | ≈ 83.2 % | ≈ 97.6 % |",
    ]
