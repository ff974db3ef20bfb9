import pytest

from flower_chain.endpoint import Endpoint
from flower_chain.errors import ConfigError


def test_a_variable_stands_for_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "k3y")
    endpoint = Endpoint("https://node.example/${API_KEY}?again=${API_KEY}")
    assert endpoint.url == "https://node.example/k3y?again=k3y"
    assert str(endpoint) == "https://node.example/${API_KEY}?again=${API_KEY}"
    assert endpoint.hide("refused:\n k3y") == "refused: ***"


def test_a_password_is_not_shown() -> None:
    endpoint = Endpoint("https://me:s3cret word@node.example/path")
    assert str(endpoint) == "https://***@node.example/path"
    assert endpoint.hide("s3cret word, quoted s3cret%20word") == "***, quoted ***"


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_without_a_value_is_named(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("API_KEY", value)
    with pytest.raises(ConfigError, match="the environment variable API_KEY is not set"):
        Endpoint("https://node.example/${API_KEY}")


@pytest.mark.parametrize(
    ("url", "is_http"),
    [
        ("http://node.example:8545", True),
        ("https://[::1]/path", True),
        ("https://", False),
        ("https://[", False),
        ("ws://node.example", False),
        ("node.example", False),
    ],
)
def test_only_some_urls_can_be_asked_over_http(url: str, is_http: bool) -> None:
    assert Endpoint(url).is_http is is_http
