"""Secrets out of texts that are shown: passwords and keys in URLs, values of keys that hold one."""

import re

IN_URLS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"
    r"|(?<=[?&;])((?:[\w-]*(?:key|token|secret|password|sig|signature|auth)[\w-]*)=)[^&;\s#'\"]+",
    re.IGNORECASE,
)
"""User and password of a URL, and the values of parameters that hold a key."""

NAMES = re.compile(r"(^|_)(token|key|password|secret)$", re.IGNORECASE)
"""Names of settings whose value is a secret."""

HIDDEN = "[redacted]"


def without_secrets(text: str) -> str:
    """Return the text without passwords and keys of URLs in it."""
    return IN_URLS.sub(lambda found: (found[1] or "") + HIDDEN, text)
