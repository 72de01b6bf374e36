"""Checks of lesson 12, "Capstone"."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


@exercise("12.1", title="Bits that are left", minutes=10, difficulty=1)
def bits_left(answer: Callable) -> str:
    """``answer(times, kept)``: bits for each weight that stays, for a file that is ``times`` smaller."""
    # 20 times smaller: 32 / 20 = 1.6 bits for each weight of before; 40 % of them stay: 1.6 / 0.4 = 4
    mistakes = {
        1.6: "that is for each weight that there was; those that stay share the bits of those that went",
        0.64: "fewer weights leave more bits for each: divide by the share that stays",
        32 / 20 / 0.6: "kept is the share that stays, not the share that goes",
        32 * 0.4: "20 times smaller has to come in as well: begin with 32 / times",
        32 / 0.4: "20 times smaller has to come in as well: begin with 32 / times",
        0.5: "a float has 32 bits; that is the number of bytes",
    }
    expect_number(call(answer, 20, 0.4), 4.0, what="bits for 20 times smaller with 40 % kept", wrong=mistakes)
    expect_number(call(answer, 4, 1.0), 8.0, what="bits for 4 times smaller with all kept")
    return "4 bits with 40 % kept, 2 bits with 80 %: the same file, not the same accuracy"


@exercise("12.2", title="How much faster in the end?", minutes=10, difficulty=2)
def times_faster(answer: Callable) -> str:
    """``answer(shares, factors)``: how many times as fast the whole is, Amdahl's law for several parts."""
    # 0.8 of the time four times as fast, 0.2 as before: 0.8 / 4 + 0.2 / 1 = 0.4 of the time, 2.5 times as fast
    mistakes = {
        3.4: "that is the mean of the factors; parts that stay slow weigh more in the end: add times, not speeds",
        0.4: "that is the time that is left; how many times as fast is that?",
        4.0: "that is the product or the largest factor; the part that stays takes its time too",
        2.5 / 2: "shares sum to 1 already: do not divide by how many there are",
    }
    expect_number(call(answer, [0.8, 0.2], [4.0, 1.0]), 2.5, what="0.8 of the time 4 times as fast", wrong=mistakes)
    slower = {1.0: "a factor below 1 makes a part slower: it counts as well"}
    # 0.5 / 2 + 0.5 / 0.5 = 1.25 of the time
    expect_number(
        call(answer, [0.5, 0.5], [2.0, 0.5]), 0.8, what="one half twice as fast, the other half", wrong=slower
    )
    return "with a fifth of the time untouched, nothing gets more than 5 times as fast"


@exercise("12.3", title="The front", minutes=15, difficulty=2)
def on_front(answer: Callable) -> str:
    """``answer(points)``: for each (bytes, accuracy) whether no other point beats it."""
    cases = [
        ([(9, 0.9), (4, 0.8), (5, 0.7)], [True, True, False], "(5, 0.7) is larger and worse than (4, 0.8)"),
        ([(4, 0.8), (4, 0.7)], [True, False], "as large and worse: that is beaten too"),
        ([(4, 0.8), (6, 0.8)], [True, False], "as accurate and larger: that is beaten too"),
        ([(4, 0.8), (4, 0.8)], [True, True], "equal points do not beat each other, both stay"),
        ([(1, 0.2), (9, 0.9)], [True, True], "the smallest and the best are both on it, however bad or large"),
    ]
    for points, wanted, reason in cases:
        found = call(answer, list(points))
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise NotYet(f"return a list of bools, one for each point, got {type(found).__name__}")
        found = list(found)
        if len(found) != len(points):
            raise NotYet(f"{points} has {len(points)} points, and the answer {len(found)}: one bool for each")
        if [bool(one) for one in found] != wanted:
            if all(one == (not right) for one, right in zip(found, wanted, strict=True)):
                raise NotYet("True means on the front, that is, not beaten")
            raise NotYet(f"{points} should give {wanted}: {reason}")
    return "what is not on it need not be discussed; what is on it is a matter of the budget"


@exercise("12.4", title="The floor", minutes=20, difficulty=3)
def kept_steps(answer: Callable) -> str:
    """``answer(steps, floor)``: names of the steps that stay; those not judged wait for the next judged one."""
    cases = [
        ([("a", 0.9, True), ("b", 0.8, True)], ["a"], "b is below the floor and undone"),
        ([("a", 0.85, True)], ["a"], "exactly at the floor is not below it"),
        ([("cut", 0.1, False), ("train", 0.9, True)], ["cut", "train"], "cut is not judged: training has repaired it"),
        ([("cut", 0.1, False), ("train", 0.8, True)], [], "the repair failed, so the cut that it was for goes with it"),
        (
            [("a", 0.9, True), ("b", 0.5, True), ("c", 0.9, True)],
            ["a", "c"],
            "after an undone step it goes on: c starts from what a left",
        ),
        (
            [("cut", 0.1, False), ("train", 0.8, True), ("bits", 0.9, True)],
            ["bits"],
            "cut was undone with train; it does not come back with the next good step",
        ),
    ]
    for steps, wanted, reason in cases:
        found = call(answer, list(steps), 0.85)
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise NotYet(f"return a list of names, got {type(found).__name__}")
        if list(found) != wanted:
            raise NotYet(f"{[name for name, *_ in steps]} should leave {wanted}: {reason}; got {list(found)}")
    return "that is run_steps without the models"


@exercise("12.5", title="A language model in a file", minutes=15, difficulty=2)
def model_bytes(answer: Callable) -> str:
    """``answer(weights, others, bits, group_size)``: bytes with a 16-bit scale for each group, others in 16 bits."""
    # 1,024 weights of 4 bits: 512 bytes; 8 groups of 128, a scale of 2 bytes each: 16; 100 others of 2 bytes: 200
    mistakes = {
        712: "each group of 128 weights has a scale of 2 bytes",
        528: "the others are in the file as well, 2 bytes each",
        512: "scales and the others are in the file as well",
        628: "16 bits are 2 bytes, also for the others",
        720: "a scale has 16 bits, which are 2 bytes",
        512 + 16 + 50: "the others stay in 16 bits; they are not rounded",
        728 * 8: "that is in bits; 8 of them are a byte",
        512 + 2048 + 200: "one scale for each group, not for each weight",
        512 + 256 + 200: "as many scales as groups: weights / group_size, not group_size",
    }
    expect_number(call(answer, 1024, 100, 4, 128), 728, what="bytes of 1,024 weights and 100 others", wrong=mistakes)
    expect_number(call(answer, 1024, 0, 3, 32), 448, what="bytes at 3 bits in groups of 32")
    return "for Llama-2-7B, with 4-bit zero points added, this gives 3.89 GB: 3.5 times less than 16 bits, not 8"
