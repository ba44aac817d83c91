"""`fraud rules` and `fraud features`, as a user meets them."""

import json
from pathlib import Path

from typer.testing import CliRunner

from stream.cli.commands import app
from stream.cli.features import features_page

RUN = CliRunner()


def test_the_page_of_features_is_that_of_the_tables() -> None:
    page = Path(__file__).parents[2] / "deploy" / "features.md"
    assert page.read_text(encoding="utf-8") == features_page(), "run: fraud features --markdown deploy/features.md"


def test_the_shown_rules_pass_the_check(tmp_path: Path) -> None:
    shown = RUN.invoke(app, ["rules", "show", "--json"])
    file = tmp_path / "rules.json"
    file.write_text(shown.stdout)
    checked = RUN.invoke(app, ["rules", "check", str(file), "--json"])
    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["rules"] >= 4


def test_an_unknown_feature_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    rules = json.loads(RUN.invoke(app, ["rules", "show", "--json"]).stdout)
    rules["rules"][0]["when"][0]["feature"] = "acount_payments_1h_count"
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules))
    checked = RUN.invoke(app, ["rules", "check", str(file)])
    assert checked.exit_code == 1
    assert "account_payments_1h_count" in checked.output
