"""What readers leave out is said, and a file of which most is lost is refused."""

import pytest

from sr4g_utils.store.limits import LIMITS, check_loss, limit, set_limit
from sr4g_utils.store.run import Run


@pytest.mark.parametrize(
    ("left_out", "warned"), [({}, 0), ({"odd": 0}, 0), ({"odd": 1}, 0), ({"odd": 20, "bad": 19}, 1)]
)
def test_what_is_left_out_is_said_with_its_cause(capsys, left_out, warned):
    told = check_loss(f"a-{warned}-{len(left_out)}.json", left_out, 1000, "boxes", {"odd": "write them anew"})
    assert len(told) == warned and capsys.readouterr().err == "".join(f"{line}\n" for line in told)
    for line in told:
        assert line == "WARNING: a-1-2.json: 20 of 1,000 boxes (2%) are left out: odd; write them anew"


def test_where_most_is_lost_the_file_is_refused_unless_a_setting_allows_it(monkeypatch):
    left_out = {"odd": 3, "bad": 3}
    with pytest.raises(ValueError) as caught:
        check_loss("b.json", left_out, 10, "boxes", {"bad": "mend it"})
    told = "b.json: 6 of 10 boxes (60%) are left out, more than allow_loss = 0.5 (SR4G_ALLOW_LOSS=1 takes the rest): "
    told += "3 odd; 3 bad; mend it"
    assert str(caught.value) == told
    assert len(check_loss("b.json", left_out, 10, "boxes", allow_loss=0.6)) == 2
    monkeypatch.setenv("SR4G_ALLOW_LOSS", "1")
    assert len(check_loss("b.json", {"odd": 10}, 10, "boxes", doubts=["too small"])) == 2
    assert check_loss("b.json", {}, 0) == []


@pytest.mark.parametrize("value", ["-0.1", "1.01", "nan", "inf", "much", ""])
def test_a_limit_that_cannot_be_is_an_error(monkeypatch, value):
    for use in (lambda: set_limit("allow_loss", value), lambda: limit("allow_loss")):
        monkeypatch.setenv("SR4G_ALLOW_LOSS", value)
        with pytest.raises(ValueError, match=r"allow_loss: must be a number from 0 to 1, got "):
            use()


def test_a_limit_that_is_set_holds_until_it_is_set_anew(monkeypatch, tmp_path):
    monkeypatch.delenv("SR4G_ALLOW_LOSS", raising=False)
    assert all(least <= default <= most for default, least, most in LIMITS.values()) and limit("allow_loss") == 0.5
    monkeypatch.setenv("SR4G_ALLOW_LOSS", "0.25")  # so that it is put back
    set_limit("allow_loss", None)
    assert limit("allow_loss") == 0.25
    set_limit("allow_loss", 0.75)
    assert limit("allow_loss") == 0.75
    for given, holds in ((None, 0.75), (0.5, 0.5), (1, 1)):
        Run(tmp_path, "01_test", given)
        assert limit("allow_loss") == holds
