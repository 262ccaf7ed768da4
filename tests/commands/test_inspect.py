"""`sspo inspect`: minimum and maximum, a reader's order, nothing that is 0 throughout, and a response in clauses."""

import pathlib
import re

import pytest

from sspo_jax.commands.inspect import clauses
from sspo_jax.commands.main import main
from tests.report.conftest import make_run, token_log


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one")


def test_curves_and_a_response(run: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["inspect", str(run)]) == 0
    shown = capsys.readouterr().out
    names = re.findall(r"^([\w-]+/[\w/]+) ", shown.partition("minimum, maximum")[2], flags=re.MULTILINE)
    assert names[:3] == ["eval/held/accuracy", "reward/mean", "reward/correctness_mean"]
    assert names.index("ratio/clip_fraction") < names.index("policy/entropy") < names.index("optim/grad_norm")
    assert "response/truncated_fraction" not in names  # 0 throughout
    assert "counterfactual/sspo_clip_fraction" not in names
    assert re.search(r"^eval/held/accuracy .*0\.25 -> 0\.75 +\[0\.25, 0\.75\]", shown, flags=re.MULTILINE)
    assert "step 10, p0 sample 1, correct, reward 1, advantage +1.00, update 2" in shown
    assert "clipped high ▲; GSPO too" in shown


def test_metrics_by_the_start_of_their_names(run: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(run), "--metrics", "update/", "--responses", "0"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"update/\d", shown) == ["update/2", "update/3", "update/4"]
    assert "reward/mean" not in shown
    assert "log s_k" not in shown
    assert main(["inspect", str(run), "--metrics", "nothing/"]) == 1
    assert "--metrics is nothing/, and no metric begins so" in capsys.readouterr().err


def test_clipped_clauses_are_marked():
    text = clauses(token_log(5))
    assert "2 plus 3 is 5, so it is </script>5.▲" in text.plain
    marked = next(span for span in text.spans if "bold red" in str(span.style))
    assert text.plain[marked.start : marked.end] == " so it is </script>5."
