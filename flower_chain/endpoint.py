"""The URL of a node, whose secrets are never shown."""

import logging
import os
import re
from urllib.parse import urlsplit

from requests.utils import requote_uri

from flower_chain.errors import ConfigError


class Endpoint:
    """A URL as it is used, and as it may be shown: as it was written, but for a password.

    Parameters
    ----------
    text : str
        The URL; ``${NAME}`` in it stands for a variable of the environment.

    Raises
    ------
    ConfigError
        If the environment lacks a variable that `text` names.

    Attributes
    ----------
    url : str
    """

    def __init__(self, text: str) -> None:
        self._shown = re.sub("//[^/?#]*@", "//***@", text)
        names = re.findall(r"\$\{(\w+)\}", text)
        for name in names:
            if not os.environ.get(name):
                raise ConfigError(f"{self}: the environment variable {name} is not set")
            text = text.replace(f"${{{name}}}", os.environ[name])
        self.url = text
        passwords = re.findall("//(?:[^/?#:]*:)?([^/?#]+)@", text)
        secrets = [os.environ[name] for name in names] + passwords
        quoted = map(requote_uri, secrets)
        self._secrets = sorted({*secrets, *quoted}, key=len, reverse=True)

    def __str__(self) -> str:
        return self._shown

    @property
    def is_http(self) -> bool:
        """Whether it is a URL that can be asked over HTTP."""
        try:
            parts = urlsplit(self.url)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and bool(parts.hostname)

    def hide(self, text: str) -> str:
        """`text` in one line and without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())

    def clean(self, record: logging.LogRecord) -> bool:
        """A filter for the logs of those who are given the URL."""
        record.msg, record.args = self.hide(record.getMessage()), ()
        return True
