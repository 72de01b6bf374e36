"""Building a notebook from its source, and running notebooks into a table."""

from __future__ import annotations

import nbformat
import pytest

from compresslab.course import notebooks
from compresslab.course.runner import notebook_paths, run_notebook, run_notebooks

SOURCE = """# %% [markdown]
# # 00 A title

# %% tags=["setup"]
import matplotlib.pyplot as plt
from IPython.display import HTML
from compresslab.course import show

# %% tags=["headline"]
print("three times", 4)

# %%
fig, ax = plt.subplots()
show(ax, alt="An empty pair of axes, nothing else")

# %%
HTML("<b>bold</b>")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder with ä") / "src"
    folder.mkdir()
    source = folder / "00_tiny.py"
    source.write_text(SOURCE, encoding="utf-8")
    return notebooks.build(source)


def test_build_runs_cleans_and_names(built):
    notebook = nbformat.read(built, as_version=4)
    assert built.name == "00_tiny.ipynb" and built.parent.name.startswith("a folder")
    assert [cell.id for cell in notebook.cells] == [f"00_tiny-{i:03d}" for i in range(5)]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3, 4]
    assert notebook.cells[2].outputs[0].text == "three times 4\n"
    assert notebook.cells[3].metadata.mystnb.image.alt == "An empty pair of axes, nothing else"
    assert "text/html" not in notebook.cells[4].outputs[0].data
    assert "execution" not in str(notebook.cells[1].metadata)


def test_building_twice_writes_the_same_bytes(built):
    before = built.read_bytes()
    notebooks.main([str(built.parent / "src" / "00_tiny.py")])
    assert built.read_bytes() == before


def test_a_failing_source_leaves_the_notebook_as_it_was(built):
    before = built.read_bytes()
    source = built.parent / "src" / "00_tiny.py"
    source.write_text(SOURCE + "\n# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.build(source)
    source.write_text(SOURCE, encoding="utf-8")
    assert built.read_bytes() == before


def test_run_notebook_measures_and_finds_the_headline(built):
    run = run_notebook(built)
    assert (run.lesson, run.headline, run.error) == ("00_tiny", "three times 4", "")
    assert 30e6 < run.peak_bytes < 4e9
    assert 0 < run.seconds < 120


ONE_THREAD = "import os; assert os.environ['OMP_NUM_THREADS'] == '1'"  # two at a time would wait for one another


def notebook(folder, name, *cells):
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


def test_a_kernel_that_dies_is_a_line_of_the_table_and_the_rest_still_runs(tmp_path, capsys):
    paths = [notebook(tmp_path, "01_gone", "import os; os._exit(1)"), notebook(tmp_path, "02_good", ONE_THREAD)]
    assert run_notebooks(paths, jobs=2) == 1
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert first.startswith("01_gone") and "FAILED" in first
    assert second.startswith("02_good") and "FAILED" not in second
    with pytest.raises(ValueError, match="jobs=0 must be 1 or more"):
        run_notebooks(paths, jobs=0)


def test_the_table_counts_failures(tmp_path, capsys):
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise KeyError('no layer')")])
    nbformat.write(bad, tmp_path / "01_bad.ipynb")
    assert run_notebooks([tmp_path / "01_bad.ipynb"]) == 1
    out = capsys.readouterr().out
    assert "01_bad" in out and "FAILED: KeyError: 'no layer'" in out and "1 notebooks" in out


def test_the_course_is_found():
    assert notebook_paths()[0].name == "00_measure_first.ipynb"
