"""The address of a server and its API key: checked before any byte is sent."""

from __future__ import annotations

import ipaddress
import logging
import os
from dataclasses import dataclass, field

import httpx2

from opd.errors import UserError
from opd.http.text import clean

logger = logging.getLogger(__name__)

METADATA_HOSTS = ("metadata.google.internal", "metadata.goog", "instance-data")
EXAMPLE = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Endpoint:
    """A server as the configuration names it.

    Attributes:
        url: base of all paths.
        role: what messages call the server, such as "teacher".
        key: configuration key of the URL, named in messages.
        api_key: sent as a bearer token, to this origin only.
    """

    url: str
    role: str
    key: str
    api_key: str | None = field(default=None, repr=False)


def check_url(url: str, key: str, *, with_api_key: bool = False) -> str:
    """`url` without its last slash.

    Args:
        url: base URL of a server.
        key: configuration key named in errors.
        with_api_key: whether a secret will be sent there; over plain http this is warned of.

    Raises:
        UserError: not http(s), a password or query inside, or a link-local or metadata address.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UserError(f"{key} is no URL: {error}. Give one like {EXAMPLE}.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(
            f"{key}={clean(url)}: only http:// and https:// addresses, such as {EXAMPLE}."
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UserError(
            f"{key}: a URL with a name, password, query or fragment inside is refused, because it "
            f"would end up in logs. Put the key into an environment variable and name it in "
            f"{key.rpartition('.')[0]}.api_key_env."
        )
    host = parsed.host.lower().rstrip(".")
    address = _ip_address(host)
    if host in METADATA_HOSTS or (address is not None and _is_link_local(address)):
        raise UserError(
            f"{key}={clean(url)}: link-local and metadata addresses are refused; they serve the "
            "credentials of cloud machines. Use the server's ordinary address."
        )
    loopback = host == "localhost" or (address is not None and address.is_loopback)
    if with_api_key and parsed.scheme == "http" and not loopback:
        logger.warning("%s: the key travels unencrypted to %s. Use https.", key, host)
    return url.rstrip("/")


def read_key(variable: str | None, key: str) -> str | None:
    """The secret in an environment variable; None without a variable.

    Args:
        variable: its name.
        key: configuration key that names it, for errors.

    Raises:
        UserError: the variable is not set, or holds what cannot be a key.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "")
    if not value or not value.isascii() or not value.isprintable():
        raise UserError(
            f"{key}={variable}: this environment variable is "
            f"{'empty or not set' if not value else 'not a key'}. export {variable}=..."
        )
    return value


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _is_link_local(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    return address.is_link_local or str(address) == "fd00:ec2::254"
