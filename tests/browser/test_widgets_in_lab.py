"""Every widget of the course in JupyterLab: it renders, reacts to the keyboard, has names, and logs no error."""

from __future__ import annotations

import os

import nbformat
import pytest

from compresslab.course.quiz import questions

TOKEN = "compresslab"
CELLS = {
    "bits": "from compresslab.course.widgets import bit_explorer\nbit_explorer(3.25, 'fp8_e4m3')",
    "temperature": (
        "import torch\nfrom compresslab.course.sliders import temperature_slider\n"
        "temperature_slider(torch.tensor([4.0, 2.0, 0.0]), 'abc', 1.0)"
    ),
    "threshold": (
        "from compresslab.course.sliders import threshold_slider\n"
        "threshold_slider({'first': torch.arange(1.0, 5), 'second': torch.arange(5.0, 9)}, 0.25)"
    ),
    "calculator": "from compresslab.course.calculator import calculator\ncalculator(out_features=512, in_features=512)",
    "advisor": "from compresslab.course.advisor import advisor\nadvisor(faster=2.0, time='minutes')",
    "quiz": "from compresslab.course import quiz\nquiz('00')",
}


@pytest.fixture(scope="module")
def opened(watched_class, browser, lab):
    """A notebook with all widgets, run from top to bottom; one page for all tests of this file."""
    address, folder = lab
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(notebook, folder / "widgets.ipynb")
    watched = watched_class(browser, address)
    page = watched.page
    page.goto(f"{address}/lab/tree/widgets.ipynb?reset&token={TOKEN}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    outputs = page.locator(".jp-OutputArea-output .widget-vbox")
    outputs.nth(len(CELLS) - 1).wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    yield watched, {name: page.locator(".jp-CodeCell").nth(number) for number, name in enumerate(CELLS)}
    page.close()


def says(cell):
    return cell.locator("pre[role=status]").first


def expect(cell, words: str) -> None:
    """The text that is read out holds the words, within a minute."""
    says(cell).filter(has_text=words).wait_for()


def test_bits_are_switched_by_the_keyboard(opened):
    _, cells = opened
    expect(cells["bits"], "bits 0 1000 101")
    sign = cells["bits"].get_by_title("sign bit")
    sign.focus()
    sign.press("Space")
    expect(cells["bits"], "value -3.25")
    field = cells["bits"].get_by_label("number")
    field.fill("0.4")
    field.press("Enter")
    expect(cells["bits"], "0.4 in fp8_e4m3")


@pytest.mark.parametrize(
    ("name", "label", "value", "words"),
    [
        ("temperature", "temperature", "2", "T = 2: a 0.665"),
        ("threshold", "sparsity", "0.75", "75 % of 8 weights: the smallest 6"),
        ("calculator", "zeros", "0.5", "262,144 MACs"),
        ("advisor", "smaller, x", "20", "about 4 times smaller"),
    ],
)
def test_a_number_is_typed(opened, name, label, value, words):
    _, cells = opened
    field = cells[name].get_by_label(label)
    field.fill(value)
    field.press("Enter")
    expect(cells[name], words)


@pytest.mark.parametrize(("name", "words"), [("temperature", "T = 2.5"), ("threshold", "76 % of 8")])
def test_sliders_follow_the_arrow_keys(opened, name, words):
    _, cells = opened
    slider = cells[name].get_by_role("slider")
    slider.focus()
    slider.press("ArrowRight")
    expect(cells[name], words)


@pytest.mark.parametrize(
    ("name", "label", "choice", "words"),
    [
        ("calculator", "bits of a weight", "8", "8.03 bits"),
        ("calculator", "stored as", "bitmask", "5.03 bits"),
        ("advisor", "architecture", "llm", "1. half precision"),
    ],
)
def test_menus(opened, name, label, choice, words):
    _, cells = opened
    cells[name].get_by_label(label).select_option(choice)
    expect(cells[name], words)


def test_the_quiz_answers(opened):
    _, cells = opened
    first = questions("00")[0]
    for answer in first["answers"]:
        cells["quiz"].get_by_label(answer["text"], exact=True).first.check()
        cells["quiz"].get_by_text(answer["why"]).wait_for()


def test_everything_that_can_be_used_has_a_name(opened):
    _, cells = opened
    count = 0
    for name, cell in cells.items():
        for role in ("textbox", "spinbutton", "combobox", "radio", "button"):
            for item in cell.locator(".jp-OutputArea-output").get_by_role(role).all():
                label = item.evaluate(
                    "e => e.ariaLabel || e.title || (e.labels && e.labels[0] && e.labels[0].innerText) || e.innerText"
                )
                assert label and label.strip(), (name, role, item.evaluate("e => e.outerHTML"))
                count += 1
    assert count > 40


def test_nothing_went_wrong_and_nothing_was_fetched(opened):
    watched, _ = opened
    if folder := os.environ.get("COMPRESSLAB_SCREENSHOTS"):
        watched.page.locator(".jp-Notebook").screenshot(path=f"{folder}/widgets.png")
    assert watched.errors == []
    assert watched.foreign == []
