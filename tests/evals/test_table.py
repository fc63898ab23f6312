"""The table of finished runs."""

import pytest

from nexttok.config import ConfigError
from nexttok.evals.markdown import significant
from nexttok.evals.table import TABLE
from tests.evals.test_pages import workdir


def test_rows_come_from_the_files_and_the_readme_is_rewritten_in_place(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{TABLE.start}\nold\n{TABLE.end}\nafter\n")
    assert TABLE.main([workdir(tmp_path / "a", "var"), f"--write={readme}"]) == 0
    cells = "| var | conv, vq | plan | context | head | 4 | 4 | 0.900 | 0.30 | 20 |"
    assert cells in capsys.readouterr().out
    text = readme.read_text()
    assert cells in text
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    assert TABLE.main([str(tmp_path)]) == 2
    assert "finished run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="with <!-- systems"):
        TABLE.write(str(tmp_path / "none.md"), "")


@pytest.mark.parametrize(
    ("value", "text"), [(1523.4, "1520"), (43.81, "43.8"), (0.5, "0.5"), (2e6, "2000000")]
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert significant(value) == text
